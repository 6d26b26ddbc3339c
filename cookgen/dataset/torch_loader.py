"""Batches of a split for torch: many workers, many ranks, exact resume.

    loader = load_split("train", "shards", unit="clip", frames=8, shuffle=True).torch(batch_size=4, num_workers=2)
    for batch in loader:                     # one epoch; the next `for` is the next epoch
        state = loader.state_dict()          # any moment; load_state_dict goes on with the batch after this one

Which items a batch holds is a function of (seed, epoch, position) alone, see cookgen.dataset.order. The main process
deals whole batches to the workers, so their number changes nothing, and a resumed epoch reads nothing before its
position. `position` counts the items that all ranks together have had, so the number of ranks may change as well.
Random numbers hang on the same alone, see Loader.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from itertools import islice
from typing import Any, Literal, NamedTuple, Protocol, Self, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, default_collate

from cookgen.dataset.arrays import as_arrays
from cookgen.dataset.order import Dealing, Remainder, epoch_order
from cookgen.errors import CookgenError, InputError, UnknownNameError, UsageError
from cookgen.files import digest

OnError = Literal["raise", "skip"]
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class TensorBatch:
    """A batch whose fields are tensors, and what is said about them: what a task's `collate` may make."""

    def to(self, device: torch.device) -> Self:
        """The same batch there."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Self:
        """The same batch where a GPU can fetch it by itself; torch's DataLoader calls it."""
        return self._each(torch.Tensor.pin_memory)

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Self:
        found = {item.name: getattr(self, item.name) for item in fields(self)}
        tensors = {name: value for name, value in found.items() if isinstance(value, torch.Tensor)}
        return replace(self, **{name: change(tensor) for name, tensor in tensors.items()})


class Items(Protocol):
    """What a loader reads: a Split, or what offers as much."""

    @property
    def name(self) -> str: ...
    @property
    def seed(self) -> int | None: ...  # of the shuffling; None: the order that they have
    @property
    def is_mapped(self) -> bool: ...
    def unshuffled(self) -> Any: ...
    def map(self, function: Callable[[Any], Any], /) -> Any: ...
    def name_of(self, index: int) -> str: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Any: ...


@dataclass
class Counts:
    """What a loader gave, and did not give, to this rank over all its epochs."""

    batches: int = 0
    samples: int = 0
    dropped: int = 0  # left out by remainder="drop", of all ranks together
    repeated: int = 0  # given once more, by remainder="repeat" or in the place of a batch that could not be read
    skipped: dict[str, str] = field(default_factory=dict)  # item -> why it could not be read


class Loader:
    """One epoch of batches an iteration; made by `Split.torch`. Every rank has the same number of steps.

    batch_size: items a batch and rank. num_workers: processes that read ahead, `prefetch` batches each.
    remainder: "short" gives every item exactly once; where the last step has fewer items than there are ranks, some
    ranks get a batch without rows. "drop" leaves the last step out where it is not full; "repeat" fills it up.
    on_error: a shard or clip that cannot be read is raised (a FormatError naming it), or skipped: named in
    `counts.skipped` and in the log, its batch shorter by one; where nothing of a batch can be read the next item that
    can takes its place, so that no rank waits for another.
    collate: makes a batch of a list of items; by default `collate_arrays`, for mapped items torch's default_collate.
    rank, num_ranks: by default those of torch.distributed, else $RANK and $WORLD_SIZE, else one process.

    Random numbers: torch's CPU generator is seeded before each item is read, by (seed, epoch, the item's index), and
    before `collate`, by (seed, epoch, the batch's first position); the seed is 0 where the split is not shuffled. So
    what a mapped function draws is the same with any number of workers and ranks and after a resume, and what `collate`
    draws where the batch is the same. The process that iterates keeps its own random numbers as they were. For NumPy's,
    make a generator inside the function: np.random.default_rng(torch.initial_seed()).
    """

    def __init__(
        self,
        split: Items,
        *,
        batch_size: int,
        num_workers: int,
        remainder: Remainder,
        on_error: OnError,
        collate: Callable[[list[Any]], Any] | None,
        rank: int | None,
        num_ranks: int | None,
        prefetch: int,
        pin_memory: bool,
    ) -> None:
        if on_error not in get_args(OnError):
            raise UnknownNameError("on_error", on_error, get_args(OnError))
        if num_workers < 0 or prefetch < 1:
            raise UsageError(f"num_workers {num_workers}, prefetch {prefetch}: at least 0, and at least 1")
        if (rank is None) != (num_ranks is None):
            raise UsageError(f"rank {rank}, num_ranks {num_ranks}: give both or neither")
        self.rank, self.num_ranks = _ranks() if rank is None or num_ranks is None else (rank, num_ranks)
        if not 0 <= self.rank < self.num_ranks:
            raise UsageError(f"rank {self.rank} of {self.num_ranks}: ranks are numbered from 0")
        self._seed = split.seed
        self._split: Items = split.unshuffled() if split.is_mapped else split.unshuffled().map(as_arrays)
        self._collate = collate or (default_collate if split.is_mapped else collate_arrays)
        self._batch_size, self._remainder, self._on_error = batch_size, remainder, on_error
        self._workers: dict[str, Any] = {"num_workers": num_workers, "pin_memory": pin_memory}
        if num_workers:
            self._workers["prefetch_factor"] = prefetch
        self._epoch = self._position = 0
        self._is_resumed = False  # the position was loaded, and no epoch has begun since
        self._num_steps = self._dealing(0).num_steps
        self.counts = Counts()

    def __len__(self) -> int:
        """Steps of a whole epoch: the same for every rank."""
        return self._num_steps

    def __iter__(self) -> Iterator[Any]:
        """The epoch from its beginning, or, once after `load_state_dict`, from there on."""
        epoch, dealing = self._epoch, self._dealing(self._position if self._is_resumed else 0)
        self._position, self._is_resumed = dealing.start, False
        order = np.arange(len(self._split))
        if self._seed is not None:
            order = epoch_order(len(self._split), seed=self._seed, epoch=epoch)
        item_seed, batch_seed = np.random.SeedSequence((self._seed or 0, epoch)).generate_state(2).tolist()
        batches = _Batches(self._split, order, dealing, self.rank, self._on_error, self._collate, item_seed, batch_seed)
        # batch_size=None: an item of the dataset is a whole batch. A generator of its own: without it torch would draw
        # the workers' seed from the global one, and a resumed training would go on with other random numbers.
        loader: DataLoader[_Read] = DataLoader(
            batches,
            batch_size=None,
            collate_fn=_as_it_is,
            generator=torch.Generator().manual_seed(batches.seed_of(0)),
            **self._workers,
        )
        for step, read in enumerate(loader):
            if read.error is not None:
                raise read.error
            if step == 0 and dealing.may_be_empty:
                _without_rows(read.batch)  # says on every rank, and now, if a batch without rows cannot be made
            self._position = dealing.after(step + 1)
            self._count(read)
            yield read.batch
        self.counts.dropped += dealing.num_dropped
        self._epoch, self._position = epoch + 1, 0

    def state_dict(self) -> dict[str, Any]:
        """Where the loader stands: after the last batch that it gave. Small plain values, the same on every rank."""
        return {"epoch": self._epoch, "position": self._position, "seed": self._seed, "items": self._items_digest}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where `state` was taken; batch size, workers, ranks and remainder may be others.

        Raises UsageError where the state is not one of this split's items in this order.
        """
        own = self.state_dict()
        for name, what in (("seed", "the seed of the shuffling"), ("items", "the digest of the split's items")):
            if state.get(name) != own[name]:
                raise UsageError(
                    f"state_dict: {what} was {state.get(name)!r} when it was saved and is {own[name]!r} now; open the"
                    " same split of the same set, with the same unit, selection and seed"
                )
        epoch, position = state.get("epoch"), state.get("position")
        if type(epoch) is not int or type(position) is not int or epoch < 0 or not 0 <= position <= len(self._split):
            raise UsageError(f"state_dict: epoch {epoch!r}, position {position!r} of {len(self._split)} items")
        self._epoch, self._position, self._is_resumed = epoch, position, True

    def _dealing(self, start: int) -> Dealing:
        return Dealing(len(self._split), start, self._batch_size, self.num_ranks, self._remainder)

    @cached_property
    def _items_digest(self) -> str:
        return digest([self._split.name, *map(self._split.name_of, range(len(self._split)))])

    def _count(self, read: _Read) -> None:
        self.counts.batches += 1
        self.counts.samples += read.num_samples
        self.counts.repeated += read.num_repeated
        for name, reason in read.skipped.items():
            if name not in self.counts.skipped:
                _LOG.warning("skipped %s: %s", name, reason)
            self.counts.skipped[name] = reason


class _Read(NamedTuple):
    """A batch as a worker hands it over. An error travels as a value: torch would wrap it in a page of text."""

    batch: Any
    num_samples: int
    num_repeated: int
    skipped: dict[str, str]
    error: CookgenError | None


@dataclass(frozen=True)
class _Batches(Dataset[_Read]):
    """The batches of one rank in the rest of an epoch, by step."""

    split: Items
    order: NDArray[np.int64]
    dealing: Dealing
    rank: int
    on_error: OnError
    collate: Callable[[list[Any]], Any]
    item_seed: int  # of this epoch: item i draws from item_seed + i
    batch_seed: int

    def __len__(self) -> int:
        return self.dealing.num_steps

    def seed_of(self, step: int) -> int:
        """What the batch's own random numbers start from; no two ranks' batches begin at the same position."""
        return self.batch_seed + self.dealing.positions(step, self.rank).start

    @torch.random.fork_rng(devices=[])  # without workers this is the process that trains
    def __getitem__(self, step: int) -> _Read:
        positions, num_items = self.dealing.positions(step, self.rank), len(self.order)
        skipped: dict[str, str] = {}
        try:
            found = list(self._readable(positions, skipped))
            num_samples, num_repeated = len(found), sum(position >= num_items for position, _ in found)
            if not found:
                # The next item that can be read, in the place of those that cannot, or to be cut where there are none.
                first = self.dealing.after(step)
                found = list(islice(self._readable(range(first, first + num_items), skipped), 1))
                num_samples = num_repeated = min(len(positions), 1)
            if not found:
                raise InputError(f"split {self.split.name!r}: none of its {num_items} items can be read")
            torch.default_generator.manual_seed(self.seed_of(step))  # torch.manual_seed would seed the GPUs as well
            batch = self.collate([item for _, item in found])
            return _Read(batch if num_samples else _without_rows(batch), num_samples, num_repeated, skipped, None)
        except CookgenError as error:
            return _Read(None, 0, 0, skipped, error)

    def _readable(self, positions: Iterable[int], skipped: dict[str, str]) -> Iterator[tuple[int, Any]]:
        """(position, item) of those that can be read."""
        for position in positions:
            index = int(self.order[position % len(self.order)])
            torch.default_generator.manual_seed(self.item_seed + index)
            try:
                item = self.split[index]
            except InputError as error:
                if self.on_error == "raise":
                    raise
                skipped[self.split.name_of(index)] = str(error)
                continue
            yield position, item


def collate_arrays(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """A batch of what `as_arrays` gives: arrays become tensors with a first axis B, texts stay lists.

    Narratives and windows of different lengths are padded with zeros to the longest (see `num_steps` [B]). Frames are
    lists of tensors where clips have different numbers of them.
    """
    pad = "num_steps" in samples[0]
    batch: dict[str, Any] = {}
    for name, first in samples[0].items():
        values = [sample[name] for sample in samples]
        if isinstance(first, dict):
            batch[name] = {key: _stacked([value[key] for value in values], pad=pad) for key in first}
        else:
            batch[name] = _stacked(values, pad=pad)
    return batch


def _stacked(values: list[Any], *, pad: bool) -> Any:
    if not all(isinstance(value, np.ndarray | np.generic) for value in values):
        return [_tensors(value) for value in values]
    arrays = [np.asarray(value) for value in values]
    if len({array.shape for array in arrays}) == 1:
        return default_collate([torch.from_numpy(array) for array in arrays])  # in a worker, into shared memory
    if not pad or len({array.shape[1:] for array in arrays}) > 1:
        return [torch.from_numpy(array) for array in arrays]
    padded = np.zeros((len(arrays), max(len(array) for array in arrays), *arrays[0].shape[1:]), arrays[0].dtype)
    for row, array in zip(padded, arrays, strict=True):
        row[: len(array)] = array
    return torch.from_numpy(padded)


def _tensors(value: Any) -> Any:
    if isinstance(value, list):
        return [_tensors(item) for item in value]
    return torch.from_numpy(value) if isinstance(value, np.ndarray) else value


def _without_rows(batch: Any) -> Any:
    """The batch with none of its rows: what a rank gets in a step for which no item is left.

    Numbers and texts have no rows and stay. Raises UsageError for what cannot be cut.
    """
    if hasattr(batch, "without_rows"):
        return batch.without_rows()
    if isinstance(batch, Mapping):
        return {name: _without_rows(value) for name, value in batch.items()}
    if isinstance(batch, tuple):
        values = map(_without_rows, batch)
        return type(batch)(*values) if hasattr(batch, "_fields") else tuple(values)
    if isinstance(batch, list):
        return []
    if isinstance(batch, torch.Tensor | np.ndarray):
        return batch[:0] if batch.ndim else batch
    if batch is None or isinstance(batch, str | bytes | int | float | np.generic):
        return batch
    raise UsageError(
        f"remainder='short' leaves a rank without items at the end of an epoch, and a {type(batch).__name__} has no"
        " rows to leave out; let collate make dicts, tuples, lists, tensors or a class with a method without_rows(),"
        " or use remainder='drop' or 'repeat'"
    )


def _as_it_is(read: Any) -> Any:
    return read


def _ranks() -> tuple[int, int]:
    """(rank, number of ranks) of this process."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    try:
        return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    except ValueError:
        raise UsageError(
            f"RANK={os.environ.get('RANK')!r}, WORLD_SIZE={os.environ.get('WORLD_SIZE')!r}: both are numbers"
        ) from None
