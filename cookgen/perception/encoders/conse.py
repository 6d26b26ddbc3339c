"""ConSE, a stand-in for a joint image-text space: an image classifier's labels as sentence embeddings.

An image's vector is the mean of what its ten likeliest labels mean, weighted by their probabilities, so that it lies in
the space of the sentence encoder and can be compared with any text. It knows 1000 everyday labels and nothing of
hands, actions or amounts: use CLIP where you can. Source: Norouzi et al., arXiv:1312.5650, section 3.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from cookgen.config import machinery
from cookgen.modelstore import identity
from cookgen.perception.encoders import Step
from cookgen.perception.image_labels import ImageLabeller
from cookgen.perception.text_embedding import TextEmbedder, load_text_embedder

TEXT_MODEL = "all-minilm-l6-v2"
NUM_LABELS = 10
SENTENCE = "a photo of {}"


@dataclass(frozen=True)
class ConseConfig:
    """No settings: [384], the labels of EfficientNet-Lite0 in the space of MiniLM sentences. Runs on the CPU."""

    kind: ClassVar[str] = "conse"
    version: ClassVar[int] = 1
    about: ClassVar[str] = (
        "a stand-in for a joint image-text space, not CLIP: the ten likeliest ImageNet labels of the keyframe as "
        "MiniLM sentence embeddings (ConSE, arXiv:1312.5650)"
    )

    batch_size: int = machinery(16)
    num_workers: int = machinery(1)

    def identity(self) -> str:
        labels, text = ImageLabeller.identity(), identity(TEXT_MODEL)
        models = [part.split("@") for part in (*labels.split("+"), text)]
        return "+".join(model for model, _ in models) + "@" + "+".join(revision for _, revision in models)

    def load(self) -> ConseEncoder:
        return ConseEncoder(ImageLabeller.load(), load_text_embedder(TEXT_MODEL), {})


@dataclass(frozen=True, eq=False)
class ConseEncoder:
    """A loaded classifier and sentence encoder; `meanings` are the vectors of labels met so far, [384]."""

    labeller: ImageLabeller
    embedder: TextEmbedder
    meanings: dict[int, NDArray[np.float32]]

    def prepare(self, step: Step) -> NDArray[np.uint8]:
        """The keyframe."""
        return step.keyframe()

    def encode(self, inputs: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """float32 [N, 384]; shorter than 1 where the labels disagree."""
        rows = []
        for picture in inputs:
            (probabilities,) = self.labeller.probabilities(picture[None])
            best = np.argsort(-probabilities, kind="stable")[:NUM_LABELS]
            weights = probabilities[best] / probabilities[best].sum()
            rows.append(weights @ np.stack([self._meaning(int(label)) for label in best]))
        return np.stack(rows)

    def _meaning(self, label: int) -> NDArray[np.float32]:
        if label not in self.meanings:
            (self.meanings[label],) = self.embedder.embed([SENTENCE.format(self.labeller.labels[label])])
        return self.meanings[label]
