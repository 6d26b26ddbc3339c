"""dataset.json: the manifest of a shard set, written last."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from cookgen.records.record import Record


class Shard(Record):
    """One tar file. `path` is relative to the set's folder."""

    TABLE: ClassVar[str] = ""

    path: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    num_bytes: PositiveInt
    num_narratives: PositiveInt
    num_clips: PositiveInt


class Split(Record):
    """One split: its size and its shards, which are none for an empty split."""

    TABLE: ClassVar[str] = ""

    num_narratives: NonNegativeInt
    num_clips: NonNegativeInt
    shards: tuple[Shard, ...]


class ConfigStamp(Record):
    """The resolved configuration and its digest, which leaves out places and machinery."""

    TABLE: ClassVar[str] = ""

    digest: str
    values: dict[str, Any]


class Manifest(Record):
    """The whole of dataset.json. Its presence means that the set is complete."""

    TABLE: ClassVar[str] = "dataset"

    format: Literal["cookgen/1"]
    name: str
    created_by: str
    splits: dict[str, Split]
    statistics: dict[str, Any]
    config: ConfigStamp
