"""What a training tells: a live line on a terminal, plain lines elsewhere, metrics.jsonl, and trackers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from accelerate.tracking import GeneralTracker, TensorBoardTracker, WandBTracker
from rich.console import Console
from rich.live import Live
from rich.text import Text

from cookgen.errors import UsageError
from cookgen.files import digest, explained, write_atomic
from cookgen.training.config import TrainingConfig

Record = Mapping[str, Any]


def check_trackers(config: TrainingConfig) -> None:
    """Raises UsageError for a tracker whose package is not installed."""
    for name in config.trackers:
        if find_spec(name) is None:
            raise UsageError(
                f"trackers: {name} is not installed; run `pip install {name}`, or leave it out of trackers"
            )


class Report:
    """The records of one run; of rank 0 alone. Use it as a context."""

    def __init__(
        self,
        out: Path,
        config: TrainingConfig,
        values: Record,
        *,
        title: str,
        step: int,
        loss_terms: Collection[str],
        say: Callable[[str], None],
    ) -> None:
        self._path, self._steps, self._loss_terms, self._say = out / "metrics.jsonl", config.steps, loss_terms, say
        with explained(self._path):
            _cut(self._path, step)
            self._file = self._path.open("a", encoding="utf-8")
        self._trackers: list[GeneralTracker] = []
        if "tensorboard" in config.trackers:
            self._trackers.append(TensorBoardTracker("tensorboard", out, purge_step=step + 1))
        if "wandb" in config.trackers:
            run_id = digest(str(out.resolve()))[:16]  # a resumed run goes on in the same W&B run
            self._trackers.append(
                WandBTracker(
                    f"cookgen-{title}", dir=str(out), name=out.name, id=run_id, resume="allow", config=dict(values)
                )
            )
        console = Console(stderr=True)
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None

    def __enter__(self) -> Report:
        for tracker in self._trackers:
            tracker.start()
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()
        with explained(self._path):
            for tracker in self._trackers:
                tracker.finish()
            self._file.close()

    def add(self, record: Record) -> None:
        """Writes a record and shows it. Raises OutputError where the disk is full."""
        with explained(self._path):
            self._file.write(json.dumps(record, sort_keys=True, allow_nan=False) + "\n")
            self._file.flush()
            for tracker in self._trackers:
                tracker.log(dict(_scalars(record)), step=record["step"])
        line = _line(record, self._steps, self._loss_terms)
        if self._live and record["kind"] == "train":
            self._live.update(Text(line), refresh=True)
        else:
            self._say(line)


def _cut(path: Path, step: int) -> None:
    """Leaves out what was written after the checkpoint that the run goes on from, a torn last line too."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    kept = []
    for line in lines:
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, TypeError, KeyError):
            continue
    if kept != lines:
        write_atomic(path, "".join(f"{line}\n" for line in kept))


def _scalars(record: Record) -> list[tuple[str, float]]:
    kind = record["kind"]
    own = [(f"{kind}/{name}", value) for name, value in record.items() if isinstance(value, float | int)]
    return [item for item in own if item[0] != f"{kind}/step"] + [
        (f"{kind}/{name}", value) for name, value in record["terms"].items()
    ]


def _line(record: Record, steps: int, loss_terms: Collection[str]) -> str:
    """Of a step the terms of the loss, of a validation all that is reported."""
    is_step = record["kind"] == "train"
    parts = [f"step {record['step']}/{steps}{'' if is_step else '  validation'}"]
    shown = {name: value for name, value in record["terms"].items() if name in loss_terms or not is_step}
    terms = ", ".join(f"{name} {value:.4g}" for name, value in shown.items())
    parts.append(f"loss {record['loss']:.4f} ({terms})")
    if is_step:
        parts.append(f"lr {record['learning_rate']:.3g}  norm {record['gradient_norm']:.3g}")
        parts.append(f"{record['tokens_per_s']:,.0f} tokens/s")
        if "mfu" in record:
            parts.append(f"MFU {record['mfu']:.1%}")
        parts.append(f"{record['memory_bytes'] / 2**30:.2f} GiB  data wait {record['data_wait']:.1%}")
        left = (steps - record["step"]) * record["step_s"]
        parts += [f"left out: {name} {count:,}" for name, count in record["left_out"].items() if count]
        parts.append(f"{_duration(left)} left" if left else "done")
    return "  ".join(parts)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
