"""The `folder` source: any directory of videos, and what lies beside them: captions, yt-dlp's NAME.info.json."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Annotated

from pydantic import BaseModel, Field, ValidationError

from cookgen.errors import InputError
from cookgen.files import file_sha256, narrative_name
from cookgen.records import Reason, Reject, Segment, SourceVideo, faults

NAME = "folder"
VIDEO_SUFFIXES = frozenset(
    [
        ".3gp",
        ".avi",
        ".flv",
        ".m2ts",
        ".m4v",
        ".mkv",
        ".mov",
        ".mp4",
        ".mpeg",
        ".mpg",
        ".mts",
        ".ogv",
        ".ts",
        ".vob",
        ".webm",
        ".wmv",
    ]
)
SUBTITLE_SUFFIXES = (".en.vtt", ".en.srt", ".vtt", ".srt", ".sbv")  # the first that is there is taken
INFO_SUFFIX = ".info.json"
MAX_INFO_BYTES = 8 * 2**20  # yt-dlp writes up to a few MiB a video; more are comments
MAX_TEXT = 1000  # characters; YouTube allows 100 for a title
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]+")
_STAGE = "source"
_LOG = logging.getLogger(__name__)


class _Info(BaseModel):
    """What is taken from a video's info.json: yt-dlp's `title`, and `topic`, which is ours; all else is ignored."""

    title: Annotated[str, Field(max_length=MAX_TEXT)] | None = None
    topic: Annotated[str, Field(max_length=MAX_TEXT)] | None = None


def list_videos(folder: Path) -> Iterator[SourceVideo | Reject]:
    """Every video file below the folder, in the order of its path; hidden files and folders are left out.

    A file that cannot be listed safely (a link that leaves the folder, a name that is not UTF-8) is a reject. An
    info.json that cannot be used is named in the log, and its video has no title. Raises InputError where there is no
    such folder, or no video file in it.
    """
    paths = list(video_paths(folder))
    if not paths:
        raise InputError(
            f"{folder}: no video file in this folder or below; known suffixes are {' '.join(sorted(VIDEO_SUFFIXES))}. "
            "Name the folder that holds the videos with VIDEOS=dir (--videos dir)"
        )
    ids = Counter(_without_suffix(path) for path in paths)
    for path in paths:
        video_id = _without_suffix(path)
        clash = path if ids[video_id] > 1 else None
        info = _info_beside(folder, path)
        yield source_video(
            folder,
            path,
            source=NAME,
            video_id=video_id,
            clash_path=clash,
            title=_line(info.title),
            topic=_line(info.topic),
        )


def source_video(
    folder: Path,
    path: str,
    *,
    source: str,
    video_id: str,
    clash_path: str | None = None,
    url: str | None = None,
    title: str | None = None,
    topic: str | None = None,
    licence: str | None = None,
    split: str | None = None,
    segments: tuple[Segment, ...] = (),
) -> SourceVideo | Reject:
    """The row of one file, `path` relative to `folder`, with the captions beside it; or why it cannot be taken."""
    try:
        video_id.encode()
    except UnicodeEncodeError:
        shown = path.encode("utf-8", "backslashreplace").decode()
        return Reject(
            narrative=None, path=shown, stage=_STAGE, reason=Reason.BAD_NAME, detail="the file's name is not UTF-8"
        )
    narrative = narrative_name(source, video_id, clash_path=clash_path)
    file = folder / path
    try:
        if not file.resolve().is_relative_to(_resolved(folder)):
            detail = "a symbolic link to a place outside the folder; copy the file in to use it"
            return Reject(narrative=narrative, path=path, stage=_STAGE, reason=Reason.OUTSIDE_FOLDER, detail=detail)
        stat = file.stat()
        subtitles = _beside(folder, path, SUBTITLE_SUFFIXES)
        subtitles_sha256 = file_sha256(folder / subtitles) if subtitles else None
    except (OSError, RuntimeError) as error:  # RuntimeError: a symbolic link that leads to itself
        detail = getattr(error, "strerror", None) or "a symbolic link that leads to itself"
        return Reject(narrative=narrative, path=path, stage=_STAGE, reason=Reason.UNREADABLE_FILE, detail=detail)
    return SourceVideo(
        narrative=narrative,
        source=source,
        video_id=video_id,
        path=path,
        num_bytes=stat.st_size,
        mtime_ns=stat.st_mtime_ns,
        url=url,
        title=title,
        topic=topic,
        licence=licence,
        split=split,
        segments=segments,
        subtitles=subtitles,
        subtitles_sha256=subtitles_sha256,
    )


def video_paths(folder: Path) -> Iterator[str]:
    """Paths of all files below the folder that have a video's suffix, relative to it, sorted; hidden ones left out."""
    try:
        is_folder, is_there = folder.is_dir(), folder.exists()
    except OSError as error:
        raise InputError(f"{folder}: {error.strerror}; name the folder that holds the videos") from error
    if not is_folder:
        kind = "not a folder" if is_there else "no such folder"
        raise InputError(f"{folder}: {kind}. Name the folder that holds the videos with VIDEOS=dir (--videos dir)")
    found = []

    def refuse(error: OSError) -> None:
        raise InputError(f"{error.filename}: {error.strerror}; make it readable, or move it out of {folder}") from error

    for place, folders, files in os.walk(folder, onerror=refuse):  # symbolic links to folders are not followed
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [
            (Path(place) / name).relative_to(folder).as_posix()
            for name in files
            if not name.startswith(".") and Path(name).suffix.lower() in VIDEO_SUFFIXES
        ]
    yield from sorted(found)


def files_by_stem(folders: Iterable[Path]) -> dict[str, tuple[Path, str]]:
    """Each video file's folder and path in it, by its name without suffix: of the first folder, in path order."""
    files: dict[str, tuple[Path, str]] = {}
    for folder in folders:
        for path in video_paths(folder):
            files.setdefault(PurePosixPath(path).stem, (folder, path))
    return files


@functools.lru_cache(maxsize=4)
def _resolved(folder: Path) -> Path:
    """Where the folder really is: asked once, not for each of its files."""
    return folder.resolve()


def _without_suffix(path: str) -> str:
    return PurePosixPath(path).with_suffix("").as_posix()


def _beside(folder: Path, path: str, suffixes: Iterable[str]) -> str | None:
    """The first file that is there with the video's name and one of the suffixes; no link that leaves the folder."""
    stem = _without_suffix(path)
    for suffix in suffixes:
        candidate = stem + suffix
        file = folder / candidate
        with contextlib.suppress(OSError, RuntimeError):  # the longer suffix can make a name too long to be there
            if file.is_file() and file.resolve().is_relative_to(_resolved(folder)):
                return candidate
    return None


def _info_beside(folder: Path, path: str) -> _Info:
    """What the info.json beside a video says; nothing where there is none that can be used."""
    name = _beside(folder, path, (INFO_SUFFIX,))
    if name is None:
        return _Info()
    try:
        with (folder / name).open("rb") as stream:
            content = stream.read(MAX_INFO_BYTES + 1)
        if len(content) <= MAX_INFO_BYTES:
            return _Info.model_validate(json.loads(content))  # not pydantic's parser: it refuses half a surrogate
        fault = f"more than {MAX_INFO_BYTES} bytes"
    except OSError as error:
        fault = f"{error.strerror}"
    except ValidationError as error:
        fault = "; ".join(faults(error))
    except (ValueError, RecursionError) as error:
        fault = f"not JSON ({error})"
    _LOG.warning("%s: %s; mend or remove it: until then its video has no title", folder / name, fault)
    return _Info()


def _line(text: str | None) -> str | None:
    """The text in one line without control characters, None where nothing is left."""
    return " ".join(_CONTROL.sub(" ", text or "").split()) or None
