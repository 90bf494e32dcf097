"""Studies: tasks x models x programs x searchers x budgets x seeds, run so that nothing is lost.

    study = Study.read("study.toml")
    print(study.dry_run())
    study.run("runs/first")               # again: goes on where it ended
    merge(["runs/a", "runs/b"], "runs/both")

`ppl.study.report` reads the folders.
"""

from typing import TYPE_CHECKING

from ppl.lazy import attach

if TYPE_CHECKING:
    from ppl.study.forecast import Expected, Forecast
    from ppl.study.merging import merge
    from ppl.study.plan import Cell, Group, question_seed
    from ppl.study.programs import steps, thinking, whole
    from ppl.study.runner import Progress, Summary
    from ppl.study.sources import Source, Use
    from ppl.study.study import Study
else:
    __getattr__, __dir__ = attach(__name__)

__all__ = [
    "Cell",
    "Expected",
    "Forecast",
    "Group",
    "Progress",
    "Source",
    "Study",
    "Summary",
    "Use",
    "merge",
    "question_seed",
    "steps",
    "thinking",
    "whole",
]
