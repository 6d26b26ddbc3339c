"""Writing with a director: the same documents as training, whatever the weights."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cookgen.director.inputs import DocumentWriter, query_ids
from cookgen.director.sample import (
    Given,
    Sampling,
    Stream,
    Written,
    _words,
    _Writer,
    check_query,
    clean_text,
    write_narrative,
)
from cookgen.director.weights import LoadedDirector
from cookgen.errors import ModelError, ShapeError, UsageError
from cookgen.files import canonical_json
from tests.cookgen.director import tinydirector as tiny

QUERY = "How to make a pepperoni pizza?"
KINDS = [
    {"task": task, "readout": readout, "kind": kind}
    for task in ("action-visual", "caption-visual", "action-caption-visual")
    for readout in ("queries", "next_token")
    for kind in ("regression", "mixture")
]
ALL = [*KINDS, {"task": "action-caption"}]


def name_of(options: dict[str, str]) -> str:
    return "-".join(options.values())


@contextmanager
def watched(name: str, see: Callable[..., None]) -> Iterator[None]:
    """Calls `see(stream, result, arguments)` after every call of a method of Stream; it works as it did."""
    with pytest.MonkeyPatch.context() as patch:
        real = getattr(Stream, name)

        def call(self: Stream, *args: Any, **options: Any) -> Any:
            result = real(self, *args, **options)
            see(self, result, args)
            return result

        patch.setattr(Stream, name, call)
        yield


def uncached(checkpoint: LoadedDirector, document: Any) -> tuple[torch.Tensor, Any]:
    """Training's own forward: the hidden states [L, H], and what the head makes of those that are read."""
    director, batch = checkpoint.director, tiny.pack(checkpoint, [document])
    with torch.inference_mode():
        y = director.standardise(batch.z_FNW) if director.head is not None else batch.z_FNW
        hidden_LH = director._hidden(batch, y, director._visible(batch)).flatten(0, 1)
        return hidden_LH, director.read(hidden_LH[batch.read_MN]) if director.head is not None else None


@pytest.mark.parametrize("options", ALL, ids=name_of)
def test_the_cache_changes_nothing(options: dict[str, str]) -> None:
    checkpoint = tiny.make_checkpoint(**options)
    seen: list[tuple[int, torch.Tensor]] = []
    with watched("logits", lambda stream, logits, _: seen.append((stream._cache.get_seq_length() - 1, logits))):
        written = write_narrative(checkpoint, QUERY, Sampling(num_steps=4, max_tokens=5))
    document = tiny.document_of(checkpoint, QUERY, written.steps, has_stop=written.stopped == "stop")
    hidden_LH, out = uncached(checkpoint, document)
    place = {int(position): index for index, position in enumerate(document.positions) if document.blocks[index] == 0}
    assert len(seen) > 4
    for position, logits in seen:
        with torch.inference_mode():
            wanted = checkpoint.director.logits(hidden_LH[place[position]][None])[0]
        torch.testing.assert_close(logits, wanted, rtol=1e-4, atol=1e-5)
    assert_z_is_of(checkpoint, written, out)


def assert_z_is_of(checkpoint: LoadedDirector, written: Written, out: Any) -> None:
    """That each z that was not given is what the head reads in training's own forward."""
    director = checkpoint.director
    if director.head is None:
        return
    wanted = director.restore(director.head.sample(out, temperature=0, generator=None))
    for step, z_NW in zip(written.steps, wanted, strict=True):
        if "image" not in step.given:
            np.testing.assert_allclose(step.z_NW, z_NW, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("options", KINDS, ids=name_of)
def test_on_a_training_document_it_reads_what_training_reads(options: dict[str, str]) -> None:
    checkpoint = tiny.make_checkpoint(**options)
    director, narrative = checkpoint.director, tiny.pizza((2, 6))
    tiny.learn(checkpoint, narrative, num_steps=5)
    (document,) = tiny.prepare(checkpoint, narrative).documents
    _, out = uncached(checkpoint, document)
    assert director.head is not None
    wanted_MNW = director.head.sample(out, temperature=0, generator=None)
    y_FNW = director.standardise(torch.from_numpy(document.z))
    main = [index for index in range(len(document)) if document.blocks[index] == 0]
    step_by_step = options["readout"] == "next_token"
    with torch.inference_mode():
        for image, fed in enumerate(document.fed):
            for token in range(len(fed) if step_by_step else 1):
                stream = Stream(director)
                for index in main:
                    if index == fed[token]:
                        break
                    if index in document.fed:
                        f, n = np.argwhere(document.fed == index)[0]
                        stream.feed_z(y_FNW[f, n : n + 1])
                    else:
                        stream.feed([int(document.ids[index])])
                y_NW = stream.draw_z(temperature=0, generator=torch.Generator())
                wanted = wanted_MNW[image, token : token + 1] if step_by_step else wanted_MNW[image]
                torch.testing.assert_close(y_NW[: len(wanted)], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [item for item in ALL if item.get("kind") != "mixture"], ids=name_of)
def test_what_was_learned_by_heart_is_written_again(options: dict[str, str]) -> None:
    checkpoint, narrative = tiny.make_checkpoint(**options), tiny.pizza((2, 6))
    tiny.learn(checkpoint, narrative, num_steps=150)
    for sampling in (Sampling(), Sampling(temperature=0.01, seed=5), Sampling(temperature=1, top_p=0.3)):
        written = write_narrative(checkpoint, QUERY, sampling)
        assert (written.stopped, written.notes, len(written.steps)) == ("stop", (), 3)
        for index, (step, wanted) in enumerate(zip(written.steps, narrative.steps, strict=True)):
            assert step.texts == {name: getattr(wanted, name) for name in step.texts}
            assert step.given == ()
            if "visual" in options["task"]:
                assert step.z_NW is not None and step.z_NW.dtype == np.float32
                np.testing.assert_allclose(step.z_NW, narrative.features[tiny.FEATURE][index], atol=0.6)
            else:
                assert step.z_NW is None
    shown: list[str] = []
    written = write_narrative(checkpoint, QUERY, Sampling(num_steps=2), show=lambda step: shown.extend(step.texts))
    assert (written.stopped, len(written.steps)) == ("steps", 2)
    assert shown == [name for step in written.steps for name in step.texts]


def test_references_stand_before_the_query_as_in_training() -> None:
    checkpoint = tiny.make_checkpoint(task="action-caption-visual")
    director, random = checkpoint.director, np.random.default_rng(0)
    references = random.standard_normal((2, 2, 6)).astype(np.float32)
    seen: list[torch.Tensor] = []
    with watched("logits", lambda _, logits, __: seen.append(logits)):
        written = write_narrative(checkpoint, QUERY, Sampling(num_steps=1), given=Given(references=tuple(references)))
    assert any("without references" in note for note in written.notes)
    writer = DocumentWriter(director.vocabulary)
    writer.references(list(references))
    writer.query(query_ids(checkpoint.tokenizer, QUERY))
    (step,) = written.steps
    writer.step(step.tokens, step.z_NW, learned=True, read="queries")
    hidden_LH, out = uncached(checkpoint, writer.done(2, 6))
    assert_z_is_of(checkpoint, written, out)
    first = len(query_ids(checkpoint.tokenizer, QUERY)) + 2 * (2 + 2)  # where <action> is
    with torch.inference_mode():
        torch.testing.assert_close(seen[0], director.logits(hidden_LH[first][None])[0], rtol=1e-4, atol=1e-5)
    with pytest.raises(ShapeError, match=r"\[3, 6\]"):
        write_narrative(checkpoint, QUERY, given=Given(references=(np.zeros((3, 6), np.float32),)))


def test_a_question_has_its_mark_however_it_was_typed() -> None:
    assert check_query(" How to\n make pizza ") == check_query("How to make pizza??") == "How to make pizza?"
    assert check_query("Surprise me.") == "Surprise me."


def parses(checkpoint: LoadedDirector, fed: str) -> bool:
    """Whether what the network was fed is a document, up to its last mark."""
    task = checkpoint.director.config.sequence.task
    texts = "".join(mark + "w+" for mark, name in (("A", "action"), ("C", "caption")) if name in task)
    image = f"Iz{{{checkpoint.director.num_tokens}}}J" if "visual" in task else ""
    return re.fullmatch(f"w+({texts}{image})+", fed) is not None


def written_and_fed(
    checkpoint: LoadedDirector, sampling: Sampling, given_: Given | None = None, query: str = QUERY
) -> tuple[Written, str]:
    """The narrative, and what the network was fed: a letter a token."""
    letters = dict(zip(range(checkpoint.director.vocabulary.num_words, 10**6), "ACIJS", strict=False))
    fed: list[str] = []

    def see(stream: Stream, _: None, arguments: tuple[Any, ...]) -> None:
        fed.extend(letters.get(token, "w") for token in arguments[0])

    with (
        watched("feed", see),
        watched("feed_z", lambda stream, _, arguments: fed.append("z" * len(arguments[0]))),
    ):
        return write_narrative(checkpoint, query, sampling, given=given_), "".join(fed)


@settings(deadline=None, max_examples=150)
@given(
    options=st.sampled_from(ALL),
    seed=st.integers(0, 2**63 - 1),
    weights=st.integers(0, 5),
    temperature=st.sampled_from([0.0, 0.01, 0.7, 1.0, 5.0, 100.0]),
    top_p=st.floats(0.0, 1.0, exclude_min=True),
    num_steps=st.integers(1, 6),
    max_tokens=st.integers(1, 12),
    max_length=st.integers(70, 160),
)
def test_any_weights_give_a_narrative(
    options: dict[str, str], seed: int, weights: int, temperature: float, top_p: float, max_length: int, **most: int
) -> None:
    checkpoint = tiny.make_checkpoint(seed=weights, max_length=max_length, **options)
    written, fed = written_and_fed(checkpoint, Sampling(temperature, top_p, seed, z_temperature=temperature, **most))
    assert parses(checkpoint, fed), fed
    assert 1 <= len(written.steps) <= most["num_steps"]
    assert (written.stopped == "steps") <= (len(written.steps) == most["num_steps"])
    document = tiny.document_of(checkpoint, QUERY, written.steps, has_stop=True)
    assert len(document) <= max_length
    tokenizer = checkpoint.tokenizer
    for step in written.steps:
        assert tuple(step.texts) == tuple(step.tokens) == checkpoint.director.config.sequence.fields
        for name, ids in step.tokens.items():
            assert 1 <= len(ids) <= most["max_tokens"]
            assert not set(ids) & set(tokenizer.all_special_ids) and max(ids) < len(tokenizer)
            text = step.texts[name]
            assert text == clean_text(text) and "\ufffd" not in text
            assert text or any(f"its {name} was ended" in note for note in written.notes)
        assert (step.z_NW is not None) == ("visual" in options["task"])
        assert step.z_NW is None or (step.z_NW.shape == (2, 6) and np.isfinite(step.z_NW).all())
    canonical_json([step.texts for step in written.steps]).encode()


def test_without_the_grammar_it_does_not_parse(monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control of the test above."""
    draw = _Writer._draw
    monkeypatch.setattr(_Writer, "_draw", lambda self, allowed_V: draw(self, torch.ones_like(allowed_V)))
    checkpoint = tiny.make_checkpoint()
    found = [written_and_fed(checkpoint, Sampling(5.0, seed=seed, max_tokens=6))[1] for seed in range(5)]
    assert not all(parses(checkpoint, fed) for fed in found)


def test_the_seed_is_all_the_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = tiny.make_checkpoint(kind="mixture")

    def write(seed: int, temperature: float = 1.0) -> Written:
        torch.rand(int(torch.randint(1, 9, ())))  # the process's own dice stand elsewhere each time
        return write_narrative(
            checkpoint, QUERY, Sampling(temperature, 0.9, seed, max_tokens=9, z_temperature=temperature)
        )

    def same(one: Written, other: Written) -> bool:
        return [step.tokens for step in one.steps] == [step.tokens for step in other.steps] and all(
            np.array_equal(step.z_NW, again.z_NW) for step, again in zip(one.steps, other.steps, strict=True)
        )

    assert same(write(3), write(3))
    assert not same(write(3), write(4))
    assert same(write(3, temperature=0), write(4, temperature=0))
    assert not same(write(3, temperature=0.5), write(3))


def test_forbidden_words_never_come(monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = tiny.make_checkpoint()
    vocabulary, num_words = checkpoint.tokenizer, checkpoint.director.vocabulary.num_words
    wanted = [*vocabulary.all_special_ids, *range(len(vocabulary), num_words)]
    assert len(wanted) == 2 + 7
    logits = Stream.logits

    def eager(self: Stream) -> torch.Tensor:
        found = logits(self)
        found[wanted] += 1e4
        return found

    monkeypatch.setattr(Stream, "logits", eager)
    written, fed = written_and_fed(checkpoint, Sampling(1.0, max_tokens=8))
    assert parses(checkpoint, fed)
    assert not {token for step in written.steps for ids in step.tokens.values() for token in ids} & set(wanted)


def test_words_of_a_real_tokenizer() -> None:
    from cookgen.director.weights import load_tokenizer

    tokenizer = load_tokenizer(tiny.LANGUAGE_MODEL)
    words_V = _words(tokenizer, 49152)
    assert not words_V[tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>", "<|im_start|>"])].any()
    assert words_V[tokenizer("Roll out the dough").input_ids].all()
    assert not words_V[49152:].any()
    assert len(words_V) - words_V.sum() < 50


def test_blank_texts_are_said_to_be_blank(monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = tiny.make_checkpoint(task="action-visual")
    (space,) = checkpoint.tokenizer(" ").input_ids
    logits = Stream.logits

    def silent(self: Stream) -> torch.Tensor:
        found = logits(self)
        found[space] += 1e4
        return found

    monkeypatch.setattr(Stream, "logits", silent)
    written = write_narrative(checkpoint, QUERY, Sampling(num_steps=1, max_tokens=4))
    assert [step.texts for step in written.steps] == [{"action": ""}]
    assert written.notes == ("step 1: its action was ended after 4 tokens",)


@pytest.mark.parametrize(
    ("text", "clean"),
    [("  a\n b\t", "a b"), ("\ufffd\ufffd", ""), ("a\x00\x1b[2J\x85b", "a [2J b"), ("caf\u00e9 \ufffd", "caf\u00e9")],
)
def test_clean_text(text: str, clean: str) -> None:
    assert clean_text(text) == clean


def test_a_given_first_step() -> None:
    checkpoint, narrative = tiny.make_checkpoint(supervise_first=False), tiny.pizza((2, 6))
    tiny.learn(checkpoint, narrative, num_steps=150)
    z_NW = narrative.features[tiny.FEATURE][0].astype(np.float32)
    first = Given("Roll out the dough", "a ball of dough", z_NW)
    assert first.names == ("action", "caption", "image")
    written, fed = written_and_fed(checkpoint, Sampling(), first)
    assert parses(checkpoint, fed)
    assert (written.stopped, written.notes, len(written.steps)) == ("stop", (), 3)
    assert [step.given for step in written.steps] == [first.names, (), ()]
    assert written.steps[0].texts == first.texts
    assert np.array_equal(written.steps[0].z_NW, z_NW)
    assert [step.texts["action"] for step in written.steps[1:]] == ["Spread the sauce", "Bake it"]
    # What follows hangs on it, as in training.
    document = tiny.document_of(checkpoint, QUERY, written.steps, has_stop=True)
    assert_z_is_of(checkpoint, written, uncached(checkpoint, document)[1])
    other = write_narrative(checkpoint, QUERY, given=Given("Roll out the dough", "a ball of dough", -z_NW))
    assert not np.array_equal(other.steps[1].z_NW, written.steps[1].z_NW)
    partly = write_narrative(checkpoint, QUERY, Sampling(num_steps=1), given=Given(action="  Roll out\nthe dough "))
    assert partly.steps[0].texts["action"] == "Roll out the dough" and partly.steps[0].given == ("action",)
    assert partly.notes == ("the director was trained to go on from a first step, which it was not given whole",)


@pytest.mark.parametrize(
    ("task", "first", "error", "words"),
    [
        ("caption-visual", Given(action="Stir"), UsageError, "its steps have no action"),
        ("action-visual", Given(caption="a pan"), UsageError, "its steps have no caption"),
        ("action-caption", Given(z_NW=np.zeros((2, 6), np.float32)), UsageError, "its steps have no z"),
        ("action-visual", Given(action=" \n"), UsageError, "action: is empty"),
        ("action-visual", Given(action="\udce9"), UsageError, "not UTF-8"),
        ("action-visual", Given(z_NW=np.zeros((1, 6), np.float32)), ShapeError, r"\[1, 6\].*\[2, 6\]"),
        ("action-visual", Given(z_NW=np.full((2, 6), np.nan, np.float32)), ShapeError, "finite"),
        ("action-visual", Given(action="stir " * 500), UsageError, "shorten"),
    ],
)
def test_what_cannot_be_given(task: str, first: Given, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        write_narrative(tiny.make_checkpoint(task=task, max_length=300), QUERY, given=first)


@pytest.mark.parametrize("query", ["", " \n", "\ud800", "How to " * 500])
def test_queries_that_cannot_be(query: str) -> None:
    with pytest.raises(UsageError):
        write_narrative(tiny.make_checkpoint(max_length=300), query)


def test_a_query_is_read_as_words() -> None:
    """A query that spells a mark of the tokenizer, or of ours, opens nothing."""
    checkpoint = tiny.make_checkpoint()
    for query in ("<|end|>", "<image> </image> <stop>"):
        written, fed = written_and_fed(checkpoint, Sampling(num_steps=1, max_tokens=3), query=query)
        assert parses(checkpoint, fed) and written.query == query
        ids = checkpoint.tokenizer(query + "\n", split_special_tokens=True).input_ids
        assert not set(ids) & set(checkpoint.tokenizer.all_special_ids)


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -0.1},
        {"z_temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"temperature": 1e-9},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_p": float("nan")},
        {"seed": -1},
        {"seed": 2**63},
        {"num_steps": 0},
        {"max_tokens": 0},
    ],
    ids=str,
)
def test_samplings_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong)).removeprefix("num_")):
        Sampling(**wrong)


def test_it_ends_where_no_more_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = tiny.make_checkpoint(max_length=90)
    logits = Stream.logits

    def endless(self: Stream) -> torch.Tensor:
        found = logits(self)
        found[-1] = -1e4  # <stop>
        return found

    monkeypatch.setattr(Stream, "logits", endless)
    written = write_narrative(checkpoint, QUERY, Sampling(num_steps=50, max_tokens=6))
    assert written.stopped == "length" and 1 < len(written.steps) < 50
    assert f"step {len(written.steps) + 1} does not fit the 90 tokens of sequence.max_length" in written.notes[-1]
    architecture = checkpoint.director.language_model.config
    monkeypatch.setattr(architecture, "max_position_embeddings", 70)
    shorter = write_narrative(checkpoint, QUERY, Sampling(num_steps=50, max_tokens=6))
    assert shorter.stopped == "length" and len(shorter.steps) < len(written.steps)
    assert "70 tokens of the language model's max_position_embeddings" in shorter.notes[-1]


def test_a_broken_checkpoint_is_said_to_be_one() -> None:
    checkpoint = tiny.make_checkpoint()
    with torch.no_grad():
        checkpoint.director.language_model.get_decoder().norm.weight.fill_(torch.nan)
    with pytest.raises(ModelError, match="not finite"):
        write_narrative(checkpoint, QUERY)
