"""`ppl view`: a kept search as one HTML page."""

from __future__ import annotations

import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from ppl.cli.tree import drawn


def view(
    files: Annotated[
        list[Path], typer.Argument(help="What `solve --save` or `sweep --trees` has kept.")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The page; beside the file unless given.")
    ] = None,
    text: Annotated[bool, typer.Option("--text", help="Draw it here instead.")] = False,
    browser: Annotated[
        bool, typer.Option("--open/--no-open", help="Open the page in a browser.")
    ] = False,
) -> None:
    """Show searches: their trees, values, weights, dead ends."""
    from ppl.posterior.posterior import Posterior

    if out is not None and len(files) > 1:
        raise typer.BadParameter("one page for one file: leave it out", param_hint="--out")
    for file in files:
        posterior = Posterior.load(file)
        if text:
            typer.echo(drawn(posterior))
            typer.echo(str(posterior))
            continue
        page = out or file.with_suffix(".html")
        posterior.view(page)
        typer.echo(str(page))
        if browser:
            webbrowser.open(page.resolve().as_uri())
