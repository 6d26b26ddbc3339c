"""Borders and stretches without news: found where they are, and never where a picture only looks like it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cookgen.perception.picture_faults import MIN_FRAMES, Box, StillWatch, Stretch, picture_box

HEIGHT, WIDTH = 180, 320


def pictures(count: int = 12, height: int = HEIGHT, width: int = WIDTH, low: int = 0) -> list[np.ndarray]:
    """Textured grey pictures, uint8 [height, width], dark parts among them."""
    rng = np.random.default_rng(11)
    coarse = rng.integers(low, 255, (count, 6, 8), dtype=np.uint8)
    rows, columns = np.arange(height) * 6 // height, np.arange(width) * 8 // width
    return [picture[rows][:, columns] for picture in coarse]


def framed(inner: list[np.ndarray], left: int, top: int, right: int, bottom: int, noise: int = 4) -> list[np.ndarray]:
    rng = np.random.default_rng(12)
    frames = []
    for picture in inner:
        height, width = picture.shape
        frame = rng.integers(0, noise + 1, (top + height + bottom, left + width + right), dtype=np.uint8)
        frame[top : top + height, left : left + width] = picture
        frames.append(frame)
    return frames


sides = st.one_of(st.just(0), st.integers(1, 90))


@settings(deadline=None)
@given(left=sides, top=sides, right=sides, bottom=sides)
def test_the_box_lies_within_the_picture_and_close_to_its_edge(left: int, top: int, right: int, bottom: int) -> None:
    box = picture_box(framed(pictures(), left, top, right, bottom))
    if not (left or top or right or bottom):
        assert box is None
        return
    assert box is not None
    assert all(number % 2 == 0 for number in (box.left, box.top, box.width, box.height))
    right_edge, bottom_edge = box.left + box.width, box.top + box.height
    # A side without a border may lose one line, where the size is odd.
    assert left <= box.left <= left + 2 * bool(left) and top <= box.top <= top + 2 * bool(top)
    assert left + WIDTH - 2 * bool(right) - 1 <= right_edge <= left + WIDTH
    assert top + HEIGHT - 2 * bool(bottom) - 1 <= bottom_edge <= top + HEIGHT


def test_a_picture_without_borders_is_whole_however_dark_its_edges() -> None:
    assert picture_box(pictures()) is None
    vignette = np.clip(1.3 - np.hypot(*np.meshgrid(np.linspace(-1, 1, WIDTH), np.linspace(-1, 1, HEIGHT))), 0, 1)
    assert picture_box((picture * vignette).astype(np.uint8) for picture in pictures()) is None


def test_one_frame_that_fills_the_picture_is_enough_to_keep_it() -> None:
    letterboxed = framed(pictures(), 0, 30, 0, 30)
    full = pictures(1, HEIGHT + 60)
    assert picture_box(letterboxed) == Box(0, 32, WIDTH, HEIGHT - 4)
    assert picture_box([*letterboxed, *full]) is None


def test_black_frames_say_nothing() -> None:
    black = [np.zeros((HEIGHT + 60, WIDTH), np.uint8)] * 5
    letterboxed = framed(pictures(), 0, 30, 0, 30)
    assert picture_box([*black, *letterboxed, *black]) == picture_box(letterboxed)
    assert picture_box([*black, *letterboxed[: MIN_FRAMES - 1]]) is None  # too few with something to see
    assert picture_box(black) is None
    assert picture_box([]) is None


@pytest.mark.parametrize("shown_in", [1, 12])
def test_subtitles_and_logos_keep_their_border(shown_in: int) -> None:
    frames = framed(pictures(), 0, 40, 0, 40)
    for frame in frames[:shown_in]:
        frame[-30:-15, 100:220:3] = 230  # a line of letters in the lower border
        frame[10:22, 290:312] = 200  # a mark in the upper one
    assert picture_box(frames) is None
    for frame in frames:
        frame[10:22, 290:312] = 0
    assert picture_box(frames) == Box(0, 42, WIDTH, HEIGHT + 38)


def test_a_dark_scene_has_no_border() -> None:
    """A lit plate in the dark, a lamp's cone, a title on black: what is dark around them has no straight edge."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    plate = ((y - 90) ** 2 + (x - 160) ** 2 < 50**2) * np.uint8(180)
    cone = (np.abs(x - 160) < y - 60) * np.uint8(120)
    title = np.zeros((HEIGHT, WIDTH), np.uint8)
    title[80:100, 60:260:7] = 250
    title[75:80, 60:90] = 250
    for scene in (plate, cone, title):
        assert picture_box([scene.astype(np.uint8)] * 12) is None


def test_ringing_beside_the_edge_does_not_hide_it() -> None:
    frames = framed(pictures(low=60), 0, 30, 0, 30)
    rng = np.random.default_rng(5)
    for frame in frames:
        frame[26:30, rng.integers(0, WIDTH, 12)] = 25
    assert picture_box(frames) == Box(0, 32, WIDTH, HEIGHT - 4)


def test_a_sliver_is_no_picture_and_a_change_of_size_has_no_box() -> None:
    assert picture_box(framed(pictures(width=60, low=60), 180, 0, 180, 0)) is None
    assert picture_box([*framed(pictures(), 0, 30, 0, 30), np.zeros((50, 50), np.uint8)]) is None


# Stretches

SMALL_H, SMALL_W = 144, 256


def colour(low: int = 30) -> np.ndarray:
    rng = np.random.default_rng(21)
    return rng.integers(low, 255, (18, 32, 3), dtype=np.uint8).repeat(8, axis=0).repeat(8, axis=1)


def watched(frames: Iterator[np.ndarray] | list[np.ndarray]) -> list[Stretch]:
    watch = StillWatch()
    seen = list(watch.through(frames))
    assert len(seen) == sum(stretch.stop - stretch.first for stretch in watch.stretches())
    return list(watch.stretches())


def noisy(picture: np.ndarray, seed: int, amount: int = 6) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(-amount, amount + 1, picture.shape)
    return np.clip(picture.astype(int) + noise, 0, 255).astype(np.uint8)


def test_frames_pass_unchanged_and_stretches_cover_them() -> None:
    frames = [noisy(colour(), seed, 90) for seed in range(7)]
    watch = StillWatch()
    assert all(one is other for one, other in zip(watch.through(iter(frames)), frames, strict=True))
    assert next(iter(watch.stretches())).first == 0
    assert list(StillWatch().stretches()) == []


def test_a_still_picture_is_one_stretch_in_spite_of_noise() -> None:
    assert watched([noisy(colour(), seed) for seed in range(30)]) == [Stretch(0, 30, is_black=False)]


def test_one_small_thing_that_moves_is_no_stillness() -> None:
    frames = []
    for number in range(30):
        frame = colour()
        frame[60:68, 4 * number : 4 * number + 8] = 128  # 1/18 of the height
        frames.append(frame)
    assert max(stretch.stop - stretch.first for stretch in watched(frames)) <= 2


def test_slow_changes_add_up() -> None:
    frames = [np.clip(colour().astype(int) - 2 * number, 0, 255).astype(np.uint8) for number in range(40)]
    assert max(stretch.stop - stretch.first for stretch in watched(frames)) <= 6


def test_black_is_black_whatever_its_noise_and_dark_is_not() -> None:
    black = [np.random.default_rng(seed).integers(0, 20, (SMALL_H, SMALL_W, 3), dtype=np.uint8) for seed in range(9)]
    assert watched(black) == [Stretch(0, 9, is_black=True)]
    dark = [frame.copy() for frame in black]
    for number, frame in enumerate(dark):
        frame[40:70, 10 * number : 10 * number + 40] = 60  # somebody in the night
    assert not any(stretch.is_black for stretch in watched(dark))
    moving = [noisy(colour(), seed, 90) for seed in range(3)]
    assert [s for s in watched([*moving, *black, *moving]) if s.is_black] == [Stretch(3, 12, is_black=True)]
