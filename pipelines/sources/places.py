"""Where the videos of an id list are looked for: a mirror, an archive directory, a web address by yt-dlp."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import fsspec
from fsspec.implementations.local import LocalFileSystem

from cookgen.config import machinery
from cookgen.errors import InputError, UsageError, reason_of
from pipelines.sources.answers import NotFetchedError
from pipelines.sources.folder import VIDEO_SUFFIXES, video_paths
from pipelines.sources.ledger import Outcome, Place, without_credentials

YOUTUBE = "https://www.youtube.com/watch?v={id}"
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class FetchConfig:
    """Where and how videos are fetched. All of it but the picture's height is machinery: it names no content."""

    mirror: str | None = machinery(None)  # URL of a folder, any that fsspec knows: s3://bucket/videos
    archive: str | None = machinery(None)  # a folder; a video lies anywhere below it, named by its id
    ytdlp: bool = machinery(False)
    url: str | None = machinery(None)  # with {id} in it; none: the list's own link, else YouTube's
    max_height: int = 480  # px; the largest picture that is not larger, else the smallest that there is
    cookies: str | None = machinery(None)  # a cookies.txt in Netscape's form; it is only read
    proxy: str | None = machinery(None)
    max_bytes_per_s: int | None = machinery(None)  # of all that yt-dlp downloads at a time
    max_bytes: int = machinery(4 * 2**30)  # of one file
    max_video_s: float = machinery(3600.0)  # for one attempt; what came until then is kept
    timeout_s: float = machinery(20.0)  # without a byte
    connections: int = machinery(2)  # to one host at a time
    sleep_s: float = machinery(1.0)  # between two videos of one host, give or take a half
    attempts: int = machinery(3)  # in one run, where the network failed or the host said "later"
    backoff_s: float = machinery(2.0)  # after a refusal, doubled by each that follows
    max_wait_s: float = machinery(120.0)
    budget: int = machinery(5)  # refusals in a row after which a host is left alone for this run

    def __post_init__(self) -> None:
        if self.mirror is not None and "://" not in self.mirror:
            raise ValueError("fetch.mirror must be a URL, such as s3://bucket/videos; a folder is fetch.archive")
        for name in ("archive", "cookies"):
            value = getattr(self, name)
            if value is not None and not Path(value).is_absolute():
                raise ValueError(f"fetch.{name} must be an absolute path: a later run may start elsewhere")
        if self.url is not None and not ("{id}" in self.url and _is_http(self.url)):
            raise ValueError(f"fetch.url must be an http or https URL with {{id}} in it, such as {YOUTUBE}")
        for name in ("max_height", "max_bytes", "max_video_s", "timeout_s", "connections", "attempts", "budget"):
            if getattr(self, name) <= 0:
                raise ValueError(f"fetch.{name} must be above 0")
        if self.max_bytes_per_s is not None and self.max_bytes_per_s <= 0:
            raise ValueError("fetch.max_bytes_per_s must be above 0, or none")
        if min(self.sleep_s, self.backoff_s, self.max_wait_s) < 0:
            raise ValueError("fetch.sleep_s, backoff_s and max_wait_s must be at least 0")

    @property
    def places(self) -> tuple[Place, ...]:
        """The places that are named, in the order in which they are asked."""
        named: dict[Place, Any] = {"mirror": self.mirror, "archive": self.archive, "yt-dlp": self.ytdlp}
        return tuple(place for place, value in named.items() if value)


@dataclass(frozen=True)
class Missing:
    """A video that a list names and that is not here; `url` is the list's own link to it."""

    narrative: str
    video_id: str
    url: str | None = None

    @property
    def is_safe(self) -> bool:
        """Whether the id may become part of a path and of a URL."""
        return _ID.fullmatch(self.video_id) is not None


Watch = Callable[[int], None]  # called with a file's bytes so far, again and again; raises where it is enough


@dataclass(frozen=True)
class FetchPlace:
    """A place that has been looked into: which videos it may have, and how one is had from there."""

    name: Place
    urls: Mapping[str, str]  # video id -> URL
    get: Callable[[str, str, Path, Watch], Path]  # (video id, URL, folder to work in, watch) -> the file
    sleep_s: float = 0.0


def open_places(missing: Sequence[Missing], config: FetchConfig) -> list[FetchPlace]:
    """The places of the configuration, looked into for these videos; nothing is fetched yet.

    Raises InputError where a mirror cannot be listed or a path is not there, UsageError where a package is missing.
    """
    wanted = {item.video_id: item for item in missing if item.is_safe}
    opened = {"mirror": _mirror, "archive": _archive, "yt-dlp": _ytdlp}
    return [opened[name](wanted, config) for name in config.places] if wanted else []


def _mirror(wanted: Mapping[str, Missing], config: FetchConfig) -> FetchPlace:
    assert config.mirror is not None
    shown = f"fetch.mirror={without_credentials(config.mirror, '')}"
    try:
        system, root = fsspec.url_to_fs(config.mirror)
        names = sorted(system.find(root))
    except ImportError as error:
        raise UsageError(f"{shown}: {error}: for s3:// install cookgen[s3]") from error
    except Exception as error:
        raise InputError(
            f"{shown}: cannot be listed ({reason_of(error)}); check the address, the network and your credentials"
        ) from error
    if not names:
        raise InputError(f"{shown}: holds no file; name the folder that the videos are in")
    paths = _by_id(names, wanted)
    urls = {video_id: system.unstrip_protocol(path) for video_id, path in paths.items()}
    return FetchPlace("mirror", urls, _copying(system))


def _archive(wanted: Mapping[str, Missing], config: FetchConfig) -> FetchPlace:
    assert config.archive is not None
    folder, system = Path(config.archive), LocalFileSystem()
    paths = _by_id(video_paths(folder), wanted)
    inside = {video_id: path for video_id, path in paths.items() if _is_file_of(folder, folder / path)}
    return FetchPlace("archive", {id_: f"file://{folder / path}" for id_, path in inside.items()}, _copying(system))


def _ytdlp(wanted: Mapping[str, Missing], config: FetchConfig) -> FetchPlace:
    try:
        from pipelines.sources import ytdlp
    except ImportError as error:
        raise UsageError(f"fetch.ytdlp=true: {error}; install cookgen[sources]") from error
    ytdlp.check(config)
    urls = {video_id: _link(item, config) for video_id, item in wanted.items()}

    def get(video_id: str, url: str, work: Path, watch: Watch) -> Path:
        return ytdlp.download(video_id, url, work, config, watch)

    return FetchPlace("yt-dlp", urls, get, config.sleep_s)


def _by_id(paths: Iterable[str], wanted: Mapping[str, Missing]) -> dict[str, str]:
    """The first path of each wanted video, which is named by its id."""
    found: dict[str, str] = {}
    for path in paths:
        name = PurePosixPath(path)
        if name.stem in wanted and name.suffix.lower() in VIDEO_SUFFIXES:
            found.setdefault(name.stem, path)
    return found


def _is_file_of(folder: Path, path: Path) -> bool:
    """Whether this is a plain file, and no link that leaves the folder."""
    with contextlib.suppress(OSError, RuntimeError):  # RuntimeError: a symbolic link that leads to itself
        return path.is_file() and path.resolve().is_relative_to(folder.resolve())
    return False


def _copying(system: Any) -> Callable[[str, str, Path, Watch], Path]:
    def get(video_id: str, url: str, work: Path, watch: Watch) -> Path:
        path = work / f"whole{PurePosixPath(url).suffix.lower()}"
        with system.open(url, "rb") as source, path.open("wb") as sink:
            while block := source.read(_BLOCK_BYTES):
                sink.write(block)
                watch(sink.tell())
            size, came = getattr(source, "size", None), sink.tell()
        if size not in (None, came):
            raise NotFetchedError(Outcome.NETWORK, f"{came} of {size} bytes came")
        return path

    return get


def _link(item: Missing, config: FetchConfig) -> str:
    if config.url is None and item.url is not None and _is_http(item.url):
        return item.url
    return (config.url or YOUTUBE).replace("{id}", item.video_id)


def _is_http(url: str) -> bool:
    with contextlib.suppress(ValueError):
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and url.isprintable() and " " not in url
    return False
