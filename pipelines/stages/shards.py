"""The set stage: all videos' results in, one shard set out. Deterministic, no model, no network.

Packing. A split with b bytes of samples gets n = ceil(b / target_shard_bytes) buckets, or the greatest smaller n that
leaves none of them empty. A narrative goes to bucket floor(n * u), where u in [0, 1) is the first 32 bits of
sha256("cookgen/1:shard:" + narrative) over 2**32 (not the split's own hash: all of val lies below val_fraction there).
Inside a bucket narratives are sorted by name. So the bytes hang on nothing but the narratives, and while n stays,
adding a video changes one shard. Numbers have no gaps.
"""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cookgen import __version__
from cookgen.config import config_digest, to_values
from cookgen.dataset.card import card_text
from cookgen.dataset.statistics import Statistics
from cookgen.dataset.tables import table_path, table_writer, write_table
from cookgen.dataset.tar import tar_member
from cookgen.errors import InputError, UnknownNameError
from cookgen.files import atomic_path, canonical_json, write_atomic
from cookgen.records import (
    CLIP_CHECKS,
    FORMAT,
    NARRATIVE_CHECKS,
    SET_CHECKS,
    TABLES,
    Action,
    Caption,
    Check,
    Clip,
    ConfigStamp,
    Evidence,
    Manifest,
    Match,
    Narrative,
    Reason,
    Reject,
    Sample,
    SampleAction,
    SampleCaption,
    SampleClip,
    SampleKeyframe,
    SampleMatch,
    SampleVideo,
    Shard,
    Split,
    Video,
    is_clip_check,
)
from pipelines.coherence import nearest_elsewhere
from pipelines.stage import Places, Stage, VideoState

NAME = "shards"
VERSION = 3  # 2: the card names a licence of the Hub; 3: shards.require, recipe_elsewhere
SPLITS = ("train", "val")  # always listed, also when empty
_COPY_BYTES = 2**24  # a member is written whole, not in tarfile's steps of 16 kB


class Requirement(NamedTuple):
    """A bound on a check; both bounds are allowed themselves."""

    check: str
    sign: str  # ">=" or "<="
    bound: float

    def __str__(self) -> str:
        return f"{self.check}{self.sign}{self.bound:g}"

    def is_met(self, score: float | None) -> bool:
        """Whether this number is allowed; what was not measured is not."""
        return score is not None and (score >= self.bound if self.sign == ">=" else score <= self.bound)


@dataclass(frozen=True)
class ShardsConfig:
    """What becomes a narrative.

    min_steps: fewer matched clips than this make none (the paper's preset is 4). require: bounds on the checks, for
    example "caption_action_similarity>=0.2": a clip, or for a narrative's own check the video, that breaks one or was
    not measured is rejected (`check_failed`).
    """

    min_steps: int = 2
    target_shard_bytes: int = 256 * 2**20
    require: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.min_steps < 1:
            raise ValueError(f"min_steps is {self.min_steps}; a narrative has at least 1 step")
        if self.target_shard_bytes < 1:
            raise ValueError(f"target_shard_bytes is {self.target_shard_bytes}; it must be positive")
        for check, *_ in self.requirements:
            if not is_clip_check(check) and check not in NARRATIVE_CHECKS:
                raise UnknownNameError("check in shards.require", check, [*CLIP_CHECKS, *NARRATIVE_CHECKS])

    @property
    def requirements(self) -> tuple[Requirement, ...]:
        """`require`, read."""
        return tuple(map(_requirement, self.require))


def _requirement(text: str) -> Requirement:
    found = re.fullmatch(r"\s*(\w+)\s*(>=|<=)\s*([-+]?\d*\.?\d+)\s*", text, re.ASCII)
    if found is None:
        raise ValueError(f"require holds {text!r}; write a check, >= or <=, and a number: talking_head<=0.5")
    return Requirement(found[1], found[2], float(found[3]))


@dataclass(frozen=True)
class Step:
    """One clip of a narrative: what its JSON says, and the row that names its media."""

    sample: Sample
    clip: Clip


@dataclass(frozen=True)
class _Planned:
    """What the packing needs to know of a narrative, and no more: a set can hold very many."""

    narrative: str
    split: str
    num_steps: int
    num_bytes: int
    position: int  # in the sequence of states
    meaning: NDArray[np.float32] | None  # of its steps' actions, where there is evidence of them


def write_shards(
    states: Sequence[VideoState],
    source_rejects: Sequence[Reject],
    *,
    config: ShardsConfig,
    run_config: Any,
    places: Places,
    out: Path,
    stages: tuple[Stage, ...],
    report: Callable[[Path], None] | None = None,
) -> Manifest:
    """Writes a whole shard set and returns its manifest, which is also the last file written (dataset.json).

    states: every video of the run, in any order; read twice, one at a time. source_rejects: what the source itself
    refused. run_config: the full frozen configuration; its values without machinery go into the manifest. stages: those
    that the results come from, in order. report: writes the page to the path that it is given, before dataset.json.
    Shards and tables of an earlier set in `out` are removed. Every input video ends in exactly one narrative or has
    exactly one video-level reject.

    Raises InputError for a medium that is missing from the store or is not what its clip says.
    """
    out.mkdir(parents=True, exist_ok=True)
    (out / "dataset.json").unlink(missing_ok=True)  # from here on the set is not complete
    planned, split_names = _write_row_tables(states, source_rejects, config=config, out=out, stages=stages)
    packed = {split: _pack([item for item in planned if item.split == split], config) for split in split_names}
    _remove_stale(out, {_shard_path(split, number) for split in packed for number in range(len(packed[split]))})

    statistics = Statistics()
    narratives: list[Narrative] = []
    splits = {}
    for split, buckets in packed.items():
        shards = []
        for number, bucket in enumerate(buckets):
            steps = (_steps_again(states[item.position], stages, config) for item in bucket)
            shard, rows = _write_shard(_shard_path(split, number), steps, places=places, out=out, statistics=statistics)
            assert [(row.num_steps, row.num_bytes) for row in rows] == [(b.num_steps, b.num_bytes) for b in bucket]
            shards.append(shard)
            narratives += rows
        splits[split] = Split(
            num_narratives=sum(shard.num_narratives for shard in shards),
            num_clips=sum(shard.num_clips for shard in shards),
            shards=tuple(shards),
        )
    write_table(table_path(out, Narrative), Narrative, sorted(narratives, key=lambda row: row.narrative))

    name = "-".join(["cookgen", *sorted({state.source.source for state in states})])
    manifest = Manifest(
        format=FORMAT,
        name=name,
        created_by=f"cookgen {__version__}",
        splits=splits,
        statistics=statistics.to_values(list(splits)),
        # Without machinery: the same data made elsewhere, or with another engine, has the same manifest.
        config=ConfigStamp(digest=config_digest(run_config), values=to_values(run_config, with_machinery=False)),
    )
    write_atomic(out / "README.md", card_text(name, splits, statistics))
    if report is not None:
        with atomic_path(out / "report.html") as temporary:
            report(temporary)
    write_atomic(out / "dataset.json", canonical_json(manifest.to_json()))
    return manifest


def steps_of(state: VideoState, stages: tuple[Stage, ...], config: ShardsConfig) -> tuple[Step, ...] | Reject:
    """The steps of a video that reached the end: its chosen matches in clip order; or the reject too_few_steps.

    A chosen clip without a caption is left out: the captions stage has said why. So is one that `failed` names.
    """
    video: Video = state.rows(Video, stages)
    clips: dict[int, Clip] = {row.clip_index: row for row in state.rows(Clip, stages)}
    actions: dict[int, Action] = {row.action_index: row for row in state.rows(Action, stages)}
    captions: dict[int, Caption] = {row.clip_index: row for row in state.rows(Caption, stages)}
    checks: dict[int, dict[str, float]] = defaultdict(dict)
    for check in _rows(state, Check, stages):
        if check.clip_index is not None:
            checks[check.clip_index][check.check] = check.score
    gone = {reject.clip_index for reject in failed(state, stages, config)}
    matches = [row for row in _told(state, stages) if row.clip_index not in gone]
    matches.sort(key=lambda row: (clips[row.clip_index].start_s, clips[row.clip_index].end_s, row.clip_index))
    if len(matches) < config.min_steps:
        among = ", of those that shards.require allows" if gone else ""
        detail = f"{len(matches)} matched clips with a caption{among}; a narrative has at least {config.min_steps}"
        return _reject(state, Reason.TOO_FEW_STEPS, detail)
    lineage = {name: result.lineage for name, result in state.whole.items()}
    steps = []
    for index, match in enumerate(matches):
        clip, action, caption = clips[match.clip_index], actions[match.action_index], captions[match.clip_index]
        assert match.rule is not None, f"{video.narrative}: a chosen pair that no branch of the rule allows: {match}"
        words = None if action.word_first is None or action.word_end is None else (action.word_first, action.word_end)
        sample = Sample(
            format=FORMAT,
            narrative=video.narrative,
            index=index,
            num_steps=len(matches),
            split=video.split,
            video=SampleVideo.model_validate(video.model_dump(include=set(SampleVideo.model_fields))),
            clip=SampleClip.model_validate(clip.model_dump(include=set(SampleClip.model_fields))),
            keyframe=SampleKeyframe(pts_s=clip.keyframe_pts_s),
            action=SampleAction(
                text=action.text,
                start_s=action.start_s,
                end_s=action.end_s,
                origin=action.origin,
                raw_text=action.raw_text,
                word_ids=words,
            ),
            caption=SampleCaption(text=caption.text, origin=caption.origin),
            match=SampleMatch(start_diff_s=match.start_diff_s, iou=match.iou, rule=match.rule),
            checks=checks[match.clip_index],
            lineage=lineage,
        )
        steps.append(Step(sample, clip))
    return tuple(steps)


def failed(state: VideoState, stages: tuple[Stage, ...], config: ShardsConfig) -> list[Reject]:
    """A reject for each matched clip with a caption, and for a video with any, whose checks shards.require refuses."""
    told = _told(state, stages)
    if not told:
        return []
    scores = {(row.clip_index, row.check): row.score for row in _rows(state, Check, stages)}
    rejects: dict[int | None, Reject] = {}
    for requirement in config.requirements:
        of_clips = is_clip_check(requirement.check)
        for match in told if of_clips else told[:1]:
            clip_index = match.clip_index if of_clips else None
            score = scores.get((clip_index, requirement.check))
            if not requirement.is_met(score):
                found = "was not measured" if score is None else f"is {score:.4g}"
                detail = f"{requirement.check} {found}; shards.require: {requirement}"
                index = {"clip_index": match.clip_index, "action_index": match.action_index} if of_clips else {}
                rejects.setdefault(clip_index, _reject(state, Reason.CHECK_FAILED, detail, **index))
    return list(rejects.values())


def _told(state: VideoState, stages: tuple[Stage, ...]) -> list[Match]:
    """The chosen matches whose clip has a caption."""
    captioned = {row.clip_index for row in _rows(state, Caption, stages)}
    return [row for row in _rows(state, Match, stages) if row.chosen and row.clip_index in captioned]


def unmatched(state: VideoState, stages: tuple[Stage, ...]) -> Iterator[Reject]:
    """A reject for every clip and every action that the matching chose no partner for."""
    matches: list[Match] = [row for row in _rows(state, Match, stages) if row.chosen]
    matched_clips = {row.clip_index for row in matches}
    matched_actions = {row.action_index for row in matches}
    for clip in _rows(state, Clip, stages):
        if clip.clip_index not in matched_clips:
            yield _reject(state, Reason.UNMATCHED, "no action was chosen for this clip", clip_index=clip.clip_index)
    for action in _rows(state, Action, stages):
        if action.action_index not in matched_actions:
            detail = "no clip was chosen for this action"
            yield _reject(state, Reason.UNMATCHED, detail, action_index=action.action_index)


def _reject(state: VideoState, reason: Reason, detail: str, **index: int) -> Reject:
    source = state.source
    return Reject(narrative=source.narrative, path=source.path, stage=NAME, reason=reason, detail=detail, **index)


def _rows(state: VideoState, record: Any, stages: tuple[Stage, ...]) -> tuple[Any, ...]:
    """The rows of a record that the video has so far; none for a stage that it did not reach."""
    results = state.whole
    names = [stage.name for stage in stages if stage.writes is record and stage.name in results]
    return tuple(row for name in names for row in results[name].rows)


def _steps_again(state: VideoState, stages: tuple[Stage, ...], config: ShardsConfig) -> tuple[Step, ...]:
    steps = steps_of(state, stages, config)
    assert not isinstance(steps, Reject), f"{state.source.narrative}: planned as a narrative, now {steps}"
    return steps


def _write_row_tables(
    states: Sequence[VideoState],
    source_rejects: Sequence[Reject],
    *,
    config: ShardsConfig,
    out: Path,
    stages: tuple[Stage, ...],
) -> tuple[list[_Planned], list[str]]:
    """Writes every table but narratives in one pass over the videos; returns the narratives to pack and all splits."""
    positions = {state.source.narrative: position for position, state in enumerate(states)}
    assert len(positions) == len(states), "two input videos have the same narrative name"
    refused: dict[str, list[Reject]] = defaultdict(list)
    for reject in source_rejects:
        refused[reject.narrative or ""].append(reject)
    planned: list[_Planned] = []
    splits = set(SPLITS)
    with ExitStack() as stack:
        append = {
            record: stack.enter_context(table_writer(table_path(out, record), record))
            for record in TABLES
            if record is not Narrative
        }
        for narrative in sorted(positions.keys() | refused.keys()):
            rejects = list(refused.get(narrative, ()))
            if narrative in positions:
                state = states[positions[narrative]]
                for result in state.whole.values():
                    rejects += result.rejects
                    for row in result.rows:
                        if type(row) in append:  # evidence is no table
                            append[type(row)](row)
                splits |= {video.split for video in _rows(state, Video, stages)}
                rejects += unmatched(state, stages)
                rejects += failed(state, stages, config)
                if not any(reject.is_video_level for reject in rejects):
                    steps = steps_of(state, stages, config)
                    if isinstance(steps, Reject):
                        rejects.append(steps)
                    else:
                        planned.append(_plan(steps, positions[narrative], _meaning(state, steps, stages)))
                num_ends = sum(reject.is_video_level for reject in rejects)
                num_ends += bool(planned and planned[-1].narrative == narrative)
                assert num_ends == 1, f"{narrative}: {num_ends} outcomes; a video is a narrative or one reject"
            for reject in sorted(rejects, key=_reject_order):
                append[Reject](reject)
        for check in _set_checks(planned):
            append[Check](check)
    for split in splits:
        if not re.fullmatch(r"[A-Za-z0-9_]+", split):
            raise InputError(f"split {split!r}: a split names a folder; use letters, digits and underscores")
    return planned, sorted(splits)


def _reject_order(reject: Reject) -> tuple[Any, ...]:
    clip = -1 if reject.clip_index is None else reject.clip_index
    action = -1 if reject.action_index is None else reject.action_index
    return (reject.path, clip, action, reject.stage, reject.reason, reject.detail)


def _meaning(state: VideoState, steps: tuple[Step, ...], stages: tuple[Stage, ...]) -> NDArray[np.float32] | None:
    """float32 [width], of length 1: the mean of what the steps' actions mean."""
    clips = {step.clip.clip_index for step in steps}
    told = {match.action_index for match in _told(state, stages) if match.clip_index in clips}
    vectors = [row.vector for row in _rows(state, Evidence, stages) if row.action_index in told]
    if not vectors:
        return None
    mean: NDArray[np.float32] = np.sum(vectors, axis=0)
    return mean / np.float32(max(float(np.linalg.norm(mean)), 1e-6))


def _set_checks(planned: Sequence[_Planned]) -> Iterator[Check]:
    """What is known of a narrative only beside all others."""
    known = [(item, item.meaning) for item in planned if item.meaning is not None]
    if known:
        vectors = np.stack([meaning for _, meaning in known])
        (name,) = SET_CHECKS
        for (item, _), score in zip(known, nearest_elsewhere(vectors, [i.split for i, _ in known]), strict=False):
            yield Check(narrative=item.narrative, clip_index=None, check=name, score=score)


def _plan(steps: tuple[Step, ...], position: int, meaning: NDArray[np.float32] | None) -> _Planned:
    first = steps[0].sample
    num_bytes = sum(
        _member_bytes(name, size) for step in steps for name, size in zip(_names(step), _sizes(step), strict=True)
    )
    return _Planned(first.narrative, first.split, len(steps), num_bytes, position, meaning)


def _pack(items: list[_Planned], config: ShardsConfig) -> list[list[_Planned]]:
    """The buckets of one split; the rule stands at the head of this file."""
    if not items:
        return []
    places = np.array([_place(item.narrative) for item in items])
    num_buckets = min(-(-sum(item.num_bytes for item in items) // config.target_shard_bytes), len(items))
    while len(np.unique((places * num_buckets).astype(np.int64))) < num_buckets:
        num_buckets -= 1
    buckets: list[list[_Planned]] = [[] for _ in range(num_buckets)]
    for item in sorted(items, key=lambda item: item.narrative):
        buckets[int(_place(item.narrative) * num_buckets)].append(item)
    return buckets


def _place(narrative: str) -> float:
    """Where the narrative falls in [0, 1)."""
    return int(hashlib.sha256(f"{FORMAT}:shard:{narrative}".encode()).hexdigest()[:8], 16) / 2**32


def _shard_path(split: str, number: int) -> str:
    return f"{split}/cookgen-{split}-{number:06d}.tar"


def _remove_stale(out: Path, keep: set[str]) -> None:
    """Removes shards, tables and unfinished files that an earlier run left, and nothing that is not ours."""
    for folder in sorted(path for path in out.iterdir() if path.is_dir() and not path.is_symlink()):
        for path in folder.glob(f"cookgen-{folder.name}-*.tar"):
            number = path.stem.removeprefix(f"cookgen-{folder.name}-")
            if re.fullmatch(r"[0-9]{6}", number) and f"{folder.name}/{path.name}" not in keep:
                path.unlink()
        if folder.name == "tables" or any(shard.startswith(f"{folder.name}/") for shard in keep):
            for path in folder.glob(".tmp-*"):
                path.unlink()
    tables = {table_path(out, record).name for record in TABLES}
    for path in (out / "tables").glob("*.parquet"):
        if path.name not in tables:
            path.unlink()


class _HashedFile:
    """A file that is written once, front to back, and digested on the way, by a thread of its own."""

    def __init__(self, stream: IO[bytes], thread: ThreadPoolExecutor) -> None:
        self._stream, self._thread = stream, thread
        self._hash = hashlib.sha256()
        self.num_bytes = 0

    def write(self, data: bytes) -> int:
        self._thread.submit(self._hash.update, data)
        self.num_bytes += len(data)
        return self._stream.write(data)

    def tell(self) -> int:
        return self.num_bytes

    def sha256(self) -> str:
        return self._thread.submit(self._hash.hexdigest).result()


def _write_shard(
    path: str, narratives: Iterable[tuple[Step, ...]], *, places: Places, out: Path, statistics: Statistics
) -> tuple[Shard, list[Narrative]]:
    """One tar file; at most three media in memory at a time: one is read and proved, and what was written is digested,
    by one other thread while this one writes."""
    rows = []
    with atomic_path(out / path) as temporary, temporary.open("wb") as stream, ThreadPoolExecutor(1) as thread:
        file = _HashedFile(stream, thread)
        options: dict[str, Any] = {"format": tarfile.PAX_FORMAT, "copybufsize": _COPY_BYTES}
        with tarfile.open(fileobj=file, mode="w", **options) as tar:  # type: ignore[call-overload]
            for steps in narratives:
                start = file.num_bytes
                names = [name for step in steps for name in _names(step)]
                contents = (content for step in steps for content in _contents(step, places))
                for name, content in zip(names, _ahead(contents, thread), strict=True):
                    tar.addfile(tar_member(name, len(content)), io.BytesIO(content))
                for step in steps:
                    statistics.add(step.sample)
                rows.append(
                    Narrative(
                        narrative=steps[0].sample.narrative,
                        split=steps[0].sample.split,
                        shard=path,
                        num_steps=len(steps),
                        first_member_offset=start,
                        num_bytes=file.num_bytes - start,
                    )
                )
        sha256 = file.sha256()
    shard = Shard(
        path=path,
        sha256=sha256,
        num_bytes=file.num_bytes,
        num_narratives=len(rows),
        num_clips=sum(row.num_steps for row in rows),
    )
    return shard, rows


def _ahead(contents: Iterator[bytes], thread: ThreadPoolExecutor) -> Iterator[bytes]:
    """The same in the same order; the thread reads and proves the next one while this one is written."""
    coming = thread.submit(next, contents, None)
    while (content := coming.result()) is not None:
        coming = thread.submit(next, contents, None)
        yield content


def _names(step: Step) -> list[str]:
    return [f"{step.sample.narrative}-{step.sample.index:03d}{suffix}" for suffix in (".json", ".mp4", ".jpg")]


def _json(step: Step) -> bytes:
    return canonical_json(step.sample.to_json()).encode()


def _sizes(step: Step) -> list[int]:
    return [len(_json(step)), step.clip.num_bytes, step.clip.keyframe_num_bytes]


def _contents(step: Step, places: Places) -> Iterator[bytes]:
    yield _json(step)
    yield _medium(places.medium(step.clip.sha256, ".mp4"), step.clip.sha256, step.clip.num_bytes)
    yield _medium(
        places.medium(step.clip.keyframe_sha256, ".jpg"), step.clip.keyframe_sha256, step.clip.keyframe_num_bytes
    )


def _medium(path: Path, sha256: str, num_bytes: int) -> bytes:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path}: missing from the media store; remove the store to have it made again") from None
    if len(content) != num_bytes or hashlib.sha256(content).hexdigest() != sha256:
        raise InputError(
            f"{path}: {len(content)} bytes that are not those that were encoded ({num_bytes} bytes, sha256 {sha256});"
            " remove the store to have it made again"
        )
    return content


def _member_bytes(name: str, num_bytes: int) -> int:
    """What a member takes in a tar file: its header (three blocks where the name is long), and its padded content."""
    return len(tar_member(name, num_bytes).tobuf(tarfile.PAX_FORMAT)) + -(-num_bytes // 512) * 512
