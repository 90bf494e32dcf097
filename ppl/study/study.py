"""A study: tasks x models x programs x searchers x budgets x seeds, as an object or a TOML file.

    tasks = ["lines/chain"]
    models = ["tiny-lines"]
    verifiers = ["tiny-lines"]
    searchers = ["BestOfN(8)", "SMC(8)"]
    seeds = [0, 1]

Searchers are written as they print and parsed, never evaluated (`ppl.searchers.parse`). A list of
names will do; a table gives settings:

    [tasks.hard]
    load = "math"
    level = 5

    [programs.short]
    use = "steps"
    max_steps = 12
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ppl.language.arguments import checked
from ppl.study import runner
from ppl.study.forecast import Forecast, forecast
from ppl.study.plan import Plan
from ppl.study.runner import OnProgress, Summary


@dataclass(frozen=True)
class Study(Plan):
    """What is to be run.

    Attributes:
        tasks: names as `ppl.tasks.load` takes them, or `Task`s.
        models: names as `ppl.load` takes them, or models.
        searchers: texts such as `"SMC(16)"`, or searchers.
        programs: `"steps"`, `"whole"`, `"thinking"` (see `ppl.study.programs`), an import path
            `"module:function"`, or functions `(problem, lm, verifier, **settings) -> answer`.
        verifiers: names as `PRM.load` takes them, or verifiers. Which of them a program gets, see
            `ppl.study.sources.Use`.
        budgets: `{"tokens": 4000}`, `ppl.Budget`s, or None and `{}` for no limit.
        seeds: whole numbers.
        folder: where the study's file lies: modules and files of problems are looked for there.

    Each of `tasks`, `models`, `verifiers`, `programs` may also be a mapping from names to these,
    or to settings: `{"load": ..., **settings}`, `{"make": "module:function", **settings}`, and of
    programs `{"use": ..., "verifier": ..., **settings}`.

    Raises:
        StudyError: something is missing, unknown, or twice.

    Example:
        >>> from ppl.study import Study
        >>> study = Study(["lines/chain"], ["tiny-lines"], ["BestOfN(4)", "SMC(4)"], seeds=[0, 1])
        >>> len(study.groups)
        4
    """

    @checked
    def run(
        self,
        folder: str | Path,
        *,
        limit: int | None = None,
        problems: str | None = None,
        shard: tuple[int, int] | None = None,
        batch: int = 64,
        workers: int = 1,
        ray: str | None = None,
        trees: bool = False,
        retry: bool = False,
        progress: OnProgress | None = None,
    ) -> Summary:
        """Runs every cell that the folder does not have yet.

        The same call again goes on where the last one ended, whatever ended it. A question that
        fails is a line with its error, and all others go on. One process at a time runs in a
        folder; shards run in folders of their own, see `ppl.study.merge`.

        Args:
            folder: of the run; made if it is not there.
            limit: the first so many problems of each task.
            problems: places of problems, from 0: `"0-99"`, `"3,7,10-12"`.
            shard: `(i, n)`: every n-th problem from the i-th, counted from 0.
            batch: most questions that are searched at once. Results do not depend on it; costs of
                prompts may, which questions share.
            workers: processes that search, each with the models; 1 is this one.
            ray: address of a Ray cluster that does the work instead, `"auto"` for the one that is
                running here, `"local"` to start one; extra `ray`. `workers` is then how many actors
                hold the models.
            trees: keep every posterior as `trees/CELL.ppl`, see `ppl.Posterior.load`.
            retry: run those again that ended with an error.
            progress: called after every cell.

        Raises:
            StudyError: the folder is in use, or holds something else by one of the study's names.
            PPLError: a task, model, verifier or program is not there.
        """
        return runner.run(
            self,
            folder,
            limit=limit,
            problems=problems,
            shard=shard,
            batch=batch,
            workers=workers,
            ray=ray,
            trees=trees,
            retry=retry,
            progress=progress,
        )

    @checked
    def dry_run(
        self,
        folder: str | Path | None = None,
        *,
        limit: int | None = None,
        problems: str | None = None,
        shard: tuple[int, int] | None = None,
    ) -> Forecast:
        """What `run` would do: cells, calls and tokens expected. Loads tasks, and no model.

        Expectations are means of what the folder has of the same kind; `run(folder, limit=2)` gives
        it something to go by. Without that they are bounds, or unknown.

        Args:
            folder: of the run; what it has is not counted. None for a new one.
            limit, problems, shard: as in `run`.
        """
        return forecast(self, folder, limit=limit, problems=problems, shard=shard)
