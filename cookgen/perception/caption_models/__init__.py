"""Captioners: models that say what is seen in a clip, behind one small protocol.

tags          an image classifier, the motion and the colours in words: for machines without a vision-language model
endpoint      any vision-language model behind an OpenAI-compatible endpoint
llava_next    LLaVA-NeXT or LLaVA-NeXT-Video from transformers, in this process
"""

from __future__ import annotations

import math
import re
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cookgen.errors import ShapeError

PROMPT = (
    "These pictures are frames of one short clip of a cooking video, in the order of time. "
    "Describe in two or three plain sentences only what can be seen: the foods, tools and hands with their attributes "
    "(colour, shape, material, state), how they interact (who or what touches, holds, cuts, pours or heats what, and "
    "where), and what changes from the first frame to the last. "
    "Do not guess at sounds, names, intentions or what happens before or after."
)
GRID_PROMPT = "The picture is a grid of frames; read it row by row, from the top left. "  # before PROMPT


class Captioner(Protocol):
    """Says what is seen in a clip. `origin` names the captioner and its model in every caption."""

    @property
    def origin(self) -> str: ...

    def caption(self, frames_THWC: NDArray[np.uint8], *, key: str) -> str:
        """The text for frames in time order, uint8 [T, H, W, 3], RGB, T >= 1; "" where the model says nothing.

        key: the clip's name ("narrative-003"), sent along where the back-end can carry it and checked on return.
        """
        ...


def check_frames(frames_THWC: NDArray[np.uint8]) -> None:
    """Raises ShapeError for anything but RGB frames, uint8 [T, H, W, 3] with T >= 1."""
    if frames_THWC.dtype != np.uint8 or frames_THWC.ndim != 4 or frames_THWC.shape[-1] != 3 or not frames_THWC.size:
        raise ShapeError(
            f"frames are {frames_THWC.dtype} {list(frames_THWC.shape)}; wanted: RGB uint8 [T, H, W, 3], T >= 1"
        )


def frame_grid(frames_THWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """All frames as one picture in reading order, uint8 [rows * H, columns * W, 3]; as square as may be, rest black."""
    num, height, width, _ = frames_THWC.shape
    columns = math.ceil(math.sqrt(num))
    rows = math.ceil(num / columns)
    cells = np.zeros((rows * columns, height, width, 3), np.uint8)
    cells[:num] = frames_THWC
    return cells.reshape(rows, columns, height, width, 3).swapaxes(1, 2).reshape(rows * height, columns * width, 3)


def whole_sentences(text: str, max_chars: int | None = None) -> str:
    """The text up to its last sentence end within max_chars; as much of it as there are whole words, if it has none."""
    part = text if max_chars is None else text[:max_chars]
    ends = [match.end(1) for match in _SENTENCE_END.finditer(part)]
    if ends:
        return part[: ends[-1]]
    return part if len(part) == len(text) else part.rpartition(" ")[0] or part


_SENTENCE_END = re.compile(r"([.!?…][\"'”’)\]]*)(?=\s|$)")
