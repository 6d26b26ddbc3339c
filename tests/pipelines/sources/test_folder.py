"""The folder source: order, ids, captions and titles beside videos, hostile names."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from cookgen import load_split
from cookgen.errors import InputError
from cookgen.records import Reason, Reject, SourceVideo
from pipelines import flow
from pipelines.request import request_of
from pipelines.sources.folder import MAX_INFO_BYTES, list_videos
from tests.shardset import mp4


def videos(folder: Path) -> list[SourceVideo]:
    return [item for item in list_videos(folder) if isinstance(item, SourceVideo)]


def test_order_ids_and_captions(tmp_path: Path) -> None:
    for name in ("b.mp4", "a.MKV", "sub/c.webm", "notes.txt", ".hidden.mp4", ".cache/x.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "b.srt").write_text("late choice")
    (tmp_path / "b.en.vtt").write_text("first choice")
    found = videos(tmp_path)
    assert [video.path for video in found] == ["a.MKV", "b.mp4", "sub/c.webm"]
    assert [video.video_id for video in found] == ["a", "b", "sub/c"]
    assert found[1].subtitles == "b.en.vtt"
    assert found[1].subtitles_sha256 == hashlib.sha256(b"first choice").hexdigest()
    assert found[0].narrative == "folder-a"
    assert found[2].narrative == "folder-sub-c-" + hashlib.sha256(b"sub/c").hexdigest()[:10]


def test_files_that_differ_in_the_suffix_only(tmp_path: Path) -> None:
    for name in ("soup.mp4", "soup.mkv", "stew.mp4"):
        (tmp_path / name).write_bytes(b"x")
    names = {video.path: video.narrative for video in list_videos(tmp_path) if isinstance(video, SourceVideo)}
    assert {video.video_id for video in videos(tmp_path)} == {"soup", "stew"}
    assert names == {
        "soup.mkv": "folder-soup-" + hashlib.sha256(b"soup.mkv").hexdigest()[:10],
        "soup.mp4": "folder-soup-" + hashlib.sha256(b"soup.mp4").hexdigest()[:10],
        "stew.mp4": "folder-stew",
    }


@pytest.mark.parametrize(
    "name",
    ["with space.mp4", 'quote".mp4', "new\nline.mp4", "-dash.mp4", "ü.mp4", "a" * 250 + ".mp4", "$(rm).mp4", "%2e.mp4"],
)
def test_hostile_names_become_safe_narratives(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    (video,) = videos(tmp_path)
    assert video.path == name
    assert set(video.narrative) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")
    assert len(video.narrative) <= 128


def test_a_name_that_is_not_utf8_is_a_reject(tmp_path: Path) -> None:
    (tmp_path / "good.mp4").write_bytes(b"x")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/bad\xff.mp4")).write_bytes(b"x")
    rejects = [item for item in list_videos(tmp_path) if isinstance(item, Reject)]
    assert [reject.reason for reject in rejects] == [Reason.BAD_NAME]
    assert len(videos(tmp_path)) == 1


def test_a_link_out_of_the_folder_is_a_reject(tmp_path: Path) -> None:
    (tmp_path / "secret.mp4").write_bytes(b"x")
    folder = tmp_path / "videos"
    folder.mkdir()
    (folder / "real.mp4").write_bytes(b"x")
    (folder / "inside.mp4").symlink_to("real.mp4")
    (folder / "outside.mp4").symlink_to("../secret.mp4")
    (folder / "outside.srt").symlink_to("../secret.mp4")
    (folder / "real.srt").symlink_to("../secret.mp4")
    items = list(list_videos(folder))
    assert [item.reason for item in items if isinstance(item, Reject)] == [Reason.OUTSIDE_FOLDER]
    assert [item.path for item in items if isinstance(item, SourceVideo)] == ["inside.mp4", "real.mp4"]
    assert [item.subtitles for item in items if isinstance(item, SourceVideo)] == [None, None]


def test_no_folder_and_no_video_are_input_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere: no such folder.*VIDEOS=dir"):
        list(list_videos(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="no video file"):
        list(list_videos(tmp_path))
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match="not a folder"):
        list(list_videos(tmp_path / "file"))


def described(folder: Path, info: bytes | None) -> tuple[str | None, str | None]:
    """(title, topic) of a video that has this beside it."""
    (folder / "soup.mp4").write_bytes(b"x")
    if info is not None:
        (folder / "soup.info.json").write_bytes(info)
    (video,) = videos(folder)
    return video.title, video.topic


@pytest.mark.parametrize(
    ("info", "found"),
    [
        (None, (None, None)),
        (b'{"id": "x", "title": "Tomato soup", "categories": ["Howto"], "n": NaN}', ("Tomato soup", None)),
        (b'{"title": "Soup", "topic": "soups"}', ("Soup", "soups")),
        (b'{"title": null, "fulltitle": "Soup"}', (None, None)),
        (b'{"title": " \\n\\u0085 "}', (None, None)),
        (
            b'{"title": "So\\u001b[31mup\\nof\\u0000\\ttomato", "description": "half \\ud83d"}',
            ("So [31mup of tomato", None),
        ),
        ('{"title": "スープ \U0001f469\u200d\U0001f373"}'.encode(), ("スープ \U0001f469\u200d\U0001f373", None)),
        (b'\xef\xbb\xbf{"title": "Soup"}', ("Soup", None)),
        (json.dumps({"title": "x" * 1000}).encode(), ("x" * 1000, None)),
    ],
)
def test_titles_come_from_the_info_beside_the_video(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, info: bytes | None, found: tuple[str | None, str | None]
) -> None:
    assert described(tmp_path, info) == found
    assert not caplog.text


@pytest.mark.parametrize(
    ("info", "fault"),
    [
        (b"", "not JSON"),
        (b"<html>", "not JSON"),
        (b'{"title": "\xff"}', "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"title": "a", "n": ' + b"1" * 5000 + b"}", "not JSON"),
        (b'["title"]', "the document: Input should be a valid dictionary"),
        (b'{"title": ["a"], "topic": "soups"}', "title: Input should be a valid string, found \"['a']\""),
        (b'{"title": "a", "topic": 5}', "topic: Input should be a valid string"),
        (b'{"title": "half \\ud83d"}', "title: Input should be a valid string, unable to parse"),
        (json.dumps({"title": "x" * 1001}).encode(), "title: String should have at most 1000 characters"),
        (b'{"title": "a"}' + b" " * MAX_INFO_BYTES, f"more than {MAX_INFO_BYTES} bytes"),
    ],
    ids=range(11),
)
def test_a_bad_info_is_named_and_loses_the_title_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, info: bytes, fault: str
) -> None:
    assert described(tmp_path, info) == (None, None)
    (line,) = caplog.messages
    assert line.startswith(f"{tmp_path / 'soup.info.json'}: {fault}")
    assert line.endswith("; mend or remove it: until then its video has no title")
    assert len(line) < 500


def test_an_info_that_is_no_file_of_the_folder_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "secret.json").write_text('{"title": "secret"}')
    folder = tmp_path / "videos"
    folder.mkdir()
    for name in ("folder", "inside", "link", "loop", "pipe"):
        (folder / f"{name}.mp4").write_bytes(b"x")
    (folder / "folder.info.json").mkdir()
    (folder / "inside.info.json").symlink_to("real.json")
    (folder / "real.json").write_text('{"title": "real"}')
    (folder / "link.info.json").symlink_to("../secret.json")
    (folder / "loop.info.json").symlink_to("loop.info.json")
    os.mkfifo(folder / "pipe.info.json")
    titles = {video.video_id: video.title for video in videos(folder)}
    assert titles == {"folder": None, "inside": "real", "link": None, "loop": None, "pipe": None}


def test_a_corrected_title_reaches_the_shards_and_cuts_nothing_again(tmp_path: Path) -> None:
    folder, out = tmp_path / "videos", tmp_path / "out"
    folder.mkdir()
    (folder / "toast.mp4").write_bytes(mp4(num_frames=64))
    (folder / "toast.vtt").write_text(
        "WEBVTT\n\n00:00.200 --> 00:02.900\nGrate the cheese over the top.\n\n"
        "00:03.900 --> 00:06.000\nMash the avocado with a fork.\n"
    )
    small = ("videos.min_short_side_px=32", "videos.val_fraction=0", "clips.max_s=4", "clips.size_px=64")
    small = (*small, "clips.cleaning.still_s=0", "clips.cleaning.title_s=0")  # its picture hardly changes
    request = request_of(source="folder", videos=folder, out=out, settings=small)

    def run(info: str) -> tuple[list[tuple[str | None, str | None]], dict[str, Any], str]:
        """Title and topic in the shards' own JSON, the last tallies, and what was said last."""
        (folder / "toast.info.json").write_text(info)
        flow.run(request, engine="inline")
        events = [json.loads(line) for line in (out / ".runs" / "progress.jsonl").read_text().splitlines()]
        video = [step.sample.video for narrative in load_split("train", out) for step in narrative.steps]
        tallies = [event["stages"] for event in events if event["event"] == "progress"][-1]
        said = [event["message"] for event in events if event["event"] == "message"][-1]
        return [(item.title, item.topic) for item in video], tallies, said

    found, tallies, _ = run('{"title": "Taost"}')
    assert found == [("Taost", None)] * 2
    assert not any(tally["reused"] for tally in tallies.values())
    assert "nothing to do" in run('{"title": "Taost", "like_count": 5}')[2]
    found, tallies, _ = run('{"title": "Toast", "topic": "breakfast"}')
    assert found == [("Toast", "breakfast")] * 2
    assert {name for name, tally in tallies.items() if not tally["reused"]} == {"videos"}
    assert "Toast" in (out / "report.html").read_text()
    assert run("{")[0] == [(None, None)] * 2
