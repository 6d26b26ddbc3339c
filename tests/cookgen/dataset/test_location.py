"""Sets behind a URL: the same samples, from a cache that is filled once and never holds half a file."""

from __future__ import annotations

import multiprocessing
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from cookgen import load_split
from cookgen.dataset.location import Location
from cookgen.errors import FormatError, InputError, OutputError, UnknownNameError, UsageError
from cookgen.files import file_sha256
from tests.shardset import Story, add_features, feature_of, make_set

STORIES = [Story(f"v{number}", 2) for number in range(6)] + [Story("val", 2, split="val")]
KEYS = {"key": "testing", "secret": "testing"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = make_set(tmp_path_factory.mktemp("location") / "set", STORIES, target_shard_bytes=30_000)
    add_features(out, "tiny", (4,))
    return out


@pytest.fixture(scope="module")
def s3_set(made: Path, s3_server: str) -> tuple[str, dict[str, Any]]:
    """The set on an S3 server: (URL, storage options)."""
    options = {**KEYS, "client_kwargs": {"endpoint_url": s3_server}}
    system = fsspec.filesystem("s3", **options)
    system.mkdir("sets")
    system.put(str(made), "sets/demo", recursive=True)
    return "s3://sets/demo", options


def content_of(split: Any) -> list[tuple[str, str, bytes, bytes]]:
    return [(step.key, step.action, step.mp4, step.features["tiny"].tobytes()) for step in split]


def test_the_same_samples_as_from_the_folder(made: Path, s3_set: tuple[str, dict[str, Any]], tmp_path: Path) -> None:
    url, options = s3_set
    for split in ("train", "val"):
        here = load_split(split, made, unit="clip", features=("tiny",))
        there = load_split(split, url, unit="clip", features=("tiny",), cache=tmp_path, storage_options=options)
        assert there.root == url
        assert content_of(there) == content_of(here)
    kept = [path for path in tmp_path.rglob("*") if path.is_file() and not path.name.startswith(".")]
    assert kept
    assert all(file_sha256(path) == path.parent.name for path in kept)


def test_opening_fetches_no_shard_and_a_shard_is_fetched_once(
    s3_set: tuple[str, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, options = s3_set
    asked: list[str] = []
    real = Location._ask

    def counted(self: Location, relative: str, question: Any) -> Any:
        asked.extend([relative] if relative.endswith(".tar") else [])
        return real(self, relative, question)

    monkeypatch.setattr(Location, "_ask", counted)
    narratives = load_split("train", url, cache=tmp_path, storage_options=options)
    assert asked == []
    assert [step.caption for narrative in narratives for step in narrative.steps]
    assert sorted(asked) == sorted({narrative.row.shard for narrative in narratives})
    assert len(asked) > 1
    again = load_split("train", url, cache=tmp_path, storage_options=options)
    assert [step.frames().shape for narrative in again for step in narrative.steps]
    assert len(asked) == len(set(asked))


def _first_frames(task: tuple[str, dict[str, Any], Path, int]) -> int:
    url, options, cache, place = task
    return int(load_split("train", url, cache=cache, storage_options=options)[place].steps[0].frames().sum())


def test_many_processes_fill_one_cache(made: Path, s3_set: tuple[str, dict[str, Any]], tmp_path: Path) -> None:
    url, options = s3_set
    tasks = [(url, options, tmp_path, place) for place in (0, 1, 0, 1, 2, 3)]
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        sums = pool.map(_first_frames, tasks, chunksize=1)
    here = load_split("train", made)
    assert sums == [int(here[place].steps[0].frames().sum()) for *_, place in tasks]
    assert not list(tmp_path.rglob(".tmp-*"))


def test_forked_workers_read_a_url(s3_set: tuple[str, dict[str, Any]], tmp_path: Path) -> None:
    url, options = s3_set
    clips = load_split("train", url, unit="clip", frames=2, cache=tmp_path, storage_options=options)
    assert clips[0].action  # the parent has used its connection before it forks
    seen = [key for batch in clips.torch(batch_size=2, num_workers=2) for key in batch["key"]]
    assert seen == [clip.key for clip in clips]


@pytest.fixture
def memory(made: Path) -> Iterator[str]:
    """The set in fsspec's memory, to be damaged."""
    system = fsspec.filesystem("memory")
    system.put(str(made), "/damaged", recursive=True)
    yield "memory://damaged"
    system.rm("/damaged", recursive=True)


def test_what_is_missing_or_damaged_there(memory: str, tmp_path: Path) -> None:
    system = fsspec.filesystem("memory")
    narratives = load_split("train", memory, cache=tmp_path)
    first, last = narratives[0].row.shard, narratives[-1].row.shard
    assert first != last
    system.pipe_file(f"/damaged/{first}", b"others")
    with pytest.raises(FormatError, match=rf"memory://damaged/{first}: its sha256 is .* the set says"):
        narratives[0].steps  # noqa: B018
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"]
    system.rm(f"/damaged/{last}")
    with pytest.raises(FormatError, match=rf"memory://damaged/{last}: missing, and the set lists it"):
        narratives[-1].steps  # noqa: B018
    with pytest.raises(UnknownNameError, match="unknown features in memory://damaged 'big'"):
        load_split("train", memory, features=("big",), cache=tmp_path)
    system.rm("/damaged/dataset.json")
    with pytest.raises(InputError, match=r"memory://damaged/dataset\.json: not found"):
        load_split("train", memory, cache=tmp_path)


def test_a_file_of_the_cache_that_lost_its_end_is_fetched_again(memory: str, tmp_path: Path) -> None:
    actions = [step.action for step in load_split("train", memory, unit="clip", cache=tmp_path)]
    for path in tmp_path.glob("*/*.tar"):
        os.truncate(path, 700)
    assert [step.action for step in load_split("train", memory, unit="clip", cache=tmp_path)] == actions


def test_a_cache_that_cannot_be_written(memory: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    narrative = load_split("train", memory, cache=tmp_path / "file")[0]
    with pytest.raises(
        OutputError, match=r"cannot be written.*Choose another cache folder: cache=, or \$COOKGEN_CACHE"
    ):
        narrative.steps  # noqa: B018


def test_features_that_were_added_later_are_found(memory: str, made: Path, tmp_path: Path) -> None:
    load_split("train", memory, cache=tmp_path)[0].steps  # noqa: B018 - fills the cache
    source = Path(shutil.copytree(made, tmp_path / "more"))
    add_features(source, "later", (2,))
    fsspec.filesystem("memory").put(str(source / "features" / "later"), "/damaged/features/later", recursive=True)
    step = load_split("train", memory, unit="clip", features=("later",), cache=tmp_path)[0]
    assert np.array_equal(step.features["later"], feature_of(step.key, (2,)))


def test_the_default_cache(memory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COOKGEN_CACHE", str(tmp_path / "own"))
    load_split("train", memory)[0].steps  # noqa: B018
    assert list((tmp_path / "own").glob("*/cookgen-train-*.tar"))


def test_places_that_cannot_be(made: Path) -> None:
    with pytest.raises(UsageError, match="cache and storage_options are for URLs"):
        load_split("train", made, cache=made)
    with pytest.raises(InputError, match=r"nosuch://x/dataset\.json: cannot be read \(Protocol not known: nosuch"):
        load_split("train", "nosuch://x")
    assert len(load_split("val", f"file://{made}")) == 1
