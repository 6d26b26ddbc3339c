"""A source video: as a source lists it, and as the probe found it."""

from __future__ import annotations

import hashlib
from typing import ClassVar, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from cookgen.records.record import FORMAT, Record


class Segment(Record):
    """A human-made annotation: [start_s, end_s) and the sentence, both as they stand in the source's file.

    Not judged here: the stages reject what cannot be (a span without length, an empty sentence).
    """

    TABLE: ClassVar[str] = "segments"

    start_s: float
    end_s: float
    text: str


class SourceVideo(Record):
    """A video as its source lists it, before the file is opened. Not a table: the pipeline's input.

    `path` and `subtitles` are relative to the source's video folder. `num_bytes` and `mtime_ns` stand for the file's
    content until the videos stage has read it: a touched file is read again, but its lineage stays the same.
    """

    TABLE: ClassVar[str] = "source"
    PER_VIDEO: ClassVar[Literal["one", "many"]] = "one"
    DESCRIPTIVE: ClassVar[frozenset[str]] = frozenset({"mtime_ns"})

    narrative: str
    source: str
    video_id: str
    path: str
    num_bytes: NonNegativeInt
    mtime_ns: int
    url: str | None = None
    title: str | None = None
    topic: str | None = None
    licence: str | None = None
    split: str | None = None  # the source's own split; None where it has none
    segments: tuple[Segment, ...] = ()
    subtitles: str | None = None
    subtitles_sha256: str | None = None


class Crop(Record):
    """The picture inside its black borders, px from the upright frame's left and top edge, in square pixels."""

    TABLE: ClassVar[str] = ""

    left: NonNegativeInt
    top: NonNegativeInt
    width: PositiveInt
    height: PositiveInt


class Video(Record):
    """A video that was opened and found usable; upright size with square pixels, `fps` the rate that clips get.

    `start_s` is the container's start: the earliest start of its streams, in the file's own timestamps. All other
    times of the project count from there. `crop` is what clips show of each frame; None: all of it.
    """

    TABLE: ClassVar[str] = "videos"
    PER_VIDEO: ClassVar[Literal["one", "many"]] = "one"
    DESCRIPTIVE: ClassVar[frozenset[str]] = frozenset(
        {"path", "url", "title", "topic", "licence", "split", "subtitles"}
    )

    narrative: str
    source: str
    video_id: str
    path: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    num_bytes: PositiveInt
    duration_s: PositiveFloat
    start_s: float
    width: PositiveInt
    height: PositiveInt
    crop: Crop | None = None
    fps: PositiveFloat
    video_stream: NonNegativeInt  # index in the container
    audio_stream: NonNegativeInt | None
    has_audio: bool
    split: str
    url: str | None = None
    title: str | None = None
    topic: str | None = None
    licence: str | None = None
    segments: tuple[Segment, ...] = ()
    subtitles: str | None = None
    subtitles_sha256: str | None = None


def hashed_split(narrative: str, val_fraction: float) -> str:
    """The split of a video whose source has none: by a hash of its name, so that adding videos moves none.

    Source: FORMAT, "Splits and packing".
    """
    position = int(hashlib.sha256(f"{FORMAT}:{narrative}".encode()).hexdigest()[:8], 16) / 2**32
    return "val" if position < val_fraction else "train"
