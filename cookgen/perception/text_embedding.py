"""Sentences as vectors whose cosine is how alike they mean (MiniLM)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cookgen.errors import ModelError
from cookgen.modelstore import resolve
from cookgen.perception.threads import one_thread

MAX_TOKENS = 256  # what all-MiniLM-L6-v2 was trained on; the rest of a longer text is not read


@dataclass(frozen=True)
class TextEmbedder:
    """A loaded sentence encoder; made by `load_text_embedder`."""

    tokenizer: Any
    model: Any
    width: int

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """float32 [N, width], each row of length 1: the mean of the text's token vectors, normalised.

        One text at a time: padding would make a text's last digits depend on its neighbours, and so the stored
        results on how they were grouped. Source: Reimers and Gurevych 2019, section 3 (mean pooling).
        """
        import torch

        vectors = np.zeros((len(texts), self.width), np.float32)
        with one_thread(), torch.inference_mode():
            for row, text in enumerate(texts):
                tokens = self.tokenizer(text, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
                hidden_TD = self.model(**tokens).last_hidden_state[0]  # tokens, width
                vectors[row] = torch.nn.functional.normalize(hidden_TD.mean(dim=0), dim=0).numpy()
        return vectors


def load_text_embedder(model: str) -> TextEmbedder:
    """Loads a BERT-like encoder in transformers' form; `model` is a reference of the model store.

    Raises ModelError where it cannot be loaded, and whatever `cookgen.modelstore.resolve` raises.
    """
    import torch
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()  # it would tear the progress lines of whoever loads it
    path = resolve(model).path
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
        encoder = AutoModel.from_pretrained(path, local_files_only=True, dtype=torch.float32).eval()
    except (OSError, ValueError) as error:  # what transformers raises for files it cannot read
        reason = str(error).strip().split("\n")[0]
        raise ModelError(f"{model}: {reason}; a sentence encoder in transformers' form is needed") from error
    return TextEmbedder(tokenizer, encoder, int(encoder.config.hidden_size))
