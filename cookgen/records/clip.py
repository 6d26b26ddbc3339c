"""A clip: a span of a video, cut and decoded again."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from cookgen.records.record import Record


class Clip(Record):
    """[start_s, end_s) as asked; everything else as read from what was really encoded.

    `first_pts_s` is the source frame at which the clip starts, `last_pts_s` the last source frame shown, both in
    seconds from the container's start. The two sha256 name the clip's MP4 and the keyframe's JPEG in the media store.
    """

    TABLE: ClassVar[str] = "clips"

    narrative: str
    clip_index: NonNegativeInt
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
    num_bytes: PositiveInt
    keyframe_pts_s: NonNegativeFloat
    keyframe_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    keyframe_num_bytes: PositiveInt

    @property
    def media(self) -> tuple[tuple[str, str, int], tuple[str, str, int]]:
        """(sha256, suffix, size in bytes) of the clip's file and of the keyframe's."""
        return (self.sha256, ".mp4", self.num_bytes), (self.keyframe_sha256, ".jpg", self.keyframe_num_bytes)
