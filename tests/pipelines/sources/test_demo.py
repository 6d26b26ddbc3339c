"""The demo source renders what it says: rendered here at one or two steps a video, and looked at with PyAV."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import av
import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cookgen.errors import InputError, OutputError
from cookgen.files import file_sha256
from pipelines.sources.demo import DemoConfig, list_videos, make_videos
from pipelines.sources.demo.render import _takes
from pipelines.sources.demo.scenes import ABOVE, SIDE
from pipelines.sources.demo.script import FOODS, compose
from pipelines.sources.demo.speak import Voice, speak

SHORT = DemoConfig(num_videos=5, min_steps=1, max_steps=1)
MUSIC, SILENT = 3, 4


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    make_videos(folder, SHORT)
    return folder


def truth_of(folder: Path, index: int) -> dict[str, Any]:
    truth: dict[str, Any] = json.loads((folder / f"kitchen-{index:03d}.gt.json").read_text())
    return truth


def frames_of(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Times in seconds [N] and small frames [N, 90, 160, 3] as float32."""
    with av.open(str(path)) as container:
        frames = [(f.time, f.reformat(160, 90, "rgb24").to_ndarray()) for f in container.decode(video=0)]
    return np.array([time for time, _ in frames]), np.array([image for _, image in frames], dtype=np.float32)


def sound_of(path: Path) -> tuple[np.ndarray, int]:
    """Mono samples as float32 and their rate, as a player that knows edit lists hears them."""
    with av.open(str(path)) as container:
        rate = container.streams.audio[0].rate
        resampler = av.AudioResampler("flt", "mono", rate)
        blocks = [
            (frame.pts, frame.to_ndarray()[0])
            for packet in container.decode(audio=0)
            for frame in resampler.resample(packet)
        ]
    samples = np.concatenate([block for _, block in blocks])
    return samples[max(0, -blocks[0][0]) :], rate


def test_the_same_configuration_gives_the_same_bytes_and_another_seed_others(made: Path, tmp_path: Path) -> None:
    # By one worker after another: what eSpeak remembers of the first video must not be heard in the second.
    make_videos(tmp_path / "again", replace(SHORT, num_videos=2, workers=1))
    for name in ("kitchen-000.mp4", "kitchen-000.gt.json", "kitchen-001.mp4", "kitchen-001.gt.json"):
        assert (tmp_path / "again" / name).read_bytes() == (made / name).read_bytes(), name
    make_videos(tmp_path / "other", replace(SHORT, num_videos=1, seed=1))
    assert (tmp_path / "other" / "kitchen-000.mp4").read_bytes() != (made / "kitchen-000.mp4").read_bytes()


@pytest.mark.parametrize("index", range(5))
def test_the_picture_is_cut_where_the_truth_says(made: Path, index: int) -> None:
    truth = truth_of(made, index)
    times, frames = frames_of(made / f"kitchen-{index:03d}.mp4")
    period = times[1] - times[0]
    assert times[0] == 0
    assert truth["shots"][0][0] == 0
    assert truth["shots"][-1][1] == pytest.approx(times[-1] + period, abs=1e-3)
    assert all(before[1] == after[0] for before, after in itertools.pairwise(truth["shots"]))
    assert len(truth["captions"]) == len(truth["shots"])
    change = np.abs(np.diff(frames, axis=0)).mean(axis=(1, 2, 3))  # change[n]: from frame n to n + 1
    quiet = np.quantile(change, 0.9)
    middles = [(start + end) / 2 for start, end in truth["dissolves"]]
    cuts = [start for start, _ in truth["shots"][1:]]
    for cut in cuts:
        first = int(np.argmin(np.abs(times - cut)))
        if any(abs(cut - middle) < 1e-5 for middle in middles):
            assert change[first - 1] < 4 * quiet + 5  # no hard cut there
            around = np.abs(frames[first + 12] - frames[first - 12]).mean()
            assert around > 15  # but another picture after it
        else:
            assert change[first - 1] > max(12.0, 4 * quiet), (index, cut)
    # No frame but those at the cuts changes as much as a cut.
    assert int((change > max(12.0, 4 * quiet)).sum()) == len(cuts) - len(middles)


def test_one_video_holds_a_dissolve(made: Path) -> None:
    assert [len(truth_of(made, index)["dissolves"]) for index in range(5)] == [1, 0, 0, 0, 0]


@pytest.mark.parametrize("index", [0, 1, 2])
def test_words_are_heard_where_the_truth_says_and_nothing_between_the_sentences(made: Path, index: int) -> None:
    truth = truth_of(made, index)
    sound, rate = sound_of(made / f"kitchen-{index:03d}.mp4")

    def loudness(start_s: float, end_s: float) -> float:
        return float(np.sqrt(np.mean(np.square(sound[int(start_s * rate) : int(end_s * rate)]))))

    words = truth["words"]
    assert words
    assert all(word["start_s"] < word["end_s"] for word in words)
    assert all(before["end_s"] <= after["start_s"] + 1e-9 for before, after in itertools.pairwise(words))
    for word in words:
        assert loudness(word["start_s"], word["end_s"]) > 0.01, word
    assert len(sound) / rate == pytest.approx(truth["shots"][-1][1], abs=0.05)
    for start, end in truth["shots"]:
        spoken = [word for word in words if start <= word["start_s"] < end]
        assert spoken[-1]["end_s"] <= end
        assert 0.3 <= spoken[0]["start_s"] - start <= 0.6
        assert loudness(start + 0.05, spoken[0]["start_s"] - 0.06) < 0.002
        assert loudness(spoken[-1]["end_s"] + 0.06, end - 0.05) < 0.002
    assert len(truth["actions"]) == 1
    action = truth["actions"][0]
    said = " ".join(word["text"] for word in words if action["start_s"] <= word["start_s"] < action["end_s"])
    assert said.lower().endswith(action["text"].lower() + ".")


def test_music_has_no_words_and_the_silent_one_no_audio(made: Path) -> None:
    assert truth_of(made, MUSIC)["words"] == truth_of(made, MUSIC)["actions"] == []
    sound, rate = sound_of(made / "kitchen-003.mp4")
    seconds = sound[: len(sound) // rate * rate].reshape(-1, rate)
    assert np.sqrt(np.mean(np.square(seconds), axis=1))[:-2].min() > 0.01
    assert truth_of(made, SILENT)["words"] == []
    with av.open(str(made / "kitchen-004.mp4")) as container:
        assert not container.streams.audio


def test_lists_its_videos_with_splits(made: Path) -> None:
    videos = list(list_videos(made, SHORT))
    assert [video.video_id for video in videos] == [f"kitchen-{index:03d}" for index in range(5)]
    assert [video.split for video in videos] == ["train", "val", "train", "train", "train"]
    assert [video.split for video in list_videos(made, replace(SHORT, num_videos=3))] == ["train", "val", "train"]
    for video in videos:
        stat = (made / video.path).stat()
        assert (video.num_bytes, video.mtime_ns) == (stat.st_size, stat.st_mtime_ns)
        assert video.narrative == f"demo-{video.video_id}"
        assert video.title is not None
        assert video.title.startswith("How to make ")
        assert (video.source, video.licence) == ("demo", "CC0-1.0")
        assert video.topic


def test_a_missing_video_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"kitchen-000\.mp4.*run again"):
        list(list_videos(tmp_path, SHORT))


def test_a_folder_that_cannot_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="choose another"):
        make_videos(tmp_path / "file", SHORT)


def test_renders_only_what_is_missing_or_damaged(made: Path, tmp_path: Path) -> None:
    config = replace(SHORT, num_videos=2)
    for name in ("kitchen-000.mp4", "kitchen-000.gt.json", "kitchen-001.mp4", "kitchen-001.gt.json"):
        (tmp_path / name).write_bytes((made / name).read_bytes())
    for stale in ("kitchen-007.mp4", "kitchen-007.gt.json", ".tmp-left.mp4"):
        (tmp_path / stale).write_text("of another configuration, or of a run that was killed")
    (tmp_path / "notes.txt").write_text("not the demo's")
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("kitchen-00[01].*")}
    make_videos(tmp_path, config)
    make_videos(tmp_path, config)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == sorted([*before, "demo.json", "notes.txt"])
    assert {name: (tmp_path / name).stat().st_mtime_ns for name in before} == before
    listed = json.loads((tmp_path / "demo.json").read_text())["files"]
    assert listed == {name: file_sha256(tmp_path / name) for name in before}
    damaged = tmp_path / "kitchen-001.mp4"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    make_videos(tmp_path, config)
    assert damaged.read_bytes() == (made / damaged.name).read_bytes()
    assert (tmp_path / "kitchen-000.mp4").stat().st_mtime_ns == before["kitchen-000.mp4"]


def test_a_killed_rendering_leaves_no_half_video_and_no_process_and_is_resumed(made: Path, tmp_path: Path) -> None:
    config = replace(SHORT, num_videos=2)
    program = (
        "from pathlib import Path\n"
        "from pipelines.sources.demo import DemoConfig, make_videos\n"
        "if __name__ == '__main__':\n"
        f"    make_videos(Path({str(tmp_path)!r}), {config!r})\n"
    )
    root = Path(__file__).parents[3]
    child = subprocess.Popen([sys.executable, "-c", program], cwd=root, env={**os.environ, "PYTHONPATH": str(root)})
    deadline = time.monotonic() + 60
    # Until a frame has been encoded: both the worker and its ffmpeg are at work.
    while not any(path.stat().st_size for path in tmp_path.glob(".tmp-*.mp4")):
        assert child.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline, "it rendered nothing"
        time.sleep(0.02)
    family = psutil.Process(child.pid).children(recursive=True)
    child.send_signal(signal.SIGKILL)
    child.wait()
    _, alive = psutil.wait_procs(family, timeout=20)
    assert not alive, "workers or ffmpeg outlived the run"
    assert not (tmp_path / "demo.json").exists()
    for path in tmp_path.glob("kitchen-*.mp4"):
        assert path.read_bytes() == (made / path.name).read_bytes()
    make_videos(tmp_path, config)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"kitchen-000.mp4", "kitchen-000.gt.json", "kitchen-001.mp4", "kitchen-001.gt.json", "demo.json"}
    assert (tmp_path / "kitchen-000.mp4").read_bytes() == (made / "kitchen-000.mp4").read_bytes()


@given(st.integers(0, 10_000), st.integers(0, 300), st.integers(1, 9))
@settings(max_examples=150, deadline=None)
def test_every_recipe_can_be_said_and_drawn(seed: int, index: int, steps: int) -> None:
    recipe = compose(seed, index, min_steps=steps, max_steps=steps)
    assert recipe == compose(seed, index, min_steps=steps, max_steps=steps)
    assert sum(shot.action is not None for shot in recipe.shots) == steps
    for shot in recipe.shots:
        assert shot.scene in ABOVE or shot.scene in SIDE
        assert all(food in FOODS for food in shot.foods)
        assert shot.sentence.isascii()
        if shot.action is not None:
            assert shot.sentence.lower().endswith(shot.action.lower() + ".")
    for before, after in itertools.pairwise(recipe.shots):
        assert before.backdrop != after.backdrop


def test_full_videos_last_40_to_60_seconds_and_sentences_fill_their_shots() -> None:
    config = DemoConfig()
    for index in range(14):
        recipe = compose(config.seed, index, min_steps=config.min_steps, max_steps=config.max_steps)
        takes = list(_takes(recipe, Random(index), "narration", 25))
        assert 40 <= takes[-1].end / 25 <= 60
        for take in takes:
            seconds = (take.end - take.start) / 25
            assert 4 <= seconds <= 8
            if take.shot.action is not None:
                assert take.speech is not None
                assert take.speech.duration_s / seconds > 0.5, take.shot.sentence


def test_a_hundred_kitchens_are_not_copies() -> None:
    recipes = [compose(5, index, min_steps=7, max_steps=9) for index in range(100)]
    actions = [shot.action for recipe in recipes for shot in recipe.shots if shot.action is not None]
    assert len({recipe.title for recipe in recipes}) > 30
    assert len(set(actions)) > 0.7 * len(actions)
    assert len({shot.caption for recipe in recipes for shot in recipe.shots}) > 600


def test_speech_gives_each_word_its_time() -> None:
    sentence = "Bake the half-done bread, slowly, for twenty five minutes."
    speech = speak(sentence)
    assert " ".join(word.text for word in speech.words) == sentence
    assert speech.words[0].start_s == 0
    assert speech.words[-1].end_s == pytest.approx(speech.duration_s)
    assert speech.words[3].end_s < speech.words[4].start_s - 0.05  # the comma's pause belongs to no word
    with pytest.raises(InputError, match="no voice"):
        speak(sentence, Voice("martian"))


@pytest.mark.parametrize(
    "values", [{"num_videos": 0}, {"min_steps": 0}, {"min_steps": 5, "max_steps": 4}, {"max_steps": 99}, {"seed": -1}]
)
def test_contradictions_are_refused(values: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="demo"):
        DemoConfig(**values)
