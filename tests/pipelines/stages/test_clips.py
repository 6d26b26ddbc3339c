"""Clips: every frame is the source frame that FORMAT names, whatever the container and codec do to timestamps.

The synthetic videos carry each frame's number in its picture, so that a clip can be read back without trusting any
timestamp of ours. What is due is worked out here anew, from a whole decode of the source by another decoder (PyAV).
"""

from __future__ import annotations

import hashlib
import math
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from cookgen.records import Clip, Reason, Reject, Segment, SourceVideo, Video
from pipelines.cutting import Cut, Footage, check_clip, plan_cut
from pipelines.ffmpeg import ChildKilledError, ffmpeg_exe, file_url
from pipelines.stage import Places
from pipelines.stages.clips import STAGE, ClipsConfig, VideoChangedError, cut_clips
from pipelines.stages.videos import VideosConfig, probe_video

WIDTH, HEIGHT, GRID, CELL = 320, 240, 4, 48  # a grid of 16 bits in the middle square: cropping keeps it
SMALL = ClipsConfig(policy="segments", size_px=192)  # smaller than the default: the same code, less work


def picture(number: int) -> np.ndarray:
    """The frame with this number: uint8 grey [HEIGHT, WIDTH], its 16 bits as dark and light cells, row by row."""
    bits = np.array([(number >> bit) & 1 for bit in range(GRID * GRID)], np.uint8).reshape(GRID, GRID)
    cells = (bits * 150 + 50).repeat(CELL, axis=0).repeat(CELL, axis=1)
    frame = np.full((HEIGHT, WIDTH), 120, np.uint8)
    top, left = (HEIGHT - GRID * CELL) // 2, (WIDTH - GRID * CELL) // 2
    frame[top : top + GRID * CELL, left : left + GRID * CELL] = cells
    return frame


def number_of(grey_HW: np.ndarray, *, turns: int = 0, stretch: float = 1.0) -> int:
    """The number in a square picture whose side is the source's short side; `turns` quarter turns to undo."""
    side = grey_HW.shape[0]
    upright = np.rot90(grey_HW, turns)
    step_y, step_x = side * CELL / HEIGHT, side * CELL / HEIGHT * stretch
    number = 0
    for bit in range(GRID * GRID):
        y = side / 2 + (bit // GRID - GRID / 2 + 0.5) * step_y
        x = side / 2 + (bit % GRID - GRID / 2 + 0.5) * step_x
        patch = upright[int(y) - 3 : int(y) + 4, int(x) - 3 : int(x) + 4].astype(float)
        assert abs(patch.mean() - 125) > 20, "the picture carries no number"
        number |= int(patch.mean() > 125) << bit
    return number


def encode(
    path: Path, output: Sequence[str], *, num_frames: int = 300, rate: str = "30", audio: Path | None = None
) -> Path:
    """Writes the numbered frames with ffmpeg and these output options."""
    raw = b"".join(picture(number).tobytes() for number in range(num_frames))
    args = ["-f", "rawvideo", "-pix_fmt", "gray", "-s", f"{WIDTH}x{HEIGHT}", "-r", rate, "-i", "pipe:0"]
    args += ["-i", str(audio), "-map", "0:v", "-map", "1:a"] if audio else []
    command = [ffmpeg_exe(), "-v", "error", "-y", *args, "-threads", "2", *output, file_url(path)]
    subprocess.run(command, input=raw, check=True, timeout=120)
    return path


def convert(source: Path, path: Path, before: Sequence[str], after: Sequence[str]) -> Path:
    command = [ffmpeg_exe(), "-v", "error", "-nostdin", "-y", *before, "-i", str(source), *after, file_url(path)]
    subprocess.run(command, check=True, timeout=120)
    return path


X264 = ["-c:v", "libx264", "-preset", "veryfast", "-pix_fmt", "yuv420p"]
LONG_GOP = [*X264, "-g", "120", "-bf", "3", "-x264-params", "b-pyramid=normal:scenecut=0:b-adapt=0"]


@dataclass(frozen=True)
class Kind:
    """A kind of source: how it is made, and how its pictures are turned and stretched."""

    name: str
    suffix: str
    output: tuple[str, ...]
    rate: str = "30"
    turns: int = 0
    stretch: float = 1.0
    before: tuple[str, ...] = ()  # options of a second pass that copies the stream
    after: tuple[str, ...] = ()


KINDS = [
    Kind("long_gop", ".mp4", tuple(LONG_GOP)),
    Kind("ntsc_in_milliseconds", ".mkv", tuple(LONG_GOP), rate="30000/1001"),
    Kind("open_gop", ".mp4", (*X264, "-g", "40", "-bf", "3", "-x264-params", "open-gop=1:scenecut=0")),
    Kind("open_gop_stream", ".ts", (*X264, "-g", "40", "-bf", "3", "-x264-params", "open-gop=1:scenecut=0")),
    Kind("mpeg2_stream", ".ts", ("-c:v", "mpeg2video", "-q:v", "3", "-g", "15", "-bf", "2", "-pix_fmt", "yuv420p")),
    Kind(
        "interlaced",
        ".ts",
        ("-c:v", "libx264", "-flags", "+ildct+ilme", "-pix_fmt", "yuv420p", "-x264-params", "tff=1"),
    ),
    Kind("mpeg4_avi", ".avi", ("-c:v", "mpeg4", "-q:v", "3", "-g", "50", "-bf", "2", "-pix_fmt", "yuv420p")),
    Kind("start_offset", ".mkv", (*LONG_GOP, "-output_ts_offset", "4.5")),
    Kind(
        "hevc_10_bit",
        ".mp4",
        (
            "-c:v",
            "libx265",
            "-preset",
            "ultrafast",
            "-x265-params",
            "log-level=none:keyint=60:pools=1:frame-threads=1",
            "-pix_fmt",
            "yuv420p10le",
        ),
    ),
    Kind(
        "vp9",
        ".webm",
        ("-c:v", "libvpx-vp9", "-deadline", "realtime", "-cpu-used", "8", "-b:v", "1M", "-pix_fmt", "yuv420p"),
    ),
    Kind("variable_rate", ".mp4", (*LONG_GOP, "-vf", "select=not(mod(n\\,7))+lt(mod(n\\,31)\\,9)", "-fps_mode", "vfr")),
    Kind("fragmented", ".mp4", (*LONG_GOP, "-movflags", "+frag_keyframe+empty_moov")),
    Kind("edit_list", ".mp4", tuple(LONG_GOP), before=("-ss", "1.7"), after=("-c", "copy")),
    Kind("rotated", ".mp4", tuple(LONG_GOP), before=("-display_rotation", "90"), after=("-c", "copy"), turns=-1),
    Kind("anamorphic", ".mp4", (*LONG_GOP, "-vf", "setsar=4/3"), stretch=4 / 3),
    Kind(
        "full_range_444",
        ".mp4",
        ("-vf", "scale=out_range=pc,format=yuvj444p", "-c:v", "libx264", "-preset", "veryfast"),
    ),
]


def make(kind: Kind, folder: Path) -> Path:
    path = encode(folder / f"{kind.name}{kind.suffix}", kind.output, rate=kind.rate)
    if kind.after:
        path = convert(path, folder / f"{kind.name}-copy{kind.suffix}", kind.before, kind.after)
    return path


def places(folder: Path) -> Places:
    return Places(videos=folder, media=folder / "media", scratch=folder / "scratch")


def probed(path: Path, *spans: tuple[float, float]) -> Video:
    """The video as the videos stage finds it, with these spans as its annotated segments."""
    source = SourceVideo(
        narrative=f"test-{hashlib.sha256(path.name.encode()).hexdigest()[:8]}",
        source="test",
        video_id=path.stem,
        path=path.name,
        num_bytes=path.stat().st_size,
        mtime_ns=0,
        segments=tuple(Segment(start_s=start, end_s=end, text="x") for start, end in spans),
    )
    [video] = probe_video(source, config=VideosConfig(min_duration_s=1), tool=places(path.parent))
    assert isinstance(video, Video), video
    return video


def cut(video: Video, folder: Path, config: ClipsConfig = SMALL) -> tuple[list[Clip], list[Reject]]:
    rows = list(cut_clips(video, config=config, tool=places(folder)))
    assert list((folder / "scratch").iterdir()) == [], "temporary files are left"
    return [row for row in rows if isinstance(row, Clip)], [row for row in rows if isinstance(row, Reject)]


def source_frames(path: Path, kind: Kind) -> list[tuple[Fraction, int]]:
    """(seconds from the container's start, number) of every frame, by a plain decode of everything."""
    frames = []
    with av.open(str(path)) as container:
        start = Fraction(container.start_time, av.time_base)
        stream = container.streams.video[0]
        for frame in container.decode(stream):
            grey = frame.to_ndarray(format="gray")
            square = grey[:, (WIDTH - HEIGHT) // 2 : (WIDTH + HEIGHT) // 2]
            frames.append((frame.pts * stream.time_base - start, number_of(square)))
    return sorted(frames)


def clip_numbers(path: Path, kind: Kind) -> list[int]:
    with av.open(str(path)) as container:
        return [
            number_of(frame.to_ndarray(format="gray"), turns=kind.turns, stretch=kind.stretch)
            for frame in container.decode(video=0)
        ]


SPANS = ((0.0, 1.3), (0.95, 2.02), (2.0, 2.5), (3.333, 5.05), (7.21, 7.25), (5.0, 60.0))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_frame_is_the_one_that_is_due(kind: Kind, tmp_path: Path) -> None:
    path = make(kind, tmp_path)
    frames = source_frames(path, kind)
    video = probed(path, *SPANS)
    clips, rejects = cut(video, tmp_path)
    assert [(clip.clip_index, clip.start_s) for clip in clips] == sorted(
        ((index, start) for index, (start, _) in enumerate(SPANS) if index in {clip.clip_index for clip in clips}),
        key=lambda item: SPANS[item[0]],
    )
    assert len(clips) + len(rejects) == len(SPANS) and len(clips) >= 5
    slack = Fraction(1, 1_000_000)
    for clip in clips:
        start, end = Fraction(SPANS[clip.clip_index][0]), min(Fraction(SPANS[clip.clip_index][1]), Fraction(clip.end_s))
        inside = [(time, number) for time, number in frames if start - slack <= time < end - slack]
        first = inside[0][0]
        rate = Fraction(clip.fps).limit_denominator(1001)
        due, n = [], 0
        while first + n / rate < end - slack:
            due.append([item for item in inside if item[0] <= first + n / rate][-1])
            n += 1
        shown = clip_numbers(places(tmp_path).medium(clip.sha256, ".mp4"), kind)
        assert shown == [number for _, number in due]
        assert clip.num_frames == len(due)
        assert clip.first_pts_s == pytest.approx(float(first), abs=2e-6)
        assert clip.last_pts_s == pytest.approx(float(due[-1][0]), abs=2e-6)
        middle = (due[0][0] + due[-1][0]) / 2
        nearest = min(frames, key=lambda item: (abs(item[0] - middle), item[0]))
        assert clip.keyframe_pts_s == pytest.approx(float(nearest[0]), abs=2e-6)
        with Image.open(places(tmp_path).medium(clip.keyframe_sha256, ".jpg")) as image:
            grey = np.asarray(image.convert("L"))
        assert number_of(grey, turns=kind.turns, stretch=kind.stretch) == nearest[1]
