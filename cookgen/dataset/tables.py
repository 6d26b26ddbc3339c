"""The flat tables of a shard set: Parquet files whose schemas are the records'.

Same rows, same bytes: fixed row order (the writer's), fixed row groups, no timestamps.
"""

from __future__ import annotations

import contextlib
import types
from collections.abc import Callable, Iterable, Iterator
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ValidationError

from cookgen.errors import FormatError, InputError
from cookgen.files import atomic_path
from cookgen.records import Record, faults

R = TypeVar("R", bound=Record)
ROWS_PER_GROUP = 65_536
_SCALARS: dict[type, pa.DataType] = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}


def table_path(out: str | Path, record: type[Record]) -> Path:
    """Where a shard set keeps the table of this record."""
    return Path(out) / "tables" / f"{record.TABLE}.parquet"


@cache
def schema_of(record: type[Record]) -> pa.Schema:
    """The Arrow schema of a record: its fields in their order, nullable where None is allowed."""
    return pa.schema([_field(name, info.annotation) for name, info in record.model_fields.items()])


def _field(name: str, hint: Any) -> pa.Field:
    inner, nullable = without_none(hint)
    return pa.field(name, _arrow_type(inner), nullable=nullable)


def without_none(hint: Any) -> tuple[Any, bool]:
    """A field's type without its constraints and without None, and whether None was allowed."""
    while get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    if get_origin(hint) not in (Union, types.UnionType):
        return hint, False
    members = [member for member in get_args(hint) if member is not type(None)]
    assert len(members) == 1, f"{hint}: a column holds one type, or that type and None"
    return without_none(members[0])[0], True


def _arrow_type(hint: Any) -> pa.DataType:
    if hint in _SCALARS:
        return _SCALARS[hint]
    if get_origin(hint) is Literal or (isinstance(hint, type) and issubclass(hint, StrEnum)):
        return pa.string()
    if get_origin(hint) is tuple:
        return pa.list_(_field("element", get_args(hint)[0]))
    assert isinstance(hint, type) and issubclass(hint, BaseModel), f"no column type for {hint}"
    return pa.struct([_field(name, info.annotation) for name, info in hint.model_fields.items()])


@contextlib.contextmanager
def table_writer(path: str | Path, record: type[R]) -> Iterator[Callable[[R], None]]:
    """A function that appends one row to the table; the file takes its name when the block ends without an error.

    Constant memory: at most ROWS_PER_GROUP rows are held.
    """
    schema = schema_of(record)
    rows: list[dict[str, Any]] = []

    with (
        atomic_path(path) as temporary,
        pq.ParquetWriter(temporary, schema, compression="zstd", version="2.6") as writer,
    ):

        def flush() -> None:
            writer.write_table(pa.Table.from_pylist(rows, schema=schema), row_group_size=ROWS_PER_GROUP)
            rows.clear()

        def append(row: R) -> None:
            assert type(row) is record, f"{path}: a {type(row).__name__} in the table of {record.__name__}"
            rows.append(row.to_json())
            if len(rows) == ROWS_PER_GROUP:
                flush()

        yield append
        flush()


def write_table(path: str | Path, record: type[R], rows: Iterable[R]) -> None:
    """Writes a whole table, atomically."""
    with table_writer(path, record) as append:
        for row in rows:
            append(row)


def read_table(path: str | Path, record: type[R]) -> Iterator[R]:
    """The rows of a table, in the file's order, in constant memory. Columns that the record does not know are ignored.

    Raises InputError where the file is missing, FormatError where it is no Parquet, a column of the record is missing
    or of another type, or a row breaks the record.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such table; a shard set holds one {record.TABLE}.parquet")
    try:
        with pq.ParquetFile(path) as file:
            check_schema(path, file.schema_arrow, record)
            names = list(record.model_fields)
            number = 0
            for batch in file.iter_batches(batch_size=4096, columns=names):
                for values in batch.to_pylist():
                    try:
                        yield record.model_validate(values)
                    except ValidationError as error:
                        raise FormatError(f"{path}: row {number}: {faults(error)[0]}") from None
                    number += 1
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        raise FormatError(f"{path}: not a readable Parquet file: {' '.join(str(error).split())[:200]}") from None


def check_schema(path: Path, found: pa.Schema, record: type[Record]) -> None:
    """Raises FormatError unless every column of the record is there once, with the record's type."""
    for wanted in schema_of(record):
        columns = [found.field(index) for index in found.get_all_field_indices(wanted.name)]
        if len(columns) != 1:
            raise FormatError(f"{path}: {len(columns)} columns {wanted.name!r}; the table has exactly one")
        if not _same_type(columns[0].type, wanted.type):
            raise FormatError(f"{path}: column {wanted.name!r} is {columns[0].type}; it must be {wanted.type}")


def _same_type(found: pa.DataType, wanted: pa.DataType) -> bool:
    """Equal but for nullability and the names of list items, which Parquet writers choose differently."""
    if pa.types.is_list(wanted):
        return pa.types.is_list(found) and _same_type(found.value_type, wanted.value_type)
    if pa.types.is_struct(wanted):
        return pa.types.is_struct(found) and [(item.name, True) for item in wanted] == [
            (item.name, _same_type(item.type, wanted.field(item.name).type)) for item in found
        ]
    return bool(found == wanted)
