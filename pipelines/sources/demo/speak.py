"""Narration by eSpeak NG, called in this process through ctypes: the sound, and when each word is heard.

The library is that of the package espeakng-loader, else the system's. It keeps its state in globals: one caller at a
time, and the same sentences in the same order from a fresh process for the same samples.
"""

from __future__ import annotations

import ctypes
import ctypes.util
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from cookgen.errors import InputError

_SYNCHRONOUS_RETRIEVAL = 2  # espeak_AUDIO_OUTPUT: the callback gets the samples, espeak_Synth returns when all is said
_DONT_EXIT = 0x8000  # espeakINITIALIZE_DONT_EXIT: report a missing voice folder instead of ending the process
_UTF8 = 1
_EVENT_LIST_TERMINATED, _EVENT_WORD = 0, 1
_RATE, _PITCH, _RANGE = 1, 3, 4  # espeak_PARAMETER
_SILENT = 200  # of 32767: below this nothing is heard


class _EventId(ctypes.Union):
    _fields_ = (("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8))


class _Event(ctypes.Structure):
    """espeak_EVENT of speak_lib.h."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),  # of the word's first character, counted from 1
        ("length", ctypes.c_int),  # of the word, in characters
        ("audio_position", ctypes.c_int),  # milliseconds
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _EventId),
    )


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


@dataclass(frozen=True)
class Voice:
    """How eSpeak speaks: voice name, words a minute, pitch and its range (0-100)."""

    name: str = "en-us"
    rate: int = 140
    pitch: int = 45
    pitch_range: int = 55


@dataclass(frozen=True)
class SpokenWord:
    """A word as it stands in the text, punctuation included, and when it is heard, in seconds; the end is exclusive."""

    text: str
    start_s: float
    end_s: float


@dataclass(frozen=True)
class Speech:
    """A spoken sentence: float32 mono samples in [-1, 1] from the first sound to the last, and its words."""

    samples: np.ndarray
    rate_hz: int
    words: tuple[SpokenWord, ...]

    @property
    def duration_s(self) -> float:
        return len(self.samples) / self.rate_hz


def speak(sentence: str, voice: Voice = Voice()) -> Speech:
    """Says one ASCII sentence.

    Raises InputError where there is no eSpeak NG library, or where it does not know the voice.
    """
    library, rate_hz = _library()
    if library.espeak_SetVoiceByName(voice.name.encode()) != 0:
        raise InputError(f"eSpeak NG has no voice {voice.name!r}; its installation lacks it: set up again")
    for parameter, value in ((_RATE, voice.rate), (_PITCH, voice.pitch), (_RANGE, voice.pitch_range)):
        library.espeak_SetParameter(parameter, value, 0)

    blocks: list[np.ndarray] = []
    starts: list[tuple[int, int]] = []  # a word's first character and first millisecond

    def receive(wav: ctypes._Pointer[ctypes.c_short], count: int, events: ctypes._Pointer[_Event]) -> int:
        if wav and count > 0:
            blocks.append(np.ctypeslib.as_array(wav, shape=(count,)).copy())
        index = 0
        while events[index].type != _EVENT_LIST_TERMINATED:
            if events[index].type == _EVENT_WORD:
                starts.append((events[index].text_position - 1, events[index].audio_position))
            index += 1
        return 0

    callback = _Callback(receive)  # held by this frame for as long as the library may call it
    library.espeak_SetSynthCallback(callback)
    text = sentence.encode("ascii")
    library.espeak_Synth(text, len(text) + 1, 0, 1, 0, _UTF8, None, None)
    samples = np.concatenate(blocks).astype(np.float32) / 32768 if blocks else np.zeros(0, np.float32)
    return _trimmed(samples, rate_hz, sentence, starts)


def _trimmed(samples: np.ndarray, rate_hz: int, sentence: str, starts: list[tuple[int, int]]) -> Speech:
    """Without the silence at both ends; a word ends with its last sound before the next word begins."""
    heard = np.flatnonzero(np.abs(samples) > _SILENT / 32768)
    if not len(heard):
        return Speech(np.zeros(0, np.float32), rate_hz, ())
    first, last = int(heard[0]), int(heard[-1]) + 1
    begins: dict[int, int] = {}  # by the word's first character: its first sample
    for position, milliseconds in starts:
        # One word between blanks may make several events ("half-inch", "12"): the first one counts.
        begin = sentence.rfind(" ", 0, position + 1) + 1
        begins.setdefault(begin, max(first, milliseconds * rate_hz // 1000))
    words = []
    spans = sorted(begins.items())
    for (begin, start), (following, limit) in zip(spans, [*spans[1:], (len(sentence), last)], strict=True):
        inside = heard[(heard >= start) & (heard < limit)]
        end = int(inside[-1]) + 1 if len(inside) else limit
        text = sentence[begin:following].strip()
        words.append(SpokenWord(text, (start - first) / rate_hz, (end - first) / rate_hz))
    return Speech(samples[first:last], rate_hz, tuple(words))


@cache
def _library() -> tuple[ctypes.CDLL, int]:
    """The initialised library and its sample rate; the package's where the system has none."""
    tried = []
    for path, data in _candidates():
        try:
            library = ctypes.CDLL(path)
        except OSError as error:
            tried.append(f"{path}: {error}")
            continue
        library.espeak_Synth.argtypes = (
            ctypes.c_char_p,
            ctypes.c_size_t,
            ctypes.c_uint,
            ctypes.c_int,
            ctypes.c_uint,
            ctypes.c_uint,
            ctypes.c_void_p,
            ctypes.c_void_p,
        )
        rate_hz = library.espeak_Initialize(_SYNCHRONOUS_RETRIEVAL, 0, data, _DONT_EXIT)
        if rate_hz > 0:
            return library, rate_hz
        tried.append(f"{path}: it could not be initialised")
    raise InputError(
        "no eSpeak NG library for the demo's narration; install the package espeakng-loader "
        f"or the system's libespeak-ng1 ({'; '.join(tried) or 'nothing found'})"
    )


def _candidates() -> list[tuple[str, bytes | None]]:
    """Libraries with their data folders. The package comes first: being pinned, it always sounds the same."""
    found: list[tuple[str, bytes | None]] = []
    try:
        import espeakng_loader

        found.append((espeakng_loader.get_library_path(), str(Path(espeakng_loader.get_data_path())).encode()))
    except (ImportError, RuntimeError):
        pass
    system = ctypes.util.find_library("espeak-ng")
    if system:
        found.append((system, None))
    return found
