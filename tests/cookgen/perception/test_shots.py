"""Shots: cuts are found at their frame; spans cover the video and keep their lengths."""

from __future__ import annotations

import itertools
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cookgen.perception.shots import ShotDetection, _after_peaks, detect_cuts, shot_spans

KINDS: tuple[Literal["adaptive", "transnetv2"], ...] = ("adaptive", "transnetv2")


def scenes(lengths: list[int]) -> list[np.ndarray]:
    """Textured scenes of so many frames each, drifting a little from frame to frame, as a camera does."""
    rng = np.random.default_rng(7)
    frames = []
    for length in lengths:
        scene = rng.integers(0, 255, (9, 16, 3), dtype=np.uint8).repeat(16, axis=0).repeat(16, axis=1)
        frames += [np.roll(scene, frame // 4, axis=1) for frame in range(length)]
    return frames


def test_cuts_are_found_at_the_first_frame_of_the_new_shot() -> None:
    assert detect_cuts(scenes([40, 31, 55]), ShotDetection()) == [40, 71]
    assert detect_cuts(iter(scenes([40, 31, 55])), ShotDetection(kind="transnetv2")) == [40, 71]


def test_a_video_without_a_cut_has_none() -> None:
    for kind in KINDS:
        assert detect_cuts(scenes([60]), ShotDetection(kind=kind)) == []
        assert detect_cuts([], ShotDetection(kind=kind)) == []


def test_the_network_sees_a_dissolve_and_the_adaptive_detector_does_not() -> None:
    first, second = scenes([60, 0]), scenes([0, 60])
    overlap = 24
    blend = [
        (one * (1 - x) + other * x).astype(np.uint8)
        for one, other, x in zip(first[-overlap:], second[:overlap], np.linspace(0, 1, overlap), strict=True)
    ]
    frames = first[:-overlap] + blend + second[overlap:]
    assert detect_cuts(frames, ShotDetection()) == []
    [cut] = detect_cuts(frames, ShotDetection(kind="transnetv2"))
    assert abs(cut - 48) <= 8  # its middle


def test_thresholds_count() -> None:
    assert detect_cuts(scenes([40, 40]), ShotDetection(min_content=254)) == []
    assert detect_cuts(scenes([40, 40]), ShotDetection(kind="transnetv2", probability=0.9999)) == []


@given(probabilities=st.lists(st.sampled_from([0.0, 0.2, 0.6, 0.7]), max_size=40))
def test_each_run_of_probable_frames_is_one_cut_behind_its_peak(probabilities: list[float]) -> None:
    cuts = _after_peaks(probabilities, 0.5)
    assert cuts == sorted(set(cuts))
    assert all(probabilities[cut - 1] > 0.5 and 0 < cut < len(probabilities) for cut in cuts)
    runs = sum(p > 0.5 and (n == 0 or probabilities[n - 1] <= 0.5) for n, p in enumerate(probabilities))
    assert runs - 1 <= len(cuts) <= runs  # one less where the video's last frame is a peak


def test_impossible_settings_are_refused() -> None:
    for wrong in ({"window": 0}, {"probability": 1.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            ShotDetection(**wrong)  # type: ignore[arg-type]


def test_only_the_network_is_a_model_that_cuts_hang_on() -> None:
    assert ShotDetection().model() is None
    assert ShotDetection(kind="transnetv2").model() == "transnetv2@1.0.5-a313d0b3bebf"


@given(
    lengths=st.lists(st.floats(0.04, 100), min_size=1, max_size=40),
    start_s=st.floats(0, 10),
    min_s=st.floats(0.5, 5),
    factor=st.floats(2, 20),
)
def test_spans_cover_the_video_without_gaps_and_keep_their_lengths(
    lengths: list[float], start_s: float, min_s: float, factor: float
) -> None:
    edges = [start_s + offset for offset in itertools.accumulate(lengths, initial=0.0)]
    max_s = min_s * factor
    spans = shot_spans(edges[1:-1], edges[0], edges[-1], min_s=min_s, max_s=max_s)
    if edges[-1] - edges[0] < min_s:
        assert spans == []
        return
    assert (spans[0][0], spans[-1][1]) == (edges[0], edges[-1])
    assert all(left[1] == right[0] for left, right in itertools.pairwise(spans))
    assert all(min_s - 2e-3 <= end - start <= max_s + 1e-6 for start, end in spans)


def test_short_shots_join_the_shorter_neighbour_and_long_ones_are_split_evenly() -> None:
    assert shot_spans([5, 6, 9], 0, 40, min_s=2, max_s=30) == [(0, 5), (5, 9), (9, 24.5), (24.5, 40)]
    assert shot_spans([3, 4], 0, 7, min_s=2, max_s=30) == [(0, 4), (4, 7)]  # a tie: the earlier neighbour
    assert shot_spans([], 0, 1.9, min_s=2, max_s=30) == []
