"""A narrative in the shards, and the JSON of each of its clips."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from cookgen.records.record import Record

SUFFIXES = ("json", "mp4", "jpg")  # a clip's members in a shard, in their order


class Narrative(Record):
    """Where a narrative lies: the loader's index. Offsets and sizes in bytes of the shard's tar file."""

    TABLE: ClassVar[str] = "narratives"
    PER_VIDEO: ClassVar[Literal["one", "many"]] = "one"

    narrative: str = Field(pattern=r"^[A-Za-z0-9_-]{1,128}$")
    split: str
    shard: str  # relative to the set's folder
    num_steps: PositiveInt
    first_member_offset: NonNegativeInt
    num_bytes: PositiveInt


class _Part(Record):
    TABLE: ClassVar[str] = ""


class SampleVideo(_Part):
    """Where the clip comes from."""

    source: str
    video_id: str
    url: str | None
    title: str | None
    topic: str | None
    duration_s: PositiveFloat
    width: PositiveInt
    height: PositiveInt
    fps: PositiveFloat
    licence: str | None
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class SampleClip(_Part):
    """The span, and what was really cut."""

    start_s: NonNegativeFloat
    end_s: PositiveFloat
    first_pts_s: NonNegativeFloat
    last_pts_s: NonNegativeFloat
    num_frames: PositiveInt
    fps: PositiveFloat
    width: PositiveInt
    height: PositiveInt
    has_audio: bool
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class SampleKeyframe(_Part):
    """The source frame that stands for the clip."""

    pts_s: NonNegativeFloat


class SampleAction(_Part):
    """What is done. `word_ids` is [first, end), null for manual annotations."""

    text: str = Field(min_length=1)
    start_s: NonNegativeFloat
    end_s: NonNegativeFloat
    origin: Literal["manual", "asr"]
    raw_text: str
    word_ids: tuple[NonNegativeInt, NonNegativeInt] | None


class SampleCaption(_Part):
    """What is seen."""

    text: str = Field(min_length=1)
    origin: str = Field(min_length=1)


class SampleMatch(_Part):
    """How clip and action fit."""

    start_diff_s: NonNegativeFloat
    iou: float = Field(gt=0, le=1)
    rule: Literal["start_diff", "iou"]


class Lineage(_Part):
    """What made a result: the stage's version, the digests of its configuration and inputs, its model."""

    version: PositiveInt
    config: str
    model: str | None
    inputs: str


class Sample(_Part):
    """The JSON of one clip in a shard. Source: FORMAT, "The JSON of a clip"."""

    format: Literal["cookgen/1"]
    narrative: str = Field(pattern=r"^[A-Za-z0-9_-]{1,128}$")
    index: NonNegativeInt
    num_steps: PositiveInt
    split: str
    video: SampleVideo
    clip: SampleClip
    keyframe: SampleKeyframe
    action: SampleAction
    caption: SampleCaption
    match: SampleMatch
    checks: dict[str, float]
    lineage: dict[str, Lineage]
