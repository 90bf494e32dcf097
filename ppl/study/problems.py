"""Some problems of a task: the first ones, some places, a shard."""

from __future__ import annotations

import re
from typing import Any

from ppl.errors import StudyError
from ppl.language import checks
from ppl.language.arguments import shown
from ppl.tasks import Problem, Task


def select(
    task: Task, *, limit: int | None = None, problems: str | None = None, shard: Any = None
) -> list[Problem]:
    """Some problems of a task.

    Args:
        task: of these.
        limit: the first so many of those that `problems` says.
        problems: places from 0, such as `"0-99"` or `"3,7,10-12"`; None for all.
        shard: `(i, n)`: of these, every n-th from the i-th, counted from 0.

    Raises:
        StudyError: an argument says nothing that there is.
    """
    chosen = list(task)
    if problems is not None:
        chosen = [chosen[place] for place in places(problems) if place < len(chosen)]
        if not chosen:
            raise StudyError(f"problems={problems!r}: task {task.name} has {len(task)}, from 0 on")
    if limit is not None:
        checks.count(limit=limit)
        chosen = chosen[:limit]
    if shard is not None:
        i, n = _shard(shard)
        chosen = chosen[i::n]
    return chosen


def places(problems: str) -> list[int]:
    """The numbers of `"3,7,10-12"`, rising.

    Raises:
        StudyError: it is written otherwise.
    """
    found: set[int] = set()
    for part in problems.split(","):
        match = re.fullmatch(r"\s*(\d{1,9})(?:\s*-\s*(\d{1,9}))?\s*", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if last < first:
            raise StudyError(f"problems={shown(problems)}: places such as '0-99' or '3,7,10-12'")
        found.update(range(first, min(last, first + 10_000_000) + 1))
    return sorted(found)


def _shard(shard: Any) -> tuple[int, int]:
    good = isinstance(shard, tuple | list) and len(shard) == 2
    if not good or not all(type(x) is int for x in shard) or not 0 <= shard[0] < shard[1]:
        raise StudyError(f"shard={shown(shard)}: (i, n), with i from 0 to n - 1")
    return shard[0], shard[1]
