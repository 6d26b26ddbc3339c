"""What a user can get wrong: exit 2, one clear line that names the thing and the remedy, OUT untouched."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--source", "foldr"], "did you mean 'folder'"),
        (["--source", "folder"], "needs --videos"),
        (["--source", "youcook2", "--videos", "VIDEOS"], "needs --annotations"),
        (["--source", "youcook2", "--annotations", "NOTES"], "needs --videos"),
        (["--source", "youcook2", "--videos", "VIDEOS", "--annotations", "LIST"], "holds none of the 1 videos"),
        (["--source", "youcook2", "--annotations", "LIST", "--set", "fetch.archive=here"], "absolute path"),
        (["--source", "youcook2", "--annotations", "LIST", "--set", "fetch.archive=/nowhere"], "no such folder"),
        (["--source", "youcook2", "--annotations", "LIST", "--set", "fetch.mirror=nosuch://x"], "fetch.mirror=nosuch"),
        (["--source", "youcook2", "--annotations", "LIST", "--set", "fetch.url=http://x/"], "{id}"),
        (["--videos", "VIDEOS", "--set", "fetch.ytdlp=true"], "not for --source folder"),
        (["--source", "demo", "--videos", "VIDEOS"], "makes its own videos"),
        (["--videos", "NOWHERE"], "no such folder"),
        (["--videos", "EMPTY"], "no video file"),
        (["--videos", "VIDEOS", "--annotations", "NOTES"], "belongs to --source youcook2"),
        (["--source", "youcook2", "--videos", "VIDEOS", "--annotations", "NOTES"], "not JSON"),
        (["--source", "youcook2", "--videos", "VIDEOS", "--annotations", "OTHER"], "'database'"),
        (["--videos", "VIDEOS", "--set", "clips.polcy=shots"], "did you mean 'clips.policy'"),
        (["--videos", "VIDEOS", "--set", "clips.max_s=long"], "--set clips.max_s=long"),
        (["--videos", "VIDEOS", "--set", "clips.max_s"], "name=value"),
        (["--videos", "VIDEOS", "--profile", "embeded"], "did you mean 'embedded'"),
        (["--videos", "VIDEOS", "--engine", "dask"], "unknown engine 'dask'"),
        (["--videos", "VIDEOS", "--limit", "0"], "--limit 0"),
        (["--videos", "VIDEOS", "--limit", "many"], "--limit"),
        (["--vidoes", "VIDEOS"], "--vidoes"),
        (["--videos", "VIDEOS", "--set", "clips.max_s=inf"], "finite"),
        (["--videos", "LONG"], "name too long"),
        (["--source", "youcook2", "--videos", "VIDEOS", "--annotations", "SURROGATE"], "not JSON"),
        (["--source", "youcook2", "--videos", "VIDEOS", "--annotations", "DEEP"], "not JSON"),
        (["--videos", "VIDEOS", "--engine", "inline", "--ray", "auto"], "--engine inline"),
        (["--videos", "VIDEOS", "--ids", "NOTES"], "ids are not in the source"),
        (["--videos", "VIDEOS", "--ids", "NOWHERE"], "cannot be read"),
    ],
)
def test_one_clear_line(pipelines: Run, tmp_path: Path, options: list[str], named: str) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "a.mp4").write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("soup\n")
    (tmp_path / "other.json").write_text(json.dumps({"videos": []}))
    entry = {"subset": "training", "annotations": []}
    (tmp_path / "list.json").write_text(json.dumps({"database": {"x": entry}}))
    (tmp_path / "surrogate.json").write_text('{"database": {"a": "\\ud800"}}')
    (tmp_path / "deep.json").write_text("[" * 100_000)
    places = {
        "LIST": "list.json",
        "LONG": "a" * 300,
        "SURROGATE": "surrogate.json",
        "DEEP": "deep.json",
        "VIDEOS": "videos",
        "EMPTY": "empty",
        "NOTES": "notes.txt",
        "OTHER": "other.json",
        "NOWHERE": "nowhere",
    }
    args = [str(tmp_path / places[option]) if option in places else option for option in options]
    done = pipelines("run", "--out", tmp_path / "out", *args, code=2)
    assert named in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_an_out_that_is_something_else(pipelines: Run, tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "a.mp4").write_bytes(b"x")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "main.tex").write_text("…")
    done = pipelines("run", "--videos", tmp_path / "videos", "--out", tmp_path / "thesis", code=2)
    assert "not empty" in done.stderr
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["main.tex"]
    done = pipelines("run", "--videos", tmp_path / "videos", "--out", "/proc/out", code=2)
    assert "choose another --out" in done.stderr.lower()


def test_other_commands_need_a_run(pipelines: Run, tmp_path: Path) -> None:
    for command in ("plan", "status", "report"):
        done = pipelines(command, "--out", tmp_path / "nothing", code=2)
        assert "no run has been started there" in done.stderr
    done = pipelines("retry", "--reason", "removed", "--out", tmp_path / "nothing", code=2)
    assert "no run has been started there" in done.stderr


def test_what_cannot_be_retried(pipelines: Run, tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "a.mp4").write_bytes(b"x")
    pipelines("run", "--videos", tmp_path / "videos", "--out", tmp_path / "out", "--engine", "inline", code=1)
    for options, named in (
        ([], "needs --reason: removed, private"),
        (["--reason", "remved"], "did you mean 'removed'"),
        (["--reason", "ok"], "unknown reason 'ok'"),
        (["--reason", "removed"], "fetched no videos"),
    ):
        done = pipelines("retry", "--out", tmp_path / "out", *options, code=2)
        assert named in done.stderr


def test_show_config_prints_every_name_that_set_takes(pipelines: Run) -> None:
    done = pipelines("run", "--show-config", "--set", "clips.max_s=20", "--set", "clips.min_s=3", "matches.min_iou=0.3")
    config = json.loads(done.stdout)
    assert (config["clips"]["max_s"], config["clips"]["min_s"], config["matches"]["min_iou"]) == (20.0, 3.0, 0.3)
    assert {"videos", "clips", "speech", "actions", "captions", "matches", "checks", "shards", "demo"} <= config.keys()


def test_a_file_without_a_video_finishes_with_nothing_usable(pipelines: Run, tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "a.mp4").write_bytes(b"x")
    done = pipelines("run", "--videos", tmp_path / "videos", "--out", tmp_path / "out", "--engine", "inline", code=1)
    assert "no narrative came out" in done.stdout
    assert (tmp_path / "out" / "dataset.json").is_file()
    again = pipelines("run", "--videos", tmp_path / "videos", "--out", tmp_path / "out", code=1)
    assert "nothing to do" in again.stderr
