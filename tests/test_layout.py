"""Who may import whom, and what an import may cost. The last tests prove that these gates can fail."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
GROUND = {
    "cookgen.commands",
    "cookgen.errors",
    "cookgen.config",
    "cookgen.files",
    "cookgen.modelstore",
    "cookgen.runlog",
    "cookgen.matching",
}
RECORDS = {"cookgen.records"}
# Room -> the rooms that it may import, itself always among them. The first matching prefix counts.
RULES: dict[str, set[str]] = {
    "cookgen.records": GROUND,
    **dict.fromkeys(GROUND, GROUND),
    "cookgen.dataset": GROUND | RECORDS,
    "cookgen.pretrained": GROUND,
    "cookgen.perception": GROUND | RECORDS | {"cookgen.pretrained"},
    "cookgen.director": GROUND | RECORDS | {"cookgen.dataset", "cookgen.pretrained"},
    "cookgen.evaluation": GROUND | RECORDS | {"cookgen.dataset", "cookgen.perception", "cookgen.pretrained"},
    "cookgen.captioner": GROUND
    | RECORDS
    | {"cookgen.dataset", "cookgen.perception", "cookgen.picture", "cookgen.pretrained", "cookgen.training"},
    "cookgen.picture": GROUND | {"cookgen.features"},
    "cookgen.training": GROUND | {"cookgen.dataset"},
    "cookgen.train": GROUND
    | RECORDS
    | {"cookgen.captioner", "cookgen.dataset", "cookgen.features", "cookgen.director", "cookgen.training"},
    "cookgen.features": GROUND | RECORDS | {"cookgen.dataset", "cookgen.perception"},
    "cookgen.cli": {"cookgen"},
    "cookgen": {"cookgen.dataset"},
    "pipelines": GROUND | RECORDS | {"cookgen.dataset", "cookgen.perception", "cookgen.pretrained", "pipelines"},
}
# Packages that only these modules may import, at any depth.
ONLY_IN = {"ray": {"pipelines.engine", "pipelines.cluster", "cookgen.training.ray_launcher"}}
# Packages that the ground floor, the records and the reader never import, not even inside a function.
HEAVY = {"torch", "ray", "transformers", "faster_whisper"}
LIGHT_ROOMS = ("cookgen.records", "cookgen.dataset", *sorted(GROUND))
WITH_VERSION = {"pipelines", "cookgen.cli", "cookgen.features"}  # rooms that may read cookgen.__version__
WITH_TORCH = {"cookgen.dataset.torch_loader"}  # imported by Split.torch alone


def modules(root: Path) -> Iterator[tuple[str, Path]]:
    for package in ("cookgen", "pipelines"):
        for path in sorted((root / package).rglob("*.py")):
            name = ".".join(path.relative_to(root).with_suffix("").parts)
            yield name.removesuffix(".__init__"), path


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import; write the whole name"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_in(name: str, room: str) -> bool:
    return name == room or name.startswith(f"{room}.")


def violations(root: Path) -> list[str]:
    found = []
    for module, path in modules(root):
        room = next(rule for rule in RULES if is_in(module, rule))
        for name in imports(path):
            package = name.split(".")[0]
            if package in ONLY_IN and module not in ONLY_IN[package]:
                found.append(f"{module} imports {name}")
            if package in HEAVY and module not in WITH_TORCH and any(is_in(module, light) for light in LIGHT_ROOMS):
                found.append(f"{module} imports {name}")
            if package in ("cookgen", "pipelines"):
                allowed = any(
                    is_in(name, other) for other in RULES[room] | {room} if other != "cookgen" or room == "cookgen.cli"
                )
                is_top = name in ("cookgen", "cookgen.__version__") and room in (
                    "pipelines",
                    "cookgen.cli",
                    "cookgen.features",
                )
                if not allowed and not is_top:
                    found.append(f"{module} imports {name}")
    return found


def test_every_import_is_allowed() -> None:
    assert violations(ROOT) == []


@pytest.mark.parametrize(
    ("place", "line"),
    [
        ("cookgen/records/clip.py", "import torch"),
        ("cookgen/dataset/split.py", "def read():\n    import torch"),
        ("cookgen/dataset/split.py", "from cookgen.perception import speech"),
        ("cookgen/errors.py", "from cookgen.records import Clip"),
        ("cookgen/perception/speech.py", "from pipelines.stage import Stage"),
        ("pipelines/stages/clips.py", "import ray"),
        ("pipelines/stages/clips.py", "from cookgen.director import model"),
    ],
)
def test_the_gate_can_fail(tmp_path: Path, place: str, line: str) -> None:
    module = tmp_path / place
    module.parent.mkdir(parents=True)
    module.write_text(line + "\n")
    assert len(violations(tmp_path)) == 1


def loaded_after(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    return set(run.stdout.split())


def test_reading_does_not_load_torch() -> None:
    assert not loaded_after("from cookgen import load_split") & HEAVY


def test_that_gate_can_fail_too() -> None:
    assert "torch" in loaded_after("import torch")
