"""`cookgen-train captioner`: it learns, goes on where it stopped, and says in one line what is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from cookgen.perception.caption_models.llava_next import LlavaNextCaptioner
from cookgen.train import main
from tests.conftest import ROOT
from tests.cookgen.captioner.scenes import scenes, write_set
from tests.shardset import Story, make_set

STEPS = 8


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set to learn and one to measure on."""
    folder = tmp_path_factory.mktemp("sets")
    write_set(folder / "train.jsonl", scenes(12, seed=1))
    write_set(folder / "valid.jsonl", scenes(3, seed=2, held_out=True))
    return folder


def options(tiny: Path, sets: Path, out: Path) -> list[str]:
    text = f"""captioner --model.name {tiny} --captions {sets / "train.jsonl"} --out {out}
        --valid-captions {sets / "valid.jsonl"} --model.num-samples 2 --model.sample-tokens 16
        --training.steps {STEPS} --training.batch-size 2 --training.accumulation 2 --training.learning-rate 3e-3
        --training.warmup-steps 2 --training.precision fp32 --training.num-workers 0 --training.log-every 1
        --training.validate-every 4 --training.checkpoint-every 4 --training.trackers"""
    return text.split()


def train(tiny: Path, sets: Path, out: Path, *more: str) -> int:
    return main([*options(tiny, sets, out), *more])


def curve(out: Path) -> list[dict[str, Any]]:
    """What was logged, without what hangs on the machine."""
    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return [{name: line.get(name) for name in ("kind", "step", "loss", "left_out")} for line in lines]


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_it_learns_and_goes_on_where_it_stopped(
    tiny: Path, sets: Path, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    how = ("--model.lora-rank", "0", "--model.train-vision") if kind == "full" else ("--model.lora-rank", "8")
    how = (*how, "--training.activation-checkpointing")
    assert train(tiny, sets, tmp_path / "whole", *how) == 0
    for stop_after in ("5", str(STEPS)):
        assert train(tiny, sets, tmp_path / "parts", *how, "--training.stop-after", stop_after) == 0
    assert "going on from step-00000005" in capsys.readouterr().err
    found = curve(tmp_path / "whole")
    assert curve(tmp_path / "parts") == found
    losses = [line["loss"] for line in found if line["kind"] == "train"]
    assert len(losses) == STEPS and losses[-1] < 0.75 * losses[0]
    valid = [line["loss"] for line in found if line["kind"] == "valid"]
    assert len(valid) == 2 and valid[1] < valid[0]
    last = f"checkpoints/step-{STEPS:08d}"
    for name in ("model", "optimizer"):
        whole, parts = (load_file(tmp_path / part / last / f"{name}.safetensors") for part in ("whole", "parts"))
        assert whole.keys() == parts.keys() and all(torch.equal(whole[key], parts[key]) for key in whole)

    # The captions beside the checkpoint are those of the model that comes of it.
    said = [json.loads(line) for line in (tmp_path / "whole" / last / "captions.jsonl").read_text().splitlines()]
    held_out = scenes(3, seed=2, held_out=True)[:2]
    assert [line["caption"] for line in said] == [scene.caption for scene in held_out]
    assert said[0]["clip"] == f"{sets / 'valid.jsonl'}:1"
    assert main(["export-captioner", str(tmp_path / "whole" / last), "--to", str(tmp_path / "out")]) == 0
    captioner = LlavaNextCaptioner.load(str(tmp_path / "out"), max_tokens=16)
    assert [line["said"] for line in said] == [captioner.caption(scene.picture()[None], key="a") for scene in held_out]


def test_bf16_beside_lora_and_shards_beside_a_set(tiny_video: Path, sets: Path, tmp_path: Path) -> None:
    shards = make_set(tmp_path / "set", [Story("t", 3), Story("v", 2, split="val")])
    more = ("--shards", str(shards), "--training.precision", "bf16", "--training.steps", "2")
    more = (*more, "--training.num-workers", "1")
    assert train(tiny_video, sets, tmp_path / "run", *more) == 0
    assert len((tmp_path / "run/checkpoints/step-00000002/captions.jsonl").read_text().splitlines()) == 2
    made_of = json.loads((tmp_path / "run/config.json").read_text())["made_of"]
    assert made_of["network"].startswith("tiny@") and len(made_of["captions"]) == 1


def test_another_set_is_another_run(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_set(tmp_path / "train.jsonl", scenes(2, seed=1))
    write_set(tmp_path / "valid.jsonl", scenes(2, seed=2))
    more = ("--model.num-samples", "0", "--training.stop-after", "1")
    assert train(tiny, tmp_path, tmp_path / "run", *more) == 0
    lines = (tmp_path / "train.jsonl").read_text().replace("red", "crimson").replace("blue", "azure")
    (tmp_path / "train.jsonl").write_text(lines)
    assert train(tiny, tmp_path, tmp_path / "run", *more) == 2
    assert "begun with another configuration: made_of.captions was" in capsys.readouterr().err


def test_what_is_wrong_is_said_in_one_line(
    tiny: Path, sets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(*arguments: str) -> str:
        assert main(["captioner", "--out", str(tmp_path / "run"), *arguments]) == 2
        text = capsys.readouterr().err
        assert text.startswith("error: ") and text.count("\n") == 1
        return text

    assert "nothing to learn: give --captions" in said("--model.name", str(tiny))
    captions = ("--captions", str(sets / "train.jsonl"))
    assert "model.name: which LLaVA-NeXT" in said(*captions)
    assert "is written llava-hf/x@<commit>" in said(*captions, "--model.name", "llava-hf/x")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert "its model_type is 'llama'" in said(*captions, "--model.name", str(tmp_path))
    assert "lora_rank=-1" in said(*captions, "--model.lora-rank", "-1")
    assert "--launcher ray" in said(*captions, "--num-ranks", "2")
    bad = tmp_path / "bad.jsonl"
    bad.write_text((sets / "train.jsonl").read_text() + '{"caption": "a"}\n')
    assert "no file in" in said("--model.name", str(tiny), "--captions", str(bad))
    bad = sets / "bad.jsonl"
    bad.write_text((sets / "train.jsonl").read_text() + '{"caption": "a"}\n')
    assert f"{bad}:13: " in said("--model.name", str(tiny), "--captions", str(bad))
    assert main(["export-captioner", str(tmp_path), "--to", str(tmp_path / "out")]) == 2
    assert "no checkpoint there" in capsys.readouterr().err


@pytest.mark.full
@pytest.mark.parametrize("how", ["--training.no-fsdp", "--training.fsdp"])
def test_two_ranks_learn_what_one_does(tiny: Path, sets: Path, tmp_path: Path, how: str) -> None:
    """By torchrun; at the end of the three held-out clips one rank is left without any."""
    full = ("--model.lora-rank", "0", "--model.train-vision")
    rendezvous = ["--nnodes=1", "--nproc-per-node=2", "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0"]
    command = [sys.executable, "-m", "torch.distributed.run", *rendezvous, "-m", "cookgen.train"]
    done = subprocess.run(
        [*command, *options(tiny, sets, tmp_path / "two"), *full, how, "--training.batch-size", "1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert train(tiny, sets, tmp_path / "one", *full) == 0
    one, two = ([line["loss"] for line in curve(tmp_path / name)] for name in ("one", "two"))
    assert two == pytest.approx(one, rel=1e-3)
    last = f"checkpoints/step-{STEPS:08d}"
    assert (tmp_path / "two" / last / "captions.jsonl").exists() == (how == "--training.no-fsdp")
    assert main(["export-captioner", str(tmp_path / "two"), "--to", str(tmp_path / "out")]) == 0
