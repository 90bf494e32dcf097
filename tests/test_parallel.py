"""`ppl.parallel`: branches of one particle, side by side."""

from __future__ import annotations

import asyncio
import contextlib
import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

import ppl
from ppl import errors
from ppl.lm.decode import Session
from ppl.runtime import coroutine
from ppl.searchers import MCTS, SMC, BeamSearch, BestOfN, ParticleGibbs, run_all
from ppl.verifiers import verifier

pytestmark = pytest.mark.filterwarnings("ignore:the program marks no steps")


def table() -> ppl.TableLM:
    """After b, a is rare."""
    return ppl.TableLM(
        lambda prefix: (
            {"a": 0.1, "b": 0.6, "$": 0.3}
            if prefix.endswith("b")
            else {"a": 0.5, "b": 0.3, "$": 0.2}
        ),
        symbols="^ab$",
    )


def writing(lm, text, n, liking):
    """A branch: letters, with a factor after each."""
    for t in range(n):
        step = pyro.sample(f"step_{t}", lm(text, max_tokens=1))
        text = text + step
        pyro.factor(f"like_{t}", torch.tensor(liking * step.text.count("a")))
        if step.finished:
            break
    return text.text


def both(lm, run=None):
    """Two branches of different lengths, and a join that looks at what they have."""
    text = lm.prompt("^")
    first = pyro.sample("first", lm(text, max_tokens=1))
    text = text + first
    if first.finished:
        return (text.text,)
    pyro.factor("early", torch.tensor(-0.2))
    left, right = (run or ppl.parallel)(
        [lambda: writing(lm, text, 2, 0.7), lambda: writing(lm, text, 3, -0.4)], name="both"
    )
    pyro.factor("join", torch.tensor(0.5 if left == right else 0.0))
    last = pyro.sample("last", dist.Bernoulli(0.5))
    pyro.factor("end", last * 0.3)
    return left, right


def in_order(functions, name):
    found = []
    for i, function in enumerate(functions):
        with poutine.infer_config(config_fn=lambda site: {}):
            found.append(renamed(function, f"{name}/{i}/")())
    return found


def renamed(function, prefix):
    """Names by hand: the program that `ppl.parallel` has to equal."""
    from ppl.language.primitives import Prefix

    def run():
        with Prefix(prefix):
            return function()

    return run


def test_law_and_evidence_are_those_of_the_branches_in_order():
    lm = table()
    exact = ppl.enumerate_program(both, lm)
    assert exact.log_evidence == pytest.approx(
        ppl.enumerate_program(both, lm, in_order).log_evidence
    )
    law = exact.marginal()
    found = SMC(400, 1.0).run(both, lm, seed=1)
    assert found.log_evidence == pytest.approx(exact.log_evidence, abs=0.1)
    for value, p in law.items():
        assert found.marginal().get(value, 0.0) == pytest.approx(p, abs=0.08)
    gibbs = ParticleGibbs(4, sweeps=50, ancestor_sampling=True).run(both, lm, seed=0)
    likely = max(law, key=lambda value: law[value])
    assert gibbs.marginal()[likely] == pytest.approx(law[likely], abs=0.15)
    densities = {}
    for value, density in zip(exact.values, exact.log_weights, strict=True):
        densities.setdefault(value, []).append(density)
    for sample in found.samples[:50]:
        assert any(sample.log_joint == pytest.approx(d, abs=1e-5) for d in densities[sample.value])


def test_the_average_evidence_is_exact():
    lm = table()
    check_average(partial(both, lm), SMC(4, 1.0), 120)


def check_average(program, searcher, runs):
    """The mean of exp(log_evidence) is the exact evidence, within 3.5 standard errors."""
    exact = math.exp(ppl.enumerate_program(program).log_evidence)
    found = torch.zeros(runs)
    for seed in range(runs):
        with contextlib.suppress(errors.AllParticlesDeadError):  # which counts as zero
            found[seed] = math.exp(searcher.run(program, seed=seed).log_evidence)
    assert abs(float(found.mean()) - exact) < 3.5 * float(found.std()) / runs**0.5


def test_what_is_waited_for_is_the_longest_branch(monkeypatch):
    steps = [0]
    step = Session.step

    def counted(self):
        steps[0] += 1
        return step(self)

    monkeypatch.setattr(Session, "step", counted)

    def rounds(lengths, run):
        steps[0] = 0
        lm = ppl.TableLM({"a": 1.0}, symbols="^a$")
        text = lm.prompt("^")

        def branch(n):
            whole = text
            for t, size in enumerate(n):
                whole = whole + pyro.sample(f"step_{t}", lm(whole, max_tokens=size))
            return len(whole)

        def program():
            return run([partial(branch, n) for n in lengths], name="p")

        assert BestOfN(3).run(program, seed=0).best == [1 + sum(n) for n in lengths]
        return steps[0]

    # Short steps of one beside long ones of the other: each goes on as soon as it is answered.
    lengths = [(1, 5), (5, 1), (2, 2, 2)]
    side_by_side, one_by_one = rounds(lengths, ppl.parallel), rounds(lengths, in_order)
    assert side_by_side == max(map(sum, lengths)) == 6
    assert one_by_one == sum(map(sum, lengths)) == 18


def test_forks_within_branches_ask_nothing_again():
    lm = table()
    tree = ppl.Tree(both, (lm,), seed=2)
    nodes = tree.expand([tree.root], 8)
    for _ in range(2):
        nodes = tree.expand([n for n in nodes if n.open])
    node = next(n for n in nodes if n.open and n.depth == 3)
    names = [r.name for r in node.history]
    assert {"both/0/step_0", "both/1/step_0", "both/0/step_1", "both/1/step_1"} <= set(names)
    tree.expand([node])
    before = lm.tokens_computed
    children = tree.expand([node], 6)
    drawn = sum(r.kind == "choice" and r.name != "last" for c in children for r in c.records)
    assert lm.tokens_computed - before <= drawn
    forced = tree.force([node] * 6, children)
    assert [c.log_increment for c in forced] == pytest.approx([c.log_increment for c in children])
    tree.close()


def test_records_are_in_the_order_of_the_branches_whoever_comes_first():
    lm = table()
    alone = SMC(6, 1.0).run(both, lm, seed=3)
    other = BestOfN(5).begin(writing, lm, lm.prompt("^b"), 9, 0.0, seed=1)
    beside = run_all([SMC(6, 1.0).begin(both, lm, seed=3), other])[0]
    for a, b in zip(alone.samples, beside.samples, strict=True):
        assert [repr((r.name, r.value)) for r in a.records] == [
            repr((r.name, r.value)) for r in b.records
        ]
        assert a.log_weight == b.log_weight
    at = [r.name for r in max(alone.samples, key=lambda s: len(s.records)).records]
    segments = [at.index(f"both/{i}/step_0") for i in (0, 1)]
    assert segments == sorted(segments)


@pytest.mark.parametrize("searcher", [BestOfN(4), SMC(4), BeamSearch(2, 2), MCTS(8)], ids=repr)
def test_every_searcher_runs_branches(searcher):
    assert searcher.run(both, table(), seed=0).best is not None


@verifier(aggregate="prod")
def few(text):
    return 0.5 ** text.text.count("a")


def test_verifiers_conditions_answers_and_calls_in_branches():
    lm = table()
    calls = []

    async def tool(word):
        calls.append(word)
        await asyncio.sleep(0.001)
        return len(word)

    def branch(word):
        text = lm.prompt("^") + word
        for t in range(2):
            text = text + pyro.sample(f"step_{t}", lm(text, max_tokens=1, allowed=[1, 2]))
            pyro.sample(f"ok_{t}", few(text), obs=True)
            ppl.condition(text.text.count("b") < 3)
            ppl.answer(text.text)
        return ppl.call("tool", tool, text.text), text.text

    def program():
        found = ppl.parallel([partial(branch, "a"), partial(branch, "b")])
        pyro.sample("x", dist.Bernoulli(0.5))
        return tuple(found)

    check_average(program, SMC(20, 1.0), 30)
    calls.clear()
    found = SMC(40, 1.0).run(program, seed=0)
    assert len(calls) == found.cost.tool_calls <= 80
    assert {"parallel/0/condition_0", "parallel/1/condition_1"} <= {
        r.name for r in found.samples[0].records
    }
    search = SMC(4).begin(program, seed=0)
    search.step()
    now = search.posterior().samples[0]
    assert now.provisional
    assert now.value.startswith("b")  # the last branch has the last word


def test_nested_branches_and_handlers_around_them():
    lm = table()

    def leaf(n):
        return writing(lm, lm.prompt("^"), n, 0.5)

    def inner():
        return ppl.parallel([partial(leaf, 1), partial(leaf, 2)], name="inner")

    def program():
        with poutine.scale(scale=0.5):
            left, right = ppl.parallel([inner, partial(leaf, 2)], name="outer")
        return (*left, right)

    check_average(program, SMC(8, 1.0), 40)
    found = SMC(20, 1.0).run(program, seed=0)
    names = {r.name for s in found.samples for r in s.records}
    assert {"outer/0/inner/1/step_0", "outer/1/step_0"} <= names
    first = {"outer/0/inner/0/step_0": lm.continuation("a")}
    observed = SMC(4).run(pyro.condition(program, first), seed=0)
    assert all(s.value[0] == "a" for s in observed.samples)
    trace = poutine.trace(program).get_trace()
    assert "outer/0/inner/1/step_0" in trace.nodes


def test_branches_within_that_write_nothing_change_no_text():
    """What was written last is what the last branch wrote, whoever looks at it in between."""
    lm = ppl.TableLM({"a": 0.5, "b": 0.5}, symbols="^abc$")

    def branch(number: int):
        text = lm.prompt("^" * (1 + number))
        text = text + pyro.sample("t", lm(text, max_tokens=1))
        pyro.factor("f", torch.tensor(0.0))
        pyro.sample("rest", dist.Delta(torch.tensor(0.0)))
        if not number:
            ppl.parallel([lambda: 1, lambda: 2])
        return text

    def program():
        return ppl.parallel([partial(branch, number) for number in range(2)])

    tree = ppl.Tree(program)
    (node,) = tree.rollout([tree.root])
    assert node.text == node.result[1]


def test_beside_a_guide_branches_run_in_order():
    lm = table()

    def program():
        return tuple(ppl.parallel([partial(writing, lm, lm.prompt("^"), 1, 0.5)] * 2, name="p"))

    def guide():
        def proposals():
            pyro.sample("step_0", lm(lm.prompt("^"), max_tokens=1, allowed=[1, 3]))

        ppl.parallel([proposals, proposals], name="p")

    found = SMC(40).run(program, guide=guide, seed=0)
    proposed = [r.log_proposal is not None for s in found.samples for r in s.records]
    assert any(proposed)
    assert {s.value for s in found.samples} == {(x, y) for x in ("", "a") for y in ("", "a")}


def test_dead_branches_errors_and_clean_up():
    lm = table()
    ended = []

    def waits():
        try:
            writing(lm, lm.prompt("^"), 3, 0.0)
        finally:
            ended.append(1)

    def dies():
        pyro.sample("x", dist.Bernoulli(0.5))
        ppl.condition(False, "never")

    with pytest.raises(errors.AllParticlesDeadError, match="p/1/never"):
        SMC(3).run(lambda: ppl.parallel([waits, dies], name="p"))
    assert len(ended) == 3

    def fails():
        pyro.sample("x", lm(lm.prompt("^"), max_tokens=1))
        raise KeyError("oops")

    with pytest.raises(errors.ProgramError, match=r"KeyError: 'oops' \(particle"):
        SMC(3).run(lambda: ppl.parallel([waits, fails], name="p"))
    assert len(ended) == 6
    early = SMC(4).run(lambda: ppl.parallel([waits, waits], name="p"), budget=ppl.Budget(tokens=3))
    assert early.stopped == "budget"


def test_names_are_used_once_and_arguments_are_checked():
    def twice():
        ppl.parallel([lambda: 1])
        ppl.parallel([lambda: 2])

    with pytest.raises(errors.DuplicateSiteError, match=r"'parallel'.*name="):
        BestOfN(1).run(twice)
    assert ppl.parallel([]) == []
    assert BestOfN(1).run(lambda: ppl.parallel([])).best == []
    with pytest.raises(errors.ArgumentError, match="functions"):
        ppl.parallel([3])


def test_programs_that_change_their_branches_on_replay_are_named():
    runs = [0]

    def program():
        runs[0] += 1
        lm = table()
        n = 2 if runs[0] == 1 else 1
        ppl.parallel([partial(writing, lm, lm.prompt("^"), 1, 0.1)] * n, name="p")
        pyro.factor("f", torch.tensor(0.0))
        pyro.sample("x", dist.Bernoulli(0.5))

    tree = ppl.Tree(program, seed=0)
    node = tree.expand([tree.root])[0]
    tree.expand([node])
    with pytest.raises(errors.NonDeterministicProgramError):
        tree.expand([node])
    tree.close()


def test_branches_without_models_let_others_go_on(monkeypatch):
    monkeypatch.setattr(coroutine, "_SLICE", 0.0)
    monkeypatch.setattr(coroutine, "_ASLEEP", 0.0)
    lm = table()

    def counting():
        return sum(int(pyro.sample(f"x_{t}", dist.Bernoulli(0.5))) for t in range(20))

    def program():
        inner = partial(ppl.parallel, [counting, partial(writing, lm, lm.prompt("^"), 3, 0.1)])
        return ppl.parallel([counting, counting, inner, inner], name="p")

    found = BestOfN(4).run(program, seed=0)
    monkeypatch.undo()
    again = BestOfN(4).run(program, seed=0)
    assert [s.value for s in found.samples] == [s.value for s in again.samples]
