"""Features of every clip of a shard set, computed once into sidecar shards beside its own.

    OUT/features/{name}/                sidecars, each whole when it has its name; features.json, written last
    OUT/.runs/features-{name}/          the lock of the one run that may write, its log, the sidecar that it writes
                                        (next.tar), and its note of how far it is

A killed run goes on where its note says and writes the bytes that it would have written. The video shards are read and
never touched.
"""

from __future__ import annotations

import io
import os
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import IO, Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import NonNegativeInt, PositiveInt, ValidationError

from cookgen import __version__
from cookgen.config import apply_settings, to_values
from cookgen.dataset.narrative import Narrative
from cookgen.dataset.sample import Step
from cookgen.dataset.sidecar import npy_header
from cookgen.dataset.split import load_split, read_manifest
from cookgen.dataset.tar import tar_member
from cookgen.errors import (
    CookgenError,
    FormatError,
    InputError,
    ModelError,
    OutputError,
    ShapeError,
    UnknownNameError,
    UsageError,
)
from cookgen.files import canonical_json, explained, file_sha256, lock_held, write_atomic
from cookgen.perception.encoders import Encoder, EncoderConfig
from cookgen.perception.encoders.clip import ClipConfig
from cookgen.perception.encoders.conse import ConseConfig
from cookgen.perception.encoders.qwen_vl import QwenVlConfig
from cookgen.perception.encoders.text import TextConfig
from cookgen.perception.encoders.vae import VaeConfig, VideoVaeConfig
from cookgen.records import FORMAT, Features, Record, Shard
from cookgen.records.features import encoder_of
from cookgen.runlog import Tally

ENCODERS: Mapping[str, type[Any]] = {
    config.kind: config for config in (ClipConfig, QwenVlConfig, ConseConfig, VaeConfig, VideoVaeConfig, TextConfig)
}
NOTE_SECONDS = 5.0
_CHOOSE = "Choose another --name, or --overwrite"
R = TypeVar("R", bound=Record)


class _Note(Record):
    """How far a run is: the sidecars that are whole, and how much of the next one is on disk."""

    TABLE: ClassVar[str] = ""

    model: str
    revision: str
    config: dict[str, Any]
    shape: tuple[PositiveInt, ...] | None = None  # None: nothing is encoded yet
    sha256s: dict[str, str]
    of_shards: dict[str, str]
    of_next: str | None = None  # sha256 of the shard whose sidecar is being written
    num_clips: NonNegativeInt = 0
    num_bytes: NonNegativeInt = 0

    def goes_on(self, **changes: Any) -> _Note:
        return self.model_copy(update=changes)


@dataclass(frozen=True)
class Plan:
    """What a run would do: shards whose sidecars are kept, and shards to encode, both in the order of dataset.json."""

    out: Path
    name: str
    kept: tuple[Shard, ...]
    to_do: tuple[Shard, ...]
    note: _Note  # where the run begins
    features: Features | None  # features.json as it is

    @property
    def folder(self) -> Path:
        """OUT/features/{name}."""
        return self.out / "features" / self.name

    @property
    def run_folder(self) -> Path:
        """OUT/.runs/features-{name}."""
        return self.out / ".runs" / f"features-{self.name}"

    @property
    def next_sidecar(self) -> Path:
        """The sidecar that is being written; it gets its place and its name when it is whole."""
        return self.run_folder / "next.tar"

    @property
    def is_complete(self) -> bool:
        """Whether features.json and the sidecars are what they should be."""
        wanted = {shard.path: shard.sha256 for shard in self.kept}
        return self.features is not None and not self.to_do and self.features.of_shards == wanted


def plan_features(out: Path, config: EncoderConfig, *, name: str | None = None, overwrite: bool = False) -> Plan:
    """What `compute_features` would do with the same arguments; nothing is written and no model is loaded.

    Raises as `compute_features` does for what can be known before.
    """
    name = config.kind if name is None else name
    shards = [shard for split in read_manifest(out).splits.values() for shard in split.shards]
    if not shards:
        raise InputError(f"{out}: the set holds no clips")
    if len({shard.path for shard in shards}) < len(shards):
        raise FormatError(f"{out / 'dataset.json'}: lists a shard twice")
    if config.batch_size < 1 or config.num_workers < 0:
        raise UsageError(f"batch_size={config.batch_size}, num_workers={config.num_workers}: at least 1 and at least 0")
    model, _, revision = config.identity().rpartition("@")
    start = _Note(model=model, revision=revision, config=_settings(config), sha256s={}, of_shards={})
    try:
        _features(name, start.goes_on(shape=(1,)))  # the record says which names are names
    except ValidationError:
        raise UsageError(f"--name {name!r}: use 1 to 64 of the characters A-Z a-z 0-9 _ -") from None
    plan = Plan(out, name, (), (), start, None)
    if plan.folder.is_symlink() or plan.folder.parent.is_symlink():
        raise OutputError(f"{plan.folder}: a link out of the set; nothing is written or removed there")
    features = None if overwrite else _read(plan.folder / "features.json", Features)
    note = _read(plan.run_folder / "note.json", _Note)
    if note is not None and not note.sha256s and not note.num_clips:
        note = None  # it says nothing
    for found in (features, note):
        if found is not None and encoder_of(found) != encoder_of(start) and not overwrite:
            raise UsageError(
                f"{plan.folder}: holds features of {found.model}@{found.revision} with {canonical_json(found.config)}; "
                f"these would be of {start.model}@{start.revision} with {canonical_json(start.config)}. {_CHOOSE}"
            )
    if note is None or encoder_of(note) != encoder_of(start):
        if features is None and plan.folder.exists() and not overwrite:
            raise OutputError(f"{plan.folder}: has no features.json: it is not ours, or what a run left. {_CHOOSE}")
        note = start
    kept = {
        shard.path: (shard.sha256, source.sha256s[shard.path])
        for source in (features, note)
        for shard in shards
        if source is not None
        and source.of_shards.get(shard.path) == shard.sha256
        and shard.path in source.sha256s
        and (plan.folder / shard.path).is_file()
    }
    note = note.goes_on(
        shape=(note.shape or (features and features.shape)) if kept or note.num_clips else None,
        of_shards={path: of_shard for path, (of_shard, _) in kept.items()},
        sha256s={path: sha256 for path, (_, sha256) in kept.items()},
    )
    to_do = tuple(shard for shard in shards if shard.path not in kept)
    begun = plan.next_sidecar
    if not to_do or note.of_next != to_do[0].sha256 or not begun.is_file() or begun.stat().st_size < note.num_bytes:
        note = note.goes_on(of_next=None, num_clips=0, num_bytes=0)
    return Plan(out, name, tuple(shard for shard in shards if shard.path in kept), to_do, note, features)


def compute_features(
    out: Path,
    config: EncoderConfig,
    *,
    name: str | None = None,
    overwrite: bool = False,
    show: Callable[[Tally], None] = lambda tally: None,
) -> Features:
    """Encodes the clips of the shard set in the folder `out` into OUT/features/{name}; returns its features.json.

    A sidecar whose shard, encoder settings and model are unchanged is kept: a second run does nothing, one after the
    set was rewritten encodes the changed shards alone; until it ends there is no features.json. name: by default the
    encoder's kind. overwrite: replace what is there, whatever it is. show: told how far the run is, in clips, after
    every batch.

    Raises InputError and FormatError where `out` is no whole shard set, UsageError where features of another encoder
    have that name, ModelError where the model is not what it must be or gives a number that float16 cannot hold,
    ShapeError where clips differ in shape, OutputInUseError and OutputError where the folder cannot be written.
    """
    plan = plan_features(out, config, name=name, overwrite=overwrite)
    if plan.features is not None and plan.is_complete:
        return plan.features
    lock = lock_held(plan.run_folder / "lock", plan.folder, choose="--name")
    with lock, explained(plan.folder, "Mend its rights and run again: what was done is kept"):
        plan = plan_features(out, config, name=name, overwrite=overwrite)  # another run may have just ended
        if plan.features is not None and plan.is_complete:
            return plan.features
        encoder = config.load() if plan.to_do else None  # a model that cannot be loaded leaves all as it was
        _write_note(plan, plan.note)
        (plan.folder / "features.json").unlink(missing_ok=True)  # from here on the folder is not whole
        note = plan.note if encoder is None else _encode(encoder, config, plan, show)
        listed = {plan.folder / path for path in note.sha256s}
        for path in plan.folder.rglob("*"):  # of shards that the set no longer has, or of a killed run
            if path.is_file() and path not in listed:
                path.unlink()
        features = _features(plan.name, note)
        write_atomic(plan.folder / "features.json", canonical_json(features.to_json()))
        (plan.run_folder / "note.json").unlink()
        return features


def _settings(config: Any) -> dict[str, Any]:
    """What features.json says of the encoder; the model has fields of its own."""
    values = to_values(config, with_machinery=False)
    values.pop("model", None)
    return {"kind": config.kind, "version": config.version, "about": config.about, **values}


def _read(path: Path, record: type[R]) -> R | None:
    try:
        return record.model_validate_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValidationError) as error:
        reason = " ".join(str(error).split())[:200]
        raise OutputError(f"{path}: cannot be read ({reason}). {_CHOOSE}") from error


def _write_note(plan: Plan, note: _Note) -> None:
    write_atomic(plan.run_folder / "note.json", canonical_json(note.to_json()))


def _encode(encoder: Encoder, config: EncoderConfig, plan: Plan, show: Callable[[Tally], None]) -> _Note:
    """Writes the sidecars that are to do, noting how far it is; returns the last note."""
    note = plan.note
    kept = sum(shard.num_clips for shard in plan.kept) + note.num_clips
    tally = Tally(total=sum(shard.num_clips for shard in plan.kept + plan.to_do), done=kept, reused=kept)
    show(tally)
    narratives = [narrative for split in read_manifest(plan.out).splits for narrative in load_split(split, plan.out)]
    for shard in plan.to_do:
        steps = _checked_steps(plan.out, shard, [item for item in narratives if item.row.shard == shard.path])
        note = note.goes_on(of_next=shard.sha256)
        with plan.next_sidecar.open("r+b" if note.num_bytes else "wb") as stream:
            stream.truncate(note.num_bytes)
            stream.seek(note.num_bytes)
            began = noted = time.monotonic()
            with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar:  # goes on where stream is
                for batch in _encoded(encoder, config, steps, note.num_clips):
                    note = _append(tar, batch, note)
                    now = time.monotonic()
                    tally.done, tally.seconds, began = tally.done + len(batch), tally.seconds + now - began, now
                    show(tally)
                    if now - noted >= NOTE_SECONDS:
                        noted = now
                        _sync(stream)
                        _write_note(plan, note)
            _sync(stream)
        sha256 = file_sha256(plan.next_sidecar)
        target = plan.folder / shard.path
        target.parent.mkdir(parents=True, exist_ok=True)
        plan.next_sidecar.replace(target)
        note = note.goes_on(
            sha256s=note.sha256s | {shard.path: sha256},
            of_shards=note.of_shards | {shard.path: shard.sha256},
            of_next=None,
            num_clips=0,
            num_bytes=0,
        )
        _write_note(plan, note)
    return note


def _append(tar: tarfile.TarFile, batch: Sequence[tuple[str, NDArray[np.float32]]], note: _Note) -> _Note:
    """Writes the arrays of a batch, by key. Raises ShapeError for one that has not the shape of all others."""
    shape = note.shape
    for key, array in batch:
        shape = array.shape if shape is None else shape
        if array.shape != shape:
            raise ShapeError(
                f"{key}: its features have the shape {list(array.shape)}, those of other clips {list(shape)}; "
                "the whole set has one"
            )
        content = _npy(key, array, note.model)
        tar.addfile(tar_member(f"{key}.npy", len(content)), io.BytesIO(content))
    return note.goes_on(shape=shape, num_clips=note.num_clips + len(batch), num_bytes=tar.offset)


def _checked_steps(out: Path, shard: Shard, narratives: Sequence[Narrative]) -> list[Step]:
    """The shard's clips in its order. Raises FormatError unless it is, byte for byte, the one of dataset.json."""
    path = out / shard.path
    try:
        found = file_sha256(path)
    except OSError as error:
        raise FormatError(f"{path}: cannot be read ({error.strerror}). Fetch the set again") from error
    if found != shard.sha256:
        raise FormatError(f"{path}: its sha256 is {found}, dataset.json says {shard.sha256}. Fetch the set again")
    inside = sorted(narratives, key=lambda narrative: narrative.row.first_member_offset)
    steps = [step for narrative in inside for step in narrative.steps]
    if len(steps) != shard.num_clips:
        raise FormatError(f"{path}: {len(steps)} clips in the narratives table, {shard.num_clips} in dataset.json")
    return steps


@dataclass(frozen=True, eq=False)
class _Inputs:
    """What the loader's workers read: each clip prepared, or the error that says why it cannot be."""

    steps: Sequence[Step]
    prepare: Callable[[Step], Any]

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, index: int) -> Any:
        try:
            return self.prepare(self.steps[index])
        except CookgenError as error:  # as a value: the loader would put its own traceback into the message
            return error


def _encoded(
    encoder: Encoder, config: EncoderConfig, steps: Sequence[Step], start: int
) -> Iterator[list[tuple[str, NDArray[np.float32]]]]:
    """The arrays of the steps from `start` on, with their keys, a batch at a time.

    Batches begin at multiples of batch_size whatever `start` is: a network's last digits hang on the batch.
    """
    import torch
    from torch.utils.data import DataLoader

    first = start - start % config.batch_size
    inputs: Any = _Inputs(steps[first:], encoder.prepare)
    loader: Any = DataLoader(
        inputs,
        batch_size=config.batch_size,
        num_workers=config.num_workers,
        collate_fn=list,
        generator=torch.Generator(),  # of its own: the process's random state stays as it is
    )
    for items in loader:
        for item in items:
            if isinstance(item, CookgenError):
                raise item
        keys = [step.key for step in steps[first : first + len(items)]]
        try:
            arrays = encoder.encode(items)
        except ShapeError as error:
            raise ShapeError(f"{keys[0]} to {keys[-1]}: {error}") from error
        except torch.OutOfMemoryError as error:
            raise UsageError(
                f"batch_size={len(items)}: the device has not the memory for it; set a smaller one"
            ) from error
        new = max(start - first, 0)
        yield list(zip(keys, arrays, strict=True))[new:]
        first += len(items)


def _npy(key: str, array: NDArray[np.float32], model: str) -> bytes:
    """The bytes of a .npy file in float16. Raises ModelError for a number that float16 cannot hold."""
    with np.errstate(over="ignore"):
        half = np.ascontiguousarray(array, "<f2")
    if not np.isfinite(half).all():
        value = array[~np.isfinite(half)].flat[0]
        raise ModelError(f"{key}: {model} gives {value}; features are float16, finite and at most 65504 in size")
    return npy_header(half.shape) + half.tobytes()


def _sync(stream: IO[bytes]) -> None:
    stream.flush()
    os.fsync(stream.fileno())


def _features(name: str, note: _Note) -> Features:
    assert note.shape is not None, "a set with clips has features with a shape"
    return Features(
        format=FORMAT,
        name=name,
        created_by=f"cookgen {__version__}",
        model=note.model,
        revision=note.revision,
        dtype="float16",
        shape=note.shape,
        config=note.config,
        sha256s=note.sha256s,
        of_shards=note.of_shards,
    )


def encoder_config(encoder: str, *, model: str | None = None, settings: Sequence[str] = ()) -> EncoderConfig:
    """The configuration of an encoder by its kind. Raises UsageError for one, a model or a setting that cannot be."""
    if encoder not in ENCODERS:
        raise UnknownNameError("encoder", encoder, ENCODERS)
    kind = ENCODERS[encoder]
    models = [item for item in fields(kind) if item.name == "model"]
    if model is not None and not models:
        raise UsageError(f"--model {model}: the encoder {encoder} has models of its own; leave it out")
    if model is None and models and models[0].default is MISSING:
        raise UsageError(
            f"--encoder {encoder}: needs --model, a folder or a repository of the hub at a commit, "
            "organisation/name@<40 hex digits>"
        )
    config: EncoderConfig = apply_settings(kind() if model is None else kind(model=model), list(settings))
    return config
