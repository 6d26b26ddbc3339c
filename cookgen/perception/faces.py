"""Whether somebody looks into the camera: dlib's detector of frontal faces."""

from __future__ import annotations

from functools import cache
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

SIDE = 448  # px; the detector finds faces of 80 px and more, here 18 % of the picture's height


def has_face(luma_HW: NDArray[np.uint8]) -> bool:
    """Whether a frontal face fills 18 % of the picture's height or more; uint8 [SIDE, SIDE], grey.

    A hand, a profile and a face that looks down are none. Of 422 frames of real videos and of the demo's it named 33;
    the ten that were looked at show a face, once a statue's. Source: dlib's HOG detector, after Dalal and Triggs 2005.
    """
    assert luma_HW.shape == (SIDE, SIDE), luma_HW.shape
    return bool(_detector()(luma_HW, 0))


def face_detector() -> str:
    """The detector's "id@version", for lineage."""
    return f"dlib@{version('dlib-bin')}"


@cache
def _detector() -> Any:
    import dlib

    return dlib.get_frontal_face_detector()
