"""`ppl demo`: what search gains, on held-out problems, with the embedded pair `tiny-lines`."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from ppl.cli.terminal import Following, hint, print_json, stdout

TASKS = ("lines/chain", "lines/queens", "lines/sudoku")
SEARCHERS = ("BestOfN(1)", "BestOfN(16)", "SMC(16)", "BeamSearch(4, 4)", "REBASE(16)")


def demo(
    problems: Annotated[
        int, typer.Option("--problems", "--limit", "-n", min=1, help="Of each of the three tasks.")
    ] = 8,
    searchers: Annotated[
        list[str] | None, typer.Option("--searcher", help="As it prints; may be given again.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed")] = 0,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Keep the run there, for `ppl report` and `ppl view`."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Run one program under several searchers and print what they solve."""
    from ppl.study import Study
    from ppl.study.records import RESULTS, read

    study = Study(
        {task: {"load": task, "n": problems} for task in TASKS},
        ["tiny-lines"],
        searchers or SEARCHERS,
        programs={"steps": {"use": "steps", "max_steps": 16, "max_tokens": 8}},
        verifiers=["tiny-lines"],
        seeds=[seed],
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder = out or Path(temporary)
        with Following("problems", quiet=as_json) as following:
            study.run(
                folder,
                trees=out is not None,
                progress=lambda p: following.at(p.done, p.cells, p.label, p.failed),
            )
        rows = list(read(folder / RESULTS))
    found = summed(rows, study.searchers)
    if as_json:
        print_json(found)
        return
    stdout().print(_table(found, problems))
    if out is None:
        hint("`ppl demo --out runs/demo` keeps the run; `ppl solve` answers a question of yours")
    else:
        hint(
            f"kept in {out}: `ppl report {out}` says more, `ppl view {out}/trees/*.ppl` shows each"
        )


def summed(rows: Iterable[Mapping[str, Any]], searchers: Sequence[Any]) -> list[dict[str, Any]]:
    """A row a searcher: the share that its answers solve, with a 95% Wilson interval, and costs."""
    from ppl.study.intervals import wilson

    kept: dict[str, list[Mapping[str, Any]]] = {str(s): [] for s in searchers}
    for row in rows:
        if row["searcher"] in kept:
            kept[row["searcher"]].append(row)
    found = []
    for name, mine in kept.items():
        if not mine:
            continue
        right = {
            rule: sum(r["rights"].get(rule) is True for r in mine) for rule in ("best", "vote")
        }
        low, high = wilson(right["best"], len(mine))
        costs = {
            key: sum(r["cost"][key] for r in mine) / len(mine)
            for key in ("lm_tokens", "verifier_tokens")
        }
        found.append(
            {
                "searcher": name,
                "problems": len(mine),
                "failed": sum(r["error"] is not None for r in mine),
                "best": right["best"] / len(mine),
                "low": low,
                "high": high,
                "vote": right["vote"] / len(mine),
                **costs,
                "seconds": sum(r["seconds"] for r in mine),
            }
        )
    return found


def _table(found: Sequence[Mapping[str, Any]], problems: int) -> Table:
    title = f"{len(TASKS)} x {problems} held-out problems, one program, tiny-lines"
    table = Table(title=title, box=None, pad_edge=False, title_justify="left")
    headings = ("searcher", "solved", "95% interval", "by vote", "tokens", "verifier tokens", "s")
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "searcher" else "right")
    for row in found:
        table.add_row(
            row["searcher"],
            f"{row['best']:.0%}",
            f"{row['low']:.0%} to {row['high']:.0%}",
            f"{row['vote']:.0%}",
            f"{row['lm_tokens']:,.0f}",
            f"{row['verifier_tokens']:,.0f}",
            f"{row['seconds']:.1f}",
        )
    table.caption = "tokens: a problem; solved: by the answer that the verifier likes best"
    table.caption_justify = "left"
    return table
