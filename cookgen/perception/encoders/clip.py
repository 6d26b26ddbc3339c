"""CLIP and SigLIP vision towers, run by transformers: embeddings of the keyframe.

Sources: Radford et al., arXiv:2103.00020; Zhai et al., arXiv:2303.15343.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cookgen.config import machinery
from cookgen.errors import ModelError
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

CLIP, SIGLIP = ("clip", "clip_vision_model"), ("siglip", "siglip_vision_model")  # model_type of a checkpoint


@dataclass(frozen=True)
class ClipConfig:
    """tokens: "patch" is the last hidden state of every patch, [num_patches, width], without CLIP's class token;
    "pooled" the image's one embedding, [width]: CLIP's projected one, SigLIP's pooler output. Neither is normalised."""

    kind: ClassVar[str] = "clip"
    version: ClassVar[int] = 1
    about: ClassVar[str] = "CLIP or SigLIP vision tower of the keyframe, not normalised"

    model: str
    tokens: Literal["patch", "pooled"] = "patch"
    device: str = machinery("auto")
    batch_size: int = machinery(32)
    num_workers: int = machinery(2)

    def identity(self) -> str:
        return identity(self.model)

    def load(self) -> ClipEncoder:
        import torch
        from transformers import CLIPVisionModel, CLIPVisionModelWithProjection, SiglipVisionModel
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
        from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

        path = resolve(self.model).path
        config = load_config(self.model, path, CLIP + SIGLIP, self.kind)
        is_clip = config.model_type in CLIP
        if is_clip:
            network_class = CLIPVisionModelWithProjection if self.tokens == "pooled" else CLIPVisionModel
        else:
            network_class = SiglipVisionModel
        vision = getattr(config, "vision_config", config)  # of a whole model, or of a tower saved alone
        if config.model_type == "clip":
            vision.projection_dim = config.projection_dim
        network = load_network(self.model, network_class.from_pretrained, path, config=vision, dtype=torch.float32)
        with model_errors(self.model):
            processor = (CLIPImageProcessorPil if is_clip else SiglipImageProcessorPil).from_pretrained(
                path, local_files_only=True
            )
            height, width = processor(images=Image.new("RGB", (9, 9)), return_tensors="np")["pixel_values"].shape[2:]
        if (height, width) != (network.config.image_size,) * 2:
            raise ModelError(
                f"{self.model}: preprocessor_config.json makes pictures of {width}x{height} pixels, "
                f"the network takes {network.config.image_size}x{network.config.image_size}"
            )
        if self.tokens == "pooled" and not is_clip and not network.use_head:
            raise ModelError(f"{self.model}: its SigLIP tower has no pooling head; set tokens=patch")
        device = device_of(self.device)
        return ClipEncoder(network.to(device), processor, device, is_pooled=self.tokens == "pooled", is_clip=is_clip)


@dataclass(frozen=True, eq=False)
class ClipEncoder:
    """A loaded vision tower with the picture processor of its checkpoint."""

    network: Any  # CLIPVisionModel, CLIPVisionModelWithProjection or SiglipVisionModel
    processor: Any
    device: Any
    is_pooled: bool
    is_clip: bool

    def prepare(self, step: Step) -> NDArray[np.float32]:
        """float32 [3, H, W], resized and normalised as the checkpoint asks."""
        pixels = self.processor(images=Image.fromarray(step.keyframe()), return_tensors="np")["pixel_values"]
        return np.asarray(pixels[0], np.float32)

    def encode(self, inputs: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """float32 [N, num_patches, width], or [N, width] of pooled ones."""
        with inference():
            output = self.network(pixel_values=stacked(inputs).to(self.device))
            if self.is_pooled:
                return to_numpy(output.image_embeds if self.is_clip else output.pooler_output)
            return to_numpy(output.last_hidden_state[:, int(self.is_clip) :])
