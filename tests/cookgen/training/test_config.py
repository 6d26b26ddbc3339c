from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from cookgen.config import config_digest
from cookgen.training.config import TrainingConfig


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps=0: at least 1"),
        ({"accumulation": 0}, "accumulation=0"),
        ({"stop_after": 0}, "stop_after=0"),
        ({"learning_rate": 0.0}, "learning_rate=0.0: above 0"),
        ({"learning_rate": float("nan")}, "learning_rate=nan"),
        ({"clip_norm": float("inf")}, "clip_norm=inf"),
        ({"weight_decay": -0.1}, "weight_decay=-0.1"),
        ({"steps": 99}, "warmup_steps=100: more than steps=99"),
        ({"betas": (0.9, 1.0)}, "betas"),
        ({"ema_decay": 1.0}, "ema_decay=1.0"),
        ({"schedule": "linear"}, "schedule='linear': one of cosine, constant"),
        ({"precision": "fp16"}, "precision='fp16'"),
        ({"trackers": ("aim",)}, "trackers='aim'"),
        ({"trackers": ("wandb", "wandb")}, "named twice"),
        ({"peak_tflops": 0.0}, "peak_tflops=0.0"),
    ],
)
def test_contradictions(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(TrainingConfig(), **changes)


def test_machinery_is_no_other_run() -> None:
    other = TrainingConfig(fsdp=True, compile=True, num_workers=0, log_every=1, stop_after=3, trackers=())
    assert config_digest(other) == config_digest(TrainingConfig())
    assert config_digest(TrainingConfig(batch_size=1)) != config_digest(TrainingConfig())
