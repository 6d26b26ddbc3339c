"""A list of ids whose videos are fetched: killed, interrupted and run again, retried, and through to the shards."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from cookgen import load_split
from cookgen.dataset.validate import validate
from pipelines.ffmpeg import ffmpeg_exe
from tests.conftest import ROOT
from tests.mediaserver import Reply, media_server

Run = Callable[..., Any]
QUICK = ["fetch.ytdlp=true", "fetch.sleep_s=0", "fetch.backoff_s=0.01"]


def make_video(path: Path, seconds: int) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    source = ["-f", "lavfi", "-i", f"testsrc2=size=256x192:rate=10:duration={seconds}"]
    x264 = ["-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv420p"]
    subprocess.run([ffmpeg_exe(), "-v", "error", "-nostdin", "-y", *source, *x264, str(path)], check=True, timeout=120)
    return path.read_bytes()


@pytest.fixture(scope="session")
def short(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A video that is whole, and too short for the stages after the first: runs with it are quick."""
    return make_video(tmp_path_factory.mktemp("short") / "x.mp4", 2)


def write_list(path: Path, ids: list[str]) -> Path:
    segments = [{"segment": [0, 3], "sentence": "cut the onion"}, {"segment": [4, 8], "sentence": "fry the onion"}]
    entry = {"subset": "training", "recipe_type": "101", "annotations": segments}
    path.write_text(json.dumps({"database": dict.fromkeys(ids, entry)}))
    return path


def command(tmp_path: Path, ids: list[str], *settings: str) -> list[str]:
    listed = write_list(tmp_path / "list.json", ids)
    out = ["--out", str(tmp_path / "out"), "--engine", "inline"]
    return ["run", "--source", "youcook2", "--annotations", str(listed), *out, "--set", *QUICK, *settings]


def details(out: Path) -> dict[str, str]:
    """Why each missing video is missing, by its narrative."""
    rows = pq.read_table(out / "tables" / "rejects.parquet").to_pylist()
    return {row["narrative"]: row["detail"] for row in rows if row["reason"] == "video_missing"}


def links(out: Path) -> list[tuple[str, str]]:
    """The ledger: video id and outcome of each line."""
    lines = [json.loads(line) for line in (out / ".store" / "links.jsonl").read_text().splitlines()]
    return [(line["video_id"], line["outcome"]) for line in lines]


def coverage(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / ".runs" / "coverage.json").read_text()))


def test_what_can_be_had_is_had_and_the_rest_is_explained(pipelines: Run, short: bytes, tmp_path: Path) -> None:
    statuses = {"/gone.mp4": 410, "/secret.mp4": 401, "/late.mp4": 503}

    def answer(path: str, number: int) -> Reply:
        return Reply(short, status=statuses.get(path, 200))

    with media_server(answer) as server:
        ids = ["good", "gone", "late", "secret", "../evil"]
        run = command(tmp_path, ids, f"fetch.url={server.url}/{{id}}.mp4", "fetch.attempts=1")
        out = tmp_path / "out"
        done = pipelines(*run, "--dry-run")
        assert "0 videos, 5 missing" in done.stdout
        assert server.asked == []
        assert not out.exists()
        done = pipelines(*run, code=1)
        assert "rebuild from ids: 1 of 5 alive" in done.stderr
        found = details(out)
        assert len(found) == 4
        assert found["youcook2-gone"] == "yt-dlp: removed (HTTP Error 410: Gone)"
        assert found["youcook2-late"].startswith("yt-dlp: network (HTTP Error 503")
        assert all(": not" not in found[f"youcook2-{name}"] for name in ("gone", "late", "secret"))
        (evil,) = [detail for name, detail in found.items() if "evil" in name]
        assert evil.startswith("not attempted: an id is")
        assert coverage(out)["missing"] == {"removed": 1, "network": 1, "private": 1}
        before = {path.read_bytes() for path in (out / "tables").iterdir()}
        asked = len(server.asked)
        done = pipelines(*run, code=1)  # asks again for what may come, and finds that all is as it was
        assert server.paths()[asked:] == ["/late.mp4"]
        assert "nothing to do" in done.stderr
        assert {path.read_bytes() for path in (out / "tables").iterdir()} == before
        done = pipelines("status", "--out", out)
        assert "links     network 1  ok 1  private 1  removed 1" in done.stdout
        assert "1 videos, 4 missing" in pipelines("plan", "--out", out).stdout
        statuses.clear()
        asked = len(server.asked)
        done = pipelines("retry", "--out", out, "--reason", "removed", "--engine", "inline", code=1)
        assert set(server.paths()[asked:]) == {"/gone.mp4", "/late.mp4"}
        assert "rebuild from ids: 3 of 5 alive" in done.stderr
        assert set(details(out)) == {"youcook2-secret", *(name for name in found if "evil" in name)}
        asked = len(server.asked)
        pipelines("retry", "--out", out, "--reason", "removed", "--reason", "private", "--engine", "inline", code=1)
        assert set(server.paths()[asked:]) == {"/secret.mp4"}
        pipelines("report", "--out", out)
        assert len(server.paths()) == asked + 2
    assert sorted(path.name for path in (out / ".store" / "videos").iterdir() if path.is_file()) == [
        f"{name}.mp4" for name in ("gone", "good", "late", "secret")
    ]


def test_a_host_that_blocks_is_named(pipelines: Run, short: bytes, tmp_path: Path) -> None:
    with media_server(lambda path, number: Reply(status=403)) as server:
        settings = [f"fetch.url={server.url}/{{id}}.mp4", "fetch.budget=2", "fetch.connections=1"]
        pipelines(*command(tmp_path, list("abcd"), *settings), code=1)
        assert len(server.asked) == 2
    host = server.url.removeprefix("http://")
    found = details(tmp_path / "out")
    assert found["youcook2-a"].startswith("yt-dlp: blocked (HTTP Error 403")
    assert found["youcook2-d"] == f"not attempted: host {host} blocked after 2 answers"
    assert set(coverage(tmp_path / "out")["not_attempted"]) == {"c", "d"}


@contextmanager
def running(run: list[str]) -> Iterator[subprocess.Popen[str]]:
    """`python -m pipelines` while it runs; killed at the end, if it still does."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines", *run],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def wait_for_part(out: Path, process: subprocess.Popen[str]) -> int:
    """Waits until the video b is half here; returns how much of it is."""
    for _ in range(1200):
        for part in (out / ".store" / "videos" / ".partial" / "b").rglob("*.part"):
            if (size := part.stat().st_size) > 100_000:
                return size
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.05)
    raise AssertionError("nothing came")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_ends_in_the_middle_goes_on_there(
    how: signal.Signals, pipelines: Run, short: bytes, tmp_path: Path
) -> None:
    """Nothing half done is taken for a video, nothing that came is asked for again, and the set is the same."""
    video = short + (400_000).to_bytes(4, "big") + b"free" + bytes(400_000 - 8)
    slow = True

    def answer(path: str, number: int) -> Reply:
        return Reply(video, pause_s=0.05 if slow and path == "/b.mp4" else 0.0, block_bytes=4096)

    with media_server(answer) as server:
        run = command(tmp_path, list("abc"), f"fetch.url={server.url}/{{id}}.mp4", "fetch.connections=1")
        out = tmp_path / "out"
        with running(run) as process:
            wait_for_part(out, process)
            assert pipelines("status", "--out", out).stdout.startswith(f"{out}: running")
            process.send_signal(how)
            _, said = process.communicate(timeout=60)
        assert process.returncode == (-9 if how == signal.SIGKILL else 130), said
        assert "Traceback" not in said
        if how != signal.SIGKILL:
            assert "the same command goes on from there" in said
        kept = wait_for_part(out, process) if how == signal.SIGKILL else None
        assert sorted(path.name for path in (out / ".store" / "videos").iterdir()) == [".partial", "a.mp4"]
        assert links(out) == [("a", "ok")]
        assert "state" in json.loads(pipelines("status", "--out", out, "--json").stdout)
        slow, asked = False, len(server.asked)
        pipelines(*run, code=1)
        again = server.asked[asked:]
        assert [request.path for request in again if request.path != "/c.mp4"] == ["/b.mp4", "/b.mp4"]
        (first,) = [request.first_byte for request in again if request.first_byte is not None]
        assert first > 100_000 if kept is None else first >= kept
    assert sorted(path.name for path in (out / ".store" / "videos").rglob("*") if path.is_file()) == [
        "a.mp4",
        "b.mp4",
        "c.mp4",
    ]
    assert (out / ".store" / "videos" / "b.mp4").read_bytes() == video
    assert links(out) == [(name, "ok") for name in "abc"]


def test_fetched_videos_become_shards_beside_own_ones(pipelines: Run, tmp_path: Path) -> None:
    """The user's folder first, then the archive: the shards are those of a folder that holds all."""
    for place, name, length_s in (("videos", "own", 9), ("archive/deep", "far", 10), ("archive", "own", 9)):
        make_video(tmp_path / place / f"{name}.mp4", length_s)
    listed = write_list(tmp_path / "list.json", ["own", "far", "none"])
    all_in_one = tmp_path / "all"
    all_in_one.mkdir()
    for path in (tmp_path / "videos" / "own.mp4", tmp_path / "archive" / "deep" / "far.mp4"):
        (all_in_one / path.name).write_bytes(path.read_bytes())
    options = ["run", "--source", "youcook2", "--annotations", listed, "--engine", "inline"]
    where = ["--videos", tmp_path / "videos", "--set", f"fetch.archive={tmp_path / 'archive'}"]
    done = pipelines(*options, "--out", tmp_path / "fetched", *where)
    assert "rebuild from ids: 2 of 3 alive" in done.stderr
    pipelines(*options, "--out", tmp_path / "plain", "--videos", all_in_one)
    train = load_split("train", tmp_path / "fetched")
    assert sorted(narrative.name for narrative in train) == ["youcook2-far", "youcook2-own"]
    assert [step.action for step in train[0].steps] == ["cut the onion", "fry the onion"]
    shards = [sorted((tmp_path / out / "train").iterdir()) for out in ("fetched", "plain")]
    assert [path.read_bytes() for path in shards[0]] == [path.read_bytes() for path in shards[1]]
    assert not [problem for problem in validate(tmp_path / "fetched") if not problem.is_warning]
    assert (tmp_path / "fetched" / ".store" / "videos" / "far.mp4").is_file()
    assert not (tmp_path / "fetched" / ".store" / "videos" / "own.mp4").exists()
    assert details(tmp_path / "fetched") == {
        "youcook2-none": "no video file named none in the folder; not in the archive"
    }
    done = pipelines(*options, "--out", tmp_path / "fetched", *where)
    assert "nothing to do" in done.stderr
