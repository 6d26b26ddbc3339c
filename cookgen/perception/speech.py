"""Speech: the sound of a video as samples on the container's clock, and the words in it (Whisper).

    blocks = read_audio(container, stream=1, start_s=video.start_s, duration_s=video.duration_s)
    for offset_s, audio in windows(blocks):
        words += whisper.transcribe(audio, offset_s=offset_s)

Everything is deterministic on one machine: temperature 0, a fixed beam and a fixed number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cookgen.errors import ModelError, ShapeError
from cookgen.modelstore import resolve

RATE_HZ = 16_000
BLOCK = 10 * RATE_HZ  # the most samples that read_audio hands over at once
MAX_DRIFT_S = 0.05  # timestamps further than this from the samples' own count are a gap or an overlap, not rounding
MIN_WORD_S = 0.02  # Whisper's own time resolution
# Pauses up to twice this long stay in what Whisper hears: on spoken recipes with pauses of 3 s it makes half the errors
# that it makes when sentences are pushed together.
HEARD_AROUND_VOICE_S = 2.0
VOICE_TOLERANCE_S = 0.5  # how far from any voice a word may lie: Whisper's times are that imprecise

Samples = NDArray[np.float32]


@dataclass(frozen=True)
class TimedWord:
    """A word in [start_s, end_s), with the recogniser's probability, 0 to 1."""

    text: str
    start_s: float
    end_s: float
    probability: float


class AudioError(Exception):
    """No sample of the audio stream can be decoded."""


def read_audio(container: Any, *, stream: int, start_s: float, duration_s: float) -> Iterator[Samples]:
    """An audio stream as mono float32 blocks at 16 kHz; sample n is n/16000 s after the container's start.

    container: an open PyAV container, read to its end. stream: index in it. start_s: the container's start in the
    file's own timestamps. Late starts and gaps become silence, overlaps are cut, what lies past duration_s is dropped,
    packets that do not decode are skipped.
    Raises AudioError if nothing decodes.
    """
    import av

    position = 0  # samples handed over
    end = round(duration_s * RATE_HZ)
    try:
        for onset_s, samples in _continuous_runs(container, stream, start_s):
            onset = round((onset_s - start_s) * RATE_HZ)
            if onset >= end:  # one wild timestamp must not hide the sound that follows
                continue
            # Only the first block of a run can lie ahead of what was handed over, or behind it.
            for silent in range(position, onset, BLOCK):
                block = np.zeros(min(BLOCK, onset - silent), np.float32)
                position += len(block)
                yield block
            kept = samples[max(0, position - onset) : max(0, end - onset)]
            for first in range(0, len(kept), BLOCK):
                position += len(kept[first : first + BLOCK])
                yield kept[first : first + BLOCK]
    except av.FFmpegError as error:
        if position == 0:
            raise AudioError(f"stream {stream}: {error.strerror}") from error
    if position == 0:
        raise AudioError(f"stream {stream}: no packet of it can be decoded")


def _continuous_runs(container: Any, stream_index: int, start_s: float) -> Iterator[tuple[float, Samples]]:
    """(time of the first sample in the file's own timestamps, mono float32 samples at 16 kHz)."""
    import av

    resampler: Any = None
    made_for: tuple[Any, ...] = ()
    origin_s = start_s  # of the run, and how many samples were read and made since
    num_read = num_made = 0

    def made(frames: Sequence[Any]) -> Iterator[tuple[float, Samples]]:
        nonlocal num_made
        for frame in frames:
            samples = np.nan_to_num(frame.to_ndarray().reshape(-1), nan=0.0, posinf=0.0, neginf=0.0).clip(-1, 1)
            onset_s = origin_s + num_made / RATE_HZ
            num_made += len(samples)
            yield onset_s, samples.astype(np.float32)

    if stream_index >= len(container.streams) or container.streams[stream_index].type != "audio":
        raise AudioError(f"stream {stream_index} is not audio; the file has changed since it was probed")
    stream = container.streams[stream_index]
    for packet in container.demux(stream):
        try:
            frames = packet.decode()
        except av.FFmpegError:
            continue  # the timestamps of what follows show the hole
        for frame in frames:
            if not frame.samples or not frame.sample_rate:
                continue
            expected_s = origin_s + (num_read / made_for[-1] if made_for else 0.0)
            onset_s = float(frame.pts * frame.time_base) if frame.pts is not None else expected_s
            form = (frame.format.name, frame.layout.name, frame.sample_rate)
            if form != made_for or abs(onset_s - expected_s) > MAX_DRIFT_S:
                if resampler is not None:
                    yield from made(resampler.resample(None))
                resampler = av.AudioResampler(format="flt", layout="mono", rate=RATE_HZ)
                made_for, origin_s, num_read, num_made = form, onset_s, 0, 0
            num_read += frame.samples
            frame.pts = None  # the resampler would stretch the sound to follow jitter
            yield from made(resampler.resample(frame))
    if resampler is not None:
        yield from made(resampler.resample(None))


def windows(
    blocks: Iterable[Samples], *, max_s: float = 600.0, search_s: float = 30.0
) -> Iterator[tuple[float, Samples]]:
    """(offset in seconds, samples) of stretches of at most max_s, so that memory does not grow with the video.

    A long stretch is cut at the middle of the quietest 0.2 s of its last search_s, so as not to cut words.
    """
    held: list[Samples] = []
    num_held = offset = 0
    limit, search, frame = round(max_s * RATE_HZ), round(search_s * RATE_HZ), RATE_HZ // 5
    for block in blocks:
        held.append(block)
        num_held += len(block)
        while num_held > limit:
            audio = np.concatenate(held)
            tail = audio[limit - search : limit]
            frames = tail[: len(tail) // frame * frame].reshape(-1, frame)
            quietest = int(np.argmin(np.square(frames, dtype=np.float64).mean(axis=1)))
            cut = limit - search + quietest * frame + frame // 2
            yield offset / RATE_HZ, audio[:cut]
            offset += cut
            held, num_held = [audio[cut:]], len(audio) - cut
    if num_held:
        yield offset / RATE_HZ, np.concatenate(held)


@dataclass(frozen=True)
class Whisper:
    """A loaded Whisper model and how it is asked; made by `load_whisper`."""

    model: Any  # faster_whisper.WhisperModel
    language: str
    beam_size: int
    no_speech_threshold: float
    log_prob_threshold: float
    compression_ratio_threshold: float

    def transcribe(self, audio: Samples, *, offset_s: float = 0.0) -> list[TimedWord]:
        """The words spoken in mono float32 [N] at 16 kHz, in order, not overlapping; times count from -offset_s.

        Parts without a voice (Silero VAD) are not listened to; words put there are dropped, and words that reach into
        them are cut. Text that Whisper itself would call failed is dropped: improbable, or so repetitive that it
        compresses too well (loops). Source: Radford et al. 2022, section 4.5.
        Raises ShapeError unless audio is one-dimensional.
        """
        if audio.ndim != 1:
            raise ShapeError(f"audio has the shape {audio.shape}; mono samples [N] at 16 kHz are needed")
        voiced = _voiced_spans(audio)
        if not voiced:
            return []
        segments, _ = self.model.transcribe(
            audio,
            language=self.language,
            beam_size=self.beam_size,
            temperature=0.0,  # one temperature: no sampling, whatever comes out
            condition_on_previous_text=False,  # one window's mistake must not lead the next one astray
            no_speech_threshold=self.no_speech_threshold,
            log_prob_threshold=self.log_prob_threshold,
            compression_ratio_threshold=self.compression_ratio_threshold,
            word_timestamps=True,
            vad_filter=True,
            vad_parameters={"speech_pad_ms": round(HEARD_AROUND_VOICE_S * 1000)},
        )
        words: list[TimedWord] = []
        for segment in segments:
            if segment.avg_logprob < self.log_prob_threshold:
                continue
            if segment.compression_ratio > self.compression_ratio_threshold:
                continue
            words += _within(voiced, _whole_words(segment.words or ()))
        return [
            replace(word, start_s=word.start_s + offset_s, end_s=word.end_s + offset_s)
            for word in in_order(words, duration_s=len(audio) / RATE_HZ)
        ]


def _whole_words(parts: Iterable[Any]) -> Iterator[TimedWord]:
    """Whisper's words; a part without a blank before it ("-term" after "long") belongs to the word before."""
    whole: TimedWord | None = None
    for part in parts:
        text, probability = part.word.strip(), float(part.probability)
        if whole is not None and text and not part.word[0].isspace():
            probability = min(whole.probability, probability)
            whole = TimedWord(whole.text + text, whole.start_s, float(part.end), probability)
            continue
        if whole is not None:
            yield whole
        whole = TimedWord(text, float(part.start), float(part.end), probability)
    if whole is not None:
        yield whole


def _within(spans: Sequence[tuple[float, float]], words: Iterable[TimedWord]) -> Iterator[TimedWord]:
    """The words that overlap a span, cut to the first such span."""
    for word in words:
        for start, end in spans:
            if word.start_s < end and start < word.end_s:
                yield replace(word, start_s=max(word.start_s, start), end_s=min(word.end_s, end))
                break


def _voiced_spans(audio: Samples) -> list[tuple[float, float]]:
    """Where somebody speaks or sings, in seconds, VOICE_TOLERANCE_S added on both sides."""
    from faster_whisper.vad import VadOptions, get_speech_timestamps

    if not len(audio):
        return []
    options = VadOptions(min_silence_duration_ms=500, speech_pad_ms=round(VOICE_TOLERANCE_S * 1000))
    spans = get_speech_timestamps(audio, options)
    return [(span["start"] / RATE_HZ, span["end"] / RATE_HZ) for span in spans]


def load_whisper(
    model: str,
    *,
    language: str = "en",
    device: str = "cpu",
    compute_type: str = "int8",
    cpu_threads: int = 1,
    beam_size: int = 5,
    no_speech_threshold: float = 0.6,
    log_prob_threshold: float = -1.0,
    compression_ratio_threshold: float = 2.4,
) -> Whisper:
    """Loads a Whisper in CTranslate2's form; `model` is a reference of the model store. Thresholds are OpenAI's own.

    Raises ModelError where it cannot be loaded, and whatever `cookgen.modelstore.resolve` raises.
    """
    from faster_whisper import WhisperModel

    path = resolve(model).path
    try:
        loaded = WhisperModel(str(path), device=device, compute_type=compute_type, cpu_threads=cpu_threads)
    except (RuntimeError, ValueError) as error:  # what CTranslate2 raises for files it cannot read
        raise ModelError(
            f"{model}: {error}; a Whisper in CTranslate2's form is needed (model.bin, config.json, tokenizer.json)"
        ) from error
    return Whisper(
        model=loaded,
        language=language,
        beam_size=beam_size,
        no_speech_threshold=no_speech_threshold,
        log_prob_threshold=log_prob_threshold,
        compression_ratio_threshold=compression_ratio_threshold,
    )


def in_order(words: Iterable[TimedWord], *, duration_s: float) -> list[TimedWord]:
    """The same words, blank ones dropped, with times that hold: 0 <= start < end <= next start, all within duration_s.

    Word order is trusted, times are not: one that is missing (not finite), runs backwards or overlaps is moved no
    further than needed. Each word gets at least 20 ms, or its even share where the time is too short for that.
    Probabilities are brought into [0, 1]. Empty where duration_s is not positive.
    """
    kept = [word for word in words if word.text.strip()]
    if not kept or not duration_s > 0:
        return []
    step = min(MIN_WORD_S, duration_s / len(kept))
    starts: list[float] = []
    heard_s = 0.0  # where a word without a time of its own is put: at the end of the one before
    for index, word in enumerate(kept):
        start = word.start_s if math.isfinite(word.start_s) else heard_s
        earliest = starts[-1] + step if starts else 0.0
        latest = duration_s - step * (len(kept) - index)
        starts.append(max(earliest, min(start, latest)) if starts else max(0.0, min(start, latest)))
        heard_s = word.end_s if math.isfinite(word.end_s) else starts[-1] + step
    result = []
    for word, start, limit in zip(kept, starts, [*starts[1:], duration_s], strict=True):
        end = word.end_s if math.isfinite(word.end_s) else limit
        probability = min(1.0, max(0.0, word.probability)) if math.isfinite(word.probability) else 0.0
        result.append(TimedWord(word.text, start, min(limit, max(end, start + step)), probability))
    return result
