"""`cookgen-train`: the presets of 7B models on the same path at tiny size, and what the command says."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from cookgen.config import known_names
from cookgen.director.model import Director
from cookgen.director.task import DirectorTask
from cookgen.director.weights import load_director
from cookgen.errors import InputError, UsageError
from cookgen.train import DirectorRun, ensure_features, main, seed_x_7b, train_director
from tests.conftest import ROOT
from tests.cookgen.director.narratives import byte_tokenizer, language_model
from tests.shardset import Story, add_features, make_set

STEPS = 4


@pytest.fixture(autouse=True)
def one_run_a_process() -> Iterator[None]:
    """accelerate remembers precision and device for the life of a process; each test is one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """6 narratives to train on and 2 to validate, with features of 4 tokens."""
    stories = [Story(f"t{number}", num_clips=2 + number % 3, first_text=f"Chop {number} leeks") for number in range(6)]
    stories += [Story(f"v{number}", num_clips=2 + number, split="val", first_shade=10) for number in range(2)]
    out = make_set(tmp_path_factory.mktemp("train") / "set", stories)
    add_features(out, "tiny", (4, 6))
    return out


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny language model in a folder, with its tokenizer."""
    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("models") / "own"
    language_model("llama").save_pretrained(place)
    byte_tokenizer().save_pretrained(place)
    return place


def small(shards: Path, own: Path, out: Path, **training: Any) -> DirectorRun:
    """The preset of a 7B model with another language model, other features and few, quick updates."""
    run = seed_x_7b()
    assert run.training.precision == "bf16" and run.training.compile  # a minute on a CPU: test_gpu.py has it
    lm_config = replace(run.model.language_model, name=str(own), shape="checkpoint", lora_rank=4, attention="sdpa")
    machinery = {"compile": False, "activation_checkpointing": True}
    short = {"steps": STEPS, "accumulation": 2, "learning_rate": 3e-3, "warmup_steps": 1, "num_workers": 0}
    often = {"log_every": 1, "validate_every": 2, "checkpoint_every": 2, "trackers": ()}
    return replace(
        run,
        shards=(shards,),
        out=out,
        features="tiny",
        model=replace(run.model, language_model=lm_config),
        training=replace(run.training, **machinery | short | often | training),  # type: ignore[arg-type]
    )


def curve(out: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what hangs on the clock and the machine."""
    clock = {"step_s", "tokens_per_s", "data_wait", "mfu", "seconds", "memory_bytes"}
    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return [{name: value for name, value in line.items() if name not in clock} for line in lines]


def weights(out: Path, name: str = "model") -> dict[str, torch.Tensor]:
    return load_file(out / f"checkpoints/step-{STEPS:08d}/{name}.safetensors")


def is_own(name: str) -> bool:
    """Whether LoRA trains the weight of this name."""
    return "lora_" in name or not name.startswith("language_model.")


def test_lora_on_a_bf16_base_goes_on_where_it_stopped(
    shards: Path, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[Director] = []
    build = DirectorTask.build

    def noted(task: DirectorTask) -> Director:
        built.append(build(task))
        return built[-1]

    monkeypatch.setattr(DirectorTask, "build", noted)
    said: list[str] = []
    train_director(small(shards, own, tmp_path / "whole"), said.append)
    for stop_after in (1, 2, None):
        train_director(small(shards, own, tmp_path / "parts", stop_after=stop_after), said.append)
    assert "going on from step-00000003" in " ".join(said)
    found = curve(tmp_path / "whole")
    assert [(line["kind"], line["step"]) for line in found] == [
        ("train", 1),
        ("train", 2),
        ("valid", 2),
        ("train", 3),
        ("train", 4),
        ("valid", 4),
    ]
    assert curve(tmp_path / "parts") == found
    for name in ("model", "optimizer", "rng-0"):
        whole, parts = weights(tmp_path / "whole", name), weights(tmp_path / "parts", name)
        assert whole.keys() == parts.keys()
        assert all(torch.equal(tensor, parts[key]) for key, tensor in whole.items()), name
    assert all(line["left_out"] == {"steps_too_long": 0, "narratives_cut": 0} for line in found if "left_out" in line)

    # The base is in no checkpoint, and is what it was: bf16 of the folder's.
    assert all(map(is_own, weights(tmp_path / "whole")))
    assert all(map(is_own, weights(tmp_path / "whole", "optimizer")))
    base = dict(AutoModelForCausalLM.from_pretrained(own, dtype=torch.bfloat16).named_parameters())
    frozen = {
        name.replace("_checkpoint_wrapped_module.", ""): weight
        for name, weight in built[0].named_parameters()
        if not weight.requires_grad
    }
    assert len(frozen) == len(base)
    for name, weight in frozen.items():
        plain = name.removeprefix("language_model.").replace(".base_layer", "")
        assert weight.dtype == torch.bfloat16 and torch.equal(weight.cpu(), base[plain]), name
    assert all(weight.dtype == torch.float32 for weight in built[0].parameters() if weight.requires_grad)


def test_the_result_opens(shards: Path, own: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train_director(small(shards, own, out), lambda text: None)
    loaded = load_director(out / f"checkpoints/step-{STEPS:08d}")
    assert loaded.step == STEPS and loaded.features is not None and loaded.features.name == "tiny"
    adapters = {name: weight for name, weight in loaded.director.named_parameters() if "lora_B" in name}
    assert len(adapters) == 2 * 7
    assert all(weight.any() for weight in adapters.values())  # zeros at first
    saved = weights(out)
    for name, weight in filter(lambda item: is_own(item[0]), loaded.director.named_parameters()):
        assert weight.dtype == (torch.bfloat16 if "lora_" in name else torch.float32)
        assert torch.equal(weight, saved[name].to(weight.dtype)), name
    task = DirectorTask(loaded.director.config, [shards], features="tiny")
    loader = task.loader("valid", batch_size=1, num_workers=0, seed=0)
    assert loader is not None
    text, count = 0.0, 0
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for batch in loader:
            text += loaded.director(batch)["text"].item()
            count += batch.counts["text"]
    last = [line for line in curve(out) if line["kind"] == "valid"][-1]
    assert text / count == pytest.approx(last["terms"]["text"], rel=0.02)


def test_another_base_is_another_run(
    shards: Path, own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = options(shards, own, tmp_path / "run")
    assert main([*arguments, "--training.stop-after", "1"]) == 0
    assert main([*arguments, "--model.language-model.lora-rank", "8"]) == 2
    assert "lora_rank was 4, is 8" in capsys.readouterr().err


def test_nothing_to_learn_is_an_error(shards: Path, own: Path, tmp_path: Path) -> None:
    run = small(shards, own, tmp_path / "run")
    short = replace(run, model=replace(run.model, sequence=replace(run.model.sequence, max_length=16)))
    with pytest.raises(InputError, match=r"nothing to learn .* train split.*steps_too_long"):
        train_director(short, lambda text: None)


def test_features_are_those_that_were_asked_for(shards: Path, tmp_path: Path) -> None:
    """By setting and by model, whatever the features are called."""
    with pytest.raises(UsageError, match="of no encoder here; leave --encoder-model out"):
        ensure_features(shards, "tiny", "organisation/name", ())
    shards = Path(shutil.copytree(shards, tmp_path / "set"))
    listing = shards / "features/tiny/features.json"
    listing.write_text(json.dumps(json.loads(listing.read_text()) | {"config": {"kind": "conse", "num_tokens": 4}}))
    with pytest.raises(UsageError, match="its num_tokens is 4, --encoder-settings says num_tokens=64"):
        ensure_features(shards, "tiny", None, ("num_tokens=64",))
    ensure_features(shards, "tiny", None, ("num_tokens=4", "else=1"))
    with pytest.raises(UsageError, match="conse has models of its own"):
        ensure_features(shards, "tiny", "organisation/name", ())


def options(shards: Path, own: Path, out: Path) -> list[str]:
    """`small` as a user writes it."""
    text = f"""director --preset seed-x-7b --shards {shards} --out {out} --features tiny --encoder-settings
        --model.language-model.name {own} --model.language-model.shape checkpoint --model.language-model.lora-rank 4
        --model.language-model.attention sdpa --training.no-compile --training.activation-checkpointing
        --training.steps {STEPS} --training.accumulation 2 --training.learning-rate 3e-3 --training.warmup-steps 1
        --training.num-workers 0 --training.log-every 1 --training.validate-every 2 --training.checkpoint-every 2
        --training.trackers"""
    return text.split()


@pytest.mark.full
def test_two_sharded_ranks(shards: Path, own: Path, tmp_path: Path) -> None:
    """By torchrun, with FSDP2: a frozen bf16 base beside float32 adapters, resumed, and opened by one process."""
    rendezvous = ["--nnodes=1", "--nproc-per-node=2", "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0"]
    command = [sys.executable, "-m", "torch.distributed.run", *rendezvous, "-m", "cookgen.train"]
    env = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}

    def torchrun(out: Path, *more: str) -> None:
        done = subprocess.run(
            [*command, *options(shards, own, out), "--training.fsdp", *more],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
            env=env,
        )
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"

    torchrun(tmp_path / "whole")
    torchrun(tmp_path / "parts", "--training.stop-after", "2")
    torchrun(tmp_path / "parts")
    assert len(curve(tmp_path / "whole")) == STEPS + 2
    assert curve(tmp_path / "parts") == curve(tmp_path / "whole")
    for name in ("model", "optimizer"):
        whole, parts = weights(tmp_path / "whole", name), weights(tmp_path / "parts", name)
        assert whole.keys() == parts.keys() and all(map(is_own, whole))
        assert all(torch.equal(tensor, parts[key]) for key, tensor in whole.items()), name
    # One process with as many narratives an update draws other dropout masks: near, not the same.
    train_director(small(shards, own, tmp_path / "one", accumulation=4), lambda text: None)
    one, two = curve(tmp_path / "one"), curve(tmp_path / "whole")
    assert [line["loss"] for line in two] == pytest.approx([line["loss"] for line in one], rel=0.05)
    assert weights(tmp_path / "one").keys() == weights(tmp_path / "whole").keys()
    loaded = load_director(tmp_path / "whole")
    assert all(weight.any() for name, weight in loaded.director.named_parameters() if "lora_B" in name)


def test_contradictions_are_told_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["director", "--training.steps", "10"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: training: warmup_steps=20: more than steps=10") and said.count("\n") == 1
    assert main(["director", "--num-ranks", "4"]) == 2
    assert "--launcher ray" in capsys.readouterr().err


def test_help_has_a_word_on_every_option(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")  # the text in one line below the option
    assert main(["director", "--help"]) == 0
    said = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    lines = [line.strip(" │") for line in said.splitlines()]
    told = {line.split()[0].rstrip(","): text for line, text in pairwise(lines) if re.match(r"--?[a-z]", line)}
    settings = {"--" + name.replace("_", "-") for name in known_names(seed_x_7b())}
    assert told.keys() == settings | {"-h", "--preset", "--plan", "--launcher", "--ray-address", "--num-ranks"}
    assert [name for name, text in told.items() if not re.match(r"[^\s(]", text)] == []  # no more than "(default: …)"


def test_a_plan_comes_before_a_download(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *args, **options: pytest.fail("downloads"))
    name = "Qwen/Qwen2.5-7B@" + "0" * 40
    assert main(["director", "--preset", "qwen2.5-7b", "--model.language-model.name", name, "--plan"]) == 0
    assert "parameters: 7,6" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("preset", "millions"), [("tiny", 3), ("smollm2-135m", 135), ("qwen2.5-7b", 7600), ("seed-x-7b", 6800)]
)
def test_a_plan_needs_no_weights(
    preset: str, millions: float, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["director", "--preset", preset, "--plan"]) == 0
    said = capsys.readouterr().out
    found = re.search(r"parameters: ([\d,.]+) M, of which trained ([\d,.]+) M", said)
    assert found is not None, said
    total, trained = (float(number.replace(",", "")) for number in found.groups())
    assert total == pytest.approx(millions, rel=0.1)
    assert (trained < total / 50) == preset.endswith("7b")
    assert re.search(r"memory: about [\d,.]+ GiB", said) and re.search(r"time: about [\d,.]+ s an update", said)
    assert not list(tmp_path.iterdir())
