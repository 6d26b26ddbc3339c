"""`cookgen-train MODEL …`: trains a model on a shard set. The options are the model's configuration.

cookgen-train director --shards shards --preset tiny
torchrun --nproc-per-node 8 -m cookgen.train director --shards shards --preset qwen2.5-7b …
cookgen-train captioner --model.name llava-hf/llava-v1.6-mistral-7b-hf@<commit> --captions captions.jsonl
cookgen-train export-captioner runs/captioner --to my-captioner
"""

from __future__ import annotations

import functools
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import tyro

from cookgen.captioner.config import CaptionerConfig
from cookgen.commands import printable, run_command
from cookgen.config import machinery, to_values
from cookgen.dataset.location import locate
from cookgen.dataset.sidecar import feature_names, open_sidecar
from cookgen.dataset.split import load_split, read_manifest
from cookgen.director.config import DirectorConfig, LanguageModelConfig, SequenceConfig
from cookgen.errors import InputError, UnknownNameError, UsageError
from cookgen.features import ENCODERS, compute_features, encoder_config, plan_features
from cookgen.runlog import Progress
from cookgen.training.config import TrainingConfig

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class DirectorRun:
    """One training of a director.

    Args:
        shards: the folder that holds the set's dataset.json, or several, read as one set
        out: the run's folder; the same command goes on in it
        features: the sidecar whose arrays are z; computed first, by the encoder of that kind, where the set has none
        encoder_model: what that encoder runs: clip and qwen_vl have no model of their own
        encoder_settings: of that encoder, name=value, as `cookgen features --set` has them
        train_split: the narratives to learn
        valid_split: those to measure on; None measures nothing
    """

    shards: tuple[Path, ...] = machinery((Path("shards"),))
    out: Path = machinery(Path("runs/director"))
    features: str = "conse"
    encoder_model: str | None = machinery(None)
    encoder_settings: tuple[str, ...] = machinery(())
    train_split: str = "train"
    valid_split: str | None = "val"
    model: DirectorConfig = DirectorConfig()
    training: TrainingConfig = TrainingConfig()


def tiny() -> DirectorRun:
    """A few minutes on a laptop's CPU: random weights, ConSE features (a stand-in for CLIP's). Shows that all works."""
    return DirectorRun(
        model=DirectorConfig(language_model=LanguageModelConfig(shape="tiny", random=True)),
        training=TrainingConfig(
            steps=200,
            batch_size=2,
            learning_rate=3e-3,
            warmup_steps=20,
            validate_every=50,
            checkpoint_every=50,
            num_workers=0,
        ),
    )


def smollm2_135m() -> DirectorRun:
    """A pretrained language model on a CPU: all weights of SmolLM2-135M-Instruct, ConSE features."""
    return DirectorRun(
        model=DirectorConfig(language_model=LanguageModelConfig("smollm2-135m-instruct", shape="smollm2-135m")),
        training=TrainingConfig(
            steps=300,
            batch_size=2,
            learning_rate=2e-4,
            warmup_steps=20,
            precision="bf16",  # three to ten times as fast as fp32 on CPUs that know bf16
            validate_every=50,
            checkpoint_every=50,
        ),
    )


def _paper(shape: Literal["qwen2.5-7b", "llama2-7b"]) -> DirectorRun:
    """LoRA of rank 16 on a 7B model, Qwen-VL's 256 tokens pooled to 64 an image, so that a narrative of eight steps is
    one sequence. 5000 steps: VideoAuteur, section 5.1."""
    return DirectorRun(
        features="qwen_vl",
        encoder_settings=("num_tokens=64",),
        model=DirectorConfig(
            language_model=LanguageModelConfig(name="", shape=shape, lora_rank=16),
            sequence=SequenceConfig(max_length=4096),
        ),
        training=TrainingConfig(precision="bf16", batch_size=1, accumulation=8, compile=True),
    )


def qwen2_5_7b() -> DirectorRun:
    """Qwen2.5-7B, or the language part of Qwen2.5-VL-7B, with LoRA; name its weights."""
    return _paper("qwen2.5-7b")


def seed_x_7b() -> DirectorRun:
    """SEED-X's language model (Llama-2-7b's shape), which VideoAuteur trained, with LoRA; name its weights."""
    return _paper("llama2-7b")


@dataclass(frozen=True)
class CaptionerRun:
    """One tuning of a captioner; the defaults are for a 7B model on one GPU.

    Args:
        captions: caption sets to learn, in JSON Lines (README, The captioner)
        valid_captions: caption sets to measure on, of other videos
        shards: shard sets whose clips and captions are learned and measured on too
        out: the run's folder; the same command goes on in it
        train_split: the split of shards to learn
        valid_split: that to measure on; None measures on none
    """

    captions: tuple[Path, ...] = machinery(())
    valid_captions: tuple[Path, ...] = machinery(())
    shards: tuple[Path, ...] = machinery(())
    out: Path = machinery(Path("runs/captioner"))
    train_split: str = "train"
    valid_split: str | None = "val"
    model: CaptionerConfig = CaptionerConfig()
    training: TrainingConfig = TrainingConfig(
        precision="bf16", batch_size=1, accumulation=16, activation_checkpointing=True
    )


DIRECTOR_PRESETS: Mapping[str, Callable[[], DirectorRun]] = {
    "tiny": tiny,
    "smollm2-135m": smollm2_135m,
    "qwen2.5-7b": qwen2_5_7b,
    "seed-x-7b": seed_x_7b,
}

# Tokens and width of z where a set has no features yet: of the models that the encoders are mostly used with.
USUAL_Z: Mapping[str, tuple[int, int]] = {"conse": (1, 384), "clip": (256, 1024), "qwen_vl": (64, 3584)}

Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]


def train_director(run: DirectorRun, say: Callable[[str], None] | None = None) -> int:
    """Trains; every process of a training calls it. Raises what the user has to mend."""
    import torch

    from cookgen.director.task import DirectorTask
    from cookgen.training.loop import train

    for option, name in (("--train-split", run.train_split), ("--valid-split", run.valid_split)):
        if name is not None and not len(load_split(name, run.shards)):
            none = " (None measures nothing)" if name == run.valid_split else ""
            where = ", ".join(map(str, run.shards))
            raise InputError(f"{where}: the split {name!r} is empty; add videos, or give another {option}{none}")
    if run.model.sequence.has_visual:
        for shards in run.shards:
            ensure_features(shards, run.features, run.encoder_model, run.encoder_settings)
    frozen_bf16 = run.model.language_model.lora_rank and run.training.precision == "bf16"
    task = DirectorTask(
        run.model,
        run.shards,
        features=run.features if run.model.sequence.has_visual else None,
        encoder_model=run.encoder_model,
        train_split=run.train_split,
        valid_split=run.valid_split,
        dtype=torch.bfloat16 if frozen_bf16 else torch.float32,
    )
    train(
        task,
        run.training,
        run.out,
        run_values=to_values(run, with_machinery=False) | {"made_of": task.made_of},
        say=say,
    )
    return 0


def ensure_features(shards: Path, name: str, encoder_model: str | None, encoder_settings: Sequence[str] = ()) -> None:
    """Computes the features where the set has none of that name: rank 0 does, and the others wait.

    Those that are there are taken as they are. Raises UsageError where encoder_model or one of encoder_settings is
    another one than theirs.
    """
    listing = shards / "features" / name / "features.json"
    if listing.is_file():
        location = locate(shards)
        found = open_sidecar(location, name, read_manifest(location)).features.config
        for setting in encoder_settings:
            key, _, value = setting.partition("=")
            if key in found and str(found[key]) != value:
                raise UsageError(
                    f"{listing}: its {key} is {found[key]}, --encoder-settings says {setting}; give the other, or "
                    "another --features"
                )
        if encoder_model is not None:
            if found.get("kind") not in ENCODERS:
                raise UsageError(f"{listing}: its features are of no encoder here; leave --encoder-model out")
            own = [f"{key}={value}" for key, value in found.items() if key not in ("kind", "version", "about")]
            plan_features(shards, encoder_config(found["kind"], model=encoder_model, settings=own), name=name)
        return
    if name not in ENCODERS:
        what = f"features of {shards}, nor an encoder that could compute them,"
        raise UnknownNameError(what, name, [*feature_names(shards), *ENCODERS])
    if os.environ.get("RANK", "0") != "0":
        while not listing.is_file():  # if rank 0 fails, the launcher ends this process
            time.sleep(1)
        return
    try:
        config = encoder_config(name, model=encoder_model, settings=encoder_settings)
    except UsageError as error:
        raise UsageError(f"{shards} has no features {name!r}, and to compute them: {error}") from error
    plan = plan_features(shards, config)
    with Progress(plan.run_folder, f"features {name}", unit="clip") as progress:
        progress.say(f"{shards} has no features {name!r}: computing them, once: {config.about}")
        compute_features(shards, config, show=lambda tally: progress.show({name: tally}))


def plan_director(run: DirectorRun) -> str:
    """What an update would cost: parameters, memory, operations, time. Loads no weights, reads no shard."""
    import torch

    from cookgen.director.cost import planned_cost
    from cookgen.training.throughput import peak_flops

    training, lora = run.training, run.model.language_model.lora_rank
    num_tokens, width, origin = _z_shape(run)
    cost = planned_cost(run.model, num_tokens=num_tokens, width=width)
    length = run.model.sequence.max_length
    tokens = training.batch_size * length
    learned = tokens // 2  # at most; images and queries take the rest
    flops = training.accumulation * cost.flops(
        num_tokens=tokens, num_learned=learned, num_pairs=training.batch_size * length * (length + 1) // 2
    )
    memory = cost.memory_gib(
        num_tokens=tokens,
        num_learned=learned,
        is_bf16=training.precision == "bf16",
        checkpointing=training.activation_checkpointing,
        ema=training.ema_decay is not None,
    )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    peak, share = peak_flops(device, training.peak_tflops, precision=training.precision), 0.4
    whence = "its stated peak"
    if peak is None:
        peak, share = _matmul_flops(device, is_bf16=training.precision == "bf16"), 1.0
        whence = "what its matrix product reaches now"
    seconds = flops / (peak * share)
    rank = f"LoRA of rank {lora}" if lora else "all weights"
    return "\n".join(
        [
            f"director: {run.model.language_model.shape}, {rank}",
            f"z: {num_tokens} x {width}, {origin}" if run.model.sequence.has_visual else "z: none",
            f"parameters: {cost.num_parameters / 1e6:,.1f} M, of which trained {cost.num_trained / 1e6:,.1f} M",
            f"an update: {training.batch_size} x {training.accumulation} narratives a process, <= {length} tokens each",
            f"memory: about {memory:.1f} GiB a process without sharding, at most",
            f"operations: {flops / 1e12:,.2f} TFLOP an update and process, at most",
            f"time: about {seconds:,.1f} s an update, at {share:.0%} of {peak / 1e12:,.2f} TFLOP/s, {whence}; "
            f"{training.steps} updates {seconds * training.steps / 3600:,.1f} h",
        ]
    )


def _matmul_flops(device: torch.device, *, is_bf16: bool) -> float:
    """Operations a second of this device's matrix product: the best of a few."""
    import torch

    size = 1536 if device.type == "cpu" else 8192
    left, seconds = torch.rand(size, size, dtype=torch.bfloat16 if is_bf16 else torch.float32, device=device), []
    for _ in range(5):
        began = time.perf_counter()
        (left @ left)[0, 0].item()  # waits for the device
        seconds.append(time.perf_counter() - began)
    return 2 * size**3 / min(seconds)


def _z_shape(run: DirectorRun) -> tuple[int, int, str]:
    """Tokens and width of z, and how that is known."""
    if not run.model.sequence.has_visual:
        return 0, 0, "none"
    if all(run.features in feature_names(shards) for shards in run.shards):
        split = load_split(run.train_split, run.shards, features=[run.features])
        if not len(split):
            raise InputError(f"{run.shards[0]}: the split {run.train_split!r} is empty; give another --train-split")
        *tokens, width = split[0].reader.sidecars[run.features].features.shape
        return (tokens or [1])[0], width, f"the set's features {run.features!r}"
    if run.features not in USUAL_Z:
        raise UsageError(f"{run.shards[0]}: no features {run.features!r}; compute them first: cookgen features")
    return *USUAL_Z[run.features], f"as the encoder {run.features} usually gives"


def director_command(preset: str) -> Callable[..., int]:
    """The command `director` with a preset's values as defaults."""

    defaults = DIRECTOR_PRESETS[preset]()

    def director(
        run: Annotated[DirectorRun, tyro.conf.arg(name="")] = defaults,
        *,
        preset: str = preset,
        plan: Flag = False,
        launcher: Literal["none", "ray"] = "none",
        ray_address: str | None = None,
        num_ranks: int = 1,
    ) -> int:
        """Train the director: a language model that writes action, caption and visual embedding step by step.

        Run again, it goes on at its last checkpoint. On several GPUs start it by torchrun or accelerate launch, or on a
        Ray cluster by --launcher ray.

        Args:
            preset: where the defaults come from: tiny, smollm2-135m, qwen2.5-7b or seed-x-7b
            plan: print parameters, memory and time a step, and do nothing
            launcher: ray runs num_ranks processes on a Ray cluster
            ray_address: of the cluster; this machine alone without it
            num_ranks: processes of --launcher ray, each with a GPU where there are any
        """
        if plan:
            _say(plan_director(run))
            return 0
        return _launched(train_director, run, launcher, ray_address, num_ranks)

    return director


R = TypeVar("R", DirectorRun, CaptionerRun)


def _launched(train: Callable[[R], int], run: R, launcher: str, ray_address: str | None, num_ranks: int) -> int:
    """Trains in this process, or in num_ranks of a Ray cluster."""
    if launcher == "none":
        if ray_address is not None or num_ranks != 1:
            raise UsageError("--ray-address, --num-ranks: go with --launcher ray; otherwise leave them out")
        return train(run)
    from cookgen.training.ray_launcher import launch

    there = replace(run, **{item.name: _absolute(getattr(run, item.name)) for item in fields(run)})
    return launch(functools.partial(train, there), there.out, num_workers=num_ranks, address=ray_address, say=_say)


def _absolute(value: Any) -> Any:
    """A path, or each of several, that means the same in another process; what is none stays."""
    if isinstance(value, tuple):
        return tuple(map(_absolute, value))
    return value.resolve() if isinstance(value, Path) else value


def train_captioner(run: CaptionerRun, say: Callable[[str], None] | None = None) -> int:
    """Trains; every process of a training calls it. Raises what the user has to mend."""
    import torch

    from cookgen.captioner.task import CaptionerTask
    from cookgen.training.loop import train

    frozen_bf16 = run.model.lora_rank and run.training.precision == "bf16"
    task = CaptionerTask(
        run.model,
        captions=run.captions,
        valid_captions=run.valid_captions,
        shards=run.shards,
        train_split=run.train_split,
        valid_split=run.valid_split,
        dtype=torch.bfloat16 if frozen_bf16 else torch.float32,
    )
    if not task.num_examples("train"):
        raise UsageError(
            "nothing to learn: give --captions FILE.jsonl, a caption set, or --shards DIR, a shard set with clips in "
            f"its split {run.train_split!r}"
        )
    values = to_values(run, with_machinery=False) | {"made_of": task.made_of}
    train(task, run.training, run.out, run_values=values, say=say)
    return 0


def captioner(
    run: Annotated[CaptionerRun, tyro.conf.arg(name="")] = CaptionerRun(),
    *,
    launcher: Literal["none", "ray"] = "none",
    ray_address: str | None = None,
    num_ranks: int = 1,
) -> int:
    """Tune LLaVA-NeXT on clips and their captions; export-captioner then makes a model of the run.

    Run again, it goes on at its last checkpoint. On several GPUs start it by torchrun or accelerate launch, or on a Ray
    cluster by --launcher ray.

    Args:
        launcher: ray runs num_ranks processes on a Ray cluster
        ray_address: of the cluster; this machine alone without it
        num_ranks: processes of --launcher ray, each with a GPU where there are any
    """
    return _launched(train_captioner, run, launcher, ray_address, num_ranks)


def export_captioner(run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")], *, to: Path) -> int:
    """Write a captioner as a folder that the captions stage (captions.kind=llava_next) and vLLM load.

    Args:
        run: the --out of cookgen-train captioner (its best checkpoint), or one of its checkpoints/step-…
        to: a new or empty folder
    """
    from cookgen.captioner.export import export

    found = export(run, to)
    _say(f'{to}: the captioner of {found.folder}; make shards … SET="captions.kind=llava_next captions.model={to}"')
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    what = "Trains models on cookgen/1 shard sets and caption sets. --help of a command lists its whole configuration."
    try:
        preset = _preset(arguments)
    except UsageError as error:
        sys.stderr.write(f"error: {printable(str(error))}\n")
        return 2
    commands: dict[str, Callable[..., int]] = {
        "director": director_command(preset),
        "captioner": captioner,
        "export-captioner": export_captioner,
    }
    return run_command(commands, arguments, prog="cookgen-train", description=what)


def _preset(arguments: Sequence[str]) -> str:
    """The value of --preset: it must be known before the other options, whose defaults it gives."""
    preset = "tiny"
    for option, value in zip(arguments, [*arguments[1:], ""], strict=True):
        if option == "--preset":
            preset = value
        elif option.startswith("--preset="):
            preset = option.partition("=")[2]
    if preset not in DIRECTOR_PRESETS:
        raise UnknownNameError("preset", preset, DIRECTOR_PRESETS)
    return preset


def _say(text: str) -> None:
    sys.stdout.write(printable(text, keep="\n") + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
