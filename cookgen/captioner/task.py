"""Training a captioner: what the loop of cookgen.training asks of a model's task."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch.distributed.tensor import DTensor

from cookgen.captioner.captions import CaptionSet, Clips, Example, JsonLines, Source
from cookgen.captioner.config import CaptionerConfig
from cookgen.captioner.inputs import Batch, CaptionInputs, collate
from cookgen.captioner.model import CaptionerModel, Cost, build_network, cost_of
from cookgen.config import to_values
from cookgen.dataset.split import load_split
from cookgen.errors import UsageError
from cookgen.files import file_sha256, write_atomic
from cookgen.modelstore import identity
from cookgen.perception.caption_models.llava_next import ClipInputs, LlavaNextCaptioner

if TYPE_CHECKING:
    from cookgen.dataset.torch_loader import Loader

DESCRIPTION = "captioner.json"
SAMPLES = "captions.jsonl"


class CaptionerTask:
    """A captioner on caption sets; satisfies cookgen.training.task.Task.

    captions, valid_captions: sets in JSON Lines. shards: shard sets, whose train_split and valid_split are added.
    Without valid_captions, shards or a valid_split nothing is measured. Raises UsageError without a network's name,
    InputError naming the line of a set that is wrong.
    """

    name = "captioner"

    def __init__(
        self,
        config: CaptionerConfig,
        *,
        captions: Sequence[Path] = (),
        valid_captions: Sequence[Path] = (),
        shards: Sequence[Path] = (),
        train_split: str = "train",
        valid_split: str | None = "val",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if not config.name:
            raise UsageError(
                "model.name: which LLaVA-NeXT shall be tuned? Give a folder, or a repository of the hub at a commit, "
                "for example llava-hf/llava-v1.6-mistral-7b-hf@<40 hex digits>"
            )
        self._config, self._dtype = config, dtype
        self._files = {"captions": tuple(captions), "valid_captions": tuple(valid_captions)}
        self._sets = {
            "train": self._open("train", captions, shards, train_split),
            "valid": self._open("valid", valid_captions, shards, valid_split),
        }

    def _open(self, role: str, files: Sequence[Path], shards: Sequence[Path], split: str | None) -> CaptionSet:
        num_frames = self._config.num_frames
        sources: list[Source] = [JsonLines.open(path, num_frames=num_frames) for path in files]
        if shards and split is not None:
            sources.append(Clips(load_split(split, shards, unit="clip"), num_frames))
        return CaptionSet(role, tuple(sources))

    def num_examples(self, role: Literal["train", "valid"]) -> int:
        """How many clips with captions there are."""
        return len(self._sets[role])

    @property
    def made_of(self) -> dict[str, Any]:
        """Whose weights and captions these are: other ones make it another run."""
        files = {name: [file_sha256(path) for path in paths] for name, paths in self._files.items()}
        return {"network": identity(self._config.name), **files}

    @property
    def block_classes(self) -> tuple[type, ...]:
        """The language model's layers."""
        return (type(self._built.network.model.language_model.layers[0]),)

    def build(self) -> CaptionerModel:
        """The pretrained network, on the CPU."""
        self._model = CaptionerModel(build_network(self._config, dtype=self._dtype))
        self._cost = cost_of(self._model.network)
        return self._model

    _model: CaptionerModel | None = None
    _cost: Cost | None = None

    @property
    def _built(self) -> CaptionerModel:
        assert self._model is not None, "build() comes first"
        return self._model

    @cached_property
    def inputs(self) -> ClipInputs:
        """What makes the network's inputs of frames and a prompt."""
        return ClipInputs.load(self._config.name)

    def loader(self, role: Literal["train", "valid"], *, batch_size: int, num_workers: int, seed: int) -> Loader | None:
        """Batches of clips; None where there is nothing to measure on."""
        from cookgen.dataset.torch_loader import Loader

        items = self._sets[role]
        if role == "valid" and not len(items):
            return None
        inputs = CaptionInputs(self.inputs, self._config.max_length)
        return Loader(
            CaptionSet(role, items.sources, seed if role == "train" else None, inputs),
            batch_size=batch_size,
            num_workers=num_workers,
            remainder="repeat" if role == "train" else "short",
            on_error="raise",
            collate=collate,
            rank=None,
            num_ranks=None,
            prefetch=2,
            pin_memory=torch.cuda.is_available(),
        )

    def flops(self, batch: Batch) -> float:
        """Of forward and backward, see model.Cost."""
        assert self._cost is not None, "build() comes first"
        return self._cost.flops(
            num_pictures=len(batch.pixels_NCHW), num_tokens=batch.num_tokens, num_words=batch.counts["text"]
        )

    def write_extras(self, folder: Path) -> None:
        """captioner.json, and captions.jsonl: what it says now of the first held-out clips, beside what is right.

        They are by the weights as they are, not by their mean where one is kept, and left out where the weights are
        sharded over ranks.
        """
        values = {"config": to_values(self._config, with_machinery=False), "network": identity(self._config.name)}
        write_atomic(folder / DESCRIPTION, json.dumps(values, sort_keys=True))
        held_out, network = self._sets["valid"], self._built.network
        if any(isinstance(weight, DTensor) for weight in network.parameters()):
            return
        examples: list[Example] = [held_out[index] for index in range(min(self._config.num_samples, len(held_out)))]
        if examples:
            lines = [json.dumps(line, ensure_ascii=False) + "\n" for line in self._samples(network, examples)]
            write_atomic(folder / SAMPLES, "".join(lines))

    def _samples(self, network: Any, examples: Sequence[Example]) -> list[dict[str, str]]:
        captioner = LlavaNextCaptioner("", network, self.inputs, self._config.sample_tokens)
        was_training = network.training
        network.eval()
        is_bf16 = network.dtype == torch.bfloat16  # beside adapters in float32
        try:
            with torch.autocast(network.device.type, torch.bfloat16) if is_bf16 else nullcontext():
                return [
                    {
                        "clip": example.name,
                        "caption": example.caption,
                        "said": captioner.caption(example.frames_THWC, key=example.name, prompt=example.prompt),
                    }
                    for example in examples
                ]
        finally:
            network.train(was_training)
