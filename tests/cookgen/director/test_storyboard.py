"""The storyboard's folder and page."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cookgen.director import storyboard
from cookgen.director.sample import Sampling, Written, WrittenStep, write_narrative
from cookgen.director.storyboard import check_out, nearest_keyframes, open_keyframes, write_storyboard
from cookgen.director.weights import Encoded
from cookgen.errors import InputError, OutputError, UsageError
from tests.cookgen.director import tinydirector as tiny
from tests.shardset import Story, add_features, feature_of, make_set

EVIL = "</title><script>alert(1)</script><img src=x onerror='alert(2)'>{{ 7 * 7 }}&amp;\u202e\u2028\"'"
QUERY = "How to make a pepperoni pizza?"


class Page(HTMLParser):
    """What a browser would make of the page: its elements, its texts, and what it would load."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]
        assert not any(name.startswith("on") or name == "style" for name, _ in attrs)

    def handle_data(self, data: str) -> None:
        self.text += data


def narrative(*z: np.ndarray | None, texts: str = "stir", query: str = QUERY, given: tuple[str, ...] = ()) -> Written:
    steps = [
        WrittenStep({"action": texts, "caption": f"{texts} {index}"}, {}, z_NW, given if index == 0 else ())
        for index, z_NW in enumerate(z)
    ]
    return Written(query, tuple(steps), "stop", ())


def random_z(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(2, 6)).astype(np.float32)


def test_the_folder(tmp_path: Path) -> None:
    checkpoint = tiny.make_checkpoint()
    sampling = Sampling(temperature=0.7, top_p=0.9, seed=4, num_steps=3, max_tokens=6)
    written = write_narrative(checkpoint, QUERY, sampling)
    out = tmp_path / "new" / "storyboard"
    write_storyboard(out, written, checkpoint, sampling)
    text = (out / "storyboard.json").read_text(encoding="utf-8")
    values = json.loads(text)
    steps = values.pop("steps")
    assert values == {
        "format": "cookgen/storyboard/1",
        "query": QUERY,
        "stopped": written.stopped,
        "notes": list(written.notes),
        "checkpoint": {"step": 7, "language_model": "random"},
        "features": {"name": "toy", "model": "none", "revision": "1"},
        "temperature": 0.7,
        "z_temperature": 0.0,
        "top_p": 0.9,
        "seed": 4,
        "num_steps": 3,
        "max_tokens": 6,
    }
    assert len(steps) == len(written.steps)
    for index, (step, wanted) in enumerate(zip(steps, written.steps, strict=True)):
        assert step.pop("z") == f"z/{index:03d}.npy"
        assert step == {"index": index, **wanted.texts, "is_given": False, "nearest": None}
        z_NW = np.load(out / f"z/{index:03d}.npy", allow_pickle=False)
        assert z_NW.dtype == np.float32 and np.array_equal(z_NW, wanted.z_NW)
    page = Page((out / "index.html").read_text(encoding="utf-8"))
    assert "z is kept as numbers." in page.text and "img" not in page.tags
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    write_storyboard(out, written, checkpoint, sampling)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_a_shorter_one_replaces_a_longer_one(tmp_path: Path) -> None:
    checkpoint = tiny.make_checkpoint()
    write_storyboard(tmp_path, narrative(*map(random_z, range(3))), checkpoint, Sampling())
    write_storyboard(tmp_path, narrative(random_z(8)), checkpoint, Sampling())
    assert sorted(path.name for path in tmp_path.rglob("*.npy")) == ["000.npy"]
    assert len(json.loads((tmp_path / "storyboard.json").read_bytes())["steps"]) == 1


def test_without_z(tmp_path: Path) -> None:
    checkpoint = tiny.make_checkpoint(task="action-caption")
    for _ in range(2):
        write_storyboard(tmp_path, narrative(None, None), checkpoint, Sampling())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index.html", "storyboard.json"]
    values = json.loads((tmp_path / "storyboard.json").read_bytes())
    assert values["features"] is None and [step["z"] for step in values["steps"]] == [None, None]
    page = Page((tmp_path / "index.html").read_text())
    assert "numbers" not in page.text and "table" not in page.tags


def test_it_can_be_looked_at_and_nothing_more(tmp_path: Path) -> None:
    checkpoint = tiny.make_checkpoint(features=Encoded(EVIL, EVIL, EVIL, {}, None))
    written = narrative(random_z(1), random_z(2), texts=EVIL, query=EVIL, given=("action",))
    written = Written(written.query, written.steps, "length", (EVIL,))
    write_storyboard(tmp_path, written, checkpoint, Sampling())
    html = (tmp_path / "index.html").read_text(encoding="utf-8")
    page = Page(html)
    assert "script" not in page.tags and "img" not in page.tags and page.loads == []
    assert page.text.count("<script>alert(1)</script>") >= 6 and "{{ 7 * 7 }}" in page.text
    assert "no more fits" in page.text
    (style,) = re.findall(r"<style>(.*?)</style>", html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"default-src &#39;none&#39;; style-src &#39;sha256-{digest}&#39;" in html


def test_cosines_of_the_steps(tmp_path: Path) -> None:
    one = np.zeros((2, 6), np.float32)
    one[:, 0] = 1, 5  # a token's length does not count
    other = one.copy()
    other[1] = [0, 3, 0, 0, 0, 0]
    write_storyboard(tmp_path, narrative(one, other, -one, 0 * one), tiny.make_checkpoint(), Sampling())
    html = (tmp_path / "index.html").read_text()
    assert re.findall(r"<td class=\"c(\d+)\">([-.\d]+)<", html) == [
        ("5", "0.50"),
        ("0", "-1.00"),
        ("0", "-0.50"),
        ("0", "0.00"),
        ("0", "0.00"),
        ("0", "0.00"),
    ]


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    out = make_set(tmp_path / "set", [Story("a"), Story("b", split="val", first_shade=5)])
    add_features(out, "toy", (2, 6))
    return out


def test_the_nearest_keyframes(shards: Path, tmp_path: Path) -> None:
    checkpoint = tiny.make_checkpoint()
    keys = ["demo-b-002", "demo-a-001"]
    z = [3 * feature_of(key, (2, 6)).astype(np.float32) for key in keys]
    written = narrative(*z, np.zeros((2, 6), np.float32))
    nearest = nearest_keyframes(written.steps, open_keyframes(shards, checkpoint), "toy")
    assert [near.step.key for near in nearest[:2]] == keys
    assert [near.cosine for near in nearest] == pytest.approx([1, 1, 0], abs=1e-3)
    red = np.zeros((30, 40, 3), np.uint8)
    red[..., 0] = 255
    out = tmp_path / "out"
    write_storyboard(out, written, checkpoint, Sampling(), nearest=nearest, nearest_in=str(shards), picture_HWC=red)
    steps = json.loads((out / "storyboard.json").read_bytes())["steps"]
    assert steps[1]["nearest"] == {"clip": keys[1], "set": str(shards), "cosine": pytest.approx(1, abs=1e-3)}
    page = Page((out / "index.html").read_text())
    assert "No picture here was generated." in page.text and str(shards) in page.text
    assert page.text.count("given keyframe") == 1 and "not generated: demo-a-001" in page.text
    pictures = [np.asarray(Image.open(io.BytesIO(base64.b64decode(url.split(",")[1])))) for url in page.loads]
    assert all(url.startswith("data:image/jpeg;base64,") for url in page.loads)
    assert len(pictures) == 3
    assert pictures[0].shape == red.shape and abs(pictures[0].astype(int) - red).max() < 10
    keyframe = nearest[1].step.keyframe()
    assert abs(pictures[1].astype(int) - keyframe).mean() < 3


def test_one_token_lies_in_sets_of_vectors(tmp_path: Path) -> None:
    out = make_set(tmp_path / "set", [Story("a")])
    add_features(out, "toy", (6,))
    checkpoint = tiny.make_checkpoint(z_shape=(1, 6))
    written = narrative(feature_of("demo-a-002", (6,)).astype(np.float32)[None])
    (near,) = nearest_keyframes(written.steps, open_keyframes(out, checkpoint), "toy")
    assert near.step.key == "demo-a-002"


def test_sets_that_are_of_another_space(shards: Path, tmp_path: Path) -> None:
    def refused(**options: object) -> str:
        with pytest.raises((InputError, UsageError)) as error:
            open_keyframes(shards, tiny.make_checkpoint(**options))  # type: ignore[arg-type]
        return str(error.value)

    assert "are [2, 6] a clip, the director's z [3, 4]" in refused(z_shape=(3, 4))
    assert "are [2, 6] a clip, the director's z [2, 5]" in refused(z_shape=(2, 5))
    assert "are of none@1 with {}, the director's z of clip@1" in refused(
        features=Encoded("toy", "clip", "1", {}, None)
    )
    assert "none@1 with {}" in refused(features=Encoded("toy", "none", "1", {"tokens": "pooled"}, None))
    message = refused(features=Encoded("clip", "clip-b", "1", {"kind": "clip"}, "models/clip"))
    assert f"cookgen features {shards} --encoder clip --model models/clip --name clip" in message
    assert "writes texts alone" in refused(task="action-caption")
    assert open_keyframes(shards, tiny.make_checkpoint(features=Encoded("toy", "none", "1", {"about": "x"}, None)))
    with pytest.raises(InputError, match="not found"):
        open_keyframes(tmp_path / "nowhere", tiny.make_checkpoint())


@pytest.mark.parametrize(
    "names", [["a.txt"], ["index.html"], ["z/a.npy"], ["z/000.npy", "README"], ["storyboard.json"]]
)
def test_a_folder_of_something_else_is_left_alone(names: list[str], tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine")
    with pytest.raises(OutputError, match="holds something else"):
        write_storyboard(tmp_path, narrative(random_z(1)), tiny.make_checkpoint(), Sampling())
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()) == sorted(
        names
    )
    assert all((tmp_path / name).read_text() == "mine" for name in names)


def test_a_page_without_its_json_is_written_again(tmp_path: Path) -> None:
    """A director of texts alone: what a full disk or a kill leaves is the page."""
    loaded = tiny.make_checkpoint(task="action-caption")
    written = Written("How to make soup?", (WrittenStep({"action": "Stir"}, {"action": (1,)}, None, ()),), "stop", ())
    write_storyboard(tmp_path, written, loaded, Sampling())
    (tmp_path / "storyboard.json").unlink()
    check_out(tmp_path)
    write_storyboard(tmp_path, written, loaded, Sampling())
    assert (tmp_path / "storyboard.json").is_file()


def test_outputs_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match=r"Choose another --out"):
        check_out(tmp_path / "file")
    with pytest.raises(OutputError):
        write_storyboard(tmp_path / "file" / "x", narrative(random_z(1)), tiny.make_checkpoint(), Sampling())
    for name in ("elsewhere", "board"):
        (tmp_path / name).mkdir()
    (tmp_path / "elsewhere" / "000.npy").write_text("mine")
    (tmp_path / "board" / "z").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutputError, match="holds something else"):
        check_out(tmp_path / "board")
    check_out(tmp_path / "nothing")
    check_out(tmp_path / "elsewhere" / "deeper")


def test_a_run_that_dies_leaves_no_whole_storyboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = tiny.make_checkpoint()
    write_storyboard(tmp_path, narrative(random_z(1), random_z(2)), checkpoint, Sampling())
    write = storyboard.write_atomic

    def full(path: Path, content: str | bytes) -> None:
        if path.name == "001.npy":
            raise OSError(28, "No space left on device")
        write(path, content)

    monkeypatch.setattr(storyboard, "write_atomic", full)
    with pytest.raises(OutputError, match="the disk is full"):
        write_storyboard(tmp_path, narrative(random_z(3), random_z(4)), checkpoint, Sampling())
    assert not (tmp_path / "storyboard.json").exists()
    monkeypatch.undo()
    write_storyboard(tmp_path, narrative(random_z(3)), checkpoint, Sampling())
    assert (tmp_path / "storyboard.json").exists() and not (tmp_path / "z/001.npy").exists()
