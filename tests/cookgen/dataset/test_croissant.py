"""Croissant metadata, read by mlcroissant in a process of its own, against what the set holds."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from cookgen import load_split
from cookgen.dataset.croissant import croissant_of
from cookgen.errors import FormatError
from cookgen.files import file_sha256
from cookgen.records import TABLES
from tests.shardset import Story, make_set

READ = """
import base64, json, sys
import mlcroissant

def plain(value):
    if isinstance(value, bytes):  # mlcroissant gives text as bytes
        return base64.b64encode(value).decode()
    return list(value.size) if hasattr(value, "size") else value

dataset = mlcroissant.Dataset(sys.argv[1])
records = {
    item.id: [{name: plain(value) for name, value in record.items()} for record in dataset.records(item.id)]
    for item in dataset.metadata.record_sets
}
print(json.dumps({"errors": sorted(dataset.metadata.issues.errors), "records": records}))
"""


def read_croissant(path: Path, scratch: Path) -> Any:
    """What mlcroissant says of the metadata, with every record that it reads through it; text and bytes in base64."""
    environment = os.environ | {"CROISSANT_CACHE": str(scratch / "croissant")}
    command = [sys.executable, "-c", READ, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    stories = [Story("a", num_clips=2), Story("b", num_clips=4, manual=True), Story("c", split="val", title="Süppchen")]
    return make_set(tmp_path_factory.mktemp("croissant") / "set", stories, target_shard_bytes=40_000)


def test_mlcroissant_reads_every_record(out: Path, tmp_path: Path) -> None:
    (out / "croissant.json").write_text(json.dumps(croissant_of(out)))
    read = read_croissant(out / "croissant.json", tmp_path)
    assert read["errors"] == []
    steps = {step.key: step for split in ("train", "val") for item in load_split(split, out) for step in item.steps}
    assert len(steps) == 9
    for suffix in ("json", "mp4"):
        found = {
            base64.b64decode(record[f"{suffix}/key"]).decode(): base64.b64decode(record[f"{suffix}/{suffix}"])
            for record in read["records"].pop(suffix)
        }
        assert found == {key: step.read(suffix) for key, step in steps.items()}
    assert [record["jpg/jpg"] for record in read["records"].pop("jpg")] == [[64, 64]] * 9
    assert sorted(read["records"]) == sorted(record.TABLE for record in TABLES)
    for name, records in read["records"].items():
        rows = pq.read_table(out / "tables" / f"{name}.parquet").to_pylist()
        assert len(records) == len(rows)
        for record, row in zip(records, rows, strict=True):
            for column, value in record.items():
                wanted = row[column.partition("/")[2]]
                assert value == (base64.b64encode(wanted.encode()).decode() if isinstance(wanted, str) else wanted)
    assert {"videos/title", "videos/licence"} < read["records"]["videos"][0].keys()
    assert "videos/segments" not in read["records"]["videos"][0]


def test_files_are_named_with_their_digests(out: Path) -> None:
    files = [item for item in croissant_of(out)["distribution"] if item["@type"] == "cr:FileObject"]
    wanted = sorted(path.relative_to(out).as_posix() for path in [*out.glob("*/*.tar"), *out.glob("tables/*")])
    assert sorted(item["contentUrl"] for item in files) == wanted
    for item in files:
        path = out / item["contentUrl"]
        assert (item["sha256"], item["contentSize"]) == (file_sha256(path), f"{path.stat().st_size} B")


def test_a_table_that_is_none_is_named(out: Path, tmp_path: Path) -> None:
    broken = tmp_path / "set"
    shutil.copytree(out, broken)
    (broken / "tables" / "speech.parquet").write_bytes(b"no parquet")
    with pytest.raises(FormatError, match=r"speech\.parquet: not a readable Parquet file"):
        croissant_of(broken)
