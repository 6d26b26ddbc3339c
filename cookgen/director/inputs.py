"""Narratives as sequences, and sequences packed into batches.

    query    How to make a pepperoni pizza? \\n
    step 1   <action> Roll out the dough <caption> A ball of dough … <image> [queries 1] [z of step 1] </image>
    step 2   <action> Spread the sauce   <caption> …                <image> [queries 2] [z of step 2] </image>
    …        <stop>

A block of queries stands where z stands: it has z's positions, sees what came before and itself, and nothing later sees
it. So all steps' z are read in one causal pass, each from the very history that generation has; with
supervision="last" only the last step has queries (VideoAuteur, figure 3b). Cross entropy is on the texts and on the
marks that say what comes next.

Shapes: R rows of L tokens, T tokens learned, F images fed in, M images read out, P of these with a step
before them, N tokens an image, W width of z.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cookgen.dataset.torch_loader import TensorBatch
from cookgen.director.config import DirectorConfig
from cookgen.errors import FormatError, ModelError, ShapeError

MARKS = ("<action>", "<caption>", "<image>", "</image>", "<stop>")
IGNORE = -100
# What is summed over images, and over those with a step before them: the model's distance to z (Table 5's columns)
# beside that of the training set's mean z and of the previous step's z, which any model must beat.
IMAGE_TERMS = ("visual", "l2", "cosine", "mean_l2", "mean_cosine")
LATER_TERMS = ("later_l2", "later_cosine", "previous_l2", "previous_cosine")
_PAD = -1
_ROW_MULTIPLE = 16


class Step(Protocol):
    """What a sequence needs of a clip."""

    @property
    def action(self) -> str: ...
    @property
    def caption(self) -> str: ...


class Narrative(Protocol):
    """What a sequence needs of a narrative: `cookgen.dataset.narrative.Narrative` has it."""

    @property
    def name(self) -> str: ...
    @property
    def topic(self) -> str | None: ...
    @property
    def title(self) -> str | None: ...
    @property
    def steps(self) -> Sequence[Step]: ...
    @property
    def features(self) -> Mapping[str, NDArray[np.float16]]: ...


@dataclass(frozen=True)
class Vocabulary:
    """Ids beyond the language model's own: the marks, then the N queries."""

    num_words: int  # the language model's own ids are [0, num_words)
    num_queries: int

    @property
    def num_rows(self) -> int:
        """New rows: those of the marks and those of the queries."""
        return len(MARKS) + self.num_queries

    def mark(self, name: str) -> int:
        """The id of one of MARKS."""
        return self.num_words + MARKS.index(name)

    @property
    def queries(self) -> NDArray[np.int64]:
        """The ids of the queries [N]."""
        first = self.num_words + len(MARKS)
        return np.arange(first, first + self.num_queries, dtype=np.int64)


def query_text(narrative: Narrative) -> str:
    """What the user would have asked: the title where it asks so already, else "How to cook" and the dish."""
    title, topic = (" ".join((text or "").split()) for text in (narrative.title, narrative.topic))
    for text in (title, topic):
        if text.lower().startswith("how to "):
            return as_question(text)
    dish = topic or title
    return f"How to cook {dish}?" if dish else "How to cook this?"


def as_question(text: str) -> str:
    """The text with one question mark at its end."""
    return text.rstrip("?!. ") + "?"


def query_ids(tokenizer: Any, query: str) -> list[int]:
    """The ids of a query, with those that the tokenizer puts before a text, and not those that end one."""
    ids: list[int] = tokenizer(query + "\n", split_special_tokens=True).input_ids
    return ids[:-1] if ids[-1:] == [tokenizer.eos_token_id] else ids


def text_ids(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """The ids of actions and captions. A text that spells one of the tokenizer's own marks is read as letters."""
    found: list[list[int]] = tokenizer(texts, add_special_tokens=False, split_special_tokens=True).input_ids
    return found


@dataclass(frozen=True)
class Document:
    """One sequence of L tokens, of one narrative."""

    ids: NDArray[np.int64]  # [L]; 0 where z is fed
    positions: NDArray[np.int64]  # [L] for the rotary embedding; queries have those of their z
    blocks: NDArray[np.int64]  # [L]; 0: seen by all that comes later; b > 0: only within block b
    labels: NDArray[np.int64]  # [L] the id to predict from here, or IGNORE
    fed: NDArray[np.int64]  # [F, N] where z is fed
    read: NDArray[np.int64]  # [M, N] where z is read
    fed_of_read: NDArray[np.int64]  # [M] which fed image is the same step's
    before_read: NDArray[np.int64]  # [M] which fed image is the previous step's; -1 where there is none
    z: NDArray[np.float32]  # [F, N, W]

    def __len__(self) -> int:
        return len(self.ids)


class DocumentWriter:
    """Writes a sequence from left to right: what training and generation share."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._ids: list[int] = []
        self._positions: list[int] = []
        self._blocks: list[int] = []
        self._labels: list[int] = []
        self._fed: list[range] = []
        self._read: list[range] = []
        self._fed_of_read: list[int] = []
        self._before_read: list[int] = []
        self._z: list[NDArray[np.float32]] = []
        self._next = 0  # position of the next token of the main stream
        self._last_main = -1  # index of the last token that may predict
        self._last_step_fed = -1

    def references(self, z_FNW: Sequence[NDArray[np.float32]]) -> None:
        """Keyframes before the query, without loss."""
        for z_NW in z_FNW:
            self._main([self._vocabulary.mark("<image>")], learned=False)
            self._feed(z_NW)
            self._main([self._vocabulary.mark("</image>")], learned=False)

    def query(self, ids: Sequence[int]) -> None:
        """The user's question, without loss."""
        self._main(ids, learned=False)

    def step(
        self, texts: Mapping[str, Sequence[int]], z_NW: NDArray[np.float32] | None, *, learned: bool, read: str
    ) -> None:
        """Texts in their order, then z. learned: texts and marks. read: "queries" or "next_token", how z is read; ""
        where it is not."""
        for name, ids in texts.items():
            self._main([self._vocabulary.mark(f"<{name}>"), *ids], learned=learned)
        if z_NW is None:
            return
        self._main([self._vocabulary.mark("<image>")], learned=learned)
        num_tokens = len(z_NW)
        if read:
            self._fed_of_read.append(len(self._fed))
            self._before_read.append(self._last_step_fed)
        if read == "next_token":
            first = len(self._ids) - 1
            self._read.append(range(first, first + num_tokens))
        elif read == "queries":
            first = len(self._ids)
            self._read.append(range(first, first + num_tokens))
            self._ids += self._vocabulary.queries.tolist()
            self._positions += range(self._next, self._next + num_tokens)
            self._blocks += [len(self._read)] * num_tokens
            self._labels += [IGNORE] * num_tokens
        self._last_step_fed = len(self._fed)
        self._feed(z_NW)
        self._main([self._vocabulary.mark("</image>")], learned=False)

    def stop(self) -> None:
        """The narrative's end."""
        self._main([self._vocabulary.mark("<stop>")], learned=True)

    def _main(self, ids: Sequence[int], *, learned: bool) -> None:
        for token in ids:
            if learned and self._last_main >= 0:
                self._labels[self._last_main] = token
            self._last_main = len(self._ids)
            self._ids.append(token)
            self._positions.append(self._next)
            self._blocks.append(0)
            self._labels.append(IGNORE)
            self._next += 1

    def _feed(self, z_NW: NDArray[np.float32]) -> None:
        first = len(self._ids)
        self._fed.append(range(first, first + len(z_NW)))
        self._z.append(z_NW)
        self._main([0] * len(z_NW), learned=False)

    def done(self, num_tokens: int, width: int) -> Document:
        """What was written. num_tokens, width: of a z."""
        return Document(
            ids=np.array(self._ids, np.int64),
            positions=np.array(self._positions, np.int64),
            blocks=np.array(self._blocks, np.int64),
            labels=np.array(self._labels, np.int64),
            fed=np.array(self._fed, np.int64).reshape(-1, num_tokens),
            read=np.array(self._read, np.int64).reshape(-1, num_tokens),
            fed_of_read=np.array(self._fed_of_read, np.int64),
            before_read=np.array(self._before_read, np.int64),
            z=np.array(self._z, np.float32).reshape(-1, num_tokens, width),
        )


@dataclass(frozen=True)
class Prepared:
    """A narrative's documents, and what of it is in none of them."""

    documents: tuple[Document, ...]
    left_out: Mapping[str, int]


def finite(narrative: Narrative, feature: str) -> NDArray[np.float32]:
    """The narrative's features. Raises FormatError where they are not all finite numbers."""
    found = np.asarray(narrative.features[feature], np.float32)
    if not np.isfinite(found).all():
        raise FormatError(
            f"{narrative.name}: its features {feature!r} hold NaN or infinity; compute them again: "
            "cookgen features … --overwrite"
        )
    return found


@dataclass(frozen=True, eq=False)
class NarrativeInputs:
    """Turns a narrative into documents; pickles, and draws its random numbers from torch's generator.

    feature: the sidecar whose arrays are z; [N, W] a clip, or [W], which counts as one token.
    """

    vocabulary: Vocabulary
    tokenizer: Any
    config: DirectorConfig
    feature: str
    z_shape: tuple[int, int]

    def __call__(self, narrative: Narrative) -> Prepared:
        """Raises FormatError for features that are not finite, ShapeError for those of another shape, ModelError for a
        tokenizer that knows words which the language model does not."""
        config = self.config.regularization
        steps, z = self._texts(narrative), self._embeddings(narrative)
        is_reversed = bool(config.reverse_rate and torch.rand(()) < config.reverse_rate)
        if is_reversed:
            steps, z = steps[::-1], None if z is None else z[::-1]
        references: NDArray[np.float32] | None = None
        if z is not None and config.reference_rate and torch.rand(()) < config.reference_rate:
            # Not more than half: references that show every step leave nothing to foresee.
            references = z[torch.randperm(len(z))[: min(config.num_references, len(z) // 2)].numpy()]
        length = int(torch.randint(1, len(steps) + 1, ())) if self.config.sequence.random_length else len(steps)
        query = query_ids(self.tokenizer, query_text(narrative))
        self._check_words([query])
        # Backwards, texts are only given, as MovieDreamer's script is: nobody shall learn to begin at the end.
        ends = length == len(steps) and not is_reversed
        return self._documents(steps[:length], z, references, query, learns_text=not is_reversed, ends=ends)

    def _documents(
        self,
        steps: list[dict[str, list[int]]],
        z: NDArray[np.float32] | None,
        references: NDArray[np.float32] | None,
        query: list[int],
        *,
        learns_text: bool,
        ends: bool,
    ) -> Prepared:
        """Whole steps, as many as fit, then the next document with the rest.

        The texts of a later document's first step are given, not learned: nobody shall learn to begin in the middle.
        """
        num_tokens, width = self.z_shape
        limit = self.config.sequence.max_length
        head = len(query) + (0 if references is None else len(references) * (num_tokens + 2)) + 1  # 1: <stop>
        image = 0 if z is None else self.config.head.image_size(num_tokens)
        pieces: list[list[int]] = []
        used, num_dropped = limit, 0
        for index, step in enumerate(steps):
            size = sum(1 + len(ids) for ids in step.values()) + image
            if head + size > limit:
                num_dropped += 1
                continue
            if used + size > limit:
                pieces.append([])
                used = head
            pieces[-1].append(index)
            used += size
        documents = []
        for piece in pieces:
            writer = DocumentWriter(self.vocabulary)
            if references is not None:
                writer.references(list(references))
            writer.query(query)
            for index in piece:
                is_last = index == piece[-1]
                learned = self.config.sequence.supervise_first or index != piece[0]
                is_middle = index == piece[0] != pieces[0][0]
                reads = learned and (self.config.sequence.supervision == "every" or is_last)
                writer.step(
                    steps[index],
                    None if z is None else z[index],
                    learned=learned and learns_text and not is_middle,
                    read=self.config.head.readout if reads else "",
                )
            if ends and piece[-1] == len(steps) - 1:
                writer.stop()
            documents.append(writer.done(num_tokens, width))
        left_out = {"steps_too_long": num_dropped, "narratives_cut": int(len(pieces) > 1)}
        return Prepared(tuple(documents), left_out)

    def _texts(self, narrative: Narrative) -> list[dict[str, list[int]]]:
        names = self.config.sequence.fields
        texts = [getattr(step, name) for step in narrative.steps for name in names]
        found = text_ids(self.tokenizer, texts)
        self._check_words(found)
        words = iter(found)
        return [{name: next(words) for name in names} for _ in narrative.steps]

    def _check_words(self, texts: list[list[int]]) -> None:
        if max(max(ids, default=0) for ids in texts) >= self.vocabulary.num_words:
            raise ModelError(
                f"the tokenizer knows {len(self.tokenizer)} words, the language model {self.vocabulary.num_words}: "
                "name a model whose tokenizer and weights belong together, or a shape with as many words"
            )

    def _embeddings(self, narrative: Narrative) -> NDArray[np.float32] | None:
        if not self.config.sequence.has_visual:
            return None
        found = finite(narrative, self.feature)
        found = found[:, np.newaxis] if found.ndim == 2 else found
        if found.shape != (len(narrative.steps), *self.z_shape):
            raise ShapeError(
                f"{narrative.name}: its features {self.feature!r} are {list(found.shape)}, its "
                f"{len(narrative.steps)} steps need {list(self.z_shape)} each; give those that the director is for"
            )
        return found


@dataclass(frozen=True)
class Batch(TensorBatch):
    """Documents packed into rows; the mask keeps them apart. Indices are into R * L positions."""

    ids_RL: Tensor
    positions_RL: Tensor
    documents_RL: Tensor  # -1: padding
    blocks_RL: Tensor
    labels_RL: Tensor
    learned_T: Tensor  # where there is a label
    fed_FN: Tensor
    read_MN: Tensor
    fed_of_read_M: Tensor
    before_read_M: Tensor
    later_P: Tensor  # which of the images read have a step before them
    z_FNW: Tensor
    counts: Mapping[str, int]
    num_tokens: int
    left_out: Mapping[str, int]

    def without_rows(self) -> Batch:
        """As large, and nothing learned or measured: for a rank that must keep step with others."""
        none = torch.full_like(self.labels_RL, IGNORE)
        indices = ("learned_T", "read_MN", "fed_of_read_M", "before_read_M", "later_P")
        empty = {name: getattr(self, name)[:0] for name in indices}
        return replace(self, labels_RL=none, counts=dict.fromkeys(self.counts, 0), num_tokens=0, left_out={}, **empty)


@dataclass(frozen=True)
class Packer:
    """Packs the documents of several narratives into rows of max_length tokens, each into the first that has room."""

    max_length: int
    z_shape: tuple[int, int]

    def __call__(self, items: Sequence[Prepared]) -> Batch:
        """The batch; with no documents one row of padding. L is a multiple of 16."""
        rows: list[list[Document]] = []
        for document in (document for item in items for document in item.documents):
            fits = (row for row in rows if sum(map(len, row)) + len(document) <= self.max_length)
            row = next(fits, None)
            if row is None:
                rows.append([document])
            else:
                row.append(document)
        rows = rows or [[]]
        longest = max(sum(map(len, row)) for row in rows)
        length = max(-(-longest // _ROW_MULTIPLE), 1) * _ROW_MULTIPLE
        return self._batch(rows, length, items)

    def _batch(self, rows: list[list[Document]], length: int, items: Sequence[Prepared]) -> Batch:
        fill = {"ids": 0, "positions": 0, "documents": _PAD, "blocks": 0, "labels": IGNORE}
        grid = {name: np.full((len(rows), length), value, np.int64) for name, value in fill.items()}
        fed, read, fed_of_read, before_read, z = [], [], [], [], []
        num_fed = num_documents = 0
        for number, row in enumerate(rows):
            start = 0
            for document in row:
                part = (number, slice(start, start + len(document)))
                for name in ("ids", "positions", "blocks", "labels"):
                    grid[name][part] = getattr(document, name)
                grid["documents"][part] = num_documents
                offset = number * length + start
                fed.append(document.fed + offset)
                read.append(document.read + offset)
                fed_of_read.append(document.fed_of_read + num_fed)
                before_read.append(np.where(document.before_read < 0, -1, document.before_read + num_fed))
                z.append(document.z)
                num_fed += len(document.fed)
                num_documents += 1
                start += len(document)
        num_tokens, width = self.z_shape
        before = torch.from_numpy(np.concatenate([np.zeros(0, np.int64), *before_read]))
        learned, later = np.flatnonzero(grid["labels"] != IGNORE), (before >= 0).nonzero()[:, 0]
        left_out: dict[str, int] = {}
        for item in items:
            left_out = {name: left_out.get(name, 0) + count for name, count in item.left_out.items()}
        return Batch(
            ids_RL=torch.from_numpy(grid["ids"]),
            positions_RL=torch.from_numpy(grid["positions"]),
            documents_RL=torch.from_numpy(grid["documents"]),
            blocks_RL=torch.from_numpy(grid["blocks"]),
            labels_RL=torch.from_numpy(grid["labels"]),
            learned_T=torch.from_numpy(learned),
            fed_FN=torch.from_numpy(np.concatenate([np.zeros((0, num_tokens), np.int64), *fed])),
            read_MN=torch.from_numpy(np.concatenate([np.zeros((0, num_tokens), np.int64), *read])),
            fed_of_read_M=torch.from_numpy(np.concatenate([np.zeros(0, np.int64), *fed_of_read])),
            before_read_M=before,
            later_P=later,
            z_FNW=torch.from_numpy(np.concatenate([np.zeros((0, num_tokens, width), np.float32), *z])),
            counts={
                "text": len(learned),
                **dict.fromkeys(IMAGE_TERMS, len(before)),
                **dict.fromkeys(LATER_TERMS, len(later)),
            },
            num_tokens=int((grid["documents"] != _PAD).sum()),
            left_out=left_out,
        )
