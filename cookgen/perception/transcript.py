"""What a recogniser heard, made good: words whose times hold, and apart from them what is no word that was spoken.

    heard = repaired(recogniser's items, duration_s=video.duration_s)

Every recogniser's items pass here, so that it does not matter which one listened. Nothing is dropped: what a
recogniser invents (loops), names (music) or itself calls improbable stays in its place as `Unspoken`, with the reason.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

MIN_WORD_S = 0.02  # Whisper's own time resolution
# A phrase that comes this often in a row is a loop: a cook says "stir, stir, stir", Whisper "thank you" for minutes.
LOOP_TIMES = 4
LOOP_WORDS = 8  # and the run is at least this long, so that one word must come eight times
MAX_PHRASE = 12
MAX_MARK = 6  # words in a mark such as "(upbeat music playing)"
MAX_SONG_S = 60.0  # from one note to the next: beyond it they are not a pair
_MARKS = {"[": "]", "(": ")", "*": "*"}
_NOTES = "♪♫♩♬"
# What round brackets and asterisks must name: a recogniser also writes "(optional)" for what was spoken.
_SOUNDS = re.compile(
    "music|song|sing|instrumental|melody|applau|clap|cheer|laugh|chuckl|giggl|cough|sigh|sniff|breath|gasp|sizzl|clatter"
    "|clang|beep|buzz|noise|sound|silence|inaudible|indistinct|foreign|static",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class TimedWord:
    """A word in [start_s, end_s), with the recogniser's probability, 0 to 1."""

    text: str
    start_s: float
    end_s: float
    probability: float


class Doubt(StrEnum):
    """Why text is taken for unspoken."""

    MUSIC = "music"  # it names a sound, [Music], or is sung between notes
    REPEATED = "repeated"  # the recogniser says it again and again; the first round stays
    UNLIKELY = "unlikely"  # the recogniser doubts it itself, or puts it where no voice is


@dataclass(frozen=True)
class Unspoken:
    """Text that a recogniser gave and nobody spoke, as far as can be told: a loop, music, or what is improbable."""

    reason: Doubt
    text: str
    start_s: float
    end_s: float


Heard = Sequence[TimedWord | Unspoken]  # in the order of the sound


def repaired(heard: Iterable[TimedWord | Unspoken], *, duration_s: float) -> list[TimedWord | Unspoken]:
    """The same items in the same order, words with times that hold; loops and marks of music are Unspoken.

    Of a loop the first round stays, for that may have been said. Unspoken neighbours of one reason are one item. The
    words are those that `in_order` gives. Blank items go. Empty where duration_s is not positive.
    """
    items = [*_joined(_without_loops(_without_marks([item for item in heard if item.text.strip()])))]
    words = in_order([item for item in items if isinstance(item, TimedWord)], duration_s=duration_s)
    result: list[TimedWord | Unspoken] = []
    num_words, reached_s = 0, 0.0
    for item in items if duration_s > 0 else ():
        if isinstance(item, TimedWord):
            result.append(words[num_words])
            num_words += 1
        else:
            latest_s = words[num_words].start_s if num_words < len(words) else duration_s
            start_s = _within(item.start_s, reached_s, latest_s)
            result.append(replace(item, start_s=start_s, end_s=_within(item.end_s, start_s, duration_s)))
        reached_s = result[-1].start_s
    return result


def in_order(words: Iterable[TimedWord], *, duration_s: float) -> list[TimedWord]:
    """The same words, blank ones dropped, with times that hold: 0 <= start < end <= next start, all within duration_s.

    Word order is trusted, times are not: one that is missing (not finite) is put between its neighbours, one that runs
    backwards or overlaps is moved no further than needed. Each word gets at least 20 ms, or its even share where the
    time is too short for that. Probabilities are brought into [0, 1]. Empty where duration_s is not positive.
    """
    kept = interpolated([word for word in words if word.text.strip()], start_s=0.0, end_s=duration_s)
    if not kept or not duration_s > 0:
        return []
    step = min(MIN_WORD_S, duration_s / len(kept))
    starts: list[float] = []
    for index, word in enumerate(kept):
        earliest = starts[-1] + step if starts else 0.0
        latest = duration_s - step * (len(kept) - index)
        starts.append(max(earliest, min(word.start_s, latest)) if starts else max(0.0, min(word.start_s, latest)))
    result = []
    for word, start, limit in zip(kept, starts, [*starts[1:], duration_s], strict=True):
        probability = min(1.0, max(0.0, word.probability)) if math.isfinite(word.probability) else 0.0
        result.append(TimedWord(word.text, start, min(limit, max(word.end_s, start + step)), probability))
    return result


def interpolated(words: Sequence[TimedWord], *, start_s: float, end_s: float) -> list[TimedWord]:
    """The same words; those without a time share the time between their neighbours, or start_s and end_s, evenly.

    A word that lacks one of its two times keeps the other: it begins where the one before ends, and ends where the
    next begins.
    """
    shares: list[tuple[int, float]] = []  # how many words share the time up to the next known start, and that start
    num_sharing, after_s = 1, end_s
    for word in reversed(words):
        shares.append((num_sharing, after_s))
        num_sharing, after_s = (1, word.start_s) if math.isfinite(word.start_s) else (num_sharing + 1, after_s)
    result: list[TimedWord] = []
    before_s = start_s
    for word, (num_sharing, after_s) in zip(words, reversed(shares), strict=True):
        start = word.start_s if math.isfinite(word.start_s) else before_s
        share_s = max(0.0, after_s - start) / num_sharing
        result.append(replace(word, start_s=start, end_s=word.end_s if math.isfinite(word.end_s) else start + share_s))
        before_s = result[-1].end_s
    return result


def _within(time_s: float, least_s: float, most_s: float) -> float:
    return min(max(time_s, least_s), most_s) if math.isfinite(time_s) else least_s


def _without_marks(items: Heard) -> Heard:
    """Marks of sounds, "[Music]", "(laughs)", "♪ la la ♪", are no words: nobody speaks a bracket."""
    result: list[TimedWord | Unspoken] = []
    index = 0
    while index < len(items):
        item = items[index]
        length = _mark_length(items, index) if isinstance(item, TimedWord) else 0
        if length:
            result.append(_unspoken(Doubt.MUSIC, items[index : index + length]))
        else:
            result.append(item)
        index += length or 1
    return result


def _mark_length(items: Heard, first: int) -> int:
    """How many items from here on are one mark; 0 where none begins."""
    opening = items[first].text.strip()[0]
    if opening in _NOTES:
        return _sung(items, first)
    if opening not in _MARKS:
        return 0
    for length in range(1, min(MAX_MARK, len(items) - first) + 1):
        if not isinstance(items[first + length - 1], TimedWord):
            break
        text = " ".join(item.text.strip() for item in items[first : first + length]).rstrip(".,;:!?")
        if len(text) > 1 and text.endswith(_MARKS[opening]):
            return length if opening == "[" or _SOUNDS.search(text) else 0
    return 0


def _sung(items: Heard, first: int) -> int:
    """From a note to the next one within a minute, what is sung included; a note that stands alone is one item."""
    for length, item in enumerate(items[first:], 1):
        if not isinstance(item, TimedWord) or not item.start_s - items[first].start_s <= MAX_SONG_S:
            break
        text = item.text.strip()
        if text[-1] in _NOTES and (length > 1 or len(text.strip(_NOTES)) > 0):
            return length
    return 1


def _without_loops(items: Heard) -> Heard:
    """All rounds of a loop but the first are Unspoken."""
    result: list[TimedWord | Unspoken] = []
    plain = [_plain(item.text) if isinstance(item, TimedWord) else None for item in items]
    index = 0
    while index < len(items):
        phrase, total = _loop(plain, index)
        if total:
            result += items[index : index + phrase]
            result.append(_unspoken(Doubt.REPEATED, items[index + phrase : index + total]))
        else:
            result.append(items[index])
        index += total or 1
    return result


def _loop(plain: Sequence[str | None], first: int) -> tuple[int, int]:
    """(words of the phrase, words of the whole loop) that begins here; (0, 0) where none does."""
    if plain[first] is None:
        return 0, 0
    for phrase in range(1, MAX_PHRASE + 1):
        end = first + phrase
        while end < len(plain) and plain[end] is not None and plain[end] == plain[end - phrase]:
            end += 1
        if end - first >= max(LOOP_TIMES * phrase, LOOP_WORDS):
            return phrase, end - first
    return 0, 0


def _plain(text: str) -> str:
    """A word without its case and marks; one of marks alone as it is."""
    return re.sub(r"\W", "", text.casefold()) or text


def _joined(items: Heard) -> Iterator[TimedWord | Unspoken]:
    """Unspoken neighbours of one reason as one."""
    for reason, group in itertools.groupby(items, lambda item: item.reason if isinstance(item, Unspoken) else None):
        if reason is None:
            yield from group
        else:
            yield _unspoken(reason, list(group))


def _unspoken(reason: Doubt, items: Heard) -> Unspoken:
    return Unspoken(reason, " ".join(item.text.strip() for item in items), items[0].start_s, items[-1].end_s)
