"""A spoken word."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field, NonNegativeFloat, NonNegativeInt

from cookgen.records.record import Record


class Word(Record):
    """A word with its time, numbered from 0 within a video. `probability` is the recogniser's; 1 for given captions.

    language: code of the language that the video was heard in ("en"); None for given captions. unspoken: what the
    recogniser gave just before the word (after it, where it is the last) and nobody spoke, with the reason: music,
    repeated, unlikely.
    """

    TABLE: ClassVar[str] = "speech"
    DESCRIPTIVE: ClassVar[frozenset[str]] = frozenset({"language", "unspoken"})

    narrative: str
    word_id: NonNegativeInt
    text: str = Field(min_length=1)
    start_s: NonNegativeFloat
    end_s: NonNegativeFloat
    probability: Annotated[float, Field(ge=0, le=1)]
    language: str | None = None
    unspoken: tuple[str, ...] = ()
