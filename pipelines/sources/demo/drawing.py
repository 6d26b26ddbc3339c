"""Shaded things and patterned surfaces as pictures, from numpy and Pillow alone: no fonts, no files.

Everything is drawn at twice the size of the video on a canvas a little larger than the picture, so that the reduction
smooths the edges and the camera can drift. Light falls from the upper left.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from pipelines.sources.demo.script import RGB, Backdrop

Floats: TypeAlias = NDArray[np.floating[Any]]
Point: TypeAlias = tuple[float, float]

CANVAS = (1320, 744)
_LIGHT = np.array([-0.45, -0.55, 0.70]) / math.sqrt(0.45**2 + 0.55**2 + 0.70**2)
_AMBIENT = 0.42


def mix(one: RGB, other: RGB, share: float) -> RGB:
    """`one` at share 0, `other` at share 1."""
    share = min(max(share, 0.0), 1.0)
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(one, other, strict=True))
    return red, green, blue


def lighter(color: RGB, share: float = 0.35) -> RGB:
    return mix(color, (255, 255, 255), share)


def darker(color: RGB, share: float = 0.35) -> RGB:
    return mix(color, (0, 0, 0), share)


# --- surfaces ---------------------------------------------------------------------------------------------------------


def noise(rng: np.random.Generator, width: int, height: int, columns: int, rows: int) -> Floats:
    """Smooth noise in about [0, 1], [height, width], with so many cells across and down."""
    cells = Image.fromarray(rng.random((rows, columns), dtype=np.float32))
    smooth: Floats = np.asarray(cells.resize((width, height), Image.Resampling.BICUBIC))
    return smooth


def _wood(rng: np.random.Generator, width: int, height: int) -> Floats:
    grain = 0.5 * noise(rng, width, height, 4, 60) + 0.3 * noise(rng, width, height, 10, 200)
    rings = 0.5 + 0.5 * np.sin(18 * noise(rng, width, height, 3, 9))
    plank = height // 4
    row = np.arange(height)[:, None] // plank
    tone = rng.random(8)[row] * 0.16
    seam: Floats = np.where(np.arange(height)[:, None] % plank < 3, 0.62, 1.0)
    return (0.74 + 0.25 * grain + 0.10 * rings + tone) * seam


def _marble(rng: np.random.Generator, width: int, height: int) -> Floats:
    y, x = np.mgrid[0:height, 0:width] / height
    warp = (
        noise(rng, width, height, 6, 4)
        + 0.4 * noise(rng, width, height, 16, 10)
        + 0.1 * noise(rng, width, height, 60, 40)
    )
    veins: Floats = np.minimum(1.0, 5 * np.abs(np.sin(3 * x + 5 * y + 4 * warp)))
    depth: Floats = 0.22 * np.clip(noise(rng, width, height, 8, 6), 0, 1)
    return 1 - depth * (1 - veins) - 0.10 * noise(rng, width, height, 7, 5)


def _stone(rng: np.random.Generator, width: int, height: int) -> Floats:
    fine = rng.random((height, width))
    return 0.80 + 0.22 * noise(rng, width, height, 24, 14) + 0.20 * (fine - 0.5) * (fine > 0.5)


def _cloth(rng: np.random.Generator, width: int, height: int) -> Floats:
    y, x = np.mgrid[0:height, 0:width]
    checks = (x // 34 % 2).astype(float) + (y // 34 % 2)
    weave = 0.03 * ((x + y) % 3)
    folds = 0.14 * noise(rng, width, height, 5, 3)
    level: Floats = 0.78 + 0.22 * checks + weave + folds
    return level


def _plaster(rng: np.random.Generator, width: int, height: int) -> Floats:
    return 0.90 + 0.12 * noise(rng, width, height, 5, 4) + 0.05 * noise(rng, width, height, 60, 40)


def _planks(rng: np.random.Generator, width: int, height: int) -> Floats:
    board = 66
    column = np.arange(width)[None, :]
    seam = np.where(column % board < 4, 0.66, np.where(column % board < 7, 1.1, 1.0))
    tone = rng.random(width // board + 1)[column // board] * 0.10
    return (0.88 + tone + 0.10 * noise(rng, width, height, 90, 3)) * seam


def _laid(rng: np.random.Generator, width: int, height: int, size: tuple[int, int], shift: int) -> Floats:
    """Tiles or bricks of `size`, every second row shifted; light at the upper edge, dark at the lower one."""
    wide, high = size
    y, x = np.mgrid[0:height, 0:width]
    x = x + shift * (y // high % 2)
    tone = rng.random((height // high + 1, width // wide + 2))[y // high, x // wide] * 0.16
    column, row = x % wide, y % high
    level = 0.86 + tone
    level = np.where((row < 7) | (column < 6), level + 0.10, level)
    level = np.where((row > high - 5) | (column > wide - 5), level - 0.12, level)
    return np.where((row < 3) | (column < 3), 0.72, level)


PATTERNS: dict[str, Callable[[np.random.Generator, int, int], Floats]] = {
    "wood": _wood,
    "marble": _marble,
    "stone": _stone,
    "cloth": _cloth,
    "plaster": _plaster,
    "planks": _planks,
    "tiles": lambda rng, width, height: _laid(rng, width, height, (72, 72), 0),
    "bricks": lambda rng, width, height: _laid(rng, width, height, (104, 44), 52),
}


def surface(backdrop: Backdrop, rng: np.random.Generator, size: tuple[int, int] = CANVAS) -> Image.Image:
    """The backdrop's pattern in its colour, evenly lit."""
    level = PATTERNS[backdrop.pattern](rng, *size)
    return _picture(level.astype(np.float32)[..., None] * np.array(backdrop.color, dtype=np.float32))


def lit(picture: Image.Image, strength: float = 0.38) -> Image.Image:
    """The picture with a pool of light at the upper left and darker corners."""
    return _picture(np.asarray(picture, dtype=np.float32) * _light(*picture.size, strength))


@cache
def _light(width: int, height: int, strength: float) -> Floats:
    y, x = np.mgrid[0:height, 0:width]
    far = np.hypot((x / width - 0.40) * 1.15, y / height - 0.38)
    light: Floats = (1.10 - strength * far**1.5 * 1.6)[..., None].astype(np.float32)
    return light


def _picture(values_HWC: Floats) -> Image.Image:
    return Image.fromarray(np.clip(values_HWC, 0, 255).astype(np.uint8))


# --- things -----------------------------------------------------------------------------------------------------------


class Sprite:
    """A picture with transparency and its soft shadow, drawn by its centre; turned copies are kept."""

    STEP = 1  # degrees between two kept turns

    def __init__(self, image: Image.Image, *, shadow: float = 0.45, blur: int = 12) -> None:
        self.image = image
        self._shadow, self._blur = shadow, blur
        self._turned: dict[tuple[int, int], tuple[Image.Image, Image.Image | None]] = {}

    def _at(self, angle: float, scale: float) -> tuple[Image.Image, Image.Image | None]:
        key = round(angle / self.STEP) % (360 // self.STEP), round(scale * 25)
        if key not in self._turned:
            image = self.image
            if key[1] != 25:
                size = max(2, round(image.width * key[1] / 25)), max(2, round(image.height * key[1] / 25))
                image = image.resize(size, Image.Resampling.BILINEAR)
            if key[0]:
                image = image.rotate(key[0] * self.STEP, Image.Resampling.BILINEAR, expand=True)
            self._turned[key] = image, shadow_of(image, self._shadow, self._blur) if self._shadow else None
        return self._turned[key]

    def draw(
        self, frame: Image.Image, x: float, y: float, *, angle: float = 0, scale: float = 1, lift: float = 8
    ) -> None:
        """Centred at (x, y), turned counter-clockwise by `angle` degrees, `lift` pixels above its shadow."""
        image, shadow = self._at(angle, scale)
        if shadow is not None:
            place(frame, shadow, x + lift * 0.8, y + lift)
        place(frame, image, x, y)


def place(frame: Image.Image, image: Image.Image, x: float, y: float) -> None:
    """Pastes a picture with transparency, centred; what is outside the frame is cut."""
    frame.paste(image, (round(x - image.width / 2), round(y - image.height / 2)), image)


def shadow_of(image: Image.Image, opacity: float, blur: int) -> Image.Image:
    """A black, blurred copy of the picture's outline, larger by the blur on each side."""
    alpha = image.getchannel("A").point(lambda value: value * opacity)
    wide = Image.new("L", (image.width + 4 * blur, image.height + 4 * blur))
    wide.paste(alpha, (2 * blur, 2 * blur))
    black = Image.new("RGBA", wide.size)
    black.putalpha(wide.filter(ImageFilter.GaussianBlur(blur)))
    return black


def _curve(at: Floats, points: Sequence[Point]) -> Floats:
    """The broken line through `points` (rising x)."""
    values: Floats = np.interp(at, [x for x, _ in points], [y for _, y in points])
    return values


def turned(width: int, height: int, color: RGB, profile: Sequence[Point], *, gloss: float = 0.3) -> Image.Image:
    """A round thing seen from above: heights by radius, both 0 to 1, turned about the centre."""
    y, x = np.mgrid[0:height, 0:width]
    x, y = (x - width / 2 + 0.5) / (width / 2), (y - height / 2 + 0.5) / (height / 2)
    radius = np.hypot(x, y)
    fine = np.linspace(0, 1.02, 400)
    curve = _curve(fine, profile)
    curve = np.convolve(np.pad(curve, 6, mode="edge"), np.ones(13) / 13, mode="valid")
    slope: Floats = np.interp(radius, fine, np.gradient(curve, fine))
    safe = np.maximum(radius, 1e-6)
    alpha = np.clip((1 - radius) * min(width, height) / 2, 0, 1)
    return _shaded(color, -slope * x / safe, -slope * y / safe, alpha, gloss)


DOME: tuple[Point, ...] = tuple((r / 20, math.sqrt(max(0.0, 1 - (r / 20) ** 2)) * 0.9) for r in range(21))
COIN: tuple[Point, ...] = ((0, 0.3), (0.82, 0.3), (0.95, 0.18), (1, 0.0))
DISH: tuple[Point, ...] = ((0, 0.0), (0.60, 0.0), (0.70, 0.10), (0.94, 0.16), (1, 0.10))
BOWL: tuple[Point, ...] = ((0, 0.0), (0.35, 0.04), (0.7, 0.35), (0.90, 0.78), (0.95, 0.82), (1, 0.70))
PAN: tuple[Point, ...] = ((0, 0.0), (0.80, 0.0), (0.90, 0.28), (0.95, 0.30), (1, 0.16))


def ball(width: int, height: int, color: RGB, gloss: float = 0.5) -> Image.Image:
    return turned(width, height, color, DOME, gloss=gloss)


def embossed(
    mask: Image.Image, color: RGB, *, round_px: int = 8, gloss: float = 0.15, grain: Floats | None = None
) -> Image.Image:
    """A flat thing with soft edges in the shape of an "L" mask; `grain` multiplies the colour."""
    height = np.asarray(mask.filter(ImageFilter.GaussianBlur(round_px)), dtype=np.float32) / 255 * round_px * 1.6
    down, across = cast("tuple[Floats, Floats]", np.gradient(height))
    alpha = np.asarray(mask, dtype=np.float32) / 255
    return _shaded(color, -across, -down, alpha, gloss, grain)


def vessel(width: int, height: int, color: RGB, outline: Sequence[Point], *, gloss: float = 0.6) -> Image.Image:
    """A turned thing seen from the side: half-widths (0 to 1) by height from the top (0 to 1)."""
    y, x = np.mgrid[0:height, 0:width]
    half = _curve((y + 0.5) / height, outline) * width / 2
    off = (x - width / 2 + 0.5) / np.maximum(half, 1)
    nx = np.clip(off, -1, 1)
    front = np.sqrt(np.maximum(0.0, 1 - nx**2)) + 0.25
    alpha = np.clip((1 - np.abs(off)) * half, 0, 1)
    return _shaded(color, nx / front, np.full_like(nx, -0.15), alpha, gloss)


def _shaded(
    color: RGB, nx: Floats, ny: Floats, alpha: Floats, gloss: float, grain: Floats | None = None
) -> Image.Image:
    """RGBA of a surface whose normal is (nx, ny, 1): ambient and diffuse light, and a highlight."""
    facing = (nx * _LIGHT[0] + ny * _LIGHT[1] + _LIGHT[2]) / np.sqrt(nx**2 + ny**2 + 1)
    light = _AMBIENT + (1 - _AMBIENT) * np.maximum(facing, 0) / _LIGHT[2]
    shine = gloss * np.maximum(facing, 0) ** 24 * 150
    shine = np.where(facing > _LIGHT[2] + 0.02, shine, 0)
    level = light if grain is None else light * grain
    rgb = level[..., None] * np.array(color, dtype=float) + shine[..., None]
    out = np.concatenate([np.clip(rgb, 0, 255), alpha[..., None] * 255], axis=2)
    return Image.fromarray(out.astype(np.uint8), "RGBA")


def mask_of(width: int, height: int, draw: Callable[[ImageDraw.ImageDraw, float], None]) -> Image.Image:
    """An "L" mask with smooth edges; `draw` gets the scale that its coordinates are to be multiplied with."""
    large = Image.new("L", (width * 2, height * 2))
    draw(ImageDraw.Draw(large), 2.0)
    return large.reduce(2)


def polygon(width: int, height: int, points: Sequence[Point], color: RGB, **shading: Any) -> Image.Image:
    """An embossed polygon."""
    mask = mask_of(width, height, lambda d, s: d.polygon([(x * s, y * s) for x, y in points], fill=255))
    return embossed(mask, color, **shading)


def slab(width: int, height: int, radius: int, color: RGB, **shading: Any) -> Image.Image:
    """An embossed rectangle with round corners."""
    box = (2, 2, width - 2, height - 2)
    mask = mask_of(width, height, lambda d, s: d.rounded_rectangle([v * s for v in box], radius * s, fill=255))
    return embossed(mask, color, **shading)


def combined(size: tuple[int, int], parts: Sequence[tuple[Image.Image, float, float]]) -> Image.Image:
    """One picture with transparency of several, each by the centre at which it lies."""
    whole = Image.new("RGBA", size)
    for image, x, y in parts:
        left, top = round(x - image.width / 2), round(y - image.height / 2)
        whole.alpha_composite(image, (max(0, left), max(0, top)), (max(0, -left), max(0, -top)))
    return whole


def faded(image: Image.Image, opacity: float) -> Image.Image:
    """The picture, more transparent."""
    image = image.copy()
    image.putalpha(image.getchannel("A").point(lambda value: value * opacity))
    return image


def within(image: Image.Image, mask: Image.Image) -> Image.Image:
    """The picture where the "L" mask lets it through."""
    image = image.copy()
    image.putalpha(ImageChops.multiply(image.getchannel("A"), mask))
    return image


def puff(diameter: int, color: RGB, opacity: float) -> Image.Image:
    """A soft round cloud."""
    y, x = np.mgrid[0:diameter, 0:diameter] / (diameter / 2) - 1
    alpha = np.clip(1 - np.hypot(x, y), 0, 1) ** 1.6 * opacity * 255
    rgb = np.broadcast_to(np.array(color, dtype=float), (diameter, diameter, 3))
    return Image.fromarray(np.concatenate([rgb, alpha[..., None]], axis=2).astype(np.uint8), "RGBA")


def blurred(image: Image.Image, radius: float) -> Image.Image:
    """Out of focus."""
    return image.filter(ImageFilter.GaussianBlur(radius))
