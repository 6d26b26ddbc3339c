"""Videos: what a file really is, by its timestamps and its pictures, or a truthful reason why it cannot be used."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import av
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cookgen.records import Crop, Reason, Reject, SourceVideo, Video, hashed_split
from pipelines.ffmpeg import ffmpeg_exe, file_url
from pipelines.probe import boxes, overrun
from pipelines.stage import Places
from pipelines.stages.videos import VideosConfig, probe_video, without_duplicates

PICTURE = ["-f", "lavfi", "-i", "testsrc2=s=320x240:r=30:d=6"]
SOUND = ["-f", "lavfi", "-i", "sine=f=440:r=44100:d=6"]
X264 = ["-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv420p", "-c:a", "aac"]


def ffmpeg(*args: str | Path) -> None:
    subprocess.run([ffmpeg_exe(), "-v", "error", "-nostdin", "-y", *map(str, args)], check=True, timeout=120)


def probe(path: Path, *, split: str | None = None, config: VideosConfig | None = None) -> Video | Reject:
    source = SourceVideo(
        narrative="test-x",
        source="test",
        video_id=path.stem,
        path=path.name,
        num_bytes=path.stat().st_size if path.exists() else 0,
        mtime_ns=0,
        split=split,
        title="A title",
    )
    places = Places(videos=path.parent, media=path.parent / "media", scratch=path.parent / "scratch")
    [row] = probe_video(source, config=config or VideosConfig(), tool=places)
    assert isinstance(row, (Video, Reject))
    return row


def video_of(path: Path, **options: object) -> Video:
    row = probe(path, **options)  # type: ignore[arg-type]
    assert isinstance(row, Video), row
    return row


def reason_of(path: Path, config: VideosConfig | None = None) -> Reason:
    row = probe(path, config=config)
    assert isinstance(row, Reject) and row.is_video_level and row.stage == "videos" and row.detail
    assert str(path.parent) not in row.detail
    return row.reason


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("videos") / "plain.mp4"
    ffmpeg(*PICTURE, *SOUND, *X264, "-g", "30", path)
    return path


def test_a_plain_video(plain: Path) -> None:
    video = video_of(plain, split="val")
    assert (video.width, video.height, video.fps, video.start_s) == (320, 240, 30.0, 0.0)
    assert video.duration_s == pytest.approx(6.0, abs=1e-6)
    assert (video.video_stream, video.audio_stream, video.has_audio) == (0, 1, True)
    assert video.sha256 == hashlib.sha256(plain.read_bytes()).hexdigest()
    assert (video.num_bytes, video.split, video.title) == (plain.stat().st_size, "val", "A title")


def test_times_come_from_timestamps(tmp_path: Path) -> None:
    """Late picture, later end of the sound, and a rate that says nothing of the length."""
    late = tmp_path / "late.mkv"
    ffmpeg("-itsoffset", "1.5", *PICTURE, *SOUND, *X264, "-output_ts_offset", "10", late)
    video = video_of(late)
    assert video.start_s == pytest.approx(10.0, abs=0.03)
    assert video.duration_s == pytest.approx(7.5, abs=0.05)
    variable = tmp_path / "variable.mp4"
    ffmpeg(*PICTURE, *X264, "-vf", "select=lt(n\\,30)+not(mod(n\\,15))", "-fps_mode", "vfr", variable)
    assert video_of(variable).duration_s == pytest.approx(5.53, abs=0.5)
    assert video_of(variable).fps == 30.0


@pytest.mark.parametrize(
    ("rate", "fps"), [("24000/1001", 24000 / 1001), ("12.5", 12.5), ("120", 120.0), ("240", 240.0)]
)
def test_the_rate(rate: str, fps: float, tmp_path: Path) -> None:
    path = tmp_path / "x.mp4"
    ffmpeg("-f", "lavfi", "-i", f"testsrc2=s=192x160:r={rate}:d=4.2", *X264, path)
    assert video_of(path).fps == pytest.approx(fps, abs=1e-9)


def test_a_rate_above_120_that_is_only_a_grid_gives_way_to_the_average(tmp_path: Path) -> None:
    path = tmp_path / "grid.mkv"
    jitter = "settb=1/1000,setpts='N*40+mod(N*7\\,5)'"
    ffmpeg("-f", "lavfi", "-i", "testsrc2=s=192x160:r=25:d=6", "-vf", jitter, "-fps_mode", "passthrough", *X264, path)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        rate, average = stream.base_rate, stream.average_rate
    expected = rate if rate <= 120 else average
    assert video_of(path).fps == pytest.approx(float(expected), abs=1e-5)


@pytest.mark.parametrize("turn", [90, 180, 270])
def test_size_is_upright(turn: int, plain: Path, tmp_path: Path) -> None:
    path = tmp_path / "turned.mp4"
    ffmpeg("-display_rotation", str(turn), "-i", plain, "-c", "copy", path)
    video = video_of(path)
    assert (video.width, video.height) == ((240, 320) if turn % 180 else (320, 240))


def test_size_is_in_square_pixels(tmp_path: Path) -> None:
    path = tmp_path / "x.mp4"
    ffmpeg(*PICTURE, *X264, "-vf", "setsar=4/3", path)
    assert (video_of(path).width, video_of(path).height) == (427, 240)


def test_a_cover_is_not_the_video(plain: Path, tmp_path: Path) -> None:
    cover = tmp_path / "cover.png"
    Image.new("RGB", (1200, 1200), "red").save(cover)
    path = tmp_path / "covered.mp4"
    ffmpeg("-i", cover, "-i", plain, "-map", "0", "-map", "1", "-c", "copy", "-disposition:v:0", "attached_pic", path)
    video = video_of(path)
    assert (video.width, video.height) == (320, 240)
    only = tmp_path / "song.mp4"
    ffmpeg("-i", cover, "-i", plain, "-map", "0", "-map", "1:a", "-c", "copy", "-disposition:v:0", "attached_pic", only)
    assert reason_of(only) is Reason.NO_VIDEO_STREAM


def test_the_default_sound_is_chosen(plain: Path, tmp_path: Path) -> None:
    path = tmp_path / "two.mkv"
    maps: Sequence[str] = ("-map", "0:v", "-map", "0:a", "-map", "0:a", "-c", "copy")
    ffmpeg("-i", plain, *maps, "-disposition:a:0", "0", "-disposition:a:1", "default", path)
    assert video_of(path).audio_stream == 2


def test_sound_that_does_not_decode_is_passed_over(plain: Path, tmp_path: Path) -> None:
    path = tmp_path / "noise.mkv"
    # Every payload of the first track is broken; the second is whole.
    ffmpeg("-i", plain, "-map", "0:v", "-map", "0:a", "-map", "0:a", "-c", "copy", "-bsf:a:0", "noise=amount=1", path)
    assert video_of(path).audio_stream == 2
    silent = tmp_path / "only_noise.mkv"
    ffmpeg("-i", plain, "-c", "copy", "-bsf:a", "noise=amount=1", silent)
    video = video_of(silent)
    assert (video.audio_stream, video.has_audio) == (None, False)


LETTERBOX = "scale=320:180,setsar=1,pad=320:240:0:22"  # 22 px above, 38 below


def letterboxed(path: Path, *options: str, filters: str = LETTERBOX) -> Path:
    ffmpeg(*PICTURE, "-vf", filters, *X264, *options, path)
    return path


@pytest.mark.parametrize("gop", [2, 15, 600])  # keyframes enough, few, and one
@pytest.mark.parametrize("codec", [X264, ["-c:v", "mpeg2video", "-q:v", "6", "-bf", "2"]], ids=["h264", "mpeg2"])
def test_black_borders_are_cropped(gop: int, codec: Sequence[str], tmp_path: Path) -> None:
    suffix = ".mp4" if codec is X264 else ".ts"
    path = letterboxed(tmp_path / f"x{suffix}", *codec, "-g", str(gop))
    video = video_of(path)
    assert (video.width, video.height) == (320, 240)
    assert video.crop == Crop(left=0, top=24, width=320, height=176)
    assert video_of(path, config=VideosConfig(crop_borders=False)).crop is None


def test_a_crop_is_upright_and_in_square_pixels(tmp_path: Path) -> None:
    plain = letterboxed(tmp_path / "plain.mp4")
    expected = {90: (24, 0, 176, 320), 180: (0, 40, 320, 176), 270: (40, 0, 176, 320)}
    for turn, (left, top, width, height) in expected.items():
        path = tmp_path / f"{turn}.mp4"
        ffmpeg("-display_rotation", str(turn), "-i", plain, "-c", "copy", path)
        assert video_of(path).crop == Crop(left=left, top=top, width=width, height=height)
    wide = letterboxed(tmp_path / "wide.mp4", filters="scale=200:180,pad=240:240:20:30,setsar=4/3")
    video = video_of(wide)
    assert (video.width, video.height) == (320, 240) and video.crop is not None
    assert video.crop.left == pytest.approx(20 * 4 / 3, abs=3)
    assert video.crop.width == pytest.approx(200 * 4 / 3, abs=4)


def test_nothing_is_cropped_that_may_be_picture(tmp_path: Path) -> None:
    short = "drawbox=y=0:h=22:color=0x606060:t=fill:enable='between(t,2,4)'"  # for a third of the time
    for name, filters in {
        "plain": "null",
        "once_full": f"{LETTERBOX},{short},drawbox=y=202:h=38:color=0x606060:t=fill:enable='between(t,2,4)'",
        "subtitle": f"{LETTERBOX},drawbox=x=100:y=218:w=120:h=12:color=white:t=fill:enable='gt(t,4)'",
        "night": "format=gray,lutyuv=y='max(16,val/4-20)',format=yuv420p",
        "too_small": "scale=160:120,setsar=1,pad=320:240:80:60",  # 120 px: below min_short_side_px
    }.items():
        path = letterboxed(tmp_path / f"{name}.mp4", "-g", "15", filters=filters)
        crop = video_of(path).crop
        if name == "subtitle":
            assert crop == Crop(left=0, top=24, width=320, height=216)  # its border stays, the other goes
        else:
            assert crop is None, name
    small = VideosConfig(min_short_side_px=100)
    assert video_of(tmp_path / "too_small.mp4", config=small).crop == Crop(left=82, top=62, width=156, height=116)


def test_only_the_real_videos_with_borders_are_cropped(data: Path) -> None:
    """A film of 1940 with black edges, and slides in a window: seen by eye."""
    crops = {path.stem: video_of(path).crop for path in sorted((data / "videos").glob("*.m[pk][4v]"))}
    assert {name for name, crop in crops.items() if crop} == {"mdn_friday", "laion400m_talk"}
    slides, film = crops["laion400m_talk"], crops["mdn_friday"]
    # Above the slides a mark shines in the border, which therefore stays.
    assert slides == Crop(left=240, top=0, width=1438, height=942)
    assert film == Crop(left=4, top=0, width=630, height=476)


def test_the_same_bytes_are_one_video(plain: Path, tmp_path: Path) -> None:
    whole = plain.read_bytes()
    other = whole[:-1] + bytes([whole[-1] ^ 1])  # as long, but another
    for name, content in {"b": whole, "a": whole, "c": other, "d": whole, "e": b"", "f": b""}.items():
        (tmp_path / name).write_bytes(content)
    sources = [
        SourceVideo(narrative=f"test-{name}", source="test", video_id=name, path=name, num_bytes=len(whole), mtime_ns=0)
        for name in ("b", "a", "c", "gone", "d")
    ]
    sources += [sources[0].model_copy(update={"path": path, "num_bytes": 0}) for path in "ef"]
    places = Places(videos=tmp_path, media=tmp_path / "media", scratch=tmp_path / "scratch")
    kept, rejects = without_duplicates(sources, places)
    assert [source.path for source in kept] == ["b", "c", "gone", "e", "f"]  # the empty ones have a reason of their own
    assert [(reject.path, reject.reason, reject.detail) for reject in rejects] == [
        (name, Reason.DUPLICATE_VIDEO, "the same content as b") for name in ("a", "d")
    ]
    assert all(reject.is_video_level and reject.narrative == f"test-{reject.path}" for reject in rejects)
    assert without_duplicates(sources[:1] + sources[2:3], places)[1] == []
    reads: list[str] = []
    watched = Places(videos=tmp_path, media=tmp_path, scratch=tmp_path)
    object.__setattr__(watched, "source", lambda path: reads.append(path) or tmp_path / path)
    alone = sources[1].model_copy(update={"num_bytes": 1})
    without_duplicates([sources[0], alone], watched)
    assert reads == []  # no two of one size: nothing is read


def test_limits(plain: Path, tmp_path: Path) -> None:
    assert reason_of(plain, VideosConfig(min_duration_s=6.1)) is Reason.TOO_SHORT
    assert reason_of(plain, VideosConfig(max_duration_s=5.9)) is Reason.TOO_LONG
    assert reason_of(plain, VideosConfig(min_short_side_px=241)) is Reason.TOO_SMALL
    one = tmp_path / "one.mp4"
    ffmpeg("-i", plain, "-frames:v", "1", "-an", one)
    assert reason_of(one, VideosConfig(min_duration_s=0.0)) is Reason.TOO_SHORT
    strip = tmp_path / "strip.mp4"
    ffmpeg("-i", plain, "-an", "-vf", "setsar=100", *X264[:4], strip)
    assert reason_of(strip) is Reason.TOO_SMALL
    for wrong in ({"min_duration_s": 9.0, "max_duration_s": 8.0}, {"min_short_side_px": 0}, {"val_fraction": 2.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            VideosConfig(**wrong)


NOT_VIDEOS = {
    "html": b"<!DOCTYPE html><html><body>Sign in</body></html>",
    "hls": b"#EXTM3U\n#EXTINF:2,\nplain.mp4\n#EXT-X-ENDLIST\n",
    "concat": b"ffconcat version 1.0\nfile plain.mp4\n",
    "text": "Crème fraîche, and nothing else.\n".encode() * 30,
    "zeros": bytes(5000),
    "random": hashlib.shake_256(b"seed").digest(5000),
    "wav": b"RIFF\x24\0\0\0WAVEfmt \x10\0\0\0\x01\0\x01\0\x40\x1f\0\0\x80\x3e\0\0\x02\0\x10\0data\0\0\0\0",
}


@pytest.mark.parametrize("kind", NOT_VIDEOS)
def test_what_is_not_a_video_is_called_so(kind: str, plain: Path, tmp_path: Path) -> None:
    (tmp_path / "plain.mp4").write_bytes(plain.read_bytes())
    for suffix in (".mp4", ".mkv", ".m3u8"):
        path = tmp_path / f"x{suffix}"
        path.write_bytes(NOT_VIDEOS[kind])
        assert reason_of(path) is Reason.NOT_A_VIDEO


def test_a_still_image_is_not_a_video(tmp_path: Path) -> None:
    for suffix, kind in ((".jpg", "JPEG"), (".png", "PNG"), (".gif", "GIF"), (".webp", "WEBP")):
        path = tmp_path / "x.mp4"
        Image.new("RGB", (320, 240)).save(path, kind)
        assert reason_of(path) is Reason.NOT_A_VIDEO, suffix


def test_what_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    assert reason_of(tmp_path / "empty.mp4") is Reason.EMPTY_FILE
    assert reason_of(tmp_path / "gone.mp4") is Reason.VIDEO_MISSING
    (tmp_path / "folder.mp4").mkdir()
    assert reason_of(tmp_path / "folder.mp4") is Reason.NOT_A_VIDEO
    os.mkfifo(tmp_path / "pipe.mp4")
    assert reason_of(tmp_path / "pipe.mp4") is Reason.NOT_A_VIDEO
    if os.geteuid() != 0:  # root may read anything
        locked = tmp_path / "locked.mp4"
        locked.write_bytes(b"x")
        locked.chmod(0)
        assert reason_of(locked) is Reason.UNREADABLE_FILE


TRUNCATED = {
    "index_first.mp4": ["-movflags", "+faststart"],
    "index_last.mp4": [],
    "fragmented.mp4": ["-movflags", "+frag_keyframe+empty_moov"],
    "matroska.mkv": [],
    "web.webm": ["-c:v", "libvpx-vp9", "-deadline", "realtime", "-cpu-used", "8", "-c:a", "libopus"],
}


@pytest.mark.parametrize("name", TRUNCATED)
def test_a_file_that_ends_early_is_truncated_and_a_whole_one_is_not(name: str, plain: Path, tmp_path: Path) -> None:
    path = tmp_path / name
    ffmpeg("-i", plain, *(TRUNCATED[name] if "-c:v" in TRUNCATED[name] else ["-c", "copy", *TRUNCATED[name]]), path)
    video_of(path)
    whole = path.read_bytes()
    for share in (0.3, 0.6):
        path.write_bytes(whole[: int(len(whole) * share)])
        assert reason_of(path) is Reason.TRUNCATED


def test_bytes_after_the_end_do_no_harm(plain: Path, tmp_path: Path) -> None:
    path = tmp_path / "tail.mp4"
    path.write_bytes(plain.read_bytes() + b"\0\0\0\x10free" + bytes(8))
    assert overrun(path) is None
    assert video_of(path).duration_s == pytest.approx(6.0)


def test_a_stream_without_one_good_frame_is_a_decode_error(plain: Path, tmp_path: Path) -> None:
    path = tmp_path / "noise.mp4"
    ffmpeg("-i", plain, "-an", "-c", "copy", "-bsf:v", "noise=amount=1", path)
    assert reason_of(path) is Reason.DECODE_ERROR


@given(st.binary(max_size=200))
def test_no_bytes_break_the_reading_of_boxes(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("boxes") / "x"
    path.write_bytes(data)
    assert all(length >= 8 for _, _, length in boxes(path, inner=True))
    overrun(path)
    path.write_bytes(b"\x1a\x45\xdf\xa3" + data)
    overrun(path)


def test_no_cut_or_flipped_byte_of_a_header_is_an_exception(plain: Path, tmp_path: Path) -> None:
    whole = plain.read_bytes()
    start = whole.index(b"moov")
    path = tmp_path / "x.mp4"
    for at in range(start, min(start + 1200, len(whole)), 37):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        row = probe(path)
        assert isinstance(row, Video) or row.reason is not Reason.INTERNAL_ERROR


def test_the_split_is_the_sources_own_or_the_hash(plain: Path) -> None:
    digest = hashlib.sha256(b"cookgen/1:test-x").hexdigest()
    assert hashed_split("test-x", 0.03) == ("val" if int(digest[:8], 16) / 2**32 < 0.03 else "train")
    assert video_of(plain).split == hashed_split("test-x", 0.03)
    assert video_of(plain, split="testing").split == "testing"
    share = sum(hashed_split(f"n-{n}", 0.03) == "val" for n in range(5000)) / 5000
    assert 0.02 < share < 0.04
    assert hashed_split("n", 0.0) == "train" and hashed_split("n", 1.0) == "val"


def test_every_real_video_is_usable(data: Path) -> None:
    for path in sorted((data / "videos").glob("*.m[pk][4v]")):
        assert video_of(path).sha256


def test_every_odd_file_has_its_truthful_outcome(data: Path) -> None:
    expected = {
        "audio_only.mp4": Reason.NO_VIDEO_STREAM,
        "empty_0_bytes.mp4": Reason.EMPTY_FILE,
        "html_page.mp4": Reason.NOT_A_VIDEO,
        "one_frame.mp4": Reason.TOO_SHORT,
        "decord_video_90.mov": Reason.TOO_SHORT,
        "decord_video_270.mov": Reason.TOO_SHORT,
        "pancake_sar43.mp4": Reason.TOO_SHORT,
        "pancake_truncated_faststart.mp4": Reason.TRUNCATED,
        "pancake_truncated_no_moov.mp4": Reason.TRUNCATED,
    }
    rows = {path.name: probe(path) for path in sorted((data / "odd").iterdir())}
    assert {name: row.reason for name, row in rows.items() if isinstance(row, Reject)} == expected
    videos = {name: row for name, row in rows.items() if isinstance(row, Video)}
    turned = videos["pancake_rot90_meta.mp4"]
    assert (turned.width, turned.height) == (240, 426)
    assert videos["pancake_start_offset.mkv"].start_s == pytest.approx(4.486)
    assert videos["pancake_noaudio.mp4"].has_audio is False
    assert videos["moviepy_no_duration.webm"].duration_s == pytest.approx(4.94, abs=0.1)
    assert videos["pancake_vfr.mp4"].duration_s == pytest.approx(10.3, abs=0.05)


def test_a_name_with_odd_characters_is_taken_literally(plain: Path, tmp_path: Path) -> None:
    for name in ("-i.mp4", "http:x.mp4", "50%d d'x;[0].mp4"):
        path = tmp_path / name
        path.write_bytes(plain.read_bytes())
        assert video_of(path).duration_s == pytest.approx(6.0)
        assert file_url(path).startswith("file:/")
