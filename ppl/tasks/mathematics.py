"""GSM8K, MATH and MATH-500: questions whose answer is a number or a formula.

Answers are compared by the library's one law (`ppl.equality`). Of MATH the gold answer is the last
box of the worked solution: the data package's own field `answer` is mangled ("3, 5, 7" became 357;
59 of the 500 of MATH-500 differ).

References: Cobbe et al. 2021, "Training Verifiers to Solve Math Word Problems"; Hendrycks et al.
2021, "Measuring Mathematical Problem Solving With the MATH Dataset"; Lightman et al. 2023, "Let's
Verify Step by Step" (the 500).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ppl.errors import TaskError
from ppl.language.answers import extract_answer
from ppl.language.arguments import checked
from ppl.tasks.installed import documents
from ppl.tasks.task import Problem, Task

TYPES = (
    "algebra",
    "counting_and_probability",
    "geometry",
    "intermediate_algebra",
    "number_theory",
    "prealgebra",
    "precalculus",
)
"""The subjects of MATH."""


def gsm8k() -> Task:
    """The 1,319 test problems of GSM8K: word problems of primary school, answered by a number."""
    problems = [
        Problem(
            f"gsm8k/{i}",
            str(doc["question"]),
            extract_answer(str(doc["answer"])),  # what follows ####
            {"solution": doc["answer"]},
        )
        for i, doc in enumerate(documents("gsm8k"))
    ]
    return Task("gsm8k", problems, about="word problems of primary school", licence="MIT")


@checked
def math(level: int | Sequence[int] | None = None, type: str | Sequence[str] | None = None) -> Task:
    """The test problems of MATH, 5,000 in all: competition mathematics.

    Args:
        level: one difficulty or several, of 1 to 5; all by default.
        type: one subject or several, see `TYPES`, as there or as in the data ("Number Theory").
    """
    wanted = TYPES if type is None else [type] if isinstance(type, str) else type
    levels = _levels(level)
    problems = []
    for subject in dict.fromkeys(map(_subject, wanted)):
        for i, doc in enumerate(documents(f"minerva_math_{subject}")):
            problem = _boxed(f"math/{subject}/{i}", doc, {"type": subject})
            if problem.meta["level"] in levels:
                problems.append(problem)
    name = "math"
    if type is not None:
        name += f"[{','.join(dict.fromkeys(map(_subject, wanted)))}]"
    if level is not None:
        name += f"[{','.join(map(str, levels))}]"
    return Task(name, problems, about="competition mathematics", licence="MIT")


@checked
def math500(level: int | Sequence[int] | None = None) -> Task:
    """MATH-500: the 500 test problems of MATH that the field reports on.

    Args:
        level: one difficulty or several, of 1 to 5; all by default.
    """
    levels = _levels(level)
    problems = [
        problem
        for i, doc in enumerate(documents("minerva_math_500"))
        if (problem := _boxed(f"math500/{i}", doc, {})).meta["level"] in levels
    ]
    name = "math500" if level is None else f"math500[{','.join(map(str, levels))}]"
    return Task(name, problems, about="500 problems of MATH", licence="MIT")


def _levels(level: int | Sequence[int] | None) -> Sequence[int]:
    levels = range(6) if level is None else [level] if isinstance(level, int) else sorted(level)
    if level is not None and (not levels or not set(levels) <= set(range(1, 6))):
        raise TaskError(f"level={level!r}: difficulties of MATH are 1 to 5")
    return levels


def _subject(written: str) -> str:
    subject = written.strip().lower().replace("&", "and").replace(" ", "_")
    if subject not in TYPES:
        raise TaskError(f"type={written!r}: the subjects of MATH are {', '.join(TYPES)}")
    return subject


def _boxed(name: str, doc: Mapping[str, Any], meta: Mapping[str, Any]) -> Problem:
    digits = "".join(c for c in str(doc["level"]) if c.isdigit())
    known = {"level": int(digits or 0), **meta, "solution": doc["solution"]}
    return Problem(name, str(doc["problem"]), extract_answer(str(doc["solution"])), known)
