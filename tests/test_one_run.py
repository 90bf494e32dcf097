"""The benchmark of all sides: it drives them alike, counts what they drew, and divides rightly."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import ppl

sys.path.append(str(Path(__file__).parent / "benchmarks"))

import one_run
from one_run import Case


def test_rows_are_resampled_between_steps_and_ended_ones_are_no_more():
    seen = []

    def complete(texts, step, number):
        seen.append((sorted(map(tuple, texts)), step, number))
        # One that begins with 9 ends at once; each adds what it is: place and step.
        return [([100 + number + i] * step, text[0] != 9) for i, text in enumerate(texts)]

    tokens = one_run.grown(Case(2, 2, 1, 5, 2), [[7], [9]], complete)
    assert [(step, number) for _, step, number in seen] == [(2, 0), (2, 2), (1, 4)]
    assert seen[1][0] == [(7, 100, 100), (7, 100, 100)]  # two rows left: the first, twice
    assert seen[2][0] == [(7, 100, 100, 102, 102)] * 2
    assert tokens == 4 * 2 + 2 * 2 + 2 * 1


def test_prompts_of_questions_and_seeds_have_nothing_in_common():
    asked = one_run.prompts(Case(8, 1, 40, 1, 1), 0) + one_run.prompts(Case(8, 1, 40, 1, 1), 1)
    assert {len(p) for p in asked} == {40}
    assert len({p[0] for p in asked}) == 16


@pytest.mark.parametrize("case", [Case(1, 1, 12, 6, 6), Case(2, 4, 30, 6, 2)])
def test_ours_is_asked_what_the_case_says(case):
    run = one_run.by_ppl("tiny", {}, budget=64 << 20)
    asked = [[5 + (i + q) % 7 for i in range(case.prompt)] for q in range(case.questions)]
    first, again = (run(case, asked, seed=3) for _ in range(2))
    assert first == again  # nothing is left from the run before
    rows = case.questions * case.rows
    assert rows <= first["tokens"] <= rows * case.new
    layout = ppl.load("tiny").engine.slots.layout
    assert first["kept"] >= layout.nbytes(ppl.load("tiny").model.dtype, False) * case.prompt


def test_tables_divide_by_the_best_of_the_others():
    case, other = one_run.TABLES["Few rows and many, whole texts"][:2]

    def found(tokens, seconds, **more):
        return {"tokens": tokens, "seconds": seconds, **more}

    medians = {
        "bound": {case: found(900, 1), other: found(900, 1)},
        "vLLM": {case: found(100, 2), other: found(100, 4)},
        "llama.cpp bf16": {case: found(100, 1)},
        "llama.cpp q8_0": {case: found(300, 1)},
        "ppl bf16": {case: found(150, 1), other: found(150, 1)},
        "ppl int8": {case: found(150, 1)},
    }
    lines = list(one_run.tables(["Few rows and many, whole texts"], medians, 10))
    first, second, third = (line for line in lines if line.startswith("| 1 x"))
    assert first.split("|")[2:-1] == [
        *(" 900.0 ", " 50.0 ", " 100.0 ", " 300.0 ", " 150.0 ", " 150.0 ", " 1.50 ", " 0.50 ")
    ]
    assert second.split("|")[2:-1] == [
        *(" 900.0 ", " 25.0 ", " - ", " - ", " 150.0 ", " - ", " 6.00 ", " - ")
    ]
    assert third.split("|")[2:-1] == [" - "] * 8


def test_memory_is_told_beside_one_copy_and_one_a_row():
    cases = one_run.TABLES[one_run.LONG]
    medians = {"ppl bf16": {case: {"tokens": 1, "seconds": 1, "kept": 5e6} for case in cases}}
    lines = list(one_run.tables([one_run.LONG], medians, 1000))
    case = cases[0]
    assert case == Case(8, 16, 550, 40, 40)
    assert lines[-len(cases)].split("|")[2:-1] == [" 5 ", " 10 ", " 76 "]  # 9,520 and 75,520 tokens


def test_no_side_is_asked_what_it_cannot():
    step, whole = Case(1, 8, 60, 64, 16), Case(1, 8, 60, 64, 64)
    assert [
        n for n in ("bound", "generate()", "llama.cpp q8_0", "vLLM") if one_run.can(n, step)
    ] == ["vLLM"]
    assert one_run.can("generate()", whole)
    assert not one_run.can("generate()", Case(2, 8, 60, 64, 64))
