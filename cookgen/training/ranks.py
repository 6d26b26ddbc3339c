"""What the processes of one training say to each other. Alone, a process talks to itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

from cookgen.errors import CookgenError

T = TypeVar("T")


def num_ranks() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_first() -> bool:
    """Whether this is rank 0, the one that writes."""
    return not dist.is_initialized() or dist.get_rank() == 0


def gather(value: T | CookgenError) -> list[T]:
    """The value of every rank, by rank; where any of them is an error, every rank raises the first."""
    values: list[Any] = [value] * num_ranks()
    if len(values) > 1:
        dist.all_gather_object(values, value)
    for found in values:
        if isinstance(found, CookgenError):
            raise found
    return values


def on_first(function: Callable[[], T]) -> T:
    """Calls the function on rank 0 alone; all ranks get its result, or raise its error."""
    result: T | CookgenError | None = None
    if is_first():
        try:
            result = function()
        except CookgenError as error:
            result = error
    if num_ranks() > 1:
        box = [result]
        dist.broadcast_object_list(box, src=0)
        result = box[0]
    if isinstance(result, CookgenError):
        raise result
    return result  # type: ignore[return-value]
