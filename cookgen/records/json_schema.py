"""The contract in JSON Schema: schemas/*.schema.json, generated from the records.

python -m cookgen.records.json_schema            writes them
python -m cookgen.records.json_schema --check    exits with 1 where one is missing, stale or left over
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from cookgen.files import write_atomic
from cookgen.records import FORMAT, TABLES, Features, Manifest, Record, Sample

FOLDER = Path(__file__).resolve().parents[2] / "schemas"
DOCUMENTS: dict[str, type[Record]] = {
    **{record.TABLE: record for record in TABLES},
    "sample": Sample,
    "dataset": Manifest,
    "features": Features,
}


def schema_texts() -> dict[str, str]:
    """Every schema's file name and whole text: the rows of each table, a clip's JSON, dataset.json, features.json."""
    texts = {}
    for name, record in DOCUMENTS.items():
        schema = {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            **record.model_json_schema(),
            "title": f"{FORMAT} {name}",
        }
        texts[f"{name}.schema.json"] = json.dumps(schema, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    return texts


def stale_schemas(folder: Path = FOLDER) -> list[str]:
    """Names of the files that are missing, differ from what the records say, or belong to no record."""
    wanted = schema_texts()
    there = {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.schema.json")}
    return sorted(name for name in wanted.keys() | there.keys() if wanted.get(name) != there.get(name))


def write_schemas(folder: Path = FOLDER) -> None:
    """Writes all schemas and removes those that belong to no record."""
    wanted = schema_texts()
    for name in stale_schemas(folder):
        if name in wanted:
            write_atomic(folder / name, wanted[name])
        else:
            (folder / name).unlink()


def main(arguments: list[str]) -> int:
    """The command line; returns the exit status."""
    if arguments not in ([], ["--check"]):
        sys.stderr.write("usage: python -m cookgen.records.json_schema [--check]\n")
        return 2
    if not arguments:
        write_schemas()
        return 0
    stale = stale_schemas()
    for name in stale:
        sys.stderr.write(f"schemas/{name} is not what the records say; run python -m cookgen.records.json_schema\n")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
