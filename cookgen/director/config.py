"""What a director is made of. Source: VideoAuteur, section 4.1; MovieDreamer, section 3.4."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from cookgen.config import machinery

Shape = Literal["checkpoint", "tiny", "smollm2-135m", "qwen2.5-7b", "llama2-7b"]
Task = Literal["action-visual", "caption-visual", "action-caption-visual", "action-caption"]


@dataclass(frozen=True)
class LanguageModelConfig:
    """Which language model, and how much of it is trained.

    Args:
        name: a causal language model of transformers, or a vision-language one, of which the language part is taken: a
            folder, organisation/name@<commit>, or smollm2-135m-instruct
        shape: "checkpoint" is whatever `name` has. A named shape is what `name` must have, what random weights get, and
            what --plan counts where there is no checkpoint yet
        random: weights drawn at random in that shape, only the tokenizer comes from `name`: for tests and benchmarks
        lora_rank: 0 trains all weights; otherwise the rank of LoRA on every linear layer, the rest frozen
        lora_alpha: LoRA's updates are multiplied by lora_alpha / lora_rank
        lora_dropout: of what goes into LoRA's updates
        attention: auto is flex_attention, which skips what the mask hides, on CUDA, and sdpa elsewhere
    """

    name: str = "smollm2-135m-instruct"
    shape: Shape = "checkpoint"
    random: bool = False
    lora_rank: int = 0
    lora_alpha: int = 32
    lora_dropout: float = 0.05
    attention: Literal["auto", "sdpa", "flex_attention"] = machinery("auto")

    def __post_init__(self) -> None:
        if self.lora_rank < 0 or self.lora_alpha < 1 or not 0 <= self.lora_dropout < 1:
            raise ValueError(
                f"lora_rank={self.lora_rank}, lora_alpha={self.lora_alpha}, lora_dropout={self.lora_dropout}: "
                "rank >= 0, alpha >= 1, dropout in [0, 1)"
            )
        if self.random and self.shape == "checkpoint":
            raise ValueError("random=True: random weights need a named shape, for example shape='tiny'")


@dataclass(frozen=True)
class HeadConfig:
    """How z is read.

    Args:
        kind: regression is a linear layer with VideoAuteur's eq. 3, mixture a Gaussian mixture (MovieDreamer, eq. 4, 9)
        alpha: weight of 1 - cosine in the regression's loss; 0 is the row "MSE" of Table 5
        beta: weight of the mean squared error, which counts in units of the features' variance, so that 1 means the
            same for every encoder; 0 is the row "cosine" of Table 5
        components: Gaussians of the mixture
        readout: queries reads all tokens of z at once, at learned query tokens; next_token one after the other, each
            from the token before it (MovieDreamer, eq. 6)
    """

    kind: Literal["regression", "mixture"] = "regression"
    alpha: float = 1.0
    beta: float = 1.0
    components: int = 4
    readout: Literal["queries", "next_token"] = "queries"

    def __post_init__(self) -> None:
        if not (self.alpha >= 0 and self.beta >= 0 and 0 < self.alpha + self.beta < math.inf):
            raise ValueError(f"alpha={self.alpha}, beta={self.beta}: finite, neither negative, and not both 0")
        if self.components < 1:
            raise ValueError(f"components={self.components}: at least 1")
        if self.kind == "mixture" and (self.alpha, self.beta) != (1, 1):
            raise ValueError(f"alpha={self.alpha}, beta={self.beta}: of kind=regression; leave them 1")
        if self.kind == "regression" and self.components != 4:
            raise ValueError(f"components={self.components}: of kind=mixture; leave it 4")

    def image_size(self, num_tokens: int) -> int:
        """Tokens that a step's image takes in a sequence: z, its queries, <image> and </image>. num_tokens: of z."""
        return num_tokens * (2 if self.readout == "queries" else 1) + 2


@dataclass(frozen=True)
class SequenceConfig:
    """How a narrative becomes a sequence.

    Args:
        task: what a step holds, in this order (Table 6); action-caption is the language-centric director, without z
        supervision: every reads z at every step of one causal pass, last at the last step alone (figure 3b)
        random_length: with supervision=last: end after a random number of steps
        supervise_first: learn a sequence's first step too; otherwise it is only given: figure 3a's initial image-text
            pair
        max_length: tokens a sequence; a longer narrative is cut between steps into several
    """

    task: Task = "action-caption-visual"
    supervision: Literal["every", "last"] = "every"
    random_length: bool = False
    supervise_first: bool = True
    max_length: int = 2048

    def __post_init__(self) -> None:
        if self.max_length < 16:
            raise ValueError(f"max_length={self.max_length}: at least 16 tokens")
        if self.random_length and self.supervision != "last":
            raise ValueError("random_length: goes with supervision='last'; every step is supervised otherwise")

    @property
    def has_visual(self) -> bool:
        """Whether steps have a z."""
        return self.task != "action-caption"

    @property
    def fields(self) -> tuple[str, ...]:
        """The texts of a step, in order: of "action" and "caption"."""
        return tuple(name for name in ("action", "caption") if name in self.task)


@dataclass(frozen=True)
class RegularizationConfig:
    """Against learning the training set by heart. All rates are probabilities in [0, 1); 0 turns one off.

    Args:
        history_mix: of a step's z in the history being the model's own prediction (exposure bias)
        dropout: of the language model's inputs and of what the head reads (MovieDreamer: 0.5)
        mask_rate: of a token being invisible to all later ones (MovieDreamer: 0.15)
        reverse_rate: of a narrative being shown backwards, its texts given and not learned (MovieDreamer, data
            augmentation)
        reference_rate: of random keyframes of the narrative standing before it (MovieDreamer, few-shot)
        num_references: how many at most (MovieDreamer: 10), and never more than half of the narrative's steps
    """

    history_mix: float = 0.0
    dropout: float = 0.0
    mask_rate: float = 0.0
    reverse_rate: float = 0.0
    reference_rate: float = 0.0
    num_references: int = 10

    def __post_init__(self) -> None:
        for name in ("history_mix", "dropout", "mask_rate", "reverse_rate", "reference_rate"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: a probability, at least 0 and below 1")
        if self.num_references < 1:
            raise ValueError(f"num_references={self.num_references}: at least 1")


@dataclass(frozen=True)
class DirectorConfig:
    """The whole director.

    Args:
        text_weight: of the cross entropy beside the loss of z
    """

    language_model: LanguageModelConfig = LanguageModelConfig()
    head: HeadConfig = HeadConfig()
    sequence: SequenceConfig = SequenceConfig()
    regularization: RegularizationConfig = RegularizationConfig()
    text_weight: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.text_weight < math.inf:
            raise ValueError(f"text_weight={self.text_weight}: finite and not negative")
        if not self.sequence.has_visual:
            for name in ("history_mix", "reverse_rate", "reference_rate"):
                if getattr(self.regularization, name):
                    raise ValueError(f"{name}: the task action-caption has no z; leave it 0")
            if not self.text_weight:
                raise ValueError("text_weight=0: the task action-caption has nothing but text to learn")
        if self.regularization.history_mix and self.sequence.supervision == "last":
            raise ValueError("history_mix: goes with supervision='every'; the last step's z is no step's history")
        if self.head.readout == "next_token" and self.regularization.history_mix:
            raise ValueError("history_mix: goes with readout='queries'; next_token reads z from the history itself")
        if self.head.readout == "next_token" and self.sequence.supervision == "last":
            raise ValueError("readout='next_token' reads every z that is fed; use supervision='every'")

    def without_randomness(self) -> DirectorConfig:
        """The same director on narratives as they are: whole, forwards, nothing before them. For validation."""
        return replace(
            self,
            sequence=replace(self.sequence, random_length=False),
            regularization=RegularizationConfig(),
        )
