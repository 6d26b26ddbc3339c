"""Fetching over real HTTP, from a real S3 server and from folders: every outcome, resumed and interrupted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest

from cookgen.config import config_digest
from cookgen.errors import InputError, OutputError, UsageError
from cookgen.files import file_sha256
from pipelines.ffmpeg import ffmpeg_exe
from pipelines.probe import open_container, overrun
from pipelines.sources.answers import NotFetchedError
from pipelines.sources.fetch import fetch_videos, fetched_folder, links_path
from pipelines.sources.ledger import Outcome
from pipelines.sources.places import YOUTUBE, FetchConfig, Missing, open_places
from pipelines.sources.ytdlp import Session, join, options, save
from tests.mediaserver import MediaServer, Reply, media_server

ROOT = Path(__file__).resolve().parents[3]
SPAN = (1 << 20) + 4321  # bytes of the test's video


@pytest.fixture(scope="session")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a short video, and its picture and its sound alone."""
    folder = tmp_path_factory.mktemp("parts")
    picture = ["-f", "lavfi", "-i", "testsrc=size=192x144:rate=10:duration=2"]
    sound = ["-f", "lavfi", "-i", "sine=frequency=440:duration=2"]
    x264 = ["-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv420p"]
    for name, options_ in {
        "whole.mp4": [*picture, *sound, *x264, "-c:a", "aac"],
        "whole.mkv": [*picture, *sound, *x264, "-c:a", "aac"],
        "picture.mp4": [*picture, *x264],
        "sound.m4a": [*sound, "-c:a", "aac"],
        "sound.webm": [*sound, "-c:a", "libopus"],
    }.items():
        command = [ffmpeg_exe(), "-v", "error", "-nostdin", "-y", *options_, str(folder / name)]
        subprocess.run(command, check=True, timeout=120)
    return folder


@pytest.fixture(scope="session")
def video(parts: Path) -> bytes:
    """An MP4 of SPAN bytes: a real video, and a `free` box that makes it long enough to be cut somewhere."""
    content = (parts / "whole.mp4").read_bytes()
    return content + (SPAN - len(content)).to_bytes(4, "big") + b"free" + bytes(SPAN - len(content) - 8)


def config_for(server: MediaServer | None = None, **changes: Any) -> FetchConfig:
    quick = {"sleep_s": 0.0, "backoff_s": 0.01, "timeout_s": 5.0}
    web = {"ytdlp": True, "url": f"{server.url}/{{id}}.mp4"} if server else {}
    return FetchConfig(**{**quick, **web, **changes})


def missing(*ids: str) -> list[Missing]:
    return [Missing(f"youcook2-{video_id}", video_id) for video_id in ids]


def fetch(out: Path, ids: list[Missing], config: FetchConfig, *retry: Outcome) -> dict[str, str]:
    """Fetches those of the videos that are not yet there, as a run does."""
    left = [item for item in ids if not list(fetched_folder(out).glob(f"{item.video_id}.*"))]
    return fetch_videos(open_places(left, config), left, config, out, retry=frozenset(retry), show=lambda tallies: None)


def lines(out: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in links_path(out).read_text(encoding="utf-8").splitlines()]


def outcomes(out: Path) -> list[tuple[str, str]]:
    return [(line["video_id"], line["outcome"]) for line in lines(out)]


def files(out: Path) -> list[str]:
    """All that lies in the folder of fetched videos, parts too."""
    folder = fetched_folder(out)
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


HTML = b"<!DOCTYPE html><html><title>soup</title><video src='/good.mp4'></video></html>"
ANSWERS: dict[str, Callable[[bytes], tuple[Reply, str]]] = {
    "good": lambda video: (Reply(video), "ok"),
    "octets": lambda video: (Reply(video, kind="application/octet-stream"), "ok"),
    "nolength": lambda video: (Reply(video, has_length=False), "ok"),
    "gone404": lambda video: (Reply(status=404), "removed"),
    "gone410": lambda video: (Reply(status=410), "removed"),
    "private": lambda video: (Reply(status=401), "private"),
    "region": lambda video: (Reply(status=451), "region"),
    "blocked": lambda video: (Reply(status=403), "blocked"),
    "limited": lambda video: (Reply(status=429), "rate_limited"),
    "later": lambda video: (Reply(status=503, headers=(("Retry-After", "0"),)), "rate_limited"),
    "broken": lambda video: (Reply(status=500), "network"),
    "reset": lambda video: (Reply(reset=True), "network"),
    "midway": lambda video: (Reply(video, cut=300_000, reset=True), "network"),
    "short": lambda video: (Reply(video, cut=300_000), "network"),
    "page": lambda video: (Reply(HTML, kind="text/html; charset=utf-8"), "corrupt"),
    "disguised": lambda video: (Reply(HTML), "corrupt"),
    "playlist": lambda video: (Reply(b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n"), "corrupt"),
    "half": lambda video: (Reply(video[:300_000]), "corrupt"),  # whole as HTTP goes, but no whole MP4
    "empty": lambda video: (Reply(b""), "network"),
    "local": lambda video: (Reply(status=302, headers=(("Location", "file:///etc/passwd"),)), "corrupt"),
    "circle": lambda video: (Reply(status=302, headers=(("Location", "/circle.mp4"),)), "corrupt"),
}


@pytest.mark.parametrize("case", ANSWERS)
def test_every_outcome_by_real_http(case: str, video: bytes, tmp_path: Path) -> None:
    reply, outcome = ANSWERS[case](video)
    with media_server(lambda path, number: reply) as server:
        fetch(tmp_path, missing(case), config_for(server, attempts=1))
        first = len(server.asked)
        assert outcomes(tmp_path) == [(case, outcome)]
        (line,) = lines(tmp_path)
        assert line["place"] == "yt-dlp"
        assert line["url"] == f"{server.url}/{case}.mp4"
        assert bool(line["detail"]) == (outcome != "ok")
        parts_left = [name for name in files(tmp_path) if name.startswith(".partial")]
        assert [name for name in files(tmp_path) if name not in parts_left] == [f"{case}.mp4"] * (outcome == "ok")
        if outcome == "ok":
            assert (fetched_folder(tmp_path) / f"{case}.mp4").read_bytes() == video
        assert bool(parts_left) == (case in ("midway", "short"))
        fetch(tmp_path, missing(case), config_for(server, attempts=1))  # the next run
        is_final = outcome in ("ok", "removed", "private", "region", "corrupt")
        assert (len(server.asked) == first) == is_final
        assert len(lines(tmp_path)) == (1 if is_final else 2)
        if outcome != "ok" and is_final:
            fetch(tmp_path, missing(case), config_for(server, attempts=1), Outcome(outcome))  # retry --reason
            assert len(server.asked) == 2 * first
            assert outcomes(tmp_path) == [(case, outcome)] * 2


def test_nobody_answers(video: bytes, tmp_path: Path) -> None:
    with media_server(lambda path, number: Reply()) as server:
        config = config_for(server, attempts=2)
    fetch(tmp_path, missing("x"), config)
    assert outcomes(tmp_path) == [("x", "network")] * 2


def test_a_silent_host_is_given_up(video: bytes, tmp_path: Path) -> None:
    with media_server(lambda path, number: Reply(video, pause_s=60.0)) as server:
        fetch(tmp_path, missing("x"), config_for(server, attempts=1, timeout_s=0.5))
    assert outcomes(tmp_path) == [("x", "network")]
    assert [name.rpartition(".")[2] for name in files(tmp_path)] == ["part"]


def test_a_dribbling_host_is_given_up_too(video: bytes, tmp_path: Path) -> None:
    with media_server(lambda path, number: Reply(video, pause_s=0.02, block_bytes=2000)) as server:
        fetch(tmp_path, missing("x"), config_for(server, attempts=1, max_video_s=0.5))
    ((_, outcome),) = outcomes(tmp_path)
    assert outcome == "network"
    assert "max_video_s" in lines(tmp_path)[0]["detail"]


def first_bytes(server: MediaServer) -> list[int | None]:
    """Where each answer began that was really downloaded: every second request, the first asks for the headers."""
    return [asked.first_byte for asked in server.asked][1::2]


def assert_went_on(began: list[int | None], cut: int) -> None:
    first, second = began
    assert first is None
    assert (cut - 64) // 2 <= (second or 0) <= cut


@pytest.mark.parametrize("cut", [1, 4096, 700_001, SPAN - 1])
def test_what_came_is_not_asked_for_again(cut: int, video: bytes, tmp_path: Path) -> None:
    """Cut off anywhere: the next attempt, in this run or the next, goes on and the bytes are right.

    yt-dlp reads blocks that double at most, and loses the one in which the connection broke.
    """
    broken = {"in": [1], "next": [1]}
    with media_server(lambda path, number: Reply(video, cut=cut if number in broken[path[1:-4]] else None)) as server:
        fetch(tmp_path, missing("in"), config_for(server, attempts=2))
        assert_went_on(first_bytes(server), cut)
        fetch(tmp_path, missing("next"), config_for(server, attempts=1))
        fetch(tmp_path, missing("next"), config_for(server, attempts=1))
        assert_went_on(first_bytes(server)[2:], cut)
    assert outcomes(tmp_path) == [("in", "network"), ("in", "ok"), ("next", "network"), ("next", "ok")]
    assert files(tmp_path) == ["in.mp4", "next.mp4"]
    assert all(path.read_bytes() == video for path in fetched_folder(tmp_path).glob("*.mp4"))


@pytest.mark.parametrize("has_length", [True, False])
@pytest.mark.parametrize("more", [0, 1])
def test_a_part_that_is_all_of_it_or_more_is_no_trap(has_length: bool, more: int, video: bytes, tmp_path: Path) -> None:
    """As a run leaves it that is interrupted after the last byte; asked for what follows, a server says 416."""
    broken = True

    def answer(path: str, number: int) -> Reply:
        is_cut = broken and number == 1
        return Reply(video, cut=SPAN // 2 if is_cut else None, reset=is_cut, has_length=has_length)

    with media_server(answer) as server:
        fetch(tmp_path, missing("x"), config_for(server, attempts=1))
        (part,) = fetched_folder(tmp_path).rglob("*.part")
        part.write_bytes(video + bytes(more))
        asked, broken = len(server.asked), False
        fetch(tmp_path, missing("x"), config_for(server, attempts=2))
        if has_length and not more:
            assert len(server.asked) == asked + 1  # for the headers
    assert (fetched_folder(tmp_path) / "x.mp4").read_bytes() == video
    assert files(tmp_path) == ["x.mp4"]


def test_a_host_without_ranges_begins_anew(video: bytes, tmp_path: Path) -> None:
    with media_server(lambda path, number: Reply(video, cut=5000 if number == 1 else None, ranges=False)) as server:
        fetch(tmp_path, missing("x"), config_for(server, attempts=2))
    assert outcomes(tmp_path) == [("x", "network"), ("x", "ok")]
    assert (fetched_folder(tmp_path) / "x.mp4").read_bytes() == video


@pytest.mark.parametrize("mark", ["ETag", "Last-Modified"])
def test_a_file_that_changed_meanwhile_is_not_mixed(mark: str, video: bytes, parts: Path, tmp_path: Path) -> None:
    other = video[:-4321] + bytes(4321 - 1) + b"x"  # as long, and with another end
    marks = {"ETag": ('"1"', '"2"'), "Last-Modified": tuple(f"Mon, 0{day} Nov 2026 10:00:00 GMT" for day in (2, 3))}
    is_new = False

    def answer(path: str, number: int) -> Reply:
        headers = ((mark, marks[mark][is_new]),)
        return Reply(other if is_new else video, headers=headers, cut=SPAN - 2000 if number == 1 else None)

    with media_server(answer) as server:
        fetch(tmp_path, missing("x"), config_for(server, attempts=1))
        is_new = True
        fetch(tmp_path, missing("x"), config_for(server, attempts=1))
        assert first_bytes(server) == [None, None]
    assert (fetched_folder(tmp_path) / "x.mp4").read_bytes() == other
    assert files(tmp_path) == ["x.mp4"]


def test_a_file_that_is_too_large_is_left_after_its_first_block(video: bytes, tmp_path: Path) -> None:
    with media_server(lambda path, number: Reply(video, has_length=path != "/endless.mp4")) as server:
        fetch(tmp_path, missing("x", "endless"), config_for(server, max_bytes=500_000))
        assert fetch(tmp_path, missing("x", "endless"), config_for(server, max_bytes=500_000)) == {}
    assert sorted(outcomes(tmp_path)) == [("endless", "corrupt"), ("x", "corrupt")]
    assert "max_bytes" in lines(tmp_path)[0]["detail"]
    assert files(tmp_path) == []


def test_a_blocking_host_is_left_alone_and_the_others_are_not(
    video: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Budget 3: three answers, then none; another host's videos come all the same."""
    monkeypatch.delenv("no_proxy", raising=False)
    ids = [f"v{number}" for number in range(8)]
    listed = [Missing(f"n-{i}", i, f"http://blocking.invalid/{i}.mp4") for i in ids]
    listed += [Missing(f"n-w{i}", f"w{i}", f"http://open.invalid/{i}.mp4") for i in range(3)]
    with media_server(lambda path, number: Reply(status=403) if "blocking" in path else Reply(video)) as proxy:

        def num_asked() -> int:
            return sum("blocking" in path for path in proxy.paths())

        config = config_for(ytdlp=True, proxy=proxy.url, budget=3, connections=1)
        skipped = fetch(tmp_path, listed, config)
        assert num_asked() == 3
        why = "not attempted: host blocking.invalid blocked after 3 answers"
        assert skipped == dict.fromkeys(ids[3:], why)
        assert sorted(outcomes(tmp_path)) == [
            *[(i, "blocked") for i in ids[:3]],
            *[(f"w{i}", "ok") for i in range(3)],
        ]
        assert set(fetch(tmp_path, listed, config)) == set(ids[3:])  # the next run asks again, and burns no more
        assert num_asked() == 6


def test_a_host_that_says_later_gets_its_time(video: bytes, tmp_path: Path) -> None:
    late = Reply(status=429, headers=(("Retry-After", "1"),))
    with media_server(lambda path, number: late if number == 0 else Reply(video)) as server:
        fetch(tmp_path, missing("x"), config_for(server))
    assert outcomes(tmp_path) == [("x", "rate_limited"), ("x", "ok")]


def test_a_host_that_says_tomorrow_is_not_waited_for(video: bytes, tmp_path: Path) -> None:
    late = Reply(status=429, headers=(("Retry-After", "86400"),))
    with media_server(lambda path, number: late) as server:
        skipped = fetch(tmp_path, missing("a", "b", "c"), config_for(server, connections=1))
    assert outcomes(tmp_path) == [("a", "rate_limited")]
    assert set(skipped) == {"b", "c"}
    assert "it asks to wait 86400 s" in skipped["b"]


def test_a_redirect_to_another_host_takes_no_cookie_and_no_password_along(video: bytes, tmp_path: Path) -> None:
    jar = tmp_path / "cookies.txt"
    jar.write_text("# Netscape HTTP Cookie File\n127.0.0.1\tFALSE\t/\tFALSE\t0\tsession\ts3cret\n")
    before = jar.read_bytes()
    with media_server(lambda path, number: Reply(video)) as other:
        away = (("Location", other.url.replace("127.0.0.1", "localhost") + "/y.mp4"),)
        with media_server(lambda path, number: Reply(status=302, headers=away)) as asked:
            url = asked.url.replace("127.0.0.1", "me:pa55@127.0.0.1") + "/{id}.mp4"
            fetch(tmp_path, missing("x"), config_for(ytdlp=True, url=url, cookies=str(jar)))
        assert all(request.headers.get("cookie") == "session=s3cret" for request in asked.asked)
        assert all(request.headers.get("authorization") for request in asked.asked)
        assert other.asked
        assert not any(request.headers.keys() & {"cookie", "authorization"} for request in other.asked)
    assert outcomes(tmp_path) == [("x", "ok")]
    assert "pa55" not in links_path(tmp_path).read_text()
    assert jar.read_bytes() == before


def test_a_proxy_is_asked_instead(video: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("no_proxy", raising=False)
    with media_server(lambda path, number: Reply(video)) as proxy:
        fetch(tmp_path, missing("x"), config_for(ytdlp=True, url="http://away.invalid/{id}.mp4", proxy=proxy.url))
        assert set(proxy.paths()) == {"http://away.invalid/x.mp4"}
    assert outcomes(tmp_path) == [("x", "ok")]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "2130706433", "[::ffff:127.0.0.1]", "0.0.0.0"])
def test_a_redirect_from_outside_into_the_own_network_is_not_followed(
    host: str, video: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("no_proxy", raising=False)
    with media_server(lambda path, number: Reply(video)) as canary:
        inside = (("Location", f"http://{host}:{canary.url.rpartition(':')[2]}/y.mp4"),)
        with media_server(lambda path, number: Reply(status=302, headers=inside)) as proxy:
            config = config_for(ytdlp=True, url="http://away.invalid/{id}.mp4", proxy=proxy.url)
            fetch(tmp_path, missing("x"), config)
            assert proxy.paths() == ["http://away.invalid/x.mp4"]
    assert outcomes(tmp_path) == [("x", "blocked")]
    assert "no public address; if you trust that host, name it in fetch.url" in lines(tmp_path)[0]["detail"]


def test_a_link_into_the_own_network_is_asked_for_only_where_the_user_named_it(video: bytes, tmp_path: Path) -> None:
    with media_server(lambda path, number: Reply(video)) as canary:
        listed = [Missing("n-x", "x", f"{canary.url}/x.mp4")]
        fetch(tmp_path, listed, config_for(ytdlp=True))
        assert canary.asked == []
        fetch(tmp_path, listed, config_for(canary))
        assert canary.asked
    assert outcomes(tmp_path) == [("x", "blocked"), ("x", "ok")]


def test_no_secret_is_written_down(tmp_path: Path) -> None:
    with media_server(lambda path, number: Reply(status=404)) as server:
        url = server.url.replace("http://", "http://me:pa55@") + "/get?id={id}&token=t0ken"
        fetch(tmp_path, missing("x"), config_for(ytdlp=True, url=url, attempts=1))
        assert server.paths() == ["/get?id=x&token=t0ken"]
    fetch(tmp_path, missing("y"), config_for(ytdlp=True, url=url, attempts=1))  # nobody listens any more
    assert outcomes(tmp_path) == [("x", "removed"), ("y", "network")]
    written = links_path(tmp_path).read_text()
    assert "pa55" not in written
    assert "t0ken" not in written
    assert "get?id=y&token=" in written


@pytest.mark.parametrize("video_id", ["../../x", "a/b", "", ".", "..", "a b", "ü", "x" * 65, "a\n", "%2e", "~"])
def test_ids_that_can_be_no_name_are_not_asked_for(video_id: str, tmp_path: Path) -> None:
    with media_server(lambda path, number: Reply(b"")) as server:
        skipped = fetch(tmp_path, missing(video_id), config_for(server))
        assert server.asked == []
    assert "an id is 1 to 64" in skipped[video_id]
    assert not fetched_folder(tmp_path).exists()


@pytest.mark.parametrize("video_id", ["-dash", "__", "x" * 64, "GLd3aX16zBg"])
def test_odd_ids_that_can_be_a_name_are(video_id: str, video: bytes, tmp_path: Path) -> None:
    with media_server(lambda path, number: Reply(video)) as server:
        fetch(tmp_path, missing(video_id), config_for(server))
    assert files(tmp_path) == [f"{video_id}.mp4"]


def test_which_link_is_asked(video: bytes, tmp_path: Path) -> None:
    def url_of(own: str | None, **changes: Any) -> str:
        (place,) = open_places([Missing("n-x", "x", own)], FetchConfig(ytdlp=True, **changes))
        return place.urls["x"]

    assert url_of("https://host/own.mp4") == "https://host/own.mp4"
    assert url_of(None) == YOUTUBE.replace("{id}", "x")
    for hostile in ("file:///etc/passwd", "ftp://host/x", "https://", "javascript:1", "http://[::1", "http://h/a\nb"):
        assert url_of(hostile) == YOUTUBE.replace("{id}", "x")
    assert url_of("https://host/own.mp4", url="http://mine/{id}") == "http://mine/x"


# The mirror and the archive


@pytest.fixture
def bucket(s3: Any, video: bytes) -> str:
    """The URL of a bucket of videos."""
    if not s3.exists("mirror"):
        s3.mkdir("mirror")
    s3.pipe_file("mirror/youcook2/training/101/a.mp4", video)
    s3.pipe_file("mirror/youcook2/b.MKV", video)
    s3.pipe_file("mirror/youcook2/page.mp4", HTML)
    s3.pipe_file("mirror/youcook2/notes.txt", b"soup")
    return "s3://mirror/youcook2"


def test_a_mirror_comes_before_the_web(bucket: str, video: bytes, tmp_path: Path) -> None:
    with media_server(lambda path, number: Reply(video if path == "/page.mp4" else b"", status=200)) as server:
        fetch(tmp_path, missing("a", "b", "page"), config_for(server, mirror=bucket))
        assert set(server.paths()) == {"/page.mp4"}
    assert files(tmp_path) == ["a.mp4", "b.mkv", "page.mp4"]
    assert (fetched_folder(tmp_path) / "a.mp4").read_bytes() == video
    assert sorted((line["place"], line["video_id"], line["outcome"]) for line in lines(tmp_path)) == [
        ("mirror", "a", "ok"),
        ("mirror", "b", "ok"),
        ("mirror", "page", "corrupt"),
        ("yt-dlp", "page", "ok"),
    ]
    assert lines(tmp_path)[0]["url"].startswith("s3://mirror/youcook2/")


@pytest.mark.parametrize(
    ("mirror", "named"),
    [
        ("s3://nosuchbucket/x", "cannot be listed|holds no file"),
        ("memory://empty-folder", "holds no file"),
        ("nosuch://x", "Protocol not known"),
        ("http://me:pa55@127.0.0.1:9/", "cannot be listed|holds no file"),
    ],
)
def test_a_mirror_that_is_none(bucket: str, mirror: str, named: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=named) as error:
        open_places(missing("a"), FetchConfig(mirror=mirror))
    assert "fetch.mirror=" in str(error.value)
    assert "pa55" not in str(error.value)


def test_an_object_that_went_away_meanwhile(video: bytes, tmp_path: Path) -> None:
    system = fsspec.filesystem("memory")
    system.pipe_file("/videos/a.mp4", video)
    config = config_for(mirror="memory://videos")
    places = open_places(missing("a"), config)
    system.rm("/videos", recursive=True)
    fetch_videos(places, missing("a"), config, tmp_path, show=lambda tallies: None)
    assert outcomes(tmp_path) == [("a", "removed")]


def test_an_archive_is_searched_below_and_copied(video: bytes, tmp_path: Path) -> None:
    archive = tmp_path / "archive #1"
    (archive / "deep er" / "er").mkdir(parents=True)
    (archive / "deep er" / "er" / "a.mp4").write_bytes(video)
    (archive / ".hidden.mp4").write_bytes(video)
    (tmp_path / "outside.mp4").write_bytes(video)
    (archive / "link.mp4").symlink_to(tmp_path / "outside.mp4")
    os.mkfifo(archive / "pipe.mp4")
    (archive / "half.mp4").write_bytes(video[:5000])
    out = tmp_path / "out"
    fetch(out, missing("a", "link", "pipe", "half", "none"), config_for(archive=str(archive)))
    assert files(out) == ["a.mp4"]
    assert (fetched_folder(out) / "a.mp4").stat().st_ino != (archive / "deep er" / "er" / "a.mp4").stat().st_ino
    assert sorted(outcomes(out)) == [("a", "ok"), ("half", "corrupt")]
    assert (archive / "half.mp4").exists()
    with pytest.raises(InputError, match="no such folder"):
        open_places(missing("a"), config_for(archive=str(tmp_path / "nowhere")))


def test_a_place_that_is_added_later_is_asked(video: bytes, tmp_path: Path) -> None:
    with media_server(lambda path, number: Reply(status=404)) as server:
        fetch(tmp_path, missing("a"), config_for(server))
        fsspec.filesystem("memory").pipe_file("/later/a.mp4", video)
        fetch(tmp_path, missing("a"), config_for(server, mirror="memory://later"))
        assert len(server.asked) == 1
    assert outcomes(tmp_path) == [("a", "removed"), ("a", "ok")]


# What a run leaves


def test_a_file_that_was_fetched_and_is_gone_comes_again(video: bytes, tmp_path: Path) -> None:
    with media_server(lambda path, number: Reply(video)) as server:
        fetch(tmp_path, missing("a"), config_for(server))
        (fetched_folder(tmp_path) / "a.mp4").unlink()
        fetch(tmp_path, missing("a"), config_for(server))
    assert files(tmp_path) == ["a.mp4"]


def test_parts_of_a_video_that_is_there_are_swept_out_and_others_not(video: bytes, tmp_path: Path) -> None:
    partial = fetched_folder(tmp_path) / ".partial"
    for name in ("here", "away"):
        (partial / name / "yt-dlp").mkdir(parents=True)
        (partial / name / "yt-dlp" / "x.mp4.part").write_bytes(b"x")
    (fetched_folder(tmp_path) / "here.mp4").write_bytes(video)
    with media_server(lambda path, number: Reply(video)) as server:
        fetch(tmp_path, missing("other"), config_for(server))
    assert files(tmp_path) == [".partial/away/yt-dlp/x.mp4.part", "here.mp4", "other.mp4"]


def test_a_full_disk_ends_the_run_and_says_nothing_of_the_link(video: bytes, tmp_path: Path) -> None:
    fsspec.filesystem("memory").pipe_file("/full/b.mp4", video)
    (fetched_folder(tmp_path) / ".partial" / "b" / "mirror").mkdir(parents=True)
    (fetched_folder(tmp_path) / ".partial" / "b" / "mirror" / "whole.mp4").symlink_to("/dev/full")
    with pytest.raises(OutputError, match="the disk is full"):
        fetch(tmp_path, missing("b"), config_for(mirror="memory://full"))
    assert not links_path(tmp_path).exists()
    with media_server(lambda path, number: Reply(video, cut=5000 if number == 1 else None)) as server:
        fetch(tmp_path, missing("a"), config_for(server, attempts=1))
        (part,) = fetched_folder(tmp_path).rglob("*.part")
        part.unlink()
        part.symlink_to("/dev/full")
        with pytest.raises(OutputError, match="the disk is full"):
            fetch(tmp_path, missing("a", "c"), config_for(server, connections=1))
        assert outcomes(tmp_path) == [("a", "network")]


def test_an_out_that_cannot_be_written_ends_the_run(video: bytes, tmp_path: Path) -> None:
    (tmp_path / ".store").mkdir()
    fetched_folder(tmp_path).write_text("a file")
    with (
        media_server(lambda path, number: Reply(video)) as server,
        pytest.raises(OutputError, match="cannot be written"),
    ):
        fetch(tmp_path, missing("a", "b", "c"), config_for(server))
    assert not links_path(tmp_path).exists()


def test_nothing_is_written_elsewhere(video: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Home, cache and working folder stay empty, and yt-dlp's configuration there is not read."""
    home, work = tmp_path / "home", tmp_path / "work"
    (home / ".config" / "yt-dlp" / "plugins" / "bad" / "yt_dlp_plugins" / "extractor").mkdir(parents=True)
    work.mkdir()
    marker = tmp_path / "was-run"
    (home / ".config" / "yt-dlp" / "config").write_text(f"--exec 'touch {marker}'\n--output %(id)s-mine.%(ext)s\n")
    plugin = home / ".config" / "yt-dlp" / "plugins" / "bad" / "yt_dlp_plugins" / "extractor" / "bad.py"
    plugin.write_text(f"open({str(marker)!r}, 'w')\n")
    (work / "yt-dlp.conf").write_text(f"--exec 'touch {marker}'\n")
    before = {path: path.stat().st_mtime_ns for folder in (home, work) for path in folder.rglob("*")}
    with media_server(lambda path, number: Reply(video)) as server:
        code = (
            "import sys; from pathlib import Path; from tests.pipelines.sources.test_fetch import *\n"
            "fetch(Path(sys.argv[1]), missing('a'), config_for(ytdlp=True, url=sys.argv[2], sleep_s=0.0))"
        )
        environment = {**os.environ, "HOME": str(home), "PYTHONPATH": str(ROOT), "TMPDIR": str(work)}
        environment |= {"XDG_CONFIG_HOME": str(home / ".config"), "XDG_CACHE_HOME": str(home / ".cache")}
        command = [sys.executable, "-B", "-c", code, str(tmp_path / "out"), f"{server.url}/{{id}}.mp4"]
        done = subprocess.run(
            command, cwd=work, env=environment, capture_output=True, text=True, timeout=120, check=False
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout + done.stderr == ""
    assert files(tmp_path / "out") == ["a.mp4"]
    assert not marker.exists()
    assert {path: path.stat().st_mtime_ns for folder in (home, work) for path in folder.rglob("*")} == before


# Picture and sound apart, as YouTube has them


def test_picture_and_sound_apart_become_one_file(parts: Path, tmp_path: Path) -> None:
    """yt-dlp chooses among formats, and both parts are had by HTTP; the highest picture that is not too high."""
    bodies = {f"/{name}": (parts / name).read_bytes() for name in ("picture.mp4", "sound.m4a", "sound.webm")}
    with media_server(lambda path, number: Reply(bodies[path.partition("?")[0]])) as server:
        picture = {"url": f"{server.url}/picture.mp4", "ext": "mp4", "acodec": "none", "vcodec": "avc1"}
        sound = {"ext": "m4a", "vcodec": "none", "acodec": "mp4a"}
        formats = [
            {**picture, "format_id": "360", "height": 360, "width": 640, "url": f"{server.url}/picture.mp4?360"},
            {**picture, "format_id": "480", "height": 854, "width": 480, "url": f"{server.url}/picture.mp4?480"},
            {**picture, "format_id": "1080", "height": 1080, "width": 1920, "url": f"{server.url}/picture.mp4?1080"},
            {"format_id": "hls", "url": f"{server.url}/a.m3u8", "ext": "mp4", "height": 480, "protocol": "m3u8_native"},
            {**sound, "format_id": "a", "url": f"{server.url}/sound.m4a"},
        ]
        given = {"id": "x", "title": "x", "extractor": "youtube", "extractor_key": "Youtube", "formats": formats}
        with Session(options(FetchConfig(sleep_s=0.0), lambda num_bytes: None), is_private=True) as ydl:
            info = ydl.process_ie_result(dict(given), download=False)
            whole = save(ydl, info, "x", tmp_path)
            with pytest.raises(NotFetchedError, match="another video, x"):
                save(ydl, info, "y", tmp_path)
        assert sorted(server.paths()) == ["/picture.mp4?480", "/sound.m4a"]
    with open_container(whole) as container:
        assert [stream.type for stream in container.streams] == ["video", "audio"]
    assert whole.suffix == ".mp4"
    assert overrun(whole) is None
    mixed = join(parts / "picture.mp4", parts / "sound.webm", tmp_path)
    assert mixed.suffix == ".mkv"
    again = tmp_path / "again"
    again.mkdir()
    assert file_sha256(join(parts / "picture.mp4", parts / "sound.webm", again)) == file_sha256(mixed)
    (tmp_path / "bad.m4a").write_bytes(HTML)
    with pytest.raises(NotFetchedError, match="cannot be joined"):
        join(parts / "picture.mp4", tmp_path / "bad.m4a", tmp_path)


# The configuration


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"mirror": "/a/folder"}, "fetch.archive"),
        ({"archive": "relative"}, "absolute"),
        ({"cookies": "cookies.txt"}, "absolute"),
        ({"url": "https://host/x"}, r"\{id\}"),
        ({"url": "file:///{id}"}, "http"),
        ({"url": "{id}"}, "http"),
        ({"connections": 0}, "connections"),
        ({"budget": 0}, "budget"),
        ({"timeout_s": -1.0}, "timeout_s"),
        ({"sleep_s": -1.0}, "sleep_s"),
        ({"max_bytes_per_s": 0}, "max_bytes_per_s"),
    ],
)
def test_values_that_cannot_be(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        FetchConfig(**changes)


def test_the_rate_is_that_of_all_connections() -> None:
    config = FetchConfig(max_bytes_per_s=1000, connections=4)
    assert options(config, lambda num_bytes: None)["ratelimit"] == 250


def test_only_the_height_is_content() -> None:
    other = config_for(
        ytdlp=True, mirror="s3://a/b", archive="/a", url="https://h/{id}", cookies="/c", proxy="http://p", connections=9
    )
    assert config_digest(other) == config_digest(FetchConfig())
    assert config_digest(FetchConfig(max_height=720)) != config_digest(FetchConfig())


def test_cookies_that_are_none(tmp_path: Path) -> None:
    for content in (None, "soup\n", "\xff"):
        jar = tmp_path / "cookies.txt"
        if content is not None:
            jar.write_text(content, encoding="latin-1")
        with pytest.raises(InputError, match=r"fetch.cookies=.*Netscape"):
            open_places(missing("a"), FetchConfig(ytdlp=True, cookies=str(jar)))


def test_without_yt_dlp_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "pipelines.sources.ytdlp")
    monkeypatch.delattr("pipelines.sources.ytdlp")
    monkeypatch.setitem(sys.modules, "yt_dlp", None)
    with pytest.raises(UsageError, match=r"install cookgen\[sources\]"):
        open_places(missing("a"), FetchConfig(ytdlp=True))
