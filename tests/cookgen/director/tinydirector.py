"""Tiny directors with random weights, narratives for them to learn by heart, and checkpoints."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from cookgen.director.config import DirectorConfig, HeadConfig, LanguageModelConfig, SequenceConfig
from cookgen.director.inputs import Document, DocumentWriter, NarrativeInputs, Packer, Prepared
from cookgen.director.model import Director, Embeddings
from cookgen.director.weights import Encoded, LoadedDirector, save_description, shape_of

FEATURE = "toy"
WORDS = [("Roll out the dough", "a ball of dough"), ("Spread the sauce", "red sauce, a spoon"), ("Bake it", "an oven")]
LANGUAGE_MODEL = LanguageModelConfig(shape="tiny", random=True)


@dataclass(frozen=True)
class Step:
    action: str
    caption: str


@dataclass(frozen=True)
class Narrative:
    """What inputs.NarrativeInputs reads of a narrative."""

    steps: Sequence[Step]
    features: Mapping[str, np.ndarray] = field(default_factory=dict)
    name: str = "toy"
    title: str | None = "How to make a pepperoni pizza"
    topic: str | None = None


def pizza(z_shape: tuple[int, int], num_steps: int = 3) -> Narrative:
    """Steps whose z are drawn at random."""
    z = np.random.default_rng(7).normal(1.0, 2.0, (num_steps, *z_shape)).astype(np.float16)
    return Narrative([Step(*WORDS[index % 3]) for index in range(num_steps)], {FEATURE: z})


@cache
def tokenizer() -> Any:
    """Bytes, and the pieces that the narrative's words are made of; with marks of its own, as real ones have."""
    pieces = Tokenizer(models.BPE())
    pieces.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pieces.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=["<|begin|>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    pieces.train_from_iterator([text for words in WORDS for text in words], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=pieces, bos_token="<|begin|>", eos_token="<|end|>")


@cache
def _architecture() -> Any:
    """The tiny shape with few words; more rows than the tokenizer has, as real models have."""
    architecture = shape_of("tiny")
    architecture.vocab_size = len(tokenizer()) + 7
    return architecture


def make_checkpoint(
    *,
    task: str = "action-caption-visual",
    kind: str = "regression",
    readout: str = "queries",
    z_shape: tuple[int, int] = (2, 6),
    seed: int = 0,
    features: Encoded | None = None,
    **sequence: Any,
) -> LoadedDirector:
    """A director as load_director gives it, but for its weights: they are random."""
    config = DirectorConfig(
        language_model=LANGUAGE_MODEL,
        head=HeadConfig(kind=kind, readout=readout, components=3 if kind == "mixture" else 4),  # type: ignore[arg-type]
        sequence=SequenceConfig(task=task, **sequence),  # type: ignore[arg-type]
    )
    torch.manual_seed(seed)
    has_z = config.sequence.has_visual
    embeddings = Embeddings(*z_shape, [1.0] * z_shape[1], 2.0) if has_z else None
    director = Director(config, AutoModelForCausalLM.from_config(_architecture()), embeddings).eval()
    if features is None and has_z:
        features = Encoded(FEATURE, "none", "1", {}, None)
    return LoadedDirector(director, tokenizer(), features if has_z else None, "random", step=7)


def prepare(checkpoint: LoadedDirector, narrative: Narrative) -> Prepared:
    """The narrative as training has it."""
    director = checkpoint.director
    width = len(director.mean_W) if director.head is not None else 1
    inputs = NarrativeInputs(
        director.vocabulary,
        checkpoint.tokenizer,
        director.config,
        FEATURE,
        (max(checkpoint.director.num_tokens, 1), width),
    )
    return inputs(narrative)  # type: ignore[arg-type]


def pack(checkpoint: LoadedDirector, documents: Sequence[Document]) -> Any:
    """A batch of one row."""
    director = checkpoint.director
    width = len(director.mean_W) if director.head is not None else 1
    return Packer(4096, (max(checkpoint.director.num_tokens, 1), width))([Prepared(tuple(documents), {})])


def learn(checkpoint: LoadedDirector, narrative: Narrative, *, num_steps: int = 60) -> None:
    """Until the narrative is known by heart."""
    director = checkpoint.director
    batch = pack(checkpoint, prepare(checkpoint, narrative).documents)
    optimizer = torch.optim.AdamW(director.parameters(), lr=1e-2, weight_decay=0.0)
    for _ in range(num_steps):
        sums = director(batch)
        loss = sum(sums[name] / batch.counts[name] for name in director.loss_weights)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def document_of(checkpoint: LoadedDirector, query: str, steps: Sequence[Any], *, has_stop: bool) -> Document:
    """What was written (sample.WrittenStep) as the document that training would make of it, every z read."""
    director = checkpoint.director
    writer = DocumentWriter(director.vocabulary)
    writer.query(checkpoint.tokenizer(query + "\n").input_ids)
    for step in steps:
        readout = director.config.head.readout if step.z_NW is not None else ""
        writer.step(step.tokens, step.z_NW, learned=True, read=readout)
    if has_stop:
        writer.stop()
    width = len(director.mean_W) if director.head is not None else 1
    return writer.done(max(checkpoint.director.num_tokens, 1), width)


def save(checkpoint: LoadedDirector, folder: Path) -> Path:
    """Writes the checkpoint as training does."""
    director = checkpoint.director
    folder.mkdir(parents=True)
    embeddings = None
    if director.head is not None:
        embeddings = Embeddings(
            director.num_tokens, len(director.mean_W), director.mean_W.tolist(), float(director.scale)
        )
    save_description(
        folder, director.config, director.language_model, checkpoint.tokenizer, embeddings, checkpoint.features
    )
    buffers = {name: value for name, value in director.named_buffers() if name in director.state_dict()}
    save_file({**dict(director.named_parameters()), **buffers}, folder / "model.safetensors")
    (folder / "state.json").write_text(json.dumps({"step": checkpoint.step}))
    return folder
