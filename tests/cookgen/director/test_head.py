"""The heads: what they predict, draw and cost."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Generator, Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from cookgen.director.head import MixtureHead, RegressionHead
from cookgen.director.loss import regression_losses

WIDTH, COMPONENTS = 3, 2
MEAN_W, SCALE = torch.tensor([1.0, -2.0, 0.5]), torch.tensor(2.5)


def mixture_head() -> MixtureHead:
    return MixtureHead(8, WIDTH, components=COMPONENTS)


def output(num: int) -> Tensor:
    """The same mixture [num, 1, K (2W + 1)]: parts at -2 and 3, of variances e^-1 and e^0.5, weights 0.3 and 0.7."""
    means = [-2.0] * WIDTH + [3.0] * WIDTH
    log_variances = [-1.0] * WIDTH + [0.5] * WIDTH
    return torch.tensor([*means, *log_variances, math.log(0.3), math.log(0.7)]).expand(num, 1, -1)


def test_the_layer_has_the_size_of_the_paper() -> None:
    head = mixture_head()
    assert head(torch.zeros(4, 2, 8)).shape == (4, 2, 2 * COMPONENTS * WIDTH + COMPONENTS)
    assert RegressionHead(8, WIDTH, alpha=1, beta=1)(torch.zeros(4, 2, 8)).shape == (4, 2, WIDTH)


def test_a_mixture_predicts_its_mean() -> None:
    predicted = mixture_head().predict(output(2))
    torch.testing.assert_close(predicted, torch.full((2, 1, WIDTH), 0.3 * -2 + 0.7 * 3))


def kolmogorov_smirnov(drawn: Tensor, low: float) -> float:
    """Largest gap between the distribution of draws [n] and that of the mixture, times sqrt(n): 1.95 at p = 0.001."""
    value, num = drawn.double().sort().values, len(drawn)
    parts = (torch.special.ndtr((value - mean) / sd) for mean, sd in ((-2, math.exp(-0.5)), (3, math.exp(0.25))))
    cumulative = low * next(parts) + (1 - low) * next(parts)
    return float((cumulative - (torch.arange(num) + 0.5) / num).abs().max()) * num**0.5


def test_draws_follow_the_mixture() -> None:
    drawn = mixture_head().sample(output(4000), temperature=1, generator=Generator().manual_seed(0))
    for channel in range(WIDTH):
        assert kolmogorov_smirnov(drawn[:, 0, channel], 0.3) < 1.95
    assert kolmogorov_smirnov(drawn[:, 0, 0], 0.35) > 1.95  # it can fail
    parts = drawn[:, 0] > 0.5
    assert ((parts.sum(-1) == 0) | (parts.sum(-1) == WIDTH)).float().mean() > 0.9  # one part for all channels


def test_temperature_narrows_and_zero_is_the_mode() -> None:
    head = mixture_head()
    cold = head.sample(output(2000), temperature=0.25, generator=Generator().manual_seed(0))
    upper = cold[cold[:, 0, 0] > 0.5]
    weights = torch.softmax(torch.tensor([0.3, 0.7]).log() / 0.25, -1)
    assert len(upper) / 2000 == pytest.approx(weights[1].item(), abs=0.02)
    assert upper.std().item() == pytest.approx((0.25 * math.exp(0.5)) ** 0.5, rel=0.05)
    assert torch.equal(head.sample(output(3), temperature=0, generator=None), torch.full((3, 1, WIDTH), 3.0))


def test_draws_repeat_with_their_seed() -> None:
    head = mixture_head()
    draws = [head.sample(output(3), temperature=1, generator=Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_a_mixture_costs_nll_by_width_and_l1_and_l2_of_its_mean() -> None:
    head = mixture_head()
    torch.manual_seed(0)
    out, target = torch.randn(4, 2, COMPONENTS * (2 * WIDTH + 1)), torch.randn(4, 2, WIDTH)
    mean, log_variance, logits = head.parameters_of(out)
    oracle = MixtureSameFamily(Categorical(logits=logits), Independent(Normal(mean, (log_variance / 2).exp()), 1))
    error = oracle.mean - target
    expected = -oracle.log_prob(target) / WIDTH + error.abs().mean(-1) + (error**2).mean(-1)
    torch.testing.assert_close(head.losses(out, target, MEAN_W, SCALE), expected.mean(-1))


def test_wild_hidden_states_keep_the_mixture_finite() -> None:
    head = mixture_head()
    hidden = (1e4 * torch.randn(4, 2, 8)).requires_grad_()
    loss = head.losses(head(hidden), torch.zeros(4, 2, WIDTH), MEAN_W, SCALE).sum()
    loss.backward()
    assert loss.isfinite()
    assert hidden.grad is not None
    assert hidden.grad.isfinite().all()
    assert head.parameters_of(head(hidden))[1].abs().max() <= 10


def test_a_regression_weighs_the_cosine_of_z_and_squares_in_units_of_its_variance() -> None:
    torch.manual_seed(0)
    out, target = torch.randn(4, 2, WIDTH), torch.randn(4, 2, WIDTH)
    found = RegressionHead(8, WIDTH, alpha=2, beta=3).losses(out, target, MEAN_W, SCALE)
    z_hat, z = MEAN_W + SCALE * out, MEAN_W + SCALE * target
    expected = regression_losses(z_hat, z, alpha=2, beta=0) + regression_losses(z_hat, z, alpha=0, beta=3) / SCALE**2
    torch.testing.assert_close(found, expected)
    standardised = regression_losses(out, target, alpha=2, beta=3)
    assert not torch.allclose(found, standardised)  # the cosine of standardised embeddings is another one


def test_a_regression_draws_what_it_predicts() -> None:
    head = RegressionHead(8, WIDTH, alpha=1, beta=1)
    out = torch.randn(2, 1, WIDTH)
    assert torch.equal(head.sample(out, temperature=1, generator=None), head.predict(out))


@pytest.mark.parametrize("head", [mixture_head(), RegressionHead(8, WIDTH, alpha=1, beta=1)], ids=["mixture", "linear"])
def test_no_images_cost_nothing_and_keep_the_graph(head: MixtureHead | RegressionHead) -> None:
    loss = head.losses(head(torch.zeros(0, 2, 8)), torch.zeros(0, 2, WIDTH), MEAN_W, SCALE).sum()
    loss.backward()
    assert loss == 0
    assert head.linear.weight.grad is not None
    assert not head.linear.weight.grad.any()
