"""`python -m pipelines cut` and `probe`: what the stages make of one file, without a source and without a shard set.

OUTDIR/
  00000.mp4 00000.jpg …   the clip and the keyframe of each span that could be cut, by its place in SPANS.json
  clips.json              written last: what was really cut of each span, or why it was not
  .cookgen-cut            the mark of such a folder, and its lock
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from cookgen import __version__
from cookgen.commands import printable
from cookgen.config import apply_settings, to_values
from cookgen.errors import InputError, OutputError, UsageError
from cookgen.files import canonical_json, explained, lock_held, narrative_name, write_atomic
from cookgen.records import Reason, Reject, Segment, SourceVideo, Video
from pipelines.ffmpeg import ChildKilledError, ffmpeg_build
from pipelines.stage import Places
from pipelines.stages.clips import ClipsConfig, VideoChangedError, cut_clips
from pipelines.stages.videos import VideosConfig, probe_video

FORMAT = "cookgen/cut/1"
LIST = "clips.json"
MARKER = ".cookgen-cut"
_WORK = ".cutting-"  # begins the name of a folder for unfinished work; a cut that is killed leaves it behind
_MEDIUM = re.compile(r"\d{5,}\.(mp4|jpg)")
_REMEDY = "Choose another OUTDIR, or mend its rights"
_EXAMPLE = '[{"start_s": 3.0, "end_s": 9.5}, …]'
_SOURCE = "file"
# What a source says of its videos; a lone file has no source. All other fields of a Video were found in the file.
_SAID = set(SourceVideo.model_fields) - {"path", "num_bytes"}


@dataclass(frozen=True)
class CutConfig:
    """What `--set` can change. Whoever names a video and its spans wants them: none is too short, long or small."""

    videos: VideosConfig = VideosConfig(min_duration_s=0.0, max_duration_s=1e9, min_short_side_px=1)
    clips: ClipsConfig = ClipsConfig(policy="segments")

    def __post_init__(self) -> None:
        if self.clips.policy != "segments":
            raise ValueError("clips.policy must be segments: SPANS.json says what is cut")


def cut(
    video: Annotated[Positional[Path], arg(metavar="VIDEO")],
    spans: Annotated[Positional[Path], arg(metavar="SPANS.json")],
    outdir: Annotated[Positional[Path], arg(metavar="OUTDIR")],
    *,
    settings: Annotated[tuple[str, ...], arg(name="set", metavar="NAME=VALUE …")] = (),
) -> int:
    """Cuts spans of a video into exact clips with keyframes; exit status 1 where a span could not be cut.

    Args:
        video: A video file.
        spans: [{"start_s": 3.0, "end_s": 9.5}, …], in seconds from the start of the video.
        outdir: A folder: new, empty, or an earlier cut's, whose files are replaced when all spans are done.
        settings: Values by dotted name, for example clips.fps=10 clips.size_px=256 clips.keep_audio=false.
    """
    config = apply_settings(CutConfig(), list(settings))
    segments = read_spans(spans)
    _check_outdir(outdir, video)
    found = _probed(video, config.videos, segments)
    if isinstance(found, Reject):
        raise InputError(f"{video}: {found.reason} ({found.detail}). Name a video file that can be read")
    with explained(outdir, _REMEDY):
        outdir.mkdir(parents=True, exist_ok=True)
        (outdir / MARKER).touch()
        with lock_held(outdir / MARKER, outdir, choose="OUTDIR"):
            for left_behind in outdir.glob(f"{_WORK}*"):
                shutil.rmtree(left_behind)
            with tempfile.TemporaryDirectory(dir=outdir, prefix=_WORK) as work:
                rows = _cut_all(Path(work), video, found, config.clips)
                made_by = {"format": FORMAT, "created_by": f"cookgen {__version__}", "ffmpeg": ffmpeg_build()}
                values = {**made_by, "config": to_values(config), "video": _facts(found, video), "clips": rows}
                write_atomic(Path(work) / "done" / LIST, canonical_json(values))
                _publish(Path(work) / "done", outdir)
    reasons = Counter(row["reason"] for row in rows if "reason" in row)
    why = ", ".join(f"{reason} {count}" for reason, count in sorted(reasons.items()))
    others = f"; the others: {why}" if why else ""
    _say(printable(f"{outdir}: {len(rows) - reasons.total()} of {len(rows)} spans cut{others}"))
    return 1 if reasons else 0


def probe(videos: Annotated[Positional[tuple[Path, ...]], arg(metavar="VIDEO …")]) -> int:
    """Prints a line of JSON a video: what was found in it, or {path, reason, detail} and exit status 1 where a run with
    the default settings could not use it.

    Args:
        videos: Video files.
    """
    if not videos:
        raise UsageError("probe: name at least one VIDEO")
    found = []
    for video in videos:
        found.append(_probed(video, VideosConfig(), ()))
        # ASCII alone: a name may hold anything, and a terminal must not obey it. DEL is the one that JSON lets through.
        _say(json.dumps(_facts(found[-1], video), sort_keys=True).replace("\x7f", "\\u007f"))
    return 1 if any(isinstance(item, Reject) for item in found) else 0


def read_spans(path: Path) -> tuple[Segment, ...]:
    """The spans of a SPANS.json, in its order; keys other than start_s and end_s are passed over.

    Raises InputError that names the file, the first span that is wrong, and the rule.
    """
    try:
        spans = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); SPANS.json holds {_EXAMPLE}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error}); SPANS.json holds {_EXAMPLE}") from error
    if not isinstance(spans, list) or not spans:
        kind = "an empty list" if spans == [] else f"no list but {type(spans).__name__}"
        raise InputError(f"{path}: holds {kind}; write {_EXAMPLE}")
    return tuple(_segment(f"{path}: span {number}", span) for number, span in enumerate(spans))


def _segment(name: str, span: object) -> Segment:
    if not isinstance(span, dict):
        raise InputError(f"{name} is {type(span).__name__}, no object; write {_EXAMPLE}")
    for key in ("start_s", "end_s"):
        value: Any = span.get(key)
        # Compared before it is made a float: an int may be larger than any of those. NaN is not in the range either.
        if type(value) not in (int, float) or not 0 <= value <= sys.float_info.max:
            what = repr(value)[:80] if key in span else "missing"
            raise InputError(f"{name}: {key} is {what}; it must be a finite number of seconds, at least 0")
    start_s, end_s = float(span["start_s"]), float(span["end_s"])
    if start_s >= end_s:
        raise InputError(f"{name}: start_s is {start_s:g} and end_s {end_s:g}; a span must end after it starts")
    return Segment(start_s=start_s, end_s=end_s, text="")


def _probed(video: Path, config: VideosConfig, segments: tuple[Segment, ...]) -> Video | Reject:
    """What the videos stage finds, rounded as the store keeps it; `path` is the file's name, without its folder."""
    path = video.name
    try:
        path.encode()
    except UnicodeEncodeError:
        detail = "the file's name is not UTF-8; rename it"
        return Reject(narrative=None, path="", stage="source", reason=Reason.BAD_NAME, detail=detail)
    source = SourceVideo(
        narrative=narrative_name(_SOURCE, path),
        source=_SOURCE,
        video_id=path,
        path=path,
        num_bytes=0,  # size and time stand for a file's content until it is read: they are not looked at here
        mtime_ns=0,
        segments=segments,
    )
    [found] = probe_video(source, config=config, tool=_places(video, video.parent))
    return type(found).model_validate_json(canonical_json(found.to_json()))


def _places(video: Path, work: Path) -> Places:
    return Places(videos=video.parent, media=work / "media", scratch=work / "scratch")


def _facts(found: Video | Reject, video: Path) -> dict[str, Any]:
    """What was found in a file, under the path that the user gave."""
    only = {"reason", "detail"} if isinstance(found, Reject) else set(Video.model_fields) - _SAID
    shown = str(video).encode("utf-8", "backslashreplace").decode()
    return {**found.model_dump(mode="json", include=only), "path": shown}


def _cut_all(work: Path, video: Path, found: Video, config: ClipsConfig) -> list[dict[str, Any]]:
    """Cuts every segment; its files go to work/done under their final names. Returns a row a segment for clips.json."""
    done, places = work / "done", _places(video, work)
    done.mkdir()
    rows: list[dict[str, Any]] = [{"start_s": span.start_s, "end_s": span.end_s} for span in found.segments]
    why_none: dict[str, Any] = {}
    try:
        for item in cut_clips(found, config=config, tool=places):
            if isinstance(item, Reject):
                why = {"reason": item.reason.value, "detail": item.detail}
                if item.clip_index is None:
                    why_none = why
                else:
                    rows[item.clip_index] |= why
            else:
                asked = {"narrative", "clip_index", "start_s", "end_s"}
                rows[item.clip_index] |= item.model_dump(mode="json", exclude=asked)
                for sha256, suffix, _ in item.media:
                    places.medium(sha256, suffix).replace(done / f"{item.clip_index:05d}{suffix}")
    except VideoChangedError as error:
        raise InputError(f"{error}. Cut it when nothing changes it") from error
    except ChildKilledError as error:
        raise InputError(
            f"{video}: {error}. It says nothing of the video: run again, or set clips.timeout_s"
        ) from error
    rows = [row if "sha256" in row else {**why_none, **row} for row in rows]
    assert all("sha256" in row or "reason" in row for row in rows), "a span without a word"
    return rows


def _publish(done: Path, outdir: Path) -> None:
    """Puts what lies in `done` in the place of what an earlier cut left. Meanwhile there is no clips.json."""
    (outdir / LIST).unlink(missing_ok=True)
    for old in outdir.iterdir():
        if _MEDIUM.fullmatch(old.name):
            old.unlink()
    for new in sorted(done.iterdir()):  # clips.json comes last
        new.replace(outdir / new.name)


def _check_outdir(outdir: Path, video: Path) -> None:
    """Raises OutputError where `outdir` is something else than nothing, an empty folder or an earlier cut's."""
    with explained(outdir, _REMEDY):
        if not outdir.exists() and not outdir.is_symlink():
            return
        names = {path.name for path in outdir.iterdir()}
        holds_video = outdir.resolve() == video.resolve().parent
    foreign = [
        name for name in names if not (name in (LIST, MARKER) or name.startswith(_WORK) or _MEDIUM.fullmatch(name))
    ]
    if foreign or (names and MARKER not in names):
        found = min(foreign or names)
        raise OutputError(f"{outdir}: holds {found!r}, which no cut made. Choose another OUTDIR, or empty it")
    if holds_video:
        raise OutputError(f"{outdir}: holds VIDEO, but what is in it is replaced. Choose another OUTDIR")


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
