"""The run as a whole: when there is nothing to do, what is tried again, what `status` says."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cookgen.dataset.tables import read_table, table_path
from cookgen.errors import InputError, ModelServerError, OutputError, OutputInUseError, UsageError
from cookgen.files import file_sha256, narrative_name
from cookgen.records import Reject, SourceVideo, Video
from pipelines import flow
from pipelines.__main__ import main
from pipelines.ffmpeg import ffmpeg_exe
from pipelines.request import Request, request_of
from pipelines.store import locked


@pytest.fixture
def request_(tmp_path: Path) -> Request:
    """A run on two files that are no videos: cheap, and through all of the flow."""
    folder = tmp_path / "videos"
    folder.mkdir()
    for name in ("a.mp4", "b.mp4"):
        (folder / name).write_text(f"{name} is not a video")
    return request_of(source="folder", videos=folder, out=tmp_path / "out")


def run(request: Request) -> str:
    """Runs; returns what was said last."""
    flow.run(request, engine="inline")
    return said(request)[-1]


def test_a_second_run_has_nothing_to_do_until_something_is_missing_or_changed(request_: Request) -> None:
    assert "2 to do" in run(request_)
    assert "nothing to do" in run(request_)
    for missing in ("README.md", "report.html", "tables/clips.parquet", "dataset.json"):
        (request_.out / missing).unlink()
        assert "0 to do, 2 done before" in run(request_)
        assert (request_.out / missing).is_file()
    (request_.videos_folder() / "b.mp4").write_text("another thing that is no video")
    assert "1 to do, 1 done before" in run(request_)


def test_our_own_mistake_is_tried_again(request_: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def stumble(source: SourceVideo, *, config: object, tool: object) -> Iterator[Video]:
        calls.append(source.video_id)
        raise RuntimeError("nobody foresaw this")
        yield

    first, *rest = flow.STAGES
    monkeypatch.setattr(flow, "STAGES", (replace(first, run=stumble), *rest))
    run(request_)
    rejects = list(read_table(table_path(request_.out, Reject), Reject))
    assert {reject.reason.value for reject in rejects} == {"internal_error"}
    run(request_)
    assert calls == ["a", "b", "a", "b"]
    monkeypatch.undo()
    assert "2 to do" in run(request_)
    assert "nothing to do" in run(request_)


def test_of_two_files_with_the_same_bytes_the_first_is_the_video(request_: Request) -> None:
    folder = request_.videos_folder()
    shutil.copyfile(folder / "a.mp4", folder / "c.mp4")
    assert flow.plan(request_).to_do["videos"] == 2
    assert "2 to do" in run(request_)
    rejects = {reject.path: reject for reject in read_table(table_path(request_.out, Reject), Reject)}
    assert {path: reject.reason.value for path, reject in rejects.items()} == {
        "a.mp4": "not_a_video",
        "b.mp4": "not_a_video",
        "c.mp4": "duplicate_video",
    }
    assert rejects["c.mp4"].detail == "the same content as a.mp4"
    assert flow.report(request_)["videos"] == 3
    (folder / "a.mp4").unlink()
    assert "1 to do, 1 done before" in run(request_)  # c is the first now


def test_status_says_whether_it_runs_without_touching_anything(request_: Request) -> None:
    run(request_)
    before = sorted((path, path.stat().st_mtime_ns) for path in request_.out.rglob("*"))
    assert flow.status(request_.out)["state"] == "complete"
    assert flow.status(request_.out)["stages"]["videos"]["rejects"] == {"not_a_video": 2}
    assert sorted((path, path.stat().st_mtime_ns) for path in request_.out.rglob("*")) == before
    with locked(request_.out):
        assert flow.status(request_.out)["state"] == "running"
    (request_.out / ".store" / "complete.json").unlink()
    assert flow.status(request_.out)["state"] == "stopped"


def said(request: Request) -> list[str]:
    lines = (request.out / ".runs" / "progress.jsonl").read_text().splitlines()
    events = [event for event in map(json.loads, lines) if event["event"] == "message"]
    return [event["message"] for event in events if "peak_gib" not in event]  # what the model's server took aside


def test_what_ended_for_a_reason_is_done_again_on_demand(request_: Request) -> None:
    (request_.videos_folder() / "c.mp4").touch()
    run(request_)
    flow.run(request_, engine="inline", retry=["not_a_video"])
    assert said(request_)[-2:] == ["2 results are made again: not_a_video", "3 videos: 2 to do, 1 done before"]
    assert "nothing to do" in run(request_)
    flow.run(request_, engine="inline", retry=["black"])
    assert said(request_)[-2] == "0 results are made again: black" and "nothing to do" in said(request_)[-1]


def test_a_plan_says_why_and_for_how_long(request_: Request) -> None:
    first = flow.plan(request_)
    assert first.why["videos"] == {"new": 2} and first.why["clips"] == {"after videos": 2}
    assert first.seconds["videos"] is None
    run(request_)
    assert flow.plan(request_).why == {}
    stricter = replace(request_, settings=("videos.min_duration_s=5",))
    planned = flow.plan(stricter)
    assert planned.why["videos"] == {"stale, min_duration_s 4.0 -> 5.0": 2}
    assert planned.seconds["videos"] is not None
    os.utime(request_.videos_folder() / "a.mp4", ns=(1, 1))
    assert flow.plan(request_).why["videos"] == {"lost, or the file was touched": 1}


def test_garbage_is_what_the_last_run_does_not_refer_to(request_: Request) -> None:
    run(replace(request_, settings=("videos.min_duration_s=5",)))
    run(request_)
    stray = request_.out / ".store" / "media" / "ab" / ("ab" * 32 + ".mp4")
    stray.parent.mkdir(parents=True)
    stray.write_bytes(b"nobody's clip")
    expected = flow.Garbage(results=2, media=1, num_bytes=13)
    assert flow.collect_garbage(request_, dry_run=True) == expected
    assert stray.exists()
    assert flow.collect_garbage(request_) == expected
    assert not stray.exists()
    assert flow.collect_garbage(request_) == flow.Garbage(0, 0, 0)
    assert flow.plan(request_).kept["videos"] == 2
    assert "nothing to do" in run(request_)
    with locked(request_.out), pytest.raises(OutputInUseError):
        flow.collect_garbage(request_)


def test_a_file_that_changed_in_secret_is_seen_by_verifying(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    video = tmp_path / "videos" / "a.mp4"
    make = ["-f", "lavfi", "-i", "testsrc2=size=256x192:rate=5:duration=5", "-metadata", "title=before"]
    subprocess.run([ffmpeg_exe(), "-v", "error", *make, str(video)], check=True, timeout=60)
    request = request_of(source="folder", videos=tmp_path / "videos", out=tmp_path / "out")
    run(request)
    flow.run(request, engine="inline", verify_inputs=True)
    assert said(request)[-2] == "inputs verified: 0 of 1 videos are not what they were"
    times, content = video.stat(), video.read_bytes()
    video.write_bytes(content.replace(b"before", b"later!"))
    os.utime(video, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert "nothing to do" in run(request)
    flow.run(request, engine="inline", verify_inputs=True)
    assert said(request)[-2:] == [
        "inputs verified: 1 of 1 videos are not what they were",
        "1 videos: 1 to do, 0 done before",
    ]
    [row] = read_table(table_path(request.out, Video), Video)
    assert row.sha256 == file_sha256(video)


def test_a_set_whose_store_is_gone_still_belongs_to_its_source(request_: Request) -> None:
    run(request_)
    shutil.rmtree(request_.out / ".store")
    assert "2 to do" in run(request_)
    shutil.rmtree(request_.out / ".store")
    with pytest.raises(OutputError, match="belongs to the source 'folder', not 'demo'"):
        flow.run(request_of(source="demo", out=request_.out), engine="inline")


def test_a_moved_file_is_named_where_it_lies_now(request_: Request) -> None:
    run(request_)
    (request_.videos_folder() / "sub").mkdir()
    (request_.videos_folder() / "b.mp4").rename(request_.videos_folder() / "sub" / "b.mp4")
    run(request_)
    paths = [reject.path for reject in read_table(table_path(request_.out, Reject), Reject)]
    assert sorted(paths) == ["a.mp4", "sub/b.mp4"]


def test_the_source_is_no_setting(request_: Request) -> None:
    with pytest.raises(UsageError, match="named by --source"):
        flow.run(replace(request_, settings=("source=demo",)), engine="inline")


def test_two_files_never_share_a_narrative(tmp_path: Path) -> None:
    folder = tmp_path / "videos"
    folder.mkdir()
    (folder / "cl ash.mp4").write_text("one")
    name = narrative_name("folder", "cl ash")
    (folder / f"{name.removeprefix('folder-')}.mp4").write_text("two")
    run(request_of(source="folder", videos=folder, out=tmp_path / "out"))
    rejects = list(read_table(table_path(tmp_path / "out", Reject), Reject))
    assert sorted((reject.path, reject.reason.value) for reject in rejects) == sorted(
        [("cl ash.mp4", "not_a_video"), (f"{name.removeprefix('folder-')}.mp4", "bad_name")]
    )


def test_damaged_memory_is_no_traceback(request_: Request) -> None:
    run(request_)
    for content in ("{}", "[1]", "{"):
        (request_.out / ".store" / "request.json").write_text(content)
        with pytest.raises(InputError, match="no run has been started"):
            flow.status(request_.out)
    run(request_)
    shutil.rmtree(request_.out / ".runs")
    assert flow.status(request_.out)["stages"] == {}
    (request_.out / "dataset.json").write_text("{")
    assert flow.status(request_.out)["state"] == "stopped"
    assert "0 to do" in run(request_)
    (request_.out / "tables" / "clips.parquet").write_bytes(b"junk")
    assert "0 to do" in run(request_)


def test_an_endpoint_where_nobody_listens_is_said_at_once(request_: Request) -> None:
    with pytest.raises(ModelServerError, match="nobody listens there"):
        flow.run(replace(request_, settings=("actions.endpoint=http://127.0.0.1:9/v1",)), engine="inline")


def test_thresholds_become_settings_and_nothing_else_is_done(
    request_: Request, capsys: pytest.CaptureFixture[str]
) -> None:
    rematch = ["rematch", "--out", str(request_.out), "--engine", "inline", "--iou"]
    assert main([*rematch, "0.3"]) == 2
    assert "no run has been started there" in capsys.readouterr().err
    endpoint = "actions.endpoint=http://127.0.0.1:9/v1"  # nobody listens: who asks it fails
    run(replace(request_, settings=("matches.min_iou=0.2", "clips.max_s=20")))
    assert main([*rematch, "0.3", "--start-diff", "4"]) == 1  # there is no narrative
    settings = ("clips.max_s=20", "matches.min_iou=0.3", "matches.max_start_diff_s=4.0")
    assert Request.load(request_.out).settings == settings
    assert flow.plan(Request.load(request_.out)).to_do["matches"] == 0
    assert main([*rematch, "0.3"]) == 1
    assert "nothing to do" in said(request_)[-1]
    replace(request_, settings=(*settings, endpoint)).save()
    assert main([*rematch, "0.4"]) == 1
    assert "0 to do, 2 done before" in said(request_)[-1]
    capsys.readouterr()
    for wrong, why in ((["--iou", "1.5"], "it must lie in"), ([], "needs at least one of --iou, --sure-iou")):
        assert main(["rematch", "--out", str(request_.out), *wrong]) == 2
        assert why in capsys.readouterr().err
    assert Request.load(request_.out).settings[-1] == "matches.min_iou=0.4"


def test_what_is_not_finished_is_not_matched_again(request_: Request, capsys: pytest.CaptureFixture[str]) -> None:
    run(request_)
    (request_.videos_folder() / "c.mp4").write_text("a new one that is no video")
    before = {path: path.read_bytes() for path in request_.out.rglob("*") if path.is_file()}
    assert main(["rematch", "--out", str(request_.out), "--engine", "inline", "--sure-iou", "0.6"]) == 2
    error = capsys.readouterr().err
    assert "1 of 3 videos have yet to pass stages before matches (videos 1, clips 1, speech 1, actions 1" in error
    assert all(path.read_bytes() == content for path, content in before.items() if path.name != "lock")
    assert Request.load(request_.out).settings == ()


def test_a_copy_of_a_set_is_worked_on_itself(request_: Request, tmp_path: Path) -> None:
    run(request_)
    copy = Path(shutil.copytree(request_.out, tmp_path / "copy"))
    before = {path: path.read_bytes() for path in request_.out.rglob("*") if path.is_file()}
    assert Request.load(copy) == replace(request_, out=copy)
    assert main(["rematch", "--out", str(copy), "--engine", "inline", "--iou", "0.3"]) == 1
    assert Request.load(copy).settings == ("matches.min_iou=0.3",)
    assert {path: path.read_bytes() for path in request_.out.rglob("*") if path.is_file()} == before
