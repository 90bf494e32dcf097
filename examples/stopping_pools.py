"""Samples that are kept, so that rules can be replayed on them: of `examples/stopping.py`, and of
problems in words."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import word_problems

from ppl.decide.seen import classes_of

MOST = 64


@dataclass(frozen=True)
class Pool:
    """Independent samples of one problem.

    Attributes:
        task, problem: which.
        method: `"samples"`, `"gated"`, `"every step"`, or one of `FRACTURED` and `ADAPTIVE`.
        classes: `[n]` class of each sample's answer, -1 for none.
        right: `[C]` whether each class is right.
        tokens: `[n]` tokens that the language model wrote for each.
        scores: `[n]` what the reward model says of each; of adaptive sampling its q.
        again: `[n]` steps that were drawn again.
        read: tokens that the reward model computes for each one that is written.
    """

    task: str
    problem: str
    method: str
    classes: tuple[int, ...]
    right: tuple[bool, ...]
    tokens: tuple[int, ...]
    scores: tuple[float, ...]
    again: tuple[int, ...] = field(default=())
    read: float = 1.0


def read(path: Path) -> list[Pool]:
    """Pools that were kept."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [Pool(**{k: tuple(v) if isinstance(v, list) else v for k, v in r.items()}) for r in rows]


def stories(path: Path) -> list[Pool]:
    """The independent samples of `examples/word_problems.py`, of stories that have 64 of them.

    Its records have the tokens of sixteen samples together, which are shared out here.
    """
    blocks: dict[str, list[word_problems.Entry]] = {}
    for row in word_problems.load(path):
        if row["method"] == "best-of-N":
            blocks.setdefault(row["story"], []).append(row)
    found = []
    for story, rows in blocks.items():
        said = [candidate for row in rows for candidate in row["candidates"]]
        if len(said) < MOST:
            continue
        answers = [answer for answer, *_ in said]
        (classes,) = classes_of([answers])
        spellings = {c: a for c, a in zip(classes, answers, strict=True) if c >= 0}
        tokens = [t for row in rows for t in shared(row["tokens"], len(row["candidates"]))]
        found.append(
            Pool(
                "stories",
                story,
                "samples",
                classes,
                tuple(spellings[c] == rows[0]["gold"] for c in sorted(spellings)),
                tuple(tokens),
                tuple(0.0 if weight is None else math.exp(weight) for _, weight, *_ in said),
                read=sum(row["verifier_tokens"] for row in rows) / sum(tokens),
            )
        )
    return found


def shared(total: int, n: int) -> tuple[int, ...]:
    """Tokens of a search that is kept as a whole, among its samples."""
    return tuple(total // n + (i < total % n) for i in range(n))
