"""Tables: the records' schemas, the same bytes each time, and errors that name column and row."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cookgen.dataset import tables
from cookgen.dataset.tables import read_table, schema_of, table_path, table_writer, write_table
from cookgen.errors import FormatError, InputError
from cookgen.records import TABLES, Action, Check, Match, Reason, Reject, Segment, Video, Word

WORD = Word(narrative="demo-a", word_id=0, text="stir", start_s=0.5, end_s=1, probability=0.25)


def test_every_record_has_columns_in_its_order() -> None:
    for record in TABLES:
        schema = schema_of(record)
        assert schema.names == list(record.model_fields)
        for name, info in record.model_fields.items():
            assert schema.field(name).nullable == (type(None) in get_args(info.annotation)), (record, name)


def test_column_types() -> None:
    video, match = schema_of(Video), schema_of(Match)
    assert video.field("audio_stream").type == pa.int64()
    assert video.field("fps").type == pa.float64()
    assert video.field("has_audio").type == pa.bool_()
    assert match.field("rule").type == pa.string()
    assert schema_of(Reject).field("reason").type == pa.string()
    segments = video.field("segments").type
    assert pa.types.is_list(segments)
    assert [field.name for field in segments.value_type] == list(Segment.model_fields)


def test_rows_come_back_as_they_were(tmp_path: Path) -> None:
    video = Video(
        narrative="demo-a",
        source="demo",
        video_id="a",
        path="dir/ü.mp4",
        sha256="0" * 64,
        num_bytes=1,
        duration_s=1,
        start_s=-0.5,
        width=2,
        height=2,
        fps=29.97,
        video_stream=0,
        audio_stream=None,
        has_audio=False,
        split="train",
        segments=(Segment(start_s=0, end_s=1, text="mix"), Segment(start_s=1, end_s=2, text="bake")),
    )
    manual = Action(
        narrative="demo-a", action_index=0, text="Mix", start_s=0, end_s=1, origin="manual", raw_text=" mix "
    )
    refusal = Reject(narrative=None, path="x", stage="videos", reason=Reason.BAD_NAME)
    score = Check(narrative="demo-a", clip_index=None, check="repeated_text", score=0.5)
    for row in (video, manual, refusal, score, WORD):
        path = table_path(tmp_path, type(row))
        write_table(path, type(row), [row])
        assert list(read_table(path, type(row))) == [row]


sayings = st.tuples(st.text(st.characters(exclude_categories=("Cs",)), min_size=1), st.floats(0, 1e6), st.floats(0, 1))


@given(st.lists(sayings, max_size=20))
def test_any_text_and_number_survives(
    tmp_path_factory: pytest.TempPathFactory, said: list[tuple[str, float, float]]
) -> None:
    rows = [
        WORD.model_copy(update={"word_id": number, "text": text, "start_s": start_s, "probability": probability})
        for number, (text, start_s, probability) in enumerate(said)
    ]
    path = tmp_path_factory.mktemp("any") / "speech.parquet"
    write_table(path, Word, rows)
    assert list(read_table(path, Word)) == rows


def test_same_rows_same_bytes_whatever_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "ROWS_PER_GROUP", 3)
    rows = [WORD.model_copy(update={"word_id": number}) for number in range(10)]
    write_table(tmp_path / "a.parquet", Word, rows)
    write_table(tmp_path / "b.parquet", Word, iter(rows))
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    assert pq.read_metadata(tmp_path / "a.parquet").num_row_groups == 4
    assert list(read_table(tmp_path / "a.parquet", Word)) == rows


def test_an_error_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "speech.parquet"
    write_table(path, Word, [WORD])
    before = path.read_bytes()
    with pytest.raises(RuntimeError, match="stop"), table_writer(path, Word) as append:
        append(WORD)
        raise RuntimeError("stop")
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_row_of_another_record_is_our_mistake(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="a Word in the table of Check"):
        write_table(tmp_path / "x.parquet", Check, [WORD])  # type: ignore[list-item]


def test_reading_errors_name_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "speech.parquet"
    with pytest.raises(InputError, match="no such table"):
        list(read_table(path, Word))
    path.write_bytes(b"PAR1PAR1")
    with pytest.raises(FormatError, match="not a readable Parquet file"):
        list(read_table(path, Word))
    write_table(path, Word, [WORD, WORD])
    table = pq.read_table(path)
    pq.write_table(table.drop_columns(["text"]), path)
    with pytest.raises(FormatError, match="0 columns 'text'"):
        list(read_table(path, Word))
    pq.write_table(table.set_column(1, "word_id", pa.array(["0", "1"])), path)
    with pytest.raises(FormatError, match="column 'word_id' is string; it must be int64"):
        list(read_table(path, Word))
    pq.write_table(table.set_column(1, "word_id", pa.array([0, -1])), path)
    with pytest.raises(FormatError, match="row 1: word_id: Input should be greater than or equal to 0"):
        list(read_table(path, Word))
    pq.write_table(table.set_column(1, "word_id", pa.array([0, None], pa.int64())), path)
    with pytest.raises(FormatError, match="row 1: word_id"):
        list(read_table(path, Word))
    pq.write_table(table.append_column("more", pa.array([1, 2])), path)
    assert list(read_table(path, Word)) == [WORD, WORD]
