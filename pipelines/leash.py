"""Runs a command that never outlives whoever asked for it, whatever that command is.

    python -I leash.py PARENT_PID COMMAND ...

A model server knows nothing of the run that needs it, and may have children of its own (vLLM's engine is one). The
leash leads their process group. When its parent dies, however it dies, the kernel tells the leash, and it kills the
group; when the leash itself dies, the kernel kills the command. SIGTERM is passed on to the command, which may then end
in its own way; how the command ended is how the leash ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from types import FrameType

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main() -> None:
    """Ends as the command ends. Linux only."""
    parent, command = int(sys.argv[1]), sys.argv[2:]
    prctl = ctypes.CDLL(None).prctl

    def end_all(*_: int | FrameType | None) -> None:
        os.killpg(0, signal.SIGKILL)

    signal.signal(signal.SIGUSR1, end_all)
    prctl(PR_SET_PDEATHSIG, signal.SIGUSR1)
    if os.getppid() != parent:  # it died before the kernel was asked
        end_all()
    server = subprocess.Popen(command, preexec_fn=lambda: prctl(PR_SET_PDEATHSIG, signal.SIGKILL))
    signal.signal(signal.SIGTERM, lambda *_: server.terminate())
    code = server.wait()
    if code < 0:
        with contextlib.suppress(OSError):  # SIGKILL has no handler
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


if __name__ == "__main__":
    main()
