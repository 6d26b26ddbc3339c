"""One sample of a shard set: a step of a narrative, its text at hand, its pictures and sound read when asked for."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError

from cookgen.dataset.decode import read_frames
from cookgen.errors import FormatError, UsageError
from cookgen.records import Narrative as Row
from cookgen.records import Sample

SUFFIXES = ("json", "mp4", "jpg")
_FETCH_AGAIN = "The set is damaged or was not copied whole: fetch it again"


@dataclass(frozen=True)
class Member:
    """Where the bytes of a file inside a shard lie: [offset, offset + num_bytes) of the tar file `shard`."""

    shard: Path
    offset: int
    num_bytes: int

    def read(self) -> bytes:
        """The bytes. The shard is opened for this read alone, so members pickle and may be read from many threads."""
        with open_shard(self.shard) as stream:
            return self.read_from(stream)

    def read_from(self, stream: BinaryIO) -> bytes:
        """The bytes, from the shard that is already open."""
        stream.seek(self.offset)
        content = stream.read(self.num_bytes)
        if len(content) < self.num_bytes:
            raise FormatError(f"{self.shard}: ends before byte {self.offset + self.num_bytes}. {_FETCH_AGAIN}")
        return content


@dataclass(frozen=True, repr=False)
class Step:
    """One step of a narrative: what is done, what is seen, and the clip that shows it.

    `action` and `caption` are plain text; `sample` is all that the shard says of the step (the action's span and
    origin, the match, checks, lineage, where the clip comes from). Pictures and sound are read from the shard each time
    that they are asked for. Steps pickle and may be used from many threads.
    """

    key: str  # "{narrative}-{index:03d}", the name of its members in the shard
    sample: Sample
    members: dict[str, Member]  # by suffix: json, mp4, jpg

    @property
    def index(self) -> int:
        """The step's place in its narrative, from 0."""
        return self.sample.index

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
        content = self._read("mp4")
        if hashlib.sha256(content).hexdigest() != self.sample.clip.sha256:
            raise FormatError(f"{self._name('mp4')}: its sha256 is not the one in the JSON. {_FETCH_AGAIN}")
        return content

    def frames(
        self,
        indices: Sequence[int] | slice | None = None,
        *,
        num_frames: int | None = None,
        size_px: int | tuple[int, int] | None = None,
    ) -> NDArray[np.uint8]:
        """Frames of the clip: uint8 [T, H, W, 3], RGB.

        indices: frame numbers (negative ones count from the end) or a slice; None for all frames.
        num_frames: instead of indices, so many frames evenly spaced: the middle ones of as many equal parts.
        size_px: the short side, or (height, width); None keeps the clip's size.
        Raises IndexError for a frame that is not there, FormatError where the clip is damaged or missing.
        """
        if num_frames is not None:
            if indices is not None or num_frames < 1:
                raise UsageError(f"num_frames={num_frames}: at least 1, and not together with indices")
            indices = [(2 * part + 1) * self.num_frames // (2 * num_frames) for part in range(num_frames)]
        elif indices is None or isinstance(indices, slice):
            indices = range(self.num_frames)[indices or slice(None)]
        elif out := [index for index in indices if not -self.num_frames <= index < self.num_frames]:
            raise IndexError(f"{self.key}: no frame {out[0]}; the clip has {self.num_frames}, numbered from 0")
        content = self.mp4
        try:
            return read_frames(content, indices, size_px=size_px)
        except (FormatError, IndexError) as error:  # an index that the JSON allows and the clip does not have
            raise FormatError(f"{self._name('mp4')}: {error}") from error

    def keyframe(self) -> NDArray[np.uint8]:
        """The picture that stands for the clip: uint8 [H, W, 3], RGB, at the clip's size.

        Raises FormatError where it is damaged, or not of that size.
        """
        content = self._read("jpg")
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

    def __repr__(self) -> str:
        return f"Step({self.key!r}, {self.action!r})"

    def _read(self, suffix: str) -> bytes:
        return self.members[suffix].read()

    def _name(self, suffix: str) -> str:
        return f"{self.members[suffix].shard}: {self.key}.{suffix}"


def open_shard(path: Path) -> BinaryIO:
    """A shard for reading: the one place where shards are opened. Raises FormatError where it is missing."""
    try:
        return path.open("rb")
    except OSError as error:
        raise FormatError(
            f"{path}: cannot be read ({error.strerror}), and dataset.json lists it. {_FETCH_AGAIN}"
        ) from error


def read_steps(shard: Path, row: Row) -> tuple[Step, ...]:
    """The steps of a narrative: its part of the shard is walked, its JSON read, its clips and keyframes passed over.

    Raises FormatError unless that part holds exactly the members of the narrative.
    """
    keys = [f"{row.narrative}-{index:03d}" for index in range(row.num_steps)]
    with open_shard(shard) as stream:
        members = _members(stream, shard, row, {f"{key}.{suffix}" for key in keys for suffix in SUFFIXES})
        steps = []
        for index, key in enumerate(keys):
            sample = _sample(f"{shard}: {key}.json", members[f"{key}.json"].read_from(stream))
            found = sample.narrative, sample.index, sample.num_steps, sample.split
            wanted = row.narrative, index, row.num_steps, row.split
            if found != wanted:
                raise FormatError(f"{shard}: {key}.json says {found}, the narratives table {wanted}. {_FETCH_AGAIN}")
            steps.append(Step(key, sample, {suffix: members[f"{key}.{suffix}"] for suffix in SUFFIXES}))
    return tuple(steps)


def _members(stream: BinaryIO, shard: Path, row: Row, names: set[str]) -> dict[str, Member]:
    """Where each of the named members lies; the narrative's part of the tar file holds them all and nothing else."""
    end = row.first_member_offset + row.num_bytes
    members: dict[str, Member] = {}
    stream.seek(row.first_member_offset)
    try:
        with tarfile.TarFile(fileobj=stream) as tar:  # reads from where the stream stands
            while len(members) < len(names):
                info = tar.next()
                if info is None or info.offset_data + info.size > end:
                    raise FormatError(f"{shard}: {row.narrative} ends after {len(members)} members. {_FETCH_AGAIN}")
                if info.name not in names or info.name in members or not info.isreg() or info.sparse is not None:
                    raise FormatError(f"{shard}: {info.name!r} does not belong in {row.narrative}. {_FETCH_AGAIN}")
                members[info.name] = Member(shard, info.offset_data, info.size)
            if tar.offset != end:
                raise FormatError(f"{shard}: {row.narrative} ends at {tar.offset}, not at {end}. {_FETCH_AGAIN}")
    except (tarfile.TarError, OSError, ValueError, RecursionError) as error:
        raise FormatError(f"{shard}: no readable tar file at {row.narrative} ({error}). {_FETCH_AGAIN}") from error
    return members


def _sample(name: str, content: bytes) -> Sample:
    try:
        return Sample.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise FormatError(f"{name}: {where}: {first['msg']}. {_FETCH_AGAIN}") from None
