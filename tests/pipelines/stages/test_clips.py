"""Clips: every frame is the source frame that FORMAT names, whatever the container and codec do to timestamps.

The synthetic videos carry each frame's number in its picture, so that a clip can be read back without trusting any
timestamp of ours. What is due is worked out here anew, from a whole decode of the source by another decoder (PyAV).
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import shutil
import subprocess
import wave
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cookgen.config import config_digest
from cookgen.perception.shots import ShotDetection
from cookgen.records import Clip, Reason, Reject, Segment, SourceVideo, Video
from pipelines.cutting import Cut, Footage, check_clip, plan_cut
from pipelines.ffmpeg import ChildKilledError, ffmpeg_exe, file_url, run_ffmpeg
from pipelines.sources import demo
from pipelines.stage import Places
from pipelines.stages.clips import STAGE, Cleaning, ClipsConfig, VideoChangedError, cut_clips, empty_spans
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


def source_frames(path: Path) -> list[tuple[Fraction, int]]:
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


NEAR = ((0.0, 1.3), (0.95, 2.02), (2.0, 2.5), (7.21, 7.25), (3.333, 5.05), (5.0, 60.0))
FAR = ((6.1, 6.5), (8.0, 8.25))  # far enough from the beginning to seek


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_frame_is_the_one_that_is_due(kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One child is enough: the checks would mend a wrong seek with a second one, but there should be none to mend."""
    children: list[Sequence[str]] = []

    def counted(args: Sequence[str], **options: Any) -> Any:
        children.append(args)
        return run_ffmpeg(args, **options)

    monkeypatch.setattr("pipelines.cutting.run_ffmpeg", counted)
    path = make(kind, tmp_path)
    frames = source_frames(path)
    for spans in (NEAR, FAR):
        children.clear()
        clips, rejects = cut(probed(path, *spans), tmp_path)
        assert not rejects and len(children) == 1
        assert [clip.clip_index for clip in clips] == sorted(range(len(spans)), key=lambda index: spans[index])
        for clip in clips:
            assert_exact(clip, spans[clip.clip_index], frames, kind, tmp_path)


def assert_exact(
    clip: Clip, span: tuple[float, float], frames: list[tuple[Fraction, int]], kind: Kind, folder: Path
) -> None:
    """The clip against FORMAT's rule, worked out from the whole decode."""
    slack = Fraction(1, 1_000_000)
    start, end = Fraction(span[0]), min(Fraction(span[1]), Fraction(clip.end_s))
    assert clip.start_s == span[0] and (clip.end_s == span[1] or clip.end_s < span[1] > float(frames[-1][0]))
    inside = [(time, number) for time, number in frames if start - slack <= time < end - slack]
    first = inside[0][0]
    rate = Fraction(clip.fps).limit_denominator(1001)
    due, n = [], 0
    while first + n / rate < end - slack:
        due.append([item for item in inside if item[0] <= first + n / rate][-1])
        n += 1
    assert clip_numbers(places(folder).medium(clip.sha256, ".mp4"), kind) == [number for _, number in due]
    assert clip.num_frames == len(due)
    assert clip.first_pts_s == pytest.approx(float(first), abs=2e-6)
    assert clip.last_pts_s == pytest.approx(float(due[-1][0]), abs=2e-6)
    middle = (due[0][0] + due[-1][0]) / 2
    nearest = min(frames, key=lambda item: (abs(item[0] - middle), item[0]))
    assert clip.keyframe_pts_s == pytest.approx(float(nearest[0]), abs=2e-6)
    with Image.open(places(folder).medium(clip.keyframe_sha256, ".jpg")) as image:
        grey = np.asarray(image.convert("L"))
    assert number_of(grey, turns=kind.turns, stretch=kind.stretch) == nearest[1]


PLAIN = KINDS[0]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 numbered frames at 30 a second, long GOP, without sound."""
    return make(PLAIN, tmp_path_factory.mktemp("plain"))


@pytest.mark.parametrize("fps", [7.0, 12.5, 50.0])
def test_another_rate_shows_the_last_frame_at_each_time(fps: float, plain: Path) -> None:
    clips, _ = cut(probed(plain, (1.0, 2.9)), plain.parent, replace(SMALL, fps=fps))
    assert clips[0].fps == fps
    assert_exact(clips[0], (1.0, 2.9), source_frames(plain), PLAIN, plain.parent)


def test_spans_without_frames_and_without_length_are_rejects_of_their_own(plain: Path) -> None:
    spans = ((20.0, 30.0), (1.0, 1.5), (2.0, 2.0), (3.0, 2.0), (4.001, 4.01), (9.9, 11.0), (10.0, 11.0))
    video = probed(plain, *spans)
    clips, rejects = cut(video, plain.parent)
    assert [(clip.clip_index, clip.num_frames, clip.end_s) for clip in clips] == [(1, 15, 1.5), (5, 3, 10.0)]
    assert [(reject.clip_index, reject.reason) for reject in rejects] == [
        (0, Reason.PAST_END),
        (2, Reason.BAD_ANNOTATION),
        (3, Reason.BAD_ANNOTATION),
        (4, Reason.PAST_END),
        (6, Reason.PAST_END),
    ]


@pytest.mark.parametrize("spans", [(), ((50.0, 60.0),)])
def test_a_video_without_any_clip_is_a_reject_as_a_whole(spans: tuple[tuple[float, float], ...], plain: Path) -> None:
    clips, rejects = cut(probed(plain, *spans), plain.parent)
    assert not clips
    assert [reject.reason for reject in rejects if reject.is_video_level] == [Reason.NO_SHOTS]
    assert len(rejects) == len(spans) + 1


def test_the_same_inputs_give_the_same_bytes_however_they_are_grouped(plain: Path, tmp_path: Path) -> None:
    spans = tuple((0.3 * n, 0.3 * n + 0.5) for n in range(10))  # more than one child's worth
    shutil.copyfile(plain, tmp_path / plain.name)
    once, again = (cut(probed(folder / plain.name, *spans), folder)[0] for folder in (plain.parent, tmp_path))
    assert len(once) == 10 and once == again
    [alone] = cut(probed(plain, spans[7]), plain.parent)[0]
    assert alone.sha256 == once[7].sha256
    for clip in once:
        for sha256, suffix in ((clip.sha256, ".mp4"), (clip.keyframe_sha256, ".jpg")):
            written = places(tmp_path).medium(sha256, suffix).read_bytes()
            assert hashlib.sha256(written).hexdigest() == sha256


def test_a_clip_carries_nothing_of_its_making(plain: Path) -> None:
    [clip] = cut(probed(plain, (0.0, 0.5)), plain.parent)[0]
    data = places(plain.parent).medium(clip.sha256, ".mp4").read_bytes()
    assert b"Lavf" not in data and str(plain.parent).encode() not in data
    assert data.index(b"moov") < data.index(b"mdat")


def test_a_child_that_is_killed_is_no_verdict(plain: Path) -> None:
    with pytest.raises(ChildKilledError):
        cut(probed(plain, (0.0, 9.0)), plain.parent, replace(SMALL, timeout_s=0.01, timeout_s_per_s=0.0))


def test_a_file_that_changed_is_no_verdict(plain: Path, tmp_path: Path) -> None:
    path = tmp_path / plain.name
    shutil.copyfile(plain, path)
    video = probed(path, (0.0, 1.0))
    with path.open("ab") as stream:
        stream.write(b"more")
    with pytest.raises(VideoChangedError, match="bytes"):
        cut(video, tmp_path)
    path.unlink()
    with pytest.raises(VideoChangedError, match="No such file"):
        cut(video, tmp_path)


def test_damage_costs_the_clips_that_it_is_in_and_no_other(tmp_path: Path) -> None:
    path = encode(tmp_path / "x.mp4", [*X264, "-g", "30", "-bf", "0", "-x264-params", "scenecut=0"])
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        hurt = next(packet for packet in packets if packet.pts * packet.time_base >= Fraction(52, 10))
        at, size = hurt.pos, hurt.size
    data = bytearray(path.read_bytes())
    data[at + 4 : at + size] = bytes(255 - byte for byte in data[at + 4 : at + size])
    path.write_bytes(data)
    clips, rejects = cut(probed(path, (1.0, 2.0), (3.0, 4.5), (5.0, 5.9), (6.2, 7.0), (8.0, 9.0)), tmp_path)
    assert [clip.clip_index for clip in clips] == [0, 1, 3, 4]
    assert [(reject.clip_index, reject.reason) for reject in rejects] == [(2, Reason.DECODE_ERROR)]


def test_a_change_of_size_in_the_middle_breaks_nothing(tmp_path: Path) -> None:
    parts = [encode(tmp_path / "a.ts", LONG_GOP, num_frames=90)]
    parts.append(encode(tmp_path / "b.ts", [*LONG_GOP, "-s", "640x480", "-output_ts_offset", "3"], num_frames=90))
    path = tmp_path / "both.ts"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    clips, rejects = cut(probed(path, (0.5, 1.5), (2.5, 3.5), (4.0, 5.0)), tmp_path)
    assert len(clips) + len(rejects) >= 3 and {clip.clip_index for clip in clips} >= {0}


# Cropping


def test_a_crop_shows_what_is_inside_the_borders_and_every_frame_stays_exact(tmp_path: Path) -> None:
    pad = ["-vf", f"pad={WIDTH}:{HEIGHT + 160}:0:60"]  # a picture of 4:3 in a frame of 4:5
    path = encode(tmp_path / "x.mp4", [*LONG_GOP, *pad])
    video = probed(path, (0.95, 2.02), (7.3, 8.1))
    assert video.crop is not None and video.crop.top == 62 and video.crop.height == HEIGHT - 4
    for number, turns in ((0, 0), (90, -1)):
        turned = path
        if number:
            turned = convert(path, tmp_path / f"{number}.mp4", ["-display_rotation", str(number)], ["-c", "copy"])
        clips, rejects = cut(probed(turned, (0.95, 2.02), (7.3, 8.1)), tmp_path)
        assert not rejects and len(clips) == 2
        for clip in clips:
            first = round(clip.first_pts_s * 30)
            shown = clip_numbers(places(tmp_path).medium(clip.sha256, ".mp4"), replace(PLAIN, turns=turns))
            assert shown == list(range(first, first + clip.num_frames))
            with Image.open(places(tmp_path).medium(clip.keyframe_sha256, ".jpg")) as image:
                grey = np.asarray(image.convert("L"))
            assert number_of(grey, turns=turns) == round(clip.keyframe_pts_s * 30)
            assert grey.min(axis=0).min() > 30 and grey.min(axis=1).min() > 30  # no line of the border is left
    [clip, _] = cut(video.model_copy(update={"crop": None}), tmp_path)[0]
    with Image.open(places(tmp_path).medium(clip.keyframe_sha256, ".jpg")) as image:
        assert np.asarray(image.convert("L"))[:8].max() < 20  # a negative control: the border was there


def test_a_crop_of_pixels_that_are_not_square_fits_the_picture(tmp_path: Path) -> None:
    pad = ["-vf", f"pad={WIDTH + 60}:{HEIGHT + 60}:30:30,setsar=4/3"]
    video = probed(encode(tmp_path / "x.mp4", [*LONG_GOP, *pad]), (1.0, 1.5))
    assert video.crop is not None
    [clip] = cut(video, tmp_path)[0]
    with Image.open(places(tmp_path).medium(clip.keyframe_sha256, ".jpg")) as image:
        grey = np.asarray(image.convert("L"))
    assert grey.min() > 20
    assert number_of(grey, stretch=4 / 3) == round(clip.keyframe_pts_s * 30)


# What is no clip


SHOTS = ClipsConfig(size_px=64, preset="ultrafast", keep_audio=False)
RATE = 10


def film(path: Path, *parts: tuple[str, float], output: Sequence[str] = X264) -> Path:
    """A film of 320 x 240 at RATE frames a second; each part is a scene of so many seconds."""
    frames = []
    rng = np.random.default_rng(8)
    for kind, seconds in parts:
        scene = rng.integers(40, 255, (12, 16), dtype=np.uint8).repeat(20, axis=0).repeat(20, axis=1)
        for number in range(round(seconds * RATE)):
            frame = scene.copy()
            if kind == "moving":
                frame = np.roll(scene, 3 * number, axis=1)
            elif kind == "hand":  # on a camera that stands; 1/16 of the width
                x = 100 + round(40 * math.sin(number / 3))
                frame[120:140, x : x + 20] = 40
            elif kind == "black":
                frame[:] = 0
            frames.append(frame)
    command = [ffmpeg_exe(), "-v", "error", "-y", "-f", "rawvideo", "-pix_fmt", "gray", "-s", f"{WIDTH}x{HEIGHT}"]
    command += ["-r", str(RATE), "-i", "pipe:0", *output, file_url(path)]
    subprocess.run(command, input=b"".join(frame.tobytes() for frame in frames), check=True, timeout=120)
    return path


def outcome(path: Path, config: ClipsConfig = SHOTS) -> tuple[list[tuple[float, float]], list[tuple[str, str]]]:
    """The clips' spans, and the rejects' reasons and details."""
    clips, rejects = cut(probed(path), path.parent, config)
    indices = [clip.clip_index for clip in clips] + [r.clip_index for r in rejects if r.clip_index is not None]
    assert sorted(indices) == list(range(len(indices)))
    return [(clip.start_s, clip.end_s) for clip in clips], [(reject.reason.value, reject.detail) for reject in rejects]


def reasons_of(path: Path, config: ClipsConfig = SHOTS) -> list[str]:
    return [reason for reason, _ in outcome(path, config)[1]]


def test_what_does_not_change_and_what_is_black_is_no_clip(tmp_path: Path) -> None:
    path = film(tmp_path / "x.mp4", ("moving", 4), ("still", 3.5), ("moving", 5), ("black", 0.8), ("moving", 6))
    spans, rejects = outcome(path)
    assert spans == [(0, 4), (7.5, 12.5), (13.3, 19.3)]
    assert rejects == [("frozen", "[4.000, 7.500) s does not change"), ("black", "[12.500, 13.300) s is black")]
    everything = replace(SHOTS, cleaning=Cleaning(still_s=0, title_s=0, black_s=0))
    spans, rejects = outcome(path, everything)
    assert rejects == [] and (spans[0][0], spans[-1][1]) == (0, 19.3)


def test_a_shot_that_stops_half_way_ends_where_it_stops(tmp_path: Path) -> None:
    """A freeze without a cut: the moving half is a clip, the frozen one is none."""
    path = film(tmp_path / "x.mp4", ("moving", 10))
    frozen = convert(path, tmp_path / "y.mp4", [], ["-vf", "loop=loop=50:size=1:start=60,setpts=N/10/TB", *X264])
    spans, rejects = outcome(frozen)
    assert rejects == [("frozen", "[5.900, 11.000) s does not change")]
    assert spans == [(0, 5.9), (11, 15)]


def test_short_pauses_stay_in_their_shots(tmp_path: Path) -> None:
    path = film(tmp_path / "x.mp4", ("moving", 4), ("still", 2), ("black", 0.3), ("moving", 4))
    assert reasons_of(path) == []


def test_one_hand_that_moves_is_enough(tmp_path: Path) -> None:
    path = film(tmp_path / "x.mp4", ("hand", 8), ("hand", 9))
    assert outcome(path) == ([(0, 8), (8, 17)], [])


def test_titles_and_end_cards_that_stand_still_are_left_out(tmp_path: Path) -> None:
    parts = (("black", 0.5), ("still", 1.5), ("moving", 5), ("still", 1.5), ("moving", 5), ("still", 1), ("black", 0.7))
    spans, rejects = outcome(film(tmp_path / "x.mp4", *parts))
    assert [reason for reason, _ in rejects] == ["black", "frozen", "frozen", "black"]
    assert (spans[0][0], spans[-1][1]) == (2, 13.5)  # the still picture in the middle stays in its shot
    off = replace(SHOTS, cleaning=Cleaning(title_s=0))
    assert reasons_of(tmp_path / "x.mp4", off) == ["black", "black"]


def test_a_slideshow_is_rejected_as_a_whole(tmp_path: Path) -> None:
    slides = film(tmp_path / "slides.mp4", *[("still", 4.0)] * 4, ("moving", 2))
    assert outcome(slides) == ([], [("slideshow", "4 still pictures fill 16.0 of 18.0 s")])
    assert reasons_of(slides, replace(SHOTS, cleaning=Cleaning(slideshow=1))) == ["frozen"] * 4
    some = film(tmp_path / "some.mp4", ("still", 4), ("moving", 5), ("still", 4), ("moving", 5))
    assert reasons_of(some) == ["frozen", "frozen"]


@pytest.mark.parametrize(
    "output",
    [[*X264, "-crf", "33", "-g", "10"], ["-c:v", "mpeg4", "-q:v", "16", "-g", "12"]],
    ids=["h264", "mpeg4"],
)
def test_a_still_is_seen_through_coarse_encoding(output: list[str], tmp_path: Path) -> None:
    path = film(tmp_path / "x.mp4", ("moving", 5), ("still", 6), ("moving", 5), output=output)
    assert reasons_of(path) == ["frozen"]


def test_a_video_of_one_fault_is_rejected_for_it(tmp_path: Path) -> None:
    for kind, reason in (("black", "black"), ("still", "frozen")):
        path = film(tmp_path / f"{kind}.mp4", (kind, 6))
        _, rejects = outcome(path)
        assert [why for why, _ in rejects] == [reason, reason]
        assert rejects[-1] == (reason, "none of 1 spans became a clip")


def test_what_is_too_short_between_two_stills_says_so(tmp_path: Path) -> None:
    path = film(tmp_path / "x.mp4", ("moving", 6), ("still", 4), ("moving", 1), ("still", 4), ("moving", 6))
    spans, rejects = outcome(path)
    assert spans == [(0, 6), (15, 21)]
    assert [reason for reason, _ in rejects] == ["frozen", "too_short", "frozen"]


stretches = st.lists(
    st.tuples(st.integers(0, 40), st.integers(1, 60), st.sampled_from([Reason.BLACK, Reason.FROZEN])), max_size=12
)


@given(
    pieces=stretches,
    tail=st.integers(0, 40),
    still=st.integers(0, 40),
    title=st.integers(0, 20),
    black=st.integers(0, 20),
)
def test_what_is_left_out_is_long_enough_or_at_an_end(
    pieces: list[tuple[int, int, Reason]], tail: int, still: int, title: int, black: int
) -> None:
    stills, at = [], 0.0
    for gap, length, reason in pieces:
        stills.append((at + gap / 10, at + (gap + length) / 10, reason))
        at += (gap + length) / 10
    config = Cleaning(still_s=still / 10, title_s=title / 10, black_s=black / 10)
    chosen = empty_spans(stills, 0.0, at + tail / 10, config)
    assert chosen == [item for item in stills if item in chosen]
    limits = {Reason.BLACK: config.black_s, Reason.FROZEN: config.still_s}
    for item in stills:
        length_s, limit = item[1] - item[0], limits[item[2]]
        if limit and length_s >= limit:
            assert item in chosen
        elif item in chosen:
            assert title and length_s >= config.title_s


def test_no_real_shot_and_no_kitchen_stands_still(data: Path, tmp_path: Path) -> None:
    """The negative control, all real videos and a kitchen; and the one slideshow among them."""
    demo.make_videos(tmp_path / "demo", demo.DemoConfig(num_videos=1))
    found = {}
    for path in [*sorted((data / "videos").glob("*.m[pk][4v]")), *sorted((tmp_path / "demo").glob("*.mp4"))]:
        shutil.copyfile(path, tmp_path / path.name)
        _, rejects = cut(probed(tmp_path / path.name), tmp_path, SHOTS)
        found |= {path.stem: [reject.reason for reject in rejects]} if rejects else {}
    assert found == {"laion400m_talk": [Reason.SLIDESHOW]}


def test_the_network_cuts_at_dissolves_too(tmp_path: Path) -> None:
    film(tmp_path / "a.mp4", ("moving", 5))
    film(tmp_path / "b.mp4", ("black", 0.1), ("moving", 5))
    fade = ["-i", str(tmp_path / "b.mp4"), "-filter_complex", "[0][1]xfade=transition=fade:duration=1:offset=4", *X264]
    path = convert(tmp_path / "a.mp4", tmp_path / "x.mp4", [], fade)
    assert len(outcome(path)[0]) == 1
    network = replace(SHOTS, detection=ShotDetection(kind="transnetv2"))
    spans, _ = outcome(path, network)
    assert len(spans) == 2 and spans[0][1] == pytest.approx(4.5, abs=0.5)
    assert STAGE.model(network) == f"{STAGE.model(SHOTS)}+transnetv2@1.0.5-a313d0b3bebf"
    assert STAGE.model(replace(network, policy="segments")) == STAGE.model(SHOTS)


def test_impossible_cleaning_is_refused() -> None:
    for wrong in ({"still_s": -1.0}, {"slideshow": 0.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Cleaning(**wrong)


# Sound


def beeps(path: Path, marks_s: Sequence[float], seconds: float, *, hz: int = 44100, until_s: float = math.inf) -> Path:
    """A WAV file with a 40 ms beep at each mark."""
    times = np.arange(int(min(seconds, until_s) * hz)) / hz
    signal = np.zeros(len(times))
    for mark in marks_s:
        inside = (times >= mark) & (times < mark + 0.04)
        signal[inside] = np.sin(2 * np.pi * 1000 * times[inside]) * 0.8
    with wave.open(str(path), "wb") as stream:
        stream.setnchannels(1)
        stream.setsampwidth(2)
        stream.setframerate(hz)
        stream.writeframes((signal * 32767).astype("<i2").tobytes())
    return path


def onsets(mono: np.ndarray) -> list[float]:
    """Where beeps begin in 48 kHz sound, in seconds."""
    loud = np.flatnonzero(np.abs(mono) > 0.25)
    return [int(at) / 48000 for n, at in enumerate(loud) if n == 0 or at - loud[n - 1] > 4800]


def heard_s(path: Path) -> tuple[list[float], float]:
    """Where beeps begin, for a reader that knows of no edit list and no priming, and how long the sound is."""
    with av.open(str(path)) as container:
        mono = np.concatenate([frame.to_ndarray() for frame in container.decode(audio=0)], axis=1)[0]
    return onsets(mono), len(mono) / 48000


def source_beeps_s(path: Path) -> list[float]:
    """Where beeps begin in a source, in seconds from the container's start."""
    mono = np.zeros(48000 * 12, np.float32)
    with av.open(str(path)) as container:
        start = container.start_time / av.time_base
        resampler = av.AudioResampler(format="flt", layout="mono", rate=48000)
        for frame in container.decode(audio=0):
            at = round((float(frame.pts * frame.time_base) - start) * 48000)
            for part in resampler.resample(frame):
                samples = part.to_ndarray()[0]
                skip = max(0, -at)
                mono[at + skip : at + len(samples)] = samples[skip:]
                at += len(samples)
    return onsets(mono)


CONTAINERS = {
    "aac_mp4": (".mp4", ["-c:a", "aac"]),
    "mp3_mp4": (".mp4", ["-c:a", "libmp3lame"]),
    "opus_mkv": (".mkv", ["-c:a", "libopus"]),
    "mp2_ts": (".ts", ["-c:a", "mp2"]),
    "aac_22k": (".mp4", ["-c:a", "aac", "-ar", "22050"]),
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_sound_and_picture_stay_within_25_ms(name: str, tmp_path: Path) -> None:
    suffix, options = CONTAINERS[name]
    marks = [0.5 + n for n in range(10)]
    audio = beeps(tmp_path / "beeps.wav", marks, 10)
    path = encode(tmp_path / f"x{suffix}", [*LONG_GOP, *options], audio=audio)
    beeps_s = source_beeps_s(path)
    assert beeps_s == pytest.approx(marks, abs=0.03)
    spans = ((0.2, 2.2), (1.37, 4.0), (7.1, 9.0), (8.02, 9.9))
    clips, rejects = cut(probed(path, *spans), tmp_path)
    assert not rejects and len(clips) == 4
    for clip in clips:
        end_s = clip.first_pts_s + clip.num_frames / clip.fps
        due = [beep - clip.first_pts_s for beep in beeps_s if clip.first_pts_s <= beep < end_s]
        heard, length_s = heard_s(places(tmp_path).medium(clip.sha256, ".mp4"))
        assert len(heard) == len(due) >= 1
        assert max(abs(a - b) for a, b in zip(heard, due, strict=True)) < 0.025
        assert length_s == pytest.approx(clip.num_frames / clip.fps, abs=0.05)
        assert clip.has_audio


def test_sound_that_begins_late_pauses_and_ends_early_stays_in_place(tmp_path: Path) -> None:
    marks = [0.5 + n for n in range(10)]
    audio = beeps(tmp_path / "beeps.wav", marks, 10)
    path = encode(tmp_path / "x.mkv", [*LONG_GOP, "-c:a", "aac"], audio=audio)
    # Drops the sound's packets before 1.2 s, in 3.2-5.2 s and after 8.2 s; the other timestamps stay.
    drop = "noise=drop='lt(pts,1200)+between(pts,3200,5200)+gt(pts,8200)'"
    path = convert(path, tmp_path / "holes.mkv", ["-copyts"], ["-c", "copy", "-bsf:a", drop])
    clips, rejects = cut(probed(path, (0.0, 2.0), (2.0, 6.9), (3.5, 4.9), (8.9, 10.0)), tmp_path)
    assert not rejects
    heard = {clip.clip_index: heard_s(places(tmp_path).medium(clip.sha256, ".mp4")) for clip in clips}
    assert heard[0][0] == pytest.approx([1.5], abs=0.025)
    assert heard[1][0] == pytest.approx([0.5, 3.5, 4.5], abs=0.025)
    assert heard[2][0] == [] and heard[3][0] == []
    for clip in clips:
        assert clip.has_audio and heard[clip.clip_index][1] == pytest.approx(clip.num_frames / clip.fps, abs=0.05)


def test_sound_is_left_out_where_it_is_not_wanted(tmp_path: Path) -> None:
    path = encode(tmp_path / "x.mp4", LONG_GOP, audio=beeps(tmp_path / "b.wav", [1], 10))
    video = probed(path, (0.0, 1.0))
    assert cut(video, tmp_path)[0][0].has_audio
    assert not cut(video, tmp_path, replace(SMALL, keep_audio=False))[0][0].has_audio


# Colour


@pytest.mark.parametrize("pixels", ["yuv420p", "yuvj420p", "yuv422p10le"])
def test_colours_survive(pixels: str, tmp_path: Path) -> None:
    path = tmp_path / "colours.mp4"
    made = "color=c=0xC83C28:s=320x240:r=30:d=2,scale=out_color_matrix=bt601"
    source = ["-f", "lavfi", "-i", made, "-pix_fmt", pixels, "-c:v", "libx264", "-colorspace", "smpte170m"]
    subprocess.run([ffmpeg_exe(), "-v", "error", "-y", *source, str(path)], check=True)
    [clip] = cut(probed(path, (0.5, 1.5)), tmp_path)[0]
    with av.open(str(places(tmp_path).medium(clip.sha256, ".mp4"))) as container:
        frame = next(container.decode(video=0))
        assert (frame.format.name, int(frame.colorspace), int(frame.color_range)) == (
            "yuv420p",
            1,
            1,
        )  # BT.709, limited
        shown = frame.to_ndarray(format="rgb24")[96, 96]
    with Image.open(places(tmp_path).medium(clip.keyframe_sha256, ".jpg")) as image:
        still = np.asarray(image.convert("RGB"))[96, 96]
    for colour in (shown, still):
        assert np.abs(colour.astype(int) - [0xC8, 0x3C, 0x28]).max() <= 6


# The plan, and the checks that guard it


@given(
    steps=st.lists(st.integers(1, 4000), min_size=1, max_size=60),
    rate=st.sampled_from([Fraction(30), Fraction(30000, 1001), Fraction(25, 2), Fraction(8)]),
    base=st.sampled_from([1000, 12288, 90000]),
    start=st.integers(0, 3_000_000),
    length=st.integers(1, 3_000_000),
    offset=st.integers(-50_000, 50_000),
)
def test_the_plan_follows_the_rule(
    steps: list[int], rate: Fraction, base: int, start: int, length: int, offset: int
) -> None:
    pts = tuple(itertools.accumulate(steps, initial=offset))
    tick = Fraction(1, base)
    footage = Footage(Path("x"), 0, None, 8, 8, tick, offset * tick, pts, pts, pts[-1] + 100, True)
    plan = plan_cut(footage, 3, start, start + length, rate)
    times = {p: (p - offset) * tick * 1_000_000 for p in pts}
    inside = [p for p in pts if start <= round(times[p]) < start + length]
    if not inside:
        assert plan is None
        return
    assert plan is not None and plan.clip_index == 3 and plan.shown[0] == inside[0]
    for n, shown in enumerate(plan.shown):
        due = times[inside[0]] + n / rate * 1_000_000
        assert shown == max(p for p in inside if times[p] <= due)
        assert due < plan.end
    assert times[inside[0]] + len(plan.shown) / rate * 1_000_000 >= plan.end - 1
    middle = Fraction(plan.shown[0] + plan.shown[-1], 2)
    assert (abs(plan.keyframe - middle), plan.keyframe) == min((abs(p - middle), p) for p in pts)


def test_the_check_sees_what_is_wrong(plain: Path, tmp_path: Path) -> None:
    [clip] = cut(probed(plain, (0.0, 1.0)), plain.parent)[0]
    path = places(plain.parent).medium(clip.sha256, ".mp4")
    right: dict[str, Any] = {"size_px": 192, "num_frames": 30, "rate": Fraction(30), "has_audio": False}
    assert check_clip(path, **right) is None
    for wrong in ({"size_px": 194}, {"num_frames": 29}, {"rate": Fraction(25)}, {"has_audio": True}):
        assert check_clip(path, **{**right, **wrong})
    edited = convert(path, tmp_path / "edited.mp4", ["-ss", "0.3"], ["-c", "copy"])
    assert check_clip(edited, **right) == "the clip has an edit list"
    (tmp_path / "empty.mp4").write_bytes(path.read_bytes()[:262])
    assert check_clip(tmp_path / "empty.mp4", **right)
    (tmp_path / "nothing.mp4").write_bytes(b"")
    assert "cannot be read" in str(check_clip(tmp_path / "nothing.mp4", **right))


def test_a_wrong_plan_does_not_pass(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control: what is written is compared with the plan, so a plan that asks for other frames fails."""

    def shifted(*args: Any) -> Cut | None:
        right = plan_cut(*args)
        return right and replace(right, shown=(*right.shown[:5], right.shown[7], *right.shown[6:]))

    monkeypatch.setattr("pipelines.stages.clips.plan_cut", shifted)
    clips, rejects = cut(probed(plain, (1.0, 2.0)), plain.parent)
    assert not clips and rejects[0].reason is Reason.ENCODE_ERROR
    assert "frame 5 shows" in rejects[0].detail


def test_impossible_settings_are_refused() -> None:
    for wrong in ({"max_s": 3.0}, {"min_s": 0.0}, {"size_px": 447}, {"fps": 0.0}, {"crf": 60}, {"audio_kbps": 1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            ClipsConfig(**wrong)


def test_the_stage_depends_on_the_build_and_not_on_its_machinery() -> None:
    assert str(STAGE.model(STAGE.config)).startswith("ffmpeg-")
    assert config_digest(ClipsConfig()) == config_digest(ClipsConfig(timeout_s=1.0))
    assert config_digest(ClipsConfig()) != config_digest(ClipsConfig(crf=21))


# Real videos


def real(path: Path, folder: Path) -> Video | Reject:
    """A real video, linked into a folder that may be written."""
    (folder / path.name).symlink_to(path)
    source = SourceVideo(
        narrative="test-real",
        source="test",
        video_id=path.stem,
        path=path.name,
        num_bytes=path.stat().st_size,
        mtime_ns=0,
    )
    [row] = probe_video(source, config=VideosConfig(), tool=places(folder))
    assert isinstance(row, (Video, Reject))
    return row


def test_the_shots_of_a_real_video_are_found(data: Path, tmp_path: Path) -> None:
    path = data / "videos" / "va_pepperoni_pizza_narrated.mp4"
    truth = json.loads(path.with_suffix(".gt.json").read_text())["shots"]
    video = real(path, tmp_path)
    assert isinstance(video, Video)
    clips, rejects = cut(video, tmp_path, ClipsConfig(size_px=64))
    assert not rejects and [clip.clip_index for clip in clips] == list(range(len(truth)))
    for clip, (start_s, end_s) in zip(clips, truth, strict=True):
        assert clip.start_s == pytest.approx(start_s, abs=0.25)
        assert clip.end_s == pytest.approx(end_s, abs=0.25)
        assert clip.has_audio


def test_every_odd_file_becomes_clips_or_a_reject(data: Path, tmp_path: Path) -> None:
    outcomes = {}
    for path in sorted((data / "odd").iterdir()):
        video = real(path, tmp_path)
        if isinstance(video, Reject):
            outcomes[path.name] = video.reason
            continue
        clips, rejects = cut(video, tmp_path, ClipsConfig(size_px=64))
        last = [reject.reason for reject in rejects if reject.is_video_level]
        assert bool(clips) != bool(last) and len(last) <= 1
        outcomes[path.name] = last[0] if last else "clips"
    assert len(outcomes) > 20
    assert outcomes["pancake_bitrot.mp4"] == Reason.DECODE_ERROR
    for name in ("mpegts.ts", "start_offset.mkv", "vfr.mp4", "hevc10.mp4", "av1.webm", "rot90_meta.mp4", "vp9.webm"):
        assert outcomes[f"pancake_{name}"] == "clips"
