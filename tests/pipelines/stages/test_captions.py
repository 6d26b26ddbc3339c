"""The captions stage on clips that were really encoded."""

from __future__ import annotations

import hashlib
import itertools
import subprocess
import sys
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cookgen.config import apply_settings, config_digest
from cookgen.dataset.frames import frame_numbers
from cookgen.errors import ModelServerError, UsageError
from cookgen.files import canonical_json
from cookgen.perception.caption_models import whole_sentences
from cookgen.records import Caption, Clip, Reason, Reject
from pipelines.stage import Places
from pipelines.stages.captions import (
    MAX_CHARS,
    STAGE,
    CaptionsConfig,
    Tool,
    caption_clips,
    identity,
    load,
    tidy,
)

CONFIG = CaptionsConfig()


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return Places(videos=tmp_path, media=tmp_path / "media", scratch=tmp_path)


def stored_clip(places: Places, index: int, greys: list[int]) -> Clip:
    """An H.264 clip in the media store whose frame n is of one grey."""
    path = places.scratch / "clip.mp4"
    with av.open(path, "w", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=Fraction(25), options={"bf": "0", "crf": "10"})
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for grey in greys:
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), grey, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    target = places.medium(sha256, ".mp4")
    target.parent.mkdir(parents=True, exist_ok=True)
    path.replace(target)
    return Clip(
        narrative="demo-a",
        clip_index=index,
        start_s=2.0 * index,
        end_s=2.0 * index + 2,
        first_pts_s=2.0 * index,
        last_pts_s=2.0 * index + 1.96,
        num_frames=len(greys),
        fps=25,
        width=64,
        height=64,
        has_audio=False,
        sha256=sha256,
        num_bytes=target.stat().st_size,
        keyframe_pts_s=2.0 * index + 1,
        keyframe_sha256=sha256,
        keyframe_num_bytes=1,
    )


@dataclass
class Recorder:
    """A captioner that says what it was shown."""

    origin: str = "recorder:1"
    says: dict[str, str] = field(default_factory=dict)
    keys: list[str] = field(default_factory=list)

    def caption(self, frames_THWC: np.ndarray, *, key: str) -> str:
        self.keys.append(key)
        return self.says.get(key, str([round(float(frame.mean()) / 10) * 10 for frame in frames_THWC]))


def test_each_clip_is_shown_its_own_frames_in_their_order(places: Places) -> None:
    clips = (stored_clip(places, 0, list(range(20, 240, 10))), stored_clip(places, 1, [200, 100, 50]))
    recorder = Recorder()
    rows = list(caption_clips(clips, config=replace(CONFIG, num_frames=4), tool=Tool(recorder, places)))
    assert [row.text for row in rows if isinstance(row, Caption)] == ["[40, 100, 150, 210]", "[200, 100, 50]"]
    assert [(row.narrative, row.clip_index, row.origin) for row in rows if isinstance(row, Caption)] == [
        ("demo-a", 0, "recorder:1"),
        ("demo-a", 1, "recorder:1"),
    ]
    assert recorder.keys == ["demo-a-000", "demo-a-001"]


def test_nothing_said_is_a_reject_of_that_clip_alone(places: Places) -> None:
    clips = tuple(stored_clip(places, index, [50, 60]) for index in range(3))
    recorder = Recorder(says={"demo-a-001": " \n\x00 "})
    rows = list(caption_clips(clips, config=CONFIG, tool=Tool(recorder, places)))
    assert [type(row) for row in rows] == [Caption, Reject, Caption]
    assert isinstance(rows[1], Reject)
    assert (rows[1].reason, rows[1].clip_index, rows[1].is_video_level) == (Reason.EMPTY_CAPTION, 1, False)


def test_a_video_without_clips_has_no_captions(places: Places) -> None:
    assert list(caption_clips((), config=CONFIG, tool=Tool(Recorder(), places))) == []


def test_the_default_captioner_says_the_same_twice(places: Places) -> None:
    clips = (stored_clip(places, 0, list(range(20, 240, 10))), stored_clip(places, 1, [200] * 30))
    first, second = (list(caption_clips(clips, config=CONFIG, tool=load(CONFIG, places))) for _ in range(2))
    assert first == second
    assert all(isinstance(row, Caption) and row.origin == "tags:efficientnet-lite0" for row in first)
    assert isinstance(first[1], Caption) and "nothing moves" in first[1].text


@given(st.integers(1, 2000), st.integers(1, 64))
def test_frame_numbers_are_evenly_spaced_inside_the_clip(num_frames: int, num_wanted: int) -> None:
    numbers = frame_numbers(num_frames, num_wanted)
    assert len(numbers) == min(num_frames, num_wanted)
    assert numbers == sorted(set(numbers)) and numbers[0] >= 0 and numbers[-1] < num_frames
    gaps = {after - before for before, after in itertools.pairwise(numbers)}
    assert not gaps or max(gaps) - min(gaps) <= 1
    assert abs(numbers[0] - (num_frames - 1 - numbers[-1])) <= 1


def test_frame_numbers() -> None:
    assert frame_numbers(80, 8) == [5, 15, 25, 35, 45, 55, 65, 75]
    assert frame_numbers(3, 8) == [0, 1, 2]


@given(st.text(alphabet=st.characters(codec=None), max_size=300))
def test_tidy_text_is_one_printable_line_that_can_be_stored(text: str) -> None:
    line = tidy(text)
    assert line == " ".join(line.split()) == tidy(line)
    assert line.isprintable() and canonical_json(line).encode()


def test_a_rambling_answer_ends_with_a_sentence() -> None:
    text = tidy("A hand stirs the soup.\n" * 5000)
    assert text.endswith("soup.") and MAX_CHARS - 30 < len(text) <= MAX_CHARS
    assert len(tidy("x" * 10**6)) == MAX_CHARS
    assert text == whole_sentences(text)


def settings(*values: str) -> CaptionsConfig:
    return apply_settings(CONFIG, list(values))


def test_the_identity_follows_the_model_and_the_prompt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "weights").write_text("1")
    configs = [CONFIG, settings("kind=endpoint", "model=vlm"), settings("kind=llava_next", f"model={tmp_path}")]
    before = [identity(config) for config in configs]
    assert len(set(before)) == 3 and before[0].startswith("efficientnet-lite0@")
    monkeypatch.setattr("pipelines.stages.captions.PROMPT", "Say it in one word.")
    after = [identity(config) for config in configs]
    assert [one == two for one, two in zip(before, after, strict=True)] == [True, False, False]
    (tmp_path / "weights").write_text("22")
    assert identity(configs[2]) != after[2]


def test_where_the_server_is_does_not_change_the_captions() -> None:
    here = settings("kind=endpoint", "model=vlm", "endpoint=http://a/v1")
    there = settings("kind=endpoint", "model=vlm", "endpoint=http://b/v1", "timeout_s=3", "num_tries=9")
    assert config_digest(here) == config_digest(there) and identity(here) == identity(there)
    assert config_digest(here) != config_digest(settings("kind=endpoint", "model=vlm", "num_frames=4"))


@pytest.mark.parametrize(
    ("values", "remedy"),
    [
        (["kind=endpoint", "endpoint=http://a/v1"], "captions.model=NAME"),
        (["kind=llava_next"], "captions.model=NAME"),
        (["kind=endpoint", "model=vlm"], "captions.endpoint="),
        (["model=vlm"], "captions.kind=endpoint"),
    ],
)
def test_half_a_captioner_is_refused(values: list[str], remedy: str, places: Places) -> None:
    with pytest.raises(UsageError, match=remedy):
        load(settings(*values), places)


@pytest.mark.parametrize("value", ["num_frames=0", "max_tokens=0", "num_tries=0", "timeout_s=nan", "kind=vlm"])
def test_values_that_cannot_be_are_refused(value: str) -> None:
    with pytest.raises(UsageError, match=value.split("=")[0]):
        settings(value)


def test_a_dead_server_ends_the_run_with_its_address(places: Places) -> None:
    config = settings("kind=endpoint", "model=vlm", "endpoint=http://127.0.0.1:9/v1", "num_tries=1")
    with pytest.raises(ModelServerError, match=r"127\.0\.0\.1:9.*demo-a-000"):
        list(caption_clips((stored_clip(places, 0, [9]),), config=config, tool=load(config, places)))


def test_planning_loads_no_model() -> None:
    code = (
        "import sys; from pipelines.stages.captions import STAGE; STAGE.model(STAGE.config); "
        "print(*({'torch', 'transformers', 'openai'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []
    assert STAGE.model(CONFIG) == identity(CONFIG)
