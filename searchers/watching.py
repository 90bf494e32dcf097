"""Watching searches: the line of `progress=True`, `on_step=`, and what an interrupt leaves."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ppl.errors import PPLError
from ppl.language.arguments import checked
from ppl.posterior.shown import several

_EVERY = 0.2
"""Seconds between two lines in a notebook, which keeps and sends every one of them."""


@checked
def check_watched(progress: bool, on_step: Callable[..., Any] | None) -> None:
    """Raises TypeError for a way to watch a search that is none."""


def both(
    first: Callable[[Any], None] | None, second: Callable[[Any], None] | None
) -> Callable[[Any], None] | None:
    """One function that calls both; None calls nothing."""
    if first is None or second is None:
        return first or second

    def call(search: Any) -> None:
        first(search)
        second(search)

    return call


@contextlib.contextmanager
def kept(searches: Sequence[Any]) -> Iterator[None]:
    """What ends the block and is no error of a search (Ctrl-C, a cancelled task) has the searches
    as its `searches`, and says so."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, PPLError):
            over = sum(search.over for search in searches)
            error.searches = list(searches)  # type: ignore[attr-defined]
            error.add_note(
                f"{over} of {len(searches)} searches were over; they are in this exception's "
                "`searches`: search.posterior() is what each has found, and "
                "ppl.searchers.run_all(searches) goes on"
            )
        raise


@contextlib.contextmanager
def progress_line(searches: Sequence[Any], shown: bool) -> Iterator[Callable[[Any], None] | None]:
    """Shows how far searches are while the block runs: `on_step` for them, None to show nothing.

    In a terminal the line goes when they are over, below a cell of a notebook it stays. A script's
    is on stderr, where it spoils no results; into a file it is written once, at the end.
    """
    if not shown:
        yield None
        return
    from rich.console import Console

    line = _in_notebook if Console().is_jupyter else _in_terminal
    with line(searches) as on_step:
        yield on_step


@contextlib.contextmanager
def _in_terminal(searches: Sequence[Any]) -> Iterator[Callable[[Any], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)  # of its own: rich lets a console have one line at a time
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(
        *columns,
        console=console,
        transient=console.is_terminal,
        redirect_stdout=Console().is_terminal,  # else what a program prints would go to stderr
    ) as bar:
        # How many rounds one search takes is not known before.
        total = len(searches) if len(searches) > 1 else None
        task = bar.add_task(_said(searches), total=total)

        def on_step(_: Any) -> None:
            done = sum(s.over for s in searches)
            bar.update(task, completed=done, description=_said(searches))

        yield on_step


@contextlib.contextmanager
def _in_notebook(searches: Sequence[Any]) -> Iterator[Callable[[Any], None]]:
    from IPython.display import display

    def line() -> dict[str, str]:
        return {"text/plain": f"{_said(searches)}, {time.monotonic() - began:.1f} s"}

    began = latest = time.monotonic()
    handle = display(line(), raw=True, display_id=True)

    def on_step(_: Any) -> None:
        nonlocal latest
        if time.monotonic() - latest >= _EVERY:
            latest = time.monotonic()
            handle.update(line(), raw=True)

    try:
        yield on_step
    finally:
        handle.update(line(), raw=True)


def _said(searches: Sequence[Any]) -> str:
    name = type(searches[0].searcher).__name__ if searches else "nothing"
    rounds = sum(0 if s.state is None else s.state.round for s in searches)
    tokens = sum(s.tree.cost.lm_tokens for s in searches)
    done = sum(s.over for s in searches)
    count = f"{done} of {len(searches)} searches, " if len(searches) > 1 else ""
    return f"{name}: {count}{several(rounds, 'round')}, {tokens} tokens"
