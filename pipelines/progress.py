"""Counts what passes through the store, notes when it happened, and stops a run of which too much fails.

OUT/.runs/trace-<start>.json    each stage of each video in Chrome's trace format: load it in ui.perfetto.dev
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cookgen.config import machinery
from cookgen.errors import TooManyFailuresError
from cookgen.records import Reason
from cookgen.runlog import Tally
from pipelines.stage import Known, Result, Stage, VideoState
from pipelines.store import Store

# What says that something is wrong with the run, its disks or its servers, more than with a video.
_SUSPECT = frozenset(
    reason.value
    for reason in (
        Reason.INTERNAL_ERROR,
        Reason.UNREADABLE_FILE,
        Reason.DECODE_ERROR,
        Reason.ENCODE_ERROR,
        Reason.UNUSABLE_ANSWER,
    )
)


@dataclass(frozen=True)
class FailuresConfig:
    """When a run stops: when more than `share` of the last `of_last` videos of a stage failed for one reason."""

    share: float = machinery(0.2)
    of_last: int = machinery(200)

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError("share must be above 0 and at most 1, which never stops a run")
        if self.of_last < 1:
            raise ValueError("of_last must be at least 1")


@dataclass(frozen=True)
class Worker:
    """Who computed a result."""

    node: str
    process: int

    @staticmethod
    def this() -> Worker:
        return Worker(socket.gethostname(), os.getpid())


class Trace:
    """Chrome's trace format as a list that need not be closed: a run that is killed leaves one that can be read."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / f"trace-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}.json"
        self._lines: list[str] = []

    def add(self, result: Result, worker: Worker, ended_s: float) -> None:
        event = {
            "name": result.stage,
            "ph": "X",
            "ts": round((ended_s - result.seconds) * 1e6),
            "dur": round(result.seconds * 1e6),
            "pid": worker.node,
            "tid": worker.process,
            "args": {"narrative": result.narrative, "rows": result.num_rows, "rejects": list(result.reasons)},
        }
        self._lines.append(json.dumps(event) + ",\n")

    def flush(self) -> None:
        """Appends what came since the last time."""
        if self._lines:
            with self._path.open("a", encoding="utf-8") as stream:
                stream.write(("" if stream.tell() else "[\n") + "".join(self._lines))
            self._lines.clear()


class CountedStore:
    """The store, with a tally a stage of everything that was found in it or put into it."""

    def __init__(
        self,
        store: Store,
        stages: Iterable[Stage],
        states: Iterable[VideoState],
        *,
        failures: FailuresConfig,
        trace: Trace,
    ) -> None:
        self.store = store
        self.tallies = {stage.name: Tally() for stage in stages}
        self._failures, self._trace = failures, trace
        # By stage, of its last videos: the suspect reason and what was said, or None.
        self._last: dict[str, deque[tuple[str, str] | None]] = {
            name: deque(maxlen=failures.of_last) for name in self.tallies
        }
        for state in states:
            for tally in self.tallies.values():
                tally.total += 1
            for result in state.results.values():
                self._count(result, is_reused=True)

    def get(self, stage: Stage, key: str) -> Result | None:
        result = self.store.get(stage, key)
        if result is not None:
            self._count(result, is_reused=True)
        return result

    def put(self, result: Result, *, worker: Worker | None = None, ended_s: float | None = None) -> None:
        """Keeps and counts a result. Raises TooManyFailuresError where that many failed before it."""
        self.store.put(result)
        self._trace.add(result, worker or Worker.this(), ended_s or time.time())
        self._count(result, is_reused=False)
        self._check(result)

    def flush(self) -> None:
        """Writes everything that waits."""
        self.store.flush()
        self._trace.flush()

    def _count(self, result: Known, *, is_reused: bool) -> None:
        tally = self.tallies[result.stage]
        tally.done += 1
        tally.rows += result.num_rows
        if is_reused:
            tally.reused += 1
        else:
            assert isinstance(result, Result)
            tally.seconds += result.seconds
            tally.prompt_tokens += result.tokens[0]
            tally.answer_tokens += result.tokens[1]
        for reason in result.reasons:
            tally.rejects[reason] = tally.rejects.get(reason, 0) + 1
        if result.stops_video:  # the later stages never see this video
            names = list(self.tallies)
            for name in names[names.index(result.stage) + 1 :]:
                self.tallies[name].total -= 1

    def _check(self, result: Result) -> None:
        last = self._last[result.stage]
        ends = [(reject.reason.value, reject.detail) for reject in result.rejects if reject.is_video_level]
        last.append(next((end for end in ends if end[0] in _SUSPECT), None))
        suspects = [end for end in last if end is not None]
        [(reason, count)] = Counter(reason for reason, _ in suspects).most_common(1) or [("", 0)]
        if len(last) == last.maxlen and count > self._failures.share * len(last):
            detail = [detail for other, detail in suspects if other == reason][-1]
            raise TooManyFailuresError(
                f"{100 * count / len(last):.0f} % of the last {len(last)} videos failed at {result.stage}: {reason};"
                f" stopped. The last said: {detail[:200] or 'nothing'}. What was done is kept: mend the cause and run"
                f" again, or allow more than failures.share={self._failures.share:g}"
            )
