"""`ppl merge`: shards of a study into one run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def merge(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder that gets everything.")],
) -> None:
    """Put runs of one study, such as its shards, together."""
    from ppl.study import merge as together

    added = together(runs, out)
    typer.echo(f"{out}: {added} cells added")
