from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cookgen.errors import InputError, OutputError
from cookgen.training import checkpoint
from cookgen.training.checkpoint import State, Validation
from tests.cookgen.training.tinytask import curve, run


def state(step: int, loss: float | None = None) -> State:
    validation = None if loss is None else Validation(step=step, loss=loss, terms={"text": loss})
    return State(step=step, num_ranks=1, loader={}, validation=validation, left_out={})


def save(folder: Path, step: int, loss: float | None = None, *, keep_last: int = 2, best: int | None = None) -> Path:
    tensors = {"weight": torch.full((2,), float(step))}
    files = dict.fromkeys(["model.safetensors", "optimizer.safetensors", "rng-0.safetensors"], tensors)
    return checkpoint.save(folder, state(step, loss), files, lambda _: None, keep_last=keep_last, best_step=best)


def test_keeps_the_last_and_the_best(tmp_path: Path) -> None:
    for step, loss in ((1, 3.0), (2, 1.0), (3, 2.0), (4, 2.0), (5, 1.0)):
        save(tmp_path, step, loss, best=1 if step == 1 else 2)
    assert checkpoint.steps(tmp_path) == ["step-00000002", "step-00000004", "step-00000005"]
    best = checkpoint.best(tmp_path)
    assert best is not None and best.step == 2  # the earlier of equals


@pytest.mark.parametrize("name", ["model.safetensors", "rng-0.safetensors", "state.json"])
@pytest.mark.parametrize("how", ["flip", "cut", "remove"])
def test_a_damaged_one_is_named_and_the_one_before_is_used(tmp_path: Path, name: str, how: str) -> None:
    save(tmp_path, 1)
    path = save(tmp_path, 2) / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    {
        "flip": lambda: path.write_bytes(content),
        "cut": lambda: path.write_bytes(content[:-9]),
        "remove": path.unlink,
    }[how]()
    says: list[str] = []
    found = checkpoint.newest(tmp_path, says.append)
    if name == "state.json" and how == "flip" and found is not None and found.state.step == 2:
        pytest.skip("the flipped bit changed nothing that is read")
    assert found is not None and found.state.step == 1
    assert len(says) == 1 and "step-00000002: damaged" in says[0] and "going on from step-00000001" in says[0]
    assert (tmp_path / "damaged-step-00000002").is_dir()
    assert checkpoint.newest(tmp_path, says.append) is not None and len(says) == 1


def test_all_damaged(tmp_path: Path) -> None:
    (save(tmp_path, 1) / "model.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match=r"no whole one before it.*remove the folder"):
        checkpoint.newest(tmp_path, print)
    assert checkpoint.steps(tmp_path) == ["step-00000001"]  # nothing is touched


@pytest.mark.parametrize(
    "change",
    [
        {"sha256s": {"../../secret": "0"}},
        {"sha256s": {"/etc/passwd": "0"}},
        {"step": -1},
        {"step": 7},
        {"num_ranks": 2},
        {"surprise": 1},
    ],
)
def test_hostile_states(tmp_path: Path, change: dict[str, object]) -> None:
    path = save(tmp_path, 1) / "state.json"
    values = json.loads(path.read_text())
    if "sha256s" in change:
        change = {"sha256s": values["sha256s"] | change["sha256s"]}  # type: ignore[operator]
    path.write_text(json.dumps(values | change))
    with pytest.raises(InputError, match="damaged"):
        checkpoint.read(path.parent)


def test_an_older_one_goes_only_when_the_next_is_whole(tmp_path: Path) -> None:
    save(tmp_path, 1, keep_last=1)

    def fail(folder: Path) -> None:
        assert checkpoint.steps(tmp_path) == ["step-00000001"]
        raise InputError("a tokenizer that is no tokenizer")

    with pytest.raises(InputError, match="no tokenizer"):
        checkpoint.save(tmp_path, state(2), {}, fail, keep_last=1, best_step=None)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_a_tokenizer_that_finds_the_disk_full(tmp_path: Path) -> None:
    """tokenizers says so in a bare Exception."""

    def fail(folder: Path) -> None:
        raise Exception("File too large (os error 27)")

    with pytest.raises(OutputError, match="File too large"):
        checkpoint.save(tmp_path, state(1), {}, fail, keep_last=1, best_step=None)


def test_random_numbers_go_on(tmp_path: Path) -> None:
    def draws() -> list[float]:
        return [torch.rand(()).item(), random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn()]

    for _ in range(2):  # an odd number of gauss draws leaves one over
        random.gauss(0, 1)
        np.random.randn()
        before = checkpoint.rng_state(torch.device("cpu"))
        expected = draws()
        draws()
        checkpoint.set_rng_state(before, torch.device("cpu"))
        assert draws() == expected


def test_what_is_in_the_files(shards: Path, tmp_path: Path) -> None:
    folder = run(shards, tmp_path / "run", steps=2, ema_decay=0.5).checkpoint
    model, ema = load_file(folder / "model.safetensors"), load_file(folder / "ema.safetensors")
    assert "embedding.weight" in model and "words.weight" not in model  # tied: once
    assert "z_mean" in model and "blocks.1.qkv.weight" in model
    assert not any("frozen" in name for name in model)
    assert model.keys() == ema.keys() and not torch.equal(model["z_head.weight"], ema["z_head.weight"])
    optimizer = load_file(folder / "optimizer.safetensors")
    assert optimizer["embedding.weight.step"].item() == 2
    assert optimizer.keys() == {
        f"{name}.{key}" for name in model if name != "z_mean" for key in ("step", "exp_avg", "exp_avg_sq")
    }
    assert json.loads((folder / "config.json").read_text())["data"] == "shards"
    assert (folder / "vocabulary" / "bytes.txt").exists()
    assert "vocabulary/bytes.txt" in json.loads((folder / "state.json").read_text())["sha256s"]
    assert not [path for path in folder.rglob("*") if path.suffix in (".pt", ".pkl", ".bin")]


@pytest.mark.parametrize("name", ["model.safetensors", "ema.safetensors", "optimizer.safetensors"])
def test_a_checkpoint_of_another_model(shards: Path, tmp_path: Path, name: str) -> None:
    from safetensors.torch import save_file

    from cookgen.files import file_sha256

    out = tmp_path / "run"
    folder = run(shards, out, stop_after=2, ema_decay=0.5).checkpoint
    tensors = load_file(folder / name)
    key = next(iter(sorted(tensors)))
    save_file(tensors | {key: torch.zeros(3, 3)}, folder / name)
    values = json.loads((folder / "state.json").read_text())
    values["sha256s"][name] = file_sha256(folder / name)
    (folder / "state.json").write_text(json.dumps(values))
    before = curve(out)
    with pytest.raises(InputError, match=rf"{name}: {key} has the shape \(3, 3\)"):
        run(shards, out, ema_decay=0.5)
    assert curve(out) == before
