"""The same video twice in a set: by its source, by bytes, and by the looks of its keyframes."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from cookgen.dataset import duplicates as rules
from cookgen.dataset.duplicates import (
    MAX_DISTANCE,
    Fingerprint,
    difference_hash,
    duplicate_problems,
    near_pairs,
)
from cookgen.dataset.problem import Problem
from cookgen.records import Narrative, SampleVideo

SIDE = 448
SURE_DISTANCE = 31  # one band of 16 at least differs in no or one bit


def distance(one: bytes | None, other: bytes | None) -> int:
    assert one is not None
    assert other is not None
    return (int.from_bytes(one, "big") ^ int.from_bytes(other, "big")).bit_count()


# ---- pictures


def as_keyframe(image: Image.Image) -> Image.Image:
    """At the size of a clip, as the pipeline cuts it, through a JPEG."""
    scale = SIDE / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - SIDE) // 2, (image.height - SIDE) // 2
    return jpeg(image.crop((left, top, left + SIDE, top + SIDE)), 90)


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return Image.open(stream)


def cropped(image: Image.Image, part: float) -> Image.Image:
    dx, dy = round(image.width * part), round(image.height * part)
    return image.crop((dx, dy, image.width - dx, image.height - dy))


def encoded(image: Image.Image, crf: int, width: int) -> Image.Image:
    """A frame of an H.264 video of this width."""
    image = image.resize((width, image.height * width // image.width // 2 * 2))
    stream = io.BytesIO()
    with av.open(stream, "w", format="mp4") as container:
        video = container.add_stream("libx264", rate=10, options={"crf": str(crf), "threads": "1"})
        video.width, video.height, video.pix_fmt = image.width, image.height, "yuv420p"
        frame = av.VideoFrame.from_image(image)
        frame.pts = 0
        container.mux(video.encode(frame))
        container.mux(video.encode(None))
    stream.seek(0)
    with av.open(stream) as container:
        image = next(container.decode(video=0)).to_image()
        assert isinstance(image, Image.Image)
        return image


COPIES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "low quality": lambda image: jpeg(image, 30),
    "half the size": lambda image: image.resize((image.width // 2, image.height // 2)),
    "encoded anew": lambda image: encoded(image, 30, 320),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.25),
    "darker": lambda image: ImageEnhance.Brightness(image).enhance(0.8),
    "cropped by 1 %": lambda image: cropped(image, 0.01),
    "cropped by 2 %": lambda image: cropped(image, 0.02),
    "all at once": lambda image: cropped(ImageEnhance.Brightness(encoded(image, 30, 320)).enhance(1.15), 0.01),
}


@pytest.fixture(scope="module")
def shots(data: Path) -> dict[str, list[Image.Image]]:
    """Pictures of real videos, at least two seconds apart."""
    found: dict[str, list[Image.Image]] = {}
    for path in sorted((data / "videos").iterdir()):
        if path.suffix in (".mp4", ".mkv") and path.stem != "laion400m_talk":  # long, of slides
            with av.open(str(path)) as container:
                wanted_s = 0.0
                for frame in container.decode(video=0):
                    if frame.time is not None and frame.time >= wanted_s:
                        found.setdefault(path.stem, []).append(frame.to_image())
                        wanted_s = frame.time + 3
    return found


def test_copies_of_real_pictures_are_near(shots: dict[str, list[Image.Image]]) -> None:
    for kind, copy in COPIES.items():
        distances = [
            distance(difference_hash(as_keyframe(image)), difference_hash(as_keyframe(copy(image))))
            for images in shots.values()
            for image in images
        ]
        near = np.mean(np.array(distances) <= MAX_DISTANCE)
        assert near >= (0.6 if kind == "cropped by 2 %" else 0.95), f"{kind}: {sorted(distances)}"


def test_other_pictures_are_far(shots: dict[str, list[Image.Image]]) -> None:
    hashes = {name: [difference_hash(as_keyframe(image)) for image in images] for name, images in shots.items()}
    between = [
        distance(one, other)
        for left, right in itertools.combinations(hashes, 2)
        for one, other in itertools.product(hashes[left], hashes[right])
    ]
    assert min(between) > MAX_DISTANCE + 24
    shots_apart = hashes["va_pepperoni_pizza_narrated"][::2]  # shots of five seconds: no two in one
    within = [distance(one, other) for one, other in itertools.combinations(shots_apart, 2)]
    assert min(within) > MAX_DISTANCE + 24


def test_the_hash_of_a_jpeg_hangs_on_its_picture_not_on_its_size(shots: dict[str, list[Image.Image]]) -> None:
    image = as_keyframe(shots["decord_flipping_a_pancake"][0])
    one = difference_hash(image)
    for side in (64, 100, 224, 1000):
        assert distance(one, difference_hash(jpeg(image.resize((side, side)), 90))) <= 8


def test_plain_pictures_are_no_evidence() -> None:
    noise = np.random.default_rng(0).integers(0, 4, (SIDE, SIDE), np.uint8)
    slope = np.tile(np.linspace(0, 40, SIDE).astype(np.uint8), (SIDE, 1))
    title = np.zeros((SIDE, SIDE), np.uint8)
    title[200:240, 100:300] = 255
    for plain in (np.zeros((SIDE, SIDE), np.uint8), np.full((SIDE, SIDE), 255, np.uint8), noise, title):
        assert difference_hash(jpeg(Image.fromarray(plain), 90)) is None
    assert difference_hash(jpeg(Image.fromarray(slope), 90)) is not None  # the other side of the threshold


# ---- search


def flipped(hash_: np.ndarray, places: np.ndarray) -> np.ndarray:
    bits = np.unpackbits(hash_)
    bits[places] ^= 1
    return np.packbits(bits)


def by_hand(hashes: np.ndarray, owners: np.ndarray, most: int) -> set[tuple[int, int]]:
    return {
        (left, right)
        for left, right in itertools.combinations(range(len(hashes)), 2)
        if owners[left] != owners[right] and distance(hashes[left].tobytes(), hashes[right].tobytes()) <= most
    }


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**32), st.integers(1, 40), st.integers(0, 70))
def test_near_pairs_are_those_found_by_hand(seed: int, num_clusters: int, spread: int) -> None:
    source = np.random.default_rng(seed)
    centres = source.integers(0, 256, (num_clusters, 32), np.uint8)
    changes = [source.choice(256, source.integers(spread + 1), replace=False) for _ in range(60)]
    hashes = np.stack([flipped(centres[source.integers(num_clusters)], places) for places in changes])
    owners = source.integers(0, 20, 60)
    found = {}
    for compare_all in (0, 60):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(rules, "_COMPARE_ALL", compare_all)
            pairs, is_complete = near_pairs(hashes, owners)
        assert is_complete
        found[compare_all] = set(map(tuple, pairs.tolist()))
        assert len(found[compare_all]) == len(pairs)
    assert found[60] == by_hand(hashes, owners, MAX_DISTANCE)
    assert by_hand(hashes, owners, SURE_DISTANCE) <= found[0] <= found[60]


@pytest.mark.parametrize("band_of_one", range(16))
def test_the_farthest_pair_that_is_always_found(band_of_one: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "_COMPARE_ALL", 0)
    places = [16 * band + bit for band in range(16) for bit in ((5, 11) if band != band_of_one else (5,))]
    assert len(places) == SURE_DISTANCE
    one = np.random.default_rng(band_of_one).integers(0, 256, 32, np.uint8)
    hashes = np.stack([one, flipped(one, np.array(places))])
    assert near_pairs(hashes, np.array([0, 1]))[0].tolist() == [[0, 1]]


def test_of_many_hashes_nearly_every_pair_at_the_greatest_distance_is_found() -> None:
    source = np.random.default_rng(0)
    hashes = source.integers(0, 256, (10_000, 32), np.uint8)
    assert len(hashes) > rules._COMPARE_ALL
    for place in range(500):
        hashes[-1 - place] = flipped(hashes[place], source.choice(256, MAX_DISTANCE, replace=False))
    pairs, is_complete = near_pairs(hashes, np.arange(len(hashes)))
    assert is_complete
    assert 495 <= len(pairs) <= 500
    assert set(map(tuple, pairs.tolist())) <= {(place, len(hashes) - 1 - place) for place in range(500)}


def test_a_crowd_costs_bounded_work_and_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    num = 2500
    crowd, owners = np.zeros((num, 32), np.uint8), np.arange(num)
    pairs, is_complete = near_pairs(crowd, owners)
    assert (len(pairs), is_complete) == (2**21, False)
    assert near_pairs(crowd[:1000], np.zeros(1000, np.int64))[1]  # one owner: nothing to say
    assert near_pairs(crowd[:0], owners[:0])[0].shape == (0, 2)
    monkeypatch.setattr(rules, "_COMPARE_ALL", 0)
    pairs, is_complete = near_pairs(crowd[:500], owners[:500])
    assert not is_complete
    assert 500 < len(pairs) <= 32 * 500


# ---- narratives


def make(*stories: tuple[str, str, Sequence[int | None]], **videos: SampleVideo) -> list[Problem]:
    """What is said of narratives (name, split, for each clip the number of its picture)."""
    rows, fingerprints = {}, []
    for number, (name, split, pictures) in enumerate(stories):
        rows[name] = Narrative(
            narrative=name,
            split=split,
            shard=f"{split}/x.tar",
            num_steps=len(pictures),
            first_member_offset=0,
            num_bytes=1,
        )
        for index, picture in enumerate(pictures):
            own = bytes([number, index]) * 16
            fingerprints.append(
                Fingerprint(name, own, own if picture else None, PICTURES[picture] if picture else None)
            )
    return list(duplicate_problems(rows, {name: videos.get(name, video(name)) for name in rows}, fingerprints))


def video(video_id: str, source: str = "demo", *, sha256: str | None = None) -> SampleVideo:
    return SampleVideo(
        source=source,
        video_id=video_id,
        url=None,
        title=None,
        topic=None,
        duration_s=1,
        width=1,
        height=1,
        fps=1,
        licence=None,
        sha256=sha256 or (source + video_id).encode().hex().ljust(64, "0"),
    )


PICTURES = {number: np.random.default_rng(number).bytes(32) for number in range(1, 30)}


@pytest.mark.parametrize(
    ("one", "other", "is_near"),
    [
        ([1, 2, 3], [1, 2, 3], True),
        ([1, 2, 3], [3, 1, 2], True),
        ([1, 2, 3, 4], [9, 4, 1], True),
        ([1, 2, 3, 4, 5, 6], [1, 2], True),
        ([1, 2, 3, 4, 5, 6], [1], False),  # a single pair is no evidence
        ([1, 2], [1, 3], False),
        ([1, 2, 3, 4], [4, 7, 8, 1, 9], True),
        ([1, 2, 3, 4], [1, 7, 8, 9], False),
        ([1, 2, 3, 4], [1, 1, 1, 7, 8], False),
        ([1, 1, 1, 1], [1, 7, 8, 9], False),
        ([1, None, None, None], [1, None, None, None], False),
        ([None, None], [None, None], False),
        ([1, 2], [3, 4], False),
    ],
)
def test_half_of_the_shorter_one(one: list[int | None], other: list[int | None], is_near: bool) -> None:
    across = make(("a", "train", one), ("b", "val", other))
    assert [(p.rule, p.where, p.is_warning) for p in across] == [(rules.NEAR, "val/x.tar: b", False)] * is_near
    within = make(("b", "train", other), ("a", "train", one))
    assert [(p.rule, p.where, p.is_warning) for p in within] == [(rules.NEAR_WITHIN, "train/x.tar: a", True)] * is_near


SAME = {
    "sha256": (video("a", sha256="7" * 64), video("b", sha256="7" * 64)),
    "video_id": (video("x", "youcook2"), video("x", "howto100m")),
}


@pytest.mark.parametrize("kind", SAME)
def test_one_source_video(kind: str) -> None:
    one, other = SAME[kind]
    assert make(("a", "train", [1, 2]), ("b", "train", [3, 4]), a=one, b=other) == []
    (problem,) = make(("a", "train", [1, 2]), ("b", "val", [3, 4]), a=one, b=other)
    assert (problem.rule, problem.where, problem.is_warning) == (rules.SAME_VIDEO, "val/x.tar: b", False)
    assert kind in problem.found
    assert "train/x.tar: a" in problem.found


def test_a_video_id_in_one_source_alone_is_no_evidence() -> None:
    assert (
        make(("a", "train", [1]), ("b", "val", [3]), a=video("z", sha256="1" * 64), b=video("z", sha256="2" * 64)) == []
    )


def test_a_pair_is_named_once_by_its_strongest_evidence() -> None:
    one, other = SAME["sha256"]
    assert [p.rule for p in make(("a", "train", [1, 2]), ("b", "val", [1, 2]), a=one, b=other)] == [rules.SAME_VIDEO]


def test_problems_stand_before_warnings_and_warnings_have_an_end() -> None:
    crowd = [(f"t{number}", "train", [1, 2]) for number in range(25)]
    found = make(*crowd, ("v", "val", [1, 2]))
    assert [p.is_warning for p in found] == [False] * 25 + [True] * 201
    assert found[-1].found == "100 pairs more"
