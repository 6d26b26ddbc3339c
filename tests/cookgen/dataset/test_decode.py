"""Frames by number and sound by the second: exact, the same as other decoders', an error for whatever is not a clip."""

from __future__ import annotations

import io
import math
import multiprocessing
import random
import re
import struct
import subprocess
import threading
from concurrent.futures import ProcessPoolExecutor
from fractions import Fraction
from pathlib import Path

import av
import decord
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cookgen.dataset.decode import read_audio, read_frames
from cookgen.errors import CookgenError, FormatError, InputError, UsageError
from pipelines.cutting import Encoding, Footage, Made, cut_all, plan_cut
from pipelines.ffmpeg import ffmpeg_exe

NUM_FRAMES, GROUP = 60, 12
HEIGHT, WIDTH = 64, 128  # decord2 3.4 refuses widths that are no multiple of 64


def grey_of(number: int) -> int:
    """A frame's grey level says its number: steps of 3, well apart after H.264."""
    return 30 + 3 * number


def encode(
    path: Path, *, num_frames: int = NUM_FRAMES, bframes: int = 0, width: int = WIDTH, height: int = HEIGHT
) -> bytes:
    """A clip as the format wants it: H.264, yuv420p, no edit list, pts 0 first, a keyframe every GROUP frames."""
    flags = {"use_editlist": "0", "movflags": "+faststart+negative_cts_offsets"}
    with av.open(path, "w", format="mp4", options=flags) as container:
        stream = container.add_stream("libx264", rate=24)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.options = {
            "bf": str(bframes),
            "threads": "1",
            "crf": "10",
            "sc_threshold": "0",
            "b_strategy": "0",
        }
        stream.codec_context.gop_size = GROUP
        for number in range(num_frames):
            picture = np.full((height, width, 3), grey_of(number), np.uint8)
            picture[:8, : 1 + number % 8] = 255  # something that moves, so that frames depend on each other
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 24)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path.read_bytes()


def numbers_of(frames_THWC: np.ndarray) -> list[int]:
    """Reads the frame numbers back from the grey of the lower half."""
    greys = frames_THWC[:, HEIGHT // 2 :].mean(axis=(1, 2, 3))
    return [round((grey - 30) / 3) for grey in greys]


@pytest.fixture(scope="module", params=[0, 2], ids=["no-b-frames", "b-frames"])
def clip(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return encode(tmp_path_factory.mktemp("clip") / "clip.mp4", bframes=request.param)


def test_all_frames_in_order(clip: bytes, tmp_path: Path) -> None:
    frames = read_frames(clip)
    assert frames.shape == (NUM_FRAMES, HEIGHT, WIDTH, 3)
    assert frames.dtype == np.uint8
    assert frames.flags.writeable
    assert numbers_of(frames) == list(range(NUM_FRAMES))
    (tmp_path / "a.mp4").write_bytes(clip)
    assert np.array_equal(read_frames(tmp_path / "a.mp4"), frames)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(indices=st.lists(st.integers(-NUM_FRAMES, NUM_FRAMES - 1), max_size=6))
def test_any_indices_are_exact(clip: bytes, indices: list[int]) -> None:
    frames = read_frames(clip, indices)
    assert frames.shape == (len(indices), HEIGHT, WIDTH, 3)
    assert numbers_of(frames) == [index % NUM_FRAMES for index in indices]


@pytest.mark.parametrize(
    "part", [slice(None), slice(5, 9), slice(-3, None), slice(None, None, 17), slice(50, 2, -13), slice(9, 5)]
)
def test_slices_mean_what_they_mean_for_lists(clip: bytes, part: slice) -> None:
    assert numbers_of(read_frames(clip, part)) == list(range(NUM_FRAMES))[part]


def test_the_pixels_are_those_of_decord(clip: bytes) -> None:
    indices = [0, 1, 11, 12, 13, 40, 59]
    theirs = decord.VideoReader(io.BytesIO(clip), num_threads=1).get_batch(indices).asnumpy()
    assert np.array_equal(read_frames(clip, np.array(indices)), theirs)


def test_the_pixels_of_real_pictures_are_those_of_decord(data: Path, tmp_path: Path) -> None:
    path = tmp_path / "real.mp4"
    with (
        av.open(data / "videos/va_pepperoni_pizza_narrated.mp4") as source,
        av.open(path, "w", format="mp4", options={"use_editlist": "0"}) as container,
    ):
        stream = container.add_stream("libx264", rate=24)
        stream.width = stream.height = 448
        stream.pix_fmt = "yuv420p"
        stream.codec_context.options = {"bf": "0", "threads": "1", "preset": "veryfast"}
        for number, frame in zip(range(40), source.decode(video=0), strict=False):
            small = frame.reformat(448, 448, "yuv420p")
            small.pts, small.time_base = number, Fraction(1, 24)
            container.mux(stream.encode(small))
        container.mux(stream.encode())
    theirs = decord.VideoReader(str(path), num_threads=1).get_batch(range(40)).asnumpy()
    assert np.array_equal(read_frames(path), theirs)


@pytest.mark.parametrize("index", [NUM_FRAMES, -NUM_FRAMES - 1, 10**9])
def test_an_index_out_of_range(clip: bytes, index: int) -> None:
    with pytest.raises(IndexError, match=f"frame {index} of a clip of {NUM_FRAMES} frames"):
        read_frames(clip, [0, index])


def test_an_index_that_is_no_integer(clip: bytes) -> None:
    with pytest.raises(TypeError):
        read_frames(clip, [1.0])  # type: ignore[list-item]


def test_sizes(clip: bytes) -> None:
    assert read_frames(clip, [0], size_px=32).shape == (1, 32, 64, 3)
    assert read_frames(clip, [0, 5], size_px=(20, 30)).shape == (2, 20, 30, 3)
    assert read_frames(clip, [], size_px=(20, 30)).shape == (0, 20, 30, 3)
    assert abs(read_frames(clip, [9], size_px=32)[0, 20:].mean() - grey_of(9)) <= 2
    for size in (0, (0, 5), -3):
        with pytest.raises(UsageError, match="size_px"):
            read_frames(clip, [0], size_px=size)


def test_only_the_wanted_groups_are_decoded(clip: bytes, tmp_path: Path) -> None:
    """Damage in one group of pictures is met by who asks for that group, and by nobody else."""
    with av.open(io.BytesIO(clip)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    position, size = packets[2 * GROUP + 1]
    broken = bytearray(clip)
    broken[position + 5 : position + size] = bytes(size - 5)
    assert numbers_of(read_frames(bytes(broken), [0, 4 * GROUP + 2])) == [0, 4 * GROUP + 2]
    with pytest.raises(FormatError, match=r"cannot be decoded"):
        read_frames(bytes(broken), [0, 3 * GROUP - 1])


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 4096,
        b"<html>no</html>",
        b"ffconcat version 1.0\nfile /etc/passwd\n",
        b"#EXTM3U\nhttp://127.0.0.1/x.ts\n",
    ],
    ids=["empty", "zeros", "html", "concat", "playlist"],
)
def test_what_is_no_clip(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(content)
    for source in (content, tmp_path / "a.mp4"):
        for read in (read_frames, read_audio):
            with pytest.raises(FormatError, match="damaged"):
                read(source)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no\.mp4: cannot be read: No such file"):
        read_frames(tmp_path / "no.mp4")
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        read_audio(tmp_path)


def test_sound_without_pictures(tmp_path: Path) -> None:
    path = tmp_path / "sound.mp4"
    with av.open(path, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=48000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 48000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(FormatError, match="no video stream"):
        read_frames(path)


def test_truncated_clips_are_refused(clip: bytes) -> None:
    for length in range(0, len(clip), max(1, len(clip) // 40)):
        with pytest.raises(FormatError):
            read_frames(clip[:length])


def damaged(content: bytes, seed: int, times: int) -> list[bytes]:
    """The clip with four bytes overwritten, `times` different ones; half of them hit the headers alone."""
    chance = random.Random(seed)
    broken = []
    for _ in range(times):
        copy = bytearray(content)
        end = chance.choice([content.index(b"mdat"), len(content)])
        for _ in range(4):
            copy[chance.randrange(end)] = chance.randrange(256)
        broken.append(bytes(copy))
    return broken


@pytest.mark.parametrize("num_threads", [1, 2])
def test_bit_rot_ends_in_frames_or_in_our_error(
    num_threads: int, clip: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    """Never a crash, a hang, an error of another library, or noise on stderr."""
    refused = 0
    for broken in damaged(clip, num_threads, 120):
        try:
            frames = read_frames(broken, num_threads=num_threads)
        except CookgenError:
            refused += 1
        else:
            assert frames.shape[1:] == (HEIGHT, WIDTH, 3)
    assert refused > 40
    assert capfd.readouterr().err == ""


def test_damage_that_a_thread_meets_is_everyones(clip: bytes) -> None:
    with av.open(io.BytesIO(clip)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    for group in range(NUM_FRAMES // GROUP):
        position, size = packets[group * GROUP + 1]
        broken = bytearray(clip)
        broken[position + 5 : position + size] = bytes(size - 5)
        with pytest.raises(FormatError, match="cannot be decoded"):
            read_frames(bytes(broken), num_threads=3)


def patched(content: bytes, box: bytes, offset: int, value: int, *, which: int = 0) -> bytes:
    """The clip with a big-endian 32-bit number of a box overwritten, `offset` after the box's name."""
    at = [match.end() for match in re.finditer(box, content)][which] + offset
    return content[:at] + struct.pack(">I", value) + content[at + 4 :]


# Frames as a plain decoder gives them


def ffmpeg(path: Path, *options: str) -> bytes:
    """What the ffmpeg binary, a build of FFmpeg of its own, writes to `path`."""
    subprocess.run([ffmpeg_exe(), "-v", "error", "-nostdin", "-y", *options, str(path)], check=True, timeout=60)
    return path.read_bytes()


KINDS = {
    "no-b-frames": ["-bf", "0"],
    "pyramid": ["-bf", "3", "-x264-params", "b-pyramid=normal:b-adapt=0"],
    "many-b-frames": ["-bf", "9", "-b_strategy", "0"],
    "open-gop": ["-bf", "3", "-x264-params", "open-gop=1"],
    "all-keyframes": ["-g", "1"],
    "edit-list": ["-bf", "2", "-use_editlist", "1"],
}


@pytest.fixture(scope="module", params=list(KINDS))
def textured(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, np.ndarray]:
    """A clip of pictures that are hard to guess, and all its frames: decoded in sequence, without any choosing."""
    source = "testsrc2=size=130x70:rate=25:duration=3,noise=alls=30:allf=t"
    encoder = ["-c:v", "libx264", "-pix_fmt", "yuv420p", "-g", "17", "-sc_threshold", "0", "-threads", "1"]
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    content = ffmpeg(path, "-f", "lavfi", "-i", source, *encoder, "-use_editlist", "0", *KINDS[request.param])
    with av.open(path) as container:
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    assert frames.shape == (75, 70, 130, 3)
    return content, frames


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(indices=st.lists(st.integers(-75, 74), max_size=10), num_threads=st.integers(1, 4))
def test_frames_are_those_of_a_sequential_decode(
    textured: tuple[bytes, np.ndarray], indices: list[int], num_threads: int
) -> None:
    content, frames = textured
    assert np.array_equal(read_frames(content, indices, num_threads=num_threads), frames[indices])


@pytest.mark.parametrize("num_threads", [1, 3, None])
def test_all_frames_are_those_of_a_sequential_decode(
    textured: tuple[bytes, np.ndarray], num_threads: int | None
) -> None:
    content, frames = textured
    assert np.array_equal(read_frames(content, num_threads=num_threads), frames)


def threads_started(content: bytes, num_threads: int | None) -> int:
    """How many threads a reading starts beside its own."""
    started, start = [], threading.Thread.start

    def counted(thread: threading.Thread) -> None:
        started.append(thread)
        start(thread)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading.Thread, "start", counted)
        read_frames(content, num_threads=num_threads)
    return len(started)


def test_a_worker_of_a_loader_decodes_in_its_own_thread(clip: bytes) -> None:
    assert [threads_started(clip, num_threads) for num_threads in (1, 2)] == [0, 1]
    assert 1 <= threads_started(clip, 99) < NUM_FRAMES // GROUP  # a thread that is idle again is used again
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as workers:
        assert workers.submit(threads_started, clip, None).result() == 0
        assert workers.submit(threads_started, clip, 2).result() == 1
    with pytest.raises(UsageError, match="num_threads=0"):
        read_frames(clip, num_threads=0)


# Sound

PICTURES = ["-f", "lavfi", "-i", "testsrc2=size=128x64:rate=24:duration=3"]
TONES = "0.4*sin(2*PI*300*t)+0.3*random(0)|0.9*sin(2*PI*500*t*t)"  # left | right
X264 = ["-c:v", "libx264", "-bf", "0", "-threads", "1", "-pix_fmt", "yuv420p"]
AAC = ["-c:a", "aac", "-use_editlist", "0"]


@pytest.fixture(scope="module")
def heard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip with stereo sound."""
    path = tmp_path_factory.mktemp("clip") / "heard.mp4"
    ffmpeg(
        path, *PICTURES, "-f", "lavfi", "-i", f"aevalsrc={TONES}:s=48000:d=3", *X264, *AAC, "-movflags", "+faststart"
    )
    return path


@pytest.mark.parametrize("rate_hz", [None, 48000, 16000, 44100, 8000, 192000])
def test_the_samples_are_those_of_ffmpeg(rate_hz: int | None, heard: Path, tmp_path: Path) -> None:
    resampling = ["-ar", str(rate_hz)] if rate_hz else []
    raw = ffmpeg(tmp_path / "raw", "-i", str(heard), "-map", "0:a", *resampling, "-f", "f32le")
    theirs_CN = np.frombuffer(raw, np.float32).reshape(-1, 2).T.clip(-1, 1)
    ours_CN = read_audio(heard, rate_hz=rate_hz)
    assert ours_CN is not None and ours_CN.dtype == np.float32 and ours_CN.flags.c_contiguous
    # The encoder put 1024 samples before the first, and nothing in this file says that they are to be left out.
    assert ours_CN.shape == theirs_CN.shape == (2, round((3 + 1024 / 48000) * (rate_hz or 48000)))
    # The last 2.5 ms are heard with what the last packet holds beyond the sound's end, theirs with silence.
    same = slice(None) if rate_hz in (None, 48000) else slice(-rate_hz // 400)
    assert np.abs(ours_CN - theirs_CN)[:, same].max() < 1e-6
    assert np.array_equal(ours_CN, read_audio(heard.read_bytes(), rate_hz=rate_hz))


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ends=st.tuples(st.floats(0, 4), st.floats(0, 4)).map(sorted), rate_hz=st.sampled_from([None, 16000]))
def test_a_span_is_cut_from_the_whole_to_the_sample(heard: Path, ends: list[float], rate_hz: int | None) -> None:
    whole = read_audio(heard, rate_hz=rate_hz)
    assert whole is not None
    rate, (start_s, end_s) = rate_hz or 48000, ends
    part = read_audio(heard, rate_hz=rate_hz, start_s=start_s, end_s=end_s)
    assert part is not None and np.array_equal(part, whole[:, round(start_s * rate) : round(end_s * rate)])
    rest = read_audio(heard, rate_hz=rate_hz, start_s=start_s)
    assert rest is not None and np.array_equal(rest, whole[:, round(start_s * rate) :])


def beep_s(samples_CN: np.ndarray | None, rate: int = 48000) -> float:
    assert samples_CN is not None
    return int(np.flatnonzero(np.abs(samples_CN[0]) > 0.3)[0]) / rate


BEEP = "between(t,1.5,1.54)"  # of a source: in white pictures and in sound


@pytest.fixture(scope="module")
def beeping(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source that is dark and silent but for a beep, with an edit list for the encoder's delay, as most files."""
    path = tmp_path_factory.mktemp("source") / "beep.mp4"
    pictures = f"color=black:size=128x64:rate=25:duration=4,drawbox=color=white:t=fill:enable='{BEEP}'"
    sound = f"aevalsrc='{BEEP}*sin(2*PI*1000*t)':s=48000:d=4"
    ffmpeg(path, "-f", "lavfi", "-i", pictures, "-f", "lavfi", "-i", sound, *X264, "-g", "10", "-c:a", "aac")
    return path


def cut(source: Path, folder: Path, start_s: float, end_s: float) -> Path:
    """The clip [start_s, end_s) of a source of 25 frames a second, as the pipeline cuts it."""
    with av.open(source) as container:
        stream = container.streams.video[0]
        assert stream.time_base is not None
        pts = [packet.pts for packet in container.demux(stream) if packet.pts is not None]
        keys = [entry.timestamp for entry in stream.index_entries if entry.is_keyframe]
        footage = Footage(
            source, 0, 1, 128, 64, stream.time_base, Fraction(0), tuple(pts), tuple(keys), 2 * pts[-1] - pts[-2], True
        )
    plan = plan_cut(footage, 0, round(start_s * 1e6), round(end_s * 1e6), Fraction(25))
    assert plan is not None
    encoding = Encoding(size_px=64, crf=20, preset="veryfast", audio_kbps=128)
    for made in cut_all(footage, [plan], encoding, scratch=folder, timeout=lambda _: 60):
        assert isinstance(made, Made), made
        return made.clip.rename(folder / "clip.mp4")
    raise AssertionError("nothing was cut")


@pytest.mark.parametrize("start_s", [0.0, 0.4, 1.0, 1.28])
def test_a_click_is_heard_when_it_is_seen(start_s: float, beeping: Path, tmp_path: Path) -> None:
    clip = cut(beeping, tmp_path, start_s, 3.0)
    frames = read_frames(clip)
    seen_s = int(np.flatnonzero(frames.mean(axis=(1, 2, 3)) > 128)[0]) / 25
    assert seen_s == pytest.approx(1.5 - start_s, abs=0.04)  # of the next frame
    for rate in (48000, 16000):
        sound = read_audio(clip, rate_hz=rate)
        assert beep_s(sound, rate) == pytest.approx(1.5 - start_s, abs=0.002)
        assert abs(beep_s(sound, rate) - seen_s) < 0.025
        assert sound is not None and sound.shape == (1, round(len(frames) / 25 * rate))


def test_sound_is_at_its_time_whatever_the_file_does(beeping: Path, tmp_path: Path) -> None:
    """An edit list is followed; sound that begins late follows silence; silence fills gaps; none is before time 0."""
    assert beep_s(read_audio(beeping)) == pytest.approx(1.5, abs=0.001)
    for name, options in {
        "late": ["-bsf:a", "noise=drop='lt(pts,48000)'"],
        "gap": ["-bsf:a", "noise=drop='between(pts,20000,60000)'"],
        "shifted": ["-bsf:a", "setts=pts=PTS+12000:dts=DTS+12000"],
    }.items():
        path = tmp_path / f"{name}.mp4"
        ffmpeg(path, "-i", str(beeping), "-c", "copy", *options)
        due_s = 1.75 if name == "shifted" else 1.5
        sound = read_audio(path)
        assert beep_s(sound) == pytest.approx(due_s, abs=0.001), name
        assert sound is not None and sound.shape[1] / 48000 == pytest.approx(2.5 + due_s, abs=0.03), name


def test_a_clip_without_sound_has_none(clip: bytes) -> None:
    assert read_audio(clip) is None


def test_sound_alone_is_read(tmp_path: Path) -> None:
    path = tmp_path / "sound.mp4"
    ffmpeg(path, "-f", "lavfi", "-i", "sine=frequency=440:sample_rate=22050:duration=1", "-c:a", "alac")
    sound = read_audio(path)
    assert sound is not None and sound.shape == (1, 22050)
    assert np.abs(sound - np.sin(2 * np.pi * 440 * np.arange(22050) / 22050) / 8).max() < 1e-3


@pytest.mark.parametrize("rate_hz", [0, -1, 999, 384_001])
def test_a_rate_that_cannot_be(rate_hz: int, heard: Path) -> None:
    with pytest.raises(UsageError, match=f"rate_hz={rate_hz}"):
        read_audio(heard, rate_hz=rate_hz)


@pytest.mark.parametrize(
    ("start_s", "end_s"), [(-0.1, None), (2.0, 1.0), (0.0, math.inf), (math.inf, None), (math.nan, None), (0, math.nan)]
)
def test_a_span_that_cannot_be(start_s: float, end_s: float | None, heard: Path) -> None:
    with pytest.raises(UsageError, match="start_s"):
        read_audio(heard, start_s=start_s, end_s=end_s)


def test_truncated_sound_is_refused(heard: Path) -> None:
    content = heard.read_bytes()
    for length in range(0, len(content), len(content) // 40):
        with pytest.raises(FormatError):
            read_audio(content[:length])


def test_packets_that_share_their_bytes_do_not_fill_the_memory(heard: Path) -> None:
    """A small file's index may give every packet the same large part of it."""
    content = heard.read_bytes()
    num_chunks = struct.unpack(">I", content[content.index(b"stco") + 8 :][:4])[0]
    start = content.index(b"mdat") + 4
    greedy = patched(content, b"stsz", 4, (len(content) - start) // 30)  # a second of pictures is a chunk
    for chunk in range(num_chunks):
        greedy = patched(greedy, b"stco", 8 + 4 * chunk, start)
    assert num_chunks > 1
    with pytest.raises(FormatError, match=r"index of video makes no sense"):
        read_frames(greedy)


def test_bit_rot_in_sound_ends_in_samples_or_in_our_error(heard: Path, capfd: pytest.CaptureFixture[str]) -> None:
    refused = 0
    for number, broken in enumerate(damaged(heard.read_bytes(), 3, 150)):
        try:
            sound = read_audio(broken, rate_hz=16000 if number % 3 == 0 else None)
        except CookgenError:
            refused += 1
        else:
            assert sound is None or (
                sound.dtype == np.float32 and sound.ndim == 2 and np.abs(sound).max(initial=0) <= 1
            )
    assert refused > 40
    assert capfd.readouterr().err == ""


def test_garbage_in_place_of_sound_is_refused(heard: Path) -> None:
    with av.open(heard) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(audio=0) if packet.size]
    for position, size in packets[3:60:7]:
        broken = bytearray(heard.read_bytes())
        broken[position : position + size] = b"\xff" * size
        with pytest.raises(FormatError, match="sound cannot be decoded"):
            read_audio(bytes(broken))


def test_silence_without_end_does_not_fill_the_memory(heard: Path) -> None:
    sound_stts = 1  # the second stream's box; in it version, number of entries, packets of the first, their duration
    endless = patched(heard.read_bytes(), b"stts", 12, 2**30, which=sound_stts)
    with pytest.raises(FormatError, match=r"said to be \d+ s long"):
        read_audio(endless)
