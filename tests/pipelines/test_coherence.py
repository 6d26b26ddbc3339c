"""Numbers of how steps hang together: laws, and cases worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipelines import coherence
from pipelines.coherence import (
    ingredient_continuity,
    nearest_action,
    nearest_elsewhere,
    repeated_steps,
    step_order,
)


def unit_vectors(num: int, seed: int = 0, width: int = 16) -> NDArray[np.float32]:
    rows = np.random.default_rng(seed).standard_normal((num, width)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_order_of_captions_that_say_what_the_actions_say() -> None:
    actions = unit_vectors(6)
    assert step_order(actions, actions) == 1
    assert step_order(actions, actions[::-1]) == 0
    same = np.repeat(unit_vectors(1), 6, axis=0)
    assert step_order(actions, same) == step_order(same, actions) == 0.5
    assert step_order(actions[:1], actions[:1]) is None


def test_a_swapped_pair_of_captions_is_one_pair() -> None:
    actions = np.eye(5, dtype=np.float32)
    assert step_order(actions, actions[[0, 2, 1, 3, 4]]) == pytest.approx(9 / 10)


@settings(deadline=None, max_examples=50)
@given(st.integers(2, 8), st.integers(0, 1000))
def test_the_other_order_is_the_rest(num: int, seed: int) -> None:
    actions, captions = unit_vectors(num, seed), unit_vectors(num, seed + 1)
    score = step_order(actions, captions)
    backwards = step_order(actions, captions[::-1])
    assert score is not None and 0 <= score <= 1
    assert backwards == pytest.approx(1 - score)


def test_repeats_are_counted_once_each() -> None:
    actions = np.eye(4, 8, dtype=np.float32)
    assert repeated_steps(actions, same=0.9) == 0
    assert nearest_action(actions) == [0, 0, 0, 0]
    thrice = actions[[0, 1, 0, 0]]
    assert repeated_steps(thrice, same=0.9) == 0.5  # the second and the third time
    assert nearest_action(thrice) == [1, 0, 1, 1]
    assert repeated_steps(actions[:1], same=0.9) is None and nearest_action(actions[:1]) == []


def test_near_duplicates_hang_on_the_bound() -> None:
    angle = np.arccos(0.8)
    actions = np.array([[1, 0], [np.cos(angle), np.sin(angle)]], np.float32)
    assert repeated_steps(actions, same=0.79) == 0.5 and repeated_steps(actions, same=0.81) == 0


@pytest.mark.parametrize(
    ("actions", "score"),
    [
        (["Chop the onions", "Fry the onion", "Add salt to the onions"], 1.0),
        (["Chop the onions", "Slice the bread", "Boil the rice"], 0.0),
        (["Chop the onions", "Stir well", "Fry the onions"], 1.0),  # a step without food says nothing
        (["Mix flour and water", "Knead the dough", "Roll the dough out"], 1.0),
        (["Knead the dough", "Chop the carrots"], 0.0),
        (["Whisk the eggs", "Chop tomatoes", "Pour the eggs over the tomatoes"], 0.5),
        (["Heat the pan", "Stir", "Wait"], None),
        (["Chop the onions"], None),
        ([], None),
    ],
)
def test_food_goes_on_from_step_to_step(actions: list[str], score: float | None) -> None:
    assert ingredient_continuity(actions) == score


@settings(deadline=None, max_examples=30)
@given(st.lists(st.sampled_from(["train", "val", "test"]), min_size=1, max_size=12), st.integers(0, 1000))
def test_the_nearest_in_another_split_is_that_of_brute_force(splits: list[str], seed: int) -> None:
    vectors = unit_vectors(len(splits), seed)
    found = nearest_elsewhere(vectors, splits)
    if len(set(splits)) == 1:
        assert found == []
        return
    for i, score in enumerate(found):
        others = [float(vectors[i] @ vectors[j]) for j in range(len(splits)) if splits[j] != splits[i]]
        assert score == pytest.approx(max(others), abs=1e-6)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, splits = unit_vectors(50), ["train"] * 40 + ["val"] * 10
    whole = nearest_elsewhere(vectors, splits)
    monkeypatch.setattr(coherence, "_BLOCK", 7)
    assert nearest_elsewhere(vectors, splits) == pytest.approx(whole, abs=1e-6)
