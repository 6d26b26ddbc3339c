"""clips: cuts a video into square clips of exactly known frames, each with its keyframe."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Literal

from cookgen.config import machinery
from cookgen.files import atomic_path, file_sha256
from cookgen.perception.shots import ShotDetection, detect_cuts, shot_spans
from cookgen.records import Clip, Reason, Reject, Video
from pipelines.cutting import Cut, Encoding, Failed, Footage, Made, cut_all, decode_small, plan_cut
from pipelines.ffmpeg import ffmpeg_build
from pipelines.probe import MAX_DENOMINATOR, MICROSECONDS, demux, micros, open_container
from pipelines.stage import Needs, Places, Stage

UNINDEXED = ("mpegts", "mpeg")  # containers without a list of their keyframes


@dataclass(frozen=True)
class ClipsConfig:
    """Which spans become clips, and how they are encoded.

    policy "shots": detected shots, merged and split to min_s..max_s seconds. policy "segments": the annotated segments
    themselves, never merged or split; min_s and max_s do not apply.
    fps: frames a second of every clip; None: the video's own rate.
    """

    policy: Literal["shots", "segments"] = "shots"
    min_s: float = 2.0
    max_s: float = 30.0
    size_px: int = 448
    fps: float | None = None
    keep_audio: bool = True
    crf: int = 20
    preset: Literal["ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow"] = (
        "veryfast"
    )
    audio_kbps: int = 128
    detection: ShotDetection = field(default_factory=ShotDetection)
    timeout_s: float = machinery(120.0)  # of one ffmpeg child, and so much more for each second of video it reads:
    timeout_s_per_s: float = machinery(30.0)

    def __post_init__(self) -> None:
        if not 0 < self.min_s <= self.max_s / 2:
            raise ValueError(
                "max_s must be at least twice min_s, and min_s above 0: a long shot is split into equal parts"
            )
        if self.size_px < 16 or self.size_px % 2:
            raise ValueError("size_px must be even and at least 16")
        if self.fps is not None and not 0 < self.fps <= 240:
            raise ValueError("fps must be above 0 and at most 240")
        if not 0 <= self.crf <= 51:
            raise ValueError("crf must be within 0 and 51")
        if self.audio_kbps < 16:
            raise ValueError("audio_kbps must be at least 16")

    def timeout(self, seconds: float) -> float:
        """How long a child that reads so many seconds of video may take."""
        return self.timeout_s + self.timeout_s_per_s * seconds


class VideoChangedError(RuntimeError):
    """The file is not the one that was probed. Not a verdict on the video: the next run looks at it anew."""


def cut_clips(video: Video, *, config: ClipsConfig, tool: Places) -> Iterator[Clip | Reject]:
    """The video's clips, their files written to the media store, ordered by (start, end, clip_index).

    With policy "shots" clips are numbered in that order; with policy "segments" clip_index is the segment's number in
    Video.segments, also that of a reject. A segment that reaches past the video ends with it. A clip whose frames are
    damaged in the source, or that cannot be shown to be exact, is a reject; a video without any clip is one as a whole.
    """
    tool.scratch.mkdir(parents=True, exist_ok=True)
    footage = _footage(video, config, tool.source(video.path))
    frames_are_decoded = config.policy == "shots"
    if config.policy == "shots":
        spans_or_reason = _shots(video, footage, config, tool)
        if isinstance(spans_or_reason, Reject):
            yield spans_or_reason
            return
        footage, spans = spans_or_reason
        rejects: list[Reject] = []
    else:
        spans, rejects = _segments(video)
    rate = _exact_rate(video.fps if config.fps is None else config.fps)
    encoding = Encoding(config.size_px, config.crf, config.preset, config.audio_kbps)
    cuts = []
    for clip_index, start, end in spans:
        cut = plan_cut(footage, clip_index, start, end, rate)
        if cut is None:
            detail = f"no frame in [{start / MICROSECONDS:g}, {end / MICROSECONDS:g}) of {video.duration_s:g} s"
            rejects.append(_reject(video, Reason.PAST_END, detail, clip_index))
        else:
            cuts.append(cut)
    num_clips = 0
    for outcome in _cut(video, footage, cuts, encoding, config, tool, frames_are_decoded):
        if isinstance(outcome, Failed):
            reason = Reason.DECODE_ERROR if outcome.is_damaged else Reason.ENCODE_ERROR
            rejects.append(_reject(video, reason, outcome.why, outcome.cut.clip_index))
        else:
            num_clips += 1
            yield _keep(video, footage, outcome, encoding, tool)
    yield from sorted(rejects, key=lambda reject: reject.clip_index or 0)
    if not num_clips:
        reasons = {reject.reason for reject in rejects}
        damaged = reasons == {Reason.DECODE_ERROR}
        detail = f"none of {len(rejects)} spans became a clip" if rejects else "no span to cut"
        yield _reject(video, Reason.DECODE_ERROR if damaged else Reason.NO_SHOTS, detail)


def _footage(video: Video, config: ClipsConfig, path: Path) -> Footage:
    try:
        num_bytes = path.stat().st_size
    except OSError as error:
        raise VideoChangedError(f"{video.path}: {error.strerror} since it was probed") from error
    if num_bytes != video.num_bytes:
        raise VideoChangedError(f"{video.path}: has {num_bytes} bytes, {video.num_bytes} when it was probed")
    with open_container(path) as container:
        timeline = demux(container, video.video_stream).timeline
        has_index = container.format.name not in UNINDEXED
    return Footage(
        path=path,
        video_stream=video.video_stream,
        audio_stream=video.audio_stream if config.keep_audio else None,
        width=video.width,
        height=video.height,
        time_base=timeline.time_base,
        start=Fraction(micros(video.start_s), MICROSECONDS),
        pts=timeline.pts,
        keyframes=timeline.keyframes,
        end=timeline.end,
        has_index=has_index,
    )


def _exact_rate(fps: float) -> Fraction:
    """30000/1001 from 29.97003: the fraction that the rounded number stands for."""
    return Fraction(fps).limit_denominator(MAX_DENOMINATOR)


def _decoded(video: Video, footage: Footage, config: ClipsConfig, tool: Places) -> tuple[Footage, list[int]]:
    """The footage with the frames that really decode, and the pts of those that begin a shot."""
    cuts: list[int] = []

    def read(frames: Iterator[object]) -> None:
        cuts.extend(detect_cuts(frames, config.detection)[0])  # type: ignore[arg-type]

    pts = decode_small(footage, scratch=tool.scratch, timeout_s=config.timeout(video.duration_s), read=read)
    rising = tuple(sorted(set(pts)))
    return replace(footage, pts=rising), [pts[cut] for cut in cuts if cut < len(pts)]


def _shots(
    video: Video, footage: Footage, config: ClipsConfig, tool: Places
) -> tuple[Footage, list[tuple[int, int, int]]] | Reject:
    footage, cuts = _decoded(video, footage, config, tool)
    if not footage.pts:
        return _reject(video, Reason.DECODE_ERROR, "no frame of the video decodes")
    spans = shot_spans(
        sorted(footage.edge_s(cut) for cut in cuts),
        max(0.0, footage.edge_s(footage.pts[0])),
        footage.edge_s(footage.end),
        min_s=config.min_s,
        max_s=config.max_s,
    )
    if not spans:
        length_s = footage.seconds(footage.end) - footage.seconds(footage.pts[0])
        return _reject(video, Reason.NO_SHOTS, f"{length_s:.3f} s of picture; a shot has at least {config.min_s:g} s")
    return footage, [(index, micros(start_s), micros(end_s)) for index, (start_s, end_s) in enumerate(spans)]


def _segments(video: Video) -> tuple[list[tuple[int, int, int]], list[Reject]]:
    spans, rejects = [], []
    for index, segment in enumerate(video.segments):
        start, end = micros(segment.start_s), micros(segment.end_s)
        if 0 <= start < end:
            spans.append((index, start, end))
        else:
            detail = f"the segment [{segment.start_s:g}, {segment.end_s:g}) is no span of time"
            rejects.append(_reject(video, Reason.BAD_ANNOTATION, detail, index))
    return sorted(spans, key=lambda span: (span[1], span[2], span[0])), rejects


def _cut(
    video: Video,
    footage: Footage,
    cuts: list[Cut],
    encoding: Encoding,
    config: ClipsConfig,
    tool: Places,
    frames_are_decoded: bool,
) -> Iterator[Made | Failed]:
    """Cuts all clips. Packets are not always frames (field pairs, hidden frames): where a clip differs from what they
    promised, it is planned again from the frames that really decode."""
    decoded: Footage | None = footage if frames_are_decoded else None
    for outcome in cut_all(footage, cuts, encoding, scratch=tool.scratch, timeout=config.timeout):
        if isinstance(outcome, Made) or outcome.is_damaged or frames_are_decoded:
            yield outcome
            continue
        if decoded is None:
            decoded, _ = _decoded(video, footage, config, tool)
        cut = outcome.cut
        again = plan_cut(decoded, cut.clip_index, cut.start, cut.end, cut.rate)
        if again is None or again == cut:
            yield outcome
        else:
            yield from cut_all(decoded, [again], encoding, scratch=tool.scratch, timeout=config.timeout)


def _keep(video: Video, footage: Footage, made: Made, encoding: Encoding, tool: Places) -> Clip:
    """Moves a clip's two files into the media store, under the names of their own digests."""
    cut = made.cut
    digests = {}
    for path in (made.clip, made.keyframe):
        digests[path] = file_sha256(path)
        with atomic_path(tool.medium(digests[path], path.suffix)) as temporary:
            shutil.copyfile(path, temporary)
    return Clip(
        narrative=video.narrative,
        clip_index=cut.clip_index,
        start_s=cut.start / MICROSECONDS,
        end_s=cut.end / MICROSECONDS,
        first_pts_s=footage.seconds(cut.shown[0]),
        last_pts_s=footage.seconds(cut.shown[-1]),
        num_frames=len(cut.shown),
        fps=float(cut.rate),
        width=encoding.size_px,
        height=encoding.size_px,
        has_audio=footage.audio_stream is not None,
        sha256=digests[made.clip],
        num_bytes=made.clip.stat().st_size,
        keyframe_pts_s=footage.seconds(cut.keyframe),
        keyframe_sha256=digests[made.keyframe],
        keyframe_num_bytes=made.keyframe.stat().st_size,
    )


def _reject(video: Video, reason: Reason, detail: str, clip_index: int | None = None) -> Reject:
    return Reject(
        narrative=video.narrative, path=video.path, clip_index=clip_index, stage="clips", reason=reason, detail=detail
    )


def _places(config: ClipsConfig, places: Places) -> Places:
    return places


STAGE = Stage(
    name="clips",
    reads=(Video,),
    writes=Clip,
    run=cut_clips,
    config=ClipsConfig(),
    version=1,
    needs=Needs(cpus=1),
    load=_places,
    model=lambda config: ffmpeg_build(),
)
