"""What a job says of itself: tokens among its numbers, for people and for programs."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from cookgen.runlog import Progress, Tally


@pytest.mark.parametrize("on_terminal", [False, True])
def test_tokens_are_shown_where_there_are_some(tmp_path: Path, on_terminal: bool) -> None:
    said = io.StringIO()
    console = Console(file=said, force_terminal=on_terminal, width=200)
    tallies = {"speech": Tally(2, 2, seconds=3.0), "actions": Tally(2, 1, prompt_tokens=1200, answer_tokens=34)}
    with Progress(tmp_path, "job", console=console) as progress:
        progress.show(tallies, final=True)
    assert "1200 + 34" in said.getvalue()
    assert "0 + 0" not in said.getvalue()
    (line,) = (tmp_path / "progress.jsonl").read_text().splitlines()
    stages = json.loads(line)["stages"]
    assert (stages["actions"]["prompt_tokens"], stages["actions"]["answer_tokens"]) == (1200, 34)
    assert (stages["speech"]["prompt_tokens"], stages["speech"]["answer_tokens"]) == (0, 0)
