"""Distances between features, as pure functions: which network gave them, and of what, is said beside each score."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cookgen.errors import ShapeError

DDOF = 1  # covariances are divided by N - 1, as in numpy.cov and in the reference implementations of FID


def frechet_distance(a_ND: NDArray[np.floating], b_MD: NDArray[np.floating]) -> float:
    """Fréchet distance of two sets of features, each taken as one Gaussian; at least 0, 0 for equal sets.

    |mean a - mean b|^2 + tr(A + B - 2 (A B)^(1/2)), A and B being the covariances with ddof 1. N and M, at least 2,
    need not be equal; the fewer features there are, the larger the distance comes out: compare only those of equal N.
    No matrix root is taken: with A = X'X and B = Y'Y the last trace is the sum of the singular values of X Y', which
    are real and exact also where a covariance is singular.
    Raises ShapeError for arrays of another shape, ValueError for numbers that are not finite.
    Source: Heusel et al., arXiv:1706.08500, eq. 6; Dowson and Landau, 1982.
    """
    if a_ND.ndim != 2 or b_MD.ndim != 2 or a_ND.shape[1] != b_MD.shape[1] or min(len(a_ND), len(b_MD)) < 2:
        raise ShapeError(
            f"features of {list(a_ND.shape)} and {list(b_MD.shape)}; wanted: [N, D] and [M, D] with N, M >= 2"
        )
    roots: list[NDArray[np.float64]] = []
    means: list[NDArray[np.float64]] = []
    traces: list[float] = []
    for features in (a_ND.astype(np.float64), b_MD.astype(np.float64)):
        if not np.isfinite(features).all():
            raise ValueError("a feature is not a finite number")
        mean_D = features.mean(axis=0)
        centred = (features - mean_D) / np.sqrt(len(features) - DDOF)
        roots.append(np.asarray(np.linalg.qr(centred, mode="r")))  # R'R is the covariance; R has at most D rows
        means.append(mean_D)
        traces.append(float(np.square(centred).sum()))
    shared = float(np.linalg.norm(roots[0] @ roots[1].T, ord="nuc"))
    return max(0.0, float(np.square(means[0] - means[1]).sum()) + sum(traces) - 2 * shared)


def clip_t(images_TD: NDArray[np.floating], text_D: NDArray[np.floating]) -> float:
    """CLIP-T: 100 times the mean cosine between frames' embeddings and a text's, -100 to 100.

    Raises ShapeError for arrays of another shape, or an embedding of length 0, which has no direction.
    Source: VideoAuteur, section 5.1, after Hessel et al., arXiv:2104.08718, without their factor 2.5 and cut at 0.
    """
    if images_TD.ndim != 2 or not len(images_TD) or images_TD.shape[1:] != text_D.shape:
        raise ShapeError(
            f"embeddings {list(images_TD.shape)} and {list(text_D.shape)}; wanted: [T, D], T >= 1, and [D]"
        )
    images, text = images_TD.astype(np.float64), text_D.astype(np.float64)
    lengths_T = np.linalg.norm(images, axis=1) * np.linalg.norm(text)
    if not lengths_T.all():
        raise ShapeError("an embedding of length 0 has no direction")
    return float(100 * np.mean(images @ text / lengths_T))
