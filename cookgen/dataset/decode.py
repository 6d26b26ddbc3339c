"""Frames of the clips in a shard set, as arrays.

For clips that the pipeline encoded (H.264 in MP4, constant rate, no edit list), exact by index. The bytes may still
come from anywhere: a damaged clip ends in a FormatError, never in frames that were made up. That is why PyAV does it:
it decodes the same pixels as decord2, at least as fast once the colour converter is kept from frame to frame, and
where a damaged header makes decord2 abort the whole process, FFmpeg returns an error.
"""

from __future__ import annotations

import io
import operator
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from cookgen.errors import FormatError, InputError, UsageError

# The demuxer is named, so that a playlist called .mp4 is refused instead of followed; the decoder reports damage
# instead of painting over it; one thread, because loaders run many workers.
_DEMUXER = "mp4"
_DECODER = {"err_detect": "explode"}
_MAX_FRAMES = 1_000_000  # a clip is seconds long; more, or larger, is a damaged header
_MAX_SIDE_PX = 8192


def count_frames(mp4: bytes | Path) -> int:
    """The number of frames in a clip, from its index; nothing is decoded.

    Raises InputError where the file cannot be read, FormatError where it is not a clip.
    """
    with _Clip(mp4) as clip:
        return len(clip.pts)


def read_frames(
    mp4: bytes | Path,
    indices: Sequence[int] | slice | None = None,
    *,
    size_px: int | tuple[int, int] | None = None,
) -> NDArray[np.uint8]:
    """Frames of a clip: uint8 [T, H, W, 3], RGB, in the order of `indices`.

    mp4: the clip's bytes or its path. indices: frame numbers in any order, repeats allowed, negative ones count from
    the end; a slice; None for all frames. size_px: the short side, or (height, width); None keeps the clip's size.
    Only the groups of pictures that hold a wanted frame are decoded.
    Raises IndexError for a frame that the clip does not have, InputError where the file cannot be read, FormatError
    where it is not a clip or is damaged, UsageError for a size below 1.
    """
    with _Clip(mp4) as clip:
        numbers = _frame_numbers(indices, len(clip.pts))
        height, width = _output_size(size_px, clip.height, clip.width)
        frames_THWC = np.empty((len(numbers), height, width, 3), np.uint8)
        places: dict[int, list[int]] = {}  # frame number -> where it goes in the output
        for place, number in enumerate(numbers):
            places.setdefault(number, []).append(place)
        for number, frame_HWC in clip.frames(sorted(places), height, width):
            frames_THWC[places[number]] = frame_HWC
    return frames_THWC


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


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or "its text is not UTF-8"


class _Clip:
    """An open clip: the size of its picture, the pts of its frames in order, and its frames by number."""

    def __init__(self, mp4: bytes | Path) -> None:
        self._name = f"clip of {len(mp4)} bytes" if isinstance(mp4, bytes) else str(mp4)
        try:
            self._file = io.BytesIO(mp4) if isinstance(mp4, bytes) else Path(mp4).open("rb")  # noqa: SIM115 - closed by __exit__
        except OSError as error:
            raise InputError(f"{self._name}: cannot be read: {error.strerror}") from error
        try:
            self._container = av.open(self._file, format=_DEMUXER)
        except (av.FFmpegError, ValueError, OSError) as error:
            self._file.close()
            raise self._broken(f"not an MP4 file ({_reason(error)})") from error
        try:
            self._read_index()
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> _Clip:
        return self

    def __exit__(self, *_: object) -> None:
        self._container.close()
        self._file.close()

    def _broken(self, what: str) -> FormatError:
        return FormatError(
            f"{self._name}: {what}. The clip is damaged or not one of a shard set: fetch the shard again"
        )

    def _read_index(self) -> None:
        """Picture size, frame times and keyframes, from the packets' headers: an H.264 packet is a frame."""
        if not self._container.streams.video:
            raise self._broken("no video stream")
        self._stream = self._container.streams.video[0]
        if self._stream.codec_context is None:
            raise self._broken("no decoder for its video")
        self._stream.thread_type = "NONE"
        self._stream.codec_context.options = _DECODER
        self.height, self.width = self._stream.height, self._stream.width
        if not (0 < self.height <= _MAX_SIDE_PX and 0 < self.width <= _MAX_SIDE_PX):
            raise self._broken(f"its picture is {self.width}x{self.height} pixels; the most is {_MAX_SIDE_PX} a side")
        pts: list[int] = []
        keys: list[int] = []
        try:
            for packet in self._container.demux(self._stream):
                if packet.size == 0:  # the flush at the end
                    continue
                if packet.is_corrupt:
                    raise self._broken(f"it ends within frame {len(pts)}")
                if packet.pts is None or len(pts) == _MAX_FRAMES:
                    raise self._broken("its index of frames makes no sense")
                pts.append(packet.pts)
                if packet.is_keyframe:
                    keys.append(packet.pts)
        except (av.FFmpegError, OSError) as error:
            raise self._broken(f"cannot be read to its end ({_reason(error)})") from error
        self.pts, self._keys = sorted(pts), sorted(keys)
        if not pts:
            raise self._broken("it holds no frames")
        if self._stream.frames not in (0, len(pts)):  # 0: the container does not say
            raise self._broken(f"it holds {len(pts)} of its {self._stream.frames} frames")
        if len(set(pts)) < len(pts):
            raise self._broken("two of its frames have the same time")
        if not keys or self._keys[0] != self.pts[0]:
            raise self._broken("its first frame is not a keyframe")

    def frames(self, numbers: Sequence[int], height: int, width: int) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """The frames with these rising numbers, each exactly once, as (number, uint8 [height, width, 3])."""
        converter = VideoReformatter()  # kept: building one costs more than converting a frame
        for first_pts, run in self._runs(numbers):
            wanted = {self.pts[number]: number for number in run}
            try:
                self._container.seek(first_pts, stream=self._stream)
                for frame in self._container.decode(self._stream):
                    number = wanted.pop(frame.pts, None) if frame.pts is not None else None
                    if number is not None:
                        if (frame.height, frame.width) != (self.height, self.width):
                            raise self._broken(
                                f"frame {number} is {frame.width}x{frame.height} pixels, the first "
                                f"{self.width}x{self.height}"
                            )
                        rgb = converter.reformat(frame, width, height, format="rgb24")
                        yield number, rgb.to_ndarray().astype(np.uint8, copy=False)
                    if not wanted:
                        break
            except (av.FFmpegError, OSError) as error:
                raise self._broken(f"cannot be decoded ({_reason(error)})") from error
            if wanted:
                raise self._broken(f"frame {min(wanted.values())} cannot be decoded")

    def _runs(self, numbers: Sequence[int]) -> Iterator[tuple[int, list[int]]]:
        """The frames grouped by where decoding has to start: (pts of the keyframe, frame numbers)."""
        first, last = -1, -2
        run: list[int] = []
        for number in numbers:
            group = bisect_right(self._keys, self.pts[number]) - 1
            if group > last + 1:  # groups of pictures without a wanted frame lie between
                if run:
                    yield self._keys[first], run
                first, run = group, []
            last = group
            run.append(number)
        if run:
            yield self._keys[first], run
