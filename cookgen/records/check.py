"""A measured score of a narrative or of one of its clips, and the closed list of what is measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field, NonNegativeInt

from cookgen.records.record import Record

# Check -> what the number is. Of a matched clip:
CLIP_CHECKS: Mapping[str, str] = {
    "caption_action_similarity": "cosine of caption and action, -1 to 1",
    "caption_repeated": "share of the narrative's other steps with the same caption, 0 to 1",
    "action_repeated": "share of the narrative's other steps with the same action, 0 to 1",
    "nearest_action": "cosine of its action and the most alike action of another step, -1 to 1",
    "empty_text": "1 if action or caption has no letter, else 0",
    "clip_decodes": "share of its frames that decode, 0 to 1",
    "talking_head": "share of four frames with a face of a fifth of the picture's height or more, 0 to 1",
}
# Of a clip as well, one of each judge or measure: what the names of these begin with.
CLIP_CHECK_FAMILIES = ("caption_coverage", "caption_hallucination", "inverse_")
# Of a narrative:
NARRATIVE_CHECKS: Mapping[str, str] = {
    "matched_clip_share": "steps over clips, 0 to 1",
    "matched_action_share": "steps over actions, 0 to 1",
    "repeated_steps": "share of the steps whose action says what an earlier step's does, 0 to 1",
    "step_order": "share of the pairs of steps whose captions are most like actions in this order, 0 to 1",
    "ingredient_continuity": "of the later steps that name food, the share that goes on with an earlier step's, 0 to 1",
}
# Of a narrative in a set of several splits, beside those of the other splits; known when the set is written:
SET_CHECKS: Mapping[str, str] = {
    "recipe_elsewhere": "cosine of its actions' mean meaning and the nearest narrative's in another split, -1 to 1",
}


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


def is_clip_check(name: str) -> bool:
    """Whether this is what a number of a clip is called."""
    return name in CLIP_CHECKS or name.startswith(CLIP_CHECK_FAMILIES)
