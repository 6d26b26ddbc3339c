"""Command lines from functions: parsed by tyro, errors in one line, one meaning for every exit code."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence

import tyro

from cookgen.errors import CookgenError


def run_command(commands: Mapping[str, Callable[..., int]], args: Sequence[str], *, prog: str, description: str) -> int:
    """Runs the command that `args` name and returns its exit code.

    2 for a usage or input error, said in one line; 130 for Ctrl-C. `--set` may be repeated.
    """
    said = io.StringIO()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal without our letters is no reason to stop
    try:
        with contextlib.redirect_stderr(said):
            command: Callable[[], int] = tyro.extras.subcommand_cli_from_dict(
                {name: _deferred(function) for name, function in commands.items()},
                prog=prog,
                description=description,
                args=_one_set(args),
            )
    except SystemExit as stop:
        if stop.code:
            sys.stderr.write(f"error: {_one_line(said.getvalue())} ({prog} --help lists the options)\n")
            return 2
        return 0
    except BrokenPipeError:
        return _without_reader()
    try:
        code = command()
        sys.stdout.flush()
        return code
    except CookgenError as error:
        sys.stderr.write(f"error: {printable(str(error))}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; what was done is kept, the same command goes on from there\n")
        return 130
    except BrokenPipeError:
        return _without_reader()


def printable(text: str, *, keep: str = "") -> str:
    """Text of which parts came from outside, for a terminal: control characters are escaped but for those to keep."""
    return "".join(mark if mark.isprintable() or mark in keep else ascii(mark)[1:-1] for mark in text)


def _without_reader() -> int:
    """The reader of our output has gone, and has had what it wanted."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _deferred(function: Callable[..., int]) -> Callable[..., Callable[[], int]]:
    """The function's signature, but called only when the command line has been read."""

    @functools.wraps(function)
    def parse(*args: object, **kwargs: object) -> Callable[[], int]:
        return functools.partial(function, *args, **kwargs)

    return parse


def _one_set(args: Sequence[str]) -> list[str]:
    """`--set a=1 --set b=2` as `--set a=1 b=2`: both spellings are right."""
    rest: list[str] = []
    settings: list[str] = []
    taking = False
    for item in args:
        if item == "--set" or item.startswith("--set="):
            taking = item == "--set"
            settings += [] if taking else [item.removeprefix("--set=")]
        elif taking and not item.startswith("--"):
            settings.append(item)
        else:
            taking = False
            rest.append(item)
    return [*rest, "--set", *settings] if settings else rest


def _one_line(box: str) -> str:
    """What tyro says in a drawn box of several lines, without the box and its pointers to the help."""
    words = re.sub(r"[\u2500-\u257f]", " ", re.sub(r"\x1b\[[0-9;]*m", "", box))
    words = re.sub(r"Error parsing __tyro-dummy-inner__[\w.-]*?\.(?=\w+: )", "", words)  # tyro's own name for the whole
    lines = [" ".join(line.split()) for line in words.splitlines() if line.strip("- ")]
    title, *text = [line for line in lines if line and "--help" not in line] or [""]
    return " ".join(text) or title
