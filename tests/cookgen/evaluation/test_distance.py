"""Fréchet distance and CLIP-T against scipy, known values, and their own laws."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import sqrtm

from cookgen.errors import ShapeError
from cookgen.evaluation.distance import clip_t, frechet_distance


def draw(num: int, width: int, *, seed: int, scale: float = 1.0, shift: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((width, width))
    return scale * rng.standard_normal((num, width)) @ mix + shift


def by_scipy(a: np.ndarray, b: np.ndarray) -> float:
    """The textbook's formula with a matrix root."""
    covariances = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = sqrtm(covariances[0] @ covariances[1]).real
    return float(np.square(a.mean(0) - b.mean(0)).sum() + np.trace(covariances[0] + covariances[1] - 2 * root))


@pytest.mark.parametrize(("num", "other", "width"), [(200, 150, 8), (300, 300, 32), (65, 70, 64)])
def test_parity_with_scipy(num: int, other: int, width: int) -> None:
    a, b = draw(num, width, seed=1), draw(other, width, seed=2, scale=1.5, shift=0.3)
    assert frechet_distance(a, b) == pytest.approx(by_scipy(a, b), rel=1e-8)
    assert frechet_distance(a.astype(np.float32), b.astype(np.float32)) == pytest.approx(by_scipy(a, b), rel=1e-5)


def test_parity_with_torchmetrics() -> None:
    """What FrechetInceptionDistance of torchmetrics 1.9.0 gives for these, with the pixels as features, in float64."""
    rng = np.random.default_rng(7)
    a, b = (rng.integers(low, high, (100, 3, 4, 4), dtype=np.uint8) for low, high in ((0, 200), (100, 255)))
    assert frechet_distance(*(x.reshape(100, -1).astype(float) for x in (a, b))) == pytest.approx(328979.0735635044)


def test_gaussians_of_which_the_distance_is_known() -> None:
    signs = np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])  # covariance 4/3 of the identity, ddof 1
    assert frechet_distance(signs, signs + np.array([3.0, 4.0])) == pytest.approx(25)
    assert frechet_distance(signs, 3 * signs) == pytest.approx(2 * (4 / 3) * (3 - 1) ** 2)
    # One feature wide: (m - m')^2 + (s - s')^2.
    a, b = np.array([[0.0], [2.0]]), np.array([[1.0], [5.0]])
    assert frechet_distance(a, b) == pytest.approx((1 - 3) ** 2 + (2**0.5 - 8**0.5) ** 2)


def test_fewer_features_than_they_are_wide() -> None:
    a, b = draw(5, 512, seed=1), draw(4, 512, seed=2)
    assert 0 < frechet_distance(a, b) < np.inf
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-8 * np.square(a).sum())
    # By the formula with the covariances' roots, which eigh can take.
    values, vectors = np.linalg.eigh(np.cov(a, rowvar=False))
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    inner = np.sqrt(np.clip(np.linalg.eigvalsh(root @ np.cov(b, rowvar=False) @ root), 0, None)).sum()
    means = np.square(a.mean(0) - b.mean(0)).sum()
    expected = means + np.trace(np.cov(a, rowvar=False)) + np.trace(np.cov(b, rowvar=False)) - 2 * inner
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)


@given(st.integers(2, 12), st.integers(2, 12), st.integers(1, 9), st.integers(0, 2**31))
def test_laws(num: int, other: int, width: int, seed: int) -> None:
    a, b = draw(num, width, seed=seed), draw(other, width, seed=seed + 1, shift=1.0)
    distance = frechet_distance(a, b)
    tolerance = 1e-9 * (1 + np.square(a).sum() + np.square(b).sum())
    assert distance >= 0
    assert frechet_distance(b, a) == pytest.approx(distance, abs=tolerance)
    assert frechet_distance(a[::-1], b) == pytest.approx(distance, abs=tolerance)
    assert frechet_distance(a, a) == pytest.approx(0, abs=tolerance)
    turn, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((width, width)))
    assert frechet_distance(a @ turn + 2, b @ turn + 2) == pytest.approx(distance, abs=tolerance)
    assert frechet_distance(a, b + 100) > distance  # the mean moves away


@pytest.mark.parametrize("shapes", [((1, 4), (5, 4)), ((5, 4), (5, 3)), ((5,), (5,)), ((0, 4), (5, 4))])
def test_what_is_no_set_of_features_is_refused(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    with pytest.raises(ShapeError, match="wanted"):
        frechet_distance(*(np.zeros(shape) for shape in shapes))


def test_numbers_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="not a finite number"):
        frechet_distance(np.array([[0.0], [np.nan]]), np.zeros((2, 1)))


def test_clip_t() -> None:
    text = np.array([2.0, 0.0])
    assert clip_t(np.array([[5.0, 0.0]]), text) == pytest.approx(100)
    assert clip_t(np.array([[0.0, 1.0], [-3.0, 0.0]]), text) == pytest.approx(-50)
    assert clip_t(np.array([[1.0, 1.0]]), text) == pytest.approx(100 / 2**0.5)
    for images, words in ((np.zeros((1, 2)), text), (np.ones((0, 2)), text), (np.ones((1, 3)), text), (text, text)):
        with pytest.raises(ShapeError):
            clip_t(images, words)
