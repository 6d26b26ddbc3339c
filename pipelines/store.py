"""Results on disk: content-keyed, atomic, written in groups.

    OUT/.store/results/<stage>/<part>.parquet      results, at most GROUP_SIZE a part, or those of GROUP_SECONDS
    OUT/.store/failures.jsonl                      each time that a stage failed on a video
    OUT/.store/configs/<digest>.json               the configurations that results were made with
    OUT/.store/media/ab/abcd….mp4                  clips and keyframes, named by their own sha256
    OUT/.store/owner.json                          which source this folder belongs to
    OUT/.store/lock                                held by the one run that may write

A result that has a key is never computed twice, so what a model once said stays said. A kill loses only the group that
was not yet written; a file with a final name is whole. With a bucket (bucket.py) the parts and media are there as well,
and what others put there is known too.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import re
import secrets
import shutil
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from sys import intern
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from cookgen.config import config_digest, to_values
from cookgen.errors import OutputError
from cookgen.files import atomic_path, canonical_json, explained, lock_held, write_atomic
from cookgen.records import FORMAT, Clip, Lineage, SourceVideo
from pipelines.bucket import Bucket
from pipelines.stage import Kept, Result, Stage, VideoState, medium_name, medium_path, resume

GROUP_SIZE = 64
GROUP_SECONDS = 5.0
COMPACT_PARTS = 16  # more parts than this in a stage are merged when a run ends
MAX_ATTEMPTS = 3  # failures of a stage on a video after which it is left alone
_CACHED_GROUPS = 8
_PARTS = "[0-9]*.parquet"  # not the .tmp- files that a killed run may have left
_PART_IN_BUCKET = re.compile(r"results/[a-z]+/[0-9]{8,}-[0-9a-f]{8}\.parquet")  # and no name that leads out of OUT
_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("narrative", pa.string()),
        ("result", pa.large_string()),
        # What is asked of very many results at once, so that their rows need not be read:
        ("lineage", pa.string()),
        ("seconds", pa.float64()),
        ("content", pa.string()),
        ("stops_video", pa.bool_()),
        ("num_rows", pa.int64()),
        ("reasons", pa.list_(pa.string())),
        ("media", pa.list_(pa.string())),
    ]
)
_INDEXED = ("key", "narrative", "content", "stops_video", "num_rows", "reasons", "media")


def media_folder(out: Path) -> Path:
    """Where a set's clips and keyframes are kept."""
    return out / ".store" / "media"


class _Place(NamedTuple):
    part: Path
    group: int
    row: int


class Store:
    """Looks up and keeps results. One writer at a time: the run that holds `locked`."""

    def __init__(self, out: Path, bucket: Bucket | None = None) -> None:
        self.root = out / ".store"
        self._bucket = bucket
        self.media = media_folder(out)
        self._results = self.root / "results"
        self._index: dict[tuple[str, str], tuple[Kept, _Place]] = {}
        self._narratives: set[tuple[str, str]] = set()
        self._groups: OrderedDict[tuple[Path, int], list[str]] = OrderedDict()
        self._waiting: dict[tuple[str, str], Result] = {}
        self._written_at = time.monotonic()
        self._in_bucket = {} if bucket is None else bucket.sizes("media")
        if bucket is not None:
            self._fetch_parts(bucket)
        for part in sorted(self._results.glob(f"*/{_PARTS}")):
            self._add_to_index(part)
        self._failures = _read_failures(self._failures_path)

    @property
    def _failures_path(self) -> Path:
        return self.root / "failures.jsonl"

    def __contains__(self, stage_key: tuple[str, str]) -> bool:
        return stage_key in self._index or stage_key in self._waiting

    def knows(self, stage: Stage, narrative: str) -> bool:
        """Whether any result of this stage for this video is kept, under whatever key."""
        return (stage.name, narrative) in self._narratives

    def known(self, stage: Stage, key: str) -> Kept | None:
        """What is known of the result under this key, None where there is none. One whose clips are no longer whole in
        the media folder is lost."""
        found = self._index.get((stage.name, key))
        if found is None:
            waiting = self._waiting.get((stage.name, key))
            return None if waiting is None else _kept(waiting)
        if all(map(self._is_whole, found[0].media)):
            return found[0]
        del self._index[stage.name, key]
        return None

    def get(self, stage: Stage, key: str) -> Result | None:
        """The whole result under this key, or None."""
        return None if self.known(stage, key) is None else self._read(stage, key)

    def _read(self, stage: Stage, key: str) -> Result:
        waiting = self._waiting.get((stage.name, key))
        if waiting is not None:
            return waiting
        _, place = self._index[stage.name, key]
        return Result.from_json(self._group(place.part, place.group)[place.row], stage)

    def state(self, source: SourceVideo, stages: tuple[Stage, ...]) -> VideoState:
        """The video with all results that are kept of it, whole. Their keys come from what is known of them: to digest
        the rows again would take longer than to read them."""
        known = resume(source, stages, find=self.known).results
        found = [self._read(stage, known[stage.name].key) for stage in stages if stage.name in known]
        return VideoState(source, {result.stage: result.at(source.path) for result in found})

    def _is_whole(self, medium: str) -> bool:
        name, num_bytes = medium.split()
        if self._in_bucket and self._in_bucket.get(_name_of(name)) == int(num_bytes):
            return True
        try:
            return self._path_of(name).stat().st_size == int(num_bytes)
        except FileNotFoundError:
            return False

    def _path_of(self, medium: str) -> Path:
        sha256, dot, suffix = medium.partition(".")
        return medium_path(self.media, sha256, dot + suffix)

    def _fetch_parts(self, bucket: Bucket) -> None:
        for name in filter(_PART_IN_BUCKET.fullmatch, bucket.sizes("results")):
            # One that is gone was merged into another by a run on another OUT.
            with contextlib.suppress(FileNotFoundError):
                if not (self.root / name).exists():
                    bucket.get(name, self.root / name)

    def share(self) -> None:
        """Puts into the bucket what it lacks: what was made before there was one, or by a run that was killed before it
        got there. Only for the run that holds the lock."""
        if self._bucket is None:
            return
        there = self._bucket.sizes("results")
        for part in sorted(self._results.glob(f"*/{_PARTS}")):
            if self._part_name(part) not in there:
                for kept in [kept for kept, place in self._index.values() if place.part == part]:
                    self._share_media(self._bucket, kept)
                self._bucket.put(part, self._part_name(part))

    def _share_media(self, bucket: Bucket, kept: Kept) -> None:
        for name, num_bytes in map(str.split, kept.media):
            if self._in_bucket.get(_name_of(name)) != int(num_bytes) and self._path_of(name).exists():
                bucket.put(self._path_of(name), _name_of(name))

    def _part_name(self, part: Path) -> str:
        return part.relative_to(self.root).as_posix()

    def put(self, result: Result) -> None:
        """Keeps a result. It is on disk after the next `flush`, which comes by itself a group at a time.

        A failure (internal_error) is only written down, so that the next run tries again; the one after MAX_ATTEMPTS is
        kept like any other result, and so tried no more. Raises OutputError where the disk cannot be written.
        """
        if result.is_failure and self._write_failure(result) < MAX_ATTEMPTS:
            return
        if (result.stage, result.key) not in self:
            self._waiting[result.stage, result.key] = result
            if self._bucket is not None:  # its worker has put its media there
                self._in_bucket |= {_name_of(name): int(size) for name, size in map(str.split, _kept(result).media)}
        self.flush_if_due()

    def _write_failure(self, result: Result) -> int:
        """Returns how many failures there are now of this stage on this video."""
        at, detail = (result.stage, result.key), result.rejects[-1].detail
        number = self._failures.get(at, (0, ""))[0] + 1
        self._failures[at] = number, detail
        line = {"stage": result.stage, "key": result.key, "narrative": result.narrative, "detail": detail}
        with explained(self._failures_path):
            self.root.mkdir(parents=True, exist_ok=True)
            with self._failures_path.open("a", encoding="utf-8") as stream:
                stream.write(canonical_json(line) + "\n")
        return number

    def failure(self, stage: Stage, key: str) -> str | None:
        """Why this stage failed the last time that it was tried with this key; None where it never did."""
        found = self._failures.get((stage.name, key))
        return None if found is None else found[1]

    def flush_if_due(self) -> None:
        """Writes what waits when the group is full or old enough."""
        if len(self._waiting) >= GROUP_SIZE or time.monotonic() - self._written_at >= GROUP_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Writes everything that waits."""
        self._written_at = time.monotonic()
        for stage in sorted({stage for stage, _ in self._waiting}):
            group = [result for (name, _), result in sorted(self._waiting.items()) if name == stage]
            self._write_part(stage, [pa.Table.from_pylist([_row(result) for result in group], _SCHEMA)])
            for result in group:
                del self._waiting[stage, result.key]

    def compact(self) -> None:
        """Merges the parts of each stage that has many, and sweeps out what killed runs left half written.

        Only for the run that holds the lock, with no worker alive.
        """
        for leftover in self.root.rglob(".tmp-*"):
            leftover.unlink()
        for folder in sorted(self._results.glob("*")):
            if len(list(folder.glob(_PARTS))) > COMPACT_PARTS:
                self._rewrite(folder.name)

    def drop(self, is_dropped: Callable[[Kept], bool]) -> list[Kept]:
        """Forgets results, and returns what was known of them. Only for the run that holds the lock."""
        dropped = [kept for kept, _ in self._index.values() if is_dropped(kept)]
        for kept in dropped:
            del self._index[kept.stage, kept.key]
        for stage in sorted({kept.stage for kept in dropped}):
            self._rewrite(stage)
        return dropped

    def drop_failures(self) -> None:
        """Forgets how often stages failed."""
        self._failures.clear()
        self._failures_path.unlink(missing_ok=True)

    def note_config(self, config: Any) -> None:
        """Writes down a stage's configuration under its digest, so that a later plan can say what has changed."""
        path = self._config_path(config_digest(config))
        if not path.is_file():
            write_atomic(path, canonical_json(to_values(config, with_machinery=False)))

    def config_values(self, config: str) -> dict[str, Any] | None:
        """The configuration with this digest, where it was written down."""
        with contextlib.suppress(OSError, ValueError):
            values: dict[str, Any] = json.loads(self._config_path(config).read_bytes())
            return values
        return None

    def _config_path(self, config: str) -> Path:
        return self.root / "configs" / f"{config}.json"

    def kept(self) -> Iterator[Kept]:
        """What is known of all results that are on disk."""
        return (kept for kept, _ in self._index.values())

    def history(self, stage: str) -> dict[str, tuple[Lineage, float]]:
        """Of each video's newest result of a stage: what it depended on, and how many seconds it took."""
        newest: dict[str, tuple[Lineage, float]] = {}
        for part in sorted((self._results / stage).glob(_PARTS)):
            with pq.ParquetFile(part) as file:
                rows = [] if _is_old(file) else file.read(columns=["narrative", "lineage", "seconds"]).to_pylist()
            for row in rows:
                newest[row["narrative"]] = Lineage.model_validate_json(row["lineage"]), row["seconds"]
        return newest

    def _rewrite(self, stage: str) -> None:
        """One part of all that the index holds of a stage, a group in memory at a time; then the old ones go.

        A kill between the two leaves both, and the newer counts.
        """
        parts = sorted((self._results / stage).glob(_PARTS))
        self._write_part(stage, _regrouped(self._of_index(parts)))
        for part in parts:
            part.unlink()
            if self._bucket is not None:
                self._bucket.delete(self._part_name(part))
        self._groups.clear()

    def _of_index(self, parts: Iterable[Path]) -> Iterator[pa.Table]:
        """The rows of these parts that the index points at, group by group."""
        for part in parts:
            with pq.ParquetFile(part) as file:
                for group in range(0 if _is_old(file) else file.num_row_groups):
                    table = file.read_row_group(group)
                    keys = table.column("key").to_pylist()
                    mask = [
                        self._index.get((part.parent.name, key), (None, None))[1] == _Place(part, group, row)
                        for row, key in enumerate(keys)
                    ]
                    yield table.filter(pa.array(mask))

    def _write_part(self, stage: str, tables: Iterable[pa.Table]) -> None:
        folder = self._results / stage
        numbers = [int(part.stem.partition("-")[0]) for part in folder.glob(_PARTS)] if folder.is_dir() else []
        # The newest sorts last; another run that shares the bucket may come to the same number.
        part = folder / f"{max(numbers, default=-1) + 1:08d}-{secrets.token_hex(4)}.parquet"
        with (
            explained(part),
            atomic_path(part) as temporary,
            pq.ParquetWriter(temporary, _SCHEMA, compression="zstd") as writer,
        ):
            for table in tables:
                writer.write_table(table)
        if self._bucket is not None:
            self._bucket.put(part, self._part_name(part))
        self._add_to_index(part)

    def _add_to_index(self, part: Path) -> None:
        stage = intern(part.parent.name)
        try:
            with pq.ParquetFile(part) as file:
                if _is_old(file):
                    return
                for group in range(file.num_row_groups):
                    for row, values in enumerate(file.read_row_group(group, columns=list(_INDEXED)).to_pylist()):
                        reasons = tuple(map(intern, values.pop("reasons")))
                        kept = Kept(stage=stage, reasons=reasons, media=tuple(values.pop("media")), **values)
                        self._index[stage, kept.key] = kept, _Place(part, group, row)
                        self._narratives.add((stage, kept.narrative))
        except (OSError, pa.ArrowInvalid, KeyError, TypeError) as error:
            raise OutputError(
                f"{part}: cannot be read ({error}); it was damaged after it was written. Delete that file: "
                "only what it held is computed again"
            ) from error

    def _group(self, part: Path, group: int) -> list[str]:
        """The results of a row group; the last few groups are remembered, since neighbours are asked for together."""
        if (part, group) not in self._groups:
            with pq.ParquetFile(part) as file:
                self._groups[part, group] = file.read_row_group(group, columns=["result"]).column(0).to_pylist()
            while len(self._groups) > _CACHED_GROUPS:
                self._groups.popitem(last=False)
        self._groups.move_to_end((part, group))
        return self._groups[part, group]


def _name_of(medium: str) -> str:
    """A medium's name in the bucket."""
    sha256, dot, suffix = medium.partition(".")
    return medium_name(sha256, dot + suffix)


def _is_old(part: pq.ParquetFile) -> bool:
    """Whether it is of an earlier kind of store; what it holds is computed again."""
    return "content" not in part.schema_arrow.names


def _kept(result: Result) -> Kept:
    return Kept(
        stage=result.stage,
        key=result.key,
        narrative=result.narrative,
        content=result.content,
        stops_video=result.stops_video,
        num_rows=result.num_rows,
        reasons=result.reasons,
        media=tuple(
            f"{sha256}{suffix} {num_bytes}"
            for row in result.rows
            if isinstance(row, Clip)
            for sha256, suffix, num_bytes in row.media
        ),
    )


def _row(result: Result) -> dict[str, Any]:
    kept = _kept(result)
    return {
        **{name: getattr(kept, name) for name in _INDEXED},
        "lineage": canonical_json(result.lineage.to_json()),
        "seconds": result.seconds,
        "result": result.to_json(),
    }


def _regrouped(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The same rows in tables of at least GROUP_SIZE, but for the last."""
    waiting: list[pa.Table] = []
    for table in tables:
        waiting.append(table)
        if sum(map(len, waiting)) >= GROUP_SIZE:
            yield pa.concat_tables(waiting)
            waiting = []
    if waiting:
        yield pa.concat_tables(waiting)


def _read_failures(path: Path) -> dict[tuple[str, str], tuple[int, str]]:
    """By stage and key: how often it failed, and what was said the last time."""
    found: dict[tuple[str, str], tuple[int, str]] = {}
    with contextlib.suppress(FileNotFoundError), path.open(encoding="utf-8") as stream:
        for line in stream:
            with contextlib.suppress(ValueError, KeyError, TypeError):  # the last line may be half written
                values = json.loads(line)
                at = values["stage"], values["key"]
                found[at] = found.get(at, (0, ""))[0] + 1, values["detail"]
    return found


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
