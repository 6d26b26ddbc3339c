"""Motion: made pictures in which it is known what moves."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cookgen.perception.motion import measure_motion

SIDE = 256


def ground(side: int = SIDE, seed: int = 0) -> np.ndarray:
    """A picture full of soft shapes."""
    noise = np.random.default_rng(seed).integers(0, 256, (24, 24, 3), np.uint8)
    return np.asarray(Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC))


def with_square(picture: np.ndarray, y: int, x: int, side: int = 40) -> np.ndarray:
    picture = picture.copy()
    picture[y : y + side, x : x + side] = 255
    return picture


def test_a_still_picture() -> None:
    motion = measure_motion(np.stack([ground()] * 5))
    assert motion.amounts == (0.0,) * 4
    assert (motion.camera_moves, motion.num_new_views, motion.course, motion.amount) == (False, 0, "even", 0)


def test_one_frame_has_no_motion() -> None:
    motion = measure_motion(ground()[None])
    assert (motion.amounts, motion.amount, motion.camera_moves) == ((), 0, False)


def test_noise_of_a_codec_is_no_motion() -> None:
    rng = np.random.default_rng(1)
    frames = np.stack([ground()] * 4).astype(int) + rng.integers(-8, 9, (4, SIDE, SIDE, 3))
    assert measure_motion(frames.clip(0, 255).astype(np.uint8)).amount == 0


@pytest.mark.parametrize(
    ("y", "x", "place"),
    [(20, 10, "top left"), (20, 105, "top"), (105, 180, "right"), (105, 100, "centre"), (200, 100, "bottom")],
)
def test_a_thing_that_moves_has_a_place_and_the_camera_stands(y: int, x: int, place: str) -> None:
    frames = np.stack([with_square(ground(), y, x + 8 * (number % 3)) for number in range(8)])
    motion = measure_motion(frames)
    assert motion.place == place
    assert not motion.camera_moves and motion.num_new_views == 0
    assert 0 < motion.amount < 0.1


@settings(max_examples=25, deadline=None)
@given(st.integers(-24, 24), st.integers(-24, 24))
def test_a_pan_is_the_camera_and_is_taken_out(dy: int, dx: int) -> None:
    wide = ground(3 * SIDE)
    at = SIDE
    frames = np.stack([wide[at + n * dy :, at + n * dx :][:SIDE, :SIDE] for n in range(4)])
    motion = measure_motion(frames)
    if max(abs(dy), abs(dx)) >= 8:
        assert motion.camera_moves
        assert motion.amount < np.mean(
            [np.mean(np.abs(a.mean(-1) - b.mean(-1)) > 14) for a, b in zip(frames[1:], frames[:-1], strict=True)]
        )


def test_cuts_are_new_views() -> None:
    dark = np.zeros((SIDE, SIDE, 3), np.uint8)
    motion = measure_motion(np.stack([dark, dark, dark + 200, dark + 200, dark, dark]))
    assert motion.num_new_views == 2 and not motion.camera_moves


@pytest.mark.parametrize(
    ("steps", "course"),
    [
        ([0, 0, 4, 4, 40, 60], "growing"),
        ([60, 40, 4, 4, 0, 0], "fading"),
        ([4, 4, 40, 40, 4, 4], "rising and falling"),
        ([20, 20, 20, 20, 20, 20], "even"),
        ([0, 0, 80, 0, 0, 0], "sudden"),
    ],
)
def test_the_course_over_the_clip(steps: list[int], course: str) -> None:
    plain = np.full((SIDE, SIDE, 3), 40, np.uint8)
    place, frames = 40, [with_square(plain, 100, 40, 50)]
    for number, step in enumerate(steps):
        place += step if number % 2 == 0 else -step
        frames.append(with_square(plain, 100, place, 50))
    assert measure_motion(np.stack(frames)).course == course
