"""Which words of a recipe's sentence count, and which of them are food."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.recipe_words import _FOODS, _PRODUCTS, FOODS, PRODUCTS, content_words, stem


@pytest.mark.parametrize(
    "words",
    [
        "onion onions",
        "chop chops chopped chopping",
        "slice slices sliced slicing",
        "fry fries fried frying",
        "mix mixes mixed mixing",
        "tomato tomatoes",
        "berry berries",
        "add adds added adding",
        "cheese cheeses",
        "boil boils boiled boiling",
        "grill grilled grilling",
    ],
)
def test_forms_of_a_word_meet(words: str) -> None:
    assert len({stem(word) for word in words.split()}) == 1


@pytest.mark.parametrize(("one", "other"), [("bread", "breed"), ("seed", "sea"), ("spring", "spray"), ("red", "ring")])
def test_short_words_are_no_endings(one: str, other: str) -> None:
    assert stem(one) != stem(other)
    assert len(stem(one)) >= 3


def test_what_is_left_of_a_sentence() -> None:
    assert content_words("Now add 2 chopped onions to the pan, and stir!") == set(
        map(stem, "chop onion pan stir add".split())
    )
    assert content_words("so that is it, you know?") == {"know"}
    assert content_words("") == content_words("12 … !") == frozenset()


@given(st.text())
def test_any_text_is_read(text: str) -> None:
    assert content_words(text) == content_words(text.upper()) or not text.isascii()


def test_the_lists_do_not_overlap() -> None:
    assert not FOODS & PRODUCTS
    assert sorted(set(_FOODS)) == _FOODS and sorted(set(_PRODUCTS)) == _PRODUCTS


def test_most_steps_that_people_wrote_name_food(data: Path) -> None:
    file = data / "annotations" / "youcook2" / "youcookii_annotations_trainval.json"
    entries = json.loads(file.read_text())["database"].values()
    sentences = [item["sentence"] for entry in entries for item in entry["annotations"]]
    named = sum(bool(content_words(sentence) & (FOODS | PRODUCTS)) for sentence in sentences)
    assert 0.8 < named / len(sentences) < 1
