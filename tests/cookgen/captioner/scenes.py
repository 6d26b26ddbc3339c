"""Rendered scenes whose captions are known: two things side by side, each of a kind and a colour.

    A red tomato left of a green bowl.

Kind and colour are independent, so that a kind has to be seen by its shape.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

SIDE = 64
KINDS = ("tomato", "bowl", "carrot", "pan", "knife", "board")
COLOURS = {"red": (214, 40, 40), "green": (60, 160, 60), "blue": (50, 80, 200), "yellow": (235, 205, 60)}


@dataclass(frozen=True)
class Thing:
    """What lies on one side of the table."""

    kind: str
    colour: str

    def __str__(self) -> str:
        return f"{self.colour} {self.kind}"


@dataclass(frozen=True)
class Scene:
    """Two things; `seed` says where exactly they lie and how large they are."""

    left: Thing
    right: Thing
    seed: int = 0

    @property
    def caption(self) -> str:
        return f"A {self.left} left of a {self.right}."

    def picture(self) -> np.ndarray:
        """uint8 [SIDE, SIDE, 3]."""
        dice = np.random.default_rng(self.seed)
        shade = int(dice.integers(15, 60))
        image = Image.new("RGB", (4 * SIDE, 4 * SIDE), (shade, shade, shade))
        draw = ImageDraw.Draw(image)
        for thing, centre in ((self.left, SIDE), (self.right, 3 * SIDE)):
            x, y = centre + dice.integers(-8, 9), 2 * SIDE + dice.integers(-40, 41)
            _draw(draw, thing, float(x), float(y), float(dice.uniform(44, 54)))
        return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX))


def _draw(draw: ImageDraw.ImageDraw, thing: Thing, x: float, y: float, r: float) -> None:
    colour, white, black = COLOURS[thing.colour], (240, 240, 240), (0, 0, 0)
    if thing.kind == "tomato":  # a stalk on top
        draw.ellipse((x - r, y - r, x + r, y + r), colour)
        draw.ellipse((x - 0.4 * r, y - r, x + 0.4 * r, y - 0.2 * r), white)
    elif thing.kind == "bowl":  # half a disc with a rim
        draw.pieslice((x - r, y - 1.5 * r, x + r, y + 0.9 * r), 0, 180, colour)
        draw.rectangle((x - r, y - 0.5 * r, x + r, y - 0.2 * r), white)
    elif thing.kind == "carrot":  # furrows
        draw.polygon((x - 0.7 * r, y - r, x + 0.7 * r, y - r, x, y + r), colour)
        for up in (0.6, 0.2, -0.2):
            draw.line((x - r, y - up * r, x + r, y - up * r), black, 9)
    elif thing.kind == "pan":  # a ring
        draw.ellipse((x - r, y - r, x + r, y + r), outline=colour, width=17)
    elif thing.kind == "knife":  # lies flat, with a white handle
        draw.rectangle((x - r, y - 0.3 * r, x + r, y + 0.3 * r), colour)
        draw.rectangle((x + 0.3 * r, y - 0.3 * r, x + r, y + 0.3 * r), white)
    else:  # a board's grain
        draw.rectangle((x - r, y - r, x + r, y + r), colour)
        for side in (-0.5, 0.0, 0.5):
            draw.line((x + side * r, y - r, x + side * r, y + r), white, 10)


def scenes(num: int, *, seed: int, held_out: bool = False) -> list[Scene]:
    """So many scenes; a combination of things that is held out is in no other list."""
    things = [Thing(kind, colour) for kind, colour in product(KINDS, COLOURS)]
    pairs = [(left, right) for left, right in product(things, things) if left.kind != right.kind]
    order = np.random.default_rng(0).permutation(len(pairs))
    chosen = order[:60] if held_out else order[60:]
    dice = np.random.default_rng(seed)
    picked = dice.permutation(chosen)[:num] if held_out else dice.choice(chosen, num)
    return [Scene(*pairs[pair], seed=int(dice.integers(2**31))) for pair in picked]


def write_set(path: Path, items: Sequence[Scene]) -> Path:
    """A caption set in JSON Lines, with its pictures beside it."""
    folder = path.with_suffix("")
    folder.mkdir(parents=True)
    lines = []
    for number, scene in enumerate(items):
        Image.fromarray(scene.picture()).save(folder / f"{number}.png")
        lines.append(json.dumps({"image": f"{folder.name}/{number}.png", "caption": scene.caption}) + "\n")
    path.write_text("".join(lines))
    return path


def names_right(text: str, scene: Scene) -> bool:
    """Whether the text names exactly the kinds that the scene shows."""
    return {kind for kind in KINDS if kind in text} == {scene.left.kind, scene.right.kind}
