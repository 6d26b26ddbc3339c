"""Runs a command that never outlives whoever asked for it, nor do the command's own children outlive it.

    python -I leash.py PARENT_PID GRACE_S COMMAND ...

A model server knows nothing of the run that needs it, and may have children that do not notice its death: vLLM's engine
would keep its memory, a GPU's too, for ever. The leash leads their process group. When its parent dies, however it
dies, the kernel tells the leash, which then does as at a SIGTERM: it passes that on to the command. When the command
has ended, by itself or not, its children are asked to end in their own way, for only they know what else they hold
(shared memory, which outlives a killed process). Who has not ended GRACE_S later is killed, but Python's resource
trackers: they give back what the killed have shared, and end when those are gone. When the leash itself is killed, the
kernel kills the command. How the command ended is how the leash ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h


def main() -> None:
    """Linux only."""
    parent, grace_s, command = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    prctl = ctypes.CDLL(None).prctl

    def kill_all(*_: int | FrameType | None) -> None:
        os.killpg(0, signal.SIGKILL)

    def kill_those_that_stay(*_: int | FrameType | None) -> None:
        signal.signal(signal.SIGALRM, kill_all)
        signal.alarm(grace_s)
        for pid in processes_of(os.getpgrp()):
            with contextlib.suppress(OSError):
                if pid != os.getpid() and b"resource_tracker" not in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(pid, signal.SIGKILL)

    def end(*_: int | FrameType | None) -> None:
        server.terminate()
        if not signal.getitimer(signal.ITIMER_REAL)[0]:  # else its time runs already
            signal.alarm(grace_s)

    signal.signal(signal.SIGALRM, kill_those_that_stay)
    signal.signal(signal.SIGTERM, kill_all)
    signal.signal(signal.SIGUSR1, kill_all)
    prctl(PR_SET_PDEATHSIG, signal.SIGUSR1)
    if os.getppid() != parent:  # it died before the kernel was asked
        kill_all()
    prctl(PR_SET_CHILD_SUBREAPER, 1)  # the command's children become ours when it dies
    server = subprocess.Popen(command, preexec_fn=lambda: prctl(PR_SET_PDEATHSIG, signal.SIGKILL))
    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGUSR1, end)
    code = server.wait()
    os.killpg(0, signal.SIGTERM)  # it comes back to us as well, and starts the clock
    with contextlib.suppress(ChildProcessError):  # until there are none
        while True:
            os.wait()
    if code < 0:
        with contextlib.suppress(OSError):  # SIGKILL has no handler
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


def processes_of(group: int) -> list[int]:
    """The processes of a process group."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            if int((process / "stat").read_text().rpartition(")")[2].split()[2]) == group:
                found.append(int(process.name))
    return found


if __name__ == "__main__":
    main()
