"""Bytes on disk: canonical JSON, digests, atomic writes, and the one rule that turns ids into names."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
