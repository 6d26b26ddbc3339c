"""One video by yt-dlp, used as a library: without its configuration files, plugins, caches and external programs, but
for Deno, which runs YouTube's own scripts in a sandbox where it is installed.

YouTube's pages go through yt-dlp's extractor. Every other URL is the video itself: yt-dlp's generic extractor would
read a page of any length into memory and take whatever film is embedded there.
"""

from __future__ import annotations

import contextlib
import io
import ipaddress
import socket
from http.cookiejar import LoadError
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from requests import PreparedRequest, Response
from requests.adapters import BaseAdapter
from yt_dlp import YoutubeDL
from yt_dlp.cookies import YoutubeDLCookieJar
from yt_dlp.extractor.youtube import YoutubeIE
from yt_dlp.globals import plugin_dirs
from yt_dlp.networking._requests import RequestsRH
from yt_dlp.networking.exceptions import HTTPError, RequestError

from cookgen.errors import InputError, reason_of
from cookgen.files import digest
from pipelines.ffmpeg import file_url, input_args, run_ffmpeg
from pipelines.sources.answers import NotFetchedError
from pipelines.sources.folder import VIDEO_SUFFIXES
from pipelines.sources.ledger import Outcome
from pipelines.sources.places import FetchConfig, Watch

_FILES = "[protocol~='^https?$']"  # plain files only: what is cut into pieces may need a program to put it together
_PAGES = ("text/html", "application/xhtml+xml")
_MP4 = (".mp4", ".m4a")


class _Silent:
    """yt-dlp's log; what counts comes as an exception."""

    def debug(self, message: str) -> None: ...
    def warning(self, message: str) -> None: ...
    def error(self, message: str) -> None: ...


class _PublicOnly(BaseAdapter):
    """Refuses to ask a host that is no public one. Links and redirects come from outside: they could make this machine
    ask what only it can reach. Of a proxy's names we may know nothing; it looks them up itself."""

    def __init__(self, adapter: BaseAdapter) -> None:
        super().__init__()
        self._adapter = adapter

    def send(self, request: PreparedRequest, *args: Any, **options: Any) -> Response:  # each redirect comes here too
        host = urlsplit(str(request.url)).hostname or ""
        private = next((address for address in _addresses(host) if not address.is_global), None)
        if private is not None:
            detail = f"leads to {host} ({private}), no public address; if you trust that host, name it in fetch.url"
            raise RequestError(cause=NotFetchedError(Outcome.BLOCKED, detail))
        return self._adapter.send(request, *args, **options)

    def close(self) -> None:
        self._adapter.close()


class _PublicRH(RequestsRH):  # type: ignore[misc]
    def _create_instance(self, *args: Any, **options: Any) -> Any:
        session = super()._create_instance(*args, **options)
        for prefix, adapter in list(session.adapters.items()):
            session.mount(prefix, _PublicOnly(adapter))
        return session


class Session(YoutubeDL):  # type: ignore[misc]
    """A YoutubeDL that leaves no connection behind; yt-dlp closes one only when it was read to its end.

    is_private: whether hosts of a private network may be asked.
    """

    def __init__(self, options: dict[str, Any], *, is_private: bool = False) -> None:
        self._opened = contextlib.ExitStack()
        self._handler = RequestsRH if is_private else _PublicRH
        super().__init__(options)

    def build_request_director(self, handlers: Any, preferences: Any = None) -> Any:
        return super().build_request_director([self._handler], preferences)

    def urlopen(self, request: Any) -> Any:
        try:
            response = super().urlopen(request)
        except HTTPError as error:
            self._opened.callback(error.close)
            raise
        self._opened.callback(response.close)
        return response

    def close(self) -> None:
        self._opened.close()
        super().close()


def check(config: FetchConfig) -> None:
    """Raises InputError where the file of cookies cannot be used."""
    if config.cookies is not None:
        try:
            YoutubeDLCookieJar(io.StringIO(Path(config.cookies).read_text(encoding="utf-8"))).load()
        except (OSError, ValueError, LoadError) as error:
            raise InputError(
                f"fetch.cookies={config.cookies}: {reason_of(error)}; name a cookies.txt in Netscape's form"
            ) from error


def download(video_id: str, url: str, work: Path, config: FetchConfig, watch: Watch) -> Path:
    """The file of one video, in the folder `work`, which may hold parts of it from an earlier attempt.

    Raises what yt-dlp raises, NotFetchedError where what would come is not this video, and what `watch` raises.
    """
    plugin_dirs.value = []
    with Session(options(config, watch), is_private=_is_private(config)) as session:
        is_page = YoutubeIE.suitable(url)
        info = session.extract_info(url, download=False) if is_page else _direct(session, url, video_id)
        return save(session, info, video_id, work)


def _is_private(config: FetchConfig) -> bool:
    """Whether fetch.url, which the user wrote, names a host of a private network: it may redirect within that."""
    host = urlsplit(config.url).hostname if config.url else None
    return any(not address.is_global for address in _addresses(host or ""))


def _addresses(host: str) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    """The addresses of a host as a connection would look it up; none where it has none."""
    with contextlib.suppress(OSError, UnicodeError):
        found = {str(address[0]).partition("%")[0] for *_, address in socket.getaddrinfo(host, None)}
        parsed = [ipaddress.ip_address(address) for address in sorted(found)]
        return [getattr(address, "ipv4_mapped", None) or address for address in parsed]
    return []


def options(config: FetchConfig, watch: Watch) -> dict[str, Any]:
    """The options of a Session that does as the configuration says."""
    rate = config.max_bytes_per_s
    return {
        "allowed_extractors": ["youtube"],
        "format": f"bv*{_FILES}+ba{_FILES}/b{_FILES}",
        "format_sort": [f"res:{config.max_height}"],
        "noplaylist": True,
        "logger": _Silent(),
        "quiet": True,
        "noprogress": True,
        "color": "never",
        "cachedir": False,
        "continuedl": True,
        "buffersize": 64,  # bytes at first; it grows to what comes in a second, so that `watch` is called that often
        "updatetime": False,
        "retries": 0,  # attempts are ours, so that each is in the ledger
        "extractor_retries": 0,
        "socket_timeout": config.timeout_s,
        "sleep_interval_requests": config.sleep_s,
        "ratelimit": max(1, rate // config.connections) if rate else None,
        "proxy": config.proxy,
        # As a stream: yt-dlp writes cookies back to a file that it is given by name.
        "cookiefile": io.StringIO(Path(config.cookies).read_text(encoding="utf-8")) if config.cookies else None,
        "geo_bypass": False,
        "external_downloader": {"default": "native"},
        "progress_hooks": [lambda now: watch(max(now.get("downloaded_bytes") or 0, now.get("total_bytes") or 0))],
    }


def save(session: Session, info: dict[str, Any], video_id: str, work: Path) -> Path:
    """Downloads what was chosen of a video's files, picture and sound apart or together; returns the whole file."""
    if info.get("_type", "video") != "video" or info.get("id") != video_id:
        raise NotFetchedError(Outcome.CORRUPT, f"the link leads to another video, {info.get('id')}")
    if info.get("is_live"):
        raise NotFetchedError(Outcome.NETWORK, "a live stream, not yet a video")
    paths = []
    for part in info.get("requested_formats") or [info]:
        suffix = f".{part.get('ext')}".lower()
        # The name says which bytes it holds: a file that has changed there, or another format, is begun anew.
        name = digest([info["extractor"], *(part.get(key) for key in ("format_id", "filesize", "version"))])[:16]
        path = work / (name + (suffix if suffix in VIDEO_SUFFIXES or suffix in _MP4 else ".mp4"))
        begun, size = path.with_name(path.name + ".part"), part.get("filesize")
        if size and begun.is_file() and begun.stat().st_size == size:  # interrupted before it got its name
            begun.rename(path)
        try:
            done, _ = session.dl(str(path), {**info, **part})
        except HTTPError as error:
            if error.status == 416:  # nothing follows what is here; yt-dlp would ask for it for ever
                begun.unlink(missing_ok=True)
            raise
        if not done:
            raise NotFetchedError(Outcome.NETWORK, "yt-dlp got nothing, and does not say why")
        paths.append(path)
    return paths[0] if len(paths) == 1 else join(paths[0], paths[1], work)


def join(picture: Path, sound: Path, work: Path) -> Path:
    """Picture and sound in one file, nothing encoded anew. Raises NotFetchedError where they cannot be joined."""
    whole = work / ("whole.mp4" if {picture.suffix, sound.suffix} <= {*_MP4} else "whole.mkv")
    inputs = [*input_args(picture), *input_args(sound), "-map", "0:v:0", "-map", "1:a:0"]
    done = run_ffmpeg([*inputs, "-c", "copy", "-bitexact", file_url(whole)], timeout_s=600)
    if done.returncode:
        raise NotFetchedError(Outcome.CORRUPT, f"picture and sound cannot be joined: {done.last_line}")
    return whole


def _direct(session: Session, url: str, video_id: str) -> dict[str, Any]:
    """What yt-dlp would say of a link to a file; its body is not read here."""
    response = session.urlopen(url)
    headers, path = response.headers, urlsplit(response.url).path
    response.close()
    kind = (headers.get("Content-Type") or "").partition(";")[0].strip().lower()
    if kind in _PAGES:
        raise NotFetchedError(Outcome.CORRUPT, f"the answer is {kind}, not a video")
    size = headers.get("Content-Length") or ""
    version = [url, *(headers.get(name) for name in ("ETag", "Last-Modified"))]
    return {
        "id": video_id,
        "title": video_id,
        "extractor": "direct",
        "url": url,
        "protocol": "http",
        "ext": PurePosixPath(path).suffix[1:],
        "filesize": int(size) if size.isdecimal() else None,
        "version": version,
    }
