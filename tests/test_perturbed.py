"""DivSampling: closed forms of stratified and independent perturbations, and unbiased evidences."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import more_a

import ppl
from ppl.decide.scaling import pass_at_k_perturbed
from ppl.errors import ArgumentError
from ppl.programs import INSTRUCTIONS, NOISE, ROLES, idea, rephrasing
from ppl.searchers import SMC, AliveParticleFilter, BestOfN, Greedy, ModelSwitch, ParticleGibbs
from ppl.verifiers import FunctionVerifier

RATES = (0.9, 0.4, 0.1)


def after(prefix: str) -> dict[str, float]:
    """What is right is `a`, with a chance that the prompt's first symbol says."""
    p = RATES[int(prefix[0])] if prefix[0].isdigit() else 0.5
    return {"a": p, "b": 1 - p} if len(prefix) < 4 else {"$": 1.0}


LM = ppl.TableLM(after, symbols="^ab012$", name="by prompt")
VERIFIER = FunctionVerifier(more_a, name="more a")
PROMPTS = ["0{question}", "1{question}", "2{question}"]


def solve(question: str) -> str:
    return pyro.sample("word", LM(LM.prompt(question), max_tokens=1)).text


def judged(question: str) -> int:
    text = LM.prompt(question)
    for t in range(2):
        text = text + pyro.sample(f"step_{t}", LM(text, max_tokens=1))
        pyro.sample(f"ok_{t}", VERIFIER(text), obs=True)
    return text.text.count("a")


def chosen(posterior) -> list[int]:
    return [int(next(r.value for r in s.records)) for s in posterior.samples]


def quick(question: str) -> bool:
    """As `solve`, without a model."""
    rate = torch.tensor(RATES[int(question[0])], dtype=torch.float64)
    return bool(pyro.sample("right", dist.Bernoulli(rate)))


def marked(question: str) -> bool:
    right = quick(question)
    pyro.factor("taste", torch.tensor(0.5 * right))
    return right


def failure(program, n: int, runs: int) -> float:
    found = BestOfN(n).run_many(program, ["^"] * runs, seed=range(runs))
    return float(np.mean([not any(s.value for s in p.samples) for p in found]))


@pytest.mark.parametrize("n", [2, 3, 5])
def test_coverage_is_the_closed_form(n):
    """The sampler against the formula, and the formula against all that can happen."""
    runs = 400
    for stratified in (True, False):
        program = ppl.perturbed(PROMPTS, stratified=stratified)(quick)
        exact = pass_at_k_perturbed(RATES, n, stratified=stratified)
        error = math.sqrt(exact * (1 - exact) / runs)
        assert failure(program, n, runs) == pytest.approx(1 - exact, abs=4 * error)
    whole, rest = divmod(n, len(RATES))
    misses = [1 - p for p in RATES]
    sets = list(itertools.combinations(misses, rest))
    none = math.prod(misses) ** whole * math.fsum(map(math.prod, sets)) / len(sets)
    assert pass_at_k_perturbed(RATES, n) == pytest.approx(1 - none, abs=1e-12)


def test_sharing_out_covers_more_unless_all_rates_are_equal():
    rng = np.random.default_rng(0)
    for _ in range(50):
        rates = rng.random(rng.integers(2, 6))
        for k in (1, len(rates), 7):
            shared = pass_at_k_perturbed(rates, k)
            alone = pass_at_k_perturbed(rates, k, stratified=False)
            assert shared >= alone - 1e-12
            assert k == 1 or shared > alone
    # By hand: (1 - .9)(1 - .4)(1 - .1) = .054 against (1 - .46667)^3 = .151704.
    assert pass_at_k_perturbed(RATES, 3) == pytest.approx(1 - 0.054)
    assert pass_at_k_perturbed(RATES, 3, stratified=False) == pytest.approx(1 - (1.6 / 3) ** 3)
    equal = [pass_at_k_perturbed([0.3] * 4, 6, stratified=s) for s in (True, False)]
    assert equal == pytest.approx([1 - 0.7**6] * 2)


def test_perturbations_are_shared_out_and_each_sample_has_each_as_often():
    program = ppl.perturbed(PROMPTS)(quick)
    firsts, pairs = Counter(), Counter()
    for seed in range(300):
        found = chosen(BestOfN(7).run(program, "^", seed=seed))
        assert set(Counter(found).values()) == {2, 3}
        assert set(found[:3]) == set(found[3:6]) == {0, 1, 2}
        firsts[found[0]] += 1
        pairs[found[0], found[1]] += 1
    assert all(abs(count - 100) < 4 * math.sqrt(300 * 2 / 9) for count in firsts.values())
    assert len(pairs) == 6  # in any order, never one twice
    assert all(abs(count - 50) < 4 * math.sqrt(300 * 5 / 36) for count in pairs.values())


@pytest.mark.parametrize("stratified", [True, False])
@pytest.mark.parametrize("searcher", [BestOfN(4), SMC(4, 1.0)], ids=str)
def test_evidence_is_unbiased_and_nothing_is_divided_by_the_prior(searcher, stratified):
    program = ppl.perturbed(PROMPTS, stratified=stratified)(judged)
    exact = ppl.enumerate_program(program, "^")
    found = searcher.run_many(program, ["^"] * 200, seed=range(200))
    estimates = np.exp([p.log_evidence for p in found])
    error = estimates.std() / math.sqrt(len(estimates))
    assert abs(estimates.mean() - math.exp(exact.log_evidence)) < 4 * error
    for sample in found[0].samples:
        assert all(r.log_ratio == 0 for r in sample.records)
        assert sample.records[0].prior() == pytest.approx(-math.log(3))
    if isinstance(searcher, BestOfN):
        for sample in found[0].samples:
            assert sample.log_weight == pytest.approx(sample.log_likelihood, abs=1e-12)


def test_the_law_is_the_mean_over_perturbations():
    for stratified in (True, False):
        exact = ppl.enumerate_program(ppl.perturbed(PROMPTS, stratified=stratified)(solve), "^")
        assert exact.log_evidence == pytest.approx(0, abs=1e-12)
        assert exact.marginal()["a"] == pytest.approx(sum(RATES) / 3)


def test_conditional_sweeps_draw_independently():
    """Sharing out among the free particles of a sweep would not leave the posterior as it is."""
    search = ParticleGibbs(3, 12).begin(ppl.perturbed(PROMPTS[:2])(marked), "^", seed=0)
    search.run()
    root = search.tree.root
    drawn = [int(n.records[0].value) for n in search.tree.nodes if n.parent is root]
    pairs = list(zip(drawn[3::2], drawn[4::2], strict=True))  # of each sweep after the first
    assert len(pairs) == 11
    assert 2 <= sum(a == b for a, b in pairs) <= 9

    def certain(question: str) -> int:
        ppl.condition(question[0] == "0")
        return 0

    # Alive on one side of two: the evidence is 1 / 2 on average only if tries are independent.
    alive = AliveParticleFilter(2).run_many(
        ppl.perturbed(PROMPTS[:2])(certain), ["^"] * 600, seed=range(600)
    )
    estimates = np.exp([p.log_evidence for p in alive])
    assert abs(estimates.mean() - 0.5) < 4 * estimates.std() / math.sqrt(600)


def test_forms_of_perturbations():
    seen = []

    def program(question: str, mark: str) -> str:
        seen.append(question + mark)
        return question

    kinds = ["", "Think.", "<{question}>", str.upper]
    BestOfN(4).run(ppl.perturbed(kinds)(program), "why", "?", seed=0)
    assert sorted(set(seen)) == ["<why>?", "Think.\n\nwhy?", "WHY?", "why?"]
    assert all(len(set(texts)) == 6 for texts in (ROLES, INSTRUCTIONS, NOISE))


def test_what_is_no_perturbation_is_refused():
    with pytest.raises(ArgumentError, match="perturbations="):
        ppl.perturbed([])
    with pytest.raises(ArgumentError, match="perturbations="):
        ppl.perturbed([3])  # type: ignore[list-item]
    with pytest.raises(ArgumentError, match="program="):
        ppl.perturbed([""])(3)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="question="):
        ppl.perturbed([""])(solve)(7)
    with pytest.raises(ArgumentError, match=r"perturbations: .* made None"):
        ppl.perturbed([lambda question: None])(solve)("^")
    with pytest.raises(ArgumentError, match="rates"):
        pass_at_k_perturbed([0.5, 1.5], 2)


def test_a_searcher_may_choose_the_perturbation():
    posterior = ModelSwitch(3, "perturbation", agreement=1.0).run(
        ppl.perturbed(PROMPTS)(solve), "^", seed=1
    )
    asked = chosen(posterior)
    assert asked == [r for r in range(3) for _ in range(3)][: len(asked)]


def test_models_write_perturbations():
    """An idea and a rephrasing are draws of the model, part of the sample's record."""
    lm = ppl.load("tiny-lines")

    def program(question: str) -> str:
        return question

    for maker, site in ((idea, "idea"), (rephrasing, "rephrasing")):
        diverse = ppl.perturbed([maker(lm, max_tokens=4)])(program)
        posterior = BestOfN(2).run(diverse, "Start with 42: a*2", seed=0)
        assert [r.name for r in posterior.samples[0].records] == ["perturbation", site]
        assert posterior.best.startswith("Start with 42: a*2\n\n")
        assert posterior.cost.lm_calls == 2
    assert Greedy().run(diverse, "Start with 42: a*2", seed=0).cost.lm_calls == 1


def test_two_choices_of_as_many_are_not_tied_to_each_other():
    """Two times two wordings, eight samples, each wording four times. A pair comes with every turn
    of two samples with probability 1/2, so that it is there with 1 - 1/16 (independent: .90). One
    order for all would make two pairs of the four, and this one with 1/2."""
    outer = ppl.perturbed(["a{question}", "b{question}"], name="outer")
    pairs = outer(ppl.perturbed(["c{question}", "d{question}"])(lambda question: question))
    there, runs = 0, 300
    for seed in range(runs):
        found = Counter(s.value for s in BestOfN(8).run(pairs, "?", seed=seed).samples)
        assert found["ca?"] + found["da?"] == found["ca?"] + found["cb?"] == 4
        there += "ca?" in found
    assert there / runs == pytest.approx(15 / 16, abs=4 * math.sqrt(15 / 16 / 16 / runs))
