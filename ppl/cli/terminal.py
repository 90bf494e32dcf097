"""What commands write: results to stdout, everything else to stderr; one line for a failure."""

from __future__ import annotations

import json
import math
import os
import time
from types import TracebackType
from typing import Any, Self

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

PLAIN_WIDTH = 120  # columns of tables that no terminal shows
EVERY = 5.0  # seconds between two plain lines of progress


def stdout() -> Console:
    """For results."""
    return _console(stderr=False)


def stderr() -> Console:
    """For progress, hints and failures."""
    return _console(stderr=True)


def _console(*, stderr: bool) -> Console:
    console = Console(stderr=stderr, highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = PLAIN_WIDTH
    return console


def complain(error: BaseException | str) -> None:
    """One line about a failure."""
    said = " ".join(str(error).split()) or repr(error)
    kind = "" if isinstance(error, str) else f"{type(error).__name__}: "
    typer.echo(f"ppl: {kind}{said}", err=True)


def hint(text: str) -> None:
    """A line for people, which scripts do not read."""
    typer.echo(text, err=True)


def print_json(value: Any) -> None:
    """One JSON value on stdout; what JSON has no number for is written as a string."""
    typer.echo(json.dumps(_plain(value), ensure_ascii=False, indent=2))


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return str(value)


def duration(seconds: float) -> str:
    """`42 s`, `3 min 05 s`, `2 h 10 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class Following:
    """Shows how far something is: a bar on a terminal, plain lines with a rate elsewhere.

    Args:
        what: is counted, such as "cells".
        quiet: show nothing.
    """

    def __init__(self, what: str, *, quiet: bool = False) -> None:
        self.what, self.quiet = what, quiet
        self._console = stderr()
        self._bar: Progress | None = None
        self._began = self._said = time.monotonic()
        self._first: int | None = None

    def __enter__(self) -> Self:
        self._began = self._said = time.monotonic()
        if self._console.is_terminal and not self.quiet:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn(self.what),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=self._console,
                transient=True,
            )
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def at(self, done: int, total: int, label: str = "", failed: int = 0) -> None:
        """So much of it is done."""
        if self.quiet:
            return
        first = self._first = done - 1 if self._first is None else self._first
        if self._bar is not None:
            if not self._bar.tasks:
                self._bar.add_task("", total=total, completed=first)
            text = label + (f" ({failed} failed)" if failed else "")
            self._bar.update(self._bar.tasks[0].id, completed=done, total=total, description=text)
            return
        now = time.monotonic()
        if now - self._said < EVERY and done < total:
            return
        self._said = now
        rate = (done - first) / max(now - self._began, 1e-9)
        parts = [f"{done}/{total} {self.what}", f"{rate:.2f}/s"]
        if done < total:
            parts.append(f"about {duration((total - done) / rate)} left")
        if failed:
            parts.append(f"{failed} failed")
        hint(", ".join([*parts, label] if label else parts))
