"""load_split: a shard set's narratives, clips or windows, as a sequence that reads what is asked for and no more."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal, TypedDict, TypeVar, Unpack, get_args, overload

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from cookgen.dataset.frames import FrameRule
from cookgen.dataset.location import Location, locate
from cookgen.dataset.narrative import Narrative, Window
from cookgen.dataset.order import Remainder, epoch_order
from cookgen.dataset.sample import Reader, Step
from cookgen.dataset.sidecar import open_sidecar
from cookgen.dataset.tables import read_table, table_path
from cookgen.errors import FormatError, InputError, UnknownNameError, UsageError
from cookgen.records import FORMAT, Manifest, faults
from cookgen.records import Narrative as Row
from cookgen.records import Split as ManifestSplit
from cookgen.records.features import encoder_of

if TYPE_CHECKING:  # torch is loaded by those who ask for it
    from cookgen.dataset.torch_loader import Loader, OnError

T_co = TypeVar("T_co", covariant=True)
U = TypeVar("U")
Unit = Literal["narrative", "clip", "window"]
Root = str | os.PathLike[str]


class Split(Sequence[T_co]):
    """The narratives, clips or windows of one split, as `unit` says; an item is read when it is asked for.

    In the order of the set's index, or, with a `seed`, in the order of epoch 0. Opening it reads the index alone.
    A slice is a Split too, in the order that it has here; its epochs, and its torch loader, are shuffled if this split
    is. Splits pickle and may be used from many threads.
    """

    def __init__(
        self,
        name: str,
        unit: Unit,
        root: str,  # the folder or URL of the set; of several, all with commas between them
        rows: tuple[tuple[Row, Reader], ...],
        items: NDArray[np.int64],  # [N, 3], in the index's order: the steps [first, first + num) of a row
        *,
        seed: int | None = None,
        is_ordered: bool = False,  # the items stand as they are to be, whatever the seed
        functions: tuple[Callable[[Any], Any], ...] = (),
    ) -> None:
        self.name, self.unit, self.root, self.seed = name, unit, root, seed
        self._rows, self._items, self._functions = rows, items, functions
        self._order = None if seed is None or is_ordered else epoch_order(len(items), seed=seed, epoch=0)
        self._last: Narrative | None = None  # the next item is often of the same one

    @property
    def num_narratives(self) -> int:
        """How many narratives the items are of."""
        return len(np.unique(self._items[:, 0]))

    @property
    def num_clips(self) -> int:
        """How many clips (steps) the items have together, each counted once."""
        rows, firsts, nums = self._items.T
        steps = np.arange(nums.sum()) - np.repeat(nums.cumsum() - nums - firsts, nums)
        return len(np.unique(np.stack([np.repeat(rows, nums), steps]), axis=1).T)

    def select(self, wanted: Callable[[T_co], bool] | Iterable[int]) -> Split[T_co]:
        """The items for which `wanted` is true, asked now, once for each; or those with these indices, in their order.

        What a predicate looks at is read: text costs little, frames a decoding of the whole split.
        Raises UsageError where `wanted` is a mask or holds something else than whole numbers, IndexError for an index
        that is not there.
        """
        if callable(wanted):
            kept = np.array([bool(wanted(item)) for item in self.unshuffled()], np.bool_)
            return self._with(self._items[kept], is_ordered=self._order is None)
        indices = list(wanted)
        wrong = [index for index in indices if isinstance(index, bool | np.bool_) or not hasattr(index, "__index__")]
        if wrong:
            raise UsageError(f"select: {wrong[0]!r} is no index; give whole numbers, or a function of an item")
        order = np.arange(len(self)) if self._order is None else self._order
        return self._with(self._items[order[np.array(indices, np.int64)]], is_ordered=True)

    def map(self, function: Callable[[T_co], U]) -> Split[U]:
        """The split whose items are `function(item)`, called whenever an item is read (in the loader's workers)."""
        split = self._with(self._items, is_ordered=self._order is None)
        split._functions = (*self._functions, function)
        return split  # type: ignore[return-value]

    def epoch(self, epoch: int) -> Split[T_co]:
        """The split in the order of an epoch: that of its seed, or the index's where it is not shuffled."""
        if self.seed is None:
            return self
        split = self._with(self._items[epoch_order(len(self), seed=self.seed, epoch=epoch)], is_ordered=True)
        split.seed = None
        return split

    @property
    def is_mapped(self) -> bool:
        """Whether items are what functions given to `map` made of them."""
        return bool(self._functions)

    def unshuffled(self) -> Split[T_co]:
        """The split in the order that it had before it was shuffled: the index's, or that of a slice."""
        split = self._with(self._items, is_ordered=True)
        split.seed = None
        return split

    def torch(
        self,
        *,
        batch_size: int = 1,
        num_workers: int = 0,
        remainder: Remainder = "short",
        on_error: OnError = "raise",
        collate: Callable[[list[Any]], Any] | None = None,
        rank: int | None = None,
        num_ranks: int | None = None,
        prefetch: int = 2,
        pin_memory: bool = False,
    ) -> Loader:
        """Batches for torch, an epoch an iteration, with exact resume: see cookgen.dataset.torch_loader.Loader."""
        try:
            from cookgen.dataset.torch_loader import Loader
        except ModuleNotFoundError as error:
            raise UsageError(f"Split.torch: {error}; install cookgen[torch], or read the split without it") from error

        return Loader(
            self,
            batch_size=batch_size,
            num_workers=num_workers,
            remainder=remainder,
            on_error=on_error,
            collate=collate,
            rank=rank,
            num_ranks=num_ranks,
            prefetch=prefetch,
            pin_memory=pin_memory,
        )

    def name_of(self, index: int) -> str:
        """What item `index` is called, without reading it: the narrative's name, the clip's key, the window's name."""
        (row, _), first, num = self._item(index)
        if self.unit == "narrative":
            return row.narrative
        return f"{row.narrative}-{first:03d}" if self.unit == "clip" else f"{row.narrative}[{first}:{first + num}]"

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[T_co]:
        # Sequence's own would take an IndexError of a function, say of step.frames([99]), for the end.
        return (self[index] for index in range(len(self)))

    @overload
    def __getitem__(self, index: int) -> T_co: ...
    @overload
    def __getitem__(self, index: slice) -> Split[T_co]: ...
    def __getitem__(self, index: int | slice) -> T_co | Split[T_co]:
        if isinstance(index, slice):
            return self.select(range(len(self))[index])
        (row, reader), first, num = self._item(index)
        narrative = self._last
        if narrative is None or narrative.row is not row:
            narrative = self._last = Narrative(row, reader)
        item: Any = narrative
        if self.unit == "clip":
            item = narrative.steps[first]
        elif self.unit == "window":
            item = Window(narrative, first, num)
        for function in self._functions:
            item = function(item)
        return item  # type: ignore[no-any-return]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_last": None}

    def __repr__(self) -> str:
        return f"Split({self.name!r}, {self.root!r}: {len(self)} {self.unit}s, {self.num_clips} clips)"

    def _item(self, index: int) -> tuple[tuple[Row, Reader], int, int]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.unit} {index} of split {self.name!r}, which has {len(self)}")
        row, first, num = map(int, self._items[index if self._order is None else self._order[index]])
        return self._rows[row], first, num

    def _with(self, items: NDArray[np.int64], *, is_ordered: bool) -> Split[T_co]:
        return Split(
            self.name,
            self.unit,
            self.root,
            self._rows,
            items,
            seed=self.seed,
            is_ordered=is_ordered,
            functions=self._functions,
        )


class _Options(TypedDict, total=False):
    """The options of load_split that say nothing of the type of its items."""

    window: int
    features: Sequence[str]
    frames: int | FrameRule | None
    shuffle: bool
    seed: int
    cache: str | os.PathLike[str] | None
    storage_options: Mapping[str, Any] | None


@overload
def load_split(
    split: str, root: Root | Sequence[Root], *, unit: Literal["narrative"] = "narrative", **options: Unpack[_Options]
) -> Split[Narrative]: ...
@overload
def load_split(
    split: str, root: Root | Sequence[Root], *, unit: Literal["clip"], **options: Unpack[_Options]
) -> Split[Step]: ...
@overload
def load_split(
    split: str, root: Root | Sequence[Root], *, unit: Literal["window"], **options: Unpack[_Options]
) -> Split[Window]: ...
def load_split(
    split: str,
    root: Root | Sequence[Root],
    *,
    unit: Unit = "narrative",
    window: int = 4,
    features: Sequence[str] = (),
    frames: int | FrameRule | None = None,
    shuffle: bool = False,
    seed: int = 0,
    cache: str | os.PathLike[str] | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> Split[Any]:
    """A split ("train", "val") of the shard set in `root`, a folder or any URL that fsspec knows (s3://, hf://, …).

    root: or several sets, read as one, say YouCook2's and HowTo100M's; those without such a split add nothing.
    unit: what an item is: a "narrative" with `steps`; a "clip", one Step with `action`, `caption`, `span`, `frames()`,
    `keyframe()`, `audio()`; or a "window", every run of `window` consecutive steps of a narrative (a shorter narrative
    is one window).
    features: names of sidecars (`cookgen features` makes them) to join as `item.features[name]`.
    frames: what `step.frames()` and torch batches decode: so many evenly spaced frames, or a FrameRule. None:
    `frames()` gives all of them, and batches hold none.
    shuffle: items in an order that is a function of (seed, epoch) alone.
    cache: for URLs, the folder that keeps their shards ($COOKGEN_CACHE, else ~/.cache/cookgen). storage_options: for
    URLs, what fsspec's file system takes.

    Raises InputError where `root` is not a complete shard set, FormatError where the set breaks the dataset format,
    UsageError where it has no such split, unit or features, or where several sets share a narrative or have features of
    different encoders.
    """
    if unit not in get_args(Unit):
        raise UnknownNameError("unit", unit, get_args(Unit))
    if window < 1:
        raise UsageError(f"window={window}: a window has at least 1 step")
    if isinstance(features, str):
        raise UsageError(f"features={features!r}: give a list of names: features=({features!r},)")
    roots = [root] if isinstance(root, str | os.PathLike) else list(root)
    if not roots:
        raise UsageError("root: give a shard set, or several")
    locations = [locate(item, cache=cache, storage_options=storage_options) for item in roots]
    sets = [(location, read_manifest(location)) for location in locations]
    readers: list[Reader] = []
    rows: list[tuple[Row, Reader]] = []
    for location, manifest in [item for item in sets if split in item[1].splits] or sets:
        shards = {shard.path: shard for shard in _entry(location, manifest, split).shards}
        sidecars = {name: open_sidecar(location, name, manifest) for name in features}
        readers.append(reader := Reader(location, shards, _frame_rule(frames), sidecars))
        rows += [(row, reader) for row in _rows(location, manifest, split)]
    _check_sets(readers, rows)
    items = [item for place, (row, _) in enumerate(rows) for item in _items(place, row.num_steps, unit, window)]
    where = ", ".join(location.root for location in locations)
    spans = np.array(items, np.int64).reshape(-1, 3)
    return Split(split, unit, where, tuple(rows), spans, seed=seed if shuffle else None)


def _check_sets(readers: Sequence[Reader], rows: Iterable[tuple[Row, Reader]]) -> None:
    """Raises UsageError where sets that are read as one do not go together."""
    first, *others = readers
    for reader in others:
        for name, sidecar in reader.sidecars.items():
            ours, theirs = first.sidecars[name].features, sidecar.features
            if (encoder_of(ours), ours.shape) != (encoder_of(theirs), theirs.shape):
                where = f"{first.location.root} and {reader.location.root}"
                raise UsageError(
                    f"features {name!r} are of different encoders or settings in {where}; compute them alike"
                )
    homes: dict[str, Reader] = {}
    for row, reader in rows:
        if (other := homes.setdefault(row.narrative, reader)) is not reader:
            where = f"{other.location.root} and {reader.location.root}"
            raise UsageError(f"{row.narrative} is in both {where}; give one of them")


def _frame_rule(frames: int | FrameRule | None) -> FrameRule | None:
    return frames if frames is None or isinstance(frames, FrameRule) else FrameRule(num_frames=frames)


def _items(row: int, num_steps: int, unit: Unit, window: int) -> Iterable[tuple[int, int, int]]:
    size = {"narrative": num_steps, "clip": 1, "window": min(window, num_steps)}[unit]
    return ((row, first, size) for first in range(num_steps - size + 1))


def _rows(location: Location, manifest: Manifest, split: str) -> tuple[Row, ...]:
    """The split's part of the narratives table. Raises UsageError or FormatError."""
    entry = _entry(location, manifest, split)
    sizes = {shard.path: shard.num_bytes for shard in entry.shards}
    for path in sizes:
        if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
            raise FormatError(f"{location.name('dataset.json')}: shard {path!r} is outside of the set")
    relative = table_path("", Row).as_posix()
    table = location.name(relative)
    try:
        with location.copied(relative) as copy:
            rows = tuple(row for row in read_table(copy, Row) if row.split == split)
    except FileNotFoundError:
        raise FormatError(f"{table}: missing, and dataset.json is there: the set was not copied whole") from None
    for row in rows:
        if row.first_member_offset + row.num_bytes > sizes.get(row.shard, 0):
            raise FormatError(f"{table}: {row.narrative} lies outside of the shards that dataset.json lists")
    found = len(rows), sum(row.num_steps for row in rows)
    if found != (entry.num_narratives, entry.num_clips):
        raise FormatError(
            f"{table}: {found[0]} narratives with {found[1]} clips in split {split!r}, dataset.json says "
            f"{entry.num_narratives} with {entry.num_clips}. Fetch both again"
        )
    return rows


def _entry(location: Location, manifest: Manifest, split: str) -> ManifestSplit:
    """What dataset.json says of the split. Raises UsageError where it has none of that name."""
    if split not in manifest.splits:
        known = ", ".join(sorted(manifest.splits)) or "none"
        raise UsageError(f"split {split!r} is not in {location.name('dataset.json')}: {known}")
    return manifest.splits[split]


def read_manifest(root: Location | str | os.PathLike[str]) -> Manifest:
    """A set's dataset.json. Raises InputError where it is missing, FormatError where it breaks the format."""
    location = root if isinstance(root, Location) else locate(root)
    path = location.name("dataset.json")
    try:
        values = json.loads(location.read("dataset.json"))
    except FileNotFoundError:
        what = "the set is not complete, or this is no shard set"
        if location.cache is None and not Path(location.root).is_dir():
            what = "there is no such folder"
        raise InputError(f"{path}: not found: {what}. `make shards` writes one, dataset.json last") from None
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}: not JSON ({error}). Fetch the set again") from error
    found = values.get("format") if isinstance(values, dict) else None
    if found != FORMAT:
        raise FormatError(
            f"{path}: format {found!r}; this version reads {FORMAT!r}: use the version that wrote the set"
        )
    try:
        return Manifest.model_validate(values)
    except ValidationError as error:
        raise FormatError(f"{path}: {faults(error)[0]}") from None
