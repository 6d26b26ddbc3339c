"""The matching rule: which action is told while which clip is seen. Pure numbers, no models, no dependencies.

The stage applies it, the validator recomputes it. Spans are (start_s, end_s) in seconds, ends exclusive; a span whose
end is not after its start overlaps nothing. Numbers are compared as they are: nothing is rounded before the rule, and
all comparisons are strict. Source: VideoAuteur, section 3.2; FORMAT, "The matching rule".
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from itertools import groupby
from typing import Literal, TypeAlias

MAX_START_DIFF_S = 5.0
MIN_IOU = 0.25
SURE_IOU = 0.5
TOLERANCE = 1e-9  # totals this near to the greatest count as equal to it

Span: TypeAlias = tuple[float, float]
Pair: TypeAlias = tuple[int, int]

# Totals are summed as whole multiples of 2**-64: exact for every iou above 2**-11, so neither the order of the
# summands nor the number of pairs can tip a tie.
_UNIT = 2**64
_TOLERANCE = int(TOLERANCE * _UNIT)

# What can still be reached: (total, number of pairs), totals falling and numbers rising, all totals within the
# tolerance of the first. Nearly always one entry.
_Front: TypeAlias = tuple[tuple[int, int], ...]


def overlap(clip: Span, action: Span) -> tuple[float, float]:
    """(start_diff_s, iou) of two spans: |cs - as| in seconds, and intersection over union in [0, 1]."""
    (clip_start, clip_end), (action_start, action_end) = clip, action
    start_diff_s = abs(clip_start - action_start)
    shared_s = min(clip_end, action_end) - max(clip_start, action_start)
    if shared_s <= 0:
        return start_diff_s, 0.0
    return start_diff_s, shared_s / (max(clip_end, action_end) - min(clip_start, action_start))


def rule_of(
    clip: Span,
    action: Span,
    *,
    max_start_diff_s: float = MAX_START_DIFF_S,
    min_iou: float = MIN_IOU,
    sure_iou: float = SURE_IOU,
) -> Literal["start_diff", "iou"] | None:
    """The branch that allows the pair, None where it is not allowed.

    `iou > sure_iou`, or else `start_diff < max_start_diff_s and ce > ae and iou > min_iou`.
    """
    start_diff_s, iou = overlap(clip, action)
    if iou > sure_iou:
        return "iou"
    if start_diff_s < max_start_diff_s and clip[1] > action[1] and iou > min_iou:
        return "start_diff"
    return None


def best_matching(allowed: Mapping[Pair, float]) -> list[Pair]:
    """The best one-to-one matching without crossings, as (clip, action) pairs in rising order.

    `allowed` maps (clip position, action position) to iou > 0; positions are places in the order (start, end, index).
    The greatest total iou wins; among all matchings whose total is within 1e-9 of it the most pairs, then the
    lexicographically smallest list of (clip position, action position).

    A matching without crossings is a chain rising in both positions. Going down the clips, a staircase over the
    actions keeps the best that any chain can still gather; one walk up the pairs then takes each pair with which the
    best can still be reached. n pairs cost n log n, as long as near-ties of different length are rare.
    """
    pairs = sorted(allowed)
    chains: dict[Pair, _Front] = {}  # the best of all chains that begin with this pair
    stairs = _Stairs()
    for _, row in groupby(reversed(pairs), key=lambda pair: pair[0]):
        fronts = [(pair, stairs.above(pair[1])) for pair in row]  # all of a clip's pairs before any is put in: one each
        for pair, rest in fronts:
            weight = round(allowed[pair] * _UNIT)
            chains[pair] = tuple((weight + total, 1 + count) for total, count in rest)
            stairs.put(pair[1], chains[pair])
    goal = stairs.above(-1)
    least, left = goal[0][0] - _TOLERANCE, goal[-1][1]
    chosen: list[Pair] = []
    for pair in pairs:
        is_after = not chosen or (pair[0] > chosen[-1][0] and pair[1] > chosen[-1][1])
        if is_after and any(total >= least and count >= left for total, count in chains[pair]):
            chosen.append(pair)
            least -= round(allowed[pair] * _UNIT)
            left -= 1
    return chosen


class _Stairs:
    """The best front of all chains put in at an action above a given one: a step function, kept at its steps."""

    def __init__(self) -> None:
        self._steps: list[int] = []  # -action, rising; each step's front holds those of all steps before it
        self._fronts: list[_Front] = []

    def above(self, action: int) -> _Front:
        """The best of what was put in at actions > `action`; nothing at all is a chain of no pairs."""
        step = bisect_left(self._steps, -action)
        return self._fronts[step - 1] if step else ((0, 0),)

    def put(self, action: int, front: _Front) -> None:
        """Adds the chains that begin at `action`."""
        start = bisect_right(self._steps, -action)
        before = self._fronts[start - 1] if start else ((0, 0),)
        merged = _merge(before, front)
        if merged == before:  # something at least as good begins further up, so it is there for all below, too
            return
        if start and self._steps[start - 1] == -action:
            start -= 1
        # The steps from here on hold what is further down. Those that the new front covers go; the walk ends at the
        # first that it does not change, because each step holds at least what the step before it holds.
        steps, fronts = [-action], [merged]
        stop = start
        while stop < len(self._steps):
            step, old = self._steps[stop], self._fronts[stop]
            new = _merge(old, front)
            if new == old:
                break
            if new != fronts[-1]:
                steps.append(step)
                fronts.append(new)
            stop += 1
        self._steps[start:stop] = steps
        self._fronts[start:stop] = fronts


def _merge(one: _Front, other: _Front) -> _Front:
    """The entries of both that no other entry equals or beats in total and number, within the tolerance of the best."""
    if len(one) == len(other) == 1:  # nearly always
        (one_total, one_count), (other_total, other_count) = one[0], other[0]
        if one_total >= other_total and (one_count >= other_count or one_total - other_total > _TOLERANCE):
            return one
        if other_total >= one_total and (other_count >= one_count or other_total - one_total > _TOLERANCE):
            return other
    merged: list[tuple[int, int]] = []
    for total, count in sorted({*one, *other}, key=lambda entry: (-entry[0], -entry[1])):
        if merged and merged[0][0] - total > _TOLERANCE:
            break
        if not merged or count > merged[-1][1]:
            merged.append((total, count))
    return tuple(merged)
