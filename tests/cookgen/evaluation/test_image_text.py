"""Both towers against transformers' whole models."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cookgen.errors import ModelError
from cookgen.evaluation.image_text import ImageText
from tests.cookgen.evaluation import tiny

TEXTS = ["a hand", "hands slice the onion", "whisks a pot in the red bowl with the whisk", ""]


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_parity_with_transformers(tmp_path: Path, kind: str) -> None:
    model, pictures, words = tiny.image_text(tmp_path, kind)
    encoder = ImageText.load(str(tmp_path), device="cpu", batch_size=2)
    frames = np.random.default_rng(0).integers(0, 256, (5, 48, 80, 3), np.uint8)
    inputs = words(TEXTS, padding="max_length", truncation=True, max_length=tiny.NUM_TOKENS, return_tensors="pt")
    inputs.pop("token_type_ids", None)
    if kind == "siglip":
        inputs.pop("attention_mask")
    with torch.inference_mode():
        pixels = pictures(images=[Image.fromarray(frame) for frame in frames], return_tensors="pt")
        images, texts = model.get_image_features(**pixels), model.get_text_features(**inputs)
    assert np.allclose(encoder.images(frames), images.pooler_output.numpy(), atol=1e-5)
    assert np.allclose(encoder.texts(TEXTS), texts.pooler_output.numpy(), atol=1e-5)
    assert len({row.tobytes() for row in encoder.texts(TEXTS)}) == len(TEXTS)
    assert [encoder.is_cut(text) for text in TEXTS] == [False, False, True, False]
    assert "32x32 pixels" in encoder.resize


def test_what_is_no_whole_checkpoint_is_refused(tmp_path: Path) -> None:
    tiny.image_text(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match="cannot be loaded"):
        ImageText.load(str(tmp_path), device="cpu")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "clip_vision_model"}))
    with pytest.raises(ModelError, match="model_type"):
        ImageText.load(str(tmp_path), device="cpu")
