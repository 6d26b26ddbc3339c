"""What is counted, against masks that are looked at and operations that are made."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from cookgen.director.attention import dense_mask
from cookgen.director.config import DirectorConfig, HeadConfig, LanguageModelConfig, SequenceConfig, Task
from cookgen.director.cost import cost_of, num_visible_pairs, planned_cost
from cookgen.director.inputs import Batch, Packer
from cookgen.director.model import Director, Embeddings
from cookgen.director.weights import load_language_model
from tests.cookgen.director.narratives import ARCHITECTURES, TASKS, Z, director, for_task, inputs, pack, tale

TALES = [tale(3, seed=1), tale(1, seed=2), tale(5, seed=3)]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def shown(batch: Batch) -> int:
    """The mask's pairs, counted one by one, without those of padding."""
    return int(dense_mask(batch, None)[:, 0][batch.documents_RL >= 0].sum())


@settings(deadline=None, max_examples=60)
@given(
    lengths=st.lists(st.integers(1, 6), max_size=5),
    task=st.sampled_from(TASKS),
    readout=st.sampled_from(["queries", "next_token"]),
    supervision=st.sampled_from(["every", "last"]),
    max_length=st.integers(60, 400),
)
def test_visible_pairs_are_those_that_the_mask_shows(
    lengths: list[int], task: Task, readout: str, supervision: str, max_length: int
) -> None:
    """Several documents a row, several rows, padding, narratives that are cut, and no narrative at all."""
    config = DirectorConfig(
        head=HeadConfig(readout=readout),  # type: ignore[arg-type]
        sequence=SequenceConfig(
            task=task,
            supervision=supervision if readout == "queries" else "every",  # type: ignore[arg-type]
            max_length=max_length,
        ),
    )
    batch = Packer(max_length, Z)([inputs(config)(tale(length, seed=n)) for n, length in enumerate(lengths)])
    assert num_visible_pairs(batch) == shown(batch)


def test_visible_pairs_of_blocks_that_touch() -> None:
    """Of documents that begin or end with queries, and rows with the same numbers."""
    documents = torch.tensor([[0, 0, 0, 1, 1, 1, 2, -1], [0, 0, 0, 1, 1, -1, -1, -1]])
    blocks = torch.tensor([[0, 1, 1, 1, 1, 2, 0, 0], [1, 2, 2, 2, 0, 0, 0, 0]])
    batch = replace(pack(TALES, DirectorConfig()), ids_RL=documents, documents_RL=documents, blocks_RL=blocks)
    assert num_visible_pairs(batch) == shown(batch) == (1 + 2 + 3) + (1 + 2 + 1) + 1 + (1 + 1 + 2) + (1 + 1)


def test_what_nobody_sees_is_not_counted() -> None:
    """Queries are no history: without them there would be many more pairs."""
    batch = pack(TALES, DirectorConfig())
    lengths = torch.bincount(batch.documents_RL[batch.documents_RL >= 0])
    assert num_visible_pairs(batch) < int((lengths * (lengths + 1) // 2).sum())


CONFIGS = {
    "all weights": DirectorConfig(),
    "LoRA": DirectorConfig(language_model=LanguageModelConfig(lora_rank=4)),
    "a mixture": DirectorConfig(head=HeadConfig(kind="mixture", components=3)),
    "LoRA, token by token": DirectorConfig(
        head=HeadConfig(readout="next_token"), language_model=LanguageModelConfig(lora_rank=2)
    ),
    "without z": for_task("action-caption"),
}


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")  # peft's, of GPT-2's layers
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", CONFIGS)
def test_operations_are_those_that_torch_makes(name: str, architecture: str) -> None:
    """Of the packed rows as dense attention sees them, padding and hidden pairs too: every matrix product there is."""
    config = CONFIGS[name]
    config = replace(config, language_model=replace(config.language_model, attention="sdpa"))
    model = director(config, architecture=architecture).train()
    model.language_model.set_attn_implementation("sdpa")
    batch = pack(TALES, config, max_length=200)
    rows, length = batch.ids_RL.shape
    # Attention as matrix products: the CPU's own kernel is not among those that the counter knows.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        sums = model(batch)
        torch.stack([sums[term] for term in model.loss_weights]).sum().backward()
    expected = cost_of(model).flops(
        num_tokens=rows * length,
        num_learned=batch.counts["text"],
        num_pairs=rows * length**2,
        num_fed=batch.fed_FN.numel(),
        num_read=batch.read_MN.numel(),
    )
    assert counter.get_total_flops() == expected


def test_a_frozen_weight_costs_less() -> None:
    """By the third that the gradient of the weight takes; adapters come on top."""
    full, lora = (cost_of(director(CONFIGS[name], architecture="llama")) for name in ("all weights", "LoRA"))
    model = director(CONFIGS["LoRA"], architecture="llama").language_model.get_decoder()
    adapters = sum(weight.numel() for name, weight in model.named_parameters() if "lora_" in name)
    assert lora.token_flops - 6 * adapters == pytest.approx(full.token_flops * 4 / 6)
    assert lora.pair_flops == full.pair_flops


def test_a_plan_is_the_cost_of_the_real_one() -> None:
    lm_config = LanguageModelConfig(shape="tiny", random=True, lora_rank=4, attention="sdpa")
    for config in (DirectorConfig(lm_config), DirectorConfig(replace(lm_config, lora_rank=0))):
        planned = planned_cost(config, num_tokens=2, width=6)
        real = Director(config, load_language_model(config.language_model), Embeddings(2, 6, [0.0] * 6, 1.0))
        assert planned == cost_of(real)


def test_a_7b_as_the_paper_trains_it() -> None:
    """Llama-2-7b with LoRA of rank 16: 2 operations forward and 2 backward for each of 6.5 G weights of its layers."""
    config = DirectorConfig(LanguageModelConfig(name="", shape="llama2-7b", lora_rank=16, attention="sdpa"))
    cost = planned_cost(config, num_tokens=256, width=4096)
    matrices = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008)
    assert cost.token_flops == 4 * matrices + 6 * 39_976_960
    assert cost.pair_flops == 12 * 4096 * 32
    assert cost.num_parameters == pytest.approx(6.8e9, rel=0.01)
    options = {"num_tokens": 4096, "num_learned": 2048, "ema": False}
    small = cost.memory_gib(is_bf16=True, checkpointing=True, **options)  # type: ignore[arg-type]
    large = cost.memory_gib(is_bf16=False, checkpointing=False, **options)  # type: ignore[arg-type]
    assert 13 < small < 18  # the weights alone 12.6
    assert large > 2 * small
