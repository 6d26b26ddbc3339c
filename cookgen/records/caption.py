"""A clip's caption."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field, NonNegativeInt

from cookgen.records.record import Record


class Caption(Record):
    """What is seen in a clip; `origin` names the captioner that wrote it."""

    TABLE: ClassVar[str] = "captions"

    narrative: str
    clip_index: NonNegativeInt
    text: str = Field(min_length=1)
    origin: str = Field(min_length=1)
