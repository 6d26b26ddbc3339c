"""Frames by number: exact, the same as decord2's, and an error for whatever is not a clip."""

from __future__ import annotations

import io
import random
from fractions import Fraction
from pathlib import Path

import av
import decord
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cookgen.dataset.decode import count_frames, read_frames
from cookgen.errors import CookgenError, FormatError, InputError, UsageError

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
    assert count_frames(clip) == count_frames(tmp_path / "a.mp4") == NUM_FRAMES


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
        for read in (read_frames, count_frames):
            with pytest.raises(FormatError, match="damaged"):
                read(source)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no\.mp4: cannot be read: No such file"):
        read_frames(tmp_path / "no.mp4")
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        count_frames(tmp_path)


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


def test_bit_rot_ends_in_frames_or_in_our_error(clip: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    """Never a crash, a hang, an error of another library, or noise on stderr."""
    chance = random.Random(1)
    refused = 0
    for _ in range(120):
        broken = bytearray(clip)
        end = chance.choice([clip.index(b"mdat"), len(clip)])  # half of them hit the headers alone
        for _ in range(4):
            broken[chance.randrange(end)] = chance.randrange(256)
        try:
            frames = read_frames(bytes(broken))
        except CookgenError:
            refused += 1
        else:
            assert frames.shape[1:] == (HEIGHT, WIDTH, 3)
    assert refused > 40
    assert capfd.readouterr().err == ""
