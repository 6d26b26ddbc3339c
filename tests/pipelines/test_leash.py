"""The leash, with real processes: a command ends as it would alone, and never outlives whoever asked for it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.processes import all_gone, is_gone

LEASH = Path(__file__).resolve().parents[2] / "pipelines" / "leash.py"
GRACE_S = "1"
# As vLLM: a server with an engine of its own, which holds something that only it can give back. Both say that they are
# up; a stubborn one does not heed SIGTERM.
SERVER = """
import os, signal, sys, time
up, held, stubborn = sys.argv[1], sys.argv[3], sys.argv[4] == "stubborn"
engine = os.fork()
if not engine:
    up = sys.argv[2]
    open(held, "w").close()

def end(*_):
    if not stubborn:
        if not engine:
            os.unlink(held)
        sys.exit(0)

signal.signal(signal.SIGTERM, end)
with open(up, "w") as note:
    note.write(str(os.getpid()))
while True:
    time.sleep(600)
"""


def on_leash(*command: str, parent: int | None = None) -> subprocess.Popen[bytes]:
    start = [sys.executable, "-I", str(LEASH), str(parent or os.getpid()), GRACE_S, *command]
    return subprocess.Popen(start, start_new_session=True)


def text_in(note: Path) -> str:
    deadline = time.monotonic() + 30
    while not (note.is_file() and note.read_text()):
        assert time.monotonic() < deadline, f"nothing wrote {note}"
        time.sleep(0.02)
    return note.read_text()


def pid_in(note: Path) -> int:
    return int(text_in(note))


@contextmanager
def driver(
    folder: Path, *, leashed: bool = True, stubborn: bool = False
) -> Iterator[tuple[subprocess.Popen[bytes], int, int]]:
    """A driver that starts the server; and the server's and its engine's pids. The engine holds `folder`/held."""
    notes = [folder / "server", folder / "engine"]
    leash = f"[sys.executable, '-I', {str(LEASH)!r}, str(os.getpid()), {GRACE_S!r}]" if leashed else "[]"
    command = [sys.executable, "-c", SERVER, *map(str, notes), str(folder / "held"), "stubborn" if stubborn else ""]
    program = (
        f"import os, subprocess, sys\nsubprocess.Popen({leash} + {command!r}, start_new_session=True)\n"
        "import time; time.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", program])
    pids: list[int] = []
    try:
        pids += map(pid_in, notes)
        assert (folder / "held").exists()
        yield process, pids[0], pids[1]
    finally:
        process.kill()
        process.wait()
        for pid in pids:
            if not is_gone(pid):
                os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("code", [0, 3])
def test_the_exit_code_is_the_commands(code: int) -> None:
    assert on_leash(sys.executable, "-c", f"raise SystemExit({code})").wait(30) == code


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGABRT])
def test_so_is_the_signal_that_ended_it(number: signal.Signals) -> None:
    assert on_leash(sys.executable, "-c", f"import os; os.kill(os.getpid(), {number:d})").wait(30) == -number


def test_sigterm_reaches_the_command_which_ends_in_its_own_way(tmp_path: Path) -> None:
    polite = (
        "import signal, sys, time\n"
        "def end(*_):\n    open(sys.argv[2], 'w').write('1'); sys.exit(7)\n"
        "signal.signal(signal.SIGTERM, end); open(sys.argv[1], 'w').write('1'); time.sleep(600)"
    )
    process = on_leash(sys.executable, "-c", polite, str(tmp_path / "up"), str(tmp_path / "ended"))
    pid_in(tmp_path / "up")
    process.terminate()
    assert process.wait(30) == 7
    assert (tmp_path / "ended").is_file()


@pytest.mark.parametrize("stubborn", [False, True])
def test_a_killed_driver_takes_the_server_and_its_engine_along(tmp_path: Path, stubborn: bool) -> None:
    with driver(tmp_path, stubborn=stubborn) as (process, *pids):
        process.kill()
        assert all_gone(pids)
        assert (tmp_path / "held").exists() is stubborn


def test_what_a_killed_command_shared_is_given_back(tmp_path: Path) -> None:
    stubborn = (
        "import signal, sys, time\n"
        "from multiprocessing.shared_memory import SharedMemory\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "shared = SharedMemory(create=True, size=1000)\n"
        "open(sys.argv[1], 'w').write(shared.name); time.sleep(600)"
    )
    process = on_leash(sys.executable, "-c", stubborn, str(tmp_path / "name"))
    shared = Path("/dev/shm", text_in(tmp_path / "name"))
    assert shared.exists()
    process.terminate()
    assert process.wait(30) == -signal.SIGKILL
    assert not shared.exists()


def test_a_killed_server_takes_its_engine_along(tmp_path: Path) -> None:
    with driver(tmp_path) as (_, server, engine):
        os.kill(server, signal.SIGKILL)
        assert all_gone([server, engine])
        assert not (tmp_path / "held").exists()


def test_without_the_leash_they_would_live_on(tmp_path: Path) -> None:
    with driver(tmp_path, leashed=False) as (process, server, engine):
        process.kill()
        process.wait()
        assert not is_gone(server)
        os.kill(server, signal.SIGKILL)
        assert not all_gone([engine], timeout_s=1)


def test_the_command_ends_with_its_leash(tmp_path: Path) -> None:
    note = tmp_path / "up"
    program = f"import os, time; open({str(note)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    process = on_leash(sys.executable, "-c", program)
    pid = pid_in(note)
    process.kill()
    process.wait()
    assert all_gone([pid])


def test_a_parent_that_is_gone_by_then_starts_nothing(tmp_path: Path) -> None:
    process = on_leash(sys.executable, "-c", f"open({str(tmp_path / 'up')!r}, 'w')", parent=2**22 - 1)
    assert process.wait(30) == -signal.SIGKILL
    assert not (tmp_path / "up").exists()
