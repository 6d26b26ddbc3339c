"""A clip and its caption as tokens and pixels, and batches of them.

    USER: <image> … <image>  These pictures are …  ASSISTANT:  A hand stirs … </s>
    the frames               the prompt                        the caption: learned

All before the caption is what captioning would give the network, made by the same code.

Shapes: B clips of L tokens, N pictures of the vision tower's size H x W, T tokens learned.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cookgen.captioner.captions import Example
from cookgen.dataset.torch_loader import TensorBatch
from cookgen.errors import InputError, ModelError
from cookgen.perception.caption_models.llava_next import ClipInputs

IGNORE = -100


@dataclass(frozen=True, eq=False)
class Prepared:
    """One clip and its caption."""

    ids_L: NDArray[np.int64]
    num_given: int  # of these tokens are not learned; all of them where the caption is too long
    pixels_NCHW: NDArray[np.float32]  # a picture's tiles, or a video's frames
    size_2: NDArray[np.int64]  # height and width of the picture before it was cut into tiles; 0 of a video


@dataclass(frozen=True, eq=False)
class CaptionInputs:
    """Turns an example into tokens and pixels; pickles."""

    inputs: ClipInputs
    max_length: int

    def __call__(self, example: Example) -> Prepared:
        """Raises InputError where prompt or caption spell a picture's mark, or nothing of the caption can fit."""
        self._check_marks(example)
        given = self.inputs(example.frames_THWC, None if example.prompt is None else example.prompt.strip())
        prompt_ids = given["input_ids"][0].tolist()
        if len(prompt_ids) >= self.max_length:
            raise InputError(
                f"{example.name}: its picture and prompt are {len(prompt_ids)} tokens, model.max-length is "
                f"{self.max_length}; give more, or a shorter prompt"
            )
        caption_ids = self.caption_ids(example.caption)
        config = self.inputs.config
        if {config.image_token_index, getattr(config, "video_token_index", None)} & set(caption_ids):
            raise InputError(f"{example.name}: its caption holds the model's mark of a picture; leave it out")
        ids = [*prompt_ids, *caption_ids]
        fits = len(ids) <= self.max_length
        video = given.get("pixel_values_videos")
        return Prepared(
            ids_L=np.array(ids[: self.max_length], np.int64),
            num_given=len(prompt_ids) if fits else self.max_length,
            pixels_NCHW=(given["pixel_values"] if video is None else video)[0].numpy(),
            size_2=np.zeros(2, np.int64) if video is not None else given["image_sizes"][0].numpy(),
        )

    def caption_ids(self, caption: str) -> list[int]:
        """The caption as the network would write it after the prompt, with the token that ends it.

        A caption that spells one of the tokenizer's own marks is read as letters.
        """
        tokenizer = self.inputs.tokenizer
        if tokenizer.eos_token_id is None:
            raise ModelError("the tokenizer has no end-of-sequence token, so a caption would never end")
        # Tokens at the beginning of a text are not those in its middle: hence a mark before it, which is cut off.
        before = ":" if self._ends_with_word else "\n"
        options = {"add_special_tokens": False, "split_special_tokens": True}
        mark_ids = tokenizer(before, **options).input_ids
        ids = tokenizer(before + " " * self._ends_with_word + " ".join(caption.split()), **options).input_ids
        if ids[: len(mark_ids)] != mark_ids:
            raise ModelError("the tokenizer joins a caption's first word with what is before it; choose another model")
        return [*ids[len(mark_ids) :], tokenizer.eos_token_id]

    @property
    def _ends_with_word(self) -> bool:
        """Whether the prompt ends with a word, as "ASSISTANT:" is, so that a caption begins with a blank."""
        return not self.inputs.dialogue("image", "").endswith((" ", "\n"))

    def _check_marks(self, example: Example) -> None:
        for mark in sorted({*self.inputs.tokenizer.all_special_tokens, "<image>", "<video>"}):
            if mark in (example.prompt or ""):
                raise InputError(
                    f"{example.name}: its prompt holds {mark!r}, which means something to the model; leave it out: "
                    "the pictures are put before the prompt by themselves"
                )


@dataclass(frozen=True)
class Batch(TensorBatch):
    """Clips with their captions, padded at the end."""

    ids_BL: Tensor
    is_token_BL: Tensor  # 0: padding
    labels_T: Tensor  # the tokens to predict
    learned_T: Tensor  # from where: indices into B * L
    pixels_NCHW: Tensor  # of all clips, one after the other
    sizes_B2: Tensor
    counts: Mapping[str, int]
    num_tokens: int
    left_out: Mapping[str, int]

    def without_rows(self) -> Batch:
        """As large, and nothing learned: for a rank that must keep step with others."""
        nothing = {"labels_T": self.labels_T[:0], "learned_T": self.learned_T[:0]}
        return replace(self, counts={"text": 0}, num_tokens=0, left_out={}, **nothing)


def collate(items: Sequence[Prepared]) -> Batch:
    """A batch of clips; their pictures may be of different numbers."""
    length = max(len(item.ids_L) for item in items)
    ids_BL = np.zeros((len(items), length), np.int64)
    labels_BL = np.full((len(items), length), IGNORE, np.int64)
    is_token_BL = np.zeros((len(items), length), np.int64)
    left_out: Counter[str] = Counter(captions_too_long=0)
    for row, item in enumerate(items):
        num = len(item.ids_L)
        ids_BL[row, :num], is_token_BL[row, :num] = item.ids_L, 1
        labels_BL[row, item.num_given - 1 : num - 1] = item.ids_L[item.num_given :]
        left_out["captions_too_long"] += item.num_given == num
    labels = labels_BL.reshape(-1)
    learned_T = np.flatnonzero(labels != IGNORE)
    return Batch(
        ids_BL=torch.from_numpy(ids_BL),
        is_token_BL=torch.from_numpy(is_token_BL),
        labels_T=torch.from_numpy(labels[learned_T]),
        learned_T=torch.from_numpy(learned_T),
        pixels_NCHW=torch.from_numpy(np.concatenate([item.pixels_NCHW for item in items])),
        sizes_B2=torch.from_numpy(np.stack([item.size_2 for item in items])),
        counts={"text": len(learned_T)},
        num_tokens=int(is_token_BL.sum()),
        left_out=dict(left_out),
    )
