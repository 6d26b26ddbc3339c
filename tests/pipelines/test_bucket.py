"""The store in a bucket: shared by several OUTs, whole whatever happens, clear where the bucket refuses."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cookgen.errors import InputError, OutputError
from cookgen.records import Caption, Clip, Lineage, Video
from pipelines import flow
from pipelines.bucket import Bucket, StoreConfig
from pipelines.request import request_of
from pipelines.sources.demo import DemoConfig, make_videos
from pipelines.stage import Places, Result, Stage
from pipelines.store import COMPACT_PARTS, Store

STAGE = Stage(name="captions", reads=(Clip,), writes=Caption, run=lambda *a, **k: (), config=None, version=1)
CLIPS = Stage(name="clips", reads=(Video,), writes=Clip, run=lambda *a, **k: (), config=None, version=1)
LINEAGE = Lineage(version=1, config="c", model=None, inputs="i")


@pytest.fixture
def bucket(s3: Any, request: pytest.FixtureRequest) -> Bucket:
    """An empty bucket of the test's own."""
    name = f"b{abs(hash(request.node.nodeid))}"
    s3.mkdir(name)
    return Bucket(f"s3://{name}/kitchen")


def result(number: int) -> Result:
    name = f"folder-{number}"
    caption = Caption(narrative=name, clip_index=0, text=f"soup {number}", origin="tags")
    return Result("captions", f"key-{number}", name, (caption,), (), LINEAGE, 0.25)


def places(out: Path, bucket: Bucket | None) -> Places:
    return Places(videos=out, media=out / ".store" / "media", scratch=out, bucket=bucket)


def clip_result(where: Places, content: bytes) -> Result:
    """A result of clips whose two files are kept in `where`."""
    work = where.media.parent / "work"
    work.mkdir(parents=True, exist_ok=True)
    mp4, jpg = work / "clip.mp4", work / "clip.jpg"
    mp4.write_bytes(content)
    jpg.write_bytes(content[::-1])
    clip = Clip(
        narrative="folder-a",
        clip_index=0,
        start_s=0,
        end_s=1,
        first_pts_s=0,
        last_pts_s=0.96,
        num_frames=25,
        fps=25,
        width=64,
        height=64,
        has_audio=False,
        sha256=where.keep(mp4),
        num_bytes=len(content),
        keyframe_pts_s=0.4,
        keyframe_sha256=where.keep(jpg),
        keyframe_num_bytes=len(content),
    )
    return Result("clips", "key-clips", "folder-a", (clip,), (), LINEAGE, 0.25)


def keep(out: Path, bucket: Bucket, *results: Result) -> Store:
    store = Store(out, bucket)
    for item in results:
        store.put(item)
    store.flush()
    return store


def test_what_one_out_keeps_another_knows(bucket: Bucket, tmp_path: Path) -> None:
    keep(tmp_path / "a", bucket, result(0), result(1))
    keep(tmp_path / "b", bucket, result(2))
    for out in ("a", "b", "new"):
        store = Store(tmp_path / out, bucket)
        assert [store.get(STAGE, f"key-{number}") for number in range(3)] == [result(number) for number in range(3)]


def test_an_object_with_a_name_of_its_own_is_let_be(s3: Any, bucket: Bucket, tmp_path: Path) -> None:
    keep(tmp_path / "a", bucket, result(0))
    for name in ("captions/../../../escaped-0.parquet", "captions/notes.parquet", "00000000-00000000.parquet"):
        s3.pipe_file(f"{bucket.url}/results/{name}", b"not ours")
    assert Store(tmp_path / "b", bucket).get(STAGE, "key-0") == result(0)
    assert [path.parent.name for path in tmp_path.rglob("b/**/*.parquet")] == ["captions"]
    assert not list(tmp_path.rglob("escaped*"))


def test_two_that_write_at_once_overwrite_nothing(bucket: Bucket, tmp_path: Path) -> None:
    stores = [Store(tmp_path / str(number), bucket) for number in range(2)]  # both saw an empty bucket
    for number, store in enumerate(stores):
        store.put(result(number))
        store.flush()
    store = Store(tmp_path / "new", bucket)
    assert all(store.get(STAGE, f"key-{number}") for number in range(2))


def test_merging_takes_nothing_away_that_another_wrote_meanwhile(bucket: Bucket, tmp_path: Path) -> None:
    store = Store(tmp_path / "a", bucket)
    for number in range(COMPACT_PARTS + 1):
        store.put(result(number))
        store.flush()
    keep(tmp_path / "b", bucket, result(100))
    store.compact()
    assert len(bucket.sizes("results")) == 2
    store = Store(tmp_path / "new", bucket)
    assert all(store.get(STAGE, f"key-{number}") for number in [*range(COMPACT_PARTS + 1), 100])


def test_media_come_from_the_bucket_and_are_proved(s3: Any, bucket: Bucket, tmp_path: Path) -> None:
    here, there = places(tmp_path / "here", bucket), places(tmp_path / "there", bucket)
    made = clip_result(here, b"clip" * 100)
    [(clip, suffix, _), (keyframe, other, _)] = made.rows[0].media  # type: ignore[attr-defined]
    assert there.medium(clip, suffix).read_bytes() == b"clip" * 100
    s3.pipe_file(f"{bucket.url}/media/{keyframe[:2]}/{keyframe}{other}", b"other bytes")
    with pytest.raises(InputError, match=rf"{keyframe}\.jpg: its bytes have the sha256"):
        there.medium(keyframe, other)
    assert not list(there.media.rglob("*.jpg"))
    assert not there.medium("0" * 64, ".mp4").exists()


def test_a_result_is_kept_while_its_media_are_in_the_bucket(s3: Any, bucket: Bucket, tmp_path: Path) -> None:
    here = places(tmp_path / "here", bucket)
    made = clip_result(here, b"clip" * 100)
    store = keep(tmp_path / "here", bucket, made)
    shutil.rmtree(here.media)
    assert store.known(CLIPS, "key-clips") is not None  # the worker put them there after the store was opened
    assert Store(tmp_path / "new", bucket).get(CLIPS, "key-clips") == made
    s3.rm(f"{bucket.url}/media", recursive=True)
    assert Store(tmp_path / "new", bucket).get(CLIPS, "key-clips") is None


def test_what_a_killed_run_did_not_send_is_sent_by_the_next(bucket: Bucket, tmp_path: Path) -> None:
    here = places(tmp_path / "here", None)
    store = Store(tmp_path / "here")
    store.put(clip_result(here, b"clip" * 100))
    store.flush()
    assert Store(tmp_path / "new", bucket).known(CLIPS, "key-clips") is None
    Store(tmp_path / "here", bucket).share()
    assert Store(tmp_path / "new", bucket).known(CLIPS, "key-clips") is not None
    assert set(bucket.sizes("media").values()) == {400}


def test_a_bucket_that_is_none(s3: Any, tmp_path: Path) -> None:
    bucket = Bucket("s3://no-such-bucket/kitchen")
    with pytest.raises(OutputError, match=r"s3://no-such-bucket/kitchen/results/captions/.*cannot be written .*again"):
        keep(tmp_path, bucket, result(0))
    assert Store(tmp_path).get(STAGE, "key-0") == result(0)  # it is on this disk, and the next run sends it


def test_a_server_that_is_gone(s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    type(s3).clear_instance_cache()
    with pytest.raises(OutputError, match=r"cannot be listed \(.*127\.0\.0\.1:9"):
        Store(tmp_path, Bucket("s3://kitchen"))


@pytest.mark.parametrize("url", ["/mnt/store", "file:///mnt/store", "memory://x", "bucket/prefix"])
def test_a_folder_is_no_bucket(url: str) -> None:
    with pytest.raises(ValueError, match=r"store\.url must be an object store's"):
        StoreConfig(url)


@pytest.mark.full
def test_a_fresh_machine_goes_on_from_the_bucket(
    bucket: Bucket, set_digests: Callable[[Path], dict[str, str]], pipelines: Any, tmp_path: Path
) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    make_videos(videos, DemoConfig(num_videos=1, min_steps=3, max_steps=3))
    options = ("--videos", videos, "--set", f"store.url={bucket.url}")
    pipelines("run", *options, "--out", tmp_path / "a", "--engine", "inline")
    expected = set_digests(tmp_path / "a")
    shutil.rmtree(tmp_path / "a")
    request = request_of(source=None, out=tmp_path / "b", videos=videos, settings=(f"store.url={bucket.url}",))
    assert set(flow.plan(request).to_do.values()) == {0}
    pipelines("run", *options, "--set", "captions.num_frames=5", "--out", tmp_path / "b")  # something to do, on Ray
    stages = flow.status(tmp_path / "b")["stages"]
    made = {name: tally["done"] - tally["reused"] for name, tally in stages.items()}
    assert (made["clips"], made["speech"], made["captions"]) == (0, 0, 1)  # of clips that this folder never had
    pipelines("run", *options, "--out", tmp_path / "c")
    assert set_digests(tmp_path / "c") == expected

    found = pipelines("gc", "--out", tmp_path / "b").stdout
    assert "0 results and 0 files" in found
    refused = pipelines(
        "run", "--videos", videos, "--set", "store.url=s3://no-such-bucket", "--out", tmp_path / "d", code=2
    )
    assert "s3://no-such-bucket/" in refused.stderr
