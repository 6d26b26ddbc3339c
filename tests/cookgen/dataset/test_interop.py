"""Every foreign reader sees what was written: nothing lost, nothing added, in the same order; sidecars or not."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from cookgen import load_split
from cookgen.dataset.tables import read_table, table_path
from cookgen.files import canonical_json
from cookgen.records import Manifest, Narrative
from pipelines.stages.shards import ShardsConfig, Step, steps_of
from tests.shardset import STAGES, Media, Story, add_features, make_set, make_states

STORIES = (
    Story("a", num_clips=2, title="Onion soup", topic="soup"),
    Story("b", num_clips=8, manual=True),
    Story("c", num_clips=3, first_text='Say "ja", dann: Zwiebeln würfeln'),
    Story("d" * 120, num_clips=3),  # its member names take pax headers
    Story("e", num_clips=3, split="val", title="x"),
    Story("f", num_clips=2, split="val"),
)
Row = tuple[str, str, Any, str, str]  # split, key, JSON, sha256 of mp4 and jpg


@pytest.fixture(scope="module", params=["plain", "with sidecar"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Row]]:
    """A set of several shards, and its clips in the shards' order, as the pipeline's own steps say them."""
    out = make_set(tmp_path_factory.mktemp("interop") / "set", STORIES, target_shard_bytes=40_000)
    assert len(shards_of(out, "train")) >= 2
    if request.param == "with sidecar":
        add_features(out, "clip", (2, 3))
        assert load_split("train", out, features=("clip",))[0].steps[0].features["clip"].shape == (2, 3)
    rows: dict[str, list[Row]] = {}
    for state in make_states(STORIES, Media(tmp_path_factory.mktemp("media"))):
        steps = steps_of(state, STAGES, ShardsConfig())
        assert isinstance(steps, tuple)
        rows[state.source.narrative] = [row_of(step) for step in steps]
    index = sorted(
        read_table(table_path(out, Narrative), Narrative),
        key=lambda row: (row.split, row.shard, row.first_member_offset),
    )
    assert sorted(rows) == sorted(row.narrative for row in index)
    return out, [row for narrative in index for row in rows[narrative.narrative]]


def row_of(step: Step) -> Row:
    sample, clip = step.sample, step.clip
    key = f"{sample.narrative}-{sample.index:03d}"
    values = json.loads(canonical_json(sample.to_json()))
    return sample.split, key, values, clip.sha256, clip.keyframe_sha256


def run(script: str, *args: str | Path, scratch: Path) -> Any:
    """A script in a process of its own; what it prints last is JSON."""
    places = {name: str(scratch / name) for name in ("HF_HOME", "HF_DATASETS_CACHE")}
    environment = os.environ | places | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    command = [sys.executable, "-c", script, *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def shards_of(out: Path, split: str) -> list[Path]:
    manifest = Manifest.model_validate_json((out / "dataset.json").read_bytes())
    return [out / shard.path for shard in manifest.splits[split].shards]


def test_load_split(made: tuple[Path, list[Row]]) -> None:
    out, written = made
    found = [
        (split, step.key, json.loads(step.read("json")), sha256(step.read("mp4")), sha256(step.read("jpg")))
        for split in ("train", "val")
        for narrative in load_split(split, out)
        for step in narrative.steps
    ]
    assert found == sorted(written, key=lambda row: (row[0], row[2]["narrative"], row[2]["index"]))


def test_plain_tarfile(made: tuple[Path, list[Row]]) -> None:
    out, written = made
    found: list[Row] = []
    for split in ("train", "val"):
        for shard in shards_of(out, split):
            with tarfile.open(shard) as tar:
                members = tar.getmembers()
                contents = [(stream := tar.extractfile(member)) and stream.read() for member in members]
            for first in range(0, len(members), 3):
                names = [Path(member.name) for member in members[first : first + 3]]
                assert [name.suffix for name in names] == [".json", ".mp4", ".jpg"]
                assert len({name.stem for name in names}) == 1
                text, clip, image = contents[first : first + 3]
                assert text is not None and clip is not None and image is not None
                found.append((split, names[0].stem, json.loads(text), sha256(clip), sha256(image)))
    assert found == written


def test_webdataset(made: tuple[Path, list[Row]], tmp_path: Path) -> None:
    script = """
import hashlib, json, sys, webdataset
sha256 = lambda content: hashlib.sha256(content).hexdigest()
rows = []
for split, shards in json.loads(sys.argv[1]).items():
    for sample in webdataset.WebDataset(shards, shardshuffle=False):
        assert sorted(name for name in sample if not name.startswith("__")) == ["jpg", "json", "mp4"], sample.keys()
        row = [split, sample["__key__"], json.loads(sample["json"]), sha256(sample["mp4"]), sha256(sample["jpg"])]
        rows.append(row)
print(json.dumps(rows))
"""
    out, written = made
    shards = {split: [str(path) for path in shards_of(out, split)] for split in ("train", "val")}
    assert [tuple(row) for row in run(script, json.dumps(shards), scratch=tmp_path)] == written


def test_huggingface_datasets_also_streaming(made: tuple[Path, list[Row]], tmp_path: Path) -> None:
    script = """
import datasets, hashlib, json, sys
sha256 = lambda content: hashlib.sha256(content).hexdigest()
found = {}
for streaming in (False, True):
    rows = found[str(streaming)] = []
    loaded = datasets.load_dataset(sys.argv[1], streaming=streaming)
    assert sorted(loaded) == ["train", "validation"], loaded
    for split, name in (("train", "train"), ("val", "validation")):
        part = loaded[name]
        for column, feature in (("mp4", datasets.Video(decode=False)), ("jpg", datasets.Image(decode=False))):
            part = part.cast_column(column, feature)
        for sample in part:
            columns = sorted(sample)
            assert columns == ["__key__", "__url__", "jpg", "json", "mp4"], columns
            clip, image = (sha256(sample[column]["bytes"]) for column in ("mp4", "jpg"))
            rows.append([split, sample["__key__"], sample["json"], clip, image])
print(json.dumps(found))
"""
    out, written = made
    found = run(script, out, scratch=tmp_path)
    for streaming in ("False", "True"):
        assert [tuple(row) for row in found[streaming]] == written
