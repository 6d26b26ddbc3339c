"""The vision towers of Qwen2-VL and Qwen2.5-VL, run by transformers: what their language model sees of the keyframe.

Sources: Wang et al., arXiv:2409.12191; Bai et al., arXiv:2502.13923.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from cookgen.config import machinery
from cookgen.modelstore import identity, resolve
from cookgen.perception.encoders import (
    Step,
    device_of,
    inference,
    load_config,
    load_network,
    stacked,
    to_numpy,
)
from cookgen.pretrained import model_errors

GRID = 16  # merged tokens a side: 448 pixels with patches of 14 pixels, merged 2x2
_VISUAL = {r"^(model\.)?visual\.": ""}  # where a whole checkpoint keeps its tower, in older and newer files


@dataclass(frozen=True)
class QwenVlConfig:
    """num_tokens: 256 merged tokens of the picture's 16x16 grid, row by row, or 64: the means of 2x2 neighbours.

    [num_tokens, width of the language model]. The picture is cut to a square and resized to the grid.
    """

    kind: ClassVar[str] = "qwen_vl"
    version: ClassVar[int] = 1
    about: ClassVar[str] = "merged vision tokens of the keyframe as the Qwen-VL language model gets them, row by row"

    model: str
    num_tokens: Literal[64, 256] = 256
    device: str = machinery("auto")
    batch_size: int = machinery(8)
    num_workers: int = machinery(2)

    def identity(self) -> str:
        return identity(self.model)

    def load(self) -> QwenVlEncoder:
        """Loads the tower alone; the language model's weights are never read."""
        import torch
        from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
        from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VisionTransformerPretrainedModel

        towers = {
            "qwen2_vl": Qwen2VisionTransformerPretrainedModel,
            "qwen2_5_vl": Qwen2_5_VisionTransformerPretrainedModel,
        }
        path = resolve(self.model).path
        config = load_config(self.model, path, tuple(towers), self.kind)
        network = load_network(
            self.model,
            towers[config.model_type].from_pretrained,
            path,
            config=config.vision_config,
            key_mapping=_VISUAL,
            dtype=torch.float32,
        )
        with model_errors(self.model):
            processor = Qwen2VLImageProcessorPil.from_pretrained(path, local_files_only=True)
        device = device_of(self.device)
        side_px = GRID * config.vision_config.patch_size * config.vision_config.spatial_merge_size
        return QwenVlEncoder(network.to(device), processor, device, side_px, self.num_tokens)


@dataclass(frozen=True, eq=False)
class QwenVlEncoder:
    """A loaded vision tower with the picture processor of its checkpoint."""

    network: Any
    processor: Any
    device: Any
    side_px: int
    num_tokens: int

    def prepare(self, step: Step) -> NDArray[np.float32]:
        """float32 [patches, values of a patch], in the order that the tower merges them in."""
        picture = ImageOps.fit(Image.fromarray(step.keyframe()), (self.side_px, self.side_px), Image.Resampling.BICUBIC)
        patches = self.processor(images=picture, do_resize=False, return_tensors="np")["pixel_values"]
        return np.asarray(patches, np.float32)

    def encode(self, inputs: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """float32 [N, num_tokens, width]."""
        import torch

        patches_NPD = stacked(inputs).to(self.device)
        side = GRID * self.network.spatial_merge_size
        grid_thw = torch.tensor([[1, side, side]] * len(inputs), device=self.device)
        with inference():
            merged = self.network(patches_NPD.flatten(0, 1), grid_thw=grid_thw).pooler_output
            grid_NHWD = merged.reshape(len(inputs), GRID, GRID, -1)
            if self.num_tokens < GRID * GRID:
                grid_NHWD = grid_NHWD.unflatten(1, (-1, 2)).unflatten(3, (-1, 2)).mean(dim=(2, 4))
            return to_numpy(grid_NHWD.flatten(1, 2))
