"""The `cookgen` command: exit codes, lines for people, JSON for scripts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import cookgen
from cookgen.cli import main
from cookgen.dataset.problem import Problem
from tests.shardset import Story, make_set


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    return make_set(tmp_path / "set", [Story("a")])


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
    assert [sorted(problem) for problem in problems] == [["found", "is_warning", "rule", "where"]]
    assert problems[0]["where"] == "README.md"


def test_warnings_alone_are_no_problem(
    shards: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("cookgen.cli.validate_set", lambda out: [Problem("x", "rule", "found", is_warning=True)])
    assert main(["validate", str(shards)]) == 0
    assert capsys.readouterr().out == f"warning: x: found. Rule: rule.\n{shards}: no problems, 1 warning\n"


@pytest.mark.parametrize("name", ["nowhere", ".", "file"])
@pytest.mark.parametrize(
    "command",
    [
        ["validate"],
        ["card"],
        ["card", "--croissant"],
        ["stats"],
        ["inspect", "x"],
        ["export", "--format", "parquet", "--to", "to"],
        ["publish", "to"],
        ["publish", "to", "--annotations-only"],
    ],
)
def test_no_set_is_one_clear_line(
    command: list[str],
    name: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    path = tmp_path / name
    assert main([command[0], str(path), *command[1:]]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith(f"error: {path}")
    assert output.err.count("\n") == 1
    assert [item.name for item in tmp_path.iterdir()] == ["file"]


def test_card(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["card", str(shards)]) == 0
    assert capsys.readouterr().out == (shards / "README.md").read_text()
    assert main(["card", str(shards), "--croissant"]) == 0
    assert json.loads(capsys.readouterr().out)["@type"] == "sc:Dataset"


def test_stats(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stats", str(shards)]) == 0
    assert "this set: demo" in capsys.readouterr().out
    assert main(["stats", str(shards), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["total"]["num_clips"] == 3


def test_inspect(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(shards), "demo-a-002", "--save", str(tmp_path / "saved")]) == 0
    assert "clip demo-a-002: step 3 of 3" in capsys.readouterr().out
    assert len(list((tmp_path / "saved").iterdir())) == 3
    assert main(["inspect", str(shards), "demo-a-02"]) == 2
    assert capsys.readouterr().err.startswith("error: unknown narrative or clip 'demo-a-02': did you mean 'demo-a")


def test_export(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, suffix in (("parquet", "parquet"), ("seed-story", "jsonl")):
        assert main(["export", str(shards), "--to", str(tmp_path / name), "--format", name]) == 0
        (line,) = capsys.readouterr().out.splitlines()
        assert line.endswith(suffix) and Path(line).is_file()
    assert main(["export", str(shards), "--to", str(tmp_path / "parquet"), "--format", "seed-story"]) == 2
    assert main(["export", str(shards), "--to", str(tmp_path / "x"), "--format", "csv"]) == 2


def test_publish_is_dry_until_yes(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options in ([], ["--annotations-only"]):
        to = tmp_path / f"to{len(options)}"
        assert main(["publish", str(shards), str(to), *options]) == 0
        assert capsys.readouterr().out.endswith("nothing was copied; add --yes to do it\n")
        assert not to.exists()
        assert main(["publish", str(shards), str(to), *options, "--yes"]) == 0
        num_files = sum(path.is_file() for path in to.rglob("*"))
        assert capsys.readouterr().out.endswith(f"done: {num_files} of {num_files} files copied\n")
        assert (to / "dataset.json").exists() == (not options)


def test_a_terminal_is_told_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evil = "\x1b]0;owned\x07\x1b[2J\u202e[red]\x00\x9b1m"
    out = make_set(tmp_path / "set", [Story("a", title=evil, topic=evil, first_text=evil, captioner=evil)])
    for command in (["inspect", str(out), "demo-a"], ["inspect", str(out), "demo-a-000"], ["card", str(out)]):
        assert main(command) == 0
        shown = capsys.readouterr().out
        assert all(mark.isprintable() or mark == "\n" for mark in shown)
        assert "[red]" in shown
    assert main(["stats", str(out)]) == 0


def test_a_reader_that_goes_away_is_no_error(shards: Path) -> None:
    command = f"{Path(sys.executable).with_name('cookgen')} stats {shards} | true"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "arguments",
    [[], ["nonsense"], ["validate"], ["validate", "a", "b"], ["--nonsense"], ["inspect", "a"], ["publish", "a"]],
)
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
