"""Writes tests/golden/stages.json: the version of each stage and a digest of its body. Run by `make golden`."""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
from pathlib import Path
from types import ModuleType

from pipelines.flow import STAGES
from pipelines.stages import shards

GOLDEN = Path(__file__).with_name("stages.json")
ROOT = Path(__file__).resolve().parents[2]
_BODY = ("pipelines/stages/", "cookgen/perception/", "cookgen/dataset/")  # what a stage's meaning lives in
_BODY_FILES = (
    "cookgen/files.py",
    "cookgen/matching.py",
    "pipelines/coherence.py",
    "pipelines/cutting.py",
    "pipelines/ffmpeg.py",
    "pipelines/probe.py",
    "pipelines/recipe_words.py",
    "pipelines/subtitles.py",
)


def body_files(module: ModuleType) -> set[Path]:
    """The module's file and those of the body modules that it imports, and they."""
    files: set[Path] = set()
    waiting = [Path(inspect.getfile(module)).relative_to(ROOT)]
    while waiting:
        path = waiting.pop()
        if path not in files:
            files.add(path)
            waiting += [other for other in _imported(path) if _is_body(other)]
    return files


def body_digest(module: ModuleType) -> str:
    """sha256 over the code of a stage's body; comments and docstrings do not count."""
    files = body_files(module)
    texts = [ast.dump(_without_docstrings(ast.parse((ROOT / path).read_text()))) for path in sorted(files)]
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def _is_body(path: Path) -> bool:
    return path.as_posix().startswith(_BODY) or path.as_posix() in _BODY_FILES


def _imported(path: Path) -> list[Path]:
    names = []
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    places = [Path(*name.split(".")) for name in names]
    files = [file for place in places for file in (place.with_suffix(".py"), place / "__init__.py")]
    return [file for file in files if (ROOT / file).is_file()]


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(
            node
        ):
            node.body = node.body[1:] or [ast.Pass()]
    return tree


def current() -> dict[str, dict[str, object]]:
    """Stage name -> its version and the digest of its body, as the code stands."""
    found: dict[str, dict[str, object]] = {}
    for stage in STAGES:
        module = inspect.getmodule(stage.run)
        assert module is not None
        found[stage.name] = {"version": stage.version, "body": body_digest(module)}
    found["shards"] = {"version": shards.VERSION, "body": body_digest(shards)}
    return found


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(current(), indent=1, sort_keys=True) + "\n")
