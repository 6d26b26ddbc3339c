"""Where a shard set lies: a folder, or a URL whose shards are copied into a local cache when they are first read."""

from __future__ import annotations

import errno
import fcntl
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
from fsspec.utils import get_protocol

from cookgen.errors import FormatError, InputError, UsageError, reason_of
from cookgen.files import atomic_path, explained, file_sha256

_LOCAL = ("file", "local")
_OF_THE_CACHE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}  # errors of this machine's disk, not of the other one


@dataclass(frozen=True)
class Location:
    """A shard set's place; `cache` is None for a folder. Pickles, and may be used from many threads and processes."""

    root: str
    cache: Path | None = None
    options: Mapping[str, Any] | None = None

    def __str__(self) -> str:
        return self.root

    def name(self, relative: str) -> str:
        """How messages call a file of the set."""
        return f"{self.root}/{relative}"

    def read(self, relative: str) -> bytes:
        """A small file's bytes as they are now, never from the cache. Raises FileNotFoundError, or InputError."""
        if self.cache is None:
            try:
                return Path(self.root, relative).read_bytes()
            except (FileNotFoundError, NotADirectoryError):
                raise FileNotFoundError(self.name(relative)) from None
            except OSError as error:
                raise InputError(f"{self.name(relative)}: cannot be read: {error.strerror}") from error
        content: bytes = self._ask(relative, lambda system, path: system.cat_file(path))
        return content

    @contextmanager
    def copied(self, relative: str) -> Iterator[Path]:
        """A file of the set while the block runs: itself, or a copy that is fetched now. Raises as `read` does."""
        if self.cache is None:
            yield Path(self.root, relative)
            return
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, Path(relative).name)
            path.write_bytes(self.read(relative))
            yield path

    def path(self, relative: str, *, sha256: str, num_bytes: int | None = None) -> Path:
        """A shard or sidecar on this machine: itself, unchecked, or the cache's copy, checked when it was fetched.

        The cache keeps a file under its sha256, so what was published anew is never mixed with what was there before;
        one that has not `num_bytes` any more is fetched again. Raises InputError where it cannot be fetched,
        FormatError where its bytes are others, OutputError where the cache cannot be written.
        """
        if self.cache is None:
            return Path(self.root, relative)
        path = self.cache / sha256 / Path(relative).name
        if _is_whole(path, num_bytes):
            return path
        with explained(path, "Choose another cache folder: cache=, or $COOKGEN_CACHE"):
            path.parent.mkdir(parents=True, exist_ok=True)
            with (path.parent / ".lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)  # the other workers wait for this copy instead of making their own
                if not _is_whole(path, num_bytes):
                    with atomic_path(path) as temporary:
                        self._fetch(relative, temporary, sha256)
        return path

    def _fetch(self, relative: str, temporary: Path, sha256: str) -> None:
        changed = "it was damaged on its way, or the set was published anew: open it again"
        try:
            self._ask(relative, lambda system, remote: system.get_file(remote, str(temporary)))
        except FileNotFoundError:
            raise FormatError(f"{self.name(relative)}: missing, and the set lists it: {changed}") from None
        if (found := file_sha256(temporary)) != sha256:
            raise FormatError(f"{self.name(relative)}: its sha256 is {found}, the set says {sha256}: {changed}")

    def _ask(self, relative: str, question: Callable[[Any, str], Any]) -> Any:
        """What the URL's file system answers; each kind raises errors of its own."""
        try:
            system, path = fsspec.url_to_fs(self.name(relative), **(self.options or {}))
            return question(system, path)
        except FileNotFoundError:
            raise FileNotFoundError(self.name(relative)) from None
        except ImportError as error:
            remedy = "for s3:// install cookgen[s3], for hf:// cookgen[hub]"
            raise UsageError(f"{self.root}: {error}: {remedy}") from error
        except Exception as error:
            if isinstance(error, OSError) and error.errno in _OF_THE_CACHE:
                raise
            remedy = "check the address, the network and your credentials"
            raise InputError(f"{self.name(relative)}: cannot be read ({reason_of(error)}): {remedy}") from error


def locate(
    root: str | os.PathLike[str],
    *,
    cache: str | os.PathLike[str] | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> Location:
    """The place that `root` names: a folder, or any URL that fsspec knows (s3://, hf://, https://, …).

    cache: the folder for a URL's shards, by default $COOKGEN_CACHE, else ~/.cache/cookgen; nothing is ever removed from
    it. storage_options: what fsspec's file system takes. Raises UsageError where they are given with a folder.
    """
    text = os.fspath(root)
    if get_protocol(text) in _LOCAL:
        if cache is not None or storage_options is not None:
            raise UsageError(f"{text}: a folder is read where it lies; cache and storage_options are for URLs")
        return Location(
            str(Path(text.split("://")[-1]).expanduser().absolute())
        )  # pickled splits must not hang on the working folder
    home = Path(cache or os.environ.get("COOKGEN_CACHE") or Path.home() / ".cache" / "cookgen")
    return Location(text.rstrip("/"), home.expanduser().absolute(), storage_options)


def _is_whole(path: Path, num_bytes: int | None) -> bool:
    return path.is_file() and num_bytes in (None, path.stat().st_size)
