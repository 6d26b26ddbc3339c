"""Which frames of a clip are wanted, and how large."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cookgen.errors import UsageError

_ROUNDING = 1e-6  # seconds are rounded to it


@dataclass(frozen=True)
class FrameRule:
    """A choice of frames that fits any clip; with all fields None it is every frame at the clip's size.

    num_frames: so many frames evenly spaced, the middle ones of as many equal parts (some twice in a shorter clip).
    every: each k-th frame, from the first on. span_s: only frames shown in [start, end) seconds of the clip.
    size_px: the short side, or (height, width).
    """

    num_frames: int | None = None
    every: int | None = None
    span_s: tuple[float, float] | None = None
    size_px: int | tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.num_frames is not None and self.every is not None:
            raise UsageError(f"num_frames={self.num_frames} and every={self.every}: give one of them")
        sizes = self.size_px if isinstance(self.size_px, tuple) else (self.size_px, self.size_px)
        for name, value in (("num_frames", self.num_frames), ("every", self.every), *(("size_px", px) for px in sizes)):
            if value is not None and (type(value) is not int or value < 1):
                raise UsageError(f"{name}={value!r}: a whole number, at least 1")
        if self.span_s is not None and not 0 <= self.span_s[0] < self.span_s[1]:
            raise UsageError(f"span_s={self.span_s}: it is (start, end) in seconds of the clip, 0 <= start < end")

    def indices(self, num_frames: int, fps: float) -> Sequence[int]:
        """The wanted frames' numbers, rising, in a clip of `num_frames` frames at `fps`; none where the span has none.

        Frame n is shown from n / fps on.
        """
        first, end = 0, num_frames
        if self.span_s is not None:
            first, end = (math.ceil(min((bound - _ROUNDING) * fps, num_frames)) for bound in self.span_s)
        if self.num_frames is None:
            return range(first, end, self.every or 1)
        if first >= end:
            return range(0)
        return [first + (2 * part + 1) * (end - first) // (2 * self.num_frames) for part in range(self.num_frames)]


def frame_numbers(num_frames: int, num_wanted: int) -> list[int]:
    """What a captioner looks at: the middles of num_wanted equal parts of num_frames frames; every frame once, if it
    has fewer."""
    return list(FrameRule(num_frames=min(num_frames, num_wanted)).indices(num_frames, fps=1))
