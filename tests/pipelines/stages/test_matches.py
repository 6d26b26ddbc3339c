"""The matches stage: laws that hold for any clips and actions, and a few cases worked out by hand."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cookgen.config import apply_settings
from cookgen.errors import UsageError
from cookgen.matching import overlap, rule_of
from cookgen.records import Action, Clip, Match
from pipelines.stages.matches import STAGE, MatchesConfig, match_actions

CONFIG = MatchesConfig()
HEX = "0" * 64


def clip_of(index: int, start_s: float, end_s: float, *, narrative: str = "test-a") -> Clip:
    return Clip(
        narrative=narrative,
        clip_index=index,
        start_s=start_s,
        end_s=end_s,
        first_pts_s=start_s,
        last_pts_s=start_s,
        num_frames=1,
        fps=25,
        width=64,
        height=64,
        has_audio=False,
        sha256=HEX,
        num_bytes=1,
        keyframe_pts_s=start_s,
        keyframe_sha256=HEX,
        keyframe_num_bytes=1,
    )


def action_of(index: int, start_s: float, end_s: float) -> Action:
    return Action(
        narrative="test-a",
        action_index=index,
        text="stir",
        start_s=start_s,
        end_s=end_s,
        origin="manual",
        raw_text="stir",
    )


def matches(clips: tuple[Clip, ...], actions: tuple[Action, ...], config: MatchesConfig = CONFIG) -> list[Match]:
    return list(match_actions(clips, actions, config=config))


def chosen(rows: list[Match]) -> list[tuple[int, int]]:
    return [(row.clip_index, row.action_index) for row in rows if row.chosen]


# Multiples of 1/16 s below 64: exactly representable, also after a shift, and full of exact ties.
SPANS = st.lists(
    st.tuples(st.integers(0, 300), st.integers(1, 160)).map(lambda s: (s[0] / 16, (s[0] + s[1]) / 16)), max_size=6
)


def rows_of(spans: list[tuple[float, float]], make: type | object) -> tuple:  # type: ignore[type-arg]
    return tuple(make(index, *span) for index, span in enumerate(spans))  # type: ignore[operator]


@settings(max_examples=300, deadline=None)
@given(SPANS, SPANS)
def test_the_rows_are_the_rule_applied_to_every_overlapping_pair(
    clip_spans: list[tuple[float, float]], action_spans: list[tuple[float, float]]
) -> None:
    clips, actions = rows_of(clip_spans, clip_of), rows_of(action_spans, action_of)
    rows = matches(clips, actions)
    expected = []
    for c, a in itertools.product(range(len(clips)), range(len(actions))):
        (cs, ce), (start, end) = clip_spans[c], action_spans[a]
        shared = max(0.0, min(ce, end) - max(cs, start))
        iou = shared / ((ce - cs) + (end - start) - shared)
        allowed = (abs(cs - start) < 5 and ce > end and iou > 0.25) or iou > 0.5
        if iou > 0:
            expected.append(
                (c, a, abs(cs - start), iou, allowed, ("iou" if iou > 0.5 else "start_diff") if allowed else None)
            )
    assert [(r.clip_index, r.action_index, r.start_diff_s, r.iou, r.allowed, r.rule) for r in rows] == expected

    # The chosen ones: against every one-to-one, uncrossed choice among the allowed pairs, in the order of time.
    clip_order = sorted(range(len(clips)), key=lambda c: (*clip_spans[c], c))
    action_order = sorted(range(len(actions)), key=lambda a: (*action_spans[a], a))
    pairs = sorted(
        (clip_order.index(c), action_order.index(a), iou) for c, a, _, iou, allowed, _ in expected if allowed
    )
    if len(pairs) <= 12:
        choices = [
            choice
            for size in range(len(pairs) + 1)
            for choice in itertools.combinations(pairs, size)
            if all(one[0] < two[0] and one[1] < two[1] for one, two in itertools.pairwise(choice))
        ]
        greatest = max(sum(iou for *_, iou in choice) for choice in choices)
        near = [choice for choice in choices if sum(iou for *_, iou in choice) > greatest - 1e-9]
        best = min(near, key=lambda choice: (-len(choice), [pair[:2] for pair in choice]))
        assert set(chosen(rows)) == {(clip_order[c], action_order[a]) for c, a, _ in best}


@settings(max_examples=200, deadline=None)
@given(SPANS, SPANS, st.randoms(use_true_random=False))
def test_the_order_of_the_input_changes_nothing(
    clip_spans: list[tuple[float, float]], action_spans: list[tuple[float, float]], rng: random.Random
) -> None:
    clips, actions = rows_of(clip_spans, clip_of), rows_of(action_spans, action_of)
    shuffled = tuple(rng.sample(clips, len(clips))), tuple(rng.sample(actions, len(actions)))
    assert matches(*shuffled) == matches(clips, actions)


@settings(max_examples=200, deadline=None)
@given(SPANS, SPANS, st.integers(0, 100_000))
def test_a_shift_in_time_changes_nothing(
    clip_spans: list[tuple[float, float]], action_spans: list[tuple[float, float]], shift: int
) -> None:
    later = [[(start + shift / 16, end + shift / 16) for start, end in spans] for spans in (clip_spans, action_spans)]
    assert matches(rows_of(later[0], clip_of), rows_of(later[1], action_of)) == matches(
        rows_of(clip_spans, clip_of), rows_of(action_spans, action_of)
    )


@settings(max_examples=200, deadline=None)
@given(SPANS, SPANS)
def test_the_choice_is_one_to_one_uncrossed_and_allowed(
    clip_spans: list[tuple[float, float]], action_spans: list[tuple[float, float]]
) -> None:
    rows = matches(rows_of(clip_spans, clip_of), rows_of(action_spans, action_of))
    assert all(row.allowed for row in rows if row.chosen)
    in_time = sorted(chosen(rows), key=lambda pair: (*clip_spans[pair[0]], pair[0]))
    told = [(*action_spans[action], action) for _, action in in_time]
    assert len({clip for clip, _ in in_time}) == len(in_time)
    assert all(one < two for one, two in itertools.pairwise(told))


@settings(max_examples=200, deadline=None)
@given(SPANS)
def test_clips_cut_at_the_annotation_meet_their_own_actions(spans: list[tuple[float, float]]) -> None:
    spans = sorted(set(spans))
    rows = matches(rows_of(spans, clip_of), rows_of(spans, action_of))
    if all(one[1] <= two[0] for one, two in itertools.pairwise(spans)):
        assert chosen(rows) == [(i, i) for i in range(len(spans))]
    assert all(row.iou == 1 and row.rule == "iou" for row in rows if row.clip_index == row.action_index)


def test_total_iou_beats_the_greedy_pair() -> None:
    # The greedy choice takes (0, 1) at iou 0.6 and blocks both others; together they are worth more.
    clips = (clip_of(0, 0, 10), clip_of(1, 10, 20))
    actions = (action_of(0, 0, 5), action_of(1, 4, 10))
    rows = matches((clips[0], clip_of(1, 4.5, 12)), actions)
    assert chosen(rows) == [(0, 0), (1, 1)]
    assert chosen(matches(clips[:1], actions)) == [(0, 1)]


def test_without_clips_or_without_actions_there_are_no_rows() -> None:
    assert matches((), (action_of(0, 0, 1),)) == []
    assert matches((clip_of(0, 0, 1),), ()) == []


def test_other_thresholds_change_what_is_allowed_and_not_what_is_measured() -> None:
    clips, actions = (clip_of(0, 0, 10), clip_of(1, 12, 20)), (action_of(0, 1, 4), action_of(1, 13, 18))
    strict = matches(clips, actions, apply_settings(CONFIG, ["min_iou=0.4", "sure_iou=0.9"]))
    loose = matches(clips, actions)
    assert [(r.iou, r.start_diff_s) for r in strict] == [(r.iou, r.start_diff_s) for r in loose]
    assert chosen(loose) == [(0, 0), (1, 1)]
    assert chosen(strict) == [(1, 1)]
    assert strict[1].rule == "start_diff"


@pytest.mark.parametrize("setting", ["min_iou=1.5", "sure_iou=-0.1", "max_start_diff_s=-1", "min_iou=nan"])
def test_a_threshold_that_cannot_be_is_refused(setting: str) -> None:
    with pytest.raises(UsageError, match=setting.split("=")[0]):
        apply_settings(CONFIG, [setting])


def test_the_stage_uses_the_shared_rule() -> None:
    clips, actions = (clip_of(0, 0.1, 7.3),), (action_of(0, 0.7, 6.1),)
    (row,) = matches(clips, actions)
    assert (row.start_diff_s, row.iou) == overlap((0.1, 7.3), (0.7, 6.1))
    assert row.rule == rule_of((0.1, 7.3), (0.7, 6.1))
    assert STAGE.reads == (Clip, Action) and STAGE.writes is Match and STAGE.model(STAGE.config) is None
