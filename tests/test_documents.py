"""What the documents show runs as it stands there: every Python block of the README, of the card and of the package."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import cookgen
from tests.shardset import Story, add_features, make_set

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a set in shards/, as after `make shards` and `cookgen features`."""
    folder = tmp_path_factory.mktemp("documents")
    make_set(folder / "shards", [*(Story(f"v{number}", 4) for number in range(3)), Story("val", 2, split="val")])
    add_features(folder / "shards", "conse", (384,))
    return folder


@pytest.mark.parametrize("block", BLOCKS)
def test_every_python_block_of_the_readme_runs(block: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    exec(compile(block, "README.md", "exec"), {})


def test_the_readme_has_such_blocks() -> None:
    assert len(BLOCKS) >= 2
    assert "load_split" in BLOCKS[0]


def test_a_block_that_does_not_run_would_be_seen(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(cookgen.errors.UsageError, match="split 'test' is not in"):
        exec(compile(BLOCKS[0].replace('"train"', '"test"'), "README.md", "exec"), {})


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
