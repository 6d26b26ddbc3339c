"""The captioner for machines without a vision-language model: a classifier's labels, colours and motion, in words.

It does not understand the clip and does not pretend to: it says what the classifier says, how sure it is, and what the
pixels show.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cookgen.perception.caption_models import check_frames
from cookgen.perception.colour import Colours, name_colours
from cookgen.perception.image_labels import WEIGHTS, ImageLabeller
from cookgen.perception.motion import Motion, measure_motion

MAX_LABELS = 3
SURE = 0.25  # mean probability over the frames below which the classifier counts as unsure
POSSIBLE = 0.08  # below this a further label is not worth a word


@dataclass(frozen=True, eq=False)
class TagsCaptioner:
    """Two sentences a clip; the same frames always give the same text."""

    labeller: ImageLabeller

    @staticmethod
    def load() -> TagsCaptioner:
        """With the pinned classifier. Raises ModelError where it is not installed."""
        return TagsCaptioner(ImageLabeller.load())

    @staticmethod
    def identity() -> str:
        """ "id@revision" of what the captions depend on; nothing is loaded."""
        return ImageLabeller.identity()

    @property
    def origin(self) -> str:
        return f"tags:{WEIGHTS}"

    def caption(self, frames_THWC: NDArray[np.uint8], *, key: str) -> str:
        """See Captioner; probabilities are means over the frames."""
        check_frames(frames_THWC)
        probabilities = self.labeller.probabilities(frames_THWC).mean(0)
        best = np.argsort(-probabilities, kind="stable")[:MAX_LABELS]
        labels = [(self.labeller.labels[label], float(probabilities[label])) for label in best]
        colours, motion = name_colours(frames_THWC), measure_motion(frames_THWC)
        return f"{_labels_in_words(labels)} {_colours_in_words(colours)}; {_motion_in_words(motion)}."


def _labels_in_words(labels: Sequence[tuple[str, float]]) -> str:
    first, *others = (f"{name} ({probability:.0%})" for name, probability in labels)
    others = [text for text, (_, probability) in zip(others, labels[1:], strict=True) if probability >= POSSIBLE]
    if labels[0][1] < SURE:
        return f"The image classifier is unsure: at best {' or '.join([first, *others])}."
    return f"The image classifier says {first}{', possibly ' if others else ''}{' or '.join(others)}."


def _colours_in_words(colours: Colours) -> str:
    tone = colours.brightness if colours.warmth == "neutral" else f"{colours.warmth}, {colours.brightness}"
    mostly = f", mostly {' and '.join(colours.dominant)}" if colours.dominant else ""
    return f"{tone.capitalize()} picture{mostly}"


def _motion_in_words(motion: Motion) -> str:
    if not motion.amounts:
        return "a single frame"
    amount = motion.amount
    if amount < 0.005:
        return "nothing moves"
    if 2 * motion.num_new_views >= len(motion.amounts):
        return "the whole picture keeps changing"
    camera = "moving camera" if motion.camera_moves else "steady camera"
    how_much = "hardly any" if amount < 0.02 else "a little" if amount < 0.12 else "clear" if amount < 0.4 else "strong"
    where = {
        "all over": "all over the picture",
        "centre": "in the centre",
        "left": "on the left",
        "right": "on the right",
    }
    place = where.get(motion.place, f"at the {motion.place}")
    when = {
        "sudden": ", most of it at one moment",
        "growing": ", growing towards the end",
        "fading": ", fading towards the end",
        "rising and falling": ", strongest in the middle",
        "even": "",
    }[motion.course]
    num = motion.num_new_views
    views = f", {num} sudden change{'s' if num > 1 else ''} of view" if num else ""
    return f"{camera}, {how_much} motion {place}{when}{views}"
