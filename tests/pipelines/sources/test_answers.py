"""What errors mean: yt-dlp's own, raised by yt-dlp, and those of object stores."""

from __future__ import annotations

import email.message
import email.utils
import io
import time
from typing import Any

import pytest
from yt_dlp import YoutubeDL
from yt_dlp.extractor.common import InfoExtractor
from yt_dlp.networking.common import Response
from yt_dlp.networking.exceptions import HTTPError, TransportError
from yt_dlp.utils import DownloadError, ExtractorError, GeoRestrictedError

from pipelines.sources.answers import NotFetchedError, classify
from pipelines.sources.ledger import Outcome
from pipelines.sources.places import FetchConfig
from pipelines.sources.ytdlp import options


def raised(error: Exception) -> DownloadError:
    """The error as it comes out of yt-dlp when an extractor raises it."""

    class Raising(InfoExtractor):  # type: ignore[misc]
        _VALID_URL = r"https?://raising/(?P<id>.*)"

        def _real_extract(self, url: str) -> dict[str, Any]:
            raise error

    with YoutubeDL(options(FetchConfig(), lambda num_bytes: None), auto_init=False) as ydl:
        ydl.add_info_extractor(Raising())
        with pytest.raises(DownloadError) as caught:
            ydl.extract_info("https://raising/x", download=False)
    return caught.value


def http_error(status: int, reason: str = "", **headers: str) -> HTTPError:
    message = email.message.Message()
    for name, value in headers.items():
        message[name.replace("_", "-")] = value
    return HTTPError(Response(io.BytesIO(), "https://raising/x", message, status=status, reason=reason))


SAYINGS = {  # YouTube's own words, as yt-dlp passes them on
    "Private video. Sign in if you've been granted access to this video": Outcome.PRIVATE,
    "Video unavailable. This video is private": Outcome.PRIVATE,
    "Sign in to confirm your age. This video may be inappropriate for some users": Outcome.PRIVATE,
    "Join this channel to get access to members-only content like this video": Outcome.PRIVATE,
    "This video requires payment to watch": Outcome.PRIVATE,
    "This video is DRM protected": Outcome.PRIVATE,
    "Video unavailable": Outcome.REMOVED,
    "This video is unavailable": Outcome.REMOVED,
    "This video isn't available anymore": Outcome.REMOVED,
    "This video has been removed by the uploader": Outcome.REMOVED,
    "This video has been removed for violating YouTube's Terms of Service": Outcome.REMOVED,
    "This video is no longer available because the YouTube account associated with this video has been terminated": (
        Outcome.REMOVED
    ),
    "Video unavailable. This video is no longer available due to a copyright claim by X": Outcome.REMOVED,
    "Video unavailable. The uploader has not made this video available in your country": Outcome.REGION,
    "Video unavailable. This video contains content from X, who has blocked it in your country on copyright grounds": (
        Outcome.REGION
    ),
    "This video is not available from your location due to geo restriction": Outcome.REGION,
    "Sign in to confirm you’re not a bot. Use --cookies-from-browser": Outcome.BLOCKED,
    "Sign in to confirm you're not a bot": Outcome.BLOCKED,
    "YouTube is requiring a captcha challenge before playback": Outcome.BLOCKED,
    "Requested format is not available. Use --list-formats for a list of available formats": Outcome.BLOCKED,
    "Video unavailable. This content isn't available, try again later. The current session has been rate-limited by "
    "YouTube for up to an hour": Outcome.RATE_LIMITED,
    "This live event will begin in 3 hours.": Outcome.NETWORK,
    "The page needs to be reloaded.": Outcome.NETWORK,
    "Failed to extract any player response": Outcome.NETWORK,
}


@pytest.mark.parametrize(("said", "outcome"), SAYINGS.items())
def test_what_youtube_says(said: str, outcome: Outcome) -> None:
    answer = classify(raised(ExtractorError(said, expected=True, video_id="x")))
    assert answer.outcome is outcome
    assert said in answer.detail
    assert not answer.detail.lower().startswith("error")


def test_a_region_by_its_type_and_its_words() -> None:
    answer = classify(raised(GeoRestrictedError("Not here", countries=["DE"])))
    assert answer.outcome is Outcome.REGION


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (401, Outcome.PRIVATE),
        (402, Outcome.PRIVATE),
        (403, Outcome.BLOCKED),
        (404, Outcome.REMOVED),
        (408, Outcome.NETWORK),
        (410, Outcome.REMOVED),
        (429, Outcome.RATE_LIMITED),
        (451, Outcome.REGION),
        (500, Outcome.NETWORK),
        (502, Outcome.NETWORK),
        (503, Outcome.NETWORK),
    ],
)
def test_codes_whatever_is_written_beside_them(status: int, outcome: Outcome) -> None:
    for reason in ("", "Private video", "removed", "in your country"):
        error = http_error(status, reason)
        assert classify(error).outcome is outcome
        wrapped = ExtractorError("Unable to download webpage", cause=error, expected=True)
        assert classify(raised(wrapped)).outcome is outcome
        lost = DownloadError(f"\r[download] Got error: HTTP Error {status}: {reason}")  # a download given up
        assert classify(lost).outcome is outcome


def test_retry_after_in_seconds_and_as_a_date() -> None:
    assert classify(http_error(429, Retry_After="17")).retry_after_s == 17.0
    assert classify(http_error(503, Retry_After=" 3 ")).outcome is Outcome.RATE_LIMITED
    later = email.utils.formatdate(time.time() + 100, usegmt=True)
    found = classify(raised(ExtractorError("Unable", cause=http_error(429, Retry_After=later)))).retry_after_s
    assert found is not None
    assert 0 < found <= 100
    assert classify(http_error(429, Retry_After=email.utils.formatdate(0, usegmt=True))).retry_after_s == 0.0
    for nonsense in ("soon", "-5", "", "1e9", "²"):
        assert classify(http_error(429, Retry_After=nonsense)).retry_after_s is None


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (FileNotFoundError("bucket/a.mp4"), Outcome.REMOVED),
        (PermissionError("Forbidden"), Outcome.BLOCKED),
        (OSError("Please reduce your request rate."), Outcome.RATE_LIMITED),
        (ConnectionResetError(104, "Connection reset by peer"), Outcome.NETWORK),
        (TimeoutError("timed out"), Outcome.NETWORK),
        (TransportError("timed out"), Outcome.NETWORK),
        (TransportError("the private account's remote end was terminated"), Outcome.NETWORK),
        (DownloadError("\r[download] Got error: 5 bytes read, 7 more expected; removed"), Outcome.NETWORK),
        (KeyError("a mistake of the library"), Outcome.NETWORK),
        (NotFetchedError(Outcome.CORRUPT, "no picture in it"), Outcome.CORRUPT),
    ],
)
def test_others(error: Exception, outcome: Outcome) -> None:
    assert classify(error).outcome is outcome
    assert classify(error).detail


def test_what_we_raise_inside_a_hook_keeps_its_meaning() -> None:
    assert classify(raised(ExtractorError("x", cause=NotFetchedError(Outcome.CORRUPT, "y")))).outcome is Outcome.CORRUPT


def test_errors_that_name_each_other_end() -> None:
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    assert classify(first).detail == "first"
