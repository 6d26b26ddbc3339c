"""Weights from outside: pretrained ones, LoRA over a folder, checkpoints whole and damaged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM

from cookgen.director.config import DirectorConfig, LanguageModelConfig
from cookgen.director.model import Director, Embeddings
from cookgen.director.weights import (
    Encoded,
    checkpoint_folder,
    empty_language_model,
    load_director,
    load_language_model,
    load_tokenizer,
    save_description,
)
from cookgen.errors import CookgenError, InputError, ModelError, UnknownNameError, UsageError
from cookgen.files import file_sha256
from tests.cookgen.director.narratives import (
    ARCHITECTURES,
    NUM_WORDS,
    SMALL,
    Z,
    byte_tokenizer,
    director,
    language_model,
    pack,
    predictions,
    sums,
    tale,
)

TALES = [tale(3, seed=1), tale(2, seed=2)]
FEATURES = Encoded("conse", "efficientnet-lite0", "1", {"size": 224}, None)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def sdpa(**values: Any) -> LanguageModelConfig:
    return LanguageModelConfig(attention="sdpa", **values)


# Pretrained


@pytest.fixture(scope="session")
def smollm() -> tuple[Any, Any]:
    """The packaged SmolLM2-135M-Instruct and its tokenizer."""
    config = sdpa(shape="smollm2-135m")
    return load_language_model(config), load_tokenizer(config)


def test_smollm2_predicts_english(smollm: tuple[Any, Any]) -> None:
    model, tokenizer = smollm
    text = "To make a good soup, chop the onions, fry them in butter and add a litre of water."

    def loss(ids: Tensor) -> float:
        with torch.no_grad():
            hidden = director_of_smollm.hidden(director_of_smollm.embed(ids), positions=torch.arange(len(ids[0]))[None])
            logits = director_of_smollm.logits(hidden[0, :-1])
        return F.cross_entropy(logits, ids[0, 1:]).item()

    director_of_smollm = Director(DirectorConfig(), model, Embeddings(1, 384, [0.0] * 384, 0.04)).eval()
    ids = tokenizer(text, return_tensors="pt").input_ids
    assert loss(ids) < 4  # random weights: ln 49152 = 10.8
    assert loss(ids[:, torch.randperm(len(ids[0]), generator=torch.Generator().manual_seed(0))]) > 6
    assert tokenizer.decode(tokenizer("<|im_end|> ok", split_special_tokens=True).input_ids) == "<|im_end|> ok"


def test_smollm2_can_be_described_without_its_package(smollm: tuple[Any, Any], tmp_path: Path) -> None:
    model, tokenizer = smollm
    (tmp_path / "x").mkdir()
    save_description(tmp_path / "x", DirectorConfig(), model, tokenizer, None, None)
    architecture = AutoConfig.from_pretrained(tmp_path / "x/language_model", local_files_only=True)
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(architecture)
    shapes = {name: weight.shape for name, weight in model.named_parameters()}
    assert {name: weight.shape for name, weight in empty.named_parameters()} == shapes
    assert json.loads((tmp_path / "x/director.json").read_text())["language_model"].startswith("smollm2-135m-instruct@")
    kept = load_tokenizer(LanguageModelConfig(name=str(tmp_path / "x/tokenizer")))
    text = "Sauté 2 naïve <|im_end|> onions — 火\n"
    for special in (False, True):
        ids = [one(text, split_special_tokens=special).input_ids for one in (kept, tokenizer)]
        assert ids[0] == ids[1]


@pytest.mark.parametrize(
    ("shape", "billions"), [("qwen2.5-7b", 7.6), ("llama2-7b", 6.7), ("smollm2-135m", 0.135), ("tiny", 0.0032)]
)
def test_a_shape_is_counted_without_storage(shape: Any, billions: float) -> None:
    model = empty_language_model(sdpa(name="", shape=shape))
    assert all(weight.is_meta for weight in model.parameters())
    assert sum(weight.numel() for weight in model.parameters()) / 1e9 == pytest.approx(billions, rel=0.02)


def test_lora_of_a_7b_is_counted_too() -> None:
    """All linear layers of Llama-2-7b at rank 16: 40 M, as its users know it."""
    model = empty_language_model(sdpa(name="", shape="llama2-7b", lora_rank=16))
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    assert trained == 39_976_960


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_any_of_the_librarys_models_loads_from_a_folder(architecture: str, tmp_path: Path) -> None:
    """Written by the library whole, eyes included; read without them."""
    from transformers import AutoModelForImageTextToText

    found = ARCHITECTURES[architecture]()
    torch.manual_seed(0)
    kind = AutoModelForCausalLM if found.get_text_config() is found else AutoModelForImageTextToText
    whole = kind.from_config(found).eval()
    whole.save_pretrained(tmp_path / "lm")
    byte_tokenizer().save_pretrained(tmp_path / "lm")
    config = sdpa(name=str(tmp_path / "lm"))
    model = load_language_model(config).eval()
    ids = torch.tensor([load_tokenizer(config)("a soup").input_ids])
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=ids).logits, whole(input_ids=ids).logits)
    assert not [name for name, _ in model.named_parameters() if "visual" in name]
    assert ("visual" in str([name for name, _ in whole.named_parameters()])) == (architecture == "qwen2.5-vl")


def test_another_shape_than_the_named_one_is_refused(folder: Path) -> None:
    with pytest.raises(ModelError, match=r"its hidden_size is 32, shape 'tiny' has 64; give shape=checkpoint"):
        load_language_model(sdpa(name=str(folder), shape="tiny"))


@pytest.mark.parametrize(
    ("kind", "values", "named"),
    [
        ("gemma2", {"head_dim": 8}, "final_logit_softcapping=30.0"),
        ("granite", {"logits_scaling": 4.0}, "logits_scaling=4.0"),
        ("cohere", {}, "logit_scale=0.0625"),
    ],
)
def test_models_that_change_their_logits_are_refused(kind: str, values: Any, named: str, tmp_path: Path) -> None:
    AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SMALL, **values)).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=f"{named}.*another language model"):
        load_language_model(sdpa(name=str(tmp_path)))


def test_a_model_without_masks_is_refused(tmp_path: Path) -> None:
    mamba = AutoConfig.for_model("mamba", vocab_size=NUM_WORDS, hidden_size=32, num_hidden_layers=1, state_size=8)
    AutoModelForCausalLM.from_config(mamba).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"take no mask.*another language model"):
        load_language_model(sdpa(name=str(tmp_path)))


@pytest.mark.parametrize("load", [load_language_model, load_tokenizer])
def test_models_that_are_not_there_are_refused(load: Callable[[Any], Any], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"language-model\.name"):
        load(sdpa(name=""))
    with pytest.raises(UnknownNameError, match="smollm2-135m-instruct"):
        load(sdpa(name="smollm2-135m-instrukt"))
    with pytest.raises(ModelError, match="40 hex digits"):
        load(sdpa(name="HuggingFaceTB/SmolLM2-135M"))
    (tmp_path / "readme.txt").write_text("no model")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load(sdpa(name=str(tmp_path)))


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"model_type": "llama", "hidden_size": -4}', b'{"a": 1}'])
def test_a_damaged_configuration_is_refused(damage: bytes, folder: Path) -> None:
    (folder / "config.json").write_bytes(damage)
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_language_model(sdpa(name=str(folder)))


def test_cut_weights_are_refused(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_language_model(sdpa(name=str(folder)))


# LoRA


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny language model of the user's own, with its tokenizer."""
    torch.manual_seed(0)
    place = tmp_path / "own"
    language_model("llama").save_pretrained(place)
    byte_tokenizer().save_pretrained(place)
    return place


def lora_director(folder: Path) -> Director:
    config = DirectorConfig(language_model=sdpa(name=str(folder), lora_rank=4, lora_dropout=0.0))
    torch.manual_seed(3)
    model = Director(config, load_language_model(config.language_model), Embeddings(*Z, [0.1] * Z[1], 1.5))
    for name, weight in model.named_parameters():
        if "lora_B" in name:  # zeros at first: they would change nothing
            torch.nn.init.normal_(weight, std=0.1)
    return model.eval()


def test_lora_trains_lora_rows_projector_and_head_alone(folder: Path) -> None:
    model = lora_director(folder).train()
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    found = model(pack(TALES, model.config))
    (found["text"] + found["visual"]).backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    trained = {name for name, weight in model.named_parameters() if weight.grad is not None}
    assert trained == {name for name in before if "lora_" in name or not name.startswith("language_model.")}
    changed = {name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])}
    assert changed == trained
    layers = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert {name.split(".")[-4] for name in trained if "lora_A" in name} == layers
    assert not [name for name in trained if "lm_head" in name or "embed_tokens" in name]


@pytest.mark.filterwarnings("ignore:fan_in_fan_out:UserWarning")  # GPT-2's layers are transposed; peft sees to it
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_lora_is_on_every_linear_layer_of_every_kind(architecture: str) -> None:
    model = language_model(architecture, sdpa(lora_rank=2))
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    num_layers = 4 if architecture == "gpt2" else 7  # of a block: its fused projections, or q, k, v, o, gate, up, down
    assert len(trained) == 2 * 2 * num_layers
    assert all("lora_" in name for name in trained)


def test_a_bf16_base_has_float32_lora(folder: Path) -> None:
    model = load_language_model(sdpa(name=str(folder), lora_rank=4), dtype=torch.bfloat16)
    kinds = {("lora_" in name, weight.dtype) for name, weight in model.named_parameters()}
    assert kinds == {(True, torch.float32), (False, torch.bfloat16)}


def test_full_training_trains_everything() -> None:
    assert all(weight.requires_grad for weight in director().parameters())


# Checkpoints


def save(model: Director, place: Path, step: int = 7) -> Path:
    """A checkpoint as the training loop writes it: what is trained, persistent buffers, and the description."""
    place.mkdir(parents=True)
    weights = {name: weight.detach() for name, weight in model.named_parameters() if weight.requires_grad}
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in model.state_dict()}
    save_file({**weights, **buffers}, place / "model.safetensors")
    (place / "state.json").write_text(json.dumps({"step": step}))
    assert model.head is not None
    embeddings = Embeddings(*Z, model.mean_W.tolist(), model.scale.item())
    save_description(place, model.config, model.language_model, byte_tokenizer(), embeddings, FEATURES)
    return place


def random_director(architecture: str = "llama, tied") -> Director:
    """All weights trained, none from elsewhere."""
    return director(DirectorConfig(language_model=sdpa(shape="tiny", random=True)), architecture=architecture)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return save(random_director(), tmp_path / "run/checkpoints/step-00000007")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_full_checkpoint_comes_back_the_same(architecture: str, tmp_path: Path) -> None:
    model = random_director(architecture)
    loaded = load_director(save(model, tmp_path / "it"))
    batch = pack(TALES, model.config)
    assert sums(loaded.director, batch) == sums(model, batch)
    assert torch.equal(predictions(loaded.director, batch), predictions(model, batch))
    assert (loaded.step, loaded.features, loaded.director.config) == (7, FEATURES, model.config)
    assert loaded.tokenizer("soup").input_ids == byte_tokenizer()("soup").input_ids
    assert not loaded.director.training


def test_a_lora_checkpoint_comes_back_the_same_over_its_base(folder: Path, tmp_path: Path) -> None:
    model = lora_director(folder)
    place = save(model, tmp_path / "lora")
    assert not [name for name in load_file(place / "model.safetensors") if name.endswith("q_proj.base_layer.weight")]
    batch = pack(TALES, model.config)
    assert sums(load_director(place).director, batch) == sums(model, batch)


def test_a_lora_checkpoint_knows_its_base(folder: Path, tmp_path: Path) -> None:
    place = save(lora_director(folder), tmp_path / "lora")
    torch.manual_seed(99)
    language_model("llama").save_pretrained(folder)
    with pytest.raises(ModelError, match="give the same files their old place"):
        load_director(place)
    shutil.rmtree(folder)
    with pytest.raises(CookgenError, match="no such file or folder"):
        load_director(place)


def test_lora_over_random_weights_cannot_be_loaded(tmp_path: Path) -> None:
    config = DirectorConfig(language_model=sdpa(shape="tiny", random=True, lora_rank=2))
    place = save(director(config), tmp_path / "lora")
    with pytest.raises(InputError, match="LoRA over random weights"):
        load_director(place)


def test_averaged_weights_are_taken_where_there_are_any(checkpoint: Path) -> None:
    weights = load_file(checkpoint / "model.safetensors")
    save_file({name: 0.5 * weight for name, weight in weights.items()}, checkpoint / "ema.safetensors")
    plain, averaged = (load_director(checkpoint, use_ema=use_ema).director for use_ema in (False, True))
    assert torch.equal(averaged.rows.weight, 0.5 * plain.rows.weight)


def edit(values: dict[str, Any]) -> Callable[[Path], None]:
    """Changes director.json: dotted names and their new values."""

    def change(place: Path) -> None:
        content = json.loads((place / "director.json").read_text())
        for name, value in values.items():
            *groups, last = name.split(".")
            part = content
            for group in groups:
                part = part[group]
            part[last] = value
        (place / "director.json").write_text(json.dumps(content))

    return change


def write(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda place: (place / name).write_bytes(content) and None


def cut(name: str) -> Callable[[Path], None]:
    return lambda place: (place / name).write_bytes((place / name).read_bytes()[:-50]) and None


def other_weights(**names: Tensor | None) -> Callable[[Path], None]:
    def change(place: Path) -> None:
        weights: dict[str, Any] = load_file(place / "model.safetensors") | {
            name.replace("__", "."): value for name, value in names.items()
        }
        save_file({name: value for name, value in weights.items() if value is not None}, place / "model.safetensors")

    return change


DAMAGE: dict[str, Callable[[Path], Any]] = {
    **{
        f"no {name}": lambda place, name=name: (place / name).unlink()  # type: ignore[misc]
        for name in ("model.safetensors", "state.json", "tokenizer/tokenizer.json", "language_model/config.json")
    },
    "no tokenizer": lambda place: shutil.rmtree(place / "tokenizer"),
    "director.json is a list": write("director.json", b"[]"),
    "director.json is nothing": write("director.json", b""),
    "director.json is deep": write("director.json", b"[" * 100_000),
    "director.json is binary": write("director.json", b"\xff\xfe\x00"),
    "state.json is a list": write("state.json", b"[7]"),
    "state.json has a text": write("state.json", b'{"step": "x"}'),
    "tokenizer.json is cut": cut("tokenizer/tokenizer.json"),
    "tokenizer.json is another thing": write("tokenizer/tokenizer.json", b'{"version": "1.0", "model": 3}'),
    "weights are cut": cut("model.safetensors"),
    "weights are nothing": write("model.safetensors", b""),
    "weights are a pickle": lambda place: torch.save({"a": torch.zeros(1)}, place / "model.safetensors"),
    "a weight is missing": other_weights(head__linear__bias=None),
    "a weight is new": other_weights(another__weight=torch.zeros(2)),
    "a weight has another shape": other_weights(head__linear__bias=torch.zeros(Z[1] + 1)),
    "z is wider": edit({"embeddings.width": 6, "embeddings.mean": [0.0] * 6}),
    "z has more tokens": edit({"embeddings.num_tokens": 4}),
    "the mean is short": edit({"embeddings.mean": [0.0]}),
    "the mean is a text": edit({"embeddings.mean": "abc"}),
    "the scale is nothing": edit({"embeddings.scale": 0}),
    "the scale is NaN": edit({"embeddings.scale": float("nan")}),
    "no z is described": edit({"embeddings": None}),
    "the configuration contradicts itself": edit({"config.head.alpha": -1}),
    "the task is unknown": edit({"config.sequence.task": "dance"}),
    "the head is another": edit({"config.head.kind": "mixture"}),
    "the configuration is a text": edit({"config": "x"}),
    "z has no tokens": edit({"embeddings.num_tokens": -9}),
    "z has more tokens than there is memory": edit({"embeddings.num_tokens": 10**13}),
    "the step is endless": write("state.json", b'{"step": Infinity}'),
    "the digests are a list": write("state.json", b'{"step": 7, "sha256s": [1]}'),
    "the language model sees": write("language_model/config.json", b'{"model_type": "vit"}'),
    "the language model is unheard of": write(
        "language_model/config.json", json.dumps({"model_type": "llama", **SMALL, "hidden_act": "shout"}).encode()
    ),
    "the language model is less than nothing": write(
        "language_model/config.json", json.dumps({"model_type": "llama", **SMALL, "hidden_size": -8}).encode()
    ),
    "the language model brings code": write(
        "language_model/config.json", json.dumps({"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}}).encode()
    ),
    "no language model is described": lambda place: write("language_model/config.json", b'{"model_type": "x"}')(place),
    "the language model is another": lambda place: write(
        "language_model/config.json", (json.dumps({"model_type": "llama", **SMALL})).encode()
    )(place),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_refused_by_its_name(damage: str, checkpoint: Path) -> None:
    DAMAGE[damage](checkpoint)
    with pytest.raises(InputError, match="step-00000007: ") as caught:
        load_director(checkpoint)
    assert len(str(caught.value)) < 900


def test_a_flipped_bit_is_found(checkpoint: Path) -> None:
    """Where state.json lists digests, as training's does."""
    path = checkpoint / "model.safetensors"
    listed = {"step": 7, "sha256s": {path.name: file_sha256(path), "optimizer.safetensors": "not read here"}}
    (checkpoint / "state.json").write_text(json.dumps(listed))
    assert load_director(checkpoint).step == 7
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(InputError, match=r"model\.safetensors: its sha256 is not"):
        load_director(checkpoint)


def test_a_checkpoint_may_be_moved(checkpoint: Path, tmp_path: Path) -> None:
    shutil.move(checkpoint, tmp_path / "elsewhere")
    assert load_director(tmp_path / "elsewhere").step == 7


def test_a_run_means_its_best_checkpoint_and_without_one_its_last(checkpoint: Path) -> None:
    run = checkpoint.parents[1]
    shutil.copytree(checkpoint, run / "checkpoints/step-00000012")
    assert checkpoint_folder(run).name == "step-00000012"
    (run / "best.json").write_text('{"step": 7, "loss": 1.5}')
    assert checkpoint_folder(run) == checkpoint
    shutil.rmtree(checkpoint)
    assert checkpoint_folder(run).name == "step-00000012"


@pytest.mark.parametrize(
    "content", ["", "[]", '{"step": null}', '{"step": "x"}', '{"loss": 1}', '{"step": Infinity}', "[" * 100_000]
)
def test_a_damaged_best_is_refused(content: str, checkpoint: Path) -> None:
    run = checkpoint.parents[1]
    (run / "best.json").write_text(content)
    with pytest.raises(InputError, match=r"best\.json: not readable .* give one of"):
        load_director(run)


def test_a_folder_without_checkpoints_is_refused(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "nothing", Path(__file__)):
        with pytest.raises(InputError, match="no checkpoint of a director there"):
            load_director(place)


def test_the_description_keeps_the_mean_exactly(checkpoint: Path) -> None:
    model, loaded = random_director(), load_director(checkpoint).director
    assert torch.equal(model.mean_W, loaded.mean_W)
    assert torch.equal(model.scale, loaded.scale)
