"""The work itself: searches of one group side by side, and what is written of each.

As many searches as `batch` are open at once, whatever their number: one that ends makes room for
the next, so that models are asked by full batches, and a line is there as soon as a question is
done.
"""

from __future__ import annotations

import inspect
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

from ppl.language.cost import Budget, Cost
from ppl.language.text import Continuation
from ppl.lm.decode import LogitsModel
from ppl.posterior.posterior import Posterior, Sample
from ppl.runtime.loop import SHARED
from ppl.searchers.parse import parse
from ppl.searchers.search import Search
from ppl.study import sources
from ppl.study.plan import Group, Plan, question_seed
from ppl.tasks import Problem, Task


@dataclass(frozen=True)
class Row:
    """What one cell leaves in the files.

    Attributes:
        result: its line of `results.jsonl`.
        candidates: its line of `candidates.jsonl`.
        tree: its posterior as a file, if wanted.
    """

    result: dict[str, Any]
    candidates: dict[str, Any]
    tree: bytes | None = None


class Bench:
    """A study with what it has loaded: models and verifiers come when they are needed.

    Args:
        study: the study.
        batch: most questions that are searched at once.
        trees: keep posteriors whole.
    """

    def __init__(self, study: Plan, *, batch: int = 64, trees: bool = False) -> None:
        self.study, self.batch, self.trees = study, batch, trees
        self._models: dict[str, Any] = {}
        self._verifiers: dict[str, Any] = {}
        self._last: Group | None = None

    def run(self, group: Group, problems: Sequence[Problem]) -> Iterator[Row]:
        """Searches problems of a group; rows come as questions end.

        Raises:
            PPLError: what the whole group needs is not there: its model, its program. What fails in
                a question is in its row.
        """
        task = self.study.task(group.task)
        program, arguments = self._program(group, task)
        with sources.importing(self.study.folder):
            searcher = parse(group.spelled, imports=True)
        budget = group.budget or Budget()
        waiting = list(problems)[::-1]
        flying: dict[Future[Any], tuple[Problem, Search]] = {}
        try:
            while waiting or flying:
                while waiting and len(flying) < self.batch:
                    problem = waiting.pop()
                    seed = question_seed(group.seed, problem.id)
                    search = searcher.begin(program, problem, *arguments, seed=seed, budget=budget)
                    flying[SHARED.submit(search)] = problem, search
                over, _ = wait(flying, return_when=FIRST_COMPLETED)
                for future in [f for f in flying if f in over]:
                    problem, search = flying.pop(future)
                    error = future.exception()
                    found = getattr(error, "posterior", None) if error else future.result()
                    yield row(group, task, problem, found, error, search.tree.cost, self.trees)
        finally:
            for future in flying:
                future.cancel()

    def alone(self, group: Group) -> None:
        """Gets ready for a group of which another process has told nothing further: its models stay
        warm from piece to piece, and those of other groups go."""
        self.keep([group.model], [self.study.verifier(group.program, group.model)])
        if group != self._last:
            self.fresh()
        self._last = group

    def keep(self, models: Sequence[str], verifiers: Sequence[str | None]) -> None:
        """Lets go of everything else, which is not needed any more."""
        for held, wanted in ((self._models, models), (self._verifiers, verifiers)):
            for name in [name for name in held if name not in wanted]:
                del held[name]

    def fresh(self) -> None:
        """Empties the models' caches: no searcher profits from what another has computed."""
        for model in (*self._models.values(), *self._verifiers.values()):
            pool = getattr(getattr(model, "engine", None), "pool", None)
            if isinstance(model, LogitsModel):
                model.fresh()
            elif pool is not None:
                pool.clear()

    def _program(self, group: Group, task: Task) -> tuple[Callable[..., Any], tuple[Any, Any]]:
        study, use = self.study, self.study.named("programs")[group.program]
        verifier = study.verifier(group.program, group.model)
        with sources.importing(study.folder):
            function = use.found()
            if group.model not in self._models:
                self._models[group.model] = sources.model_of(
                    group.model, study.named("models")[group.model]
                )
            if verifier is not None and verifier not in self._verifiers:
                source = study.named("verifiers")[verifier]
                self._verifiers[verifier] = sources.verifier_of(verifier, source)
        settings = dict(use.settings)
        if "task" in inspect.signature(function).parameters:
            settings["task"] = task
        judge = None if verifier is None else self._verifiers[verifier]
        # Bound here: a program's settings may be called as a searcher's arguments are.
        bound = partial(function, **settings) if settings else function
        return bound, (self._models[group.model], judge)


def row(
    group: Group,
    task: Task,
    problem: Problem,
    posterior: Posterior | None,
    error: BaseException | None,
    cost: Cost,
    tree: bool = False,
) -> Row:
    """What is written of one question.

    Args:
        group, task, problem: which.
        posterior: what was found; None if nothing was.
        error: what ended the search before its time, or None.
        cost: what was spent.
        tree: keep the posterior.
    """
    cell = group.cell(problem.id)
    judge = _Judge(task, problem)
    found: dict[str, Any] = {"answer": None, "right": None, "answers": {}, "rights": {}}
    candidates: list[dict[str, Any]] = []
    content: bytes | None = None
    try:
        if posterior is not None:
            candidates = _candidates(posterior, judge)
            content = _stored(posterior) if tree else None
        if posterior is not None and error is None:
            answers = {"best": _said(posterior.best), "vote": _said(posterior.vote())}
            rights = {rule: judge(answer) for rule, answer in answers.items()}
            found = {"answer": answers["best"], "right": rights["best"]}
            found |= {"answers": answers, "rights": rights}
    except Exception as failure:  # of the task's judge, or of an answer that is no data
        error, candidates = failure, []
    return Row(
        {
            "cell": cell,
            "task": group.task,
            "problem": problem.id,
            "model": group.model,
            "program": group.program,
            "searcher": group.searcher,
            "n": len(candidates) if group.n is None else group.n,
            "budget": group.limits,
            "seed": group.seed,
            "gold": problem.gold,
            **found,
            "log_evidence": None if posterior is None else posterior.log_evidence,
            "cost": spent(cost),
            "seconds": cost.seconds,
            "stopped": "done" if posterior is None else posterior.stopped,
            "error": None if error is None else f"{type(error).__name__}: {error}",
        },
        {"cell": cell, "candidates": candidates},
        content,
    )


def spent(cost: Cost) -> dict[str, Any]:
    """A cost as a row has it; its seconds stand beside it."""
    names = [f.name for f in fields(Cost) if f.name not in ("seconds", "models")] + ["flops"]
    models = {}
    for name, model in cost.models.items():
        models[name] = {key: getattr(model, key) for key in [*names, "draws", "parameters"]}
    return {**{key: getattr(cost, key) for key in names}, "models": models}


class _Judge:
    """The task's judge of one problem, asked once for each answer."""

    def __init__(self, task: Task, problem: Problem) -> None:
        self._task, self._problem = task, problem
        self._known: dict[str | None, bool | None] = {}

    def __call__(self, answer: str | None) -> bool | None:
        if answer not in self._known:
            right = self._task.score(self._problem, answer)
            self._known[answer] = None if right is None else bool(right)
        return self._known[answer]


def _candidates(posterior: Posterior, judge: _Judge) -> list[dict[str, Any]]:
    parents = {child: parent for parent, child in posterior.genealogy.edges}
    return [_candidate(sample, judge, parents) for sample in posterior.samples]


def _candidate(sample: Sample, judge: _Judge, parents: dict[int, int]) -> dict[str, Any]:
    answer = _said(sample.value) if sample.answered else None
    choices = [r for r in sample.records if r.kind == "choice"]
    drawn = [r.value for r in choices if isinstance(r.value, Continuation)]
    scores = [s for r in sample.records if r.log_scores is not None for s in r.log_scores]
    dead = sample.log_weight == -math.inf
    return {
        "answer": answer,
        "right": None if dead and answer is None else judge(answer),
        "finished": sample.finished,
        "log_weight": sample.log_weight,
        "log_likelihood": sample.log_likelihood,
        "log_prob": sample.log_prob,
        "tokens": sum(len(value.tokens) for value in drawn),
        "steps": [value.text for value in drawn],
        "scores": [math.exp(score) for score in scores],
        "ancestor": _ancestor(sample.node, parents),
    }


def _ancestor(node: int, parents: dict[int, int]) -> int | None:
    """The node of the first generation that a node descends from."""
    if node not in parents:
        return None
    while parents[node] in parents:
        node = parents[node]
    return node


def _said(value: Any) -> str | None:
    return None if value is None else str(value)


def _stored(posterior: Posterior) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tree.ppl"
        posterior.save(path)
        return path.read_bytes()
