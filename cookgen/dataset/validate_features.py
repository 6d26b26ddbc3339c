"""Whether the sidecars in features/ fit the shards that they were computed from."""

from __future__ import annotations

import math
import os
from collections.abc import Generator, Iterable, Iterator, Mapping
from itertools import zip_longest
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from cookgen.dataset.problem import Problem
from cookgen.dataset.sidecar import feature_path, npy_header
from cookgen.dataset.validate_media import Window
from cookgen.dataset.validate_shard import CANONICAL, canonical_finding, place_finding, tar_members
from cookgen.files import file_sha256
from cookgen.records import Features, Narrative, faults

_MAX_JSON_BYTES = 2**26
_PIECE_BYTES = 2**20
_EXPONENT = np.uint16(0x7C00)  # of a float16; all ones in infinities and NaNs, and in nothing else

FEATURES = (
    "features/{name}/features.json follows schemas/features.schema.json and names its folder and the set's shards"
)
FRESH = "features are computed from the shards that dataset.json lists"
SIDECARS = "features hold a regular tar file for each shard, with the sha256 that features.json lists"
KEYS = "a sidecar's members are {key}.npy for the keys of its shard, in the shard's order"
ARRAY = "a member of a sidecar is a .npy file of finite float16 numbers in C order, of features.json's shape"


def feature_folders(out: Path) -> list[str]:
    """The names of the folders in features/; hidden ones are no part of a set."""
    folder = out / "features"
    names = [path.name for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
    return sorted(name for name in names if not name.startswith("."))


def feature_problems(
    out: Path, name: str, shards: Mapping[str, str], narratives: Iterable[Narrative]
) -> Iterator[Problem]:
    """What is wrong with features/{name}.

    shards: path -> sha256, as dataset.json lists them. narratives: what they really hold, in their order.
    """
    where = feature_path(name, "features.json")
    features = yield from _features(out, name, where)
    if features is None:
        return
    for field in ("sha256s", "of_shards"):
        for path in sorted(shards.keys() ^ getattr(features, field).keys()):
            what = f"without the shard {path!r}" if path in shards else f"with {path!r}, which is no shard of the set"
            yield Problem(where, FEATURES, f"{field} {what}")
    rows: dict[str, list[Narrative]] = {}
    for row in narratives:
        rows.setdefault(row.shard, []).append(row)
    for path, sha256 in sorted(shards.items()):
        if features.of_shards.get(path, sha256) != sha256:
            yield Problem(where, FRESH, f"stale: computed from another {path}; run cookgen features again")
        elif path in features.sha256s:
            keys = (f"{row.narrative}-{index:03d}.npy" for row in rows.get(path, []) for index in range(row.num_steps))
            yield from _sidecar_problems(out, feature_path(name, path), features.sha256s[path], features.shape, keys)


def _features(out: Path, name: str, where: str) -> Generator[Problem, None, Features | None]:
    """A generator whose value is what features.json says, or None where there is nothing to go on with."""
    if not os.path.lexists(out / where):  # it is written last
        yield Problem(where, FEATURES, "missing: not complete yet; run cookgen features again", is_warning=True)
        return None
    if (what := place_finding(out, where)) is not None:
        yield Problem(where, FEATURES, what)
        return None
    if (num_bytes := (out / where).stat().st_size) > _MAX_JSON_BYTES:
        yield Problem(where, FEATURES, f"{num_bytes} bytes; at most {_MAX_JSON_BYTES} are read")
        return None
    content = (out / where).read_bytes()
    if (what := canonical_finding(content)) is not None:
        yield Problem(where, CANONICAL, what)
    try:
        features = Features.model_validate_json(content, strict=True)
    except ValidationError as error:
        for what in faults(error):
            yield Problem(where, FEATURES, what)
        return None
    if features.name != name:
        yield Problem(where, FEATURES, f"name {features.name!r}, the folder is {name!r}")
    return features


def _sidecar_problems(
    out: Path, sidecar: str, sha256: str, shape: tuple[int, ...], keys: Iterator[str]
) -> Iterator[Problem]:
    if (what := place_finding(out, sidecar)) is not None:
        yield Problem(sidecar, SIDECARS, what)
        return
    if (found := file_sha256(out / sidecar)) != sha256:
        yield Problem(sidecar, SIDECARS, f"sha256 {found}, listed {sha256}")
    header = npy_header(shape)
    problems: list[Problem] = []  # of the tar layer
    with (out / sidecar).open("rb") as stream:
        for member, key in zip_longest(tar_members(out / sidecar, sidecar, problems), keys):
            if member is not None and member.name == key:
                window = Window(stream, member.offset_data, member.size)
                if (what := _array_finding(window, member.size, header, shape)) is not None:
                    yield Problem(f"{sidecar}: {key}", ARRAY, what)
            elif not problems:  # else that is why
                found = "ends" if member is None else f"goes on with {member.name!r}"
                yield Problem(sidecar, KEYS, f"{found} where {key or 'its end'} should be")
            yield from problems
            if member is None or member.name != key:
                return
            problems.clear()
    yield from problems


def _array_finding(window: Window, num_bytes: int, header: bytes, shape: tuple[int, ...]) -> str | None:
    """What is wrong with a .npy file; its header is compared, never believed."""
    start, wanted = window.read(len(header)), len(header) + 2 * math.prod(shape)
    if num_bytes != wanted or start != header:
        return f"{num_bytes} bytes that start with {start!r}; {list(shape)} takes {wanted}, with the header {header!r}"
    while piece := window.read(_PIECE_BYTES):
        if np.any(np.frombuffer(piece, "<u2") & _EXPONENT == _EXPONENT):
            return "a NaN or an infinity"
    return None
