"""features.json: what a folder of sidecar shards holds. Written last: it is there when the sidecars are complete."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Protocol

from pydantic import Field, PositiveInt, field_validator

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

    @field_validator("config")
    @classmethod
    def _is_plain(cls, config: dict[str, Any]) -> dict[str, Any]:
        json.dumps(config, allow_nan=False)
        return config


class Encoding(Protocol):
    """Of which encoder some arrays are."""

    @property
    def model(self) -> str: ...
    @property
    def revision(self) -> str: ...
    @property
    def config(self) -> Mapping[str, Any]: ...


def encoder_of(found: Encoding) -> tuple[str, str, dict[str, Any]]:
    """Model, revision and settings: what the arrays hang on, besides the shards. `about` is words for people."""
    return found.model, found.revision, {name: value for name, value in found.config.items() if name != "about"}
