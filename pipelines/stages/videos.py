"""videos: opens each source video and finds out what it really is, or why it cannot be used."""

from __future__ import annotations

import contextlib
import itertools
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.container import InputContainer
from numpy.typing import NDArray

from cookgen.files import file_sha256
from cookgen.perception.picture_faults import MIN_FRAMES, picture_box
from cookgen.records import Crop, Reason, Reject, SourceVideo, Video, hashed_split
from pipelines.probe import MAX_DENOMINATOR, Demuxed, Timeline, demux, open_container, overrun
from pipelines.stage import Needs, Places, Stage

MAX_RATE = 120  # frames a second: above it r_frame_rate is a timestamp grid, not a rate
MAX_ASPECT = 16  # long side to short side
LOST_S = 0.5  # what may be missing at a file's end before it counts as truncated
MAX_TRIED_PACKETS = 300  # to find the first frame that decodes
NUM_SAMPLES = 24  # frames in which borders are looked for
MAX_DECODED = 2000  # frames that are decoded for them, where there are too few keyframes


@dataclass(frozen=True)
class VideosConfig:
    """Which videos are usable. A narrative needs at least two clips, and a clip two seconds by default.

    crop_borders: whether clips leave out black borders that the video has throughout; never below min_short_side_px.
    """

    min_duration_s: float = 4.0
    max_duration_s: float = 7200.0
    min_short_side_px: int = 144
    crop_borders: bool = True
    val_fraction: float = 0.03  # of the videos whose source has no split of its own

    def __post_init__(self) -> None:
        if not 0 <= self.min_duration_s < self.max_duration_s:
            raise ValueError("min_duration_s must be at least 0 and below max_duration_s")
        if self.min_short_side_px < 1:
            raise ValueError("min_short_side_px must be at least 1")
        if not 0 <= self.val_fraction <= 1:
            raise ValueError("val_fraction must be within 0 and 1")


class _Unusable(Exception):  # noqa: N818 - a verdict on the video on its way to a Reject, not an error
    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


def probe_video(source: SourceVideo, *, config: VideosConfig, tool: Places) -> Iterator[Video | Reject]:
    """The video as it was found, or one reject that says why it cannot be used.

    Duration and start come from packet timestamps; the end is that of the last video frame, since no clip can go
    beyond it. Size is upright with square pixels. Only some frames are decoded; damage elsewhere shows when clips are
    cut.
    """
    try:
        yield _probe(source, config, tool.source(source.path))
    except _Unusable as verdict:
        yield Reject(
            narrative=source.narrative,
            path=source.path,
            stage="videos",
            reason=verdict.reason,
            detail=verdict.detail,
        )


def _probe(source: SourceVideo, config: VideosConfig, path: Path) -> Video:
    num_bytes = _size_of(path)
    try:
        container = open_container(path)
    except av.FFmpegError as error:
        raise _why_not_opened(path, error) from error
    with container:
        video_stream = _video_stream(container)
        demuxed = demux(container, video_stream.index)
        _check_whole(path, container, video_stream, demuxed)
        timeline = demuxed.timeline
        if not timeline.pts:
            raise _Unusable(Reason.DECODE_ERROR, "the video stream holds no packet")
        start = _container_start(container, timeline.pts[0] * timeline.time_base)
        duration_s = float(timeline.end * timeline.time_base - start)
        if len(timeline.pts) < 2 or duration_s < config.min_duration_s:
            detail = f"{duration_s:.3f} s, {len(timeline.pts)} frames; the least is {config.min_duration_s:g} s"
            raise _Unusable(Reason.TOO_SHORT, detail)
        if duration_s > config.max_duration_s:
            raise _Unusable(Reason.TOO_LONG, f"{duration_s:.0f} s; the most is {config.max_duration_s:g} s")
        width, height = _upright_size(container, video_stream, demuxed)
        if min(width, height) < config.min_short_side_px:
            raise _Unusable(
                Reason.TOO_SMALL, f"{width}x{height}; the least short side is {config.min_short_side_px} px"
            )
        if max(width, height) > MAX_ASPECT * min(width, height):
            raise _Unusable(
                Reason.TOO_SMALL, f"{width}x{height}: the short side is under 1/{MAX_ASPECT} of the long one"
            )
        crop = _crop(container, video_stream, timeline, width, height, config) if config.crop_borders else None
        rate = _frame_rate(video_stream, demuxed)
        audio_index, video_index = _audio_stream(path, container), int(video_stream.index)
    try:
        sha256 = file_sha256(path)
    except OSError as error:
        raise _Unusable(Reason.UNREADABLE_FILE, f"{error.strerror}") from error
    return Video(
        narrative=source.narrative,
        source=source.source,
        video_id=source.video_id,
        path=source.path,
        sha256=sha256,
        num_bytes=num_bytes,
        duration_s=duration_s,
        start_s=float(start),
        width=width,
        height=height,
        crop=crop,
        fps=float(rate),
        video_stream=video_index,
        audio_stream=audio_index,
        has_audio=audio_index is not None,
        split=source.split or hashed_split(source.narrative, config.val_fraction),
        url=source.url,
        title=source.title,
        topic=source.topic,
        licence=source.licence,
        segments=source.segments,
        subtitles=source.subtitles,
        subtitles_sha256=source.subtitles_sha256,
    )


def _size_of(path: Path) -> int:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # never open a pipe or a device: it may block for ever
            raise _Unusable(Reason.NOT_A_VIDEO, "not a regular file")
        if status.st_size == 0:
            raise _Unusable(Reason.EMPTY_FILE, "0 bytes")
        with path.open("rb") as stream:
            stream.read(1)
    except FileNotFoundError as error:
        raise _Unusable(Reason.VIDEO_MISSING, "the file is gone") from error
    except OSError as error:
        raise _Unusable(Reason.UNREADABLE_FILE, f"{error.strerror}") from error
    return status.st_size


def _why_not_opened(path: Path, error: av.FFmpegError) -> _Unusable:
    if isinstance(error, PermissionError):
        return _Unusable(Reason.UNREADABLE_FILE, f"{error.strerror}")
    with path.open("rb") as stream:
        head = stream.read(512)
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<body")):
        what = "an HTML page"
    elif text.startswith((b"#extm3u", b"ffconcat", b"[playlist]", b"<?xml", b"<mpd", b"#!ffconcat")):
        what = "a playlist or another text that names files"
    elif head.startswith((b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"II*\0", b"MM\0*")) or head[8:12] == b"WEBP":
        what = "a still image"
    elif (lost := overrun(path)) is not None:
        return _Unusable(Reason.TRUNCATED, lost)
    elif not head.strip(b"\0"):
        what = "zero bytes at its beginning"
    elif b"\0" not in head and _is_text(head):
        what = "text"
    else:
        what = "no video container that we read"
    return _Unusable(Reason.NOT_A_VIDEO, what)


def _is_text(head: bytes) -> bool:
    with contextlib.suppress(UnicodeDecodeError):
        head[:500].decode("utf-8")
        return True
    return False


def _video_stream(container: InputContainer) -> Any:
    """The moving picture: not a cover, not a thumbnail; the default one, else the largest."""
    streams = [s for s in container.streams.video if not _is_picture(s)]
    if not streams:
        kinds = sorted({stream.type for stream in container.streams})
        raise _Unusable(Reason.NO_VIDEO_STREAM, f"streams: {', '.join(kinds) or 'none'}")
    usable = [s for s in streams if s.codec_context is not None]
    if not usable:
        raise _Unusable(Reason.DECODE_ERROR, "no decoder for the video stream")
    return max(usable, key=lambda s: (_has(s, "default"), s.codec_context.width * s.codec_context.height, -s.index))


def _is_picture(stream: Any) -> bool:
    return any(_has(stream, name) for name in ("attached_pic", "still_image", "timed_thumbnails"))


def _has(stream: Any, disposition: str) -> bool:
    return bool(stream.disposition & getattr(type(stream.disposition), disposition))


def _check_whole(path: Path, container: InputContainer, stream: Any, demuxed: Demuxed) -> None:
    """Raises for a file that ends before its streams do: by its own account, not by a duration that may be a lie."""
    lost = overrun(path)
    declared = stream.frames  # of an MP4's sample table; 0 where the format has none
    missing = declared - demuxed.num_packets
    if lost is None and not (declared and missing > 0):
        return
    start_s = (container.start_time or 0) / av.time_base
    declared_end_s = None if container.duration is None else start_s + container.duration / av.time_base
    if declared_end_s is not None and declared_end_s - demuxed.end_s <= LOST_S and lost is None:
        return
    if declared and missing <= LOST_S * float(stream.average_rate or 0):
        return
    why = lost or demuxed.error or "the file ends early"
    counts = f"; {demuxed.num_packets} of {declared} frames are there" if declared else ""
    raise _Unusable(Reason.TRUNCATED, why + counts)


def _container_start(container: InputContainer, first_frame: Fraction) -> Fraction:
    """The earliest start of the streams, exactly: the container's own value is rounded to microseconds."""
    starts = [
        Fraction(stream.start_time) * stream.time_base
        for stream in container.streams
        if stream.start_time is not None and stream.time_base is not None
    ]
    if container.start_time is None:
        return min([*starts, first_frame])
    rounded = Fraction(container.start_time, av.time_base)
    near = [start for start in starts if abs(start - rounded) <= Fraction(1, av.time_base)]
    return min(near, default=rounded)


def _upright_size(container: InputContainer, stream: Any, demuxed: Demuxed) -> tuple[int, int]:
    """(width, height) in square pixels after rotation, from a frame that really decodes."""
    frame = _decoded_frame(container, stream, demuxed)
    if frame is None:
        raise _Unusable(Reason.DECODE_ERROR, f"no frame of the {stream.codec_context.name} stream decodes")
    width, height = frame.width, frame.height
    aspect = stream.sample_aspect_ratio
    if aspect:
        width = max(1, round(width * aspect))
    return (height, width) if frame.rotation % 180 else (width, height)


def _crop(
    container: InputContainer, stream: Any, timeline: Timeline, width: int, height: int, config: VideosConfig
) -> Crop | None:
    """What is left when black borders are cut off; None where the video has none, or too little would be left."""

    def grey(frame: Any) -> NDArray[np.uint8]:
        turns = frame.rotation // 90 % 4
        as_stored = (height, width) if turns % 2 else (width, height)
        flat = frame.reformat(*as_stored, format="gray").to_ndarray()
        return np.rot90(flat, turns)

    box = picture_box(grey(frame) for frame in _samples(container, stream, timeline))
    if box is None or min(box.width, box.height) < config.min_short_side_px:
        return None
    return Crop(left=box.left, top=box.top, width=box.width, height=box.height)


def _samples(container: InputContainer, stream: Any, timeline: Timeline) -> Iterator[Any]:
    """Frames from all over the video: keyframes, which alone decode without others; where they are too few, every so
    manieth of one decode."""
    keyframes, num_frames = timeline.keyframes, len(timeline.pts)
    if len(keyframes) < MIN_FRAMES and num_frames <= MAX_DECODED:
        _seek(container, stream, _beginning(timeline))
        yield from itertools.islice(_decoded(container, stream), 0, None, max(1, num_frames // NUM_SAMPLES))
        return
    num_samples = min(NUM_SAMPLES, len(keyframes))
    for number in range(num_samples):
        _seek(container, stream, keyframes[number * len(keyframes) // num_samples])
        frame = _first_decoded(container, stream)
        if frame is not None:
            yield frame


def _seek(container: InputContainer, stream: Any, pts: int) -> None:
    """Goes to the keyframe at or before; where the container cannot, reading goes on from where it is."""
    with contextlib.suppress(av.FFmpegError):
        container.seek(pts, stream=stream, backward=True)
        stream.codec_context.flush_buffers()


def _beginning(timeline: Timeline) -> int:
    """A second before the first frame: a stream without an index seeks by decoding times, which are earlier."""
    return timeline.pts[0] - round(1 / timeline.time_base)


def _decoded_frame(container: InputContainer, stream: Any, demuxed: Demuxed) -> Any:
    """A frame from the start, else from the middle; None where neither decodes."""
    pts = demuxed.timeline.pts
    for at in (_beginning(demuxed.timeline), pts[len(pts) // 2]):
        _seek(container, stream, at)
        frame = _first_decoded(container, stream)
        if frame is not None:
            return frame
    return None


def _first_decoded(container: InputContainer, stream: Any) -> Any:
    return next(_decoded(container, stream, max_packets=MAX_TRIED_PACKETS), None)


def _decoded(container: InputContainer, stream: Any, *, max_packets: int | None = None) -> Iterator[Any]:
    """The frames from here on; those that do not decode are left out."""
    with contextlib.suppress(av.FFmpegError):
        for packet in itertools.islice(container.demux(stream), max_packets):
            frames = []
            with contextlib.suppress(av.FFmpegError):
                frames = packet.decode()
            yield from frames


def _frame_rate(stream: Any, demuxed: Demuxed) -> Fraction:
    """r_frame_rate up to 120, else avg_frame_rate, else by the timestamps. Source: FORMAT, "Clips"."""
    timeline = demuxed.timeline
    rate = stream.base_rate
    if not rate or rate > MAX_RATE:
        rate = stream.average_rate or (len(timeline.pts) - 1) / (
            (timeline.pts[-1] - timeline.pts[0]) * timeline.time_base
        )
    return max(Fraction(rate).limit_denominator(MAX_DENOMINATOR), Fraction(1, MAX_DENOMINATOR))


def _audio_stream(path: Path, container: InputContainer) -> int | None:
    """The default audio stream, else the first; the next one where it does not decode."""
    streams = sorted(container.streams.audio, key=lambda s: (not _has(s, "default"), s.index))
    for stream in streams:
        if stream.codec_context is None:
            continue
        with contextlib.suppress(av.FFmpegError), open_container(path) as fresh:
            if _first_decoded(fresh, fresh.streams[stream.index]) is not None:
                index: int = stream.index
                return index
    return None


def without_duplicates(sources: Sequence[SourceVideo], places: Places) -> tuple[list[SourceVideo], list[Reject]]:
    """The videos whose content is listed for the first time, and a reject for each later one that has the same bytes.

    Only files of one size are read. One that cannot be is left to the stage, which says why.
    """
    sizes = Counter(source.num_bytes for source in sources)
    first: dict[str, SourceVideo] = {}
    kept: list[SourceVideo] = []
    rejects: list[Reject] = []
    for source in sources:
        earlier = None
        if source.num_bytes and sizes[source.num_bytes] > 1:
            with contextlib.suppress(OSError):
                earlier = first.setdefault(file_sha256(places.source(source.path)), source)
        if earlier in (None, source):
            kept.append(source)
        else:
            assert earlier is not None
            rejects.append(
                Reject(
                    narrative=source.narrative,
                    path=source.path,
                    stage="videos",
                    reason=Reason.DUPLICATE_VIDEO,
                    detail=f"the same content as {earlier.path}",
                )
            )
    return kept, rejects


def _places(config: VideosConfig, places: Places) -> Places:
    return places


STAGE = Stage(
    name="videos",
    reads=(SourceVideo,),
    writes=Video,
    run=probe_video,
    config=VideosConfig(),
    version=2,
    needs=Needs(cpus=1),
    load=_places,
)
