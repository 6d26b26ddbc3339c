"""Pictures from anywhere: the upright RGB one, or an InputError."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from cookgen.dataset.split import load_split
from cookgen.errors import InputError, ModelError, UsageError
from cookgen.features import compute_features, encoder_config
from cookgen.picture import encode_picture, read_picture
from tests.shardset import Story, make_set

LEFT, RIGHT = (200, 40, 30), (20, 60, 180)  # red left, blue right


def picture(width: int = 40, height: int = 24) -> Image.Image:
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, : width // 2], pixels[:, width // 2 :] = LEFT, RIGHT
    return Image.fromarray(pixels)


def saved(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)  # type: ignore[arg-type]
    return path


def assert_is_picture(path: Path, *, tolerance: int = 12) -> None:
    found = read_picture(path)
    assert found.shape == (24, 40, 3) and found.dtype == np.uint8
    assert abs(found[:, :16].astype(int) - LEFT).max() <= tolerance
    assert abs(found[:, 24:].astype(int) - RIGHT).max() <= tolerance


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "tiff", "gif"])
def test_formats(suffix: str, tmp_path: Path) -> None:
    assert_is_picture(saved(picture(), tmp_path / f"x.{suffix}"))
    assert_is_picture((tmp_path / f"x.{suffix}").rename(tmp_path / "name.txt"))  # what is in it counts


@pytest.mark.parametrize("orientation", range(1, 9))
def test_it_is_upright(orientation: int, tmp_path: Path) -> None:
    turn = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    image = picture()
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = image.transpose(turn[orientation]) if orientation in turn else image
    assert_is_picture(saved(stored, tmp_path / "x.jpg", exif=exif, quality=95))


def test_colours_of_other_kinds(tmp_path: Path) -> None:
    assert_is_picture(saved(picture().convert("CMYK"), tmp_path / "cmyk.jpg", quality=95))
    assert_is_picture(saved(picture().quantize(2), tmp_path / "palette.png"))
    assert_is_picture(saved(picture().convert("YCbCr"), tmp_path / "ycbcr.tiff"))
    grey = np.full((20, 20), 51_400, np.uint16)
    for name in ("grey.png", "grey.tiff"):
        found = read_picture(saved(Image.fromarray(grey), tmp_path / name))
        assert found.shape == (20, 20, 3) and (found == 51_400 >> 8).all()
    assert (read_picture(saved(Image.new("1", (20, 20), 1), tmp_path / "bits.png")) == 255).all()
    assert (read_picture(saved(Image.new("L", (20, 20), 7), tmp_path / "l.png")) == 7).all()
    for mode in ("I", "F"):
        with pytest.raises(InputError, match="32 bits"):
            read_picture(saved(Image.new(mode, (20, 20)), tmp_path / f"{mode}.tiff"))


def test_sixteen_bits_a_colour(tmp_path: Path) -> None:
    """A PNG that Pillow cannot write."""
    row = b"\0" + struct.pack(">HHH", 0xC8FF, 0x28FF, 0x1EFF) * 20
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", 20, 20, 16, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(row * 20)),
        (b"IEND", b""),
    ]
    content = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    (tmp_path / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    assert (read_picture(tmp_path / "x.png") == LEFT).all()


def test_what_is_transparent_is_white(tmp_path: Path) -> None:
    pixels = np.array(picture().convert("RGBA"))
    pixels[:, 20:, 3] = 0
    for suffix in ("png", "webp"):
        found = read_picture(saved(Image.fromarray(pixels), tmp_path / f"x.{suffix}", lossless=True))
        assert (found[:, 24:] == 255).all() and (found[:, :16] == LEFT).all()
    grey = Image.merge("LA", [Image.new("L", (20, 20), 9), Image.new("L", (20, 20), 0)])
    assert (read_picture(saved(grey, tmp_path / "la.png")) == 255).all()
    palette = picture().quantize(2)
    found = read_picture(saved(palette, tmp_path / "p.png", transparency=palette.getpixel((30, 5))))
    assert (found[:, 24:] == 255).all() and (found[:, :16] == LEFT).all()


@pytest.mark.parametrize("suffix", ["gif", "png", "webp"])
def test_of_an_animation_the_first(suffix: str, tmp_path: Path) -> None:
    black = Image.new("RGB", (40, 24))
    assert_is_picture(saved(picture(), tmp_path / f"x.{suffix}", save_all=True, append_images=[black, black]))


def test_what_is_no_picture(tmp_path: Path) -> None:
    whole = saved(picture(200, 200), tmp_path / "whole.jpg").read_bytes()
    for name, content in {
        "empty": b"",
        "text": b"hello",
        "svg": b"<svg xmlns='http://www.w3.org/2000/svg' width='20' height='20'/>",
        "truncated": whole[: len(whole) // 2],
        "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\nshowpage\n",
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=f"{name}: not a readable picture"):
            read_picture(tmp_path / name)
    os.mkfifo(tmp_path / "pipe")
    for name in ("nowhere", "pipe", "."):
        with pytest.raises(InputError, match="no such file"):
            read_picture(tmp_path / name)


@pytest.mark.parametrize("size", [(15, 40), (1, 1), (16, 321), (5000, 16)])
def test_shapes_that_no_keyframe_has(size: tuple[int, int], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a keyframe's sides"):
        read_picture(saved(Image.new("RGB", size), tmp_path / "x.png"))


@pytest.mark.parametrize("size", [(10_000, 10_000), (60_000, 60_000)])
def test_a_bomb_is_not_opened(size: tuple[int, int], tmp_path: Path) -> None:
    data = bytearray(saved(picture(), tmp_path / "x.bmp").read_bytes())
    data[18:26] = struct.pack("<ii", *size)
    (tmp_path / "x.bmp").write_bytes(data)
    with pytest.raises(InputError, match="not a readable picture"):
        read_picture(tmp_path / "x.bmp")


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    suffix=st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"]),
    changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=6),
)
def test_damage_is_an_input_error_or_a_picture(suffix: str, changes: list[tuple[float, int]], tmp_path: Path) -> None:
    stream = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    picture().save(stream, suffix, **({} if suffix in ("GIF", "BMP") else {"exif": exif}))
    content = bytearray(stream.getvalue())
    for place, value in changes:
        content[int(place * (min(len(content), 300) - 1))] = value  # most can be broken in the headers
    (tmp_path / "x").write_bytes(content)
    try:
        found = read_picture(tmp_path / "x")
    except InputError:
        return
    assert found.ndim == 3 and found.shape[2] == 3 and found.dtype == np.uint8


def test_features_of_a_picture_are_those_of_a_clip_with_this_keyframe(tmp_path: Path) -> None:
    out = make_set(tmp_path / "set", [Story("a")])
    features = compute_features(out, encoder_config("conse", settings=["num_workers=0"]))
    step = load_split("train", out, unit="clip", features=("conse",))[1]
    (tmp_path / "x.jpg").write_bytes(step.read("jpg"))
    identity = f"{features.model}@{features.revision}"
    z = encode_picture(read_picture(tmp_path / "x.jpg"), identity, config=features.config, encoder_model=None)
    assert z.dtype == np.float32
    assert np.array_equal(z, step.features["conse"].astype(np.float32))


def test_encoders_that_are_another_or_read_more() -> None:
    pixels = np.asarray(picture())
    conse = encoder_config("conse")
    config = {"kind": "conse", "version": 1, "about": "x"}
    with pytest.raises(ModelError) as error:
        encode_picture(pixels, "other@1", config=config, encoder_model=None)
    assert "other@1" in str(error.value) and conse.identity() in str(error.value)
    with pytest.raises(ModelError, match="version 2"):
        encode_picture(pixels, conse.identity(), config=config | {"version": 2}, encoder_model=None)
    with pytest.raises(UsageError, match="unknown encoder"):
        encode_picture(pixels, "none@1", config={}, encoder_model=None)
    text = encoder_config("text")
    for field in ("action", "caption", "both"):
        about = {"kind": "text", "version": 1, "field": field}
        with pytest.raises(UsageError, match=r"\(text\) are of a clip's texts"):
            encode_picture(pixels, text.identity(), config=about, encoder_model=text.model)
