"""Real moving pictures and real speech, through Ray: a folder with odd files in it, garbage answers, YouCook2."""

from __future__ import annotations

import http.server
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from cookgen import load_split
from cookgen.dataset.validate import validate

Run = Callable[..., Any]
PIZZA = "va_pepperoni_pizza_narrated"
STOP_WORDS = frozenset("a an and the of in on to with into over is it".split())


def table(out: Path, name: str) -> list[dict[str, Any]]:
    return pq.read_table(out / "tables" / f"{name}.parquet").to_pylist()


def reasons(out: Path) -> dict[str, str]:
    """Path -> reason of each rejected video."""
    return {
        row["path"]: row["reason"]
        for row in table(out, "rejects")
        if row["clip_index"] is None and row["action_index"] is None
    }


def content(text: str) -> set[str]:
    return {"".join(filter(str.isalpha, word.lower())) for word in text.split()} - STOP_WORDS - {""}


@pytest.fixture(scope="module")
def videos(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good videos without the two long ones, and every odd file, in one folder."""
    folder = tmp_path_factory.mktemp("videos")
    for name in (
        f"{PIZZA}.mp4",
        "askanything_making_cake.mp4",
        "decord_flipping_a_pancake.mkv",
        "stllm_mixing_bowl.mp4",
    ):
        shutil.copy(data / "videos" / name, folder / name)
    shutil.copytree(data / "odd", folder / "odd")
    return folder


@pytest.fixture(scope="module")
def real(pipelines: Run, videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("real") / "shards"
    pipelines("run", "--videos", videos, "--out", out)
    return out


def test_the_pizza_becomes_its_narrative(real: Path, data: Path) -> None:
    truth = json.loads((data / "videos" / f"{PIZZA}.gt.json").read_text())
    bounds = sorted({edge for shot in truth["shots"] for edge in shot})
    clips = [row for row in table(real, "clips") if row["narrative"] == f"folder-{PIZZA}"]
    assert len(clips) == len(truth["shots"])
    for clip in clips:
        for edge in (clip["start_s"], clip["end_s"]):
            assert min(abs(edge - bound) for bound in bounds) <= 0.25
    narratives = [n for split in ("train", "val") for n in load_split(split, real) if n.name == f"folder-{PIZZA}"]
    (narrative,) = narratives
    right = 0
    for step in narrative.steps:
        action = step.sample.action
        middle = (action.start_s + action.end_s) / 2
        said = [a["sentence"] for a in truth["actions"] if a["segment"][0] <= middle < a["segment"][1]]
        clip_middle = (step.sample.clip.start_s + step.sample.clip.end_s) / 2
        shown = [a["sentence"] for a in truth["actions"] if a["segment"][0] <= clip_middle < a["segment"][1]]
        right += said == shown and bool(content(step.action) & content(said[0]))
    assert right >= 8


def test_every_video_has_a_narrative_or_a_reason(real: Path, videos: Path) -> None:
    assert validate(real) == []
    rejected = reasons(real)
    paths = {row["narrative"]: row["path"] for row in table(real, "videos")}
    in_shards = {paths[row["narrative"]] for row in table(real, "narratives")}
    every = {path.relative_to(videos).as_posix() for path in videos.rglob("*") if path.is_file()}
    assert in_shards | rejected.keys() == every
    assert not in_shards & rejected.keys()
    assert rejected["askanything_making_cake.mp4"] == "no_audio"
    assert rejected["odd/empty_0_bytes.mp4"] == "empty_file"
    assert rejected["odd/html_page.mp4"] == "not_a_video"
    assert rejected["odd/audio_only.mp4"] == "no_video_stream"
    assert rejected["odd/pancake_silent_audio.mp4"] in ("no_speech", "no_actions")
    assert "internal_error" not in {row["reason"] for row in table(real, "rejects")}


def test_odd_neighbours_change_nothing(pipelines: Run, data: Path, real: Path, tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    shutil.copy(data / "videos" / f"{PIZZA}.mp4", tmp_path / "videos")
    pipelines("run", "--videos", tmp_path / "videos", "--out", tmp_path / "alone", "--engine", "inline")

    def steps(out: Path) -> list[Any]:
        narratives = [n for split in ("train", "val") for n in load_split(split, out) if n.name == f"folder-{PIZZA}"]
        return [(step.sample, step.mp4) for narrative in narratives for step in narrative.steps]

    assert steps(tmp_path / "alone") == steps(real)


class Garbage(http.server.BaseHTTPRequestHandler):
    """A model server that answers every request with the same well-formed nonsense."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        answer = {
            "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Sure! {]"}}]
        }
        body = json.dumps({"id": "x", "object": "chat.completion", "created": 0, "model": "x", **answer}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def garbage() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Garbage)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    server.shutdown()
    server.server_close()


def test_garbage_answers_give_no_action_at_all(pipelines: Run, data: Path, garbage: str, tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    shutil.copy(data / "videos" / f"{PIZZA}.mp4", tmp_path / "videos")
    out = tmp_path / "out"
    options = (
        "--videos",
        tmp_path / "videos",
        "--out",
        out,
        "--engine",
        "inline",
        "--set",
        f"actions.endpoint={garbage}",
    )
    pipelines("run", *options, code=1)
    assert table(out, "actions") == []
    assert reasons(out) == {f"{PIZZA}.mp4": "no_actions"}
    assert validate(out) == []


def test_youcook2_with_its_own_annotations(pipelines: Run, data: Path, tmp_path: Path) -> None:
    ids = {"va_pepperoni_pizza_narrated.mp4": "GLd3aX16zBg", "longva_cook_water.mp4": "fn9anlEL4FI"}
    (tmp_path / "videos").mkdir()
    for name, video_id in ids.items():
        shutil.copy(data / "videos" / name, tmp_path / "videos" / f"{video_id}.mp4")

    def entry(subset: str, segments: list[tuple[float, float, str]]) -> dict[str, Any]:
        annotations = [{"segment": [s, e], "id": i, "sentence": text} for i, (s, e, text) in enumerate(segments)]
        return {"duration": 60.0, "subset": subset, "recipe_type": "113", "annotations": annotations, "video_url": "u"}

    database = {
        "GLd3aX16zBg": entry(
            "training", [(0, 5, " mix the\ndry ingredients "), (5, 10, "crack an egg"), (12, 20, "pour")]
        ),
        "fn9anlEL4FI": entry(
            "validation", [(1, 9, "boil water"), (8, 15, "add vegetables"), (400, 420, "past the end")]
        ),
        "zzzzzzzzzzz": entry("training", [(0, 5, "never downloaded")]),
    }
    annotations = tmp_path / "annotations.json"
    annotations.write_text(json.dumps({"database": database}))
    out = tmp_path / "out"
    options = ("--source", "youcook2", "--annotations", annotations, "--videos", tmp_path / "videos", "--out", out)
    pipelines("run", *options)
    assert validate(out) == []
    (train,), (val,) = load_split("train", out), load_split("val", out)
    assert train.name == "youcook2-GLd3aX16zBg"
    assert [step.action for step in train.steps] == ["mix the dry ingredients", "crack an egg", "pour"]
    assert [(s.sample.clip.start_s, s.sample.clip.end_s) for s in train.steps] == [(0, 5), (5, 10), (12, 20)]
    assert train.steps[0].sample.action.raw_text == " mix the\ndry ingredients "
    assert {step.sample.action.origin for step in train.steps} == {"manual"}
    assert [step.action for step in val.steps] == ["boil water", "add vegetables"]  # the two overlap, and stay so
    rejects = [(row["narrative"], row["reason"]) for row in table(out, "rejects")]
    assert ("youcook2-zzzzzzzzzzz", "video_missing") in rejects
    assert {reason for name, reason in rejects if name == "youcook2-fn9anlEL4FI"} == {"past_end", "bad_annotation"}
