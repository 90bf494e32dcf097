"""A model, its verifier, a program and a searcher, as they are named on the command line."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import typer

from ppl.cli.loading import Loading
from ppl.cli.settings import searcher as parsed

NONE = "none"
MODEL = "tiny-lines"


def verifier_name(model: str, verifier: str | None) -> str | None:
    """The verifier that is meant: of an embedded model its own, unless another is named."""
    from ppl.lm.sources import EMBEDDED

    if verifier is None:
        return model if model in EMBEDDED else None
    return None if verifier == NONE else verifier


@dataclass(frozen=True)
class Chosen:
    """Everything loaded.

    Attributes:
        lm: the model.
        verifier: what judges it, or None.
        program: with its settings bound; called with a problem, the model and the verifier.
        searcher: settings.
        names: as `--json` tells them.
    """

    lm: Any
    verifier: Any
    program: Callable[..., Any]
    searcher: Any
    names: dict[str, Any]


def choose(
    *,
    model: str,
    verifier: str | None,
    program: str | None,
    searcher: str | None,
    task: Any,
    settings: dict[str, Any],
    loading: Loading,
) -> Chosen:
    """Loads what is named; with a verifier SMC over steps is the default, without one a vote over
    whole answers.

    Args:
        model, verifier: names for `ppl.load` and `PRM.load`; "none" for no verifier.
        program: a ready one of `ppl.study`, or an import path.
        searcher: as it prints.
        task: handed to programs that ask for it.
        settings: of the program.
        loading: of the models.

    Raises:
        typer.BadParameter: the searcher or a setting of the program is unknown.
        PPLError: something cannot be loaded.
    """
    from ppl.study import Source, Use
    from ppl.study.sources import importing, model_of, verifier_of

    judge = verifier_name(model, verifier)
    program = program or ("whole" if judge is None else "steps")
    searcher = searcher or ("BestOfN(16)" if judge is None else "SMC(16)")
    chosen = parsed(searcher)
    with importing("."):  # a program beside which one stands
        function = Use(program).found()
    taken = inspect.signature(function).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in taken.values()):
        for name in settings:
            if name not in taken:
                own = [n for n, p in taken.items() if p.kind is p.KEYWORD_ONLY and n != "task"]
                raise typer.BadParameter(
                    f"the program {program} has no setting {name}; it has {', '.join(own)}"
                )
    bound = {**settings, "task": task} if "task" in taken else settings
    how = loading.of_model(model, judge is not None)
    lm = model_of(model, Source(load=model, settings=how))
    judging = Source(load=judge, settings=loading.of_judge)
    prm = None if judge is None else verifier_of(judge, judging)
    names = {
        "model": loading.named(model),
        "verifier": judge,
        "program": program,
        "searcher": searcher,
    }
    return Chosen(lm, prm, partial(function, **bound), chosen, names)
