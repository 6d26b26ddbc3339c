"""What is learned: the caption's tokens alone, after the very inputs that captioning would have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cookgen.captioner.captions import Example
from cookgen.captioner.config import CaptionerConfig
from cookgen.captioner.inputs import CaptionInputs, collate
from cookgen.captioner.model import CaptionerModel, build_network
from cookgen.errors import InputError
from cookgen.perception.caption_models.llava_next import ClipInputs


def example(
    num_frames: int = 4, *, caption: str = "A red tomato.", prompt: str | None = None, seed: int = 0
) -> Example:
    dice = np.random.default_rng(seed)
    return Example(f"set.jsonl:{seed}", dice.integers(0, 256, (num_frames, 40, 56, 3), np.uint8), prompt, caption)


@pytest.fixture(scope="module", params=["picture", "video"])
def folder(request: pytest.FixtureRequest, tiny: Path, tiny_video: Path) -> Path:
    return tiny if request.param == "picture" else tiny_video


@pytest.fixture(scope="module")
def inputs(folder: Path) -> CaptionInputs:
    return CaptionInputs(ClipInputs.load(str(folder)), 1024)


@pytest.fixture(scope="module")
def model(folder: Path) -> CaptionerModel:
    return CaptionerModel(build_network(CaptionerConfig(str(folder), lora_rank=0, train_vision=True), dtype="auto"))


def test_what_is_before_the_caption_is_what_captioning_gives(inputs: CaptionInputs) -> None:
    for prompt in (None, "What lies there?"):
        item = inputs(example(prompt=prompt))
        given = inputs.inputs(example().frames_THWC, prompt)
        assert item.ids_L[: item.num_given].tolist() == given["input_ids"][0].tolist()
        pixels = given["pixel_values_videos" if inputs.inputs.takes_video else "pixel_values"][0]
        assert np.array_equal(item.pixels_NCHW, pixels.numpy())
        text = inputs.inputs.tokenizer.decode(item.ids_L[item.num_given :])
        assert text == " A red tomato.</s>"


@given(st.text(max_size=60))
def test_a_caption_is_what_decoding_gives_back(caption: str) -> None:
    found = CACHED.caption_ids(caption)
    tokenizer = CACHED.inputs.tokenizer
    assert found[-1] == tokenizer.eos_token_id
    assert not set(found[:-1]) & set(tokenizer.all_special_ids)  # "</s>" in a caption is four letters
    assert tokenizer.decode(found[:-1]).strip() == " ".join(caption.split()).strip()


@pytest.fixture(scope="module", autouse=True)
def cached(tiny: Path) -> None:
    """hypothesis takes no fixtures of a function."""
    global CACHED
    CACHED = CaptionInputs(ClipInputs.load(str(tiny)), 1024)


CACHED: CaptionInputs


def test_a_caption_that_spells_a_mark_is_letters_and_a_prompt_is_refused(inputs: CaptionInputs) -> None:
    item = inputs(example(caption="An <image> of </s> and <video>."))
    learned = item.ids_L[item.num_given :].tolist()
    assert inputs.inputs.tokenizer.decode(learned) == " An <image> of </s> and <video>.</s>"
    assert learned.count(inputs.inputs.tokenizer.eos_token_id) == 1
    for mark in ("<image>", "<video>", "</s>"):
        with pytest.raises(InputError, match=rf"set.jsonl:0: its prompt holds '{mark}'.*leave it out"):
            inputs(example(prompt=f"{mark} What?"))


@pytest.mark.parametrize("ending", [" ASSISTANT:", "<|im_start|>assistant\n", "[/INST]"])
def test_the_caption_follows_the_prompt_as_written_text_would(tiny: Path, ending: str) -> None:
    """Tokenised alone and put behind the prompt it is what it is in one text."""
    inputs = ClipInputs.load(str(tiny))
    inputs.tokenizer.chat_template = f"{{% for message in messages %}}<image>\n{{% endfor %}}{{{{ {ending!r} }}}}"
    found = CaptionInputs(inputs, 1024).caption_ids("A red tomato.")
    blank = "" if ending.endswith("\n") else " "
    whole = inputs.tokenizer(ending + blank + "A red tomato.").input_ids
    assert whole[-len(found) + 1 :] == found[:-1]


def test_the_loss_is_that_of_transformers_on_the_captions_tokens(inputs: CaptionInputs, model: CaptionerModel) -> None:
    items = [example(), example(3, caption="A much longer caption of a blue bowl.", seed=1)]
    prepared = [inputs(item) for item in items]
    total = 0.0
    for item, made in zip(items, prepared, strict=True):
        arguments: Any = inputs.inputs(item.frames_THWC)
        arguments["input_ids"] = torch.from_numpy(made.ids_L)[None]
        arguments["attention_mask"] = torch.ones_like(arguments["input_ids"])
        labels = arguments["input_ids"].clone()
        labels[:, : made.num_given] = -100
        with torch.no_grad():
            total += model.network(**arguments, labels=labels).loss.item() * (len(made.ids_L) - made.num_given)
    batch = collate(prepared)
    with torch.no_grad():
        found = model(batch)["text"].item()
    assert batch.counts["text"] == sum(len(made.ids_L) - made.num_given for made in prepared)
    assert found == pytest.approx(total, rel=1e-5)
    other = collate([inputs(example(seed=7)), prepared[1]])  # the pictures do matter
    with torch.no_grad():
        assert model(other)["text"].item() != pytest.approx(found, rel=1e-5)


def test_a_caption_that_is_too_long_is_counted_and_not_learned(inputs: CaptionInputs, model: CaptionerModel) -> None:
    short = inputs(example())
    tight = CaptionInputs(inputs.inputs, len(short.ids_L))
    long = tight(example(caption="A red tomato left of a green bowl, and much more of it."))
    assert len(long.ids_L) == len(short.ids_L) == long.num_given
    batch = collate([long, tight(example())])
    assert batch.left_out == {"captions_too_long": 1} and batch.counts == collate([short]).counts
    with torch.no_grad():
        assert model(batch)["text"].item() == pytest.approx(model(collate([short]))["text"].item(), rel=1e-5)
        assert model(collate([long]))["text"].item() == 0
    with pytest.raises(InputError, match=r"set.jsonl:0: its picture and prompt are \d+ tokens, model.max-length is 40"):
        CaptionInputs(inputs.inputs, 40)(example())


def test_every_trained_parameter_takes_part_even_without_rows(folder: Path, inputs: CaptionInputs) -> None:
    batch = collate([inputs(example()), inputs(example(1, seed=1))])
    for config in (
        CaptionerConfig(str(folder), lora_rank=0, train_vision=True),
        CaptionerConfig(str(folder), lora_rank=0),
        CaptionerConfig(str(folder), lora_rank=2),
    ):
        model = CaptionerModel(build_network(config, dtype="auto"))
        for rows in (batch, batch.without_rows()):
            model.zero_grad()
            sums = model(rows)
            sums["text"].backward()
            without = [
                name for name, weight in model.named_parameters() if weight.requires_grad and weight.grad is None
            ]
            assert without == []
            assert rows is batch or sums["text"].item() == 0
        trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
        assert any("multi_modal_projector" in name for name in trained)
        assert any("vision_tower" in name for name in trained) == config.train_vision
        lora = {name for name in trained if "language_model" in name and "lora_" not in name}
        assert bool(lora) == (config.lora_rank == 0)
