"""`make bench-shots`: how well cuts are found, where it is known where they are: shots joined by ffmpeg. JSON lines.

Shots of the demo's kitchens, and real ones where COOKGEN_TEST_DATA names the folder that holds them, are joined in an
order drawn once, by hard cuts or by dissolves of 0.4 to 1.2 s. A cut counts as found within 2 frames, a dissolve within
0.5 s of its middle; a boundary and a finding count once. Frames a second: decoding in small and detecting, by wall.
"""

from __future__ import annotations

import json
import os
import platform
import random
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cookgen.perception.shots import ShotDetection, detect_cuts
from pipelines.cutting import Footage, decode_small
from pipelines.ffmpeg import ffmpeg_exe
from pipelines.probe import demux, open_container
from pipelines.sources import demo

FPS, WIDTH, HEIGHT = 25, 640, 360
SHOT_FRAMES = (50, 90)
DISSOLVE_FRAMES = (10, 30)
CUT_TOLERANCE, DISSOLVE_TOLERANCE = 2.0, 0.5 * FPS  # frames
NUM_KITCHENS = 2
DETECTORS = {
    "adaptive": ShotDetection(),
    "adaptive, threshold 2": ShotDetection(threshold=2.0),
    "transnetv2": ShotDetection(kind="transnetv2"),
    "transnetv2, probability 0.5": ShotDetection(kind="transnetv2", probability=0.5),
}
# Whole shots of the real videos, found by eye: (file, start, end) in seconds.
REAL = [
    *[("va_pepperoni_pizza_narrated.mp4", 5.0 * number, 5.0 * number + 5) for number in range(11)],
    ("stllm_mixing_bowl.mp4", 0.2, 6.4),
    ("stllm_mixing_bowl.mp4", 6.6, 12.0),
    ("decord_flipping_a_pancake.mkv", 0.0, 10.0),
    ("askanything_making_cake.mp4", 0.0, 10.0),
]


@dataclass(frozen=True)
class Shot:
    """A stretch of a video without a cut, in seconds."""

    path: Path
    start_s: float
    end_s: float


@dataclass(frozen=True)
class Boundary:
    """Where two shots meet, in frames, and how far off a finding may be."""

    frame: float
    tolerance: float


def say(**values: Any) -> None:
    print(json.dumps(values), flush=True)


def rendered_shots(folder: Path) -> list[Shot]:
    demo.make_videos(folder, demo.DemoConfig(num_videos=NUM_KITCHENS))
    shots = []
    for path in sorted(folder.glob("*.mp4")):
        truth = json.loads(path.with_suffix(".gt.json").read_text())
        edges = [edge for dissolve in truth["dissolves"] for edge in dissolve]
        shots += [
            Shot(path, start + 0.1, end - 0.1)
            for start, end in truth["shots"]
            if not any(start < edge < end for edge in edges)
        ]
    return shots


def join(shots: Sequence[Shot], path: Path, draw: random.Random, *, dissolve: bool) -> tuple[list[Boundary], int]:
    """Writes the shots as one video; returns where they meet, and the number of frames."""
    inputs: list[str] = []
    chains = []
    lengths = []
    for number, shot in enumerate(shots):
        lengths.append(min(draw.randint(*SHOT_FRAMES), int((shot.end_s - shot.start_s) * FPS) - 1))
        inputs += ["-ss", f"{shot.start_s:.3f}", "-t", f"{lengths[-1] / FPS + 0.2:.3f}", "-i", str(shot.path)]
        chains.append(
            f"[{number}:v]scale={WIDTH}:{HEIGHT}:force_original_aspect_ratio=increase,crop={WIDTH}:{HEIGHT},setsar=1,"
            f"fps={FPS},format=yuv420p,trim=end_frame={lengths[-1]},setpts=PTS-STARTPTS,settb=1/{FPS}[s{number}]"
        )
    boundaries = []
    joined, total = "s0", lengths[0]
    for number in range(1, len(shots)):
        if dissolve:
            overlap = draw.randint(*DISSOLVE_FRAMES)
            begin = total - overlap
            how = f"xfade=transition=fade:duration={overlap / FPS:.3f}:offset={begin / FPS:.3f}"
            boundaries.append(Boundary(begin + overlap / 2, DISSOLVE_TOLERANCE))
            total += lengths[number] - overlap
        else:
            how = "concat=n=2:v=1:a=0"
            boundaries.append(Boundary(total, CUT_TOLERANCE))
            total += lengths[number]
        chains.append(f"[{joined}][s{number}]{how},fps={FPS},settb=1/{FPS}[j{number}]")
        joined = f"j{number}"
    command = [ffmpeg_exe(), "-v", "error", "-nostdin", "-y", *inputs, "-filter_complex", ";".join(chains)]
    command += ["-map", f"[{joined}]", "-c:v", "libx264", "-preset", "veryfast", "-pix_fmt", "yuv420p", str(path)]
    subprocess.run(command, check=True, timeout=600)
    return boundaries, total


def found_cuts(path: Path, config: ShotDetection, scratch: Path) -> tuple[list[int], int, float]:
    """The cuts, how many frames there were, and the seconds that it took."""
    with open_container(path) as container:
        timeline = demux(container, 0).timeline
    base, start = timeline.time_base, Fraction(0)
    footage = Footage(
        path, 0, None, WIDTH, HEIGHT, base, start, timeline.pts, timeline.keyframes, timeline.end, has_index=True
    )
    cuts: list[int] = []

    def read(frames: Iterator[NDArray[np.uint8]]) -> None:
        cuts.extend(detect_cuts(frames, config))

    began = time.monotonic()
    num_frames = len(decode_small(footage, scratch=scratch, timeout_s=1800, read=read))
    return cuts, num_frames, time.monotonic() - began


def matched(found: Sequence[int], boundaries: Sequence[Boundary]) -> list[float]:
    """How many frames off each boundary was found that was found; nearest first, each finding for one boundary."""
    pairs = sorted(
        (abs(cut - boundary.frame), number, cut)
        for number, boundary in enumerate(boundaries)
        for cut in found
        if abs(cut - boundary.frame) <= boundary.tolerance
    )
    boundaries_left, cuts_left, off = set(range(len(boundaries))), set(found), []
    for distance, number, cut in pairs:
        if number in boundaries_left and cut in cuts_left:
            boundaries_left.remove(number)
            cuts_left.remove(cut)
            off.append(distance)
    return off


def main() -> None:
    say(cores=os.cpu_count(), machine=platform.machine(), python=platform.python_version())
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        materials = {"kitchens": rendered_shots(work / "demo")}
        data = os.environ.get("COOKGEN_TEST_DATA")
        if data:
            materials["real"] = [Shot(Path(data) / "videos" / name, start, end) for name, start, end in REAL]
        for material, shots in materials.items():
            for joint in ("cuts", "dissolves"):
                draw = random.Random(f"{material} {joint}")
                path = work / f"{material}-{joint}.mp4"
                order = draw.sample(shots, len(shots))
                boundaries, total = join(order, path, draw, dissolve=joint == "dissolves")
                for name, config in DETECTORS.items():
                    cuts, num_frames, seconds = found_cuts(path, config, work)
                    assert num_frames == total, f"{path.name} has {num_frames} frames, {total} were joined"
                    off = matched(cuts, boundaries)
                    say(
                        material=material,
                        joined_by=joint,
                        detector=name,
                        boundaries=len(boundaries),
                        found=len(cuts),
                        precision=round(len(off) / len(cuts), 3) if cuts else None,
                        recall=round(len(off) / len(boundaries), 3),
                        median_frames_off=statistics.median(off) if off else None,
                        frames_per_s=round(num_frames / seconds, 1),
                    )


if __name__ == "__main__":
    main()
