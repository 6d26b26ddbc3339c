"""Bytes on disk: canonical JSON, digests, atomic writes, locks, and the one rule that turns ids into names."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import math
import os
import re
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cookgen.errors import OutputError, OutputInUseError

MAX_NAME = 128
_UNSAFE = re.compile(r"[^A-Za-z0-9_-]+")


def canonical_json(value: Any) -> str:
    """JSON with one spelling: UTF-8, sorted keys, no blanks, no NaN, floats (seconds) rounded to 1e-6.

    Raises ValueError on NaN or infinity. Source: FORMAT, "JSON is canonical everywhere".
    """
    return json.dumps(_rounded(value), ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{value} cannot be written as canonical JSON; numbers must be finite")
        return round(value, 6) + 0.0  # + 0.0 turns -0.0 into 0.0: one spelling for one number
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(item) for item in value]
    return value


def digest(value: Any) -> str:
    """sha256 (64 hex digits) of the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def file_sha256(path: str | os.PathLike[str]) -> str:
    """sha256 (64 hex digits) of a file's bytes, read in constant memory."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path beside `path`, which takes its final name only when the block ends without an error.

    fsync before the rename and of the folder after it: a file with a final name is whole, also after a power cut.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=".tmp-", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomic(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Writes a whole file under its final name, or leaves what was there."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def explained(path: Path, remedy: str = "Choose another --out, or mend its rights") -> Iterator[None]:
    """Turns the operating system's refusals to write into errors that say what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            message = f"{path}: the disk is full. Free some space and run again: what was done is kept"
        else:
            message = f"{path}: cannot be written ({error.strerror or error}). {remedy}"
        raise OutputError(message) from error


@contextlib.contextmanager
def lock_held(lock: Path, what: Path, *, choose: str) -> Iterator[None]:
    """Holds the lock file `lock` of `what`. The operating system drops it when the process ends: no lock goes stale.

    Raises OutputInUseError naming the process that holds it; `choose` is the option that names another `what`.
    """
    with explained(lock):
        lock.parent.mkdir(parents=True, exist_ok=True)
        handle = lock.open("a+")
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.seek(0)
            holder = handle.read().strip() or "another process"
            raise OutputInUseError(
                f"{what}: being written by {holder}. Wait for it, stop it, or choose another {choose}"
            ) from None
        os.register_at_fork(after_in_child=handle.close)  # a worker that outlives a killed run must not hold its lock
        handle.truncate(0)
        handle.write(f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%H:%M:%S')}")
        handle.flush()
        yield


def narrative_name(source: str, video_id: str, *, clash_path: str | None = None) -> str:
    """The name of a video's narrative: `{source}-{video_id}` in `[A-Za-z0-9_-]`, at most 128 characters.

    An id with other characters, or too long a one, becomes its safe part cut to 80 plus `-` and 10 hex digits of its
    sha256. `clash_path` is the relative path of a file that shares its id with another one (they differ in the suffix
    only): both take the digest of that path. Source: FORMAT, "One sample = one clip".
    """
    original = clash_path if clash_path is not None else video_id
    safe = _UNSAFE.sub("-", video_id)
    if clash_path is None and safe == video_id and video_id and len(f"{source}-{video_id}") <= MAX_NAME:
        return f"{source}-{video_id}"
    return f"{source}-{safe[:80]}-{hashlib.sha256(original.encode()).hexdigest()[:10]}"
