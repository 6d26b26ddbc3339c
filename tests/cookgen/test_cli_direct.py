"""`cookgen direct`: from a checkpoint to a storyboard."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from cookgen.cli import main
from cookgen.dataset.split import load_split
from cookgen.director.weights import Encoded
from cookgen.features import compute_features, encoder_config
from tests.cookgen.director import tinydirector as tiny
from tests.shardset import Story, add_features, make_set

QUERY = "How to make a pepperoni pizza?"
Direct = Callable[..., int]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set with features of a real encoder."""
    out = make_set(tmp_path_factory.mktemp("sets") / "set", [Story("a"), Story("b", split="val", first_shade=4)])
    compute_features(out, encoder_config("conse", settings=["num_workers=0"]))
    return out


@pytest.fixture(scope="module")
def run(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run's folder of a director of these features."""
    found = load_split("train", shards, features=("conse",))[0].reader.sidecars["conse"].features
    features = Encoded("conse", found.model, found.revision, found.config, None)
    out = tmp_path_factory.mktemp("run")
    tiny.save(tiny.make_checkpoint(z_shape=(1, 384), features=features), out / "checkpoints" / "step-00000007")
    return out


@pytest.fixture
def direct(run: Path, tmp_path: Path) -> Direct:
    def call(*options: str | Path, query: str = QUERY, checkpoint: Path = run, out: str = "out") -> int:
        most = ("--steps", "3", "--max-tokens", "8")
        options = ("--checkpoint", checkpoint, "--out", tmp_path / out, *most, *options)
        return main(["direct", query, *map(str, options)])

    return call


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_it_writes_a_storyboard(direct: Direct, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert direct() == 0
    said, errors = capsys.readouterr()
    assert errors == ""
    values = json.loads((tmp_path / "out/storyboard.json").read_bytes())
    assert values["query"] == QUERY and values["checkpoint"] == {"step": 7, "language_model": "random"}
    assert said.splitlines()[-1].endswith(f"{tmp_path / 'out/index.html'}")
    assert said.count("\n- ") + said.startswith("- ") == len(values["steps"])
    assert np.load(tmp_path / "out/z/000.npy").shape == (1, 384)


def test_the_seed_decides_on_any_number_of_threads(direct: Direct, tmp_path: Path) -> None:
    draw = ("--temperature", "1.5", "--top-p", "0.9")
    before = torch.get_num_threads()
    try:
        for number, (seed, threads) in enumerate([("1", 1), ("1", 2), ("2", 2)]):
            torch.set_num_threads(threads)
            assert direct(*draw, "--seed", seed, out=f"out{number}") == 0
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    first, again, other = (contents(tmp_path / f"out{number}") for number in range(3))
    assert first == again
    assert first["storyboard.json"] != other["storyboard.json"]


def test_a_given_pair_and_the_nearest_keyframes(direct: Direct, shards: Path, tmp_path: Path) -> None:
    step = load_split("train", shards, unit="clip", features=("conse",))[1]
    (tmp_path / "first.jpg").write_bytes(step.read("jpg"))
    given = ("--image", tmp_path / "first.jpg", "--action", "Stir <b>the pot</b>", "--caption", "a pan")
    assert direct(*given, "--nearest", shards) == 0
    first, *later = json.loads((tmp_path / "out/storyboard.json").read_bytes())["steps"]
    assert (first["action"], first["caption"], first["is_given"]) == ("Stir <b>the pot</b>", "a pan", True)
    assert not any(step["is_given"] for step in later)
    assert np.array_equal(np.load(tmp_path / "out/z/000.npy")[0], step.features["conse"].astype(np.float32))
    assert first["nearest"]["cosine"] == pytest.approx(1, abs=1e-3)
    html = (tmp_path / "out/index.html").read_text()
    assert "given keyframe" in html and "given: action, caption, image" in html
    assert "Stir &lt;b&gt;the pot&lt;/b&gt;" in html
    assert "No picture here was generated." in html


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--steps", "0"], "steps=0"),
        (["--top-p", "0"], "top_p=0.0"),
        (["--top-p", "1.5"], "top_p=1.5"),
        (["--temperature", "-1"], "temperature=-1.0"),
        (["--temperature", "nan"], "temperature=nan"),
        (["--seed", "-3"], "seed=-3"),
        (["--max-tokens", "0"], "max_tokens=0"),
        (["--steps", "many"], "many"),
        (["--image", "nowhere.jpg"], "nowhere.jpg: there is no such file"),
        (["--action", ""], "action: is empty"),
        (["--nearest", "nowhere"], "nowhere/dataset.json: not found"),
        (["--checkpoint", "nowhere"], "nowhere: no checkpoint of a director there"),
        (["--nonsense"], "--nonsense"),
    ],
    ids=" ".join,
)
def test_what_cannot_be_is_one_line(
    options: list[str], words: str, direct: Direct, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert direct(*options) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert re.fullmatch(f"error: .*{re.escape(words)}.*\n", output.err), output.err
    assert not (tmp_path / "out").exists()


def test_queries_folders_and_sets_that_cannot_be(
    direct: Direct, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*options: str | Path, **others: object) -> str:
        assert direct(*options, **others) == 2
        output = capsys.readouterr()
        assert output.out == "" and output.err.count("\n") == 1
        return output.err

    assert "the query is empty" in refused(query=" ")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    assert "holds something else than a storyboard" in refused(out="full")
    assert sorted(contents(tmp_path / "full")) == ["thesis.txt"]
    other = make_set(tmp_path / "other", [Story("c")])
    assert f"cookgen features {other} --encoder conse --name conse" in refused("--nearest", other)
    add_features(other, "conse", (384,))
    assert "are of none@1 with {}, the director's z of efficientnet-lite0" in refused("--nearest", other)
    broken = tmp_path / "broken"
    shutil.copytree(run, broken)
    (broken / "checkpoints/step-00000007/model.safetensors").write_bytes(b"x")
    assert "not a whole checkpoint" in refused(checkpoint=broken)
    (tmp_path / "first.jpg").write_bytes(b"hello")
    assert "not a readable picture" in refused("--image", tmp_path / "first.jpg")


def test_a_picture_for_another_encoder(tmp_path: Path, shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    step = load_split("train", shards, unit="clip")[0]
    (tmp_path / "first.jpg").write_bytes(step.read("jpg"))
    cases = {
        "text": Encoded("x", "none", "1", {"kind": "text", "version": 1, "field": "action"}, "all-minilm-l6-v2"),
        "conse": Encoded("x", "older", "0.1", {"kind": "conse", "version": 1}, None),
    }
    for name, features in cases.items():
        folder = tiny.save(tiny.make_checkpoint(features=features), tmp_path / name)
        options = ["--checkpoint", folder, "--image", tmp_path / "first.jpg", "--out", tmp_path / "out"]
        assert main(["direct", QUERY, *map(str, options)]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and f"{features.model}@{features.revision}" in error
    words = tiny.save(tiny.make_checkpoint(task="action-caption"), tmp_path / "words")
    assert main(["direct", QUERY, "--checkpoint", str(words), "--image", str(tmp_path / "first.jpg")]) == 2
    assert "writes texts alone" in capsys.readouterr().err


def test_the_installed_command(run: Path, tmp_path: Path) -> None:
    """In a process of its own: no library adds lines of its own."""
    command = [
        Path(sys.executable).with_name("cookgen"),
        "direct",
        QUERY,
        "--checkpoint",
        run,
        "--out",
        tmp_path / "out",
    ]
    done = subprocess.run([*command, "--steps", "1"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("- ") and (tmp_path / "out/storyboard.json").is_file()
