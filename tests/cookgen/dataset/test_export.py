"""`cookgen export`: rows that other tools read, the same as the set says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cookgen import load_split
from cookgen.dataset.export import FORMATS, MARKER, export
from cookgen.dataset.sample import Step
from cookgen.errors import InputError, OutputError, UnknownNameError
from tests.shardset import Story, make_set

STORIES = (
    Story("a", num_clips=2, title="Zwiebel\tsuppe\n"),
    Story("b", num_clips=8, manual=True, first_text='a "quoted", <b>odd</b> text\u2028'),
    Story("c", num_clips=3, split="val"),
)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_set(tmp_path_factory.mktemp("export") / "set", STORIES, target_shard_bytes=40_000)


def steps_of(out: Path, split: str) -> list[Step]:
    return [step for narrative in load_split(split, out) for step in narrative.steps]


def flat(step: Step) -> dict[str, Any]:
    """What a row must say, worded apart from the exporter."""
    sample = step.sample
    words = sample.action.word_ids or (None, None)
    row = {"key": step.key, "narrative": sample.narrative, "split": sample.split}
    row |= {"index": sample.index, "num_steps": sample.num_steps}
    for part in ("video", "clip", "keyframe", "action", "caption", "match"):
        row |= {f"{part}_{name}": value for name, value in getattr(sample, part) if name != "word_ids"}
    row |= {"action_word_first": words[0], "action_word_end": words[1]}
    return row | {f"checks_{name}": score for name, score in sample.checks.items()}


def test_parquet_rows_are_the_clips(out: Path, tmp_path: Path) -> None:
    paths = export(out, tmp_path / "flat", format="parquet")
    assert [path.name for path in paths] == ["train-00000-of-00001.parquet", "validation-00000-of-00001.parquet"]
    for path, split in zip(paths, ("train", "val"), strict=True):
        table = pq.read_table(path)
        assert table.to_pylist() == [flat(step) for step in steps_of(out, split)]
        assert not [field for field in table.schema if pa.types.is_nested(field.type)]


def test_datasets_loads_the_parquet(out: Path, tmp_path: Path) -> None:
    export(out, tmp_path / "flat", format="parquet")
    script = """
import datasets, json, sys
files = {"train": sys.argv[1] + "/train-*.parquet", "validation": sys.argv[1] + "/validation-*.parquet"}
by_name = datasets.load_dataset("parquet", data_files=files)
by_folder = datasets.load_dataset(sys.argv[1])
assert sorted(by_name) == sorted(by_folder) == ["train", "validation"], (by_name, by_folder)
keys = {name: by_name[name]["key"][:] for name in by_name}
assert keys == {name: by_folder[name]["key"][:] for name in by_folder}
print(json.dumps(keys))
"""
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path / "home"),
        "HF_DATASETS_CACHE": str(tmp_path / "cache"),
    }
    command = [sys.executable, "-c", script, str(tmp_path / "flat")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    keys = json.loads(done.stdout.splitlines()[-1])
    assert keys == {
        "train": [step.key for step in steps_of(out, "train")],
        "validation": [step.key for step in steps_of(out, "val")],
    }


def test_seed_story_lines_and_keyframes(out: Path, tmp_path: Path) -> None:
    to = tmp_path / "story"
    assert [path.name for path in export(out, to, format="seed-story")] == ["train.jsonl", "validation.jsonl"]
    for name, split in (("train", "train"), ("validation", "val")):
        lines = [json.loads(line) for line in (to / f"{name}.jsonl").read_text(encoding="utf-8").split("\n")[:-1]]
        assert [line["id"] for line in lines] == list(range(len(load_split(split, out))))
        for line, narrative in zip(lines, load_split(split, out), strict=True):
            assert list(line) == ["id", "images", "captions", "orders"]  # StoryStream's, and no others
            assert line["captions"] == [step.caption for step in narrative.steps]
            assert line["orders"] == list(range(narrative.num_steps))
            for image, step in zip(line["images"], narrative.steps, strict=True):
                assert (to / image).read_bytes() == step.read("jpg")
                with Image.open(to / image) as picture:
                    assert picture.size == (64, 64)
    written = {path.relative_to(to).as_posix() for path in to.rglob("*.jpg")}
    assert len(written) == 13


@pytest.mark.parametrize("format", FORMATS)
def test_the_same_again_is_the_same(out: Path, tmp_path: Path, format: str) -> None:  # noqa: A002
    def contents() -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    export(out, tmp_path / "to", format=format)
    first = contents()
    next((tmp_path / "to").glob("train*")).unlink()  # as if it had been stopped
    export(out, tmp_path / "to", format=format)
    assert contents() == first


def test_a_folder_of_something_else_is_refused(out: Path, tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "thesis.tex").write_text("x")
    (tmp_path / "file").write_text("x")
    export(out, tmp_path / "flat", format="parquet")
    other = make_set(tmp_path / "other", [Story("z")])
    for to, source, form in (
        ("theirs", out, "parquet"),
        ("file", out, "parquet"),
        ("flat", out, "seed-story"),
        ("flat", other, "parquet"),
        (out, out, "parquet"),
    ):
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(OutputError, match="holds something else"):
            export(source, tmp_path / to, format=form)
        assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "flat" / MARKER).is_file()


def test_what_cannot_be_is_named(out: Path, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'parquet'"):
        export(out, tmp_path / "x", format="parket")
    with pytest.raises(InputError):
        export(tmp_path / "nowhere", tmp_path / "x", format="parquet")
    assert not (tmp_path / "x").exists()
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="cannot be written"):
        export(out, tmp_path / "file" / "below", format="parquet")


def test_an_empty_split_has_no_file(tmp_path: Path) -> None:
    out = make_set(tmp_path / "set", [Story("a")])
    assert [path.name for path in export(out, tmp_path / "to", format="parquet")] == ["train-00000-of-00001.parquet"]
