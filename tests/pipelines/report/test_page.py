"""The report: whole, self-contained, safe to open whatever the videos call themselves, and true to the rows."""

from __future__ import annotations

import base64
import hashlib
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import jinja2
import pytest
from PIL import Image

from cookgen.records import (
    Action,
    Caption,
    Check,
    Clip,
    Lineage,
    Match,
    Narrative,
    Reason,
    Record,
    Reject,
    SourceVideo,
    Video,
    Word,
)
from pipelines.report import page, timeline
from pipelines.report.page import report_page
from pipelines.stage import Result, VideoState
from pipelines.stages.actions import is_verbatim

RUN = {"name": "cookgen-folder", "source": "folder", "created_by": "cookgen 0.1.0", "config": "3f9a" * 16}
HOSTILE = (
    """</title></style><script>alert(1)</script><img src=x onerror='alert(2)'>" onload="alert(3) {{ 7 * 7 }} \u202e"""
)
VOID = {"meta", "img", "input", "br", "link", "hr"}


@dataclass
class Page(HTMLParser):
    """The parsed page: every element with its attributes, in order, and the text outside of style and script."""

    html: str
    elements: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    raw: dict[str, list[str]] = field(default_factory=dict)
    open_tags: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.feed(self.html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open_tags.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        if tag in ("p", "li", "dd", "dt"):  # whose end tags HTML lets one leave out
            while self.open_tags[-1] != tag:
                self.open_tags.pop()
        assert self.open_tags.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        inside = self.open_tags[-1] if self.open_tags else ""
        if inside in ("style", "script"):
            self.raw.setdefault(inside, []).append(data)
        else:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.texts).split())

    def all(self, tag: str, **wanted: str) -> list[dict[str, str]]:
        return [attrs for name, attrs in self.elements if name == tag and wanted.items() <= attrs.items()]


@dataclass
class Media:
    """A media store with one keyframe, found by its digest."""

    folder: Path

    def add(self, color: tuple[int, int, int]) -> tuple[str, int]:
        content = io.BytesIO()
        Image.new("RGB", (448, 448), color).save(content, "JPEG")
        sha256 = hashlib.sha256(content.getvalue()).hexdigest()
        self(sha256).write_bytes(content.getvalue())
        return sha256, len(content.getvalue())

    def __call__(self, sha256: str) -> Path:
        return self.folder / f"{sha256}.jpg"


@pytest.fixture
def media(tmp_path: Path) -> Media:
    (tmp_path / "media").mkdir()
    return Media(tmp_path / "media")


def result(stage: str, narrative: str, rows: Sequence[Record], rejects: Sequence[Reject], model: str | None) -> Result:
    lineage = Lineage(version=1, config="c", model=model, inputs="i")
    return Result(stage, "k", narrative, tuple(rows), tuple(rejects), lineage, 1.5)


def video_state(
    media: Media,
    name: str = "folder-a",
    *,
    num_clips: int = 3,
    num_matched: int = 2,
    num_words: int = 12,
    text: str = "stir the pot",
    title: str | None = None,
    origin: str = "asr",
    captioner: str = "tags",
    stop: Reject | None = None,
) -> VideoState:
    """A video with clips of 10 s, of which the first `num_matched` have an action; stopped where `stop` says."""
    source = SourceVideo(
        narrative=name, source="folder", video_id=name, path=f"{name}.mp4", num_bytes=9, mtime_ns=0, title=title
    )
    video = Video(
        narrative=name, source="folder", video_id=name, path=source.path, sha256="a" * 64, num_bytes=9,
        duration_s=10.0 * num_clips, start_s=0, width=640, height=360, fps=24, video_stream=0, audio_stream=1,
        has_audio=True, split="train", title=title,
    )  # fmt: skip
    clips = []
    for index in range(num_clips):
        sha256, num_bytes = media.add((200, 20 * index % 256, 40))
        clips.append(
            Clip(
                narrative=name, clip_index=index, start_s=10.0 * index, end_s=10.0 * index + 10,
                first_pts_s=10.0 * index, last_pts_s=10.0 * index + 9.9, num_frames=240, fps=24, width=448, height=448,
                has_audio=True, sha256="b" * 64, num_bytes=9, keyframe_pts_s=10.0 * index + 5,
                keyframe_sha256=sha256, keyframe_num_bytes=num_bytes,
            )
        )  # fmt: skip
    words = [
        Word(narrative=name, word_id=n, text=f" w{n}", start_s=n * 2.0, end_s=n * 2.0 + 1.6, probability=1)
        for n in range(num_words)
    ]
    actions = [
        Action(
            narrative=name, action_index=n, text=f"{text} {n}", start_s=10.0 * n + 1, end_s=10.0 * n + 8,
            origin=origin, raw_text=f"so now {text} {n}" if n % 2 else f"we {text} it",
        )  # type: ignore[arg-type]
        for n in range(num_matched + 1)
    ]  # fmt: skip
    captions = [
        Caption(narrative=name, clip_index=n, text=f"{text}, seen {n}", origin=captioner) for n in range(num_clips)
    ]
    matches = [
        Match(
            narrative=name, clip_index=n, action_index=n, start_diff_s=1, iou=0.7, allowed=True,
            chosen=n < num_matched, rule="iou",
        )
        for n in range(min(num_matched + 1, num_clips))
    ]  # fmt: skip
    checks = [Check(narrative=name, clip_index=None, check="repeated_text", score=0.25)]
    results = {}
    everything: list[tuple[str, Sequence[Record], str | None]] = [
        ("videos", [video], None),
        ("clips", clips, None),
        ("speech", words, "whisper@1"),
        ("actions", actions, "smollm@2"),
        ("captions", captions, "lite0@3"),
        ("matches", matches, None),
        ("checks", checks, None),
    ]
    for stage, rows, model in everything:
        is_end = stop is not None and stop.stage == stage
        results[stage] = result(stage, name, [] if is_end else rows, [stop] if is_end and stop else [], model)
        if is_end:
            break
    return VideoState(source, results)


def reject(name: str | None, stage: str, reason: Reason, detail: str = "", **index: int) -> Reject:
    return Reject(narrative=name, path=f"{name}.mp4", stage=stage, reason=reason, detail=detail, **index)


def row(name: str, num_steps: int, split: str = "train") -> Narrative:
    return Narrative(
        narrative=name, split=split, shard="train/x.tar", num_steps=num_steps, first_member_offset=0, num_bytes=512
    )


@pytest.fixture
def everything(media: Media) -> dict[str, Any]:
    """Two narratives, a silent video, a broken one, one with too few steps, one that the source refused."""
    silent = reject("folder-silent", "speech", Reason.NO_SPEECH, "0 words in 30 s")
    broken = reject("folder-broken", "videos", Reason.NOT_A_VIDEO, "moov atom not found")
    few = reject("folder-few", "shards", Reason.TOO_FEW_STEPS, "1 of 2")
    refused = reject(None, "source", Reason.BAD_NAME, "not UTF-8")
    states = [
        video_state(media, "folder-b", num_clips=5, num_matched=4),
        video_state(media, "folder-silent", stop=silent),
        video_state(media, "folder-broken", stop=broken),
        video_state(media, "folder-a"),
        video_state(media, "folder-few", num_matched=1),
    ]
    unmatched = [
        reject("folder-a", "matches", Reason.UNMATCHED, clip_index=2),
        reject("folder-a", "matches", Reason.UNMATCHED, action_index=2),
        reject("folder-b", "matches", Reason.UNMATCHED, clip_index=4),
        reject("folder-b", "matches", Reason.UNMATCHED, action_index=4),
        reject("folder-b", "actions", Reason.UNGROUNDED_ACTION, action_index=5),
    ]
    return {
        "states": states,
        "source_rejects": [refused],
        "narratives": [row("folder-a", 2), row("folder-b", 4, "val")],
        "rejects": [silent, broken, few, refused, *unmatched],
        "run": RUN,
        "media": media,
    }


def render(values: dict[str, Any], **changes: Any) -> str:
    values = values | changes
    return report_page(values.pop("states"), values.pop("source_rejects"), **values)


def funnel(parsed: Page) -> dict[str, list[tuple[str, int]]]:
    """The three funnels as a reader sees them: {caption: [(level, count)]}."""
    found: dict[str, list[tuple[str, int]]] = {}
    text = re.sub(r"<svg.*?</svg>", "", parsed.html, flags=re.S)
    for caption, body in re.findall(r"<caption>(\w+)</caption>(.*?)</table>", text, flags=re.S):
        rows = re.findall(r'<th scope="row">([^<]+)</th>.*?<td class="count">(\d+)</td>', body, flags=re.S)
        found[caption] = [(label, int(count)) for label, count in rows]
    return found


def assert_self_contained(html: str) -> None:
    """Raises AssertionError for whatever would make a browser ask someone for something, or run what is not ours."""
    parsed = Page(html)
    assert len(parsed.all("script")) == len(parsed.all("style")) == 1
    assert not {"link", "iframe", "object", "embed", "base", "a", "audio", "video", "source"} & {
        t for t, _ in parsed.elements
    }
    for _, attributes in parsed.elements:
        for name, value in attributes.items():
            assert not name.startswith("on"), name
            assert name not in ("href", "srcset", "action", "style", "xlink:href", "background", "formaction"), name
            assert name != "src" or value.startswith("data:image/jpeg;base64,"), value
    assert not re.search(r"url\(|@import|https?:|//\w", "".join(parsed.raw["style"]))
    assert not re.search(r"https?:|import|fetch|XMLHttp|eval|innerHTML", "".join(parsed.raw["script"]))


def test_the_page_is_self_contained_and_well_formed(everything: dict[str, Any]) -> None:
    html = render(everything)
    assert_self_contained(html)
    assert Page(html).open_tags == []
    for bad in (
        '<img src="http://x/y.jpg">',
        '<p onclick="x">',
        "<script></script>",
        '<link rel="x">',
        '<p style="x">',
    ):
        with pytest.raises(AssertionError):
            assert_self_contained(html.replace("<main>", f"<main>{bad}"))


def test_the_policy_allows_just_our_style_and_script(everything: dict[str, Any]) -> None:
    parsed = Page(render(everything))
    policy = parsed.all("meta", **{"http-equiv": "Content-Security-Policy"})[0]["content"]
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    assert "http" not in policy
    for kind in ("style", "script"):
        content = "".join(parsed.raw[kind]).encode()
        assert f"{kind}-src 'sha256-{base64.b64encode(hashlib.sha256(content).digest()).decode()}'" in policy


def hostile(media: Media) -> dict[str, Any]:
    stop = reject("folder-stopped", "speech", Reason.NO_SPEECH, HOSTILE)
    return {
        "states": [
            video_state(media, "folder-a", title=HOSTILE, text=HOSTILE, captioner=f"tags{HOSTILE}"),
            video_state(media, "folder-stopped", title=HOSTILE, stop=stop),
        ],
        "source_rejects": [],
        "narratives": [row("folder-a", 2, split=f"train{HOSTILE}")],
        "rejects": [stop, Reject(narrative=None, path=HOSTILE, stage=HOSTILE, reason=Reason.BAD_NAME, detail=HOSTILE)],
        "run": RUN | {"name": HOSTILE, "source": HOSTILE, "created_by": HOSTILE, "config": HOSTILE},
        "media": media,
    }


def test_hostile_texts_stay_texts(media: Media, monkeypatch: pytest.MonkeyPatch) -> None:
    html = render(hostile(media))
    assert_self_contained(html)
    parsed = Page(html)
    assert parsed.open_tags == []
    assert parsed.text.count("<script>alert(1)</script>") > 8  # it is there, as text
    assert "{{ 7 * 7 }}" in parsed.text

    surrogate = render(hostile(media), run=RUN | {"name": "caf\udce9"})
    assert "caf?" in surrogate.encode().decode()

    # Without escaping the same texts break out: the check above can fail.
    safe = page._environment
    monkeypatch.setattr(page, "_environment", lambda: safe().overlay(autoescape=False))
    with pytest.raises(AssertionError):
        assert_self_contained(render(hostile(media)))


def test_every_video_is_on_the_page(everything: dict[str, Any]) -> None:
    parsed = Page(render(everything))
    for state in everything["states"]:
        assert parsed.text.count(state.source.path) == 2  # its own section and the list of all
    assert len(parsed.all("details", **{"class": "video"})) == 5
    for text in ("None.mp4", "bad name", "not UTF-8", "moov atom not found", "0 words in 30 s", "1 of 2"):
        assert text in parsed.text
    assert "6 videos in, 2 narratives out (1 in train, 1 in val), 6 steps altogether" in parsed.text


def test_the_numbers_agree_with_the_rows(everything: dict[str, Any]) -> None:
    parsed = Page(render(everything))
    assert funnel(parsed) == {
        "Videos": [
            ("found", 6), ("usable", 4), ("with clips", 4), ("with speech", 3), ("with actions", 3),
            ("with a match", 3), ("narratives", 2),
        ],
        "Clips": [("cut", 14), ("captioned", 11), ("matched", 7), ("in narratives", 6)],
        "Actions": [("found", 10), ("matched", 7), ("in narratives", 6)],
    }  # fmt: skip
    for text in ("−1 bad name", "−1 not a video", "−1 no speech", "−1 too few steps", "−3 no speech"):
        assert text in parsed.text
    counted = re.findall(
        r"<code>(\w+)</code></th><td>(\w+)</td><td>(\w+)</td><td class=\"count\">(\d+)</td>", parsed.html
    )
    assert sum(int(count) for *_, count in counted) == len(everything["rejects"])
    assert ("unmatched", "matches", "clip", "2") in counted
    assert ("unmatched", "matches", "action", "2") in counted


def test_the_shares_of_rewritten_and_verbatim_actions(everything: dict[str, Any]) -> None:
    told = [
        row
        for state in everything["states"]
        for r in state.results.values()
        for row in r.rows
        if isinstance(row, Action)
    ]
    verbatim = sum(is_verbatim(action) for action in told)
    assert 0 < verbatim < len(told)
    text = Page(render(everything)).text
    assert f"rewritten {len(told) - verbatim} of {len(told) + 1}" in text
    assert f"verbatim {verbatim} of {len(told) + 1}" in text
    assert f"rejected 1 of {len(told) + 1}" in text


@pytest.mark.parametrize(
    ("text", "spoken", "expected"),
    [
        ("Stir the pot.", "so, stir the pot, please", True),
        ("stir the pot", "stir the potato", False),
        ("stir pot", "stir the pot", False),
        ("rühre um", "jetzt RÜHRE um", True),
    ],
)
def test_what_verbatim_means(text: str, spoken: str, expected: bool) -> None:
    action = Action(narrative="a-b", action_index=0, text=text, start_s=0, end_s=1, origin="asr", raw_text=spoken)
    assert is_verbatim(action) is expected


def test_marked_steps_need_no_speech(media: Media) -> None:
    state = video_state(media, origin="manual", num_words=0)
    values = {"states": [state], "source_rejects": [], "narratives": [row("folder-a", 2)], "rejects": [], "run": RUN}
    parsed = Page(render(values, media=media))
    assert ("with speech or marked steps", 1) in funnel(parsed)["Videos"]
    assert "manual 3 of 3 (100.0 %): marked by people" in parsed.text


def test_a_stand_in_captioner_is_called_one(media: Media) -> None:
    for captioner, expected in (("tags", True), ("tags@1", True), ("llava-next", False)):
        values = {
            "states": [video_state(media, captioner=captioner)],
            "source_rejects": [],
            "narratives": [row("folder-a", 2)],
        }
        text = Page(render(values, rejects=[], run=RUN, media=media)).text
        assert ("stand-in" in text) is expected
        assert captioner in text
        for model in ("whisper@1", "smollm@2", "lite0@3"):
            assert model in text


def test_the_same_rows_give_the_same_bytes(everything: dict[str, Any]) -> None:
    first = render(everything)
    assert render(everything, states=everything["states"][::-1]) == first


def test_keyframes_are_small_pictures_and_missing_ones_are_said(everything: dict[str, Any]) -> None:
    parsed = Page(render(everything))
    pictures = parsed.all("img")
    assert len(pictures) == 14
    for picture in pictures:
        content = base64.b64decode(picture["src"].removeprefix("data:image/jpeg;base64,"))
        with Image.open(io.BytesIO(content)) as image:
            assert image.size == (160, 160)
        assert picture["alt"].startswith("Keyframe at ")
    one = everything["states"][3].results["clips"].rows[0]
    everything["media"](one.keyframe_sha256).write_bytes(b"rot")
    broken = Page(render(everything))
    assert "no keyframe" in broken.text
    assert 0 < len(broken.all("img")) < 14


def test_nothing_at_all(media: Media) -> None:
    parsed = Page(report_page([], [], narratives=[], rejects=[], run=RUN, media=media))
    assert_self_contained(parsed.html)
    assert "0 videos in, 0 narratives out, 0 steps altogether" in parsed.text


def test_many_videos_stay_a_page_that_opens(media: Media, monkeypatch: pytest.MonkeyPatch) -> None:
    one = video_state(media, num_clips=4, num_matched=3, num_words=300)
    names = [f"folder-{number:04d}" for number in range(130)]
    values = {
        "states": [renamed(one, name) for name in names],
        "source_rejects": [],
        "narratives": [row(name, 30) for name in names],
        "rejects": [],
        "run": RUN,
        "media": media,
    }
    parsed = Page(render(values))
    assert len(parsed.all("details", **{"class": "video"})) == 100
    assert "100 of 130 videos with a timeline; the list below has all of them." in parsed.text
    for name in names:
        assert f"{name}.mp4" in parsed.text

    monkeypatch.setattr(page, "_MAX_DETAIL_BYTES", 400_000)
    monkeypatch.setattr(page, "_MAX_LISTED", 120)
    small = Page(render(values))
    shown = len(small.all("details", **{"class": "video"}))
    assert 2 < shown < 50
    assert f"{shown} of 130 videos with a timeline; the list below has more of them." in small.text
    assert "10 more are in tables/narratives.parquet" in small.text
    assert len(small.html.encode()) < 400_000 + 60_000


def renamed(state: VideoState, name: str) -> VideoState:
    def again(record: Any) -> Any:
        return record.model_copy(
            update={"narrative": name} | ({"path": f"{name}.mp4"} if "path" in record.model_fields_set else {})
        )

    results = {
        stage: result(stage, name, [again(item) for item in kept.rows], [], kept.lineage.model)
        for stage, kept in state.results.items()
    }
    return VideoState(again(state.source), results)


def test_the_timeline_is_to_scale(media: Media) -> None:
    state = video_state(media, num_clips=4, num_matched=2)
    rows = {stage: kept.rows for stage, kept in state.results.items()}
    chosen = [match for match in rows["matches"] if match.chosen]
    drawn = timeline.draw(40, rows["speech"], rows["actions"], rows["clips"], chosen, {0: 1, 1: 2})
    scale = (timeline.WIDTH - timeline.LEFT - timeline.RIGHT) / 40
    assert [bar.x for bar in drawn.clips] == pytest.approx([timeline.LEFT + scale * 10 * n for n in range(4)], abs=0.01)
    assert [bar.width for bar in drawn.clips] == pytest.approx([scale * 10] * 4, abs=0.02)
    assert [bar.label for bar in drawn.clips] == ["1", "2", "", ""]
    assert [bar.is_matched for bar in drawn.actions] == [True, True, False]
    assert len(drawn.bands) == 2
    corners = [tuple(map(float, point.split(","))) for point in drawn.bands[1].points.split()]
    action, clip = drawn.actions[1], drawn.clips[1]
    assert [x for x, _ in corners] == pytest.approx(
        [action.x, action.x + action.width, clip.x + clip.width, clip.x], abs=0.02
    )
    assert drawn.words.count("M") == len(rows["speech"])
    assert drawn.ticks[0] == (timeline.LEFT, "0 s")
    assert len(drawn.ticks) <= 13


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00.0"), (59.96, "1:00.0"), (75.25, "1:15.2"), (3599.99, "1:00:00"), (7325, "2:02:05")]
)
def test_clock(seconds: float, text: str) -> None:
    assert timeline.clock(seconds) == text


def test_the_templates_refuse_unknown_names() -> None:
    assert page._environment().undefined is jinja2.StrictUndefined
