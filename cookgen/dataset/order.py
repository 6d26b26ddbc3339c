"""In which order a split's items are read: a function of (seed, epoch), dealt to ranks whatever their number.

A global step takes the next `batch_size * num_ranks` items of the epoch's order; rank r gets every num_ranks-th of
them, from the r-th on. So where an epoch stands is one number, the items that all ranks together have had, and it means
the same to any number of ranks and workers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from cookgen.errors import UnknownNameError, UsageError

Remainder = Literal["short", "drop", "repeat"]


def epoch_order(num_items: int, *, seed: int, epoch: int) -> NDArray[np.int64]:
    """A permutation of range(num_items): the same for the same seed and epoch on every machine.

    Raises UsageError for a negative seed or epoch.
    """
    if seed < 0 or epoch < 0:
        raise UsageError(f"seed {seed}, epoch {epoch}: neither may be negative")
    # NumPy promises the raw words of a bit generator for ever, those of Generator.permutation not.
    words = np.random.PCG64(np.random.SeedSequence((seed, epoch))).random_raw(num_items)
    return np.argsort(np.asarray(words, np.uint64), kind="stable")


@dataclass(frozen=True)
class Dealing:
    """How the items of an epoch, from position `start` of its order on, are dealt to the ranks, step by step.

    remainder: what the last step does when too few items are left for full batches: "short" deals them out, so that
    every item comes exactly once and a rank may have none left; "drop" leaves them out; "repeat" fills up from the
    beginning of the epoch's order. Every rank has the same number of steps.
    """

    num_items: int
    start: int
    batch_size: int
    num_ranks: int
    remainder: Remainder

    def __post_init__(self) -> None:
        for name, value in (("batch_size", self.batch_size), ("num_ranks", self.num_ranks)):
            if type(value) is not int or value < 1:
                raise UsageError(f"{name} {value!r}: a whole number, at least 1")
        if self.remainder not in get_args(Remainder):
            raise UnknownNameError("remainder", self.remainder, get_args(Remainder))
        assert 0 <= self.start <= self.num_items

    @property
    def items_a_step(self) -> int:
        """How many items all ranks take together in a full step."""
        return self.batch_size * self.num_ranks

    @property
    def num_steps(self) -> int:
        """Steps that are left in the epoch: the same for every rank."""
        left = self.num_items - self.start
        return left // self.items_a_step if self.remainder == "drop" else -(-left // self.items_a_step)

    @property
    def num_dropped(self) -> int:
        """Items that no rank gets in this epoch."""
        left = self.num_items - self.start
        return left - self.num_steps * self.items_a_step if self.remainder == "drop" else 0

    @property
    def num_repeated(self) -> int:
        """Items that come once more to fill the last step."""
        left = self.num_items - self.start
        return self.num_steps * self.items_a_step - left if self.remainder == "repeat" else 0

    def after(self, step: int) -> int:
        """The position in the epoch's order once the steps [0, step) are done."""
        return min(self.start + step * self.items_a_step, self.num_items)

    @property
    def may_be_empty(self) -> bool:
        """Whether some ranks get no item in the last step."""
        left = (self.num_items - self.start) % self.items_a_step
        return self.remainder == "short" and 0 < left < self.num_ranks

    def positions(self, step: int, rank: int) -> range:
        """The positions in the epoch's order that `rank` gets in this step.

        From num_items on they stand for repeated items: position % num_items.
        """
        first, end = self.start + step * self.items_a_step, self.start + (step + 1) * self.items_a_step
        if self.remainder != "repeat":
            end = min(end, self.num_items)
        return range(first + rank, end, self.num_ranks)
