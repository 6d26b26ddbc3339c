"""The speech stage on real files: captions, voices, silence and damage."""

from __future__ import annotations

import difflib
import math
import re
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import av
import pytest

from cookgen.errors import ModelError, UsageError
from cookgen.perception.whisperx import VERSION
from cookgen.records import Reason, Reject, Segment, SourceVideo, Video, Word
from pipelines import flow
from pipelines.request import request_of
from pipelines.stage import Places
from pipelines.stages import videos
from pipelines.stages.speech import STAGE, Listener, SpeechConfig, WhisperXConfig, hear, load

ROOT = Path(__file__).resolve().parents[3]

NO_MODEL = SpeechConfig(model="/no/such/model")  # loading it raises: proves that Whisper was not asked


def places(folder: Path, tmp_path: Path) -> Places:
    return Places(videos=folder, media=tmp_path / "media", scratch=tmp_path / "scratch")


def probed(folder: Path, name: str, tmp_path: Path, **fields: object) -> Video:
    """The video as the videos stage finds it."""
    status = (folder / name).stat()
    source = SourceVideo.model_validate(
        {
            "narrative": "folder-x",
            "source": "folder",
            "video_id": "x",
            "path": name,
            "num_bytes": status.st_size,
            "mtime_ns": status.st_mtime_ns,
            **fields,
        }
    )
    config = videos.VideosConfig(min_duration_s=0.5, min_short_side_px=16)
    (row,) = videos.STAGE.run(source, config=config, tool=places(folder, tmp_path))
    assert isinstance(row, Video), row
    return row


def run(video: Video, folder: Path, tmp_path: Path, config: SpeechConfig = STAGE.config) -> list[Word | Reject]:
    return list(hear(video, config=config, tool=load(config, places(folder, tmp_path))))


def words_of(rows: list[Word | Reject], video: Video) -> list[Word]:
    """The words among the rows, checked for what holds of every video's words and of what lies between them."""
    words = [row for row in rows if isinstance(row, Word)]
    assert words == rows
    assert [word.word_id for word in words] == list(range(len(words)))
    previous_end = 0.0
    for word in words:
        assert word.narrative == video.narrative and word.text == word.text.strip() != ""
        assert previous_end - 1e-9 <= word.start_s < word.end_s <= video.duration_s + 1e-9
        previous_end = word.end_s
    return words


def test_a_voice_is_heard(data: Path, tmp_path: Path) -> None:
    video = probed(data / "videos", "va_pepperoni_pizza_narrated.mp4", tmp_path)
    rows = run(video, data / "videos", tmp_path)
    words = words_of(rows, video)
    assert {"pepperoni", "pizza", "bowl", "cheese"} <= {word.text.lower().strip(".,") for word in words}
    assert min(word.probability for word in words) > 0 and all(math.isfinite(word.probability) for word in words)
    assert run(video, data / "videos", tmp_path) == rows


def delayed(source: Path, target: Path, *, video_s: float, audio_s: float) -> None:
    """The same packets with later timestamps."""
    with av.open(str(source)) as found, av.open(str(target), "w") as written:
        picture, sound = found.streams.video[0], found.streams.audio[0]
        streams = {stream.index: written.add_stream_from_template(stream) for stream in (picture, sound)}
        for packet in found.demux(picture, sound):
            if packet.dts is None:
                continue
            delay_s = video_s if packet.stream.index == picture.index else audio_s
            delay = round(delay_s / packet.stream.time_base)
            packet.pts, packet.dts = packet.pts + delay, packet.dts + delay
            packet.stream = streams[packet.stream.index]
            written.mux(packet)


@pytest.mark.parametrize(("video_s", "audio_s", "later_s"), [(7.0, 7.0, 0.0), (3.0, 4.5, 1.5)])
def test_words_count_from_the_containers_start(
    data: Path, tmp_path: Path, video_s: float, audio_s: float, later_s: float
) -> None:
    folder = data / "videos"
    delayed(folder / "va_pepperoni_pizza_narrated.mp4", tmp_path / "late.mkv", video_s=video_s, audio_s=audio_s)
    normal = probed(folder, "va_pepperoni_pizza_narrated.mp4", tmp_path)
    late = probed(tmp_path, "late.mkv", tmp_path)
    assert late.start_s == pytest.approx(normal.start_s + video_s, abs=0.05)
    expected = words_of(run(normal, folder, tmp_path), normal)
    found = words_of(run(late, tmp_path, tmp_path), late)
    # Where the sound lies in Whisper's window changes a word here and there; those heard both times are compared.
    spelled = [[word.text.lower().strip(".,") for word in words] for words in (expected, found)]
    blocks = difflib.SequenceMatcher(None, *spelled, autojunk=False).get_matching_blocks()
    shifts = [found[block.b + k].start_s - expected[block.a + k].start_s for block in blocks for k in range(block.size)]
    assert len(shifts) > 0.6 * len(expected)
    assert statistics.median(shifts) == pytest.approx(later_s, abs=0.1)


def test_captions_are_believed_and_whisper_is_not_asked(data: Path, tmp_path: Path) -> None:
    shutil.copy(data / "videos/mdn_friday.mp4", tmp_path)
    shutil.copy(data / "subtitles/mdn_friday.vtt", tmp_path / "mdn_friday.en.vtt")
    video = probed(tmp_path, "mdn_friday.mp4", tmp_path, subtitles="mdn_friday.en.vtt")
    words = words_of(run(video, tmp_path, tmp_path, NO_MODEL), video)
    assert " ".join(word.text for word in words).startswith("Hildy! How are you? Tell me, is the lord")
    assert {word.probability for word in words} == {1.0}
    with pytest.raises(Exception, match="/no/such/model"):  # the negative control of NO_MODEL
        run(video.model_copy(update={"subtitles": None}), tmp_path, tmp_path, NO_MODEL)


@pytest.mark.parametrize("content", [b"", b"<html>", None])
def test_broken_captions_are_a_reject_that_names_no_place(data: Path, tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "a.vtt").write_bytes(content)
    video = probed(data / "videos", "mdn_friday.mp4", tmp_path).model_copy(update={"subtitles": "a.vtt"})
    (reject,) = run(video, tmp_path, tmp_path, NO_MODEL)
    assert isinstance(reject, Reject) and reject.is_video_level
    assert (reject.reason, reject.stage, reject.path) == (Reason.BAD_SUBTITLES, "speech", "mdn_friday.mp4")
    assert reject.detail.startswith("a.vtt: ") and str(tmp_path) not in reject.detail


def test_annotated_videos_need_no_words(data: Path, tmp_path: Path) -> None:
    segments = (Segment(start_s=0, end_s=3, text="mix"),)
    for name in ("stllm_mixing_bowl.mp4", "askanything_making_cake.mp4"):
        video = probed(data / "videos", name, tmp_path, segments=segments)
        assert run(video, data / "videos", tmp_path, NO_MODEL) == []


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("videos/askanything_making_cake.mp4", Reason.NO_AUDIO),
        ("odd/pancake_noaudio.mp4", Reason.NO_AUDIO),
        ("odd/pancake_silent_audio.mp4", Reason.NO_SPEECH),
        ("videos/longva_cook_water.mp4", Reason.NO_SPEECH),
    ],
)
def test_without_words_there_is_one_reject(data: Path, tmp_path: Path, name: str, reason: Reason) -> None:
    video = probed(data, name, tmp_path)
    (reject,) = run(video, data, tmp_path)
    assert isinstance(reject, Reject) and reject.is_video_level and reject.reason is reason
    assert reject.narrative == video.narrative and reject.path == name


@pytest.mark.parametrize(
    "name", ["moviepy_video_with_failing_audio.mp4", "pancake_bitrot.mp4", "pancake_two_audio.mp4"]
)
def test_odd_sound_gives_words_or_one_reject(data: Path, tmp_path: Path, name: str) -> None:
    video = probed(data / "odd", name, tmp_path)
    rows = run(video, data / "odd", tmp_path)
    if any(isinstance(row, Word) for row in rows):
        words_of(rows, video)
    else:
        assert sum(row.is_video_level for row in rows if isinstance(row, Reject)) == 1


def test_sound_that_does_not_decode_is_a_reject(data: Path, tmp_path: Path) -> None:
    video = probed(data / "videos", "mdn_friday.mp4", tmp_path)
    swapped = video.model_copy(update={"audio_stream": video.video_stream})
    (reject,) = run(swapped, data / "videos", tmp_path)
    assert isinstance(reject, Reject) and reject.reason is Reason.NO_AUDIO and "is not audio" in reject.detail


def test_the_model_is_in_the_lineage(tmp_path: Path) -> None:
    assert STAGE.model(STAGE.config) == "whisper-tiny.en@0.1.0-1a5afae06a4d"
    (tmp_path / "model.bin").write_bytes(b"abc")
    assert STAGE.model(SpeechConfig(model=str(tmp_path))).startswith(f"{tmp_path.name}@")  # type: ignore[union-attr]
    tool = Listener(places(tmp_path, tmp_path), SpeechConfig(model=str(tmp_path)))
    with pytest.raises(ModelError):
        _ = tool.recogniser


@pytest.mark.parametrize("field", ["beam_size", "cpu_threads", "timeout_s"])
def test_contradictions_are_refused(field: str) -> None:
    with pytest.raises(ValueError, match=f"{field} is 0"):
        SpeechConfig(**{field: 0})


def test_contradictions_of_the_two_recognisers_are_refused() -> None:
    with pytest.raises(ValueError, match="batch_size is 0"):
        WhisperXConfig(batch_size=0)
    with pytest.raises(ValueError, match=r"kind is faster-whisper, which has no use for whisperx\.…"):
        SpeechConfig(whisperx=WhisperXConfig(vad="silero"))
    with pytest.raises(ValueError, match="align_model knows one language"):
        SpeechConfig(kind="whisperx", language=None, whisperx=WhisperXConfig(align_model="/some/model"))


def test_what_whisper_doubts_is_said_and_not_lost(data: Path, tmp_path: Path) -> None:
    video = probed(data / "videos", "mdn_friday.mp4", tmp_path)
    rows = run(video, data / "videos", tmp_path, SpeechConfig(log_prob_threshold=-0.01))
    (reject,) = rows
    assert isinstance(reject, Reject) and (reject.reason, reject.is_video_level) == (Reason.NO_SPEECH, True)
    assert re.fullmatch(
        r"no words heard by .*; unlikely, \d\.\d\d-\d\.\d\d s, \d\d words: .*in a bad humor.*", reject.detail
    )


def test_words_say_in_which_language_they_were_heard(data: Path, tmp_path: Path) -> None:
    video = probed(data / "videos", "mdn_friday.mp4", tmp_path)
    assert {word.language for word in words_of(run(video, data / "videos", tmp_path), video)} == {"en"}
    word = Word(narrative="x", word_id=0, text="a", start_s=0, end_s=1, probability=1, language="en")
    assert word.content_digest() == word.model_copy(update={"language": None}).content_digest()


@pytest.mark.parametrize("seconds", [0.0, 30.0])
def test_a_model_that_hangs_ends_its_process(seconds: float) -> None:
    code = f"""
import time
from pipelines.stages.speech import _watched
for _ in _watched(iter([(0.0, None)]), 2.0):
    time.sleep({seconds})
time.sleep(3.0)
print("done")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=False)
    if seconds:
        assert done.returncode == 1 and "Timeout (0:00:02)!" in done.stderr and not done.stdout
    else:  # the negative control: what is done in time lives on
        assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


def test_whisperx_is_refused_where_it_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()

    def start(engine: str, *settings: str) -> None:
        request = request_of(
            source="folder",
            out=tmp_path / "out",
            videos=tmp_path / "videos",
            settings=("speech.kind=whisperx", *settings),
        )
        flow.run(request, engine=engine)

    with pytest.raises(UsageError, match=r"speech runs in an environment of its own, .* use --engine ray"):
        start("inline")
    with pytest.raises(UsageError, match=f"{tmp_path}/none/bin/python is not there; run `make whisperx-env`"):
        start("ray", f"speech.environment={tmp_path}/none")
    assert not (tmp_path / "out").exists()
    with pytest.raises(UsageError, match=r"WhisperX is not installed .*`make whisperx-env` makes and --engine ray"):
        _ = Listener(places(tmp_path, tmp_path), SpeechConfig(kind="whisperx")).recogniser


def test_the_lineage_says_which_recogniser_and_whose_times() -> None:
    for align_model, times in (
        ("", "times-of-whisper"),
        ("whisper-tiny.en", "align-whisper-tiny.en@0.1.0-1a5afae06a4d"),
    ):
        config = SpeechConfig(kind="whisperx", whisperx=WhisperXConfig(align_model=align_model))
        assert STAGE.model(config) == f"whisper-tiny.en@0.1.0-1a5afae06a4d+whisperx@3.8.6+{times}"
    assert f"whisperx=={VERSION}" in (ROOT / "envs" / "whisperx.txt").read_text()
