"""The howto100m source on real rows and captions, and on what a download or an attacker makes of them."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cookgen.config import apply_settings
from cookgen.errors import InputError, OutputError, UnknownNameError
from cookgen.files import narrative_name
from cookgen.perception.speech import TimedWord
from cookgen.records import Reason, Reject, SourceVideo, Video, Word
from pipelines.sources import howto100m
from pipelines.sources.howto100m import (
    COLUMNS,
    Entry,
    HowTo100MConfig,
    list_videos,
    sample,
    task_names,
    write_captions,
)
from pipelines.sources.places import Missing
from pipelines.stage import Places
from pipelines.stages import videos
from pipelines.stages.speech import SpeechConfig, hear, load
from pipelines.subtitles import read_subtitles

ROOT = Path(__file__).resolve().parents[3]
FOOD = "Food and Entertaining"
PIZZA = "va_pepperoni_pizza_narrated"
slow_fixture = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def write_csv(path: Path, rows: list[tuple[Any, ...]], header: tuple[str, ...] = COLUMNS) -> Path:
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([header, *rows])
    return path


def row(video_id: str, rank: int = 1, task_id: int = 7, category: str = FOOD, subcategory: str = "Recipes") -> tuple:
    return video_id, category, subcategory, rank, task_id


# --- the sample ---


def test_real_rows(data: Path) -> None:
    folder = data / "annotations" / "howto100m"
    assert sample(folder / "HowTo100M_v1.excerpt.csv", HowTo100MConfig()) == [Entry("gkjnR3-ZVts", 6, 25938)]
    cars = HowTo100MConfig(category="Cars & Other Vehicles", max_rank=30)
    assert sample(folder / "HowTo100M_v1.excerpt.csv", cars) == [Entry("nVbIUDjzWY4", 27, 52907)]
    assert sample(folder / "HowTo100M_v1.sample.csv", HowTo100MConfig()) == [Entry(PIZZA, 3, 90001)]
    second_task = HowTo100MConfig(task_ids=(90002,))
    assert sample(folder / "HowTo100M_v1.sample.csv", second_task) == [Entry(PIZZA, 7, 90002)]


table = st.lists(
    st.tuples(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=5).map(str.strip),
        st.sampled_from([FOOD, "Cars & Other Vehicles"]),
        st.sampled_from(["Recipes", "Drinks"]),
        st.integers(0, 9),
        st.integers(1, 9),
    ),
    min_size=1,
    max_size=30,
)


@slow_fixture
@given(table, st.randoms(), st.integers(1, 12), st.integers(0, 12), st.integers(0, 9))
def test_the_sample_is_the_first_by_hash_whatever_the_order(
    tmp_path: Path, rows: list[tuple[Any, ...]], random: Any, num_videos: int, more: int, max_rank: int
) -> None:
    passing: dict[str, tuple[int, int]] = {}
    for video_id, category, _, rank, task_id in rows:
        if category == FOOD and rank <= max_rank:
            passing[video_id] = min(passing.get(video_id, (rank, task_id)), (rank, task_id))
    by_hash = sorted(passing, key=lambda name: hashlib.sha256(b"cookgen/howto100m:" + name.encode()).digest())
    path = write_csv(tmp_path / "a.csv", rows)
    if not passing:
        with pytest.raises((InputError, UnknownNameError)):
            sample(path, HowTo100MConfig(max_rank=max_rank, num_videos=num_videos))
        return
    small, large, every = (
        sample(path, HowTo100MConfig(max_rank=max_rank, num_videos=count))
        for count in (num_videos, num_videos + more, None)
    )
    assert small == [Entry(name, *passing[name]) for name in sorted(by_hash[:num_videos])]
    assert set(small) <= set(large) <= set(every) and len(every) == len(passing)
    random.shuffle(rows)
    shuffled = write_csv(tmp_path / "b.csv", rows)
    assert sample(shuffled, HowTo100MConfig(max_rank=max_rank, num_videos=num_videos)) == small


def test_filters(tmp_path: Path) -> None:
    rows = [row("a"), row("b", subcategory="Drinks"), row("c", rank=9), row("d", task_id=8), row("e", category="Youth")]
    path = write_csv(tmp_path / "a.csv", rows)

    def ids(**changes: Any) -> str:
        return "".join(entry.video_id for entry in sample(path, HowTo100MConfig(**changes)))

    assert ids() == "abcd" and ids(category=None) == "abcde" and ids(category="Youth") == "e"
    assert ids(subcategory="Drinks") == "b" and ids(max_rank=8) == "abd" and ids(task_ids=(8, 9)) == "d"


def test_columns_may_stand_in_any_order_beside_others(tmp_path: Path) -> None:
    text = "\ufefftask_id, rank ,extra,video_id,category_2,category_1\r\n7,3,x,a,Recipes,Food and Entertaining\r\n\r\n"
    (tmp_path / "a.csv").write_text(text, newline="")
    assert sample(tmp_path / "a.csv", HowTo100MConfig()) == [Entry("a", 3, 7)]


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "has no column video_id, category_1, category_2, rank, task_id"),
        (b"video_id,rank\na,1\n", "has no column category_1, category_2, task_id in its first line"),
        (b"<html><body>404</body></html>\n", "has no column"),
        (b"PK\x03\x04\xff\xff\n", "not UTF-8"),
        ("video_id,category_1,category_2,rank,task_id\n".encode("utf-16"), "not UTF-8"),
        (b"video_id,category_1,category_2,rank,task_id\n", "none of its 1 lines passes category 'Food"),
        (b"video_id,category_1,category_2,rank,task_id\na,Food and Entertaining,Rec", "line 2 has 3 fields, the first"),
        (b"video_id,category_1,category_2,rank,task_id\na,Food and Entertaining,R,x,1\n", "line 2, column rank: 'x'"),
        (b"video_id,category_1,category_2,rank,task_id\na,Food and Entertaining,R,1,\n", "line 2, column task_id: ''"),
        (b'video_id,category_1,category_2,rank,task_id\n"' + b"a" * 200_000, "not CSV (field larger"),
    ],
)
def test_another_file_is_refused_in_one_line(tmp_path: Path, content: bytes, named: str) -> None:
    path = tmp_path / "HowTo100M_v1.csv"
    path.write_bytes(content)
    with pytest.raises(InputError) as error:
        sample(path, HowTo100MConfig())
    assert str(error.value).startswith(str(path)) and named in str(error.value)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400 + len(str(path))


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"No such file.*ANNOTATIONS must name HowTo100M_v1\.csv"):
        sample(tmp_path / "none.csv", HowTo100MConfig())
    path = write_csv(tmp_path / "a.csv", [row("a"), row("b", category="Youth")])
    with pytest.raises(
        UnknownNameError, match=r"howto100m\.category 'Food and Entertainment': did you mean 'Food and E"
    ):
        sample(path, HowTo100MConfig(category="Food and Entertainment"))
    with pytest.raises(UnknownNameError, match=r"howto100m\.subcategory 'Soup': known: Recipes"):
        sample(path, HowTo100MConfig(subcategory="Soup"))
    with pytest.raises(InputError, match=r"none of its 3 lines passes.*max_rank 0.*--set howto100m"):
        sample(path, HowTo100MConfig(max_rank=0))


def test_the_configuration_is_set_by_names() -> None:
    changed = apply_settings(
        HowTo100MConfig(), ["category=Cars & Other Vehicles", "task_ids=52907,109057", "num_videos=5", "max_rank=30"]
    )
    assert changed == HowTo100MConfig("Cars & Other Vehicles", None, 30, (52907, 109057), 5)
    assert apply_settings(changed, ["category=none", "task_ids=7"]) == HowTo100MConfig(None, None, 30, (7,), 5)
    for values in ({"num_videos": 0}, {"max_rank": -1}):
        with pytest.raises(ValueError, match="must be at least"):
            HowTo100MConfig(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (
            b"id\ttask_name\n7\tMake Pepperoni Pizza\n8\tStir, Then Fry\n",
            {7: "Make Pepperoni Pizza", 8: "Stir, Then Fry"},
        ),
        (b'task_id,name\r\n7,"Stir, Then Fry"\r\n', {7: "Stir, Then Fry"}),
        (b"7,Make\x1b[31m Pizza\nx,y\n\n9\n", {7: "Make [31m Pizza"}),
        (b"", {}),
        (None, {}),
    ],
)
def test_topics(tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes | None, names: dict[int, str]) -> None:
    if content is not None:
        (tmp_path / "task_ids.csv").write_bytes(content)
    assert task_names(tmp_path / "HowTo100M_v1.csv") == names
    assert not caplog.text


def test_topics_that_cannot_be_read_are_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "task_ids.csv").write_bytes(b"7\t\xff\n")
    assert task_names(tmp_path / "HowTo100M_v1.csv") == {}
    assert "task_ids.csv: cannot be read" in caplog.text


# --- the rows ---


def test_rows(tmp_path: Path) -> None:
    own, fetched = tmp_path / "own", tmp_path / "fetched"
    for path in (own / "deep" / "a.mp4", own / "deep" / "d.mp4", fetched / "a.webm", fetched / "b.webm", own / "x.mp4"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    (own / "deep" / "a.en.vtt").write_text("beside")
    (own / "deep" / "d.mp4").unlink()
    (own / "deep" / "d.mp4").symlink_to("/etc/passwd")
    (fetched / "captions").mkdir()
    (fetched / "captions" / "howto100m-b.en.vtt").write_text("written")
    annotations = write_csv(tmp_path / "a.csv", [row("d"), row("c"), row("b", task_id=8), row("a")])
    (tmp_path / "task_ids.csv").write_text("7\tMake Pizza\n")

    def rows(captions_folder: Path | None) -> list[Any]:
        return list(list_videos([own, fetched], annotations, HowTo100MConfig(), captions_folder=captions_folder))

    a, b, c, d = rows(fetched)
    assert isinstance(a, SourceVideo) and isinstance(b, SourceVideo)
    assert (a.narrative, a.path, a.topic, a.subtitles) == ("howto100m-a", "deep/a.mp4", "Make Pizza", "deep/a.en.vtt")
    assert (a.url, a.split, a.segments) == ("https://www.youtube.com/watch?v=a", None, ())
    assert (b.path, b.topic, b.subtitles) == ("b.webm", None, "captions/howto100m-b.en.vtt")
    assert b.subtitles_sha256 == hashlib.sha256(b"written").hexdigest()
    assert c == Missing("howto100m-c", "c", "https://www.youtube.com/watch?v=c")
    assert isinstance(d, Reject) and d.reason is Reason.OUTSIDE_FOLDER
    (fetched / "captions" / "howto100m-a.en.vtt").write_text("written")  # comes before the one beside the video
    assert rows(fetched)[0].subtitles == "captions/howto100m-a.en.vtt"
    assert [item.subtitles for item in rows(None)[:2]] == ["deep/a.en.vtt", None]
    assert rows(None)[2:] == [c, d]


HOSTILE = ["../x", "", "/etc/passwd", "a" * 300, "スープ", "..", ".", "a\nb", "-rf", "a&list=b", "x/y", "con:aux"]


def test_hostile_ids_have_safe_names_and_reach_no_path(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", [row(video_id) for video_id in [*HOSTILE, "good"]])
    entries = sample(path, HowTo100MConfig())
    assert {entry.video_id for entry in entries} == {*HOSTILE, "good"}
    captions = tmp_path / "raw_caption.json"
    captions.write_text(json.dumps({video_id: said("stir") for video_id in [*HOSTILE, "good"]}))
    out = tmp_path / "deep" / "out"
    before = set(tmp_path.rglob("*"))
    write_captions(captions, entries, out)
    assert {found for found in tmp_path.rglob("*") if not found.is_relative_to(out)} == {*before, tmp_path / "deep"}
    assert len(list((out / "captions").iterdir())) == len(HOSTILE) + 2  # good, and the stamp
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "good.mp4").write_bytes(b"x")
    (tmp_path / "x.mp4").write_bytes(b"the canary of ../x")
    items = list(list_videos([tmp_path / "videos"], path, HowTo100MConfig(), captions_folder=out))
    assert [item.video_id for item in items if isinstance(item, SourceVideo)] == ["good"]
    for item, entry in zip(items, entries, strict=True):
        assert item.narrative == narrative_name("howto100m", entry.video_id)
        assert set(entry.url.removeprefix("https://www.youtube.com/watch?v=")) <= set(
            "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.~%"
        )


def test_two_ids_of_one_name_do_not_share_captions(tmp_path: Path) -> None:
    twin = narrative_name("howto100m", "a/b").removeprefix("howto100m-")  # this id's own name is that of a/b
    captions = tmp_path / "raw_caption.json"
    for order in (["a/b", twin], [twin, "a/b"]):
        captions.write_text(json.dumps({video_id: said(f"of {video_id}") for video_id in order}))
        write_captions(captions, [Entry(video_id, 1, 7) for video_id in sorted(order)], tmp_path)
        (written,) = (tmp_path / "captions").glob("*.vtt")
        assert f"of {min(order)}\n" in written.read_text()


# --- the captions ---


def said(*texts: Any, start: Any = None, end: Any = None) -> dict[str, Any]:
    """Lines of 4 s whose ends overlap, one each 2 s."""
    return {
        "text": list(texts),
        "start": [2.0 * index for index in range(len(texts))] if start is None else start,
        "end": [2.0 * index + 4 for index in range(len(texts))] if end is None else end,
    }


def heard(folder: Path, value: Any, *, duration_s: float = 1000.0) -> list[TimedWord] | None:
    """The words that the speech stage reads of captions; None where no file was written."""
    (folder / "raw_caption.json").write_text(json.dumps({"a": value}))
    write_captions(folder / "raw_caption.json", [Entry("a", 1, 7)], folder / "out")
    path = folder / "out" / "captions" / "howto100m-a.en.vtt"
    return read_subtitles(path, duration_s=duration_s) if path.is_file() else None


def test_real_captions_are_heard_where_they_are_spoken(data: Path, tmp_path: Path) -> None:
    folder = data / "annotations" / "howto100m"
    entries = sample(folder / "HowTo100M_v1.sample.csv", HowTo100MConfig())
    write_captions(folder / "raw_caption.sample.json", entries, tmp_path)
    (source,) = list_videos(
        [data / "videos"], folder / "HowTo100M_v1.sample.csv", HowTo100MConfig(), captions_folder=tmp_path
    )
    assert isinstance(source, SourceVideo)
    places = Places(data / "videos", tmp_path / "media", tmp_path / "scratch", fetched=tmp_path)
    (video,) = videos.STAGE.run(source, config=videos.VideosConfig(), tool=places)
    assert isinstance(video, Video)
    no_model = SpeechConfig(model="/no/such/model")  # loading it raises: Whisper is not asked
    words = [word for word in hear(video, config=no_model, tool=load(no_model, places)) if isinstance(word, Word)]
    lines = json.loads((folder / "raw_caption.sample.json").read_text())[PIZZA]
    assert " ".join(word.text for word in words) == " ".join(lines["text"])
    first = {
        sum(len(text.split()) for text in lines["text"][:index]): start for index, start in enumerate(lines["start"])
    }
    assert [words[index].start_s for index in first] == pytest.approx(list(first.values()))
    for line, following in zip(sorted(first), sorted(first)[1:], strict=False):  # each line ends where the next begins
        assert words[following - 1].end_s <= words[following].start_s + 1e-9 and line < following
    truth = json.loads((data / "videos" / f"{PIZZA}.gt.json").read_text())["asr"]
    spans = [(said["start"] - 0.1, said["end"] + 1.5) for said in truth]
    assert all(any(start <= word.start_s <= end for start, end in spans) for word in words)


def test_rolling_captions_say_each_word_once(tmp_path: Path) -> None:
    rolling = said(
        "first chop the",
        "first chop the",  # the 10 ms that YouTube's text rests
        "first chop the\nonion and then",
        "onion and then\nstir &amp; <fry>",
        start=[0.0, 2.0, 2.01, 4.0],
        end=[2.0, 2.01, 6.0, 8.0],
    )
    words = heard(tmp_path, rolling)
    assert words is not None
    assert " ".join(word.text for word in words) == "first chop the onion and then stir &amp; <fry>"
    assert [word.start_s for word in words[::3]] == pytest.approx([0.0, 2.01, 4.0])


@slow_fixture
@given(
    st.lists(
        st.tuples(
            st.integers(1, 6),  # words
            st.floats(0, 100, width=32),
            st.one_of(st.floats(width=32), st.none()),
        ),
        min_size=1,
        max_size=12,
    )
)
def test_every_word_is_kept_once_and_none_overlap(tmp_path: Path, lines: list[tuple[int, float, float | None]]) -> None:
    texts = [" ".join(f"w{index}x{word}" for word in range(count)) for index, (count, _, _) in enumerate(lines)]
    words = heard(tmp_path, said(*texts, start=[line[1] for line in lines], end=[line[2] for line in lines]))
    assert words is not None
    in_order = sorted(range(len(lines)), key=lambda index: round(lines[index][1] * 1000))
    assert " ".join(word.text for word in words) == " ".join(texts[index] for index in in_order)
    previous_s = 0.0
    for word in words:
        assert previous_s - 1e-9 <= word.start_s < word.end_s
        previous_s = word.end_s
    starts = sorted(round(line[1] * 1000) / 1000 for line in lines)
    assert all(word.start_s >= starts[0] - 1e-9 for word in words)


@pytest.mark.parametrize(
    ("lines", "text", "num_faulty"),
    [
        (said("one", math.nan, "three"), "one three", 1),
        (said("one", None, 7, ["x"], {"y": 1}, "six"), "one six", 4),
        (said("one", "two", start=[math.nan, 1.0]), "two", 1),
        (said("one", "two", start=[math.inf, -math.inf]), None, 2),
        (said("one", "two", start=["0", True]), None, 2),
        (said("one", "two", start=[-9.0, 1.0], end=[-5.0, 2.0]), "two", 1),
        (said("one", "two", start=[-1.0, 1.0], end=[0.5, 2.0]), "one two", 1),
        (said("one", "two", end=[math.nan, None]), "one two", 2),
        (said("one", "two", start=[5.0, 9.0], end=[1.0, 9.0]), "one two", 2),
        (said("one", "two", start=[9.0, 1.0], end=[10.0, 2.0]), "two one", 0),
        (said("one", "two", start=[1.0, 1.0], end=[2.0, 2.0]), "one two", 0),
        (said("one", "two", "three", start=[1.0]), "one", 2),
        (said("one", start=[1.0, 2.0, 3.0], end=[2.0]), "one", 2),
        (said("one", "two", end=[]), "one two", 2),
        (said("one", start=[10**400]), None, 1),
        (said("one", start=[1e300]), None, 1),
        (said("[Music]", " ", "♪", "--"), None, 0),
        (said("[Music] stir", "half \ud83d of it"), "stir half of it", 0),
        (said("a\x00b\x1b\x85c --> d", "00:00:01.000 --> 00:00:02.000"), "a b c d 00:00:01.000 00:00:02.000", 0),
        ({"text": ["one"]}, None, 1),
        ({"text": "one", "start": 1, "end": None}, None, 0),
        ([["one"]], None, 0),
        ("one", None, 0),
        (None, None, 0),
        (said(), None, 0),
    ],
)
def test_what_cannot_be_is_mended_or_left_out_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, lines: Any, text: str | None, num_faulty: int
) -> None:
    words = heard(tmp_path, lines)
    assert text == (" ".join(word.text for word in words if word.text != "?") if words is not None else None)
    assert (f"{num_faulty} lines of 1 videos were mended or left out" in caplog.text) == bool(num_faulty)
    assert (f"a ({num_faulty})" in caplog.text) == bool(num_faulty)
    assert ("no captions of 1 of 1 videos, they are listened to: a" in caplog.text) == (text is None)
    assert len(caplog.records) == bool(num_faulty) + (text is None)


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["text", "start", "end"]), inner),
    max_leaves=20,
)


@slow_fixture
@given(json_values)
def test_no_value_is_a_crash(tmp_path: Path, value: Any) -> None:
    words = heard(tmp_path, value)
    assert words is None or words  # a file that is written has words


def test_many_warnings_are_two_lines(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ids = [f"v{index:03}" for index in range(30)]
    (tmp_path / "c.json").write_text(json.dumps({video_id: said(None) for video_id in ids[:20]}))
    write_captions(tmp_path / "c.json", [Entry(video_id, 1, 7) for video_id in ids], tmp_path)
    faulty, silent = (record.getMessage() for record in caplog.records)
    assert "20 lines of 20 videos" in faulty and faulty.endswith("v009 (1) and 10 more")
    assert "no captions of 30 of 30 videos" in silent and silent.endswith("v009 and 20 more")


# --- the file of gigabytes ---


def read_all(path: Path, content: bytes, block_bytes: int) -> dict[str, Any]:
    path.write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(howto100m, "_BLOCK_BYTES", block_bytes)
        return dict(howto100m._captions(path))


@slow_fixture
@given(
    st.dictionaries(st.text(max_size=6), json_values, min_size=1, max_size=5),
    st.integers(1, 60),
    st.booleans(),
    st.sampled_from([None, 1]),
)
def test_streaming_reads_what_the_standard_library_reads(
    tmp_path: Path, value: dict[str, Any], block_bytes: int, ascii_only: bool, indent: int | None
) -> None:
    content = json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode("utf-8", "replace")
    expected = json.loads(content, parse_int=float)
    found = read_all(tmp_path / "c.json", content, max(block_bytes, 8))
    assert json.dumps(found) == json.dumps(expected)  # NaN is not itself, but prints as itself


def test_a_file_that_was_cut_off_is_refused_wherever_it_was_cut(tmp_path: Path) -> None:
    content = json.dumps({"a": said("one", None), "ü": said("two \ud83d"), "c": said(math.nan)}, ensure_ascii=False)
    whole = content.encode("utf-8", "replace")
    ends = [whole.index(b', "' + name) for name in ("ü".encode(), b"c")]
    path = tmp_path / "raw_caption.json"
    for length in range(1, len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError) as error:
            write_captions(path, [Entry("a", 1, 7)], tmp_path)
        message = str(error.value)
        assert f"after {sum(length > end for end in ends)} videos" in message and "download it again" in message
        assert message.startswith(f"{path}: no JSON from byte ") and f" of {length} on" in message
        byte = int(message.split("from byte ")[1].split()[0])
        assert max([0, *(end for end in ends if end < length)]) <= byte <= length
        assert "\n" not in message
    assert set(read_all(path, whole, 16)) == {"a", "ü", "c"}  # the control: whole, it is read


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "does not begin with an object"),
        (b"[1, 2]", "does not begin with an object"),
        (b"PK\x03\x04 a zip", "does not begin with an object"),
        (b"<html>404</html>", "does not begin with an object"),
        (b"{}", "no JSON from byte 1 of 2 on (Expecting a video's id), after 0 videos"),
        (b'{"a": 1, "b": x}', "no JSON from byte 14 of 16 on (Expecting value), after 1 videos"),
        (b'{"a": 1 "b": 2}', "no JSON from byte 7 of 15 on"),
        (b'{"a": 1, 2: 3}', "no JSON from byte 8 of 14 on (Expecting a video's id), after 1 videos"),
        (b'{"a": 1}{"b": 2}', "no JSON from byte 8 of 16 on (Extra data), after 1 videos"),
        (b'{"a": "\\u12"}', "after 0 videos"),
        (b'{"a": "\xff"}', "not UTF-8 (invalid start byte)"),
        ('{"a": 1}'.encode("utf-16"), "not UTF-8"),
        (b'{"a": ' + b"[" * 200_000, "lists in lists"),
    ],
)
def test_what_is_no_caption_file_is_refused_in_one_line(tmp_path: Path, content: bytes, named: str) -> None:
    path = tmp_path / "raw_caption.json"
    path.write_bytes(content)
    with pytest.raises(InputError) as error:
        write_captions(path, [Entry("z", 1, 7)], tmp_path)
    assert str(error.value).startswith(f"{path}: ") and named in str(error.value) and "\n" not in str(error.value)
    assert "CAPTIONS must name HowTo100M's raw_caption.json" in str(error.value)
    assert not list((tmp_path / "captions").iterdir())


def test_a_mark_of_order_and_a_last_line_end_are_no_fault(tmp_path: Path) -> None:
    for content in (b'\xef\xbb\xbf {"a": 1}\n', b'{"a" : 1 }\n\n'):
        assert read_all(tmp_path / "c.json", content, 2**20) == {"a": 1}


def test_one_video_cannot_fill_the_memory(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_bytes(b'{"a": 1, "b": "' + b"x" * 20_000_000 + b'"}')
    with pytest.raises(InputError, match="after 1 videos"):
        write_captions(tmp_path / "c.json", [Entry("a", 1, 7)], tmp_path)


def test_places_that_cannot_be_read_or_written_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"No such file.*CAPTIONS must name"):
        write_captions(tmp_path / "none.json", [Entry("a", 1, 7)], tmp_path)
    with pytest.raises(InputError, match=r"Is a directory.*CAPTIONS must name"):
        write_captions(tmp_path, [Entry("a", 1, 7)], tmp_path / "out")
    (tmp_path / "c.json").write_text('{"a": 1}')
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        write_captions(tmp_path / "c.json", [Entry("a", 1, 7)], tmp_path / "file")


def test_the_same_file_is_read_once(tmp_path: Path) -> None:
    captions, written = tmp_path / "c.json", tmp_path / "captions"
    captions.write_text(json.dumps({"a": said("one"), "b": said("two")}))
    entries = [Entry("a", 1, 7)]
    write_captions(captions, entries, tmp_path)
    status = captions.stat()
    captions.write_bytes(b"x" * status.st_size)  # would be refused, were it read
    os.utime(captions, ns=(status.st_atime_ns, status.st_mtime_ns))
    write_captions(captions, entries, tmp_path)
    assert {path.name for path in written.iterdir()} == {"howto100m-a.en.vtt", "stamp.json"}
    with pytest.raises(InputError):  # the control: another sample reads it
        write_captions(captions, [Entry("b", 1, 7)], tmp_path)
    write_captions_anew = [Entry("b", 1, 7)]
    captions.write_text(json.dumps({"a": said("one"), "b": said("two")}))
    (written / ".tmp-killed.vtt").write_text("half")
    write_captions(captions, write_captions_anew, tmp_path)
    assert {path.name for path in written.iterdir()} == {"howto100m-b.en.vtt", "stamp.json"}
    os.utime(captions, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    captions.write_text('{"b": 1}')
    write_captions(captions, write_captions_anew, tmp_path)
    assert {path.name for path in written.iterdir()} == {"stamp.json"}


def test_a_run_that_was_stopped_reads_again(tmp_path: Path) -> None:
    captions = tmp_path / "c.json"
    captions.write_text(json.dumps({"a": said("one")}))
    write_captions(captions, [Entry("a", 1, 7)], tmp_path)
    whole = json.dumps({"a": said("two"), "b": said("three")})
    captions.write_text(whole[:-5])
    with pytest.raises(InputError):
        write_captions(captions, [Entry("a", 1, 7)], tmp_path)
    captions.write_text(whole)
    write_captions(captions, [Entry("a", 1, 7)], tmp_path)
    assert "two" in (tmp_path / "captions" / "howto100m-a.en.vtt").read_text()


PEAK = """
import json, sys
from pathlib import Path
from pipelines.sources.howto100m import *
def peak_kib():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
annotations, captions, out = map(Path, sys.argv[2:])
before = peak_kib()
if sys.argv[1] == "stream":
    write_captions(captions, sample(annotations, HowTo100MConfig(num_videos=50)), out)
else:
    json.load(captions.open())
print(peak_kib() - before)
"""


def test_memory_stays_constant_however_long_the_files(tmp_path: Path) -> None:
    lines = {
        "text": [f"add {index} spoons of flour to the bowl and stir" for index in range(80)],
        "start": [index * 2.37 for index in range(80)],
        "end": [index * 2.37 + 4.11 for index in range(80)],
    }
    entry = json.dumps(lines)
    num_videos = 50_000_000 // len(entry)
    with (tmp_path / "c.json").open("w") as stream:
        stream.write("{")
        for index in range(num_videos):
            stream.write(f'{"," * (index > 0)}"video{index:06}": {entry}')
        stream.write("}")
    write_csv(tmp_path / "a.csv", [row(f"video{index % num_videos:06}", rank=index) for index in range(200_000)])

    def raised_mib(how: str) -> float:
        command = [sys.executable, "-c", PEAK, how, tmp_path / "a.csv", tmp_path / "c.json", tmp_path / "out"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=300)
        return int(done.stdout) / 1024

    assert raised_mib("stream") < 100
    assert len(list((tmp_path / "out" / "captions").glob("*.vtt"))) == 50
    assert raised_mib("load") > 100  # the control
