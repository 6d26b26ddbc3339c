"""The training loop: one for all models, on one process or many, stopped and resumed at any step.

    OUT/config.json               what the run was made with, machinery left out
    OUT/metrics.jsonl             a line for each logged step and validation
    OUT/checkpoints/step-…        see checkpoint.py
    OUT/best.json                 {"step", "loss"} of the best validation whose checkpoint is there
    OUT/tensorboard, OUT/.lock

The loss of an update is the sum over terms of weight * (sum over all micro-batches and ranks) / (count over all of
them), so a token weighs the same however the batch is cut into micro-batches and dealt to ranks.
"""

from __future__ import annotations

import json
import math
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor
from torch.distributed.tensor import DTensor

from cookgen.config import to_values
from cookgen.dataset.torch_loader import Loader
from cookgen.errors import CookgenError, InputError, ModelError, OutputError, UsageError, reason_of
from cookgen.files import explained, lock_held, write_atomic
from cookgen.training import checkpoint
from cookgen.training.checkpoint import Checkpoint, State, Validation
from cookgen.training.config import TrainingConfig
from cookgen.training.ema import Ema
from cookgen.training.parallel import make_accelerator, prepare, synced
from cookgen.training.ranks import gather, is_first, num_ranks, on_first
from cookgen.training.report import Report, check_trackers
from cookgen.training.schedule import learning_rate
from cookgen.training.task import Batch, Model, Role, Task
from cookgen.training.throughput import Meter, peak_flops, peak_memory_bytes

_VALIDATION_STREAM = 2**32 - 1  # stands where a step stands: the random numbers of every validation are the same


@dataclass(frozen=True)
class Summary:
    """How a run ended: after `step` of `steps` updates. `loss` is that of its last update, None where it made none."""

    step: int
    steps: int
    loss: float | None
    validation: Validation | None  # the last one
    best: Validation | None
    checkpoint: Path

    @property
    def is_finished(self) -> bool:
        """Whether all updates are made; otherwise the same command goes on."""
        return self.step == self.steps


def train(
    task: Task,
    config: TrainingConfig,
    out: Path,
    *,
    run_values: Mapping[str, Any],
    say: Callable[[str], None] | None = None,
) -> Summary:
    """Trains the task's model in the folder `out`, from the last checkpoint there on; on every rank of the run.

    run_values: what else makes this run another one than the next, as plain JSON values; machinery left out. They go to
    config.json, beside the training's own. say: told messages and, where there is no terminal, progress; rank 0 alone.
    SIGTERM and Ctrl-C end the run after the present update, with a checkpoint; Ctrl-C raises KeyboardInterrupt then.

    Raises UsageError where `out` was made with another configuration or a tracker is not installed, InputError for an
    empty split or a checkpoint that cannot be used, ModelError where the loss or the gradient is no finite number or
    the model does not fit into memory, OutputError and OutputInUseError where `out` cannot be written.
    """
    check_trackers(config)
    was_alone = not dist.is_initialized()
    accelerator = make_accelerator(config)
    tell = (say or _to_terminal) if is_first() else _to_nobody
    values = {"task": task.name, **run_values, "training": to_values(config, with_machinery=False)}
    folder = out / "checkpoints"
    try:
        with ExitStack() as stack:
            on_first(lambda: stack.enter_context(_claimed(out)))
            found = on_first(lambda: _open(out, values, tell))
            if found is not None and found.state.step == config.steps:
                tell(f"{out}: all {config.steps} steps are done; {found.folder.name} is the last checkpoint")
                return Summary(
                    config.steps, config.steps, None, found.state.validation, checkpoint.best(folder), found.folder
                )
            run = _Run(task, config, out, values, accelerator, found, tell)

            def report() -> None:
                run.report = stack.enter_context(
                    Report(out, config, values, title=task.name, step=run.step, loss_terms=run.loss_weights, say=tell)
                )

            on_first(report)
            return run.go_on(stack.enter_context(_signals()))
    except torch.OutOfMemoryError as error:
        raise ModelError(
            f"{task.name}: the device's memory is full ({reason_of(error)}). Lower batch_size, or set "
            "activation_checkpointing, precision='bf16' or, with several devices, fsdp"
        ) from error
    finally:
        if was_alone and dist.is_initialized():
            dist.destroy_process_group()


class _Run:
    """A training under way, on one of its ranks."""

    def __init__(
        self,
        task: Task,
        config: TrainingConfig,
        out: Path,
        values: Mapping[str, Any],
        accelerator: Accelerator,
        found: Checkpoint | None,
        tell: Callable[[str], None],
    ) -> None:
        self.task, self.config, self.out, self.accelerator, self.tell = task, config, out, accelerator, tell
        self.config_text = _config_text(values)
        self.folder = out / "checkpoints"
        self.device: torch.device = accelerator.device
        self.report: Report | None = None  # rank 0 has one
        self.waited_s = 0.0  # for the last batches
        loader = self._loader("train")
        assert loader is not None, "a task has a training split"
        self.loader = loader
        self.valid = self._loader("valid")
        self.valid_start = self.valid.state_dict() if self.valid else {}

        set_seed(config.seed)
        model = task.build()
        self.loss_weights = dict(cast(Model, model).loss_weights)
        self.trained = checkpoint.trained_shapes(model)
        self.shapes = self.trained | checkpoint.buffer_shapes(model)
        self.model = prepare(model, accelerator, config, task.block_classes)
        self.model.train()
        self.parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        matrices = [parameter for parameter in self.parameters if parameter.ndim > 1]
        others = [parameter for parameter in self.parameters if parameter.ndim <= 1]
        groups = ((matrices, config.weight_decay), (others, 0.0))
        self.optimizer = torch.optim.AdamW(
            [{"params": members, "weight_decay": decay} for members, decay in groups if members],
            lr=config.learning_rate,
            betas=config.betas,
            fused=True,
        )
        self.ema = Ema(self.parameters, config.ema_decay) if config.ema_decay is not None else None
        self.step = 0
        self.left_out: Counter[str] = Counter()
        self.validation: Validation | None = None
        self.last_checkpoint: Path | None = None
        if found is not None:
            self._resume(found)
        else:
            self._seed(0)
        self.best = on_first(lambda: checkpoint.best(self.folder))
        on_first(lambda: _write(out / "config.json", self.config_text))

    def go_on(self, signals: Sequence[int]) -> Summary:
        """Makes the updates that are left, or those until it is told to stop."""
        config, first = self.config, self.step
        peak = peak_flops(self.device, config.peak_tflops, precision=config.precision)
        if peak is not None:
            self.tell(f"MFU = operations of forward and backward / (seconds x {peak / 1e12:,.0f} TFLOP/s a device)")
        meter = Meter(None if peak is None else peak * num_ranks())
        stream = self._endless(self.loader)
        record: dict[str, Any] = {}
        while self.step < config.steps:
            started, self.waited_s = time.perf_counter(), 0.0
            batches, share = self._fetch(stream, config.accumulation, stop=bool(signals))
            self.left_out.update(share.left_out)
            record = self._update(batches, share.counts)
            took_s = time.perf_counter() - started
            meter.add(seconds=took_s, wait_s=self.waited_s, tokens=share.num_tokens, flops=share.flops)
            is_last = self.step == config.steps
            if self.step == 1 or is_last or self.step % config.log_every == 0:
                memory = {"memory_bytes": peak_memory_bytes(self.device)}
                self._tell_of(record | meter.read() | memory | {"left_out": dict(self.left_out)})
            is_best, is_validated = False, is_last or self.step % config.validate_every == 0
            if self.valid is not None and is_validated:
                self.validation = self._validate(self.valid)
                is_best = self.best is None or self.validation.loss < self.best.loss
                self.best = self.validation if is_best else self.best
            is_stopped = share.stop or self.step - first == config.stop_after
            if is_best or is_last or is_stopped or self.step % config.checkpoint_every == 0:
                self._save()
            if is_stopped:
                break
        return self._end(record.get("loss"), signals)

    def _end(self, loss: float | None, signals: Sequence[int]) -> Summary:
        steps = self.config.steps
        assert self.last_checkpoint is not None
        if self.step == steps:
            best = f", the best validation loss {self.best.loss:.4f} at step {self.best.step}" if self.best else ""
            self.tell(f"{self.out}: all {steps} steps are done{best}")
        else:
            self.tell(f"{self.out}: stopped after step {self.step} of {steps}; the same command goes on from there")
            if signal.SIGINT in signals:
                raise KeyboardInterrupt
        return Summary(self.step, steps, loss, self.validation, self.best, self.last_checkpoint)

    def _loader(self, role: Role) -> Loader | None:
        config = self.config
        loader = self.task.loader(role, batch_size=config.batch_size, num_workers=config.num_workers, seed=config.seed)
        if loader is not None and not len(loader):
            raise InputError(
                f"{self.task.name}: the {role} split is empty or too small, it makes no batch of {config.batch_size} "
                f"items on each of {num_ranks()} ranks. Give another split, or a smaller batch_size"
            )
        return loader

    def _endless(self, loader: Loader) -> Iterator[Batch]:
        while True:
            yield from loader

    def _fetch(self, stream: Iterator[Batch], num: int, *, stop: bool = False) -> tuple[list[Batch], _Share]:
        """The next micro-batches of this rank, and what all ranks together fetched. Errors are raised on all ranks."""
        batches: list[Batch] = []
        share: _Share | CookgenError
        try:
            started = time.perf_counter()
            batches = [next(stream) for _ in range(num)]
            self.waited_s = time.perf_counter() - started
            share = _Share.of(batches, sum(self.task.flops(batch) for batch in batches), stop)
        except CookgenError as error:
            share = error
        return batches, _Share.sum(gather(share))

    def _forward(self, batch: Batch, names: Sequence[str]) -> tuple[dict[str, Tensor], Tensor]:
        """The model's sums, and the same without their graph, float64 [len(names)]."""
        with self.accelerator.autocast():
            sums: dict[str, Tensor] = self.model(batch.to(self.device))
        return sums, torch.stack([sums[name].detach().double() for name in names])

    def _update(self, batches: Sequence[Batch], counts: Mapping[str, int]) -> dict[str, Any]:
        """One update of the weights; what is to be said of it."""
        names = sorted(counts)
        self._check_counts("train", counts, self.left_out)
        # Gradients are averaged over ranks, hence their number. A term without a count weighs 0, yet keeps its graph:
        # every rank's every backward pass reaches every parameter.
        scales = {
            name: weight * num_ranks() / counts[name] if counts[name] else 0.0
            for name, weight in self.loss_weights.items()
        }
        rate = learning_rate(self.step, self.config)
        totals = torch.zeros(len(names), dtype=torch.float64, device=self.device)
        for place, batch in enumerate(batches, 1):
            with synced(self.model, place == len(batches)):
                sums, values = self._forward(batch, names)
                torch.autograd.backward(torch.stack([scale * sums[name] for name, scale in scales.items()]).sum())
            totals += values
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.config.clip_norm)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        gradient_norm = norm.item()
        loss, terms = self._means(totals, names, counts)
        self._check_finite(self.step + 1, {**terms, "the gradient's norm": gradient_norm})
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.ema:
            self.ema.update()
        self.step += 1
        self.validation = None
        found = {"kind": "train", "step": self.step, "loss": loss, "terms": terms}
        return found | {"learning_rate": rate, "gradient_norm": gradient_norm}

    def _validate(self, loader: Loader) -> Validation:
        """The means over the whole validation split; neither weights nor random numbers are changed by it."""
        started, rng = time.perf_counter(), checkpoint.rng_state(self.device)
        self._seed(_VALIDATION_STREAM)
        loader.load_state_dict(self.valid_start)
        counts: Counter[str] = Counter()
        left_out: Counter[str] = Counter()
        totals: dict[str, Tensor] = {}
        stream = iter(loader)
        self.model.eval()
        with torch.no_grad(), self.ema.swapped() if self.ema else nullcontext():
            for _ in range(len(loader)):
                batches, share = self._fetch(stream, 1)
                counts.update(share.counts)
                left_out.update(share.left_out)
                names = sorted(share.counts)
                _, values = self._forward(batches[0], names)
                totals = {name: totals.get(name, 0) + value for name, value in zip(names, values, strict=True)}
        self.model.train()
        checkpoint.set_rng_state(rng, self.device)
        names = sorted(counts)
        self._check_counts("valid", counts, left_out)
        loss, terms = self._means(torch.stack([totals[name] for name in names]), names, counts)
        self._check_finite(self.step, {f"{name} in validation": value for name, value in terms.items()})
        seconds = time.perf_counter() - started
        self._tell_of({"kind": "valid", "step": self.step, "loss": loss, "terms": terms, "seconds": seconds})
        return Validation(step=self.step, loss=loss, terms=terms)

    def _means(self, totals: Tensor, names: Sequence[str], counts: Mapping[str, int]) -> tuple[float, dict[str, float]]:
        """The loss, and the mean of every term that was counted, over all ranks."""
        if num_ranks() > 1:
            dist.all_reduce(totals)
        values = dict(zip(names, totals.tolist(), strict=True))
        terms = {name: value / counts[name] for name, value in values.items() if counts[name]}
        return sum(weight * terms[name] for name, weight in self.loss_weights.items() if name in terms), terms

    def _check_counts(self, role: Role, counts: Mapping[str, int], left_out: Mapping[str, int]) -> None:
        """Raises InputError where there is nothing to learn or to measure; on all ranks alike."""
        if not any(counts[name] for name in self.loss_weights):
            raise InputError(
                f"{self.task.name}: nothing to learn in what was read of the {role} split; left out so far: "
                f"{json.dumps(left_out)}. Let longer items in (max_length), or give other data"
            )

    def _check_finite(self, step: int, values: Mapping[str, float]) -> None:
        """Raises ModelError on all ranks alike: they have the same values."""
        wrong = [f"{name} is {value}" for name, value in values.items() if not math.isfinite(value)]
        if wrong:
            kept = (
                f"{self.last_checkpoint} is the last good checkpoint" if self.last_checkpoint else "no checkpoint yet"
            )
            raise ModelError(
                f"step {step}: {', '.join(wrong)}; the run stops, {kept}. Lower learning_rate "
                f"({self.config.learning_rate}) or clip_norm ({self.config.clip_norm}), or look at the features"
            )

    def _save(self) -> None:
        """Writes a checkpoint; all ranks take part."""
        files = {"model.safetensors": checkpoint.weights(self.model, self.shapes)}
        if self.ema:
            with self.ema.swapped():
                means = checkpoint.weights(self.model, self.shapes)
                files["ema.safetensors"] = {name: tensor.clone() for name, tensor in means.items()}
        files["optimizer.safetensors"] = checkpoint.optimizer_state(self.model, self.optimizer)
        for rank, rng in enumerate(gather(checkpoint.rng_state(self.device))):
            files[f"rng-{rank}.safetensors"] = rng
        state = State(
            step=self.step,
            num_ranks=num_ranks(),
            loader=self.loader.state_dict(),
            validation=self.validation,
            left_out=dict(self.left_out),
        )

        def write_extras(folder: Path) -> None:
            write_atomic(folder / "config.json", self.config_text)
            self.task.write_extras(folder)

        def write() -> Path:
            best = self.best.step if self.best else None
            path = checkpoint.save(
                self.folder, state, files, write_extras, keep_last=self.config.keep_last, best_step=best
            )
            _write_best(self.out, self.best)
            return path

        self.last_checkpoint = on_first(write)

    def _resume(self, found: Checkpoint) -> None:
        """Everything as it was after that checkpoint's step."""
        try:
            self.loader.load_state_dict(found.state.loader)
        except UsageError as error:
            raise UsageError(f"{found.folder}: {error}. Or choose another --out") from error
        if self.ema:
            checkpoint.load_weights(self.model, self._read(found, "ema.safetensors", self.shapes))
            self.ema.restart()
        checkpoint.load_weights(self.model, self._read(found, "model.safetensors", self.shapes))
        tensors = self._read(found, "optimizer.safetensors", checkpoint.optimizer_shapes(self.trained))
        checkpoint.load_optimizer_state(self.model, self.optimizer, tensors)
        states = on_first(found.rng)
        rank = self.accelerator.process_index
        if rank < len(states):
            checkpoint.set_rng_state(states[rank], self.device)
        else:
            self._seed(found.state.step)
        self.step, self.validation, self.last_checkpoint = found.state.step, found.state.validation, found.folder
        self.left_out.update(found.state.left_out)
        items = self.config.batch_size * self.config.accumulation
        others = (
            f", written by {len(states)} ranks and now {num_ranks()}: from there on random numbers differ, and an "
            f"update is over {items * num_ranks()} items instead of {items * len(states)}"
        )
        self.tell(f"{self.out}: going on from {found.folder.name}{others if len(states) != num_ranks() else ''}")

    def _read(self, found: Checkpoint, name: str, expected: checkpoint.Shapes) -> checkpoint.Tensors:
        """The file's tensors on rank 0, nothing on the others."""
        tensors: checkpoint.Tensors = {}

        def read() -> None:
            tensors.update(found.tensors(name))
            checkpoint.check_shapes(found.folder / name, tensors, expected)

        on_first(read)
        return tensors

    def _seed(self, stream: int) -> None:
        """Random numbers of this rank alone."""
        parts = (self.config.seed, stream, self.accelerator.process_index)
        set_seed(int(np.random.SeedSequence(parts).generate_state(1)[0]))

    def _tell_of(self, record: Mapping[str, Any]) -> None:
        on_first(lambda: self.report.add(record) if self.report else None)


@dataclass(frozen=True)
class _Share:
    """What was fetched: how much each term's sum is over, tokens, operations, and whether somebody asked to stop."""

    counts: Mapping[str, int]
    num_tokens: int
    flops: float
    stop: bool
    left_out: Mapping[str, int]

    @classmethod
    def of(cls, batches: Sequence[Batch], flops: float, stop: bool) -> _Share:
        return cls(
            counts=_added(batch.counts for batch in batches),
            num_tokens=sum(batch.num_tokens for batch in batches),
            flops=flops,
            stop=stop,
            left_out=_added(batch.left_out for batch in batches),
        )

    @classmethod
    def sum(cls, shares: Sequence[_Share]) -> _Share:
        return cls(
            _added(share.counts for share in shares),
            sum(share.num_tokens for share in shares),
            sum(share.flops for share in shares),
            any(share.stop for share in shares),
            _added(share.left_out for share in shares),
        )


def _added(all_counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for counts in all_counts:
        total.update({name: int(count) for name, count in counts.items()})
    return dict(total)


@contextmanager
def _claimed(out: Path) -> Iterator[None]:
    """Holds the folder's lock. Raises OutputError for a folder that holds something else, OutputInUseError."""
    with explained(out):
        out.mkdir(parents=True, exist_ok=True)
        names = sorted(path.name for path in out.iterdir() if not path.name.startswith("."))
    if names and not {"task", "training"} <= _config(out / "config.json").keys():
        raise OutputError(f"{out}: holds {names[0]} and no config.json of a training. Choose another --out")
    with lock_held(out / ".lock", out, choose="--out"):
        yield


def _open(out: Path, values: Mapping[str, Any], tell: Callable[[str], None]) -> Checkpoint | None:
    """The checkpoint to go on from, None for a beginning."""
    folder = out / "checkpoints"
    with explained(folder):
        checkpoint.remove_unfinished(folder)
    if checkpoint.steps(folder):
        _check_config(out / "config.json", values)
    found = checkpoint.newest(folder, tell)
    _write_best(out, checkpoint.best(folder))  # a run that was killed may not have come to it
    return found


def _write_best(out: Path, best: Validation | None) -> None:
    if best is not None:
        _write(out / "best.json", json.dumps({"step": best.step, "loss": best.loss}) + "\n")


def _write(path: Path, text: str) -> None:
    with explained(path):
        write_atomic(path, text)


def _config(path: Path) -> dict[str, Any]:
    """What config.json says; nothing where there is none, or one that is not ours."""
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _check_config(path: Path, values: Mapping[str, Any]) -> None:
    """Raises UsageError where the run was made with another configuration."""
    old = _dotted(_config(path))
    new = _dotted(json.loads(_config_text(values)))
    differences = [
        f"{name} was {json.dumps(old.get(name))}, is {json.dumps(new.get(name))}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]
    if differences:
        raise UsageError(
            f"{path.parent}: was begun with another configuration: {'; '.join(differences)}. Choose another --out, or "
            "remove the folder to train anew"
        )


def _dotted(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= _dotted(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found


def _config_text(values: Mapping[str, Any]) -> str:
    # Not canonical JSON, which rounds: a learning rate of 2e-7 is not 0.
    return json.dumps(values, ensure_ascii=False, sort_keys=True, indent=1, allow_nan=False) + "\n"


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Notes SIGTERM and SIGINT instead of dying of them; a second Ctrl-C of a single process interrupts at once."""
    received: list[int] = []

    def note(number: int, frame: object) -> None:
        if number == signal.SIGINT and number in received and num_ranks() == 1:
            raise KeyboardInterrupt
        received.append(number)

    if threading.current_thread() is not threading.main_thread():  # Python has signals in the main thread alone
        yield received
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _to_terminal(message: str) -> None:
    sys.stderr.write(message + "\n")  # not through rich, whose consoles do not see each other's live line


def _to_nobody(message: str) -> None:
    pass
