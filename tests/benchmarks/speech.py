"""`make whisperx-test`: what the speech stage costs beside the bare calls of its two libraries. JSON lines.

By turns, at the same settings and on one thread: the stage on a video file, decoding and repairs included, and the
library's own `transcribe` on the samples, decoded before. Seconds are CPU-seconds; `stage_over_bare` is the stage's
speed over the library's, [median, least, greatest] over the rounds; rtf are CPU-seconds a second of sound. Run in
.venv-whisperx, where both libraries are.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import tyro

from cookgen.perception.speech import HEARD_AROUND_VOICE_S, RATE_HZ, Samples, read_audio
from cookgen.records import SourceVideo, Video
from pipelines.stage import Places
from pipelines.stages import videos
from pipelines.stages.speech import SpeechConfig, hear, load

BAR = 0.9


def probed(places: Places, name: str) -> Video:
    status = places.source(name).stat()
    source = SourceVideo(
        narrative="folder-x",
        source="folder",
        video_id="x",
        path=name,
        num_bytes=status.st_size,
        mtime_ns=status.st_mtime_ns,
    )
    (row,) = videos.STAGE.run(source, config=videos.STAGE.config, tool=places)
    assert isinstance(row, Video), row
    return row


def samples(places: Places, video: Video) -> Samples:
    assert video.audio_stream is not None
    with av.open(str(places.source(video.path))) as container:
        blocks = read_audio(container, stream=video.audio_stream, start_s=video.start_s, duration_s=video.duration_s)
        return np.concatenate(list(blocks))


def bare(config: SpeechConfig, recogniser: Any, audio: Samples) -> Callable[[], Any]:
    if config.kind == "whisperx":
        return lambda: recogniser.pipeline.transcribe(audio, batch_size=config.whisperx.batch_size)

    def transcribe() -> Any:
        segments, _ = recogniser.model.transcribe(
            audio,
            language=config.language,
            beam_size=config.beam_size,
            temperature=0.0,
            condition_on_previous_text=False,
            word_timestamps=True,
            vad_filter=True,
            vad_parameters={"speech_pad_ms": round(HEARD_AROUND_VOICE_S * 1000)},
        )
        return list(segments)

    return transcribe


def cpu_seconds(work: Callable[[], Any]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def main(name: str = "laion400m_talk.mp4", rounds: int = 3) -> None:
    """name: a file in the videos of COOKGEN_TEST_DATA."""
    warnings.filterwarnings("ignore")  # pyannote's, of a torchcodec that nobody needs
    folder = os.environ.get("COOKGEN_TEST_DATA")
    if not folder:
        sys.exit("COOKGEN_TEST_DATA is not set: it names the folder of real test videos")
    places = Places(videos=Path(folder) / "videos", media=Path(), scratch=Path())
    video = probed(places, name)
    audio = samples(places, video)
    for config in (SpeechConfig(), SpeechConfig(kind="whisperx")):
        tool = load(config, places)
        library = bare(config, tool.recogniser, audio)
        library()  # what is loaded at the first use is no part of either
        took = [
            (cpu_seconds(lambda: list(hear(video, config=config, tool=tool))), cpu_seconds(library))  # noqa: B023
            for _ in range(rounds)
        ]
        ratios = [other / ours for ours, other in took]
        seconds = len(audio) / RATE_HZ
        line = {
            "bench": "speech",
            "kind": config.kind,
            "model": config.model,
            "video": name,
            "audio_s": round(seconds, 1),
            "rtf": {
                "stage": round(statistics.median(ours for ours, _ in took) / seconds, 4),
                "bare": round(statistics.median(other for _, other in took) / seconds, 4),
            },
            "stage_over_bare": [round(value, 3) for value in (statistics.median(ratios), min(ratios), max(ratios))],
            "bar": BAR,
            "machine": platform.processor() or platform.machine(),
        }
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    tyro.cli(main)
