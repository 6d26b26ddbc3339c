"""What each scene looks like and how it moves: one function a scene.

A scene bakes what stands still into its ground and returns `animate(frame, seconds, progress)`, which draws what
moves; progress goes from 0 to 1 over the shot.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from PIL import Image, ImageDraw

from pipelines.sources.demo import drawing as d
from pipelines.sources.demo.script import COLORS, FOODS, RGB, Backdrop, Food, Shot

Animate: TypeAlias = Callable[[Image.Image, float, float], None]
Rng: TypeAlias = np.random.Generator

CX, CY = d.CANVAS[0] // 2, d.CANVAS[1] // 2
COUNTER_Y = 500  # where the wall ends and the counter begins, in views from the side
_STEEL = (176, 180, 186)
_WOOD = (196, 148, 96)


@dataclass(frozen=True)
class Cook:
    """Who cooks, for the whole video: skin, sleeves, and the counter in front of the walls."""

    skin: RGB
    sleeve: RGB
    counter: Backdrop


def cook_of(rng: Rng) -> Cook:
    skins: list[RGB] = [(240, 200, 172), (214, 164, 128), (168, 116, 82), (112, 74, 52)]
    sleeves: list[RGB] = [(60, 84, 130), (150, 50, 54), (240, 238, 230), (70, 110, 84), (52, 52, 60), (214, 160, 70)]
    counters = [
        Backdrop("oak", "wood", (188, 140, 92)),
        Backdrop("walnut", "wood", (104, 68, 46)),
        Backdrop("marble", "marble", (222, 220, 214)),
        Backdrop("granite", "stone", (96, 98, 104)),
    ]
    skin, sleeve, counter = (group[int(rng.integers(len(group)))] for group in (skins, sleeves, counters))
    assert isinstance(counter, Backdrop) and not isinstance(skin, Backdrop) and not isinstance(sleeve, Backdrop)
    return Cook(skin, sleeve, counter)


# --- grounds ----------------------------------------------------------------------------------------------------------


def from_above(shot: Shot, rng: Rng) -> Image.Image:
    """The worktop, with a folded towel at its edge now and then."""
    ground = d.surface(shot.backdrop, rng)
    if rng.random() < 0.6:
        color = COLORS[sorted(COLORS)[int(rng.integers(len(COLORS)))]]
        towel = d.slab(240, 420, 14, color, grain=0.9 + 0.2 * d.noise(rng, 240, 420, 24, 3))
        d.Sprite(towel).draw(
            ground, float(rng.choice([20, 1300])), float(rng.integers(120, 620)), angle=float(rng.integers(-20, 20))
        )
    return d.lit(ground)


def from_side(shot: Shot, cook: Cook, rng: Rng) -> Image.Image:
    """A wall out of focus, with a shelf or a window on it, above the counter."""
    wall = d.surface(shot.backdrop, rng)
    if rng.random() < 0.5:
        _window(wall, float(rng.choice([220, 1090])), rng)
    else:
        _shelf(wall, float(rng.choice([240, 1060])), rng)
    ground = d.lit(d.blurred(wall, 4))
    top = d.lit(d.surface(cook.counter, rng), 0.3).crop((0, 0, d.CANVAS[0], d.CANVAS[1] - COUNTER_Y))
    ground.paste(top, (0, COUNTER_Y))
    fade = Image.new("RGBA", (d.CANVAS[0], 46), (0, 0, 0, 70))
    fade.putalpha(Image.linear_gradient("L").rotate(180).resize(fade.size).point(lambda value: value * 0.4))
    ground.paste(fade, (0, COUNTER_Y), fade)
    return ground


def _window(wall: Image.Image, x: float, rng: Rng) -> None:
    sky = d.mix((170, 208, 240), (250, 216, 170), float(rng.random()))
    frame = d.slab(300, 360, 6, (236, 232, 222))
    d.Sprite(frame, blur=8).draw(wall, x, 220)
    pen = ImageDraw.Draw(wall)
    for column in (0, 1):
        for row in (0, 1):
            left, top = x - 128 + column * 134, 62 + row * 164
            pane = Image.new("RGB", (122, 152), d.lighter(sky, 0.25 * (1 - row)))
            if row:
                ImageDraw.Draw(pane).ellipse((-10, 80, 132, 240), fill=(110, 150, 90))
            wall.paste(pane, (round(left), top))
    pen.rectangle((x - 150, 384, x + 150, 404), fill=(220, 214, 202))


def _shelf(wall: Image.Image, x: float, rng: Rng) -> None:
    for y in (170, 350):
        d.Sprite(d.slab(380, 22, 4, (150, 108, 70))).draw(wall, x, y)
        for k in range(5):
            color = COLORS[sorted(COLORS)[int(rng.integers(len(COLORS)))]]
            height = int(rng.integers(56, 116))
            jar = d.vessel(54, height, color, [(0, 0.55), (0.12, 0.6), (0.2, 0.95), (1, 0.9)])
            d.Sprite(jar, blur=6).draw(wall, x - 144 + k * 72, y - 11 - height / 2)


# --- things that several scenes share -------------------------------------------------------------------------------


ARM = 900  # length of a forearm: it always leaves the picture
FIST = ARM / 2 - 84  # from the middle of the picture of an arm to the middle of its fist


def _hand(cook: Cook) -> Image.Image:
    """A fist with its forearm, reaching up from below: 170 x ARM, the fist's middle at (85, 84)."""
    arm = d.polygon(170, ARM, [(48, 110), (122, 110), (140, 330), (30, 330)], cook.skin, round_px=16)
    sleeve = d.polygon(170, ARM, [(32, 230), (138, 230), (168, ARM), (2, ARM)], cook.sleeve, round_px=14)
    palm = d.ball(124, 116, cook.skin, 0.1)
    fingers = [(d.ball(46, 66, d.lighter(cook.skin, 0.06), 0.1), 40 + 30 * k, 58 + 5 * abs(k - 1.5)) for k in range(4)]
    return d.combined((170, ARM), [(arm, 85, ARM / 2), (sleeve, 85, ARM / 2), (palm, 85, 92), *fingers])


def _held(cook: Cook, parts: list[tuple[Image.Image, float]], fist: float) -> d.Sprite:
    """A tool in a hand from below: its parts by their distance below the tip, the fist's middle at `fist`.

    The sprite's centre is REACH below the tip; _reach draws it by its tip.
    """
    tool = [(image, 85.0, below) for image, below in parts]
    return d.Sprite(d.combined((170, 2 * REACH), [*tool, (_hand(cook), 85, fist + FIST)]), shadow=0.4, blur=10)


REACH = 600


def _reach(frame: Image.Image, tool: d.Sprite, x: float, y: float, *, angle: float = 0, lift: float = 12) -> None:
    """Draws a held tool with its tip at (x, y)."""
    turn = math.radians(round(angle))  # as the sprite rounds it, so that the tip does not tremble
    tool.draw(frame, x + REACH * math.sin(turn), y + REACH * math.cos(turn), angle=angle, lift=lift)


def _leaf(color: RGB, size: int = 56) -> Image.Image:
    points = [(size * (0.5 + 0.30 * math.sin(math.pi * k / 12)), size * (0.04 + 0.92 * k / 12)) for k in range(13)]
    points += [(size - x, y) for x, y in reversed(points)]
    leaf = d.polygon(size, size, points, color, round_px=4)
    ImageDraw.Draw(leaf).line(
        (size / 2, size * 0.08, size / 2, size * 0.95), fill=(*d.lighter(color, 0.3), 255), width=2
    )
    return leaf


def _piece(food: Food, size: int, rng: Rng) -> d.Sprite:
    """A piece of the food as it is cooked: a coin with its skin as a rim, a cube, a leaf, a strand or a few grains."""
    size = int(size * rng.uniform(0.85, 1.15))
    flesh = d.mix(food.flesh, food.skin, float(rng.uniform(0, 0.25)))
    if food.shape == "leaf":
        image = _leaf(flesh, size)
    elif food.shape == "block":
        image = d.slab(size, int(size * rng.uniform(0.75, 1)), 5, flesh, round_px=5)
    elif food.shape == "strand":
        bend, width = float(rng.uniform(0.3, 0.9)), max(4, size // 7)
        mask = d.mask_of(
            size,
            size,
            lambda m, s: m.arc((4 * s, 4 * s, size * s * 1.6, size * s * bend * 1.6), 90, 320, 255, round(width * s)),
        )
        image = d.embossed(mask, flesh, round_px=4)
    elif food.shape == "grain":
        grain = max(9, size // 5)
        spots = [(float(rng.uniform(0.2, 0.8)) * size, float(rng.uniform(0.2, 0.8)) * size) for _ in range(18)]
        image = d.combined((size, size), [(d.ball(grain, grain - 2, food.skin, 0.2), x, y) for x, y in spots])
    elif food.shape == "yolk":
        image = d.ball(size, int(size * 0.9), food.flesh, 0.6)
    else:
        rim = d.turned(size, int(size * 0.95), food.skin, d.COIN)
        inner = d.turned(int(size * 0.82), int(size * 0.78), flesh, d.COIN)
        image = d.combined((size, size), [(rim, size / 2, size / 2), (inner, size / 2, size / 2)])
    angle = float(rng.integers(0, 360))
    return d.Sprite(image.rotate(angle, Image.Resampling.BILINEAR, expand=True), blur=5, shadow=0.5)


def _flat(food: Food, rng: Rng, width: int, height: int) -> Image.Image:
    """A whole round flat thing, browned here and there: a pizza, a pancake, a flat bread."""
    cake = d.turned(width, height, food.skin, ((0, 0.3), (0.80, 0.3), (0.90, 0.38), (1, 0.0)), gloss=0.1)
    parts: list[tuple[Image.Image, float, float]] = [(cake, width / 2, height / 2)]
    inner = d.turned(round(width * 0.82), round(height * 0.82), food.flesh, d.COIN, gloss=0.1)
    parts.append((inner, width / 2, height / 2))
    for _ in range(22):
        radius, angle = 0.36 * math.sqrt(float(rng.random())), float(rng.uniform(0, 2 * math.pi))
        spot = d.turned(
            max(8, width // 11), max(6, height // 11), d.mix(food.flesh, food.skin, float(rng.random())), d.COIN
        )
        parts.append((spot, width * (0.5 + radius * math.cos(angle)), height * (0.5 + radius * math.sin(angle))))
    return d.combined((width, height), parts)


def _whole(food: Food, rng: Rng) -> Image.Image:
    """The uncut food, lying along a strip of 420 x 230."""
    size = (420, 230)
    parts: list[tuple[Image.Image, float, float]] = []
    if food.shape == "long":
        for k in range(2):
            body = d.turned(400, 74, food.skin, d.DOME, gloss=0.3)
            parts.append((body, 205 + 6 * k, 66 + 96 * k))
    elif food.shape == "round":
        parts = [(d.ball(196, 190, food.skin), 104, 116), (d.ball(188, 184, food.skin), 300, 120)]
        parts += [(d.ball(22, 22, d.darker(food.skin, 0.4), 0.1), x, 110) for x in (100, 296)]
    elif food.shape == "block":
        parts = [
            (d.slab(390, 170, 18, food.skin, round_px=14, grain=0.92 + 0.16 * d.noise(rng, 390, 170, 30, 8)), 205, 115)
        ]
    else:
        for _ in range(46):
            leaf = _leaf(d.mix(food.skin, food.flesh, float(rng.random())), 84)
            leaf = leaf.rotate(float(rng.integers(0, 360)), Image.Resampling.BILINEAR, expand=True)
            parts.append((leaf, float(rng.uniform(50, 370)), float(rng.uniform(45, 185))))
    return d.combined(size, parts)


@dataclass
class _Steam:
    """Clouds that rise, widen and fade, for ever."""

    x: float
    y: float
    width: float
    rng: Rng
    count: int = 9
    opacity: float = 0.34

    def __post_init__(self) -> None:
        self._phases = self.rng.random(self.count)
        self._places = self.rng.uniform(-1, 1, self.count)
        self._puffs = [
            d.puff(60 + 14 * k, (250, 250, 250), self.opacity * math.sin(math.pi * (k + 1) / 13) ** 0.8)
            for k in range(12)
        ]

    def draw(self, frame: Image.Image, seconds: float) -> None:
        for phase, place in zip(self._phases, self._places, strict=True):
            life = (seconds / 2.6 + phase) % 1
            sway = 26 * math.sin(2 * math.pi * (life + phase))
            d.place(frame, self._puffs[int(life * 12)], self.x + place * self.width + sway, self.y - 260 * life)


def _opening(color: RGB, width: int, height: int, level: float, liquid: RGB) -> Image.Image:
    """Into a vessel from a little above: its rim, its inside, and the liquid at `level` (0 to 1)."""
    image = Image.new("RGBA", (width, height))
    pen = ImageDraw.Draw(image)
    pen.ellipse((0, 0, width - 1, height - 1), fill=(*d.lighter(color, 0.3), 255))
    rim = 9
    hole = d.mask_of(
        width,
        height,
        lambda m, s: m.ellipse((rim * s, rim * 0.7 * s, (width - rim) * s, (height - rim * 0.7) * s), fill=255),
    )
    inside = Image.new("RGBA", (width, height), (*d.darker(color, 0.5), 255))
    shrink = (1 - level) * 0.16 * width
    drop = (1 - level) * 0.5 * height
    spot = ImageDraw.Draw(inside)
    box = (rim + shrink, rim * 0.7 + drop, width - rim - shrink, height - rim * 0.7 + drop * 0.7)
    spot.ellipse(box, fill=(*d.darker(liquid, 0.12), 255))
    spot.ellipse((box[0] + 8, box[1] + 6, box[2] - 8, box[3]), fill=(*liquid, 255))
    spot.ellipse(
        (box[0] + width * 0.10, box[1] + 9, box[0] + width * 0.42, box[1] + height * 0.32),
        fill=(*d.lighter(liquid, 0.25), 255),
    )
    image.alpha_composite(d.within(inside, hole))
    return image


_SHAPES = {  # half-widths by height of vessels seen from the side; width, height
    "bowl": (((0, 1.0), (0.5, 0.82), (0.85, 0.5), (0.9, 0.4), (1, 0.42)), 460, 200),
    "pot": (((0, 1.0), (0.9, 0.98), (1, 0.9)), 440, 250),
    "pan": (((0, 1.0), (0.7, 0.94), (1, 0.8)), 500, 110),
    "dish": (((0, 1.0), (0.8, 0.86), (1, 0.7)), 520, 110),
}


@dataclass(frozen=True)
class _Vessel:
    """A vessel on the counter: where its opening is."""

    x: float
    top: float
    width: int
    height: int  # of the opening
    color: RGB

    def filled(self, level: float, liquid: RGB) -> Image.Image:
        return _opening(self.color, self.width, self.height, level, liquid)


def _stand(ground: Image.Image, kind: str, color: RGB, x: float = CX, foot: float = 690) -> _Vessel:
    """Puts a vessel on the counter."""
    outline, width, height = _SHAPES[kind]
    shadow = d.puff(width + 160, (0, 0, 0), 0.75).resize((width + 160, 100))
    d.place(ground, shadow, x + 34, foot - 4)
    body = d.vessel(width, height, color, outline)
    if kind == "pot":
        for side in (-1, 1):
            d.Sprite(d.slab(70, 34, 14, d.darker(color, 0.3))).draw(
                ground, x + side * (width / 2 + 22), foot - height + 60
            )
    if kind == "pan":
        d.Sprite(d.slab(330, 36, 16, (60, 52, 48))).draw(ground, x + width / 2 + 130, foot - height + 30, angle=6)
    d.place(ground, body, x, foot - height / 2)
    return _Vessel(x, foot - height, width, int(width * 0.27), color)


def _burner(ground: Image.Image, x: float, y: float) -> None:
    d.Sprite(d.slab(640, 40, 10, (46, 46, 50))).draw(ground, x, y)


def _ease(p: float) -> float:
    p = min(max(p, 0.0), 1.0)
    return p * p * (3 - 2 * p)


# --- scenes seen from above -----------------------------------------------------------------------------------------


def _chop(ground: Image.Image, shot: Shot, cook: Cook, rng: Rng) -> Animate:
    food = FOODS[shot.foods[0]]
    tone = _WOOD if sum(shot.backdrop.color) > 420 or shot.backdrop.pattern != "wood" else (226, 190, 140)
    grain = 0.84 + 0.3 * d.noise(rng, 900, 470, 5, 70)
    board = d.slab(900, 470, 34, tone, grain=grain, round_px=10)
    ImageDraw.Draw(board).ellipse((826, 214, 866, 254), fill=(*d.darker(tone, 0.55), 255))
    d.Sprite(board, blur=16).draw(ground, CX, CY - 10, lift=16)
    whole = _whole(food, rng)
    shadow = d.shadow_of(whole, 0.45, 9)
    left, right = 300, 720
    pieces = [_piece(food, 62, rng) for _ in range(30)]
    spots = [(right + 10 + float(rng.uniform(10, 180)), CY - 20 + float(rng.normal(0, 58))) for _ in pieces]
    blade = d.polygon(90, 400, [(30, 0), (66, 20), (72, 250), (24, 250)], (206, 210, 216), round_px=5, gloss=0.6)
    handle = d.slab(46, 170, 16, (66, 44, 34), round_px=8)
    knife = _held(cook, [(blade, 200), (handle, 320)], 384)
    speed = float(rng.uniform(2.0, 2.8))

    def animate(frame: Image.Image, seconds: float, progress: float) -> None:
        edge = right - (right - left - 70) * progress
        width = max(8, round(edge - left))
        crop = whole.crop((0, 0, width, whole.height))
        frame.paste(
            shadow.crop((0, 0, width + 18, shadow.height)),
            (left - 10, CY - 150),
            shadow.crop((0, 0, width + 18, shadow.height)),
        )
        frame.paste(crop, (left, CY - 140), crop)
        cut = int(progress * len(pieces))
        for k in range(cut):
            slide = 1 - math.exp(-(progress * len(pieces) - k) * 0.5)
            x = edge + 30 + (spots[k][0] - edge - 30) * slide
            pieces[k].draw(frame, x, spots[k][1], lift=5)
        up = abs(math.sin(math.pi * speed * seconds))
        _reach(frame, knife, edge + 8, CY - 190 - 46 * up, lift=6 + 34 * up)

    return animate


def _whisk(ground: Image.Image, shot: Shot, cook: Cook, rng: Rng) -> Animate:
    one, other = (FOODS[name].flesh for name in (shot.foods[0], shot.foods[-1]))
    bowl = d.turned(600, 600, COLORS[shot.vessel], d.BOWL)
    d.Sprite(bowl, blur=20, shadow=0.55).draw(ground, CX, CY, lift=26)
    blend = d.mix(one, other, 0.45)
    d.place(ground, d.turned(440, 440, blend, ((0, 0.1), (0.9, 0.1), (1, 0.04)), gloss=0.2), CX, CY)
    whisk = Image.new("RGBA", (170, 440))
    pen = ImageDraw.Draw(whisk)
    for k, spread in enumerate((62, 46, 28, 8)):
        shade = 150 + 22 * k
        pen.ellipse((85 - spread, 4, 85 + spread, 230), outline=(shade, shade, shade + 6, 255), width=6)
    whisk.alpha_composite(d.slab(36, 240, 14, _STEEL, gloss=0.6), (67, 196))
    tool = _held(cook, [(whisk, 220)], 384)
    speed = float(rng.uniform(1.1, 1.6))
    radii = [60 + 26 * k for k in range(6)]
    offsets = rng.uniform(0, 360, 6)

    def animate(frame: Image.Image, seconds: float, progress: float) -> None:
        pen = ImageDraw.Draw(frame)
        turn = seconds * speed * 360
        for k, (radius, offset) in enumerate(zip(radii, offsets, strict=True)):
            streak = d.mix(one if k % 2 else other, blend, 0.75 * progress)
            start = offset + turn * (1.1 - 0.12 * k)
            for part in (0, 180):
                pen.arc(
                    (CX - radius, CY - radius, CX + radius, CY + radius),
                    start + part,
                    start + part + 110,
                    fill=streak,
                    width=12,
                )
        angle = math.radians(turn)
        x, y = CX + 92 * math.cos(angle), CY + 92 * math.sin(angle)
        _reach(frame, tool, x, y - 120, angle=7 - 6 * math.cos(angle), lift=16)

    return animate


def _fry(ground: Image.Image, shot: Shot, cook: Cook, rng: Rng) -> Animate:
    food = FOODS[shot.foods[0]]
    hob = d.slab(860, 700, 40, (34, 34, 38), gloss=0.4)
    d.Sprite(hob).draw(ground, CX, CY)
    pen = ImageDraw.Draw(ground)
    for radius in (318, 326):
        pen.ellipse((CX - radius, CY - radius, CX + radius, CY + radius), outline=(180, 60, 40), width=3)
    handle = d.slab(420, 54, 24, (52, 48, 48), round_px=10, gloss=0.4)
    d.Sprite(handle).draw(ground, CX - 440, CY + 80, angle=10)
    pan = d.turned(600, 600, (64, 64, 68), d.PAN, gloss=0.5)
    d.Sprite(pan, blur=16).draw(ground, CX, CY, lift=14)
    d.place(ground, d.faded(d.turned(440, 430, (214, 176, 70), ((0, 0.06), (0.9, 0.05), (1, 0))), 0.45), CX, CY)
    pieces = [_piece(food, 70, rng) for _ in range(24)]
    places = [(195 * math.sqrt(float(rng.random())), float(rng.uniform(0, 2 * math.pi))) for _ in pieces]
    paddle = d.slab(96, 130, 26, (206, 160, 104), round_px=8)
    stick = d.slab(30, 330, 12, (196, 150, 96))
    tool = _held(cook, [(stick, 240), (paddle, 70)], 384)
    steam = _Steam(CX, CY + 60, 150, rng, count=6, opacity=0.2)
    bubbles = rng.uniform(-190, 190, (40, 2))

    def animate(frame: Image.Image, seconds: float, progress: float) -> None:
        pen = ImageDraw.Draw(frame)
        for k, (x, y) in enumerate(bubbles):
            size = 5 + 5 * math.sin(9 * seconds + k * 1.7)
            if size > 3 and x * x + y * y < 200**2:
                pen.ellipse(
                    (CX + x - size, CY + y - size, CX + x + size, CY + y + size), outline=(244, 220, 140), width=2
                )
        sweep = 1.5 * math.sin(1.9 * seconds)
        for k, (piece, (radius, angle)) in enumerate(zip(pieces, places, strict=True)):
            turn = angle + 0.35 * sweep * (1 + 0.4 * math.sin(k)) + 0.25 * seconds
            hop = max(0.0, math.sin(3.8 * seconds + k)) * 10
            piece.draw(frame, CX + radius * math.cos(turn), CY + radius * math.sin(turn) - hop, lift=4 + hop)
        x, y = CX + 130 * math.sin(1.9 * seconds + 0.5), CY - 90 + 50 * math.cos(3.8 * seconds)
        _reach(frame, tool, x, y, angle=8 + 7 * math.sin(1.9 * seconds), lift=14)
        steam.draw(frame, seconds)

    return animate


def _roll(ground: Image.Image, shot: Shot, cook: Cook, rng: Rng) -> Animate:
    dust = rng.normal(0, 1, (900, 2)) * (300, 170)
    pen = ImageDraw.Draw(ground)
    for x, y in dust:
        size = float(rng.uniform(1, 4))
        pen.ellipse((CX + x - size, CY + y - size, CX + x + size, CY + y + size), fill=(248, 244, 236))
    color = d.mix((240, 220, 178), (230, 200, 150), float(rng.random()))
    sizes: dict[int, d.Sprite] = {}

    def dough(stage: int) -> d.Sprite:
        if stage not in sizes:
            profile = ((0, 0.5 - 0.03 * stage), (0.7, 0.42 - 0.025 * stage), (0.94, 0.2), (1, 0.0))
            image = d.turned(320 + 32 * stage, 280 + 22 * stage, color, profile, gloss=0.05)
            sizes[stage] = d.Sprite(image, blur=9)
        return sizes[stage]

    barrel = d.vessel(86, 620, _WOOD, ((0, 0.9), (0.03, 1), (0.97, 1), (1, 0.9)), gloss=0.35).rotate(90, expand=True)
    knob = d.slab(130, 44, 20, d.darker(_WOOD, 0.35), round_px=9)
    arm = _hand(cook)
    pin = d.Sprite(
        d.combined(
            (960, ARM),
            [
                (knob, 110, 80),
                (knob, 850, 80),
                (barrel, 480, 80),
                (arm, 100, 82 + FIST),
                (arm.transpose(Image.Transpose.FLIP_LEFT_RIGHT), 860, 82 + FIST),
            ],
        ),
        shadow=0.45,
    )
    speed = float(rng.uniform(0.55, 0.8))

    def animate(frame: Image.Image, seconds: float, progress: float) -> None:
        dough(int(progress * 9.99)).draw(frame, CX, CY - 20, lift=6)
        swing = math.sin(2 * math.pi * speed * seconds)
        y = CY - 20 + 150 * swing
        pin.draw(frame, CX, y + ARM / 2 - 80, lift=18)
        pen = ImageDraw.Draw(frame)
        for k in range(4):  # the barrel's grain runs round
            phase = (k / 4 + 0.9 * swing) % 1
            pen.line(
                (CX - 290, y - 40 + 80 * phase, CX + 290, y - 40 + 80 * phase), fill=d.darker(_WOOD, 0.10), width=2
            )

    return animate


def _plate(ground: Image.Image, shot: Shot, cook: Cook, rng: Rng) -> Animate:
    food, herb = FOODS[shot.foods[0]], FOODS[shot.foods[1]]
    color = COLORS[shot.vessel]
    d.Sprite(d.turned(640, 640, color, d.DISH, gloss=0.5), blur=18, shadow=0.55).draw(ground, CX, CY, lift=18)
    for side in (-1, 1):
        silver = d.combined(
            (70, 520), [(d.slab(20, 330, 9, _STEEL, gloss=0.7), 35, 330), (d.ball(60, 150, _STEEL, 0.8), 35, 110)]
        )
        d.Sprite(silver, blur=7).draw(ground, CX + side * 420, CY + 10)
    pieces = [_piece(food, 140, rng) for _ in range(9)]
    if food.shape == "flat":
        pieces = [d.Sprite(_flat(food, rng, 400, 390))]
    count = len(pieces)
    leaves = [d.Sprite(_leaf(herb.skin, 70).rotate(float(rng.integers(360)), expand=True), blur=4) for _ in range(7)]
    spots = [(CX, CY)] + [(CX + 135 * math.cos(k * 0.785), CY + 125 * math.sin(k * 0.785)) for k in range(count - 1)]
    green = [(CX + float(rng.uniform(-150, 150)), CY + float(rng.uniform(-140, 140))) for _ in leaves]
    arm = d.Sprite(_hand(cook), shadow=0.4)

    def animate(frame: Image.Image, seconds: float, progress: float) -> None:
        served = 0.4 + progress * (count + len(leaves)) * 1.15
        for k, (thing, (x, y)) in enumerate(zip([*pieces, *leaves], [*spots, *green], strict=True)):
            age = served - k
            if age <= 0:
                break
            fall = 1 - _ease(age)
            thing.draw(frame, x + 60 * fall, y + 40 * fall, scale=1 + 0.35 * fall, lift=6 + 50 * fall)
        k = min(int(served), len(spots) + len(green) - 1)
        now, after = ([*spots, *green][min(j, len(spots) + len(green) - 1)] for j in (k, k + 1))
        share = _ease(served - k)
        away = 60 * math.sin(math.pi * min(1.0, served - k)) + 500 * max(0.0, served - len(spots) - len(green))
        arm.draw(
            frame,
            now[0] + (after[0] - now[0]) * share + 70,
            now[1] + (after[1] - now[1]) * share + 60 + FIST + away,
            lift=30,
        )

    return animate


def _spread(ground: Image.Image, shot: Shot, cook: Cook, rng: Rng) -> Animate:
    sauce, base = FOODS[shot.foods[0]].flesh, FOODS[shot.foods[1]]
    board = d.turned(680, 680, (170, 120, 74), ((0, 0.1), (0.96, 0.1), (1, 0)))
    d.Sprite(board, blur=16).draw(ground, CX, CY, lift=14)
    profile = ((0, 0.05), (0.84, 0.05), (0.92, 0.22), (1, 0.0))
    d.Sprite(d.turned(600, 600, base.flesh, profile, gloss=0.05), blur=8).draw(ground, CX, CY)
    turns = float(rng.uniform(4, 5))
    spiral = [
        (
            CX + (20 + 200 * s) * math.cos(2 * math.pi * turns * s),
            CY + (20 + 200 * s) * math.sin(2 * math.pi * turns * s),
        )
        for s in (math.sqrt(k / 400) for k in range(401))
    ]
    tool = _held(cook, [(d.slab(24, 330, 11, _STEEL, gloss=0.7), 260), (d.ball(92, 130, _STEEL, 0.9), 70)], 384)
    painted = ground.copy()  # the sauce that already lies; frames come in order
    done = [0]

    def animate(frame: Image.Image, seconds: float, progress: float) -> None:
        reached = round(400 * min(1.0, 0.04 + progress))
        if reached < done[0]:
            painted.paste(ground)
            done[0] = 0
        pen = ImageDraw.Draw(painted)
        for k in range(done[0], reached):
            x, y = spiral[k]
            for size, color in ((34, d.darker(sauce, 0.12)), (27, sauce)):
                pen.ellipse((x - size, y - size, x + size, y + size), fill=color)
            side = 12 * math.sin(k * 0.9)
            pen.ellipse((x + side - 8, y - 16, x + side + 8, y - 10), fill=d.lighter(sauce, 0.22))
        done[0] = reached
        frame.paste(painted)
        x, y = spiral[reached]
        _reach(frame, tool, x, y - 60, angle=8 + 4 * math.sin(3 * seconds))

    return animate


# --- scenes seen from the side --------------------------------------------------------------------------------------


def _counter(ground: Image.Image, shot: Shot, cook: Cook, rng: Rng) -> Animate:
    color = COLORS[shot.vessel]
    fruit = FOODS[shot.foods[0]]
    left = bool(rng.random() < 0.5)
    kettle_x, bowl_x = (340, 960) if left else (880, 330)
    bowl = _stand(ground, "bowl", COLORS["white"], bowl_x, 680)
    for row, count in ((0, 4), (1, 3), (2, 2)):
        for k in range(count):
            x = bowl_x + (k - (count - 1) / 2) * 92
            d.Sprite(d.ball(104, 100, d.mix(fruit.skin, fruit.flesh, float(rng.uniform(0, 0.3)))), blur=8).draw(
                ground, x, bowl.top + 8 - row * 66
            )
    body = d.vessel(460, 200, COLORS["white"], _SHAPES["bowl"][0])
    d.place(ground, body, bowl_x, 580)
    shadow = d.puff(520, (0, 0, 0), 0.75).resize((520, 90))
    d.place(ground, shadow, kettle_x + 30, 676)
    handle = ImageDraw.Draw(ground)
    handle.arc((kettle_x - 110, 330, kettle_x + 110, 560), 180, 360, fill=(50, 44, 42), width=22)
    spout = d.polygon(170, 170, [(0, 110), (0, 170), (150, 20), (110, 0)], color, round_px=10)
    d.place(ground, spout, kettle_x + 190, 520)
    d.place(
        ground, d.vessel(330, 230, color, ((0, 0.42), (0.08, 0.6), (0.5, 0.95), (0.85, 1), (1, 0.92))), kettle_x, 565
    )
    d.place(ground, d.ball(46, 40, (50, 44, 42)), kettle_x, 446)
    clock_x = CX
    d.Sprite(d.turned(170, 170, (240, 236, 226), d.DISH), blur=10).draw(ground, clock_x, 170)
    steam = _Steam(kettle_x + 268, 446, 12, rng, count=10, opacity=0.5)
    hour = float(rng.uniform(0, 2 * math.pi))

    def animate(frame: Image.Image, seconds: float, progress: float) -> None:
        pen = ImageDraw.Draw(frame)
        for angle, length, width in ((hour, 36, 8), (hour * 12, 54, 6), (seconds * 2 * math.pi / 6, 60, 3)):
            end = clock_x + length * math.sin(angle), 170 - length * math.cos(angle)
            pen.line((clock_x, 170, *end), fill=(40, 38, 40), width=width)
        swing = 34 * math.sin(2 * math.pi * seconds)
        pen.line((clock_x, 250, clock_x + swing, 340), fill=(120, 90, 50), width=5)
        pen.ellipse((clock_x + swing - 20, 324, clock_x + swing + 20, 364), fill=(206, 160, 70))
        steam.draw(frame, seconds)

    return animate


def _pour(ground: Image.Image, shot: Shot, cook: Cook, rng: Rng) -> Animate:
    liquid = FOODS[shot.foods[0]].flesh
    kind = next((kind for kind in _SHAPES if f"into a {shot.vessel} {kind}" in shot.caption), "bowl")
    vessel = _stand(ground, kind, COLORS[shot.vessel])
    levels = [vessel.filled(0.15 + 0.7 * k / 23, liquid) for k in range(24)]
    jug = Image.new("RGBA", (300, 300))
    glass = d.vessel(190, 260, (214, 228, 234), ((0, 0.95), (0.1, 0.82), (0.6, 1), (1, 0.9)))
    fill = d.vessel(170, 180, liquid, ((0, 0.93), (0.5, 1), (1, 0.88)), gloss=0.2)
    pen = ImageDraw.Draw(jug)
    pen.arc((196, 70, 290, 220), 250, 110, fill=(206, 222, 228, 210), width=16)
    jug.alpha_composite(d.faded(glass, 0.55), (55, 20))
    jug.alpha_composite(d.faded(fill, 0.92), (65, 94))
    pen.polygon([(60, 22), (26, 14), (66, 60)], fill=(206, 222, 228, 190))
    sprite = d.Sprite(jug, shadow=0)
    arm = d.Sprite(_hand(cook).rotate(90, expand=True), shadow=0)

    def animate(frame: Image.Image, seconds: float, progress: float) -> None:
        level = levels[min(23, int(progress * 24))]
        d.place(frame, level, vessel.x, vessel.top)
        tilt = 24 + 36 * _ease(progress * 3) + 2 * math.sin(2 * seconds)
        jug_x, jug_y = vessel.x + 150 + 6 * math.sin(1.3 * seconds), vessel.top - 230 + 5 * math.sin(1.7 * seconds)
        surface_y = vessel.top + 14 - 20 * progress
        angle = math.radians(tilt)
        lip = (
            jug_x - 118 * math.cos(angle) - 130 * math.sin(angle) + 12,
            jug_y + 118 * math.sin(angle) - 130 * math.cos(angle) + 30,
        )
        pen = ImageDraw.Draw(frame)
        if progress > 0.05:
            width = 13 + 3 * math.sin(7 * seconds)
            falls = [
                (lip[0] - 46 * math.sqrt(k / 10), lip[1] + (surface_y - lip[1]) * (k / 10) ** 1.3) for k in range(11)
            ]
            edge = [(x - width + k * 0.4 + 2 * math.sin(9 * seconds + k), y) for k, (x, y) in enumerate(falls)]
            other = [(x + width - k * 0.4 + 2 * math.sin(9 * seconds + k), y) for k, (x, y) in enumerate(falls)]
            pen.polygon(edge + other[::-1], fill=liquid)
            pen.line([(x + 6, y) for x, y in edge], fill=d.lighter(liquid, 0.4), width=4)
            hit = falls[-1][0]
            for ring in range(3):
                spread = 20 + 70 * ((seconds * 1.6 + ring / 3) % 1)
                pen.ellipse(
                    (hit - spread, surface_y - spread * 0.22, hit + spread, surface_y + spread * 0.22),
                    outline=d.lighter(liquid, 0.35),
                    width=3,
                )
        arm.draw(frame, jug_x + 180 + FIST, jug_y + 20)
        sprite.draw(frame, jug_x, jug_y, angle=tilt)

    return animate


def _sprinkle(ground: Image.Image, shot: Shot, cook: Cook, rng: Rng) -> Animate:
    grain, over = FOODS[shot.foods[0]], FOODS[shot.foods[1]]
    dish = _stand(ground, "dish", COLORS[shot.vessel])
    d.place(ground, dish.filled(0.8, over.flesh), dish.x, dish.top)
    heap = [_piece(over, 74, rng) for _ in range(0 if over.shape in ("liquid", "powder") else 22)]
    for piece in heap:
        radius, angle = math.sqrt(float(rng.random())), float(rng.uniform(0, 2 * math.pi))
        piece.draw(
            ground, dish.x + 190 * radius * math.cos(angle), dish.top + 34 * radius * math.sin(angle), scale=0.8, lift=4
        )
    coarse = grain.shape != "powder"
    if coarse:
        bit = d.Sprite(_piece(grain, 28, rng).image, shadow=0)
        can = d.vessel(150, 200, COLORS["white"], ((0, 1.0), (0.8, 0.86), (1, 0.6)))
    else:
        bit = d.Sprite(d.ball(9, 9, grain.skin, 0.2), shadow=0)
        can = d.vessel(120, 210, _STEEL, ((0, 0.7), (0.18, 0.98), (0.24, 0.9), (1, 1)), gloss=0.9).rotate(0)
    shaker = d.Sprite(can, shadow=0)
    arm = d.Sprite(_hand(cook).rotate(90, expand=True), shadow=0)
    count = 70 if coarse else 240
    born = np.sort(rng.random(count)) * 0.86 + 0.04
    aim = rng.normal(0, 0.42, count).clip(-0.95, 0.95)
    depth = rng.uniform(-0.8, 0.8, count)

    def animate(frame: Image.Image, seconds: float, progress: float) -> None:
        sway = 120 * math.sin(1.6 * seconds)
        shake = 16 * math.sin(2 * math.pi * 3.1 * seconds)
        x, y = dish.x + sway * 0.7, 236 + shake
        duration = seconds / progress if progress > 0.02 else 5.0
        for start, to_x, to_y in zip(born, aim, depth, strict=True):
            age = (progress - start) * duration / 0.55
            if age <= 0:
                continue
            from_x = dish.x + 84 * math.sin(1.6 * start * duration)
            goal_x, goal_y = dish.x + 200 * to_x, dish.top + 30 * to_y * math.sqrt(1 - to_x * to_x)
            share = min(1.0, age)
            bit.draw(
                frame, from_x + (goal_x - from_x) * share, y - shake + 110 + (goal_y - y + shake - 110) * share * share
            )
        arm.draw(frame, x + 110 + FIST, y + 4)
        shaker.draw(frame, x, y, angle=(150 if coarse else 165) + 0.5 * shake)

    return animate


def _flip(ground: Image.Image, shot: Shot, cook: Cook, rng: Rng) -> Animate:
    food = FOODS[shot.foods[0]]
    _burner(ground, CX - 40, 700)
    pan = d.combined(
        (900, 160),
        [
            (d.slab(400, 40, 18, (70, 56, 48), round_px=9), 700, 66),
            (d.vessel(520, 86, (60, 60, 66), ((0, 1.0), (0.7, 0.93), (1, 0.8))), 270, 92),
            (_opening((60, 60, 66), 520, 84, 0.6, (74, 72, 76)), 270, 50),
        ],
    )
    sprite = d.Sprite(pan, shadow=0)
    arm = d.Sprite(_hand(cook).rotate(90, expand=True), shadow=0)
    period = float(rng.uniform(1.7, 2.1))
    steam = _Steam(CX - 130, 560, 130, rng, count=5, opacity=0.22)
    flames = rng.random(9)

    def animate(frame: Image.Image, seconds: float, progress: float) -> None:
        pen = ImageDraw.Draw(frame)
        for k, phase in enumerate(flames):
            x, high = CX - 290 + 40 * k, 30 + 12 * math.sin(13 * seconds + 6 * phase)
            pen.polygon([(x - 14, 690), (x, 690 - high), (x + 14, 690)], fill=(70, 120, 230))
            pen.polygon([(x - 7, 690), (x, 690 - high * 0.6), (x + 7, 690)], fill=(180, 214, 250))
        beat = seconds / period % 1
        turns = int(seconds / period)
        jerk = 26 * math.sin(math.pi * min(1.0, beat / 0.22)) if beat < 0.22 else 0.0
        pan_y = 600 - jerk
        air = (beat - 0.14) / 0.66
        sprite.draw(frame, CX + 50, pan_y)
        arm.draw(frame, CX + 410 + FIST, pan_y - 10)
        x = CX - 130
        if 0 < air < 1:
            high, spin = 4 * air * (1 - air) * 330, math.pi * air
        else:
            high, spin = 0.0, math.pi if air >= 1 else 0.0
        tall = 30 * abs(math.cos(spin)) + (120 * abs(math.sin(spin)) if high > 60 else 0)
        y = pan_y - 34 - high
        upper = (turns + (spin > math.pi / 2)) % 2 == 0
        top = food.flesh if upper else food.skin
        pen.ellipse((x - 170, y - tall + 16, x + 170, y + tall + 16), fill=d.darker(food.flesh, 0.25))
        pen.ellipse((x - 170, y - tall, x + 170, y + tall), fill=d.darker(top, 0.06))
        pen.ellipse((x - 150, y - tall * 0.86, x + 146, y + tall * 0.78), fill=top)
        for k in range(6):
            dx, dy = 110 * math.cos(k * 1.9), 0.62 * tall * math.sin(k * 1.9)
            pen.ellipse((x + dx - 16, y + dy - tall * 0.1, x + dx + 16, y + dy + tall * 0.1), fill=d.darker(top, 0.14))
        steam.draw(frame, seconds)

    return animate


def _simmer(ground: Image.Image, shot: Shot, cook: Cook, rng: Rng) -> Animate:
    food = FOODS[shot.foods[0]]
    color = COLORS[shot.vessel]
    _burner(ground, CX, 706)
    pot = _stand(ground, "pot", color)
    d.place(ground, pot.filled(0.75, food.flesh), pot.x, pot.top)
    pieces = [_piece(food, 46, rng) for _ in range(0 if food.shape == "liquid" else 14)]
    places = [(math.sqrt(float(rng.random())), float(rng.uniform(0, 2 * math.pi))) for _ in pieces]
    stick = d.combined(
        (60, 420), [(d.slab(26, 380, 11, _WOOD), 30, 200), (d.ball(56, 90, d.darker(_WOOD, 0.1), 0.1), 30, 370)]
    )
    tool = d.Sprite(stick, shadow=0)
    arm = d.Sprite(_hand(cook).rotate(70, expand=True), shadow=0)
    steam = _Steam(pot.x, pot.top - 10, 130, rng, count=12, opacity=0.42)
    speed = float(rng.uniform(0.5, 0.8))
    bubbles = rng.uniform(-1, 1, (16, 3))

    def animate(frame: Image.Image, seconds: float, progress: float) -> None:
        turn = 2 * math.pi * speed * seconds
        pen = ImageDraw.Draw(frame)
        for radius, angle, phase in bubbles:
            life = (seconds * 1.4 + phase) % 1
            x, y = pot.x + 170 * radius * math.cos(3 * angle), pot.top + 10 + 34 * radius * math.sin(3 * angle)
            size = 4 + 14 * life
            pen.ellipse(
                (x - size, y - size * 0.5, x + size, y + size * 0.5), outline=d.lighter(food.flesh, 0.4), width=2
            )
        for k, (piece, (radius, angle)) in enumerate(zip(pieces, places, strict=True)):
            a = angle + 0.5 * turn * (1.3 - radius)
            bob = 2 * math.sin(4 * seconds + k)
            piece.draw(
                frame,
                pot.x + 165 * radius * math.cos(a),
                pot.top + 12 + 32 * radius * math.sin(a) + bob,
                scale=0.8,
                lift=2,
            )
        x, y = pot.x + 96 * math.cos(turn), pot.top + 14 + 20 * math.sin(turn)
        lean = -24 + 9 * math.cos(turn)
        hold = math.radians(lean)
        tool.draw(frame, x - 180 * math.sin(hold), y - 165 * math.cos(hold), angle=lean)
        arm.draw(frame, x - 330 * math.sin(hold) + 0.94 * FIST, y - 320 * math.cos(hold) + 0.34 * FIST)
        steam.draw(frame, seconds)

    return animate


def _bake(ground: Image.Image, shot: Shot, cook: Cook, rng: Rng) -> Animate:
    food = FOODS[shot.foods[0]]
    body = d.slab(1000, 700, 26, (84, 86, 92), round_px=8, gloss=0.5)
    d.Sprite(body).draw(ground, CX, CY + 20)
    pen = ImageDraw.Draw(ground)
    for k in range(5):
        d.Sprite(d.ball(54, 54, (40, 40, 44)), blur=5).draw(ground, CX - 320 + 160 * k, 84)
    left, top, right, bottom = CX - 420, 140, CX + 420, 640
    for k in range(60):
        share = k / 59
        color = d.mix((60, 24, 14), (236, 120, 36), share**1.5)
        pen.rounded_rectangle((left + k * 3.2, top + k * 2.2, right - k * 3.2, bottom - k * 1.6), 20, fill=color)
    for y in (300, 560):
        for wire in range(7):
            pen.line(
                (left + 40 + wire * 4, y + wire * 5, right - 40 - wire * 4, y + wire * 5), fill=(120, 70, 44), width=2
            )
    raw, done = d.lighter(food.skin, 0.45), d.darker(food.skin, 0.12)
    items = [(float(rng.uniform(-6, 6)), float(rng.uniform(-4, 4))) for _ in range(8)]

    def tray(color: RGB, rise: float) -> Image.Image:
        parts: list[tuple[Image.Image, float, float]] = [
            (d.slab(640, 150, 20, (70, 70, 76), gloss=0.5), 330, 130),
            (d.slab(590, 110, 16, (44, 44, 48)), 330, 126),
        ]
        if food.shape == "flat":
            parts.append(
                (
                    d.combined(
                        (480, 104),
                        [
                            (
                                _flat(
                                    replace(food, skin=color, flesh=d.lighter(color, 0.2)),
                                    np.random.default_rng(3),
                                    480,
                                    104,
                                ),
                                240,
                                52,
                            )
                        ],
                    ),
                    330,
                    118 - 8 * rise,
                )
            )
        for k, (dx, dy) in enumerate(items if food.shape != "flat" else ()):
            image = d.ball(118, round(44 + 34 * rise), color, 0.15)
            parts.append((image, 120 + 140 * (k % 4) + dx, 100 + 44 * (k // 4) + dy - 14 * rise))
        return d.combined((660, 220), parts)

    stages = [tray(d.mix(raw, done, k / 11), k / 11) for k in range(12)]
    glow = d.puff(900, (255, 150, 50), 0.5).resize((900, 420))
    glove = d.Sprite(_hand(cook), shadow=0.3)

    def animate(frame: Image.Image, seconds: float, progress: float) -> None:
        slide = _ease(progress / 0.4)
        image = stages[min(11, int(12 * max(0.0, (progress - 0.35) / 0.65)))]
        size = 1.35 - 0.35 * slide
        x, y = CX + 14 * (1 - slide) * math.sin(5 * seconds), 650 - 190 * slide
        if size > 1.004:
            image = image.resize((round(image.width * size), round(image.height * size)), Image.Resampling.BILINEAR)
        d.place(frame, image, x, y)
        flicker = 0.72 + 0.2 * math.sin(5 * seconds) + 0.08 * math.sin(17 * seconds)
        d.place(frame, d.faded(glow, flicker), CX, 420)
        away = 420 * _ease((progress - 0.42) / 0.25)
        if away < 415:
            for side in (-1, 1):
                glove.draw(frame, x + side * 330 * size, y + 40 + FIST + away)

    return animate


def _blend(ground: Image.Image, shot: Shot, cook: Cook, rng: Rng) -> Animate:
    food = FOODS[shot.foods[0]]
    shadow = d.puff(520, (0, 0, 0), 0.75).resize((520, 90))
    d.place(ground, shadow, CX + 30, 690)
    d.place(ground, d.vessel(330, 170, (70, 72, 78), ((0, 0.66), (0.3, 0.8), (1, 1)), gloss=0.8), CX, 612)
    d.place(ground, d.ball(60, 60, (214, 60, 50)), CX, 630)
    outline = ((0, 1.0), (1, 0.68))
    glass = d.faded(d.vessel(320, 400, (220, 232, 238), outline), 0.4)
    d.place(ground, glass, CX, 340)
    lid = d.slab(300, 50, 14, (46, 46, 50), gloss=0.4)
    hull = d.vessel(320, 400, (255, 255, 255), outline).getchannel("A")
    shine = d.faded(d.slab(24, 320, 12, (255, 255, 255)), 0.35)
    colors = [food.flesh, d.darker(food.flesh, 0.25), d.lighter(food.flesh, 0.3), d.darker(food.skin, 0.1)]
    blobs = rng.random((34, 3))

    def animate(frame: Image.Image, seconds: float, progress: float) -> None:
        shake = 3 * math.sin(2 * math.pi * 7 * seconds)
        fill = Image.new("RGBA", (320, 400))
        pen = ImageDraw.Draw(fill)
        speed = 0.4 + _ease(progress * 4)
        wave = [
            (x, 120 + 22 * speed * math.cos((x - 160) / 160 * math.pi) + 8 * math.sin(x / 34 + 9 * seconds))
            for x in range(0, 321, 16)
        ]
        pen.polygon([*wave, (320, 400), (0, 400)], fill=(*colors[0], 255))
        for k, (a, b, c) in enumerate(blobs):
            x = 160 + 150 * math.sin(2 * math.pi * (a + seconds * speed * (0.9 + 0.5 * c)))
            y = 175 + 215 * ((b + 0.35 * seconds * speed) % 1)
            size = 26 * (1 - 0.6 * progress) + 6
            pen.ellipse(
                (x - 1.8 * size, y - size * 0.5, x + 1.8 * size, y + size * 0.5),
                fill=(*d.mix(colors[k % 4], colors[0], 0.8 * progress), 255),
            )
        for k in range(3):
            y = 170 + 70 * k
            pen.arc(
                (20, y - 40, 300, y + 40),
                20 + 200 * seconds * speed % 120,
                120 + 200 * seconds * speed % 120,
                fill=(*d.lighter(colors[0], 0.3), 255),
                width=6,
            )
        d.place(frame, d.within(fill, hull), CX + shake, 340)
        d.place(frame, shine, CX - 96 + shake, 330)
        d.place(frame, lid, CX + shake, 122 + shake)

    return animate


def _grate(ground: Image.Image, shot: Shot, cook: Cook, rng: Rng) -> Animate:
    food = FOODS[shot.foods[0]]
    bowl = _stand(ground, "bowl", COLORS[shot.vessel])
    d.place(ground, bowl.filled(0.35, d.darker(COLORS[shot.vessel], 0.3)), bowl.x, bowl.top)
    points = [(60, 0), (200, 0), (260, 400), (0, 400)]
    metal = d.polygon(260, 400, points, (184, 188, 194), round_px=8, gloss=0.7)
    pen = ImageDraw.Draw(metal)
    for row in range(8):
        for column in range(5):
            x, y = 68 + column * 30 + (row % 2) * 12, 60 + row * 36
            pen.ellipse((x - 8, y - 5, x + 8, y + 7), fill=(90, 94, 100, 255))
            pen.arc((x - 8, y - 7, x + 8, y + 5), 180, 360, fill=(236, 238, 242, 255), width=3)
    pen_top = d.slab(150, 40, 18, (50, 50, 54))
    grater = d.combined((260, 440), [(metal, 130, 232), (pen_top, 130, 24)])
    d.Sprite(grater, shadow=0.3).draw(ground, bowl.x - 20, bowl.top - 150)
    block = d.Sprite(d.slab(130, 110, 14 if food.shape == "block" else 52, food.skin, round_px=12), shadow=0.35)
    arm = d.Sprite(_hand(cook).rotate(90, expand=True), shadow=0)
    shred = [
        d.Sprite(
            d.slab(44, 11, 5, d.mix(food.flesh, food.skin, k / 6), round_px=3).rotate(30 * k, expand=True), shadow=0
        )
        for k in range(6)
    ]
    count = 110
    born = np.sort(rng.random(count)) * 0.9
    aim = np.clip(rng.normal(0, 0.4, count), -0.85, 0.85)

    def animate(frame: Image.Image, seconds: float, progress: float) -> None:
        duration = seconds / progress if progress > 0.02 else 5.0
        for k, (start, to_x) in enumerate(zip(born, aim, strict=True)):
            age = (progress - start) * duration / 0.4
            if age > 0:
                share = min(1.0, age)
                goal = bowl.top + 30 - 44 * (1 - abs(to_x)) * progress
                shred[k % 6].draw(frame, bowl.x + 190 * to_x, goal - 130 * (1 - share * share))
        beat = math.sin(2 * math.pi * 1.3 * seconds)
        x, y = bowl.x + 20 + 22 * beat, bowl.top - 170 + 96 * beat
        arm.draw(frame, x + 100 + FIST, y)
        block.draw(frame, x + 30, y, scale=1 - 0.35 * progress)

    return animate


def _crack(ground: Image.Image, shot: Shot, cook: Cook, rng: Rng) -> Animate:
    bowl = _stand(ground, "bowl", COLORS[shot.vessel])
    d.place(ground, bowl.filled(0.45, (250, 236, 190)), bowl.x, bowl.top)
    shell = d.mix((240, 214, 184), (214, 160, 118), float(rng.random()))
    egg = d.ball(110, 146, shell, 0.4)
    zigzag = [(0, 76), (18, 64), (36, 80), (54, 64), (74, 80), (92, 64), (110, 76)]
    upper = d.within(
        egg,
        d.mask_of(110, 146, lambda m, s: m.polygon([(x * s, y * s) for x, y in [(0, 0), *zigzag, (110, 0)]], fill=255)),
    )
    lower = d.within(
        egg,
        d.mask_of(
            110, 146, lambda m, s: m.polygon([(x * s, y * s) for x, y in [(0, 146), *zigzag, (110, 146)]], fill=255)
        ),
    )
    whole, left, right = (
        d.Sprite(image, shadow=0) for image in (egg, upper.rotate(90, expand=True), lower.rotate(90, expand=True))
    )
    yolk = d.Sprite(d.ball(78, 66, (248, 184, 40), 0.7), shadow=0)
    flat = d.Sprite(d.ball(84, 44, (248, 184, 40), 0.7), shadow=0.2, blur=4)
    hands = [d.Sprite(_hand(cook).rotate(turn, expand=True), shadow=0) for turn in (90, -90)]
    spare = d.Sprite(egg.rotate(80, expand=True), blur=8)
    for k in range(3):
        spare.draw(ground, 200 + 105 * k, 668 - 12 * (k % 2))
    cycle = float(rng.uniform(1.9, 2.3))

    def animate(frame: Image.Image, seconds: float, progress: float) -> None:
        done = int(seconds / cycle)
        beat = seconds / cycle % 1
        landed = done + (beat > 0.86)
        for k in range(min(landed, 6)):
            a = k * 2.1
            flat.draw(frame, bowl.x + 96 * math.cos(a) * (k > 0), bowl.top + 18 + 22 * math.sin(a) * (k > 0), lift=3)
        x, y = bowl.x, bowl.top - 190
        if beat < 0.45:
            tap = 60 * math.sin(math.pi * beat / 0.15) if beat < 0.3 else 0.0
            edge = 150 * (1 - _ease((beat - 0.3) / 0.15))
            hands[0].draw(frame, x + edge + 100 + FIST, y + abs(tap) + 10)
            whole.draw(frame, x + edge, y + abs(tap))
        else:
            open_ = _ease((beat - 0.45) / 0.15)
            fall = max(0.0, (beat - 0.55) / 0.31)
            if fall < 1:
                drop_y = y + 20 + (bowl.top + 16 - y - 20) * fall * fall
                pen = ImageDraw.Draw(frame)
                pen.ellipse((x - 30, y + 10, x + 30, drop_y + 44), fill=(250, 244, 222))
                yolk.draw(frame, x, drop_y)
            spread = 30 + 66 * open_
            hands[1].draw(frame, x - spread - 80 - FIST, y - 14)
            hands[0].draw(frame, x + spread + 80 + FIST, y - 14)
            left.draw(frame, x - spread, y, angle=24 * open_)
            right.draw(frame, x + spread, y, angle=-24 * open_)

    return animate


ABOVE: dict[str, Callable[[Image.Image, Shot, Cook, Rng], Animate]] = {
    "chop": _chop,
    "whisk": _whisk,
    "fry": _fry,
    "roll": _roll,
    "plate": _plate,
    "spread": _spread,
}
SIDE: dict[str, Callable[[Image.Image, Shot, Cook, Rng], Animate]] = {
    "counter": _counter,
    "pour": _pour,
    "sprinkle": _sprinkle,
    "flip": _flip,
    "simmer": _simmer,
    "bake": _bake,
    "blend": _blend,
    "grate": _grate,
    "crack": _crack,
}


def scene(shot: Shot, cook: Cook, rng: Rng) -> tuple[Image.Image, Animate]:
    """The still ground of a shot and what draws its motion on a copy of it."""
    above = shot.scene in ABOVE
    ground = from_above(shot, rng) if above else from_side(shot, cook, rng)
    return ground, (ABOVE if above else SIDE)[shot.scene](ground, shot, cook, rng)
