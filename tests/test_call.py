"""`ppl.call`: tools and other effects, called once, recorded, told to forks."""

from __future__ import annotations

import asyncio
import functools
import math
import threading
import time
from fractions import Fraction

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import TOY

import ppl
from ppl import errors
from ppl.language.call import Call, Called
from ppl.language.data import NotPlainError, copied, digest
from ppl.posterior.encoder import Encoder
from ppl.searchers import MCTS, SMC, BestOfN, ParticleGibbs, run_all


class Counter:
    """A tool that counts its calls."""

    def __init__(self, answer=lambda *args: args) -> None:
        self.answer, self.asked = answer, []

    def __call__(self, *args):
        self.asked.append(args)
        return self.answer(*args)


def counting(tool, steps=3):
    """Writes letters, asks a tool for the number of a's, and dislikes them."""
    text = TOY.prompt("^")
    for t in range(steps):
        step = pyro.sample(f"step_{t}", TOY(text, max_tokens=1))
        text = text + step
        found = ppl.call(f"found_{t}", tool, text.text)
        pyro.factor(f"few_{t}", torch.tensor(-0.5 * found["a"]))
        if step.finished:
            break
    return text.text, found["a"]


def letters(text):
    return {"a": text.count("a"), "at": [text]}


def test_outside_of_searches_it_simply_calls():
    assert ppl.call("x", lambda a, b: a + b, 1, 2) == 3
    with pytest.raises(errors.ToolError, match=r"site 'x'.*failed: ZeroDivisionError") as caught:
        ppl.call("x", lambda: 1 / 0)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)

    async def later(x):
        await asyncio.sleep(0.001)
        return x

    assert ppl.call("x", later, 5) == 5
    assert ppl.call("x", functools.partial(later, x=6)) == 6
    assert ppl.call("x", lambda: later(7)) == 7

    async def inside_an_event_loop():
        return ppl.call("x", later, 8)

    assert asyncio.run(inside_an_event_loop()) == 8


def test_the_law_is_that_of_the_program_with_a_function():
    exact = ppl.enumerate_program(counting, letters)
    by_hand = ppl.enumerate_program(lambda: counting_by_hand(3))
    assert exact.log_evidence == pytest.approx(by_hand.log_evidence)
    posterior = SMC(1500, 1.0).run(counting, letters, seed=0)
    assert posterior.log_evidence == pytest.approx(exact.log_evidence, abs=0.04)
    for value, p in exact.marginal().items():
        assert posterior.marginal()[value] == pytest.approx(p, abs=0.06)
    sample = posterior.samples[0]
    trace = pyro.poutine.trace(counting).get_trace(letters)
    trace.compute_log_prob()
    assert trace.nodes["found_0"]["log_prob_sum"] == 0
    assert sample.log_joint == pytest.approx(sum(r.joint() for r in sample.records), abs=1e-6)


def counting_by_hand(steps):
    text = TOY.prompt("^")
    for t in range(steps):
        step = pyro.sample(f"step_{t}", TOY(text, max_tokens=1))
        text = text + step
        pyro.factor(f"few_{t}", torch.tensor(-0.5 * text.text.count("a")))
        if step.finished:
            break
    return text.text


def test_once_a_particle_and_step_and_never_again_for_forks():
    tool = Counter(letters)
    posterior = SMC(8, 1.0).run(counting, tool, seed=1)
    # One for every step that was drawn; a particle that has ended is not drawn again.
    assert posterior.cost.tool_calls == len(tool.asked) == posterior.cost.lm_calls <= 24
    tool.asked.clear()
    tree = ppl.Tree(counting, (tool,), seed=3)
    node = next(n for n in tree.expand([tree.root], 6) if n.open)
    tree.expand([node])
    before = len(tool.asked)
    assert len(tree.expand([node], 5)) == 5
    assert len(tool.asked) == before + 5  # one for the new step of each
    assert tree.cost.models["Counter"].tool_calls == tree.cost.tool_calls == len(tool.asked)
    tree.close()


def test_the_record_keeps_its_own_copy():
    def program():
        notes = {"seen": [1]}
        found = ppl.call("look", changing, notes)
        assert notes == {"seen": [1]}  # the function had a copy
        found["at"].append("mine")
        pyro.sample("x", dist.Bernoulli(0.5))
        pyro.factor("f", torch.tensor(0.0))
        again = pyro.sample("y", dist.Bernoulli(0.5))
        return found["at"], float(again)

    def changing(notes):
        notes["seen"].append(2)
        return {"at": ["theirs"]}

    samples = SMC(8, 1.0).run(program, seed=0).samples
    assert all(s.value[0] == ["theirs", "mine"] for s in samples)
    assert samples[0].trace.nodes["look"]["value"].result == {"at": ["theirs"]}


PLAIN_VALUES = [
    None,
    True,
    3,
    -0.0,
    "é",
    b"\x00",
    [1, (2, {3})],
    {"a": frozenset({1})},
    Fraction(1, 3),
    torch.tensor([1.0, 2.0]),
    torch.zeros(2, dtype=torch.bfloat16),
    np.array([1, 2]),
    np.float32(1.5),
    TOY.prompt("^a"),
    TOY.continuation("ab"),
]


@pytest.mark.parametrize("value", PLAIN_VALUES, ids=lambda v: type(v).__name__)
def test_what_is_recorded_can_be_stored(value, tmp_path):
    def program():
        got = ppl.call("get", lambda: value)
        pyro.sample("x", dist.Bernoulli(0.5))
        return repr(got)

    posterior = BestOfN(2).run(program, seed=0)
    posterior.save(tmp_path / "p.ppl")
    again = ppl.Posterior.load(tmp_path / "p.ppl")
    was = posterior.samples[0].records[0].value
    back = again.samples[0].records[0].value
    assert back == was
    assert repr(back.result) == repr(copied(value)) == repr(was.result)
    assert digest((back.result, None)) == was.content
    Encoder().value(copied(value), "here")


def test_digests_tell_values_apart():
    values = [*PLAIN_VALUES, 0.0, "3", (1, 2), [1, 2], {"a": 1}, {"a": 2}, TOY.continuation("a")]
    digests = [digest(value) for value in values]
    assert len(set(digests)) == len(values)
    assert digest({1, 2, 3}) == digest({3, 2, 1})
    assert digest(Counter()) == digest(Counter())  # objects go by their type
    endless: list = []
    endless.append(endless)
    with pytest.raises(NotPlainError, match="nested"):
        copied(endless)


def test_what_is_no_data_is_refused_by_site_and_function():
    def program():
        pyro.sample("x", dist.Bernoulli(0.5))
        return ppl.call("client", threading.Lock)

    with pytest.raises(errors.ProgramError, match=r"'client' of particle \d+: .*lock.*plain data"):
        BestOfN(2).run(program)


def test_failures_are_named_recorded_and_may_be_caught():
    def broken(word):
        raise KeyError(word)

    def program():
        step = pyro.sample("step", TOY(TOY.prompt("^"), max_tokens=1))
        ppl.call("look", broken, step.text)

    with pytest.raises(errors.ToolError, match=r"'look' of particle \d+: .*broken failed: KeyErr"):
        BestOfN(2).run(program)
    tool = Counter(lambda text: 1 / 0)

    def catching():
        text = TOY.prompt("^") + pyro.sample("step", TOY(TOY.prompt("^"), max_tokens=1))
        try:
            ppl.call("look", tool, text.text)
        except errors.ToolError as error:
            said = str(error).partition("failed: ")[2]
        pyro.factor("f", torch.tensor(0.0))
        pyro.sample("x", dist.Bernoulli(0.5))
        return said

    tree = ppl.Tree(catching, seed=0)
    node = tree.expand([tree.root])[0]
    tree.expand([node])
    assert {n.result for n in tree.expand([node], 3)} == {"ZeroDivisionError: division by zero"}
    assert len(tool.asked) == 1
    tree.close()


def test_async_calls_of_all_particles_run_together_while_models_go_on():
    together = asyncio.Barrier(40)  # it opens where 40 wait

    async def slow(text):
        await asyncio.wait_for(together.wait(), 300)
        await asyncio.sleep(0.05)
        return len(text)

    def program():
        text = TOY.prompt("^")
        for t in range(3):
            text = text + "a"
            ppl.call(f"wait_{t}", slow, text.text)
        return text.text

    posterior = BestOfN(40).run(program, seed=0)
    assert posterior.cost.tool_calls == 120
    assert posterior.cost.seconds > 0.1  # who waits pays
    other = BestOfN(3).begin(counting, letters, seed=4)
    both = run_all([BestOfN(40).begin(program, seed=0), other])
    assert [s.value for s in both[1].samples] == [
        s.value for s in BestOfN(3).run(counting, letters, seed=4).samples
    ]


def test_time_limits():
    over = threading.Event()

    def waits(seconds):
        over.wait(seconds)
        return seconds

    assert ppl.call("x", waits, 0.001, seconds=60) == 0.001
    with pytest.raises(errors.ToolError, match=r"waits failed: TimeoutError: not done after 0.05"):
        ppl.call("x", waits, 300, seconds=0.05)
    over.set()

    async def forever():
        await asyncio.sleep(300)

    def program():
        return ppl.call("wait", forever, seconds=0.05)

    started = time.perf_counter()
    with pytest.raises(errors.ToolError, match=r"'wait' of particle \d: .*not done after 0.05 s"):
        BestOfN(3).run(program)

    def patient():
        return ppl.call("wait", forever)

    found = BestOfN(3).run(patient, budget=ppl.Budget(seconds=0.2))
    assert found.stopped == "budget"
    assert time.perf_counter() - started < 60  # a fifth of one wait that is not ended

    async def raises_timeout():
        raise TimeoutError("theirs")

    with pytest.raises(errors.ToolError, match="TimeoutError: theirs"):
        ppl.call("x", raises_timeout, seconds=60)
    for seconds in (0, -1, math.nan, "2"):
        with pytest.raises((ValueError, TypeError), match="seconds"):
            ppl.call("x", waits, 1, seconds=seconds)


def test_a_cancelled_search_cancels_what_it_waits_for():
    begun, ended = threading.Event(), threading.Event()

    async def waits():
        begun.set()
        try:
            await asyncio.sleep(600)
        finally:
            ended.set()

    async def main():
        task = asyncio.create_task(BestOfN(2).arun(lambda: ppl.call("wait", waits)))
        assert await asyncio.to_thread(begun.wait, 300)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert ended.wait(300)


def test_what_ends_a_thread_or_a_task_ends_the_call_only():
    def leaves():
        raise SystemExit(3)

    async def gives_up():
        raise asyncio.CancelledError

    def has_no_more():
        return next(iter(()))

    for tool, seconds, told in (
        (leaves, 60, "SystemExit"),
        (gives_up, None, "CancelledError"),
        (has_no_more, None, "StopIteration"),
        (has_no_more, 60, "StopIteration"),  # and not that it was late
    ):
        with pytest.raises(errors.ToolError, match=told):
            ppl.call("x", tool, seconds=seconds)

    async def well():
        return 1

    assert ppl.call("x", well) == 1


def test_a_tool_may_draw_and_search_without_becoming_part_of_the_program():
    def tool():
        pyro.sample("inner", dist.Normal(0.0, 1.0))
        return str(BestOfN(2).run(counting, letters, seed=1).vote())

    def program():
        said = ppl.call("tool", tool)
        pyro.sample("x", dist.Bernoulli(0.5))
        return said

    posterior = BestOfN(2).run(program, seed=0)
    assert [r.name for r in posterior.samples[0].records] == ["tool", "x"]


def test_arguments_and_function_are_checked_on_replay():
    calls = [0]

    def program():
        calls[0] += 1
        ppl.call("look", letters, "a" * calls[0])
        pyro.factor("f", torch.tensor(0.0))
        pyro.sample("x", dist.Bernoulli(0.5))

    tree = ppl.Tree(program, seed=0)
    node = tree.expand([tree.root])[0]
    tree.expand([node])
    with pytest.raises(errors.NonDeterministicProgramError, match=r"'look'.*another distribution"):
        tree.expand([node])
    tree.close()


def test_forced_results_belong_to_their_arguments():
    call = Call(letters, ("ab",))
    mine = call.sample()
    assert isinstance(mine, Called)
    assert float(call.log_prob(mine)) == 0
    assert float(Call(letters, ("ba",)).log_prob(mine)) == -math.inf
    assert float(Call(len, ("ab",)).log_prob(mine)) == -math.inf
    tool = Counter(letters)
    exact = ppl.enumerate_program(counting, letters)
    reference = SMC(8).run(counting, tool, seed=0)
    assert reference.log_evidence is not None
    tree = ppl.Tree(counting, (tool,), seed=5)
    first = tree.expand([tree.root], 8)
    node = next(n for n in first if n.open)
    children = tree.expand([node], 3)
    before = len(tool.asked)
    forced = tree.force([node] * 3, children)
    assert len(tool.asked) == before
    assert [c.log_increment for c in forced] == pytest.approx([c.log_increment for c in children])
    other = next(n for n in first if n.open and n.text != node.text)
    assert all(c.dead for c in tree.force([other] * 3, children))
    tree.close()
    assert exact.log_evidence < 0


def test_results_set_from_outside():
    conditioned = pyro.condition(counting, {"found_0": {"a": 4}})
    assert float(ppl.enumerate_program(conditioned, letters, most=10_000).log_evidence) < -2
    tool = Counter(letters)
    done = ppl.do(counting, {f"found_{t}": {"a": 0} for t in range(3)})
    assert SMC(4).run(done, tool, seed=0).log_evidence == pytest.approx(0.0, abs=1e-6)
    assert not tool.asked


def test_searches_with_calls_are_saved_and_go_on(tmp_path):
    tool = letters
    search = SMC(6, 1.0).begin(counting, tool, seed=2)
    search.step()
    whole = SMC(6, 1.0).run(counting, tool, seed=2)
    posterior = search.posterior()
    posterior.save(tmp_path / "early.ppl")
    assert ppl.Posterior.load(tmp_path / "early.ppl").cost.tool_calls == 6
    assert [s.value for s in search.run().samples] == [s.value for s in whole.samples]
    found = MCTS(8).run(counting, tool, seed=0)
    assert found.best is not None


@pytest.mark.parametrize("ancestor_sampling", [False, True])
def test_kernels_that_keep_a_path_keep_the_law(ancestor_sampling):
    exact = ppl.enumerate_program(counting, letters).marginal()
    gibbs = ParticleGibbs(4, sweeps=300, ancestor_sampling=ancestor_sampling)
    found = gibbs.run(counting, letters, seed=0).marginal()
    for value, p in exact.items():
        assert found.get(value, 0.0) == pytest.approx(p, abs=0.07)
