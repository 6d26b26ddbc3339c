"""What the checks weigh, measured on real small clips and real sentences."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from cookgen.dataset.scores import caption_sha256, write_scores
from cookgen.dataset.tables import write_table
from cookgen.errors import FormatError, InputError, ModelServerError
from cookgen.files import file_sha256
from cookgen.perception.judges import JudgesConfig
from cookgen.records import Action, Caption, Clip, Evidence, Reason, Reject, Score, meaning_of
from pipelines.cut import cut
from pipelines.stage import Places
from pipelines.stages.evidence import STAGE, EvidenceConfig, Tool, load, watch
from tests.chatserver import Reply, chat_server

NARRATIVE = "folder-x"
NUM_FRAMES = 24


@pytest.fixture(scope="module")
def tool(tmp_path_factory: pytest.TempPathFactory) -> Tool:
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
def store(tool: Tool) -> Callable[[bytes], str]:
    def put(content: bytes) -> str:
        tool.places.media.mkdir(parents=True, exist_ok=True)
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


def action(index: int, text: str, start_s: float) -> Action:
    return Action(
        narrative=NARRATIVE,
        action_index=index,
        text=text,
        start_s=start_s,
        end_s=start_s + 1,
        origin="manual",
        raw_text=text,
    )


def caption(index: int, text: str) -> Caption:
    return Caption(narrative=NARRATIVE, clip_index=index, text=text, origin="test")


def gather(tool: Tool, clips: list[Clip], actions: list[Action], captions: list[Caption]) -> list[Evidence]:
    return list(STAGE.run(tuple(clips), tuple(actions), tuple(captions), config=STAGE.config, tool=tool))


def test_what_can_be_a_step_is_measured_and_nothing_else(tool: Tool, mp4: bytes, store: Callable[[bytes], str]) -> None:
    sha256 = store(mp4)
    clips = [clip(index, sha256) for index in range(4)]
    # Nothing is told during clip 1; clip 3 has no caption; action 1 meets no clip, action 3 only that one.
    actions = [
        action(0, "Whisk the eggs", 0),
        action(1, "Sing", 7),
        action(2, "Chop onions", 10.5),
        action(3, "Fry", 15),
    ]
    captions = [caption(0, "A person whisks eggs"), caption(1, "A red car"), caption(2, "An onion in pieces")]
    rows = gather(tool, clips, actions, captions)
    assert [(row.clip_index, row.action_index) for row in rows] == [(0, None), (2, None), (None, 0), (None, 2)]
    assert [row.scores for row in rows] == [{"clip_decodes": 1, "talking_head": 0}] * 2 + [{}] * 2
    texts = ["A person whisks eggs", "An onion in pieces", "Whisk the eggs", "Chop onions"]
    vectors = tool.embedder.embed(texts)
    for row, vector in zip(rows, vectors, strict=True):
        assert float(row.vector @ vector) == pytest.approx(1, abs=1e-5)
        assert Evidence.model_validate(row.to_json()) == row
    for one in range(4):
        for other in range(4):
            kept, exact = rows[one].vector @ rows[other].vector, vectors[one] @ vectors[other]
            assert float(kept) == pytest.approx(float(exact), abs=1e-3)
    shuffled = gather(tool, clips[::-1], actions[::-1], captions[::-1])
    assert [row.to_json() for row in shuffled] == [row.to_json() for row in rows]


def test_no_model_is_loaded_for_nothing(tool: Tool, tmp_path: Path) -> None:
    idle = Tool(tool.places, EvidenceConfig(model=str(tmp_path / "none")))
    assert gather(idle, [], [], []) == []
    assert gather(idle, [clip(0, "0" * 64)], [action(0, "stir", 9)], [caption(0, "a pot")]) == []
    assert gather(idle, [clip(0, "0" * 64)], [action(0, "stir", 0)], []) == []


def test_damaged_clips_score_lower(tmp_path: Path, mp4: bytes) -> None:
    shares = []
    for number, content in enumerate((mp4, mp4[: len(mp4) * 6 // 10], b"<html>no clip</html>", b"")):
        path = tmp_path / f"{number}.mp4"
        path.write_bytes(content)
        shares.append(watch(path, NUM_FRAMES)[0])
    whole, short, page, empty = shares
    assert whole == 1 and 0 < short < 1 and page == 0 and empty == 0


def test_a_clip_that_is_not_in_the_store_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        watch(tmp_path / "none.mp4", 1)


def test_somebody_who_talks_into_the_camera_is_seen(data: Path, tmp_path: Path) -> None:
    """A man speaks at 27 s; a palace at 5 s, and hands over a bowl, are no face."""
    talks = watched(data / "videos" / "googlework_short.mp4", [(5.0, 6.0), (27.0, 28.0)], tmp_path / "talk")
    cooks = watched(data / "videos" / "va_pepperoni_pizza_narrated.mp4", [(11.0, 12.0)], tmp_path / "cook")
    assert talks[0] == 0 and talks[1] >= 0.75
    assert cooks == [0]


def watched(video: Path, spans: list[tuple[float, float]], folder: Path) -> list[float]:
    """The share of looks with a face, of each span cut as a clip."""
    folder.mkdir()
    file = folder / "spans.json"
    file.write_text(str([{"start_s": start_s, "end_s": end_s} for start_s, end_s in spans]).replace("'", '"'))
    assert cut(video, file, folder / "out") == 0
    clips = sorted((folder / "out").glob("*.mp4"))
    assert len(clips) == len(spans)
    shares = []
    for path in clips:
        with av.open(str(path)) as container:
            num_frames = container.streams.video[0].frames
        decodes, talks = watch(path, num_frames)
        assert decodes == 1
        shares.append(talks)
    return shares


def test_the_models_are_in_the_lineage() -> None:
    encoder, detector = str(STAGE.model(STAGE.config)).split("+")
    assert encoder == "all-minilm-l6-v2@0.1.0-53aa51172d14"
    assert detector.startswith("dlib@20.")


def test_a_vector_and_its_spelling() -> None:
    vector: NDArray[np.float32] = np.array([0.6, -0.8], np.float32)
    row = Evidence(narrative="a", action_index=0, meaning=meaning_of(vector))
    assert row.vector == pytest.approx(vector, abs=1e-3)
    assert float(np.linalg.norm(row.vector)) == pytest.approx(1)


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


def judged(tool: Tool, url: str, clips: list[Clip], texts: list[str]) -> list[Evidence | Reject]:
    judges = JudgesConfig(("j",), (url,), num_frames=2, timeout_s=5, patience_s=5, num_in_flight=3)
    config = EvidenceConfig(judges=judges)
    rows = STAGE.run(
        tuple(clips),
        tuple(action(item.clip_index, "stir", item.start_s) for item in clips),
        tuple(caption(item.clip_index, text) for item, text in zip(clips, texts, strict=True)),
        config=config,
        tool=load(config, tool.places),
    )
    return list(rows)


def coverage(rows: list[Evidence | Reject]) -> dict[int | None, float]:
    return {row.clip_index: row.scores["caption_coverage"] for row in seen(rows) if "caption_coverage" in row.scores}


def seen(rows: list[Evidence | Reject]) -> list[Evidence]:
    return [row for row in rows if isinstance(row, Evidence) and row.clip_index is not None]


def test_judges_look_at_the_clips_and_nobody_else_does(
    tool: Tool, mp4: bytes, dark_mp4: bytes, store: Callable[[bytes], str]
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
    names = {f"caption_{criterion}{of}" for criterion in ("coverage", "hallucination") for of in ("", "_by_j")}
    assert all(row.scores.keys() == {"clip_decodes", "talking_head"} | names for row in seen(rows))


def test_a_clip_without_a_score_says_so_and_stays(tool: Tool, mp4: bytes, store: Callable[[bytes], str]) -> None:
    sha256 = store(mp4)
    damaged = store(mp4[: len(mp4) * 6 // 10])
    clips = [clip(0, sha256), clip(1, sha256), clip(2, damaged)]
    with chat_server(judge_of_brightness) as server:
        rows = judged(tool, server.url, clips, ["bright", "broken", "bright"])
    rejects = [row for row in rows if isinstance(row, Reject)]
    assert [(row.clip_index, row.reason) for row in rejects] == [(1, Reason.UNUSABLE_ANSWER), (2, Reason.DECODE_ERROR)]
    assert "no score by the judge j: not JSON" in rejects[0].detail and not any(row.is_video_level for row in rejects)
    assert coverage(rows) == {0: 5}
    assert [row.clip_index for row in seen(rows)] == [0, 1, 2]


def test_a_dead_judge_ends_the_run(tool: Tool, mp4: bytes, store: Callable[[bytes], str]) -> None:
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
    tool: Tool, mp4: bytes, store: Callable[[bytes], str], tmp_path: Path
) -> None:
    sha256 = store(mp4)
    other = "0" * 64
    write_scores(
        tmp_path / "scores.parquet",
        [score(sha256, "a pot", 20), score(other, "a pan", 30), score(sha256, "a pot", 40, narrative="folder-y")],
    )
    config = EvidenceConfig(scores=str(tmp_path / "scores.parquet"))
    rows = STAGE.run(
        (clip(0, sha256), clip(1, sha256)),
        tuple(action(index, "stir", 5.0 * index) for index in range(2)),
        (caption(0, "a pot"), caption(1, "a pan")),
        config=config,
        tool=load(config, tool.places),
    )
    assert [row.scores.get("inverse_clip_t") for row in seen(list(rows))] == [20, None]


def test_a_file_of_scores_is_part_of_the_lineage(tmp_path: Path) -> None:
    path = tmp_path / "scores.parquet"
    config = EvidenceConfig(scores=str(path))
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
        EvidenceConfig(scores="scores.parquet")
