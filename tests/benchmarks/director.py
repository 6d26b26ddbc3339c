"""`make bench-director OUT=shards`: what training a director costs, beside the bare language model. JSON lines.

Ours and its peer by turns on the same batch, in one process; a ratio is the median over the rounds, [least, greatest],
with the `bar` where there is one. Weights are random in the presets' shapes: speed does not hang on their values.
`--only "7B"` runs the GPU's part alone, which needs no shards: documents of random words, 11 steps of 371 tokens.
"""

from __future__ import annotations

import functools
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

from cookgen import load_split
from cookgen.director.config import DirectorConfig, LanguageModelConfig, SequenceConfig
from cookgen.director.cost import cost_of, num_visible_pairs
from cookgen.director.inputs import Batch, DocumentWriter, NarrativeInputs, Packer, Prepared, Vocabulary
from cookgen.director.model import Director, Embeddings
from cookgen.director.weights import load_language_model, load_tokenizer
from cookgen.train import DIRECTOR_PRESETS
from cookgen.training.config import TrainingConfig
from cookgen.training.parallel import make_accelerator, prepare
from cookgen.training.throughput import peak_flops, peak_memory_bytes

ROOT = Path(__file__).resolve().parents[2]
STEPS = 6
Z_SHAPES = {"pooled": (1, 384), "64 tokens": (64, 1024)}


@dataclass(frozen=True)
class Shortened:
    """The first steps of a narrative, with z of any shape: random numbers in the place of an encoder's."""

    narrative: Any
    z: np.ndarray

    def __getattr__(self, name: str) -> Any:
        return getattr(self.narrative, name)

    @property
    def steps(self) -> Any:
        return self.narrative.steps[: len(self.z)]

    @property
    def features(self) -> Mapping[str, np.ndarray]:
        return {"z": self.z}


def say(**values: Any) -> None:
    print(json.dumps(values), flush=True)


def seconds(work: Callable[[], Any], device: torch.device) -> float:
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def ratio(ours: Callable[[], Any], peer: Callable[[], Any], rounds: int, device: torch.device) -> dict[str, Any]:
    """Seconds of both, by turns, and peer / ours: above 1 ours is faster."""
    for work in (ours, peer):
        work()
    pairs = [(seconds(ours, device), seconds(peer, device)) for _ in range(rounds)]
    ratios = sorted(theirs / own for own, theirs in pairs)
    return {
        "ours_s": round(statistics.median(own for own, _ in pairs), 3),
        "peer_s": round(statistics.median(theirs for _, theirs in pairs), 3),
        "ratio": round(statistics.median(ratios), 3),
        "from": round(ratios[0], 3),
        "to": round(ratios[-1], 3),
    }


def director_of(config: DirectorConfig, z_shape: tuple[int, int]) -> Director:
    torch.manual_seed(0)
    num_tokens, width = z_shape
    language_model = load_language_model(config.language_model)
    return Director(config, language_model, Embeddings(num_tokens, width, (0.0,) * width, 1.0)).train()


def loss_of(director: Director, batch: Batch) -> torch.Tensor:
    sums = director(batch)
    return sum(weight * sums[name] / max(1, batch.counts[name]) for name, weight in director.loss_weights.items())


def autocast(preset: str) -> Any:
    """The precision that the preset trains in, on a CPU."""
    is_bf16 = DIRECTOR_PRESETS[preset]().training.precision == "bf16"
    return torch.autocast("cpu", torch.bfloat16, enabled=is_bf16)


def step(director: Director, batch: Batch, preset: str) -> None:
    with autocast(preset):
        loss = loss_of(director, batch)
    loss.backward()
    director.zero_grad()


def narratives_of(shards: Path, z_shape: tuple[int, int], *, num: int) -> list[Shortened]:
    """The first six steps of real narratives; z is random."""
    random = np.random.default_rng(0)
    found = (narrative for narrative in load_split("train", shards) if narrative.num_steps >= STEPS)
    chosen = [narrative for narrative, _ in zip(found, range(num), strict=False)]
    assert chosen, f"{shards}: no narrative of at least {STEPS} steps; make a set of more videos"
    return [Shortened(narrative, random.standard_normal((STEPS, *z_shape)).astype(np.float32)) for narrative in chosen]


def batch_of(config: DirectorConfig, shards: Path, z_shape: tuple[int, int], *, num: int) -> Batch:
    tokenizer = load_tokenizer(replace(config.language_model, random=False))
    vocabulary = Vocabulary(len(tokenizer), z_shape[0])
    inputs = NarrativeInputs(vocabulary, tokenizer, config, "z", z_shape)
    items = [inputs(narrative) for narrative in narratives_of(shards, z_shape, num=num)]
    return Packer(config.sequence.max_length, z_shape)(items)


def against_bare(shards: Path) -> Iterator[dict[str, Any]]:
    """Our forward and backward, and the bare transformers model's on rows of the same size, with logits everywhere.

    The bare model sees a row as one document.
    """
    device = torch.device("cpu")
    for preset in ("tiny", "smollm2-135m"):
        shape = DIRECTOR_PRESETS[preset]().model.language_model.shape
        config = DirectorConfig(language_model=LanguageModelConfig(shape=shape, random=True))
        for name, z_shape in Z_SHAPES.items():
            director, batch = director_of(config, z_shape), batch_of(config, shards, z_shape, num=4)
            bare = load_language_model(config.language_model).train()
            ids = torch.where(batch.ids_RL < bare.config.vocab_size, batch.ids_RL, 0)

            def peer(bare: Any = bare, ids: torch.Tensor = ids, preset: str = preset) -> None:
                with autocast(preset):
                    loss = bare(input_ids=ids, labels=ids, use_cache=False).loss
                loss.backward()
                bare.zero_grad()

            def ours(director: Director = director, batch: Batch = batch, preset: str = preset) -> None:
                step(director, batch, preset)

            found = ratio(ours, peer, 15 if preset == "tiny" else 7, device)
            size = {"preset": preset, "z": name, "tokens": batch.num_tokens, "learned": batch.counts["text"]}
            yield {"bench": "step against the bare model", **size, **found, "bar": 0.95}
            del director, bare
            gc.collect()


def every_against_last(shards: Path) -> Iterator[dict[str, Any]]:
    """Supervised images a second on narratives of six steps: every step's in one pass, and the last step's alone."""
    device = torch.device("cpu")
    preset = "smollm2-135m"
    every = DirectorConfig(language_model=LanguageModelConfig(shape=preset, random=True))
    last = replace(every, sequence=SequenceConfig(supervision="last"))
    for name, z_shape in Z_SHAPES.items():
        director = director_of(every, z_shape)
        batches = {config: batch_of(config, shards, z_shape, num=4) for config in (every, last)}
        found = ratio(
            lambda director=director, batch=batches[every]: step(director, batch, preset),
            lambda director=director, batch=batches[last]: step(director, batch, preset),
            5,
            device,
        )
        gain = batches[every].counts["visual"] / batches[last].counts["visual"]
        for key in ("ratio", "from", "to"):
            found[key] = round(found[key] * gain, 3)
        yield {"bench": "images a second, every step against the last", "z": name, **found, "bar": 4.0}


def data_wait(shards: Path) -> Iterator[dict[str, Any]]:
    """The share of the time that the loop waits for batches, as it logs it itself; the first logged lines left out."""
    for preset, steps in (("tiny", 60), ("smollm2-135m", 12)):
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "run"
            command = f"director --preset {preset} --shards {shards} --out {out} --model.language-model.random "
            command += f"--training.steps {steps} --training.warmup-steps 1 --training.log-every {steps // 6}"
            run = [sys.executable, "-m", "cookgen.train", *command.split()]
            subprocess.run(run, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        found = [line for line in lines if line["kind"] == "train"][2:]
        wait = statistics.mean(line["data_wait"] for line in found)
        speed = statistics.median(line["tokens_per_s"] for line in found)
        yield {
            "bench": "data wait",
            "preset": preset,
            "share": round(wait, 4),
            "bar": 0.05,
            "tokens_per_s": round(speed),
            "peak_gib": round(found[-1]["memory_bytes"] / 2**30, 2),
        }


def random_documents(vocabulary: Vocabulary, z_shape: tuple[int, int], *, num_steps: int, text: int) -> Prepared:
    """A narrative of random words and z, in the form of real ones."""
    random = np.random.default_rng(0)
    writer = DocumentWriter(vocabulary)
    writer.query(random.integers(0, vocabulary.num_words, 12).tolist())
    for _ in range(num_steps):
        texts = {
            "action": random.integers(0, vocabulary.num_words, text // 5).tolist(),
            "caption": random.integers(0, vocabulary.num_words, text - text // 5).tolist(),
        }
        z = random.standard_normal(z_shape).astype(np.float32)
        writer.step(texts, z, learned=True, read="queries")
    writer.stop()
    return Prepared((writer.done(*z_shape),), {})


def seven_b(shape: Any, *, rounds: int) -> Iterator[dict[str, Any]]:
    """A 7B model with LoRA at sequences of 4096, prepared as the trainer does: tokens a second, and MFU.

    Operations: 4 N a token for frozen weights (6 N for trained ones), N being the weights that multiply it, the
    vocabulary counted where a word is predicted; and 12 x layers x attention width a visible pair of tokens.
    """
    slow = {"activation_checkpointing": True}
    for machinery in ({}, {"compile": True}, slow, {"compile": True} | slow):
        yield seven_b_update(shape, TrainingConfig(precision="bf16", **machinery), rounds=rounds) | machinery
        gc.collect()
        torch.cuda.empty_cache()


def seven_b_update(shape: Any, training: TrainingConfig, *, rounds: int) -> dict[str, Any]:
    """Updates of LoRA adapters over random weights of a shape."""
    accelerator = make_accelerator(training)
    device, z_shape = accelerator.device, (64, 3584)
    language_model = LanguageModelConfig(shape=shape, random=True, lora_rank=16)
    config = DirectorConfig(language_model=language_model, sequence=SequenceConfig(max_length=4096))
    torch.manual_seed(0)
    with torch.device(device):  # 7B random weights are drawn where they are needed
        model = load_language_model(language_model, dtype=torch.bfloat16)
    director = Director(config, model, Embeddings(*z_shape, (0.0,) * z_shape[1], 1.0)).to(device)
    cost = cost_of(director)
    layers = (type(model.get_decoder().layers[0]),)
    prepared = prepare(director, accelerator, training, layers).train()
    weights = [weight for weight in prepared.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-5, fused=True)
    packer = Packer(4096, z_shape)
    batches = {
        num_steps: packer([random_documents(director.vocabulary, z_shape, num_steps=num_steps, text=239)])
        for num_steps in (11, 9, 6, 8)
    }

    def update(host: Batch = batches[11]) -> None:
        batch = host.to(device)
        with accelerator.autocast():
            loss = loss_of(prepared, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, training.clip_norm)
        optimizer.step()
        optimizer.zero_grad()

    for _ in range(3):
        seconds(update, device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    taken = statistics.median(seconds(update, device) for _ in range(rounds))
    peak_bytes = peak_memory_bytes(device)
    as_they_come = list(batches.values()) * 4
    for host in as_they_come[:4]:
        update(host)
    varied_s = sum(seconds(functools.partial(update, host), device) for host in as_they_come)
    host = batches[11]
    flops = cost.flops(
        num_tokens=host.num_tokens,
        num_learned=host.counts["text"],
        num_pairs=num_visible_pairs(host),
        num_fed=host.fed_FN.numel(),
        num_read=host.read_MN.numel(),
    )
    peak = peak_flops(device)
    return {
        "bench": "7B, LoRA",
        "shape": shape,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "tokens": host.num_tokens,
        "parameters": cost.num_parameters,
        "trained": cost.num_trained,
        "update_s": round(taken, 4),
        "tokens_per_s": round(host.num_tokens / taken),
        "bar": 12500,
        "tokens_per_s_of_varied_lengths": round(sum(host.num_tokens for host in as_they_come) / varied_s),
        "tflop_per_s": round(flops / taken / 1e12, 1),
        "mfu": None if peak is None else round(flops / taken / peak, 4),
        "peak_tflops": None if peak is None else peak / 1e12,
        "formula": "(6 N trained + 4 N frozen a token + 12 x layers x width a visible pair) / seconds / peak",
        "peak_gib": round(peak_bytes / 2**30, 1),
    }


def main(shards: Path = Path("shards"), only: str = "", seven_b_shape: str = "qwen2.5-7b") -> None:
    """Runs the measures.

    Args:
        shards: a shard set with features conse, of narratives of six steps and more
        only: a part of the measure's name
        seven_b_shape: tiny shows on a CPU that the GPU's measure runs
    """
    command = ["git", "describe", "--always", "--dirty"]
    commit = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    say(commit=commit, cores=os.cpu_count(), machine=platform.machine(), torch=torch.__version__)
    measures: dict[str, Callable[[], Iterator[dict[str, Any]]]] = {
        "against the bare model": lambda: against_bare(shards),
        "every against last": lambda: every_against_last(shards),
        "data wait": lambda: data_wait(shards),
    }
    if torch.cuda.is_available() or seven_b_shape == "tiny":
        measures["7B"] = lambda: seven_b(seven_b_shape, rounds=10)
    else:
        say(bench="7B, LoRA", skipped="no CUDA device here")
    for name, measure in measures.items():
        if only in name:
            for values in measure():
                say(**values)


if __name__ == "__main__":
    tyro.cli(main)
