"""The one way to run ffmpeg: which binary, how a foreign file is named to it, and a child that cannot outlive us.

Files from outside are hostile. An input goes to ffmpeg through `input_args`, which allows local files and true video
containers only: a playlist, a concat script or an image that calls itself .mp4 is refused instead of followed.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from cookgen.errors import UsageError
from cookgen.files import file_sha256

# Demuxers that read one file and nothing else. No hls, dash, concat, image2, tty (text art), lavfi or sdp.
CONTAINERS = "mov,mp4,matroska,webm,mpegts,mpeg,avi,flv,live_flv,asf,ogg,mxf,nut,dv,rm,wtv"
PROTOCOLS = "file,pipe"
_VERSION_TRIES = 3
LOG_BYTES = 64 * 1024  # of the beginning, and as much of the end

_LIBC = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG = 1


class ChildKilledError(RuntimeError):
    """ffmpeg was killed by a signal or by our time-out. It says nothing about the video, so it is no CookgenError and
    no reject: the engine calls it an internal error, which is not kept, and the next run tries again."""


@dataclass(frozen=True)
class Finished:
    """A child that ended by itself: its exit status and the first and last LOG_BYTES of its log."""

    returncode: int
    log: str

    @property
    def last_line(self) -> str:
        """The last line of the log, without ffmpeg's memory addresses: fit for a reject's detail."""
        lines = [line.strip() for line in self.log.splitlines() if line.strip()]
        return _without_addresses(lines[-1])[:300] if lines else f"ffmpeg ended with status {self.returncode}"


@functools.cache
def ffmpeg_exe() -> str:
    """Path of the ffmpeg to run: $COOKGEN_FFMPEG, else the packaged static build, else the system's.

    The packaged one comes first because its version is pinned: the same inputs give the same bytes on every machine.
    Raises UsageError where there is none.
    """
    chosen = os.environ.get("COOKGEN_FFMPEG")
    if chosen:
        found = shutil.which(chosen)
        if found is None:
            raise UsageError(f"COOKGEN_FFMPEG={chosen}: no such program; unset it or name an ffmpeg binary")
        return found
    with contextlib.suppress(ImportError, RuntimeError):
        import imageio_ffmpeg

        # Not get_ffmpeg_exe(): that one prefers conda's and the system's, and may start programs to try them.
        folder = Path(imageio_ffmpeg.__file__).parent / "binaries"
        for path in sorted(folder.glob("ffmpeg-*")):
            if os.access(path, os.X_OK):
                return str(path)
    found = shutil.which("ffmpeg")
    if found is None:
        raise UsageError("no ffmpeg: install the package imageio-ffmpeg, or set COOKGEN_FFMPEG to a binary")
    return found


@functools.cache
def ffmpeg_build() -> str:
    """Which ffmpeg made the bytes, for the lineage: "ffmpeg-<version>@<first 12 hex digits of the binary's sha256>"."""
    exe = ffmpeg_exe()
    for _ in range(_VERSION_TRIES):  # one that is killed is asked again
        banner = subprocess.run([exe, "-version"], capture_output=True, timeout=60, stdin=subprocess.DEVNULL)
        if banner.returncode >= 0:
            break
    if banner.returncode != 0:
        raise UsageError(f"{exe} -version: ended with status {banner.returncode}; COOKGEN_FFMPEG names another ffmpeg")
    words = banner.stdout.decode(errors="replace").split()
    version = words[2] if len(words) > 2 else "unknown"
    return f"ffmpeg-{version}@{file_sha256(exe)[:12]}"


def input_args(path: str | os.PathLike[str]) -> list[str]:
    """`-i` for a file from outside, with the protocols and containers that it may use. Options for the input
    (`-ss`, `-threads`) go before it."""
    return ["-protocol_whitelist", PROTOCOLS, "-format_whitelist", CONTAINERS, "-i", file_url(path)]


def file_url(path: str | os.PathLike[str]) -> str:
    """A local path as ffmpeg takes it literally: a name with a colon or a leading dash is not an URL or an option."""
    return f"file:{Path(path).absolute()}"


def run_ffmpeg(
    args: Sequence[str], *, timeout_s: float, read_stdout: Callable[[IO[bytes]], None] | None = None
) -> Finished:
    """Runs ffmpeg with `args` and waits for it; its log never blocks it, whatever its length.

    The child has its own process group, which is killed after `timeout_s` seconds and on any exception, and dies with
    the thread that called. `read_stdout` gets the child's standard output as it comes (`pipe:1` in `args`); what it
    leaves unread is thrown away.
    A status that is not 0 is returned, not raised: the caller knows what it means. Raises ChildKilledError when the
    child was killed, by a signal or by the time-out, and OSError or MemoryError when it met a full disk or memory.
    """
    parent = os.getpid()

    def die_with_parent() -> None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # the parent ended before the line above
            os._exit(1)

    command = [ffmpeg_exe(), "-nostdin", "-hide_banner", "-nostats", "-y", "-loglevel", "level+warning", *args]
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL if read_stdout is None else subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=die_with_parent,  # only calls prctl and getppid: safe after a fork of a threaded parent
        env={**os.environ, "AV_LOG_FORCE_NOCOLOR": "1"},
    )
    assert child.stderr is not None
    log = _Log()
    drain = threading.Thread(target=log.drain, args=(child.stderr,), daemon=True)
    timed_out = threading.Event()

    def stop() -> None:
        timed_out.set()
        _kill_group(child)

    watchdog = threading.Timer(timeout_s, stop)
    watchdog.daemon = True
    started = time.monotonic()
    try:
        drain.start()
        watchdog.start()
        if read_stdout is not None:
            assert child.stdout is not None
            with child.stdout:
                read_stdout(child.stdout)
                while child.stdout.read(1 << 16):
                    pass
        returncode = child.wait()
    finally:
        watchdog.cancel()
        if child.poll() is None:
            _kill_group(child)
            child.wait()
        drain.join()
        child.stderr.close()
    finished = Finished(returncode, log.text())
    if returncode < 0:  # ended by a signal; ffmpeg turns a polite one into status 255
        why = f"our time-out of {timeout_s:g} s" if timed_out.is_set() else signal.Signals(-returncode).name
        raise ChildKilledError(f"ffmpeg was killed by {why} after {time.monotonic() - started:.1f} s")
    if returncode != 0:
        if "No space left on device" in finished.log:
            raise OSError(errno.ENOSPC, "No space left on device: ffmpeg could not write its output")
        if "Cannot allocate memory" in finished.log:
            raise MemoryError("ffmpeg could not allocate memory")
        if returncode == 255 and "Operation not permitted" not in finished.log:  # the other thing that 255 means
            raise ChildKilledError("ffmpeg was told to stop by a signal")
    return finished


def _kill_group(child: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):  # it may have ended meanwhile
        os.killpg(child.pid, signal.SIGKILL)


class _Log:
    """The beginning and the end of a log."""

    def __init__(self) -> None:
        self.head = bytearray()
        self.tail = bytearray()

    def drain(self, stream: IO[bytes]) -> None:
        while block := os.read(stream.fileno(), 1 << 16):
            room = LOG_BYTES - len(self.head)
            self.head += block[:room]
            self.tail += block[room:]
            del self.tail[: max(0, len(self.tail) - LOG_BYTES)]

    def text(self) -> str:
        return (self.head + self.tail).decode(errors="replace")


def _without_addresses(line: str) -> str:
    return re.sub(r" @ 0x[0-9a-f]+", "", line)
