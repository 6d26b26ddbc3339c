"""Whether two narratives show the same video: the same source, the same bytes, or keyframes that look the same.

Pictures are compared by a difference hash of 256 bits. Measured over 83 pictures of seven real videos: scaled, encoded
anew at low quality, brightened by a quarter or cropped by 1 % a side, at least 96 % of the copies lie within 31 bits
and all within 39; cropped by 2 %, 70 and 96 %; by 3 %, 18 and 46 %. Of 2706 pairs of different videos the nearest are
79 bits apart, of 11062 pairs of the demo's kitchens, which are drawn alike, 42.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cookgen.dataset.problem import Problem
from cookgen.records import Narrative, SampleVideo

MAX_DISTANCE = 36  # bits
_SIDE = 16
_NOISE, _EDGE, _MIN_EDGES = 1.0, 2.0, 64  # luma levels of 0 to 255, and how many of the 256 differences are clear ones
_COMPARE_ALL = 2**12
_MAX_PAIRS = 2**21
_MAX_WARNINGS = 200

SAME_VIDEO = "a source video, known by its sha256 or its video_id, is in one split"
SAME_CLIP = "the bytes of a clip are in one split"
SAME_KEYFRAME = "the bytes of a keyframe are in one split"
NEAR = "two narratives in different splits do not look alike in half of the clips of the shorter one, and in two"
NEAR_WITHIN = "two narratives do not look alike in half of the clips of the shorter one, and in two"
NEAR_SEARCH = "all keyframes that could look alike are compared"


class Fingerprint(NamedTuple):
    """What a clip is known by; None where its keyframe is too plain to be told from others."""

    narrative: str
    clip: bytes  # sha256
    keyframe: bytes | None  # sha256
    picture: bytes | None  # difference_hash


def fingerprint(narrative: str, clip_sha256: str, keyframe: io.RawIOBase) -> Fingerprint:
    """The fingerprint of a clip whose keyframe is known to be a readable JPEG."""
    stream = io.BufferedReader(keyframe)
    sha256 = hashlib.file_digest(stream, "sha256").digest()
    stream.seek(0)
    with Image.open(stream, formats=["JPEG"]) as image:
        picture = difference_hash(image)
    return Fingerprint(narrative, bytes.fromhex(clip_sha256), sha256 if picture else None, picture)


def difference_hash(image: Image.Image) -> bytes | None:
    """256 bits: where, on a grid of 16 rows, a picture gets brighter from one of 17 columns to the next.

    None for a picture with too few clear differences: it looks like every other plain one. Band k of the 16 that
    `near_pairs` looks at holds a bit of each row and of each column, so that black bars fill no band.
    """
    image.draft("L", (4 * _SIDE + 4, 4 * _SIDE))  # a JPEG is decoded at a part of its size
    luma_RC = np.asarray(image.convert("L").convert("F").resize((_SIDE + 1, _SIDE), Image.Resampling.BOX))
    differences_RC = np.diff(luma_RC)
    if np.count_nonzero(np.abs(differences_RC) >= _EDGE) < _MIN_EDGES:
        return None
    rows = np.arange(_SIDE)
    return np.packbits(differences_RC[rows, (rows + rows[:, None]) % _SIDE] > _NOISE).tobytes()


def duplicate_problems(
    narratives: Mapping[str, Narrative], videos: Mapping[str, SampleVideo], fingerprints: Sequence[Fingerprint]
) -> Iterator[Problem]:
    """Narratives that show the same video: problems where they are in two splits, else warnings.

    A pair is named once, by its strongest evidence: source, clip bytes, keyframe bytes, looks.
    """
    told: set[frozenset[str]] = set()

    def place(name: str) -> str:
        return f"{narratives[name].shard}: {name}"

    for rule, what, values in _evidence(videos, fingerprints):
        first: dict[Hashable, str] = {}
        for name, value in values:
            one = first.setdefault(value, name)
            if narratives[one].split != narratives[name].split and {one, name} not in told:
                told.add(frozenset((one, name)))
                yield Problem(place(name), rule, f"{what} is also that of {place(one)}")

    warnings = []
    pictured = [item for item in fingerprints if item.picture is not None]
    hashes = np.frombuffer(b"".join(item.picture or b"" for item in pictured), np.uint8).reshape(-1, 32)
    numbers = {name: number for number, name in enumerate(narratives)}
    owners = np.array([numbers[item.narrative] for item in pictured], np.int64)
    pairs, is_complete = near_pairs(hashes, owners)
    names = list(narratives)
    for left, right, counterparts in _by_owners(pairs, owners):
        one, name = names[left], names[right]
        num_clips = min(narratives[one].num_steps, narratives[name].num_steps)
        num_alike = min(len(counterparts), len(set(chain.from_iterable(counterparts.values()))))
        if num_alike < max(2, num_clips / 2):  # a single pair is no evidence
            continue
        found = f"{num_alike} clips look like clips of {place(one)}; the shorter one has {num_clips}"
        if narratives[one].split == narratives[name].split:
            warnings.append(Problem(place(name), NEAR_WITHIN, found, is_warning=True))
        elif {one, name} not in told:
            yield Problem(place(name), NEAR, found)
    yield from warnings[:_MAX_WARNINGS]
    if len(warnings) > _MAX_WARNINGS:
        yield Problem(".", NEAR_WITHIN, f"{len(warnings) - _MAX_WARNINGS} pairs more", is_warning=True)
    if not is_complete:
        found = "very many keyframes look alike, so that not all of them were compared"
        yield Problem(".", NEAR_SEARCH, found, is_warning=True)


def _evidence(
    videos: Mapping[str, SampleVideo], fingerprints: Sequence[Fingerprint]
) -> Iterator[tuple[str, str, Iterable[tuple[str, Hashable]]]]:
    """(rule, what it is, (narrative, value) of each that has it), the strongest first."""
    yield SAME_VIDEO, "the sha256 of its source video", ((name, video.sha256) for name, video in videos.items())
    sources: dict[str, set[str]] = {}
    for video in videos.values():
        sources.setdefault(video.video_id, set()).add(video.source)
    shared = ((name, video.video_id) for name, video in videos.items() if len(sources[video.video_id]) > 1)
    yield SAME_VIDEO, "the video_id, in another source,", shared
    yield SAME_CLIP, "the sha256 of a clip", ((item.narrative, item.clip) for item in fingerprints)
    keyframes = ((item.narrative, item.keyframe) for item in fingerprints if item.keyframe)
    yield SAME_KEYFRAME, "the sha256 of a keyframe", keyframes


def near_pairs(hashes: NDArray[np.uint8], owners: NDArray[np.int64]) -> tuple[NDArray[np.int64], bool]:
    """Which hashes of different owners are near each other: int64 [P, 2], rows of `hashes`, and whether that is all.

    hashes: uint8 [N, 32], owners: int64 [N]. A pair is near within MAX_DISTANCE. Few hashes are all compared with each
    other; of many, those that agree in 15 of the 16 bits of one of 16 bands: every pair within 31 bits does, and of
    those at 36 nearly every one. So that crowds of hashes that agree take bounded time, each of these 256 groupings
    compares 32 N pairs at most, and 2**21 near pairs end the search. Source: multi-index hashing, Norouzi et al. 2012.
    """
    num = len(hashes)
    if num <= _COMPARE_ALL:
        groupings, budget = [(0, 0)], num**2  # the same key for all
    else:
        groupings, budget = [(band, 0xFFFF ^ 1 << bit) for band in range(_SIDE) for bit in range(_SIDE)], 32 * num
    words, bands = np.ascontiguousarray(hashes).view(np.uint64), np.ascontiguousarray(hashes).view(np.uint16)
    alike = np.lexsort(words.T)  # equal ones side by side: in a crowd they are compared first
    is_complete = True
    near = np.empty(0, np.int64)  # left * num + right
    for band, mask in groupings:
        keys = bands[alike, band] & np.uint16(mask)
        order = np.argsort(keys, kind="stable")
        keys, rows = keys[order], alike[order]
        found, first, step, left_over, num_near = [near], np.arange(num), 1, budget, 0
        while len(first := first[first + step < num]) and len(first := first[keys[first] == keys[first + step]]):
            if (left_over := left_over - len(first)) < 0 or num_near > _MAX_PAIRS:
                is_complete = False
                break
            left, right = rows[first], rows[first + step]
            distances = np.bitwise_count(words[left] ^ words[right]).sum(axis=1, dtype=np.int64)
            is_near = (distances <= MAX_DISTANCE) & (owners[left] != owners[right])
            left, right = left[is_near], right[is_near]
            found.append(np.minimum(left, right) * num + np.maximum(left, right))
            num_near += len(left)
            step += 1
        if len(found) > 1:
            near = np.unique(np.concatenate(found))
        if len(near) > _MAX_PAIRS:
            return _rows(near[:_MAX_PAIRS], num), False
    return _rows(near, num), is_complete


def _rows(near: NDArray[np.int64], num: int) -> NDArray[np.int64]:
    return np.stack(np.divmod(near, max(num, 1)), axis=1)


def _by_owners(pairs: NDArray[np.int64], owners: NDArray[np.int64]) -> Iterator[tuple[int, int, dict[int, list[int]]]]:
    """For each two owners with near pictures, the smaller first: for each picture of the one those of the other."""
    swapped = owners[pairs[:, 0]] > owners[pairs[:, 1]]
    pairs = np.where(swapped[:, None], pairs[:, ::-1], pairs)
    of_pairs = owners[pairs]
    order = np.lexsort(of_pairs.T[::-1])
    edges = np.flatnonzero(np.any(np.diff(of_pairs[order], axis=0), axis=1)) + 1
    for group in np.split(order, edges) if len(order) else []:
        counterparts: dict[int, list[int]] = {}
        for left, right in pairs[group].tolist():
            counterparts.setdefault(left, []).append(right)
        yield int(of_pairs[group[0], 0]), int(of_pairs[group[0], 1]), counterparts
