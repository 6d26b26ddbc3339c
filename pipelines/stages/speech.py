"""speech: the words of a video with their times, from the captions beside it or heard by Whisper."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from cookgen.modelstore import identity
from cookgen.perception.speech import AudioError, TimedWord, Whisper, in_order, load_whisper, read_audio, windows
from cookgen.records import Reason, Reject, Video, Word
from pipelines.probe import open_container
from pipelines.stage import Needs, Places, Stage
from pipelines.subtitles import SubtitlesError, read_subtitles


@dataclass(frozen=True)
class SpeechConfig:
    """Whisper and how it is asked. Thresholds are OpenAI's own; text beyond one of them is dropped as invented."""

    model: str = "whisper-tiny.en"  # a reference of the model store, in CTranslate2's form
    language: str = "en"
    device: str = "cpu"
    compute_type: str = "int8"
    cpu_threads: int = 1  # the number of threads changes sums, and so may change words
    beam_size: int = 5
    no_speech_threshold: float = 0.6
    log_prob_threshold: float = -1.0
    compression_ratio_threshold: float = 2.4

    def __post_init__(self) -> None:
        if self.beam_size < 1:
            raise ValueError(f"beam_size is {self.beam_size}; it must be at least 1")
        if self.cpu_threads < 1:
            raise ValueError(f"cpu_threads is {self.cpu_threads}; it must be at least 1, so that words do not change")


@dataclass(frozen=True)
class Listener:
    """The stage's tool: where the videos are, and a Whisper that is loaded when the first video needs it."""

    places: Places
    config: SpeechConfig

    @cached_property
    def whisper(self) -> Whisper:
        return load_whisper(
            self.config.model,
            language=self.config.language,
            device=self.config.device,
            compute_type=self.config.compute_type,
            cpu_threads=self.config.cpu_threads,
            beam_size=self.config.beam_size,
            no_speech_threshold=self.config.no_speech_threshold,
            log_prob_threshold=self.config.log_prob_threshold,
            compression_ratio_threshold=self.config.compression_ratio_threshold,
        )


def hear(video: Video, *, config: SpeechConfig, tool: Listener) -> Iterator[Word | Reject]:
    """The video's words in order, not overlapping, within the video; or one video-level reject.

    A video with annotated segments needs no words and gets none. Captions beside the video are believed and Whisper is
    not asked. Rejects: bad_subtitles, no_audio (none, or none that decodes), no_speech.
    """
    if video.segments:
        return
    try:
        if video.subtitles is not None:
            words = read_subtitles(tool.places.source(video.subtitles), duration_s=video.duration_s)
        elif video.audio_stream is None:
            yield _reject(video, Reason.NO_AUDIO, "the file has no audio stream")
            return
        else:
            words = _listen(video, video.audio_stream, tool)
    except SubtitlesError as error:
        yield _reject(video, Reason.BAD_SUBTITLES, f"{video.subtitles}: {error}")
        return
    except AudioError as error:
        yield _reject(video, Reason.NO_AUDIO, str(error))
        return
    if not words:
        yield _reject(video, Reason.NO_SPEECH, f"no words heard by {config.model}")
    for word_id, word in enumerate(words):
        yield Word(
            narrative=video.narrative,
            word_id=word_id,
            text=word.text,
            start_s=word.start_s,
            end_s=word.end_s,
            probability=word.probability,
        )


def _listen(video: Video, stream: int, tool: Listener) -> list[TimedWord]:
    with open_container(tool.places.source(video.path)) as container:
        blocks = read_audio(container, stream=stream, start_s=video.start_s, duration_s=video.duration_s)
        heard = (tool.whisper.transcribe(audio, offset_s=offset_s) for offset_s, audio in windows(blocks))
        return in_order((word for words in heard for word in words), duration_s=video.duration_s)


def _reject(video: Video, reason: Reason, detail: str) -> Reject:
    return Reject(narrative=video.narrative, path=video.path, stage="speech", reason=reason, detail=detail)


def load(config: SpeechConfig, places: Places) -> Listener:
    """The stage's tool; the model itself is loaded when a video needs it."""
    return Listener(places, config)


STAGE = Stage(
    name="speech",
    reads=(Video,),
    writes=Word,
    run=hear,
    config=SpeechConfig(),
    version=1,
    needs=Needs(cpus=1),
    load=load,
    model=lambda config: identity(config.model),
)
