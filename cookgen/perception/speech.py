"""Speech: the sound of a video as samples on the container's clock, and the words in it (Whisper).

    blocks = read_audio(container, stream=1, start_s=video.start_s, duration_s=video.duration_s)
    transcript = listen(load_whisper("whisper-tiny.en"), windows(blocks), duration_s=video.duration_s)

Everything is deterministic on one machine: temperature 0, a fixed beam and a fixed number of threads. This module runs
faster-whisper; `cookgen.perception.whisperx` is the other recogniser, of which `listen` makes the same of the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cookgen.errors import ModelError, ShapeError, UnknownNameError, UsageError
from cookgen.modelstore import resolve
from cookgen.perception.transcript import Doubt, Heard, TimedWord, Unspoken, in_order, repaired

RATE_HZ = 16_000
BLOCK = 10 * RATE_HZ  # the most samples that read_audio hands over at once
MAX_DRIFT_S = 0.05  # timestamps further than this from the samples' own count are a gap or an overlap, not rounding
# Pauses up to twice this long stay in what Whisper hears: on spoken recipes with pauses of 3 s it makes half the errors
# that it makes when sentences are pushed together.
HEARD_AROUND_VOICE_S = 2.0
VOICE_TOLERANCE_S = 0.5  # how far from any voice a word may lie: Whisper's times are that imprecise
LANGUAGE_CERTAIN = 0.5  # what is less probable is no reason to refuse a video; Whisper's own threshold
LANGUAGE_HEARD_S = 30.0  # of voice, from which the language is told; Whisper's own length

Samples = NDArray[np.float32]


class AudioError(Exception):
    """No sample of the audio stream can be decoded."""


class LanguageError(Exception):
    """Another language is spoken than the one that is to be heard."""


class Recogniser(Protocol):
    """What `listen` needs: a loaded model and how it is asked."""

    def language_in(self, audio: Samples) -> str | None:
        """The language to hear this sound in; None where nobody speaks. Raises LanguageError where it is another."""

    def transcribe(self, audio: Samples, *, language: str | None = None, offset_s: float = 0.0) -> Heard:
        """What is heard in mono float32 [N] at 16 kHz, in its order; times count from -offset_s."""


@dataclass(frozen=True)
class Transcript:
    """What was heard in a video; `language` is the code of the language it was heard in, None where nobody speaks."""

    items: list[TimedWord | Unspoken]
    language: str | None


def listen(recogniser: Recogniser, stretches: Iterable[tuple[float, Samples]], *, duration_s: float) -> Transcript:
    """What a recogniser hears in (offset in seconds, samples), one after the other, repaired as a whole.

    Times lie in [0, duration_s]. The language is that of the first stretch with a voice.
    Raises LanguageError where it is surely another than the recogniser is to hear.
    """
    heard: list[TimedWord | Unspoken] = []
    language: str | None = None
    for offset_s, audio in stretches:
        language = language or recogniser.language_in(audio)
        if language is not None:
            heard += recogniser.transcribe(audio, language=language, offset_s=offset_s)
    return Transcript(repaired(heard, duration_s=duration_s), language)


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
    language: str | None  # None: the one that is spoken
    beam_size: int
    no_speech_threshold: float
    log_prob_threshold: float
    compression_ratio_threshold: float

    def language_in(self, audio: Samples) -> str | None:
        """The language to hear this sound in; see `Recogniser`."""
        return language_in(self.model, audio, expected=self.language)

    def transcribe(
        self, audio: Samples, *, language: str | None = None, offset_s: float = 0.0
    ) -> list[TimedWord | Unspoken]:
        """What is spoken in mono float32 [N] at 16 kHz, in order, not overlapping; times count from -offset_s.

        language: None for the one that it was loaded for. Parts without a voice (Silero VAD) are not listened to; words
        put there are Unspoken, and words that reach into them are cut. So is text that Whisper itself would call
        failed: improbable, or so repetitive that it compresses too well (loops). Source: Radford et al. 2022, section
        4.5. Raises ShapeError unless audio is one-dimensional.
        """
        require_mono(audio)
        voiced = voiced_spans(audio)
        if not voiced:
            return []
        segments, _ = self.model.transcribe(
            audio,
            language=language or self.language,
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
        heard: list[TimedWord | Unspoken] = []
        for segment in segments:
            doubt = doubt_of(
                segment.avg_logprob,
                segment.compression_ratio,
                log_prob_threshold=self.log_prob_threshold,
                compression_ratio_threshold=self.compression_ratio_threshold,
            )
            if doubt is not None:
                heard.append(Unspoken(doubt, segment.text, segment.start, segment.end))
                continue
            parts = [(part.word, part.start, part.end, part.probability) for part in segment.words or ()]
            heard += cut_to_voice(voiced, whole_words(parts))
        return later(heard, offset_s, duration_s=len(audio) / RATE_HZ)


def require_mono(audio: Samples) -> None:
    """Raises ShapeError unless audio is one-dimensional."""
    if audio.ndim != 1:
        raise ShapeError(f"audio has the shape {audio.shape}; mono samples [N] at 16 kHz are needed")


def doubt_of(
    avg_logprob: float, compression_ratio: float, *, log_prob_threshold: float, compression_ratio_threshold: float
) -> Doubt | None:
    """Why a segment's text is not believed, by Whisper's own two measures; None where it is."""
    if avg_logprob < log_prob_threshold:
        return Doubt.UNLIKELY
    return Doubt.REPEATED if compression_ratio > compression_ratio_threshold else None


def later(heard: Heard, offset_s: float, *, duration_s: float) -> list[TimedWord | Unspoken]:
    """What was heard in [0, duration_s), its words in order, as it lies in the whole; blank items go."""
    items = [item for item in heard if item.text.strip()]
    words = iter(in_order([item for item in items if isinstance(item, TimedWord)], duration_s=duration_s))
    placed = [next(words) if isinstance(item, TimedWord) else item for item in items]
    return [replace(item, start_s=item.start_s + offset_s, end_s=item.end_s + offset_s) for item in placed]


def language_in(model: Any, audio: Samples, *, expected: str | None) -> str | None:
    """The language that is spoken in mono float32 [N] at 16 kHz, "en"; None where nobody speaks.

    model: a faster_whisper.WhisperModel; one that knows English alone is not asked. Where another language is expected
    and the one that is heard is not certain, the expected one.
    Raises LanguageError where it is certain, and another.
    """
    require_mono(audio)
    if not model.model.is_multilingual:
        return "en"
    spans = voiced_spans(audio)
    if not spans:
        return None
    voice = np.concatenate([audio[round(start * RATE_HZ) : round(end * RATE_HZ)] for start, end in spans])
    found, probability, _ = model.detect_language(voice[: round(LANGUAGE_HEARD_S * RATE_HZ)])
    if expected is None or found == expected:
        return str(found)
    if probability > LANGUAGE_CERTAIN:
        raise LanguageError(f"{found} is spoken (probability {probability:.2f}), not {expected}")
    return expected


def require_language(model: Any, name: str, language: str | None) -> None:
    """Raises UsageError for a language that the faster_whisper.WhisperModel loaded from `name` does not know."""
    if not model.model.is_multilingual and language != "en":
        raise UsageError(
            f"speech.language={language or 'none'}: the model {name} hears English alone; "
            "set speech.language=en, or name a multilingual Whisper as speech.model"
        )
    if language is not None and language not in model.supported_languages:
        raise UnknownNameError("speech.language", language, model.supported_languages)


def whole_words(parts: Iterable[tuple[str, float, float, float]]) -> Iterator[TimedWord]:
    """Whisper's words from (text, start, end, probability); a part without a blank before it ("-term" after "long")
    belongs to the word before."""
    whole: TimedWord | None = None
    for spelled, start, end, likely in parts:
        text, probability = spelled.strip(), float(likely)
        if whole is not None and text and not spelled[0].isspace():
            probability = min(whole.probability, probability)
            whole = TimedWord(whole.text + text, whole.start_s, float(end), probability)
            continue
        if whole is not None:
            yield whole
        whole = TimedWord(text, float(start), float(end), probability)
    if whole is not None:
        yield whole


def cut_to_voice(spans: Sequence[tuple[float, float]], words: Iterable[TimedWord]) -> Iterator[TimedWord | Unspoken]:
    """The words that overlap a span, cut to the first such span; the others are Unspoken."""
    for word in words:
        for start, end in spans:
            if word.start_s < end and start < word.end_s:
                yield replace(word, start_s=max(word.start_s, start), end_s=min(word.end_s, end))
                break
        else:
            yield Unspoken(Doubt.UNLIKELY, word.text, word.start_s, word.end_s)


def voiced_spans(audio: Samples) -> list[tuple[float, float]]:
    """Where somebody speaks or sings (Silero VAD), in seconds, VOICE_TOLERANCE_S added on both sides."""
    from faster_whisper.vad import VadOptions, get_speech_timestamps

    if not len(audio):
        return []
    options = VadOptions(min_silence_duration_ms=500, speech_pad_ms=round(VOICE_TOLERANCE_S * 1000))
    spans = get_speech_timestamps(audio, options)
    return [(span["start"] / RATE_HZ, span["end"] / RATE_HZ) for span in spans]


def load_whisper(
    model: str,
    *,
    language: str | None = "en",
    device: str = "cpu",
    compute_type: str = "int8",
    cpu_threads: int = 1,
    beam_size: int = 5,
    no_speech_threshold: float = 0.6,
    log_prob_threshold: float = -1.0,
    compression_ratio_threshold: float = 2.4,
) -> Whisper:
    """Loads a Whisper in CTranslate2's form; `model` is a reference of the model store. Thresholds are OpenAI's own.

    language None is the one that is spoken. Raises ModelError where it cannot be loaded, UsageError for a language that
    the model does not know, and whatever `cookgen.modelstore.resolve` raises.
    """
    from faster_whisper import WhisperModel

    path = resolve(model).path
    try:
        loaded = WhisperModel(str(path), device=device, compute_type=compute_type, cpu_threads=cpu_threads)
    except (RuntimeError, ValueError) as error:  # what CTranslate2 raises for files it cannot read
        raise unreadable(model, error) from error
    require_language(loaded, model, language)
    return Whisper(
        model=loaded,
        language=language,
        beam_size=beam_size,
        no_speech_threshold=no_speech_threshold,
        log_prob_threshold=log_prob_threshold,
        compression_ratio_threshold=compression_ratio_threshold,
    )


def unreadable(model: str, error: Exception) -> ModelError:
    """What is said of files that CTranslate2 cannot read."""
    return ModelError(
        f"{model}: {error}; a Whisper in CTranslate2's form is needed (model.bin, config.json, tokenizer.json)"
    )
