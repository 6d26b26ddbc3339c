"""The director where there is a GPU: `make gpu`. Elsewhere these skip."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState

from cookgen.director import model as model_module
from cookgen.director.config import DirectorConfig, LanguageModelConfig
from cookgen.director.inputs import Batch
from cookgen.director.model import Director, Embeddings
from cookgen.director.sample import Sampling, write_narrative
from cookgen.director.weights import load_director, load_language_model
from cookgen.train import DirectorRun, smollm2_135m, train_director
from tests.cookgen.director.narratives import Z, byte_tokenizer, pack, tale
from tests.shardset import Story, add_features, make_set

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
    # torch's compiler, of its own making
    pytest.mark.filterwarnings("default::DeprecationWarning", "default::UserWarning", "default::FutureWarning"),
]
TALES = [tale(4, seed=1), tale(1, seed=2), tale(6, seed=3)]


@pytest.fixture(autouse=True)
def one_run_a_process() -> Iterator[None]:
    """accelerate remembers precision and device for the life of a process; each test is one."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def director_with(attention: str) -> tuple[Director, Batch]:
    """The tiny shape in float32 on the GPU, and packed narratives with padding."""
    config = DirectorConfig(LanguageModelConfig(shape="tiny", random=True, attention=attention))  # type: ignore[arg-type]
    torch.manual_seed(3)
    model = Director(config, load_language_model(config.language_model), Embeddings(*Z, (0.0,) * Z[1], 1.0))
    return model.cuda().train(), pack(TALES, config, max_length=300).to(torch.device("cuda"))


def test_flex_attention_learns_what_sdpa_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses and gradients; and flex attention is what a GPU takes."""
    masks: list[str] = []
    visible = model_module.visible
    monkeypatch.setattr(
        model_module, "visible", lambda *args, flex: masks.append(str(flex)) or visible(*args, flex=flex)
    )
    found: dict[str, tuple[dict[str, float], dict[str, torch.Tensor]]] = {}
    for attention in ("auto", "sdpa"):
        model, batch = director_with(attention)
        sums = model(batch)
        sum(sums[name] / batch.counts[name] for name in model.loss_weights).backward()
        gradients = {name: weight.grad for name, weight in model.named_parameters()}
        found[attention] = {name: value.item() for name, value in sums.items()}, gradients  # type: ignore[assignment]
    assert masks == ["True", "False"]
    (flex_sums, flex_gradients), (sdpa_sums, sdpa_gradients) = found["auto"], found["sdpa"]
    assert flex_sums == pytest.approx(sdpa_sums, rel=2e-3)
    for name, gradient in sdpa_gradients.items():
        error = (flex_gradients[name] - gradient).norm() / gradient.norm()
        assert error < 1e-2, (name, error)  # flex_attention multiplies in tf32


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """6 narratives to train on and 2 to validate, with features of 4 tokens."""
    stories = [Story(f"t{number}", num_clips=2 + number % 3, first_text=f"Chop {number} leeks") for number in range(6)]
    stories += [Story(f"v{number}", num_clips=2 + number, split="val", first_shade=10) for number in range(2)]
    out = make_set(tmp_path_factory.mktemp("train") / "set", stories)
    add_features(out, "tiny", (4, 6))
    return out


def run_of(shards: Path, own: Path, out: Path, *, lora_rank: int = 0, **training: Any) -> DirectorRun:
    """A few updates in bf16 of the tiny shape."""
    run = smollm2_135m()
    language_model = LanguageModelConfig(str(own), lora_rank=lora_rank)
    short = {"steps": 6, "warmup_steps": 1, "num_workers": 0, "log_every": 1, "trackers": (), "accumulation": 2}
    return replace(
        run,
        shards=(shards,),
        out=out,
        features="tiny",
        model=replace(run.model, language_model=language_model),
        training=replace(run.training, **short | {"validate_every": 3, "checkpoint_every": 3} | training),  # type: ignore[arg-type]
    )


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny shape in a folder, with its tokenizer."""
    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("models") / "own"
    load_language_model(LanguageModelConfig(shape="tiny", random=True)).save_pretrained(place)
    byte_tokenizer().save_pretrained(place)
    return place


def losses(out: Path) -> list[float]:
    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if line["kind"] == "train"]


@pytest.mark.parametrize(
    "training",
    [{}, {"activation_checkpointing": True}, {"compile": True}, {"compile": True, "activation_checkpointing": True}],
    ids=["plain", "checkpointing", "compile", "both"],
)
@pytest.mark.parametrize("lora_rank", [0, 4])
def test_it_trains_and_goes_on(
    lora_rank: int, training: dict[str, Any], shards: Path, own: Path, tmp_path: Path
) -> None:
    """Stopped and resumed, the curve is the undisturbed one; the checkpoint opens, and writes."""
    torch._dynamo.reset()
    for name, stops in (("whole", [None]), ("parts", [4, None])):
        for stop_after in stops:
            run = run_of(shards, own, tmp_path / name, lora_rank=lora_rank, stop_after=stop_after, **training)
            assert train_director(run, lambda text: None) == 0
    whole, parts = losses(tmp_path / "whole"), losses(tmp_path / "parts")
    assert len(whole) == 6
    assert parts == pytest.approx(whole, rel=2e-3)  # the order of a GPU's sums is not fixed
    loaded = load_director(tmp_path / "parts")
    loaded.director.cuda()
    written = write_narrative(loaded, "How to make soup?", Sampling(num_steps=2, max_tokens=8))
    assert written.steps
    assert written.steps[0].z_NW is not None and written.steps[0].z_NW.shape == (4, 6)
