"""A measured score of a narrative or of one of its clips."""

from __future__ import annotations

from typing import ClassVar

from pydantic import NonNegativeInt

from cookgen.records.record import Record


class Check(Record):
    """A number, never a verdict. `clip_index` is None for a score of the whole narrative."""

    TABLE: ClassVar[str] = "checks"

    narrative: str
    clip_index: NonNegativeInt | None
    check: str
    score: float
