"""Which processes are alive: what a test started, and what that started in turn."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable

import psutil


def is_gone(pid: int) -> bool:
    """Whether the process has ended; nobody may have asked yet how."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def all_gone(pids: Iterable[int], *, timeout_s: float = 10) -> bool:
    """Whether they have all ended, at the latest after so long."""
    alive = set(pids)
    deadline = time.monotonic() + timeout_s
    while alive := {pid for pid in alive if not is_gone(pid)}:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def marked(name: str, value: str) -> list[psutil.Process]:
    """All living processes in whose environment `name` is `value`, wherever they hang now."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(name) == value and not is_gone(process.pid):
                found.append(process)
    return found
