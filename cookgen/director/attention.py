"""Which tokens of a packed batch see which, for the attention of transformers' models.

Shapes: R rows of L tokens, H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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
    whole = masked_RL is None  # what a document's main stream sees is all that came before
    return {"attention_mask": dense_mask(batch, masked_RL), "documents": _documents(batch, is_causal=whole)}


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


@dataclass(frozen=True)
class _Document:
    """A document's place in its row, `begin` to `end`, and in it: the main stream's indices, and the blocks of queries,
    each with its begin and end and how much of the main stream comes before it."""

    begin: int
    end: int
    main: Tensor
    blocks: tuple[tuple[int, int, int], ...]
    order: Tensor  # of its tokens in [main, then block after block]
    is_causal: bool


def _documents(batch: Batch, *, is_causal: bool) -> list[list[_Document]]:
    """The documents of each row, and its padding."""
    documents_RL, blocks_RL = batch.documents_RL.cpu(), batch.blocks_RL.cpu()
    found: list[list[_Document]] = []
    for documents_L, blocks_L in zip(documents_RL, blocks_RL, strict=True):
        found.append([])
        for begin, end in _runs(documents_L):
            inside = blocks_L[begin:end]
            main = (inside == 0).nonzero().flatten()
            places = [(first, last) for first, last in _runs(inside) if inside[first]]
            blocks = tuple((first, last, int((main < first).sum())) for first, last in places)
            order = torch.cat([main, *(torch.arange(first, last) for first, last in places)]).argsort()
            device = batch.ids_RL.device
            found[-1].append(_Document(begin, end, main.to(device), blocks, order.to(device), is_causal))
    return found


def _runs(numbers_L: Tensor) -> list[tuple[int, int]]:
    """Where runs of equal numbers begin and end."""
    lengths = torch.unique_consecutive(numbers_L, return_counts=True)[1]
    return list(pairwise([0, *lengths.cumsum(0).tolist()]))


def _packed(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | BlockMask | None,
    *,
    documents: Sequence[Sequence[_Document]] | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Flex attention under a block mask, SDPA under a dense one. Tensors [R, heads, L, H / heads].

    With `documents` SDPA computes little more than what is seen: of each document the main stream, then each block of
    queries with what comes before it.
    """
    if isinstance(attention_mask, BlockMask):
        return flex_attention_forward(module, query, key, value, attention_mask, **options)[0], None
    if documents is None or attention_mask is None or torch.compiler.is_compiling():
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)[0], None
    rows = []
    for row, row_documents in enumerate(documents):
        parts = []
        for document in row_documents:
            here = slice(document.begin, document.end)
            q, k, v = (tensor[row : row + 1, :, here] for tensor in (query, key, value))
            mask = attention_mask[row : row + 1, :, here, here]
            parts.append(_of_document(module, q, k, v, mask, document, options))
        rows.append(torch.cat(parts, 1))
    return torch.cat(rows), None


def _of_document(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, document: _Document, options: dict[str, Any]
) -> Tensor:
    """SDPA of one document [1, L, heads, H / heads]."""
    main = document.main
    main_q, main_k, main_v = (
        tensor.index_select(2, main) if document.blocks else tensor for tensor in (query, key, value)
    )
    main_mask = None if document.is_causal else mask[:, :, main][..., main]
    parts = [sdpa_attention_forward(module, main_q, main_k, main_v, main_mask, **options)[0]]
    for first, last, num_before in document.blocks:
        own = slice(first, last)
        k, v = (
            torch.cat([before[:, :, :num_before], tensor[:, :, own]], 2)
            for before, tensor in ((main_k, key), (main_v, value))
        )
        seen = torch.cat([mask[:, :, own, main[:num_before]], mask[:, :, own, own]], 3)
        parts.append(sdpa_attention_forward(module, query[:, :, own], k, v, seen, **options)[0])
    return torch.cat(parts, 1).index_select(1, document.order) if document.blocks else parts[0]


AttentionInterface.register(PACKED, _packed)
AttentionMaskInterface.register(PACKED, sdpa_mask)
