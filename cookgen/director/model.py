"""The network: a causal language model, new embedding rows, a projector for z going in and a head for z coming out.

Source: VideoAuteur, section 4.1 and figure 3. Shapes: R rows of L tokens, H hidden size, V words, F images fed in,
T tokens learned, M images read, P of these with a step before them, N tokens an image, W width of z.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cookgen.director.attention import can_flex, visible
from cookgen.director.config import DirectorConfig
from cookgen.director.head import MixtureHead, RegressionHead
from cookgen.director.inputs import IMAGE_TERMS, LATER_TERMS, MARKS, Batch, Vocabulary
from cookgen.director.loss import joint_cross_entropy
from cookgen.errors import ShapeError, UsageError


@dataclass(frozen=True)
class Embeddings:
    """What z is: N tokens of width W, and where they lie: mean [W], and scale, the standard deviation about it."""

    num_tokens: int
    width: int
    mean: Sequence[float]
    scale: float

    def __post_init__(self) -> None:
        is_finite = all(map(math.isfinite, (*self.mean, self.scale)))
        if self.num_tokens < 1 or len(self.mean) != self.width or not self.scale > 0 or not is_finite:
            raise ShapeError(
                f"embeddings of {self.num_tokens} tokens of width {self.width}: {len(self.mean)} means, scale "
                f"{self.scale}; a token, a finite mean for each channel and a scale above 0 are needed"
            )


class Director(nn.Module):
    """Reads batches of `inputs.Packer`; gives sums of losses and of measures, see `forward`.

    language_model: a causal language model of transformers. embeddings: what z is, None for the task action-caption.
    Raises UsageError for sequences longer than the language model sees.
    """

    mean_W: Tensor
    scale: Tensor

    def __init__(self, config: DirectorConfig, language_model: Any, embeddings: Embeddings | None) -> None:
        super().__init__()
        self.config = config
        self.language_model = language_model
        _check_length(config.sequence.max_length, language_model.config.get_text_config())
        words = language_model.get_input_embeddings().weight
        num_words, hidden_size = words.shape
        self.num_tokens = embeddings.num_tokens if embeddings else 0  # of a z
        num_queries = self.num_tokens if config.head.readout == "queries" else 0
        self.vocabulary = Vocabulary(num_words, num_queries)
        # One row a mark and a query; a mark's row is both what it looks like and what predicts it.
        self.rows = nn.Embedding(self.vocabulary.num_rows, hidden_size)
        size = 0.02 if words.is_meta else float(words.detach().float().square().mean().sqrt())
        nn.init.normal_(self.rows.weight, std=size)
        self.dropout = nn.Dropout(config.regularization.dropout)
        self.head: RegressionHead | MixtureHead | None = None
        if embeddings is not None:
            self._add_visual(embeddings, hidden_size, size)

    def _add_visual(self, embeddings: Embeddings, hidden_size: int, size: float) -> None:
        config, width = self.config.head, embeddings.width
        first, second = nn.Linear(width, hidden_size), nn.Linear(hidden_size, hidden_size)
        # Standardised z in, vectors of the words' size out: a pretrained model meets nothing louder than words.
        nn.init.normal_(first.weight, std=width**-0.5)
        nn.init.normal_(second.weight, std=size / (0.65 * hidden_size**0.5))  # 0.65: GELU of a unit normal
        nn.init.zeros_(first.bias)
        nn.init.zeros_(second.bias)
        self.projector = nn.Sequential(first, nn.GELU(), second)
        if config.kind == "mixture":
            self.head = MixtureHead(hidden_size, width, components=config.components)
        else:
            self.head = RegressionHead(hidden_size, width, alpha=config.alpha, beta=config.beta)
        self.register_buffer("mean_W", torch.tensor(embeddings.mean, dtype=torch.float32))
        self.register_buffer("scale", torch.tensor(embeddings.scale, dtype=torch.float32))

    @property
    def loss_weights(self) -> Mapping[str, float]:
        """The terms that make the loss: cross entropy a token, and the loss of z an image."""
        return {"text": self.config.text_weight} | ({} if self.head is None else {"visual": 1.0})

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Sums over the batch, float32 scalars, by the names of batch.counts.

        text: cross entropy, over tokens. visual: the loss of z, over images. The rest is measured, not learned: l2 and
        cosine of z (a token at a time, averaged over its tokens), the same for the mean z and for the previous step's.
        """
        z_FNW = self.standardise(batch.z_FNW) if self.head is not None else batch.z_FNW
        seen = self._visible(batch)
        mix = self.config.regularization.history_mix
        if self.training and mix:
            with torch.no_grad():
                out = self.read(self._hidden(batch, z_FNW, seen).flatten(0, 1)[batch.read_MN])
            z_FNW = _mixed(z_FNW, self._predict(out).to(z_FNW.dtype), batch.fed_of_read_M, mix)
        hidden_H = self._hidden(batch, z_FNW, seen).flatten(0, 1)
        labels_T = batch.labels_RL.flatten()[batch.learned_T]
        sums = {"text": joint_cross_entropy(*self._logits(hidden_H[batch.learned_T]), labels_T)}
        if self.head is None:
            return sums | dict.fromkeys((*IMAGE_TERMS, *LATER_TERMS), torch.zeros_like(sums["text"]))
        out = self.read(hidden_H[batch.read_MN])
        target_MNW = self.standardise(batch.z_FNW)[batch.fed_of_read_M]
        sums["visual"] = self.head.losses(out, target_MNW, self.mean_W, self.scale).sum()
        with torch.no_grad():
            sums |= self._measures(self.restore(self._predict(out)), batch)
        return sums

    def _measures(self, pred_MNW: Tensor, batch: Batch) -> dict[str, Tensor]:
        target_MNW = batch.z_FNW[batch.fed_of_read_M]
        later_P = batch.later_P
        previous_PNW = batch.z_FNW[batch.before_read_M[later_P]]
        of_model, of_mean = _distances(pred_MNW, target_MNW), _distances(self.mean_W.expand_as(target_MNW), target_MNW)
        of_previous = _distances(previous_PNW, target_MNW[later_P])
        found = (*(values.sum() for values in (*of_model, *of_mean)),)
        later = (*(values[later_P].sum() for values in of_model), *(values.sum() for values in of_previous))
        return dict(zip((*IMAGE_TERMS[1:], *LATER_TERMS), (*found, *later), strict=True))

    # What training and generation share.

    def standardise(self, z: Tensor) -> Tensor:
        """z as the network has it: mean 0, standard deviation 1."""
        return (z.float() - self.mean_W) / self.scale

    def restore(self, y: Tensor) -> Tensor:
        """The encoder's z of a standardised one, float32."""
        return y.float() * self.scale + self.mean_W

    def embed(self, ids: Tensor) -> Tensor:
        """Embeddings [..., H] of words, marks and queries."""
        own = ids >= self.vocabulary.num_words
        words = self.language_model.get_input_embeddings()(ids.masked_fill(own, 0))
        rows = self.rows((ids - self.vocabulary.num_words).clamp(min=0)).to(words.dtype)
        return torch.where(own.unsqueeze(-1), rows, words)

    def project(self, y_FNW: Tensor) -> Tensor:
        """Embeddings [F, N, H] of standardised z."""
        out: Tensor = self.projector(y_FNW)
        return out

    def hidden(self, embedded_RLH: Tensor, *, positions: Tensor, cache: Any = None, **attention: Any) -> Tensor:
        """The last hidden states [R, L, H]. attention: see attention.visible; without, a token sees all before it."""
        found = self.language_model.get_decoder()(
            inputs_embeds=embedded_RLH,
            position_ids=positions,
            past_key_values=cache,
            use_cache=cache is not None,
            **attention,
        )
        states: Tensor = found.last_hidden_state
        return states

    def logits(self, hidden_TH: Tensor) -> Tensor:
        """[T, V + 5]: words, then MARKS."""
        return torch.cat(self._logits(hidden_TH), -1)

    def _logits(self, hidden_TH: Tensor) -> tuple[Tensor, Tensor]:
        words_TV = self.language_model.get_output_embeddings()(hidden_TH)
        return words_TV, F.linear(hidden_TH, self.rows.weight[: len(MARKS)].to(hidden_TH.dtype)).to(words_TV)

    def read(self, hidden_MNH: Tensor) -> Tensor:
        """What the head makes of the hidden states at queries."""
        assert self.head is not None
        out: Tensor = self.head(self.dropout(hidden_MNH.to(self.head.linear.weight.dtype)))
        return out

    def _predict(self, out: Tensor) -> Tensor:
        assert self.head is not None
        return self.head.predict(out)

    def _hidden(self, batch: Batch, z_FNW: Tensor, seen: Mapping[str, Any]) -> Tensor:
        embedded = self.embed(batch.ids_RL)
        if self.head is not None:
            flat = embedded.flatten(0, 1)
            projected = self.project(z_FNW).flatten(0, 1).to(flat.dtype)
            embedded = flat.index_copy(0, batch.fed_FN.flatten(), projected).view_as(embedded)
        return self.hidden(self.dropout(embedded), positions=batch.positions_RL, **seen)

    def _visible(self, batch: Batch) -> dict[str, Any]:
        """A token sees its own document's earlier tokens but those of other blocks of queries."""
        masked = None
        if self.training and (rate := self.config.regularization.mask_rate):
            masked = (torch.rand(batch.ids_RL.shape, device=batch.ids_RL.device) < rate) & (batch.blocks_RL == 0)
        attention = self.config.language_model.attention
        on_gpu = batch.ids_RL.is_cuda and can_flex(self.language_model)
        return visible(batch, masked, flex=attention == "flex_attention" or (attention == "auto" and on_gpu))


def _check_length(max_length: int, found: Any) -> None:
    for name in ("max_position_embeddings", "sliding_window"):
        limit = getattr(found, name, None)
        if limit is not None and max_length > limit:
            raise UsageError(
                f"model.sequence.max-length={max_length}: the language model has {name}={limit}; give {limit} or less"
            )


def _mixed(z_FNW: Tensor, predicted_MNW: Tensor, fed_of_read_M: Tensor, rate: float) -> Tensor:
    """z with some images replaced by their predictions, each with probability `rate`."""
    chosen_M11 = torch.rand(len(predicted_MNW), 1, 1, device=z_FNW.device) < rate
    return z_FNW.index_copy(0, fed_of_read_M, torch.where(chosen_M11, predicted_MNW, z_FNW[fed_of_read_M]))


def _distances(pred_MNW: Tensor, target_MNW: Tensor) -> tuple[Tensor, Tensor]:
    """Euclidean distance and cosine of each image [M], the mean over its tokens."""
    pred_MNW, target_MNW = pred_MNW.float(), target_MNW.float()
    l2_M = (pred_MNW - target_MNW).norm(dim=-1).mean(-1)
    return l2_M, F.cosine_similarity(pred_MNW, target_MNW, dim=-1).mean(-1)
