"""Scores that were measured on a finished set, in a file that the checks of a later set take up.

A finished set never changes, so its scores lie beside it. Each names the bytes of its clip and of its caption: where
either has become another, the score is about nothing that is there, and is left alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from cookgen.dataset.tables import read_table, write_table
from cookgen.errors import FormatError
from cookgen.files import file_sha256
from cookgen.records import Score, faults


def caption_sha256(caption: str) -> str:
    """How a score names the caption that it is about."""
    return hashlib.sha256(caption.encode(errors="surrogatepass")).hexdigest()


def write_scores(path: Path, scores: Iterable[Score]) -> None:
    """Writes the file, in the order that `scores_of` relies on. Atomic."""
    write_table(path, Score, sorted(scores, key=lambda score: score.place))


def scores_identity(path: Path) -> str:
    """First 12 hex digits of the file's sha256; the whole file is read and checked.

    Raises InputError where it is missing, FormatError where it is no file of scores, out of order, or says one twice.
    """
    before: tuple[str, ...] = ()
    for number, score in enumerate(read_table(path, Score)):
        if score.place <= before:
            raise FormatError(f"{path}: row {number} does not come after row {number - 1}; let `cookgen eval` write it")
        before = score.place
    return file_sha256(path)[:12]


def scores_of(path: Path, narrative: str) -> list[Score]:
    """The narrative's scores; of the file no more is read than the row groups that may hold them.

    Raises FormatError where the file is not, or no longer, one of scores.
    """
    try:
        rows = pq.read_table(path, columns=list(Score.model_fields), filters=[("narrative", "=", narrative)])
        return [Score.model_validate(row) for row in rows.to_pylist()]
    except ValidationError as error:
        raise FormatError(f"{path}: {faults(error)[0]}") from None
    except (pa.ArrowException, OSError, ValueError) as error:
        raise FormatError(f"{path}: not a readable file of scores: {' '.join(str(error).split())[:200]}") from None
