"""`python -m pipelines cut` and `probe`: what they write and say, what they refuse, and what a kill leaves behind.

Frames are judged by the benchmark's own reading of numbered pictures, which is tested here along the way.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import psutil
import pytest
from PIL import Image

from cookgen.commands import run_command
from cookgen.files import file_sha256, lock_held
from pipelines.cut import MARKER, cut, probe
from pipelines.cutting import Cut, plan_cut
from tests.benchmarks.cut import B_FRAMES, KINDS, Kind, due, encode, exactness, known_frames, plain, read_numbers, sound
from tests.conftest import ROOT

SMALL = ("--set", "clips.size_px=192")
SPANS = ((6.3, 8.05), (0.95, 2.02), (3.333, 3.9))  # not in order


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 numbered frames at 30 a second, 320x240, a keyframe each 5 s, B-frames, no sound."""
    return encode(tmp_path_factory.mktemp("video") / "video.mp4", plain(320, 240, 300), (320, 240), "30", B_FRAMES)


def run(*args: str | Path) -> int:
    """The command line in this process."""
    commands: dict[str, Callable[..., int]] = {"cut": cut, "probe": probe}
    return run_command(commands, [str(arg) for arg in args], prog="python -m pipelines", description="")


def spans_file(folder: Path, spans: Sequence[tuple[float, float]] = SPANS) -> Path:
    path = folder / "spans.json"
    path.write_text(json.dumps([{"start_s": start, "end_s": end} for start, end in spans]))
    return path


def listed(out: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((out / "clips.json").read_bytes())
    return values


def names(out: Path) -> list[str]:
    return sorted(path.name for path in out.iterdir())


def test_each_span_has_its_clip_and_what_was_really_cut(video: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    assert run("cut", video, spans_file(tmp_path), out, *SMALL) == 0
    media = [f"{number:05d}.{kind}" for number in range(3) for kind in ("jpg", "mp4")]
    assert names(out) == [MARKER, *media, "clips.json"]
    frames = known_frames(video, Kind("", "", ()))
    values = listed(out)
    for number, (row, span) in enumerate(zip(values["clips"], SPANS, strict=True)):
        wanted = due(frames, span, Fraction(10), Fraction(30))
        clip, keyframe = (out / f"{number:05d}.{kind}" for kind in ("mp4", "jpg"))
        assert [shown for _, shown in read_numbers(clip)] == [shown for _, shown in wanted]
        assert (row["start_s"], row["end_s"]) == span
        assert (row["num_frames"], row["fps"], row["width"], row["has_audio"]) == (len(wanted), 30.0, 192, False)
        assert row["first_pts_s"] == pytest.approx(float(wanted[0][0]), abs=2e-6)
        assert row["last_pts_s"] == pytest.approx(float(wanted[-1][0]), abs=2e-6)
        assert row["first_pts_s"] <= row["keyframe_pts_s"] <= row["last_pts_s"]
        assert (row["sha256"], row["keyframe_sha256"]) == (file_sha256(clip), file_sha256(keyframe))
        with Image.open(keyframe) as image:
            assert image.size == (192, 192)
    assert values["format"] == "cookgen/cut/1" and values["config"]["clips"]["size_px"] == 192
    assert values["video"]["sha256"] == file_sha256(video) and values["video"]["path"] == str(video)


def test_settings_change_what_is_cut(video: Path, tmp_path: Path) -> None:
    spans = spans_file(tmp_path, [(1, 2)])
    assert run("cut", video, spans, tmp_path / "out", *SMALL, "--set", "clips.fps=10") == 0
    assert [(row["num_frames"], row["fps"]) for row in listed(tmp_path / "out")["clips"]] == [(10, 10.0)]


def test_a_span_that_cannot_be_cut_has_a_reason_and_no_file(
    video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spans = spans_file(tmp_path, [(20, 30), (1, 1.5), (4.001, 4.01), (9.5, 99), (1.0000001, 1.0000002)])
    assert run("cut", video, spans, tmp_path / "out", *SMALL) == 1
    rows = listed(tmp_path / "out")["clips"]
    assert [row.get("reason") for row in rows] == ["past_end", None, "past_end", None, "bad_annotation"]
    assert rows[0]["detail"] and "sha256" not in rows[0] and rows[0]["start_s"] == 20
    assert names(tmp_path / "out")[1:-1] == ["00001.jpg", "00001.mp4", "00003.jpg", "00003.mp4"]
    assert capsys.readouterr().out.strip().endswith("2 of 5 spans cut; the others: bad_annotation 1, past_end 2")
    assert run("cut", video, spans_file(tmp_path, [(20, 30)]), tmp_path / "out", *SMALL) == 1
    assert names(tmp_path / "out") == [MARKER, "clips.json"]


def test_the_same_span_twice_has_two_files(video: Path, tmp_path: Path) -> None:
    assert run("cut", video, spans_file(tmp_path, [(1, 2), (1, 2)]), tmp_path / "out", *SMALL) == 0
    assert (tmp_path / "out/00000.mp4").read_bytes() == (tmp_path / "out/00001.mp4").read_bytes()


def test_a_short_small_or_long_video_is_cut_all_the_same(tmp_path: Path) -> None:
    small = encode(tmp_path / "small.mp4", plain(96, 64, 30), (96, 64), "30", B_FRAMES)
    assert run("cut", small, spans_file(tmp_path, [(0.1, 0.5)]), tmp_path / "out", *SMALL) == 0
    assert run("probe", small) == 1


def test_a_hundred_thousand_spans_are_no_burden(video: Path, tmp_path: Path) -> None:
    spans = spans_file(tmp_path, [(5.0, 5.2), *((10 + n, 11 + n) for n in range(100_000))])
    assert run("cut", video, spans, tmp_path / "out", *SMALL) == 1
    rows = listed(tmp_path / "out")["clips"]
    assert len(rows) == 100_001 and sum("sha256" in row for row in rows) == 1


# Usage


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "not JSON"),
        ("[{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("\udcff", "not JSON"),
        ('{"start_s": 1, "end_s": 2}', "no list but dict"),
        ("null", "no list but NoneType"),
        ("[]", "an empty list"),
        ("[[1, 2]]", "span 0 is list"),
        ('[{"start_s": 1}]', "end_s is missing"),
        ('[{"start_s": 1, "end_s": 2}, {"start_s": NaN, "end_s": 2}]', "span 1: start_s is nan"),
        ('[{"start_s": 1, "end_s": Infinity}]', "end_s is inf"),
        ('[{"start_s": 1, "end_s": 1e999}]', "end_s is inf"),
        (f'[{{"start_s": 1, "end_s": 1{"0" * 400}}}]', "finite"),
        ('[{"start_s": -0.5, "end_s": 2}]', "start_s is -0.5"),
        ('[{"start_s": true, "end_s": 2}]', "start_s is True"),
        ('[{"start_s": "1", "end_s": 2}]', "start_s is '1'"),
        ('[{"start_s": 2, "end_s": 2}]', "must end after it starts"),
        ('[{"start_s": 3, "end_s": 2}]', "must end after it starts"),
    ],
)
def test_wrong_spans_are_refused_in_one_line(
    text: str, named: str, video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spans = tmp_path / "spans.json"
    spans.write_bytes(os.fsencode(text))
    assert_refused(capsys, named, "cut", video, spans, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def assert_refused(capsys: pytest.CaptureFixture[str], named: str, *args: str | Path) -> None:
    assert run(*args) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and named in said.err


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("clips.policy=shots", "SPANS.json says what is cut"),
        ("clips.fpss=3", "did you mean 'clips.fps'"),
        ("speech.model=x", "unknown setting"),
        ("clips.fps=0", "above 0"),
    ],
)
def test_wrong_settings_are_refused(
    setting: str, named: str, video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert_refused(capsys, named, "cut", video, spans_file(tmp_path), tmp_path / "out", "--set", setting)


def test_what_is_no_video_is_refused(video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spans, out = spans_file(tmp_path), tmp_path / "out"
    shutil.copyfile(video, tmp_path / "canary.ts")
    playlists = {
        "hls.mp4": f"#EXTM3U\n#EXTINF:10,\n{tmp_path}/canary.ts\n#EXT-X-ENDLIST\n",
        "concat.mp4": f"ffconcat version 1.0\nfile '{tmp_path}/canary.ts'\n",
    }
    for name, text in playlists.items():
        (tmp_path / name).write_text(text)
        assert_refused(capsys, "a playlist", "cut", tmp_path / name, spans, out)
        assert run("probe", tmp_path / name) == 1
        assert json.loads(capsys.readouterr().out)["reason"] == "not_a_video"
    (tmp_path / "empty.mp4").touch()
    assert_refused(capsys, "empty_file", "cut", tmp_path / "empty.mp4", spans, out)
    assert_refused(capsys, "video_missing", "cut", tmp_path / "none.mp4", spans, out)
    assert_refused(capsys, "not a regular file", "cut", tmp_path, spans, out)
    assert_refused(capsys, "cannot be read", "cut", video, tmp_path / "none.json", out)
    assert_refused(capsys, "at least one", "probe")
    assert not out.exists()


HOSTILE = [
    "-dash.mp4",
    "--set",
    "a\nb\r\x1b[31m\x7f.mp4",
    "quote'\"`$(touch x);&.mp4",
    "file:colon:%03d.mp4",
    " blank * [0] .mp4",
    "naïve-😀\u202e.mp4",
    "x" * 251 + ".mp4",
    "no suffix",
]


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_any_name_will_do(
    name: str, video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").mkdir()
    monkeypatch.chdir(tmp_path / "in")
    shutil.copyfile(video, name)
    spans = spans_file(tmp_path, [(1, 1.2)])
    assert run("cut", *SMALL, f"./{name}", spans, tmp_path / "out" / name) == 0
    assert names(tmp_path / "out" / name) == [MARKER, "00000.jpg", "00000.mp4", "clips.json"]
    assert listed(tmp_path / "out" / name)["video"]["path"] == name
    if not name.startswith("--"):
        assert run("cut", "--", name, str(spans), str(tmp_path / "again")) == 0
    capsys.readouterr()
    assert run("probe", f"./{name}") == 0
    line = capsys.readouterr().out
    assert json.loads(line)["path"] == name and line[:-1].isprintable() and line.isascii()
    assert names(tmp_path / "in") == [name] and set(names(tmp_path)) <= {"in", "out", "again", "spans.json"}


def test_a_name_that_is_no_utf_8_is_named(video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    folder.mkdir()
    shutil.copyfile(video, folder / "x.mp4")
    shutil.copyfile(video, folder / os.fsdecode(b"\xfe.mp4"))
    assert run("probe", folder / os.fsdecode(b"\xfe.mp4"), folder / "x.mp4") == 1
    bad, good = map(json.loads, capsys.readouterr().out.splitlines())
    assert bad["reason"] == "bad_name" and bad["path"].endswith("\\udcff/\\udcfe.mp4")
    assert good["width"] == 320 and good["path"].endswith("\\udcff/x.mp4")
    assert run("cut", folder / "x.mp4", spans_file(tmp_path), folder / "out", *SMALL) == 0


# OUTDIR


def test_an_earlier_cut_is_replaced(video: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run("cut", video, spans_file(tmp_path), out, *SMALL) == 0
    first = (out / "00000.mp4").read_bytes()
    assert run("cut", video, spans_file(tmp_path, [(5, 5.5)]), out, *SMALL) == 0
    assert names(out) == [MARKER, "00000.jpg", "00000.mp4", "clips.json"]
    assert (out / "00000.mp4").read_bytes() != first and len(listed(out)["clips"]) == 1


@pytest.mark.parametrize("name", ["notes.txt", "00000.mp4", "clips.json", ".hidden"])
def test_what_no_cut_made_is_left_alone(
    name: str, video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text("mine")
    assert_refused(capsys, f"holds '{name}', which no cut made", "cut", video, spans_file(tmp_path), out)
    assert names(out) == [name] and (out / name).read_text() == "mine"


def test_a_folder_that_cannot_be_used_is_named(video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, spans = tmp_path / "out", spans_file(tmp_path)
    assert_refused(capsys, "Choose another OUTDIR", "cut", video, spans, spans)
    assert run("cut", video, spans, out, *SMALL) == 0
    capsys.readouterr()
    assert_refused(capsys, "holds VIDEO", "cut", out / "00000.mp4", spans_file(tmp_path, [(0, 1)]), out)
    with lock_held(out / MARKER, out, choose="OUTDIR"):
        assert_refused(capsys, "being written by process", "cut", video, spans, out)
    assert len(listed(out)["clips"]) == len(SPANS)


@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda kind: kind.name)
def test_a_killed_cut_leaves_the_earlier_one_whole(kind: signal.Signals, video: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run("cut", video, spans_file(tmp_path, [(5, 5.5)]), out, *SMALL) == 0
    before = {path.name: path.read_bytes() for path in out.iterdir() if path.name != MARKER}
    spans = spans_file(tmp_path, [(0.01 * n, 0.01 * n + 9) for n in range(200)])
    command = [sys.executable, "-m", "pipelines", "cut", str(video), str(spans), str(out)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as child:
        while not list(out.glob(".cutting-*/done/*.mp4")):
            assert child.poll() is None, "it ended before it could be killed"
            time.sleep(0.01)
        family = psutil.Process(child.pid).children(recursive=True)
        child.send_signal(kind)
        assert child.wait() == (-kind if kind is signal.SIGKILL else 130)
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not alive, "ffmpeg outlived the cut"
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.name[0] != "."} == before
    assert bool(list(out.glob(".cutting-*"))) == (kind is signal.SIGKILL)
    assert run("cut", video, spans_file(tmp_path, [(5, 5.5)]), out, *SMALL) == 0
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.name != MARKER} == before


# Probe


def test_probe_says_all_that_was_found(video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "page.mp4").write_text("<!doctype html><title>404</title>")
    assert run("probe", video, tmp_path / "page.mp4", tmp_path / "none.mp4") == 1
    good, page, none = map(json.loads, capsys.readouterr().out.splitlines())
    with av.open(str(video)) as container:
        duration_s = container.duration / av.time_base
    assert good == good | {"path": str(video), "width": 320, "height": 240, "fps": 30.0, "duration_s": duration_s}
    assert good == good | {"sha256": file_sha256(video), "num_bytes": video.stat().st_size, "start_s": 0.0}
    assert page == {"path": str(tmp_path / "page.mp4"), "reason": "not_a_video", "detail": "an HTML page"}
    assert none["reason"] == "video_missing"
    assert run("probe", video, video) == 0


# Exactness, as the benchmark measures it


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_clip_is_exact(kind: Kind, tmp_path: Path) -> None:
    """Longer than the stage's own tests: several keyframes apart, so that children seek."""
    for row in exactness(tmp_path, [kind], num_spans=6, seconds=24):
        assert row["exact_percent"] == 100 and row["clips"], row


def test_the_benchmark_sees_a_clip_that_begins_one_frame_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def late(footage: Any, clip_index: int, start: int, end: int, rate: Fraction) -> Cut | None:
        return plan_cut(footage, clip_index, start + 33_334, end, rate)

    monkeypatch.setattr("pipelines.stages.clips.plan_cut", late)
    own, other, both = exactness(tmp_path, [Kind("x", ".mp4", B_FRAMES)], num_spans=4, seconds=12)
    assert own["exact_percent"] == other["exact_percent"] == both["exact_percent"] == 0
    assert "is due" in own["differences"][0]


def test_flash_and_click_stay_within_25_ms(tmp_path: Path) -> None:
    for row in sound(tmp_path):
        assert row["pairs"] >= 6 and row["largest_ms"] <= 25, row
