"""Sound on the container's clock, and words whose times hold."""

from __future__ import annotations

import difflib
import json
import re
from dataclasses import dataclass, field, replace
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cookgen.errors import ModelError, ShapeError, UsageError
from cookgen.perception.speech import (
    RATE_HZ,
    AudioError,
    Samples,
    Whisper,
    listen,
    load_whisper,
    read_audio,
    windows,
)
from cookgen.perception.transcript import Doubt, Heard, TimedWord, Unspoken, repaired

HZ = 48_000


@pytest.fixture(scope="module")
def whisper() -> Whisper:
    return load_whisper("whisper-tiny.en")


def audio_of(path: Path, *, start_s: float = 0.0, duration_s: float = 60.0) -> Samples:
    with av.open(str(path)) as container:
        stream = container.streams.audio[0].index
        return np.concatenate(
            list(read_audio(container, stream=stream, start_s=start_s, duration_s=duration_s)) or [np.zeros(0, "f4")]
        )


def tone(seconds: float, hz: int = HZ, level: float = 0.5) -> np.ndarray:
    return (level * np.sin(2 * np.pi * 440 * np.arange(round(seconds * hz)) / hz)).astype(np.float32)


def write_runs(path: Path, runs: list[tuple[float, np.ndarray]]) -> Path:
    """A Matroska file with float PCM: each run starts at its own timestamp, 20 ms a packet."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_f32le", rate=HZ, layout="mono")
        for onset_s, samples in runs:
            for first in range(0, len(samples), HZ // 50):
                part = samples[first : first + HZ // 50]
                frame = av.AudioFrame.from_ndarray(part[None, :], format="flt", layout="mono")
                frame.rate, frame.pts = HZ, round(onset_s * HZ) + first
                container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_unordered_runs(path: Path, runs: list[tuple[float, np.ndarray]]) -> float:
    """An MPEG-TS file whose timestamps may run backwards, as joined recordings have them; gives where its 0 s lies."""
    content = b""
    for number, (onset_s, samples) in enumerate(runs):
        part = path.with_suffix(f".{number}.ts")
        with av.open(str(part), "w", options={"muxdelay": "0", "muxpreload": "0"}) as container:
            stream = container.add_stream("mp2", rate=HZ, layout="mono")
            for first in range(0, len(samples) - 1151, 1152):
                values = (samples[None, first : first + 1152] * 32767).astype(np.int16)
                frame = av.AudioFrame.from_ndarray(values, format="s16", layout="mono")
                frame.rate, frame.pts = HZ, round(onset_s * HZ) + first
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        content += part.read_bytes()
    path.write_bytes(content)
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        return float(stream.start_time * stream.time_base) - runs[0][0]


def loud_spans(audio: Samples) -> list[tuple[float, float]]:
    """Where the sound is, to 10 ms."""
    frame = RATE_HZ // 100
    loud = np.abs(audio[: len(audio) // frame * frame].reshape(-1, frame)).max(axis=1) > 0.1
    edges = np.flatnonzero(np.diff(np.concatenate([[False], loud, [False]]).astype(int)))
    return [(start / 100, end / 100) for start, end in zip(edges[::2], edges[1::2], strict=True)]


def near(spans: list[tuple[float, float]], expected: list[tuple[float, float]]) -> bool:
    return len(spans) == len(expected) and np.allclose(
        spans, expected, atol=0.045
    )  # of which MPEG audio frames are up to 24 ms


def test_late_starts_and_gaps_are_silence(tmp_path: Path) -> None:
    path = write_runs(tmp_path / "gaps.mkv", [(1.5, tone(1)), (4.0, tone(0.5)), (20.0, tone(1))])
    assert near(loud_spans(audio_of(path)), [(1.5, 2.5), (4.0, 4.5), (20.0, 21.0)])


def test_times_count_from_the_containers_start(tmp_path: Path) -> None:
    path = write_runs(tmp_path / "offset.mkv", [(101.0, tone(1))])
    assert near(loud_spans(audio_of(path, start_s=100.0)), [(1.0, 2.0)])


def test_nothing_lies_before_the_start_or_after_the_end(tmp_path: Path) -> None:
    path = tmp_path / "long.ts"
    zero_s = write_unordered_runs(path, [(0.0, tone(5)), (30.0, tone(1)), (6.0, tone(1))])
    audio = audio_of(path, start_s=zero_s + 1.0, duration_s=8.0)
    assert near(loud_spans(audio), [(0.0, 4.0), (5.0, 6.0)])  # the wild timestamp hides nothing
    assert len(audio) <= 8 * RATE_HZ


def test_a_far_timestamp_costs_no_memory(tmp_path: Path) -> None:
    path = write_runs(tmp_path / "far.mkv", [(0.0, tone(1)), (40_000.0, tone(1))])
    assert len(audio_of(path, duration_s=3.0)) <= 3 * RATE_HZ
    with av.open(str(path)) as container:
        blocks = read_audio(container, stream=0, start_s=0, duration_s=50_000.0)
        assert max(len(block) for block, _ in zip(blocks, range(200), strict=False)) <= 10 * RATE_HZ


def test_overlapping_timestamps_are_cut(tmp_path: Path) -> None:
    path = tmp_path / "back.ts"
    zero_s = write_unordered_runs(path, [(0.0, tone(2)), (1.0, tone(2))])
    assert near(loud_spans(audio_of(path, start_s=zero_s)), [(0.0, 3.0)])


def test_samples_that_are_no_numbers_are_silence(tmp_path: Path) -> None:
    wild = tone(1)
    wild[::7], wild[1::7], wild[2::7] = np.nan, np.inf, 1e30
    audio = audio_of(write_runs(tmp_path / "nan.mkv", [(0.0, wild), (1.0, tone(1))]))
    assert np.isfinite(audio).all() and np.abs(audio).max() <= 1


def test_what_decodes_is_kept(data: Path) -> None:
    audio = audio_of(data / "odd/moviepy_video_with_failing_audio.mp4")
    assert len(audio) and np.isfinite(audio).all()


def test_another_stream_than_audio_is_refused(data: Path) -> None:
    with av.open(str(data / "videos/mdn_friday.mp4")) as container:
        video = container.streams.video[0].index
        for stream in (video, 99):
            with pytest.raises(AudioError, match=f"stream {stream} is not audio"):
                list(read_audio(container, stream=stream, start_s=0, duration_s=1))


def test_both_tracks_can_be_read(data: Path) -> None:
    path = data / "odd/pancake_two_audio.mp4"
    with av.open(str(path)) as container:
        indices = [stream.index for stream in container.streams.audio]
    tracks = []
    for index in indices:
        with av.open(str(path)) as container:
            tracks.append(np.concatenate(list(read_audio(container, stream=index, start_s=0, duration_s=60))))
    assert len(tracks) == 2
    common = min(map(len, tracks))
    assert not np.allclose(tracks[0][:common], tracks[1][:common], atol=1e-3)


@pytest.mark.parametrize("name", ["mdn_friday.mp4", "stllm_mixing_bowl.mp4", "decord_flipping_a_pancake.mkv"])
def test_as_many_samples_as_the_reference_decoder(data: Path, name: str) -> None:
    from faster_whisper.audio import decode_audio

    reference = decode_audio(str(data / "videos" / name))
    ours = audio_of(data / "videos" / name, duration_s=600)
    assert abs(len(ours) - len(reference)) <= 0.1 * RATE_HZ
    common = min(len(ours), len(reference))
    assert np.corrcoef(ours[:common], reference[:common])[0, 1] > 0.9


@given(
    lengths=st.lists(st.integers(1, 3 * RATE_HZ), max_size=8),
    max_s=st.floats(1.0, 4.0),
)
def test_windows_keep_every_sample_once(lengths: list[int], max_s: float) -> None:
    audio = np.arange(sum(lengths), dtype=np.float32)
    blocks = np.split(audio, np.cumsum(lengths)[:-1]) if lengths else []
    found = list(windows(blocks, max_s=max_s, search_s=0.8))
    assert sum(len(window) for _, window in found) == len(audio)
    for offset_s, window in found:
        assert len(window) <= max_s * RATE_HZ + 1
        np.testing.assert_array_equal(window, audio[round(offset_s * RATE_HZ) :][: len(window)])


def test_windows_are_cut_in_a_pause() -> None:
    audio = np.concatenate([tone(8.3, RATE_HZ), np.zeros(RATE_HZ // 2, np.float32), tone(8, RATE_HZ)])
    (_, first), (offset_s, _) = windows([audio], max_s=10, search_s=4)
    assert 8.3 < offset_s < 8.8 and len(first) == round(offset_s * RATE_HZ)


def words_of(whisper: Whisper, audio: Samples) -> list[TimedWord]:
    return [item for item in whisper.transcribe(audio) if isinstance(item, TimedWord)]


def errors(reference: list[str], found: list[str]) -> float:
    """Word error rate: the least edits between the two, a word of the reference."""
    row = list(range(len(found) + 1))
    for i, expected in enumerate(reference, 1):
        diagonal, row[0] = row[0], i
        for j, word in enumerate(found, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (word != expected))
    return row[-1] / len(reference)


def plain(text: str) -> list[str]:
    return re.sub(r"[^a-z0-9' ]", " ", text.lower().replace("'ve", "")).split()


def test_it_hears_what_is_said_and_when(data: Path, whisper: Whisper) -> None:
    truth = json.loads((data / "videos/va_pepperoni_pizza_narrated.gt.json").read_text())["asr"]
    audio = audio_of(data / "videos/va_pepperoni_pizza_narrated.mp4", duration_s=55)
    words = words_of(whisper, audio)
    assert errors(plain(" ".join(line["text"] for line in truth)), plain(" ".join(w.text for w in words))) < 0.2
    outside = [w for w in words if not any(t["start"] - 0.6 < w.start_s < w.end_s < t["end"] + 0.6 for t in truth)]
    assert len(outside) <= 2, outside
    assert words_of(whisper, audio) == words
    late = whisper.transcribe(audio[: 8 * RATE_HZ], offset_s=100.0)
    assert all(100 <= word.start_s < word.end_s <= 108 for word in late)


def test_an_improbable_window_is_set_apart(data: Path, whisper: Whisper) -> None:
    audio = audio_of(data / "videos/mdn_friday.mp4")
    assert len(words_of(whisper, audio)) > 20
    for changed, reason in (
        (replace(whisper, log_prob_threshold=-0.01), Doubt.UNLIKELY),
        (replace(whisper, compression_ratio_threshold=0.1), Doubt.REPEATED),
    ):
        (item,) = repaired(changed.transcribe(audio), duration_s=len(audio) / RATE_HZ)
        assert isinstance(item, Unspoken) and item.reason is reason and "humor" in item.text


def test_nothing_is_heard_where_nobody_speaks(data: Path, whisper: Whisper) -> None:
    noise = (0.1 * np.random.default_rng(0).standard_normal(10 * RATE_HZ)).astype(np.float32)
    silence = np.zeros(10 * RATE_HZ, np.float32)
    for audio in (silence, noise, tone(10, RATE_HZ), silence[:0], silence[:100]):
        assert whisper.transcribe(audio) == []
    assert whisper.transcribe(audio_of(data / "videos/longva_cook_water.mp4")) == []


def test_parts_of_a_word_are_one_word(data: Path, whisper: Whisper) -> None:
    words = words_of(whisper, audio_of(data / "videos/laion400m_talk.mp4", duration_s=30))
    assert words and not [word for word in words if re.match(r"[-']", word.text)]
    said = [re.sub(r"\W", "", word.text.lower()) for word in words]
    expected = "hello and welcome to".split()
    assert difflib.SequenceMatcher(None, expected, said[:6]).ratio() > 0.7


def test_stereo_is_refused(whisper: Whisper) -> None:
    with pytest.raises(ShapeError, match=r"\(2, 100\)"):
        whisper.transcribe(np.zeros((2, 100), np.float32))


def test_files_that_are_no_whisper_are_named(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"nonsense")
    with pytest.raises(ModelError, match=f"{tmp_path}.*CTranslate2"):
        load_whisper(str(tmp_path))


@pytest.mark.parametrize("language", [None, "de"])
def test_a_language_that_the_model_does_not_know_is_refused(language: str | None) -> None:
    with pytest.raises(UsageError, match=f"speech.language={language or 'none'}: .* hears English alone"):
        load_whisper("whisper-tiny.en", language=language)


@dataclass
class Parrot:
    """A recogniser that says one word a stretch; `languages` are what it finds spoken in them."""

    languages: list[str | None]
    asked: list[tuple[str | None, float]] = field(default_factory=list)

    def language_in(self, audio: Samples) -> str | None:
        return self.languages.pop(0)

    def transcribe(self, audio: Samples, *, language: str | None = None, offset_s: float = 0.0) -> Heard:
        self.asked.append((language, offset_s))
        return [TimedWord(f"w{offset_s:.0f}", offset_s, offset_s + 0.5, 1.0)]


def test_the_first_voice_tells_the_language_of_all() -> None:
    parrot = Parrot([None, "de"])
    transcript = listen(parrot, [(float(n), np.zeros(10, np.float32)) for n in range(4)], duration_s=9)
    assert parrot.asked == [("de", 1.0), ("de", 2.0), ("de", 3.0)]
    assert transcript.language == "de"
    assert [item.text for item in transcript.items] == ["w1", "w2", "w3"]
    assert listen(Parrot([None]), [(0.0, np.zeros(10, np.float32))], duration_s=9).items == []


def test_a_loop_over_the_edge_of_two_stretches_is_seen() -> None:
    class Stuck(Parrot):
        def transcribe(self, audio: Samples, *, language: str | None = None, offset_s: float = 0.0) -> Heard:
            return [TimedWord("you", offset_s + n, offset_s + n + 1, 1.0) for n in range(5)]

    items = listen(Stuck(["en"]), [(0.0, np.zeros(1, "f4")), (5.0, np.zeros(1, "f4"))], duration_s=10).items
    assert [(type(item), item.text.count("you")) for item in items] == [(TimedWord, 1), (Unspoken, 9)]
