"""The store: what is put is there again, whole or not at all; OUT belongs to one source and one writer."""

from __future__ import annotations

import json
import multiprocessing
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cookgen.errors import OutputError, OutputInUseError
from cookgen.records import Caption, Clip, Lineage, Reason, Reject, Video
from pipelines.stage import Result, Stage, medium_path
from pipelines.store import COMPACT_PARTS, GROUP_SIZE, Store, claim, locked, require_space

STAGE = Stage(name="captions", reads=(Clip,), writes=Caption, run=lambda *a, **k: (), config=None, version=1)


def result(number: int, *, reason: Reason | None = None) -> Result:
    name = f"folder-{number}"
    rejects = () if reason is None else (Reject(narrative=name, path="", stage="captions", reason=reason),)
    return Result(
        stage="captions",
        key=f"key-{number}",
        narrative=name,
        rows=(Caption(narrative=name, clip_index=0, text=f"soup “{number}”\n", origin="tags"),),
        rejects=rejects,
        lineage=Lineage(version=1, config="c", model=None, inputs="i"),
        seconds=0.25,
    )


def test_what_was_flushed_is_there_for_the_next_process(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for number in range(150):
        store.put(result(number))
    assert store.get(STAGE, "key-149") == result(149)  # also what still waits
    store.flush()
    again = Store(tmp_path)
    assert [again.get(STAGE, f"key-{number}") for number in range(150)] == [result(number) for number in range(150)]
    assert again.get(STAGE, "key-150") is None
    assert len(list((tmp_path / ".store" / "results" / "captions").iterdir())) == 3  # groups of at most 64


def test_an_unfinished_part_is_not_seen(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put(result(0))
    store.flush()
    folder = tmp_path / ".store" / "results" / "captions"
    (folder / ".tmp-killed.parquet").write_bytes(b"half a part")
    assert Store(tmp_path).get(STAGE, "key-0") == result(0)
    Store(tmp_path).compact()
    assert [path.name.partition("-")[0] for path in folder.iterdir()] == ["00000000"]


def test_what_is_known_needs_no_reading_of_rows(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put(result(0, reason=Reason.EMPTY_CAPTION))
    waiting = store.known(STAGE, "key-0")
    store.flush()
    again = Store(tmp_path)
    kept = again.known(STAGE, "key-0")
    whole = again.get(STAGE, "key-0")
    assert kept is not None and whole is not None
    assert kept == waiting
    assert (kept.content, kept.stops_video, kept.num_rows) == (whole.content, whole.stops_video, whole.num_rows)
    assert kept.reasons == whole.reasons == ("empty_caption",)
    assert again.knows(STAGE, "folder-0")
    assert not again.knows(STAGE, "folder-1")
    assert again.history("captions") == {"folder-0": (whole.lineage, 0.25)}


def test_what_is_dropped_is_gone_and_the_rest_is_not(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for number in range(GROUP_SIZE + 9):
        store.put(result(number))
    store.flush()
    gone = store.drop(lambda kept: kept.key.endswith("7"))
    assert len(gone) == 7
    for reader in (store, Store(tmp_path)):
        for number in range(GROUP_SIZE + 9):
            is_there = reader.get(STAGE, f"key-{number}") == result(number)
            assert is_there == (number % 10 != 7), number


def test_parts_of_an_earlier_kind_of_store_are_as_if_they_were_not_there(tmp_path: Path) -> None:
    folder = tmp_path / ".store" / "results" / "captions"
    folder.mkdir(parents=True)
    row = {"key": "key-0", "narrative": "folder-0", "result": result(0).to_json()}
    pq.write_table(pa.Table.from_pylist([row]), folder / "00000000.parquet")
    store = Store(tmp_path)
    assert store.get(STAGE, "key-0") is None
    assert store.history("captions") == {}
    for number in range(COMPACT_PARTS + 1):
        store.put(result(number))
        store.flush()
    store.compact()
    assert len(list(folder.iterdir())) == 1
    assert Store(tmp_path).get(STAGE, "key-0") == result(0)


def test_our_own_mistakes_are_not_kept(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put(result(0, reason=Reason.INTERNAL_ERROR))
    store.put(result(1, reason=Reason.EMPTY_CAPTION))
    store.flush()
    assert Store(tmp_path).get(STAGE, "key-0") is None
    assert Store(tmp_path).get(STAGE, "key-1") is not None


def test_compaction_keeps_every_result(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for number in range(COMPACT_PARTS + 5):
        store.put(result(number))
        store.flush()
    store.compact()
    assert len(list((tmp_path / ".store" / "results" / "captions").iterdir())) == 1
    for reader in (store, Store(tmp_path)):
        assert all(reader.get(STAGE, f"key-{n}") == result(n) for n in range(COMPACT_PARTS + 5))


def test_a_clip_whose_file_is_gone_is_cut_again(tmp_path: Path) -> None:
    stage = Stage(name="clips", reads=(Video,), writes=Clip, run=lambda *a, **k: (), config=None, version=1)
    store = Store(tmp_path)
    clip = Clip(
        **dict.fromkeys(("first_pts_s", "last_pts_s", "start_s", "keyframe_pts_s"), 0.0),
        **dict.fromkeys(("num_frames", "width", "height"), 8),
        narrative="folder-0",
        clip_index=0,
        end_s=1.0,
        fps=25.0,
        has_audio=False,
        sha256="a" * 64,
        num_bytes=3,
        keyframe_sha256="b" * 64,
        keyframe_num_bytes=2,
    )
    for sha256, suffix, num_bytes in clip.media:
        path = medium_path(store.media, sha256, suffix)
        path.parent.mkdir(parents=True)
        path.write_bytes(bytes(num_bytes))
    store.put(replace(result(0), stage="clips", rows=(clip,)))
    store.flush()
    assert Store(tmp_path).get(stage, "key-0") is not None
    medium_path(store.media, "a" * 64, ".mp4").write_bytes(b"")
    again = Store(tmp_path)
    assert again.get(stage, "key-0") is None
    medium_path(store.media, "a" * 64, ".mp4").write_bytes(bytes(3))
    again.put(replace(result(0), stage="clips", rows=(clip,), seconds=9.0))  # cut again: kept in the old one's place
    again.flush()
    found = Store(tmp_path).get(stage, "key-0")
    assert found is not None
    assert found.seconds == 9.0


def test_a_damaged_part_is_named(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put(result(0))
    store.flush()
    (part,) = (tmp_path / ".store" / "results" / "captions").iterdir()
    part.write_bytes(part.read_bytes()[:40])
    with pytest.raises(OutputError, match=part.name):
        Store(tmp_path)


def test_a_folder_belongs_to_one_source(tmp_path: Path) -> None:
    claim(tmp_path / "out", "demo")
    claim(tmp_path / "out", "demo")
    with pytest.raises(OutputError, match="belongs to the source 'demo', not 'folder'"):
        claim(tmp_path / "out", "folder")


def test_what_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("…")
    with pytest.raises(OutputError, match="not empty"):
        claim(tmp_path, "demo")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["thesis.tex"]
    with pytest.raises(OutputError, match="is a file"):
        claim(tmp_path / "thesis.tex", "demo")


def test_another_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text(json.dumps({"format": "cookgen/9", "name": "demo"}))
    with pytest.raises(OutputError, match="'cookgen/9'"):
        claim(tmp_path, "demo")


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"choose another --out|Choose another --out"):
        claim(Path("/proc/cookgen-out"), "demo")


def test_a_full_disk_is_said_before_the_work(tmp_path: Path) -> None:
    require_space(tmp_path, 1)
    with pytest.raises(OutputError, match="too full"):
        require_space(tmp_path, 2**60)


def _hold(out: Path, ready: multiprocessing.synchronize.Event, done: multiprocessing.synchronize.Event) -> None:
    with locked(out):
        ready.set()
        done.wait(60)


def test_one_writer_at_a_time_and_no_stale_lock(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready, done = context.Event(), context.Event()
    holder = context.Process(target=_hold, args=(tmp_path, ready, done))
    holder.start()
    assert ready.wait(60)
    with pytest.raises(OutputInUseError, match=f"process {holder.pid} on"), locked(tmp_path):
        pass
    holder.kill()  # the lock dies with its holder
    holder.join(60)
    with locked(tmp_path):
        pass
