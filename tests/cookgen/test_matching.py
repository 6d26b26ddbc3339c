"""The matching rule against an independent enumeration of everything that it chooses from."""

from __future__ import annotations

import itertools
import random
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cookgen.matching import best_matching, overlap, rule_of

WITHIN = Fraction(1, 10**9)


def enumerated(allowed: dict[tuple[int, int], float]) -> list[tuple[int, int]]:
    """The rule word for word: every matching without crossings, exact totals, then the order of preference."""
    matchings = [
        list(chosen)
        for size in range(len(allowed) + 1)
        for chosen in itertools.combinations(sorted(allowed), size)
        if all(a[0] < b[0] and a[1] < b[1] for a, b in itertools.pairwise(chosen))
    ]
    totals = [sum((Fraction(allowed[pair]) for pair in chosen), Fraction(0)) for chosen in matchings]
    near = [m for m, total in zip(matchings, totals, strict=True) if max(totals) - total <= WITHIN]
    return min(near, key=lambda m: (-len(m), m))


def pairs_of(
    weights: st.SearchStrategy[float], side: int, most: int
) -> st.SearchStrategy[dict[tuple[int, int], float]]:
    position = st.integers(0, side - 1)
    return st.dictionaries(st.tuples(position, position), weights, max_size=most)


@settings(max_examples=400, deadline=None)
@given(pairs_of(st.floats(0.2500001, 1), 6, 12))
def test_the_chosen_matching_is_the_best_of_all(allowed: dict[tuple[int, int], float]) -> None:
    assert best_matching(allowed) == enumerated(allowed)


@settings(max_examples=400, deadline=None)
@given(pairs_of(st.sampled_from([0.25, 0.375, 0.5, 0.625, 0.75, 1.0]), 5, 12))
def test_exact_ties_go_to_more_pairs_then_to_the_first_list(allowed: dict[tuple[int, int], float]) -> None:
    assert best_matching(allowed) == enumerated(allowed)


# Multiples of half the tolerance around values whose sums meet (0.3 + 0.3 = 0.6): near-ties that a rule comparing only
# neighbours would let add up past the tolerance.
NEAR = st.builds(
    lambda base, steps: base + steps * 4.1e-10,
    st.sampled_from([0.3, 0.6, 0.9]),
    st.integers(-4, 4),
)


@settings(max_examples=800, deadline=None)
@given(pairs_of(NEAR, 6, 12))
def test_the_tolerance_is_of_the_whole_total(allowed: dict[tuple[int, int], float]) -> None:
    assert best_matching(allowed) == enumerated(allowed)


def test_two_losses_each_within_the_tolerance_are_not_both_taken() -> None:
    # Twice the choice between one pair and two that are 0.6e-9 worse: one such loss may be taken, not both.
    once = {(0, 1): 0.8, (0, 0): 0.4, (1, 1): 0.4 - 0.6e-9}
    twice = once | {(c + 2, a + 2): iou for (c, a), iou in once.items()}
    assert best_matching(once) == [(0, 0), (1, 1)]
    assert best_matching(twice) == [(0, 0), (1, 1), (2, 3)]
    assert best_matching(twice) == enumerated(twice)


def test_the_choice_of_more_pairs_stays_open_behind_other_pairs() -> None:
    # One pair, or two that come later in the list and are 0.6e-9 worse together.
    allowed = {(0, 0): 0.9, (1, 1): 0.9, (2, 3): 0.8, (3, 2): 0.4, (4, 3): 0.4 - 0.6e-9, (5, 5): 0.9}
    assert best_matching(allowed) == [(0, 0), (1, 1), (3, 2), (4, 3), (5, 5)] == enumerated(allowed)


def test_nothing_allowed_chooses_nothing() -> None:
    assert best_matching({}) == []


def test_a_dense_table_of_equal_pairs_takes_the_diagonal() -> None:
    assert best_matching({(c, a): 0.75 for c in range(60) for a in range(60)}) == [(i, i) for i in range(60)]


def plain_dp(allowed: dict[tuple[int, int], float], clips: int, actions: int) -> Fraction:
    """Greatest total by the textbook recurrence over the whole table."""
    best = [[Fraction(0)] * (actions + 1) for _ in range(clips + 1)]
    for c, a in itertools.product(range(clips), range(actions)):
        taken = best[c][a] + Fraction(allowed[c, a]) if (c, a) in allowed else Fraction(0)
        best[c + 1][a + 1] = max(best[c][a + 1], best[c + 1][a], taken)
    return best[clips][actions]


@pytest.mark.parametrize("seed", range(5))
def test_large_tables_reach_the_greatest_total(seed: int) -> None:
    rng = random.Random(seed)
    allowed = {(rng.randrange(40), rng.randrange(40)): rng.uniform(0.25, 1) for _ in range(500)}
    chosen = best_matching(allowed)
    assert all(a[0] < b[0] and a[1] < b[1] for a, b in itertools.pairwise(chosen))
    assert plain_dp(allowed, 40, 40) - sum(Fraction(allowed[pair]) for pair in chosen) <= WITHIN


@pytest.mark.parametrize(
    ("clip", "action", "start_diff_s", "iou"),
    [
        ((0, 4), (0, 4), 0, 1),
        ((0, 4), (2, 6), 2, 1 / 3),
        ((2, 6), (0, 8), 2, 0.5),
        ((0, 4), (4, 8), 4, 0),  # ends are exclusive: touching is no overlap
        ((0, 4), (9, 12), 9, 0),
        ((3, 3), (3, 3), 0, 0),  # no length, no overlap, no division by zero
        ((0, 4), (2, 2), 2, 0),
        ((5, 3), (2, 8), 3, 0),  # an end before its start
    ],
)
def test_overlap(clip: tuple[float, float], action: tuple[float, float], start_diff_s: float, iou: float) -> None:
    assert overlap(clip, action) == (start_diff_s, iou)


@pytest.mark.parametrize(
    ("clip", "action", "rule"),
    [
        ((0, 10), (5, 9.99), None),  # starts exactly 5 s apart
        ((0, 10), (4.9375, 9.75), "start_diff"),  # a little less
        ((0, 8), (1, 3), None),  # iou exactly 0.25
        ((0, 8), (1, 3.0625), "start_diff"),
        ((0, 8), (4, 8), None),  # ends together, iou exactly 0.5
        ((0, 8), (0, 4), "start_diff"),  # iou exactly 0.5 is not sure, but the other branch holds
        ((0, 8), (3, 8), "iou"),
        ((0, 30), (6, 30), "iou"),  # sure of it, however far apart the starts are
        ((0, 4), (1, 6), None),  # ends before the action does
        ((0, 4), (0, 4), "iou"),  # both branches but for the end
    ],
)
def test_all_comparisons_are_strict(clip: tuple[float, float], action: tuple[float, float], rule: str | None) -> None:
    assert rule_of(clip, action) == rule


def test_other_thresholds() -> None:
    assert rule_of((0, 10), (6, 9.5)) is None
    assert rule_of((0, 10), (6, 9.5), max_start_diff_s=7) == "start_diff"
    assert rule_of((0, 8), (3, 8), sure_iou=0.75) is None
    assert rule_of((0, 8), (1, 3), min_iou=0.1875) == "start_diff"
