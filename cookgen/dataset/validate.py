"""Whether a folder is a shard set in the format cookgen/1: every rule that can be checked from the set alone.

Hostile sets are expected: whatever the files hold, the answer is a list of problems, not an exception. Memory does not
grow with the size of shards; it holds a few digests a clip.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Generator, Iterator
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

import yaml  # type: ignore[import-untyped,unused-ignore]
from pydantic import ValidationError

from cookgen.dataset.card import data_files
from cookgen.dataset.duplicates import SAME_VIDEO, duplicate_problems
from cookgen.dataset.problem import Problem
from cookgen.dataset.sidecar import feature_path
from cookgen.dataset.tables import read_table, table_path
from cookgen.dataset.validate_features import FEATURES, feature_folders, feature_problems
from cookgen.dataset.validate_shard import (
    CANONICAL,
    Found,
    Rules,
    canonical_finding,
    place_finding,
    shard_problems,
)
from cookgen.errors import CookgenError, InputError
from cookgen.files import digest, file_sha256, narrative_name
from cookgen.records import (
    TABLES,
    Action,
    Caption,
    Clip,
    Manifest,
    Match,
    Narrative,
    Record,
    Reject,
    SampleClip,
    SampleVideo,
    Split,
    Video,
    faults,
    hashed_split,
)

MAX_PROBLEMS = 1000
_MAX_MANIFEST_BYTES = 2**26
_MAX_CARD_BYTES = 2**22
_OWN_FOLDERS = {".store", ".runs"}  # the pipeline's memory and logs: not part of the set
_PICKLES = {".pkl", ".pickle", ".pt", ".pth"}

MANIFEST = "dataset.json follows schemas/dataset.schema.json"
CONFIG = "config.digest is the sha256 of the canonical JSON of config.values"
SPLITS = "splits are named in [A-Za-z0-9_], train and val are always among them, and their numbers are sums over shards"
SHARD_NAMES = "shards are {split}/cookgen-{split}-{number:06d}.tar, numbered from 0 without gaps"
SHARD_FILES = "every shard that dataset.json lists is a regular file in the set"
SHARD_BYTES = "a shard has the size and the sha256 that dataset.json lists"
SHARD_COUNTS = "a shard holds as many narratives and clips as dataset.json lists"
UNLISTED = "every tar file is a shard that dataset.json lists, or its sidecar in features/, and there are no pickles"
STATISTICS = "statistics are those of the clips in the shards"
CARD = "README.md starts with YAML front matter whose configs name every split that has shards, for load_dataset"
TABLE = "tables/ holds one readable Parquet file a record, whose rows follow the record"
TABLE_AGREES = "tables and shards say the same of every narrative and clip"
HASHED = "videos of a plain folder, which has no splits of its own, are split by the hash of their narrative"
OUTCOME = "every video is either in narratives or has exactly one video-level row in rejects"
VIDEO_ROWS = "a video's narrative is named by FORMAT's rule, once, and its path is relative to the source's folder"


def validate(out: str | Path) -> list[Problem]:
    """Everything that is wrong with the shard set in `out`, at most MAX_PROBLEMS of it; empty where it is a good one.

    Raises InputError where `out` is no shard set at all: no such folder, or no dataset.json in it.
    """
    out = Path(out)
    if not out.is_dir():
        raise InputError(f"{out}: no such folder; give the folder that holds a shard set's dataset.json")
    if not (out / "dataset.json").is_file():
        raise InputError(f"{out}: no dataset.json, so no complete shard set; finish the run that writes it")
    problems = list(islice(_problems(out), MAX_PROBLEMS + 1))
    if len(problems) > MAX_PROBLEMS:
        problems[-1] = Problem(".", "a set has few problems", f"more than {MAX_PROBLEMS}; the rest is not listed")
    return problems


def _problems(out: Path) -> Iterator[Problem]:
    manifest = yield from _manifest_problems(out)
    if manifest is None:
        return
    yield from _split_problems(manifest)
    yield from _guarded("dataset.json", CONFIG, _config_problems(manifest))
    rules = _rules(manifest.config.values)
    found = Found()
    for name, split in sorted(manifest.splits.items()):
        for shard in split.shards:
            yield from _shard_file_problems(out, name, shard.path, shard.to_json(), rules, found)
    yield from _guarded(".", UNLISTED, _unlisted_problems(out, manifest))
    yield from _guarded("dataset.json", STATISTICS, _statistics_problems(manifest, found))
    yield from _guarded("README.md", CARD, _card_problems(out, manifest.splits))
    yield from _table_problems(out, found)
    yield from _hashed_split_problems(found, rules.val_fraction)
    shards = {shard.path: shard.sha256 for split in manifest.splits.values() for shard in split.shards}
    for name in feature_folders(out):
        problems = feature_problems(out, name, shards, found.narratives.values())
        yield from _guarded(feature_path(name, "features.json"), FEATURES, problems)
    yield from _guarded(".", SAME_VIDEO, duplicate_problems(found.narratives, found.videos, found.fingerprints))


def _guarded(where: str, rule: str, problems: Iterator[Problem]) -> Iterator[Problem]:
    """The problems; what goes wrong in looking for them is one more."""
    try:
        yield from problems
    except Exception as error:  # noqa: BLE001 - a hostile file must not end the validation of the others
        yield Problem(where, rule, f"cannot be checked: {type(error).__name__}: {error}")


def _manifest_problems(out: Path) -> Generator[Problem, None, Manifest | None]:
    """A generator whose value is the manifest, or None where there is none to go on with."""
    path = out / "dataset.json"
    try:
        num_bytes = path.stat().st_size
        if num_bytes > _MAX_MANIFEST_BYTES:
            yield Problem("dataset.json", MANIFEST, f"{num_bytes} bytes; at most {_MAX_MANIFEST_BYTES} are read")
            return None
        content = path.read_bytes()
    except OSError as error:
        yield Problem("dataset.json", MANIFEST, f"cannot be read: {error}")
        return None
    if (what := canonical_finding(content)) is not None:
        yield Problem("dataset.json", CANONICAL, what)
    try:
        return Manifest.model_validate_json(content, strict=True)
    except ValidationError as error:
        for what in faults(error):
            yield Problem("dataset.json", MANIFEST, what)
        return None


def _rules(values: dict[str, Any]) -> Rules:
    """The numbers that the set's configuration gives; the format's own where it says nothing usable."""

    names = {
        "shards": ("min_steps",),
        "matches": ("max_start_diff_s", "min_iou", "sure_iou"),
        "videos": ("val_fraction",),
    }
    given: dict[str, float] = {}
    for part in names:
        group = values.get(part)
        if isinstance(group, dict):
            given |= {name: group[name] for name in names[part] if type(group.get(name)) in (int, float)}
    return Rules(**given)


def _config_problems(manifest: Manifest) -> Iterator[Problem]:
    found = digest(manifest.config.values)
    if found != manifest.config.digest:
        yield Problem("dataset.json", CONFIG, f"digest {manifest.config.digest}, the values have {found}")


def _split_problems(manifest: Manifest) -> Iterator[Problem]:
    for name in sorted({"train", "val"} - manifest.splits.keys()):
        yield Problem("dataset.json", SPLITS, f"no split {name!r}")
    for name, split in sorted(manifest.splits.items()):
        if not re.fullmatch(r"[A-Za-z0-9_]+", name):
            yield Problem("dataset.json", SPLITS, f"a split named {name!r}")
        paths = [shard.path for shard in split.shards]
        wanted = [f"{name}/cookgen-{name}-{number:06d}.tar" for number in range(len(paths))]
        for path, right in zip(paths, wanted, strict=True):
            if path != right:
                yield Problem("dataset.json", SHARD_NAMES, f"{path!r} where {right!r} should stand")
        for count in ("num_narratives", "num_clips"):
            total = sum(getattr(shard, count) for shard in split.shards)
            if getattr(split, count) != total:
                yield Problem(
                    "dataset.json", SPLITS, f"{name}: {count} {getattr(split, count)}, its shards sum to {total}"
                )


def _shard_file_problems(
    out: Path, split: str, path: str, listed: dict[str, Any], rules: Rules, found: Found
) -> Iterator[Problem]:
    if (what := place_finding(out, path)) is not None:
        yield Problem(path, SHARD_FILES, what)
        return
    file = out / path
    before = len(found.narratives), found.num_clips
    yield from _guarded(path, SHARD_BYTES, _digest_problems(file, path, listed))
    yield from _guarded(path, SHARD_BYTES, shard_problems(file, path, split, rules, found))
    counts = {
        "num_narratives": len(found.narratives) - before[0],
        "num_clips": found.num_clips - before[1],
    }
    for name, count in counts.items():
        if count != listed[name]:
            yield Problem(path, SHARD_COUNTS, f"{name} {count}, listed {listed[name]}")


def _digest_problems(file: Path, path: str, listed: dict[str, Any]) -> Iterator[Problem]:
    num_bytes = file.stat().st_size
    if num_bytes != listed["num_bytes"]:
        yield Problem(path, SHARD_BYTES, f"{num_bytes} bytes, listed {listed['num_bytes']}")
    sha256 = file_sha256(file)
    if sha256 != listed["sha256"]:
        yield Problem(path, SHARD_BYTES, f"sha256 {sha256}, listed {listed['sha256']}")


def _unlisted_problems(out: Path, manifest: Manifest) -> Iterator[Problem]:
    listed = {shard.path for split in manifest.splits.values() for shard in split.shards}
    listed |= {feature_path(name, path) for name in feature_folders(out) for path in listed}
    for folder, folders, files in os.walk(out):
        inside = Path(folder).relative_to(out)
        if inside == Path():
            folders[:] = sorted(set(folders) - _OWN_FOLDERS)
        elif inside == Path("features"):
            folders[:] = feature_folders(out)
        for name in sorted(files):
            path = (inside / name).as_posix()
            suffix = Path(name).suffix.lower()
            if suffix in _PICKLES or (suffix == ".tar" and path not in listed):
                yield Problem(path, UNLISTED, "a file that does not belong here")


def _hashed_split_problems(found: Found, val_fraction: float) -> Iterator[Problem]:
    """Source: FORMAT, "Splits and packing". What splits other sources have is not known from the set."""
    for name, video in found.videos.items():
        if video.source == "folder":
            right, split = hashed_split(name, val_fraction), found.narratives[name].split
            if split != right:
                yield Problem(f"{found.narratives[name].shard}: {name}", HASHED, f"in {split!r}, by the hash {right!r}")


def _statistics_problems(manifest: Manifest, found: Found) -> Iterator[Problem]:
    counted = found.statistics.to_values(list(manifest.splits))
    for name, values in counted.items():
        stated = manifest.statistics.get(name)
        if stated != values and digest(stated) != digest(values):
            yield Problem("dataset.json", STATISTICS, f"{name}: {stated}, the shards say {values}")


def _card_problems(out: Path, splits: dict[str, Split]) -> Iterator[Problem]:
    path = out / "README.md"
    if not path.is_file():
        yield Problem("README.md", CARD, "missing")
        return
    with path.open("rb") as stream:
        text = stream.read(_MAX_CARD_BYTES).decode("utf-8")
    front = re.match(r"---\r?\n(.*?)\r?\n---\r?\n", text, re.DOTALL)
    values = yaml.safe_load(front[1]) if front else None
    if not isinstance(values, dict):
        yield Problem("README.md", CARD, "no YAML front matter")
        return
    configs = values.get("configs", [])
    given = [entry for config in configs for entry in config["data_files"]]
    for wanted in data_files(splits):
        if wanted not in given:
            yield Problem("README.md", CARD, f"configs without {wanted}")
    for entry in given:
        if entry not in data_files(splits):
            yield Problem("README.md", CARD, f"configs with {entry}, where the set has no such shards")


def _table_problems(out: Path, found: Found) -> Iterator[Problem]:
    narratives: Counter[str] = Counter()
    videos: dict[str, str] = {}
    refused: Counter[str] = Counter()
    rows_of = {table: set(steps) for table, steps in found.steps.items()}
    for record in TABLES:
        where = f"tables/{record.TABLE}.parquet"
        if record is Narrative:
            reading = _narrative_rows(out, where, found, narratives)
        elif record is Video:
            reading = _video_rows(out, where, found, videos)
        elif record is Reject:
            reading = _reject_rows(out, where, refused)
        else:
            reading = _step_rows(out, where, record, rows_of.get(record.TABLE, set()))
        yield from _guarded(where, TABLE, reading)
    for name in sorted(videos.keys() | refused.keys() | narratives.keys()):
        if narratives[name] + refused[name] != 1:
            yield Problem(
                "tables", OUTCOME, f"{name}: {narratives[name]} narratives and {refused[name]} video-level rejects"
            )
    for name in sorted(narratives.keys() - videos.keys()):
        yield Problem("tables/videos.parquet", TABLE_AGREES, f"no row for the narrative {name}")


def _rows(out: Path, record: type[Record]) -> Iterator[Any]:
    path = table_path(out, record)
    if path.is_symlink() or path.parent.is_symlink():
        raise InputError(f"{path}: a link; it is not opened")
    yield from read_table(path, record)


def _narrative_rows(out: Path, where: str, found: Found, narratives: Counter[str]) -> Iterator[Problem]:
    try:
        for row in _rows(out, Narrative):
            narratives[row.narrative] += 1
            if row != found.narratives.get(row.narrative):
                yield Problem(where, TABLE_AGREES, f"{row!r}, the shards say {found.narratives.get(row.narrative)!r}")
    except CookgenError as error:
        yield Problem(where, TABLE, str(error))
    for name in sorted(found.narratives.keys() - narratives.keys()):
        yield Problem(where, TABLE_AGREES, f"no row for the narrative {name} in {found.narratives[name].shard}")


def _video_rows(out: Path, where: str, found: Found, videos: dict[str, str]) -> Iterator[Problem]:
    try:
        for row in _rows(out, Video):
            named = {
                narrative_name(row.source, row.video_id),
                narrative_name(row.source, row.video_id, clash_path=row.path),
            }
            path = PurePosixPath(row.path)
            if row.narrative in videos or row.narrative not in named or path.is_absolute() or ".." in path.parts:
                yield Problem(where, VIDEO_ROWS, f"narrative {row.narrative}, id {row.video_id!r}, path {row.path!r}")
            videos[row.narrative] = row.split
            if row.narrative not in found.narratives:
                continue
            split = found.narratives[row.narrative].split
            if row.split != split:
                yield Problem(where, TABLE_AGREES, f"{row.narrative}: split {row.split!r}, the shards say {split!r}")
            said = SampleVideo.model_validate(row.model_dump(include=set(SampleVideo.model_fields)))
            sample = found.videos.get(row.narrative)
            if sample is not None and digest(said.to_json()) != digest(sample.to_json()):
                yield Problem(where, TABLE_AGREES, f"{row.narrative}: {said!r}, the shards say {sample!r}")
    except CookgenError as error:
        yield Problem(where, TABLE, str(error))


def _reject_rows(out: Path, where: str, refused: Counter[str]) -> Iterator[Problem]:
    try:
        for row in _rows(out, Reject):
            if row.is_video_level and row.narrative is not None:
                refused[row.narrative] += 1
    except CookgenError as error:
        yield Problem(where, TABLE, str(error))


def _step_rows(out: Path, where: str, record: type[Record], wanted: set[tuple[str, str]]) -> Iterator[Problem]:
    """Reads every row; those that the shards' clips came from are looked for among them."""
    try:
        for row in _rows(out, record):
            values = _row_values(row)
            if values is not None and wanted:
                wanted.discard((row.narrative, digest(values)))
    except CookgenError as error:
        yield Problem(where, TABLE, str(error))
        return
    for narrative, _ in sorted(wanted):
        yield Problem(where, TABLE_AGREES, f"no row says what a clip of {narrative} says")


def _row_values(row: Record) -> list[Any] | None:
    """What validate_shard.step_values says of the same row; None for tables that a clip's JSON does not repeat."""
    if isinstance(row, Clip):
        return [*(getattr(row, name) for name in SampleClip.model_fields), row.keyframe_pts_s]
    if isinstance(row, Action):
        return [row.text, row.start_s, row.end_s, row.origin, row.raw_text, row.word_first, row.word_end]
    if isinstance(row, Caption):
        return [row.text, row.origin]
    if isinstance(row, Match) and row.chosen:
        return [row.start_diff_s, row.iou, row.rule]
    return None
