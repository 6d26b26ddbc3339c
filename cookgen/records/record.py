"""What all records share: frozen, typed, closed, with one JSON spelling and one digest."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from cookgen.files import digest

FORMAT = "cookgen/1"


class Record(BaseModel):
    """A row of a table. Frozen; unknown fields and NaN are refused; times are seconds, ends exclusive.

    TABLE names the parquet table. PER_VIDEO says how many rows one video has in it: exactly "one", or "many".
    DESCRIPTIVE are the fields that no stage's outcome hangs on; the content digest leaves them out, so that
    a corrected title does not cut clips again.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    TABLE: ClassVar[str]
    PER_VIDEO: ClassVar[Literal["one", "many"]] = "many"
    DESCRIPTIVE: ClassVar[frozenset[str]] = frozenset()

    def to_json(self) -> dict[str, Any]:
        """The row as plain JSON values."""
        return self.model_dump(mode="json")

    def content_digest(self) -> str:
        """sha256 over all fields but the descriptive ones."""
        return digest(self.model_dump(mode="json", exclude=set(self.DESCRIPTIVE)))


def faults(error: ValidationError) -> list[str]:
    """One line for each field that breaks its record, at most ten."""
    lines = []
    for item in error.errors(include_url=False, include_context=False)[:10]:
        place = ".".join(str(part) for part in item["loc"]) or "the document"
        lines.append(f"{place}: {item['msg']}, found {str(item['input'])[:80]!r}")
    return lines
