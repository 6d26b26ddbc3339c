"""`make bench-engine`: what the pipeline costs around its stages, at the size of the paper's dataset. JSON lines.

Orchestration: videos of which no stage does anything, through the engine with all its stages and its store, and through
a plain Ray Data chain of as many map_batches, in the same blocks, that writes Parquet. By turns, wall seconds.
Scale: 30,000 videos and 200,000 clips of made-up rows (the media are one clip, again and again) through the real flow:
engine, store, matcher, tables, shards, report; peaks of memory; then the same run again, which has nothing to do.
Matching: the rule and the best matching over 200,000 clips. Shards: writing them, beside tarfile copying their bytes.
Nodes: stages that are nothing but CPU time, on a cluster of one node and of two, each bound to one core of its own.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import ray
import ray.cloudpickle
import tyro

from cookgen.dataset.tar import tar_member
from cookgen.files import write_atomic
from cookgen.records import Action, Caption, Check, Clip, Lineage, SourceVideo, Video, Word
from pipelines import engine, flow
from pipelines.cluster import Cluster
from pipelines.progress import FailuresConfig, Trace
from pipelines.request import Request, request_of
from pipelines.stage import Places, Result, Stage, VideoState, medium_path
from pipelines.stages import matches
from pipelines.stages.shards import ShardsConfig, write_shards

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the workers cannot import a benchmark
ROOT = Path(__file__).resolve().parents[2]
CLIP, KEYFRAME = b"clip" * 500, b"keyframe" * 50  # stand for media: nothing here decodes them
CLIPS_A_VIDEO = (2, 4, 6, 8, 10, 10)  # 6.67 on average: 200,000 in 30,000 videos
STEP_S = 10.0


def say(**values: Any) -> None:
    print(json.dumps(values), flush=True)


@dataclass(frozen=True)
class Nothing:
    """A stage's configuration with nothing to configure."""


# Stages that make rows as the real ones do, out of the video's name alone


def num_clips(narrative: str) -> int:
    return CLIPS_A_VIDEO[int(hashlib.sha256(narrative.encode()).hexdigest()[:8], 16) % len(CLIPS_A_VIDEO)]


def videos(source: SourceVideo, *, config: Nothing) -> Iterator[Video]:
    said = ("narrative", "source", "video_id", "path", "num_bytes", "title")
    yield Video(
        **{name: getattr(source, name) for name in said},
        sha256=hashlib.sha256(source.narrative.encode()).hexdigest(),
        duration_s=STEP_S * num_clips(source.narrative),
        start_s=0,
        width=640,
        height=360,
        fps=30,
        video_stream=0,
        audio_stream=1,
        has_audio=True,
        split="train",
    )


def clips(video: Video, *, config: Nothing) -> Iterator[Clip]:
    for index in range(num_clips(video.narrative)):
        start_s = index * STEP_S
        yield Clip(
            narrative=video.narrative,
            clip_index=index,
            start_s=start_s,
            end_s=start_s + STEP_S,
            first_pts_s=start_s,
            last_pts_s=start_s + STEP_S - 1 / 30,
            num_frames=300,
            fps=30.0,
            width=448,
            height=448,
            has_audio=True,
            sha256=hashlib.sha256(CLIP).hexdigest(),
            num_bytes=len(CLIP),
            keyframe_pts_s=start_s + STEP_S / 2,
            keyframe_sha256=hashlib.sha256(KEYFRAME).hexdigest(),
            keyframe_num_bytes=len(KEYFRAME),
        )


def speech(video: Video, *, config: Nothing) -> Iterator[Word]:
    for number in range(20 * num_clips(video.narrative)):
        start_s = number * STEP_S / 20
        yield Word(
            narrative=video.narrative,
            word_id=number,
            text="onions",
            start_s=start_s,
            end_s=start_s + 0.4,
            probability=1,
        )


def actions(video: Video, words: tuple[Word, ...], *, config: Nothing) -> Iterator[Action]:
    for index in range(len(words) // 20):
        yield Action(
            narrative=video.narrative,
            action_index=index,
            text="Cut the onions into thin slices.",
            start_s=index * STEP_S + 1,
            end_s=index * STEP_S + 9,
            origin="asr",
            raw_text="so now we cut the onions into thin slices",
            word_first=index * 20,
            word_end=index * 20 + 20,
        )


def captions(clips: tuple[Clip, ...], *, config: Nothing) -> Iterator[Caption]:
    for clip in clips:
        text = "A pair of hands cuts an onion into thin slices on a wooden board. " * 4
        yield Caption(narrative=clip.narrative, clip_index=clip.clip_index, text=text, origin="made up")


def checks(captions: tuple[Caption, ...], *, config: Nothing) -> Iterator[Check]:
    for caption in captions:
        yield Check(narrative=caption.narrative, clip_index=caption.clip_index, check="similarity", score=0.5)


def _stage(name: str, reads: tuple[Any, ...], writes: Any, run: Callable[..., Any]) -> Stage:
    return Stage(name=name, reads=reads, writes=writes, run=run, config=Nothing(), version=1)


STAGES = (
    _stage("videos", (SourceVideo,), Video, videos),
    _stage("clips", (Video,), Clip, clips),
    _stage("speech", (Video,), Word, speech),
    _stage("actions", (Video, Word), Action, actions),
    _stage("captions", (Clip,), Caption, captions),
    matches.STAGE,
    _stage("checks", (Caption,), Check, checks),
)


# Orchestration


def nothing(*rows: Any, config: Nothing) -> tuple[()]:
    return ()


def orchestration(num_videos: int, rounds: int) -> dict[str, Any]:
    empty = tuple(
        replace(stage, run=videos if stage.name == "videos" else nothing, config=Nothing()) for stage in STAGES
    )
    sources = [
        SourceVideo(narrative=f"toy-{n}", source="toy", video_id=f"{n}", path=f"{n}.mp4", num_bytes=1, mtime_ns=0)
        for n in range(num_videos)
    ]
    rows = [{"narrative": source.narrative, "text": "x" * 400} for source in sources]

    def ours(out: Path) -> None:
        engine.run(
            sources,
            empty,
            out=out,
            places=Places(videos=out, media=out, scratch=out),
            address=None,
            failures=FailuresConfig(),
            trace=Trace(out / ".runs"),
            show=lambda tallies: None,
        )

    class Same:
        def __call__(self, block: dict[str, Any]) -> dict[str, Any]:
            return block

    def plain(out: Path) -> None:
        ray.init(address="local", include_dashboard=False, logging_level="ERROR", log_to_driver=False)
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = context.enable_operator_progress_bars = False
        dataset = ray.data.from_items(rows, override_num_blocks=min(num_videos, engine._MAX_BLOCKS))
        share = 0.9 * int(ray.cluster_resources()["CPU"]) / (len(empty) + 1)  # the writing too needs a share
        for _ in empty:
            pool = ray.data.ActorPoolStrategy(min_size=1, max_size=1)
            dataset = dataset.map_batches(Same, batch_size=None, compute=pool, num_cpus=round(share, 4))
        dataset.write_parquet(str(out), ray_remote_args={"num_cpus": round(share, 4)})
        ray.shutdown()

    taken: dict[str, list[float]] = {"ours": [], "plain": []}
    for _ in range(rounds):
        for name, way in (("ours", ours), ("plain", plain)):
            with tempfile.TemporaryDirectory() as folder:
                began = time.monotonic()
                way(Path(folder))
                taken[name].append(time.monotonic() - began)
    ratios = [a / b for a, b in zip(taken["ours"], taken["plain"], strict=True)]
    return {
        "bench": "orchestration",
        "videos": num_videos,
        "stages": len(empty),
        "wall_s": {name: [round(one, 1) for one in seconds] for name, seconds in taken.items()},
        "ours_over_plain": [round(statistics.median(ratios), 2), round(min(ratios), 2), round(max(ratios), 2)],
        "bar": 1.5,
    }


# Scale


def scale(folder: Path, num_videos: int) -> Iterator[dict[str, Any]]:
    place = folder / "videos"
    place.mkdir()
    for number in range(num_videos):
        (place / f"v{number:06d}.mp4").write_bytes(f"{number}".encode())
    flow.STAGES = STAGES
    flow.stages_of = lambda config: STAGES  # the stages here have nothing to configure
    out = folder / "out"
    request = request_of(source="folder", videos=place, out=out, settings=("shards.target_shard_bytes=33554432",))
    for content, suffix in ((CLIP, ".mp4"), (KEYFRAME, ".jpg")):
        write_atomic(medium_path(out / ".store" / "media", hashlib.sha256(content).hexdigest(), suffix), content)
    write_atomic(out / ".store" / "owner.json", json.dumps({"format": "cookgen/1", "source": "folder"}))
    yield measured_run("scale, first run", request)
    yield measured_run("scale, nothing to do", request)
    began = time.monotonic()
    flow.plan(request)
    yield {"bench": "scale, plan", "wall_s": round(time.monotonic() - began, 1)}


def measured_run(name: str, request: Request) -> dict[str, Any]:
    began = time.monotonic()
    with peaks() as peak:
        outcome = flow.run(request)
    splits = outcome.manifest.splits.values()
    return {
        "bench": name,
        "wall_s": round(time.monotonic() - began, 1),
        "narratives": outcome.num_narratives,
        "clips": sum(split.num_clips for split in splits),
        "shards": sum(len(split.shards) for split in splits),
        **peak,
    }


@contextmanager
def peaks() -> Iterator[dict[str, int]]:
    """Fills in the peak resident memory of this process, which is the driver, and of each kind of its children."""
    found: dict[str, int] = {}
    ended = threading.Event()

    def watch() -> None:
        me = psutil.Process()
        while not ended.wait(0.5):
            sums = {"driver_mib": me.memory_info().rss >> 20}
            for child in me.children(recursive=True):
                try:
                    if "StoreWriter" in "".join(child.cmdline()):
                        sums["store_writer_mib"] = child.memory_info().rss >> 20
                except psutil.Error:
                    continue
            for name, value in sums.items():
                found[name] = max(found.get(name, 0), value)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()


# Nodes


BURNT_S = 0.15  # CPU seconds of each stage for each video


def burn(*rows: Any, config: Nothing) -> Iterator[Any]:
    ends = time.process_time() + BURNT_S
    while time.process_time() < ends:
        hashlib.sha256(CLIP).digest()
    yield from videos(*rows, config=config) if isinstance(rows[0], SourceVideo) else ()


@contextmanager
def bound_nodes(folder: Path, num_nodes: int) -> Iterator[str]:
    """A cluster whose n-th node, with all that it starts, has the n-th core and no other; its address."""
    command = [sys.executable, "-m", "pipelines.cluster"]
    where = ["--folder", str(folder)]
    subprocess.run([*command, "up", "--nodes", str(num_nodes), *where], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    try:
        cluster = Cluster.load(folder)
        assert cluster is not None
        cores = sorted(os.sched_getaffinity(0))
        for node, core in zip(cluster.nodes, cores, strict=False):
            first = psutil.Process(node.pid)
            for process in (first, *first.children(recursive=True)):
                for thread in process.threads():
                    os.sched_setaffinity(thread.id, {core})  # what starts later inherits it
        yield cluster.address
    finally:
        subprocess.run([*command, "down", *where], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def two_nodes(num_videos: int, rounds: int) -> dict[str, Any]:
    busy = tuple(replace(stage, run=burn, config=Nothing()) for stage in STAGES)
    sources = [
        SourceVideo(narrative=f"toy-{n}", source="toy", video_id=f"{n}", path=f"{n}.mp4", num_bytes=1, mtime_ns=0)
        for n in range(num_videos)
    ]
    taken: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(rounds):
        for num_nodes, seconds in taken.items():
            with tempfile.TemporaryDirectory(dir="/tmp") as folder, bound_nodes(Path(folder), num_nodes) as address:
                out = Path(folder) / "out"
                began = time.monotonic()
                engine.run(
                    sources,
                    busy,
                    out=out,
                    places=Places(videos=out, media=out, scratch=out),
                    address=address,
                    failures=FailuresConfig(),
                    trace=Trace(out / ".runs"),
                    show=lambda tallies: None,
                )
                seconds.append(time.monotonic() - began)
    ratios = [one / two for one, two in zip(taken[1], taken[2], strict=True)]
    return {
        "bench": "two nodes against one",
        "videos": num_videos,
        "cpu_s_of_work": round(num_videos * len(busy) * BURNT_S),
        "wall_s": {name: [round(one, 1) for one in seconds] for name, seconds in taken.items()},
        "speed_up": [round(statistics.median(ratios), 2), round(min(ratios), 2), round(max(ratios), 2)],
    }


# Matching and shards


def matching(num_videos: int) -> dict[str, Any]:
    pairs = []
    for number in range(num_videos):
        name = f"toy-{number}"
        [video] = videos(
            SourceVideo(narrative=name, source="toy", video_id="x", path="x", num_bytes=1, mtime_ns=0), config=Nothing()
        )
        pairs.append(
            (
                tuple(clips(video, config=Nothing())),
                tuple(actions(video, tuple(speech(video, config=Nothing())), config=Nothing())),
            )
        )
    began = time.process_time()
    chosen = sum(
        row.chosen for made, told in pairs for row in matches.match_actions(made, told, config=matches.MatchesConfig())
    )
    seconds = time.process_time() - began
    return {
        "bench": "matching",
        "clips": sum(len(made) for made, _ in pairs),
        "chosen": chosen,
        "cpu_s": round(seconds, 2),
        "bar": 5,
    }


def shard_writing(folder: Path, rounds: int) -> dict[str, Any]:
    """Megabyte clips, as real ones are; the peer copies the members of the finished shards into new ones."""
    media = folder / "media"
    lineage = Lineage(version=1, config="c" * 64, model=None, inputs="i" * 64)
    states = []
    for number in range(60):
        name = f"toy-{number}"
        source = SourceVideo(narrative=name, source="toy", video_id=name, path=name, num_bytes=1, mtime_ns=0)
        [video] = videos(source, config=Nothing())
        made = []
        for clip in clips(video, config=Nothing()):
            content = os.urandom(1_000_000)
            sha256 = hashlib.sha256(content).hexdigest()
            medium_path(media, sha256, ".mp4").parent.mkdir(parents=True, exist_ok=True)
            medium_path(media, sha256, ".mp4").write_bytes(content)
            made.append(clip.model_copy(update={"sha256": sha256, "num_bytes": len(content)}))
        keyframe = medium_path(media, hashlib.sha256(KEYFRAME).hexdigest(), ".jpg")
        keyframe.parent.mkdir(parents=True, exist_ok=True)
        keyframe.write_bytes(KEYFRAME)
        told = tuple(actions(video, tuple(speech(video, config=Nothing())), config=Nothing()))
        rows = {
            "videos": (video,),
            "clips": tuple(made),
            "speech": (),
            "actions": told,
            "captions": tuple(captions(tuple(made), config=Nothing())),
            "matches": tuple(matches.match_actions(tuple(made), told, config=matches.MatchesConfig())),
            "checks": (),
        }
        state = VideoState(source)
        for stage in STAGES:
            state = state.with_result(Result(stage.name, name, name, rows[stage.name], (), lineage, 0.0))
        states.append(state)
    out = folder / "out"
    config = ShardsConfig(target_shard_bytes=64 * 2**20)
    places = Places(videos=folder, media=media, scratch=folder)

    def ours() -> None:
        write_shards(states, (), config=config, run_config=config, places=places, out=out, stages=STAGES)

    def copy() -> None:
        for path in sorted((out / "train").glob("*.tar")):
            with tarfile.open(path) as old, tarfile.open(folder / "copy.tar", "w", format=tarfile.PAX_FORMAT) as new:
                for member in old:
                    new.addfile(tar_member(member.name, member.size), old.extractfile(member))
            hashlib.sha256((folder / "copy.tar").read_bytes())
            with (folder / "copy.tar").open("rb") as stream:
                os.fsync(stream.fileno())

    ours()
    taken: dict[str, list[float]] = {"ours": [], "copy": []}
    for _ in range(rounds):
        for name, way in (("ours", ours), ("copy", copy)):
            began = time.monotonic()
            way()
            taken[name].append(time.monotonic() - began)
    ratios = [b / a for a, b in zip(taken["ours"], taken["copy"], strict=True)]
    return {
        "bench": "shards",
        "mb": round(sum(path.stat().st_size for path in (out / "train").glob("*.tar")) / 1e6),
        "wall_s": {name: [round(one, 2) for one in seconds] for name, seconds in taken.items()},
        "speed_over_tarfile": [round(statistics.median(ratios), 2), round(min(ratios), 2), round(max(ratios), 2)],
        "bar": 0.9,
    }


def main(only: str = "", num_videos: int = 30_000, rounds: int = 3) -> None:
    """Runs the measures.

    Args:
        only: a part of the measure's name: orchestration, scale, matching, shards, nodes
        num_videos: of the synthetic run
        rounds: of each timed way
    """
    command = ["git", "describe", "--always", "--dirty"]
    commit = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    say(commit=commit, cores=os.cpu_count(), machine=platform.machine(), ray=ray.__version__)
    with tempfile.TemporaryDirectory() as name:
        if only in "matching":
            say(**matching(num_videos))
        if only in "shards":
            say(**shard_writing(Path(name) / "shards", rounds))
        if only in "nodes":
            say(**two_nodes(60, rounds))
        if only in "orchestration":
            say(**orchestration(10_000, rounds))
        if only in "scale":
            (Path(name) / "scale").mkdir()
            for row in scale(Path(name) / "scale", num_videos):
                say(**row)


if __name__ == "__main__":
    tyro.cli(main)
