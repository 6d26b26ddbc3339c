"""A clip-action pair with some overlap."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt

from cookgen.records.record import Record


class Match(Record):
    """One candidate pair (iou > 0), with what the matching rule said of it.

    `rule` names the branch that allowed the pair, None where it is not allowed. Source: VideoAuteur, section 3.2.
    """

    TABLE: ClassVar[str] = "matches"

    narrative: str
    clip_index: NonNegativeInt
    action_index: NonNegativeInt
    start_diff_s: NonNegativeFloat
    iou: Annotated[float, Field(ge=0, le=1)]
    allowed: bool
    chosen: bool
    rule: Literal["start_diff", "iou"] | None
