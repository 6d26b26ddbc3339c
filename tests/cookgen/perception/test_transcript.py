"""What every recogniser's words go through: times that hold, loops, marks of music; nothing is lost."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cookgen.perception.transcript import (
    LOOP_TIMES,
    LOOP_WORDS,
    Doubt,
    TimedWord,
    Unspoken,
    in_order,
    interpolated,
    repaired,
)

times = st.one_of(st.floats(-5, 40), st.sampled_from([math.nan, math.inf, -math.inf, 0.0]))
texts = st.sampled_from(
    ["a", "stir", "Stir,", " ", "", "[Music]", "[sad", "music]", "♪", "♪la", "(laughs)", "350", "*"]
)
spoken = st.builds(TimedWord, texts, times, times, st.floats())
unspoken = st.builds(Unspoken, st.sampled_from([Doubt.MUSIC, Doubt.UNLIKELY]), texts, times, times)


def said(text: str, *, step_s: float = 0.5) -> list[TimedWord]:
    return [TimedWord(word, n * step_s, (n + 1) * step_s, 0.9) for n, word in enumerate(text.split())]


def kept(text: str) -> tuple[str, list[tuple[Doubt, str]]]:
    items = repaired(said(text), duration_s=1000)
    words = " ".join(item.text for item in items if isinstance(item, TimedWord))
    return words, [(item.reason, item.text) for item in items if isinstance(item, Unspoken)]


@given(heard=st.lists(st.one_of(spoken, unspoken), max_size=30), duration_s=st.floats(0.001, 30))
def test_nothing_is_lost_and_times_hold_whatever_comes(heard: list[TimedWord | Unspoken], duration_s: float) -> None:
    items = repaired(heard, duration_s=duration_s)
    assert " ".join(item.text for item in items).split() == " ".join(item.text for item in heard).split()
    previous_end = reached = 0.0
    for item in items:
        assert 0 <= item.start_s <= item.end_s <= duration_s + 1e-9
        assert item.start_s >= reached - 1e-9
        reached = item.start_s
        if isinstance(item, TimedWord):
            assert previous_end - 1e-9 <= item.start_s < item.end_s and 0 <= item.probability <= 1
            previous_end = item.end_s
    for before, after in itertools.pairwise(items):
        assert not (isinstance(before, Unspoken) and isinstance(after, Unspoken) and before.reason is after.reason)


@given(words=st.lists(spoken, max_size=30), duration_s=st.floats(0.001, 30))
def test_words_are_in_order_whatever_comes(words: list[TimedWord], duration_s: float) -> None:
    placed = in_order(words, duration_s=duration_s)
    assert [word.text for word in placed] == [word.text for word in words if word.text.strip()]
    previous_end = 0.0
    for word in placed:
        assert previous_end - 1e-9 <= word.start_s < word.end_s <= duration_s + 1e-9
        assert 0 <= word.probability <= 1
        previous_end = word.end_s


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0.03, 2)), min_size=1, max_size=20))
def test_good_times_stay(steps: list[tuple[float, float]]) -> None:
    words, now = [], 0.0
    for pause, length in steps:
        words.append(TimedWord("w", now + pause, now + pause + length, 0.5))
        now += pause + length
    for before, after in zip(words, in_order(words, duration_s=now), strict=True):
        assert (after.start_s, after.end_s) == pytest.approx((before.start_s, before.end_s), abs=1e-9)


@given(known=st.lists(st.booleans(), min_size=1, max_size=12), data=st.data())
def test_words_without_times_share_the_time_between_their_neighbours(known: list[bool], data: st.DataObject) -> None:
    steps = data.draw(st.lists(st.floats(0.1, 3), min_size=len(known) + 1, max_size=len(known) + 1))
    edges = [sum(steps[: n + 1]) for n in range(len(known) + 1)]
    words = [
        TimedWord("w", edges[n] if is_known else math.nan, edges[n + 1] if is_known else math.nan, 0.5)
        for n, is_known in enumerate(known)
    ]
    found = interpolated(words, start_s=edges[0], end_s=edges[-1])
    assert [w for w, is_known in zip(found, known, strict=True) if is_known] == [
        w for w, is_known in zip(words, known, strict=True) if is_known
    ]
    first = 0
    while first < len(known):
        end = first
        while end < len(known) and not known[end]:
            end += 1
        shares = [word.end_s - word.start_s for word in found[first:end]]
        if shares:  # a gap: filled from neighbour to neighbour, evenly
            assert shares == pytest.approx([(edges[end] - edges[first]) / len(shares)] * len(shares))
            assert (found[first].start_s, found[end - 1].end_s) == pytest.approx((edges[first], edges[end]))
        first = end + 1


def test_a_word_keeps_the_one_time_that_it_has() -> None:
    words = [TimedWord("add", 1.0, 1.5, 1), TimedWord("350", math.nan, 2.5, 1), TimedWord("grams", 2.5, 3.0, 1)]
    assert interpolated(words, start_s=0, end_s=9)[1] == TimedWord("350", 1.5, 2.5, 1)
    words[1] = TimedWord("350", 2.0, math.nan, 1)
    assert interpolated(words, start_s=0, end_s=9)[1] == TimedWord("350", 2.0, 2.5, 1)


@pytest.mark.parametrize(
    ("text", "words", "reason", "gone"),
    [
        ("[Music] stir the pot", "stir the pot", Doubt.MUSIC, "[Music]"),
        ("stir (upbeat music) the pot", "stir the pot", Doubt.MUSIC, "(upbeat music)"),
        ("now *sizzling* stir", "now stir", Doubt.MUSIC, "*sizzling*"),
        ("♪ la la ♪ stir", "stir", Doubt.MUSIC, "♪ la la ♪"),
        ("♪la la♪ stir", "stir", Doubt.MUSIC, "♪la la♪"),
        ("stir ♪ the pot", "stir the pot", Doubt.MUSIC, "♪"),
        ("stir " + "Thank you. " * 20, "stir Thank you.", Doubt.REPEATED, ("Thank you. " * 19).strip()),
        ("no " * 30 + "stir", "no stir", Doubt.REPEATED, ("no " * 29).strip()),
        ("a b c d " * 4 + "a b stir", "a b c d stir", Doubt.REPEATED, "a b c d a b c d a b c d a b"),
    ],
)
def test_loops_and_marks_are_set_apart(text: str, words: str, reason: Doubt, gone: str) -> None:
    assert kept(text) == (words, [(reason, gone)])


@pytest.mark.parametrize(
    "text",
    [
        "stir, stir, stir, stir and stir again",
        "fold it and fold it and fold it",
        "a pinch of salt (optional) and 350 (three fifty) grams",
        "so [ and so on and so forth and so on without an end",
        "2 * 3 is 6 * 1",
    ],
)
def test_what_a_cook_says_stays(text: str) -> None:
    assert kept(text) == (text, [])


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=4), st.integers(1, 30))
def test_a_phrase_is_a_loop_from_so_many_times_on(phrase: list[str], rounds: int) -> None:
    items = repaired(said(" ".join(phrase * rounds)), duration_s=1000)
    shortest = next(n for n in range(1, 5) if all(a == b for a, b in zip(phrase, phrase[n:], strict=False)))
    is_periodic = len(phrase) % shortest == 0
    if not is_periodic:
        return
    is_loop = len(phrase) * rounds >= max(LOOP_TIMES * shortest, LOOP_WORDS)
    assert sum(isinstance(item, TimedWord) for item in items) == (shortest if is_loop else len(phrase) * rounds)


def test_what_is_apart_lies_where_it_was_heard() -> None:
    items = repaired([*said("stir"), Unspoken(Doubt.UNLIKELY, "mm", math.nan, 99.0), *said("now")[:1]], duration_s=10)
    assert [type(item) for item in items] == [TimedWord, Unspoken, TimedWord]
    assert (items[1].start_s, items[1].end_s) == (0.0, 10.0)
