"""Every error a user can meet, in one tree.

CookgenError
├── UsageError              an option, a name or a value that cannot be: exit 2
│   └── UnknownNameError    a name that is not one of those known (names the nearest)
├── ShapeError              an array of another shape than the rule says
├── InputError              a file or folder that is not what it must be: exit 2
│   └── FormatError         a shard set that breaks cookgen/1
├── OutputError             OUT cannot be written, or belongs to something else: exit 2
│   └── OutputInUseError    another run is writing it
├── ModelError              a model file that is missing or not the pinned one; a training that went to NaN
└── ModelServerError        a model server that cannot be reached or keeps dying

A message names the thing, the value, the rule and the remedy. All of them pickle: they cross Ray's processes.
Our own mistakes are `assert`, not errors of this tree.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class CookgenError(Exception):
    """Base of all errors that are the user's to mend; the command line prints the message alone and exits with 2."""


class UsageError(CookgenError):
    """An option, a name or a value that cannot be."""


class UnknownNameError(UsageError):
    """A name that is not one of those known."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        self.kind, self.name, self.known = kind, name, sorted(known)
        near = get_close_matches(name, self.known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(self.known) or 'none'}"
        super().__init__(f"unknown {kind} {name!r}: {hint}")

    def __reduce__(self) -> tuple[type[UnknownNameError], tuple[str, str, list[str]]]:
        return type(self), (self.kind, self.name, self.known)


class ShapeError(CookgenError):
    """An array whose shape breaks the rule of the function that it was given to."""


class InputError(CookgenError):
    """A file or folder from outside that is not what it must be."""


class FormatError(InputError):
    """A shard set that breaks the dataset format cookgen/1."""


class OutputError(CookgenError):
    """The output folder cannot be written, or belongs to something else."""


class OutputInUseError(OutputError):
    """Another run is writing the same output folder."""


class ModelError(CookgenError):
    """A model that is missing, or whose bytes are not those that are pinned."""


class ModelServerError(CookgenError):
    """A model server that cannot be reached, or keeps dying."""


def reason_of(error: Exception) -> str:
    """What a library's error says, in one line of at most 300 characters; its type where it says nothing."""
    return " ".join(str(error).split())[:300] or type(error).__name__


class TooManyFailuresError(CookgenError):
    """So much fails that a run stops instead of going through everything."""


class EngineError(CookgenError):
    """Ray, or the process that writes the store, has died."""
