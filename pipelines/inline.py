"""The stages in a plain loop, one video after the other: for debugging, tests, and machines where Ray is too much."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache, partial
from typing import Any

from cookgen.records import SourceVideo
from pipelines.stage import Keeper, Places, Stage, VideoState, advance, resume


def run(
    sources: Iterable[SourceVideo], stages: tuple[Stage, ...], *, results: Keeper, places: Places
) -> Iterator[VideoState]:
    """Each video after its last stage, in the order given. A stage's tool is loaded at its first use, once."""

    @cache
    def tool(stage: Stage) -> Any:
        assert stage.load is not None
        return stage.load(stage.config, places)

    for source in sources:
        state = resume(source, stages, find=results.get)
        for stage in stages:
            state = advance(stage, state, stages, results=results, tool=partial(tool, stage))
        yield state
