"""`ppl sweep`: a study into a folder; the same command again goes on where the last one ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from ppl.cli.chosen import MODEL, NONE, verifier_name
from ppl.cli.loading import Loading, with_loading
from ppl.cli.settings import searcher as parsed
from ppl.cli.terminal import Following, hint, print_json


@with_loading
def sweep(
    *,
    options: Loading,
    study: Annotated[
        Path | None, typer.Argument(help="A study as TOML; flags override what it says.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "--output", "-o", help="Folder of the run.")
    ] = None,
    task: Annotated[
        list[str] | None, typer.Option("--task", "--dataset", help="May be given again.")
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option("--model", "-m", help="May be given again.")
    ] = None,
    verifier: Annotated[
        list[str] | None,
        typer.Option("--verifier", "--prm", help="Embedded models have their own; `none`."),
    ] = None,
    searcher: Annotated[
        list[str] | None,
        typer.Option("--searcher", "--method", help="As it prints: 'SMC(16)'. May be given again."),
    ] = None,
    program: Annotated[
        list[str] | None,
        typer.Option("--program", help="`steps`, `whole`, `thinking`, or 'module:function'."),
    ] = None,
    budget: Annotated[
        list[int] | None, typer.Option("--budget", min=1, help="Most tokens to generate a problem.")
    ] = None,
    seed: Annotated[list[int] | None, typer.Option("--seed", help="May be given again.")] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="The first so many problems of each task.")
    ] = None,
    problems: Annotated[
        str | None, typer.Option("--problems", help="Places from 0: '0-99', '3,7,10-12'.")
    ] = None,
    shard: Annotated[
        str | None, typer.Option("--shard", metavar="I/N", help="The I-th of N parts, from 0.")
    ] = None,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Processes that search.")] = 1,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Questions at once.")] = 64,
    ray: Annotated[
        str | None, typer.Option("--ray", metavar="ADDRESS", help="'auto', 'local', or an address.")
    ] = None,
    trees: Annotated[
        bool, typer.Option("--trees", help="Keep every search for `ppl view`.")
    ] = False,
    retry: Annotated[bool, typer.Option("--retry", help="Run failed questions again.")] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on in --out; so it is without this, too.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be run and what it would cost.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Run tasks x models x programs x searchers x budgets x seeds."""
    if out is None and not dry_run:
        raise typer.BadParameter("where to? Give --out FOLDER", param_hint="--out")
    if resume and out is not None and not out.exists():
        raise typer.BadParameter(f"there is no {out} to go on with", param_hint="--resume")
    for text in searcher or ():
        parsed(text)  # before anything is loaded
    models, verifiers = _loaded(options, study, model, verifier)
    flags: dict[str, Any] = {
        "tasks": task,
        "models": models,
        "verifiers": verifiers,
        "searchers": searcher,
        "programs": program,
        "budgets": None if budget is None else [{"tokens": tokens} for tokens in budget],
        "seeds": seed,
    }
    planned = _planned(study, {name: value for name, value in flags.items() if value is not None})
    part = {"limit": limit, "problems": problems, "shard": _shard(shard)}
    if dry_run:
        forecast = planned.dry_run(out, **part)
        if as_json:
            whole = {n: getattr(forecast, n) for n in ("cells", "done", "calls", "tokens")}
            print_json({**whole, "rows": [asdict(row) for row in forecast.rows]})
        else:
            typer.echo(str(forecast))
        return
    try:
        with Following("cells", quiet=as_json) as following:
            summary = planned.run(
                out,
                **part,
                batch=batch,
                workers=workers,
                ray=ray,
                trees=trees,
                retry=retry,
                progress=lambda p: following.at(p.done, p.cells, p.label, p.failed),
            )
    except KeyboardInterrupt:
        hint(f"what was found until now is in {out}: the same command goes on")
        raise
    if as_json:
        print_json({**asdict(summary), "folder": str(summary.folder)})
    else:
        typer.echo(str(summary))
        hint(f"`ppl report {out}` compares the searchers")
    if summary.failed:
        hint("questions that failed are lines with an error in results.jsonl; --retry runs them")
        raise typer.Exit(1)


def _loaded(
    options: Loading,
    study: Path | None,
    model: list[str] | None,
    verifier: list[str] | None,
) -> tuple[Any, Any]:
    """Models and verifiers with the options, called as they are loaded; None where the study says
    which, or where they follow from the models."""
    named = None if verifier is None else [v for v in verifier if v != NONE]
    if not options.given:
        return model, named
    if study is not None and model is None:
        raise typer.BadParameter(
            f"{study} says how its models are loaded: give --model, too, or write settings into "
            "the file, as in [models.small] load = 'tiny-lines', kv = 'int8'",
            param_hint=", ".join(f"--{name.replace('_', '-')}" for name in options.given),
        )
    models = model or [MODEL]
    options.refuse_for_several(models)
    own = {m: verifier_name(m, None) for m in models}
    judges = {options.named(m): v for m, v in own.items() if v is not None}
    if named is not None:
        judges = {v: v for v in named}
    judging = {n: {"load": v, **options.of_judge} for n, v in judges.items()}
    keeps = study is not None and named is None  # the study's own
    found = {options.named(m): {"load": m, **options.of_model(m, bool(judges))} for m in models}
    if len(found) < len(models):
        raise typer.BadParameter(f"two are called alike: {', '.join(models)}", param_hint="--model")
    return found, None if keeps else judging


def _planned(path: Path | None, flags: Mapping[str, Any]) -> Any:
    """The study of a file with the flags' changes, or of the flags alone."""
    from ppl.study import Study

    if path is not None:
        return replace(Study.read(path), **flags)
    for name, flag in (("tasks", "--task"), ("searchers", "--searcher")):
        if name not in flags:
            raise typer.BadParameter(f"give a study as TOML, or {flag}", param_hint=flag)
    models = flags.get("models", [MODEL])
    own = [v for m in models if (v := verifier_name(m, None)) is not None]
    verifiers = flags.get("verifiers", own)
    programs = ["steps" if verifiers else "whole"]
    defaults: dict[str, Any] = {"models": models, "verifiers": verifiers, "programs": programs}
    return Study(**{**defaults, **flags})


def _shard(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    i, slash, n = text.partition("/")
    if not slash or not (i.isdecimal() and n.isdecimal() and int(i) < int(n)):
        raise typer.BadParameter(f"{text!r}: write I/N, as in 0/4", param_hint="--shard")
    return int(i), int(n)
