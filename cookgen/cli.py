"""The command line of the installed package: `cookgen validate OUT`, `cookgen --version`.

Exit status: 0 done, 1 problems were found, 2 a usage or input error (one line, no traceback).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import tyro

from cookgen import __version__
from cookgen.commands import run_command
from cookgen.dataset.validate import validate as validate_set


def validate(
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")],
    *,
    as_json: Annotated[bool, tyro.conf.FlagCreatePairsOff, tyro.conf.arg(name="json")] = False,
) -> int:
    """Check a shard set against the format cookgen/1 and name what is wrong; exit status 1 if anything is.

    Args:
        out: the folder that holds the set's dataset.json
        as_json: print a JSON array of {where, rule, found} instead of lines
    """
    problems = validate_set(out)
    if as_json:
        _say(json.dumps([asdict(problem) for problem in problems], indent=2))
    else:
        for problem in problems:
            _say(str(problem))
        _say(f"{out}: {len(problems) or 'no'} problem{'' if len(problems) == 1 else 's'}")
    return 1 if problems else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if arguments == ["--version"]:
        _say(f"cookgen {__version__}")
        return 0
    return run_command(
        {"validate": validate},
        arguments,
        prog="cookgen",
        description="Works with cookgen/1 shard sets. `cookgen --version` prints the version.",
    )


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
