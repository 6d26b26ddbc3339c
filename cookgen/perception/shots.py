"""Shots: where a video cuts, and which spans to make of it."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cookgen.perception.transnetv2 import TransNet


@dataclass(frozen=True)
class ShotDetection:
    """How cuts are found.

    kind "adaptive": PySceneDetect's AdaptiveDetector: a frame starts a shot when its content value (mean change of hue,
    saturation and lightness against the frame before, 0-255) is at least `min_content` and `threshold` times that of
    its `window` neighbours on each side. Fast; blind to dissolves.
    kind "transnetv2": a network that sees dissolves too, at some 40 frames a second on one core: a shot ends where the
    probability that it says is more than `probability`.
    """

    kind: Literal["adaptive", "transnetv2"] = "adaptive"
    threshold: float = 3.0
    min_content: float = 15.0
    window: int = 2
    probability: float = 0.3  # at 0.5, its authors', half of the dissolves of `make bench-shots` are missed

    def __post_init__(self) -> None:
        if self.threshold <= 0 or self.min_content < 0 or self.window < 1:
            raise ValueError("threshold must be above 0, min_content at least 0 and window at least 1")
        if not 0 < self.probability < 1:
            raise ValueError("probability must be above 0 and below 1")

    def model(self) -> str | None:
        """ "id@revision" of the model that the cuts hang on; None where there is none. Nothing is loaded."""
        return TransNet.identity() if self.kind == "transnetv2" else None


def detect_cuts(frames_HW3: Iterable[NDArray[np.uint8]], config: ShotDetection) -> list[int]:
    """The numbers of the frames that start a new shot, rising, never frame 0. Reads all frames, each once.

    frames_HW3: uint8 BGR, all of one size, every frame of the video in order; about 256 px wide is enough.
    Raises ModelError where the network's package is missing.
    """
    if config.kind == "transnetv2":
        return _after_peaks(_network().probabilities(frames_HW3), config.probability)
    return _adaptive(frames_HW3, config)


def _adaptive(frames_HW3: Iterable[NDArray[np.uint8]], config: ShotDetection) -> list[int]:
    from scenedetect import AdaptiveDetector, FrameTimecode

    detector = AdaptiveDetector(
        adaptive_threshold=config.threshold,
        min_scene_len=1,  # short shots are merged by length later, not by where the detector last saw a cut
        window_width=config.window,
        min_content_val=config.min_content,
    )
    cuts: list[int] = []
    for number, frame_HW3 in enumerate(frames_HW3):
        # The detector only counts; the rate that it asks for means nothing here. Times come from the frames' own pts.
        found = detector.process_frame(FrameTimecode(number, 25.0), frame_HW3)
        cuts.extend(timecode.frame_num for timecode in found)
    return cuts


@functools.cache
def _network() -> TransNet:
    return TransNet.load()  # once a worker


def _after_peaks(probabilities: Sequence[float], threshold: float) -> list[int]:
    """The frame after the most probable one of each run above the threshold: of a dissolve, its middle."""
    cuts = []
    numbers = range(len(probabilities))
    for is_cut, run in itertools.groupby(numbers, key=lambda number: probabilities[number] > threshold):
        peak = max(run, key=probabilities.__getitem__)
        if is_cut and peak + 1 < len(probabilities):
            cuts.append(peak + 1)
    return cuts


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
