"""Whether one shard's tar file holds what cookgen/1 says: members, samples, narratives."""

from __future__ import annotations

import json
import re
import stat
import tarfile
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from pathlib import Path, PurePosixPath
from typing import IO, Any, NoReturn

from pydantic import ValidationError

from cookgen.dataset.duplicates import Fingerprint, fingerprint
from cookgen.dataset.problem import Problem
from cookgen.dataset.statistics import Statistics
from cookgen.dataset.validate_media import Window, clip_findings, keyframe_findings
from cookgen.files import canonical_json, digest
from cookgen.matching import MAX_START_DIFF_S, MIN_IOU, SURE_IOU, overlap, rule_of
from cookgen.records import SUFFIXES, Narrative, Sample, SampleVideo, faults

MAX_JSON_BYTES = 2**20
_MAX_READ = 2**20  # of a tar header: a pax header may claim any size
_NAME = re.compile(r"(?P<narrative>[A-Za-z0-9_-]{1,128})-(?P<index>[0-9]{3,})\.(?P<suffix>json|mp4|jpg)")
_ROUNDING = 2e-6  # each of two rounded times is off by at most half of 1e-6

TAR = "a shard is a plain tar file that ends after its last member"
NAMES = "members are named {narrative}-{index:03d} and .json, .mp4 or .jpg; nothing else is in a shard"
REGULAR = "members are regular files: no links, no devices, no sparse files"
METADATA = "members carry mtime 0, uid and gid 0, mode 0644 and no owner names"
ORDER = "a clip is its .json, its .mp4 and its .jpg, in this order"
INDICES = "a narrative's clips are numbered from 000 without gaps"
NUM_STEPS = "num_steps is the number of the narrative's clips"
MIN_STEPS = "a narrative has at least shards.min_steps clips"
RISING = "a narrative's clips stand in time order"
WHOLE = "a narrative stands in one shard of one split, once"
SORTED = "a shard's narratives are sorted by name"
CANONICAL = "JSON is canonical: UTF-8, sorted keys, no blanks, no NaN, numbers rounded to 1e-6"
SCHEMA = "a clip's JSON follows schemas/sample.schema.json"
AGREES = "a clip's JSON agrees with the member that it is in, and with the other clips of its narrative"
CLIP = "start_s <= first_pts_s <= keyframe.pts_s <= last_pts_s < end_s, and frame n has first_pts_s + n / fps < end_s"
ACTION = "an action's start_s < end_s; manual ones have no word_ids, others [first, end)"
MATCH = "start_diff_s, iou and rule are those of the matching rule"


@dataclass(frozen=True)
class Rules:
    """What a set's own configuration says of the format's numbers."""

    min_steps: float = 2
    max_start_diff_s: float = MAX_START_DIFF_S
    min_iou: float = MIN_IOU
    sure_iou: float = SURE_IOU
    val_fraction: float = 0.03


@dataclass
class Found:
    """What the shards hold, for comparison with manifest and tables. Small: digests, no text."""

    narratives: dict[str, Narrative] = field(default_factory=dict)
    videos: dict[str, SampleVideo] = field(default_factory=dict)
    fingerprints: list[Fingerprint] = field(default_factory=list)  # of the clips with a readable keyframe
    # table -> {(narrative, digest of the values that sample and row share)}
    steps: dict[str, set[tuple[str, str]]] = field(default_factory=dict)
    num_clips: int = 0  # with and without readable JSON
    statistics: Statistics = field(default_factory=Statistics)

    def add_step(self, sample: Sample) -> None:
        self.statistics.add(sample)
        for table, values in step_values(sample).items():
            self.steps.setdefault(table, set()).add((sample.narrative, digest(values)))


def step_values(sample: Sample) -> dict[str, list[Any]]:
    """For each table with a row of this clip, what the JSON says of that row."""
    clip, action, match = sample.clip, sample.action, sample.match
    first, end = action.word_ids or (None, None)
    return {
        "clips": [*clip.to_json().values(), sample.keyframe.pts_s],
        "actions": [action.text, action.start_s, action.end_s, action.origin, action.raw_text, first, end],
        "captions": [sample.caption.text, sample.caption.origin],
        "matches": [match.start_diff_s, match.iou, match.rule],
    }


@dataclass(frozen=True)
class _Member:
    narrative: str
    index: str
    suffix: str
    offset: int  # of its header
    start: int  # of its content
    size: int

    @property
    def key(self) -> str:
        return f"{self.narrative}-{self.index}"

    @property
    def end(self) -> int:
        return self.start + -(-self.size // 512) * 512


class _BoundedReads:
    """A file that refuses to be read in large pieces: a hostile header cannot fill the memory."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.seek, self.tell = stream.seek, stream.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _MAX_READ:
            raise tarfile.ReadError(f"a header that claims {size} bytes")
        return self._stream.read(size)


def place_finding(out: Path, path: str) -> str | None:
    """Why the file at `path` in the set `out` is not opened; None for a regular file inside of the set."""
    place = PurePosixPath(path)
    if place.is_absolute() or ".." in place.parts or "\\" in path or "\0" in path:
        return "a path that leaves the set's folder; it is not opened"
    try:
        file = out / place
        is_own = stat.S_ISREG(file.lstat().st_mode) and file.resolve().is_relative_to(out.resolve())
    except (OSError, ValueError, RuntimeError):
        return "missing"
    return None if is_own else "a link or no regular file; it is not opened"


def shard_problems(path: Path, shard: str, split: str, rules: Rules, found: Found) -> Iterator[Problem]:
    """What is wrong inside the tar file `path`, which the set calls `shard`; what it holds goes into `found`."""
    problems: list[Problem] = []  # of the tar layer, passed on as soon as the layer above has taken a member
    with path.open("rb") as stream:
        members = _members(path, shard, problems)
        for narrative, of_narrative in groupby(members, key=lambda member: member.narrative):
            keys = [list(of_key) for _, of_key in groupby(of_narrative, key=lambda member: member.key)]
            yield from _narrative_problems(stream, shard, split, narrative, keys, rules, found)
            yield from problems
            problems.clear()
    yield from problems


def _members(path: Path, shard: str, problems: list[Problem]) -> Iterator[_Member]:
    for member in tar_members(path, shard, problems):
        name = _NAME.fullmatch(member.name)
        if name is None or f"{int(name['index']):03d}" != name["index"]:
            problems.append(Problem(f"{shard}: {member.name}", NAMES, f"member {member.name!r}"))
            continue
        yield _Member(**name.groupdict(), offset=member.offset, start=member.offset_data, size=member.size)


def tar_members(path: Path, shard: str, problems: list[Problem]) -> Iterator[tarfile.TarInfo]:
    """The regular members of the tar file `path`, which the set calls `shard`, in constant memory.

    What is wrong with the file itself and with its members' metadata goes into `problems`.
    """

    def wrong(where: str, rule: str, what: str) -> None:
        problems.append(Problem(f"{shard}: {where}" if where else shard, rule, what))

    num_bytes = path.stat().st_size
    try:
        with path.open("rb") as stream, tarfile.open(fileobj=_BoundedReads(stream), mode="r:") as tar:  # type: ignore[call-overload]
            while (member := tar.next()) is not None:
                tar.members.clear()  # constant memory
                if tar.pax_headers:
                    wrong(member.name, METADATA, f"a global header with {sorted(tar.pax_headers)}")
                    tar.pax_headers = {}
                if member.type != tarfile.REGTYPE or member.issparse():
                    wrong(member.name, REGULAR, f"type {member.type!r}, link to {member.linkname!r}")
                    continue
                if member.offset_data + member.size > num_bytes:
                    wrong(member.name, TAR, f"{member.size} bytes at {member.offset_data}, the file has {num_bytes}")
                    return
                metadata = {
                    "mtime": member.mtime, "uid": member.uid, "gid": member.gid, "mode": oct(member.mode),
                    "uname": member.uname, "gname": member.gname,
                    "headers": sorted(member.pax_headers.keys() - {"path"}),
                }  # fmt: skip
                expected = {
                    "mtime": 0, "uid": 0, "gid": 0, "mode": oct(0o644), "uname": "", "gname": "", "headers": []
                }  # fmt: skip
                odd = {name: value for name, value in metadata.items() if value != expected[name]}
                if odd:
                    wrong(member.name, METADATA, ", ".join(f"{name} {value!r}" for name, value in odd.items()))
                yield member
            end = tar.offset
        if num_bytes - end < 1024 or not _is_zero(path, end):
            wrong("", TAR, f"after byte {end} there is something else than the end of the archive")
    except (tarfile.TarError, OSError, ValueError, OverflowError, RecursionError) as error:
        wrong("", TAR, f"not a readable tar file: {type(error).__name__}: {error}")


def _is_zero(path: Path, start: int) -> bool:
    with path.open("rb") as stream:
        stream.seek(start)
        while piece := stream.read(2**20):
            if piece.strip(b"\0"):
                return False
    return True


def _narrative_problems(
    stream: IO[bytes],
    shard: str,
    split: str,
    narrative: str,
    keys: list[list[_Member]],
    rules: Rules,
    found: Found,
) -> Iterator[Problem]:
    if narrative in found.narratives:
        yield Problem(f"{shard}: {narrative}", WHOLE, f"it also stands in {found.narratives[narrative].shard}")
        return
    before_it = next(reversed(found.narratives.values()), None)
    if before_it is not None and before_it.shard == shard and before_it.narrative > narrative:
        yield Problem(f"{shard}: {narrative}", SORTED, f"it stands after {before_it.narrative}")
    found.narratives[narrative] = Narrative(
        narrative=narrative,
        split=split,
        shard=shard,
        num_steps=len(keys),
        first_member_offset=keys[0][0].offset,
        num_bytes=keys[-1][-1].end - keys[0][0].offset,
    )
    found.num_clips += len(keys)
    indices = [members[0].index for members in keys]
    if indices != [f"{number:03d}" for number in range(len(keys))]:
        yield Problem(f"{shard}: {narrative}", INDICES, f"{', '.join(indices[:20])}")
    if len(keys) < rules.min_steps:
        yield Problem(
            f"{shard}: {narrative}", MIN_STEPS, f"{len(keys)} clips; the configuration asks for {rules.min_steps}"
        )
    before: Sample | None = None
    for members in keys:
        where = f"{shard}: {members[0].key}"
        suffixes = [member.suffix for member in members]
        if suffixes != list(SUFFIXES):
            yield Problem(where, ORDER, f"{', '.join(suffixes)}")
        by_suffix = {member.suffix: member for member in members}
        if "json" not in by_suffix:
            continue
        sample = yield from _sample_problems(stream, f"{where}.json", by_suffix["json"])
        if sample is None:
            continue
        found.add_step(sample)
        yield from _agreement(f"{where}.json", sample, members[0], split, len(keys), before)
        before = sample
        for rule, what in sample_findings(sample, rules):
            yield Problem(f"{where}.json", rule, what)
        if member := by_suffix.get("mp4"):
            window = Window(stream, member.start, member.size)
            for rule, what in clip_findings(window, member.size, sample.clip):
                yield Problem(f"{where}.mp4", rule, what)
        if member := by_suffix.get("jpg"):
            findings = list(keyframe_findings(Window(stream, member.start, member.size), sample.clip))
            for rule, what in findings:
                yield Problem(f"{where}.jpg", rule, what)
            if not findings:
                window = Window(stream, member.start, member.size)
                found.fingerprints.append(fingerprint(narrative, sample.clip.sha256, window))
    if before is not None:
        found.videos[narrative] = before.video


def _sample_problems(stream: IO[bytes], where: str, member: _Member) -> Generator[Problem, None, Sample | None]:
    """A generator whose value is the Sample, or None where the JSON is none."""
    if member.size > MAX_JSON_BYTES:
        yield Problem(where, SCHEMA, f"{member.size} bytes; at most {MAX_JSON_BYTES} are read")
        return None
    stream.seek(member.start)
    content = stream.read(member.size)
    if (what := canonical_finding(content)) is not None:
        yield Problem(where, CANONICAL, what)
    try:
        return Sample.model_validate_json(content, strict=True)
    except ValidationError as error:
        for what in faults(error):
            yield Problem(where, SCHEMA, what)
        return None


def canonical_finding(content: bytes) -> str | None:
    """What keeps these bytes from being canonical JSON; None if nothing does."""

    def refuse(word: str) -> NoReturn:
        raise ValueError(f"{word} is no JSON number")

    try:
        value = json.loads(content.decode("utf-8"), parse_constant=refuse)
        if canonical_json(value).encode() != content:
            return "another spelling than the canonical one"
    except (ValueError, RecursionError, OverflowError) as error:
        return f"not JSON: {type(error).__name__}: {error}"
    return None


def _agreement(
    where: str, sample: Sample, member: _Member, split: str, num_steps: int, before: Sample | None
) -> Iterator[Problem]:
    if sample.narrative != member.narrative:
        yield Problem(where, AGREES, f"narrative {sample.narrative!r}, the member says {member.narrative!r}")
    if sample.index != int(member.index):
        yield Problem(where, AGREES, f"index {sample.index}, the member says {member.index}")
    if sample.split != split:
        yield Problem(where, AGREES, f"split {sample.split!r}, the shard is in {split!r}")
    if not sample.narrative.startswith(f"{sample.video.source}-"):
        yield Problem(where, AGREES, f"narrative {sample.narrative!r} of source {sample.video.source!r}")
    if sample.num_steps != num_steps:
        yield Problem(where, NUM_STEPS, f"num_steps {sample.num_steps}, the narrative has {num_steps} clips")
    if before is not None and sample.video != before.video:
        yield Problem(where, AGREES, f"video differs from that of {before.narrative}-{before.index:03d}")
    if before is not None and (sample.clip.start_s, sample.clip.end_s) < (before.clip.start_s, before.clip.end_s):
        yield Problem(where, RISING, f"start_s {sample.clip.start_s} after {before.clip.start_s}")


def sample_findings(sample: Sample, rules: Rules) -> Iterator[tuple[str, str]]:
    """What is wrong between the numbers of one clip's JSON: (rule, found)."""
    clip, action, match, keyframe_s = sample.clip, sample.action, sample.match, sample.keyframe.pts_s
    times = [clip.start_s, clip.first_pts_s, keyframe_s, clip.last_pts_s]
    if any(late < early - _ROUNDING for early, late in pairwise(times)) or times[-1] >= clip.end_s:
        yield CLIP, f"{', '.join(map(str, times))}, {clip.end_s}"
    else:
        num_frames = (clip.end_s - clip.first_pts_s) * clip.fps  # a whole number of frames ends just at end_s
        slack = 1e-3 + clip.fps * _ROUNDING
        if not num_frames - slack <= clip.num_frames < num_frames + slack + 1:
            yield CLIP, f"{clip.num_frames} frames at {clip.fps}/s from {clip.first_pts_s} s to {clip.end_s} s"
    has_words = action.word_ids is not None
    if not action.start_s < action.end_s:
        yield ACTION, f"start_s {action.start_s}, end_s {action.end_s}"
    if has_words == (action.origin == "manual") or (action.word_ids and action.word_ids[0] >= action.word_ids[1]):
        yield ACTION, f"origin {action.origin}, word_ids {action.word_ids}"
    spans = (clip.start_s, clip.end_s), (action.start_s, action.end_s)
    start_diff_s, iou = overlap(*spans)
    if abs(match.start_diff_s - start_diff_s) > _ROUNDING or abs(match.iou - iou) > _ROUNDING:
        found = f"start_diff_s {match.start_diff_s} and iou {match.iou}"
        yield MATCH, f"{found}, the spans say {start_diff_s:.6f} and {iou:.6f}"
    rule = rule_of(*spans, max_start_diff_s=rules.max_start_diff_s, min_iou=rules.min_iou, sure_iou=rules.sure_iou)
    if match.rule != rule:
        yield MATCH, f"rule {match.rule}, the spans say {rule}"
