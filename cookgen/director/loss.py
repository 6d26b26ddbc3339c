"""The losses, of text and of visual embeddings. Shapes: M images, N tokens an image, W width, K components."""

from __future__ import annotations

import math
from typing import Any

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


def joint_cross_entropy(words_TV: Tensor, marks_TK: Tensor, labels_T: Tensor) -> Tensor:
    """Sum over T tokens of the cross entropy of words and marks side by side, labels in [0, V + K); scalar float32.

    As F.cross_entropy of both joined, in float32, without the copies that a large vocabulary makes dear.
    """
    loss: Tensor = _JointCrossEntropy.apply(words_TV, marks_TK, labels_T)  # type: ignore[no-untyped-call]
    return loss


class _JointCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, words_TV: Tensor, marks_TK: Tensor, labels_T: Tensor) -> Tensor:
        num_words = words_TV.shape[1]
        highest_T1 = torch.maximum(words_TV.amax(-1, keepdim=True), marks_TK.amax(-1, keepdim=True)).float()
        of_words_T1, of_marks_T1 = ((part - highest_T1).exp_().sum(-1, keepdim=True) for part in (words_TV, marks_TK))
        log_total_T1 = (of_words_T1 + of_marks_T1).log()  # not added to the highest logit, which would round it
        word_T1, mark_T1, is_mark_T1 = _places(labels_T, num_words)
        chosen_T1 = torch.where(is_mark_T1, marks_TK.gather(1, mark_T1), words_TV.gather(1, word_T1))
        ctx.save_for_backward(words_TV, marks_TK, labels_T, highest_T1, log_total_T1)
        return (log_total_T1 - (chosen_T1 - highest_T1)).sum()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        words_TV, marks_TK, labels_T, highest_T1, log_total_T1 = ctx.saved_tensors
        word_T1, mark_T1, is_mark_T1 = _places(labels_T, words_TV.shape[1])
        found = []
        for part, place_T1, chosen_T1 in ((words_TV, word_T1, ~is_mark_T1), (marks_TK, mark_T1, is_mark_T1)):
            probabilities = (part - highest_T1).sub_(log_total_T1).exp_()
            probabilities.scatter_add_(1, place_T1, -chosen_T1.to(probabilities.dtype))
            found.append(probabilities.mul_(gradients[0]).to(part.dtype))
        return found[0], found[1], None


def _places(labels_T: Tensor, num_words: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of each label its place among the words, its place among the marks, and which of them holds."""
    labels_T1 = labels_T[:, None]
    return labels_T1.clamp(max=num_words - 1), (labels_T1 - num_words).clamp(min=0), labels_T1 >= num_words
