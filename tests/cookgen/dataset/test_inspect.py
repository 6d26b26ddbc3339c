"""`cookgen inspect`: everything that a set says of one clip or video, and nothing that a terminal would obey."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from cookgen import load_split
from cookgen.dataset.inspect import inspect
from cookgen.errors import FormatError, OutputError, UnknownNameError
from cookgen.records import Reason
from tests.shardset import Story, add_features, make_set

STORIES = (
    Story("a", num_clips=4, title="Onion soup", topic="soup", lonely_clips=frozenset({1})),
    Story("a-000", num_clips=2, manual=True),  # reads like a clip of the other
    Story("c", split="val"),
    Story("gone", stops_at="clips", stop_reason=Reason.NO_SHOTS),
    Story("few", lonely_clips=frozenset({0, 1})),
)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_set(tmp_path_factory.mktemp("inspect") / "set", STORIES)


def fields(text: str) -> dict[str, str]:
    return {line[:12].strip(): line[12:] for line in text.splitlines() if line[:12].strip()}


def test_a_clip(out: Path) -> None:
    step = load_split("train", out)[0].steps[1]
    assert step.key == "demo-a-001"
    text = inspect(out, "demo-a-001")
    assert text.startswith("clip demo-a-001: step 2 of 3\n")
    found = fields(text)
    assert found["title"] == "Onion soup"
    assert found["topic"] == "soup"
    assert found["url"] == "(none)"
    assert found["clip"] == "0:00:10.00 - 0:00:11.00 (1.00 s)"
    assert found["frames"] == "10 at 10 a second, 64 x 64 pixels"
    assert found["source pts"] == "first 10.000 s, last 10.900 s"
    assert found["action"] == "Stir the pot 2 times"
    assert found["words"] == "4 to 6: stir[10.25] stir[10.75]"
    assert found["caption"] == "a pan, still"
    assert found["match"] == "start_diff 0.250 s, IoU 0.600, by the rule 'iou'"
    assert found["checks"] == "text_similarity 0.5"
    assert found["features"] == "(none)"
    for what in ("origin asr", "origin tags:efficientnet-lite0", step.sample.clip.sha256, "smollm2@1"):
        assert what in text
    for stage, lineage in step.sample.lineage.items():
        assert f"{stage} version 1" in text
        assert lineage.config[:12] in text


def test_a_narrative(out: Path) -> None:
    text = inspect(out, "demo-a")
    assert text.startswith("narrative demo-a: 3 steps\n")
    assert fields(text)["checks"] == "repeated_text 0"
    for step in load_split("train", out)[0].steps:
        assert step.key in text and step.action in text


def test_a_narrative_comes_before_a_clip_of_the_same_key(out: Path) -> None:
    text = inspect(out, "demo-a-000")
    assert text.startswith("narrative demo-a-000: 2 steps\n")
    assert "words" not in fields(inspect(out, "demo-a-000-000"))  # people wrote these actions


def test_features_that_are_there(out: Path, tmp_path: Path) -> None:
    shutil.copytree(out, tmp_path / "set")
    add_features(tmp_path / "set", "clip", (4, 3))
    assert fields(inspect(tmp_path / "set", "demo-c-000"))["features"].startswith("clip float16 [4, 3] by ")


def test_a_rejected_video(out: Path) -> None:
    found = fields(inspect(out, "demo-gone"))
    assert (found["path"], found["reason"], found["detail"]) == ("gone.mp4", "no_shots", "made up")
    assert found["rejected by"] == "the stage clips"
    text = inspect(out, "few.mp4")
    assert fields(text)["reason"] == "too_few_steps"
    assert "2 clips or actions, shards: unmatched" not in text  # two clips and two actions
    assert fields(text)["its parts"] == "4 clips or actions, shards: unmatched"


def test_the_nearest_name_on_a_miss(out: Path) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'demo-gone'"):
        inspect(out, "demo-gon")
    with pytest.raises(UnknownNameError, match=r"did you mean 'demo-c-00.'"):
        inspect(out, "demo-c-007")
    with pytest.raises(UnknownNameError, match="known: demo-a, demo-a-000, demo-c, demo-few, demo-gone"):
        inspect(out, "\x1b[2J")


@pytest.mark.parametrize("key", ["", "-000", "demo-c-", "demo-c-00", "../../etc/passwd", "demo-c-" + "9" * 5000])
def test_odd_keys_are_unknown_names(out: Path, key: str) -> None:
    with pytest.raises(UnknownNameError):
        inspect(out, key)


def test_saving(out: Path, tmp_path: Path) -> None:
    step = load_split("val", out)[0].steps[2]
    inspect(out, "demo-c-002", save=tmp_path / "one")
    saved = {path.name: path.read_bytes() for path in (tmp_path / "one").iterdir()}
    assert saved == {f"demo-c-002.{suffix}": step.read(suffix) for suffix in ("json", "mp4", "jpg")}
    assert json.loads(saved["demo-c-002.json"])["index"] == 2
    assert "saved 9 files" in inspect(out, "demo-c", save=tmp_path / "all")
    assert len(list((tmp_path / "all").iterdir())) == 9
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        inspect(out, "demo-c-002", save=tmp_path / "file")


def test_a_damaged_clip_is_not_saved(out: Path, tmp_path: Path) -> None:
    shutil.copytree(out, tmp_path / "set")
    shard = tmp_path / "set" / "val" / "cookgen-val-000000.tar"
    content = load_split("val", out)[0].steps[0].mp4
    shard.write_bytes(shard.read_bytes().replace(content[-400:-300], b"\0" * 100))
    with pytest.raises(FormatError, match="sha256"):
        inspect(tmp_path / "set", "demo-c-000", save=tmp_path / "saved")
    assert not list(tmp_path.glob("saved/*.mp4"))


def test_text_from_the_set_stays_in_its_paragraph(tmp_path: Path) -> None:
    title = "Soup\nsha256      0000\x85licence     mine\r[bold]not markup[/bold]"
    out = make_set(tmp_path / "set", [Story("a", title=title, first_text="Cut\x0b\n\nthe onion " * 40)])
    text = inspect(out, "demo-a-000")
    assert fields(text)["title"] == "Soup sha256 0000 licence mine [bold]not markup[/bold]"
    assert max(map(len, text.splitlines())) <= 100


def test_a_damaged_table_is_named(out: Path, tmp_path: Path) -> None:
    shutil.copytree(out, tmp_path / "set")
    table = tmp_path / "set" / "tables" / "speech.parquet"
    table.write_bytes(b"PAR1 and no more")
    with pytest.raises(FormatError, match=r"speech\.parquet"):
        inspect(tmp_path / "set", "demo-c-000")
    table.unlink()
    with pytest.raises(Exception, match="no such table"):
        inspect(tmp_path / "set", "demo-c-000")
