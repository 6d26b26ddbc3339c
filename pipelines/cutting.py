"""Cuts clips out of a video so that every frame is the one that was asked for, and proves it.

One ffmpeg child cuts several neighbouring clips from one decode. It seeks to a keyframe before the first of them; all
choosing of frames is by their timestamps, never by counting from where the seek landed. The encoder reports the source
timestamp of each frame that it was given, and that list is compared with the expected one. Clips that differ are cut
again without a seek. Where the decoder reports damage, each clip is cut again alone, to tell whose damage it is.
"""

from __future__ import annotations

import bisect
import itertools
import math
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import IO, Any

import av
import numpy as np
from PIL import Image

from cookgen.records import Crop
from pipelines.ffmpeg import Finished, input_args, run_ffmpeg
from pipelines.probe import MICROSECONDS, boxes, micros

AUDIO_HZ = 48000
AAC_PRIMING = 1024  # samples that the encoder puts before the first one
PREROLL_S = 0.1  # decoded before the first clip: audio codecs need some frames to settle
TAIL_S = 0.1  # read after the last clip
MAX_CUTS = 8  # encoders that one child runs
MAX_GAP_S = 5.0  # between two clips of one child, where a seek could skip it
GOP_S = 2.0  # longest distance between keyframes of a clip: readers jump into it
DETECTION_PX = 256  # long side of the frames in which shots are found
# Timestamps as they are in the file, and made up from the decoding order only where a file has none (AVI).
READING = ["-threads", "1", "-copyts", "-fflags", "+genpts"]
_BT601 = (2, 5, 6)  # AVColorSpace: says nothing, BT.470BG, SMPTE 170M
_DAMAGE = re.compile(r"\[vist#.*(corrupt decoded frame|error submitting packet|decoding error)", re.IGNORECASE)


@dataclass(frozen=True)
class Encoding:
    """How clips are encoded: side of the square in px, H.264 quality and speed, kbit/s of the audio."""

    size_px: int
    crf: int
    preset: str
    audio_kbps: int


@dataclass(frozen=True)
class Footage:
    """One video stream of a file and its frames.

    start: the container's start, from which all seconds count. width, height: upright, square pixels. crop: what
    of that is shown; None: all. is_bt601: what the function of this name says of the stream.
    pts, keyframes: in units of time_base, rising. end: where the last frame's time is over. has_index: whether the
    container can tell where a keyframe lies.
    """

    path: Path
    video_stream: int
    audio_stream: int | None
    width: int
    height: int
    time_base: Fraction
    start: Fraction
    pts: tuple[int, ...]
    keyframes: tuple[int, ...]
    end: int
    has_index: bool
    crop: Crop | None = None
    is_bt601: bool = False

    def micros(self, pts: int | Fraction) -> int:
        """The time of a pts, in microseconds from the container's start."""
        return micros(pts * self.time_base - self.start)

    def seconds(self, pts: int | Fraction) -> float:
        """The time of a pts, in seconds from the container's start, as records keep it."""
        return self.micros(pts) / MICROSECONDS

    def edge_s(self, pts: int) -> float:
        """A span's edge at a pts: its time rounded down, so that the frame itself is never before the edge."""
        return math.floor((pts * self.time_base - self.start) * MICROSECONDS) / MICROSECONDS


@dataclass(frozen=True)
class Cut:
    """A clip to make: its span in microseconds, and the source pts of every frame that it must show."""

    clip_index: int
    start: int
    end: int
    rate: Fraction
    shown: tuple[int, ...]
    keyframe: int

    @property
    def duration(self) -> Fraction:
        """Seconds of picture in the clip."""
        return len(self.shown) / self.rate


@dataclass(frozen=True)
class Made:
    """A clip that was cut, decoded again and found right; both files are in the scratch folder."""

    cut: Cut
    clip: Path
    keyframe: Path


@dataclass(frozen=True)
class Failed:
    """Why a clip could not be made. is_damaged: the source's own frames are broken there."""

    cut: Cut
    why: str
    is_damaged: bool


def plan_cut(footage: Footage, clip_index: int, start: int, end: int, rate: Fraction) -> Cut | None:
    """Which source frames the clip [start, end) (microseconds) shows at `rate`; None where the span holds no frame.

    Frame n shows the last source frame with pts <= first_pts + n/rate; there are as many n as satisfy
    first_pts + n/rate < end. The keyframe is the source frame nearest to the middle of first and last pts, the earlier
    one on a tie. The end is at most that of the video. Source: FORMAT, "Clips" and "Keyframe".
    """
    pts = footage.pts
    first = bisect.bisect_left(pts, start, key=footage.micros)
    stop = bisect.bisect_left(pts, end, key=footage.micros)
    if first >= stop:
        return None
    end = min(end, footage.micros(footage.end))
    ticks = 1 / (rate * footage.time_base)
    # An end is known to the microsecond: a frame due less than that before it belongs to what follows.
    last_due = Fraction(end - 1, MICROSECONDS) - (pts[first] * footage.time_base - footage.start)
    num_frames = max(1, math.ceil(last_due * rate))
    shown, at = [], first
    for n in range(num_frames):
        while at + 1 < stop and (pts[at + 1] - pts[first]) * ticks.denominator <= n * ticks.numerator:
            at += 1
        shown.append(pts[at])
    middle = Fraction(shown[0] + shown[-1], 2)
    after = bisect.bisect_left(pts, middle)
    nearest = min((p for p in pts[max(0, after - 1) : after + 1]), key=lambda p: (abs(p - middle), p))
    return Cut(clip_index, start, end, rate, tuple(shown), nearest)


def cut_all(
    footage: Footage, cuts: Sequence[Cut], encoding: Encoding, *, scratch: Path, timeout: Callable[[float], float]
) -> Iterator[Made | Failed]:
    """Makes every clip, in the order given, or says why it cannot be made. `timeout`: seconds of source -> seconds.

    A Made clip's files lie in `scratch` and are the caller's to move before the next item is asked for.
    """
    for group in _groups(footage, cuts):
        with tempfile.TemporaryDirectory(dir=scratch, prefix="clips-") as folder:
            yield from _make(footage, group, encoding, Path(folder), timeout, seek=True)


def _make(
    footage: Footage,
    cuts: list[Cut],
    encoding: Encoding,
    scratch: Path,
    timeout: Callable[[float], float],
    *,
    seek: bool,
) -> Iterator[Made | Failed]:
    """Tries all `cuts` in one child, then, where that is of use, the failed ones again in another way."""
    seek = seek and _seek_point(footage, _earliest(cuts)) is not None
    folder = Path(tempfile.mkdtemp(dir=scratch))
    outcomes = _attempt(footage, cuts, encoding, folder, timeout, seek=seek)
    failed = [outcome for outcome in outcomes if isinstance(outcome, Failed)]
    again: Iterator[Made | Failed] = iter(failed)
    if failed and seek and not failed[0].is_damaged:  # all of a child's clips are called damaged, or none
        again = _make(footage, [outcome.cut for outcome in failed], encoding, scratch, timeout, seek=False)
    elif failed and len(cuts) > 1:
        alone = (_make(footage, [outcome.cut], encoding, scratch, timeout, seek=True) for outcome in failed)
        again = itertools.chain.from_iterable(alone)
    for outcome in outcomes:
        yield next(again) if isinstance(outcome, Failed) else outcome
    shutil.rmtree(folder)


def _earliest(cuts: Sequence[Cut]) -> Cut:
    return min(cuts, key=lambda cut: cut.shown[0])


def _groups(footage: Footage, cuts: Sequence[Cut]) -> Iterator[list[Cut]]:
    """Neighbouring clips for one child. Depends on nothing but the clips, so that the bytes do too."""
    group: list[Cut] = []
    for cut in cuts:
        if group:
            reached = max(other.end for other in group)
            seek = _seek_point(footage, cut)
            skippable = seek is not None and footage.micros(seek) - reached > MAX_GAP_S * MICROSECONDS
            if len(group) == MAX_CUTS or skippable or cut.rate != group[0].rate:
                yield group
                group = []
        group.append(cut)
    if group:
        yield group


def _seek_point(footage: Footage, cut: Cut) -> int | None:
    """The keyframe that decoding begins at; None where that is the beginning of the file."""
    latest = cut.shown[0] - PREROLL_S / float(footage.time_base)
    at = bisect.bisect_right(footage.keyframes, latest) - 1
    return footage.keyframes[at] if at > 0 else None


def _attempt(
    footage: Footage,
    cuts: Sequence[Cut],
    encoding: Encoding,
    folder: Path,
    timeout: Callable[[float], float],
    *,
    seek: bool,
) -> list[Made | Failed]:
    """One child for all `cuts`; what it wrote is judged clip by clip."""
    first = _earliest(cuts)
    keyframe = _seek_point(footage, first) if seek else None
    stop_s = max(cut.end for cut in cuts) / MICROSECONDS + TAIL_S
    begin_s = 0.0
    args = [*READING, "-filter_complex_threads", "1"]
    if keyframe is not None:
        # ffmpeg decodes from the keyframe before, and drops what is earlier. Without an index it begins anywhere.
        begin_s = footage.seconds(first.shown[0]) - PREROLL_S if footage.has_index else footage.seconds(keyframe)
        args += ["-ss", f"{begin_s:.6f}"]
    args += ["-to", f"{stop_s:.6f}", *input_args(footage.path)]
    args += ["-filter_complex", _graph(footage, cuts, encoding)]
    for number, cut in enumerate(cuts):
        args += _outputs(footage, number, cut, encoding, folder)
    finished = run_ffmpeg(args, timeout_s=timeout(stop_s - begin_s))
    damage = _DAMAGE.search(finished.log)
    outcomes: list[Made | Failed] = []
    for number, cut in enumerate(cuts):
        why = damage.group(1) if damage else _what_is_wrong(footage, number, cut, encoding, folder, finished)
        if why is None:
            outcomes.append(Made(cut, folder / f"{number}.mp4", folder / f"{number}.jpg"))
        else:
            outcomes.append(Failed(cut, why, is_damaged=damage is not None))
    return outcomes


def _graph(footage: Footage, cuts: Sequence[Cut], encoding: Encoding) -> str:
    """The filter graph: each clip and each keyframe picks its frames by pts, in the stream's own ticks."""
    side = encoding.size_px
    # Cropped before it is scaled: of a wide picture that is nearly half of the work.
    square = f"{_crop(footage, _middle(footage))}scale={side}:{side}:flags=bicubic+accurate_rnd+bitexact"
    video = f"{square}:{_bt709(footage)},setsar=1"
    still = f"{square}:out_color_matrix=bt601:out_range=pc,format=yuv420p,setsar=1"
    count = len(cuts)
    names = "".join(f"[v{number}][k{number}]" for number in range(count))
    chains = [f"[0:{footage.video_stream}]settb={footage.time_base},split={2 * count}{names}"]
    for number, cut in enumerate(cuts):
        first, last = cut.shown[0], cut.shown[-1]
        chains.append(
            f"[v{number}]trim=start_pts={first}:end_pts={last + 1},setpts=PTS-{first},{video},"
            f"fps={cut.rate}:start_time=0:round=up:eof_action=pass,"
            # The last frame stays until the clip's time is over, however long the source's own gap is.
            f"tpad=stop=-1:stop_mode=clone,trim=end_frame={len(cut.shown)}[video{number}]"
        )
        chains.append(
            f"[k{number}]trim=start_pts={cut.keyframe}:end_pts={cut.keyframe + 1},setpts=0,{still}[still{number}]"
        )
    if footage.audio_stream is not None:
        names = "".join(f"[a{number}]" for number in range(count))
        chains.append(f"[0:{footage.audio_stream}]asplit={count}{names}")
        for number, cut in enumerate(cuts):
            # The first AAC_PRIMING samples of the clip's time are left out: the encoder puts as many before the rest,
            # so that sound is in place for a reader that knows nothing of priming.
            begin_s = float(cut.shown[0] * footage.time_base + Fraction(AAC_PRIMING, AUDIO_HZ))
            num_samples = max(1, round(cut.duration * AUDIO_HZ) - AAC_PRIMING)
            chains.append(
                f"[a{number}]atrim=start={begin_s:.6f}:duration={float(cut.duration):.6f},asetpts=PTS-{begin_s:.6f}/TB,"
                f"aresample={AUDIO_HZ}:async=1:min_hard_comp=0.01:first_pts=0,"
                f"aformat=sample_fmts=fltp:channel_layouts=mono|stereo,"
                f"apad,atrim=end_sample={num_samples},asetpts=N+{AAC_PRIMING}[audio{number}]"
            )
    return ";".join(chains)


def _shown(footage: Footage) -> Crop:
    """What is shown of a frame, before its middle is taken."""
    return footage.crop or Crop(left=0, top=0, width=footage.width, height=footage.height)


def _middle(footage: Footage) -> Crop:
    """The square in the middle of what is shown."""
    box = _shown(footage)
    side = min(box.width, box.height)
    left, top = box.left + (box.width - side) // 2, box.top + (box.height - side) // 2
    return Crop(left=left, top=top, width=side, height=side)


def _crop(footage: Footage, box: Crop) -> str:
    """The filter that leaves `box` of a frame. It comes after the rotation and before any scaling, and counts in shares
    of the frame, whose own pixels need not be square."""
    across, down = f"/{footage.width}", f"/{footage.height}"
    if (box.width, box.height) == (footage.width, footage.height):
        return ""
    size = f"iw*{box.width}{across}:ih*{box.height}{down}"
    return f"crop={size}:iw*{box.left}{across}:ih*{box.top}{down},"


def _bt709(footage: Footage) -> str:
    """Options of the scaler, and the filter after it, that end with 8 bits, 4:2:0, limited range and BT.709.

    The scaler changes a matrix by way of RGB at full size, which takes longer than all its other work. Where it is
    BT.601's, another filter does it, from YUV to YUV.
    """
    if not footage.is_bt601:
        return "out_color_matrix=bt709:out_range=tv,format=yuv420p"
    keep = "iprimaries=bt709:itrc=bt709:primaries=bt709:trc=bt709:fast=1"  # the matrix alone is changed
    return f"out_range=tv,format=yuv420p,colorspace=ispace=smpte170m:space=bt709:{keep}"


def is_bt601(stream: Any) -> bool:
    """Whether a video stream (of PyAV) is YUV by BT.601: by its own word, or because it says nothing, as most do."""
    codec = stream.codec_context
    return str(codec.pix_fmt).startswith("yuv") and codec.colorspace in _BT601


def _outputs(footage: Footage, number: int, cut: Cut, encoding: Encoding, folder: Path) -> list[str]:
    """The two output files of one clip and their frame reports."""
    report = ["-stats_enc_pre_fmt:v", "{ptsi} {tbi}"]
    plain = ["-fflags", "+bitexact", "-map_metadata", "-1", "-map_chapters", "-1"]
    args = ["-map", f"[video{number}]", "-fps_mode", "passthrough", "-c:v", "libx264", "-threads:v", "1"]
    args += ["-preset", encoding.preset, "-crf", str(encoding.crf), "-bf", "0", "-g", str(round(GOP_S * cut.rate) or 1)]
    args += ["-flags:v", "+bitexact", "-pix_fmt", "yuv420p", "-color_range", "tv", "-colorspace", "bt709"]
    args += [
        "-color_primaries",
        "bt709",
        "-color_trc",
        "bt709",
        *report,
        "-stats_enc_pre:v",
        f"{folder / f'{number}.v'}",
    ]
    if footage.audio_stream is not None:
        args += ["-map", f"[audio{number}]", "-c:a", "aac", "-b:a", f"{encoding.audio_kbps}k", "-flags:a", "+bitexact"]
    args += [*plain, "-movflags", "+faststart", "-use_editlist", "0", "-f", "mp4", f"file:{folder / f'{number}.mp4'}"]
    args += ["-map", f"[still{number}]", "-fps_mode", "passthrough", "-c:v", "mjpeg", "-q:v", "2", "-threads:v", "1"]
    args += ["-flags:v", "+bitexact", *report, "-stats_enc_pre:v", f"{folder / f'{number}.k'}", *plain]
    return [*args, "-f", "mjpeg", f"file:{folder / f'{number}.jpg'}"]


def _what_is_wrong(
    footage: Footage, number: int, cut: Cut, encoding: Encoding, folder: Path, finished: Finished
) -> str | None:
    """Compares what was encoded with what was asked, and decodes what was written; None if all is right."""
    shown = encoded_pts(folder / f"{number}.v", footage.time_base)
    if shown != list(cut.shown):
        return _difference(footage, cut, shown) if shown else finished.last_line
    if encoded_pts(folder / f"{number}.k", footage.time_base) != [cut.keyframe]:
        return "the keyframe is another frame than the one asked for"
    wrong = check_clip(
        folder / f"{number}.mp4",
        size_px=encoding.size_px,
        num_frames=len(cut.shown),
        rate=cut.rate,
        has_audio=footage.audio_stream is not None,
    )
    if wrong:
        return wrong
    with Image.open(folder / f"{number}.jpg") as image:
        image.load()
        if image.format != "JPEG" or image.size != (encoding.size_px, encoding.size_px):
            return f"the keyframe is {image.format} {image.size}"
    return None


def _difference(footage: Footage, cut: Cut, shown: list[Fraction]) -> str:
    if len(shown) != len(cut.shown):
        return f"{len(shown)} frames were encoded, {len(cut.shown)} are due"
    n = next(n for n, (is_, due) in enumerate(zip(shown, cut.shown, strict=True)) if is_ != due)
    return (
        f"frame {n} shows {footage.seconds(shown[n]):.6f} s of the source, {footage.seconds(cut.shown[n]):.6f} s is due"
    )


def encoded_pts(report: Path, time_base: Fraction) -> list[Fraction]:
    """The source pts of each frame that an encoder was given, in units of `time_base`: whole numbers, if all is right.
    Empty where there is no report."""
    if not report.is_file():
        return []
    fields = (line.split() for line in report.read_text().splitlines())
    return [int(ticks) * Fraction(base) / time_base for ticks, base in fields]


def check_clip(path: Path, *, size_px: int, num_frames: int, rate: Fraction, has_audio: bool) -> str | None:
    """Decodes a written clip: frame count and times, size, pixel format, sound, no edit list. None if all is right."""
    if any(name == b"edts" for name, _, _ in boxes(path, inner=True)):
        return "the clip has an edit list"
    try:
        with av.open(str(path)) as container:
            kinds = sorted(stream.type for stream in container.streams)
            if kinds != (["audio", "video"] if has_audio else ["video"]):
                return f"the clip has the streams {kinds}"
            # Every bit is read; only the smoothing of what was read, a fifth of the time, is left out.
            container.streams.video[0].codec_context.options = {"skip_loop_filter": "all"}
            times = []
            for frame in container.decode(video=0):
                if (frame.width, frame.height, frame.format.name) != (size_px, size_px, "yuv420p"):
                    return f"the clip has frames of {frame.width}x{frame.height} {frame.format.name}"
                if frame.is_corrupt or frame.pts is None:
                    return "the clip has a damaged frame"
                times.append(frame.pts * frame.time_base)
        if times != [n / rate for n in range(num_frames)]:
            return f"the clip has {len(times)} frames, or other times than the {num_frames} that are due"
        if has_audio:
            with av.open(str(path)) as container:
                frames = list(container.decode(audio=0))
            if not frames or frames[0].pts != 0 or frames[0].sample_rate != AUDIO_HZ:
                return "the clip's sound does not begin with its picture"
            heard = Fraction(sum(frame.samples for frame in frames), AUDIO_HZ)
            if abs(heard - num_frames / rate) > Fraction(2 * AAC_PRIMING, AUDIO_HZ):
                return f"the clip has {float(heard):.3f} s of sound and {float(num_frames / rate):.3f} s of picture"
    except av.FFmpegError as error:
        return f"the clip cannot be read: {error.strerror}"
    return None


def decode_small(
    footage: Footage, *, scratch: Path, timeout_s: float, read: Callable[[Iterator[np.ndarray]], None]
) -> list[int]:
    """Gives `read` every frame of the video, uint8 BGR, the long side DETECTION_PX; returns the frames' pts.

    The frames come from the decoder that cuts clips, in its order: they are the ones that clips can show.
    """
    box = _shown(footage)
    scale = DETECTION_PX / max(box.width, box.height)
    small_w, small_h = (max(2, 2 * round(length * scale / 2)) for length in (box.width, box.height))
    frame_bytes = small_w * small_h * 3

    def frames(stream: IO[bytes]) -> Iterator[np.ndarray]:
        while len(block := stream.read(frame_bytes)) == frame_bytes:
            yield np.frombuffer(block, np.uint8).reshape(small_h, small_w, 3)

    with tempfile.TemporaryDirectory(dir=scratch, prefix="shots-") as folder:
        report = Path(folder) / "frames"
        args = [*READING, *input_args(footage.path), "-map", f"0:{footage.video_stream}"]
        args += ["-fps_mode", "passthrough"]
        small = f"{_crop(footage, box)}scale={small_w}:{small_h}:flags=fast_bilinear+bitexact"
        args += ["-vf", small, "-pix_fmt", "bgr24"]
        args += ["-stats_enc_pre:v", str(report), "-stats_enc_pre_fmt:v", "{ptsi} {tbi}"]
        args += ["-c:v", "rawvideo", "-f", "rawvideo", "pipe:1"]
        run_ffmpeg(args, timeout_s=timeout_s, read_stdout=lambda stream: read(frames(stream)))
        return [round(pts) for pts in encoded_pts(report, footage.time_base)]
