"""What is wrong with a picture: black borders around it, stretches in which nothing is to be seen or nothing changes.

Plain arithmetic on grey and on small frames; no model.
"""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

MIN_FRAMES = 8  # with something to see: fewer do not tell a border from a dark place
# Borders: grey levels 0-255. Encoders put a border's 0 at 0 to 4; 12 leaves room for noise and ringing.
_LIT = 12
_SPECK = 0.005  # up to this share of a line may be lit in a border: noise, not a logo or a subtitle
_STRAIGHT = 0.6  # the picture's first line is lit along at least this share, somewhere in the video
_RINGING = (8, 0.02)  # lines, and share of the side, that a coarse encoder's noise reaches out from it
_LEAST = 0.2  # of each side, or it is a title, not a picture: an upright phone's in a wide frame has 0.32
_INSET = 1  # lines that go with the border: scaling has blurred its edge

# Stretches: levels 0-255 of small colour frames, of whose blocks the mean is looked at.
_BLOCK = 8  # px: a hand that moves fills a block; noise of the camera and the encoder averages out in it
_CHANGED = 10  # levels. Measured: stills up to 7, at x264's CRF 35; real shots, within 2 s, 35 and more
_BLACK, _BLACK_SHARE = 24, 0.02  # a frame with less than this share of blocks above it is black


@dataclass(frozen=True)
class Box:
    """A rectangle in a picture, px."""

    left: int
    top: int
    width: int
    height: int


def picture_box(frames_HW: Iterable[NDArray[np.uint8]]) -> Box | None:
    """The picture inside its black borders; None where it has none, or where the frames cannot tell.

    frames_HW: grey uint8, full range, a sample of the whole video. A line belongs to a border only if it is black in
    every frame, so subtitles and logos in a border, and scenes that fill the frame, keep it; black frames say nothing.
    The edge must be straight: a dark scene's is not. All four numbers are even, as 4:2:0 pictures need it; the box lies
    within the picture, at most two lines from its edge.
    """
    brightest_HW: NDArray[np.uint8] | None = None
    num_frames = 0
    for frame_HW in frames_HW:
        if brightest_HW is None:
            brightest_HW = frame_HW.copy()
        elif brightest_HW.shape != frame_HW.shape:
            return None  # the size changes: no one rectangle fits
        else:
            np.maximum(brightest_HW, frame_HW, out=brightest_HW)
        num_frames += bool(np.mean(frame_HW > _LIT) > _SPECK)
    if brightest_HW is None or num_frames < MIN_FRAMES:
        return None
    lit_HW = brightest_HW > _LIT
    rows, columns = (np.flatnonzero(lit_HW.mean(axis=axis) > _SPECK) for axis in (1, 0))
    height, width = lit_HW.shape
    if not (rows.size and columns.size) or np.ptp(rows) < _LEAST * height or np.ptp(columns) < _LEAST * width:
        return None
    across, down = slice(columns[0], columns[-1] + 1), slice(rows[0], rows[-1] + 1)
    top, bottom = _border(lit_HW[:, across]), _border(lit_HW[::-1, across])
    left, right = _border(lit_HW[down].T), _border(lit_HW[down].T[::-1])
    left, top = left + left % 2, top + top % 2
    if not (left or right or top or bottom):
        return None
    return Box(left, top, (width - right - left) // 2 * 2, (height - bottom - top) // 2 * 2)


def _border(lit_lines: NDArray[np.bool_]) -> int:
    """How many lines go, counted from the first one: 0 where what is dark there has no straight edge."""
    share = lit_lines.mean(axis=1)
    first, edge = (int(np.argmax(share > least)) for least in (_SPECK, _STRAIGHT))
    reach = max(_RINGING[0], round(_RINGING[1] * len(share)))
    return edge + _INSET if 0 < edge <= first + reach else 0


@dataclass(frozen=True)
class Stretch:
    """Frames [first, stop) that show one picture which does not change, or nothing at all."""

    first: int
    stop: int
    is_black: bool


class StillWatch:
    """Looks at every frame of a video on its way to somebody else, and knows afterwards which show nothing new.

    A frame belongs to the stretch before it as long as no block of 8 x 8 px is another than in the stretch's first
    frame: slow changes add up, and one hand that moves is enough. Noise and the jump at a keyframe are not.
    """

    def __init__(self) -> None:
        self._starts = array("q")
        self._is_black = bytearray()
        self._num_frames = 0
        self._anchor_YX3: NDArray[np.int16] = np.zeros((0, 0, 3), np.int16)

    def through(self, frames_HW3: Iterable[NDArray[np.uint8]]) -> Iterator[NDArray[np.uint8]]:
        """The same frames, in order: uint8 [H, W, 3], all of one size, the long side about 256 px."""
        for frame_HW3 in frames_HW3:
            blocks_YX3 = np.asarray(Image.fromarray(frame_HW3).reduce(_BLOCK)).astype(np.int16)
            is_black = bool(np.mean(blocks_YX3 > _BLACK) < _BLACK_SHARE)
            goes_on = bool(self._starts) and is_black == self._is_black[-1]
            if not goes_on or (not is_black and np.abs(blocks_YX3 - self._anchor_YX3).max() >= _CHANGED):
                self._starts.append(self._num_frames)
                self._is_black.append(is_black)
                self._anchor_YX3 = blocks_YX3
            self._num_frames += 1
            yield frame_HW3

    def stretches(self) -> Iterator[Stretch]:
        """All frames that were seen, stretch by stretch; most are of a single frame."""
        edges = itertools.pairwise([*self._starts, self._num_frames])
        for (first, stop), is_black in zip(edges, self._is_black, strict=True):
            yield Stretch(first, stop, bool(is_black))
