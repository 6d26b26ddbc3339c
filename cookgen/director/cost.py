"""What a director costs: parameters, floating-point operations, memory. Counted, not measured.

Shapes: R rows of L tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cookgen.director.config import DirectorConfig
from cookgen.director.inputs import MARKS, Batch
from cookgen.director.model import Director, Embeddings
from cookgen.director.weights import empty_language_model


@dataclass(frozen=True)
class Cost:
    """Counts of a director's parts."""

    num_parameters: int
    num_trained: int
    token_flops: int  # operations for every token: the language model's layers
    word_flops: int  # for every token whose word is predicted: words and marks
    fed_flops: int  # for every token of a z that is fed: the projector
    read_flops: int  # for every token of a z that is read: the head
    pair_flops: int  # for every (query, key) that the mask shows
    num_words: int
    num_layers: int
    hidden_size: int

    def flops(self, *, num_tokens: int, num_learned: int, num_pairs: int, num_fed: int = 0, num_read: int = 0) -> float:
        """Floating-point operations of one forward and backward: of the matrix products, all else is left out.

        Of a token and matrix weight 6, or 4 where it is frozen (no gradient of the weight); 12 of an attention channel,
        layer and visible pair of tokens. Recomputed activations and the first pass of history_mix are not counted.
        num_learned: tokens whose word is predicted; num_pairs: see num_visible_pairs; num_fed, num_read: tokens of z.
        Source: PaLM (arXiv:2204.02311), appendix B.
        """
        of_z = self.fed_flops * num_fed + self.read_flops * num_read
        return float(self.token_flops * num_tokens + self.word_flops * num_learned + self.pair_flops * num_pairs + of_z)

    def memory_gib(self, *, num_tokens: int, num_learned: int, is_bf16: bool, checkpointing: bool, ema: bool) -> float:
        """GiB of one rank without sharding: weights, gradients, AdamW's moments, activations, logits. An estimate.

        Activations: 34 bytes a token, channel and layer in bfloat16 (Korthikanti et al., arXiv:2205.05198, without
        the scores, which attention kernels do not keep), or 2 and one layer in full where layers are recomputed.
        """
        size = 2 if is_bf16 else 4
        weights = (self.num_parameters - self.num_trained) * size + self.num_trained * 4
        training = self.num_trained * (4 + 8 + (4 if ema else 0))
        layer = 17 * size * num_tokens * self.hidden_size
        kept = size * num_tokens * self.hidden_size
        activations = self.num_layers * kept + layer if checkpointing else self.num_layers * layer
        logits = 8 * num_learned * self.num_words  # themselves and, as float32, their gradient, cast to what they are
        return (weights + training + activations + logits) / 2**30


def cost_of(director: Director) -> Cost:
    """Counts a director, with storage or on the meta device."""
    model, head = director.language_model, director.head
    config = model.config.get_text_config()
    numbers = [(weight.numel(), weight.requires_grad) for weight in director.parameters()]
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    marks = 6 * len(MARKS) * config.hidden_size
    # z needs no gradient: the projector's first matrix has none to pass on.
    projector = 0 if head is None else _flops(director.projector) - 2 * next(director.projector.parameters()).numel()
    return Cost(
        num_parameters=sum(number for number, _ in numbers),
        num_trained=sum(number for number, trained in numbers if trained),
        token_flops=_flops(model.get_decoder()),
        word_flops=_flops(model.get_output_embeddings()) + marks,
        fed_flops=projector,
        read_flops=0 if head is None else _flops(head),
        pair_flops=12 * config.num_attention_heads * head_dim * config.num_hidden_layers,
        num_words=config.vocab_size,
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
    )


def _flops(module: nn.Module) -> int:
    """Operations a token, forward and backward, of the matrices that multiply it; looking an embedding up is none."""
    parts = (part for part in module.modules() if not isinstance(part, nn.Embedding))
    weights = (weight for part in parts for weight in part.parameters(recurse=False) if weight.ndim > 1)
    return sum((6 if weight.requires_grad else 4) * weight.numel() for weight in weights)


def planned_cost(config: DirectorConfig, *, num_tokens: int, width: int) -> Cost:
    """The counts of a director that is not there yet; only the language model's configuration is read.

    num_tokens, width: of z.
    """
    embeddings = Embeddings(num_tokens, width, (0.0,) * width, 1.0) if config.sequence.has_visual else None
    language_model = empty_language_model(config.language_model)
    with torch.device("meta"):
        return cost_of(Director(config, language_model, embeddings))


def num_visible_pairs(batch: Batch) -> int:
    """How many (query, key) pairs the mask shows, without padding's and before mask_rate hides some.

    A token sees its document's main stream up to itself, and one in a block of queries that block up to itself.
    Documents and blocks lie in one piece.
    """
    documents_RL, blocks_RL = batch.documents_RL, batch.blocks_RL
    main_RL = (blocks_RL == 0).long()
    block_RL = documents_RL * (blocks_RL.max() + 1) + blocks_RL  # its number in the row
    seen_RL = _running_count(main_RL, documents_RL) + _running_count(1 - main_RL, block_RL)
    return int(seen_RL[documents_RL >= 0].sum())


def _running_count(is_one_RL: Tensor, runs_RL: Tensor) -> Tensor:
    """How many ones there are up to each place, counted anew in every run of equal numbers: [R, L]."""
    total_RL = is_one_RL.cumsum(1)
    begins_RL = runs_RL.diff(prepend=runs_RL[:, :1]) != 0
    before_RL = torch.where(begins_RL, total_RL - is_one_RL, 0).cummax(1).values
    return total_RL - before_RL
