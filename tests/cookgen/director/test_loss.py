"""The losses: laws, a literal eq. 3, and the mixture beside torch.distributions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal
from torch.nn import functional as F

from cookgen.director.loss import joint_cross_entropy, mixture_nll, regression_loss, regression_losses
from cookgen.errors import ShapeError

laws = settings(deadline=None, max_examples=50)
weights = st.floats(0, 8)
seeds = st.integers(0, 2**31)


def pair(seed: int, shape: tuple[int, ...] = (2, 3, 7)) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)


@laws
@given(seeds, weights, weights)
def test_equal_embeddings_cost_nothing(seed: int, alpha: float, beta: float) -> None:
    pred, _ = pair(seed)
    assert regression_loss(pred, pred.clone(), alpha=alpha, beta=beta).item() == pytest.approx(0, abs=1e-5)


@laws
@given(seeds, weights, weights)
def test_it_is_eq_3_of_each_token(seed: int, alpha: float, beta: float) -> None:
    pred, target = pair(seed)
    expected = np.zeros(2)
    for image in range(2):
        for token in range(3):
            z_hat, z = pred[image, token].double().numpy(), target[image, token].double().numpy()
            direction = 1 - (z_hat @ z) / (np.sqrt(z_hat @ z_hat) * np.sqrt(z @ z))
            expected[image] += (alpha * direction + beta * sum((z_hat - z) ** 2) / 7) / 3
    losses = regression_losses(pred, target, alpha=alpha, beta=beta)
    np.testing.assert_allclose(losses, expected, rtol=1e-5, atol=1e-5)
    assert regression_loss(pred, target, alpha=alpha, beta=beta).item() == pytest.approx(expected.mean(), abs=1e-4)


@laws
@given(seeds, st.floats(0.01, 100))
def test_alpha_weighs_direction_alone(seed: int, factor: float) -> None:
    pred, target = pair(seed)
    before = regression_loss(pred, target, alpha=1, beta=0)
    torch.testing.assert_close(regression_loss(factor * pred, target, alpha=1, beta=0), before, rtol=0, atol=1e-5)


def test_beta_weighs_the_distance() -> None:
    pred, target = pair(0)
    assert regression_loss(2 * pred, target, alpha=0, beta=1) != regression_loss(pred, target, alpha=0, beta=1)
    assert regression_loss(target + 3, target, alpha=0, beta=1).item() == pytest.approx(9, rel=1e-5)
    assert regression_loss(-target, target, alpha=1, beta=0).item() == pytest.approx(2, rel=1e-5)


@laws
@given(seeds, weights, weights, st.permutations(range(3)))
def test_the_order_of_tokens_does_not_matter(seed: int, alpha: float, beta: float, order: list[int]) -> None:
    pred, target = pair(seed)
    moved = regression_losses(pred[:, order], target[:, order], alpha=alpha, beta=beta)
    torch.testing.assert_close(moved, regression_losses(pred, target, alpha=alpha, beta=beta))


def test_the_order_of_one_side_matters() -> None:
    pred, target = pair(0)
    moved = regression_losses(pred[:, [1, 2, 0]], target, alpha=1, beta=1)
    assert not torch.allclose(moved, regression_losses(pred, target, alpha=1, beta=1))


@pytest.mark.parametrize("shape", [(2, 3, 1), (2, 1, 7), (1, 3, 7), (3, 7)])
def test_shapes_that_would_broadcast_are_refused(shape: tuple[int, ...]) -> None:
    pred, _ = pair(0)
    with pytest.raises(ShapeError, match=r"predicted \[2, 3, 7\], target"):
        regression_loss(pred, torch.zeros(shape), alpha=1, beta=1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    pred, target = (300 * value.to(dtype) for value in pair(3))  # squares beyond float16
    loss = regression_loss(pred, target, alpha=1, beta=1)
    assert loss.dtype == torch.float32
    assert loss == regression_loss(pred.float(), target.float(), alpha=1, beta=1)


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-4, 1e4])
@pytest.mark.parametrize("target_size", [0.0, 1e-4, 1e4])
def test_gradients_are_finite_everywhere(size: float, target_size: float) -> None:
    pred, target = pair(1)
    pred = (size * pred).requires_grad_()
    loss = regression_loss(pred, target_size * target, alpha=1, beta=1)
    loss.backward()
    assert loss.isfinite()
    assert pred.grad is not None
    assert pred.grad.isfinite().all()


# The mixture


def mixture(seed: int, *, spread: float = 1.0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Means [2, 3, 4, 5], log variances [2, 3, 4, 5], logits [2, 3, 4], target [2, 3, 5]."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((2, 3, 4, 5), (2, 3, 4, 5), (2, 3, 4), (2, 3, 5))
    mean, log_variance, logits, target = (spread * torch.randn(shape, generator=generator) for shape in shapes)
    return mean, log_variance, logits, target


@laws
@given(seeds, st.floats(0.1, 4))
def test_the_mixture_is_that_of_torch_distributions(seed: int, spread: float) -> None:
    mean, log_variance, logits, target = (value.double() for value in mixture(seed, spread=spread))
    oracle = MixtureSameFamily(
        Categorical(logits=logits), Independent(Normal(mean, (0.5 * log_variance).exp(), validate_args=True), 1)
    )
    # The code works in float32, the oracle in float64: what is left is float32's rounding.
    found = mixture_nll(mean, log_variance, logits, target).double()
    torch.testing.assert_close(found, -oracle.log_prob(target), rtol=2e-5, atol=2e-5)


def test_variances_are_not_standard_deviations() -> None:
    mean, log_variance, logits, target = mixture(0)
    wrong = MixtureSameFamily(Categorical(logits=logits), Independent(Normal(mean, log_variance.exp()), 1))
    assert not torch.allclose(mixture_nll(mean, log_variance, logits, target), -wrong.log_prob(target), rtol=1e-2)


def test_a_mixture_of_equal_parts_is_one_of_them() -> None:
    mean, log_variance, logits, target = mixture(0)
    mean[:], log_variance[:] = mean[:, :, :1].clone(), log_variance[:, :, :1].clone()
    one = mixture_nll(mean[:, :, :1], log_variance[:, :, :1], logits[:, :, :1], target)
    torch.testing.assert_close(mixture_nll(mean, log_variance, logits, target), one)


def test_a_mixtures_shape_is_checked() -> None:
    mean, log_variance, logits, target = mixture(0)
    with pytest.raises(ShapeError):
        mixture_nll(mean, log_variance, logits, target[..., :1])


@pytest.mark.parametrize("log_variance_size", [-10.0, 10.0])
@pytest.mark.parametrize("distance", [0.0, 1e3])
def test_the_mixtures_gradients_are_finite_at_the_clamp(log_variance_size: float, distance: float) -> None:
    mean, log_variance, logits, target = mixture(0)
    given_ = [mean + distance, torch.full_like(log_variance, log_variance_size), 1e3 * logits]
    leaves = [value.requires_grad_() for value in given_]
    loss = mixture_nll(*leaves, target).sum()
    loss.backward()
    assert loss.isfinite()
    assert all(leaf.grad is not None and leaf.grad.isfinite().all() for leaf in leaves)


@laws
@given(seeds, st.integers(0, 9), st.floats(0, 60))
def test_joint_cross_entropy_is_that_of_words_and_marks_side_by_side(seed: int, num_tokens: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    words = (scale * torch.randn(num_tokens, 11, generator=generator)).requires_grad_()
    marks = (scale * torch.randn(num_tokens, 3, generator=generator)).requires_grad_()
    labels = torch.randint(0, 14, (num_tokens,), generator=generator)
    wanted = F.cross_entropy(torch.cat([words, marks], -1), labels, reduction="sum")
    found = joint_cross_entropy(words, marks, labels)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(
        torch.autograd.grad(3 * found, (words, marks)), torch.autograd.grad(3 * wanted, (words, marks)), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=3e-6)


def test_joint_cross_entropy_of_bf16_logits_is_summed_in_float32() -> None:
    words = torch.randn(64, 5000).bfloat16().requires_grad_()
    marks = torch.randn(64, 5).bfloat16().requires_grad_()
    labels = torch.randint(0, 5005, (64,))
    found = joint_cross_entropy(words, marks, labels)
    wanted = F.cross_entropy(torch.cat([words, marks], -1).float(), labels, reduction="sum")
    torch.testing.assert_close(found, wanted)
    assert torch.autograd.grad(found, words)[0].dtype == torch.bfloat16
