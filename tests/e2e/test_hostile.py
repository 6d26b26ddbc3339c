"""A folder whose every file is hostile: names, playlists in disguise, links, pipes, captions and titles.

The canaries are a film, a text and a server outside the folder. Nothing of them may be in what a run makes, nothing may
be asked of the server, and nothing may be written anywhere but in OUT.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import pyarrow.parquet as pq
import pytest

from cookgen import load_split
from cookgen.dataset.validate import validate
from cookgen.files import file_sha256
from pipelines.ffmpeg import ffmpeg_exe
from tests.conftest import ROOT
from tests.mediaserver import Reply, media_server

SECRET = "the-canary-sings"
SCRIPT = "<script>alert(1)</script>"
NAMES = [
    "-dash.mp4",
    "--out.mp4",
    "a\nb\r\x1b[31m.mp4",
    "quote'\"`$(touch x);&|.mp4",
    "file:colon:%03d.mp4",
    " blank * [0] {1} .mp4",
    "a..mp4.mp4",
    "http:--127.0.0.1-x.mp4",
    "naïve-😀\u202e.mp4",
    "x" * 251 + ".mp4",
    "{{7*7}}${HOME}.mp4",
    "<img src=x onerror=alert(1)>.mp4",
]
PIZZA = "p'i\"z\nz<b>a&amp;.mp4"


def film(path: Path, look: str, *output: str) -> Path:
    source = ["-f", "lavfi", "-i", f"{look}size=256x192:rate=10:duration=6"]
    x264 = ["-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv420p"]
    command = [ffmpeg_exe(), "-v", "error", "-nostdin", "-y", *source, *x264, *output, f"file:{path}"]
    subprocess.run(command, check=True, timeout=120)
    return path


def disguises(canary: Path, text: Path, url: str) -> dict[str, str]:
    """What opens other files, or asks servers, in a reader that follows it."""
    hls = "#EXTM3U\n#EXT-X-TARGETDURATION:6\n#EXTINF:6,\n{}\n#EXT-X-ENDLIST\n"
    key = f'#EXTM3U\n#EXT-X-KEY:METHOD=AES-128,URI="{url}/key"\n#EXTINF:6,\n{canary}\n#EXT-X-ENDLIST\n'
    base = f"<BaseURL>{url}/</BaseURL>"
    segments = '<SegmentTemplate media="c.ts" startNumber="1" duration="6"/>'
    dash = (
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" mediaPresentationDuration="PT6S">'
        f'<Period>{base}<AdaptationSet mimeType="video/mp2t"><Representation id="1" bandwidth="1">{segments}'
        "</Representation></AdaptationSet></Period></MPD>"
    )
    return {
        "hls of a file": hls.format(canary),
        "hls of a neighbour": hls.format(os.path.relpath(canary, canary.parents[1] / "videos")),
        "hls of an address": hls.format(f"{url}/c.ts"),
        "hls with a key": key,
        "hls of hls": f"#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\n{url}/c.m3u8\n",
        "concat of a file": f"ffconcat version 1.0\nfile '{canary}'\n",
        "concat of an address": f"ffconcat version 1.0\nfile '{url}/c.ts'\n",
        "concat of a text": f"ffconcat version 1.0\nfile '{text}'\n",
        "dash": dash,
        "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
        "svg": f'<svg xmlns="http://www.w3.org/2000/svg"><image href="{url}/x.png"/></svg>',
        "ram": f"{url}/c.rm\n",
        "asx": f'<asx version="3.0"><entry><ref href="{url}/c.wmv"/></entry></asx>',
    }


@dataclass(frozen=True)
class Hostile:
    """A folder to make shards of, what lies outside of it, and what a run made."""

    root: Path
    asked: list[str]

    @property
    def out(self) -> Path:
        return self.root / "out"


@pytest.fixture(scope="module")
def hostile(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hostile]:
    root = tmp_path_factory.mktemp("hostile")
    for name in ("videos", "outside", "tmp", "home"):
        (root / name).mkdir()
    videos, outside = root / "videos", root / "outside"
    canary = film(outside / "canary.ts", "color=magenta:", "-f", "mpegts")
    text = outside / "canary.vtt"
    text.write_text(f"WEBVTT\n\n00:00.000 --> 00:05.000\n{SECRET}\n")
    (outside / "canary.json").write_text(json.dumps({"title": SECRET}))
    with media_server(lambda path, number: Reply(canary.read_bytes())) as server:
        fill(videos, canary, text, server.url, data)
        before = [snapshot(folder) for folder in (videos, outside)]
        env = {**os.environ, "TMPDIR": str(root / "tmp"), "HOME": str(root / "home"), "XDG_CACHE_HOME": ""}
        command = [sys.executable, "-m", "pipelines", "run", "--engine", "inline"]
        command += ["--videos", str(videos), "--out", str(root / "out")]
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=500, check=False)
        assert done.returncode == 0, done.stderr
        assert SECRET not in done.stdout + done.stderr
        assert [snapshot(folder) for folder in (videos, outside)] == before
        yield Hostile(root, server.paths())


def fill(videos: Path, canary: Path, text: Path, url: str, data: Path) -> None:
    for number, name in enumerate(NAMES):  # each of its own bytes, else it would be a duplicate
        film(videos / name, "testsrc2=", "-metadata", f"title={SCRIPT}{number}")
    shutil.copyfile(data / "videos" / "va_pepperoni_pizza_narrated.mp4", videos / PIZZA)
    (videos / PIZZA).with_suffix(".info.json").write_text(json.dumps({"title": f"{SCRIPT}{{{{7*7}}}}\x1b[31m"}))
    for number, suffix in enumerate((".mp4", ".mkv", ".ts")):
        for kind, content in disguises(canary, text, url).items():
            (videos / f"{kind}{suffix}").write_text(content + "\n" * number)  # else they were duplicates
    (videos / "link.mp4").symlink_to(canary)
    (videos / "relative.mp4").symlink_to("../outside/canary.ts")
    (videos / "linked").symlink_to(canary.parent, target_is_directory=True)
    (videos / "loop.mp4").symlink_to("loop.mp4")
    (videos / "nowhere.mp4").symlink_to("gone")
    (videos / "passwords.mp4").symlink_to("/etc/passwd")
    os.mkfifo(videos / "pipe.mp4")
    (videos / "folder.mp4").mkdir()
    (videos / "-dash.en.vtt").symlink_to(text)
    (videos / "-dash.info.json").symlink_to("../outside/canary.json")


def snapshot(folder: Path) -> dict[str, str]:
    """What each file holds and each link says."""
    found = {}
    for path in sorted(folder.rglob("*")):
        what = str(path.readlink()) if path.is_symlink() else file_sha256(path) if path.is_file() else "no file"
        found[str(path.relative_to(folder))] = what
    return found


def shows_canary(path: Path) -> bool:
    """Whether a film or a picture holds a frame of magenta."""
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24").mean((0, 1)) for frame in container.decode(video=0)]
    return any(red > 200 and green < 60 and blue > 200 for red, green, blue in frames)


def test_nothing_is_asked_of_any_server(hostile: Hostile) -> None:
    assert hostile.asked == []


def test_nothing_of_the_canaries_is_in_what_was_made(hostile: Hostile) -> None:
    assert shows_canary(hostile.root / "outside" / "canary.ts")  # the test can see one
    media = [path for path in hostile.out.rglob("*") if path.suffix in (".mp4", ".jpg")]
    assert len(media) > 20
    assert not any(map(shows_canary, media))
    tables = [path for path in hostile.out.rglob("*.parquet") if path.stat().st_size]
    assert tables
    assert not any(SECRET in str(pq.read_table(path).to_pylist()) for path in tables)
    files = [path for path in hostile.out.rglob("*") if path.is_file()]
    assert not any(SECRET.encode() in path.read_bytes() for path in files)


def test_nothing_is_written_elsewhere(hostile: Hostile) -> None:
    assert sorted(path.name for path in hostile.root.iterdir()) == ["home", "out", "outside", "tmp", "videos"]
    left = [path for name in ("tmp", "home") for path in (hostile.root / name).rglob("*")]
    assert [path for path in left if not path.is_dir()] == []  # torch makes an empty folder for what it would compile
    kept = {"dataset.json", "README.md", "report.html", "train", "val", "tables", ".store", ".runs"}
    assert {path.name for path in hostile.out.iterdir()} <= kept
    assert not any(path.is_symlink() for path in hostile.out.rglob("*"))


def test_every_file_has_its_truthful_row(hostile: Hostile) -> None:
    rows = pq.read_table(hostile.out / "tables" / "rejects.parquet").to_pylist()
    reasons = {row["path"]: row["reason"] for row in rows if row["clip_index"] is None and row["action_index"] is None}
    assert len(reasons) == len(NAMES) + 3 * 13 + 6
    for path, reason in reasons.items():
        if path in NAMES:
            assert reason == "no_audio", path
        elif path.split(".")[0] in ("link", "relative", "passwords", "nowhere"):
            assert reason in ("outside_folder", "unreadable_file"), path
        else:
            assert reason == ("unreadable_file" if path == "loop.mp4" else "not_a_video"), path
    assert reasons["link.mp4"] == reasons["relative.mp4"] == reasons["passwords.mp4"] == "outside_folder"
    videos = pq.read_table(hostile.out / "tables" / "videos.parquet").to_pylist()
    assert {row["path"] for row in videos} == {*NAMES, PIZZA}


def test_a_hostile_name_and_title_go_through_to_the_shards(hostile: Hostile) -> None:
    assert validate(hostile.out) == []
    [narrative] = [n for split in ("train", "val") for n in load_split(split, hostile.out)]
    assert narrative.name.startswith("folder-p-i-z-z-b-a-amp-")
    assert narrative.steps[0].sample.video.title == f"{SCRIPT}{{{{7*7}}}} [31m"


def test_the_pages_escape_all_of_it(hostile: Hostile) -> None:
    report = (hostile.out / "report.html").read_text()
    assert "&lt;script&gt;alert(1)" in report and "{{7*7}}" in report
    for raw in (SCRIPT, "<img src=x", "z<b>a", "\x1b"):
        assert raw not in report, raw
    assert "\x1b" not in (hostile.out / "README.md").read_text()
