"""A measured score of a narrative or of one of its clips."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field, NonNegativeInt

from cookgen.records.record import Record


class Check(Record):
    """A number, never a verdict. `clip_index` is None for a score of the whole narrative."""

    TABLE: ClassVar[str] = "checks"

    narrative: str
    clip_index: NonNegativeInt | None
    check: str
    score: float


class Score(Record):
    """A number that was measured on a finished set; it becomes a check of a later set's very same clip and caption.

    No table of a set. The names begin with `inverse_`, as those of the pipeline's own checks never do.
    """

    TABLE: ClassVar[str] = "scores"

    narrative: str
    clip_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    caption_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")  # of the caption's UTF-8 bytes
    check: str = Field(pattern=r"^inverse_[a-z0-9_]+$")
    score: float

    @property
    def place(self) -> tuple[str, str, str, str]:
        """All but the number: a file of scores is in this order, and says each once."""
        return self.narrative, self.clip_sha256, self.caption_sha256, self.check
