"""Multi-step problems with checkers."""

from ppl.tasks.reasoning_gym import (
    MAX_ANSWER,
    SCAN_PER_PROBLEM,
    SEED_STRIDE,
    SETTINGS,
    TASKS,
    Judge,
    Problem,
    TaskName,
    allowed_answer,
    arithmetic_key,
    countdown_key,
    held_out,
    is_correct,
    problems,
)

__all__ = [
    "MAX_ANSWER",
    "SCAN_PER_PROBLEM",
    "SEED_STRIDE",
    "SETTINGS",
    "TASKS",
    "Judge",
    "Problem",
    "TaskName",
    "allowed_answer",
    "arithmetic_key",
    "countdown_key",
    "held_out",
    "is_correct",
    "problems",
]
