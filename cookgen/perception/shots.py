"""Shots: where a video cuts, and which spans to make of it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ShotDetection:
    """PySceneDetect's AdaptiveDetector: a frame starts a shot when its content value (mean change of hue, saturation
    and lightness against the frame before, 0-255) is at least `min_content` and `threshold` times that of its
    `window` neighbours on each side."""

    threshold: float = 3.0
    min_content: float = 15.0
    window: int = 2

    def __post_init__(self) -> None:
        if self.threshold <= 0 or self.min_content < 0 or self.window < 1:
            raise ValueError("threshold must be above 0, min_content at least 0 and window at least 1")


def detect_cuts(frames_HW3: Iterable[np.ndarray], config: ShotDetection) -> tuple[list[int], int]:
    """The numbers of the frames that start a new shot (never frame 0), and how many frames there were.

    frames_HW3: uint8 BGR, all of one size, every frame of the video in order; about 256 px wide is enough.
    """
    from scenedetect import AdaptiveDetector, FrameTimecode

    detector = AdaptiveDetector(
        adaptive_threshold=config.threshold,
        min_scene_len=1,  # short shots are merged by length later, not by where the detector last saw a cut
        window_width=config.window,
        min_content_val=config.min_content,
    )
    cuts: list[int] = []
    num_frames = 0
    for frame_HW3 in frames_HW3:
        # The detector only counts; the rate that it asks for means nothing here. Times come from the frames' own pts.
        found = detector.process_frame(FrameTimecode(num_frames, 25.0), frame_HW3)
        cuts.extend(timecode.frame_num for timecode in found)
        num_frames += 1
    return cuts, num_frames


def shot_spans(
    cuts_s: Iterable[float], start_s: float, end_s: float, *, min_s: float, max_s: float
) -> list[tuple[float, float]]:
    """The spans [start, end) that cover [start_s, end_s), cut at `cuts_s` (rising), each min_s to max_s long.

    The shortest shot below min_s joins its shorter neighbour (the earlier one of two equal) until none is left; what is
    longer than max_s is split into equal parts. Empty when the whole is shorter than min_s. Needs max_s >= 2 * min_s.
    """
    edges = [start_s, *(cut for cut in cuts_s if start_s < cut < end_s), end_s]
    if end_s - start_s < min_s:
        return []
    while len(edges) > 2:
        lengths = np.diff(edges).round(3)  # shots of as many frames are equally long, whatever rounding left
        shortest = int(np.argmin(lengths))
        if lengths[shortest] >= min_s:
            break
        before = lengths[shortest - 1] if shortest > 0 else math.inf
        after = lengths[shortest + 1] if shortest + 1 < len(lengths) else math.inf
        del edges[shortest if before <= after else shortest + 1]
    spans: list[tuple[float, float]] = []
    for left, right in itertools.pairwise(edges):
        parts = math.ceil((right - left) / max_s - 1e-9)
        inner = [left + (right - left) * part / parts for part in range(1, parts)]
        spans += zip([left, *inner], [*inner, right], strict=True)
    return spans
