"""Tiny checkpoints with random weights, saved as the real ones lie on the hub: CLIP, SigLIP, LTX and Wan pipelines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import (
    CLIPConfig,
    CLIPModel,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipModel,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

SIDE = 32
NUM_TOKENS = 8
WORDS = "<s> </s> <pad> <unk> a the hand hands pan pot red green blue bowl whisk whisks stir stirs slice slices onion"
VOCABULARY = {word: number for number, word in enumerate(WORDS.split())}
VISION = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION |= {"image_size": SIDE, "patch_size": 16}
TEXT = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
TEXT |= {"vocab_size": len(VOCABULARY), "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
TEXT |= {"max_position_embeddings": NUM_TOKENS}


def tokenizer() -> Any:
    """A word a token, `<s>` before and `</s>` after them."""
    whole = Tokenizer(WordLevel(VOCABULARY, unk_token="<unk>"))
    whole.pre_tokenizer = Whitespace()
    whole.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
    marks = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=whole, **marks)


def image_text(folder: Path, kind: str = "clip", *, seed: int = 0) -> tuple[Any, Any, Any]:
    """The whole model, its picture processor and its tokenizer, saved in the folder."""
    torch.manual_seed(seed)
    if kind == "clip":
        model: Any = CLIPModel(CLIPConfig(vision_config=VISION, text_config=TEXT, projection_dim=24))
        pictures: Any = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    else:
        model = SiglipModel(SiglipConfig(vision_config=VISION, text_config=TEXT))
        pictures = SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE})
    words = tokenizer()
    for part in (model.eval(), pictures, words):
        part.save_pretrained(folder)
    return model, pictures, words


def ltx(folder: Path) -> Path:
    """LTX-Video's image-to-video pipeline; its autoencoder takes 8k + 1 frames, and sides that 32 divides."""
    torch.manual_seed(0)
    four = {"block_out_channels": (8, 8, 8, 8), "spatio_temporal_scaling": (True, True, False, False)}
    autoencoder = diffusers.AutoencoderKLLTXVideo(
        latent_channels=8,
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        patch_size=1,
        patch_size_t=1,
        timestep_conditioning=False,
        **four,
        **{f"decoder_{name}": value for name, value in four.items()},
    )
    transformer = diffusers.LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        num_layers=1,
        caption_channels=16,
    )
    text = T5Config(vocab_size=len(VOCABULARY), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, pad_token_id=2)
    diffusers.LTXImageToVideoPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=autoencoder.eval(),
        text_encoder=T5EncoderModel(text).eval(),
        tokenizer=tokenizer(),
        transformer=transformer.eval(),
    ).save_pretrained(folder)
    return folder


def wan(folder: Path) -> Path:
    """Wan's image-to-video pipeline without an image encoder, as in its version 2.2; 4k + 1 frames."""
    torch.manual_seed(0)
    autoencoder = diffusers.AutoencoderKLWan(base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
    transformer = diffusers.WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=36,
        out_channels=16,
        text_dim=16,
        ffn_dim=32,
        num_layers=1,
        freq_dim=32,
    )
    text = UMT5Config(
        vocab_size=len(VOCABULARY), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, pad_token_id=2
    )
    diffusers.WanImageToVideoPipeline(
        tokenizer=tokenizer(),
        text_encoder=UMT5EncoderModel(text).eval(),
        vae=autoencoder.eval(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        transformer=transformer.eval(),
    ).save_pretrained(folder)
    return folder
