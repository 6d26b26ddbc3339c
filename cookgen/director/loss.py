"""Losses on visual embeddings. Shapes: M images, N tokens an image, W width, K components."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from cookgen.errors import ShapeError


def regression_loss(pred_BND: Tensor, target_BND: Tensor, *, alpha: float, beta: float) -> Tensor:
    """Scale-and-direction loss on visual embeddings; scalar float32.

    pred_BND, target_BND: batch, tokens, width. alpha weighs 1 - cosine (direction), a token at a time over the width;
    beta the mean squared error (scale). Raises ShapeError if the shapes differ. Source: VideoAuteur, eq. 3.
    """
    return regression_losses(pred_BND, target_BND, alpha=alpha, beta=beta).mean()


def regression_losses(pred_MNW: Tensor, target_MNW: Tensor, *, alpha: float, beta: float) -> Tensor:
    """`regression_loss` of each image: float32 [M]. Raises ShapeError if the shapes differ."""
    _same_shape(pred_MNW, target_MNW)
    pred_MNW, target_MNW = pred_MNW.float(), target_MNW.float()
    direction_MN = 1 - F.cosine_similarity(pred_MNW, target_MNW, dim=-1)
    scale_MN = (pred_MNW - target_MNW).square().mean(-1)
    return (alpha * direction_MN + beta * scale_MN).mean(-1)


def mixture_nll(mean_MNKW: Tensor, log_variance_MNKW: Tensor, logits_MNK: Tensor, target_MNW: Tensor) -> Tensor:
    """-log p(target) under a mixture of diagonal Gaussians, summed over width, not divided: float32 [M, N].

    Source: MovieDreamer, eq. 7.
    """
    _same_shape(mean_MNKW[:, :, 0], target_MNW)
    mean, log_variance, target = mean_MNKW.float(), log_variance_MNKW.float(), target_MNW.float().unsqueeze(2)
    log_normal_MNK = -0.5 * ((target - mean).square() * (-log_variance).exp() + log_variance + math.log(math.tau)).sum(
        -1
    )
    return -torch.logsumexp(logits_MNK.float().log_softmax(-1) + log_normal_MNK, dim=-1)


def _same_shape(pred: Tensor, target: Tensor) -> None:
    if pred.shape != target.shape:
        raise ShapeError(f"predicted {list(pred.shape)}, target {list(target.shape)}: both must have the same shape")
