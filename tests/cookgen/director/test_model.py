"""The network against plain references: every mask rule has a test that breaks when the rule is taken away."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from cookgen.director import model as model_module
from cookgen.director.attention import PACKED, dense_mask
from cookgen.director.config import (
    DirectorConfig,
    HeadConfig,
    LanguageModelConfig,
    RegularizationConfig,
    SequenceConfig,
    Task,
)
from cookgen.director.inputs import IGNORE, MARKS, Batch, Document, Packer, Prepared
from cookgen.director.model import Director, Embeddings
from cookgen.errors import ShapeError, UsageError
from tests.cookgen.director.narratives import (
    ARCHITECTURES,
    NUM_WORDS,
    TASKS,
    Z,
    director,
    for_task,
    head_outputs,
    inputs,
    language_model,
    pack,
    predictions,
    sums,
    tale,
)

TALES = [tale(4, seed=1), tale(1, seed=2), tale(3, seed=3)]
VISUAL_TASKS = [task for task in TASKS if task != "action-caption"]
close = partial(torch.testing.assert_close, rtol=1e-4, atol=1e-4)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def approx(expected: Any) -> Any:
    return pytest.approx(expected, rel=1e-5, abs=2e-4)


def without_rule(monkeypatch: pytest.MonkeyPatch, *, documents: bool = False, blocks: bool = False) -> None:
    """Takes a rule of the mask away."""
    rule = model_module.visible

    def visible(batch: Batch, *rest: Any, flex: bool) -> dict[str, Any]:
        if documents:
            batch = replace(batch, documents_RL=torch.zeros_like(batch.documents_RL))
        if blocks:
            batch = replace(batch, blocks_RL=torch.zeros_like(batch.blocks_RL))
        return rule(batch, *rest, flex=flex)

    monkeypatch.setattr(model_module, "visible", visible)


# A plain reference: one document, one token stream, the library's own forward with its own causal mask


def plain_hidden(model: Director, document: Document, wanted: list[int]) -> Tensor:
    """Last hidden states [len(wanted), H] of the sequence made of these tokens of the document alone."""
    words, rows = model.language_model.get_input_embeddings().weight, model.rows.weight
    vectors = torch.cat([words, rows])[torch.from_numpy(document.ids)].clone()
    if document.fed.size:
        z = (torch.from_numpy(document.z) - model.mean_W) / model.scale
        vectors[torch.from_numpy(document.fed)] = model.projector(z)
    found = model.language_model(inputs_embeds=vectors[wanted][None], output_hidden_states=True)
    hidden: Tensor = found.hidden_states[-1][0]
    return hidden


def plain_text(model: Director, document: Document) -> Tensor:
    """Sum of cross entropies over a document without its queries: logits at all positions."""
    main = np.flatnonzero(document.blocks == 0).tolist()
    hidden = plain_hidden(model, document, main)
    words = model.language_model.get_output_embeddings()(hidden)
    logits = torch.cat([words, hidden @ model.rows.weight[: len(MARKS)].T], -1)
    return F.cross_entropy(logits, torch.from_numpy(document.labels[main]), ignore_index=IGNORE, reduction="sum")


def plain_images(model: Director, document: Document) -> Tensor:
    """Predicted z [M, N, W], standardised: for each image what came before it, then the queries."""
    assert model.head is not None
    found = []
    for read in document.read:
        history = np.flatnonzero((document.blocks == 0) & (np.arange(len(document)) < read[0])).tolist()
        hidden = plain_hidden(model, document, [*history, *read.tolist()])
        found.append(model.head(hidden[len(history) :]))
    return torch.stack(found)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_it_is_the_plain_model_on_each_history(architecture: str) -> None:
    config = DirectorConfig(head=HeadConfig(alpha=0.5, beta=2))
    model = director(config, architecture=architecture)
    documents = [inputs(config)(item).documents[0] for item in TALES]
    batch = pack(TALES, config)
    found = sums(model, batch)
    with torch.no_grad():
        expected = torch.cat([plain_images(model, document) for document in documents])
        text = sum(plain_text(model, document) for document in documents)
    close(predictions(model, batch), expected)
    assert found["text"] == approx(float(text))
    z = np.concatenate([document.z for document in documents]).astype(np.float64)
    z_hat = (expected * model.scale + model.mean_W).double().numpy()
    cosine = (z_hat * z).sum(-1) / np.linalg.norm(z_hat, axis=-1) / np.linalg.norm(z, axis=-1)
    squares = ((z_hat - z) ** 2).mean(-1) / model.scale.item() ** 2
    assert found["visual"] == approx((0.5 * (1 - cosine) + 2 * squares).mean(-1).sum())


@pytest.mark.parametrize("architecture", ["llama", "llama, tied", "qwen2", "qwen3"])
def test_text_alone_is_the_library_model_with_a_larger_vocabulary(architecture: str) -> None:
    config = for_task("action-caption")
    model = director(config, architecture=architecture)
    bare = copy.deepcopy(model.language_model)
    bare.resize_token_embeddings(NUM_WORDS + len(MARKS), mean_resizing=False)
    with torch.no_grad():
        bare.get_input_embeddings().weight[NUM_WORDS:] = model.rows.weight
        bare.get_output_embeddings().weight[NUM_WORDS:] = model.rows.weight
        expected = 0.0
        for item in TALES:
            (document,) = inputs(config)(item).documents
            logits = bare(input_ids=torch.from_numpy(document.ids)[None]).logits[0]
            labels = torch.from_numpy(document.labels)
            expected += F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum").item()
    assert sums(model, pack(TALES, config))["text"] == approx(expected)


# Every step at once is the last step of each beginning


def last_of(config: DirectorConfig) -> DirectorConfig:
    return replace(config, sequence=replace(config.sequence, supervision="last"))


@pytest.mark.parametrize("task", TASKS)
def test_every_step_gives_the_same_loss_on_the_last_step(task: Task) -> None:
    config = for_task(task)
    model = director(config)
    every, last = pack(TALES, config), pack(TALES, last_of(config))
    assert sums(model, every)["text"] == approx(sums(model, last)["text"])
    if task == "action-caption":
        return
    assert every.counts["visual"] == sum(len(item.steps) for item in TALES)
    assert last.counts["visual"] == len(TALES)
    of_last = np.cumsum([len(item.steps) for item in TALES]) - 1
    out = predictions(model, every)
    close(out[of_last], predictions(model, last))
    assert model.head is not None
    target = model.standardise(every.z_FNW)[every.fed_of_read_M]
    losses = model.head.losses(out, target, model.mean_W, model.scale)
    assert losses[of_last].sum().item() == approx(sums(model, last)["visual"])


@pytest.mark.parametrize("task", VISUAL_TASKS)
@pytest.mark.parametrize("kind", ["regression", "mixture"])
def test_every_step_is_the_last_step_of_the_story_so_far(task: Task, kind: Any) -> None:
    config = replace(for_task(task), head=HeadConfig(kind=kind))
    model = director(config)
    story = TALES[0]
    beginnings = [story.first(num) for num in range(1, 5)]
    expected = predictions(model, pack(beginnings, last_of(config)))
    close(predictions(model, pack([story], config)), expected)
    assert (expected[0] - expected[1]).abs().max() > 0.01  # steps do differ


def test_queries_seen_by_later_steps_would_change_them(monkeypatch: pytest.MonkeyPatch) -> None:
    config = DirectorConfig()
    model = director(config)
    every, last = pack(TALES[:1], config), pack(TALES[:1], last_of(config))
    without_rule(monkeypatch, blocks=True)
    assert (predictions(model, every)[-1:] - predictions(model, last)).abs().max() > 0.01


# Queries are invisible to what comes later


def test_query_rows_change_images_but_no_text() -> None:
    config = DirectorConfig()
    model, batch = director(config), pack(TALES, DirectorConfig())
    before = sums(model, batch)
    with torch.no_grad():
        model.rows.weight[len(MARKS) :] += torch.randn_like(model.rows.weight[len(MARKS) :])
    after = sums(model, batch)
    assert after["text"] == before["text"]
    assert abs(after["visual"] - before["visual"]) > 0.01


def gradient_of_text_on_queries() -> Tensor:
    model = director()
    model(pack(TALES, model.config))["text"].backward()
    gradient = model.rows.weight.grad
    assert gradient is not None
    assert gradient[: len(MARKS)].any(1).all()
    return gradient[len(MARKS) :]


def test_text_has_no_gradient_on_query_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not gradient_of_text_on_queries().any()
    without_rule(monkeypatch, blocks=True)
    assert gradient_of_text_on_queries().any()


# Documents in one row are strangers


@settings(deadline=None, max_examples=12)
@given(st.permutations(range(5)), st.sampled_from([16, 160, 250, 2048]))
def test_packed_documents_are_the_same_documents_alone(order: list[int], max_length: int) -> None:
    config = DirectorConfig()
    model = director(config)
    tales = [*TALES, tale(2, seed=8), tale(1, seed=9)]
    alone = [sums(model, pack([item], config)) for item in tales]
    packed = sums(model, pack([tales[index] for index in order], config, max_length=max_length))
    assert packed == approx({name: sum(found[name] for found in alone) for name in packed})


def change_by_a_neighbour(model: Director) -> float:
    ours, config = TALES[0], model.config
    with_one, with_another = (pack([other, ours], config) for other in (tale(2, seed=4), tale(3, seed=5)))
    assert with_one.ids_RL.shape[0] == with_another.ids_RL.shape[0] == 1
    num_ours = len(ours.steps)
    difference = predictions(model, with_one)[-num_ours:] - predictions(model, with_another)[-num_ours:]
    return difference.abs().max().item()


def test_a_neighbours_texts_and_images_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = director()
    assert change_by_a_neighbour(model) < 1e-4
    without_rule(monkeypatch, documents=True)
    assert change_by_a_neighbour(model) > 0.01


def test_padding_changes_nothing() -> None:
    config = DirectorConfig()
    model = director(config)
    long, short = tale(6, seed=6), tale(1, seed=7)
    batch = pack([long, short], config, max_length=16)
    is_padding = batch.documents_RL < 0
    assert batch.ids_RL.shape[0] == 2
    assert is_padding.sum() == batch.ids_RL.numel() - batch.num_tokens > 100
    filled = replace(
        batch,
        ids_RL=batch.ids_RL.masked_fill(is_padding, 77),
        positions_RL=batch.positions_RL.masked_fill(is_padding, 500),
    )
    found = sums(model, batch)
    assert found == approx(sums(model, filled))
    alone = [sums(model, pack([item], config)) for item in (long, short)]
    assert found == approx({name: sum(one[name] for one in alone) for name in found})


def test_the_mask_shows_exactly_what_it_says() -> None:
    batch = pack([TALES[1]], DirectorConfig())
    mask = dense_mask(batch, None)[0, 0]
    blocks, is_padding = batch.blocks_RL[0].tolist(), (batch.documents_RL[0] < 0).tolist()
    for query in range(len(blocks)):
        for key in range(len(blocks)):
            sees = key <= query and is_padding[key] == is_padding[query] and blocks[key] in (0, blocks[query])
            assert mask[query, key].item() == sees


# The head that reads one token of z after the other


@pytest.mark.parametrize("kind", ["regression", "mixture"])
def test_next_token_reads_each_token_of_z_from_those_before_it(kind: Any) -> None:
    config = DirectorConfig(head=HeadConfig(kind=kind, readout="next_token"))
    model = director(config)
    (document,) = inputs(config)(TALES[0]).documents
    assert (document.read == document.fed - 1).all()
    hidden = plain_hidden(model, document, list(range(len(document))))
    assert model.head is not None
    out = predictions(model, pack(TALES[:1], config))
    close(out, model.head(hidden[torch.from_numpy(document.read)]).detach())
    z = TALES[0].z.copy()
    z[1, 1] += 1  # the second token of the second image
    changed = predictions(model, pack([replace(TALES[0], z=z)], config))
    differs = ((out - changed).abs() > 1e-4).any(-1).tolist()
    assert differs == [[False] * 3, [False, False, True], [True] * 3, [True] * 3]


# What is random is random in training alone


@pytest.mark.parametrize("name", ["history_mix", "dropout", "mask_rate"])
def test_regularization_is_for_training_alone(name: str) -> None:
    config = DirectorConfig(regularization=RegularizationConfig(**{name: 0.5}))
    model, plain, batch = director(config), director(), pack(TALES, config)
    assert sums(model, batch) == sums(plain, batch)
    model.train()
    plain.train()
    torch.manual_seed(0)
    first = sums(model, batch)
    assert abs(first["visual"] - sums(plain, batch)["visual"]) > 1e-3
    assert sums(model, batch) != first
    torch.manual_seed(0)
    assert sums(model, batch) == first


def test_mixed_history_is_the_models_own_prediction() -> None:
    config = DirectorConfig(regularization=RegularizationConfig(history_mix=1 - 1e-9))
    model, batch = director(config).train(), pack(TALES, config)
    with torch.no_grad(), head_outputs(model) as found:
        given_sums = model(batch)
    first, second = found
    close(first, predictions(director(), batch))
    z = batch.z_FNW.clone()
    z[batch.fed_of_read_M] = model.restore(first)
    close(second, predictions(director(), replace(batch, z_FNW=z)))
    assert (second - first).abs().max() > 0.01
    assert model.head is not None  # what is aimed at is still the true z
    target = model.standardise(batch.z_FNW)[batch.fed_of_read_M]
    assert given_sums["visual"].item() == approx(
        model.head.losses(second, target, model.mean_W, model.scale).sum().item()
    )


def test_queries_are_never_masked() -> None:
    config = DirectorConfig(regularization=RegularizationConfig(mask_rate=1 - 1e-9))
    batch = pack(TALES[:1], config)
    mask = director(config).train()._visible(batch)["attention_mask"][0, 0]
    first, *rest = batch.read_MN[0].tolist()
    assert [mask[query].nonzero().flatten().tolist() for query in (first, *rest)] == [
        list(range(first, query + 1)) for query in (first, *rest)
    ]


def test_masked_tokens_still_see_themselves() -> None:
    batch = pack(TALES, DirectorConfig())
    everything = torch.ones_like(batch.ids_RL, dtype=torch.bool)
    mask = dense_mask(batch, everything)
    assert torch.equal(mask, torch.eye(mask.shape[-1], dtype=torch.bool).expand_as(mask))


# Sums and measures


def test_measures_are_those_of_table_5_beside_two_baselines() -> None:
    config = DirectorConfig()
    model, batch = director(config), pack(TALES, config)
    pred = model.restore(predictions(model, batch)).double().numpy()
    z = [item.z.astype(np.float64) for item in TALES]
    target = np.concatenate(z)
    mean = np.broadcast_to(model.mean_W.numpy(), target.shape)
    before = np.concatenate([item[:-1] for item in z])
    is_later = np.concatenate([np.arange(len(item)) > 0 for item in z])

    def l2(one: Any, other: Any) -> float:
        return float(np.linalg.norm(one - other, axis=-1).mean(-1).sum())

    def cosine(one: Any, other: Any) -> float:
        sizes = np.linalg.norm(one, axis=-1) * np.linalg.norm(other, axis=-1)
        return float(((one * other).sum(-1) / sizes).mean(-1).sum())

    expected = {
        f"{name}{measure.__name__}": measure(one, other)
        for measure in (l2, cosine)
        for name, one, other in (
            ("", pred, target),
            ("mean_", mean, target),
            ("later_", pred[is_later], target[is_later]),
            ("previous_", before, target[is_later]),
        )
    }
    found = sums(model, batch)
    assert {name: found[name] for name in expected} == approx(expected)
    assert batch.counts["later_l2"] == is_later.sum()


@pytest.mark.parametrize("task", TASKS)
def test_there_is_a_sum_for_every_count(task: Task) -> None:
    config = for_task(task)
    model = director(config)
    for batch in (pack(TALES, config), Packer(64, Z)([])):
        found = model(batch)
        assert found.keys() == batch.counts.keys()
        assert all(value.dtype == torch.float32 and value.shape == () for value in found.values())
        assert all(found[name] == 0 for name, count in batch.counts.items() if not count)
        assert model.loss_weights.keys() <= batch.counts.keys()


@pytest.mark.parametrize("training", [False, True])
def test_every_weight_has_a_gradient_even_from_nothing(training: bool) -> None:
    """Ranks that wait for each other's gradients need all of them, also from a batch without documents."""
    config = DirectorConfig(regularization=RegularizationConfig(history_mix=0.5, dropout=0.1, mask_rate=0.1))
    model = director(config, architecture="llama").train(training)
    found = model(Packer(64, Z)([]))
    (found["text"] + found["visual"]).backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None] == []
    assert all(weight.grad is not None and not weight.grad.any() for weight in model.parameters())


def test_text_weight_is_the_loss_weight() -> None:
    assert director(DirectorConfig(text_weight=0.25)).loss_weights == {"text": 0.25, "visual": 1.0}
    assert director(for_task("action-caption")).loss_weights == {"text": 1.0}


# Numbers


def test_restoring_undoes_standardising() -> None:
    model = director()
    z = 5 * torch.randn(4, *Z)
    close(model.restore(model.standardise(z)), z)
    close(model.standardise(model.mean_W.expand(1, *Z)), torch.zeros(1, *Z))


@pytest.mark.parametrize(
    "values",
    [
        (3, 2, [0.0], 1.0),
        (3, 1, [0.0], 0.0),
        (3, 1, [0.0], -1.0),
        (3, 1, [0.0], float("nan")),
        (3, 1, [float("nan")], 1.0),
        (3, 1, [float("inf")], 1.0),
    ],
)
def test_embeddings_need_a_finite_mean_and_a_scale(values: tuple[int, int, list[float], float]) -> None:
    with pytest.raises(ShapeError, match=f"width {values[1]}"):
        Embeddings(*values)


@pytest.mark.parametrize(
    ("architecture", "values", "limit"),
    [
        ("llama", {"max_position_embeddings": 100}, 100),
        ("gpt2", {"n_positions": 64}, 64),
        ("mistral", {"sliding_window": 50}, 50),
    ],
)
def test_sequences_longer_than_the_language_model_sees_are_refused(
    architecture: str, values: dict[str, int], limit: int
) -> None:
    """The mask shows all that came before, also what a layer with a window has never seen in its own training."""
    found = AutoConfig.for_model(
        architecture, **{"vocab_size": NUM_WORDS, "hidden_size": 32, "num_attention_heads": 4, **values}
    )
    with torch.device("meta"):
        bare = AutoModelForCausalLM.from_config(found)
    config = DirectorConfig(sequence=SequenceConfig(max_length=limit + 1))
    with pytest.raises(UsageError, match=rf"max-length={limit + 1}: .*={limit}; give {limit} or less"):
        Director(config, bare, None)
    Director(DirectorConfig(sequence=SequenceConfig(max_length=limit)), bare, None)


def test_new_vectors_are_as_large_as_words() -> None:
    torch.manual_seed(0)
    words = language_model("llama")
    model = Director(DirectorConfig(), words, Embeddings(16, 48, [0.0] * 48, 1.0))
    size = words.get_input_embeddings().weight.square().mean().sqrt()
    projected = model.project(torch.randn(64, 16, 48)).square().mean().sqrt()
    for found in (model.rows.weight.square().mean().sqrt(), projected):
        assert 0.7 < (found / size).item() < 1.4


@pytest.mark.parametrize("zeros", ["features", "head"])
def test_zero_vectors_give_finite_gradients(zeros: str) -> None:
    config = DirectorConfig()
    torch.manual_seed(0)
    model = Director(config, language_model(), Embeddings(*Z, [0.0] * Z[1], 1.0))
    assert model.head is not None
    if zeros == "head":
        torch.nn.init.zeros_(model.head.linear.weight)
    batch = pack(TALES, config)
    batch = replace(batch, z_FNW=torch.zeros_like(batch.z_FNW)) if zeros == "features" else batch
    found = model(batch)
    found["visual"].backward()
    assert all(value.isfinite() for value in found.values())
    assert all(weight.grad.isfinite().all() for weight in model.parameters() if weight.grad is not None)


@pytest.mark.parametrize("kind", ["regression", "mixture"])
@pytest.mark.parametrize("lora", [False, True])
def test_bf16_autocast_stays_near_float32(kind: Any, lora: bool) -> None:
    """All weights under autocast, and LoRA over a base that is bf16 itself, as the 7B presets have it."""
    lm_config = LanguageModelConfig(attention="sdpa", lora_rank=4 if lora else 0)
    config = DirectorConfig(language_model=lm_config, head=HeadConfig(kind=kind))
    exact = director(config)
    batch = pack(TALES, config)
    expected = sums(exact, batch)
    model = copy.deepcopy(exact).train()
    if lora:
        for weight in model.language_model.parameters():
            weight.data = weight.data if weight.requires_grad else weight.data.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = model(batch)
    (found["text"] + found["visual"]).backward()
    assert all(value.dtype == torch.float32 for value in found.values())
    assert {name: value.item() for name, value in found.items()} == pytest.approx(expected, rel=0.05, abs=0.3)
    for name, weight in model.named_parameters():
        assert (weight.grad is not None) == weight.requires_grad, name
        assert weight.grad is None or (weight.grad.isfinite().all() and weight.grad.dtype == torch.float32)


@pytest.mark.parametrize("mask_rate", [0.0, 0.2])
@pytest.mark.parametrize("readout", ["queries", "next_token"])
def test_attention_in_parts_is_that_under_the_whole_mask(mask_rate: float, readout: Any) -> None:
    """Forward and backward, for rows of several documents, padded ones, and tokens that are masked away."""
    config = DirectorConfig(head=HeadConfig(readout=readout), regularization=RegularizationConfig(mask_rate=mask_rate))
    model = director(config).train()
    batch = pack([*TALES, tale(6, seed=6)], config, max_length=300)
    assert len(batch.ids_RL) > 1
    found = []
    for implementation in (PACKED, "sdpa"):
        model.language_model.set_attn_implementation(implementation)
        torch.manual_seed(0)
        losses = model(batch)
        model.zero_grad()
        (losses["text"] + losses["visual"]).backward()
        gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
        found.append([losses["text"].detach(), losses["visual"].detach(), *gradients])
    assert len(found[0]) > 10
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-3)


def test_generation_gives_what_training_saw() -> None:
    """hidden() with a cache, token after token, is the training pass without queries."""
    config = for_task("action-caption")
    model = director(config)
    (document,) = inputs(config)(TALES[0]).documents
    ids = torch.from_numpy(document.ids)[None]
    with torch.no_grad():
        expected = plain_hidden(model, document, list(range(len(document))))
        cache, found = DynamicCache(), []
        for start, end in pairwise((0, 7, *range(8, len(document) + 1))):
            positions = torch.arange(start, end)[None]
            found.append(model.hidden(model.embed(ids[:, start:end]), positions=positions, cache=cache)[0])
    close(torch.cat(found), expected)


@pytest.mark.full
@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")  # torch's own, in its compiler
@pytest.mark.skipif(shutil.which("g++") is None, reason="flex_attention on a CPU is compiled by g++, which is not here")
def test_flex_attention_gives_what_sdpa_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward alone: flex_attention has no backward on a CPU."""
    flex = DirectorConfig(language_model=LanguageModelConfig(attention="flex_attention"))
    model = director(flex)
    batch = pack([*TALES, tale(6, seed=6)], flex, max_length=300)
    assert len(batch.ids_RL) > 1
    assert sums(model, batch) == approx(sums(director(), batch))
    without_rule(monkeypatch, documents=True)
    assert sums(model, batch) != approx(sums(director(), pack(TALES, flex)))


def test_a_sequence_config_reaches_the_model() -> None:
    """The number of rows is that of marks and queries: none without z, none where z is read token by token."""
    make: Callable[[DirectorConfig], int] = lambda config: len(director(config).rows.weight)  # noqa: E731
    assert make(DirectorConfig()) == len(MARKS) + Z[0]
    assert make(for_task("action-caption")) == len(MARKS)
    assert make(DirectorConfig(head=HeadConfig(readout="next_token"))) == len(MARKS)
    assert make(DirectorConfig(sequence=SequenceConfig(supervision="last"))) == len(MARKS) + Z[0]


def test_documents_without_images_are_fine_beside_others() -> None:
    """A row whose only step is given, not learned: images are fed, none is read."""
    config = DirectorConfig(sequence=SequenceConfig(supervise_first=False))
    model = director(config)
    prepared = inputs(config)(TALES[1])
    assert isinstance(prepared, Prepared)
    batch = pack([TALES[1]], config)
    assert batch.counts["visual"] == 0
    assert len(batch.z_FNW) == 1
    assert sums(model, batch)["visual"] == 0
    assert sums(model, pack(TALES, config)) == approx(sums(model, pack([TALES[0], TALES[2], TALES[1]], config)))
