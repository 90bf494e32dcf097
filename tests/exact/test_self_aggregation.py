"""Recursive self-aggregation, and drafts of a small model weighed by a large one."""

from __future__ import annotations

import math
from collections import Counter
from math import comb

import numpy as np
import pyro
import pytest
from programs import PROPOSER, TOY, toy

import ppl
from ppl.errors import GuideError
from ppl.searchers import SMC, BestOfN, RecursiveSelfAggregation, others


def copying() -> str:
    """The first generation writes; later ones copy one text that they read."""
    seen = others(1)
    if seen:
        return seen[0]
    return pyro.sample("word", TOY(TOY.prompt("^"), max_tokens=1)).text


def test_copies_are_the_wright_fisher_chain():
    """Two thirds of the way to fixation, against the exact transition matrix."""
    n, rounds, runs = 4, 3, 500
    found = Counter()
    for posterior in RecursiveSelfAggregation(n, rounds).run_many(
        copying, [()] * runs, seed=range(runs)
    ):
        found[sum(s.value == "a" for s in posterior.samples)] += 1
    start = np.array([comb(n, k) * 0.5**n for k in range(n + 1)])
    moves = np.array(
        [
            [comb(n, k) * (i / n) ** k * (1 - i / n) ** (n - k) for k in range(n + 1)]
            for i in range(n + 1)
        ]
    )
    law = start @ np.linalg.matrix_power(moves, rounds)
    expected = law * runs
    observed = np.array([found[k] for k in range(n + 1)])
    assert ((observed - expected) ** 2 / expected).sum() < 20  # chi-square of 4: one in 2,000
    # Drawing whom to read once for a whole generation would fix it at once.
    assert found[0] + found[n] < 0.8 * runs


def test_reads_are_without_replacement_and_of_the_generation_before():
    def reading() -> tuple[int, ...]:
        seen = others(3)
        fresh = int(10**9 * float(pyro.sample("x", pyro.distributions.Uniform(0.0, 1.0))))
        return (fresh, len(seen), len({s[0] for s in seen}))

    search = RecursiveSelfAggregation(5, 2).begin(reading, seed=0)
    posterior = search.run()
    assert {s.value[1:] for s in posterior.samples} == {(3, 3)}
    assert len(search.tree.nodes) - 1 == 5 * 3  # N (T + 1) runs
    assert len({s.value[0] for s in posterior.samples}) == 5


def test_without_others_it_is_independent_sampling():
    assert others(4) == ()
    plain = BestOfN(6).run(copying, seed=3)
    assert {s.value for s in plain.samples} <= {"a", "b", ""}
    assert ppl.enumerate_program(copying).marginal()["a"] == pytest.approx(0.5)


def test_a_stopped_search_shows_the_last_whole_generation():
    posterior = RecursiveSelfAggregation(4, 50).run(
        toy, "prod", seed=0, budget=ppl.Budget(tokens=40)
    )
    assert posterior.stopped == "budget"
    assert posterior.best is not None


# -- drafts --------------------------------------------------------------------------------------


def written() -> str:
    """Nothing is weighed: the law is normalised."""
    text = TOY.prompt("^")
    for t in range(2):
        step = pyro.sample(f"step_{t}", TOY(text, max_tokens=2))  # blocks of two tokens
        text = text + step
        ppl.twist(f"block_{t}", 0.0)
        if step.finished:
            break
    return text.text


def test_a_normalised_target_has_evidence_one_for_any_draft():
    runs = SMC(3, 0.7).run_many(
        written, [()] * 300, seed=range(300), guide=ppl.drafted(written, PROPOSER)
    )
    z = np.exp([run.log_evidence for run in runs])
    assert z.std() > 0.01
    assert abs(z.mean() - 1) < 4 * z.std(ddof=1) / math.sqrt(300)


def test_a_model_that_drafts_for_itself_has_equal_weights():
    twin = ppl.TableLM({"a": 0.5, "b": 0.3, "$": 0.2}, symbols="^ab$", end="$", name="twin")
    posterior = SMC(6).run(written, seed=0, guide=ppl.drafted(written, twin))
    assert [s.log_weight for s in posterior.samples] == pytest.approx([0.0] * 6)


def test_a_name_that_no_model_has_is_warned_of():
    guide = ppl.drafted(written, {"tpy": PROPOSER})
    with pytest.warns(UserWarning, match=r"models=\['tpy'\].*asked \['toy'\] and none of these"):
        SMC(4).run(written, seed=0, guide=guide)
    one_of_two = ppl.drafted(written, {"toy": PROPOSER, "of another branch": PROPOSER})
    SMC(4).run(written, seed=0, guide=one_of_two)  # warnings are errors here


def test_weights_are_target_over_draft_and_a_block_is_scored_at_once():
    calls = TOY.calls
    search = SMC(5, 0.0).begin(written, seed=1, guide=ppl.drafted(written, PROPOSER))
    search.run()
    for node in search.tree.nodes[1:]:
        value = node.records[0].value
        spelled = value.text + "$" * value.finished
        p = [{"a": 0.5, "b": 0.3, "$": 0.2}[s] for s in spelled]
        q = [{"a": 0.6, "b": 0.3, "$": 0.1}[s] for s in spelled]
        assert node.log_increment == pytest.approx(sum(np.log(p)) - sum(np.log(q)))
    rounds = max(node.depth for node in search.tree.nodes)
    assert TOY.calls - calls == rounds  # one pass of the target for all particles' blocks


def test_the_drafted_posterior_is_the_program_s():
    exact = ppl.enumerate_program(toy, "prod")
    posterior = SMC(1500).run(toy, "prod", seed=0, guide=ppl.drafted(toy, {"toy": PROPOSER}))
    assert posterior.log_evidence == pytest.approx(exact.log_evidence, abs=0.1)
    assert posterior.marginal()[1] == pytest.approx(0.398553, abs=0.06)


def test_another_tokenizer_cannot_draft():
    other = ppl.TableLM({"a": 0.5, "$": 0.5}, symbols="^a$", end="$", name="other")
    with pytest.raises(GuideError, match="other cannot draft for toy"):
        SMC(2).run(written, guide=ppl.drafted(written, other))
