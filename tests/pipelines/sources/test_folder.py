"""The folder source: order, ids, captions beside videos, hostile names."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from cookgen.errors import InputError
from cookgen.records import Reason, Reject, SourceVideo
from pipelines.sources.folder import list_videos


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
