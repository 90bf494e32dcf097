"""The command line application, and what all its commands have in common.

Exit codes: 0 if all went well, 1 after a failure, 2 for a command that cannot be understood, 130
after Ctrl-C. Failures of the library are one line on stderr; `--debug` shows where they come from.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ppl.cli import demo, doctor, merge, report, serve, solve, sweep, tasks, view
from ppl.cli.extras import own_version
from ppl.cli.terminal import complain
from ppl.errors import PPLError

# What the library raises for bad input, missing files, and extras that are not installed.
EXPECTED = (PPLError, ValueError, OSError, ImportError)


def _warned(message: Warning | str, category: type[Warning], *where: Any) -> None:
    """A warning is one line; where in the code it was given says nothing to whoever typed."""
    complain(f"{category.__name__}: {message}")


class Commands(TyperGroup):
    """Shows failures of the library as one line, whichever command it was."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """`--debug` may stand anywhere before a `--`, also behind the command."""
        own = args[: args.index("--")] if "--" in args else args
        if "--debug" in own:
            at = own.index("--debug")
            args = ["--debug", *args[:at], *args[at + 1 :]]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Runs a command."""
        debug = ctx.params.get("debug") or os.environ.get("PPL_DEBUG")
        try:
            here = str(Path.cwd())
            if here not in sys.path and "" not in sys.path:
                sys.path.append(here)  # modules of one's own, as `python -m ppl` finds them
            with warnings.catch_warnings():
                if not debug:
                    warnings.showwarning = _warned  # type: ignore[assignment]
                return super().invoke(ctx)
        except EXPECTED as error:
            if debug:
                raise
            complain(error)
            raise typer.Exit(1) from error
        except KeyboardInterrupt:
            complain("interrupted")
            raise typer.Exit(130) from None


app = typer.Typer(
    name="ppl",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Probabilistic programs over language models, run by interchangeable searchers.",
    epilog="`ppl demo` shows what search gains; `ppl doctor` says what is installed and missing.",
)
_COMMANDS: tuple[Callable[..., None], ...] = (
    demo.demo,
    solve.solve,
    tasks.tasks,
    sweep.sweep,
    merge.merge,
    report.report,
    view.view,
    serve.serve,
    doctor.doctor,
)
for _command in _COMMANDS:
    app.command()(_command)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ppl {own_version()}")
        raise typer.Exit


@app.callback()
def common(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the whole traceback of a failure.")
    ] = False,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Options of every command."""


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line and ends the process with its exit code."""
    try:
        app(args=arguments, prog_name="ppl")
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
