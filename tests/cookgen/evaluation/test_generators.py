"""The still baseline, and real diffusers pipelines at tiny size."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from cookgen.errors import ModelError
from cookgen.evaluation.generators import STILL, DiffusersImageToVideo, Still, load_generator
from tests.cookgen.evaluation import tiny

KEYFRAME = np.random.default_rng(0).integers(0, 256, (32, 64, 3), np.uint8)


def test_still() -> None:
    clip_THWC = load_generator(STILL).generate("a pot", KEYFRAME, num_frames=5, seed=0)
    assert clip_THWC.shape == (5, 32, 64, 3) and (clip_THWC == KEYFRAME).all()
    assert Still().identity == "still"


@pytest.mark.parametrize("make", [tiny.ltx, tiny.wan])
def test_a_pipeline_of_diffusers(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    generator = load_generator(str(make(tmp_path)), num_steps=2, guidance=2.0, device="cpu")
    assert isinstance(generator, DiffusersImageToVideo)
    assert generator.identity.startswith(f"{tmp_path.name}@") and generator.identity.endswith("+steps=2+guidance=2")
    clips = [
        generator.generate(caption, keyframe, num_frames=6, seed=seed)
        for caption, keyframe, seed in (
            ("a red bowl", KEYFRAME, 1),
            ("a red bowl", KEYFRAME, 1),
            ("a red bowl", KEYFRAME, 2),
            ("hands slice the onion", KEYFRAME, 1),
            ("a red bowl", 255 - KEYFRAME, 1),
        )
    ]
    assert all(clip.shape == (6, 32, 64, 3) and clip.dtype == np.uint8 for clip in clips)
    assert (clips[0] == clips[1]).all()
    for other in clips[2:]:  # the seed, the caption and the keyframe all matter
        assert (clips[0] != other).any()


def test_sizes_that_a_pipeline_cannot_make(tmp_path: Path) -> None:
    generator = load_generator(str(tiny.ltx(tmp_path)), num_steps=1, device="cpu")
    with pytest.raises(ModelError, match="makes no clip of a keyframe of 30x40 pixels"):
        generator.generate("a pot", np.zeros((40, 30, 3), np.uint8), num_frames=3, seed=0)


@pytest.mark.parametrize(
    "index",
    [
        {"_class_name": "StableDiffusionPipeline"},
        {"_class_name": "AutoencoderKLWan"},
        {"_class_name": "nothing"},
        {"_class_name": ["pipeline", "Mine"]},
        {},
        None,
    ],
)
def test_what_is_no_such_pipeline_is_refused_and_its_code_is_not_run(tmp_path: Path, index: object) -> None:
    (tmp_path / "model_index.json").write_text("[" if index is None else json.dumps(index))
    (tmp_path / "pipeline.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(ModelError, match=r"image-to-video pipeline|cannot be loaded"):
        load_generator(str(tmp_path), device="cpu")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("part", ["text_encoder/model", "transformer/diffusion_pytorch_model"])
def test_weights_that_are_missing_are_not_made_up(tmp_path: Path, part: str) -> None:
    file = tiny.ltx(tmp_path) / f"{part}.safetensors"
    weights = load_file(file)
    gone = next(name for name in sorted(weights) if "SelfAttention" in name or "attn" in name)
    save_file({name: value for name, value in weights.items() if name != gone}, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"1 weights of .* are not in its files"):
        load_generator(str(tmp_path), device="cpu")
