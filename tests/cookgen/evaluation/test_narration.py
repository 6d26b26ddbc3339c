"""Scores of speech and actions: hand-checked cases, laws, and an exhaustive search beside them."""

from __future__ import annotations

import math
from functools import cache
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cookgen.evaluation.narration import ActionScores, WordErrors, action_scores, spoken_words, word_errors
from cookgen.matching import overlap


@pytest.mark.parametrize(
    ("said", "heard", "errors"),
    [
        ("crack the eggs", "crack the eggs", (0, 0, 0, 3)),
        ("Crack the eggs!", "crack, the EGGS", (0, 0, 0, 3)),
        ("crack the eggs", "crack eggs", (0, 1, 0, 3)),
        ("crack the eggs", "crack all the eggs", (0, 0, 1, 3)),
        ("mix the batter", "mix the matter", (1, 0, 0, 3)),
        ("a b c d", "b c d e", (0, 1, 1, 4)),
        ("one two", "three four five", (2, 0, 1, 2)),
        ("", "", (0, 0, 0, 0)),
        ("stir it", "", (0, 2, 0, 2)),
    ],
)
def test_word_errors_by_hand(said: str, heard: str, errors: tuple[int, int, int, int]) -> None:
    assert word_errors(said, heard) == WordErrors(*errors)


def test_the_rate_is_edits_a_word_of_the_reference() -> None:
    assert word_errors("mix the batter well", "mix matter well").rate == 0.5
    assert word_errors("mix", "mix it all up").rate == 3
    assert word_errors("", "").rate == 0
    assert math.isnan(word_errors("", "noise").rate)
    assert (word_errors("a b", "a") + word_errors("a b", "a b c c")).rate == 0.75


def test_words_as_they_sound() -> None:
    assert spoken_words("Don’t  pre-heat: 'two' pans_3, crème brûlée… ") == [
        "don't",
        "pre",
        "heat",
        "two",
        "pans",
        "3",
        "crème",
        "brûlée",
    ]


def textbook(said: list[str], heard: list[str]) -> int:
    @cache
    def distance(i: int, j: int) -> int:
        if not i or not j:
            return i + j
        return min(
            distance(i - 1, j) + 1, distance(i, j - 1) + 1, distance(i - 1, j - 1) + (said[i - 1] != heard[j - 1])
        )

    return distance(len(said), len(heard))


@given(said=st.lists(st.sampled_from("abcd"), max_size=12), heard=st.lists(st.sampled_from("abcd"), max_size=12))
def test_word_errors_are_the_edit_distance(said: list[str], heard: list[str]) -> None:
    errors = word_errors(" ".join(said), " ".join(heard))
    assert errors.substitutions + errors.deletions + errors.insertions == textbook(said, heard)
    assert min(errors.substitutions, errors.deletions, errors.insertions) >= 0
    assert len(said) - errors.deletions + errors.insertions == len(heard)


def test_an_action_is_found_where_time_and_meaning_agree() -> None:
    true, found = [(0.0, 4.0), (5.0, 9.0), (10.0, 14.0)], [(5.0, 9.0), (0.0, 3.0), (11.0, 30.0), (40.0, 41.0)]
    same = np.ones((3, 4))
    assert action_scores(true, found, same) == ActionScores(num_true=3, num_found=4, num_hits=2)
    same[1, 0] = 0.6  # not above
    assert action_scores(true, found, same).num_hits == 1
    scores = ActionScores(4, 2, 1)
    assert (scores.precision, scores.recall, scores.f1) == (0.5, 0.25, 1 / 3)


def test_a_found_action_counts_for_one_true_one() -> None:
    assert action_scores([(0, 4), (0, 4)], [(0, 4)], np.ones((2, 1))).num_hits == 1
    assert action_scores([(0, 4)], [(0, 4), (0, 4)], np.ones((1, 2))).num_hits == 1


def test_nothing_to_find() -> None:
    none = action_scores([], [], [])
    assert (none.precision, none.recall, none.f1) == (1, 1, 1)
    assert action_scores([], [(0, 1)], np.ones((0, 1))).f1 == 0
    assert action_scores([(0, 1)], [], []).f1 == 0
    with pytest.raises(ValueError, match="cosines_TF"):
        action_scores([(0, 1)], [(0, 1)], np.ones((2, 1)))


_SPANS = st.lists(st.tuples(st.integers(0, 8), st.integers(1, 5)).map(lambda s: (s[0], s[0] + s[1])), max_size=5)


@given(true=_SPANS, found=_SPANS, data=st.data())
def test_hits_are_as_many_as_any_uncrossed_pairing_has(
    true: list[tuple[int, int]], found: list[tuple[int, int]], data: st.DataObject
) -> None:
    row = st.lists(st.sampled_from([0.2, 0.9]), min_size=len(found), max_size=len(found))
    cosines = np.array(data.draw(st.lists(row, min_size=len(true), max_size=len(true)))).reshape(len(true), len(found))
    scores = action_scores(true, found, cosines)
    in_time = (
        sorted(range(len(true)), key=lambda t: (*true[t], t)),
        sorted(range(len(found)), key=lambda f: (*found[f], f)),
    )

    def is_hit(t: int, f: int) -> bool:
        return overlap(true[t], found[f])[1] > 0.3 and cosines[t, f] > 0.6

    best = 0
    for subset in range(2 ** len(found)):
        columns = [f for place, f in enumerate(in_time[1]) if subset >> place & 1]
        best = max(best, len(columns) if _fits(in_time[0], columns, is_hit) else 0)
    assert scores.num_hits == best
    order = data.draw(st.sampled_from(list(permutations(range(len(found))))))
    assert action_scores(true, [found[f] for f in order], cosines[:, list(order)]).num_hits >= 0


def _fits(rows: list[int], columns: list[int], is_hit: object) -> bool:
    """Whether all columns, in their order, can be paired with rows in theirs; the earliest row is always as good."""
    place = 0
    for column in columns:
        while place < len(rows) and not is_hit(rows[place], column):  # type: ignore[operator]
            place += 1
        if place == len(rows):
            return False
        place += 1
    return True
