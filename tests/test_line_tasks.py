"""Tasks solved line by line: generators, checkers, oracles, each against a slow second opinion."""

from __future__ import annotations

from random import Random

import pytest

from ppl.tasks.chain import TOP, Chain
from ppl.tasks.lines import (
    LINE_TASKS,
    careless_response,
    draw,
    held_out_problems,
    right_steps,
    split_lines,
)
from ppl.tasks.queens import Queens
from ppl.tasks.queens import solutions as placements
from ppl.tasks.reasoning_gym import held_out
from ppl.tasks.sudoku import PEERS, Sudoku, solutions


@pytest.mark.parametrize("task", LINE_TASKS)
def test_right_lines_lead_to_a_right_answer_and_are_all_that_do(task: str) -> None:
    """Following any right lines ends right; `right_steps` counts them, and stops at a wrong one."""
    rng = Random(1)
    for _ in range(30):
        problem = draw(task, rng)
        lines: list[str] = []
        while not lines or lines[-1].endswith("\n"):
            right = problem.right_lines(lines)
            assert right
            for line in (problem.careless_line(lines, rng), problem.spoiled_line(lines, rng)):
                assert right_steps(problem, [*lines, line]) == len(lines) + (line in right)
            lines.append(rng.choice(right))
        assert problem.check("".join(lines))
        assert problem.right_lines(lines) == ()
        assert split_lines("".join(lines)) == lines


@pytest.mark.parametrize(
    ("task", "low", "high"), [("chain", 5, 11), ("queens", 4, 7), ("sudoku", 9, 12)]
)
def test_the_careless_solver_is_right_in_a_quarter_to_half(task: str, low: int, high: int) -> None:
    """Its mistakes are spread over the lines, and only few right answers come of wrong lines."""
    rng = Random(2)
    right, first, lucky = 0, set(), 0
    for _ in range(400):
        problem = draw(task, rng)
        lines = list(careless_response(problem, rng))
        good = right_steps(problem, lines)
        right += good == len(lines)
        lucky += problem.check("".join(lines)) and good < len(lines)
        if good == len(lines):
            assert problem.check("".join(lines))
            assert low <= len(lines) <= high
        else:
            first.add(good)
    assert 0.25 < right / 400 < 0.55
    assert lucky < 12
    assert len(first) >= low - 1


@pytest.mark.parametrize("task", LINE_TASKS)
def test_held_out_problems_are_those_whose_key_says_so(task: str) -> None:
    problems = held_out_problems(task, 20, seed=3)
    assert all(held_out(p.key) for p in problems)
    assert len({p.key for p in problems}) == 20
    assert held_out_problems(task, 5, seed=3) == problems[:5]
    assert held_out_problems(task, 5, seed=4) != problems[:5]
    rng = Random(0)
    assert not any(held_out(draw(task, rng).key) for _ in range(50))


def test_chain_by_hand() -> None:
    problem = Chain("34+7-5*2")
    assert problem.question == "Start with 34: a+7 b-5 c*2"
    assert problem.right_lines([]) == ("a=41\n",)
    assert problem.right_lines(["a=41\n", "b=36\n"]) == ("c=72",)
    assert problem.check("a=41\nb=36\nc=72")
    assert problem.answer("a=41\nb=36\nc=72") == "c=72"
    for wrong in ("c=31", "a=41\nb=72", "c=72 ", "c=072", "72", "c=72\n", "", None):
        assert not problem.check(wrong)  # c=31: with the usual precedence


def test_queens_by_hand() -> None:
    """The first placement in order, two of its queens missing: there is no other way to end it."""
    board = "04752613"
    assert board == placements().boards[0]
    problem = Queens(".4752.13")
    assert problem.question == "Place eight queens: b4 c7 d5 e2 g1 h3"
    assert problem.right_lines([]) == ("a0\n",)
    assert problem.right_lines(["a0\n"]) == ("f6",)
    assert problem.check("a0\nf6")
    assert problem.check("f6\na0")
    for wrong in ("a6\nf0", "a0", "a0\nf6\nf6", "b4\na0\nf6", "a0\nf6\n", "a0 f6", "", None):
        assert not problem.check(wrong)


def test_queens_oracle_agrees_with_every_placement() -> None:
    """92 ways (Sloane's A000170), no queen attacks another; a line is right if one goes on."""
    boards = placements().boards
    assert len(set(boards)) == 92
    for rows in boards:
        for i in range(8):
            for j in range(i):
                assert abs(int(rows[i]) - int(rows[j])) not in (0, i - j)
    rng = Random(5)
    for _ in range(20):
        problem = Queens.draw(rng)
        agreeing = [
            b for b in boards if all(p in (".", v) for p, v in zip(problem.board, b, strict=True))
        ]
        cell = problem.board.index(".")
        first = {line.strip() for line in problem.right_lines([])}
        assert first == {Queens.write(cell, b[cell]) for b in agreeing}
        assert {b[cell] for b in agreeing} <= set(Queens.legal(problem.board, cell))


def test_sudoku_solutions_and_uniqueness() -> None:
    assert len(set(solutions().boards)) == 288  # the known number of 4 by 4 sudokus
    assert all(s[c] != s[p] for s in solutions().boards for c in range(16) for p in PEERS[c])
    assert all(len(peers) == 7 for peers in PEERS)
    rng = Random(6)
    for _ in range(20):
        problem = Sudoku.draw(rng)
        assert 9 <= problem.board.count(".") <= 12
        assert (
            sum(
                all(a in (".", b) for a, b in zip(problem.board, s, strict=True))
                for s in solutions().boards
            )
            == 1
        )


def test_judges_of_reasoning_gym_agree() -> None:
    """The exact checkers say what `reasoning-gym` says of the same answers."""
    gym = pytest.importorskip("reasoning_gym")
    chain, sudoku = (gym.create_dataset(n, seed=0, size=1) for n in ("chain_sum", "mini_sudoku"))
    rng = Random(7)
    for _ in range(20):
        problem = draw("chain", rng)
        last = "abcdefghijkl"[sum(c in "+-*" for c in problem.key) - 1]
        (right,) = (v for v in range(TOP + 1) if problem.check(f"{last}={v}"))
        for value in (right, right + 1):
            said = chain.score_answer(str(value), {"answer": str(right), "metadata": {}}) == 1.0
            assert problem.check(f"{last}={value}") == said
        puzzle = Sudoku.draw(rng)
        (solution,) = puzzle.solutions().completions(puzzle.board)
        rows = [list(map(int, solution[i : i + 4])) for i in (0, 4, 8, 12)]
        text = "\n".join(" ".join(map(str, row)) for row in rows)
        for lines in (list(careless_response(puzzle, rng)), right_response(puzzle)):
            filled = puzzle.after(lines)
            answer = "\n".join(" ".join(filled[i : i + 4]) for i in (0, 4, 8, 12))
            entry = {"answer": text, "metadata": {"solution": rows}}
            said = sudoku.score_answer(answer, entry) == 1.0
            assert puzzle.check("".join(lines)) == said


def right_response(problem: Sudoku) -> list[str]:
    lines: list[str] = []
    while right := problem.right_lines(lines):
        lines.append(right[0])
    return lines
