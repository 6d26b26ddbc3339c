"""Results on disk: content-keyed, atomic, written in groups.

    OUT/.store/results/<stage>/<number>.parquet    results, at most GROUP_SIZE a part, or those of GROUP_SECONDS
    OUT/.store/media/ab/abcd….mp4                  clips and keyframes, named by their own sha256
    OUT/.store/owner.json                          which source this folder belongs to
    OUT/.store/lock                                held by the one run that may write

A result that has a key is never computed twice, so what a model once said stays said. A kill loses only the group that
was not yet written; a file with a final name is whole.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import shutil
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cookgen.errors import OutputError
from cookgen.files import atomic_path, canonical_json, explained, lock_held, write_atomic
from cookgen.records import FORMAT, Clip
from pipelines.stage import Result, Stage, medium_path

GROUP_SIZE = 64
GROUP_SECONDS = 5.0
COMPACT_PARTS = 16  # more parts than this in a stage are merged when a run ends
_CACHED_PARTS = 8
_PARTS = "[0-9]*.parquet"  # not the .tmp- files that a killed run may have left
_SCHEMA = pa.schema([("key", pa.string()), ("narrative", pa.string()), ("result", pa.large_string())])


class Store:
    """Looks up and keeps results. One writer at a time: the run that holds `locked`."""

    def __init__(self, out: Path) -> None:
        self.root = out / ".store"
        self.media = self.root / "media"
        self._results = self.root / "results"
        self._index: dict[tuple[str, str], tuple[Path, int]] = {}
        self._parts: OrderedDict[Path, list[str]] = OrderedDict()
        self._waiting: dict[tuple[str, str], Result] = {}
        self._written_at = time.monotonic()
        for part in sorted(self._results.glob(f"*/{_PARTS}")):
            self._add_to_index(part)

    def __contains__(self, stage_key: tuple[str, str]) -> bool:
        return stage_key in self._index or stage_key in self._waiting

    def get(self, stage: Stage, key: str) -> Result | None:
        """The result kept under this key, or None. One whose clips are no longer whole in the media folder is lost."""
        waiting = self._waiting.get((stage.name, key))
        if waiting is not None:
            return waiting
        place = self._index.get((stage.name, key))
        if place is None:
            return None
        result = Result.from_json(self._rows(place[0])[place[1]], stage)
        if all(self._is_whole(clip) for clip in result.rows if isinstance(clip, Clip)):
            return result
        del self._index[stage.name, key]
        return None

    def _is_whole(self, clip: Clip) -> bool:
        for sha256, suffix, num_bytes in clip.media:
            path = medium_path(self.media, sha256, suffix)
            if not path.is_file() or path.stat().st_size != num_bytes:
                return False
        return True

    def put(self, result: Result) -> None:
        """Keeps a result. It is on disk after the next `flush`, which comes by itself a group at a time.

        Results that are our own mistake (internal_error) are not kept, so that the next run tries them again.
        Raises OutputError where the disk is full or cannot be written.
        """
        if result.is_final and (result.stage, result.key) not in self:
            self._waiting[result.stage, result.key] = result
        self.flush_if_due()

    def flush_if_due(self) -> None:
        """Writes what waits when the group is full or old enough."""
        if len(self._waiting) >= GROUP_SIZE or time.monotonic() - self._written_at >= GROUP_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Writes everything that waits."""
        self._written_at = time.monotonic()
        for stage in sorted({stage for stage, _ in self._waiting}):
            group = [result for (name, _), result in sorted(self._waiting.items()) if name == stage]
            self._write_part(stage, [(result.key, result.narrative, result.to_json()) for result in group])
            for result in group:
                del self._waiting[stage, result.key]

    def compact(self) -> None:
        """Merges the parts of each stage that has many, and sweeps out what killed runs left half written.

        The new part is whole before the old ones go. Only for the run that holds the lock, with no worker alive.
        """
        for leftover in self.root.rglob(".tmp-*"):
            leftover.unlink()
        for folder in sorted(self._results.glob("*")):
            parts = sorted(folder.glob(_PARTS))
            if len(parts) <= COMPACT_PARTS:
                continue
            rows: dict[str, tuple[str, str, str]] = {}
            for part in parts:  # in the order of writing: of two results with one key the newer counts
                table = pq.read_table(part)
                rows |= {row["key"]: (row["key"], row["narrative"], row["result"]) for row in table.to_pylist()}
            self._write_part(folder.name, [rows[key] for key in sorted(rows)])
            for part in parts:
                part.unlink()
                self._parts.pop(part, None)

    def _write_part(self, stage: str, rows: list[tuple[str, str, str]]) -> None:
        folder = self._results / stage
        numbers = [int(part.stem) for part in folder.glob(_PARTS)] if folder.is_dir() else []
        part = folder / f"{max(numbers, default=-1) + 1:08d}.parquet"
        columns = [
            pa.array(column, type=field.type) for column, field in zip(zip(*rows, strict=True), _SCHEMA, strict=True)
        ]
        with explained(part), atomic_path(part) as temporary:
            pq.write_table(pa.table(columns, schema=_SCHEMA), temporary, compression="zstd")
        self._add_to_index(part)

    def _add_to_index(self, part: Path) -> None:
        try:
            keys = pq.read_table(part, columns=["key"]).column("key").to_pylist()
        except (OSError, pa.ArrowInvalid) as error:
            raise OutputError(
                f"{part}: cannot be read ({error}); it was damaged after it was written. Delete that file: "
                "only what it held is computed again"
            ) from error
        self._index |= {(part.parent.name, key): (part, row) for row, key in enumerate(keys)}

    def _rows(self, part: Path) -> list[str]:
        if part not in self._parts:
            self._parts[part] = pq.read_table(part, columns=["result"]).column("result").to_pylist()
            while len(self._parts) > _CACHED_PARTS:
                self._parts.popitem(last=False)
        self._parts.move_to_end(part)
        return self._parts[part]


def claim(out: Path, source: str) -> None:
    """Makes OUT this source's output folder, or finds that it is already.

    Raises OutputError where OUT cannot be written, holds something else than a shard set, a set of another format, or
    one of another source.
    """
    with explained(out):
        if out.is_symlink() and not out.exists():
            raise OutputError(f"{out}: is a symbolic link to nothing; --out must name a folder")
        if out.exists() and not out.is_dir():
            raise OutputError(f"{out}: is a file; --out must name a folder")
        out.mkdir(parents=True, exist_ok=True)
    owner_file, manifest = out / ".store" / "owner.json", out / "dataset.json"
    if owner_file.exists():
        owner = _json_object(owner_file)
    elif manifest.exists():  # a set whose .store was deleted: it is still its source's
        found = _json_object(manifest)
        owner = {"format": found.get("format"), "source": _source_of(found)}
    elif any(out.iterdir()):
        raise OutputError(f"{out}: is not empty and holds no cookgen set; choose another --out, or empty it")
    else:
        owner = {"format": FORMAT, "source": source}
    if owner.get("format") != FORMAT:
        raise OutputError(f"{out}: holds a set of format {owner.get('format')!r}, not {FORMAT}; choose another --out")
    if owner.get("source") != source:
        raise OutputError(f"{out}: belongs to the source {owner.get('source')!r}, not {source!r}; choose another --out")
    with explained(out):
        write_atomic(owner_file, canonical_json(owner))


def require_space(out: Path, num_bytes: int) -> None:
    """Raises OutputError unless OUT's disk has room for `num_bytes` more."""
    free = shutil.disk_usage(out).free
    if free < num_bytes:
        raise OutputError(
            f"{out}: the disk is too full: {free / 2**30:.1f} GiB free, about {num_bytes / 2**30:.1f} GiB needed. "
            "Free some space or choose an --out on another disk"
        )


def locked(out: Path) -> contextlib.AbstractContextManager[None]:
    """Holds OUT's lock. Raises OutputInUseError naming the process that holds it."""
    return lock_held(_lock_path(out), out, choose="--out")


def _lock_path(out: Path) -> Path:
    return out / ".store" / "lock"


def is_locked(out: Path) -> bool:
    """Whether a run holds OUT's lock; looks only, and writes nothing."""
    try:
        with _lock_path(out).open() as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False


def _source_of(manifest: dict[str, Any]) -> object:
    try:
        return manifest["config"]["values"]["source"]
    except (KeyError, TypeError):
        return None


def _json_object(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise OutputError(f"{path}: cannot be read ({error}); delete it, or choose another --out") from error
    if not isinstance(values, dict):
        raise OutputError(f"{path}: is not a JSON object; delete it, or choose another --out")
    return values
