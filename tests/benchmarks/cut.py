"""`make bench-cut`: whether every frame of every clip is the one that is due, and what cutting costs. JSON lines.

Exactness: numbered frames (16 squares in the picture are the number's bits) in sources of many kinds. What a clip must
show is worked out here from the times that the frames were given, by the dataset format's rule, and read from the
clip's pixels. Sound: a flash and a click.
Speed: CPU-seconds, children counted, of the stage `clips` on annotated segments and of its peers, by turns, at the
same encoder, preset, CRF, size and without sound; ratios are [median, least, greatest] over the rounds. The floor is
one decode of the video and one encode of the kept frames, already scaled, each alone.
Shots: the same with the shots found first, against one pass that decodes once and keeps the small frames.
Memory: the peak of the process tree of `probe` and `cut` on three hours and on a minute, and of a dry run with an
annotation file of 50 MB and of one video.
Real videos are measured where COOKGEN_TEST_DATA names the folder that holds them.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import wave
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import psutil
import tyro

from cookgen.perception.shots import ShotDetection, detect_cuts
from cookgen.records import Clip, Segment, SourceVideo, Video
from pipelines.cutting import DETECTION_PX, check_clip
from pipelines.ffmpeg import ffmpeg_build, ffmpeg_exe
from pipelines.stage import Places
from pipelines.stages.clips import ClipsConfig, cut_clips
from pipelines.stages.videos import VideosConfig, probe_video

ROOT = Path(__file__).resolve().parents[2]
BITS = 16
X264 = ("-c:v", "libx264", "-preset", "veryfast", "-pix_fmt", "yuv420p", "-threads", "2")
TICK = Fraction(1, 1_000_000)  # records know times to the microsecond
Span = tuple[float, float]


def say(**values: Any) -> None:
    print(json.dumps(values), flush=True)


# Sources of numbered frames


def draw_number(luma_HW: np.ndarray, number: int) -> None:
    """Writes the number's bits as a row of dark and light squares across the middle square, which cropping keeps."""
    height, width = luma_HW.shape
    side = height // (BITS + 4)
    top, left = (height - side) // 2, (width - BITS * side) // 2
    bits = (number >> np.arange(BITS)) & 1
    luma_HW[top : top + side, left : left + BITS * side] = np.repeat(bits * 150 + 50, side)


def read_numbers(path: Path) -> list[tuple[Fraction, int]]:
    """(time in the file's own timestamps, number) of every frame, by a plain decode."""
    found = []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            luma_HW = frame.to_ndarray(format="gray")
            height, width = luma_HW.shape
            # The square's side in a picture of any scale; its middle third is far from any smeared edge.
            step = height / 240 * 12
            x = (width / 2 + (np.arange(BITS) - BITS / 2 + 0.5) * step).astype(int)
            reach, y = max(1, int(step / 6)), height // 2
            patches = [luma_HW[y - reach : y + reach + 1, at - reach : at + reach + 1].mean() for at in x]
            assert min(abs(level - 125) for level in patches) > 25, f"{path}: a frame carries no number"
            found.append((frame.pts * frame.time_base, sum(int(level > 125) << n for n, level in enumerate(patches))))
    return found


def scenery(width: int, height: int, num_frames: int, *, seed: int = 0) -> Iterator[bytes]:
    """yuv420p frames that cost about what filmed ones do: textures that drift, a new one every 4 to 9 s, and grain."""
    random = np.random.default_rng(seed)
    room = 256
    small = random.random((4, (height + room) // 16 + 2, (width + room) // 16 + 2), dtype=np.float32)
    textures = []
    for number, coarse in enumerate(small):
        smooth = coarse.repeat(16, axis=0).repeat(16, axis=1)[: height + room, : width + room]
        fine = random.normal(0, 6, smooth.shape).astype(np.float32)
        textures.append(np.clip(40 + 45 * number + 90 * smooth + fine, 0, 255).astype(np.uint8))
    grain = random.integers(-2, 3, (height + 64, width + 64), dtype=np.int8)
    ends = np.cumsum(random.integers(120, 270, 1 + num_frames // 120))
    for number in range(num_frames):
        scene = int(np.searchsorted(ends, number, side="right"))
        x, y = (int(room / 2 * (1 + math.sin(number / slow + scene))) for slow in (97, 61))
        luma = textures[scene % 4][y : y + height, x : x + width].copy()
        gx, gy = random.integers(0, 64, 2)
        luma = (luma.astype(np.int16) + grain[gy : gy + height, gx : gx + width]).clip(0, 255).astype(np.uint8)
        draw_number(luma, number)
        chroma = textures[(scene + 1) % 4][y : y + height : 2, x : x + width : 2] // 4 + 96
        yield luma.tobytes() + chroma.tobytes() + (255 - chroma).tobytes()


def plain(width: int, height: int, num_frames: int) -> Iterator[bytes]:
    """yuv420p frames that hold the number alone."""
    luma = np.full((height, width), 120, np.uint8)
    for number in range(num_frames):
        draw_number(luma, number)
        yield luma.tobytes() + bytes([128]) * (width * height // 2)


def encode(
    path: Path, frames: Iterator[bytes], size: tuple[int, int], rate: str, output: Sequence[str], *more_inputs: str
) -> Path:
    width, height = size
    command = [ffmpeg_exe(), "-v", "error", "-y", "-f", "rawvideo", "-pix_fmt", "yuv420p", "-s", f"{width}x{height}"]
    command += ["-r", rate, "-i", "pipe:0", *more_inputs, *output, f"file:{path}"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as child:
        assert child.stdin is not None
        for frame in frames:
            child.stdin.write(frame)
        child.stdin.close()
        assert child.wait() == 0, path
    return path


def copied(path: Path, *before: str) -> Path:
    """The same packets once more, with these options of reading."""
    to = path.with_name(f"{path.stem}-copy{path.suffix}")
    ffmpeg(*before, "-i", str(path), "-c", "copy", str(to))
    return to


def ffmpeg(*args: str) -> None:
    subprocess.run([ffmpeg_exe(), "-v", "error", "-nostdin", "-y", *args], check=True, timeout=3600)


# What is due, and what is there


def places(folder: Path) -> Places:
    return Places(videos=folder, media=folder / "media", scratch=folder / "scratch")


def probed(path: Path, spans: Sequence[Span]) -> Video:
    source = SourceVideo(
        narrative="bench-cut",
        source="bench",
        video_id=path.stem,
        path=path.name,
        num_bytes=0,
        mtime_ns=0,
        segments=tuple(Segment(start_s=start, end_s=end, text="") for start, end in spans),
    )
    [video] = probe_video(source, config=VideosConfig(max_duration_s=1e6), tool=places(path.parent))
    assert isinstance(video, Video), video
    return video


def cut(path: Path, spans: Sequence[Span], config: ClipsConfig) -> tuple[Video, list[Clip]]:
    video = probed(path, spans)
    rows = list(cut_clips(video, config=config, tool=places(path.parent)))
    clips = [row for row in rows if isinstance(row, Clip)]
    assert config.policy == "shots" or len(clips) == len(spans), [row for row in rows if row not in clips]
    return video, clips


def due(
    frames: Sequence[tuple[Fraction, int]], span: Span, end: Fraction, rate: Fraction
) -> list[tuple[Fraction, int]]:
    """The (time, number) that each frame of a clip of [start, end) must show. Source: FORMAT, "Clips".

    frames: those of the source, times from the container's start. end: that of the video.
    """
    start, stop = Fraction(span[0]) - TICK / 2, min(Fraction(span[1]), end) - TICK / 2
    inside = [frame for frame in frames if start <= frame[0] < stop]
    times = itertools.takewhile(lambda time: time < stop, (inside[0][0] + n / rate for n in itertools.count()))
    return [max(frame for frame in inside if frame[0] <= time + TICK / 2) for time in times]


def unaligned(seconds: float, num: int, *, seed: int, shortest: float = 0.3, longest: float = 3.0) -> list[Span]:
    """Spans at no frame's and no keyframe's time, some of which overlap, in rising order."""
    random = np.random.default_rng(seed)
    lengths = random.uniform(shortest, longest, num)
    starts = np.sort(random.uniform(0, seconds - longest, num))
    return [(round(float(s), 3), round(float(s + length), 3)) for s, length in zip(starts, lengths, strict=True)]


@dataclass(frozen=True)
class Kind:
    """A kind of source: how its frames are timed and encoded."""

    name: str
    suffix: str
    output: tuple[str, ...]
    rate: str = "30"
    irregular: bool = False
    copy: tuple[str, ...] | None = None


def gop(seconds: float, *x264: str, bf: int = 0) -> tuple[str, ...]:
    options = ":".join(("scenecut=0", *x264))
    return (*X264, "-g", str(round(30 * seconds)), "-bf", str(bf), "-x264-params", options)


B_FRAMES = gop(5, "b-adapt=0", "b-pyramid=normal", bf=3)
# Frame n about n/30 s, up to 0.4 of a frame off, and one in five left out, with its time.
IRREGULAR = (
    *("-vf", r"settb=1/90000,setpts=3000*N+1200*sin(7.1*N),select=mod(n*n+3*n\,5)"),
    *("-fps_mode", "passthrough", "-enc_time_base", "1/90000"),
)
KINDS = (
    *(Kind(f"GOP {seconds} s", ".mp4", gop(seconds)) for seconds in (1, 5, 10)),
    Kind("B-frames", ".mp4", B_FRAMES),
    Kind("B-frames, Matroska", ".mkv", B_FRAMES),
    Kind("29.97", ".mp4", B_FRAMES, rate="30000/1001"),
    Kind("29.97, Matroska", ".mkv", B_FRAMES, rate="30000/1001"),
    Kind("variable rate", ".mp4", (*B_FRAMES, *IRREGULAR), irregular=True),
    Kind("variable rate, Matroska", ".mkv", (*B_FRAMES, *IRREGULAR), irregular=True),
    Kind("offset start", ".mkv", (*B_FRAMES, "-output_ts_offset", "4.5")),
    Kind("MPEG-TS", ".ts", B_FRAMES),
    Kind("open GOP", ".mp4", gop(2, "open-gop=1", bf=3)),
    Kind("open GOP, MPEG-TS", ".ts", gop(2, "open-gop=1", bf=3)),
    Kind("edit list", ".mp4", B_FRAMES, copy=("-ss", "1.7")),
    Kind("edit list, GOP 10 s", ".mp4", gop(10, bf=2), copy=("-ss", "13.3")),
    Kind("fragmented", ".mp4", (*B_FRAMES, "-movflags", "+frag_keyframe+empty_moov")),
)


def exactness(folder: Path, kinds: Sequence[Kind], *, num_spans: int, seconds: int) -> Iterator[dict[str, Any]]:
    """Every clip of every kind of source, at the source's rate and at another; the last row sums up."""
    totals = [0, 0]
    for seed, kind in enumerate(kinds):
        path = folder / f"{seed}{kind.suffix}"
        encode(path, plain(320, 240, seconds * 30), (320, 240), kind.rate, kind.output)
        if kind.copy:
            path = copied(path, *kind.copy)
        frames = known_frames(path, kind)
        spans = unaligned(float(frames[-1][0]), num_spans, seed=seed)
        spans[-1] = (spans[-1][0], seconds + 10.0)  # past the end: it ends with the video
        for fps in (None, 12.5):
            video, clips = cut(path, spans, ClipsConfig(policy="segments", fps=fps))
            differences: list[str] = []
            num_frames = 0
            for clip in clips:
                wanted = due(frames, spans[clip.clip_index], Fraction(video.duration_s), rate_of(clip))
                num_frames += len(wanted)
                differences += compare(clip, wanted, places(folder))
            is_exact = sum(
                not any(line.startswith(f"clip {clip.clip_index}:") for line in differences) for clip in clips
            )
            totals[0] += is_exact
            totals[1] += len(clips)
            yield {
                "bench": "exactness",
                "source": kind.name,
                "fps": "its own" if fps is None else fps,
                "clips": len(clips),
                "frames": num_frames,
                "exact_percent": round(100 * is_exact / len(clips), 2),
                **({"differences": differences[:10]} if differences else {}),
            }
    yield {
        "bench": "exactness",
        "source": "all",
        "clips": totals[1],
        "exact_percent": round(100 * totals[0] / totals[1], 2),
    }


def known_frames(path: Path, kind: Kind) -> list[tuple[Fraction, int]]:
    """(time from the container's start, number) of each frame: the times that it was given, on the container's grid.

    The plain decode says where the grid lies and which frames an edit list hides; that it agrees with the times as
    given, to a millisecond, says that the source is what it should be.
    """
    with av.open(str(path)) as container:
        start = Fraction(container.start_time, av.time_base)
    found = sorted((at - start, number) for at, number in read_numbers(path))
    frame_s = 1 / Fraction(kind.rate)
    jitter = 1200 / 90000 if kind.irregular else 0.0
    (first_at, first), *_ = found
    for at, number in found:
        given = float((number - first) * frame_s) + jitter * (math.sin(7.1 * number) - math.sin(7.1 * first))
        assert abs(float(at - first_at) - given) < 0.0011, (kind.name, number, float(at), given)
    return found


def rate_of(clip: Clip) -> Fraction:
    return Fraction(clip.fps).limit_denominator(1001)


def compare(clip: Clip, wanted: Sequence[tuple[Fraction, int]], where: Places) -> list[str]:
    """What differs between a clip, as its pixels and its record say, and what is due."""
    shown = [number for _, number in read_numbers(where.medium(clip.sha256, ".mp4"))]
    lines = []
    if shown != [number for _, number in wanted]:
        pairs = itertools.zip_longest(shown, (number for _, number in wanted))
        first = next((n, pair) for n, pair in enumerate(pairs) if pair[0] != pair[1])
        lines.append(
            f"{len(shown)} frames for {len(wanted)}; frame {first[0]} shows {first[1][0]}, {first[1][1]} is due"
        )
    recorded = (clip.first_pts_s, clip.last_pts_s, clip.num_frames)
    right = (float(wanted[0][0]), float(wanted[-1][0]), len(wanted))
    if any(abs(is_ - should) > 2e-6 for is_, should in zip(recorded, right, strict=True)):
        lines.append(f"recorded {recorded}, {right} is right")
    return [f"clip {clip.clip_index}: {line}" for line in lines]


# Sound


def sound(folder: Path) -> Iterator[dict[str, Any]]:
    """A white frame and a beep at the same time, once a second: how far apart they are in the clips."""
    marks = [0.5 + n for n in range(12)]
    click(folder / "click.wav", marks, 12)
    for suffix, codec in ((".mp4", "aac"), (".mkv", "libopus"), (".ts", "mp2"), (".mp4", "libmp3lame")):
        path = folder / f"flash-{codec}{suffix}"
        flashes = (flash(320, 240, is_on=(number - 15) % 30 == 0) for number in range(360))
        more = ("-i", str(folder / "click.wav"), "-map", "0:v", "-map", "1:a", "-c:a", codec)
        encode(path, flashes, (320, 240), "30", (*B_FRAMES,), *more)
        spans = unaligned(12, 6, seed=len(codec), shortest=1.3)
        source = offsets(path)
        _, clips = cut(path, spans, ClipsConfig(policy="segments"))
        apart = [offset for clip in clips for offset in offsets(places(folder).medium(clip.sha256, ".mp4"))]
        yield {
            "bench": "flash and click",
            "source": f"{codec} in {suffix[1:]}",
            "clips": len(clips),
            "pairs": len(apart),
            "source_ms": round(1000 * statistics.median(source), 1),
            "largest_ms": round(1000 * max(map(abs, apart)), 1),
            "bar": 25,
        }


def flash(width: int, height: int, *, is_on: bool) -> bytes:
    return bytes([235 if is_on else 16]) * (width * height) + bytes([128]) * (width * height // 2)


def click(path: Path, marks_s: Sequence[float], seconds: int, hz: int = 44100) -> None:
    times = np.arange(seconds * hz) / hz
    signal = sum(np.sin(2 * np.pi * 1000 * times) * ((times >= mark) & (times < mark + 0.03)) for mark in marks_s)
    with wave.open(str(path), "wb") as stream:
        stream.setnchannels(1)
        stream.setsampwidth(2)
        stream.setframerate(hz)
        stream.writeframes((signal * 26000).astype("<i2").tobytes())


def offsets(path: Path) -> list[float]:
    """Seconds from each flash to its click, for a reader that counts samples from the first one's pts."""
    with av.open(str(path)) as container:
        flashes = [
            float(f.pts * f.time_base) for f in container.decode(video=0) if f.to_ndarray(format="gray").mean() > 125
        ]
    with av.open(str(path)) as container:
        frames = list(container.decode(audio=0))
        hz = frames[0].sample_rate
        begin = float(frames[0].pts * frames[0].time_base)
        resampler = av.AudioResampler(format="flt", layout="mono", rate=hz)
        parts = [part.to_ndarray()[0] for frame in frames for part in resampler.resample(frame)]
    loud = np.flatnonzero(np.abs(np.concatenate(parts)) > 0.25)
    clicks = [begin + int(at) / hz for n, at in enumerate(loud) if n == 0 or at - loud[n - 1] > hz / 10]
    near = [(min(clicks, key=lambda at: abs(at - flash_s), default=math.inf) - flash_s) for flash_s in flashes]
    return [offset for offset in near if abs(offset) < 0.4]  # a click whose flash is not in the clip has no pair


# Speed


def cpu_s(work: Callable[[], Any]) -> float:
    """CPU-seconds of this process and of the children that ended meanwhile."""

    def now() -> float:
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(one.ru_utime + one.ru_stime for one in used)

    began = now()
    work()
    return now() - began


@dataclass(frozen=True)
class Job:
    """A video and the spans to cut of it. is_numbered: its frames carry their numbers."""

    name: str
    path: Path
    spans: tuple[Span, ...]
    is_numbered: bool


SIDE = 448
SCALE = "scale='if(gt(iw,ih),-2,448)':'if(gt(iw,ih),448,-2)',crop=448:448"
ENCODE = (
    "-an",
    "-c:v",
    "libx264",
    "-preset",
    "veryfast",
    "-crf",
    "20",
    "-bf",
    "0",
    "-threads",
    "1",
    "-pix_fmt",
    "yuv420p",
)
READ = ("-threads", "1")  # as ours: more threads take more CPU-seconds
RAW = ("-f", "rawvideo", "-pix_fmt", "yuv420p", "-s", f"{SIDE}x{SIDE}")


def by_turns(ways: dict[str, Callable[[], Any]], rounds: int) -> dict[str, np.ndarray]:
    """CPU-seconds of every way in every round."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, work in ways.items():
            taken[name].append(cpu_s(work))
    return {name: np.array(seconds) for name, seconds in taken.items()}


def spread(ratios: np.ndarray) -> list[float]:
    """[median, least, greatest]"""
    return [round(float(value), 3) for value in (np.median(ratios), ratios.min(), ratios.max())]


def medians(taken: dict[str, np.ndarray]) -> dict[str, float]:
    return {name: round(float(np.median(seconds)), 2) for name, seconds in taken.items()}


def speed(job: Job, folder: Path, rounds: int) -> dict[str, Any]:
    """Annotated segments: ours, the floor, and the peers."""
    config = ClipsConfig(policy="segments", keep_audio=False)
    where = places(job.path.parent)
    video, clips = cut(job.path, job.spans, config)
    rate = rate_of(clips[0])
    encoding = (*ENCODE, "-g", str(round(2 * rate)))
    raw = keep_frames(job, folder / "kept.yuv")
    peers: dict[str, Callable[[], Any]] = {
        "b: one ffmpeg a clip": lambda: one_each(job, folder, encoding),
        "c: 16 clips an ffmpeg": lambda: sixteen_each(job, folder, encoding),
        "d: one decode, trim": lambda: one_decode(job, folder, encoding),
    }
    taken = by_turns(
        {
            "ours": lambda: list(cut_clips(video, config=config, tool=where)),
            "verification": lambda: verify(clips, where),
            "decode": lambda: decode_all(job.path),
            "encode": lambda: ffmpeg(*RAW, "-r", str(rate), "-i", str(raw), *encoding, str(folder / "a.mp4")),
            **peers,
        },
        rounds,
    )
    raw.unlink()
    floor = taken["decode"] + taken["encode"]
    files = {name: [folder / f"{name[0]}{number}.mp4" for number in range(len(job.spans))] for name in peers}
    files["ours"] = [where.medium(clip.sha256, ".mp4") for clip in clips]
    return {
        "bench": "speed",
        "source": job.name,
        "spans": len(job.spans),
        "kept_s": kept_s(clips),
        "video_s": round(video.duration_s, 1),
        "cpu_s": medians(taken),
        "ours_over_floor": spread(taken["ours"] / floor),
        "bar": 1.25,
        "without_verification_over_floor": spread((taken["ours"] - taken["verification"]) / floor),
        **{f"{name} / ours": spread(taken[name] / taken["ours"]) for name in peers},
        **(
            {"exact_clips": {name: num_exact(job, video, paths) for name, paths in files.items()}}
            if job.is_numbered
            else {}
        ),
    }


def num_exact(job: Job, video: Video, paths: Sequence[Path]) -> int:
    """How many of the clips show all frames that are due, and no other."""
    frames = [(at - Fraction(video.start_s), number) for at, number in read_numbers(job.path)]
    end, rate = Fraction(video.duration_s), Fraction(video.fps).limit_denominator(1001)
    wanted = [[number for _, number in due(frames, span, end, rate)] for span in job.spans]
    return sum(
        [number for _, number in read_numbers(path)] == numbers for path, numbers in zip(paths, wanted, strict=True)
    )


def kept_s(clips: Sequence[Clip]) -> float:
    return round(sum(clip.num_frames / clip.fps for clip in clips), 1)


def decode_all(path: Path) -> None:
    ffmpeg(*READ, "-i", str(path), "-map", "0:v:0", "-f", "null", "-")


def verify(clips: Sequence[Clip], where: Places) -> None:
    for clip in clips:
        path = where.medium(clip.sha256, ".mp4")
        wrong = check_clip(path, size_px=SIDE, num_frames=clip.num_frames, rate=rate_of(clip), has_audio=False)
        assert wrong is None, wrong


def keep_frames(job: Job, raw: Path) -> Path:
    """The kept frames as an encoder gets them, one span after the other."""
    with raw.open("wb") as to:
        for start, end in job.spans:
            command = [ffmpeg_exe(), "-v", "error", "-nostdin", "-ss", str(start), "-to", str(end), "-i", str(job.path)]
            subprocess.run([*command, "-map", "0:v:0", "-vf", SCALE, *RAW[:4], "pipe:1"], stdout=to, check=True)
    return raw


def one_each(job: Job, folder: Path, encoding: Sequence[str]) -> None:
    for number, (start, end) in enumerate(job.spans):
        seek = (*READ, "-ss", str(start), "-to", str(end), "-i", str(job.path))
        ffmpeg(*seek, "-map", "0:v:0", "-vf", SCALE, *encoding, str(folder / f"b{number}.mp4"))


def sixteen_each(job: Job, folder: Path, encoding: Sequence[str]) -> None:
    for at in range(0, len(job.spans), 16):
        inputs, outputs = [], []
        for number, (start, end) in enumerate(job.spans[at : at + 16]):
            inputs += [*READ, "-ss", str(start), "-to", str(end), "-i", str(job.path)]
            outputs += ["-map", f"{number}:v:0", "-vf", SCALE, *encoding, str(folder / f"c{at + number}.mp4")]
        ffmpeg(*inputs, *outputs)


def one_decode(job: Job, folder: Path, encoding: Sequence[str]) -> None:
    count = len(job.spans)
    chains = [f"[0:v:0]split={count}" + "".join(f"[s{n}]" for n in range(count))]
    outputs = []
    for number, (start, end) in enumerate(job.spans):
        chains.append(f"[s{number}]trim=start={start}:end={end},setpts=PTS-STARTPTS,{SCALE}[v{number}]")
        outputs += ["-map", f"[v{number}]", *encoding, str(folder / f"d{number}.mp4")]
    ffmpeg(*READ, "-i", str(job.path), "-filter_complex", ";".join(chains), *outputs)


# Shots: is a second decode worth saving?


def shots(job: Job, folder: Path, rounds: int) -> dict[str, Any]:
    """Shots found and cut. Ours decodes twice; "one pass" decodes once, keeps all frames small and raw, and encodes the
    clips from those, in the rate of the source: a prototype, for its price alone."""
    config = ClipsConfig(keep_audio=False)
    where = places(job.path.parent)
    video, clips = cut(job.path, (), config)
    rate = rate_of(clips[0])
    encoding = (*ENCODE, "-g", str(round(2 * rate)))
    raw = folder / "all.yuv"

    def first_pass() -> None:
        decode_once(video, job.path, raw)

    def encode_all() -> None:
        for clip in clips:
            at = round(clip.first_pts_s * rate) * SIDE * SIDE * 3 // 2
            frames = (*RAW, "-r", str(rate), "-skip_initial_bytes", str(at), "-i", str(raw))
            ffmpeg(*frames, "-frames:v", str(clip.num_frames), *encoding, str(folder / f"{clip.clip_index}.mp4"))

    taken = by_turns(
        {
            "ours": lambda: list(cut_clips(video, config=config, tool=where)),
            "verification": lambda: verify(clips, where),
            "decode": lambda: decode_all(job.path),
            "decode and detect": lambda: decode_once(video, job.path, None),
            "one pass: decode, detect, keep": first_pass,
            "one pass: encode": encode_all,
        },
        rounds,
    )
    num_bytes = raw.stat().st_size
    raw.unlink()
    one_floor = taken["decode and detect"] + taken["one pass: encode"]
    one_pass = taken["one pass: decode, detect, keep"] + taken["one pass: encode"] + taken["verification"]
    return {
        "bench": "shots",
        "source": job.name,
        "shots": len(clips),
        "kept_s": kept_s(clips),
        "cpu_s": medians(taken),
        "ours_over_floor_of_one_decode": spread(taken["ours"] / one_floor),
        "ours_over_floor_of_two": spread(taken["ours"] / (one_floor + taken["decode"])),
        "one pass / ours": spread(one_pass / taken["ours"]),
        "one_pass_disk_bytes_a_second": round(num_bytes / video.duration_s),
    }


def decode_once(video: Video, path: Path, raw: Path | None) -> None:
    """Finds shots as the stage does, and keeps the frames as clips show them where `raw` is given."""
    scale = DETECTION_PX / max(video.width, video.height)
    width, height = (max(2, 2 * round(length * scale / 2)) for length in (video.width, video.height))
    small = f"scale={width}:{height}:flags=fast_bilinear+bitexact"
    graph = f"[0:v:0]{small}[s]" if raw is None else f"[0:v:0]split=2[a][b];[a]{small}[s];[b]{SCALE}[v]"
    command = [ffmpeg_exe(), "-v", "error", "-nostdin", "-y", *READ, "-i", str(path), "-filter_complex", graph]
    command += ["-map", "[s]", "-fps_mode", "passthrough", "-pix_fmt", "bgr24", "-f", "rawvideo", "pipe:1"]
    if raw is not None:
        command += ["-map", "[v]", "-fps_mode", "passthrough", *RAW[:4], str(raw)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        blocks = iter(lambda: child.stdout.read(width * height * 3), b"")  # type: ignore[union-attr]
        detect_cuts((np.frombuffer(block, np.uint8).reshape(height, width, 3) for block in blocks), ShotDetection())
        assert child.wait() == 0


def jobs_in(folder: Path, named: str) -> Iterator[Job]:
    """The jobs on videos with `named` in their name, each source made when its turn comes."""
    output = (*X264, "-g", "150", "-bf", "2", "-crf", "23")
    for name, size, seconds, num in (("640x360", (640, 360), 180, 12), ("1920x1080", (1920, 1080), 60, 8)):
        if named not in name:
            continue
        path = encode(folder / f"{name}.mp4", scenery(*size, seconds * 30), size, "30", output)
        yield Job(f"{name}, {seconds} s", path, steps(seconds, num), is_numbered=True)
    data = os.environ.get("COOKGEN_TEST_DATA")
    if not data:
        say(bench="speed", skipped="real videos: COOKGEN_TEST_DATA is not set")
        return
    for name, num in (("va_pepperoni_pizza_narrated.mp4", 11), ("laion400m_talk.mp4", 15)):
        if named not in name:
            continue
        link = folder / name
        link.symlink_to(Path(data).resolve() / "videos" / name)
        yield Job(name, link, steps(probed(link, ()).duration_s, num), is_numbered=False)


def steps(seconds: float, num: int) -> tuple[Span, ...]:
    """Spans as steps of a recipe lie: one after the other, with pauses, at no keyframe's time."""
    random = np.random.default_rng(num)
    room = seconds / num
    starts, ends = random.uniform(0.03, 0.2, num), random.uniform(0.7, 0.95, num)
    return tuple((round(room * (n + starts[n]), 3), round(room * (n + ends[n]), 3)) for n in range(num))


# Memory


def memory(folder: Path) -> Iterator[dict[str, Any]]:
    """Peaks of the process tree: a minute, and the same minute 180 times, with three spans far apart."""
    sine = ("-f", "lavfi", "-t", "60", "-i", "sine=440:r=48000", "-map", "0:v", "-map", "1:a", "-c:a", "aac")
    minute = encode(folder / "minute.mp4", plain(320, 240, 1800), (320, 240), "30", gop(10, bf=2), *sine)
    hours = copied(minute, "-stream_loop", "179")
    peaks: dict[str, int] = {}
    for name, path in (("a minute", minute), ("three hours", hours)):
        end = probed(path, ()).duration_s
        spans = folder / "spans.json"
        edges = ((0.5, 6.5), (end / 2, end / 2 + 6), (end - 7.1, end - 1.1))
        spans.write_text(json.dumps([{"start_s": start, "end_s": stop} for start, stop in edges]))
        out = folder / f"cut of {name}"
        for command in (["probe", path], ["cut", path, spans, out]):
            peak_bytes, codes = peak_of([sys.executable, "-m", "pipelines", *map(str, command)])
            yield {
                "bench": "memory",
                "source": name,
                "video_s": round(end),
                "command": command[0],
                "exit": codes,  # probe says that three hours are too long for a run
                "peak_mib": round(peak_bytes / 2**20),
                **({"more_mib": round((peak_bytes - peaks[command[0]]) / 2**20)} if command[0] in peaks else {}),
                "bar": 300,
            }
            peaks[str(command[0])] = peak_bytes
    (folder / "vid00000000.mp4").symlink_to(minute)
    for name, num_videos in (("one video", 1), ("50 MB", 52_000)):
        path = annotations(folder / f"{num_videos}.json", num_videos)
        command = ["run", "--source", "youcook2", "--annotations", path, "--videos", folder, "--out", folder / "out"]
        peak_bytes, code = peak_of([sys.executable, "-m", "pipelines", *map(str, command), "--dry-run"])
        yield {
            "bench": "memory",
            "source": f"annotations of {name}",
            "mb": round(path.stat().st_size / 1e6, 1),
            "command": "run --dry-run",
            "exit": code,
            "peak_mib": round(peak_bytes / 2**20),
            **({"more_mib": round((peak_bytes - peaks["run"]) / 2**20)} if "run" in peaks else {}),
            "bar": 300,
        }
        peaks["run"] = peak_bytes


def annotations(path: Path, num_videos: int) -> Path:
    """YouCook2's annotation file of so many videos, eight steps each."""
    steps_ = [
        {"segment": [10 * n, 10 * n + 8], "id": n, "sentence": "cut the onion into thin slices and fry them in butter"}
        for n in range(8)
    ]
    entry = {"duration": 320.1, "subset": "training", "recipe_type": "101", "annotations": steps_}
    ids = (f"vid{number:08d}" for number in range(num_videos))
    link = "https://www.youtube.com/watch?v="
    path.write_text(json.dumps({"database": {id_: {**entry, "video_url": link + id_} for id_ in ids}}))
    return path


def peak_of(command: Sequence[str]) -> tuple[int, int]:
    """(greatest sum of the resident memory of a command and its children, exit status)"""
    peak = 0
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as child:
        root = psutil.Process(child.pid)
        while child.poll() is None:
            with contextlib.suppress(psutil.NoSuchProcess):
                family = [root, *root.children(recursive=True)]
                peak = max(peak, sum(resident(process) for process in family))
            time.sleep(0.02)
        return peak, child.wait()


def resident(process: psutil.Process) -> int:
    with contextlib.suppress(psutil.NoSuchProcess):
        return int(process.memory_info().rss)
    return 0


def main(only: str = "", source: str = "", rounds: int = 3) -> None:
    """Runs the measures.

    Args:
        only: a part of the measure's name: exactness, sound, speed, shots, memory
        source: a part of the name of the videos that speed and shots are measured on
        rounds: of each timed way
    """
    command = ["git", "describe", "--always", "--dirty"]
    commit = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    say(commit=commit, cores=os.cpu_count(), machine=platform.machine(), ffmpeg=ffmpeg_build())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if only in "exactness":
            print_all(exactness(folder, KINDS, num_spans=16, seconds=40))
        if only in "sound":
            print_all(sound(folder))
        measures = [measure for measure in (speed, shots) if only in measure.__name__]
        for job in jobs_in(folder, source) if measures else ():
            print_all(measure(job, folder, rounds) for measure in measures)
        if only in "memory":
            print_all(memory(folder))


def print_all(rows: Iterable[dict[str, Any]]) -> None:
    for row in rows:
        say(**row)


if __name__ == "__main__":
    tyro.cli(main)
