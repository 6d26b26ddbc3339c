"""What the checks weigh: measured on each clip and each text before anything is matched."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import NonNegativeInt

from cookgen.records.record import Record


class Evidence(Record):
    """A clip with its caption, or an action: the one index says which. Kept in the store only, no table of a set.

    meaning: the sentence vector of the caption or the action, little-endian float16 in base64. scores: what was
    measured on a clip, by the names of the checks that it becomes where the clip is matched.
    """

    TABLE: ClassVar[str] = "evidence"

    narrative: str
    clip_index: NonNegativeInt | None = None
    action_index: NonNegativeInt | None = None
    meaning: str
    scores: Mapping[str, float] = {}

    @property
    def vector(self) -> NDArray[np.float32]:
        """`meaning` as float32 [width], of length 1."""
        vector = np.frombuffer(base64.b64decode(self.meaning), "<f2").astype(np.float32)
        return vector / np.linalg.norm(vector)


def meaning_of(vector: NDArray[np.float32]) -> str:
    """The spelling of a sentence vector, [width], in a row; its cosines stay the same to about 0.001."""
    return base64.b64encode(vector.astype("<f2").tobytes()).decode()
