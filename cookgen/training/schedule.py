"""The learning rate: a function of the step alone, so that a resumed run needs no state of it."""

from __future__ import annotations

import math

from cookgen.training.config import TrainingConfig


def learning_rate(step: int, config: TrainingConfig) -> float:
    """The rate of the update that follows `step` updates, in (0, config.learning_rate]; 0 after the last of a cosine.

    It rises in equal parts over the first warmup_steps updates. Source: Loshchilov & Hutter, SGDR, eq. 5 (no restarts).
    """
    assert 0 <= step <= config.steps
    if step < config.warmup_steps:
        return config.learning_rate * ((step + 1) / config.warmup_steps)
    if config.schedule == "constant":
        return config.learning_rate
    done = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return config.learning_rate * (1 + math.cos(math.pi * done)) / 2
