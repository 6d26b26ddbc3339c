"""Shots: cuts are found at their frame; spans cover the video and keep their lengths."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cookgen.perception.shots import ShotDetection, detect_cuts, shot_spans


def scenes(lengths: list[int]) -> list[np.ndarray]:
    """Textured scenes of so many frames each, drifting a little from frame to frame, as a camera does."""
    rng = np.random.default_rng(7)
    frames = []
    for length in lengths:
        scene = rng.integers(0, 255, (9, 16, 3), dtype=np.uint8).repeat(16, axis=0).repeat(16, axis=1)
        frames += [np.roll(scene, frame // 4, axis=1) for frame in range(length)]
    return frames


def test_cuts_are_found_at_the_first_frame_of_the_new_shot() -> None:
    cuts, num_frames = detect_cuts(scenes([40, 31, 55]), ShotDetection())
    assert (cuts, num_frames) == ([40, 71], 126)


def test_a_video_without_a_cut_has_none() -> None:
    assert detect_cuts(scenes([60]), ShotDetection()) == ([], 60)
    assert detect_cuts([], ShotDetection()) == ([], 0)


def test_a_fade_is_no_cut() -> None:
    one, other = (frame.astype(float) for frame in scenes([1, 1]))
    blend = [(one * (1 - x) + other * x).astype(np.uint8) for x in np.linspace(0, 1, 60)]
    assert detect_cuts([blend[0]] * 10 + blend + [blend[-1]] * 10, ShotDetection())[0] == []


def test_thresholds_count() -> None:
    assert detect_cuts(scenes([40, 40]), ShotDetection(min_content=254))[0] == []


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="window"):
        ShotDetection(window=0)


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
