"""From hidden states to visual embeddings. Both heads work on standardised embeddings y = (z - mean) / scale.

Shapes: M images, N tokens an image, H hidden size, W width of z, K components.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn

from cookgen.director.loss import mixture_nll, regression_losses

MAX_LOG_VARIANCE = 10.0  # both ways: exp of more is no variance but an overflow


class RegressionHead(nn.Module):
    """z as a linear function of the hidden state; the loss is VideoAuteur's eq. 3."""

    def __init__(self, hidden_size: int, width: int, *, alpha: float, beta: float) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden_size, width)
        nn.init.normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)
        self.alpha, self.beta = alpha, beta

    def forward(self, hidden_MNH: Tensor) -> Tensor:
        """[M, N, W], standardised."""
        out: Tensor = self.linear(hidden_MNH)
        return out

    def predict(self, out_MNW: Tensor) -> Tensor:
        """The embedding that is meant: [M, N, W], standardised."""
        return out_MNW

    def sample(self, out_MNW: Tensor, *, temperature: float, generator: Generator | None) -> Tensor:
        """As `predict`: a regression has nothing to draw."""
        return out_MNW

    def losses(self, out_MNW: Tensor, target_MNW: Tensor, mean_W: Tensor, scale: Tensor) -> Tensor:
        """float32 [M]: eq. 3 of each image. Cosines are those of z itself, squares those of the standardised."""
        out_MNW, target_MNW = out_MNW.float(), target_MNW.float()
        squares_M = (out_MNW - target_MNW).square().mean((1, 2))
        direction_M = regression_losses(mean_W + scale * out_MNW, mean_W + scale * target_MNW, alpha=self.alpha, beta=0)
        return direction_M + self.beta * squares_M


class MixtureHead(nn.Module):
    """z's tokens as a mixture of K diagonal Gaussians: a linear layer of size 2KW + K.

    The loss is NLL / W + L1 + L2, the last two on the mixture's mean. Source: MovieDreamer, section 3.4, eq. 4, 9.
    """

    def __init__(self, hidden_size: int, width: int, *, components: int) -> None:
        super().__init__()
        self.width, self.components = width, components
        self.linear = nn.Linear(hidden_size, components * (2 * width + 1))
        nn.init.normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)

    def forward(self, hidden_MNH: Tensor) -> Tensor:
        """[M, N, K (2W + 1)]: means, log variances, logits of the components."""
        out: Tensor = self.linear(hidden_MNH)
        return out

    def parameters_of(self, out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Means [M, N, K, W], log variances [M, N, K, W] in [-10, 10], logits [M, N, K], float32."""
        size = self.components * self.width
        mean, log_variance, logits = torch.split(out.float(), [size, size, self.components], dim=-1)
        shape = (*out.shape[:-1], self.components, self.width)
        return mean.reshape(shape), log_variance.reshape(shape).clamp(-MAX_LOG_VARIANCE, MAX_LOG_VARIANCE), logits

    def predict(self, out: Tensor) -> Tensor:
        """The mixture's mean: [M, N, W], standardised."""
        mean_MNKW, _, logits_MNK = self.parameters_of(out)
        return (logits_MNK.softmax(-1).unsqueeze(-1) * mean_MNKW).sum(-2)

    def sample(self, out: Tensor, *, temperature: float, generator: Generator | None) -> Tensor:
        """A draw [M, N, W], standardised. temperature: divides the logits, multiplies the variances; 0 is the mode."""
        mean_MNKW, log_variance, logits_MNK = self.parameters_of(out)
        if temperature == 0:
            chosen = logits_MNK.argmax(-1, keepdim=True)
        else:
            weights = (logits_MNK / temperature).softmax(-1).flatten(0, 1)
            chosen = torch.multinomial(weights, 1, generator=generator).view(*logits_MNK.shape[:2], 1)
        index = chosen.unsqueeze(-1).expand(*chosen.shape, self.width)
        mean_MNW = mean_MNKW.gather(2, index).squeeze(2)
        if temperature == 0:
            return mean_MNW
        noise = torch.randn(mean_MNW.shape, generator=generator, device=mean_MNW.device)
        return mean_MNW + noise * (temperature * log_variance.gather(2, index).squeeze(2).exp()).sqrt()

    def losses(self, out: Tensor, target_MNW: Tensor, mean_W: Tensor, scale: Tensor) -> Tensor:
        """float32 [M]: NLL / W + L1 + L2 of each image, on standardised tokens."""
        nll_MN = mixture_nll(*self.parameters_of(out), target_MNW) / self.width
        error_MNW = self.predict(out) - target_MNW.float()
        return (nll_MN + error_MNW.abs().mean(-1) + error_MNW.square().mean(-1)).mean(-1)
