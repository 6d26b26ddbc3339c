"""An exported captioner is the one that was trained, by the hub's names, and nothing else is exported."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from cookgen.captioner.config import CaptionerConfig
from cookgen.captioner.export import export, hub_weights
from cookgen.captioner.task import CaptionerTask
from cookgen.errors import InputError, ModelError, OutputError
from cookgen.files import file_sha256
from cookgen.perception.caption_models.llava_next import ClipInputs, LlavaNextCaptioner, load_network
from cookgen.training.config import TrainingConfig
from cookgen.training.loop import train
from tests.cookgen.captioner.scenes import scenes, write_set

# Of llava-hf/llava-v1.6-mistral-7b-hf, with the numbers of layers left out.
HUB_NAMES = {
    "image_newline",
    "language_model.lm_head.weight",
    "language_model.model.embed_tokens.weight",
    *(f"language_model.model.layers.{part}_layernorm.weight" for part in ("input", "post_attention")),
    *(f"language_model.model.layers.mlp.{part}_proj.weight" for part in ("down", "gate", "up")),
    *(f"language_model.model.layers.self_attn.{part}_proj.weight" for part in "kqvo"),
    "language_model.model.norm.weight",
    *(f"multi_modal_projector.linear_{number}.{kind}" for number in (1, 2) for kind in ("bias", "weight")),
    "vision_tower.vision_model.embeddings.class_embedding",
    *(f"vision_tower.vision_model.embeddings.{part}_embedding.weight" for part in ("patch", "position")),
    *(
        f"vision_tower.vision_model.encoder.layers.{part}.{kind}"
        for part in (
            *("layer_norm1", "layer_norm2", "mlp.fc1", "mlp.fc2"),
            *(f"self_attn.{part}_proj" for part in ("k", "q", "v", "out")),
        )
        for kind in ("bias", "weight")
    ),
    *(
        f"vision_tower.vision_model.{part}.{kind}"
        for part in ("post_layernorm", "pre_layrnorm")
        for kind in ("bias", "weight")
    ),
}
FRAMES = np.random.default_rng(0).integers(0, 256, (4, 40, 56, 3), np.uint8)


def trained(base: Path, folder: Path, *, ema: float | None = None, **changes: Any) -> tuple[Path, Any]:
    """A run of three updates, and its network as it then was."""
    captions = write_set(folder / "set.jsonl", scenes(4, seed=1))
    config = CaptionerConfig(str(base), **{"num_samples": 0, "lora_dropout": 0.0} | changes)
    task = CaptionerTask(config, captions=[captions])
    values = {"steps": 3, "batch_size": 2, "learning_rate": 2e-2, "warmup_steps": 1, "num_workers": 0, "trackers": ()}
    training = TrainingConfig(**values, ema_decay=ema)
    train(task, training, folder / "run", run_values={}, say=lambda text: None)
    return folder / "run", task._built.network.eval()


def logits(network: Any, inputs: ClipInputs) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = network(**inputs(FRAMES)).logits
    return found


@pytest.mark.parametrize("kind", ["full", "lora", "lora, video"])
def test_what_is_loaded_is_what_was_trained(tiny: Path, tiny_video: Path, tmp_path: Path, kind: str) -> None:
    base = tiny_video if "video" in kind else tiny
    changes = {"lora_rank": 0, "train_vision": True} if kind == "full" else {"lora_rank": 4}
    run, network = trained(base, tmp_path, **changes)
    found = export(run, tmp_path / "out")
    assert found.state.step == 3
    inputs = ClipInputs.load(str(tmp_path / "out"))
    loaded = LlavaNextCaptioner.load(str(tmp_path / "out"), max_tokens=4)
    same, before = logits(loaded.network, inputs), logits(load_network(str(base), dtype="auto"), inputs)
    if kind == "full":
        assert torch.equal(same, logits(network, inputs))
    else:
        # Folded in, an update is rounded once more; without rounding it is the very network of the run.
        torch.testing.assert_close(same, logits(network, inputs), rtol=1e-4, atol=1e-4)
        own = hub_weights(network)
        assert all(
            torch.equal(weight, own[name]) for name, weight in load_file(tmp_path / "out/model.safetensors").items()
        )
    assert (same - before).abs().max() > 0.1
    assert loaded.caption(FRAMES, key="a-000") is not None

    weights = load_file(tmp_path / "out/model.safetensors")
    assert {re.sub(r"layers\.\d+\.", "layers.", name) for name in weights} == HUB_NAMES
    for path in base.iterdir():
        if path.suffix != ".safetensors":
            assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()
    export(run, tmp_path / "again")
    assert all(
        file_sha256(path) == file_sha256(tmp_path / "again" / path.name) for path in (tmp_path / "out").iterdir()
    )


def test_transformers_own_saving_has_other_names(tiny: Path) -> None:
    """Why export renames; where this fails, transformers has mended it."""
    names = {re.sub(r"layers\.\d+\.", "layers.", name) for name in load_file(tiny / "model.safetensors")}
    assert names ^ HUB_NAMES == {name for name in names | HUB_NAMES if name.startswith("vision_tower.")}


def test_the_mean_of_the_weights_is_what_is_exported(tiny: Path, tmp_path: Path) -> None:
    run, network = trained(tiny, tmp_path, lora_rank=0, ema=0.5)
    export(run, tmp_path / "out")
    means = load_file(run / "checkpoints/step-00000003/ema.safetensors")
    found = load_file(tmp_path / "out/model.safetensors")["multi_modal_projector.linear_1.weight"]
    assert torch.equal(found, means["network.model.multi_modal_projector.linear_1.weight"])
    assert not torch.equal(found, network.model.multi_modal_projector.linear_1.weight)


def test_precision_and_tied_words_stay_the_bases(tiny: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(tiny, tmp_path / "base"))
    weights = load_file(base / "model.safetensors")
    del weights["language_model.lm_head.weight"]
    save_file({name: weight.half() for name, weight in weights.items()}, base / "model.safetensors", {"format": "pt"})
    config = json.loads((base / "config.json").read_text())
    config["dtype"], config["tie_word_embeddings"] = "float16", True
    config["text_config"] |= {"dtype": "float16", "tie_word_embeddings": True}
    (base / "config.json").write_text(json.dumps(config))
    run, network = trained(base, tmp_path, lora_rank=2)
    export(run, tmp_path / "out")
    found = load_file(tmp_path / "out/model.safetensors")
    assert all(weight.dtype == torch.float16 for weight in found.values())
    assert "language_model.lm_head.weight" not in found
    inputs = ClipInputs.load(str(base))
    again = load_network(str(tmp_path / "out"), dtype=torch.float32)
    torch.testing.assert_close(logits(again, inputs), logits(network, inputs), rtol=0, atol=0.05)


def test_what_cannot_be_exported_is_named(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no checkpoint there; give the --out of a cookgen-train captioner"):
        export(tmp_path, tmp_path / "out")
    base = Path(shutil.copytree(tiny, tmp_path / "base"))
    run, _ = trained(base, tmp_path, lora_rank=2)
    checkpoint = run / "checkpoints/step-00000003"
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match="is there already; choose another --to"):
        export(run, tmp_path / "full")
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine.txt"]
    (tmp_path / "empty").mkdir()
    export(checkpoint, tmp_path / "empty")

    (base / "generation_config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"builds on base@.*give the same files their old place"):
        export(run, tmp_path / "out")
    shutil.copyfile(tiny / "generation_config.json", base / "generation_config.json")
    content = bytearray((checkpoint / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (checkpoint / "model.safetensors").write_bytes(content)
    with pytest.raises(InputError, match=r"damaged, the sha256 of model.safetensors"):
        export(run, tmp_path / "out")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".tmp-*"))
