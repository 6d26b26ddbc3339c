"""What a director costs: parameters, floating-point operations, memory. Counted, not measured."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from cookgen.director.config import DirectorConfig
from cookgen.director.inputs import Batch
from cookgen.director.model import Director, Embeddings
from cookgen.director.weights import empty_language_model


@dataclass(frozen=True)
class Cost:
    """Counts of a director's parts. Parameters of embeddings are in num_parameters alone: looking up costs nothing."""

    num_parameters: int
    num_trained: int
    backbone: int  # parameters that multiply every token
    vocabulary: int  # parameters that multiply every token whose word is predicted
    num_words: int
    num_layers: int
    hidden_size: int
    attention_width: int  # heads x their size
    is_frozen: bool  # LoRA: the language model's own weights get no gradient

    def flops(self, *, num_tokens: int, num_learned: int, num_pairs: int) -> float:
        """Floating-point operations of one forward and backward.

        6 N a token for N trained parameters, 4 N for frozen ones (no gradient of the weights); 12 an attention channel,
        layer and visible pair of tokens. num_learned: tokens whose word is predicted; num_pairs: (query, key) seen.
        """
        a_parameter = 4 if self.is_frozen else 6
        matrices = a_parameter * (self.backbone * num_tokens + self.vocabulary * num_learned)
        return matrices + 12.0 * self.attention_width * self.num_layers * num_pairs

    def memory_gib(self, *, num_tokens: int, num_learned: int, is_bf16: bool, checkpointing: bool, ema: bool) -> float:
        """GiB of one rank without sharding: weights, gradients, AdamW's moments, activations, logits. An estimate.

        Activations: 34 bytes a token, channel and layer in bfloat16 (Korthikanti et al., arXiv:2205.05198, without
        the scores, which attention kernels do not keep), or 2 and one layer in full where layers are recomputed.
        """
        size = 2 if is_bf16 else 4
        frozen = self.num_parameters - self.num_trained
        weights = frozen * (size if self.is_frozen else 4) + self.num_trained * 4
        training = self.num_trained * (4 + 8 + (4 if ema else 0))
        layer = 17 * size * num_tokens * self.hidden_size
        kept = size * num_tokens * self.hidden_size
        activations = self.num_layers * kept + layer if checkpointing else self.num_layers * layer
        logits = num_learned * self.num_words * (4 + 4 + size)
        return (weights + training + activations + logits) / 2**30


def cost_of(director: Director) -> Cost:
    """Counts a director, with storage or on the meta device."""
    model = director.language_model
    config = model.config.get_text_config()
    decoder, words = model.get_decoder(), model.get_input_embeddings()
    numbers = [(weight.numel(), weight.requires_grad) for weight in director.parameters()]
    backbone = sum(weight.numel() for weight in decoder.parameters()) - words.weight.numel()
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return Cost(
        num_parameters=sum(number for number, _ in numbers),
        num_trained=sum(number for number, trained in numbers if trained),
        backbone=backbone,
        vocabulary=model.get_output_embeddings().weight.numel(),
        num_words=config.vocab_size,
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        attention_width=config.num_attention_heads * head_dim,
        is_frozen=not words.weight.requires_grad,
    )


def planned_cost(config: DirectorConfig, *, num_tokens: int, width: int) -> Cost:
    """The counts of a director that is not there yet; only the language model's configuration is read.

    num_tokens, width: of z.
    """
    embeddings = Embeddings(num_tokens, width, (0.0,) * width, 1.0) if config.sequence.has_visual else None
    language_model = empty_language_model(config.language_model)
    with torch.device("meta"):
        return cost_of(Director(config, language_model, embeddings))


def num_visible_pairs(batch: Batch) -> int:
    """How many (query, key) pairs the documents' causal masks let see each other; blocks of queries count as seen."""
    documents = batch.documents_RL[batch.documents_RL >= 0]
    lengths = torch.bincount(documents.flatten())
    return int((lengths * (lengths + 1) // 2).sum())
