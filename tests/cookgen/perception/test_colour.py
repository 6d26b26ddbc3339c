"""Colours by name."""

from __future__ import annotations

import numpy as np
import pytest

from cookgen.perception.colour import NAMES, name_colours


@pytest.mark.parametrize(
    ("rgb", "name"),
    [
        ((5, 5, 5), "black"),
        ((128, 128, 128), "grey"),
        ((250, 250, 250), "white"),
        ((220, 20, 20), "red"),
        ((250, 140, 20), "orange"),
        ((120, 70, 30), "brown"),
        ((250, 230, 40), "yellow"),
        ((40, 180, 40), "green"),
        ((40, 200, 200), "turquoise"),
        ((30, 60, 220), "blue"),
        ((130, 40, 200), "purple"),
        ((240, 90, 180), "pink"),
        ((230, 20, 40), "red"),  # just below 360 degrees
    ],
)
def test_a_plain_colour_has_its_name(rgb: tuple[int, int, int], name: str) -> None:
    assert name in NAMES
    assert name_colours(np.full((2, 30, 40, 3), rgb, np.uint8)).dominant == (name,)


def test_the_two_largest_are_named_and_small_ones_are_not() -> None:
    frame = np.full((1, 100, 100, 3), (220, 20, 20), np.uint8)
    frame[:, :30] = (30, 60, 220)
    frame[:, 30:40] = (40, 180, 40)
    assert name_colours(frame).dominant == ("red", "blue")


@pytest.mark.parametrize(
    ("rgb", "brightness", "warmth"),
    [
        ((10, 10, 10), "dark", "neutral"),
        ((90, 60, 40), "dim", "warm"),
        ((100, 120, 140), "medium-bright", "cool"),
        ((230, 225, 220), "bright", "neutral"),
    ],
)
def test_brightness_and_warmth(rgb: tuple[int, int, int], brightness: str, warmth: str) -> None:
    colours = name_colours(np.full((1, 8, 8, 3), rgb, np.uint8))
    assert (colours.brightness, colours.warmth) == (brightness, warmth)
