"""A quiet tune for the video in which nobody speaks: plucked chords over a soft bass, from a seed."""

from __future__ import annotations

from random import Random

import numpy as np

from pipelines.sources.demo.drawing import Floats

_SCALE = (0, 2, 4, 7, 9)  # major pentatonic: no two of its notes clash
_CHORDS = ((0, 4, 7), (9, 12, 16), (5, 9, 12), (7, 11, 14))


def tune(duration_s: float, rate_hz: int, rng: Random) -> Floats:
    """float32 mono samples in [-1, 1], `duration_s` long, fading out at the end."""
    count = round(duration_s * rate_hz)
    sound = np.zeros(count + 4 * rate_hz)
    beat_s = 60 / rng.choice([84, 92, 100, 108])
    root = rng.choice([48, 50, 52, 53, 55])
    for beat in range(int(duration_s / beat_s)):
        chord = _CHORDS[beat // 4 % 4]
        at = beat * beat_s
        if beat % 2 == 0:
            _add(sound, at, rate_hz, _note(root - 12 + chord[0], 1.4, rate_hz, brightness=0.3), 0.20)
        for position, pitch in enumerate(chord):
            _add(sound, at + 0.03 * position, rate_hz, _note(root + 12 + pitch, 1.1, rate_hz, brightness=0.6), 0.08)
        for half in (0.0, 0.5):
            if rng.random() < 0.6:
                pitch = root + 24 + rng.choice(_SCALE)
                _add(sound, at + half * beat_s, rate_hz, _note(pitch, 0.9, rate_hz, brightness=0.8), 0.12)
    sound = sound[:count]
    fade = np.clip((duration_s - np.arange(count) / rate_hz) / 2, 0, 1)
    samples: Floats = np.clip(sound * fade, -1, 1).astype(np.float32)
    return samples


def _note(midi: int, length_s: float, rate_hz: int, *, brightness: float) -> Floats:
    """A plucked string: five harmonics, the higher the sooner gone."""
    time = np.arange(int(length_s * rate_hz)) / rate_hz
    frequency = 440 * 2 ** ((midi - 69) / 12)
    note = np.zeros_like(time)
    for harmonic in range(1, 6):
        note += (
            brightness ** (harmonic - 1)
            * np.sin(2 * np.pi * harmonic * frequency * time)
            * np.exp(-time * 2.5 * harmonic)
        )
    return note * np.minimum(1, time / 0.006) * np.minimum(1, (length_s - time) / 0.05)


def _add(sound: Floats, at_s: float, rate_hz: int, note: Floats, loudness: float) -> None:
    first = round(at_s * rate_hz)
    sound[first : first + len(note)] += note * loudness
