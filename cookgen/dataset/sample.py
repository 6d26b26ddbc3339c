"""One sample of a shard set: a step of a narrative. Text, pictures, sound and features are read when asked for."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError

from cookgen.dataset.decode import read_audio, read_frames
from cookgen.dataset.frames import FrameRule
from cookgen.dataset.location import Location
from cookgen.dataset.sidecar import FeatureArrays, Sidecar
from cookgen.errors import FormatError, UsageError
from cookgen.records import SUFFIXES, Sample, Shard, faults
from cookgen.records import Narrative as Row

_FETCH_AGAIN = "The set is damaged or was not copied whole: fetch it again (out of a cache, delete the file)"
_BLOCK = 512  # of a tar file


@dataclass(frozen=True)
class Reader:
    """How a split reads its set: what each of its samples needs in order to read itself."""

    location: Location
    shards: Mapping[str, Shard]  # by path, as dataset.json lists them
    frame_rule: FrameRule | None = None  # None: frames() gives all, batches hold none
    sidecars: Mapping[str, Sidecar] = field(default_factory=dict)


@dataclass(frozen=True)
class Member:
    """Where the bytes of a file inside a shard lie: [offset, offset + num_bytes) of the tar file `shard`."""

    shard: Path
    offset: int
    num_bytes: int

    def read(self) -> bytes:
        """The bytes. The shard is opened for this read alone, so members pickle and may be read from many threads."""
        handle = open_shard(self.shard)
        try:
            if self.offset + self.num_bytes > os.fstat(handle).st_size:  # before memory is taken for it
                raise FormatError(f"{self.shard}: ends before byte {self.offset + self.num_bytes}. {_FETCH_AGAIN}")
            return os.pread(handle, self.num_bytes, self.offset)
        finally:
            os.close(handle)


@dataclass(frozen=True, repr=False)
class Step:
    """One step of a narrative: what is done, what is seen, and the clip that shows it.

    `action` and `caption` are plain text; `sample` is all that the shard says of the step (the action's span and
    origin, the match, checks, lineage, where the clip comes from). Pictures, sound and features are read each time that
    they are asked for. Steps pickle and may be used from many threads.
    """

    row: Row  # the narrative's, of the narratives table
    index: int  # the step's place in its narrative, from 0
    members: Mapping[str, Member]  # by suffix: json, mp4, jpg
    reader: Reader

    @property
    def key(self) -> str:
        """`{narrative}-{index:03d}`, the name of its members in the shard."""
        return f"{self.row.narrative}-{self.index:03d}"

    @property
    def sample(self) -> Sample:
        """The step's JSON. Raises FormatError where it breaks the format, or is that of another step."""
        known: Sample | None = self.__dict__.get("_sample")  # cached_property has one lock for all instances
        if known is None:
            known = self.__dict__["_sample"] = self._read_sample()
        return known

    @property
    def action(self) -> str:
        """What is done: a short imperative sentence. Its span and origin are in `sample.action`."""
        return self.sample.action.text

    @property
    def caption(self) -> str:
        """What is seen in the clip. Who wrote it is in `sample.caption.origin`."""
        return self.sample.caption.text

    @property
    def start_s(self) -> float:
        """Where the clip starts in its source video, in seconds."""
        return self.sample.clip.start_s

    @property
    def end_s(self) -> float:
        """Where the clip ends in its source video, in seconds, exclusive."""
        return self.sample.clip.end_s

    @property
    def span(self) -> tuple[float, float]:
        """[start_s, end_s) of the clip in its source video."""
        return self.start_s, self.end_s

    @property
    def num_frames(self) -> int:
        """How many frames the clip has; they are `sample.clip.fps` a second."""
        return self.sample.clip.num_frames

    @property
    def mp4(self) -> bytes:
        """The clip's file, with its sound where it has any. FormatError unless it is the one that was written."""
        content = self.read("mp4")
        if hashlib.sha256(content).hexdigest() != self.sample.clip.sha256:
            raise FormatError(f"{self._name('mp4')}: its sha256 is not the one in the JSON. {_FETCH_AGAIN}")
        return content

    @property
    def features(self) -> Mapping[str, NDArray[np.float16]]:
        """What load_split(features=…) named, as float16 arrays of each encoder's shape."""
        return FeatureArrays(self.reader.sidecars, self.row, self.index, None)

    def read(self, suffix: str) -> bytes:
        """The bytes of the member "json", "mp4" or "jpg" as they stand in the shard, not checked."""
        return self.members[suffix].read()

    def frames(
        self,
        indices: Sequence[int] | slice | None = None,
        *,
        num_frames: int | None = None,
        every: int | None = None,
        span_s: tuple[float, float] | None = None,
        size_px: int | tuple[int, int] | None = None,
    ) -> NDArray[np.uint8]:
        """Frames of the clip: uint8 [T, H, W, 3], RGB.

        indices: frame numbers (negative ones count from the end) or a slice. num_frames: so many, evenly spaced: the
        middle ones of as many equal parts. every: each k-th. span_s: only those shown in [start, end) seconds of the
        clip. Where none of them is given: as load_split's `frames` says, by default all.
        size_px: the short side, or (height, width); by default load_split's, else the clip's size.
        Raises IndexError for a frame that is not there, FormatError where the clip is damaged or missing.
        """
        if isinstance(indices, int):
            raise UsageError(f"frames({indices}): give frames([{indices}]) or frames(num_frames={indices})")
        rule = self.reader.frame_rule or FrameRule()
        size_px = rule.size_px if size_px is None else size_px
        if num_frames is not None or every is not None or span_s is not None:
            if indices is not None:
                raise UsageError("frames: give indices, or a rule (num_frames, every, span_s), not both")
            rule = FrameRule(num_frames, every, span_s)
        if indices is None:
            indices = rule.indices(self.num_frames, self.sample.clip.fps)
        elif isinstance(indices, slice):
            indices = range(self.num_frames)[indices]
        elif out := [index for index in indices if not -self.num_frames <= index < self.num_frames]:
            raise IndexError(f"{self.key}: no frame {out[0]}; the clip has {self.num_frames}, numbered from 0")
        content = self.mp4
        try:
            return read_frames(content, indices, size_px=size_px)
        except (FormatError, IndexError) as error:  # an index that the JSON allows and the clip does not have
            raise FormatError(f"{self._name('mp4')}: {error}") from error

    def audio(
        self, *, rate_hz: int | None = None, span_s: tuple[float, float] | None = None
    ) -> NDArray[np.float32] | None:
        """The clip's sound: float32 [channels, samples] in [-1, 1], None where it has none.

        rate_hz: resampled to this rate; None keeps the file's 48 kHz. span_s: [start, end) in seconds of the clip.
        Raises FormatError where the clip is damaged or missing.
        """
        start_s, end_s = span_s or (0.0, None)
        try:
            return read_audio(self.mp4, rate_hz=rate_hz, start_s=start_s, end_s=end_s)
        except FormatError as error:
            raise FormatError(f"{self._name('mp4')}: {error}") from error

    def keyframe(self) -> NDArray[np.uint8]:
        """The picture that stands for the clip: uint8 [H, W, 3], RGB, at the clip's size.

        Raises FormatError where it is damaged, or not of that size.
        """
        content = self.read("jpg")
        size = self.sample.clip.width, self.sample.clip.height
        try:
            with Image.open(io.BytesIO(content), formats=["JPEG"]) as image:
                if image.size != size:  # before decoding: a few bytes can claim any size
                    raise FormatError(f"{self._name('jpg')}: {image.size} pixels, its clip {size}. {_FETCH_AGAIN}")
                return np.array(image.convert("RGB"))  # a copy, which may be written to
        except (
            OSError,
            SyntaxError,
            ValueError,
            Image.DecompressionBombError,
            Image.DecompressionBombWarning,
        ) as error:
            raise FormatError(f"{self._name('jpg')}: not a readable JPEG ({error}). {_FETCH_AGAIN}") from error

    def __hash__(self) -> int:
        return hash(self.key)

    def __repr__(self) -> str:
        return f"Step({self.key!r}, {self.action!r})"

    def _read_sample(self) -> Sample:
        name = self._name("json")
        try:
            sample = Sample.model_validate_json(self.read("json"))
        except ValidationError as error:
            raise FormatError(f"{name}: {faults(error)[0]}. {_FETCH_AGAIN}") from None
        found = sample.narrative, sample.index, sample.num_steps, sample.split
        wanted = self.row.narrative, self.index, self.row.num_steps, self.row.split
        if found != wanted:
            raise FormatError(f"{name} says {found}, the narratives table {wanted}. {_FETCH_AGAIN}")
        return sample

    def _name(self, suffix: str) -> str:
        return f"{self.members[suffix].shard}: {self.key}.{suffix}"


def open_shard(path: Path) -> int:
    """A shard's file descriptor: the one place where shards are opened. Raises FormatError where it is missing."""
    try:
        return os.open(path, os.O_RDONLY)
    except OSError as error:
        raise FormatError(
            f"{path}: cannot be read ({error.strerror}), and dataset.json lists it. {_FETCH_AGAIN}"
        ) from error


def read_steps(reader: Reader, row: Row) -> tuple[Step, ...]:
    """The steps of a narrative: the headers of its part of the shard are walked, nothing else is read.

    Raises FormatError unless that part holds exactly the members of the narrative.
    """
    listed = reader.shards[row.shard]
    shard = reader.location.path(row.shard, sha256=listed.sha256, num_bytes=listed.num_bytes)
    names = [f"{row.narrative}-{index:03d}.{suffix}" for index in range(row.num_steps) for suffix in SUFFIXES]
    handle = open_shard(shard)
    try:
        members = _plain_members(handle, shard, row, names) or _members(handle, shard, row, set(names))
    finally:
        os.close(handle)
    return tuple(
        Step(row, index, {suffix: members[f"{row.narrative}-{index:03d}.{suffix}"] for suffix in SUFFIXES}, reader)
        for index in range(row.num_steps)
    )


def _plain_members(handle: int, shard: Path, row: Row, names: list[str]) -> dict[str, Member] | None:
    """Where each member lies, if the headers are plain ones in the format's order: ten times as fast as tarfile.

    None where anything is otherwise (a long name takes a pax header): then tarfile finds out.
    """
    members: dict[str, Member] = {}
    offset, end = row.first_member_offset, row.first_member_offset + row.num_bytes
    for name in names:
        block = os.pread(handle, _BLOCK, offset)
        size = block[124:136].rstrip(b"\0 ")
        is_plain = (
            block[:100].rstrip(b"\0") == name.encode()
            and block[156:157] == b"0"
            and block[345:500].count(b"\0") == 155
            and size.isdigit()
            and block[148:154] == b"%06o" % (sum(block) - sum(block[148:156]) + 8 * 0x20)
        )
        num_bytes = int(size, 8) if is_plain and not size.strip(b"01234567") else -1
        start, offset = offset + _BLOCK, offset + _BLOCK + -(-num_bytes // _BLOCK) * _BLOCK
        if num_bytes < 0 or start + num_bytes > end:
            return None
        members[name] = Member(shard, start, num_bytes)
    return members if offset == end else None


def _members(handle: int, shard: Path, row: Row, names: set[str]) -> dict[str, Member]:
    """Where each of the named members lies; the narrative's part of the tar file holds them all and nothing else."""
    end = row.first_member_offset + row.num_bytes
    members: dict[str, Member] = {}
    try:
        with os.fdopen(os.dup(handle), "rb") as stream:
            stream.seek(row.first_member_offset)
            tar = tarfile.TarFile(fileobj=stream)  # reads from where the stream stands
            while len(members) < len(names):
                info = tar.next()
                if info is None or info.offset_data + info.size > end:
                    raise FormatError(f"{shard}: {row.narrative} ends after {len(members)} members. {_FETCH_AGAIN}")
                if info.name not in names or info.name in members or not info.isreg() or info.sparse is not None:
                    raise FormatError(f"{shard}: {info.name!r} does not belong in {row.narrative}. {_FETCH_AGAIN}")
                members[info.name] = Member(shard, info.offset_data, info.size)
            if tar.offset != end:
                raise FormatError(f"{shard}: {row.narrative} ends at {tar.offset}, not at {end}. {_FETCH_AGAIN}")
    except (tarfile.TarError, OSError, ValueError, RecursionError, OverflowError, MemoryError) as error:
        raise FormatError(f"{shard}: no readable tar file at {row.narrative} ({error}). {_FETCH_AGAIN}") from error
    return members
