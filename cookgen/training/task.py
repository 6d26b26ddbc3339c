"""What a model offers to be trained: the loop knows these three, and no model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol, Self

import torch
from torch import Tensor, nn

from cookgen.dataset.torch_loader import Loader

Role = Literal["train", "valid"]


class Batch(Protocol):
    """A micro-batch of one rank; it may be without items, all counts 0."""

    @property
    def counts(self) -> Mapping[str, int]:
        """How many tokens or images each sum of the model's forward is over; the same names in every batch."""

    @property
    def num_tokens(self) -> int:
        """Tokens that are not padding."""

    @property
    def left_out(self) -> Mapping[str, int]:
        """What of its items is in no batch, by reason, say steps that are too long."""

    def to(self, device: torch.device) -> Self:
        """The batch with its tensors on the device."""


class Model(Protocol):
    """What the loop asks of an nn.Module: `model(batch)` gives float32 scalar sums, one for each name of batch.counts.

    A sum over nothing is 0. Every parameter that requires a gradient takes part in every forward.
    """

    loss_weights: Mapping[str, float]  # of the sums that make the loss; the others are reported only

    def __call__(self, batch: Any) -> dict[str, Tensor]: ...


class Task(Protocol):
    """A model, its data and what its checkpoints need."""

    @property
    def name(self) -> str:
        """The kind of model, say "director"."""

    @property
    def block_classes(self) -> tuple[type, ...]:
        """The layers: the unit of sharding, recomputing and compiling. Asked for after build()."""

    def build(self) -> nn.Module:
        """The Model, on the CPU; called on every rank, which have all been seeded alike."""

    def loader(self, role: Role, *, batch_size: int, num_workers: int, seed: int) -> Loader | None:
        """Batches of this rank; for "valid" unshuffled, each item once, or None where there is no validation split."""

    def flops(self, batch: Any) -> float:
        """Floating-point operations of forward and backward of this batch."""

    def write_extras(self, folder: Path) -> None:
        """Writes what a checkpoint needs beside the weights, say a tokenizer and the model's description."""
