"""`ppl tasks`: which problems there are, and what they look like."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from ppl.cli.settings import settings
from ppl.cli.terminal import hint, print_json, stdout

_LONGEST = 300  # characters of a question in the listing; --json has all


def tasks(
    name: Annotated[
        str | None,
        typer.Argument(help="A task, a file, `reasoning_gym` or `reasoning_gym/NAME`."),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="Show so many problems.")] = 5,
    given: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A setting of the task: level=5."),
    ] = None,
    gold: Annotated[bool, typer.Option("--gold", help="Show the right answers, too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List tasks, or show the problems of one."""
    if name is None:
        _list(as_json)
    elif name.rstrip("/") == "reasoning_gym":
        _gym(as_json)
    else:
        _show(name, limit, given or [], gold, as_json)


def _list(as_json: bool) -> None:
    from ppl.tasks import known

    entries = known()
    if as_json:
        rows = [
            {
                "name": e.name,
                "about": e.about,
                "problems": e.size,
                "licence": e.licence,
                "settings": list(e.settings),
                "installed": e.installed,
                "install": e.install or None,
            }
            for e in entries
        ]
        print_json(rows)
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("task", "problems", "licence", "settings", "what"):
        table.add_column(heading, justify="right" if heading == "problems" else "left")
    for e in entries:
        there = e.about if e.installed else f"{e.about} [{e.install}]"
        size = "any" if e.size is None else f"{e.size:,}"
        table.add_row(e.name, size, e.licence, ", ".join(e.settings), escape(there))
    table.add_row("reasoning_gym/NAME", "any", "Apache-2.0", "", "`ppl tasks reasoning_gym`")
    table.add_row("FILE.jsonl, FILE.csv", "", "", "fields, score", "problems of your own")
    table.add_row("OWNER/NAME", "", "", "fields, split", "a data set of the hub, by `datasets`")
    stdout().print(table)


def _gym(as_json: bool) -> None:
    from ppl.tasks.reasoning_gym import gym_names

    names = [f"reasoning_gym/{n}" for n in gym_names()]
    if as_json:
        print_json(names)
    else:
        typer.echo("\n".join(names))


def _show(name: str, limit: int, given: list[str], gold: bool, as_json: bool) -> None:
    from ppl.tasks import load

    task = load(name, **settings(given))
    shown = task[:limit]
    if as_json:
        print_json(
            {
                "name": task.name,
                "about": task.about,
                "licence": task.licence,
                "problems": len(task),
                "shown": [
                    {"id": p.id, "question": p.question, "gold": p.gold, "meta": dict(p.meta)}
                    for p in shown
                ],
            }
        )
        return
    console = stdout()
    for problem in shown:
        question = problem.question.strip()
        if len(question) > _LONGEST:
            question = f"{question[:_LONGEST]} ..."
        console.print(f"[bold]{escape(problem.id)}[/bold]")
        console.print(escape(question), soft_wrap=True)
        if gold:
            console.print(f"[dim]answer:[/dim] {escape(str(problem.gold))}", soft_wrap=True)
        console.print()
    hint(f"{task.name}: {len(shown)} of {len(task)} problems, licence {task.licence}")
