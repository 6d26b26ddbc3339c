"""The network with its loss, and what of it is trained.

Shapes: see inputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from cookgen.captioner.config import CaptionerConfig
from cookgen.captioner.inputs import Batch
from cookgen.errors import ModelError
from cookgen.perception.caption_models.llava_next import VIDEO, load_network
from cookgen.pretrained import add_lora


class CaptionerModel(nn.Module):
    """A LLaVA-NeXT that is being tuned; satisfies cookgen.training.task.Model."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.loss_weights = {"text": 1.0}
        self.network = network

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The cross entropy, summed over the captions' tokens; words are predicted where one is learned alone."""
        pixels: dict[str, Tensor]
        if self.network.config.model_type == VIDEO:
            pixels = {"pixel_values_videos": batch.pixels_NCHW[None]}  # clips of any number of frames, in a row
        else:
            pixels = {"pixel_values": batch.pixels_NCHW, "image_sizes": batch.sizes_B2}
        found = self.network.model(input_ids=batch.ids_BL, attention_mask=batch.is_token_BL, use_cache=False, **pixels)
        hidden_TH = found.last_hidden_state.flatten(0, 1)[batch.learned_T]
        logits_TV = self.network.get_output_embeddings()(hidden_TH)
        return {"text": F.cross_entropy(logits_TV.float(), batch.labels_T, reduction="sum")}


def build_network(config: CaptionerConfig, *, dtype: Any) -> Any:
    """The pretrained network, LoRA in place where asked for, on the CPU; what is to be trained requires a gradient.

    dtype: torch's, or "auto" for the checkpoint's own. Raises ModelError where it cannot be loaded.
    """
    network = load_network(config.name, dtype=dtype)
    body = network.model
    network.requires_grad_(config.lora_rank == 0)
    if config.lora_rank:
        add_lora(body.language_model, rank=config.lora_rank, alpha=config.lora_alpha, dropout=config.lora_dropout)
    body.multi_modal_projector.requires_grad_(True)
    body.vision_tower.requires_grad_(False)
    if config.train_vision:
        _unfreeze_what_is_seen(body.vision_tower, network.config.vision_feature_layer)
    # A video's frames have no rows with an end of their own, and a parameter without a part in it would stop DDP.
    body.image_newline.requires_grad_(network.config.model_type != VIDEO)
    return network


def _unfreeze_what_is_seen(tower: nn.Module, feature_layer: int | list[int]) -> None:
    """All of the vision tower that the features come from: the last layers and the norm after them have no part."""
    layers = getattr(getattr(tower, "encoder", None), "layers", None)
    if layers is None:
        raise ModelError(f"train_vision: the layers of a {type(tower).__name__} are not known; leave the tower frozen")
    chosen = [feature_layer] if isinstance(feature_layer, int) else feature_layer
    num_used = max(layer if layer >= 0 else len(layers) + 1 + layer for layer in chosen)
    tower.requires_grad_(True)
    for layer in layers[num_used:]:
        layer.requires_grad_(False)
    for name, part in tower.named_children():
        if name not in ("embeddings", "pre_layrnorm", "encoder"):
            part.requires_grad_(False)


@dataclass(frozen=True)
class Cost:
    """Operations of the matrix products of a forward and backward: 6 a token and trained weight, 4 where it is frozen,
    2 where nothing before it is trained either. Attention's own products are left out, a few per cent."""

    of_picture: int
    of_token: int
    of_word: int  # that is predicted

    def flops(self, *, num_pictures: int, num_tokens: int, num_words: int) -> float:
        """Of a batch."""
        return float(self.of_picture * num_pictures + self.of_token * num_tokens + self.of_word * num_words)


def cost_of(network: Any) -> Cost:
    """Counts a network."""
    tower, config = network.model.vision_tower, network.config.vision_config
    is_trained = any(weight.requires_grad for weight in tower.parameters())
    of_patch = _of_token(tower) if is_trained else 2 * sum(weight.numel() for weight in tower.parameters())
    return Cost(
        of_picture=(config.image_size // config.patch_size) ** 2
        * (of_patch + _of_token(network.model.multi_modal_projector)),
        of_token=_of_token(network.model.language_model),
        of_word=_of_token(network.get_output_embeddings()),
    )


def _of_token(module: nn.Module) -> int:
    parts = (part for part in module.modules() if not isinstance(part, nn.Embedding))
    weights = (weight for part in parts for weight in part.parameters(recurse=False) if weight.ndim > 1)
    return sum((6 if weight.requires_grad else 4) * weight.numel() for weight in weights)
