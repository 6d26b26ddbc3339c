"""`cookgen-train director` as a user runs it: features on first use, validation, a kill and resume, a storyboard."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cookgen.files import file_sha256
from tests.shardset import Story, make_set

BIN = Path(sys.executable).parent
STEPS = 12
SMALL = ("--training.steps", STEPS, "--training.warmup-steps", 2, "--training.log-every", 1)
SMALL = (*SMALL, "--training.checkpoint-every", 4, "--training.validate-every", 4)


def command(*args: object) -> list[str]:
    return [str(BIN / args[0]), *map(str, args[1:])]


def run(*args: object, code: int = 0) -> str:
    done = subprocess.run(command(*args), capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == code, f"exit {done.returncode}, not {code}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout + done.stderr


def curve(out: Path) -> list[dict[str, object]]:
    """What was logged, without what hangs on the machine."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{name: line[name] for name in ("kind", "step", "loss", "terms")} for line in lines]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    splits = 6 * ["train"] + 2 * ["val"]
    stories = [Story(f"kitchen-{n}", num_clips=3, first_shade=3 * n, split=split) for n, split in enumerate(splits)]
    return make_set(tmp_path_factory.mktemp("director") / "shards", stories)


@pytest.fixture(scope="module")
def trained(shards: Path) -> Path:
    """A run that nothing disturbed; the set had no features before it."""
    out = shards.parent / "undisturbed"
    said = run("cookgen-train", "director", "--preset", "tiny", "--shards", shards, "--out", out, *SMALL)
    assert "no features 'conse': computing them, once" in said and "stand-in" in said
    assert (shards / "features" / "conse" / "features.json").is_file()
    return out


def test_it_trains_validates_and_checkpoints(trained: Path) -> None:
    lines = curve(trained)
    assert [line["step"] for line in lines if line["kind"] == "train"] == [*range(1, STEPS + 1)]
    assert [line["step"] for line in lines if line["kind"] == "valid"] == [4, 8, 12]
    assert lines[-2]["loss"] < lines[0]["loss"]
    assert {"text", "visual", "l2", "cosine", "mean_cosine", "previous_cosine"} <= lines[-1]["terms"].keys()
    assert (trained / "best.json").is_file() and list((trained / "tensorboard").iterdir())


@pytest.mark.parametrize("step", [2, 6])
def test_a_killed_run_continues_the_very_same_curve(shards: Path, trained: Path, step: int) -> None:
    out = shards.parent / f"killed-{step}"
    start = command("cookgen-train", "director", "--preset", "tiny", "--shards", shards, "--out", out, *SMALL)
    with subprocess.Popen(start, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        metrics = out / "metrics.jsonl"
        while process.poll() is None and not (metrics.is_file() and len(metrics.read_text().splitlines()) >= step):
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL, "it ended before it was killed"
    assert len(curve(out)) < len(curve(trained))
    run("cookgen-train", "director", "--preset", "tiny", "--shards", shards, "--out", out, *SMALL)
    assert curve(out) == curve(trained)
    last = f"checkpoints/step-{STEPS:08d}/model.safetensors"
    assert file_sha256(out / last) == file_sha256(trained / last)


def test_it_writes_a_storyboard(trained: Path, tmp_path: Path) -> None:
    asked = ("cookgen", "direct", "How to make a pepperoni pizza?", "--checkpoint", trained, "--steps", 2)
    run(*asked, "--out", tmp_path / "first", "--temperature", 1, "--seed", 3)
    run(*asked, "--out", tmp_path / "second", "--temperature", 1, "--seed", 3)
    first, second = ((tmp_path / name / "storyboard.json").read_bytes() for name in ("first", "second"))
    assert first == second
    assert len(json.loads(first)["steps"]) <= 2
    assert (tmp_path / "first" / "index.html").is_file()


def test_what_cannot_be_is_said_in_one_line(shards: Path, trained: Path, tmp_path: Path) -> None:
    train = ("cookgen-train", "director", "--preset", "tiny", "--shards", shards)
    said = run(*train, "--out", trained, *SMALL, "--model.head.alpha", 0.5, code=2)
    assert "alpha" in said and "0.5" in said and "--out" in said
    assert "unknown" in run(*train, "--out", tmp_path / "a", "--features", "dinosaur", code=2)
    assert "organisation/name" in run(*train, "--out", tmp_path / "a", "--features", "clip", code=2)
    assert "unknown preset 'tony'" in run("cookgen-train", "director", "--preset", "tony", code=2)
    empty = tmp_path / "empty"
    shutil.copytree(shards, empty)
    said = run("cookgen-train", "director", "--preset", "qwen2.5-7b", "--features", "conse", "--shards", empty, code=2)
    assert "language-model.name" in said


def test_the_plan_loads_nothing(shards: Path, tmp_path: Path) -> None:
    said = run("cookgen-train", "director", "--preset", "seed-x-7b", "--shards", tmp_path, "--plan")
    assert "6,8" in said and "LoRA of rank 16" in said and "GiB" in said
