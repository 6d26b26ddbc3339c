"""What the documents show runs as it stands there: every Python block of the README, of the card and of the package."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import cookgen
from tests.shardset import Story, add_features, make_set

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a set in shards/, and a director in runs/, as after the README's commands."""
    folder = tmp_path_factory.mktemp("documents")
    make_set(folder / "shards", [*(Story(f"v{number}", 4) for number in range(3)), Story("val", 2, split="val")])
    add_features(folder / "shards", "conse", (384,))
    train = [str(Path(sys.executable).parent / "cookgen-train"), "director", "--training.steps", "2"]
    subprocess.run([*train, "--training.warmup-steps", "1"], cwd=folder, capture_output=True, check=True, timeout=300)
    return folder


def run(block: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs the block as a user does, in a process of its own; foreign readers leave files open."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", block]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.mark.parametrize("block", BLOCKS)
def test_every_python_block_of_the_readme_runs(block: str, folder: Path) -> None:
    done = run(block, folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_the_readme_has_such_blocks() -> None:
    assert len(BLOCKS) >= 4
    assert "load_split" in BLOCKS[0]


def test_a_block_that_does_not_run_would_be_seen(folder: Path) -> None:
    done = run(BLOCKS[0].replace('"train"', '"test"'), folder)
    assert done.returncode == 1
    assert "split 'test' is not in" in done.stderr


def test_the_snippet_of_the_card_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    card = (folder / "shards" / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    exec(compile(block.replace("path/to/this/folder", str(folder / "shards")), "card", "exec"), {})
    assert capsys.readouterr().out


def test_the_snippet_of_the_package_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    block = (cookgen.__doc__ or "").partition("\n\n")[2]
    assert "load_split" in block
    exec(compile(block, "cookgen", "exec"), {})
