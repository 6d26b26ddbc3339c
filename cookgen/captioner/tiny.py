"""A LLaVA-NeXT of some hundred thousand random weights, as a folder like those of llava-hf on the hub.

It stands in for a pretrained one where there is no model hub: to see training, export and captioning work in minutes on
a CPU, and in tests. It knows nothing, so all of it has to be trained: lora_rank=0, train_vision=True.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from cookgen.perception.caption_models import GRID_PROMPT, PROMPT
from cookgen.pretrained import model_errors

TEMPLATE = (
    "{% for message in messages %}USER: {% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% else %}<{{ part['type'] }}>\n{% endif %}"
    "{% endfor %}{% endfor %} ASSISTANT:"
)
_SIDE_PX = 32  # of the vision tower's picture
_TILES = [[_SIDE_PX, 2 * _SIDE_PX], [2 * _SIDE_PX, _SIDE_PX], [2 * _SIDE_PX, 2 * _SIDE_PX]]
_MARKS = ("<s>", "</s>", "<pad>", "<image>", "<video>")


def write_tiny(folder: Path, texts: Iterable[str] = (), *, video: bool = False, seed: int = 0) -> Path:
    """Writes the network, its tokenizer and its picture processor; returns the folder.

    texts: what the tokenizer learns its words from, say the captions. video: a LLaVA-NeXT-Video. The same arguments
    give the same network.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaNextConfig,
        LlavaNextForConditionalGeneration,
        LlavaNextProcessor,
        LlavaNextVideoConfig,
        LlavaNextVideoForConditionalGeneration,
        PreTrainedTokenizerFast,
    )
    from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1000,
        special_tokens=list(_MARKS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([GRID_PROMPT + PROMPT, *texts], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    tokenizer.chat_template = TEMPLATE
    pictures = LlavaNextImageProcessorPil(
        size={"shortest_edge": _SIDE_PX},
        crop_size={"height": _SIDE_PX, "width": _SIDE_PX},
        image_grid_pinpoints=_TILES,
    )
    vision = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=_SIDE_PX,
        patch_size=8,
    )
    text = LlamaConfig(
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=len(tokenizer),
        max_position_embeddings=4096,
        initializer_range=0.05,
        bos_token_id=_MARKS.index("<s>"),
        eos_token_id=_MARKS.index("</s>"),
        pad_token_id=_MARKS.index("<pad>"),
    )
    shared = {
        "vision_config": vision,
        "text_config": text,
        "image_token_index": _MARKS.index("<image>"),
        "image_grid_pinpoints": _TILES,
    }
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        if video:
            config = LlavaNextVideoConfig(video_token_index=_MARKS.index("<video>"), **shared)
            network = LlavaNextVideoForConditionalGeneration(config)
        else:
            network = LlavaNextForConditionalGeneration(LlavaNextConfig(**shared))
    with model_errors(str(folder)):
        network.save_pretrained(folder)
    pictures.save_pretrained(folder)
    if video:
        tokenizer.save_pretrained(folder)
    else:
        LlavaNextProcessor(
            pictures,
            tokenizer,
            patch_size=vision.patch_size,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
            chat_template=TEMPLATE,
        ).save_pretrained(folder)
    return folder
