"""clips: cuts a video into square clips of exactly known frames, each with its keyframe."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cookgen.config import machinery
from cookgen.perception.picture_faults import StillWatch
from cookgen.perception.shots import ShotDetection, detect_cuts, shot_spans
from cookgen.records import Clip, Reason, Reject, Video
from pipelines.cutting import Cut, Encoding, Failed, Footage, Made, cut_all, decode_small, is_bt601, plan_cut
from pipelines.ffmpeg import ffmpeg_build
from pipelines.probe import MAX_DENOMINATOR, MICROSECONDS, demux, micros, open_container
from pipelines.stage import Needs, Places, Stage

UNINDEXED = ("mpegts", "mpeg")  # containers without a list of their keyframes
_SAID = {
    Reason.BLACK: "is black",
    Reason.FROZEN: "does not change",
    Reason.TOO_SHORT: "is too short for a shot, between black or still pictures",
}
_OF_A_VIDEO = {Reason.DECODE_ERROR, Reason.BLACK, Reason.FROZEN}  # its own reason, where it is that of all its spans


@dataclass(frozen=True)
class Cleaning:
    """What is no clip, in seconds. 0 leaves all of a kind in.

    still_s: a picture that does not change for so long, and title_s at the video's beginning and end, where a title or
    an end card that stands still would else be joined to a shot. black_s: a black picture for so long.
    slideshow: the share of a video that still pictures may fill before it is rejected as a whole.
    """

    still_s: float = 3.0
    title_s: float = 1.0
    black_s: float = 0.5
    slideshow: float = 0.8

    def __post_init__(self) -> None:
        if min(self.still_s, self.title_s, self.black_s) < 0:
            raise ValueError("still_s, title_s and black_s must be at least 0")
        if not 0 < self.slideshow <= 1:
            raise ValueError("slideshow must be above 0 and at most 1")

    @property
    def least_s(self) -> float:
        """What lasts less is left in, wherever it is."""
        return min(filter(None, (self.still_s, self.title_s, self.black_s)), default=math.inf)


@dataclass(frozen=True)
class ClipsConfig:
    """Which spans become clips, and how they are encoded.

    policy "shots": detected shots, merged and split to min_s..max_s seconds, without what `cleaning` names. A clip is
    one shot as far as min_s allows; min_s=5 joins short ones to clips as long as those of the paper from HowTo100M, 5
    to 30 s and 9.5 s on average. policy "segments": the annotated segments themselves, never merged or split; min_s,
    max_s, detection and cleaning do not apply.
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
    cleaning: Cleaning = field(default_factory=Cleaning)
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

    With policy "shots" clips and rejects are numbered in that order, and cover the video without gaps; with policy
    "segments" clip_index is the segment's number in Video.segments, also that of a reject. A segment that reaches past
    the video ends with it. A clip whose frames are damaged in the source, or that cannot be shown to be exact, is a
    reject; a video without any clip is one as a whole.
    """
    tool.scratch.mkdir(parents=True, exist_ok=True)
    footage = _footage(video, config, tool.source(video.path))
    frames_are_decoded = config.policy == "shots"
    if config.policy == "shots":
        spans_or_reason = _shots(video, footage, config, tool)
        if isinstance(spans_or_reason, Reject):
            yield spans_or_reason
            return
        footage, spans, rejects = spans_or_reason
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
        reason = next(iter(reasons)) if len(reasons) == 1 and reasons <= _OF_A_VIDEO else Reason.NO_SHOTS
        detail = f"none of {len(rejects)} spans became a clip" if rejects else "no span to cut"
        yield _reject(video, reason, detail)


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
        by_bt601 = is_bt601(container.streams[video.video_stream])
    return Footage(
        path=path,
        video_stream=video.video_stream,
        audio_stream=video.audio_stream if config.keep_audio else None,
        width=video.width,
        height=video.height,
        crop=video.crop,
        time_base=timeline.time_base,
        start=Fraction(micros(video.start_s), MICROSECONDS),
        pts=timeline.pts,
        keyframes=timeline.keyframes,
        end=timeline.end,
        has_index=has_index,
        is_bt601=by_bt601,
    )


def _exact_rate(fps: float) -> Fraction:
    """30000/1001 from 29.97003: the fraction that the rounded number stands for."""
    return Fraction(fps).limit_denominator(MAX_DENOMINATOR)


@dataclass(frozen=True)
class _Seen:
    """What one look at every frame showed, in pts of the footage."""

    footage: Footage  # with the frames that really decode
    cuts: list[int]  # frames that begin a shot
    stills: list[tuple[int, int, Reason]]  # [first, end) that is black or does not change, for cleaning.least_s; rising


def _look(video: Video, footage: Footage, config: ClipsConfig, tool: Places) -> _Seen:
    """Decodes the video once, in small: cuts and stills come from the same frames."""
    cuts: list[int] = []
    watch = StillWatch()

    def read(frames: Iterator[NDArray[np.uint8]]) -> None:
        cuts.extend(detect_cuts(watch.through(frames), config.detection))

    footage, pts = _decoded(video, footage, config, tool, read)
    edges = [*pts, footage.end]
    least = config.cleaning.least_s / footage.time_base
    stills = [
        (edges[still.first], edges[still.stop], Reason.BLACK if still.is_black else Reason.FROZEN)
        for still in watch.stretches()
        if still.stop < len(edges) and edges[still.stop] - edges[still.first] >= least
    ]
    return _Seen(
        footage,
        [pts[cut] for cut in cuts if cut < len(pts)],
        stills if edges == sorted(edges) else [],  # a file whose times go back and forth: no stretch of time is known
    )


def _decoded(
    video: Video,
    footage: Footage,
    config: ClipsConfig,
    tool: Places,
    read: Callable[[Iterator[NDArray[np.uint8]]], None],
) -> tuple[Footage, list[int]]:
    """The footage with the frames that really decode, and their pts in the decoder's order; `read` gets the frames."""
    pts = decode_small(footage, scratch=tool.scratch, timeout_s=config.timeout(video.duration_s), read=read)
    return replace(footage, pts=tuple(sorted(set(pts)))), pts


def _shots(
    video: Video, footage: Footage, config: ClipsConfig, tool: Places
) -> tuple[Footage, list[tuple[int, int, int]], list[Reject]] | Reject:
    """The footage as it decodes, the spans to cut, and rejects for what stands still, is black, or is too short between
    the two: together they cover the video."""
    seen = _look(video, footage, config, tool)
    footage = seen.footage
    if not footage.pts:
        return _reject(video, Reason.DECODE_ERROR, "no frame of the video decodes")
    start_s, end_s = max(0.0, footage.edge_s(footage.pts[0])), footage.edge_s(footage.end)
    if end_s - start_s < config.min_s:
        length = f"{end_s - start_s:.3f} s of picture; a shot has at least {config.min_s:g} s"
        return _reject(video, Reason.NO_SHOTS, length)
    stills = [(footage.edge_s(first), footage.edge_s(end), reason) for first, end, reason in seen.stills]
    empty = empty_spans(stills, start_s, end_s, config.cleaning)
    frozen_s = [span_end - begin for begin, span_end, reason in empty if reason is Reason.FROZEN]
    if len(frozen_s) > 1 and sum(frozen_s) > config.cleaning.slideshow * (end_s - start_s):
        detail = f"{len(frozen_s)} still pictures fill {sum(frozen_s):.1f} of {end_s - start_s:.1f} s"
        return _reject(video, Reason.SLIDESHOW, detail)
    cuts_s = sorted(footage.edge_s(cut) for cut in seen.cuts)
    parts: list[tuple[float, float, Reason | None]] = [*empty]
    for begin, stop in _between(empty, start_s, end_s):
        spans = shot_spans(cuts_s, begin, stop, min_s=config.min_s, max_s=config.max_s)
        parts += [(*span, None) for span in spans] or [(begin, stop, Reason.TOO_SHORT)]
    spans_to_cut, rejects = [], []
    for index, (begin, stop, reason) in enumerate(sorted(parts, key=lambda part: part[:2])):
        if reason is None:
            spans_to_cut.append((index, micros(begin), micros(stop)))
        else:
            rejects.append(_reject(video, reason, f"[{begin:.3f}, {stop:.3f}) s {_SAID[reason]}", index))
    return footage, spans_to_cut, rejects


def empty_spans(
    stills: Sequence[tuple[float, float, Reason]], start_s: float, end_s: float, config: Cleaning
) -> list[tuple[float, float, Reason]]:
    """Which of the `stills` (start, end in seconds, BLACK or FROZEN; rising, apart) are long enough to be no clip.

    start_s, end_s: of the picture. A title is a still picture that begins within title_s of the video's beginning, or
    of a black or still one there; an end card is the same at the end.
    """
    limits = {Reason.BLACK: config.black_s or math.inf, Reason.FROZEN: config.still_s or math.inf}
    chosen = {still for still in stills if still[1] - still[0] >= limits[still[2]]}
    if config.title_s:
        cards = [still for still in stills if still[1] - still[0] >= config.title_s or still in chosen]
        mirrored = [(-end, -begin, reason) for begin, end, reason in reversed(cards)]
        chosen.update(_first_ones(cards, start_s, config.title_s))
        chosen.update((-begin, -end, reason) for end, begin, reason in _first_ones(mirrored, -end_s, config.title_s))
    return sorted(chosen)


def _first_ones(
    cards: Sequence[tuple[float, float, Reason]], at_s: float, gap_s: float
) -> Iterator[tuple[float, float, Reason]]:
    """Those that follow one another from at_s on, without more than gap_s between them."""
    for card in cards:
        if card[0] - at_s > gap_s:
            return
        yield card
        at_s = card[1]


def _between(
    empty: Sequence[tuple[float, float, Reason]], start_s: float, end_s: float
) -> Iterator[tuple[float, float]]:
    """What the empty spans leave of the picture."""
    begins = [start_s, *(end for _, end, _ in empty)]
    stops = [*(begin for begin, _, _ in empty), end_s]
    for begin, stop in zip(begins, stops, strict=True):
        if begin < stop:
            yield begin, stop


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
            decoded, _ = _decoded(video, footage, config, tool, lambda frames: None)  # ffmpeg's report is enough
        cut = outcome.cut
        again = plan_cut(decoded, cut.clip_index, cut.start, cut.end, cut.rate)
        if again is None or again == cut:
            yield outcome
        else:
            yield from cut_all(decoded, [again], encoding, scratch=tool.scratch, timeout=config.timeout)


def _keep(video: Video, footage: Footage, made: Made, encoding: Encoding, tool: Places) -> Clip:
    """Moves a clip's two files into the media store, under the names of their own digests."""
    cut = made.cut
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
        sha256=tool.keep(made.clip),
        num_bytes=made.clip.stat().st_size,
        keyframe_pts_s=footage.seconds(cut.keyframe),
        keyframe_sha256=tool.keep(made.keyframe),
        keyframe_num_bytes=made.keyframe.stat().st_size,
    )


def _reject(video: Video, reason: Reason, detail: str, clip_index: int | None = None) -> Reject:
    return Reject(
        narrative=video.narrative, path=video.path, clip_index=clip_index, stage="clips", reason=reason, detail=detail
    )


def _places(config: ClipsConfig, places: Places) -> Places:
    return places


def _model(config: ClipsConfig) -> str:
    """Which ffmpeg cut, and which network saw the shots."""
    detector = config.detection.model() if config.policy == "shots" else None
    return "+".join(filter(None, (ffmpeg_build(), detector)))


STAGE = Stage(
    name="clips",
    reads=(Video,),
    writes=Clip,
    run=cut_clips,
    config=ClipsConfig(),
    version=3,
    needs=Needs(cpus=1),
    load=_places,
    model=_model,
)
