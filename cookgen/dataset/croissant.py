"""Croissant metadata of a shard set: JSON-LD that says which files there are and which records they hold.

Source: the Croissant format specification, version 1.0 (docs.mlcommons.org/croissant/docs/croissant-spec.html).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cookgen.dataset.split import read_manifest
from cookgen.dataset.summary import read_statistics
from cookgen.dataset.tables import table_path
from cookgen.errors import FormatError
from cookgen.files import file_sha256
from cookgen.records import FORMAT, TABLES, Shard

_CR = (
    "citeAs column data dataType examples extract field fileProperty fileObject fileSet format includes isLiveDataset "
    "jsonPath key md5 parentField path recordSet references regex repeated replace samplingRate separator source "
    "subField transform equivalentProperty"
).split()
_CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "sc": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "dct": "http://purl.org/dc/terms/",
    "conformsTo": "dct:conformsTo",
    **{name: f"cr:{name}" for name in _CR},
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
}
_TYPES = {pa.string(): "sc:Text", pa.int64(): "sc:Integer", pa.float64(): "sc:Float", pa.bool_(): "sc:Boolean"}
_MEMBERS = (  # suffix, media type, Croissant type, what it is
    ("json", "application/json", "sc:Text", "all that the set says of the clip, as JSON (schemas/sample.schema.json)"),
    ("mp4", "video/mp4", "sc:VideoObject", "the clip"),
    ("jpg", "image/jpeg", "sc:ImageObject", "the clip's keyframe"),
)


def croissant_of(out: Path) -> dict[str, Any]:
    """The metadata of the set in `out`, to be kept beside its dataset.json. Raises as load_split does.

    Records: the members of the shards by kind (json, mp4, jpg) with their clips' keys, and each table by its name.
    """
    manifest = read_manifest(out)
    shards = [shard for _, split in sorted(manifest.splits.items()) for shard in split.shards]
    tables = {record.TABLE: table_path(out, record) for record in TABLES}
    return croissant(manifest.name, out, tables, licences=read_statistics(out).licences, shards=shards)


def croissant(
    name: str,
    root: Path,
    tables: Mapping[str, Path],
    *,
    licences: set[str | None],
    shards: Sequence[Shard] = (),
) -> dict[str, Any]:
    """The metadata of Parquet tables below `root`, by the name of their records, and of shards where there are any.

    Columns of lists and structs are left out: Croissant has no type for them.
    """
    distribution = [_file(shard.path, "application/x-tar", shard.sha256, shard.num_bytes) for shard in shards]
    records = []
    for suffix, media_type, kind, what in _MEMBERS if shards else ():
        distribution.append(
            {
                "@type": "cr:FileSet",
                "@id": f"shards-{suffix}",
                "name": f"shards-{suffix}",
                "containedIn": [{"@id": shard.path} for shard in shards],
                "encodingFormat": media_type,
                "includes": f"*.{suffix}",
            }
        )
        source = {"fileSet": {"@id": f"shards-{suffix}"}}
        key = {**source, "extract": {"fileProperty": "filename"}, "transform": {"regex": rf"^(.+)\.{suffix}$"}}
        content = {**source, "extract": {"fileProperty": "content"}}
        fields = [_field(suffix, "key", "sc:Text", key), _field(suffix, suffix, kind, content)]
        records.append(_record_set(suffix, f"A record a clip: {what}.", fields))
    for table, path in tables.items():
        place = path.relative_to(root).as_posix()
        try:
            schema = pq.read_schema(path)
            num_bytes, sha256 = path.stat().st_size, file_sha256(path)
        except (pa.ArrowException, OSError) as error:
            raise FormatError(f"{path}: not a readable Parquet file: {' '.join(str(error).split())[:200]}") from None
        distribution.append(_file(place, "application/x-parquet", sha256, num_bytes))
        fields = list(_columns(table, place, schema))
        records.append(_record_set(table, f"A record a row of {place}.", fields))
    stated = sorted(licence for licence in licences if licence)
    return {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": name,
        "description": f"Long narrative videos ({FORMAT}): clips in order, each with an action and a caption.",
        **({"license": stated[:20]} if stated else {}),
        "distribution": distribution,
        "recordSet": records,
    }


def _file(path: str, media_type: str, sha256: str, num_bytes: int) -> dict[str, Any]:
    return {
        "@type": "cr:FileObject",
        "@id": path,
        "name": path,
        "contentUrl": path,
        "contentSize": f"{num_bytes} B",
        "encodingFormat": media_type,
        "sha256": sha256,
    }


def _columns(table: str, place: str, schema: pa.Schema) -> Iterator[dict[str, Any]]:
    for column in schema:
        if column.type in _TYPES:
            source = {"fileObject": {"@id": place}, "extract": {"column": column.name}}
            yield _field(table, column.name, _TYPES[column.type], source)


def _field(record_set: str, name: str, kind: str, source: dict[str, Any]) -> dict[str, Any]:
    return {"@type": "cr:Field", "@id": f"{record_set}/{name}", "name": name, "dataType": kind, "source": source}


def _record_set(name: str, description: str, fields: list[dict[str, Any]]) -> dict[str, Any]:
    return {"@type": "cr:RecordSet", "@id": name, "name": name, "description": description, "field": fields}
