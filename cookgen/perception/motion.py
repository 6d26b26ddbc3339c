"""What moves in a few frames of a clip: the camera, how much, where and when. Plain arithmetic on small grey pictures.

Frames a good part of a second apart cannot tell a pan from a shake, or a hand from a spoon; they do tell whether the
picture stands still, whether its edges stay while the middle changes, and when most of it happens.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_SIDE = 64  # frames are compared at 64 x 64 grey cells
_CHANGED = 14.0  # grey levels out of 255: above compression noise and film grain at this size
_RING = 6  # cells on each side that count as the picture's edge
_MAX_SHIFT = 16  # cells, a quarter of the picture
_MIN_SHIFT = 1.5  # cells, 2.3 % of the picture
_EXPLAINED = 0.7  # a shift counts when it leaves less than this part of the change unexplained
_EDGE_STILL = 0.1  # up to this share of the edge changed: the camera stands
_EDGE_CHANGED = 0.35  # this share of the edge changed: not only things in the picture move
_COURSE = 1.6  # the ratio of amounts that counts as a change over the clip
_NEW_VIEW = 0.6  # this share of the picture changed, and no shift explains it: another picture

Place = Literal[
    "top left", "top", "top right", "left", "centre", "right", "bottom left", "bottom", "bottom right", "all over"
]
_EDGE = np.pad(np.zeros((_SIDE - 2 * _RING,) * 2, bool), _RING, constant_values=True)
_PLACES: tuple[tuple[Place, ...], ...] = (
    ("top left", "top", "top right"),
    ("left", "centre", "right"),
    ("bottom left", "bottom", "bottom right"),
)


@dataclass(frozen=True)
class Motion:
    """What moves from frame to frame.

    amounts: for each pair of neighbouring frames the share of the picture that changed, 0 to 1, after the shift of the
    whole picture (if any) was taken out. num_new_views: pairs after which another picture is seen (a cut, or a camera
    that swung far); what follows is of the other pairs. camera_moves: in at least half of them the whole picture
    shifted or its edges changed. place: the ninth of the picture with most of the change, "all over" where none stands
    out.
    """

    amounts: tuple[float, ...]
    num_new_views: int
    camera_moves: bool
    place: Place

    @property
    def amount(self) -> float:
        """Mean share of the picture that changes, 0 to 1; 0 for a single frame."""
        return sum(self.amounts) / len(self.amounts) if self.amounts else 0.0

    @property
    def course(self) -> Literal["sudden", "growing", "fading", "rising and falling", "even"]:
        """How the amount develops over the clip, by thirds of the pairs; "even" below three pairs.

        "sudden": one pair holds more than half of all the change.
        """
        if len(self.amounts) < 3:
            return "even"
        if max(self.amounts) > sum(self.amounts) / 2:
            return "sudden"
        first, middle, last = (float(np.mean(part)) for part in np.array_split(np.array(self.amounts), 3))
        if last > _COURSE * first and last >= middle:
            return "growing"
        if first > _COURSE * last and first >= middle:
            return "fading"
        return "rising and falling" if middle > _COURSE * max(first, last) else "even"


def measure_motion(frames_THWC: NDArray[np.uint8]) -> Motion:
    """What moves in frames in time order, uint8 [T, H, W, 3] with T >= 1."""
    amounts, within_view = [], []
    changed_YX = np.zeros((_SIDE, _SIDE))
    for before_YX, after_YX in itertools.pairwise(_small_grey(frame) for frame in frames_THWC):
        difference_YX = np.abs(after_YX - before_YX)
        edge_changed = float(np.mean(difference_YX[_EDGE] > _CHANGED))
        # Where the edges stand still something moved in front of a plain ground: no shift of the whole picture.
        residual_YX = _without_shift(before_YX, after_YX) if edge_changed > _EDGE_STILL else None
        left_YX = (difference_YX if residual_YX is None else residual_YX) > _CHANGED
        amounts.append(round(float(np.mean(left_YX)), 4))
        if amounts[-1] <= _NEW_VIEW:
            within_view.append(residual_YX is not None or edge_changed > _EDGE_CHANGED)
            changed_YX += left_YX
    return Motion(
        amounts=tuple(amounts),
        num_new_views=len(amounts) - len(within_view),
        camera_moves=bool(within_view) and 2 * sum(within_view) >= len(within_view),
        place=_place(changed_YX),
    )


def _small_grey(frame_HWC: NDArray[np.uint8]) -> NDArray[np.float64]:
    grey = Image.fromarray(frame_HWC).convert("L").resize((_SIDE, _SIDE), Image.Resampling.BOX)
    return np.asarray(grey, np.float64)


def _without_shift(before_YX: NDArray[np.float64], after_YX: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """What a shift of the whole picture leaves of the change, None where no shift explains it.

    Cells that came into the picture count as unchanged. The shift is the peak of the phase correlation.
    Source: Kuglin and Hines, "The phase correlation image alignment method", 1975.
    """
    spectrum = _spectrum(after_YX) * np.conj(_spectrum(before_YX))
    size = np.abs(spectrum)
    correlation_YX = np.real(np.fft.ifft2(spectrum / np.maximum(size, 1e-9)))
    peak = np.unravel_index(int(correlation_YX.argmax()), correlation_YX.shape)
    y, x = (int(at) - _SIDE if at > _SIDE // 2 else int(at) for at in peak)
    if max(abs(y), abs(x)) > _MAX_SHIFT or np.hypot(y, x) < _MIN_SHIFT:
        return None
    here = (slice(max(0, y), _SIDE + min(0, y)), slice(max(0, x), _SIDE + min(0, x)))
    there = (slice(max(0, -y), _SIDE + min(0, -y)), slice(max(0, -x), _SIDE + min(0, -x)))
    residual_YX = np.zeros_like(after_YX)
    residual_YX[here] = np.abs(after_YX[here] - before_YX[there])
    unshifted = np.abs(after_YX - before_YX)[here].mean()
    return residual_YX if residual_YX[here].mean() < _EXPLAINED * unshifted else None


def _spectrum(grey_YX: NDArray[np.float64]) -> NDArray[np.complex128]:
    """Fourier transform of a picture that fades out to its mean at the edges, which else would look like content."""
    return np.fft.fft2((grey_YX - grey_YX.mean()) * np.outer(np.hanning(_SIDE), np.hanning(_SIDE)))


def _place(changed_YX: NDArray[np.float64]) -> Place:
    """The ninth that holds at least twice its even share of the change."""
    ninths = np.array([[part.sum() for part in np.array_split(row, 3, 1)] for row in np.array_split(changed_YX, 3, 0)])
    y, x = (int(at) for at in np.unravel_index(int(ninths.argmax()), ninths.shape))
    return _PLACES[y][x] if ninths[y, x] > 2 / 9 * ninths.sum() else "all over"
