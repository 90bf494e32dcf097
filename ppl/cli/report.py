"""`ppl report`: what runs have found, by every rule and at every N, without asking a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ppl.cli.terminal import hint, stdout


def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs; shards count as one.")],
    baseline: Annotated[
        str | None,
        typer.Option("--baseline", help="Compare with: 'vote', 'SMC(16)', 'SMC(16), best'."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write files there; else print only.")
    ] = None,
    formats: Annotated[
        list[str] | None,
        typer.Option("--format", help="md, csv, png, svg, html; all unless given."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the bootstrap.")] = 0,
    rules: Annotated[
        list[str] | None,
        typer.Option("--rule", help="One more rule: 'RPC', 'perplexity consistency', ..."),
    ] = None,
    csv: Annotated[bool, typer.Option("--csv", help="Print CSV, for scripts.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown.")] = False,
) -> None:
    """Compare searchers and rules, with intervals, from stored candidates."""
    from ppl.study.report import FORMATS
    from ppl.study.report import report as made_of

    made = made_of(
        runs, baseline=baseline, out=out, formats=formats or FORMATS, seed=seed, rules=rules or ()
    )
    if csv:
        typer.echo(made.csv, nl=False)
    elif markdown:
        typer.echo(made.markdown)
    else:
        stdout().print(made)
    for path in made.files:
        hint(f"written: {path}")
