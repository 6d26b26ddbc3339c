"""Checkpoints: whole or not there, without pickle, the same files from one process, DDP or FSDP2.

    OUT/checkpoints/step-00000100/
        model.safetensors        trained parameters and persistent buffers, by their full names
        ema.safetensors          the same with the mean of the weights, where one is kept
        optimizer.safetensors    {parameter}.exp_avg, .exp_avg_sq, .step
        rng-0.safetensors        state of the random number generators, one file a rank
        config.json, extras      what the run was made with, and what the model needs beside its weights
        state.json               step, position of the data, the validation after this step, sha256 of all other files

One is written under a temporary name and renamed when it is whole; older ones go only after that.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, PositiveInt, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from cookgen.errors import InputError, reason_of
from cookgen.files import explained, file_sha256, write_atomic
from cookgen.training.ranks import num_ranks

_NAME = re.compile(r"step-\d{8,}")
Tensors = dict[str, Tensor]
Shapes = dict[str, tuple[int, ...]]


class Validation(BaseModel):
    """What a validation found: the weighted sum as in training, and the mean of every term."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: PositiveInt
    loss: float
    terms: dict[str, float]


class State(BaseModel):
    """state.json: where a run stands, and what the other files must be."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: PositiveInt
    num_ranks: PositiveInt
    loader: dict[str, Any]
    validation: Validation | None  # of the weights of this very step
    left_out: dict[str, int]  # of the data, so far, by reason
    sha256s: dict[str, str] = {}


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files are what its state.json says."""

    folder: Path
    state: State

    def tensors(self, name: str) -> Tensors:
        """The tensors of one of its files. Raises InputError where it is none of safetensors."""
        path = self.folder / name
        try:
            return load_file(path)
        except (OSError, SafetensorError) as error:
            raise InputError(f"{path}: cannot be read ({reason_of(error)}). {_START_ANEW}") from error

    def rng(self) -> list[Tensors]:
        """The random state of every rank that there was."""
        return [self.tensors(f"rng-{rank}.safetensors") for rank in range(self.state.num_ranks)]


_START_ANEW = "Choose another --out, or remove the folder to train anew"


def save(
    folder: Path,
    state: State,
    files: Mapping[str, Tensors],
    write_extras: Callable[[Path], None],
    *,
    keep_last: int,
    best_step: int | None,
) -> Path:
    """Writes folder/step-…, whole or not at all, then removes all but the last `keep_last` and the best.

    Raises OutputError where the disk is full or refuses; the checkpoints that are there stay.
    """
    target = folder / f"step-{state.step:08d}"
    unfinished = folder / f".tmp-{target.name}"
    try:
        with explained(target), _as_os_error():
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
            write_extras(unfinished)
            for name, tensors in files.items():
                save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, unfinished / name)
            written = [path for path in sorted(unfinished.rglob("*")) if path.is_file()]
            sha256s = {path.relative_to(unfinished).as_posix(): file_sha256(path) for path in written}
            for path in (*written, *(path for path in unfinished.rglob("*") if path.is_dir())):
                _sync(path)
            write_atomic(unfinished / "state.json", _to_json(state.model_copy(update={"sha256s": sha256s})))
            unfinished.rename(target)
            _sync(folder)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    with explained(folder):
        for old in steps(folder)[:-keep_last]:
            if old != f"step-{best_step or 0:08d}":
                _remove(folder / old)
    return target


def steps(folder: Path) -> list[str]:
    """The names of the checkpoints, oldest first, whole or not."""
    names = [path.name for path in folder.iterdir() if _NAME.fullmatch(path.name)] if folder.is_dir() else []
    return sorted(names, key=lambda name: int(name.removeprefix("step-")))


def newest(folder: Path, say: Callable[[str], None]) -> Checkpoint | None:
    """The last whole checkpoint; None where there is none at all.

    A damaged one after it is named and set aside as damaged-step-…. Raises InputError where all are damaged.
    """
    damaged = []
    for name in reversed(steps(folder)):
        try:
            found = read(folder / name)
        except InputError as error:
            damaged.append((name, str(error)))
            continue
        with explained(folder):
            for other, problem in damaged:
                aside = folder / f"damaged-{other}"
                shutil.rmtree(aside, ignore_errors=True)
                (folder / other).rename(aside)
                say(f"{problem}. It is set aside as {aside.name}; going on from {name}")
        return found
    if damaged:
        raise InputError(f"{damaged[0][1]}, and there is no whole one before it. {_START_ANEW}")
    return None


def read(folder: Path) -> Checkpoint:
    """The checkpoint in `folder`, every file's sha256 checked. Raises InputError for one that is damaged."""
    state = _state(folder)
    if folder.name != f"step-{state.step:08d}":
        raise InputError(f"{folder}: damaged, its state.json is of step {state.step}")
    needed = {"model.safetensors", "optimizer.safetensors"}
    needed |= {f"rng-{rank}.safetensors" for rank in range(state.num_ranks)}
    if missing := sorted(needed - state.sha256s.keys()):
        raise InputError(f"{folder}: damaged, its state.json does not list {missing[0]}")
    for name, sha256 in state.sha256s.items():
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise InputError(f"{folder}: damaged, its state.json lists {name!r}, which is outside of it")
        try:
            found = file_sha256(folder / name)
        except OSError as error:
            raise InputError(f"{folder}: damaged, {name} cannot be read ({error.strerror})") from error
        if found != sha256:
            raise InputError(f"{folder}: damaged, the sha256 of {name} is {found}, state.json says {sha256}")
    return Checkpoint(folder, state)


def best(folder: Path) -> Validation | None:
    """The best validation among the checkpoints that are there, the earliest of equals."""
    found = []
    for name in steps(folder):
        with suppress(InputError):  # a damaged one is no best one
            found.append(_state(folder / name).validation)
    return min((item for item in found if item is not None), key=lambda item: item.loss, default=None)


def remove_unfinished(folder: Path) -> None:
    """Removes what a killed run was writing or removing."""
    for path in folder.glob(".tmp-*"):
        shutil.rmtree(path)


def trained_shapes(model: nn.Module) -> Shapes:
    """The trained parameters of a model that is not wrapped yet; a tied one is named once."""
    return {name: tuple(item.shape) for name, item in model.named_parameters() if item.requires_grad}


def buffer_shapes(model: nn.Module) -> Shapes:
    """The persistent buffers of a model that is not wrapped yet."""
    persistent = model.state_dict().keys()
    return {name: tuple(item.shape) for name, item in model.named_buffers() if name in persistent}


def optimizer_shapes(trained: Shapes) -> Shapes:
    """What optimizer.safetensors holds of AdamW."""
    moments = {f"{name}.{key}": shape for name, shape in trained.items() for key in ("exp_avg", "exp_avg_sq")}
    return moments | {f"{name}.step": () for name in trained}


def weights(model: nn.Module, names: Iterable[str]) -> Tensors:
    """The tensors of these names, whole and on the CPU of rank 0; other ranks take part and get nothing."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
    found: dict[str, Any] = get_model_state_dict(model, options=options)
    return {name: found[name] for name in names if name in found}


def load_weights(model: nn.Module, tensors: Tensors) -> None:
    """Puts the tensors, of which only rank 0's count, into the model."""
    set_model_state_dict(model, dict(tensors), options=_loading(strict=False))  # frozen weights are in no checkpoint


def optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> Tensors:
    """The optimiser's tensors as {parameter}.{name}, whole and on the CPU of rank 0; other ranks get nothing."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    found: dict[str, Any] = get_optimizer_state_dict(model, optimizer, options=options).get("state", {})  # type: ignore[assignment]
    return {f"{name}.{key}": tensor for name, state in found.items() for key, tensor in state.items()}


def load_optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Tensors) -> None:
    """Puts the tensors, of which only rank 0's count, into the optimiser; its settings stay what they are."""
    state: dict[str, Any] = {}
    for key, tensor in tensors.items():
        name, _, part = key.rpartition(".")
        state.setdefault(name, {})[part] = tensor
    groups = get_optimizer_state_dict(model, optimizer)["param_groups"]
    whole: dict[str, Any] = {"state": state, "param_groups": groups} if state else {}
    set_optimizer_state_dict(model, optimizer, whole, options=_loading())


def check_shapes(path: Path, found: Tensors, expected: Shapes) -> None:
    """Raises InputError unless a file's tensors are those of the model."""
    shapes = {name: tuple(tensor.shape) for name, tensor in found.items()}
    for name in sorted(shapes.keys() | expected.keys()):
        if shapes.get(name) != expected.get(name):
            raise InputError(
                f"{path}: {name} has the shape {shapes.get(name, 'of nothing: it is missing')}, the model's "
                f"{expected.get(name, 'has none of that name')}. It is of another model. {_START_ANEW}"
            )


def rng_state(device: torch.device) -> Tensors:
    """The state of torch's generators, Python's and numpy's."""
    _, words, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    state = {
        "torch": torch.get_rng_state(),
        "python": torch.tensor(words),
        "python_gauss": torch.tensor([] if gauss is None else [gauss], dtype=torch.float64),
        "numpy": torch.from_numpy(np.asarray(keys).astype(np.int64)),
        "numpy_rest": torch.tensor([position, has_gauss, cached], dtype=torch.float64),
    }
    return state | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def set_rng_state(state: Tensors, device: torch.device) -> None:
    """Sets the generators to what rng_state said."""
    torch.set_rng_state(state["torch"])
    random.setstate((3, tuple(state["python"].tolist()), next(iter(state["python_gauss"].tolist()), None)))
    position, has_gauss, cached = state["numpy_rest"].tolist()
    words = state["numpy"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", words, int(position), int(has_gauss), cached))
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def _state(folder: Path) -> State:
    try:
        return State.model_validate_json((folder / "state.json").read_bytes())
    except (OSError, ValidationError) as error:
        raise InputError(f"{folder}: damaged, its state.json cannot be read ({reason_of(error)})") from error


def _loading(*, strict: bool = True) -> StateDictOptions:
    return StateDictOptions(full_state_dict=True, broadcast_from_rank0=num_ranks() > 1, strict=strict)


def _to_json(state: State) -> str:
    return json.dumps(state.model_dump(), ensure_ascii=False, sort_keys=True, allow_nan=False)


def _remove(folder: Path) -> None:
    """Renamed first: a folder with a checkpoint's name is whole."""
    doomed = folder.with_name(f".tmp-old-{folder.name}")
    folder.rename(doomed)
    shutil.rmtree(doomed)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _as_os_error() -> Iterator[None]:
    """What safetensors and tokenizers, who have errors of their own, say of the disk, as the operating system's."""
    try:
        yield
    except Exception as error:  # tokenizers raises nothing narrower
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from error
