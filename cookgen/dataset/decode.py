"""Pictures and sound of the clips in a shard set, as arrays.

For clips that the pipeline encoded (H.264 and AAC in MP4, constant rate, no edit list), exact by index and by sample.
The bytes may still come from anywhere: a damaged clip ends in a FormatError, never in frames that were made up. That
is why PyAV does it: it decodes the same pixels as decord2 and torchcodec, about as fast, and where a damaged header
makes decord2 abort the whole process, FFmpeg returns an error.
"""

from __future__ import annotations

import io
import math
import multiprocessing
import operator
import os
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import av
import numpy as np
from av.stream import Discard, Stream
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from cookgen.errors import FormatError, InputError, UsageError

# The demuxer is named, so that a playlist called .mp4 is refused instead of followed; opening tries no decoder on the
# first frames (the parser tells as much, ten times as fast); the decoder reports damage instead of painting over it.
_DEMUXER = "mp4"
_PROBE = {"codec_whitelist": "none"}
_DECODER = {"err_detect": "explode"}
# A clip is seconds long; more, or larger, is a damaged header.
_MAX_PACKETS = 1_000_000
_MAX_SIDE_PX = 8192
_MAX_VALUES = 2**28  # of sound: 1 GiB, 46 minutes of stereo at 48 kHz
_RATES_HZ = range(1000, 384_001)
# Sound begins at 0, and what is further than 10 ms from its time is moved there (it may be 25 ms apart from pictures).
_IN_PLACE = {"first_pts": "0", "min_hard_comp": "0.01"}


def read_frames(
    mp4: bytes | Path,
    indices: Sequence[int] | slice | None = None,
    *,
    size_px: int | tuple[int, int] | None = None,
    num_threads: int | None = None,
) -> NDArray[np.uint8]:
    """Frames of a clip: uint8 [T, H, W, 3], RGB, in the order of `indices`.

    mp4: the clip's bytes or its path. indices: frame numbers in any order, repeats allowed, negative ones count from
    the end; a slice; None for all frames. size_px: the short side, or (height, width); None keeps the clip's size.
    Only what the wanted frames depend on is decoded: the start of their groups of pictures. num_threads: how many
    groups at a time; by default as many as the process has cores, one in a worker process, as data loaders have many.
    Raises IndexError for a frame that the clip does not have, InputError where the file cannot be read, FormatError
    where it is not a clip or is damaged, UsageError for a size or a number of threads below 1.
    """
    if num_threads is None:
        num_threads = 1 if multiprocessing.parent_process() else _num_cores()
    if num_threads < 1:
        raise UsageError(f"num_threads={num_threads}: at least 1 decodes")
    with _Clip(mp4) as clip:
        stream, packets, pts = clip.pictures()
        shown = sorted(pts)
        numbers = _frame_numbers(indices, len(pts))
        height, width = _output_size(size_px, stream.height, stream.width)
        frames_THWC = np.empty((len(numbers), height, width, 3), np.uint8)
        places: dict[int, list[int]] = {}  # frame number -> where it goes in the output
        for place, number in enumerate(numbers):
            places.setdefault(number, []).append(place)

        def decode(own: _Clip, groups: Sequence[_Group]) -> None:
            for number, frame_HWC in own.frames(packets, groups, height, width):
                frames_THWC[places[number]] = frame_HWC

        def decode_apart(groups: Sequence[_Group]) -> None:
            with _Clip(mp4) as own:  # a decoder is one thread's
                decode(own, groups)

        first, *others = _shares(_groups(packets, pts, {shown[number]: number for number in places}), num_threads)
        with ThreadPoolExecutor(num_threads) as pool:  # no thread starts before there is work for it
            decoding = [pool.submit(decode_apart, share) for share in others]
            decode(clip, first)
            for share in decoding:
                share.result()
    return frames_THWC


def count_frames(mp4: bytes | Path) -> int:
    """How many frames a clip has; nothing is decoded. Raises InputError and FormatError as read_frames does."""
    with _Clip(mp4) as clip:
        return len(clip.pictures()[1])


def read_audio(
    mp4: bytes | Path, *, rate_hz: int | None = None, start_s: float = 0.0, end_s: float | None = None
) -> NDArray[np.float32] | None:
    """The sound of a clip: float32 [channels, samples] in [-1, 1]; None where the clip has none.

    rate_hz: samples a second, by default the file's; libswresample converts. start_s, end_s: a span in the clip's
    seconds, which are those of its pictures; what is cut off is what would be there in a reading of the whole, to the
    sample: [round(start_s * rate), round(end_s * rate)). As with a slice, there is nothing after the sound's end.
    Sound that starts after the picture is preceded by silence.
    Raises InputError where the file cannot be read, FormatError where it is not a clip or is damaged (AAC has no
    checksums: some damage is only heard), UsageError for a rate or a span that cannot be.
    """
    if rate_hz is not None and rate_hz not in _RATES_HZ:
        raise UsageError(f"rate_hz={rate_hz}: from {_RATES_HZ[0]} to {_RATES_HZ[-1]} samples a second")
    if not 0 <= start_s <= (start_s if end_s is None else end_s) < math.inf:
        raise UsageError(f"start_s={start_s}, end_s={end_s}: a span has 0 <= start_s <= end_s, in seconds")
    with _Clip(mp4) as clip:
        sound = clip.sound(rate_hz)
    if sound is None:
        return None
    samples_CN, rate = sound
    stop = None if end_s is None else round(end_s * rate)
    return np.ascontiguousarray(samples_CN[:, round(start_s * rate) : stop])


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _frame_numbers(indices: Sequence[int] | slice | None, num_frames: int) -> Sequence[int]:
    if indices is None:
        return range(num_frames)
    if isinstance(indices, slice):
        return range(num_frames)[indices]
    numbers = []
    for index in indices:
        number = operator.index(index)
        if not -num_frames <= number < num_frames:
            raise IndexError(
                f"frame {number} of a clip of {num_frames} frames; valid: {-num_frames} to {num_frames - 1}"
            )
        numbers.append(number % num_frames)
    return numbers


def _output_size(size_px: int | tuple[int, int] | None, height: int, width: int) -> tuple[int, int]:
    if size_px is None:
        return height, width
    if isinstance(size_px, tuple):
        height, width = size_px
    else:
        short = min(height, width)
        height, width = round(height * size_px / short), round(width * size_px / short)
    if height < 1 or width < 1:
        raise UsageError(f"size_px={size_px}: frames are at least 1 pixel high and wide")
    return height, width


@dataclass(frozen=True)
class _Group:
    """Wanted frames, {pts: number}, and the packets that they take: places in decoding order, from a keyframe on."""

    first: int
    stop: int
    wanted: Mapping[int, int]


def _groups(packets: Sequence[av.Packet], pts: Sequence[int], wanted: Mapping[int, int]) -> list[_Group]:
    """The groups of pictures that hold wanted frames, each as far as the last of them in decoding order."""
    place_of = {at: place for place, at in enumerate(pts)}
    keys = sorted(at for at, packet in zip(pts, packets, strict=True) if packet.is_keyframe)
    members: dict[int, dict[int, int]] = {}  # pts of a keyframe -> its wanted frames
    for at, number in wanted.items():
        members.setdefault(keys[bisect_right(keys, at) - 1], {})[at] = number
    return [_Group(place_of[key], max(place_of[at] for at in group) + 1, group) for key, group in members.items()]


def _shares(groups: Sequence[_Group], num_threads: int) -> list[list[_Group]]:
    """The groups dealt to threads, the longest first, each to the thread that has least to do."""
    shares: list[list[_Group]] = [[] for _ in range(max(1, min(num_threads, len(groups))))]
    for group in sorted(groups, key=lambda group: group.first - group.stop):
        min(shares, key=lambda share: sum(other.stop - other.first for other in share)).append(group)
    return shares


def _decode(
    decoder: av.VideoCodecContext, packets: Sequence[av.Packet], wanted: Mapping[int, int]
) -> Iterator[av.VideoFrame]:
    """The frames of `packets` whose pts are in `wanted`. What neither they nor others refer to is passed over."""
    unneeded = "NONREF" if decoder.name == "h264" else "DEFAULT"
    try:
        for packet in (*packets, None):
            decoder.skip_frame = "DEFAULT" if packet is None or packet.pts in wanted else unneeded
            yield from (frame for frame in decoder.decode(packet) if frame.pts in wanted)
    finally:
        decoder.flush_buffers()


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or "its text is not UTF-8"


class _Clip:
    """An open clip: its streams' packets and what they decode to. For one thread at a time."""

    def __init__(self, mp4: bytes | Path) -> None:
        self._name = f"clip of {len(mp4)} bytes" if isinstance(mp4, bytes) else str(mp4)
        try:
            self._file = io.BytesIO(mp4) if isinstance(mp4, bytes) else Path(mp4).open("rb")  # noqa: SIM115 - closed by __exit__
            self._num_bytes = len(mp4) if isinstance(mp4, bytes) else Path(mp4).stat().st_size
        except OSError as error:
            raise InputError(f"{self._name}: cannot be read: {error.strerror}") from error
        try:
            self._container = av.open(self._file, format=_DEMUXER, options=_PROBE)
        except (av.FFmpegError, ValueError, OSError) as error:
            self._file.close()
            raise self._broken(f"not an MP4 file ({_reason(error)})") from error

    def __enter__(self) -> _Clip:
        return self

    def __exit__(self, *_: object) -> None:
        self._container.close()
        self._file.close()

    def _broken(self, what: str) -> FormatError:
        return FormatError(
            f"{self._name}: {what}. The clip is damaged or not one of a shard set: fetch the shard again"
        )

    def _packets(self, stream: Stream) -> list[av.Packet]:
        """All packets of a stream, in the order of decoding, after a look at whether that can be all of them."""
        for other in self._container.streams:
            if other is not stream:
                other.discard = Discard.all
        packets: list[av.Packet] = []
        room = self._num_bytes
        try:
            for packet in self._container.demux(stream):
                if packet.size == 0:  # the flush at the end
                    continue
                if packet.is_corrupt:
                    raise self._broken(f"it ends within packet {len(packets)} of its {stream.type}")
                room -= packet.size
                # Packets that share bytes would let a small file fill the memory.
                if packet.pts is None or room < 0 or len(packets) == _MAX_PACKETS:
                    raise self._broken(f"its index of {stream.type} makes no sense")
                packets.append(packet)
        except (av.FFmpegError, OSError) as error:
            raise self._broken(f"cannot be read to its end ({_reason(error)})") from error
        if stream.frames not in (0, len(packets)):  # 0: the container does not say
            raise self._broken(f"it holds {len(packets)} of its {stream.frames} packets of {stream.type}")
        return packets

    def _video(self) -> av.VideoStream:
        """The stream of pictures, its decoder set up."""
        if not self._container.streams.video:
            raise self._broken("no video stream")
        stream = self._container.streams.video[0]
        if stream.codec_context is None:
            raise self._broken("no decoder for its video")
        stream.thread_type = "NONE"  # whole groups of pictures are decoded side by side instead
        stream.codec_context.options = _DECODER
        if not (0 < stream.height <= _MAX_SIDE_PX and 0 < stream.width <= _MAX_SIDE_PX):
            raise self._broken(f"its picture is {stream.width}x{stream.height} pixels; 1 to {_MAX_SIDE_PX} are a side")
        return stream

    def pictures(self) -> tuple[av.VideoStream, list[av.Packet], list[int]]:
        """The video stream, its packets and their pts: one is a frame, no pts is twice, the first is a keyframe's."""
        stream = self._video()
        packets = self._packets(stream)
        if not packets:
            raise self._broken("it holds no frames")
        pts = [packet.pts for packet in packets if packet.pts is not None]
        if len(set(pts)) < len(packets):
            raise self._broken("two of its frames have the same time")
        if not packets[pts.index(min(pts))].is_keyframe:
            raise self._broken("its first frame is not a keyframe")
        return stream, packets, pts

    def frames(
        self, packets: Sequence[av.Packet], groups: Sequence[_Group], height: int, width: int
    ) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """The wanted frames of `groups`, each exactly once, as (number, uint8 [height, width, 3])."""
        stream = self._video()
        converter = VideoReformatter()  # kept: building one costs more than converting a frame
        for group in groups:
            wanted = dict(group.wanted)
            why = ""
            for first in (group.first, 0):  # from the beginning where a keyframe needs frames before it (open GOP)
                try:
                    for frame in _decode(stream.codec_context, packets[first : group.stop], wanted):
                        number = wanted.pop(frame.pts)
                        if (frame.height, frame.width) != (stream.height, stream.width):
                            raise self._broken(
                                f"frame {number} is {frame.width}x{frame.height} pixels, the first "
                                f"{stream.width}x{stream.height}"
                            )
                        rgb = converter.reformat(frame, width, height, format="rgb24", threads=1)
                        yield number, rgb.to_ndarray().astype(np.uint8, copy=False)
                except (av.FFmpegError, OSError) as error:
                    why = f" ({_reason(error)})"
                if not wanted:
                    break
            else:
                raise self._broken(f"frame {min(wanted.values())} cannot be decoded{why}")

    def sound(self, rate_hz: int | None) -> tuple[NDArray[np.float32], int] | None:
        """All sound from time 0 on, float32 [channels, samples], and its rate; None where there is none."""
        if not self._container.streams.audio:
            return None
        stream = self._container.streams.audio[0]
        decoder = stream.codec_context
        if decoder is None or stream.time_base is None:
            raise self._broken("no decoder for its sound")
        decoder.options = _DECODER
        packets = self._packets(stream)
        if not packets:
            return None
        ends = [packet.pts + packet.duration for packet in packets if packet.pts is not None]
        end_s = float(max(ends) * stream.time_base)  # what the last packet holds may go beyond
        # A frame size keeps the resampler from passing frames on as they are, wherever they belong.
        resampler = av.AudioResampler("fltp", rate=rate_hz, frame_size=4096, options=_IN_PLACE)
        parts: list[NDArray[np.float32]] = []
        try:
            for frame in chain(chain.from_iterable(map(decoder.decode, (*packets, None))), [None]):
                rate = max(frame.sample_rate, rate_hz or 0) if frame else 0
                if frame and end_s * rate * frame.layout.nb_channels > _MAX_VALUES:
                    raise self._broken(f"its sound is said to be {end_s:.0f} s long; that is over 1 GiB")
                parts += [part.to_ndarray().astype(np.float32, copy=False) for part in resampler.resample(frame)]
        except (av.FFmpegError, OSError, ValueError) as error:
            raise self._broken(f"its sound cannot be decoded ({_reason(error)})") from error
        if not parts or not all(np.isfinite(part).all() for part in parts):
            raise self._broken("its sound cannot be decoded")
        samples_CN = np.concatenate(parts, axis=1)[:, : max(0, round(end_s * resampler.rate))]
        return np.clip(samples_CN, -1, 1), resampler.rate
