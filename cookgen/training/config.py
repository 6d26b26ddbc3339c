"""How to train: the same for every model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from cookgen.config import machinery

Schedule = Literal["cosine", "constant"]
Precision = Literal["fp32", "bf16"]
Tracker = Literal["tensorboard", "wandb"]


@dataclass(frozen=True)
class TrainingConfig:
    """How to train. What is machinery may change when a run goes on; the rest makes it another run.

    Args:
        steps: updates of the whole run
        batch_size: items of a rank and micro-batch
        accumulation: micro-batches an update
        learning_rate: the highest
        schedule: after a linear warm-up, cosine to 0, or constant
        warmup_steps: updates of the warm-up
        betas: AdamW's
        weight_decay: of matrices alone
        clip_norm: largest norm of all gradients together
        precision: of the forward pass; trained weights are kept in fp32
        ema_decay: of a running mean of the weights, which is then what is validated; None: no mean
        seed: of all that is drawn
        fsdp: shard weights, gradients and optimiser over the ranks, layer by layer (FSDP2); each rank's host memory
            must hold the whole model at the start
        activation_checkpointing: compute the layers' activations again instead of keeping them
        compile: torch.compile of the layers
        validate_every: updates between two validations
        checkpoint_every: updates between two checkpoints
        log_every: updates between two lines of metrics.jsonl
        keep_last: checkpoints to keep beside the best one
        stop_after: updates of this run, for jobs with a time limit
        trackers: where curves are written beside metrics.jsonl
        peak_tflops: of one device at this precision, where its name does not say
        num_workers: processes that read ahead
    """

    steps: int = 5000
    batch_size: int = 4
    accumulation: int = 1
    learning_rate: float = 1e-4
    schedule: Schedule = "cosine"
    warmup_steps: int = 100
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.05
    clip_norm: float = 1.0
    precision: Precision = "fp32"
    ema_decay: float | None = None
    seed: int = 0
    fsdp: bool = machinery(False)
    activation_checkpointing: bool = machinery(False)
    compile: bool = machinery(False)
    validate_every: int = machinery(500)
    checkpoint_every: int = machinery(500)
    log_every: int = machinery(10)
    keep_last: int = machinery(2)
    stop_after: int | None = machinery(None)
    trackers: tuple[Tracker, ...] = machinery(("tensorboard",))
    peak_tflops: float | None = machinery(None)
    num_workers: int = machinery(2)

    def __post_init__(self) -> None:
        at_least_1 = (
            "steps",
            "batch_size",
            "accumulation",
            "validate_every",
            "checkpoint_every",
            "log_every",
            "keep_last",
        )
        for name in (*at_least_1, *(() if self.stop_after is None else ("stop_after",))):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: at least 1")
        for name in ("learning_rate", "clip_norm", *(() if self.peak_tflops is None else ("peak_tflops",))):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name}={getattr(self, name)}: above 0")
        for name in ("weight_decay", "warmup_steps", "seed", "num_workers"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name}={getattr(self, name)}: not negative")
        if self.warmup_steps > self.steps:
            raise ValueError(f"warmup_steps={self.warmup_steps}: more than steps={self.steps}")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas={self.betas}: two numbers, at least 0 and below 1")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"ema_decay={self.ema_decay}: between 0 and 1; None for no mean of the weights")
        for name, value, known in (
            ("schedule", self.schedule, Schedule),
            ("precision", self.precision, Precision),
            *(("trackers", tracker, Tracker) for tracker in self.trackers),
        ):
            if value not in get_args(known):
                raise ValueError(f"{name}={value!r}: one of {', '.join(get_args(known))}")
        if len(set(self.trackers)) < len(self.trackers):
            raise ValueError(f"trackers={self.trackers}: one is named twice")
