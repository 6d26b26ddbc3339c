"""Whether a clip's MP4 and JPEG are what its JSON says: decoded, in constant memory, whatever the bytes are.

Every function yields (rule, found) for what is wrong and nothing for what is right; bytes that cannot be read at all
are one finding more, never an exception.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from typing import IO, Any

import av
from PIL import Image

from cookgen.records import SampleClip

Finding = tuple[str, str]
_MAX_BOXES = 4096

DECODES = "a clip's picture decodes to exactly num_frames frames of its width and height"
ENCODING = "a clip is one H.264 picture in yuv420p, and AAC sound at 48 kHz where has_audio says so"
TIMES = "a clip's first frame has pts 0 and frame n is shown at n / fps"
EDIT_LIST = "a clip has no edit list"
FASTSTART = "a clip's index stands before its data (+faststart)"
CLIP_SHA256 = "clip.sha256 is the sha256 of the MP4"
KEYFRAME = "a keyframe is a JPEG of the clip's width and height"


class Window(io.RawIOBase):
    """A part of a file as a file of its own; seekable, nothing is copied."""

    def __init__(self, stream: IO[bytes], start: int, size: int) -> None:
        self._stream, self._start, self._size, self._position = stream, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), max(0, self._size - self._position))
        self._stream.seek(self._start + self._position)
        content = self._stream.read(wanted)
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)


def clip_findings(window: Window, size: int, clip: SampleClip) -> Iterator[Finding]:
    """What is wrong with a clip's MP4 of `size` bytes."""
    window.seek(0)
    sha256 = hashlib.file_digest(io.BufferedReader(window), "sha256").hexdigest()
    if sha256 != clip.sha256:
        yield CLIP_SHA256, f"sha256 {sha256}, stated {clip.sha256}"
    try:
        yield from _layout(window, size)
        window.seek(0)
        yield from _decoded(window, clip)
    except Exception as error:  # noqa: BLE001 - whatever a decoder says of hostile bytes is a finding
        yield DECODES, f"cannot be read: {type(error).__name__}: {error}"


def _layout(window: Window, size: int) -> Iterator[Finding]:
    names = []
    for name, start, end in _boxes(window, 0, size):
        names.append(name)
        if name == b"moov":
            for trak, trak_start, trak_end in _boxes(window, start, end):
                if trak == b"trak" and any(box == b"edts" for box, _, _ in _boxes(window, trak_start, trak_end)):
                    yield EDIT_LIST, "a track has an edit list (edts)"
    if b"moov" in names and b"mdat" in names and names.index(b"moov") > names.index(b"mdat"):
        yield FASTSTART, "moov stands after mdat"


def _boxes(window: Window, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """The ISO boxes in [start, end): name, start and end of the content. Raises ValueError where they do not fit."""
    for _ in range(_MAX_BOXES):
        if start >= end:
            return
        window.seek(start)
        header = window.read(16) or b""
        size, name, content = int.from_bytes(header[:4], "big"), header[4:8], start + 8
        if size == 1:  # the real size follows, in 64 bits
            size, content = int.from_bytes(header[8:16], "big"), start + 16
        elif size == 0:  # to the end
            size = end - start
        if len(header) < 8 or start + size < content or start + size > end:
            raise ValueError(f"box {name!r} of {size} bytes at {start} does not fit into {end}")
        yield name, content, start + size
        start += size
    raise ValueError(f"more than {_MAX_BOXES} boxes")


def _decoded(window: Window, clip: SampleClip) -> Iterator[Finding]:
    with av.open(window, format="mp4", metadata_errors="replace") as container:
        kinds = sorted(stream.type for stream in container.streams)
        if kinds != (["audio", "video"] if clip.has_audio else ["video"]):
            yield ENCODING, f"streams {kinds}, has_audio {str(clip.has_audio).lower()}"
        for sound in container.streams.audio:
            if (sound.codec_context.name, sound.codec_context.sample_rate) != ("aac", 48_000):
                yield ENCODING, f"sound is {sound.codec_context.name} at {sound.codec_context.sample_rate} Hz"
        if not container.streams.video:
            return
        picture = container.streams.video[0]
        context = picture.codec_context
        if (context.name, context.pix_fmt) != ("h264", "yuv420p"):
            yield ENCODING, f"picture is {context.name} in {context.pix_fmt}"
            return
        if (context.width, context.height) != (clip.width, clip.height):
            yield DECODES, f"{context.width}x{context.height}, stated {clip.width}x{clip.height}"
            return
        picture.thread_type = "AUTO"
        num_frames = 0
        for frame in container.decode(picture):
            if num_frames == clip.num_frames:
                yield DECODES, f"more than the stated {clip.num_frames} frames"
                return
            if (frame.width, frame.height) != (clip.width, clip.height):
                yield DECODES, f"frame {num_frames} is {frame.width}x{frame.height}"
                return
            wanted_s = num_frames / clip.fps
            if num_frames == 0 and frame.pts != 0:
                yield TIMES, f"the first frame has pts {frame.pts}"
                return
            # A time base may be coarse: what matters is that no frame is nearer to another one's place.
            if frame.time is None or abs(frame.time - wanted_s) > 0.25 / clip.fps:
                yield TIMES, f"frame {num_frames} is shown at {frame.time} s, not at {wanted_s:.6f} s"
                return
            num_frames += 1
        if num_frames != clip.num_frames:
            yield DECODES, f"{num_frames} frames, stated {clip.num_frames}"


def keyframe_findings(window: Window, clip: SampleClip) -> Iterator[Finding]:
    """What is wrong with a clip's keyframe."""
    try:
        window.seek(0)
        with Image.open(io.BufferedReader(window), formats=["JPEG"]) as image:
            if image.size != (clip.width, clip.height):
                yield KEYFRAME, f"{image.width}x{image.height}, the clip {clip.width}x{clip.height}"
                return
            image.load()
    except Exception as error:  # noqa: BLE001 - whatever a decoder says of hostile bytes is a finding
        yield KEYFRAME, f"cannot be read: {type(error).__name__}: {error}"
