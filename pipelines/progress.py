"""Counts what passes through the store, stage by stage."""

from __future__ import annotations

from collections.abc import Iterable

from cookgen.runlog import Tally
from pipelines.stage import Result, Stage, VideoState
from pipelines.store import Store


class CountedStore:
    """The store, with a tally a stage of everything that was found in it or put into it."""

    def __init__(self, store: Store, stages: Iterable[Stage], states: Iterable[VideoState]) -> None:
        self.store = store
        self.tallies = {stage.name: Tally() for stage in stages}
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

    def put(self, result: Result) -> None:
        self.store.put(result)
        self._count(result, is_reused=False)

    def _count(self, result: Result, *, is_reused: bool) -> None:
        tally = self.tallies[result.stage]
        tally.done += 1
        tally.rows += len(result.rows)
        if is_reused:
            tally.reused += 1
        else:
            tally.seconds += result.seconds
        for reject in result.rejects:
            tally.rejects[reject.reason] = tally.rejects.get(reject.reason, 0) + 1
        if result.stops_video:  # the later stages never see this video
            names = list(self.tallies)
            for name in names[names.index(result.stage) + 1 :]:
                self.tallies[name].total -= 1
