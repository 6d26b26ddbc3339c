"""How much of a list of ids can be had, and why the rest cannot: OUT/.runs/coverage.json, and a reject for each."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cookgen.files import canonical_json, explained, write_atomic
from cookgen.records import Reason, Reject
from pipelines.sources.fetch import links_path
from pipelines.sources.ledger import Ledger
from pipelines.sources.places import FetchConfig, Missing


def write_coverage(missing: Sequence[Missing], num_ids: int, out: Path, skipped: Mapping[str, str]) -> dict[str, Any]:
    """Writes and returns how much of a list of `num_ids` can be had.

    `alive` of `ids` are here; `missing`: of the others, how many have which outcome as their newest; `not_attempted`:
    why the last run did not ask for one, by its id (`skipped`, as fetch_videos returns it).
    """
    ledger = Ledger(links_path(out))
    last = [attempt for item in missing for attempt in list(ledger.of(item.video_id).values())[-1:]]
    outcomes = dict(Counter(attempt.outcome.value for attempt in last))
    found = {"ids": num_ids, "alive": num_ids - len(missing), "missing": outcomes, "not_attempted": dict(skipped)}
    with explained(out):
        write_atomic(_path(out), canonical_json(found))
    return found


def explain(missing: Sequence[Missing], config: FetchConfig, out: Path, *, has_folder: bool) -> Iterator[Reject]:
    """The reject of each missing video: where the last run on OUT looked for it, and what came of that."""
    ledger, skipped = Ledger(links_path(out)), dict[str, str]()
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # no run yet, or the logs were deleted
        skipped = dict(json.loads(_path(out).read_bytes())["not_attempted"])
    for item in missing:
        said = {a.place: f"{a.place}: {a.outcome} ({a.detail})" for a in ledger.of(item.video_id).values()}
        parts = [f"no video file named {item.video_id} in the folder"] if has_folder else []
        parts += [
            said.get(place, f"not in the {place}") for place in config.places if place in said or place != "yt-dlp"
        ]
        parts += [skipped[item.video_id]] if item.video_id in skipped else []
        yield Reject(
            narrative=item.narrative,
            path="",
            stage="source",
            reason=Reason.VIDEO_MISSING,
            detail="; ".join(parts) or "not asked for yet",
        )


def _path(out: Path) -> Path:
    return out / ".runs" / "coverage.json"
