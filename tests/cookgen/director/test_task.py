"""The director's task on a shard set: where z lies, what its loaders give, what a checkpoint needs."""

from __future__ import annotations

import json
import tarfile
from dataclasses import fields, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from cookgen import load_split
from cookgen.dataset.tar import tar_member
from cookgen.director.config import (
    DirectorConfig,
    HeadConfig,
    LanguageModelConfig,
    RegularizationConfig,
    SequenceConfig,
)
from cookgen.director.inputs import Batch
from cookgen.director.model import Embeddings
from cookgen.director.task import DirectorTask, embeddings_of
from cookgen.director.weights import load_director
from cookgen.errors import FormatError, ShapeError
from cookgen.files import file_sha256
from tests.cookgen.director.narratives import SMALL, byte_tokenizer, language_model
from tests.shardset import Story, add_features, feature_of, make_set

Z_SHAPE = (2, 6)
STORIES = [Story(f"t{number}", num_clips=2 + number) for number in range(5)]
STORIES += [Story(f"v{number}", num_clips=2 + number, split="val", first_shade=10) for number in range(2)]
SHAPES = {"tokens": Z_SHAPE, "pooled": (6,), "scalar": (), "picture": (2, 2, 3)}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """5 narratives of 2 to 6 steps to train on and 2 to validate, with features of several ranks."""
    out = make_set(tmp_path_factory.mktemp("task") / "set", STORIES)
    for name, shape in SHAPES.items():
        add_features(out, name, shape)
    return out


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> LanguageModelConfig:
    """A tiny language model in a folder, with its tokenizer."""
    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("models") / "own"
    language_model("llama").save_pretrained(place)
    byte_tokenizer().save_pretrained(place)
    return LanguageModelConfig(name=str(place), attention="sdpa")


def features_of_train(shape: tuple[int, ...]) -> np.ndarray:
    """Those of every clip of the training split, float64 [clips, *shape]."""
    keys = [f"{story.narrative}-{n:03d}" for story in STORIES if story.split == "train" for n in range(story.num_clips)]
    return np.stack([feature_of(key, shape) for key in keys]).astype(np.float64)


def measured(shards: Path, name: str) -> Embeddings:
    split = load_split("train", shards, features=[name])
    return embeddings_of(split, split[0].reader.sidecars[name].features)


@pytest.mark.parametrize("name", ["tokens", "pooled"])
def test_mean_and_scale_are_those_of_the_training_split(name: str, shards: Path) -> None:
    found = measured(shards, name)
    z_TW = features_of_train(SHAPES[name]).reshape(-1, 6)
    assert (found.num_tokens, found.width) == ((2, 6) if name == "tokens" else (1, 6))
    np.testing.assert_allclose(found.mean, z_TW.mean(0), rtol=1e-9)
    assert found.scale == pytest.approx(np.sqrt(((z_TW - z_TW.mean(0)) ** 2).mean()), rel=1e-9)


def test_a_long_split_is_measured_in_part(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cookgen.director.task.NUM_MEASURED", 20)  # 5 narratives count as 40 clips: each second one
    found = measured(shards, "pooled")
    kept = np.repeat([n % 2 == 0 for n in range(5)], [2, 3, 4, 5, 6])
    np.testing.assert_allclose(found.mean, features_of_train((6,))[kept].mean(0), rtol=1e-9)


@pytest.mark.parametrize("name", ["scalar", "picture"])
def test_features_that_are_no_tokens_are_refused(name: str, shards: Path) -> None:
    with pytest.raises(ShapeError, match=rf"features '{name}': shape .*one vector \[W\] or tokens \[N, W\]"):
        DirectorTask(DirectorConfig(), [shards], features=name)


def test_features_that_are_all_alike_have_a_scale(tmp_path: Path) -> None:
    out = make_set(tmp_path / "set", [Story("t", num_clips=2)])
    rewrite(add_features(out, "flat", (3,)), np.ones(3, np.float16))
    assert measured(out, "flat") == Embeddings(1, 3, (1.0, 1.0, 1.0), 1e-6)


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_features_that_are_not_finite_are_named(wrong: float, tmp_path: Path) -> None:
    out = make_set(tmp_path / "set", [Story("t", num_clips=2)])
    rewrite(add_features(out, "wild", (3,)), np.array([0, wrong, 1], np.float16))
    with pytest.raises(FormatError, match="demo-t: its features 'wild' hold NaN or infinity"):
        DirectorTask(DirectorConfig(), [out], features="wild")


def rewrite(folder: Path, array: np.ndarray) -> None:
    """Puts this array in the place of every one of the features, and mends their listing."""
    listing = json.loads((folder / "features.json").read_text())
    for path in folder.glob("*/*.tar"):
        with tarfile.open(path) as tar:
            names = tar.getnames()
        content = BytesIO()
        np.save(content, array)
        with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
            for name in names:
                tar.addfile(tar_member(name, len(content.getvalue())), BytesIO(content.getvalue()))
        listing["sha256s"][path.relative_to(folder).as_posix()] = file_sha256(path)
    (folder / "features.json").write_text(json.dumps(listing))


def same(one: Batch, other: Batch) -> bool:
    pairs = [(getattr(one, item.name), getattr(other, item.name)) for item in fields(one)]
    return all(torch.equal(*pair) if isinstance(pair[0], Tensor) else pair[0] == pair[1] for pair in pairs)


def batches(task: DirectorTask, role: Any, seed: int = 0) -> list[Batch]:
    loader = task.loader(role, batch_size=2, num_workers=0, seed=seed)
    assert loader is not None
    return list(loader)


def test_validation_draws_nothing(shards: Path, own: LanguageModelConfig) -> None:
    """Whatever makes training sequences random, validation has the narratives as they are, in their order."""
    random = DirectorConfig(
        own,
        sequence=SequenceConfig(supervision="last", random_length=True),
        regularization=RegularizationConfig(reverse_rate=0.9, reference_rate=0.9, dropout=0.5, mask_rate=0.5),
    )
    plain = DirectorConfig(own, sequence=SequenceConfig(supervision="last"))
    state = torch.get_rng_state()
    found = [batches(DirectorTask(random, [shards], features="tokens"), "valid", seed) for seed in (0, 1)]
    assert torch.equal(torch.get_rng_state(), state)
    expected = batches(DirectorTask(plain, [shards], features="tokens"), "valid")
    assert len(expected) == 1 and expected[0].counts["visual"] == 2
    assert all(same(*pair) for others in found for pair in zip(others, expected, strict=True))
    learned = [batches(DirectorTask(random, [shards], features="tokens"), "train", seed) for seed in (0, 1)]
    assert not same(learned[0][0], learned[1][0])


def test_an_epoch_fills_its_last_batch(shards: Path, own: LanguageModelConfig) -> None:
    """Of 5 narratives by two: each once, and one twice, so that every rank has as many."""
    images = [
        batch.counts["visual"]
        for batch in batches(DirectorTask(DirectorConfig(own), [shards], features="tokens"), "train")
    ]
    assert len(images) == 3
    assert sum(images) - sum(range(2, 7)) in range(2, 7)


def test_without_validation(shards: Path, own: LanguageModelConfig) -> None:
    task = DirectorTask(DirectorConfig(own), [shards], features="tokens", valid_split=None)
    assert task.loader("valid", batch_size=1, num_workers=0, seed=0) is None


@pytest.mark.parametrize("readout", ["queries", "next_token"])
@pytest.mark.parametrize("name", ["tokens", "pooled", None])
def test_what_it_builds_reads_what_it_loads(
    name: str | None, readout: Any, shards: Path, own: LanguageModelConfig
) -> None:
    task_name: Any = "action-caption" if name is None else "action-caption-visual"
    config = DirectorConfig(own, HeadConfig(readout=readout), SequenceConfig(task=task_name))
    task = DirectorTask(config, [shards], features=name)
    model = task.build()
    assert len(task.block_classes) == 1
    assert len([part for part in model.modules() if isinstance(part, task.block_classes)]) == SMALL["num_hidden_layers"]
    (batch,) = batches(task, "valid")
    found = model.eval()(batch)
    assert found.keys() == batch.counts.keys()
    assert batch.counts["visual"] == (0 if name is None else 2 + 3)
    assert all(value.isfinite() for value in found.values())
    longer = batches(task, "train")[0]
    assert task.flops(batch) > 0 and task.flops(longer) > 0


@pytest.mark.parametrize("lora_rank", [0, 2])
def test_what_it_writes_beside_weights_opens_them(
    lora_rank: int, shards: Path, own: LanguageModelConfig, tmp_path: Path
) -> None:
    config = DirectorConfig(replace(own, lora_rank=lora_rank))
    task = DirectorTask(config, [shards], features="tokens", encoder_model="theirs")
    torch.manual_seed(5)
    model = task.build().eval()
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    torch.nn.init.normal_(next(weight for name, weight in trained.items() if lora_rank == 0 or "lora_B" in name))
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in model.state_dict()}
    (tmp_path / "state.json").write_text('{"step": 3}')
    save_file(trained | buffers, tmp_path / "model.safetensors")
    task.write_extras(tmp_path)
    loaded = load_director(tmp_path)
    (batch,) = batches(task, "valid")
    with torch.no_grad():
        found, expected = loaded.director(batch), model(batch)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert loaded.features is not None
    assert (loaded.features.name, loaded.features.model, loaded.features.revision) == ("tokens", "none", "1")
    assert loaded.features.encoder_model == "theirs"
    assert loaded.step == 3
    text = "Slice the <|im_end|> onion\n"
    assert loaded.tokenizer(text).input_ids == task.tokenizer(text).input_ids
