"""Which frames a rule picks."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cookgen.dataset.frames import FrameRule
from cookgen.errors import UsageError

clips = st.tuples(st.integers(1, 400), st.sampled_from([8.0, 10.0, 23.976024, 25.0, 29.97003, 30.0, 59.94006]))


@given(clips, st.integers(1, 40))
def test_evenly_spaced_frames(clip: tuple[int, float], wanted: int) -> None:
    num_frames, fps = clip
    indices = list(FrameRule(num_frames=wanted).indices(num_frames, fps))
    assert len(indices) == wanted
    assert indices == sorted(indices)
    assert set(indices) <= set(range(num_frames))
    gaps = {after - before for before, after in pairwise(indices)}
    assert not gaps or max(gaps) - min(gaps) <= 1
    assert abs(indices[0] - (num_frames - 1 - indices[-1])) <= 1  # the same margin at both ends


@given(clips, st.integers(1, 40))
def test_every_kth_frame(clip: tuple[int, float], every: int) -> None:
    num_frames, fps = clip
    assert list(FrameRule(every=every).indices(num_frames, fps)) == list(range(num_frames))[::every]
    assert list(FrameRule().indices(num_frames, fps)) == list(range(num_frames))


@given(clips, st.data())
def test_a_span_cuts_a_clip_without_gap_or_overlap(clip: tuple[int, float], data: st.DataObject) -> None:
    num_frames, fps = clip
    bounds = [round(number / fps, 6) for number in sorted(data.draw(st.sets(st.integers(1, num_frames), max_size=5)))]
    bounds = [0.0, *(bound for bound in bounds if bound > 0), num_frames / fps + 1]
    parts = [FrameRule(span_s=span).indices(num_frames, fps) for span in pairwise(bounds)]
    assert [index for part in parts for index in part] == list(range(num_frames))


def test_spans_in_numbers() -> None:
    assert list(FrameRule(span_s=(0.5, 1.0)).indices(100, 10)) == [5, 6, 7, 8, 9]
    assert list(FrameRule(span_s=(0.5, 1.0), every=2).indices(100, 10)) == [5, 7, 9]
    assert list(FrameRule(span_s=(0.5, 1.0), num_frames=2).indices(100, 10)) == [6, 8]
    assert list(FrameRule(span_s=(9.5, 20.0)).indices(100, 10)) == [95, 96, 97, 98, 99]
    assert list(FrameRule(span_s=(10.0, 20.0), num_frames=4).indices(100, 10)) == []
    assert list(FrameRule(span_s=(9.75, math.inf)).indices(100, 10)) == [98, 99]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_frames": 0}, "num_frames=0: a whole number, at least 1"),
        ({"size_px": (0, 8)}, "size_px=0: a whole number, at least 1"),
        ({"every": -1}, "every=-1: a whole number, at least 1"),
        ({"num_frames": 2, "every": 2}, "give one of them"),
        ({"span_s": (2.0, 1.0)}, r"span_s=\(2.0, 1.0\)"),
        ({"span_s": (-1.0, 1.0)}, "0 <= start < end"),
    ],
)
def test_what_cannot_be_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        FrameRule(**wrong)
