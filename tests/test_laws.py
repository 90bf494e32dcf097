"""The laws that every searcher obeys. A new searcher joins by a line in `programs.SEARCHERS`."""

from __future__ import annotations

import asyncio
import math
import subprocess
import sys
from pathlib import Path

import pyro
import pytest
import torch
from accuracy_vs_budget import solve
from programs import (
    ONE_PARTICLE,
    SEARCHERS,
    TOY,
    branching,
    contents,
    kalman,
    toy,
)

import ppl
import ppl.searchers
from ppl.searchers import SMC, BestOfN, Search

each = pytest.mark.parametrize("searcher", SEARCHERS, ids=repr)


@each
def test_same_seed_same_result_other_seed_other_result(searcher):
    runs = [searcher.run(toy, "prod", seed=s) for s in (3, 3)]
    assert contents(runs[0]) == contents(runs[1])
    others = [contents(searcher.run(toy, "prod", seed=s)) for s in range(5)]
    assert any(o != others[0] for o in others)


@each
def test_global_generators_are_left_alone(searcher):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    searcher.run(branching, seed=1)
    assert torch.rand(1) == expected


@each
def test_many_questions_equal_one_by_one(searcher):
    arguments = [("prod",), ("last",), ("min",)]
    together = searcher.run_many(toy, arguments, seed=[7, 8, 9])
    for posterior, a, s in zip(together, arguments, (7, 8, 9), strict=True):
        alone = searcher.run(toy, *a, seed=s)
        assert contents(posterior) == contents(alone)
        assert posterior.log_evidence == alone.log_evidence


@each
def test_batch_independence_on_the_tiny_model(searcher, tiny):
    """Law 3: neither the company in the batch nor a warm prefix pool changes a result."""
    lm, prm = tiny
    questions = ["Calculate ( 3 + 5 ) * 2 - 7.", "Calculate 4 - 9 + 6.", "Calculate 2 * -3 - 8."]
    lm.engine.pool.clear()
    prm.engine.pool.clear()
    together = searcher.run_many(solve, [(q, lm, prm) for q in questions], seed=[1, 2, 3])
    for posterior, q, s in zip(together, questions, (1, 2, 3), strict=True):
        alone = searcher.run(solve, q, lm, prm, seed=s)
        assert [x.value for x in posterior.samples] == [x.value for x in alone.samples]
        assert [str(x.text) for x in posterior.samples] == [str(x.text) for x in alone.samples]
        weights = [x.log_weight for x in alone.samples]
        assert [x.log_weight for x in posterior.samples] == pytest.approx(weights, abs=1e-4)


@each
def test_cost_adds_up(searcher):
    """What was booked is what the nodes of the tree hold: a token per step of the toy."""
    search = searcher.begin(toy, "prod", seed=2)
    cost = search.run().cost
    drawn = [node.cost for node in search.tree.nodes if node.parent is not None]
    assert cost.lm_tokens == sum(c.lm_tokens for c in drawn)
    # A continuation or, where the choice was given, a score; and a judgement.
    assert cost.lm_calls == cost.verifier_calls == len(drawn)


@each
def test_nodes_are_weighed_once_and_finished_ones_never_go_on(searcher):
    """Round after round: what a node weighs and whether it has finished never changes."""
    search = searcher.begin(toy, "prod", seed=4)
    known = {}
    while not search.over:
        search.step()
        for node in search.tree.nodes:
            facts = (node.log_weight, node.log_likelihood, node.finished, node.result)
            assert known.setdefault(node.identity, facts) == facts
            assert node.parent is None or node.parent.open
    posterior = search.run()
    assert all(sample.finished for sample in posterior.samples)
    kept = {node.identity for node in search.tree.nodes if node.finished}
    assert {sample.node for sample in posterior.samples} <= kept


@each
def test_the_score_of_a_sample_is_what_its_text_is_worth(searcher):
    """However a searcher weighs, a finished text was judged step by step, each step once."""
    for sample in searcher.run(toy, "prod", seed=6).samples:
        steps = sample.text.text + "$" * sample.text.finished
        leads = [steps[: t + 1].count("a") - steps[: t + 1].count("b") for t in range(len(steps))]
        scores = [0.9 if lead > 0 else 0.6 if lead == 0 else 0.3 for lead in leads]
        assert sample.score == pytest.approx(math.prod(scores))


@each
@pytest.mark.parametrize("limit", [0, 1, 5, 9, 14])
def test_budgets_are_never_exceeded_and_return_the_best_so_far(searcher, limit):
    for budget in (ppl.Budget(tokens=limit), ppl.Budget(calls=limit)):
        posterior = searcher.run(toy, "prod", seed=1, budget=budget)
        spent = posterior.cost.lm_tokens if budget.tokens is not None else posterior.cost.calls
        assert spent <= limit
        assert posterior.stopped == "budget" or posterior.best is not None
        if posterior.stopped == "budget":
            assert posterior.log_evidence is None
        finished = [s.log_likelihood for s in posterior.samples if s.finished]
        if finished:
            assert posterior.best_sample.log_likelihood == max(finished)
        else:
            assert posterior.best is None


@each
def test_one_token_more_of_budget_changes_nothing_already_found(searcher):
    """A smaller budget gives a prefix of the same search, and a node that is run on to its end."""
    if isinstance(searcher, BestOfN):  # draws the same samples in another order
        pytest.skip("a limit decides how many samples go on side by side")
    whole = searcher.run(toy, "prod", seed=5).genealogy
    part = dict(searcher.run(toy, "prod", seed=5, budget=ppl.Budget(tokens=8)).genealogy.nodes)
    while part and part[max(part)]["simulated"]:
        del part[max(part)]
    for node, data in part.items():
        assert {**data, "probability": None} == {**whole.nodes[node], "probability": None}


@each
def test_plain_pyro_program_without_a_language_model(searcher):
    posterior = searcher.run(kalman, (0.3, -0.5, 1.2), seed=0)
    assert all(isinstance(s.value, float) for s in posterior.samples)
    assert posterior.cost.calls == 0


@each
def test_dead_ends_are_survived(searcher):
    posterior = searcher.run(branching, seed=2)
    assert posterior.best is not None
    assert all("a" in s.value[0] for s in posterior.samples if s.log_weight > -math.inf)


@each
def test_everything_dead_is_named(searcher):
    with pytest.raises(ppl.PPLError, match=r"dead.*'never'") as caught:
        searcher.run(_impossible, seed=0)
    assert not caught.value.log_evidence > -math.inf  # zero, or unknown where it was given up
    assert caught.value.posterior.cost.lm_tokens > 0


def _impossible() -> None:
    pyro.sample("s", TOY(TOY.prompt("^"), max_tokens=1))
    ppl.condition(False, "never")


@pytest.mark.parametrize("searcher", ONE_PARTICLE, ids=repr)
def test_one_particle_is_plain_sampling(searcher):
    """All searchers at N = 1 draw the program's own law: .325 of the answers are 1."""
    runs = searcher.run_many(toy, [("last",)] * 600, seed=range(600))
    share = sum(r.best == 1 for r in runs) / 600
    assert abs(share - 0.325) < 4 * math.sqrt(0.325 * 0.675 / 600)


@each
def test_paused_pickled_and_resumed_equals_uninterrupted(searcher, tmp_path):
    whole = searcher.run(toy, "prod", seed=11)
    search = searcher.begin(toy, "prod", seed=11)
    search.step()
    search.save(tmp_path / "search")
    resumed = Search.load(tmp_path / "search").run()
    assert contents(resumed) == contents(whole)
    assert resumed.log_evidence == whole.log_evidence
    assert resumed.cost.lm_tokens == whole.cost.lm_tokens


def test_resumed_in_another_process(tmp_path):
    search = SMC(5, 0.9).begin(toy, "prod", seed=12)
    search.step()
    search.save(tmp_path / "search")
    code = (
        "from ppl.searchers import Search; import sys; "
        "p = Search.load(sys.argv[1]).run(); "
        "print([s.value for s in p.samples], repr(p.log_evidence))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "search")]
    here = str(Path(__file__).parent)
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=here, timeout=900
    )
    whole = SMC(5, 0.9).run(toy, "prod", seed=12)
    values = [s.value for s in whole.samples]
    assert done.stdout.strip() == f"{values} {whole.log_evidence!r}"


@each
def test_awaiting_a_search_equals_running_it(searcher):
    assert contents(asyncio.run(searcher.arun(toy, "prod", seed=3))) == contents(
        searcher.run(toy, "prod", seed=3)
    )


@each
def test_settings_are_frozen_and_paste_back(searcher):
    assert eval(repr(searcher), vars(ppl.searchers)) == searcher
    with pytest.raises(AttributeError):
        searcher.anything = 1


@each
def test_no_model_computes_a_token_twice(searcher, tiny):
    """Over a whole search: tokens computed are the distinct tokens of the tree, not one more."""
    lm, prm = tiny
    lm.engine.pool.clear()
    prm.engine.pool.clear()
    before = lm.engine.tokens_computed, prm.engine.tokens_computed
    search = searcher.begin(solve, "Calculate 6 - 3 * ( 2 + -4 ).", lm, prm, seed=4)
    search.run()
    nodes = [node for node in search.tree.nodes if node.text is not None]
    texts = [node.text.tokens for node in nodes]
    judged = {text[: i + 1] for text in texts for i in range(len(text))}
    # What a text ends with was drawn, but nothing was drawn after it.
    continued = {text[: i + 1] for text in texts for i in range(len(text) - 1)}
    by_lm = lm.engine.tokens_computed - before[0]
    assert by_lm == len(continued)
    assert prm.engine.tokens_computed - before[1] == len(judged)
