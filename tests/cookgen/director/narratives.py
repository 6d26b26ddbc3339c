"""Tiny narratives, a real tokenizer of single bytes and tiny real language models: what the director's tests share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedTokenizerFast

from cookgen.director.config import DirectorConfig, LanguageModelConfig, SequenceConfig, Task
from cookgen.director.inputs import Batch, NarrativeInputs, Packer, Vocabulary
from cookgen.director.model import Director, Embeddings
from cookgen.director.weights import _adapted, _from_architecture

NUM_WORDS = 264
Z = (3, 5)  # tokens and width of an image
TASKS: tuple[Task, ...] = ("action-visual", "caption-visual", "action-caption-visual", "action-caption")


@dataclass(frozen=True)
class Clip:
    """A step's texts."""

    action: str
    caption: str


@dataclass(frozen=True, eq=False)
class Tale:
    """What a sequence needs of a narrative, made by hand."""

    steps: tuple[Clip, ...]
    z: NDArray[np.float16]
    name: str = "tale"
    topic: str | None = "soup"
    title: str | None = None

    @property
    def features(self) -> dict[str, NDArray[np.float16]]:
        return {"tiny": self.z}

    def first(self, num_steps: int) -> Tale:
        """The tale's beginning."""
        return replace(self, steps=self.steps[:num_steps], z=self.z[:num_steps])


def tale(num_steps: int, *, seed: int = 0, z_shape: tuple[int, ...] = Z) -> Tale:
    """Steps of random letters with a random z, whose mean is not 0."""
    dice = np.random.default_rng(seed)

    def text(longest: int) -> str:
        return "".join(dice.choice(list("abcdefgh "), size=int(dice.integers(1, longest))))

    steps = tuple(Clip(text(8), text(14)) for _ in range(num_steps))
    return Tale(steps, (dice.standard_normal((num_steps, *z_shape)) + 0.5).astype(np.float16), name=f"tale-{seed}")


@cache
def byte_tokenizer(*, begins: bool = True) -> PreTrainedTokenizerFast:
    """256 bytes, <s>, <|im_end|>; begins: <s> stands before every text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={"<s>": 0, **{letter: 1 + n for n, letter in enumerate(alphabet)}}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken("<s>", special=True), AddedToken("<|im_end|>", special=True)])
    if begins:
        inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="<|im_end|>")


SMALL = {
    "vocab_size": NUM_WORDS,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
}
_MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
_EYES = {"depth": 1, "hidden_size": 32, "num_heads": 2, "out_hidden_size": 32, "intermediate_size": 32}
ARCHITECTURES: dict[str, Callable[[], Any]] = {
    "llama": lambda: AutoConfig.for_model("llama", **SMALL),
    "llama, tied": lambda: AutoConfig.for_model("llama", **SMALL, tie_word_embeddings=True),
    "qwen2": lambda: AutoConfig.for_model("qwen2", **SMALL),
    "qwen3": lambda: AutoConfig.for_model("qwen3", **SMALL, head_dim=8),
    "qwen2.5-vl": lambda: AutoConfig.for_model(
        "qwen2_5_vl",
        text_config={**SMALL, "rope_parameters": _MROPE},
        vision_config={**_EYES, "fullatt_block_indexes": [0]},
    ),
    "gpt2": lambda: AutoConfig.for_model(
        "gpt2",
        vocab_size=NUM_WORDS,
        n_positions=4096,
        n_embd=32,
        n_layer=2,
        n_head=4,
        attn_pdrop=0,
        embd_pdrop=0,
        resid_pdrop=0,
    ),
}


def language_model(architecture: str = "llama, tied", lm_config: LanguageModelConfig | None = None) -> Any:
    """A tiny model of that kind with weights so large that every token shows in every later one."""
    model = _from_architecture(ARCHITECTURES[architecture](), dtype=torch.float32)
    for weight in model.parameters():
        if weight.ndim > 1:
            nn.init.normal_(weight, std=0.25)
    return _adapted(model, lm_config or LanguageModelConfig(attention="sdpa"))


def director(
    config: DirectorConfig | None = None, *, architecture: str = "llama, tied", z_shape: tuple[int, int] = Z
) -> Director:
    """A tiny director in eval mode; always the same weights."""
    config = config or DirectorConfig()
    torch.manual_seed(1)
    mean, scale = np.linspace(-1, 1, z_shape[1]).tolist(), 1.5
    embeddings = Embeddings(*z_shape, mean, scale) if config.sequence.has_visual else None
    model = Director(config, language_model(architecture, config.language_model), embeddings)
    if model.head is not None:
        nn.init.normal_(model.head.linear.weight, std=0.3)
    return model.eval()


def for_task(task: Task, **sequence: Any) -> DirectorConfig:
    """The default director on a task."""
    return DirectorConfig(sequence=SequenceConfig(task=task, **sequence))


def inputs(config: DirectorConfig, *, z_shape: tuple[int, int] = Z, begins: bool = True) -> NarrativeInputs:
    """What turns tales into documents."""
    num_queries = z_shape[0] if config.sequence.has_visual and config.head.readout == "queries" else 0
    return NarrativeInputs(
        Vocabulary(NUM_WORDS, num_queries), byte_tokenizer(begins=begins), config, feature="tiny", z_shape=z_shape
    )


def pack(tales: Sequence[Tale], config: DirectorConfig, *, max_length: int = 2048) -> Batch:
    """The batch of these tales."""
    return Packer(max_length, Z)([inputs(config)(item) for item in tales])


@contextmanager
def head_outputs(model: Director) -> Iterator[list[Tensor]]:
    """What the head gives, one tensor [M, N, …] a call."""
    found: list[Tensor] = []
    assert model.head is not None
    hook = model.head.register_forward_hook(lambda module, given, out: found.append(out.detach()))
    try:
        yield found
    finally:
        hook.remove()


def predictions(model: Director, batch: Batch) -> Tensor:
    """What the head gives for a batch [M, N, …], without gradients."""
    with torch.no_grad(), head_outputs(model) as found:
        model(batch)
    return found[-1]


def sums(model: Director, batch: Batch) -> dict[str, float]:
    """forward's sums as numbers."""
    with torch.no_grad():
        return {name: value.item() for name, value in model(batch).items()}
