"""A running mean of the weights: often better than the last ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.swa_utils import get_ema_multi_avg_fn


class Ema:
    """The exponential moving average of parameters, mean = decay mean + (1 - decay) weights, begun at their values.

    Of sharded parameters each rank averages its own shard.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], decay: float) -> None:
        self._weights = [_local(parameter) for parameter in parameters]
        self._means = [weight.clone() for weight in self._weights]
        self._average = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def update(self) -> None:
        """Takes the weights as they are now into the mean."""
        self._average(self._means, self._weights, 0)

    @torch.no_grad()
    def restart(self) -> None:
        """The mean is what the weights are now."""
        for mean, weight in zip(self._means, self._weights, strict=True):
            mean.copy_(weight)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Inside, the model's weights are the mean; afterwards they are, bit for bit, what they were."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for mean, weight in zip(self._means, self._weights, strict=True):
            kept = weight.clone()
            weight.copy_(mean)
            mean.copy_(kept)


def _local(parameter: nn.Parameter) -> Tensor:
    """The tensor that holds this rank's part of the parameter: the same memory."""
    tensor = parameter.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
