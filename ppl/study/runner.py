"""Runs a study into a folder: what is there is skipped, so that the same call again goes on."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ppl.errors import StudyError
from ppl.language import checks
from ppl.language.printed import Printed
from ppl.study import cluster, resolving, workers
from ppl.study.jobs import Job, jobs
from ppl.study.plan import Plan
from ppl.study.problems import select
from ppl.study.records import Records, clean
from ppl.study.work import Bench, Row


@dataclass(frozen=True)
class Progress:
    """How far a run is, after a cell.

    Attributes:
        done: cells that are there, also from before.
        cells: all.
        failed: of those, how many stand with an error.
        label: what was run last: task, model, program, searcher, budget, seed.
        tokens: tokens that language models have generated in this run.
        seconds: since this run began.
        remaining: seconds that it will take from here, if it goes on so.
    """

    done: int
    cells: int
    failed: int
    label: str
    tokens: int
    seconds: float
    remaining: float


OnProgress = Callable[[Progress], object]


@dataclass(frozen=True)
class Summary(Printed):
    """What a run has done.

    Attributes:
        folder: where the results are.
        cells: all that were asked for.
        before: of these, how many were there already.
        failed: of all of them, how many stand there with an error (a line of its own each).
        tokens: tokens that language models have generated.
        seconds: how long it took.
    """

    folder: Path
    cells: int
    before: int
    failed: int
    tokens: int
    seconds: float

    def __str__(self) -> str:
        new = self.cells - self.before
        return (
            f"{self.folder}: {self.cells} cells, {new} of them new in {self.seconds:.1f} s, "
            f"{self.failed} with an error, {self.tokens} tokens"
        )


def run(
    study: Plan,
    folder: str | Path,
    *,
    limit: int | None,
    problems: str | None,
    shard: tuple[int, int] | None,
    batch: int,
    workers: int,
    ray: str | None,
    trees: bool,
    retry: bool,
    progress: OnProgress | None,
) -> Summary:
    """See `ppl.study.Study.run`."""
    checks.count(batch=batch, workers=workers)
    began = time.perf_counter()
    chosen = {
        name: select(study.task(name), limit=limit, problems=problems, shard=shard)
        for name in study.tasks
    }
    cells = sum(len(chosen[group.task]) for group in study.groups)
    with Records(folder) as records:
        clean(records.folder)
        resolving.settle(folder, study)
        if retry:
            records.forget_errors(g.cell(p.id) for g in study.groups for p in chosen[g.task])
        todo = list(jobs(study, chosen, records.results))
        left = sum(len(job.problems) for job in todo)
        before, done, tokens = cells - left, 0, 0
        asked = (g.cell(p.id) for g in study.groups for p in chosen[g.task])
        failed = sum(records.results.get(cell, False) for cell in asked)  # of an earlier call
        # Closed when it is left: an exception would keep searches and processes going.
        with contextlib.closing(_rows(study, todo, batch, workers, ray, trees)) as found:
            for job, row in found:
                kept = {} if row.tree is None else {str(row.result["cell"]): row.tree}
                records.write([(row.result, row.candidates)], kept)
                done += 1
                failed += row.result["error"] is not None
                tokens += row.result["cost"]["lm_tokens"]
                if progress is not None:
                    seconds = time.perf_counter() - began
                    told = before + done, cells, failed, str(job.group), tokens, seconds
                    progress(Progress(*told, seconds / done * (left - done)))
        if done != left:
            raise StudyError(f"{folder}: {left - done} cells were not run: run the study again")
    return Summary(Path(folder), cells, before, failed, tokens, time.perf_counter() - began)


def _rows(
    study: Plan, todo: Sequence[Job], batch: int, number: int, ray: str | None, trees: bool
) -> Generator[tuple[Job, Row], None, None]:
    if not todo:
        return
    if ray is not None:
        yield from cluster.rows(study, todo, batch=batch, actors=number, address=ray, trees=trees)
    elif number > 1:
        yield from workers.rows(study, todo, batch=batch, workers=number, trees=trees)
    else:
        yield from here(study, todo, batch, trees)


def here(study: Plan, todo: Sequence[Job], batch: int, trees: bool) -> Iterator[tuple[Job, Row]]:
    """All jobs in this process, one after the other."""
    bench = Bench(study, batch=batch, trees=trees)
    for i, job in enumerate(todo):
        following = [(j.group.program, j.group.model) for j in todo[i:]]
        judges = [study.verifier(program, model) for program, model in set(following)]
        bench.keep([model for _, model in following], judges)
        bench.fresh()
        for row in bench.run(job.group, job.problems):
            yield job, row
