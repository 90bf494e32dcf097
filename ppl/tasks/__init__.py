"""Problems with judges: by name, from files, or made on demand.

`load` finds a task by name; `split` cuts one into halves that are the same everywhere; `Task` and
`Problem` are what one is made of. The rest serves the older embedded pair `tiny`.
"""

from ppl.tasks.catalogue import Entry, known, load
from ppl.tasks.judge import (
    MAX_ANSWER,
    TASKS,
    Judge,
    TaskName,
    allowed_answer,
    is_correct,
)
from ppl.tasks.reasoning_gym import (
    SCAN_PER_PROBLEM,
    SEED_STRIDE,
    SETTINGS,
    arithmetic_key,
    countdown_key,
    held_out,
    problems,
)
from ppl.tasks.task import Problem, Task, same_answer, same_text, split

__all__ = [
    "MAX_ANSWER",
    "SCAN_PER_PROBLEM",
    "SEED_STRIDE",
    "SETTINGS",
    "TASKS",
    "Entry",
    "Judge",
    "Problem",
    "Task",
    "TaskName",
    "allowed_answer",
    "arithmetic_key",
    "countdown_key",
    "held_out",
    "is_correct",
    "known",
    "load",
    "problems",
    "same_answer",
    "same_text",
    "split",
]
