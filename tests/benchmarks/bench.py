"""`make bench`: how fast and how big the main job is on the demo. Prints JSON lines; `make bench` keeps them.

For each stage, run inline over the demo's videos, one after the other: seconds of video per second of wall and per
second of CPU, this process, its children and the model server counted. Beside it a limit, measured in the same
run: one ffmpeg decode of all videos (no stage that looks at every frame can be faster). Then the whole job as a user
runs it, in a process tree whose memory is sampled: wall, peak PSS (shared pages counted once).
"""

from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import psutil

from cookgen.records import SourceVideo
from pipelines import flow
from pipelines.ffmpeg import ffmpeg_exe
from pipelines.request import request_of
from pipelines.serve import serve_llm
from pipelines.sources import demo
from pipelines.stage import Places, Stage, VideoState, advance
from pipelines.store import Store

ROOT = Path(__file__).resolve().parents[2]


def say(**values: Any) -> None:
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


def cpu_s() -> float:
    """CPU seconds of this process, of its living descendants and of its children that have ended."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    own = psutil.Process()
    alive = 0.0
    for process in [own, *own.children(recursive=True)]:
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        alive += times.user + times.system
    return alive + ended.ru_utime + ended.ru_stime


@contextmanager
def measured(name: str, video_s: float, **more: Any) -> Iterator[None]:
    wall, cpu = time.monotonic(), cpu_s()
    yield
    wall, cpu = time.monotonic() - wall, cpu_s() - cpu
    say(
        bench=name,
        wall_s=round(wall, 2),
        cpu_s=round(cpu, 2),
        video_s_per_wall_s=round(video_s / wall, 2),
        video_s_per_cpu_s=round(video_s / cpu, 2) if cpu else None,
        **more,
    )


def bench_stages(out: Path) -> None:
    config = request_of(source=demo.NAME, out=out).config()
    stages = flow.stages_of(config)
    folder = out / ".store" / "demo"
    video_s = config.demo.num_videos * 50.0
    with measured("render the demo", video_s):
        demo.make_videos(folder, config.demo)
    sources = [item for item in demo.list_videos(folder, config.demo) if isinstance(item, SourceVideo)]
    store = Store(out)
    with serve_llm(config.server, model=config.actions.model, log_folder=out / ".runs") as url:
        places = Places(
            videos=folder, media=store.media, scratch=out / ".store" / "scratch", endpoints={"actions": (url,)}
        )

        @cache
        def tool(stage: Stage) -> Any:
            assert stage.load is not None
            return stage.load(stage.config, places)

        states = [VideoState(source) for source in sources]
        first, *rest = stages
        states = [advance(first, state, stages, results=store, tool=lambda: tool(first)) for state in states]
        video_s = sum(row.duration_s for state in states for row in state.whole[first.name].rows)  # type: ignore[attr-defined]
        with measured("limit: one decode", video_s):
            for source in sources:
                command = [ffmpeg_exe(), "-v", "error", "-nostdin", "-i", str(folder / source.path), "-map", "0:v:0"]
                subprocess.run([*command, "-f", "null", "-"], check=True, timeout=600)
        for stage in rest:
            if stage.load is not None:
                tool(stage)  # loading is not the stage's speed
            with measured(f"stage {stage.name}", video_s):
                states = [
                    advance(stage, state, stages, results=store, tool=lambda stage=stage: tool(stage))  # type: ignore[misc]
                    for state in states
                ]


def pss_bytes(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except (psutil.Error, AttributeError):
        return 0


def bench_job(out: Path, *options: str) -> None:
    command = [sys.executable, "-m", "pipelines", "run", "--out", str(out), *options]
    wall = time.monotonic()
    peak: dict[str, int] = {"all": 0}
    driver = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def watch() -> None:
        while driver.poll() is None:
            try:
                family = [psutil.Process(driver.pid), *psutil.Process(driver.pid).children(recursive=True)]
            except psutil.NoSuchProcess:
                return
            sizes = {process.pid: pss_bytes(process) for process in family}
            peak["all"] = max(peak["all"], sum(sizes.values()))
            peak["driver"] = max(peak.get("driver", 0), sizes[driver.pid])
            peak["largest other"] = max(
                [peak.get("largest other", 0), *(s for p, s in sizes.items() if p != driver.pid)]
            )
            time.sleep(1)

    watcher = threading.Thread(target=watch)
    watcher.start()
    code = driver.wait()
    watcher.join()
    gib = {name: round(size / 2**30, 2) for name, size in peak.items()}
    say(bench="make shards " + " ".join(options), exit=code, wall_s=round(time.monotonic() - wall, 1), peak_pss_gib=gib)


def main() -> None:
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    say(
        commit=commit.stdout.strip(), cores=os.cpu_count(), machine=platform.machine(), python=platform.python_version()
    )
    with tempfile.TemporaryDirectory() as folder:
        bench_stages(Path(folder) / "stages")
        bench_job(Path(folder) / "ray")
        bench_job(Path(folder) / "ray")  # nothing to do
        bench_job(Path(folder) / "inline", "--engine", "inline")


if __name__ == "__main__":
    main()
