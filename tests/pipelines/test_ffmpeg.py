"""The ffmpeg runner: children end with us, hostile inputs open nothing, and a kill is no verdict."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO

import psutil
import pytest

from cookgen.errors import CookgenError, UsageError
from pipelines.ffmpeg import LOG_BYTES, ChildKilledError, ffmpeg_build, ffmpeg_exe, file_url, input_args, run_ffmpeg

SOURCE = ["-f", "lavfi", "-i", "testsrc2=s=128x72:r=10:d=2"]
ENDLESS = ["-re", "-f", "lavfi", "-i", "testsrc2=s=128x72:r=10", "-f", "null", "-"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ffmpeg") / "clip.mp4"
    assert run_ffmpeg([*SOURCE, "-c:v", "libx264", str(path)], timeout_s=60).returncode == 0
    return path


def children() -> list[psutil.Process]:
    return [child for child in psutil.Process().children(recursive=True) if "ffmpeg" in child.name()]


def test_the_build_is_named_with_its_bytes() -> None:
    assert os.access(ffmpeg_exe(), os.X_OK)
    assert ffmpeg_build().startswith("ffmpeg-") and len(ffmpeg_build().rpartition("@")[2]) == 12


def test_the_environment_chooses_and_a_wrong_choice_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    ffmpeg_exe.cache_clear()
    try:
        monkeypatch.setenv("COOKGEN_FFMPEG", "/no/such/ffmpeg")
        with pytest.raises(UsageError, match="/no/such/ffmpeg"):
            ffmpeg_exe()
        monkeypatch.setenv("COOKGEN_FFMPEG", sys.executable)
        assert ffmpeg_exe() == sys.executable
    finally:
        ffmpeg_exe.cache_clear()


def test_a_failure_is_returned_with_its_reason(tmp_path: Path) -> None:
    path = tmp_path / "no.mp4"
    path.write_bytes(b"nonsense" * 100)
    finished = run_ffmpeg([*input_args(path), "-f", "null", "-"], timeout_s=60)
    assert finished.returncode != 0 and "Invalid data" in finished.log
    assert "0x" not in finished.last_line


def test_a_time_out_kills_and_is_no_verdict() -> None:
    started = time.monotonic()
    with pytest.raises(ChildKilledError, match=r"time-out of 0\.5 s"):
        run_ffmpeg(ENDLESS, timeout_s=0.5)
    assert time.monotonic() - started < 30
    assert children() == []
    assert not issubclass(ChildKilledError, (CookgenError, OSError))
    assert "time-out" in str(pickle.loads(pickle.dumps(ChildKilledError("our time-out"))))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_a_signal_is_no_verdict(number: signal.Signals) -> None:
    def shoot() -> None:
        while not children():
            time.sleep(0.02)
        time.sleep(0.3)
        for child in children():
            child.send_signal(number)

    threading.Thread(target=shoot).start()
    with pytest.raises(ChildKilledError):
        run_ffmpeg(ENDLESS, timeout_s=60)


def test_an_exception_of_the_reader_ends_the_child() -> None:
    def read(stream: IO[bytes]) -> None:
        stream.read(10)
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        run_ffmpeg([*ENDLESS[:-3], "-f", "rawvideo", "pipe:1"], timeout_s=60, read_stdout=read)
    assert children() == []


def test_what_a_reader_leaves_does_not_block() -> None:
    finished = run_ffmpeg(
        [*SOURCE, "-pix_fmt", "rgb24", "-f", "rawvideo", "pipe:1"], timeout_s=60, read_stdout=lambda s: None
    )
    assert finished.returncode == 0


def test_a_long_log_neither_blocks_nor_fills_memory(clip: Path) -> None:
    args = ["-loglevel", "trace", *input_args(clip), "-vf", "showinfo", "-f", "null", "-"]
    finished = run_ffmpeg(["-stream_loop", "60", *args], timeout_s=120)
    assert finished.returncode == 0
    assert LOG_BYTES < len(finished.log) <= 2 * LOG_BYTES


@pytest.mark.parametrize("died_by", [signal.SIGKILL, signal.SIGTERM])
def test_the_child_dies_with_its_parent(died_by: signal.Signals) -> None:
    code = f"from pipelines.ffmpeg import run_ffmpeg; run_ffmpeg({ENDLESS!r}, timeout_s=600)"
    root = Path(__file__).resolve().parents[2]
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=root)
    try:
        deadline = time.monotonic() + 60
        found: list[psutil.Process] = []
        while not found and time.monotonic() < deadline:
            time.sleep(0.05)
            found = [child for child in psutil.Process(parent.pid).children() if "ffmpeg" in child.name()]
        assert found, "the child never started"
    finally:
        parent.send_signal(died_by)
        parent.wait()
    _, alive = psutil.wait_procs(found, timeout=20)
    assert alive == []


def playlists(clip: Path) -> dict[str, str]:
    return {
        "hls": f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{clip}\n#EXT-X-ENDLIST\n",
        "ffconcat": f"ffconcat version 1.0\nfile '{clip}'\n",
        "ffconcat_text": "ffconcat version 1.0\nfile secret.txt\n",
        "text": "a perfectly ordinary text, which the tty demuxer would show as a video\n" * 20,
        "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
    }


@pytest.mark.parametrize("kind", ["hls", "ffconcat", "ffconcat_text", "text", "sdp"])
@pytest.mark.parametrize("suffix", [".mp4", ".txt"])
def test_what_names_other_files_is_not_opened(kind: str, suffix: str, clip: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("secret\n" * 100)
    path = tmp_path / f"x{suffix}"
    path.write_text(playlists(clip)[kind])
    finished = run_ffmpeg([*input_args(path), "-f", "null", "-"], timeout_s=60)
    assert finished.returncode != 0


def test_odd_names_are_taken_literally(clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("-y.mp4", "http:x.mp4", "a%03d b'c;[0:v].mp4", "concat:a|b.mp4"):
        Path(name).write_bytes(clip.read_bytes())
        assert run_ffmpeg([*input_args(name), "-f", "null", "-"], timeout_s=60).returncode == 0
        assert file_url(name) == f"file:{tmp_path / name}"


def test_a_full_disk_is_the_disks_fault(clip: Path) -> None:
    if not os.access("/dev/full", os.W_OK):
        pytest.skip("/dev/full is not there")
    with pytest.raises(OSError, match="No space left"):
        run_ffmpeg([*input_args(clip), "-c", "copy", "-f", "mpegts", "file:/dev/full"], timeout_s=60)
