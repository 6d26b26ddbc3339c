"""`cookgen export`: a shard set's annotations in the forms that other tools read.

parquet     one flat row a clip, one file a split, as the Hub names them: train-00000-of-00001.parquet
seed-story  one narrative a line in the fields of SEED-Story's data set StoryStream, with the keyframes beside them
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cookgen.dataset.card import data_files
from cookgen.dataset.sample import Step
from cookgen.dataset.split import load_split, read_manifest
from cookgen.dataset.summary import read_statistics
from cookgen.dataset.tables import schema_of
from cookgen.errors import OutputError, UnknownNameError
from cookgen.files import atomic_path, canonical_json, explained, file_sha256, write_atomic
from cookgen.records import (
    Manifest,
    Record,
    SampleAction,
    SampleCaption,
    SampleClip,
    SampleKeyframe,
    SampleMatch,
    SampleVideo,
)

MARKER = ".cookgen-export.json"  # hidden, so that readers of the folder pass it over
_ROWS_PER_GROUP = 8192
_PARTS: Mapping[str, type[Record]] = {
    "video": SampleVideo,
    "clip": SampleClip,
    "keyframe": SampleKeyframe,
    "action": SampleAction,
    "caption": SampleCaption,
    "match": SampleMatch,
}


def export(out: Path, to: Path, *, format: str) -> list[Path]:  # noqa: A002
    """Writes the set in `out` to the folder `to` in a format of FORMATS; returns the files that hold the rows.

    Every file is written atomically and in constant memory; the same set again writes the same bytes. Raises
    OutputError where `to` holds anything but an export of this set in this format, and what load_split raises.
    """
    if format not in FORMATS:
        raise UnknownNameError("format", format, FORMATS)
    manifest = read_manifest(out)
    with explained(to, "Name another folder"):
        _claim(to, canonical_json({"format": format, "dataset": file_sha256(out / "dataset.json")}))
        return FORMATS[format](out, to, manifest)


def _claim(to: Path, stamp: str) -> None:
    """Marks an empty folder as this export's."""
    marker = to / MARKER
    if not (marker.is_file() and marker.read_bytes() == stamp.encode()):
        if to.exists() and (not to.is_dir() or any(to.iterdir())):
            raise OutputError(f"{to}: holds something else than this export of this set; name an empty folder")
        write_atomic(marker, stamp)


def split_files(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """(split of the set, what the Hub calls it) for the splits that have clips; the card's names."""
    for entry in data_files(manifest.splits):
        yield entry["path"].partition("/")[0], entry["split"]


def write_parquet(out: Path, to: Path, manifest: Manifest, *, with_speech: bool = True) -> list[Path]:
    """One row a clip, in the order of the index: `key` and the fields of its JSON, `video.title` as `video_title`.

    `action_word_first` and `action_word_end` are its words; `checks_*` the checks that the set has, null where a clip
    has not; lineage stays in the shards. Without speech, `action_raw_text` of actions from speech is empty: it is what
    somebody said.
    """
    checks = sorted(read_statistics(out).checks)
    schema = pa.schema([*_flat_fields(), *(pa.field(f"checks_{check}", pa.float64()) for check in checks)])
    paths = []
    for split, name in split_files(manifest):
        paths.append(to / f"{name}-00000-of-00001.parquet")
        rows: list[dict[str, Any]] = []
        with atomic_path(paths[-1]) as temporary, pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
            for narrative in load_split(split, out):
                rows += [_row(step, with_speech=with_speech) for step in narrative.steps]
                if len(rows) >= _ROWS_PER_GROUP:
                    writer.write_table(pa.Table.from_pylist(rows, schema=schema))
                    rows.clear()
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))
    return paths


def _flat_fields() -> Iterator[pa.Field]:
    yield from (pa.field(name, pa.string(), nullable=False) for name in ("key", "narrative", "split"))
    yield from (pa.field(name, pa.int64(), nullable=False) for name in ("index", "num_steps"))
    for part, record in _PARTS.items():
        for field in schema_of(record):
            if field.name == "word_ids":
                yield from (pa.field(f"{part}_{end}", pa.int64()) for end in ("word_first", "word_end"))
            else:
                yield field.with_name(f"{part}_{field.name}")


def _row(step: Step, *, with_speech: bool) -> dict[str, Any]:
    values = step.sample.to_json()
    action = values["action"]
    action["word_first"], action["word_end"] = action.pop("word_ids") or (None, None)
    if action["origin"] == "asr" and not with_speech:
        action["raw_text"] = ""
    flat = {f"{part}_{name}": value for part in (*_PARTS, "checks") for name, value in values[part].items()}
    return {"key": step.key, **{name: values[name] for name in ("narrative", "split", "index", "num_steps")}, **flat}


def write_seed_story(out: Path, to: Path, manifest: Manifest) -> list[Path]:
    """StoryStream's lines, {"id", "images", "captions", "orders"}, in {split}.jsonl; paths of images count from `to`.

    id counts the narratives of a file from 0 (their names are in the paths of their images); captions are what is seen
    in each clip, images their keyframes, orders 0, 1, 2, … Source: SEED-Story (arXiv 2407.08683), StoryStream's README.
    """
    paths = []
    for split, name in split_files(manifest):
        paths.append(to / f"{name}.jsonl")
        with atomic_path(paths[-1]) as temporary, temporary.open("w", encoding="utf-8") as stream:
            for number, narrative in enumerate(load_split(split, out)):
                images = [f"images/{narrative.name}/{step.key}.jpg" for step in narrative.steps]
                for image, step in zip(images, narrative.steps, strict=True):
                    write_atomic(to / image, step.read("jpg"))
                line = {
                    "id": number,
                    "images": images,
                    "captions": [step.caption for step in narrative.steps],
                    "orders": list(range(len(images))),
                }
                stream.write(json.dumps(line, ensure_ascii=False) + "\n")
    return paths


FORMATS: Mapping[str, Callable[[Path, Path, Manifest], list[Path]]] = {
    "parquet": write_parquet,
    "seed-story": write_seed_story,
}
