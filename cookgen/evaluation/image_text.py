"""The joint image-text space of a CLIP or SigLIP checkpoint: embeddings of frames and of captions, by transformers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cookgen.errors import ModelError
from cookgen.modelstore import resolve
from cookgen.perception.encoders import inference, load_config, load_network, to_numpy
from cookgen.perception.encoders.clip import ClipConfig, ClipEncoder
from cookgen.pretrained import model_errors


@dataclass(frozen=True, eq=False)
class ImageText:
    """Both towers of a checkpoint. `num_tokens` is how long a text the text tower reads; the rest of it is cut off."""

    identity: str
    vision: ClipEncoder
    text: Any  # CLIPTextModelWithProjection or SiglipTextModel
    tokenizer: Any
    num_tokens: int
    resize: str  # what becomes of a frame, in words
    batch_size: int

    @staticmethod
    def load(model: str, *, device: str = "auto", batch_size: int = 32) -> ImageText:
        """model: a folder, or organisation/name@<commit>. Raises ModelError where it is not a whole CLIP or SigLIP."""
        import torch
        from transformers import AutoTokenizer, CLIPTextModelWithProjection, SiglipTextModel

        config = ClipConfig(model=model, tokens="pooled", device=device, batch_size=batch_size)
        path = resolve(model).path
        whole = load_config(model, path, ("clip", "siglip"), "the image-text encoder")
        vision = config.load()
        words = whole.text_config
        if vision.is_clip:
            words.projection_dim = whole.projection_dim
        kind = CLIPTextModelWithProjection if vision.is_clip else SiglipTextModel
        text = load_network(model, kind.from_pretrained, path, config=words, dtype=torch.float32)
        with model_errors(model):
            tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
        if tokenizer.pad_token_id is None or len(tokenizer) > words.vocab_size:
            raise ModelError(
                f"{model}: its tokenizer has {len(tokenizer)} words, pad {tokenizer.pad_token!r}; the text tower takes "
                f"{words.vocab_size} words and needs a pad token"
            )
        side = vision.network.config.image_size
        size = getattr(vision.processor, "size", None)
        return ImageText(
            identity=config.identity(),
            vision=vision,
            text=text.to(vision.device),
            tokenizer=tokenizer,
            num_tokens=words.max_position_embeddings,
            resize=f"as the checkpoint asks: {dict(size) if size else 'resized'}, {side}x{side} pixels",
            batch_size=batch_size,
        )

    def images(self, frames_THWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """float32 [T, D] of RGB frames, uint8 [T, H, W, 3]; not normalised."""
        rows = []
        for first in range(0, len(frames_THWC), self.batch_size):
            frames = frames_THWC[first : first + self.batch_size]
            rows.append(self.vision.encode([self._pixels(frame) for frame in frames]))
        return np.concatenate(rows)

    def _pixels(self, frame_HWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        pixels = self.vision.processor(images=Image.fromarray(frame_HWC), return_tensors="np")["pixel_values"]
        return np.asarray(pixels[0], np.float32)

    def texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """float32 [N, D]; not normalised."""
        inputs = self.tokenizer(
            list(texts), padding="max_length", truncation=True, max_length=self.num_tokens, return_tensors="pt"
        )
        with inference():
            if self.vision.is_clip:
                mask = inputs["attention_mask"].to(self.vision.device)
                output = self.text(input_ids=inputs["input_ids"].to(self.vision.device), attention_mask=mask)
                return to_numpy(output.text_embeds)
            return to_numpy(self.text(input_ids=inputs["input_ids"].to(self.vision.device)).pooler_output)

    def is_cut(self, text: str) -> bool:
        """Whether the text is longer than what the text tower reads."""
        return len(self.tokenizer(text, verbose=False)["input_ids"]) > self.num_tokens
