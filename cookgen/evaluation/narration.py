"""How well speech and the actions told in it were found, where the truth is known. Pure functions, no models.

word_errors("crack the eggs", "crack eggs").rate                                1 of 3 words
action_scores([(0.4, 3.4)], [(0.5, 3.2)], cosines_TF=[[0.9]]).f1                1.0
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from cookgen.matching import Span, best_matching, overlap

MIN_IOU = 0.3
MIN_COSINE = 0.6


@dataclass(frozen=True)
class WordErrors:
    """Edits that turn the reference into what was heard, and the reference's length in words."""

    substitutions: int
    deletions: int
    insertions: int
    num_words: int

    @property
    def rate(self) -> float:
        """Word error rate: edits a word of the reference; may be above 1. Of an empty reference nan, 0 where nothing
        was heard either."""
        edits = self.substitutions + self.deletions + self.insertions
        return edits / self.num_words if self.num_words else (float("nan") if edits else 0.0)

    def __add__(self, other: WordErrors) -> WordErrors:
        return WordErrors(
            self.substitutions + other.substitutions,
            self.deletions + other.deletions,
            self.insertions + other.insertions,
            self.num_words + other.num_words,
        )


def spoken_words(text: str) -> list[str]:
    """The words of a text as they sound: lower case, without punctuation; a hyphen divides, an apostrophe does not."""
    return re.findall(r"[^\W_]+(?:'[^\W_]+)*", text.lower().replace("’", "'"))


def word_errors(reference: str, hypothesis: str) -> WordErrors:
    """The fewest edits between two transcripts, compared by `spoken_words`; of equally few those with most
    substitutions. n and m words cost n x m, in rows of NumPy: an hour of speech (9,000 words) a few seconds.
    """
    said, heard = spoken_words(reference), spoken_words(hypothesis)
    numbers = {word: number for number, word in enumerate({*said, *heard})}
    heard_ids = np.array([numbers[word] for word in heard], dtype=np.int64)
    # Cost of each prefix of `heard`; edits count 2**32 each and substitutions take 1 off, which breaks ties.
    edit = 2**32
    steps = np.arange(len(heard) + 1, dtype=np.int64) * edit
    row = steps.copy()
    for word in said:
        replaced = row[:-1] + np.where(heard_ids == numbers[word], 0, edit - 1)
        best = np.minimum(row + edit, np.concatenate(([row[0] + edit], replaced)))
        row = np.minimum.accumulate(best - steps) + steps  # insertions: from the left, each an edit
    edits = -(-int(row[-1]) // edit)
    substitutions = edits * edit - int(row[-1])
    # Deletions less insertions is what the lengths differ by.
    deletions = (edits - substitutions + len(said) - len(heard)) // 2
    return WordErrors(substitutions, deletions, edits - substitutions - deletions, len(said))


@dataclass(frozen=True)
class ActionScores:
    """How many actions are true, were found, and are hits."""

    num_true: int
    num_found: int
    num_hits: int

    @property
    def precision(self) -> float:
        """Share of what was found that is a hit; 1 where nothing was found."""
        return self.num_hits / self.num_found if self.num_found else 1.0

    @property
    def recall(self) -> float:
        """Share of the true actions that were found; 1 where there is none."""
        return self.num_hits / self.num_true if self.num_true else 1.0

    @property
    def f1(self) -> float:
        """Harmonic mean of both; 1 where there is nothing to find and nothing was found."""
        total = self.num_true + self.num_found
        return 2 * self.num_hits / total if total else 1.0

    def __add__(self, other: ActionScores) -> ActionScores:
        return ActionScores(
            self.num_true + other.num_true, self.num_found + other.num_found, self.num_hits + other.num_hits
        )


def action_scores(
    true: Sequence[Span],
    found: Sequence[Span],
    cosines_TF: ArrayLike,
    *,
    min_iou: float = MIN_IOU,
    min_cosine: float = MIN_COSINE,
) -> ActionScores:
    """Compares the actions of one video with the true ones. Sum the scores of several videos with `+`.

    true, found: spans in seconds, in any order. cosines_TF: cosine of sentence embeddings, a row a true action, a
    column a found one. A pair is a hit when its IoU and its cosine are above the minima, both strictly; hits are
    one-to-one and without crossings in time (`best_matching`), as many as can be. Raises ValueError where the shapes
    differ.
    """
    cosines, shape = np.asarray(cosines_TF, dtype=np.float64), (len(true), len(found))
    if cosines.shape != shape and (cosines.size or 0 not in shape):
        raise ValueError(f"cosines_TF is of shape {cosines.shape}; it must be {shape}")
    true_order, found_order = _in_time(true), _in_time(found)
    hits = {
        (row, column): 1.0
        for row, t in enumerate(true_order)
        for column, f in enumerate(found_order)
        if overlap(true[t], found[f])[1] > min_iou and cosines[t, f] > min_cosine
    }
    return ActionScores(len(true), len(found), len(best_matching(hits)))


def _in_time(spans: Iterable[Span]) -> list[int]:
    return [index for index, _ in sorted(enumerate(spans), key=lambda item: (*item[1], item[0]))]
