"""Command lines from functions: parsed by tyro, errors in one line, one meaning for every exit code."""

from __future__ import annotations

import contextlib
import functools
import io
import re
import sys
from collections.abc import Callable, Mapping, Sequence

import tyro

from cookgen.errors import CookgenError


def run_command(commands: Mapping[str, Callable[..., int]], args: Sequence[str], *, prog: str, description: str) -> int:
    """Runs the command that `args` name and returns its exit code; 2 for a usage or input error, said in one line."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            command: Callable[[], int] = tyro.extras.subcommand_cli_from_dict(
                {name: _deferred(function) for name, function in commands.items()},
                prog=prog,
                description=description,
                args=list(args),
            )
    except SystemExit as stop:
        if stop.code:
            sys.stderr.write(f"error: {_one_line(said.getvalue())} ({prog} --help lists the options)\n")
            return 2
        return 0
    try:
        return command()
    except CookgenError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2


def _deferred(function: Callable[..., int]) -> Callable[..., Callable[[], int]]:
    """The function's signature, but called only when the command line has been read."""

    @functools.wraps(function)
    def parse(*args: object, **kwargs: object) -> Callable[[], int]:
        return functools.partial(function, *args, **kwargs)

    return parse


def _one_line(box: str) -> str:
    """What tyro says in a drawn box of several lines, without the box and its pointers to the help."""
    words = re.sub(r"[\u2500-\u257f]", " ", re.sub(r"\x1b\[[0-9;]*m", "", box))
    lines = [" ".join(line.split()) for line in words.splitlines()]
    title, *text = [line for line in lines if line and "--help" not in line] or [""]
    return " ".join(text) or title
