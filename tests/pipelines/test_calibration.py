"""Calibration beside marked steps: a case worked out by hand, laws on made-up sets, and the page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from cookgen.dataset.tables import write_table
from cookgen.errors import InputError
from cookgen.records import Action, Clip, Segment, Video
from pipelines.__main__ import main
from pipelines.calibration import GRID, PAPER, Calibration, Thresholds, calibrate, table
from pipelines.report.calibration import calibration_page, draw, heat_maps
from pipelines.sources import youcook2
from pipelines.stages.matches import MatchesConfig, match_actions
from tests.pipelines.report.test_page import Page, assert_self_contained
from tests.pipelines.stages.test_matches import HEX, clip_of

Spans = Sequence[tuple[float, float]]
Told = Sequence[tuple[float, float, str]]


def video_rows(video_id: str, clips: Spans, actions: Told) -> tuple[Video, list[Clip], list[Action]]:
    name = f"folder-{video_id.replace('/', '-')}"
    video = Video(
        narrative=name,
        source="folder",
        video_id=video_id,
        path=f"{video_id}.mp4",
        sha256=HEX,
        num_bytes=1,
        duration_s=999,
        start_s=0,
        width=64,
        height=64,
        fps=25,
        video_stream=0,
        audio_stream=1,
        has_audio=True,
        split="train",
    )
    cut = [clip_of(index, *span, narrative=name) for index, span in enumerate(clips)]
    told = [
        Action(
            narrative=name,
            action_index=index,
            text=text,
            start_s=start_s,
            end_s=end_s,
            origin="asr",
            raw_text=text,
            word_first=0,
            word_end=1,
        )
        for index, (start_s, end_s, text) in enumerate(actions)
    ]
    return video, cut, told


def write_set(out: Path, rows: Sequence[tuple[Video, list[Clip], list[Action]]]) -> Path:
    write_table(out / "tables" / "videos.parquet", Video, [video for video, _, _ in rows])
    write_table(out / "tables" / "clips.parquet", Clip, [clip for _, clips, _ in rows for clip in clips])
    write_table(out / "tables" / "actions.parquet", Action, [action for _, _, told in rows for action in told])
    return out


def marked(*steps: tuple[float, float, str]) -> list[Segment]:
    return [Segment(start_s=start_s, end_s=end_s, text=text) for start_s, end_s, text in steps]


def at(found: Calibration, *thresholds: float) -> tuple[int, int, int]:
    point = next(point for point in found.points if point.thresholds == thresholds)
    return point.num_matches, point.num_right, point.num_found


def test_a_case_worked_out_by_hand(tmp_path: Path) -> None:
    clips = [(0.0, 10.0), (10.0, 20.0), (20.0, 30.0), (30.0, 40.0)]
    actions = [
        (0.0, 6.0, "Chop the onions"),  # iou 0.6 with clip 0: right
        (10.0, 16.0, "Boil the rice"),  # iou 0.6 with clip 1, which shows frying: wrong
        (24.0, 28.0, "Fry onions in butter"),  # iou 0.4, 4 s apart, with clip 2: right for the third step
        (33.0, 39.0, "Thanks for watching"),  # iou 0.6 with clip 3, which lies in no step: wrong
    ]
    steps = marked(
        (0, 9, "chop some onions"),
        (9, 19, "fry bacon"),
        (19, 31, "fry the onions"),
        (60, 70, "serve"),
        (70, 70, "no length"),
        (70, 80, "the and of"),
    )
    out = write_set(tmp_path, [video_rows("a", clips, actions)])
    found = calibrate(out, {"a": steps, "b": steps})
    assert (found.num_videos, found.num_annotated, found.num_steps, found.num_reachable) == (1, 2, 4, 2)
    assert at(found, *PAPER) == (4, 2, 2)
    assert (found.paper.precision, found.paper.recall, found.paper.f1) == (0.5, 0.5, 0.5)
    assert at(found, 3, 0.25, 0.5) == (3, 1, 1)  # the third pair is 4 s apart
    assert at(found, 5, 0.4, 0.5) == (3, 1, 1)  # its IoU is 0.4, not above
    assert at(found, 1, 0.5, 0.7) == (2, 1, 1)  # by starts: the first two
    assert at(found, 1, 0.5, 1.0) == (2, 1, 1)
    assert found.best is found.paper  # of several equals the nearest to it


def made_up(
    num_videos: int, seed: int = 0
) -> tuple[list[tuple[Video, list[Clip], list[Action]]], dict[str, list[Segment]]]:
    """Videos whose speech is some seconds off what is seen, with words from a small kitchen."""
    rng = np.random.default_rng(seed)
    foods = "onion garlic tomato egg flour butter rice chicken pepper cheese".split()
    rows, steps = [], {}
    for number in range(num_videos):
        time, told, spans = 2.0, [], []
        for _ in range(6):
            end = time + float(rng.uniform(6, 20))
            one, other = rng.choice(foods, 2, replace=False)
            spans.append((time, end, f"fry the {one} with {other}"))
            said = max(0.0, time + float(rng.normal(1, 3)))
            told.append(
                (said, said + float(rng.uniform(2, 8)), spans[-1][2] if rng.random() < 0.8 else "wait a moment")
            )
            time = end + float(rng.exponential(3))
        edges = np.cumsum(rng.uniform(3, 9, 40))
        cuts = [(float(one), float(two)) for one, two in pairwise(edges) if two < time]
        rows.append(video_rows(f"v{number}", cuts, told))
        steps[f"v{number}"] = marked(*spans)
    return rows, steps


def test_the_grid_is_the_stage_with_these_thresholds(tmp_path: Path) -> None:
    rows, steps = made_up(5)
    found = calibrate(write_set(tmp_path, rows), steps)
    for point in found.points[::23]:
        config = MatchesConfig(*point.thresholds)
        chosen = [
            match
            for _, clips, actions in rows
            for match in match_actions(tuple(clips), tuple(actions), config=config)
            if match.chosen
        ]
        assert len(chosen) == point.num_matches
    assert [point.thresholds for point in found.points] == list(GRID)


def test_counts_are_what_they_can_be(tmp_path: Path) -> None:
    rows, steps = made_up(8, seed=1)
    found = calibrate(write_set(tmp_path, rows), steps)
    assert len({point.f1 for point in found.points}) > 20  # it does hang on the thresholds
    for point in found.points:
        assert point.num_found <= point.num_right <= point.num_matches  # a match is right for one step at most here
        assert point.num_found <= found.num_reachable <= found.num_steps
        assert point.precision == point.num_right / max(1, point.num_matches)
        assert point.recall == point.num_found / found.num_steps
        assert min(point.precision, point.recall) <= point.f1 <= max(point.precision, point.recall)
        assert 0 <= point.f1_range[0] <= point.f1_range[1] <= 1
    assert found.paper.beats_paper == 0.5
    assert found.best.f1 == max(point.f1 for point in found.points)
    front = found.frontier
    assert [point.recall for point in front] == sorted({point.recall for point in front}, reverse=True)
    for point in found.points:
        assert any(one.recall >= point.recall and one.precision >= point.precision for one in front)
    again = calibrate(write_set(tmp_path / "again", rows[::-1]), dict(reversed(steps.items())))
    assert [replace(p, f1_range=(0, 0), beats_paper=0) for p in again.points] == [
        replace(p, f1_range=(0, 0), beats_paper=0) for p in found.points
    ]


def test_shuffled_steps_are_seen(tmp_path: Path) -> None:
    """The measure can fail: steps of another video are not found."""
    rows, steps = made_up(8)
    out = write_set(tmp_path, rows)
    others = dict(zip(steps, list(steps.values())[1:] + list(steps.values())[:1], strict=True))
    assert calibrate(out, others).best.f1 < 0.3 < 0.4 < calibrate(out, steps).best.f1


def test_a_video_in_a_subfolder_is_known_by_its_own_name(tmp_path: Path) -> None:
    rows = [video_rows("training/101/GLd", [(0, 10)], [(0, 8, "Fry onions")])]
    steps = {"GLd": marked((0, 10, "fry onions"))}
    assert calibrate(write_set(tmp_path / "a", rows), steps).paper.f1 == 1
    rows.append(video_rows("validation/GLd", [(0, 10)], [(0, 8, "Fry onions")]))
    with pytest.raises(InputError, match="two of its videos have the id 'GLd'"):
        calibrate(write_set(tmp_path / "b", rows), steps)


def test_sets_that_cannot_be_calibrated_are_told_why(tmp_path: Path) -> None:
    steps = {"a": marked((0, 10, "fry onions"))}
    video, clips, actions = video_rows("a", [(0, 10)], [(0, 8, "Fry onions")])
    with pytest.raises(InputError, match="no such table"):
        calibrate(tmp_path / "nothing", steps)
    with pytest.raises(InputError, match="none of its 1 videos is among the 1 of the annotations"):
        calibrate(write_set(tmp_path / "other", [video_rows("b", [(0, 10)], [])]), steps)
    by_hand = [action.model_copy(update={"origin": "manual"}) for action in actions]
    with pytest.raises(InputError, match=r"are human annotations.*--source folder"):
        calibrate(write_set(tmp_path / "manual", [(video, clips, by_hand)]), steps)
    with pytest.raises(InputError, match="no annotated video with clips, actions and marked steps"):
        calibrate(write_set(tmp_path / "silent", [(video, clips, [])]), steps)


def test_the_page_is_whole_and_marks_the_paper(tmp_path: Path) -> None:
    rows, steps = made_up(6)
    found = calibrate(write_set(tmp_path, rows), steps)
    name = "<script>alert(1)</script>{{ 7 * 7 }}"
    html = calibration_page(found, name=name, annotations=name)
    page = Page(html)
    assert page.open_tags == [] and "<script>alert(1)" not in html and name in page.text
    assert len(page.all("table", **{"class": "map"})) == 6
    cells = [attributes["class"].split() for attributes in page.all("td") if "title" in attributes]
    assert len(cells) == len(GRID)
    assert sum("paper" in cell for cell in cells) == sum("best" in cell for cell in cells) == 1
    assert f"{found.best.f1:.3f}" in page.text and found.best.thresholds.command in page.text
    for attributes in page.all("circle"):
        assert 0 <= float(attributes["cx"]) <= 520 and 0 <= float(attributes["cy"]) <= 506
    assert not page.all("script")
    assert_self_contained(html.replace("</body>", "<script>0</script></body>"))  # the report has one
    assert calibration_page(found, name=name, annotations=name) == html
    plot = draw(found)
    assert sum(tip.count("--start-diff") for *_, tip in plot.dots) == len(plot.dots) <= len(GRID)
    assert {cell.shade for map_ in heat_maps(found) for _, row in map_.rows for cell in row} >= {0, 10}


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows, steps = made_up(4)
    out = write_set(tmp_path / "set", rows)
    annotations = tmp_path / "marked.json"
    entries = {
        video_id: {
            "subset": "validation",
            "annotations": [{"segment": [s.start_s, s.end_s], "id": 0, "sentence": s.text} for s in marks],
        }
        for video_id, marks in steps.items()
    }
    annotations.write_text(json.dumps({"database": entries}))
    assert youcook2.segments(annotations) == {video_id: tuple(marks) for video_id, marks in steps.items()}
    assert main(["calibrate", "--out", str(out), "--annotations", str(annotations)]) == 0
    said = capsys.readouterr().out
    found = calibrate(out, steps)
    assert table(found) in said and "the paper's" in said
    assert (out / ".runs" / "calibration.html").read_text() == calibration_page(
        found, name="set", annotations="marked.json"
    )
    assert main(["calibrate", "--out", str(out), "--annotations", str(annotations), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values == json.loads(json.dumps(found.to_values()))
    assert Thresholds(*(values["paper"][name] for name in Thresholds._fields)) == PAPER
    assert main(["calibrate", "--out", str(out), "--annotations", str(tmp_path / "none.json")]) == 2
    assert "No such file" in capsys.readouterr().err


def test_real_annotations_are_read(data: Path) -> None:
    steps = youcook2.segments(data / "annotations" / "youcook2" / "youcookii_annotations_trainval.json")
    assert len(steps) > 1500 and sum(map(len, steps.values())) > 10_000
