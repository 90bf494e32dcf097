"""What the two networks learn from: fresh problems in every batch, made by worker processes.

The decoder sees whole responses of the careless solver. The reward model sees trees: a right
response as the trunk, and at every step branches with other next lines, most of them wrong, so that
a question is seen right and wrong up to the very divergence. A tree is one row: a token of a branch
attends to the trunk before it and to its own branch, and has the position it would have there.

Batch `i` depends on the seed and on `i` alone, however many workers there are, so that training can
resume in the middle of the stream.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from multiprocessing.pool import Pool
from pathlib import Path
from random import Random
from threading import Semaphore

import numpy as np
from numpy.typing import NDArray
from vocabulary import END, encode, prompt, vocabulary

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))
if importlib.util.find_spec("pyro") is None and "ppl" not in sys.modules:
    # The tasks need the standard library only: a machine that has no more than torch and
    # transformers can train, without what `import ppl` asks for.
    bare = types.ModuleType("ppl")
    bare.__path__ = [str(ROOT / "ppl")]
    sys.modules["ppl"] = bare

from ppl.tasks.chain import Chain  # noqa: E402
from ppl.tasks.lines import LINE_TASKS, LineProblem, careless_response, draw  # noqa: E402
from ppl.tasks.reasoning_gym import held_out  # noqa: E402

END_ID = vocabulary()[END]
PAD_ID = 0
UNKNOWN = -100  # no label, no target
AHEAD = 64  # batches made ahead of their use

Array = NDArray[np.int64]


def training_problem(task: str, rng: Random) -> LineProblem:
    """A problem that is not held out; some chains are short, so that these are known too."""
    if task == "chain" and rng.random() < 0.15:
        while held_out((problem := Chain.draw(rng, 2, 5)).key):
            pass
        return problem
    return draw(task, rng)


def alike(task: str, rng: Random, rows: int) -> list[LineProblem]:
    """Problems of about equal length, so that little of a batch is padding.

    One of four neighbouring blocks of a sorted sample: over batches, problems come as drawn.
    """
    drawn = [training_problem(task, rng) for _ in range(4 * rows)]
    drawn.sort(key=lambda p: len(p.question))
    first = rng.randrange(4) * rows
    return drawn[first : first + rows]


def line_ids(line: str) -> list[int]:
    """A line's tokens; the last line of a response is ended by the end token."""
    return list(_line_ids(line))


@cache  # there are fewer than 5,000 lines that the tasks write
def _line_ids(line: str) -> tuple[int, ...]:
    return tuple(encode(line)) if line.endswith("\n") else (*encode(line), END_ID)


# --- the decoder's rows -----------------------------------------------------------------------


def response_batch(task: str, rng: Random, rows: int) -> dict[str, Array]:
    """Responses of the careless solver: `ids` and next-token `targets`, both `[rows, time]`."""
    made = []
    for problem in alike(task, rng, rows):
        answer = [t for line in careless_response(problem, rng) for t in line_ids(line)]
        made.append((prompt(problem.question), answer))
    ids = _padded([p + a for p, a in made], PAD_ID)
    # Position p predicts token p + 1: the prompt's last token predicts the first of the answer.
    targets = _padded([[UNKNOWN] * (len(p) - 1) + a for p, a in made], UNKNOWN, ids.shape[1])
    return {"ids": ids, "targets": targets}


# --- the reward model's rows ------------------------------------------------------------------


@dataclass
class Tree:
    """Tokens of a trunk and its branches, and what is known at each.

    Attributes:
        ids: token.
        segment: 0 in the trunk, 1, 2, ... in its branches.
        cut: how many tokens of the trunk may be attended to.
        position: place that the token would have in a text of its own.
        label: whether the text up to here can still be completed to a right response, or UNKNOWN.
        end: 1 at the last token of a line.
        target: next token where that is a right one, for the language-model loss, or UNKNOWN.
        pairs: places of the ends of a right and a wrong line after the same right lines.
    """

    ids: list[int] = field(default_factory=list)
    segment: list[int] = field(default_factory=list)
    cut: list[int] = field(default_factory=list)
    position: list[int] = field(default_factory=list)
    label: list[int] = field(default_factory=list)
    end: list[int] = field(default_factory=list)
    target: list[int] = field(default_factory=list)
    pairs: list[tuple[int, int]] = field(default_factory=list)

    def add(self, tokens: Sequence[int], labels: Sequence[int], segment: int, cut: int) -> int:
        """Appends a line; returns the place of its last token."""
        first = len(self.ids)
        goes_on = first > 0 and self.segment[-1] == segment
        start = 0 if not first else self.position[-1] + 1 if goes_on else cut
        self.ids += tokens
        self.segment += [segment] * len(tokens)
        self.cut += [cut] * len(tokens)
        self.position += range(start, start + len(tokens))
        self.label += labels
        self.end += [0] * (len(tokens) - 1) + [1]
        self.target += [UNKNOWN] * len(tokens)
        for at in range(first if goes_on else first + 1, len(self.ids)):
            if self.label[at] == 1:
                self.target[at - 1] = self.ids[at]
        return len(self.ids) - 1


def right_so_far(tokens: Sequence[int], right: Sequence[Sequence[int]]) -> list[int]:
    """For every token of a line, whether some right line begins with the tokens up to it."""
    heads = [list(tokens[: i + 1]) for i in range(len(tokens))]
    return [int(any(list(r[: len(head)]) == head for r in right)) for head in heads]


def tree(problem: LineProblem, rng: Random) -> Tree:
    """A right response, and at each step one wrong line and perhaps another right one."""
    out = Tree()
    question = prompt(problem.question)
    out.add(question, [UNKNOWN] * len(question), 0, len(question))
    out.end[-1] = 0
    lines: list[str] = []
    steps: list[tuple[list[str], tuple[str, ...], int, int]] = []
    while not lines or lines[-1].endswith("\n"):
        right = problem.right_lines(lines)
        cut = len(out.ids)
        # The careless solver's choice among right lines where it makes one: likely lines.
        line = next(
            (w for _ in range(3) if (w := problem.careless_line(lines, rng)) in right), None
        )
        line = line or rng.choice(right)
        tokens = line_ids(line)
        end = out.add(tokens, [1] * len(tokens), 0, cut)
        steps.append((list(lines), right, cut, end))
        lines.append(line)
    for before, right, cut, end in steps:
        _branch(out, problem, before, right, cut, end, rng)
    return out


def _branch(
    out: Tree,
    problem: LineProblem,
    before: list[str],
    right: tuple[str, ...],
    cut: int,
    trunk_end: int,
    rng: Random,
) -> None:
    """Adds one wrong line after right ones, sometimes with what comes after it, and a right one."""
    right_ids = [line_ids(r) for r in right]
    if rng.random() < 0.04:
        tokens = garbage(line_ids(rng.choice(right)), rng)
        line = None
    else:
        line = wrong_line(problem, before, right, rng)
        if line is None:
            return
        tokens = line_ids(line)
    if tokens in right_ids:
        return
    segment = out.segment[-1] + 1
    bad = out.add(tokens, right_so_far(tokens, right_ids), segment, cut)
    out.pairs.append((trunk_end, bad))
    if line is not None and rng.random() < 0.4:
        lines = [*before, line]
        for _ in range(rng.choice((1, 1, 2, 3))):
            if not lines[-1].endswith("\n"):
                break
            try:
                lines.append(problem.careless_line(lines, rng))
            except (ValueError, IndexError):
                break  # a spoiled line leaves no state to go on from
            tokens = line_ids(lines[-1])
            out.add(tokens, [0] * len(tokens), segment, cut)
    if len(right) > 1:
        tokens = line_ids(rng.choice(right))
        good = out.add(tokens, [1] * len(tokens), segment + 1, cut)
        out.pairs.append((good, bad))


def wrong_line(
    problem: LineProblem, before: list[str], right: tuple[str, ...], rng: Random
) -> str | None:
    """A wrong next line: mostly one that the careless solver writes, else a spoiled one."""
    if rng.random() < 0.7:
        for _ in range(6):
            if (line := problem.careless_line(before, rng)) not in right:
                return line
    for _ in range(6):
        if (line := problem.spoiled_line(before, rng)) not in right:
            return line
    return None


def garbage(tokens: list[int], rng: Random) -> list[int]:
    """A line that no solver writes: nothing, a doubled token, an early or missing end, noise."""
    kind = rng.randrange(5)
    if kind == 0:
        return tokens[-1:]
    if kind == 1:
        at = rng.randrange(len(tokens))
        return [*tokens[:at], tokens[at], *tokens[at:]]
    if kind == 2:
        return [*tokens[: rng.randrange(len(tokens))], END_ID]
    if kind == 3:
        return [*tokens[:-1], END_ID if tokens[-1] != END_ID else encode("\n")[0]]
    noise = rng.choice((encode("(")[0], rng.randrange(4, len(vocabulary()))))
    return [noise] * rng.randint(1, 4) + tokens[-1:]


def tree_batch(task: str, rng: Random, rows: int) -> dict[str, Array]:
    """Trees side by side, each array `[rows, time]`, and `pairs` `[n, 3]` of row, good, bad."""
    return stack([tree(problem, rng) for problem in alike(task, rng, rows)])


def stack(trees: Sequence[Tree]) -> dict[str, Array]:
    ids = _padded([t.ids for t in trees], PAD_ID)
    width = ids.shape[1]
    pairs = [(row, good, bad) for row, t in enumerate(trees) for good, bad in t.pairs]
    return {
        "ids": ids,
        "segment": _padded([t.segment for t in trees], -1, width),
        "cut": _padded([t.cut for t in trees], 0, width),
        "position": _padded([t.position for t in trees], 0, width),
        "label": _padded([t.label for t in trees], UNKNOWN, width),
        "end": _padded([t.end for t in trees], 0, width),
        "target": _padded([t.target for t in trees], UNKNOWN, width),
        "pairs": np.array(pairs, dtype=np.int64).reshape(-1, 3),
    }


def labelled_response(problem: LineProblem, groups: Sequence[Sequence[int]]) -> Tree:
    """A response, given as the ids of its lines, as a tree without branches, labelled everywhere.

    After the first wrong line all is bad.
    """
    out = Tree()
    question = prompt(problem.question)
    out.add(question, [UNKNOWN] * len(question), 0, len(question))
    out.end[-1] = 0
    lines: list[str] = []
    good = True
    for group in groups:
        right = {tuple(line_ids(r)): r for r in problem.right_lines(lines)} if good else {}
        out.add(list(group), right_so_far(group, list(right)), 0, len(question))
        good = tuple(group) in right
        if good:
            lines.append(right[tuple(group)])
    return out


def _padded(rows: Sequence[Sequence[int]], value: int, width: int | None = None) -> Array:
    """Right-padded `[rows, time]`."""
    out = np.full((len(rows), width or max(map(len, rows))), value, dtype=np.int64)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return out


# --- streams ----------------------------------------------------------------------------------

Make = Callable[[str, Random, int], dict[str, Array]]


def _one(make: Make, rows: int, seed: int, index: int) -> dict[str, dict[str, Array]]:
    rng = Random(f"{seed}:{make.__name__}:{index}")
    return {task: make(task, rng, rows) for task in LINE_TASKS}


def stream(
    pool: Pool, make: Make, rows: int, seed: int, start: int, stop: int
) -> Iterator[dict[str, dict[str, Array]]]:
    """Batches `start` to `stop`, each with `rows` rows of every task, made a few ahead."""
    ahead = Semaphore(AHEAD)
    over = False

    def indices() -> Iterator[int]:
        for i in range(start, stop):
            ahead.acquire()
            if over:
                return
            yield i

    try:
        for batch in pool.imap(partial(_one, make, rows, seed), indices()):
            yield batch
            ahead.release()
    finally:  # closed early: let the pool's thread leave the indices
        over = True
        ahead.release()
