"""Sentence embeddings of what is done and what is seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from cookgen.config import machinery
from cookgen.modelstore import identity
from cookgen.perception.encoders import Step
from cookgen.perception.text_embedding import TextEmbedder, load_text_embedder


@dataclass(frozen=True)
class TextConfig:
    """field: "action" or "caption", [width]; "both" of them in this order, [2, width]. Runs on the CPU."""

    kind: ClassVar[str] = "text"
    version: ClassVar[int] = 1
    about: ClassVar[str] = "sentence embeddings of the action, the caption, or both in this order; each of length 1"

    model: str = "all-minilm-l6-v2"
    field: Literal["action", "caption", "both"] = "both"
    batch_size: int = machinery(64)
    num_workers: int = machinery(0)

    def identity(self) -> str:
        return identity(self.model)

    def load(self) -> SentenceEncoder:
        return SentenceEncoder(load_text_embedder(self.model), self.field)


@dataclass(frozen=True, eq=False)
class SentenceEncoder:
    """A loaded sentence encoder."""

    embedder: TextEmbedder
    field: Literal["action", "caption", "both"]

    def prepare(self, step: Step) -> list[str]:
        """The wanted texts."""
        texts = {"action": [step.action], "caption": [step.caption], "both": [step.action, step.caption]}
        return texts[self.field]

    def encode(self, inputs: Sequence[list[str]]) -> NDArray[np.float32]:
        """float32 [N, width], or [N, 2, width] of both."""
        vectors = np.stack([self.embedder.embed(texts) for texts in inputs])
        return vectors if self.field == "both" else vectors[:, 0]
