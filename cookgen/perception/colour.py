"""The colours of a picture as people name them: brightness, warmth, and the hues that cover most of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_SIDE = 64
# Upper ends of the named hues, in degrees of the HSV circle.
_HUES = (
    (14, "red"),
    (40, "orange"),
    (68, "yellow"),
    (165, "green"),
    (195, "turquoise"),
    (255, "blue"),
    (290, "purple"),
    (345, "pink"),
    (360, "red"),
)
NAMES = ("black", "grey", "white", "brown", "red", "orange", "yellow", "green", "turquoise", "blue", "purple", "pink")


@dataclass(frozen=True)
class Colours:
    """brightness: mean luma. warmth: of red over blue. dominant: the names that cover most, at most two."""

    brightness: Literal["dark", "dim", "medium-bright", "bright"]
    warmth: Literal["warm", "neutral", "cool"]
    dominant: tuple[str, ...]


def name_colours(frames_THWC: NDArray[np.uint8]) -> Colours:
    """The colours of all frames together, uint8 [T, H, W, 3] with T >= 1. A dominant colour covers at least 15 %."""
    small_THWC = np.stack(
        [np.asarray(Image.fromarray(frame).resize((_SIDE, _SIDE), Image.Resampling.BOX)) for frame in frames_THWC]
    ).astype(np.float64)
    red, green, blue = (small_THWC[..., channel] for channel in range(3))
    luma = float(np.mean(0.299 * red + 0.587 * green + 0.114 * blue))
    tint = float(np.mean(red) - np.mean(blue))
    shares = np.bincount(_named(small_THWC).ravel(), minlength=len(NAMES)) / red.size
    largest = sorted(range(len(NAMES)), key=lambda name: (-shares[name], name))[:2]
    return Colours(
        brightness="dark" if luma < 50 else "dim" if luma < 90 else "medium-bright" if luma < 150 else "bright",
        warmth="warm" if tint > 12 else "cool" if tint < -12 else "neutral",
        dominant=tuple(NAMES[name] for name in largest if shares[name] >= 0.15),
    )


def _named(pixels: NDArray[np.float64]) -> NDArray[np.int64]:
    """Index into NAMES for each pixel; [..., 3] in 0-255 -> [...]."""
    largest, smallest = pixels.max(-1), pixels.min(-1)
    spread = largest - smallest
    saturation = spread / np.maximum(largest, 1)
    red, green, blue = (pixels[..., channel] for channel in range(3))
    safe = np.maximum(spread, 1e-9)
    sixths = np.select(
        [largest == red, largest == green],
        [(green - blue) / safe % 6, (blue - red) / safe + 2],
        default=(red - green) / safe + 4,
    )
    hue = 60 * sixths
    names = np.array([NAMES.index(name) for _, name in _HUES])
    named = names[np.searchsorted([end for end, _ in _HUES[:-1]], hue, side="right")]
    named = np.where((hue > 8) & (hue < 40) & (largest < 165), NAMES.index("brown"), named)  # dark orange
    named = np.where(saturation < 0.18, np.where(largest < 200, NAMES.index("grey"), NAMES.index("white")), named)
    return np.where(largest < 45, NAMES.index("black"), named).astype(np.int64)
