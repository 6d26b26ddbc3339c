"""The laws of the loop, in one process; processes of their own are in test_processes.py."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cookgen.errors import InputError, ModelError, OutputError, OutputInUseError, UsageError
from cookgen.files import lock_held
from cookgen.training.config import TrainingConfig
from cookgen.training.report import Report
from tests.cookgen.training.tinytask import curve, run


def weights(out: Path, step: int, name: str = "model") -> dict[str, torch.Tensor]:
    return load_file(out / "checkpoints" / f"step-{step:08d}" / f"{name}.safetensors")


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def close(out: Path, other: Path, *, rtol: float = 1e-4) -> None:
    for left, right in zip(curve(out), curve(other), strict=True):
        assert left["loss"] == pytest.approx(right["loss"], rel=rtol), left["step"]
        assert left["terms"] == pytest.approx(right["terms"], rel=rtol), left["step"]
        if left["kind"] == "train":
            assert left["gradient_norm"] == pytest.approx(right["gradient_norm"], rel=rtol), left["step"]


def test_it_learns(shards: Path, tmp_path: Path) -> None:
    summary = run(shards, tmp_path / "run", steps=40, learning_rate=1e-2, validate_every=20, log_every=10)
    losses = [line["loss"] for line in curve(tmp_path / "run") if line["kind"] == "train"]
    assert losses[-1] < 0.6 * losses[0]
    assert summary.is_finished and summary.best is not None and summary.validation is not None
    assert json.loads((tmp_path / "run" / "best.json").read_text()) == {
        "step": summary.best.step,
        "loss": summary.best.loss,
    }
    (tmp_path / "run" / "best.json").unlink()  # as if it had been killed just before that
    run(shards, tmp_path / "run", steps=40, learning_rate=1e-2, validate_every=20, log_every=10)
    assert json.loads((tmp_path / "run" / "best.json").read_text())["step"] == summary.best.step


def test_four_times_one_is_one_times_four(shards: Path, tmp_path: Path) -> None:
    """The narratives differ in length, so that a mean of means would not do."""
    task = {"dropout": 0.0}
    run(shards, tmp_path / "whole", task=task, batch_size=4, accumulation=1)
    run(shards, tmp_path / "parts", task=task, batch_size=1, accumulation=4)
    close(tmp_path / "whole", tmp_path / "parts")
    run(shards, tmp_path / "other", task=task, batch_size=2, accumulation=1)
    with pytest.raises(AssertionError):
        close(tmp_path / "whole", tmp_path / "other")


@pytest.mark.parametrize("stops", [(1,), (3, 2), (5,)])
def test_resumed_bit_for_bit(shards: Path, tmp_path: Path, stops: tuple[int, ...]) -> None:
    """Also in the middle of an epoch of 4 updates, and at its end."""
    changes: dict[str, Any] = {"steps": 9, "ema_decay": 0.7, "keep_last": 9}
    run(shards, tmp_path / "whole", **changes)
    says: list[str] = []
    for stop_after in stops:
        summary = run(shards, tmp_path / "parts", stop_after=stop_after, says=says, **changes)
        assert not summary.is_finished and "the same command goes on from there" in says[-1]
    assert run(shards, tmp_path / "parts", **changes, says=says).is_finished
    assert curve(tmp_path / "parts") == curve(tmp_path / "whole")
    for name in ("model", "ema", "optimizer", "rng-0"):
        assert same(weights(tmp_path / "parts", 9, name), weights(tmp_path / "whole", 9, name)), name
    assert f"going on from step-{stops[0]:08d}" in " ".join(says)


def test_lines_after_the_checkpoint_are_cut_off(shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(shards, out, stop_after=4)
    before = curve(out)
    with (out / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "step": 5, "loss": 1.0}\n["no record"]\n{"step": 6, "lo')
    (out / "checkpoints" / ".tmp-step-00000006").mkdir()
    run(shards, out, stop_after=1)
    assert curve(out)[: len(before)] == before and [line["step"] for line in curve(out)[len(before) :]] == [5]
    assert not list((out / "checkpoints").glob(".tmp*"))


def test_validation_and_its_frequency_change_nothing(shards: Path, tmp_path: Path) -> None:
    run(shards, tmp_path / "often", validate_every=1, checkpoint_every=1, ema_decay=0.5)
    run(shards, tmp_path / "never", task={"validates": False}, ema_decay=0.5)
    assert same(weights(tmp_path / "often", 6), weights(tmp_path / "never", 6))
    assert not (tmp_path / "never" / "best.json").exists()
    assert [line["kind"] for line in curve(tmp_path / "never")] == ["train"] * 6


def test_the_mean_of_the_weights_is_validated(shards: Path, tmp_path: Path) -> None:
    run(shards, tmp_path / "plain", steps=3)
    run(shards, tmp_path / "mean", steps=3, ema_decay=0.9)
    plain, mean = curve(tmp_path / "plain"), curve(tmp_path / "mean")
    assert plain[:3] == mean[:3] and plain[3]["loss"] != mean[3]["loss"]
    assert same(weights(tmp_path / "plain", 3), weights(tmp_path / "mean", 3))


def test_recomputing_changes_nothing(shards: Path, tmp_path: Path) -> None:
    run(shards, tmp_path / "plain", steps=3)
    run(shards, tmp_path / "other", steps=3, activation_checkpointing=True)
    assert curve(tmp_path / "plain") == curve(tmp_path / "other")  # dropout is the same the second time
    assert same(weights(tmp_path / "plain", 3), weights(tmp_path / "other", 3))


@pytest.mark.full
@pytest.mark.filterwarnings("default")  # of torch's own compiler
def test_compiling_changes_little(shards: Path, tmp_path: Path) -> None:
    task = {"dropout": 0.0}  # a compiled layer draws other random numbers
    run(shards, tmp_path / "plain", task=task, steps=3)
    run(shards, tmp_path / "other", task=task, steps=3, compile=True, activation_checkpointing=True)
    close(tmp_path / "plain", tmp_path / "other")
    assert weights(tmp_path / "plain", 3).keys() == weights(tmp_path / "other", 3).keys()


def test_bf16_keeps_its_weights_in_fp32(shards: Path, tmp_path: Path) -> None:
    run(shards, tmp_path / "run", steps=3, precision="bf16")
    assert {tensor.dtype for tensor in weights(tmp_path / "run", 3).values()} == {torch.float32}
    losses = [line["loss"] for line in curve(tmp_path / "run")]
    assert all(isinstance(loss, float) for loss in losses)


def test_a_finished_run_does_nothing(shards: Path, tmp_path: Path) -> None:
    out, says = tmp_path / "run", []
    run(shards, out, steps=2)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.*") if path.name not in (".lock", "best.json")}
    summary = run(shards, out, steps=2, says=says)
    assert summary.is_finished and summary.loss is None and "all 2 steps are done" in says[0]
    assert before == {
        path: path.stat().st_mtime_ns for path in out.rglob("*.*") if path.name not in (".lock", "best.json")
    }


def test_another_configuration(shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(shards, out, stop_after=2)
    with pytest.raises(UsageError) as error:
        run(shards, out, learning_rate=2e-7, batch_size=1)
    for part in ("training.learning_rate was 0.003, is 2e-07", "training.batch_size was 2, is 1", "another --out"):
        assert part in str(error.value)
    with pytest.raises(UsageError, match=r"the digest of the split's items.*another --out"):
        run(shards, out, task={"num_items": 6})
    assert run(shards, out, validate_every=2, keep_last=1).is_finished  # machinery may change


@pytest.mark.parametrize("poison", [0, 3])
def test_a_loss_that_is_no_number(shards: Path, tmp_path: Path, poison: int) -> None:
    out = tmp_path / "run"
    with pytest.raises(ModelError) as error:
        run(shards, out, task={"poison_step": poison}, validate_every=99)
    assert f"step {poison + 1}: visual is nan" in str(error.value) and "Lower learning_rate" in str(error.value)
    kept = "step-00000002 is the last good checkpoint" if poison else "no checkpoint yet"
    assert kept in str(error.value)
    assert [line["step"] for line in curve(out)] == list(range(1, poison + 1))
    if poison:
        assert run(shards, out).is_finished  # goes on from the last good one


@pytest.mark.parametrize("num_items", [0, 1])
def test_an_empty_split(shards: Path, tmp_path: Path, num_items: int) -> None:
    with pytest.raises(InputError, match=r"tiny: the train split is empty or too small, it makes no batch of 2 items"):
        run(shards, tmp_path / "run", task={"num_items": num_items})


def test_data_that_cannot_be_read(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="made unreadable"):
        run(shards, tmp_path / "run", task={"unreadable": "demo-t5"})


def test_another_run_holds_the_folder(shards: Path, tmp_path: Path) -> None:
    with lock_held(tmp_path / ".lock", tmp_path, choose="--out"), pytest.raises(OutputInUseError, match="--out"):
        run(shards, tmp_path)


def test_folders_that_are_no_training_s(shards: Path, tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "llama"}')
    for folder, name in ((tmp_path, "holiday.jpg"), (tmp_path / "model", "config.json")):
        with pytest.raises(OutputError, match=f"holds {name} and no config.json of a training"):
            run(shards, folder)
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["config.json"]
    with pytest.raises(OutputError, match=r"cannot be written"):
        run(shards, tmp_path / "holiday.jpg")


@pytest.mark.parametrize(("number", "error"), [(signal.SIGTERM, None), (signal.SIGINT, KeyboardInterrupt)])
def test_signals_end_the_run_after_the_update(
    shards: Path, tmp_path: Path, number: signal.Signals, error: type[BaseException] | None
) -> None:
    says: list[str] = []

    def say(line: str) -> None:
        says.append(line)
        if line.startswith("step 3/") and "validation" not in line:
            os.kill(os.getpid(), number)

    class Says(list[str]):
        append = staticmethod(say)

    before = signal.getsignal(number)
    if error:
        with pytest.raises(error):
            run(shards, tmp_path / "run", says=Says(), checkpoint_every=99)
    else:
        assert run(shards, tmp_path / "run", says=Says(), checkpoint_every=99).step == 4
    assert signal.getsignal(number) == before
    assert "stopped after step 4 of 6" in says[-1]
    assert run(shards, tmp_path / "run", checkpoint_every=99).is_finished
    run(shards, tmp_path / "whole", checkpoint_every=99)
    assert curve(tmp_path / "run") == curve(tmp_path / "whole")


def test_tensorboard(shards: Path, tmp_path: Path) -> None:
    run(shards, tmp_path / "run", steps=4, stop_after=2, trackers=("tensorboard",), peak_tflops=1.0)
    run(shards, tmp_path / "run", steps=4, trackers=("tensorboard",), peak_tflops=1.0)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    lines = {line["step"]: line for line in curve(tmp_path / "run") if line["kind"] == "train"}
    found = {event.step: event.value for event in events.Scalars("train/loss")}
    assert found == pytest.approx({step: line["loss"] for step, line in lines.items()}, rel=1e-6)
    assert {"train/mfu", "train/tokens_per_s", "train/visual", "valid/loss", "valid/l2"} <= set(
        events.Tags()["scalars"]
    )


def test_a_tracker_that_is_not_installed(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cookgen.training.report.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="wandb is not installed; run `pip install wandb`"):
        run(shards, tmp_path / "run", trackers=("wandb",))
    assert not (tmp_path / "run").exists()


def test_a_full_disk_while_logging(tmp_path: Path) -> None:
    config, told = TrainingConfig(trackers=()), {"kind": "train", "step": 1, "terms": {}}
    report = Report(tmp_path, config, {}, title="tiny", step=0, loss_terms=(), say=print)
    report._file.close()
    with (
        Path("/dev/full").open("a", encoding="utf-8") as report._file,
        pytest.raises(OutputError, match="the disk is full"),
        report,
    ):
        report.add(told)


def test_only_matrices_decay(shards: Path, tmp_path: Path) -> None:
    """With a decay of almost everything, matrices shrink and the rest moves as without one."""
    for name, decay in (("none", 0.0), ("much", 0.5)):
        run(shards, tmp_path / name, steps=1, warmup_steps=0, learning_rate=0.5, weight_decay=decay)
    none, much = weights(tmp_path / "none", 1), weights(tmp_path / "much", 1)
    for name, tensor in none.items():
        assert torch.equal(tensor, much[name]) == (tensor.ndim == 1), name
