"""Training a director: what the loop of cookgen.training asks of a model's task."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from cookgen.dataset.narrative import Narrative
from cookgen.dataset.split import Split, load_split
from cookgen.director.config import DirectorConfig
from cookgen.director.cost import Cost, cost_of, num_visible_pairs
from cookgen.director.inputs import Batch, NarrativeInputs, Packer, Vocabulary, finite
from cookgen.director.model import Director, Embeddings
from cookgen.director.weights import (
    Encoded,
    architecture_of,
    load_language_model,
    load_tokenizer,
    origin_of,
    save_description,
)
from cookgen.errors import ShapeError, UsageError
from cookgen.records import Features
from cookgen.records.features import encoder_of

if TYPE_CHECKING:
    from cookgen.dataset.torch_loader import Loader

NUM_MEASURED = 2000  # clips, at 8 a narrative, whose features say where z lies


class DirectorTask:
    """A director on a shard set; satisfies cookgen.training.task.Task.

    features: the sidecar whose arrays are z; None for the task action-caption. valid_split: None: without validation.
    Raises ShapeError for features that are neither [W] nor [N, W].
    """

    name = "director"

    def __init__(
        self,
        config: DirectorConfig,
        shards: Sequence[Path],
        *,
        features: str | None,
        encoder_model: str | None = None,
        train_split: str = "train",
        valid_split: str | None = "val",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self._config, self._shards, self._dtype = config, shards, dtype
        self._feature_names, self._encoder_model = [] if features is None else [features], encoder_model
        self._split_names = {"train": train_split, "valid": valid_split}
        self._features: Features | None = None
        self._embeddings: Embeddings | None = None
        if features is not None:
            split = self._split(train_split)
            self._features = split[0].reader.sidecars[features].features
            self._embeddings = embeddings_of(split, self._features)

    def _split(self, name: str, **order: Any) -> Split[Narrative]:
        return load_split(name, self._shards, features=self._feature_names, **order)

    @property
    def made_of(self) -> dict[str, Any]:
        """Whose features and weights these are: other ones make it another run."""
        found = self._features
        encoder = None if found is None else dict(zip(("model", "revision", "config"), encoder_of(found), strict=True))
        return {
            "language_model": origin_of(self._config.language_model),
            "features": found and encoder and {**encoder, "shape": list(found.shape)},
        }

    @property
    def block_classes(self) -> tuple[type, ...]:
        """The language model's layers."""
        assert self._director is not None, "build() comes first"
        return (type(self._director.language_model.get_decoder().layers[0]),)

    def build(self) -> Director:
        """The director with its pretrained language model, on the CPU."""
        if self._config.language_model.attention == "flex_attention" and not torch.cuda.is_available():
            raise UsageError("attention=flex_attention: it has no backward pass on a CPU; leave it at auto")
        language_model = load_language_model(self._config.language_model, dtype=self._dtype)
        self._director = Director(self._config, language_model, self._embeddings)
        self._cost = cost_of(self._director)
        return self._director

    _director: Director | None = None
    _cost: Cost | None = None

    @cached_property
    def tokenizer(self) -> Any:
        """The language model's."""
        return load_tokenizer(self._config.language_model)

    def loader(self, role: Literal["train", "valid"], *, batch_size: int, num_workers: int, seed: int) -> Loader | None:
        """Batches of packed narratives; None where there is no validation split."""
        name = self._split_names[role]
        if name is None:
            return None
        split = self._split(name, shuffle=True, seed=seed) if role == "train" else self._split(name)
        z_shape = (1, 1) if self._embeddings is None else (self._embeddings.num_tokens, self._embeddings.width)
        num_queries = z_shape[0] if self._embeddings and self._config.head.readout == "queries" else 0
        inputs = NarrativeInputs(
            vocabulary=Vocabulary(architecture_of(self._config.language_model).vocab_size, num_queries),
            tokenizer=self.tokenizer,
            config=self._config if role == "train" else self._config.without_randomness(),
            feature="".join(self._feature_names),
            z_shape=z_shape,
        )
        return split.map(inputs).torch(
            batch_size=batch_size,
            num_workers=num_workers,
            collate=Packer(self._config.sequence.max_length, z_shape),
            remainder="repeat" if role == "train" else "short",
            pin_memory=torch.cuda.is_available(),
        )

    def flops(self, batch: Batch) -> float:
        """Of forward and backward, see cost.Cost.flops."""
        assert self._cost is not None, "build() comes first"
        return self._cost.flops(
            num_tokens=batch.num_tokens,
            num_learned=batch.counts["text"],
            num_pairs=num_visible_pairs(batch),
            num_fed=batch.fed_FN.numel(),
            num_read=batch.read_MN.numel(),
        )

    def write_extras(self, folder: Path) -> None:
        """director.json, the tokenizer and the language model's shape."""
        assert self._director is not None, "build() comes first"
        found = self._features
        encoded = None
        if found is not None:
            encoded = Encoded(found.name, found.model, found.revision, found.config, self._encoder_model)
        model = self._director.language_model
        save_description(folder, self._config, model, self.tokenizer, self._embeddings, encoded)


def embeddings_of(split: Split[Narrative], features: Features) -> Embeddings:
    """What z is, and its mean and standard deviation over about 2000 clips, evenly spread over the split.

    Raises FormatError for features that are not finite.
    """
    shape = features.shape
    if len(shape) not in (1, 2):
        raise ShapeError(
            f"features {features.name!r}: shape {list(shape)} a clip; a director writes one vector [W] or tokens "
            "[N, W], such as clip, qwen_vl or conse give"
        )
    num_tokens, width = (1, shape[0]) if len(shape) == 1 else shape
    narratives = split[:: max(1, len(split) * 8 // NUM_MEASURED)]
    total, squares, count = np.zeros(width), 0.0, 0
    for narrative in narratives:
        z = finite(narrative, features.name).astype(np.float64).reshape(-1, width)
        total += z.sum(0)
        squares += float((z**2).sum())
        count += len(z)
    mean = total / count
    variance = squares / count / width - float((mean**2).mean())
    return Embeddings(int(num_tokens), int(width), tuple(map(float, mean)), float(np.sqrt(max(variance, 1e-12))))
