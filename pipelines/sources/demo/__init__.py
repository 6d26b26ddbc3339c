"""The demo source: narrated "kitchen" videos that the project renders for itself, with their ground truth.

    make_videos(folder, config)     kitchen-000.mp4 and kitchen-000.gt.json, …, and demo.json last
    list_videos(folder, config)     what the pipeline takes in

Video 3 has music and no speech, video 4 no audio; all others are narrated. Video 0 holds a dissolve.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from cookgen.config import machinery
from cookgen.errors import InputError, OutputError
from cookgen.files import atomic_path, canonical_json, digest, file_sha256, narrative_name, write_atomic
from cookgen.records import SourceVideo
from pipelines.ffmpeg import ChildKilledError
from pipelines.sources.demo.render import Sound, render_video
from pipelines.sources.demo.script import MAX_STEPS, Recipe, compose

NAME = "demo"
VERSION = 1  # raised when the same configuration gives other videos
MANIFEST = "demo.json"
_MUSIC, _NO_AUDIO, _DISSOLVE = 3, 4, 0
_FPS = (24, 25, 30)
_OWN = re.compile(r"kitchen-\d{3,}\.(mp4|gt\.json)|\.tmp-.*\.(mp4|wav|json)")
_TRIES = 3  # at a video whose process or ffmpeg is killed


@dataclass(frozen=True)
class DemoConfig:
    """How many videos, from which seed, of how many cooking steps each (a step takes about five seconds)."""

    num_videos: int = 6
    seed: int = 0
    min_steps: int = 6
    max_steps: int = 8
    workers: int = machinery(2)

    def __post_init__(self) -> None:
        if self.num_videos < 1:
            raise ValueError(f"demo.num_videos={self.num_videos}: at least 1")
        if not 1 <= self.min_steps <= self.max_steps <= MAX_STEPS:
            raise ValueError(
                f"demo.min_steps={self.min_steps}, demo.max_steps={self.max_steps}: 1 <= min <= max <= {MAX_STEPS}"
            )
        if self.seed < 0 or self.workers < 1:
            raise ValueError(f"demo.seed={self.seed}, demo.workers={self.workers}: seed >= 0, workers >= 1")


def make_videos(folder: Path, config: DemoConfig) -> None:
    """Renders what is missing, in worker processes; whole videos of this configuration stay untouched.

    May be killed at any time: a video has its name when it is whole, its truth when the video is there, and the
    manifest comes last. The folder is the demo's own, and one process at a time makes it: kitchens of another
    configuration are removed. Raises OutputError where the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"{folder}: no folder for the demo's videos ({error.strerror}); choose another one"
        ) from error
    manifest = _read_json(folder / MANIFEST)
    wanted = {name for index in range(config.num_videos) for name in _names(index)}
    for path in sorted(folder.iterdir()):
        if path.name not in wanted and _OWN.fullmatch(path.name):
            path.unlink(missing_ok=True)
    digests = manifest.get("files")
    missing = [
        index
        for index in range(config.num_videos)
        if not _is_whole(folder, config, index, digests if isinstance(digests, dict) else {})
    ]
    threads = ThreadPoolExecutor(config.workers)
    try:
        for done in [threads.submit(_in_own_process, folder, config, index) for index in missing]:
            done.result()
    finally:
        # Not waited for after Ctrl-C: what still renders ends with this process.
        threads.shutdown(wait=False, cancel_futures=True)
    content = {
        "videos": [_key(config, index) for index in range(config.num_videos)],
        "files": {name: file_sha256(folder / name) for name in sorted(wanted)},
    }
    if manifest != content:
        write_atomic(folder / MANIFEST, canonical_json(content) + "\n")


def list_videos(folder: Path, config: DemoConfig) -> Iterator[SourceVideo]:
    """The demo's videos, in order; all are CC0. Raises InputError for one that make_videos has not made."""
    for index in range(config.num_videos):
        video_id = _video_id(index)
        path = folder / f"{video_id}.mp4"
        try:
            stat = path.stat()
        except OSError as error:
            raise InputError(
                f"{path}: the demo's video is missing ({error.strerror}); run again to render it"
            ) from error
        recipe = _recipe(config, index)
        yield SourceVideo(
            narrative=narrative_name(NAME, video_id),
            source=NAME,
            video_id=video_id,
            path=path.name,
            num_bytes=stat.st_size,
            mtime_ns=stat.st_mtime_ns,
            title=recipe.title,
            topic=recipe.topic,
            licence="CC0-1.0",
            split="val" if index % 10 == 1 else "train",  # with two videos or more there is one of each
        )


def _video_id(index: int) -> str:
    return f"kitchen-{index:03d}"


def _names(index: int) -> tuple[str, str]:
    return f"{_video_id(index)}.mp4", f"{_video_id(index)}.gt.json"


def _recipe(config: DemoConfig, index: int) -> Recipe:
    return compose(config.seed, index, min_steps=config.min_steps, max_steps=config.max_steps)


def _key(config: DemoConfig, index: int) -> str:
    """What a video's bytes depend on; not how many others there are."""
    return digest([VERSION, config.seed, index, config.min_steps, config.max_steps])


def _is_whole(folder: Path, config: DemoConfig, index: int, digests: dict[str, Any]) -> bool:
    """Whether video and truth are there, belong together and, where the manifest knows them, are as it says."""
    video, truth = (folder / name for name in _names(index))
    said = _read_json(truth)
    if said.get("made_from") != _key(config, index) or not video.is_file():
        return False
    return said.get("sha256") == file_sha256(video) and digests.get(truth.name) in (None, file_sha256(truth))


def _read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; {} where there is none."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _in_own_process(folder: Path, config: DemoConfig, index: int) -> None:
    """A fresh process a video: eSpeak's globals change with every word, and would be heard in the next video."""
    context = multiprocessing.get_context("spawn")
    for number in range(1, _TRIES + 1):
        try:
            with ProcessPoolExecutor(1, mp_context=context, initializer=_end_with_parent) as pool:
                return pool.submit(_make_video, folder, config, index).result()
        except (BrokenProcessPool, ChildKilledError) as error:
            if number == _TRIES:
                raise OutputError(
                    f"{folder / _names(index)[0]}: what rendered it was killed {_TRIES} times, perhaps for memory; "
                    "run again"
                ) from error


def _make_video(folder: Path, config: DemoConfig, index: int) -> None:
    """In a worker process: the video, then its truth."""
    video, truth = (folder / name for name in _names(index))
    sound: Sound = {_MUSIC: "music", _NO_AUDIO: "none"}.get(index, "narration")  # type: ignore[assignment]
    with atomic_path(video) as temporary:
        said = render_video(
            temporary,
            _recipe(config, index),
            seed=(config.seed, index),
            sound=sound,
            fps=_FPS[index % len(_FPS)],
            dissolve=index == _DISSOLVE,
        )
    said |= {"video": _video_id(index), "sha256": file_sha256(video), "made_from": _key(config, index)}
    write_atomic(truth, canonical_json(said) + "\n")


def _end_with_parent() -> None:
    """Ends this worker when its parent is gone, even killed; its ffmpeg then sees the end of its input."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
