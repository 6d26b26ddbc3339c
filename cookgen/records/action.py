"""An action: a short imperative sentence with its span."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt

from cookgen.records.record import Record


class Action(Record):
    """What is done in [start_s, end_s).

    origin "manual": a human annotation, `raw_text` as it stood in the source's file, no words. origin "asr": written by
    a language model from the words [word_first, word_end), whose text is `raw_text` and whose times are the span.
    """

    TABLE: ClassVar[str] = "actions"

    narrative: str
    action_index: NonNegativeInt
    text: str = Field(min_length=1)
    start_s: NonNegativeFloat
    end_s: NonNegativeFloat
    origin: Literal["manual", "asr"]
    raw_text: str
    word_first: NonNegativeInt | None = None
    word_end: NonNegativeInt | None = None
