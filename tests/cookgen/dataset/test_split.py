"""load_split on a set written by hand: tarfile, pyarrow and json as the format says, without the project's writer."""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import cookgen
from cookgen import load_split
from cookgen.dataset import sample as sample_module
from cookgen.dataset.frames import FrameRule
from cookgen.errors import FormatError, InputError, UnknownNameError, UsageError
from cookgen.records import Sample
from tests.shardset import Story, add_features, make_set

SIZE, FPS = 64, 8
LONG = "folder-" + "x" * 110  # its members' names do not fit a plain tar header
TRAIN = {"demo-a": 3, LONG: 2, "demo-b": 4}
VAL = {"demo-c": 2}


def grey_of(narrative: str, index: int, frame: int) -> int:
    return 20 + 12 * frame + 2 * index + sum(map(ord, narrative)) % 3


def num_frames_of(index: int) -> int:
    return 9 + index


def mp4_of(narrative: str, index: int, folder: Path) -> bytes:
    path = folder / "clip.mp4"
    with av.open(path, "w", format="mp4", options={"use_editlist": "0", "movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width = stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        stream.codec_context.options = {"bf": "0", "threads": "1", "crf": "8", "preset": "ultrafast"}
        for number in range(num_frames_of(index)):
            picture = np.full((SIZE, SIZE, 3), grey_of(narrative, index, number), np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path.read_bytes()


def jpg_of(narrative: str, index: int, size: int = SIZE) -> bytes:
    stream = io.BytesIO()
    grey = grey_of(narrative, index, num_frames_of(index) // 2)
    Image.new("RGB", (size, size), (grey, grey, grey)).save(stream, "JPEG", quality=95)
    return stream.getvalue()


def json_of(narrative: str, index: int, num_steps: int, split: str, mp4: bytes) -> dict[str, Any]:
    frames = num_frames_of(index)
    start = 10.0 * index
    return {
        "format": "cookgen/1",
        "narrative": narrative,
        "index": index,
        "num_steps": num_steps,
        "split": split,
        "video": {
            "source": narrative.partition("-")[0],
            "video_id": narrative.partition("-")[2],
            "url": None,
            "title": f"Title of {narrative}",
            "topic": None,
            "duration_s": 60.0,
            "width": 640,
            "height": 360,
            "fps": float(FPS),
            "licence": None,
            "sha256": "0" * 64,
        },
        "clip": {
            "start_s": start,
            "end_s": start + frames / FPS,
            "first_pts_s": start,
            "last_pts_s": start + (frames - 1) / FPS,
            "num_frames": frames,
            "fps": float(FPS),
            "width": SIZE,
            "height": SIZE,
            "has_audio": False,
            "sha256": hashlib.sha256(mp4).hexdigest(),
        },
        "keyframe": {"pts_s": start + frames // 2 / FPS},
        "action": {
            "text": f"stir pot {index}",
            "start_s": start,
            "end_s": start + 1,
            "origin": "asr",
            "raw_text": "now stir",
            "word_ids": [index, index + 2],
        },
        "caption": {"text": f"A pot, {index}.", "origin": "tags"},
        "match": {"start_diff_s": 0.0, "iou": 0.8, "rule": "iou"},
        "checks": {"caption_similarity": 0.5},
        "lineage": {"clips": {"version": 1, "config": "c", "model": None, "inputs": "i"}},
    }


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(content), 0o644
    tar.addfile(info, io.BytesIO(content))


def write_set(
    root: Path, *, splits: dict[str, dict[str, int]], change: Callable[[str, bytes], bytes | None] | None = None
) -> None:
    """A whole set. `change` may replace the content of any member, or leave it out by None."""
    rows, manifest = [], {}
    for split, narratives in splits.items():
        manifest[split] = {"num_narratives": len(narratives), "num_clips": sum(narratives.values()), "shards": []}
        if not narratives:
            continue
        path = f"{split}/cookgen-{split}-000000.tar"
        (root / split).mkdir(parents=True)
        with tarfile.open(root / path, "w", format=tarfile.PAX_FORMAT) as tar:
            for narrative, num_steps in narratives.items():
                offset = tar.offset
                for index in range(num_steps):
                    mp4 = mp4_of(narrative, index, root)
                    values = json_of(narrative, index, num_steps, split, mp4)
                    contents = {"json": json.dumps(values).encode(), "mp4": mp4, "jpg": jpg_of(narrative, index)}
                    for suffix, content in contents.items():
                        name = f"{narrative}-{index:03d}.{suffix}"
                        changed = change(name, content) if change else content
                        if changed is not None:
                            add(tar, name, changed)
                rows.append(
                    {"narrative": narrative, "split": split, "shard": path, "num_steps": num_steps,
                     "first_member_offset": offset, "num_bytes": tar.offset - offset}
                )  # fmt: skip
        content = (root / path).read_bytes()
        manifest[split]["shards"] = [
            {"path": path, "sha256": hashlib.sha256(content).hexdigest(), "num_bytes": len(content),
             "num_narratives": len(narratives), "num_clips": sum(narratives.values())}
        ]  # fmt: skip
    (root / "clip.mp4").unlink(missing_ok=True)
    write_index(root, rows)
    document = {
        "format": "cookgen/1",
        "name": "test",
        "created_by": "by hand",
        "splits": manifest,
        "statistics": {},
        "config": {"digest": "0", "values": {}},
    }
    (root / "dataset.json").write_text(json.dumps(document))


def write_index(root: Path, rows: list[dict[str, Any]]) -> None:
    (root / "tables").mkdir(exist_ok=True)
    fields = {"narrative": pa.string(), "split": pa.string(), "shard": pa.string(), "num_steps": pa.int64(),
              "first_member_offset": pa.int64(), "num_bytes": pa.int64()}  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows, schema=pa.schema(fields)), root / "tables/narratives.parquet")


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("set")
    write_set(root, splits={"train": TRAIN, "val": VAL, "empty": {}})
    return root


@pytest.fixture
def copied(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "set"))


def test_a_split_is_a_sequence_in_the_order_of_the_index(made: Path) -> None:
    train = load_split("train", made)
    assert len(train) == 3
    assert [narrative.name for narrative in train] == list(TRAIN)
    assert train[-1].name == train[2].name == "demo-b"
    assert [narrative.name for narrative in train[1:]] == list(TRAIN)[1:]
    assert len(train[::2]) == 2
    assert train[1] in train
    with pytest.raises(IndexError, match="narrative 3 of split 'train', which has 3"):
        train[3]
    assert len(load_split("val", str(made))) == 1
    assert len(load_split("empty", made)) == 0
    assert list(load_split("empty", made)) == []


def test_reprs_say_what_it_is(made: Path) -> None:
    train = load_split("train", made)
    assert repr(train) == f"Split('train', '{made}': 3 narratives, 9 clips)"
    assert repr(train[0]) == "Narrative('demo-a', 3 steps)"
    assert repr(train[0].steps[1]) == "Step('demo-a-001', 'stir pot 1')"


def test_narratives_and_steps_say_what_the_json_says(made: Path) -> None:
    for narrative in load_split("train", made):
        assert narrative.num_steps == len(narrative.steps) == TRAIN[narrative.name]
        assert (narrative.title, narrative.topic) == (f"Title of {narrative.name}", None)
        assert (narrative.source, narrative.split) == (narrative.name.partition("-")[0], "train")
        for index, step in enumerate(narrative.steps):
            assert step.index == index
            assert step.key == f"{narrative.name}-{index:03d}"
            assert step.action == f"stir pot {index}"
            assert step.caption == f"A pot, {index}."
            assert step.span == (step.start_s, step.end_s) == (10.0 * index, 10.0 * index + (9 + index) / FPS)
            expected = json_of(narrative.name, index, narrative.num_steps, "train", step.mp4)
            assert step.sample == Sample.model_validate(expected)


def test_frames_are_those_of_the_clip(made: Path) -> None:
    for narrative in load_split("train", made):
        for step in narrative.steps:
            frames = step.frames()
            assert frames.dtype == np.uint8
            assert frames.shape == (num_frames_of(step.index), SIZE, SIZE, 3)
            wanted = [grey_of(narrative.name, step.index, number) for number in range(len(frames))]
            assert np.abs(frames.mean(axis=(1, 2, 3)) - wanted).max() <= 3  # frames are 12 apart
            assert np.array_equal(step.frames([3, -1, 3]), frames[[3, -1, 3]])
            assert np.array_equal(step.frames(slice(1, 6, 2)), frames[1:6:2])
            assert step.frames([0], size_px=32).shape == (1, 32, 32, 3)


def test_evenly_spaced_frames(made: Path) -> None:
    step = load_split("train", made)[0].steps[0]
    frames = step.frames()
    assert np.array_equal(step.frames(num_frames=3), frames[[1, 4, 7]])  # the middles of 0-2, 3-5, 6-8
    assert np.array_equal(step.frames(num_frames=1), frames[[4]])
    assert np.array_equal(step.frames(num_frames=9), frames)
    assert len(step.frames(num_frames=20)) == 20
    for arguments in ({"num_frames": 0}, {"num_frames": 2, "indices": [1]}):
        with pytest.raises(UsageError, match="num_frames"):
            step.frames(**arguments)
    for index in (9, -10):
        with pytest.raises(IndexError, match=f"demo-a-000: no frame {index}; the clip has 9"):
            step.frames([0, index])


def test_keyframes_are_the_jpeg(made: Path) -> None:
    for step in load_split("val", made)[0].steps:
        picture = step.keyframe()
        assert picture.dtype == np.uint8
        assert picture.shape == (SIZE, SIZE, 3)
        assert abs(picture.mean() - grey_of("demo-c", step.index, num_frames_of(step.index) // 2)) <= 2


def test_opening_reads_no_shard_and_a_narrative_reads_no_clip(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    num_bytes = 0

    def counted(handle: int, size: int, offset: int) -> bytes:
        nonlocal num_bytes
        num_bytes += len(content := pread(handle, size, offset))
        return content

    pread = os.pread
    monkeypatch.setattr(os, "pread", counted)
    train = load_split("train", copied)
    names = [narrative.name for narrative in train]
    assert len(names) == 3
    assert num_bytes == 0
    steps = train[2].steps
    assert num_bytes == 3 * len(steps) * 512  # the tar headers
    num_bytes = 0
    assert [step.action for step in steps] == [step.sample.action.text for step in steps]
    assert num_bytes == sum(step.members["json"].num_bytes for step in steps)  # each read once
    num_bytes = 0
    content = steps[1].mp4
    assert num_bytes == len(content)


def _name_and_mean(step: sample_module.Step) -> tuple[str, float]:
    return step.key, float(step.frames().mean())


def test_use_from_other_processes_and_threads(made: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(made.parent)
    train = load_split("train", made.name)  # relative, and used after the folder has changed
    monkeypatch.chdir(tmp_path)
    train = pickle.loads(pickle.dumps(train))
    steps = [step for narrative in train for step in pickle.loads(pickle.dumps(narrative)).steps]
    here = [_name_and_mean(step) for step in steps]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(_name_and_mean, steps * 4)) == here * 4
    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(lambda _: len(load_split("train", made)[0].steps), range(8)))) == 1
    with multiprocessing.get_context("spawn").Pool(1) as processes:
        assert processes.map(_steps_of, [train]) == [[step.key for step in steps]]


def _steps_of(split: Any) -> list[str]:
    return [step.key for narrative in split for step in narrative.steps]


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


FORBIDDEN = "import sys; assert not {'torch', 'ray', 'transformers', 'decord'} & set(sys.modules), 'heavy'"


def test_reading_imports_no_heavy_library(made: Path) -> None:
    reading = f"from cookgen import load_split; load_split('val', {str(made)!r})[0].steps[0].frames()"
    result = run_python(f"{reading}; {FORBIDDEN}")
    assert result.returncode == 0, result.stderr
    control = run_python(f"{reading}; import torch; {FORBIDDEN}")
    assert "AssertionError: heavy" in control.stderr


def test_the_public_api_is_no_larger_than_promised() -> None:
    assert cookgen.__all__ == ["__version__", "load_split"]


def test_an_unknown_split(made: Path) -> None:
    with pytest.raises(UsageError, match=r"split 'test' is not in .*dataset\.json: empty, train, val"):
        load_split("test", made)


def test_a_folder_that_is_no_complete_set(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"dataset\.json: not found: the set is not complete.*make shards"):
        load_split("train", tmp_path)
    with pytest.raises(InputError, match="there is no such folder"):
        load_split("train", tmp_path / "nowhere")
    (tmp_path / "dataset.json").mkdir()
    with pytest.raises(InputError, match="cannot be read"):
        load_split("train", tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "format None"),
        ('{"format": "cookgen/2"}', "format 'cookgen/2'; this version reads 'cookgen/1'"),
        ('{"format": "cookgen/1"}', "name: Field required"),
    ],
)
def test_a_manifest_that_breaks_the_format(copied: Path, content: str, message: str) -> None:
    (copied / "dataset.json").write_text(content)
    with pytest.raises(FormatError, match=message):
        load_split("train", copied)


def test_an_index_that_disagrees_with_the_manifest(copied: Path) -> None:
    rows = pq.read_table(copied / "tables/narratives.parquet").to_pylist()
    write_index(copied, rows[1:])
    with pytest.raises(FormatError, match=r"2 narratives with 6 clips in split 'train', dataset\.json says 3 with 9"):
        load_split("train", copied)
    for change in (
        {"shard": "../../secret.tar"},
        {"shard": "val/cookgen-val-000000.tar"},
        {"first_member_offset": 10**9},
    ):
        write_index(copied, [rows[0] | change, *rows[1:]])
        with pytest.raises(FormatError, match="demo-a lies outside of the shards"):
            load_split("train", copied)
    (copied / "tables/narratives.parquet").unlink()
    with pytest.raises(InputError, match=r"narratives\.parquet"):
        load_split("train", copied)


def test_a_manifest_that_points_out_of_the_set(copied: Path) -> None:
    splits = json.loads((copied / "dataset.json").read_text())["splits"]
    for path in ("../set/train/cookgen-train-000000.tar", "/etc/passwd"):
        splits["train"]["shards"][0]["path"] = path
        edit_json(copied / "dataset.json", splits=splits)
        with pytest.raises(FormatError, match="outside of the set"):
            load_split("train", copied)


def test_a_missing_shard_is_named_when_it_is_needed(copied: Path) -> None:
    (copied / "train/cookgen-train-000000.tar").unlink()
    narrative = load_split("train", copied)[0]
    with pytest.raises(FormatError, match=r"cookgen-train-000000\.tar: cannot be read .*fetch it again"):
        narrative.steps  # noqa: B018


def test_a_truncated_shard(copied: Path) -> None:
    train = load_split("train", copied)
    whole = (copied / "train/cookgen-train-000000.tar").read_bytes()
    row = train[2].row
    for length in (0, row.first_member_offset, row.first_member_offset + row.num_bytes // 2):
        (copied / "train/cookgen-train-000000.tar").write_bytes(whole[:length])
        with pytest.raises(FormatError):
            [step.mp4 for step in train[2].steps]
    assert len(train[0].steps) == 3  # what is still there is still readable


def test_an_offset_that_is_not_the_narratives(copied: Path) -> None:
    rows = pq.read_table(copied / "tables/narratives.parquet").to_pylist()
    for change, message in (
        ({"first_member_offset": rows[1]["first_member_offset"]}, "does not belong in demo-a"),
        ({"first_member_offset": rows[0]["first_member_offset"] + 7}, "demo-a"),
        ({"num_bytes": rows[0]["num_bytes"] + 512}, "demo-a ends at"),
        ({"num_bytes": 512}, "demo-a ends after 0 members"),
    ):
        write_index(copied, [rows[0] | change, *rows[1:]])
        with pytest.raises(FormatError, match=message):
            load_split("train", copied)[0].steps  # noqa: B018


@pytest.mark.parametrize(
    ("member", "content", "message"),
    [
        ("demo-a-001.json", b"{}", r"demo-a-001\.json: format: Field required"),
        ("demo-a-001.json", b"\xff\xfe{", r"demo-a-001\.json"),
        ("demo-a-001.json", None, "ends after|ends at"),
        ("demo-a-002.mp4", b"not a clip", r"demo-a-002\.mp4: its sha256 is not the one in the JSON"),
        ("demo-a-002.jpg", b"not a picture", r"demo-a-002\.jpg: not a readable JPEG"),
        ("demo-a-002.jpg", jpg_of("demo-a", 2, size=48), r"demo-a-002\.jpg: \(48, 48\) pixels, its clip \(64, 64\)"),
        ("demo-a-002.jpg", jpg_of("demo-a", 2)[:300], r"demo-a-002\.jpg: not a readable JPEG"),
    ],
)
def test_members_that_break_the_format(tmp_path: Path, member: str, content: bytes | None, message: str) -> None:
    write_set(tmp_path, splits={"train": {"demo-a": 3}}, change=lambda name, was: content if name == member else was)
    with pytest.raises(FormatError, match=message):
        for step in load_split("train", tmp_path)[0].steps:
            step.frames([0])
            step.keyframe()


def test_a_sample_that_says_something_else_than_the_index(tmp_path: Path) -> None:
    def change(name: str, content: bytes) -> bytes:
        return content.replace(b'"index": 1', b'"index": 2') if name.endswith("001.json") else content

    write_set(tmp_path, splits={"train": {"demo-a": 3}}, change=change)
    with pytest.raises(FormatError, match=r"demo-a-001\.json says \('demo-a', 2, 3, 'train'\), the narratives table"):
        load_split("train", tmp_path)[0].steps[1].action  # noqa: B018


def test_a_clip_with_fewer_frames_than_its_json_says(tmp_path: Path) -> None:
    def change(name: str, content: bytes) -> bytes:
        return content.replace(b'"num_frames": 9', b'"num_frames": 11') if name.endswith("000.json") else content

    write_set(tmp_path, splits={"train": {"demo-a": 2}}, change=change)
    with pytest.raises(FormatError, match=r"demo-a-000\.mp4: frame 9 of a clip of 9 frames"):
        load_split("train", tmp_path)[0].steps[0].frames()


def test_a_link_or_sparse_member_is_refused(copied: Path) -> None:
    with tarfile.open(copied / "train/cookgen-train-000000.tar", "w") as tar:
        link = tarfile.TarInfo("demo-a-000.json")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    with pytest.raises(FormatError, match="does not belong in demo-a"):
        load_split("train", copied)[0].steps  # noqa: B018


def test_clips_and_windows_have_known_lengths_and_names(made: Path) -> None:
    clips = load_split("train", made, unit="clip")
    assert len(clips) == clips.num_clips == 9
    assert [clip.key for clip in clips] == [clips.name_of(place) for place in range(9)]
    assert [clip.key for clip in clips] == [step.key for item in load_split("train", made) for step in item.steps]
    assert repr(clips) == f"Split('train', '{made}': 9 clips, 9 clips)"
    windows = load_split("train", made, unit="window", window=3)
    assert [window.name for window in windows] == [windows.name_of(place) for place in range(len(windows))]
    found = [(window.narrative.name, window.first, window.num_steps) for window in windows]
    assert found == [("demo-a", 0, 3), (LONG, 0, 2), ("demo-b", 0, 3), ("demo-b", 1, 3)]
    assert [[step.index for step in window.steps] for window in windows] == [[0, 1, 2], [0, 1], [0, 1, 2], [1, 2, 3]]
    assert windows.num_clips == 9
    assert (windows.num_narratives, windows[2:].num_narratives, windows[2:].num_clips) == (3, 1, 4)


def test_a_shuffled_split_is_a_sequence_too(made: Path) -> None:
    clips, index = load_split("train", made, unit="clip", shuffle=True, seed=5), load_split("train", made, unit="clip")
    keys = [clip.key for clip in clips]
    assert keys != [clip.key for clip in index]
    assert sorted(keys) == sorted(clip.key for clip in index)
    assert keys == [clips[place].key for place in range(9)] == [clips.name_of(place) for place in range(9)]
    assert [clip.key for clip in clips[2:5]] == keys[2:5]
    assert [clip.key for clip in clips.epoch(0)] == keys
    assert [clip.key for clip in clips.epoch(1)] != keys
    assert [clip.key for clip in clips.unshuffled()] == [clip.key for clip in index]
    other = load_split("train", made, unit="clip", shuffle=True, seed=6)
    assert [clip.key for clip in other] != keys
    assert [clip.key for clip in index.epoch(3)] == [clip.key for clip in index]
    part = clips[2:8]  # in its own order now, and shuffled anew each epoch, as the whole is
    assert [clip.key for clip in part] == [clip.key for clip in part.unshuffled()] == keys[2:8]
    assert [clip.key for clip in part.map(lambda clip: clip)] == keys[2:8]
    epochs = [[clip.key for clip in part.epoch(epoch)] for epoch in range(3)]
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert all(sorted(epoch) == sorted(keys[2:8]) for epoch in epochs)


def test_select_and_map(made: Path) -> None:
    clips = load_split("train", made, unit="clip")
    firsts = clips.select(lambda clip: clip.index == 0)
    assert [clip.key for clip in firsts] == ["demo-a-000", f"{LONG}-000", "demo-b-000"]
    assert len(firsts) == firsts.num_clips == 3
    assert [clip.key for clip in clips.select([4, 0, -1])] == [clips[4].key, clips[0].key, clips[8].key]
    with pytest.raises(IndexError):
        clips.select([9])
    for mask in ([True, False], np.array([True, False]), [1.5]):
        with pytest.raises(UsageError, match="is no index"):
            clips.select(mask)  # type: ignore[arg-type]
    assert clips.select(np.array([1, 2]))[0].key == clips[1].key
    assert len(clips.select([])) == 0
    assert len({clips[0], clips[0], clips[1]}) == 2
    actions = firsts.map(lambda clip: clip.action).map(str.upper)
    assert list(actions) == ["STIR POT 0"] * 3
    assert actions[1] == "STIR POT 0"
    assert len(actions.select(lambda text: text.endswith("1"))) == 0
    shuffled = load_split("train", made, unit="clip", shuffle=True).select(lambda clip: clip.index < 2)
    assert sorted(clip.key for clip in shuffled) == sorted(clip.key for clip in clips if clip.index < 2)
    assert [clip.key for clip in shuffled.epoch(1)] != [clip.key for clip in shuffled.epoch(2)]


def test_an_index_error_of_a_function_is_no_end(made: Path) -> None:
    clips = load_split("train", made, unit="clip")
    with pytest.raises(IndexError, match="no frame 99"):
        list(clips.map(lambda clip: clip.frames([99]) if clip.index == 1 else clip))
    with pytest.raises(IndexError, match="no frame 99"):
        clips.select(lambda clip: clip.index == 0 or clip.frames([99]).any())


@pytest.mark.parametrize("kind", [b"x", b"g", b"L", b"K"])
def test_a_header_that_claims_more_than_there_is(copied: Path, kind: bytes) -> None:
    narrative = load_split("train", copied)[0]
    shard, start = copied / narrative.row.shard, narrative.row.first_member_offset
    header = bytearray(shard.read_bytes()[start : start + 512])
    header[156:157] = kind
    header[124:136] = b"\x80" + (2**62).to_bytes(11, "big")
    header[148:156] = b"        "
    header[148:156] = b"%06o\0 " % sum(header)
    with shard.open("r+b") as stream:
        stream.seek(start)
        stream.write(header)
    with pytest.raises(FormatError, match=r"fetch it again"):
        load_split("train", copied)[0].steps  # noqa: B018


def test_the_frame_rule_of_a_split_is_the_default_of_its_samples(made: Path) -> None:
    step = load_split("train", made, unit="clip", frames=FrameRule(every=2, size_px=32))[0]
    assert (step.frames() == step.frames(range(0, 9, 2), size_px=32)).all()
    assert step.frames(every=4).shape == (3, 32, 32, 3)
    assert step.frames(num_frames=2, size_px=SIZE).shape == (2, SIZE, SIZE, 3)
    assert step.frames(span_s=(0.25, 0.5)).shape == (2, 32, 32, 3)
    assert (step.frames([0]) == step.frames()[:1]).all()
    assert load_split("train", made, unit="clip", frames=3)[0].frames().shape == (3, SIZE, SIZE, 3)
    with pytest.raises(UsageError, match="not both"):
        step.frames([0], every=2)


def test_options_that_cannot_be(made: Path) -> None:
    with pytest.raises(UnknownNameError, match="unknown unit 'clips': did you mean 'clip'"):
        load_split("train", made, unit="clips")  # type: ignore[call-overload]
    with pytest.raises(UsageError, match="window=0: a window has at least 1 step"):
        load_split("train", made, unit="window", window=0)
    for frames in (0, True, "8", 2.0):
        with pytest.raises(UsageError, match=f"num_frames={frames!r}: a whole number, at least 1"):
            load_split("train", made, frames=frames)  # type: ignore[call-overload]
    with pytest.raises(UsageError, match=r"give frames\(\[8\]\) or frames\(num_frames=8\)"):
        load_split("train", made, unit="clip")[0].frames(8)  # type: ignore[arg-type]


def test_a_header_that_tarfile_would_not_believe_is_not_believed(copied: Path) -> None:
    """The quick way through plain headers sees the same as tarfile: a changed byte ends in an error, or is harmless."""
    narrative = load_split("train", copied)[0]
    shard = copied / narrative.row.shard
    content = shard.read_bytes()
    start = narrative.row.first_member_offset
    before = [(step.members["mp4"].offset, step.action) for step in narrative.steps]
    for place in [0, 5, 99, 100, 107, 124, 130, 135, 136, 148, 153, 155, 156, 157, 257, 265, 345, 400]:
        changed = bytearray(content)
        changed[start + place] ^= 0x11
        shard.write_bytes(changed)
        with pytest.raises(FormatError):
            assert [
                (step.members["mp4"].offset, step.action) for step in load_split("train", copied)[0].steps
            ] == before
            raise FormatError("harmless")


def test_sound_on_request(tmp_path: Path) -> None:
    with_sound, without = {}, {}
    for step in load_split("train", make_set(tmp_path / "set", [Story("a", num_clips=3)]), unit="clip"):
        (with_sound if step.sample.clip.has_audio else without)[step.index] = step
    assert with_sound and without
    for step in with_sound.values():
        sound = step.audio()
        assert sound is not None and sound.dtype == np.float32
        assert sound.shape[0] == 1 and abs(sound.shape[1] - 48_000) <= 2048
        assert 0.1 < abs(sound).max() < 0.3
        part = step.audio(rate_hz=16_000, span_s=(0.25, 0.5))
        assert part is not None and part.shape == (1, 4000)
    assert all(step.audio() is None for step in without.values())


@pytest.fixture(scope="module")
def two_sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("two-sets")
    first = make_set(folder / "first", [Story("a", 3), Story("b", 2), Story("held-out", 2, split="val")])
    second = make_set(folder / "second", [Story("c", 4)])
    for out in (first, second):
        add_features(out, "near", (3,))
    return first, second


def test_several_sets_are_read_as_one(two_sets: tuple[Path, Path]) -> None:
    together = load_split("train", two_sets, features=["near"])
    alone = [item for out in two_sets for item in load_split("train", out, features=["near"])]
    assert [item.name for item in together] == [item.name for item in alone]
    for ours, theirs in zip(together, alone, strict=True):
        assert [step.mp4 for step in ours.steps] == [step.mp4 for step in theirs.steps]
        assert (ours.features["near"] == theirs.features["near"]).all()
    assert (together.num_narratives, together.num_clips) == (3, 9)
    assert together.root == f"{two_sets[0]}, {two_sets[1]}"
    shuffled = pickle.loads(pickle.dumps(load_split("train", two_sets, unit="clip", shuffle=True, seed=3)))
    assert sorted(step.key for step in shuffled) == sorted(step.key for item in alone for step in item.steps)


def test_a_set_without_the_split_adds_nothing(two_sets: tuple[Path, Path]) -> None:
    assert [item.name for item in load_split("val", two_sets)] == ["demo-held-out"]
    with pytest.raises(UsageError, match="split 'dev' is not in"):
        load_split("dev", two_sets)


def test_sets_that_do_not_go_together_are_refused(two_sets: tuple[Path, Path], tmp_path: Path) -> None:
    first, _ = two_sets
    again = make_set(tmp_path / "again", [Story("a", 3)])
    with pytest.raises(UsageError, match="demo-a is in both"):
        load_split("train", [first, again])
    other = make_set(tmp_path / "other", [Story("d", 3)])
    add_features(other, "near", (4,))
    with pytest.raises(UsageError, match="'near' are of different encoders"):
        load_split("train", [first, other], features=["near"])
    with pytest.raises(UsageError, match="give a shard set"):
        load_split("train", [])
