"""LLaVA-NeXT and LLaVA-NeXT-Video, run by transformers in this process; greedy.

LLaVA-NeXT takes pictures: a clip's frames become one picture, a grid in reading order, which the model cuts into tiles
of its own resolution. Source: IG-VLM, "An Image Grid Can Be Worth a Video", arXiv:2403.18406.
LLaVA-NeXT-Video takes the frames as they are, each pooled to a quarter of its tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cookgen.errors import ModelError
from cookgen.modelstore import identity, resolve
from cookgen.perception.caption_models import GRID_PROMPT, PROMPT, check_frames, frame_grid, whole_sentences
from cookgen.pretrained import model_errors

IMAGE, VIDEO = "llava_next", "llava_next_video"  # model_type in a checkpoint's config.json
_LOCAL = {"local_files_only": True, "trust_remote_code": False}  # a folder's own code is never run, nor asked about


@dataclass(frozen=True, eq=False)
class ClipInputs:
    """Makes the network's inputs of a clip's frames and a prompt: what captioning and training share. Pickles."""

    config: Any  # the network's
    tokenizer: Any
    pictures: Any  # LlavaNextImageProcessorPil
    processor: Any  # LlavaNextProcessor; None for a video model, whose own wants torchvision

    @staticmethod
    def load(name_or_path: str) -> ClipInputs:
        """Of a checkpoint, see LlavaNextCaptioner.load; no weights are read."""
        from transformers import AutoConfig, AutoTokenizer, LlavaNextProcessor
        from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

        path = resolve(name_or_path).path
        with model_errors(name_or_path):
            config = AutoConfig.from_pretrained(path, **_LOCAL)
            if config.model_type not in (IMAGE, VIDEO):
                raise ModelError(
                    f"{name_or_path}: its model_type is {config.model_type!r}; "
                    f"captions.kind=llava_next runs {IMAGE} and {VIDEO}, captions.kind=endpoint any served model"
                )
            tokenizer = AutoTokenizer.from_pretrained(path, **_LOCAL)
            pictures = LlavaNextImageProcessorPil.from_pretrained(path, local_files_only=True)
        processor = None
        if config.model_type == IMAGE:
            processor = LlavaNextProcessor(
                pictures,
                tokenizer,
                patch_size=config.vision_config.patch_size,
                vision_feature_select_strategy=config.vision_feature_select_strategy,
                num_additional_image_tokens=1,  # CLIP's class token
                chat_template=tokenizer.chat_template,
            )
        return ClipInputs(config, tokenizer, pictures, processor)

    @property
    def takes_video(self) -> bool:
        """Whether it is a video model; the others take one picture."""
        return bool(self.config.model_type == VIDEO)

    def __call__(self, frames_THWC: NDArray[np.uint8], prompt: str | None = None) -> Any:
        """The keyword arguments of the network as torch tensors, for one clip.

        frames_THWC: see Captioner. prompt: in place of what every clip is asked.
        """
        check_frames(frames_THWC)
        if self.takes_video:
            return self._of_video(frames_THWC, PROMPT if prompt is None else prompt)
        text = self.dialogue("image", GRID_PROMPT + PROMPT if prompt is None else prompt)
        return self.processor(images=frame_grid(frames_THWC), text=text, return_tensors="pt")

    def _of_video(self, frames_THWC: NDArray[np.uint8], prompt: str) -> Any:
        import torch

        # The first "tile" is the whole picture at the vision tower's size. (transformers' own video processor needs
        # torchvision, which this environment leaves out.)
        pixels = [self.pictures(images=frame, return_tensors="np")["pixel_values"][0][0] for frame in frames_THWC]
        videos = torch.from_numpy(np.stack(pixels)[None])  # [1, T, 3, H, W]
        height, width = (side // self.config.vision_config.patch_size for side in videos.shape[-2:])
        stride = self.config.spatial_pool_stride
        num_tokens = len(pixels) * (height // stride) * (width // stride)
        video_token = self.tokenizer.convert_ids_to_tokens(self.config.video_token_index)
        text = self.dialogue("video", prompt).replace(video_token, video_token * num_tokens)
        inputs = self.tokenizer(text, return_tensors="pt")
        inputs["pixel_values_videos"] = videos
        return inputs

    def dialogue(self, content: str, prompt: str) -> str:
        """The prompt in the checkpoint's chat template; in Vicuna's, the first LLaVA-NeXT's, where it has none."""
        if self.tokenizer.chat_template is None:
            return f"USER: <{content}>\n{prompt} ASSISTANT:"
        turn = {"role": "user", "content": [{"type": content}, {"type": "text", "text": prompt}]}
        return str(self.tokenizer.apply_chat_template([turn], add_generation_prompt=True, tokenize=False))


@dataclass(frozen=True, eq=False)
class LlavaNextCaptioner:
    """A loaded checkpoint with its tokenizer and its picture processor. On a GPU in bfloat16 where there is one."""

    name: str
    network: Any  # transformers' LlavaNext(Video)ForConditionalGeneration, in eval mode
    inputs: ClipInputs
    max_tokens: int

    @staticmethod
    def load(name_or_path: str, *, max_tokens: int, device: str = "cpu") -> LlavaNextCaptioner:
        """A folder, or a hub repository at a commit, in the form of transformers' `llava-hf` checkpoints.

        Raises ModelError where it is not there or is no LLaVA-NeXT model.
        """
        import torch

        inputs = ClipInputs.load(name_or_path)
        network = load_network(name_or_path, dtype=torch.float32 if device == "cpu" else torch.bfloat16)
        name = resolve(name_or_path).id
        return LlavaNextCaptioner(name, network.to(device).eval(), inputs, max_tokens)

    @staticmethod
    def identity(name_or_path: str) -> str:
        """ "id@revision" of the checkpoint; nothing is loaded."""
        return identity(name_or_path)

    @property
    def origin(self) -> str:
        return f"llava_next:{self.name}"

    def caption(self, frames_THWC: NDArray[np.uint8], *, key: str, prompt: str | None = None) -> str:
        """See Captioner; an answer cut off at max_tokens is cut back to its last whole sentence.

        prompt: in place of what every clip is asked.
        """
        import torch
        from transformers import GenerationConfig

        inputs = self.inputs(frames_THWC, prompt).to(self.network.device)
        for name in ("pixel_values", "pixel_values_videos"):
            if name in inputs:
                inputs[name] = inputs[name].to(self.network.dtype)
        ends = self.network.generation_config.eos_token_id
        tokenizer = self.inputs.tokenizer
        with torch.inference_mode():
            tokens = self.network.generate(
                **inputs,
                # Ours alone: a checkpoint's own configuration may ask for sampling.
                generation_config=GenerationConfig(
                    do_sample=False,
                    num_beams=1,
                    max_new_tokens=self.max_tokens,
                    eos_token_id=ends,
                    bos_token_id=self.network.generation_config.bos_token_id,
                    pad_token_id=tokenizer.pad_token_id or 0,
                ),
            )[0, inputs["input_ids"].shape[1] :]
        text = str(tokenizer.decode(tokens, skip_special_tokens=True))
        return whole_sentences(text) if len(tokens) == self.max_tokens else text


def load_network(name_or_path: str, *, dtype: Any) -> Any:
    """The checkpoint's weights in transformers' class for them, on the CPU. dtype: torch's, or "auto" for their own.

    Raises ModelError where they cannot be loaded.
    """
    from transformers import AutoConfig, LlavaNextForConditionalGeneration, LlavaNextVideoForConditionalGeneration

    path = resolve(name_or_path).path
    with model_errors(name_or_path):
        config = AutoConfig.from_pretrained(path, **_LOCAL)
        is_video = config.model_type == VIDEO
        kind = LlavaNextVideoForConditionalGeneration if is_video else LlavaNextForConditionalGeneration
        return kind.from_pretrained(path, use_safetensors=True, dtype=dtype, **_LOCAL)  # never a pickle
