"""Writing a narrative: action, caption and z step by step, z fed back, in the documents that training knows (inputs).

Shapes: L tokens, H hidden size, V words and marks, N tokens an image, W width of z. y is a standardised z.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import DynamicCache, TemperatureLogitsWarper, TopPLogitsWarper

from cookgen.director.inputs import MARKS, as_question, query_ids, text_ids
from cookgen.director.model import Director
from cookgen.director.weights import LoadedDirector
from cookgen.errors import ModelError, ShapeError, UsageError


@dataclass(frozen=True)
class Sampling:
    """How words, and the z of a mixture, are drawn, and how many. The same seed gives the same narrative.

    temperature: of words; 0 takes the likeliest, otherwise from 0.01 to 100. z_temperature: of a mixture's z, likewise;
    0 is the mean of its likeliest component. top_p: words are drawn from the likeliest that have
    this probability together. num_steps: the most. max_tokens: of a text; a longer one is ended.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    num_steps: int = 8
    max_tokens: int = 128
    z_temperature: float = 0.0

    def __post_init__(self) -> None:
        for name in ("temperature", "z_temperature"):
            if (value := getattr(self, name)) != 0 and not 0.01 <= value <= 100:
                raise UsageError(f"{name}={value}: 0 (always the likeliest), or from 0.01 to 100")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top_p={self.top_p}: a probability, above 0 and at most 1")
        if not 0 <= self.seed < 2**63:
            raise UsageError(f"seed={self.seed}: a whole number from 0 to 2^63 - 1")
        if self.num_steps < 1:
            raise UsageError(f"steps={self.num_steps}: a narrative has at least 1 step")
        if self.max_tokens < 1:
            raise UsageError(f"max_tokens={self.max_tokens}: a text has at least 1 token")


@dataclass(frozen=True, eq=False)
class Given:
    """What of the first step is not to be written: with all of it the initial image-text pair of figure 3a.

    z_NW: of its keyframe, in the encoder's own space. references: z of pictures to be like, which stand before the
    query (MovieDreamer, few-shot); for directors that were trained with reference_rate.
    """

    action: str | None = None
    caption: str | None = None
    z_NW: NDArray[np.float32] | None = None
    references: Sequence[NDArray[np.float32]] = ()

    @property
    def texts(self) -> dict[str, str]:
        """The texts that are given, by field."""
        return {name: text for name in ("action", "caption") if (text := getattr(self, name)) is not None}

    @property
    def names(self) -> tuple[str, ...]:
        """What is given: of "action", "caption", "image"."""
        return (*self.texts, *(() if self.z_NW is None else ("image",)))


@dataclass(frozen=True, eq=False)
class WrittenStep:
    """A step. Its texts are clean: one line, no broken characters; "" where all that was written was blank.

    tokens: the ids of each text, as the network has them. z_NW: float32, in the encoder's own space; None without z.
    given: what of it was given, see Given.names.
    """

    texts: Mapping[str, str]
    tokens: Mapping[str, tuple[int, ...]]
    z_NW: NDArray[np.float32] | None
    given: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Written:
    """A narrative. stopped: by itself ("stop"), at the wanted number of steps, or where no more fits ("length").

    notes: what the reader of the narrative should know: texts that were ended, why no more fits.
    """

    query: str
    steps: tuple[WrittenStep, ...]
    stopped: Literal["stop", "steps", "length"]
    notes: tuple[str, ...]


class Stream:
    """A document on its way through the network, from left to right; what was fed lies in the KV cache."""

    def __init__(self, director: Director) -> None:
        self._director = director
        # Full layers also where a model has sliding windows, and the mask below: both as in training.
        self._cache = DynamicCache()
        self._device = next(director.parameters()).device
        self._last_H: Tensor | None = None

    def feed(self, ids: Sequence[int]) -> None:
        """Words and marks."""
        self._last_H = self._run(self._embedded(ids))[-1]

    def feed_z(self, y_NW: Tensor) -> None:
        """The tokens of an image, all or some."""
        words = self._director.language_model.get_input_embeddings().weight
        self._last_H = self._run(self._director.project(y_NW[None].to(self._device))[0].to(words.dtype))[-1]

    def logits(self) -> Tensor:
        """What may come next: float32 [V] on the CPU, words, then MARKS."""
        assert self._last_H is not None
        return self._director.logits(self._last_H[None])[0].float().cpu()

    def draw_z(self, *, temperature: float, generator: torch.Generator) -> Tensor:
        """The z that comes next, after <image>: y [N, W] on the CPU; it is fed too.

        Queries see what came before them and are forgotten: z then takes their positions.
        """
        assert self._last_H is not None
        vocabulary = self._director.vocabulary
        if self._director.config.head.readout == "queries":
            hidden_NH = self._run(self._embedded(vocabulary.queries.tolist()))
            self._cache.crop(-vocabulary.num_queries)
            y_NW = self._drawn(hidden_NH, temperature, generator)
            self.feed_z(y_NW)
            return y_NW
        tokens = []
        for _ in range(self._director.num_tokens):
            tokens.append(self._drawn(self._last_H[None], temperature, generator))
            self.feed_z(tokens[-1])
        return torch.cat(tokens)

    def _drawn(self, hidden_NH: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
        assert self._director.head is not None
        out = self._director.read(hidden_NH[None]).float().cpu()  # drawn on the CPU: one seed, the same numbers
        return self._director.head.sample(out, temperature=temperature, generator=generator)[0]

    def _embedded(self, ids: Sequence[int]) -> Tensor:
        return self._director.embed(torch.tensor(ids, device=self._device))

    def _run(self, embedded_LH: Tensor) -> Tensor:
        first, length = self._cache.get_seq_length(), len(embedded_LH)
        positions_L = torch.arange(first, first + length, device=self._device)
        sees = torch.ones(length, first + length, dtype=torch.bool, device=self._device).tril(first)
        hidden_LH = self._director.hidden(
            embedded_LH[None], positions=positions_L[None], attention_mask=sees[None, None], cache=self._cache
        )[0]
        if not hidden_LH.isfinite().all():
            raise ModelError("the checkpoint gives numbers that are not finite; take an earlier one of the run")
        return hidden_LH


def write_narrative(
    loaded: LoadedDirector,
    query: str,
    sampling: Sampling | None = None,
    *,
    given: Given | None = None,
    show: Callable[[WrittenStep], None] = lambda step: None,
) -> Written:
    """A narrative that answers the query, for example "How to make a pepperoni pizza?".

    It has fewer steps than sampling.num_steps where the director stops by itself, or where no more fits the sequences
    that it was trained on. show: told each step when it is written.
    Raises UsageError for a query or something given that cannot be, ShapeError for a given z of
    another shape, ModelError where the checkpoint gives no numbers.
    """
    writer = _Writer(loaded, check_query(query), sampling or Sampling(), given or Given())
    with torch.inference_mode():
        return writer.write(show)


def check_query(query: str) -> str:
    """The query on one line, with the question mark that training's have. Raises UsageError for one that is none."""
    query = " ".join(query.split())
    if not query:
        raise UsageError('the query is empty: ask for a dish, for example "How to make a pepperoni pizza?"')
    try:
        query.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{query!r}: holds bytes that are not UTF-8; type it again") from None
    return as_question(query) if query.lower().startswith("how to ") else query


class _Writer:
    """Writes one document; every mark and word is one that the format allows there."""

    def __init__(self, loaded: LoadedDirector, query: str, sampling: Sampling, given: Given) -> None:
        director, self._tokenizer = loaded.director, loaded.tokenizer
        self._director, self._query, self._sampling, self._given = director, query, sampling, given
        sequence = director.config.sequence
        self._fields = sequence.fields
        self._image_size = 0
        if director.head is not None:
            self._image_size = director.config.head.image_size(director.num_tokens)
        self._generator = torch.Generator().manual_seed(sampling.seed)
        self._processors: list[Any] = []
        if sampling.temperature:
            self._processors = [TemperatureLogitsWarper(float(sampling.temperature)), TopPLogitsWarper(sampling.top_p)]
        self._words_V = _words(self._tokenizer, director.vocabulary.num_words)
        self._query_ids = query_ids(self._tokenizer, query)
        self._given_ids = self._read_given()
        limits = {"sequence.max_length": sequence.max_length}
        architecture = director.language_model.config.get_text_config()
        if positions := getattr(architecture, "max_position_embeddings", None):
            limits["the language model's max_position_embeddings"] = positions
        self._limit_name, self._limit = min(limits.items(), key=lambda item: item[1])
        self._notes: list[str] = []

    def write(self, show: Callable[[WrittenStep], None]) -> Written:
        mark_of = self._director.vocabulary.mark
        director, references = self._director, self._given.references
        used = len(self._query_ids) + len(references) * (director.num_tokens + 2) + 1  # 1: <stop>
        least = self._least(self._fields, self._given_ids) + self._image_size
        if used + least > self._limit:
            raise UsageError(
                f"the query and what stands before it take {used} tokens, the first step at least {least}, more than "
                f"the {self._limit} of {self._limit_name}; shorten the query or what is given"
            )
        if references and not director.config.regularization.reference_rate:
            self._notes.append("the director was trained without references; what it makes of them is chance")
        if not director.config.sequence.supervise_first and len(self._given.names) <= len(self._fields):
            self._notes.append("the director was trained to go on from a first step, which it was not given whole")
        self._stream = Stream(director)
        for z_NW in references:
            self._stream.feed([mark_of("<image>")])
            self._stream.feed_z(self._standardised(z_NW))
            self._stream.feed([mark_of("</image>")])
        self._stream.feed(self._query_ids)
        steps: list[WrittenStep] = []
        while True:
            step, size, mark = self._step(len(steps), self._limit - used)
            used += size
            steps.append(step)
            show(step)
            if mark == mark_of("<stop>"):
                return Written(self._query, tuple(steps), "stop", tuple(self._notes))
            if len(steps) == self._sampling.num_steps:
                return Written(self._query, tuple(steps), "steps", tuple(self._notes))
            if used + self._least(self._fields, {}) + self._image_size > self._limit:
                self._notes.append(
                    f"it is not at its end: step {len(steps) + 1} does not fit the {self._limit} tokens of "
                    f"{self._limit_name}"
                )
                return Written(self._query, tuple(steps), "length", tuple(self._notes))

    def _step(self, index: int, room: int) -> tuple[WrittenStep, int, int]:
        """A step of at most `room` tokens, how many training would count, and the mark that follows it."""
        mark_of, has_image = self._director.vocabulary.mark, self._director.head is not None
        next_step = [mark_of(f"<{self._fields[0]}>"), mark_of("<stop>")]
        given = self._given_ids if index == 0 else {}
        ids: dict[str, list[int]] = {}
        size, mark = self._image_size, next_step[0]
        for place, name in enumerate(self._fields):
            later = self._fields[place + 1 :]
            ends = [mark_of(f"<{later[0]}>")] if later else [mark_of("<image>")] if has_image else next_step
            self._stream.feed([mark])
            if name in given:
                ids[name] = given[name]
                self._stream.feed(ids[name])
                mark = self._choose(ends)
            else:
                most = min(room - size - 1 - self._least(later, given), self._sampling.max_tokens)
                ids[name], mark, is_whole = self._text(ends, most)
                if not is_whole:
                    self._notes.append(f"step {index + 1}: its {name} was ended after {most} tokens")
            size += 1 + len(ids[name])
        z_NW = None
        if has_image:
            self._stream.feed([mark])
            z_NW = self._image(self._given.z_NW if index == 0 else None)
            self._stream.feed([mark_of("</image>")])
            mark = self._choose(next_step)
        texts = {name: clean_text(self._tokenizer.decode(found)) for name, found in ids.items()}
        tokens = {name: tuple(found) for name, found in ids.items()}
        return WrittenStep(texts, tokens, z_NW, self._given.names if index == 0 else ()), size, mark

    def _least(self, fields: Sequence[str], given: Mapping[str, Sequence[int]]) -> int:
        """Tokens of these texts at least: each with its mark, and at least one word."""
        return sum(1 + len(given.get(name, "?")) for name in fields)

    def _ids(self, text: str) -> list[int]:
        """The ids of a text, as inputs.NarrativeInputs has them."""
        try:
            text.encode()
        except UnicodeEncodeError:
            raise UsageError(f"{text!r}: holds bytes that are not UTF-8; type it again") from None
        (ids,) = text_ids(self._tokenizer, [text])
        return ids

    def _read_given(self) -> dict[str, list[int]]:
        task, ids = self._director.config.sequence.task, {}
        for name, text in self._given.texts.items():
            if name not in self._fields:
                raise UsageError(f"{name}: the director's task is {task}, its steps have no {name}; leave it out")
            ids[name] = self._ids(" ".join(text.split()))
            if not ids[name]:
                raise UsageError(f"{name}: is empty; leave it out, and the director writes it")
        for z_NW in (self._given.z_NW, *self._given.references):
            if z_NW is None:
                continue
            if self._director.head is None:
                raise UsageError(f"image: the director's task is {task}, its steps have no z; leave it out")
            wanted = self._director.num_tokens, len(self._director.mean_W)
            if z_NW.shape != wanted or not np.isfinite(z_NW).all():
                raise ShapeError(f"the given z: {list(z_NW.shape)}; it must be finite numbers, {list(wanted)}")
        return ids

    def _text(self, ends: Sequence[int], max_tokens: int) -> tuple[list[int], int, bool]:
        """The ids of a text, the one of `ends` that follows it, and whether the director ended it, not max_tokens.

        It may end when there is something to read.
        """
        ids: list[int] = []
        allowed_V, may_end = self._words_V.clone(), False
        while len(ids) < max_tokens:
            if not may_end and (may_end := bool(clean_text(self._tokenizer.decode(ids)))):
                allowed_V[list(ends)] = True
            chosen = self._draw(allowed_V)
            if chosen in ends:
                return ids, chosen, True
            ids.append(chosen)
            self._stream.feed([chosen])
        return ids, self._choose(ends), False

    def _choose(self, marks: Sequence[int]) -> int:
        """One of these marks."""
        if len(marks) == 1:
            return marks[0]
        allowed_V = torch.zeros_like(self._words_V)
        allowed_V[list(marks)] = True
        return self._draw(allowed_V)

    def _draw(self, allowed_V: Tensor) -> int:
        scores_1V = self._stream.logits().double().masked_fill(~allowed_V, -torch.inf)[None]
        if not self._processors:
            return int(scores_1V.argmax())
        for processor in self._processors:
            scores_1V = processor(None, scores_1V)
        return int(torch.multinomial(scores_1V.softmax(-1), 1, generator=self._generator))

    def _image(self, given_NW: NDArray[np.float32] | None) -> NDArray[np.float32]:
        """z after <image>, drawn or given; it is fed."""
        if given_NW is not None:
            self._stream.feed_z(self._standardised(given_NW))
            return given_NW
        y_NW = self._stream.draw_z(temperature=self._sampling.z_temperature, generator=self._generator)
        z_NW: NDArray[np.float32] = self._director.restore(y_NW.to(self._director.mean_W.device)).cpu().numpy()
        return z_NW

    def _standardised(self, z_NW: NDArray[np.float32]) -> Tensor:
        return self._director.standardise(torch.tensor(z_NW, device=self._director.mean_W.device))


def _words(tokenizer: Any, num_words: int) -> Tensor:
    """bool [V]: the ids that a text is made of: those that the tokenizer has, but for its special ones."""
    words_V = torch.zeros(num_words + len(MARKS), dtype=torch.bool)
    words_V[: min(len(tokenizer), num_words)] = True
    special = {token for token, about in tokenizer.added_tokens_decoder.items() if about.special}
    words_V[sorted(token for token in special | set(tokenizer.all_special_ids) if token < num_words)] = False
    return words_V


def clean_text(text: str) -> str:
    """One line, without control characters and what a torn character leaves."""
    marks = (" " if unicodedata.category(mark) == "Cc" else mark for mark in text if mark != "\ufffd")
    return " ".join("".join(marks).split())
