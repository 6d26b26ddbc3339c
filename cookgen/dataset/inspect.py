"""`cookgen inspect`: all that a shard set says of one narrative or clip, or why a video is not in it.

The text is plain and for people. What comes out of the set stays within its own line or paragraph; the command line
escapes control characters of whatever it prints.
"""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from cookgen.dataset.location import locate
from cookgen.dataset.narrative import Narrative
from cookgen.dataset.sample import Step
from cookgen.dataset.sidecar import feature_names, open_sidecar
from cookgen.dataset.split import load_split, read_manifest
from cookgen.dataset.tables import check_schema, read_table, table_path
from cookgen.errors import FormatError, InputError, UnknownNameError
from cookgen.files import explained, write_atomic
from cookgen.records import SUFFIXES, Check, Features, Record, Reject, Sample, Word

R = TypeVar("R", bound=Record)
_WIDTH = 100
_LABEL = 12
_MAX_NAMES = 10


def inspect(out: Path, key: str, *, save: Path | None = None) -> str:
    """What the set in `out` says of a narrative, of a clip ("{narrative}-{index:03d}"), or of a rejected video.

    key: a narrative's name comes first where it could also be a clip's. A rejected video without a name is known by its
    path. save: a folder; the clip's json, mp4 and jpg (a narrative's clips, all of them) are written there.
    Raises UnknownNameError with the nearest name, and whatever load_split raises for a damaged set.
    """
    found = _find(out, key)
    if found is None:
        rejects = [row for row in read_table(table_path(out, Reject), Reject) if key in (row.narrative, row.path)]
        if not rejects:
            raise UnknownNameError("narrative or clip", key, _near(key, _names(out)))
        return "\n".join(_reject_lines(key, rejects))
    narrative, index = found
    if index is None:
        steps, lines = narrative.steps, _narrative_lines(out, narrative)
    elif index < narrative.num_steps:
        steps, lines = (narrative.steps[index],), _clip_lines(out, narrative.steps[index])
    else:
        raise UnknownNameError("clip", key, [f"{narrative.name}-{index:03d}" for index in range(narrative.num_steps)])
    text = "\n".join(lines)
    if save is not None:
        for step in steps:
            for suffix in SUFFIXES:
                content = step.mp4 if suffix == "mp4" else step.read(suffix)
                with explained(save, "Name another folder"):
                    write_atomic(save / f"{step.key}.{suffix}", content)
        text += f"\n\nsaved {len(steps) * len(SUFFIXES)} files in {save}"
    return text


def _find(out: Path, key: str) -> tuple[Narrative, int | None] | None:
    """The narrative, and the index of the clip where the key is a clip's."""
    clip = re.fullmatch(r"(.+)-([0-9]{3,9})", key)
    of_clip = None
    for split in sorted(read_manifest(out).splits):
        for narrative in load_split(split, out):
            if narrative.name == key:
                return narrative, None
            if clip and narrative.name == clip[1]:
                of_clip = narrative, int(clip[2])
    return of_clip


def _names(out: Path) -> Iterator[str]:
    for split in sorted(read_manifest(out).splits):
        yield from (narrative.name for narrative in load_split(split, out))
    names = (row.narrative or row.path for row in read_table(table_path(out, Reject), Reject))
    yield from (name for name in names if name.isprintable())


def _near(key: str, names: Iterable[str]) -> list[str]:
    """The names to tell of: those nearest, else the first few; a set can hold very many."""
    known = sorted(set(names))
    return get_close_matches(key, known, n=_MAX_NAMES, cutoff=0.5) or known[:_MAX_NAMES]


def _rows_of(out: Path, record: type[R], narrative: str) -> list[R]:
    """A narrative's rows of a table, of which only the row groups that can hold them are read."""
    path = table_path(out, record)
    if not path.is_file():
        raise InputError(f"{path}: no such table; a shard set holds one {record.TABLE}.parquet")
    try:
        check_schema(path, pq.read_schema(path), record)
        columns = list(record.model_fields)
        rows = pq.read_table(path, columns=columns, filters=[("narrative", "=", narrative)], use_threads=False)
        return [record.model_validate(row) for row in rows.to_pylist()]
    except (pa.ArrowException, OSError, ValueError, OverflowError, ValidationError) as error:
        raise FormatError(f"{path}: not a readable table: {' '.join(str(error).split())[:200]}") from None


def _line(label: str, text: str) -> str:
    """One labelled paragraph, wrapped at 100 columns."""
    lines = textwrap.wrap(" ".join(text.split()), _WIDTH - _LABEL, break_on_hyphens=False) or [""]
    return f"{label:<{_LABEL}}" + f"\n{'':{_LABEL}}".join(lines)


def _span(start_s: float, end_s: float) -> str:
    return f"{_clock(start_s)} - {_clock(end_s)} ({end_s - start_s:.2f} s)"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds * 100), 6000)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest / 100:05.2f}"


def _narrative_lines(out: Path, narrative: Narrative) -> Iterator[str]:
    yield f"narrative {narrative.name}: {narrative.num_steps} steps"
    yield ""
    yield from _video_lines(out, narrative.steps[0].sample)
    scores = {row.check: row.score for row in _rows_of(out, Check, narrative.name) if row.clip_index is None}
    yield _line("checks", _scores(scores))
    yield from _feature_lines(out)
    for step in narrative.steps:
        yield ""
        yield f"{step.key}   {_span(step.start_s, step.end_s)}"
        yield _line("action", step.action)
        yield _line("caption", step.caption)


def _clip_lines(out: Path, step: Step) -> Iterator[str]:
    sample = step.sample
    clip, action, match = sample.clip, sample.action, sample.match
    yield f"clip {step.key}: step {sample.index + 1} of {sample.num_steps}"
    yield ""
    yield from _video_lines(out, sample)
    yield ""
    yield _line("clip", _span(clip.start_s, clip.end_s))
    yield _line("frames", f"{clip.num_frames} at {clip.fps:g} a second, {clip.width} x {clip.height} pixels")
    yield _line("source pts", f"first {clip.first_pts_s:.3f} s, last {clip.last_pts_s:.3f} s")
    yield _line("keyframe", f"{sample.keyframe.pts_s:.3f} s")
    yield _line("audio", "yes" if clip.has_audio else "no")
    yield _line("sha256", clip.sha256)
    yield ""
    yield _line("action", action.text)
    yield _line("", f"{_span(action.start_s, action.end_s)}, origin {action.origin}")
    yield _line("raw text", action.raw_text)
    if action.word_ids is not None:
        first, end = action.word_ids
        words = [row for row in _rows_of(out, Word, sample.narrative) if first <= row.word_id < end]
        said = " ".join(f"{word.text}[{word.start_s:.2f}]" for word in words)
        yield _line("words", f"{first} to {end}: {said}")
    yield _line("caption", sample.caption.text)
    yield _line("", f"origin {sample.caption.origin}")
    yield _line("match", f"start_diff {match.start_diff_s:.3f} s, IoU {match.iou:.3f}, by the rule {match.rule!r}")
    yield _line("checks", _scores(sample.checks))
    yield from _feature_lines(out)
    yield ""
    for number, (stage, lineage) in enumerate(sorted(sample.lineage.items())):
        what = f"{stage} version {lineage.version}, model {lineage.model or '(none)'}, "
        what += f"config {lineage.config[:12]}, inputs {lineage.inputs[:12]}"
        yield _line("" if number else "lineage", what)


def _video_lines(out: Path, sample: Sample) -> Iterator[str]:
    video = sample.video
    yield _line("title", video.title or "(none)")
    yield _line("topic", video.topic or "(none)")
    yield _line("url", video.url or "(none)")
    yield _line("licence", video.licence or "(not stated)")
    yield _line("source", f"{video.source}, video id {video.video_id}")
    yield _line(
        "video", f"{_clock(video.duration_s)}, {video.width} x {video.height} pixels, {video.fps:g} frames a second"
    )
    yield _line("file sha256", video.sha256)
    yield _line("split", sample.split)


def _scores(scores: dict[str, float]) -> str:
    return ", ".join(f"{name} {score:g}" for name, score in sorted(scores.items())) or "(none)"


def _feature_lines(out: Path) -> Iterator[str]:
    said = [
        f"{item.name} {item.dtype} {list(item.shape)} by {item.model} at {item.revision}" for item in _features(out)
    ] or ["(none)"]
    for number, text in enumerate(said):
        yield _line("" if number else "features", text)


def _reject_lines(key: str, rejects: list[Reject]) -> Iterator[str]:
    yield f"{key}: not in the shards"
    yield ""
    for row in rejects:
        if row.is_video_level:
            yield _line("path", row.path)
            yield _line("rejected by", f"the stage {row.stage}")
            yield _line("reason", row.reason.value)
            yield _line("detail", row.detail or "(none)")
    parts = Counter(f"{row.stage}: {row.reason.value}" for row in rejects if not row.is_video_level)
    for number, (what, count) in enumerate(sorted(parts.items())):
        yield _line("" if number else "its parts", f"{count} clips or actions, {what}")


def _features(out: Path) -> list[Features]:
    location, manifest = locate(out), read_manifest(out)
    return [open_sidecar(location, name, manifest).features for name in feature_names(out)]
