"""The checks stage on real small clips."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from cookgen.dataset.scores import caption_sha256, write_scores
from cookgen.dataset.tables import write_table
from cookgen.errors import FormatError, InputError, ModelServerError
from cookgen.files import file_sha256
from cookgen.perception.judges import JudgesConfig
from cookgen.records import Action, Caption, Check, Clip, Match, Reason, Reject, Score
from pipelines.stage import Places
from pipelines.stages.checks import STAGE, Checker, ChecksConfig, load, num_decoded_frames
from tests.chatserver import Reply, chat_server

NARRATIVE = "folder-x"
NUM_FRAMES = 24
CLIP_CHECKS = ["caption_action_similarity", "caption_repeated", "action_repeated", "empty_text", "clip_decodes"]
NARRATIVE_CHECKS = ["matched_clip_share", "matched_action_share"]


@pytest.fixture(scope="module")
def tool(tmp_path_factory: pytest.TempPathFactory) -> Checker:
    folder = tmp_path_factory.mktemp("run")
    return load(STAGE.config, Places(videos=folder, media=folder / "media", scratch=folder / "scratch"))


@pytest.fixture(scope="module")
def mp4(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A real clip: NUM_FRAMES frames of moving noise, the index at the front."""
    return encoded(tmp_path_factory.mktemp("clip") / "clip.mp4", most=255)


@pytest.fixture(scope="module")
def dark_mp4(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Another one, which is darker."""
    return encoded(tmp_path_factory.mktemp("clip") / "clip.mp4", most=60)


def encoded(path: Path, *, most: int) -> bytes:
    noise = np.random.default_rng(0).integers(0, most, (96, 96, 3), np.uint8)
    with av.open(str(path), "w", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=12, width=96, height=96, pix_fmt="yuv420p")
        for number in range(NUM_FRAMES):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.roll(noise, number, axis=1))))
        container.mux(stream.encode(None))
    return path.read_bytes()


@pytest.fixture
def store(tool: Checker) -> Callable[[bytes], str]:
    def put(content: bytes) -> str:
        (tool.places.media).mkdir(parents=True, exist_ok=True)
        new = tool.places.media / "new"
        new.write_bytes(content)
        path = tool.places.medium(sha256 := file_sha256(new), ".mp4")
        path.parent.mkdir(parents=True, exist_ok=True)
        new.replace(path)
        return sha256

    return put


def clip(index: int, sha256: str) -> Clip:
    return Clip(
        narrative=NARRATIVE,
        clip_index=index,
        start_s=5.0 * index,
        end_s=5.0 * index + 2,
        first_pts_s=5.0 * index,
        last_pts_s=5.0 * index + 1.9,
        num_frames=NUM_FRAMES,
        fps=12,
        width=96,
        height=96,
        has_audio=False,
        sha256=sha256,
        num_bytes=1,
        keyframe_pts_s=5.0 * index + 1,
        keyframe_sha256="0" * 64,
        keyframe_num_bytes=1,
    )


def action(index: int, text: str) -> Action:
    return Action(
        narrative=NARRATIVE,
        action_index=index,
        text=text,
        start_s=index,
        end_s=index + 1,
        origin="manual",
        raw_text=text,
    )


def caption(index: int, text: str) -> Caption:
    return Caption(narrative=NARRATIVE, clip_index=index, text=text, origin="test")


def match(clip_index: int, action_index: int, *, chosen: bool = True) -> Match:
    rule = "iou" if chosen else None
    return Match(
        narrative=NARRATIVE,
        clip_index=clip_index,
        action_index=action_index,
        start_diff_s=0,
        iou=0.6,
        allowed=chosen,
        chosen=chosen,
        rule=rule,
    )


def run(
    tool: Checker,
    clips: Iterable[Clip],
    actions: Iterable[Action],
    captions: Iterable[Caption],
    matches: Iterable[Match],
) -> list[Check]:
    return list(
        STAGE.run(tuple(clips), tuple(actions), tuple(captions), tuple(matches), config=STAGE.config, tool=tool)
    )


def test_every_chosen_pair_is_scored_in_order(tool: Checker, mp4: bytes, store: Callable[[bytes], str]) -> None:
    sha256 = store(mp4)
    clips = [clip(index, sha256) for index in range(4)]
    actions = [action(0, "Whisk the eggs"), action(1, "Chop the onions"), action(2, "whisk  the EGGS."), action(3, "x")]
    captions = [caption(0, "A person whisks eggs"), caption(1, "A red car"), caption(2, "Eggs."), caption(3, "?!")]
    matches = [match(3, 3), match(0, 0), match(1, 1), match(2, 2), match(2, 1, chosen=False)]
    rows = run(tool, clips, actions, captions, matches)
    assert [(row.clip_index, row.check) for row in rows] == [
        *((index, name) for index in range(4) for name in CLIP_CHECKS),
        *((None, name) for name in NARRATIVE_CHECKS),
    ]
    scores = {(row.clip_index, row.check): row.score for row in rows}
    alike, other = (scores[index, "caption_action_similarity"] for index in (0, 1))
    assert -1 <= other < 0.3 < 0.5 < alike <= 1
    assert [scores[index, "action_repeated"] for index in range(4)] == pytest.approx([1 / 3, 0, 1 / 3, 0])
    assert [scores[index, "caption_repeated"] for index in range(4)] == [0, 0, 0, 0]
    assert [scores[index, "empty_text"] for index in range(4)] == [0, 0, 0, 1]
    assert [scores[index, "clip_decodes"] for index in range(4)] == [1, 1, 1, 1]
    assert scores[None, "matched_clip_share"] == 1 and scores[None, "matched_action_share"] == 1
    shuffled = run(tool, clips[::-1], actions[::-1], captions[::-1], matches[::-1])
    assert [row.to_json() for row in shuffled] == [row.to_json() for row in rows]


def test_shares_count_what_was_not_matched(tool: Checker, mp4: bytes, store: Callable[[bytes], str]) -> None:
    sha256 = store(mp4)
    rows = run(
        tool,
        [clip(index, sha256) for index in range(4)],
        [action(0, "stir"), action(1, "fry")],
        [caption(index, "a pot") for index in range(4)],
        [match(2, 1), match(0, 0, chosen=False)],
    )
    scores = {row.check: row.score for row in rows}
    assert scores["matched_clip_share"] == 0.25 and scores["matched_action_share"] == 0.5
    assert scores["caption_repeated"] == 0  # one step has no others


def test_nothing_is_said_where_nothing_is_matched(tool: Checker, tmp_path: Path) -> None:
    one = ([clip(0, "0" * 64)], [action(0, "stir")])
    assert run(tool, *one, [caption(0, "a pot")], [match(0, 0, chosen=False)]) == []
    assert run(tool, *one, [], [match(0, 0)]) == []  # a clip without a caption becomes no step
    assert run(tool, [], [], [], []) == []
    # No model is loaded for that.
    idle = Checker(tool.places, ChecksConfig(model=str(tmp_path / "none")))
    assert list(STAGE.run((), (), (), (), config=STAGE.config, tool=idle)) == []


def test_damaged_clips_score_lower(tool: Checker, mp4: bytes, store: Callable[[bytes], str]) -> None:
    stored = [store(content) for content in (mp4, mp4[: len(mp4) * 6 // 10], b"<html>no clip</html>", b"")]
    rows = run(
        tool,
        [clip(index, sha256) for index, sha256 in enumerate(stored)],
        [action(index, "stir") for index in range(4)],
        [caption(index, "a pot") for index in range(4)],
        [match(index, index) for index in range(4)],
    )
    whole, cut, page, empty = (row.score for row in rows if row.check == "clip_decodes")
    assert whole == 1 and 0 < cut < 1 and page == 0 and empty == 0


def test_a_clip_that_is_not_in_the_store_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        num_decoded_frames(tmp_path / "none.mp4")


def test_the_model_is_in_the_lineage() -> None:
    assert STAGE.model(STAGE.config) == "all-minilm-l6-v2@0.1.0-53aa51172d14"


# ---------------------------------------------------------------------------------------------------------- the judges


def judge_of_brightness(request: dict[str, Any], number: int) -> Reply:
    """Covers what it sees where the caption says `bright` of a bright clip; of `broken` it answers nonsense."""
    *pictures, text = request["messages"][0]["content"]
    encoded = pictures[0]["image_url"]["url"].partition(",")[2]
    with Image.open(io.BytesIO(base64.b64decode(encoded))) as image:
        is_bright = np.asarray(image).mean() > 90
    if "broken" in text["text"].rsplit("caption: ", 1)[1]:
        return Reply("I would rather not.")
    is_right = is_bright == ("bright" in text["text"].rsplit("caption: ", 1)[1])
    return Reply(json.dumps({"coverage": 5 if is_right else 1, "hallucination": 1 if is_right else 5}))


def judged(tool: Checker, url: str, clips: list[Clip], texts: list[str]) -> list[Check | Reject]:
    judges = JudgesConfig(("j",), (url,), num_frames=2, timeout_s=5, patience_s=5, num_in_flight=3)
    config = replace(STAGE.config, judges=judges)
    asked = load(config, tool.places)
    rows = STAGE.run(
        tuple(clips),
        tuple(action(item.clip_index, "stir") for item in clips),
        tuple(caption(item.clip_index, text) for item, text in zip(clips, texts, strict=True)),
        tuple(match(item.clip_index, item.clip_index) for item in clips),
        config=config,
        tool=asked,
    )
    return list(rows)


def coverage(rows: list[Check | Reject]) -> dict[int | None, float]:
    return {row.clip_index: row.score for row in rows if isinstance(row, Check) and row.check == "caption_coverage"}


def test_judges_look_at_the_clips_and_nobody_else_does(
    tool: Checker, mp4: bytes, dark_mp4: bytes, store: Callable[[bytes], str]
) -> None:
    bright, dark = store(mp4), store(dark_mp4)
    clips = [clip(index, (bright, dark)[index % 2]) for index in range(6)]
    texts = ["bright" if index % 2 == 0 else "gloomy" for index in range(6)]
    with chat_server(judge_of_brightness) as server:
        rows = judged(tool, server.url, clips, texts)
        shuffled = judged(tool, server.url, clips, texts[1:] + texts[:1])
    assert len(server.requests) == 12
    assert coverage(rows) == dict.fromkeys(range(6), 5)
    assert coverage(shuffled) == dict.fromkeys(range(6), 1)
    names = [row.check for row in rows if isinstance(row, Check) and row.clip_index == 0]
    assert names[:5] == CLIP_CHECKS
    assert sorted(names[5:]) == sorted(
        f"caption_{criterion}{of}" for criterion in ("coverage", "hallucination") for of in ("", "_by_j")
    )
    # The stage's own numbers are the same with judges and without.
    plain = run(
        tool,
        clips,
        [action(index, "stir") for index in range(6)],
        [caption(index, text) for index, text in enumerate(texts)],
        [match(index, index) for index in range(6)],
    )
    own = [row for row in rows if isinstance(row, Check) and row.check in CLIP_CHECKS + NARRATIVE_CHECKS]
    assert own == plain


def test_a_clip_without_a_score_says_so_and_stays(tool: Checker, mp4: bytes, store: Callable[[bytes], str]) -> None:
    sha256 = store(mp4)
    damaged = store(mp4[: len(mp4) * 6 // 10])
    clips = [clip(0, sha256), clip(1, sha256), clip(2, damaged)]
    with chat_server(judge_of_brightness) as server:
        rows = judged(tool, server.url, clips, ["bright", "broken", "bright"])
    rejects = [row for row in rows if isinstance(row, Reject)]
    assert [(row.clip_index, row.reason) for row in rejects] == [(1, Reason.UNUSABLE_ANSWER), (2, Reason.DECODE_ERROR)]
    assert "no score by the judge j: not JSON" in rejects[0].detail and not any(row.is_video_level for row in rejects)
    assert coverage(rows) == {0: 5}
    assert [row.clip_index for row in rows if isinstance(row, Check) and row.check == "clip_decodes"] == [0, 1, 2]


def test_a_dead_judge_ends_the_run(tool: Checker, mp4: bytes, store: Callable[[bytes], str]) -> None:
    clips = [clip(index, store(mp4)) for index in range(3)]
    with chat_server(lambda request, number: Reply(status=401, body=b"{}")) as server, pytest.raises(ModelServerError):
        judged(tool, server.url, clips, ["bright"] * 3)


# ----------------------------------------------------------------------------------------- scores of an earlier set


def score(clip_sha256: str, text: str, value: float, narrative: str = NARRATIVE) -> Score:
    return Score(
        narrative=narrative,
        clip_sha256=clip_sha256,
        caption_sha256=caption_sha256(text),
        check="inverse_clip_t",
        score=value,
    )


def test_scores_join_the_very_clip_and_caption(
    tool: Checker, mp4: bytes, store: Callable[[bytes], str], tmp_path: Path
) -> None:
    sha256 = store(mp4)
    other = "0" * 64
    write_scores(
        tmp_path / "scores.parquet",
        [score(sha256, "a pot", 20), score(other, "a pan", 30), score(sha256, "a pot", 40, narrative="folder-y")],
    )
    config = replace(STAGE.config, scores=str(tmp_path / "scores.parquet"))
    clips = (clip(0, sha256), clip(1, sha256))
    rows = STAGE.run(
        clips,
        tuple(action(index, "stir") for index in range(2)),
        (caption(0, "a pot"), caption(1, "a pan")),
        tuple(match(index, index) for index in range(2)),
        config=config,
        tool=load(config, tool.places),
    )
    assert [(row.clip_index, row.score) for row in rows if row.check == "inverse_clip_t"] == [(0, 20)]


def test_a_file_of_scores_is_part_of_the_lineage(tmp_path: Path) -> None:
    path = tmp_path / "scores.parquet"
    config = replace(STAGE.config, scores=str(path))
    with pytest.raises(InputError, match="no such table"):
        STAGE.model(config)
    identities = set()
    for value in (1.0, 2.0):
        write_scores(path, [score("0" * 64, "a", value)])
        identities.add(STAGE.model(config))
    assert len(identities) == 2 and all("+scores-" in identity for identity in identities)
    path.write_bytes(b"no parquet")
    with pytest.raises(FormatError, match="not a readable Parquet"):
        STAGE.model(config)
    write_table(path, Score, [score("0" * 64, "a", 1), score("0" * 64, "a", 2)])
    with pytest.raises(FormatError, match="row 1 does not come after row 0"):
        STAGE.model(config)
    with pytest.raises(ValueError, match="whole path"):
        ChecksConfig(scores="scores.parquet")
