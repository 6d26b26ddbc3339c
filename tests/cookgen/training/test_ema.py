from __future__ import annotations

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from cookgen.training.ema import Ema


def test_the_mean_is_that_of_swa_utils() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
    reference = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    reference.update_parameters(model)  # its first call copies the weights
    ema = Ema(model.parameters(), 0.9)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(5):
        model(torch.randn(3, 4)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        ema.update()
        reference.update_parameters(model)
    last = [parameter.clone() for parameter in model.parameters()]
    with ema.swapped():
        for own, other, weight in zip(model.parameters(), reference.module.parameters(), last, strict=True):
            torch.testing.assert_close(own, other, rtol=0, atol=1e-7)
            assert not torch.equal(own, weight)
    assert all(torch.equal(own, weight) for own, weight in zip(model.parameters(), last, strict=True))


def test_restart_takes_the_weights() -> None:
    weight = nn.Parameter(torch.zeros(3))
    ema = Ema([weight], 0.5)
    weight.data += 1
    ema.restart()
    weight.data += 1
    with ema.swapped():
        assert torch.equal(weight.detach(), torch.ones(3))
