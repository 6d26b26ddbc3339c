"""Subtitle files (WebVTT, SubRip, SBV) as words with times.

One tolerant scanner for the three formats: a line with two times opens a cue, an empty line ends it, and whatever is
outside a cue (header, NOTE, STYLE, numbers, cues whose times are broken) is no speech. Parsers that hold to one format
lose more of real files: webvtt-py takes the number and text of an untimed SubRip cue for speech of the cue before.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cookgen.perception.transcript import TimedWord, in_order

MAX_BYTES = 8 * 2**20  # a day of speech is below 1 MiB
ADJACENT_S = 0.1  # cues no further apart than this can be one rolling text
MIN_REPEAT = 3  # words; fewer in common are chance ("very, very"), unless they are a whole line or cue
MAX_SHOWN = 100  # words; no more fit on a screen

_TIME = r"(?:[0-9]{1,5}:)?[0-9]{1,2}:[0-9]{1,2}(?:[.,][0-9]{1,9})?"
_TIMES = re.compile(rf"\s*({_TIME})\s*(?:-->|,)\s*({_TIME})(?:\s.*)?")
_TIME_TAG = re.compile(rf"<({_TIME})>")
_MARKUP = re.compile(r"</?[A-Za-z][^<>]*>|\{\\[^{}]*\}")  # <c.colour>, <i>, </c>, {\an8}
_NOT_SPEECH = re.compile(r"\[[^\[\]]*\]|[♪♫]+")  # [Music]
_SPOKEN = re.compile(r"[^\W_]|[&%+]")


class SubtitlesError(Exception):
    """A subtitle file that gives no words; the message says why, without the file's name."""


Pieces = list[tuple[float, str]]  # text, and the time from which on it is spoken


@dataclass(frozen=True)
class _Cue:
    start_s: float
    end_s: float
    text: str


def read_subtitles(path: Path, *, duration_s: float) -> list[TimedWord]:
    """The words of a subtitle file, in order, not overlapping, all within [0, duration_s]; probability 1.

    A word gets the share of its cue that its characters are, or lies between the times inside the cue where it has
    them; captions that roll (each cue repeats what the one before shows) say each word once.
    Raises SubtitlesError if the file cannot be read or has no cue with words before duration_s.
    """
    cues = [cue for cue in _cues(_text(path)) if cue.start_s < duration_s]
    words = in_order(_words(cues), duration_s=duration_s)
    if not words:
        raise SubtitlesError(f"no cue with words in the video's {duration_s:.3f} s; mend the file, or remove it")
    return words


def _text(path: Path) -> str:
    """The file's text, whatever its encoding, with plain line ends."""
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise SubtitlesError(f"{size} bytes; subtitles have at most {MAX_BYTES}; remove the file")
        content = path.read_bytes()
    except OSError as error:
        raise SubtitlesError(f"{error.strerror}; make the file readable, or remove it") from error
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        text = content.decode("utf-16", errors="replace")
    elif b"\0" in content[:64]:  # UTF-16 without its mark: Latin text has a zero in every other byte
        text = content.decode("utf-16-be" if content[:1] == b"\0" else "utf-16-le", errors="replace")
    else:
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = content.decode("latin-1")
    return text.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "")


def _cues(text: str) -> list[_Cue]:
    """The cues with a length above zero, by start."""
    cues: list[_Cue] = []
    span: tuple[float, float] | None = None
    held: list[str] = []

    def close() -> None:
        nonlocal span
        if span is not None and span[0] < span[1]:
            cues.append(_Cue(*span, "\n".join(held)))
        span = None
        held.clear()

    for line in text.split("\n"):
        times = _TIMES.fullmatch(line)
        if times or "-->" in line:
            if held and held[-1].strip().isdecimal():  # the number of a cue that no empty line parts from this one
                held.pop()
            close()
            span = (_seconds(times[1]), _seconds(times[2])) if times else None
        elif not line:
            close()
        elif span is not None:
            held.append(line)
    close()
    return sorted(cues, key=lambda cue: cue.start_s)


def _seconds(time: str) -> float:
    seconds = 0.0
    for part in time.replace(",", ".").split(":"):
        seconds = seconds * 60 + float(part)
    return seconds


def _words(cues: Iterable[_Cue]) -> Iterator[TimedWord]:
    spoken: list[tuple[Pieces, float]] = []  # what each cue adds, and its end
    shown_before: list[str] = []
    end_before_s = 0.0
    for cue in cues:
        pieces = _pieces(cue)
        text = "".join(piece for _, piece in pieces)
        shown = _spoken(text)
        if not shown:
            continue
        repeated = _num_repeated(shown_before, text) if cue.start_s <= end_before_s + ADJACENT_S else 0
        shown_before, end_before_s = [word[0] for word in shown], cue.end_s
        if repeated == len(shown):
            continue
        pieces = _without(pieces, shown[repeated].start())
        if spoken and spoken[-1][0][0][0] == pieces[0][0]:  # two speakers at once: one after the other
            others, end_s = spoken.pop()
            others[-1] = (others[-1][0], f"{others[-1][1]} {pieces[0][1]}")
            spoken.append((others + pieces[1:], max(end_s, cue.end_s)))
        else:
            spoken.append((pieces, cue.end_s))
    for index, (pieces, end_s) in enumerate(spoken):
        following_s = spoken[index + 1][0][0][0] if index + 1 < len(spoken) else end_s
        yield from _spread(pieces, min(end_s, following_s))


def _pieces(cue: _Cue) -> Pieces:
    """The cue's text without markup, cut at the times inside it."""
    parts = _TIME_TAG.split(cue.text)
    times = [cue.start_s, *map(_seconds, parts[1::2])]
    return [
        (time, _NOT_SPEECH.sub(" ", html.unescape(_MARKUP.sub("", part))))
        for time, part in zip(times, parts[::2], strict=True)
    ]


def _spoken(text: str) -> list[re.Match[str]]:
    return [word for word in re.finditer(r"\S+", text) if _SPOKEN.search(word[0])]


def _num_repeated(before: list[str], text: str) -> int:
    """How many of the first words are still those that the cue before showed last."""
    shown, line_ends = [], set()
    for line in text.split("\n"):
        shown += [word[0] for word in _spoken(line)]
        line_ends.add(len(shown))
    for count in range(min(len(shown), len(before), MAX_SHOWN), 0, -1):
        is_telling = count >= MIN_REPEAT or count in line_ends or count == len(before)
        if is_telling and before[-count:] == shown[:count]:
            return count
    return 0


def _without(pieces: Pieces, num_characters: int) -> Pieces:
    """The pieces without the first characters of their text; the first piece keeps its time."""
    rest = []
    for time, text in pieces:
        if num_characters < len(text):
            rest.append((time, text[num_characters:]))
        num_characters = max(0, num_characters - len(text))
    return rest


def _spread(pieces: Pieces, end_s: float) -> Iterator[TimedWord]:
    """Each piece's time shared among its words by their characters."""
    # Times outside the cue, or running backwards, are taken for the nearest ones that are possible.
    times = np.minimum(np.maximum.accumulate([time for time, _ in pieces]), end_s).tolist()
    onsets = [0.0]  # of each character that is not a blank, and the end of the last one
    for start, following, (_, text) in zip(times, [*times[1:], end_s], pieces, strict=True):
        count = len("".join(text.split()))
        onsets[-1:] = np.linspace(start, following, count + 1).tolist()
    position = 0
    for word in re.finditer(r"\S+", "".join(text for _, text in pieces)):
        first, position = position, position + len(word[0])
        if _SPOKEN.search(word[0]):
            yield TimedWord(word[0], onsets[first], onsets[position], 1.0)
