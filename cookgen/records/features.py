"""features.json: what a folder of sidecar shards holds. Written last: it is there when the sidecars are complete."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PositiveInt

from cookgen.records.record import Record

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Features(Record):
    """One array a clip, `{key}.npy`, in tar files with the names, keys and order of the shards.

    `sha256s` and `of_shards` have the same keys: the shards' paths as dataset.json lists them. A sidecar lies at
    `features/{name}/{path of its shard}`. Source: FORMAT, "Layout of a shard set".
    """

    TABLE: ClassVar[str] = "features"

    format: Literal["cookgen/1"]
    name: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")
    created_by: str
    model: str
    revision: str
    dtype: Literal["float16"]
    shape: tuple[PositiveInt, ...] = Field(max_length=8)  # of one clip's array
    config: dict[str, Any]  # the encoder's kind and all its settings that change what comes out
    sha256s: dict[str, Sha256]  # of the sidecar's tar file
    of_shards: dict[str, Sha256]  # of the shard that it was computed from
