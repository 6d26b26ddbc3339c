"""How far the steps of a narrative hang together: numbers from their texts and what these mean. Pure, no models.

Vectors are float32 of length 1, steps in the order of their clips: [S, width]. A number that would say nothing (of one
step, of no food) is None.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipelines.recipe_words import FOODS, PRODUCTS, content_words

Vectors = NDArray[np.float32]
_BLOCK = 1024


def nearest_action(actions_SW: Vectors) -> list[float]:
    """For each step the cosine of its action and the most alike one of another, -1 to 1; none for a single step."""
    if len(actions_SW) < 2:
        return []
    cosines = actions_SW @ actions_SW.T
    np.fill_diagonal(cosines, -1.0)
    return [float(cosine) for cosine in np.clip(cosines.max(axis=1), -1, 1)]


def repeated_steps(actions_SW: Vectors, *, same: float) -> float | None:
    """Share of the steps whose action is that of an earlier step again: a cosine of at least `same`; 0 to 1."""
    if len(actions_SW) < 2:
        return None
    return float((np.tril(actions_SW @ actions_SW.T, k=-1) >= same).any(axis=1).mean())


def step_order(actions_SW: Vectors, captions_SW: Vectors) -> float | None:
    """Share of the pairs of steps that are seen in the order in which they are told, 0 to 1; 0.5 is chance.

    The chosen matches cannot disagree in time, for they do not cross. So meaning is asked: each caption points at the
    action that it is most like, and a pair is in order where the earlier clip's points at the earlier action; two that
    point at the same one count half.
    """
    if len(actions_SW) < 2:
        return None
    pointed_S = (captions_SW @ actions_SW.T).argmax(axis=1)
    earlier, later = np.triu_indices(len(pointed_S), k=1)
    return float((1 + np.sign(pointed_S[later] - pointed_S[earlier])).mean() / 2)


def ingredient_continuity(actions: Sequence[str]) -> float | None:
    """Of the steps after the first that name food, the share that goes on with an earlier step's; 0 to 1.

    A step goes on where it names a food that an earlier step names, or something that food becomes (batter, dough,
    sauce) after a step with any. By the word lists of recipe_words; None where no later step names food.
    """
    known: set[str] = set()
    naming = continuing = 0
    for number, action in enumerate(actions):
        named = content_words(action) & (FOODS | PRODUCTS)
        if number and named:
            naming += 1
            continuing += bool(named & known) or bool(known and named & PRODUCTS)
        known |= named
    return continuing / naming if naming else None


def nearest_elsewhere(vectors_NW: Vectors, splits: Sequence[str]) -> list[float]:
    """For each narrative the cosine of its vector and the nearest one in another split; none for a single split."""
    names, group_N = np.unique(np.array(splits), return_inverse=True)
    if len(names) < 2:
        return []
    nearest = []
    for start in range(0, len(vectors_NW), _BLOCK):  # the cosines of all at once would be too many
        cosines = vectors_NW[start : start + _BLOCK] @ vectors_NW.T
        cosines[group_N[start : start + _BLOCK, None] == group_N] = -1.0
        nearest += [float(cosine) for cosine in np.clip(cosines.max(axis=1), -1, 1)]
    return nearest
