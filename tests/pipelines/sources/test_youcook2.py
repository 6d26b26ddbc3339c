"""The youcook2 source on the real annotation file and on broken ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cookgen.errors import InputError
from cookgen.records import SourceVideo
from pipelines.sources.places import Missing
from pipelines.sources.youcook2 import list_videos


def test_the_real_annotations(data: Path, tmp_path: Path) -> None:
    annotations = data / "annotations" / "youcook2" / "youcookii_annotations_trainval.json"
    (tmp_path / "training" / "113").mkdir(parents=True)
    (tmp_path / "training" / "113" / "GLd3aX16zBg.mp4").write_bytes(b"x")
    items = list(list_videos([tmp_path], annotations))
    (video,) = [item for item in items if isinstance(item, SourceVideo)]
    missing = [item for item in items if isinstance(item, Missing)]
    assert (video.narrative, video.split, video.topic) == ("youcook2-GLd3aX16zBg", "train", "113")
    assert video.path == "training/113/GLd3aX16zBg.mp4"
    assert len(video.segments) == 5
    assert video.segments[0].text == "spread margarine on two slices of white bread"
    assert (video.segments[0].start_s, video.segments[0].end_s) == (90.0, 102.0)
    assert len(items) == 1790
    assert len(missing) == 1789
    assert Missing("youcook2-xHr8X2Wpmno", "xHr8X2Wpmno", "https://www.youtube.com/watch?v=xHr8X2Wpmno") in missing


def entry(**changes: Any) -> dict[str, Any]:
    return {"subset": "training", "annotations": [{"segment": [1, 4], "id": 0, "sentence": "stir"}], **changes}


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("{", "not JSON"),
        (json.dumps([1]), "'database'"),
        (json.dumps({"database": {}}), "'database'"),
        (json.dumps({"database": {"a": entry(subset="dev")}}), "subset: 'dev'"),
        (json.dumps({"database": {"a": entry(annotations=[{"segment": [1]}])}}), "annotations.0"),
        (json.dumps({"database": {"a": entry(annotations=[{"segment": ["x", 2], "sentence": ""}])}}), "segment.0"),
        (
            '{"database": {"a": {"subset": "training", "annotations": [{"segment": [NaN, 2], "sentence": ""}]}}}',
            "segment.0",
        ),
    ],
)
def test_another_file_is_refused_by_name(tmp_path: Path, content: str, named: str) -> None:
    (tmp_path / "a.mp4").write_bytes(b"x")
    (tmp_path / "annotations.json").write_text(content)
    with pytest.raises(InputError) as error:
        list(list_videos([tmp_path], tmp_path / "annotations.json"))
    assert named in str(error.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="ANNOTATIONS"):
        list(list_videos([tmp_path], tmp_path / "none.json"))


def test_the_first_folder_counts(tmp_path: Path) -> None:
    for name in ("own/sub/a.mp4", "fetched/a.mkv", "fetched/b.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "annotations.json").write_text(json.dumps({"database": {name: entry() for name in "abc"}}))
    a, b, c = list_videos([tmp_path / "own", tmp_path / "fetched"], tmp_path / "annotations.json")
    assert [item.path for item in (a, b) if isinstance(item, SourceVideo)] == ["sub/a.mp4", "b.mp4"]
    assert c == Missing("youcook2-c", "c", None)
