"""The link ledger: what came of each attempt to fetch a video, one JSON line an attempt, only ever appended to.

    OUT/.store/links.jsonl    {"at": "2026-11-29T22:50:01Z", "detail": "HTTP Error 410: Gone", "outcome": "removed",
                               "place": "yt-dlp", "url": "https://…", "video_id": "GLd3aX16zBg"}

Each line is on disk before the next attempt begins. A line that a killed run left half written is passed over.
"""

from __future__ import annotations

import os
import re
import threading
from collections import Counter
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import parse_qsl, urlencode, urlsplit

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from cookgen.files import canonical_json, explained

MAX_DETAIL = 300  # characters
Place = Literal["mirror", "archive", "yt-dlp"]
_LOGIN = re.compile(r"(?<=://)[^\s/]+@")


class Outcome(StrEnum):
    """What came of an attempt. The list is closed."""

    OK = "ok"
    REMOVED = "removed"
    PRIVATE = "private"  # only an account may see it: private, for members, for adults, paid
    REGION = "region"  # not where we are
    BLOCKED = "blocked"  # the host refuses us, not the video
    RATE_LIMITED = "rate_limited"
    NETWORK = "network"
    CORRUPT = "corrupt"  # what came is no whole video, or nothing that may be taken for one

    @property
    def is_final(self) -> bool:
        """Whether asking again would bring the same."""
        return self not in (Outcome.BLOCKED, Outcome.RATE_LIMITED, Outcome.NETWORK)


class Attempt(BaseModel):
    """One line of the ledger."""

    model_config = ConfigDict(frozen=True)

    video_id: str
    place: Place
    url: str  # without credentials
    at: str  # UTC, ISO 8601, whole seconds
    outcome: Outcome
    detail: Annotated[str, StringConstraints(max_length=MAX_DETAIL)] = ""


class Ledger:
    """The attempts so far, the newest of each video and URL. `add` may be called from many threads."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._newest: dict[str, dict[str, Attempt]] = {}
        for attempt in _read(path):
            self._remember(attempt)

    def of(self, video_id: str) -> dict[str, Attempt]:
        """The newest attempt at each URL of a video, the oldest of them first."""
        return dict(self._newest.get(video_id, {}))

    def add(self, attempt: Attempt) -> None:
        """Appends a line; it is on disk when this returns. Raises OutputError where that fails."""
        line = canonical_json(attempt.model_dump(mode="json")) + "\n"
        with self._lock, explained(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a+b") as stream:
                if stream.seek(0, os.SEEK_END):
                    stream.seek(-1, os.SEEK_END)
                    line = line if stream.read(1) == b"\n" else "\n" + line  # the last one was torn
                stream.write(line.encode())
                stream.flush()
                os.fsync(stream.fileno())
            self._remember(attempt)

    def counts(self) -> dict[str, int]:
        """How many videos have which outcome, by their newest attempt."""
        last = (next(reversed(attempts.values())) for attempts in self._newest.values())
        return dict(Counter(attempt.outcome.value for attempt in last))

    def _remember(self, attempt: Attempt) -> None:
        urls = self._newest.setdefault(attempt.video_id, {})
        urls.pop(attempt.url, None)  # so that the newest is the last one
        urls[attempt.url] = attempt


def _read(path: Path) -> Iterator[Attempt]:
    if not path.exists():
        return
    with path.open("rb") as stream:
        for line in stream:
            try:
                yield Attempt.model_validate_json(line)
            except ValidationError:  # half a line, or one of a later version
                continue


def without_credentials(url: str, video_id: str) -> str:
    """The URL without user and password, and without the values of its query that do not name the video."""
    parts = urlsplit(url)
    query = [(name, value if video_id in value else "") for name, value in parse_qsl(parts.query)]
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query=urlencode(query), fragment="").geturl()


def one_line(text: str) -> str:
    """What a library said, in one line of at most MAX_DETAIL characters that can be printed; no credentials in URLs."""
    words = "".join(mark if mark.isprintable() else " " for mark in text)
    return " ".join(_LOGIN.sub("", words).split())[:MAX_DETAIL]
