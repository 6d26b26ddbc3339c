"""The store behind a URL as well: machines without a common disk share it, and it outlives OUT.

    URL/results/<stage>/<part>.parquet    the parts of OUT/.store/results, those of every set that shares the URL
    URL/media/ab/abcd….mp4                clips and keyframes

An object appears whole or not at all, is never written again with other bytes, and a part is there only when the media
that it names are. So any number of runs may write at once, each into an OUT of its own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
from fsspec.utils import get_protocol

from cookgen.config import machinery
from cookgen.errors import InputError, OutputError, UsageError, reason_of
from cookgen.files import atomic_path, file_sha256

_NOT_OBJECTS = ("file", "local", "memory")


@dataclass(frozen=True)
class StoreConfig:
    """url: an object store that keeps the results and media as well: s3://bucket/prefix, or gs://, az://, …."""

    url: str | None = machinery(None)

    def __post_init__(self) -> None:
        if self.url is not None and ("://" not in self.url or get_protocol(self.url) in _NOT_OBJECTS):
            raise ValueError("store.url must be an object store's, such as s3://bucket/prefix; a folder is --out")


@dataclass(frozen=True)
class Bucket:
    """An object store's folder. Picklable; names are relative to `url`.

    Raises OutputError, which ends the run, where the store does not answer or refuses.
    """

    url: str

    def sizes(self, folder: str) -> dict[str, int]:
        """Bytes of each object under a folder, by its name."""

        def find(system: Any, root: str) -> dict[str, int]:
            system.invalidate_cache()
            found = system.find(root, detail=True)
            return {f"{folder}/{path[len(root) :].lstrip('/')}": info["size"] for path, info in found.items()}

        with contextlib.suppress(FileNotFoundError):
            sizes: dict[str, int] = self._ask(folder, "listed", find)
            return sizes
        return {}

    def get(self, name: str, path: Path, *, sha256: str | None = None) -> None:
        """Copies an object to `path`, which appears whole.

        Raises FileNotFoundError where there is none, InputError where its bytes are not those of `sha256`.
        """
        with atomic_path(path) as temporary:
            self._ask(name, "read", lambda system, place: system.get_file(place, str(temporary)))
            if sha256 is not None and (found := file_sha256(temporary)) != sha256:
                raise InputError(f"{self.url}/{name}: its bytes have the sha256 {found}; delete it and run again")

    def put(self, path: Path, name: str) -> None:
        """Copies a file to the object `name`."""
        try:
            self._ask(name, "written", lambda system, place: system.put_file(str(path), place))
        except FileNotFoundError as error:  # there is no such bucket
            raise self._refused(name, "written", error) from error

    def delete(self, name: str) -> None:
        """Removes an object, which may be gone already."""
        with contextlib.suppress(FileNotFoundError):
            self._ask(name, "deleted", lambda system, place: system.rm_file(place))

    def _ask(self, name: str, what: str, question: Callable[[Any, str], Any]) -> Any:
        try:
            system, place = fsspec.url_to_fs(f"{self.url.rstrip('/')}/{name}")
            return question(system, place)
        except ImportError as error:
            raise UsageError(f"store.url={self.url}: {error}: for s3:// install cookgen[s3]") from error
        except FileNotFoundError:
            raise
        except Exception as error:  # each kind of store raises errors of its own
            raise self._refused(name, what, error) from error

    def _refused(self, name: str, what: str, error: Exception) -> OutputError:
        return OutputError(
            f"{self.url}/{name}: cannot be {what} ({reason_of(error)}). Check store.url, the network and your "
            "credentials, and run again: what was done is kept"
        )
