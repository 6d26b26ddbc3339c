"""Features that were computed beside a shard set: one array a clip, read from where it lies.

A sidecar shard has its shard's name, keys and order, so no index is needed: its headers are walked once a process.
"""

from __future__ import annotations

import functools
import io
import math
import os
import tarfile
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from cookgen.dataset.location import Location
from cookgen.errors import FormatError, UnknownNameError
from cookgen.records import Features, Manifest, faults
from cookgen.records import Narrative as Row

_COMPUTE_AGAIN = "Run `cookgen features` again"
_DELETE = "Delete the file and run `cookgen features` again"
_MAX_GAP_BYTES = 4096  # between two .npy files: padding and a tar header, three blocks more where the name is long
_AT_ONCE = 512  # arrays; the operating system takes 1024 buffers a call


def feature_path(name: str, relative: str) -> str:
    """Where a set keeps a file of the features `name`: features.json, or the sidecar of the shard `relative`."""
    return f"features/{name}/{relative}"


@dataclass(frozen=True)
class Sidecar:
    """The features of one name, opened for reading. Pickles; may be used from many threads."""

    location: Location
    features: Features
    _paths: dict[str, str] = field(default_factory=dict, compare=False, repr=False)  # of sidecars, by shard

    def read(self, row: Row, first: int, num: int) -> NDArray[np.float16]:
        """The arrays of the steps [first, first + num) of a narrative: float16 [num, *shape].

        Raises FormatError where the sidecar does not hold exactly such arrays under these keys.
        """
        shape = self.features.shape
        try:
            path = self._path(row.shard)
            handle = os.open(path, os.O_RDONLY)
            try:
                status = os.fstat(handle)
                spans, offsets = _index(path, status.st_mtime_ns)
                start, num_steps = spans.get(row.narrative, (0, 0))
                if num_steps != row.num_steps:
                    raise FormatError(f"{num_steps} of {row.num_steps} steps of {row.narrative}")
                if 2 * num * math.prod(shape) > status.st_size:  # before memory is taken for it
                    raise FormatError(f"it has no room for {num} arrays {list(shape)}")
                out = np.empty((num, *shape), np.float16)
                for done in range(0, num, _AT_ONCE):
                    place, part = start + first + done, out[done : done + _AT_ONCE]
                    _fill(handle, offsets[place : place + len(part)], part)
            finally:
                os.close(handle)
        except (FormatError, OSError) as error:
            name = self.location.name(feature_path(self.features.name, row.shard))
            raise FormatError(f"{name}: cannot be read for {row.narrative} ({error}). {_DELETE}") from error
        return out

    def _path(self, shard: str) -> str:
        path = self._paths.get(shard)
        if path is None:
            relative = feature_path(self.features.name, shard)
            path = self._paths[shard] = str(self.location.path(relative, sha256=self.features.sha256s[shard]))
        return path


def _fill(handle: int, offsets: array[int], out: NDArray[np.float16]) -> None:
    """Reads the .npy files at `offsets` into the rows of `out` [N, …], in one call and without a copy."""
    header = npy_header(out.shape[1:])
    rows, size = out.data.cast("B"), out.nbytes // len(out)
    buffers: list[Any] = []  # by turns what stands before an array, its header last, and the array
    end = offsets[0]
    for place, offset in enumerate(offsets):
        if not 0 <= offset - end <= _MAX_GAP_BYTES:
            raise FormatError(f"not every array is float16 {list(out.shape[1:])}")
        buffers += (bytearray(offset - end + len(header)), rows[place * size : (place + 1) * size])
        end = offset + len(header) + size
    if os.preadv(handle, buffers, offsets[0]) != end - offsets[0]:
        raise FormatError("it ends too early")
    for gap in buffers[::2]:
        if not gap.endswith(header):
            raise FormatError(f"not every array is float16 {list(out.shape[1:])}")


class FeatureArrays(Mapping[str, NDArray[np.float16]]):
    """The features of some consecutive steps by name; each is read when it is asked for, every time."""

    def __init__(self, sidecars: Mapping[str, Sidecar], row: Row, first: int, num: int | None) -> None:
        self._sidecars, self._row, self._first, self._num = sidecars, row, first, num  # num None: one step, no axis

    def __getitem__(self, name: str) -> NDArray[np.float16]:
        if name not in self._sidecars:
            known = ", ".join(self._sidecars) or "none"
            raise KeyError(
                f"{name!r}: this split was opened with features: {known}; load_split(…, features=({name!r},))"
            )
        arrays = self._sidecars[name].read(self._row, self._first, 1 if self._num is None else self._num)
        return arrays[0] if self._num is None else arrays

    def __contains__(self, name: object) -> bool:
        return name in self._sidecars

    def __iter__(self) -> Iterator[str]:
        return iter(self._sidecars)

    def __len__(self) -> int:
        return len(self._sidecars)


def feature_names(out: Path) -> list[str]:
    """The features that the set in the folder `out` has: features.json is written last, so they are complete."""
    return sorted(path.parent.name for path in (out / "features").glob("[!.]*/features.json"))


def open_sidecar(location: Location, name: str, manifest: Manifest) -> Sidecar:
    """The features `name` of a set. Raises UnknownNameError where it has none of that name, FormatError where they
    break the format or were computed from other shards."""
    relative = feature_path(name, "features.json")
    try:
        content = location.read(relative)
    except FileNotFoundError:
        known = feature_names(Path(location.root)) if location.cache is None else []
        raise UnknownNameError(f"features in {location}", name, known) from None
    try:
        features = Features.model_validate_json(content)
    except ValidationError as error:
        raise FormatError(f"{location.name(relative)}: {faults(error)[0]}. {_COMPUTE_AGAIN}") from None
    if features.name != name:
        raise FormatError(f"{location.name(relative)}: name {features.name!r}, its folder's is {name!r}")
    shards = {shard.path: shard.sha256 for split in manifest.splits.values() for shard in split.shards}
    stale = [path for path, sha256 in shards.items() if features.of_shards.get(path) != sha256]
    missing = shards.keys() - features.sha256s.keys()
    if stale or missing:
        raise FormatError(
            f"{location.name(relative)}: not computed from this set's {min([*stale, *missing])}. {_COMPUTE_AGAIN}"
        )
    return Sidecar(location, features)


@functools.lru_cache(maxsize=4096)
def _index(path: str, mtime_ns: int) -> tuple[dict[str, tuple[int, int]], array[int]]:
    """For each narrative of a sidecar (place of its first step, number of steps); for each place the array's offset."""
    spans: dict[str, tuple[int, int]] = {}
    offsets: array[int] = array("q")
    try:
        with tarfile.open(path, "r:") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # constant memory
                narrative = member.name.removesuffix(".npy").rpartition("-")[0]
                start, num_steps = spans.get(narrative, (len(offsets), 0))
                wanted = f"{narrative}-{num_steps:03d}.npy"
                if not member.isreg() or member.name != wanted or start + num_steps != len(offsets):
                    raise FormatError(f"{path}: {member.name!r} stands where it does not belong. {_DELETE}")
                spans[narrative] = start, num_steps + 1
                offsets.append(member.offset_data)
    except (tarfile.TarError, ValueError, RecursionError, OverflowError, MemoryError) as error:
        raise FormatError(f"{path}: not a readable tar file ({error}). {_DELETE}") from error
    return spans, offsets


@functools.cache
def npy_header(shape: tuple[int, ...]) -> bytes:
    """What stands before the numbers in the .npy file of a float16 array in C order."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        stream, {"descr": "<f2", "fortran_order": False, "shape": tuple(map(int, shape))}
    )
    return stream.getvalue()
