"""What an error means for a link: one outcome, from HTTP codes first and from yt-dlp's and YouTube's words else.

    401, 402 private   403 blocked   404, 410 removed   429, or 5xx with Retry-After rate_limited   451 region

Everything that is not known to be about the video itself is `network`, which is tried again.
"""

from __future__ import annotations

import email.utils
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass

from pipelines.sources.ledger import Outcome

_BY_STATUS = {
    401: Outcome.PRIVATE,
    402: Outcome.PRIVATE,
    403: Outcome.BLOCKED,
    404: Outcome.REMOVED,
    410: Outcome.REMOVED,
    429: Outcome.RATE_LIMITED,
    451: Outcome.REGION,
}
_BY_TYPE = ((FileNotFoundError, Outcome.REMOVED), (PermissionError, Outcome.BLOCKED))  # fsspec's, whatever the store
_NETWORK = {"TransportError", "ConnectionError", "TimeoutError"}  # by name: yt-dlp need not be installed
_GIVEN_UP = "[download] Got error:"  # yt-dlp keeps no exception of a download that broke off
_SAYINGS = (  # the first that is found counts, so what is narrower comes first
    (Outcome.REGION, r"in your (country|location|region)|geo.?restrict|vpn or a proxy"),
    (Outcome.RATE_LIMITED, r"rate.?limit|too many requests|try again later|reduce your request rate"),
    (Outcome.BLOCKED, r"not a bot|captcha|unusual traffic|requested format is not available"),
    (Outcome.REMOVED, r"removed|terminated|deleted|copyright|no longer available|does not exist"),
    (Outcome.PRIVATE, r"private|sign in|\blog ?in\b|members|your age|age.?restricted|payment|purchase|\brent|\bdrm\b"),
    (Outcome.REMOVED, r"video is unavailable|video unavailable|n.t available|is not available"),
    (Outcome.CORRUPT, r"no connection adapters|url scheme|file:// urls|redirect loop|is not a valid url"),
)
_NOISE = re.compile(
    r"\x1b\[[0-9;]*m|^\s*error:|\[download\] got error:|; please report this issue on .*", re.IGNORECASE | re.DOTALL
)


@dataclass(frozen=True)
class Answer:
    """What came of one attempt."""

    outcome: Outcome
    detail: str = ""
    retry_after_s: float | None = None  # what the host asked for


class NotFetchedError(Exception):
    """The end of an attempt of which we know ourselves what it means."""

    def __init__(self, outcome: Outcome, detail: str) -> None:
        super().__init__(detail)
        self.outcome = outcome


def classify(error: BaseException) -> Answer:
    """The outcome that an exception of yt-dlp, fsspec or our own stands for, with what it says."""
    known = next((cause for cause in causes(error) if isinstance(cause, NotFetchedError)), None)
    if known is not None:
        return Answer(known.outcome, str(known))
    text = _NOISE.sub("", str(error)).strip() or type(error).__name__
    status, retry_after_s = _status_of(error, text), _retry_after_s(error)
    if status is not None and status >= 400:  # the words beside a code are the host's own
        is_late = status >= 500 and retry_after_s is not None
        outcome = _BY_STATUS.get(status, Outcome.RATE_LIMITED if is_late else Outcome.NETWORK)
        return Answer(outcome, text, retry_after_s)
    kinds = {kind.__name__ for cause in causes(error) for kind in type(cause).__mro__}
    if kinds & _NETWORK or _GIVEN_UP in str(error):
        return Answer(Outcome.NETWORK, text)
    found = [outcome for kind, outcome in _BY_TYPE if isinstance(error, kind)]
    found += [outcome for outcome, words in _SAYINGS if re.search(words, text, re.IGNORECASE)]
    return Answer(found[0] if found else Outcome.NETWORK, text)


def causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what it was raised from: as Python keeps it, and as yt-dlp does (`exc_info`, `cause`)."""
    seen: list[BaseException] = []
    waiting: list[object] = [error]
    while waiting:
        one = waiting.pop(0)
        if not isinstance(one, BaseException) or any(one is other for other in seen):
            continue
        seen.append(one)
        yield one
        waiting += [*(getattr(one, "exc_info", None) or ()), getattr(one, "cause", None), one.__cause__]


def _status_of(error: BaseException, text: str) -> int | None:
    for cause in causes(error):
        if isinstance(status := getattr(cause, "status", None), int):
            return status
    said = re.search(r"HTTP Error (\d{3})\b", text)
    return int(said[1]) if said else None


def _retry_after_s(error: BaseException) -> float | None:
    """The seconds of a Retry-After header, which are a number or a date."""
    for cause in causes(error):
        headers = getattr(getattr(cause, "response", cause), "headers", None)
        value = headers.get("Retry-After") if headers is not None else None
        if value is None:
            continue
        if value.strip().isdecimal():
            return float(value)
        try:
            return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
        except ValueError:
            return None
    return None
