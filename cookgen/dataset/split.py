"""load_split: a shard set's narratives, as a sequence that reads what is asked for and no more."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import overload

from pydantic import ValidationError

from cookgen.dataset.sample import Step, read_steps
from cookgen.dataset.tables import read_table, table_path
from cookgen.errors import FormatError, InputError, UsageError
from cookgen.records import FORMAT, Manifest
from cookgen.records import Narrative as Row


@dataclass(frozen=True, repr=False)
class Narrative:
    """One source video as an ordered sequence of steps.

    Its name, split and number of steps come from the set's index; the rest is read from the shard when first asked for.
    Narratives pickle and may be used from many threads.
    """

    row: Row  # of the narratives table
    shard: Path

    @property
    def name(self) -> str:
        """`{source}-{video_id}`, unique in the set."""
        return self.row.narrative

    @property
    def num_steps(self) -> int:
        """How many steps the narrative has; at least one."""
        return self.row.num_steps

    @property
    def split(self) -> str:
        """The split that the narrative is in."""
        return self.row.split

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """The steps in the order of time. Raises FormatError where the shard is missing or damaged."""
        return read_steps(self.shard, self.row)

    @property
    def title(self) -> str | None:
        """The source's title of the video, None where it has none."""
        return self.steps[0].sample.video.title

    @property
    def topic(self) -> str | None:
        """What the video is about, for example the dish; None where the source does not say."""
        return self.steps[0].sample.video.topic

    @property
    def source(self) -> str:
        """The kind of source that the video came from, for example "youcook2"."""
        return self.steps[0].sample.video.source

    def __repr__(self) -> str:
        return f"Narrative({self.name!r}, {self.num_steps} steps)"


class Split(Sequence[Narrative]):
    """The narratives of one split, in the order of the set's index.

    Opening it reads the index alone; a slice is a Split too. Splits pickle and may be used from many threads.
    """

    def __init__(self, name: str, root: Path, rows: Iterable[Row]) -> None:
        self.name = name
        self.root = root
        self._rows = tuple(rows)

    @property
    def num_clips(self) -> int:
        """How many clips (steps) all narratives have together."""
        return sum(row.num_steps for row in self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Narrative: ...
    @overload
    def __getitem__(self, index: slice) -> Split: ...
    def __getitem__(self, index: int | slice) -> Narrative | Split:
        if isinstance(index, slice):
            return Split(self.name, self.root, self._rows[index])
        try:
            row = self._rows[index]
        except IndexError:
            raise IndexError(f"narrative {index} of split {self.name!r}, which has {len(self)}") from None
        return Narrative(row, self.root / row.shard)

    def __repr__(self) -> str:
        return f"Split({self.name!r}, {str(self.root)!r}: {len(self)} narratives, {self.num_clips} clips)"


def load_split(split: str, root: str | os.PathLike[str]) -> Split:
    """The narratives of a split ("train", "val") of the shard set in the folder `root`.

    Each has `name`, `title`, `topic` and `steps`; each step `action`, `caption`, `span`, `frames()` and `keyframe()`.
    Raises InputError where `root` is not a complete shard set, FormatError where the set breaks the dataset format,
    UsageError where it has no such split.
    """
    folder = Path(root).absolute()  # pickled splits must not hang on the working directory
    manifest = read_manifest(folder)
    if split not in manifest.splits:
        known = ", ".join(sorted(manifest.splits)) or "none"
        raise UsageError(f"split {split!r} is not in {folder / 'dataset.json'}: {known}")
    entry = manifest.splits[split]
    sizes = {shard.path: shard.num_bytes for shard in entry.shards}
    for path in sizes:
        if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
            raise FormatError(f"{folder / 'dataset.json'}: shard {path!r} is outside of the set")
    table = table_path(folder, Row)
    rows = [row for row in read_table(table, Row) if row.split == split]
    for row in rows:
        if row.first_member_offset + row.num_bytes > sizes.get(row.shard, 0):
            raise FormatError(f"{table}: {row.narrative} lies outside of the shards that dataset.json lists")
    found = len(rows), sum(row.num_steps for row in rows)
    if found != (entry.num_narratives, entry.num_clips):
        raise FormatError(
            f"{table}: {found[0]} narratives with {found[1]} clips in split {split!r}, dataset.json says "
            f"{entry.num_narratives} with {entry.num_clips}. Fetch both again"
        )
    return Split(split, folder, rows)


def read_manifest(root: Path) -> Manifest:
    """A set's dataset.json. Raises InputError where it is missing, FormatError where it breaks the format."""
    path = root / "dataset.json"
    try:
        values = json.loads(path.read_bytes())
    except FileNotFoundError:
        what = "the set is not complete, or this is no shard set" if root.is_dir() else "there is no such folder"
        raise InputError(f"{path}: not found: {what}. `make shards` writes one, dataset.json last") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
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
        first = error.errors(include_url=False, include_input=False)[0]
        raise FormatError(f"{path}: {'.'.join(str(part) for part in first['loc'])}: {first['msg']}") from None
