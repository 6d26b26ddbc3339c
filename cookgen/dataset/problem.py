"""One thing that is wrong with a shard set."""

from __future__ import annotations

from dataclasses import dataclass

from cookgen.commands import printable

_LONGEST = 400


@dataclass(frozen=True)
class Problem:
    """where: the file, and what in it; rule: the rule that is broken; found: what stands there instead.

    A warning breaks no rule of the format, and a set with warnings alone is a valid one.

    Text that comes out of the set is cut and its control characters are escaped: it goes to terminals.
    """

    where: str
    rule: str
    found: str
    is_warning: bool = False

    def __post_init__(self) -> None:
        for name in ("where", "rule", "found"):
            object.__setattr__(self, name, _shown(getattr(self, name)))

    def __str__(self) -> str:
        return f"{'warning: ' * self.is_warning}{self.where}: {self.found}. Rule: {self.rule}."


def _shown(text: str) -> str:
    return printable(text if len(text) <= _LONGEST else text[:_LONGEST] + " …")
