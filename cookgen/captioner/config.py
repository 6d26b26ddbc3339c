"""What a captioner is made of."""

from __future__ import annotations

from dataclasses import dataclass

from cookgen.config import machinery


@dataclass(frozen=True)
class CaptionerConfig:
    """Which network, how much of it is trained, and what it is shown.

    Args:
        name: a LLaVA-NeXT or LLaVA-NeXT-Video in the form of transformers' llava-hf checkpoints: a folder, or
            organisation/name@<commit>
        lora_rank: of LoRA on every linear layer of the language model, whose own weights stay; 0 trains all of them.
            The projector between the pictures and the language model is trained either way
        lora_alpha: LoRA's updates are multiplied by lora_alpha / lora_rank
        lora_dropout: of what goes into LoRA's updates
        train_vision: train the vision tower's weights too
        num_frames: evenly spaced frames of a clip; give the captions stage the same
        max_length: tokens of picture, prompt and caption together; a longer caption is not learned, and counted
        num_samples: captions of held-out clips to write beside each checkpoint
        sample_tokens: the most tokens of such a caption
    """

    name: str = ""
    lora_rank: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.05
    train_vision: bool = False
    num_frames: int = 8
    max_length: int = 4096
    num_samples: int = machinery(8)
    sample_tokens: int = machinery(256)

    def __post_init__(self) -> None:
        if self.lora_rank < 0 or self.lora_alpha < 1 or not 0 <= self.lora_dropout < 1:
            raise ValueError(
                f"lora_rank={self.lora_rank}, lora_alpha={self.lora_alpha}, lora_dropout={self.lora_dropout}: "
                "rank >= 0, alpha >= 1, dropout in [0, 1)"
            )
        for name, least in (("num_frames", 1), ("max_length", 16), ("num_samples", 0), ("sample_tokens", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)}: at least {least}")
