"""A small but real model and its data, to train in tests; also a program, for tests that need processes of their own.

    python -m tests.cookgen.training.tinytask SHARDS '[{"out": "run", "config": {"steps": 4}}]'

Shapes: B narratives, L bytes, S steps, D the model's width, W that of the features, K heads.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.nn import functional as F

from cookgen import load_split
from cookgen.dataset.narrative import Narrative
from cookgen.dataset.torch_loader import Loader
from cookgen.errors import CookgenError, FormatError
from cookgen.training.config import TrainingConfig
from cookgen.training.loop import Summary, train
from cookgen.training.task import Role
from tests.shardset import Story, add_features, make_set

WIDTH, Z_WIDTH, VOCABULARY, PAD = 32, 8, 257, 256


def make_shards(out: Path) -> Path:
    """8 narratives to train on and 3 to validate, of different lengths, with features named "tiny"."""
    stories = [Story(f"t{number}", num_clips=2 + number % 3, first_text=f"Chop {number} leeks") for number in range(8)]
    stories += [Story(f"v{number}", num_clips=2 + number, split="val", first_shade=10) for number in range(3)]
    make_set(out, stories)
    add_features(out, "tiny", (Z_WIDTH,))
    return out


class TinyBatch(NamedTuple):
    """Texts as bytes, and where each step ends; a NamedTuple, so that the loader can leave out its rows."""

    ids_BL: Tensor
    ends_BS: Tensor  # -1: no such step
    z_BSW: Tensor

    @property
    def counts(self) -> dict[str, int]:
        num_images = int((self.ends_BS >= 0).sum())
        return {"text": int((self.ids_BL[:, 1:] != PAD).sum()), "visual": num_images, "l2": num_images}

    @property
    def left_out(self) -> dict[str, int]:
        return {"padded_steps": int((self.ends_BS < 0).sum())}

    @property
    def num_tokens(self) -> int:
        return int((self.ids_BL != PAD).sum())

    def to(self, device: torch.device) -> TinyBatch:
        return TinyBatch(*(tensor.to(device) for tensor in self))


def encoded(narrative: Narrative, unreadable: str) -> dict[str, np.ndarray]:
    if narrative.name == unreadable:
        raise FormatError(f"{narrative.name}: made unreadable")
    texts = [step.action.encode() for step in narrative.steps]
    return {
        "ids": np.frombuffer(b"".join(texts), np.uint8).astype(np.int64),
        "ends": np.cumsum([len(text) for text in texts]) - 1,
        "z": np.asarray(narrative.features["tiny"], np.float32),
    }


def collated(items: list[dict[str, np.ndarray]]) -> TinyBatch:
    def padded(name: str, value: float) -> Tensor:
        arrays = [torch.from_numpy(item[name]) for item in items]
        return nn.utils.rnn.pad_sequence(arrays, batch_first=True, padding_value=value)

    return TinyBatch(padded("ids", PAD), padded("ends", -1), padded("z", 0.0))


class Block(nn.Module):
    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = (
            nn.LayerNorm(WIDTH),
            nn.Linear(WIDTH, 3 * WIDTH, bias=False),
            nn.Linear(WIDTH, WIDTH),
        )
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BLD: Tensor) -> Tensor:
        q_BKLD, k_BKLD, v_BKLD = self.qkv(self.norm(x_BLD)).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        mixed_BLD = F.scaled_dot_product_attention(q_BKLD, k_BKLD, v_BKLD, is_causal=True).transpose(1, 2).flatten(2)
        x_BLD = x_BLD + self.dropout(self.out(mixed_BLD))
        return x_BLD + self.mlp(x_BLD)


class TinyModel(nn.Module):
    """A causal transformer on bytes that also reads a z where a step ends; tied embeddings, a frozen part, a buffer."""

    loss_weights = {"text": 1.0, "visual": 2.0}  # noqa: RUF012

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        nn.init.normal_(self.embedding.weight, std=0.1)
        self.frozen = nn.Linear(WIDTH, WIDTH, dtype=torch.bfloat16).requires_grad_(False)
        self.blocks = nn.ModuleList(Block(dropout) for _ in range(2))
        self.words = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.words.weight = self.embedding.weight
        self.z_head = nn.Linear(WIDTH, Z_WIDTH)
        self.register_buffer("z_mean", torch.full((Z_WIDTH,), 0.25))

    def forward(self, batch: TinyBatch) -> dict[str, Tensor]:
        x_BLD = self.embedding(batch.ids_BL)
        x_BLD = x_BLD + self.frozen(x_BLD.to(torch.bfloat16)).to(x_BLD.dtype)
        for block in self.blocks:
            x_BLD = block(x_BLD)
        logits_BLV, targets_BL = self.words(x_BLD[:, :-1]).float(), batch.ids_BL[:, 1:]
        text = F.cross_entropy(logits_BLV.flatten(0, 1), targets_BL.flatten(), ignore_index=PAD, reduction="sum")
        is_step_BS = batch.ends_BS >= 0
        read_BSD = x_BLD.gather(1, batch.ends_BS.clamp(min=0)[..., None].expand(-1, -1, WIDTH))
        error_BSW = (self.z_head(read_BSD).float() + self.z_mean - batch.z_BSW) * is_step_BS[..., None]
        return {
            "text": text,
            "visual": error_BSW.square().mean(-1).sum(),
            "l2": torch.linalg.vector_norm(error_BSW, dim=-1).sum(),
        }


@dataclass(frozen=True)
class TinyTask:
    """The whole thing. num_items: of the training split that are used; save_s: how long its extras take to write."""

    shards: Path
    dropout: float = 0.1
    num_items: int = 8
    validates: bool = True
    poison_step: int | None = None  # the forward pass after so many others gives NaN
    unreadable: str = "none"  # the narrative of this name cannot be read
    save_s: float = 0.0
    step_s: float = 0.0
    name = "tiny"
    block_classes = (Block,)

    def build(self) -> nn.Module:
        model = TinyModel(self.dropout)
        if self.poison_step is not None or self.step_s:
            calls = iter(range(10**6))

            def after(module: nn.Module, inputs: Any, sums: dict[str, Tensor]) -> dict[str, Tensor]:
                time.sleep(self.step_s)
                poison = float("nan") if module.training and next(calls) == self.poison_step else 1.0
                return sums | {"visual": sums["visual"] * poison}

            model.register_forward_hook(after)
        return model

    def loader(self, role: Role, *, batch_size: int, num_workers: int, seed: int) -> Loader | None:
        if role == "valid" and not self.validates:
            return None
        split = {"train": "train", "valid": "val"}[role]
        items = load_split(split, self.shards, features=["tiny"], shuffle=role == "train", seed=seed)
        items = items.select(range(self.num_items)) if role == "train" else items
        remainder = "drop" if role == "train" else "short"
        return items.map(partial(encoded, unreadable=self.unreadable)).torch(
            batch_size=batch_size, num_workers=num_workers, remainder=remainder, collate=collated
        )

    def flops(self, batch: TinyBatch) -> float:
        return 6.0 * 20_000 * batch.num_tokens

    def write_extras(self, folder: Path) -> None:
        (folder / "vocabulary").mkdir()
        (folder / "vocabulary" / "bytes.txt").write_text("the 256 bytes")
        time.sleep(self.save_s)


def config(**changes: Any) -> TrainingConfig:
    """A short training: two narratives a step, nothing said but in metrics.jsonl."""
    short = {"steps": 6, "batch_size": 2, "learning_rate": 3e-3, "warmup_steps": 2, "log_every": 1, "num_workers": 0}
    return TrainingConfig(**short | {"validate_every": 3, "checkpoint_every": 2, "trackers": ()} | changes)


def run(
    shards: Path, out: Path, *, task: dict[str, Any] | None = None, says: list[str] | None = None, **changes: Any
) -> Summary:
    """One training of the tiny task."""
    values = {"data": shards.name}
    says = [] if says is None else says
    return train(TinyTask(shards, **task or {}), config(**changes), out, run_values=values, say=says.append)


def curve(out: Path) -> list[dict[str, Any]]:
    """What metrics.jsonl says, without what hangs on the clock."""
    names = ("kind", "step", "loss", "terms", "learning_rate", "gradient_norm")
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [{name: json.loads(line).get(name) for name in names} for line in lines]


def main() -> None:
    """Runs the jobs one after the other, in as many ranks as torchrun started."""
    torch.set_num_threads(1)
    shards, jobs = Path(sys.argv[1]), json.loads(sys.argv[2])
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    for job in jobs:
        says: list[str] = []
        AcceleratorState._reset_state()  # another job may have another precision
        try:
            run(shards, Path(job["out"]), task=job.get("task"), says=says, **job["config"])
        except CookgenError as error:
            says.append(f"{type(error).__name__}: {error}")
        print(*says, sep="\n", flush=True)
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
