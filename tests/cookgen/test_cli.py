"""The `cookgen` command: exit codes, lines for people, JSON for scripts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import cookgen
from cookgen.cli import main
from pipelines.stages.shards import ShardsConfig, write_shards
from tests.shardset import STAGES, Media, RunConfig, Story, make_states


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    media = Media(tmp_path / "media")
    write_shards(
        make_states([Story("a")], media),
        [],
        config=ShardsConfig(),
        run_config=RunConfig(),
        places=media.places,
        out=tmp_path / "set",
        stages=STAGES,
    )
    return tmp_path / "set"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"cookgen {cookgen.__version__}\n"


def test_a_good_set(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", str(shards)]) == 0
    assert capsys.readouterr().out == f"{shards}: no problems\n"
    assert main(["validate", str(shards), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_a_broken_set(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (shards / "README.md").unlink()
    assert main(["validate", str(shards)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("README.md: missing. Rule: ")
    assert lines[-1] == f"{shards}: 1 problem"
    assert main(["validate", "--json", str(shards)]) == 1
    problems = json.loads(capsys.readouterr().out)
    assert [sorted(problem) for problem in problems] == [["found", "rule", "where"]]
    assert problems[0]["where"] == "README.md"


@pytest.mark.parametrize("name", ["nowhere", "."])
def test_no_set_is_one_clear_line(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / name, tmp_path / "file"):
        assert main(["validate", str(path)]) == 2
        output = capsys.readouterr()
        assert output.out == ""
        assert output.err.startswith(f"error: {path}: ")
        assert output.err.count("\n") == 1


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["validate"], ["validate", "a", "b"], ["--nonsense"]])
def test_usage_errors_exit_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    output = capsys.readouterr().err
    assert output.startswith("error: ")
    assert output.count("\n") == 1


def test_the_installed_command_and_its_lightness(shards: Path) -> None:
    command = Path(sys.executable).with_name("cookgen")
    done = subprocess.run([command, "validate", shards], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{shards}: no problems\n", "")
    script = "import sys, cookgen.cli; sys.exit(bool({'torch', 'ray', 'transformers', 'pipelines'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
