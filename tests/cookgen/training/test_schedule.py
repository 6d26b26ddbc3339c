from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cookgen.training.config import TrainingConfig
from cookgen.training.schedule import learning_rate


@st.composite
def configs(draw: st.DrawFn) -> TrainingConfig:
    steps = draw(st.integers(1, 300))
    return TrainingConfig(
        steps=steps,
        warmup_steps=draw(st.integers(0, steps)),
        learning_rate=draw(st.floats(1e-7, 1.0)),
        schedule=draw(st.sampled_from(["cosine", "constant"])),
    )


@given(configs())
def test_laws(config: TrainingConfig) -> None:
    rates = [learning_rate(step, config) for step in range(config.steps)]
    warm = config.warmup_steps
    assert all(0 < rate <= config.learning_rate for rate in rates)
    assert rates[:warm] == sorted(rates[:warm])
    assert rates[warm:] == sorted(rates[warm:], reverse=True)
    if warm < config.steps:
        assert rates[warm] == config.learning_rate
    if config.schedule == "constant":
        assert set(rates[warm:]) <= {config.learning_rate}
    elif warm < config.steps:
        assert learning_rate(config.steps, config) == pytest.approx(0, abs=1e-12)


def test_the_cosine_is_torchs() -> None:
    config = TrainingConfig(steps=50, warmup_steps=0, learning_rate=0.1)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=50)
    for step in range(50):
        assert learning_rate(step, config) == pytest.approx(reference.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        reference.step()
