"""`ppl serve`: an OpenAI-compatible endpoint whose answers are searches."""

from __future__ import annotations

import contextlib
from typing import Annotated, Any

import typer

from ppl.cli.chosen import MODEL, verifier_name
from ppl.cli.loading import Loading, with_loading
from ppl.cli.settings import searcher as parsed
from ppl.cli.terminal import hint


@with_loading
def serve(
    *,
    options: Loading,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", "-m", help="NAME, or ALIAS=NAME. May be given again."),
    ] = None,
    verifier: Annotated[
        str | None,
        typer.Option("--verifier", "--prm", help="Embedded models have their own; `none`."),
    ] = None,
    searcher: Annotated[
        str | None, typer.Option("--searcher", help="Of requests that name none: 'SMC(16)'.")
    ] = None,
    program: Annotated[
        list[str] | None,
        typer.Option("--program", metavar="NAME=MODULE:FUNCTION", help="A program of your own."),
    ] = None,
    host: Annotated[str, typer.Option("--host", help="0.0.0.0 lets others in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0)] = 8000,
    api_key: Annotated[
        str | None, typer.Option("--api-key", envvar="PPL_API_KEY", help="Wanted from clients.")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", min=1, help="Most tokens of one request.")
    ] = None,
    queue: Annotated[
        int | None, typer.Option("--queue", min=0, help="Most requests that wait.")
    ] = None,
) -> None:
    """Serve models over HTTP; clients name a searcher with the model: 'tiny-lines:SMC(16)'."""
    from ppl.lm.sources import name_of
    from ppl.serve import Limits, Offer
    from ppl.serve import serve as run
    from ppl.study import Source
    from ppl.study.sources import model_of, verifier_of

    programs = [_program(text) for text in program or ()]
    limits = {"tokens": max_tokens, "waiting": queue}
    offers: dict[str, Offer] = {}
    models: dict[str, Any] = {}  # what has several aliases is loaded once
    judges: dict[str, Any] = {}
    options.refuse_for_several(model or ())
    hint(f"loading {', '.join(model or [MODEL])}")
    for given in model or [MODEL]:
        alias, equals, name = given.partition("=")
        name = name if equals else given
        judge = verifier_name(name, verifier)
        own, judging = options.of_model(name, judge is not None), options.of_judge
        if own and name not in models:
            models[name] = model_of(name, Source(load=name, settings=own))
        if judge and judging and judge not in judges:
            judges[judge] = verifier_of(judge, Source(load=judge, settings=judging))
        called = alias if equals else name_of(given)
        if called in offers:
            raise typer.BadParameter(
                f"two are called {called!r}: write ALIAS=MODEL", param_hint="--model"
            )
        offers[called] = Offer(
            models.get(name, name),
            verifier=judges.get(judge, judge) if judge else None,
            searcher=None if searcher is None else parsed(searcher),
        )
    with contextlib.suppress(KeyboardInterrupt):  # it has let its searches end by then
        run(
            offers,
            host=host,
            port=port,
            api_key=api_key,
            programs=dict(programs),
            limits=Limits(**{name: value for name, value in limits.items() if value is not None}),
        )


def _program(text: str) -> tuple[str, str]:
    name, equals, path = text.partition("=")
    if not equals or ":" not in path:
        raise typer.BadParameter(f"{text!r}: write NAME=MODULE:FUNCTION", param_hint="--program")
    return name, path
