"""Whisper as WhisperX runs it: the parts with a voice, found first, are heard in batches. Bain et al. 2023.

WhisperX needs a torch, transformers and hub client older than ours, so it lives in an environment of its own
(envs/whisperx.txt); this module imports nothing of it until `load_whisperx` is called there.

WhisperX takes words' times from a wav2vec2 model of the language. Without one it has none: then they are Whisper's own,
from its cross-attention over the very pass that heard the words, as faster-whisper has them.
"""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from cookgen.errors import ModelError, UsageError
from cookgen.modelstore import identity, resolve
from cookgen.perception.speech import (
    RATE_HZ,
    VOICE_TOLERANCE_S,
    Samples,
    cut_to_voice,
    doubt_of,
    language_in,
    later,
    require_language,
    require_mono,
    unreadable,
    whole_words,
)
from cookgen.perception.transcript import TimedWord, Unspoken, interpolated

VERSION = "3.8.6"  # of the package, which holds the pyannote VAD; part of what a word depends on
CHUNK_S = 30  # the longest part that is heard at once: Whisper's window
_MARKS = ("\"'“¿([{-", "\"'.。,，!！?？:：”)]}、")  # that belong to the next and to the last word; Whisper's own


def whisperx_identity(align_model: str) -> str:
    """WhisperX's part of "id@revision" in lineage: its version, and where words' times are from."""
    return f"whisperx@{VERSION}+{f'align-{identity(align_model)}' if align_model else 'times-of-whisper'}"


@dataclass(frozen=True)
class WhisperX:
    """A loaded WhisperX and how it is asked; made by `load_whisperx`."""

    pipeline: Any  # whisperx.asr.FasterWhisperPipeline, whose model is a `_timed_model`
    language: str | None  # None: the one that is spoken
    log_prob_threshold: float
    compression_ratio_threshold: float
    batch_size: int
    aligner: Aligner | None

    def language_in(self, audio: Samples) -> str | None:
        """The language to hear this sound in; see `cookgen.perception.speech.Recogniser`."""
        return language_in(self.pipeline.model, audio, expected=self.language)

    def transcribe(
        self, audio: Samples, *, language: str | None = None, offset_s: float = 0.0
    ) -> list[TimedWord | Unspoken]:
        """What is spoken in mono float32 [N] at 16 kHz, in order, not overlapping; times count from -offset_s.

        language: None for the one that it was loaded for. Only parts with a voice are listened to; words that reach
        out of every voice are cut. Text that Whisper itself would call failed is Unspoken: improbable, or so repetitive
        that it compresses too well.
        Raises ShapeError unless audio is one-dimensional.
        """
        from faster_whisper.transcribe import get_compression_ratio

        require_mono(audio)
        heard: list[TimedWord | Unspoken] = []
        for part in self._parts(audio, language or self.language):
            doubt = doubt_of(
                part.avg_logprob,
                get_compression_ratio(part.text),
                log_prob_threshold=self.log_prob_threshold,
                compression_ratio_threshold=self.compression_ratio_threshold,
            )
            if doubt is not None:
                heard.append(Unspoken(doubt, part.text, part.start_s, part.end_s))
            elif self.aligner is not None:
                heard += cut_to_voice(part.voiced, self.aligner.words(part, audio))
            else:
                heard += cut_to_voice(part.voiced, whole_words(part.parts))
        return later(heard, offset_s, duration_s=len(audio) / RATE_HZ)

    def _parts(self, audio: Samples, language: str | None) -> Iterator[_Part]:
        """Each part with a voice, and the text in it."""
        import torch
        from faster_whisper.tokenizer import Tokenizer
        from whisperx.audio import N_SAMPLES, log_mel_spectrogram

        if not len(audio):
            return
        pipeline = self.pipeline
        model = pipeline.model
        tokenizer = Tokenizer(
            model.hf_tokenizer, model.model.is_multilingual, task="transcribe", language=language or "en"
        )
        num_mels = model.feat_kwargs.get("feature_size") or 80
        spans, voiced = _spans(pipeline, audio)
        for at in range(0, len(spans), self.batch_size):
            batch = spans[at : at + self.batch_size]
            sounds = [audio[first:end] for first, end in batch]
            features = torch.stack(
                [log_mel_spectrogram(sound, n_mels=num_mels, padding=N_SAMPLES - len(sound)) for sound in sounds]
            )
            found = model.generate_segment_batched(features, tokenizer, pipeline.options)
            lengths_s = [len(sound) / RATE_HZ for sound in sounds]
            timed = [[] for _ in batch] if self.aligner else model.timed(found["text"], lengths_s, tokenizer)
            for (first, end), text, avg_logprob, parts in zip(
                batch, found["text"], found["avg_logprob"], timed, strict=True
            ):
                start_s, end_s = first / RATE_HZ, end / RATE_HZ
                yield _Part(text, start_s, end_s, avg_logprob, [_moved(part, start_s, end_s) for part in parts], voiced)


@dataclass(frozen=True)
class _Part:
    """The text in a part with a voice; `parts` are Whisper's pieces of words with their times and probabilities.

    voiced: where the voices of the whole sound are.
    """

    text: str
    start_s: float
    end_s: float
    avg_logprob: float
    parts: Sequence[tuple[str, float, float, float]]
    voiced: Sequence[tuple[float, float]]


def _moved(part: tuple[str, float, float, float], start_s: float, end_s: float) -> tuple[str, float, float, float]:
    """The piece where it lies in the whole sound, its times within the part's."""
    text, start, end, probability = part
    return text, min(start + start_s, end_s), min(end + start_s, end_s), probability


def _spans(pipeline: Any, audio: Samples) -> tuple[list[tuple[int, int]], list[tuple[float, float]]]:
    """(first, end) samples of the parts to hear, voices joined up to CHUNK_S by WhisperX's own rule; and where the
    voices are in seconds, VOICE_TOLERANCE_S added on both sides."""
    vad = pipeline.vad_model
    found = vad({"waveform": vad.preprocess_audio(audio), "sample_rate": RATE_HZ})
    onset, offset = (pipeline._vad_params[name] for name in ("vad_onset", "vad_offset"))
    joined = vad.merge_chunks(found, CHUNK_S, onset=onset, offset=offset)
    # Of a part longer than Whisper's window (a voice that never pauses) the rest is heard as a part of its own.
    most = CHUNK_S * RATE_HZ
    parts = ((int(part["start"] * RATE_HZ), min(int(part["end"] * RATE_HZ), len(audio))) for part in joined)
    spans = [(at, min(at + most, end)) for first, end in parts for at in range(first, end, most)]
    voiced: list[tuple[float, float]] = []
    for part in joined:
        for start, end in part["segments"]:
            start_s = max(0.0, start - VOICE_TOLERANCE_S)
            if voiced and start_s <= voiced[-1][1]:
                start_s = voiced.pop()[0]
            voiced.append((start_s, end + VOICE_TOLERANCE_S))
    return spans, voiced


@dataclass(frozen=True)
class Aligner:
    """A wav2vec2 model that says when each letter of a text is spoken."""

    model: Any
    metadata: dict[str, Any]  # WhisperX's: the language and the model's letters
    device: str
    rules: tempfile.TemporaryDirectory[str]  # held, for it is removed with its owner

    def words(self, part: _Part, audio: Samples) -> list[TimedWord]:
        """Every word of the part's text; one of which the model knows no letter, "350" or "½", lies between its
        neighbours."""
        from whisperx.alignment import align

        segment = {"text": part.text, "start": part.start_s, "end": part.end_s, "avg_logprob": part.avg_logprob}
        found = align([segment], self.model, self.metadata, audio, self.device)["word_segments"]
        likely = math.exp(min(0.0, part.avg_logprob))  # of a word without a score of its own: the whole text's
        words = [
            TimedWord(text, *(item.get("start", math.nan), item.get("end", math.nan)), item.get("score", likely))
            if item is not None and self._knows(text)
            else TimedWord(text, math.nan, math.nan, likely)
            for text, item in matched(part.text.split(), found)
        ]
        return interpolated(words, start_s=part.start_s, end_s=part.end_s)

    def _knows(self, text: str) -> bool:
        return any(letter in self.metadata["dictionary"] for letter in text.lower())


def matched(texts: Sequence[str], found: Sequence[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any] | None]]:
    """Each word with what the alignment says of it, None where that has left it out; neither may change the order."""
    position = 0
    for text in texts:
        at = next((n for n in range(position, len(found)) if found[n]["word"] == text), None)
        yield text, None if at is None else found[at]
        position = position if at is None else at + 1


def load_whisperx(
    model: str,
    *,
    language: str | None,
    device: str = "cpu",
    compute_type: str = "int8",
    cpu_threads: int = 1,
    beam_size: int = 5,
    log_prob_threshold: float = -1.0,
    compression_ratio_threshold: float = 2.4,
    batch_size: int = 8,
    vad: Literal["pyannote", "silero"] = "pyannote",
    align_model: str = "",
) -> WhisperX:
    """Loads a Whisper in CTranslate2's form, a detector of voices and, where named, a wav2vec2 model.

    model, align_model: references of the model store. language None is the one that is spoken.
    Raises UsageError where WhisperX is not installed or the model does not know the language, ModelError where a model
    cannot be loaded, and whatever `cookgen.modelstore.resolve` raises.
    """
    _require_installed()
    import whisperx

    path = resolve(model).path
    try:
        loaded = _timed_model(str(path), device=device, compute_type=compute_type, cpu_threads=cpu_threads)
    except (RuntimeError, ValueError) as error:  # what CTranslate2 raises for files it cannot read
        raise unreadable(model, error) from error
    require_language(loaded, model, language)
    pipeline = whisperx.load_model(
        str(path),
        device,
        model=loaded,
        language=language,
        asr_options={"beam_size": beam_size},
        vad_method="pyannote",
        vad_model=_packaged_silero() if vad == "silero" else None,
    )
    return WhisperX(
        pipeline=pipeline,
        language=language,
        log_prob_threshold=log_prob_threshold,
        compression_ratio_threshold=compression_ratio_threshold,
        batch_size=batch_size,
        aligner=_load_aligner(align_model, language, device) if align_model and language else None,
    )


def _require_installed() -> None:
    try:
        found = metadata.version("whisperx")
    except metadata.PackageNotFoundError as error:
        raise UsageError(
            "speech.kind=whisperx: WhisperX is not installed beside this Python; it runs in an environment of its own, "
            "which `make whisperx-env` makes and --engine ray enters"
        ) from error
    if found != VERSION:
        raise UsageError(f"speech.kind=whisperx: WhisperX is {found}, {VERSION} is needed; run `make whisperx-env`")


def _timed_model(path: str, **options: Any) -> Any:
    """WhisperX's model, that also tells when the words of the batch that it heard last were spoken."""
    from whisperx.asr import WhisperModel

    class TimedModel(WhisperModel):  # type: ignore[misc]
        def encode(self, features: Any) -> Any:
            self.encoded = super().encode(features)
            return self.encoded

        def timed(
            self, texts: Sequence[str], lengths_s: Sequence[float], tokenizer: Any
        ) -> list[list[tuple[str, float, float, float]]]:
            """Of each text of that batch the pieces of its words: (text, start, end, probability), from its start."""
            heard = [
                [{"seek": 0, "start": 0.0, "end": length_s, "tokens": tokenizer.encode(text)}]
                for text, length_s in zip(texts, lengths_s, strict=True)
            ]
            frames = [math.ceil(length_s * self.frames_per_second) for length_s in lengths_s]
            self.add_word_timestamps(heard, tokenizer, self.encoded, frames, *_MARKS, 0.0)
            return [
                [(word["word"], word["start"], word["end"], word["probability"]) for word in segment["words"]]
                for (segment,) in heard
            ]

    return TimedModel(path, **options)


def _packaged_silero() -> Any:
    """The Silero detector that faster-whisper brings. WhisperX would fetch code and weights from the web, unpinned."""
    from faster_whisper.vad import VadOptions, get_speech_timestamps
    from whisperx.diarize import Segment
    from whisperx.vads import Silero

    class PackagedSilero(Silero):  # type: ignore[misc]
        def __init__(self) -> None:
            pass

        def __call__(self, audio: dict[str, Any], **_: Any) -> list[Any]:
            # Silero's own defaults, which WhisperX uses; faster-whisper has others.
            options = VadOptions(max_speech_duration_s=CHUNK_S, min_silence_duration_ms=100, speech_pad_ms=30)
            spans = get_speech_timestamps(audio["waveform"], options)
            return [Segment(span["start"] / RATE_HZ, span["end"] / RATE_HZ, "UNKNOWN") for span in spans]

    return PackagedSilero()


def _load_aligner(name: str, language: str, device: str) -> Aligner:
    import nltk
    import whisperx

    path = resolve(name).path
    try:
        with contextlib.redirect_stdout(None):  # it prints what it raises
            model, about = whisperx.load_align_model(language, device, model_name=str(path))
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ModelError(
            f"speech.whisperx.align_model={name}: {str(error).splitlines()[0]}; name a wav2vec2 CTC model of "
            "transformers' form, or leave it empty: words' times are Whisper's own then"
        ) from error
    rules = _sentence_rules(language)
    nltk.data.path.insert(0, rules.name)
    return Aligner(model, about, device, rules)


def _sentence_rules(language: str) -> tempfile.TemporaryDirectory[str]:
    """A folder of NLTK's for sentences, without what it would download: sentences only group words here."""
    from whisperx.utils import PUNKT_LANGUAGES

    folder = tempfile.TemporaryDirectory(prefix="cookgen-nltk-")
    place = Path(folder.name, "tokenizers", "punkt_tab", PUNKT_LANGUAGES.get(language, "english"))
    place.mkdir(parents=True)
    for name in ("collocations.tab", "sent_starters.txt", "abbrev_types.txt", "ortho_context.tab"):
        (place / name).touch()
    return folder
