"""What goes wrong, by kind: the decoder's wrong lines, and those that the reward model likes.

    python examples/training/mistakes.py --model ppl/tiny/lines --problems 100

Of every sampled answer only the first wrong line counts: what follows it stands on sand. Those of a
chain are sorted by the operation and whether it carries or borrows; on boards a line breaks a rule,
or it is legal and lost. Missed is a wrong line that the reward model gives more than one half; a
false alarm is a right line, after right ones, that it gives less.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from data import LINE_TASKS, Chain, LineProblem, labelled_response
from networks import load_decoder, load_reward, sample, tree_log_odds
from vocabulary import prompt

from ppl.tasks.boards import Board
from ppl.tasks.chain import operate, parse
from ppl.tasks.lines import held_out_problems, right_steps, split_lines

ANSWERS = 8  # sampled to each problem


def kind(problem: LineProblem, lines: Sequence[str]) -> str:
    """What is wrong with the last of these lines, all others of which are right."""
    said = lines[-1].removesuffix("\n")
    if isinstance(problem, Chain):
        value, terms = parse(problem.expression)
        for sign, other in terms[: len(lines) - 1]:
            value = operate(value, sign, other)
        if len(lines) > len(terms):
            return "goes on after the end"
        sign, other = terms[len(lines) - 1]
        tens = {"+": " with carry", "-": " with borrow"}.get(sign, "")
        borrow = value % 10 + other % 10 >= 10 if sign == "+" else value % 10 < other % 10
        return f"a {sign} b{tens if borrow and sign != '*' else ''}"
    assert isinstance(problem, Board)
    try:
        cell, number = problem.parse(said)
    except ValueError:
        return "not a line of this task"
    board = problem.after(lines[:-1])
    if board[cell] != ".":
        return "a cell that is filled"
    if number not in problem.legal(board, cell):
        return "breaks a rule"
    if number not in problem.solutions().values(board, cell):
        return "legal, and lost"
    return "ends too early or too late, or another cell is due"


def count(decoder: Any, reward: Any, task: str, n: int, seed: int) -> dict[str, Counter[str]]:
    """By kind: first wrong lines, and those of them that the reward model missed."""
    problems = [p for p in held_out_problems(task, n, seed) for _ in range(ANSWERS)]
    answers = sample(decoder, [prompt(p.question) for p in problems])
    trees = [labelled_response(p, r.groups) for p, r in zip(problems, answers, strict=True)]
    wrong, missed, lines_seen = Counter[str](), Counter[str](), Counter[str]()
    for problem, answer, tree, odds in zip(
        problems, answers, trees, tree_log_odds(reward, trees), strict=True
    ):
        ends = odds[np.flatnonzero(tree.end)]
        lines = split_lines(answer.text or "")
        right = right_steps(problem, lines)
        lines_seen["right"] += right
        lines_seen["alarms"] += int((ends[:right] < 0).sum())
        if right < len(lines) and right < len(ends):
            name = kind(problem, lines[: right + 1])
            wrong[name] += 1
            missed[name] += int(ends[right] > 0)
    return {"wrong": wrong, "missed": missed, "lines": lines_seen}


def main(argv: Sequence[str] | None = None) -> dict[str, dict[str, Counter[str]]]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="folder with lm/ and prm/")
    parser.add_argument("--problems", type=int, default=100, help="held-out problems a task")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    torch.manual_seed(args.seed)
    decoder = load_decoder(args.model / "lm", "cpu")
    reward = load_reward(args.model / "prm", "cpu")
    found = {}
    for task in LINE_TASKS:
        found[task] = counts = count(decoder, reward, task, args.problems, args.seed)
        total = sum(counts["wrong"].values())
        alarms, right = counts["lines"]["alarms"], counts["lines"]["right"]
        print(f"{task}: {total} first wrong lines; false alarms at {alarms} of {right} right ones")
        for name, times in counts["wrong"].most_common():
            print(f"  {times / total:5.0%}  {name}; missed {counts['missed'][name]} of {times}")
    return found


if __name__ == "__main__":
    main()
