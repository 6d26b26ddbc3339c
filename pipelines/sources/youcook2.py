"""The `youcook2` source: the official annotation JSON and folders of videos named by id.

Videos may lie anywhere below a folder (the official archive has training/101/ID.mp4). An annotated video that is not
there is `Missing`; a video that is not annotated is none of this source's.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, Field, ValidationError

from cookgen.errors import InputError
from cookgen.files import narrative_name
from cookgen.records import Reject, Segment, SourceVideo
from pipelines.sources.folder import files_by_stem, source_video
from pipelines.sources.places import Missing

NAME = "youcook2"
SPLITS = {"training": "train", "validation": "val", "testing": "test"}  # YouCook2's subsets, as splits


class _Annotation(BaseModel):
    segment: tuple[Annotated[float, Field(allow_inf_nan=False)], Annotated[float, Field(allow_inf_nan=False)]]
    sentence: str


class _Entry(BaseModel):
    subset: str
    annotations: list[_Annotation]
    video_url: str | None = None
    recipe_type: str | None = None


def list_videos(folders: Sequence[Path], annotations: Path) -> Iterator[SourceVideo | Reject | Missing]:
    """Every annotated video, in the order of its id. `annotations` is youcookii_annotations_trainval.json or its like.

    The first folder that holds a video counts, and in it the first in path order. Raises InputError where the file is
    missing or is not in YouCook2's form (naming the entry and the field), or a folder cannot be listed.
    """
    entries = _read(annotations)
    files = files_by_stem(folders)
    for video_id in sorted(entries):
        entry = entries[video_id]
        if video_id not in files:
            yield Missing(narrative_name(NAME, video_id), video_id, entry.video_url)
            continue
        folder, path = files[video_id]
        yield source_video(
            folder,
            path,
            source=NAME,
            video_id=video_id,
            url=entry.video_url,
            topic=entry.recipe_type,
            split=entry.split,
            segments=tuple(Segment(start_s=start, end_s=end, text=text) for start, end, text in entry.segments),
        )


def segments(annotations: Path) -> dict[str, tuple[Segment, ...]]:
    """Video id -> its marked steps, as they stand in the file. Raises InputError as list_videos does."""
    return {
        video_id: tuple(Segment(start_s=start, end_s=end, text=text) for start, end, text in entry.segments)
        for video_id, entry in _read(annotations).items()
    }


class _Video(NamedTuple):
    """What is kept of an entry: of very many, a tenth of what their models would take."""

    split: str
    video_url: str | None
    recipe_type: str | None
    segments: tuple[tuple[float, float, str], ...]


def _read(annotations: Path) -> dict[str, _Video]:
    remedy = "ANNOTATIONS must name youcookii_annotations_trainval.json or a file of the same form"
    try:
        with annotations.open(encoding="utf-8-sig") as stream:
            values: Any = json.load(stream)
    except OSError as error:
        raise InputError(f"{annotations}: {error.strerror}; {remedy}") from error
    except (ValueError, RecursionError) as error:  # also bytes that are not UTF-8
        raise InputError(f"{annotations}: not JSON ({error}); {remedy}") from error
    database = values.get("database") if isinstance(values, dict) else None
    if not isinstance(database, dict) or not database:
        raise InputError(f"{annotations}: has no object 'database' with videos in it; {remedy}")
    entries = {}
    for video_id in list(database):
        value = database.pop(video_id)
        try:
            json.dumps([video_id, value], ensure_ascii=False).encode()
            entry = _Entry.model_validate(value)
        except UnicodeEncodeError as error:  # half a surrogate is JSON, but no text
            raise InputError(f"{annotations}: not JSON ({error}); {remedy}") from error
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(step) for step in first["loc"])
            raise InputError(f"{annotations}: video {video_id!r}, field {field}: {first['msg']}; {remedy}") from error
        if entry.subset not in SPLITS:
            raise InputError(
                f"{annotations}: video {video_id!r}, field subset: {entry.subset!r} is not one of {', '.join(SPLITS)}"
            )
        segments = tuple((*item.segment, item.sentence) for item in entry.annotations)
        entries[video_id] = _Video(SPLITS[entry.subset], entry.video_url, entry.recipe_type, segments)
    return entries
