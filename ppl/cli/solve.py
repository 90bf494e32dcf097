"""`ppl solve`: one question, its answer, the alternatives, and what they cost."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from ppl.cli.chosen import MODEL, choose
from ppl.cli.loading import Loading, with_loading
from ppl.cli.settings import settings
from ppl.cli.terminal import hint, print_json, stdout
from ppl.cli.tree import drawn

_SHOWN = 10  # alternatives that are printed


@with_loading
def solve(
    *,
    options: Loading,
    question: Annotated[
        str | None, typer.Argument(help="The question; `-` reads it from the standard input.")
    ] = None,
    model: Annotated[
        str, typer.Option("--model", "-m", help="A name, folder, Hub id, .gguf file or server.")
    ] = MODEL,
    verifier: Annotated[
        str | None,
        typer.Option(
            "--verifier", "--prm", help="A reward model; `none`. Embedded models have their own."
        ),
    ] = None,
    searcher: Annotated[
        str | None,
        typer.Option("--searcher", "--method", help="As it prints: 'SMC(16)', 'BeamSearch(4, 4)'."),
    ] = None,
    program: Annotated[
        str | None,
        typer.Option("--program", help="`steps`, `whole`, `thinking`, or 'module:function'."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="One seed, one result.")] = 0,
    max_tokens: Annotated[
        int | None,
        typer.Option("--max-tokens", min=1, help="Of one step, or of one whole answer."),
    ] = None,
    temperature: Annotated[float | None, typer.Option("--temperature")] = None,
    top_p: Annotated[float | None, typer.Option("--top-p")] = None,
    given: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A setting of the program: max_steps=20."),
    ] = None,
    budget: Annotated[
        int | None,
        typer.Option("--budget", min=1, help="Most tokens to generate, all candidates together."),
    ] = None,
    task: Annotated[
        str | None, typer.Option("--task", help="Take the question from a task, see `ppl tasks`.")
    ] = None,
    problem: Annotated[
        str, typer.Option("--problem", help="Which of the task: its place, from 0, or its id.")
    ] = "0",
    show_tree: Annotated[bool, typer.Option("--show-tree", help="Draw the search.")] = False,
    save: Annotated[
        Path | None, typer.Option("--save", help="Keep the search in a file for `ppl view`.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Answer one question by a search."""
    from ppl.language.cost import Budget

    about, asked = _asked(question, task, problem)
    own = {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p}
    chosen = choose(
        model=model,
        verifier=verifier,
        program=program,
        searcher=searcher,
        task=about,
        settings={**{k: v for k, v in own.items() if v is not None}, **settings(given or [])},
        loading=options,
    )
    posterior = chosen.searcher.run(
        chosen.program,
        asked,
        chosen.lm,
        chosen.verifier,
        seed=seed,
        budget=None if budget is None else Budget(tokens=budget),
        progress=not as_json and sys.stderr.isatty(),
    )
    if save is not None:
        posterior.save(save)
    told = _told(posterior, chosen.verifier is not None, about if task else None, asked)
    told = {"question": asked.question, **told, **chosen.names, "seed": seed}
    if as_json:
        print_json(told)
    else:
        _print(told, posterior)
    if show_tree:
        (hint if as_json else typer.echo)(drawn(posterior))
    if save is not None:
        hint(f"kept in {save}: `ppl view {save}` shows it")


def _asked(question: str | None, task: str | None, problem: str) -> tuple[Any, Any]:
    """The task and the problem that are meant."""
    from ppl.tasks import Problem, Task, load

    if (question is None) == (task is None):
        raise typer.BadParameter("give either a question or --task NAME")
    if task is not None:
        found = load(task)
        if not problem.isdecimal():
            return found, found[problem]
        if int(problem) >= len(found):
            raise typer.BadParameter(f"{problem}: {task} has problems 0 to {len(found) - 1}")
        return found, found[int(problem)]
    asked = sys.stdin.read().strip() if question == "-" else str(question)
    one = Problem("question", asked)
    return Task("question", [one]), one


def _told(posterior: Any, judged: bool, task: Any, problem: Any) -> dict[str, Any]:
    """What there is to tell, in the words of `results.jsonl`."""
    from ppl.study.work import spent

    answers = {"best": posterior.best, "vote": posterior.vote()}
    answer = answers["best" if judged else "vote"]
    told = {
        "answer": answer,
        "answers": answers,
        "alternatives": [
            {"answer": value, "probability": p} for value, p in posterior.marginal().items()
        ]
        if any(s.answered for s in posterior.samples)
        else [],
        "log_evidence": posterior.log_evidence,
        "ess": posterior.ess,
        "cost": spent(posterior.cost),
        "seconds": posterior.cost.seconds,
        "stopped": posterior.stopped,
    }
    if task is not None:
        right = task.score(problem, None if answer is None else str(answer))
        told |= {"problem": problem.id, "gold": problem.gold, "right": right}
    return told


def _print(told: dict[str, Any], posterior: Any) -> None:
    console = stdout()
    answer = "no answer: nothing was finished" if told["answer"] is None else str(told["answer"])
    console.print(f"[bold]{escape(answer)}[/bold]", soft_wrap=True)
    if "right" in told:
        word = {True: "right", False: "wrong", None: "cannot be read"}[told["right"]]
        gold = "" if told["gold"] is None else f" (the answer is {told['gold']})"
        console.print(word if told["right"] else escape(f"{word}{gold}"), soft_wrap=True)
    if told["alternatives"]:
        table = Table(box=None, pad_edge=False)
        table.add_column("probability", justify="right")
        table.add_column("answer")
        table.add_column("")
        for row in told["alternatives"][:_SHOWN]:
            chosen = [rule for rule, said in told["answers"].items() if said == row["answer"]]
            table.add_row(
                f"{row['probability']:.4f}", escape(str(row["answer"])), ", ".join(chosen)
            )
        console.print()
        console.print(table)
        if len(told["alternatives"]) > _SHOWN:
            console.print(f"... and {len(told['alternatives']) - _SHOWN} more")
    cost = told["cost"]
    parts = [
        told["searcher"],
        f"{cost['lm_tokens']:,} tokens written",
        f"{cost['prompt_tokens']:,} of prompts read ({cost['reused_tokens']:,} reused)",
        f"{cost['verifier_tokens']:,} read by the verifier",
        f"{told['seconds']:.2f} s",
    ]
    if told["log_evidence"] is not None:
        parts.append(f"log evidence {told['log_evidence']:.3f}")
    if told["stopped"] != "done":
        parts.append("stopped by the budget" if told["stopped"] == "budget" else "settled early")
    console.print()
    console.print(escape(", ".join(parts)), soft_wrap=True)
