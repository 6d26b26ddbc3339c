"""Caption sets: what a line may say, what is shown of it, and how a line that is wrong is named."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cookgen import load_split
from cookgen.captioner.captions import CaptionSet, Clips, JsonLines
from cookgen.errors import InputError
from tests.shardset import NUM_FRAMES, Story, frames, make_set, mp4


def write(folder: Path, *lines: Any) -> Path:
    path = folder / "captions.jsonl"
    path.write_bytes(
        b"".join((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines)
    )
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five frames of rising grey, a picture of another size, and a clip."""
    for number in range(5):
        Image.new("RGB", (32, 24), (40 * number,) * 3).save(tmp_path / f"{number}.png")
    Image.new("RGB", (40, 40), (9, 9, 9)).save(tmp_path / "other.png")
    (tmp_path / "clip.mp4").write_bytes(mp4())
    (tmp_path / "broken.mp4").write_bytes(b"nothing")
    (tmp_path / "broken.png").write_bytes(b"nothing")
    return tmp_path


FIVE = [f"{number}.png" for number in range(5)]


def test_a_line_is_a_picture_frames_or_a_video(folder: Path) -> None:
    path = write(
        folder,
        {"image": "3.png", "caption": "A pan.", "prompt": "What?"},
        {"frames": FIVE, "caption": "It gets brighter."},
        {"video": "clip.mp4", "caption": "Ein Ei — gerührt."},
        {"image": str(folder / "0.png"), "caption": "Black."},
    )
    found = JsonLines.open(path, num_frames=2)
    first, second, third, fourth = (found.example(index) for index in range(len(found)))
    assert (first.prompt, first.caption) == ("What?", "A pan.") and second.prompt is None
    assert first.frames_THWC.shape == (1, 24, 32, 3) and (first.frames_THWC == 120).all()
    assert second.frames_THWC[:, 0, 0, 0].tolist() == [40, 120]  # 1 and 3: as the captions stage has it
    wanted = frames(0)[[2, 7]]
    assert third.frames_THWC.shape == wanted.shape and np.abs(third.frames_THWC.astype(int) - wanted).mean() < 12
    assert third.caption == "Ein Ei — gerührt." and (fourth.frames_THWC == 0).all()
    assert found.name_of(2) == f"{path}:3" == third.name


def test_of_few_frames_each_is_shown_once(folder: Path) -> None:
    path = write(folder, {"frames": FIVE, "caption": "a"}, {"video": "clip.mp4", "caption": "b"})
    found = JsonLines.open(path, num_frames=8)
    assert len(found.example(0).frames_THWC) == 5 and len(found.example(1).frames_THWC) == 8
    assert len(JsonLines.open(path, num_frames=99).example(1).frames_THWC) == NUM_FRAMES


WRONG: dict[str, tuple[Any, str]] = {
    "no JSON": (b"A red tomato.", r"Invalid JSON"),
    "not UTF-8": (b'{"image": "0.png", "caption": "\xff"}', r"Invalid JSON|utf"),
    "blank": (b"", r"Invalid JSON"),
    "a list": ([1], r"should be an object|valid dictionary|Input should"),
    "deeply nested": (b"[" * 100_000, r"Invalid JSON|recursion"),
    "no caption": ({"image": "0.png"}, r"caption: Field required"),
    "an empty caption": ({"image": "0.png", "caption": " \n"}, r"the caption is empty"),
    "an empty prompt": ({"image": "0.png", "caption": "a", "prompt": ""}, r"the prompt is empty"),
    "a caption that is no text": ({"image": "0.png", "caption": 7}, r"caption: .*string"),
    "a misspelt name": ({"image": "0.png", "captoin": "a", "caption": "a"}, r"captoin: Extra inputs"),
    "nothing to see": ({"caption": "a"}, r"exactly one of image, frames and video .* none"),
    "two things to see": ({"image": "0.png", "video": "clip.mp4", "caption": "a"}, r"here \['image', 'video'\]"),
    "no frames": ({"frames": [], "caption": "a"}, r"frames: List should have at least 1"),
    "too many frames": ({"frames": ["0.png"] * 1025, "caption": "a"}, r"frames: List should have at most 1024"),
    "a file that is not there": ({"frames": ["0.png", "9.png"], "caption": "a"}, r"'9.png' is no file in .*relative"),
    "a folder": ({"image": ".", "caption": "a"}, r"'.' is no file"),
    "a NUL in a path": ({"image": "a\0b", "caption": "a"}, r"is no file in"),
    "a path that is too long": ({"image": "a" * 5000, "caption": "a"}, r"is no file in"),
    "endless": (b" " * (1 << 20) + b" ", r"longer than 1048576 bytes"),
}


@pytest.mark.parametrize(("line", "problem"), WRONG.values(), ids=WRONG)
def test_a_wrong_line_is_named_when_the_set_is_opened(folder: Path, line: Any, problem: str) -> None:
    path = write(folder, {"image": "0.png", "caption": "a"}, line, {"image": "0.png", "caption": "a"})
    with pytest.raises(InputError, match=problem) as caught:
        JsonLines.open(path, num_frames=8)
    said = str(caught.value)
    assert "\n" not in said and len(said) < 600
    assert said.startswith(f"{path}:2: ")


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "a broken picture": ({"image": "broken.png", "caption": "a"}, r"broken.png: not a readable picture"),
    "a broken video": ({"video": "broken.mp4", "caption": "a"}, r"broken.mp4: not an MP4 file"),
    "frames of two sizes": ({"frames": ["0.png", "other.png"], "caption": "a"}, r"32x24 and 40x40 pixels; the frames"),
}


@pytest.mark.parametrize(("line", "problem"), BROKEN.values(), ids=BROKEN)
def test_what_cannot_be_shown_is_named_by_its_line(folder: Path, line: dict[str, Any], problem: str) -> None:
    path = write(folder, {"image": "0.png", "caption": "a"}, line)
    found = JsonLines.open(path, num_frames=8)
    with pytest.raises(InputError, match=problem) as caught:
        found.example(1)
    assert str(caught.value).startswith(f"{path}:2: ")


def test_a_file_that_changes_under_a_run_is_named(folder: Path) -> None:
    path = write(folder, {"image": "0.png", "caption": "a"}, {"image": "1.png", "caption": "b"})
    found = JsonLines.open(path, num_frames=8)
    path.write_text("x")
    with pytest.raises(InputError, match=re.escape(f"{path}:2: ")):
        found.example(1)
    path.unlink()
    with pytest.raises(InputError, match=re.escape(f"{path}:1: ")):
        found.example(0)
    with pytest.raises(InputError, match="cannot be read"):
        JsonLines.open(path, num_frames=8)
    path.touch()
    with pytest.raises(InputError, match="is empty"):
        JsonLines.open(path, num_frames=8)


def test_sets_and_shards_are_one_sequence(folder: Path) -> None:
    path = write(folder, {"image": "0.png", "caption": "a"}, {"image": "1.png", "caption": "b"})
    shards = make_set(folder / "set", [Story("v", 3)])
    clips = load_split("train", shards, unit="clip")
    whole = CaptionSet("train", (JsonLines.open(path, num_frames=2), Clips(clips, 2)), seed=3)
    whole = pickle.loads(pickle.dumps(whole))
    assert len(whole) == 5 and whole.seed == 3 and whole.unshuffled().seed is None
    assert [example.caption for example in whole] == ["a", "b", *(step.caption for step in clips)]
    assert [whole.name_of(index) for index in range(5)] == [f"{path}:1", f"{path}:2", *(step.key for step in clips)]
    last = whole[4]
    assert last.name == clips[2].key and np.array_equal(last.frames_THWC, clips[2].frames([2, 7]))
    assert whole.map(lambda example: example.caption.upper())[1] == "B"
    with pytest.raises(IndexError, match="example 5 of 5"):
        whole[5]
