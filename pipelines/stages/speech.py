"""speech: the words of a video with their times, from the captions beside it or heard by Whisper."""

from __future__ import annotations

import contextlib
import faulthandler
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from cookgen.config import machinery
from cookgen.modelstore import identity
from cookgen.perception.speech import (
    AudioError,
    LanguageError,
    Recogniser,
    Samples,
    Transcript,
    listen,
    load_whisper,
    read_audio,
    windows,
)
from cookgen.perception.transcript import TimedWord, Unspoken
from cookgen.perception.whisperx import load_whisperx, whisperx_identity
from cookgen.records import Reason, Reject, Video, Word
from pipelines.probe import open_container
from pipelines.stage import Needs, Places, Stage
from pipelines.subtitles import SubtitlesError, read_subtitles

MAX_QUOTED = 200  # characters of what was not spoken that its reject quotes
_CHECKOUT = Path(__file__).resolve().parents[2]
_STDERR = 2


@dataclass(frozen=True)
class WhisperXConfig:
    """How WhisperX listens, beside what both recognisers share.

    batch_size: parts with a voice, of at most 30 s, that are heard at once. vad finds them: "pyannote" is WhisperX's
    own. align_model: a wav2vec2 model of the language, a folder or a hub repository at a commit, that gives the words
    their times; without one they are Whisper's own.
    """

    batch_size: int = 8
    vad: Literal["pyannote", "silero"] = "pyannote"
    align_model: str = ""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}; it must be at least 1")


@dataclass(frozen=True)
class SpeechConfig:
    """Whisper and how it is asked. Thresholds are OpenAI's own; text beyond one of them is rejected as invented.

    kind "whisperx" runs in `environment`, a virtual environment of its own on every machine, made by
    `make whisperx-env`; no_speech_threshold is none of its measures. language None is the one that is spoken, told from
    the first 30 s of voice; with another a video in a language that is certainly not that one is rejected.
    timeout_s: a worker that takes longer over one stretch of at most ten minutes of sound ends. Ray tries the video in
    another, three times in all; without Ray the run ends.
    """

    kind: Literal["faster-whisper", "whisperx"] = "faster-whisper"
    model: str = "whisper-tiny.en"  # a reference of the model store, in CTranslate2's form
    language: str | None = "en"
    device: str = "cpu"
    compute_type: str = "int8"
    cpu_threads: int = 1  # the number of threads changes sums, and so may change words
    beam_size: int = 5
    no_speech_threshold: float = 0.6
    log_prob_threshold: float = -1.0
    compression_ratio_threshold: float = 2.4
    whisperx: WhisperXConfig = WhisperXConfig()
    environment: str = machinery(".venv-whisperx")  # a relative one lies in the checkout
    timeout_s: float = machinery(3600.0)

    def __post_init__(self) -> None:
        if self.beam_size < 1:
            raise ValueError(f"beam_size is {self.beam_size}; it must be at least 1")
        if self.cpu_threads < 1:
            raise ValueError(f"cpu_threads is {self.cpu_threads}; it must be at least 1, so that words do not change")
        if not self.timeout_s > 0:
            raise ValueError(f"timeout_s is {self.timeout_s}; it must be more than 0 seconds")
        if self.kind != "whisperx" and self.whisperx != WhisperXConfig():
            raise ValueError(f"kind is {self.kind}, which has no use for whisperx.…; set speech.kind=whisperx as well")
        if self.whisperx.align_model and self.language is None:
            raise ValueError("whisperx.align_model knows one language; set language to it, or leave align_model empty")

    @property
    def python(self) -> str | None:
        """The interpreter that the stage's workers need; None for the pipeline's own."""
        return str(_CHECKOUT / self.environment / "bin" / "python") if self.kind == "whisperx" else None


@dataclass(frozen=True)
class Listener:
    """The stage's tool: where the videos are, and a Whisper that is loaded when the first video needs it."""

    places: Places
    config: SpeechConfig

    @cached_property
    def recogniser(self) -> Recogniser:
        config = self.config
        if config.kind == "whisperx":
            return load_whisperx(
                config.model,
                language=config.language,
                device=config.device,
                compute_type=config.compute_type,
                cpu_threads=config.cpu_threads,
                beam_size=config.beam_size,
                log_prob_threshold=config.log_prob_threshold,
                compression_ratio_threshold=config.compression_ratio_threshold,
                batch_size=config.whisperx.batch_size,
                vad=config.whisperx.vad,
                align_model=config.whisperx.align_model,
            )
        return load_whisper(
            config.model,
            language=config.language,
            device=config.device,
            compute_type=config.compute_type,
            cpu_threads=config.cpu_threads,
            beam_size=config.beam_size,
            no_speech_threshold=config.no_speech_threshold,
            log_prob_threshold=config.log_prob_threshold,
            compression_ratio_threshold=config.compression_ratio_threshold,
        )


def hear(video: Video, *, config: SpeechConfig, tool: Listener) -> Iterator[Word | Reject]:
    """The video's words in order, not overlapping, within the video; or one video-level reject.

    A video with annotated segments needs no words and gets none. Captions beside the video are believed and Whisper is
    not asked. Rejects of the video: bad_subtitles, no_audio (none, or none that decodes), wrong_language, no_speech.
    What Whisper gave and nobody spoke stands beside the words (Word.unspoken), or in the reject no_speech.
    """
    if video.segments:
        return
    try:
        if video.subtitles is not None:
            words = read_subtitles(tool.places.source(video.subtitles), duration_s=video.duration_s)
            transcript = Transcript([*words], language=None)
        elif video.audio_stream is None:
            yield _reject(video, Reason.NO_AUDIO, "the file has no audio stream")
            return
        else:
            transcript = _listen(video, video.audio_stream, tool)
    except SubtitlesError as error:
        yield _reject(video, Reason.BAD_SUBTITLES, f"{video.subtitles}: {error}")
        return
    except AudioError as error:
        yield _reject(video, Reason.NO_AUDIO, str(error))
        return
    except LanguageError as error:
        yield _reject(video, Reason.WRONG_LANGUAGE, str(error))
        return
    words = [item for item in transcript.items if isinstance(item, TimedWord)]
    unspoken: list[list[str]] = [[] for _ in words] or [[]]
    num_before = 0
    for item in transcript.items:
        if isinstance(item, Unspoken):
            unspoken[min(num_before, len(unspoken) - 1)].append(_quoted(item))
        else:
            num_before += 1
    for word_id, word in enumerate(words):
        yield Word(
            narrative=video.narrative,
            word_id=word_id,
            text=word.text,
            start_s=word.start_s,
            end_s=word.end_s,
            probability=word.probability,
            language=transcript.language,
            unspoken=tuple(unspoken[word_id]),
        )
    if not words:
        yield _reject(video, Reason.NO_SPEECH, "; ".join([f"no words heard by {config.model}", *unspoken[0]][:4]))


def _listen(video: Video, stream: int, tool: Listener) -> Transcript:
    recogniser = tool.recogniser  # before the clock runs: loading is no listening
    with open_container(tool.places.source(video.path)) as container:
        blocks = read_audio(container, stream=stream, start_s=video.start_s, duration_s=video.duration_s)
        with contextlib.closing(_watched(windows(blocks), tool.config.timeout_s)) as stretches:
            return listen(recogniser, stretches, duration_s=video.duration_s)


def _watched(
    stretches: Iterator[tuple[float, Samples]], timeout_s: float
) -> Generator[tuple[float, Samples], None, None]:
    """The same stretches; this process ends where one of them is in use for longer than timeout_s.

    A model that hangs hangs in C, where nothing else of Python's reaches it. The stack goes to the standard error.
    """
    for stretch in stretches:
        faulthandler.dump_traceback_later(timeout_s, exit=True, file=_STDERR)
        try:
            yield stretch
        finally:
            faulthandler.cancel_dump_traceback_later()


def _quoted(item: Unspoken) -> str:
    words = f"{item.text[:MAX_QUOTED]}…" if len(item.text) > MAX_QUOTED else item.text
    return f"{item.reason}, {item.start_s:.2f}-{item.end_s:.2f} s, {len(item.text.split())} words: {words}"


def _reject(video: Video, reason: Reason, detail: str) -> Reject:
    return Reject(narrative=video.narrative, path=video.path, stage="speech", reason=reason, detail=detail)


def load(config: SpeechConfig, places: Places) -> Listener:
    """The stage's tool; the model itself is loaded when a video needs it."""
    return Listener(places, config)


def model_of(config: SpeechConfig) -> str:
    """ "id@revision" of all that the words depend on besides the configuration. Raises as the model store does."""
    if config.kind == "whisperx":
        return f"{identity(config.model)}+{whisperx_identity(config.whisperx.align_model)}"
    return identity(config.model)


STAGE = Stage(
    name="speech",
    reads=(Video,),
    writes=Word,
    run=hear,
    config=SpeechConfig(),
    version=2,
    needs=Needs(cpus=1),
    load=load,
    model=model_of,
)
