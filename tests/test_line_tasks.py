"""Tasks solved line by line: generators, checkers, oracles, each against a slow second opinion."""

from __future__ import annotations

from itertools import product
from random import Random

import pytest

from ppl.tasks.chain import Chain
from ppl.tasks.countdown import TOP, Countdown
from ppl.tasks.lines import (
    LINE_TASKS,
    careless_response,
    draw,
    held_out_problems,
    right_steps,
    split_lines,
)
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
        assert problem.check(lines[-1])
        assert problem.right_lines(lines) == ()
        assert split_lines("".join(lines)) == lines


@pytest.mark.parametrize(
    ("task", "low", "high"), [("chain", 5, 11), ("countdown", 3, 4), ("sudoku", 9, 12)]
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
        lucky += problem.check(lines[-1]) and good < len(lines)
        if good == len(lines):
            assert problem.check(lines[-1])
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
    assert problem.right_lines([]) == ("41-5*2\n",)
    assert problem.right_lines(["41-5*2\n", "36*2\n"]) == ("72",)
    assert problem.check("72")
    for wrong in ("31", "72 ", "072", "", None):  # 31: with the usual precedence
        assert not problem.check(wrong)


def test_countdown_oracle_agrees_with_every_signed_order() -> None:
    """A line is right exactly if some order of signs and numbers from it makes the target."""

    def can(value: int, left: tuple[int, ...], target: int) -> bool:
        if not left:
            return value == target
        return any(
            0 <= value + s * n <= TOP and can(value + s * n, left[:i] + left[i + 1 :], target)
            for i, n in enumerate(left)
            for s in (1, -1)
        )

    rng = Random(5)
    for _ in range(10):
        problem = Countdown.draw(rng)
        right = set(problem.right_lines([]))
        for i, j in product(range(len(problem.numbers)), repeat=2):
            for sign, s in (("+", 1), ("-", -1)):
                a, b = problem.numbers[i], problem.numbers[j]
                if i == j or not 0 <= a + s * b <= TOP:
                    continue
                left = tuple(n for k, n in enumerate(problem.numbers) if k not in (i, j))
                line = f"{a}{sign}{b}={a + s * b};{','.join(map(str, left))}\n"
                assert (line in right) == can(a + s * b, left, problem.target)


def test_countdown_by_hand() -> None:
    problem = Countdown((6, 9, 20, 7), 30)
    assert problem.check("20+9+7-6=30")
    assert "20+9+7=36;6\n" in problem.right_lines(["20+9=29;6,7\n"])
    for wrong in (
        "20+9+7-6=31",
        "20+9+7=36",
        "20+10=30",
        "20+9+7-6",
        "20+9+7-6=30;6",
        "30",
        "",
        None,
    ):
        assert not problem.check(wrong)


def test_sudoku_solutions_and_uniqueness() -> None:
    assert len(set(solutions())) == 288  # the known number of 4 by 4 sudokus
    assert all(s[c] != s[p] for s in solutions() for c in range(16) for p in PEERS[c])
    assert all(len(peers) == 7 for peers in PEERS)
    rng = Random(6)
    for _ in range(20):
        problem = Sudoku.draw(rng)
        assert 9 <= problem.grid.count(".") <= 12
        assert (
            sum(
                all(a in (".", b) for a, b in zip(problem.grid, s, strict=True))
                for s in solutions()
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
        (right,) = (str(v) for v in range(TOP + 1) if problem.check(str(v)))
        for answer in (right, str(int(right) + 1)):
            said = chain.score_answer(answer, {"answer": right, "metadata": {}}) == 1.0
            assert problem.check(answer) == said
        puzzle = Sudoku.draw(rng)
        lines = list(careless_response(puzzle, rng))
        (solution,) = (
            s for s in solutions() if puzzle.check("/".join(s[i : i + 4] for i in (0, 4, 8, 12)))
        )
        rows = [list(map(int, solution[i : i + 4])) for i in (0, 4, 8, 12)]
        text = "\n".join(" ".join(map(str, row)) for row in rows)
        answer = "\n".join(" ".join(row) for row in lines[-1].split("/"))
        said = sudoku.score_answer(answer, {"answer": text, "metadata": {"solution": rows}}) == 1.0
        assert puzzle.check(lines[-1]) == said
