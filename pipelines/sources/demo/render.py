"""A recipe as a video file and its ground truth: timing, narration, frames, and one ffmpeg child that encodes them.

The sentences are spoken first: a shot lasts as long as its sentence, with a short lead and tail. So the truth (shots,
words, actions) is what was rendered, not what was measured afterwards.
"""

from __future__ import annotations

import errno
import subprocess
import tempfile
import threading
import wave
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Literal

import numpy as np
from PIL import Image

from cookgen.errors import OutputError
from pipelines.ffmpeg import ChildKilledError, ffmpeg_exe, file_url
from pipelines.sources.demo.drawing import CANVAS, Floats
from pipelines.sources.demo.music import tune
from pipelines.sources.demo.scenes import Animate, cook_of, scene
from pipelines.sources.demo.script import Recipe, Shot
from pipelines.sources.demo.speak import Speech, Voice, speak

Sound = Literal["narration", "music", "none"]

WIDTH, HEIGHT = 640, 360
RATE_HZ = 22050  # of the track before encoding: what eSpeak speaks
MIN_SHOT_S = 4.0
DISSOLVE_S = 0.8
TIMEOUT_S = 900.0


@dataclass(frozen=True)
class Take:
    """A shot on the time line, in frames; its sentence and when that begins, in seconds of the video."""

    shot: Shot
    start: int
    end: int
    speech: Speech | None
    speech_s: float


def render_video(
    path: Path, recipe: Recipe, *, seed: tuple[int, int], sound: Sound, fps: int, dissolve: bool
) -> dict[str, Any]:
    """Writes the video to `path` (MP4: H.264 of 640 x 360, AAC) and returns its ground truth in seconds.

    `seed` and the other arguments fix every byte with one ffmpeg build. The truth: `shots` [start, end], `words` and
    `actions` {text, start_s, end_s}, `captions` one a shot, `dissolves` [start, end]; a dissolve's shots meet in its
    middle. Raises OutputError where ffmpeg cannot write, OSError where the disk is full.
    """
    takes = list(_takes(recipe, Random(f"{seed}"), sound, fps))
    joint = len(takes) // 2 if dissolve and len(takes) > 1 else None  # the take that is dissolved into
    frames = _frames(takes, seed, fps, joint)
    # Beside the video, where the next run finds what a killed one left.
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".tmp-", suffix=".wav") as scratch:
        track = None
        if sound != "none":
            track = Path(scratch.name)
            _write_wave(track, _track(takes, fps, sound, Random(f"{seed} music")))
        _encode(path, frames, fps, track)
    return _truth(takes, fps, joint)


def _takes(recipe: Recipe, rng: Random, sound: Sound, fps: int) -> Iterator[Take]:
    voice = Voice(pitch=rng.randint(38, 50), rate=rng.randint(128, 136))
    start = 0
    for shot in recipe.shots:
        lead, tail = rng.uniform(0.35, 0.55), rng.uniform(0.5, 0.95)
        speech = speak(shot.sentence, voice) if sound == "narration" else None
        seconds = max(MIN_SHOT_S, lead + speech.duration_s + tail) if speech else rng.uniform(4.3, 5.3)
        end = start + round(seconds * fps)
        yield Take(shot, start, end, speech, start / fps + lead)
        start = end


def _truth(takes: list[Take], fps: int, joint: int | None) -> dict[str, Any]:
    words, actions = [], []
    for take in takes:
        if take.speech is None:
            continue
        words += [
            {"text": word.text, "start_s": take.speech_s + word.start_s, "end_s": take.speech_s + word.end_s}
            for word in take.speech.words
        ]
        if take.shot.action is not None:
            end_s = take.speech_s + take.speech.duration_s
            actions.append({"text": take.shot.action, "start_s": take.speech_s, "end_s": end_s})
    half = round(DISSOLVE_S * fps / 2)
    return {
        "shots": [[take.start / fps, take.end / fps] for take in takes],
        "words": words,
        "actions": actions,
        "captions": [take.shot.caption for take in takes],
        "dissolves": [[(takes[joint].start - half) / fps, (takes[joint].start + half) / fps]] if joint else [],
    }


# --- picture ----------------------------------------------------------------------------------------------------------


class _Film:
    """One take's frames by their number in the video."""

    def __init__(self, take: Take, seed: tuple[int, int], number: int, fps: int) -> None:
        rng = np.random.default_rng([*seed, number + 1])
        self._ground: Image.Image
        self._animate: Animate
        self._ground, self._animate = scene(take.shot, cook_of(np.random.default_rng([*seed, 0])), rng)
        self._take, self._fps = take, fps
        # The camera drifts from one corner of its room to another.
        self._from, self._to = rng.uniform(0, 1, 2), rng.uniform(0, 1, 2)

    def frame(self, number: int) -> Image.Image:
        """640 x 360 RGB. Frames a little before or after the take continue its motion."""
        done = number - self._take.start
        progress = min(max(done / (self._take.end - self._take.start), 0.0), 1.0)
        canvas = self._ground.copy()
        self._animate(canvas, max(0.0, done / self._fps), progress)
        spot = self._from + (self._to - self._from) * progress
        left = round(spot[0] * (CANVAS[0] - 2 * WIDTH))
        top = round(spot[1] * (CANVAS[1] - 2 * HEIGHT))
        return canvas.reduce(2, box=(left, top, left + 2 * WIDTH, top + 2 * HEIGHT))


def _frames(takes: list[Take], seed: tuple[int, int], fps: int, joint: int | None) -> Iterator[bytes]:
    half = round(DISSOLVE_S * fps / 2)
    films = (_Film(take, seed, number, fps) for number, take in enumerate(takes))
    film = next(films)
    for number, take in enumerate(takes):
        following = next(films, None)
        fades_out = following is not None and number + 1 == joint
        for frame in range(take.start + (half if number == joint else 0), take.end + (half if fades_out else 0)):
            picture = film.frame(frame)
            if fades_out and following is not None and frame >= take.end - half:
                share = (frame - (take.end - half) + 0.5) / (2 * half)
                picture = Image.blend(picture, following.frame(frame), share)
            yield picture.tobytes()
        if following is not None:
            film = following


# --- sound ------------------------------------------------------------------------------------------------------------


def _track(takes: list[Take], fps: int, sound: Sound, rng: Random) -> Floats:
    """The whole sound track, as long as the picture: float32 mono at RATE_HZ."""
    duration_s = takes[-1].end / fps
    if sound == "music":
        return tune(duration_s, RATE_HZ, rng)
    track = np.zeros(round(duration_s * RATE_HZ), np.float32)
    for take in takes:
        if take.speech is not None:
            assert take.speech.rate_hz == RATE_HZ, take.speech.rate_hz
            first = round(take.speech_s * RATE_HZ)
            track[first : first + len(take.speech.samples)] = take.speech.samples
    return track


def _write_wave(path: Path, samples: Floats) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE_HZ)
        file.writeframes((np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())


# --- encoding ---------------------------------------------------------------------------------------------------------


def _encode(path: Path, frames: Iterable[bytes], fps: int, track: Path | None) -> None:
    """Feeds raw frames to an ffmpeg child. On any error, and after TIMEOUT_S, the child is killed.

    One encoder thread: x264's bytes depend on their number. Its log goes to a file, which never blocks it.
    """
    sound = ["-i", file_url(track), "-c:a", "aac", "-b:a", "96k", "-ar", "48000", "-threads", "1"] if track else []
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{WIDTH}x{HEIGHT}", "-r", str(fps), "-i", "pipe:0"]
    inputs = [*raw, *sound[:2]]
    picture = ["-c:v", "libx264", "-preset", "veryfast", "-crf", "21", "-pix_fmt", "yuv420p", "-threads", "1"]
    exact = ["-map_metadata", "-1", "-fflags", "+bitexact", "-flags:v", "+bitexact", "-flags:a", "+bitexact"]
    command = [ffmpeg_exe(), "-nostdin", "-hide_banner", "-nostats", "-loglevel", "warning", "-y", *inputs, *picture]
    command += [*sound[2:], *exact, "-movflags", "+faststart", "-f", "mp4", file_url(path)]
    with tempfile.TemporaryFile() as log:
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=log)
        watchdog = threading.Timer(TIMEOUT_S, child.kill)
        watchdog.daemon = True
        watchdog.start()
        try:
            assert child.stdin is not None
            try:
                with child.stdin:
                    for frame in frames:
                        child.stdin.write(frame)
            except BrokenPipeError:
                pass  # the child ended early: its status and log say why
            status = child.wait()
        finally:
            watchdog.cancel()
            if child.poll() is None:
                child.kill()
                child.wait()
        log.seek(0)
        said = log.read(1 << 16).decode(errors="replace").strip()
    if "No space left on device" in said:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))
    if status < 0:
        raise ChildKilledError(f"ffmpeg was killed by signal {-status}")
    if status != 0:
        last = said.splitlines()[-1] if said else f"status {status}"
        raise OutputError(f"{path}: ffmpeg could not encode the demo video: {last}")
