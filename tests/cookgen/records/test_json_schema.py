"""The committed JSON Schemas are those of the records, and they can refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from cookgen.records import TABLES, Check, Reject, Sample
from cookgen.records.json_schema import DOCUMENTS, FOLDER, main, schema_texts, stale_schemas, write_schemas
from pipelines.stages.shards import ShardsConfig, steps_of, write_shards
from tests.shardset import STAGES, Media, RunConfig, Story, make_state, make_states


def schema(name: str) -> Any:
    return json.loads((FOLDER / f"{name}.schema.json").read_text())


def test_the_committed_schemas_are_fresh() -> None:
    assert stale_schemas() == []
    assert set(DOCUMENTS) == {record.TABLE for record in TABLES} | {"sample", "dataset", "features"}
    assert main(["--check"]) == 0


def test_stale_missing_and_left_over_schemas_are_seen(tmp_path: Path) -> None:
    assert stale_schemas(tmp_path) == sorted(schema_texts())
    write_schemas(tmp_path)
    assert stale_schemas(tmp_path) == []
    (tmp_path / "clips.schema.json").write_text("{}")
    (tmp_path / "old.schema.json").write_text("{}")
    (tmp_path / "speech.schema.json").unlink()
    assert stale_schemas(tmp_path) == ["clips.schema.json", "old.schema.json", "speech.schema.json"]
    write_schemas(tmp_path)
    assert stale_schemas(tmp_path) == []
    assert not (tmp_path / "old.schema.json").exists()


def test_check_fails_on_a_stale_schema(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("cookgen.records.json_schema.stale_schemas", lambda: stale_schemas(tmp_path))
    assert main(["--check"]) == 1
    assert "schemas/clips.schema.json is not what the records say" in capsys.readouterr().err
    assert main(["--chekc"]) == 2


@pytest.mark.parametrize("name", sorted(DOCUMENTS))
def test_each_is_a_valid_closed_schema(name: str) -> None:
    jsonschema.Draft202012Validator.check_schema(schema(name))
    assert schema(name)["additionalProperties"] is False
    assert schema(name)["title"] == f"cookgen/1 {name}"


def test_what_the_pipeline_writes_follows_the_schemas(tmp_path: Path) -> None:
    media = Media(tmp_path / "media")
    states = make_states([Story("a"), Story("b", manual=True), Story("c", stops_at="clips")], media)
    for state in states:
        for result in state.results.values():
            for row in (*result.rows, *result.rejects):
                jsonschema.validate(row.to_json(), schema(row.TABLE))
    for story in (Story("a"), Story("b", manual=True)):
        steps = steps_of(make_state(story, media), STAGES, ShardsConfig())
        assert isinstance(steps, tuple)
        for step in steps:
            jsonschema.validate(step.sample.to_json(), schema("sample"))
    manifest = write_shards(
        states,
        [],
        config=ShardsConfig(),
        run_config=RunConfig(),
        places=media.places,
        out=tmp_path / "out",
        stages=STAGES,
    )
    jsonschema.validate(manifest.to_json(), schema("dataset"))


def test_the_schemas_refuse(tmp_path: Path) -> None:
    steps = steps_of(make_state(Story("a"), Media(tmp_path)), STAGES, ShardsConfig())
    assert isinstance(steps, tuple)
    good = steps[0].sample.to_json()
    jsonschema.validate(good, schema("sample"))
    for change in ({"extra": 1}, {"format": "cookgen/2"}, {"index": -1}, {"narrative": "a b"}, {"num_steps": 1.5}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**good, **change}, schema("sample"))
        assert not _accepts(Sample, {**good, **change})
    refusal = {"narrative": None, "path": "x", "stage": "videos", "reason": "because", "detail": ""}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(refusal, schema("rejects"))
    assert not _accepts(Reject, refusal)
    jsonschema.validate(Check(narrative="a", clip_index=None, check="x", score=-1).to_json(), schema("checks"))


def _accepts(record: Any, values: Any) -> bool:
    try:
        record.model_validate_json(json.dumps(values), strict=True)
    except ValueError:
        return False
    return True
