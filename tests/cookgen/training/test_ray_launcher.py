from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.cookgen.training.test_loop import close
from tests.cookgen.training.tinytask import run

PROGRAM = """
import sys
from functools import partial
from pathlib import Path
from cookgen.errors import CookgenError
from cookgen.training.ray_launcher import launch
from tests.cookgen.training.tinytask import TinyTask, config, train

shards, out, batch_size = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])

def work(say, **changes):
    return train(TinyTask(shards, dropout=0.0), config(**changes), out, run_values={}, say=say)

try:
    done = launch(partial(work, batch_size=batch_size), out, num_workers=2, say=print)
    print("returned", done.step, done.is_finished)
except CookgenError as error:
    print(type(error).__name__, error)
"""


def python(shards: Path, out: Path, batch_size: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PROGRAM, str(shards), str(out), str(batch_size)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)


@pytest.mark.full
def test_two_workers(shards: Path, tmp_path: Path) -> None:
    """They train as one process does with twice the batch; an error of theirs is the user's to read."""
    done = python(shards, tmp_path / "ray", 1)
    assert done.returncode == 0 and "returned 6 True" in done.stdout, done.stdout + done.stderr
    assert done.stdout.count("step 6/6  loss") == 1
    run(shards, tmp_path / "one", task={"dropout": 0.0}, batch_size=2)
    close(tmp_path / "ray", tmp_path / "one")
    failed = python(shards, tmp_path / "ray", 3)
    assert failed.stdout.startswith("UsageError") and "training.batch_size was 1, is 3" in failed.stdout, failed.stdout
    assert "Traceback" not in failed.stderr
