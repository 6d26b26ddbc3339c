"""A checkpoint as a folder like those of llava-hf on the hub, which transformers and vLLM load.

LoRA is folded into the weights. Their names are those on the hub, which transformers' own saving does not give:

    language_model.model.…   language_model.lm_head.…   vision_tower.vision_model.…   multi_modal_projector.…
    image_newline
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from cookgen.captioner.config import CaptionerConfig
from cookgen.captioner.model import CaptionerModel, build_network
from cookgen.captioner.task import DESCRIPTION
from cookgen.errors import InputError, ModelError, OutputError, reason_of
from cookgen.files import explained, write_atomic
from cookgen.modelstore import identity, resolve
from cookgen.training import checkpoint
from cookgen.training.checkpoint import Checkpoint

# Copied from the checkpoint that was tuned: configuration, tokenizer, processors.
_COPIED = (".json", ".txt", ".jinja", ".model")
# transformers' names as it holds the network, and the hub's; the first that fits.
_NAMES = (
    ("lm_head.", "language_model.lm_head."),
    ("model.language_model.", "language_model.model."),
    ("model.vision_tower.vision_model.", "vision_tower.vision_model."),
    ("model.vision_tower.", "vision_tower.vision_model."),
    ("model.", ""),
)


def export(run: Path, to: Path) -> Checkpoint:
    """Writes the captioner of a run's folder (its best checkpoint, without one its last) or of a checkpoint to `to`.

    The mean of the weights is taken where one was kept; weights are in the precision of the network that was tuned. The
    same checkpoint gives the same bytes.
    Raises InputError where there is no whole checkpoint of a captioner, ModelError where the network that it builds on
    is not there or is another one, OutputError where `to` holds something or cannot be written.
    """
    found = _chosen(run)
    config = _config(found)
    network = build_network(config, dtype="auto")
    model = CaptionerModel(network)
    name = "ema.safetensors" if "ema.safetensors" in found.state.sha256s else "model.safetensors"
    tensors = found.tensors(name)
    expected = checkpoint.trained_shapes(model) | checkpoint.buffer_shapes(model)
    checkpoint.check_shapes(found.folder / name, tensors, expected)
    model.load_state_dict(tensors, strict=False)
    base = resolve(config.name).path
    with explained(to, "Choose another --to, or mend its rights"):
        if to.exists() and (not to.is_dir() or any(to.iterdir())):
            raise OutputError(f"{to}: is there already; choose another --to, or remove it")
        to.parent.mkdir(parents=True, exist_ok=True)
        unfinished = to.with_name(f".tmp-{to.name}")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        try:
            for path in sorted(base.iterdir()):
                if path.suffix in _COPIED and path.is_file() and not path.name.endswith(".index.json"):
                    shutil.copyfile(path, unfinished / path.name)
            note = {"tuned_from": identity(config.name), "step": found.state.step, "num_frames": config.num_frames}
            write_atomic(unfinished / DESCRIPTION, json.dumps(note, sort_keys=True) + "\n")
            _save(hub_weights(network), unfinished)
            if to.exists():
                to.rmdir()
            unfinished.rename(to)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return found


@torch.no_grad()
def hub_weights(network: Any) -> dict[str, Tensor]:
    """The network's weights by their names on the hub, LoRA folded in, each in its own precision."""
    from peft.tuners.lora import LoraLayer

    updates = {
        f"{name}.base_layer.weight": module.get_delta_weight("default")
        for name, module in network.named_modules()
        if isinstance(module, LoraLayer)
    }
    is_tied = network.get_output_embeddings().weight is network.get_input_embeddings().weight
    weights = {}
    for name, weight in network.state_dict().items():
        if ".lora_" in name or (is_tied and name == "lm_head.weight"):
            continue
        if name in updates:
            weight = (weight.float() + updates.pop(name).float()).to(weight.dtype)
        own = name.replace(".base_layer.", ".")
        before, after = next(pair for pair in _NAMES if own.startswith(pair[0]))
        weights[after + own.removeprefix(before)] = weight
    assert not updates, f"LoRA of no weight: {sorted(updates)[:3]}"
    return weights


def _save(weights: dict[str, Tensor], folder: Path) -> None:
    from huggingface_hub import save_torch_state_dict

    save_torch_state_dict(weights, folder, metadata={"format": "pt"})


def _chosen(run: Path) -> Checkpoint:
    if (run / "state.json").is_file():
        return checkpoint.read(run)
    folder = run / "checkpoints"
    names = checkpoint.steps(folder)
    if not names:
        raise InputError(
            f"{run}: no checkpoint there; give the --out of a cookgen-train captioner, or one of its checkpoints/step-…"
        )
    best = checkpoint.best(folder)
    return checkpoint.read(folder / (names[-1] if best is None else f"step-{best.step:08d}"))


def _config(found: Checkpoint) -> CaptionerConfig:
    path = found.folder / DESCRIPTION
    try:
        values = json.loads(path.read_bytes())
        config = TypeAdapter(CaptionerConfig).validate_python(values["config"])
        tuned_from = str(values["network"])
    except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
        raise InputError(f"{found.folder}: not a checkpoint of a captioner ({reason_of(error)})") from error
    if (here := identity(config.name)) != tuned_from:
        raise ModelError(
            f"{found.folder}: builds on {tuned_from}, but {config.name} is {here} here; give the same files their old "
            "place"
        )
    return config
