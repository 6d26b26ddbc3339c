"""What a long job tells its user: a live table on a terminal, plain lines elsewhere, the same numbers as JSON Lines."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from cookgen.files import canonical_json

PLAIN_SECONDS = 5.0


@dataclass
class Tally:
    """How far one stage is. `done` of `total` units, of which `reused` were kept from earlier; `seconds` of work, and
    the tokens that language models read and wrote in it."""

    total: int = 0
    done: int = 0
    reused: int = 0
    rows: int = 0
    seconds: float = 0.0
    prompt_tokens: int = 0
    answer_tokens: int = 0
    rejects: dict[str, int] = field(default_factory=dict)

    @property
    def tokens(self) -> str:
        """Tokens read + written, "" where there are none."""
        return f"{self.prompt_tokens} + {self.answer_tokens}" if self.prompt_tokens + self.answer_tokens else ""


class Progress:
    """Shows tallies while a job runs: `with Progress(folder, title) as progress: progress.show(tallies)`."""

    def __init__(self, folder: Path, title: str, *, unit: str = "video", console: Console | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = (folder / "progress.jsonl").open("a", encoding="utf-8")
        self._title, self._unit = title, unit
        self._console = console or Console(stderr=True)
        self._live = Live(console=self._console, auto_refresh=False) if self._console.is_terminal else None
        self._started = self._shown = time.monotonic()
        self._begun: dict[str, tuple[float, int]] = {}  # stage -> (time, reused) at its first finished unit

    def __enter__(self) -> Progress:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()
        self._file.close()

    def show(self, tallies: Mapping[str, Tally], *, final: bool = False) -> None:
        """Shows the numbers; on a terminal at once, elsewhere one line every few seconds and at the end."""
        now = time.monotonic()
        for stage, tally in tallies.items():
            if tally.done > tally.reused:
                self._begun.setdefault(stage, (now, tally.done - 1))
        if self._live:
            self._live.update(self._table(tallies, now), refresh=True)
        if final or now - self._shown >= PLAIN_SECONDS:
            self._shown = now
            left = max((self._eta(name, tally, now) or 0 for name, tally in tallies.items()), default=0)
            stages = {name: asdict(tally) for name, tally in tallies.items()}
            self._write(event="progress", stages=stages, seconds=now - self._started, left_s=left)
            if not self._live:
                parts = [
                    f"{name} {tally.done}/{tally.total}{f' ({tally.tokens} tokens)' if tally.tokens else ''}"
                    for name, tally in tallies.items()
                ]
                eta = f"  about {left:.0f} s left" if left and not final else ""
                self._console.print(
                    f"[{now - self._started:5.0f} s] {'  '.join(parts)}{eta}",
                    highlight=False,
                    markup=False,
                    soft_wrap=True,
                )

    def say(self, message: str, **values: Any) -> None:
        """One line for the user, kept in the log with its values."""
        self._write(event="message", message=message, **values)
        self._console.print(message, highlight=False, markup=False, soft_wrap=True)

    def _write(self, **values: Any) -> None:
        self._file.write(canonical_json({"time_s": time.time(), **values}) + "\n")
        self._file.flush()

    def _eta(self, stage: str, tally: Tally, now: float) -> float | None:
        if stage not in self._begun or tally.done >= tally.total:
            return None
        begun, at_begin = self._begun[stage]
        made = tally.done - at_begin
        return (now - begun) / made * (tally.total - tally.done) if made > 1 else None

    def _table(self, tallies: Mapping[str, Tally], now: float) -> Table:
        table = Table(
            title=f"{self._title}  {now - self._started:.0f} s", title_justify="left", box=None, pad_edge=False
        )
        table.add_column("stage")
        for heading in (f"{self._unit}s", "kept", "rows", f"s/{self._unit}", "tokens", "left"):
            table.add_column(heading, justify="right")
        table.add_column("rejects")
        for name, tally in tallies.items():
            made, eta = tally.done - tally.reused, self._eta(name, tally, now)
            table.add_row(
                name,
                f"{tally.done}/{tally.total}",
                str(tally.reused or ""),
                str(tally.rows or ""),
                f"{tally.seconds / made:.2f}" if made else "",
                tally.tokens,
                f"{eta:.0f} s" if eta else "",
                "  ".join(f"{reason} {count}" for reason, count in sorted(tally.rejects.items())),
            )
        return table
