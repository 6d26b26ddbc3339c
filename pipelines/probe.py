"""What a container really holds, by its packets' own timestamps; nothing is decoded here."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
from av.container import InputContainer

from pipelines.ffmpeg import CONTAINERS, PROTOCOLS, file_url

MICROSECONDS = 1_000_000
MAX_DENOMINATOR = 1001  # of a rate; two such fractions differ by more than the 1e-6 that a record keeps
_BOX_PARENTS = frozenset({b"moov", b"trak"})


def open_container(path: str | os.PathLike[str]) -> InputContainer:
    """Opens a file from outside for reading, as video containers only. Raises av.FFmpegError where it is none."""
    options = {"format_whitelist": CONTAINERS, "protocol_whitelist": PROTOCOLS, "fflags": "+genpts"}
    container: InputContainer = av.open(file_url(path), mode="r", options=options, metadata_errors="replace")
    return container


@dataclass(frozen=True)
class Timeline:
    """The frames of one video stream: their pts in units of `time_base`, rising, and which of them are keyframes."""

    time_base: Fraction
    pts: tuple[int, ...]
    keyframes: tuple[int, ...]
    end: int  # the last frame's pts plus its duration


@dataclass(frozen=True)
class Demuxed:
    """What reading all packets of a file showed."""

    timeline: Timeline
    end_s: float  # the latest end of any stream, in the file's own timestamps
    num_packets: int  # of the video stream
    error: str | None  # why reading ended early


def demux(container: InputContainer, stream_index: int) -> Demuxed:
    """Reads every packet. Frames that an edit list hides are left out, as players do."""
    stream = container.streams[stream_index]
    time_base = stream.time_base
    assert time_base is not None
    pts: set[int] = set()
    keyframes: set[int] = set()
    ends: dict[int, float] = {}
    last, last_duration, num_packets, error = -(1 << 62), 0, 0, None
    try:
        for packet in container.demux():
            at = packet.pts if packet.pts is not None else packet.dts
            if at is None or packet.size == 0:
                continue
            if packet.time_base:
                end = float((at + (packet.duration or 0)) * packet.time_base)
                ends[packet.stream_index] = max(end, ends.get(packet.stream_index, end))
            if packet.stream_index != stream_index:
                continue
            num_packets += 1
            if packet.is_discard:
                continue
            pts.add(at)
            if packet.is_keyframe:
                keyframes.add(at)
            if at >= last:
                last, last_duration = at, packet.duration or 0
    except av.FFmpegError as problem:
        error = problem.strerror or type(problem).__name__
    if pts and not last_duration:  # containers need not say how long the last frame lasts: as long as the mean one
        last_duration = max(1, round((last - min(pts)) / (len(pts) - 1))) if len(pts) > 1 else 1
    timeline = Timeline(time_base, tuple(sorted(pts)), tuple(sorted(keyframes)), last + last_duration if pts else 0)
    return Demuxed(timeline, max(ends.values(), default=0.0), num_packets, error)


def micros(seconds: float | Fraction) -> int:
    """Seconds as whole microseconds: the precision of every time in a record, and so of every comparison."""
    return round(seconds * MICROSECONDS)


def overrun(path: Path) -> str | None:
    """What lies past the end of the file by its own account: an MP4 box or the Matroska segment; None if nothing does,
    or if the format has no such account. An MP4 without its index (moov) counts too."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        head = stream.read(64)
    if head[:4] == b"\x1a\x45\xdf\xa3":
        return _matroska_overrun(head, size)
    if head[4:8] not in (b"ftyp", b"moov", b"mdat", b"free", b"wide", b"skip", b"styp"):
        return None
    names = []
    for name, start, length in boxes(path):
        names.append(name)
        if start + length > size:
            return f"box {name.decode('latin-1')!r} ends {start + length - size} bytes past the end of the file"
    return None if b"moov" in names else "the index (box 'moov') is missing"


def boxes(path: Path, *, inner: bool = False) -> Iterator[tuple[bytes, int, int]]:
    """The boxes of an MP4 file as (name, offset, length in bytes): the outermost, or with `inner` also those in moov
    and trak. The length is what the file says, also where it is more than there is."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        at, known_names = 0, 0
        while at + 8 <= size and known_names < 100_000:
            stream.seek(at)
            header = stream.read(16)
            length, name = int.from_bytes(header[:4], "big"), header[4:8]
            if length == 1 and len(header) == 16:
                length = int.from_bytes(header[8:16], "big")
            elif length == 0:  # up to the end of the file
                length = size - at
            if length < 8:
                return
            yield name, at, length
            known_names += 1
            at += 8 if inner and name in _BOX_PARENTS else length


def _matroska_overrun(head: bytes, size: int) -> str | None:
    header_length, at = _ebml_size(head, 4)
    if header_length is None:
        return None
    at += header_length
    if head[at : at + 4] != b"\x18\x53\x80\x67":
        return None
    segment_length, start = _ebml_size(head, at + 4)
    if segment_length is None or start + segment_length <= size:
        return None
    return f"the Matroska segment ends {start + segment_length - size} bytes past the end of the file"


def _ebml_size(data: bytes, at: int) -> tuple[int | None, int]:
    """A variable-length integer at `at` and the offset after it; None where it says "unknown" or is cut off."""
    if at >= len(data) or data[at] == 0:
        return None, at
    width = 9 - data[at].bit_length()
    raw = data[at : at + width]
    value = int.from_bytes(raw, "big") & ((1 << (7 * width)) - 1)
    unknown = value == (1 << (7 * width)) - 1 or len(raw) < width
    return (None if unknown else value), at + width
