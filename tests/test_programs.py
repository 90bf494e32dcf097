"""Programs as Pyro sees them: handlers, observations, verdicts, forward runs."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import TOY, VERIFIERS, contents, difference, toy

import ppl
from ppl.runtime.verdict import AGGREGATES
from ppl.searchers import SMC, BestOfN
from ppl.verifiers import Verifier, log_potential


def test_programs_run_forward_outside_a_searcher():
    pyro.set_rng_seed(0)
    values = {toy("prod") for _ in range(20)}
    assert len(values) > 1
    assert values <= set(range(-3, 4))


def test_poutine_trace_has_the_searchers_numbers():
    """Trace, condition and replay see the same log-probabilities as a search."""
    posterior = SMC(4, 0.0).run(toy, "last", seed=6)
    for sample in posterior.samples:
        choices = {r.name: r.value for r in sample.records if r.kind == "choice"}
        trace = pyro.poutine.trace(pyro.poutine.condition(toy, data=choices)).get_trace("last")
        trace.compute_log_prob()
        observed = sum(float(trace.nodes[n]["log_prob_sum"]) for n in trace.nodes if "ok" in n)
        assert observed == pytest.approx(sample.log_likelihood)
        prior = sum(float(trace.nodes[n]["log_prob_sum"]) for n in choices)
        assert prior + observed == pytest.approx(sample.log_joint)
        replayed = pyro.poutine.trace(pyro.poutine.replay(toy, trace=sample.trace)).get_trace(
            "last"
        )
        assert replayed.nodes["_RETURN"]["value"] == sample.value


def test_conditioned_and_intervened_programs_search():
    a = TOY.continuation("a")
    conditioned = pyro.poutine.condition(toy, data={"step_0": a})
    intervened = ppl.do(toy, {"step_0": a})
    exact = ppl.enumerate_program(conditioned, "prod")
    runs = SMC(4).run_many(conditioned, [("prod",)] * 500, seed=range(500))
    estimates = torch.tensor([math.exp(r.log_evidence) for r in runs])
    error = float(estimates.mean()) - math.exp(exact.log_evidence)
    assert abs(error) < 4 * float(estimates.std()) / math.sqrt(500)
    # An intervention costs no probability: the evidence is larger by 1 / p(a).
    done = SMC(2000).run(intervened, "prod", seed=1)
    assert math.exp(done.log_evidence) == pytest.approx(
        math.exp(exact.log_evidence) / 0.5, rel=0.05
    )


def test_poutine_do_sets_tensor_sites():
    set_to_one = pyro.poutine.do(_scaled_base, data={"x": torch.tensor(1.0)})
    posterior = BestOfN(5).run(set_to_one, seed=0)
    assert math.exp(posterior.log_evidence) == pytest.approx(0.6)


def test_plates_and_subsampling_are_reproducible():
    data = torch.tensor([0.5, -0.2, 1.1, 0.3])

    def program() -> float:
        mean = pyro.sample("mean", dist.Normal(torch.tensor(0.0), 1.0))
        with pyro.plate("data", 4, subsample_size=2) as index:
            pyro.sample("y", dist.Normal(mean, 1.0), obs=data[index])
        with pyro.plate("more", 3):
            noise = pyro.sample("noise", dist.Normal(0.0, 1.0))
        pyro.factor("end", -0.1 * noise.square().sum())
        return float(mean)

    posterior = SMC(20, 1.0).run(program, seed=0)
    trace = posterior.samples[0].trace
    assert trace.nodes["noise"]["value"].shape == (3,)
    assert len({s.value for s in posterior.samples}) > 1
    assert contents(posterior) == contents(SMC(20, 1.0).run(program, seed=0))


def test_scaled_programs_target_the_scaled_law():
    scaled = pyro.poutine.scale(_scaled_base, scale=0.5)
    z = sum((p**0.5) * (q**0.5) for p, q in ((0.3, 0.2), (0.7, 0.6)))
    estimate = math.exp(SMC(4000).run(scaled, seed=0).log_evidence)
    assert estimate == pytest.approx(z, rel=0.05)


def _scaled_base() -> None:
    x = pyro.sample("x", dist.Bernoulli(0.7))
    pyro.sample("y", dist.Bernoulli(0.6 if x == 1 else 0.2), obs=torch.tensor(1.0))


def test_a_search_inside_a_program():
    def outer():
        inner = BestOfN(3).run(toy, "prod", seed=1).best
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.factor("f", -(x**2))
        return inner

    assert {s.value for s in SMC(3).run(outer).samples} == {
        BestOfN(3).run(toy, "prod", seed=1).best
    }


def test_unobserved_verdicts_are_choices():
    with pytest.warns(UserWarning, match="was drawn"):  # it is meant here, and seldom elsewhere
        runs = BestOfN(400).run(_soft, seed=0)
    assert abs(runs.marginal()[True] - 0.6) < 0.1


def _soft() -> bool:
    return bool(pyro.sample("ok", VERIFIERS["prod"](TOY.prompt("^"))))


def test_observed_continuation_is_a_likelihood():
    posterior = BestOfN(2).run(_says_ab, seed=0)
    assert posterior.log_evidence == pytest.approx(math.log(0.5 * 0.3 * 0.2))


def _says_ab() -> None:
    text = TOY.prompt("^")
    pyro.sample("said", TOY(text), obs=TOY.continuation("ab", finished=True))


def test_verifiers_observed_rarely_telescope():
    """Observed only at the end, `last` and `prod` give the potential of the whole text."""

    def program(aggregate: str, every: int) -> int:
        text = TOY.prompt("^")
        for t in range(3):
            text = text + pyro.sample(f"s_{t}", TOY(text, max_tokens=1, allowed={1, 2}))
            if (t + 1) % every == 0:
                pyro.sample(f"ok_{t}", VERIFIERS[aggregate](text), obs=True)
        return difference(text)

    often, rarely = (ppl.enumerate_program(program, "last", every) for every in (1, 3))
    assert often.log_evidence == pytest.approx(rarely.log_evidence)


def test_two_verifiers_and_a_false_observation():
    def program() -> None:
        text = TOY.prompt("^") + "a"
        pyro.sample("good", VERIFIERS["last"](text), obs=True)
        pyro.sample("bad", VERIFIERS["prod"](text), obs=False)

    posterior = BestOfN(1).run(program, seed=0)
    assert math.exp(posterior.log_evidence) == pytest.approx(0.9 * 0.1)


@pytest.mark.parametrize(
    ("aggregate", "expected"),
    [("prod", 0.081), ("last", 0.9), ("min", 0.1), ("mean", 1.9 / 3), ("geomean", 0.4326749)],
)
def test_aggregates_combine_step_scores(aggregate, expected):
    scores = [math.log(s) for s in (0.9, 0.1, 0.9)]
    assert math.exp(log_potential(scores, aggregate)) == pytest.approx(expected)


@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_increments_add_up_to_the_potential_of_all_scores(aggregate):
    """Whatever is observed on the way, the last observation leaves log A(s_1 .. s_T)."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        table = rng.uniform(0.01, 1, 6)

        class Steps(Verifier):
            name = "steps"

            def judge(self, requests, table=table):
                return [np.log(table[r.since : len(r.text.step_ends)]) for r in requests]

        steps = Steps()
        steps.aggregate = aggregate
        text, total = TOY.prompt("^"), 0.0
        for t in range(6):
            text = text + TOY.continuation("a")
            if t == 5 or rng.random() < 0.5:
                total += float(steps(text).log_prob(True))
        assert total == pytest.approx(log_potential(list(np.log(table)), aggregate))


def test_recorded_log_prob_equals_teacher_forcing(tiny):
    """Law 5 on the tiny model, warped and not."""
    lm, _ = tiny
    posterior = BestOfN(6).run(_warped, lm, seed=0)
    for sample in posterior.samples:
        text = lm.chat("Calculate 4 - 9 + 6.")
        for record in sample.records:
            law = lm(text, until="\n", max_tokens=12, temperature=0.8, top_p=0.9, top_k=20)
            assert float(law.log_prob(record.value)) == pytest.approx(record.log_prior, abs=1e-4)
            text = text + record.value


def _warped(lm: ppl.LanguageModel) -> None:
    text = lm.chat("Calculate 4 - 9 + 6.")
    for t in range(2):
        law = lm(text, until="\n", max_tokens=12, temperature=0.8, top_p=0.9, top_k=20)
        step = pyro.sample(f"s_{t}", law)
        text = text + step
        if step.finished:
            break


def test_enumeration_gives_up_beyond_the_most_that_was_allowed():
    assert len(ppl.enumerate_program(toy, "prod", most=22).values) == 15
    with pytest.raises(ppl.PPLError, match="more than 21"):
        ppl.enumerate_program(toy, "prod", most=21)


def test_an_observation_at_the_start_is_a_checkpoint():
    def program() -> float:
        pyro.factor("f", torch.tensor(-1.0))
        return float(pyro.sample("x", dist.Bernoulli(0.5)))

    tree = ppl.Tree(program)
    (node,) = tree.expand([tree.root])
    assert node.open
    assert [r.name for r in node.records] == ["f"]


def twice_twisted() -> None:
    """Two twists at the first checkpoint, one at each later one."""
    for t in range(4):
        pyro.sample(f"x_{t}", dist.Bernoulli(0.5))
        pyro.factor(f"liked_{t}", torch.tensor(-0.5))
        ppl.twist(f"twist_{t}", 0.1 * (t + 1))
        if t == 0:
            ppl.twist("another", 1.0)


@pytest.mark.parametrize("twist", [1e300, -1e300, 1e17])
def test_a_giant_twist_drowns_no_weight(twist):
    def model():
        for t in range(2):
            pyro.sample(f"x_{t}", dist.Bernoulli(0.5))
            pyro.factor(f"liked_{t}", torch.tensor(-0.5))
            ppl.twist(f"twist_{t}", twist)

    assert SMC(4).run(model, seed=0).log_evidence == pytest.approx(-1.0, abs=1e-9)
    assert BestOfN(4).run(model, seed=0).log_evidence == pytest.approx(-1.0, abs=1e-9)


def test_a_weight_holds_the_twists_of_its_own_checkpoint_only():
    tree = ppl.Tree(twice_twisted)
    node = tree.root
    for t, twist in enumerate([1.1, 0.2, 0.3]):
        (node,) = tree.expand([node])
        assert node.log_twist == pytest.approx(twist)
        assert node.log_weight == pytest.approx(-0.5 * (t + 1) + twist)
        assert node.log_promise == pytest.approx(node.log_weight)
        assert node.value == pytest.approx(math.exp(-0.5 * (t + 1)))  # of the observations alone
    (node,) = tree.expand([node])
    assert node.finished
    assert node.log_weight == node.log_likelihood == pytest.approx(-2.0)
