"""The examples of Archon and of diverse prompts run at small size."""

from __future__ import annotations

import archon
import diverse_prompts
import pytest

import ppl


def test_archon(capsys):
    found = archon.main(
        ["--calls", "200", "--problems", "2", "--others", "2", "--method", "halving"]
    )
    printed = capsys.readouterr().out
    assert found.calls <= 200
    assert printed.startswith("60 architectures. halving: ")
    for name in ("found", "one sample", "best of 8"):
        assert f"  {name} " in printed
    prompt = "Q\n\nResponse 1: a=1\nb=2\n\nResponse 2: a=3\n\nResponse 3: b=2\n\nWrite one response"
    assert archon.most_frequent(prompt) == "=2"


def test_diverse_prompts(capsys):
    arms = diverse_prompts.main(["--problems", "2", "--samples", "4"])
    printed = capsys.readouterr().out
    for name in ("as it is", "independent", "shared out"):
        assert f"  {name} " in printed
    assert printed.count("shared out minus as it is") == 2
    assert "E / b + q" in printed
    assert all(arm.passed(4) >= arm.passed(1) for arm in arms)


def test_rewordings_keep_the_result():
    changed = 0
    for problem in ppl.tasks.load("lines/chain", n=30):
        for by in (1, 2, 3):
            asked = diverse_prompts.reordered(by)(problem.question)
            assert value(asked) == value(problem.question) == int(problem.gold.rpartition("=")[2])
            changed += asked != problem.question
    assert changed > 30


def value(question: str) -> int:
    start, _, steps = question.removeprefix("Start with ").partition(": ")
    total = int(start)
    for step in steps.split():
        number = int(step[2:])
        total = {"+": total + number, "-": total - number, "*": total * number}[step[1]]
    return total


def test_parts_are_those_that_were_drawn_one_after_another():
    arm = diverse_prompts.Arm("shared out", [[True, False, False, True]], [["a", "b", "c", "a"]])
    assert arm.passed(1) == [0.5]
    assert arm.passed(2) == [1.0]
    assert arm.voted(2) == [0.5]
    assert arm.passed(4) == arm.voted(4) == [1.0]
    plain = diverse_prompts.Arm("as it is", arm.rights, arm.answers)
    assert plain.passed(2) == pytest.approx([5 / 6])
