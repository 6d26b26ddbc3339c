"""Which tokens of a packed batch see which, for the attention of transformers' models.

Shapes: R rows of L tokens, H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import AttentionInterface
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from cookgen.director.inputs import Batch

PACKED = "cookgen_packed"


def can_flex(language_model: Any) -> bool:
    """Whether flex attention computes what this model of transformers means."""
    has_dropout = getattr(language_model.config.get_text_config(), "attention_dropout", 0)
    return bool(language_model._supports_flex_attn) and not has_dropout


def visible(batch: Batch, masked_RL: Tensor | None, *, flex: bool) -> dict[str, Any]:
    """What a language model's forward is told of who sees whom. masked_RL: bool, tokens that no later one sees."""
    if flex:
        return {"attention_mask": _block_mask(batch, masked_RL)}
    return {"attention_mask": dense_mask(batch, masked_RL), "document_spans": _spans(batch.documents_RL)}


def dense_mask(batch: Batch, masked_RL: Tensor | None) -> Tensor:
    """bool [R, 1, L, L]: whether a query (third axis) sees a key (fourth)."""
    rows, length = batch.ids_RL.shape
    index = torch.arange(length, device=batch.ids_RL.device)
    row = torch.arange(rows, device=batch.ids_RL.device).view(-1, 1, 1)
    return _sees(batch, masked_RL, row, index.view(1, -1, 1), index.view(1, 1, -1)).unsqueeze(1)


def _block_mask(batch: Batch, masked_RL: Tensor | None) -> BlockMask:
    rows, length = batch.ids_RL.shape

    def sees(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return _sees(batch, masked_RL, row, query, key)

    return create_block_mask(sees, rows, None, length, length, device=str(batch.ids_RL.device))


def _sees(batch: Batch, masked_RL: Tensor | None, row: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """The rule of visibility, for indices that broadcast. Padding is a document of its own: it too sees something."""
    documents, blocks = batch.documents_RL, batch.blocks_RL
    same_document = documents[row, query] == documents[row, key]
    same_block = (blocks[row, key] == 0) | (blocks[row, key] == blocks[row, query])
    sees = (key <= query) & same_document & same_block
    return sees if masked_RL is None else sees & (~masked_RL[row, key] | (key == query))


def _spans(documents_RL: Tensor) -> list[list[tuple[int, int]]]:
    """Where the documents of each row, and its padding, begin and end."""
    found = []
    for documents_L in documents_RL.cpu():
        lengths = torch.unique_consecutive(documents_L, return_counts=True)[1]
        found.append(list(pairwise([0, *lengths.cumsum(0).tolist()])))
    return found


def _packed(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | BlockMask | None,
    *,
    document_spans: Sequence[Sequence[tuple[int, int]]] | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Flex attention under a block mask, SDPA under a dense one. Tensors [R, heads, L, H / heads].

    With document_spans SDPA runs on each document alone: the mask hides all else, so that the work grows with the
    documents' lengths squared, not the row's.
    """
    if isinstance(attention_mask, BlockMask):
        return flex_attention_forward(module, query, key, value, attention_mask, **options)[0], None
    if document_spans is None or attention_mask is None or torch.compiler.is_compiling():
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)[0], None
    rows = []
    for row, spans in enumerate(document_spans):
        parts = []
        for first, end in spans:
            here = slice(row, row + 1), slice(None), slice(first, end)
            mask = attention_mask[(*here, slice(first, end))]
            parts.append(sdpa_attention_forward(module, query[here], key[here], value[here], mask, **options)[0])
        rows.append(torch.cat(parts, 1))
    return torch.cat(rows), None


AttentionInterface.register(PACKED, _packed)
AttentionMaskInterface.register(PACKED, sdpa_mask)
