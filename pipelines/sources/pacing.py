"""Which link is asked for next, and when: a host is asked gently, and left alone once it keeps refusing."""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from urllib.parse import urlsplit

from pipelines.sources.answers import Answer
from pipelines.sources.ledger import Outcome

_REFUSALS = (Outcome.BLOCKED, Outcome.RATE_LIMITED)
_LATER = (Outcome.NETWORK, Outcome.RATE_LIMITED)  # worth another attempt in the same run


@dataclass(frozen=True)
class Pace:
    """How a host is asked; fetch.FetchConfig says what each number means."""

    connections: int
    sleep_s: float
    attempts: int
    backoff_s: float
    max_wait_s: float
    budget: int

    def wait_s(self, num_refusals: int, retry_after_s: float | None, *, jitter: float) -> float:
        """How long a host is left in peace after so many refusals in a row (0: a failure of the network).

        The back-off doubles with each up to max_wait_s, times `jitter`; what the host asks for is the least.
        """
        grown = min(self.backoff_s * 2.0 ** min(max(num_refusals - 1, 0), 60), self.max_wait_s) * jitter
        return max(grown, retry_after_s or 0.0)


@dataclass(frozen=True)
class Task:
    """A video to be had from a URL, for the n-th time in this run."""

    video_id: str
    url: str
    attempt: int = 1

    @property
    def host(self) -> str:
        """Whom it is asked of: host and port, or a bucket; empty for a folder."""
        return urlsplit(self.url).netloc.rpartition("@")[2]


@dataclass
class _Host:
    waiting: deque[Task] = field(default_factory=deque)
    num_active: int = 0
    ready_at: float = 0.0
    num_refusals: int = 0  # in a row


class Queue:
    """The tasks of one place, for several threads: `take` one, try it, `finish` it. `skipped` says of which videos
    nothing was asked, and why."""

    def __init__(self, tasks: Iterable[Task], pace: Pace) -> None:
        self.skipped: dict[str, str] = {}
        self.is_stopped = False
        self._pace = pace
        self._changed = threading.Condition()
        self._hosts: dict[str, _Host] = {}
        for task in tasks:
            self._hosts.setdefault(task.host, _Host()).waiting.append(task)

    @property
    def num_useful_threads(self) -> int:
        """More threads than this would only wait."""
        return sum(min(len(host.waiting), self._pace.connections) for host in self._hosts.values())

    def take(self) -> Task | None:
        """The next task, as soon as its host may be asked; None when all is done or `stop` was called."""
        with self._changed:
            while not self.is_stopped:
                hosts = [host for host in self._hosts.values() if host.waiting or host.num_active]
                if not hosts:
                    return None
                free = [host for host in hosts if host.waiting and host.num_active < self._pace.connections]
                host = min(free, key=lambda host: host.ready_at, default=None)
                now = time.monotonic()
                if host is not None and host.ready_at <= now:
                    host.num_active += 1
                    host.ready_at = now + self._pace.sleep_s * random.uniform(0.5, 1.5)
                    return host.waiting.popleft()
                self._changed.wait(None if host is None else host.ready_at - now)
            return None

    def finish(self, task: Task, answer: Answer) -> None:
        """What came of a task that was taken; it may come again, at the end of its host's line."""
        with self._changed:
            host = self._hosts[task.host]
            host.num_active -= 1
            is_refusal = answer.outcome in _REFUSALS
            if is_refusal or answer.outcome.is_final:
                host.num_refusals = host.num_refusals + 1 if is_refusal else 0
            if not answer.outcome.is_final:
                wait_s = self._pace.wait_s(host.num_refusals, answer.retry_after_s, jitter=random.uniform(0.5, 1.5))
                host.ready_at = max(host.ready_at, time.monotonic() + wait_s)
            if answer.outcome in _LATER and task.attempt < self._pace.attempts:
                host.waiting.append(replace(task, attempt=task.attempt + 1))
            if is_refusal and host.num_refusals >= self._pace.budget:
                self._leave(host, f"host {task.host} blocked after {host.num_refusals} answers")
            elif (answer.retry_after_s or 0.0) > self._pace.max_wait_s:
                self._leave(host, f"host {task.host} blocked: it asks to wait {answer.retry_after_s:.0f} s")
            self._changed.notify_all()

    def stop(self) -> None:
        """Lets nobody take a task any more."""
        with self._changed:
            self.is_stopped = True
            self._changed.notify_all()

    def _leave(self, host: _Host, why: str) -> None:
        self.skipped |= {task.video_id: f"not attempted: {why}" for task in host.waiting if task.attempt == 1}
        host.waiting.clear()
