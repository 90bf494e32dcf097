"""What a search leaves as it was, what is no program, and what verifiers mean inside one."""

from __future__ import annotations

import contextlib
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import TOY, VERIFIERS
from pyro import poutine
from pyro.poutine import runtime

import ppl
from ppl import errors
from ppl.runtime import keyed
from ppl.runtime.record import fingerprint
from ppl.searchers import SMC, BestOfN, SMCSteering
from ppl.verifiers import FunctionVerifier, Verifier, log_potential

# -- what a search leaves as it was ---------------------------------------------------------------


def drawing() -> float:
    x = pyro.sample("x", dist.Normal(torch.tensor(0.0), 1.0))
    pyro.factor("f", -x.abs())
    return float(x) + float(pyro.sample("y", dist.Exponential(1.0)))


def test_torchs_generator_and_pyros_stack_are_as_they_were():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    SMC(5, 1.0).run(drawing, seed=0)
    assert torch.equal(torch.get_rng_state(), before)
    assert runtime._PYRO_STACK == []
    with poutine.scale(scale=2.0) as outer:
        with pytest.raises(errors.ProgramError):
            SMC(5).run(lambda: (drawing(), 1 / 0))
        assert torch.equal(torch.get_rng_state(), before)
        assert runtime._PYRO_STACK[:] == [outer]


def test_draws_do_not_depend_on_torchs_generator():
    torch.manual_seed(1)
    first = SMC(5, 1.0).run(drawing, seed=0).best
    torch.manual_seed(2)
    assert SMC(5, 1.0).run(drawing, seed=0).best == first


def two_at_once() -> tuple[float, float]:
    """Two choices between which nothing is observed."""
    x, y = (float(pyro.sample(name, dist.Normal(0.0, 1.0))) for name in ("x", "y"))
    pyro.factor("f", torch.tensor(0.0))
    return x, y


def test_sites_of_one_segment_draw_each_for_itself():
    for x, y in (s.value for s in BestOfN(5).run(two_at_once, seed=0).samples):
        assert x != y


def plated() -> None:
    with pyro.plate("own", 2):
        pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.factor("f", torch.zeros(2))
    pyro.sample("y", dist.Bernoulli(0.5))


def test_plates_outside_of_a_search_keep_their_dimensions():
    with pyro.plate("outer", 3, dim=-1):
        before = list(runtime._DIM_ALLOCATOR._stack)
        tree = ppl.Tree(plated)
        tree.expand([tree.root], 2)
        assert list(runtime._DIM_ALLOCATOR._stack) == before
        tree.close()
    assert not any(runtime._DIM_ALLOCATOR._stack)


def test_a_search_inside_a_program_gives_the_generator_back():
    def outer():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        state = torch.get_rng_state()
        BestOfN(3).run(drawing, seed=1)
        assert torch.equal(torch.get_rng_state(), state)
        return float(x)

    assert BestOfN(2).run(outer).best is not None


def test_where_parameters_live_is_found_through_wrappers():
    """Draws are keyed on the device of the tensors; here a device without numbers stands for it."""
    there = torch.device("meta")
    base = dist.Normal(torch.zeros(2, device=there), torch.ones(2, device=there), False)
    assert keyed.devices(base) == {there}
    assert keyed.devices(base.to_event(1)) == {there}
    assert keyed.devices(dist.Normal(0.0, 1.0)) == set()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_draws_on_a_gpu_are_keyed_and_its_generator_is_as_it_was():
    def program():
        x = pyro.sample("x", dist.Normal(torch.zeros(3, device="cuda"), 1.0))
        pyro.factor("f", -x.sum())
        return tuple(x.tolist())

    torch.cuda.manual_seed(5)
    torch.rand(7, device="cuda")
    before = torch.cuda.get_rng_state()
    first = [s.value for s in SMC(4, 1.0).run(program, seed=0).samples]
    assert torch.equal(torch.cuda.get_rng_state(), before)
    torch.cuda.manual_seed(6)
    assert [s.value for s in SMC(4, 1.0).run(program, seed=0).samples] == first
    assert len(set(first)) > 1


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float16, torch.float64, torch.complex64, torch.int8]
)
def test_tensors_of_any_type_are_recognised(dtype):
    one, other = (dist.Delta(torch.tensor([1, x]).to(dtype)) for x in (2, 3))
    again = dist.Delta(torch.tensor([1, 2]).to(dtype))
    for law in (one, other, again):
        law.arg_constraints = {"v": None}
    assert fingerprint(one) == fingerprint(again) != fingerprint(other)


def test_programs_of_bfloat16_are_replayed():
    half = torch.tensor(0.5, dtype=torch.bfloat16)

    def program() -> float:
        x = pyro.sample("x", dist.Normal(half, half))
        pyro.factor("f", x.float())
        y = pyro.sample("y", dist.Normal(x, half))
        pyro.factor("g", y.float())
        return float(y)

    assert len(SMC(6, 1.0).run(program, seed=0).samples) == 6


@pytest.mark.parametrize("how", ["raises", "waits", "never ends"])
def test_a_clean_up_that_fails_is_told_and_leaves_the_stack(how):
    def program():
        with poutine.scale(scale=1.0):
            try:
                pyro.sample("x", dist.Bernoulli(0.5))
                ppl.condition(True)
                pyro.sample("y", dist.Bernoulli(0.5))
            finally:
                if how == "raises":
                    raise LookupError("lost")
                while how == "never ends":
                    with contextlib.suppress(BaseException):
                        pyro.sample(f"z{id(object())}", TOY(TOY.prompt("^"), max_tokens=1))
                pyro.sample("w", TOY(TOY.prompt("^"), max_tokens=1))

    tree = ppl.Tree(program, seed=0)
    tree.expand([tree.root])
    if how == "waits":
        tree.close()
    else:
        told = "lost" if how == "raises" else "does not end"
        with pytest.warns(RuntimeWarning, match=rf"particle 1 .*{told}"):
            tree.close()
    assert runtime._PYRO_STACK == []
    pyro.sample("plain", dist.Bernoulli(0.5))


# -- what is no program ---------------------------------------------------------------------------


def yielding():
    yield pyro.sample("x", dist.Bernoulli(0.5))


async def waiting():
    return pyro.sample("x", dist.Bernoulli(0.5))


async def both():
    yield 1


class Called:
    async def __call__(self):
        return 1


UNRUN = [yielding, waiting, both, Called(), poutine.scale(yielding, scale=2.0)]
UNRUN += [lambda f=f: f() for f in (yielding, waiting, both)]  # seen when it returns


@pytest.mark.parametrize("program", UNRUN)
def test_what_only_returns_something_to_be_run_is_refused(program):
    with pytest.raises(errors.ProgramError, match="plain functions"):
        BestOfN(2).run(program)
    with pytest.raises(errors.ProgramError, match="plain functions"):
        ppl.enumerate_program(program)
    with pytest.raises(errors.ProgramError, match=r"guide.*plain functions"):
        BestOfN(2).run(lambda: pyro.sample("x", dist.Bernoulli(0.5)), guide=program)


@pytest.mark.parametrize("call", [BestOfN(2).run, ppl.enumerate_program])
def test_what_is_no_function_is_no_program(call):
    with pytest.raises(errors.PPLError, match=r"program.*function"):
        call(3)


# -- verifiers ------------------------------------------------------------------------------------


def test_a_verifier_that_is_called_and_never_observed_is_told():
    silent = FunctionVerifier(lambda _: 0.5, name="silent")

    def program(use: str):
        text = TOY.prompt("^") + pyro.sample("s", TOY(TOY.prompt("^"), max_tokens=1))
        verdict = silent(text)
        if use == "observed" or (use == "sometimes" and text.text == "b"):
            pyro.sample("ok", verdict, obs=True)
        if use == "drawn":
            pyro.sample("ok", verdict)
        if use == "read":
            pyro.factor("f", torch.tensor(verdict.log_probability))
        return text.text

    with pytest.warns(UserWarning, match=r"verifier silent .*pyro\.sample\(.*obs=True") as caught:
        BestOfN(4).run(program, "never", seed=0)
    assert (caught[0].filename, caught[0].lineno) == (__file__, program.__code__.co_firstlineno)
    with pytest.warns(UserWarning, match=r"verifier silent was drawn.*write obs=True"):
        BestOfN(4).run(program, "drawn", seed=0)  # and nothing else
    for use in ("observed", "read", "sometimes"):
        BestOfN(8).run(program, use, seed=0)  # warnings are errors
    BestOfN(8).run(program, "never", seed=0, budget=ppl.Budget(calls=0))  # nothing finished


class Keyed(Verifier):
    """Notes the keys of what it is asked; its estimate is unbiased for one half."""

    name, meaning, aggregate, pseudo_marginal = "keyed", "step", "last", True

    def __init__(self) -> None:
        self.keys: list[int] = []

    def judge(self, requests):
        self.keys += [r.key for r in requests]
        return [[math.log(0.5 * (0.2 if r.key % 2 else 1.8))] for r in requests]


def keyed_steps(judge: Verifier) -> None:
    text = TOY.prompt("^")
    for t in range(2):
        text = text + pyro.sample(f"s{t}", TOY(text, max_tokens=1, allowed={1}))
        pyro.sample(f"ok{t}", judge(text), obs=True)


def test_every_particle_and_site_has_its_own_key():
    judge = Keyed()
    BestOfN(20).run(keyed_steps, judge, seed=0)
    first = list(judge.keys)
    assert len(set(first)) == 40
    BestOfN(20).run(keyed_steps, judge, seed=1)
    assert len(set(judge.keys)) == 80
    judge.keys.clear()
    BestOfN(20).run(keyed_steps, judge, seed=0)
    assert judge.keys == first


@pytest.mark.parametrize(
    "searcher", [SMCSteering(1, 2, merge_duplicates=True), SMCSteering(2, 3), SMC(2, 1.0)], ids=str
)
def test_evidence_under_an_estimated_verifier(searcher):
    """Merged siblings were told different numbers; .98 where the first stands for all."""
    judge = Keyed()
    runs = searcher.run_many(keyed_steps, [(judge,)] * 500, seed=range(500))
    estimates = torch.tensor([math.exp(r.log_evidence) for r in runs], dtype=torch.float64)
    error = float(estimates.mean()) - 0.5
    assert abs(error) < 4 * float(estimates.std()) / math.sqrt(500)


def test_a_scaled_verdict_is_a_power_of_its_potential():
    def program(scale: float) -> None:
        text = TOY.prompt("^") + "a"
        with poutine.scale(scale=scale):
            pyro.sample("ok", VERIFIERS["last"](text), obs=True)
            pyro.sample("no", VERIFIERS["prod"](text), obs=False)

    for scale in (1.0, 0.5, 3.0):
        expected = scale * math.log(0.9 * 0.1)
        assert BestOfN(1).run(program, scale).log_evidence == pytest.approx(expected)
        assert ppl.enumerate_program(program, scale).log_evidence == pytest.approx(expected)


@pytest.mark.parametrize("mask", [False, torch.tensor(False)], ids=["bool", "tensor"])
def test_masked_observations_of_probability_zero_are_factor_one(mask):
    never = FunctionVerifier(lambda _: 0.0, name="never")

    def program() -> str:
        text = TOY.prompt("^")
        text = text + pyro.sample("s", TOY(text, max_tokens=1))
        with poutine.mask(mask=mask):
            pyro.sample("ok", never(text), obs=True)
            impossible = TOY(TOY.prompt("^"), max_tokens=1, allowed={1})
            pyro.sample("said", impossible, obs=TOY.continuation("b"))
            pyro.factor("f", torch.tensor(-math.inf))
        return text.text

    posterior = BestOfN(4).run(program, seed=0)
    assert posterior.log_evidence == 0.0
    assert ppl.enumerate_program(program).log_evidence == pytest.approx(0.0)
    for s in posterior.samples:
        own = poutine.trace(poutine.condition(program, data={"s": s.records[0].value})).get_trace()
        assert s.log_joint == pytest.approx(float(own.log_prob_sum()))


def test_a_drawn_verdict_does_not_telescope():
    """Its own density is asked for in the middle of the search, and changes nothing."""
    judge = VERIFIERS["last"]

    def program(look: bool) -> bool:
        text = TOY.prompt("^") + "a"
        drawn = judge(text)
        ok = pyro.sample("ok", drawn)
        if look:
            float(drawn.log_prob(ok))
        pyro.sample("end", judge(text + "bb"), obs=True)
        return ok

    for look in (False, True):
        posterior = BestOfN(8).run(program, look, seed=1)
        assert math.exp(posterior.log_evidence) == pytest.approx(0.3)
        assert {s.value: s.log_joint for s in posterior.samples} == pytest.approx(
            {True: math.log(0.9 * 0.3), False: math.log(0.1 * 0.3)}
        )
    exact = ppl.enumerate_program(program, False)
    assert exact.marginal() == pytest.approx({True: 0.9, False: 0.1})
    assert math.exp(exact.log_evidence) == pytest.approx(0.3)


@pytest.mark.parametrize("aggregate", ["prod", "last", "mean"])
def test_what_was_observed_before_a_draw_still_telescopes(aggregate):
    judge = FunctionVerifier(lambda t: 1 / (1 + len(t.text)), name="by_length", aggregate=aggregate)

    def program() -> None:
        text = TOY.prompt("^") + "a"
        pyro.sample("first", judge(text), obs=True)
        text = text + "b"
        pyro.sample("drawn", judge(text))
        pyro.sample("last", judge(text + "a"), obs=True)

    observed = [math.log(1 / 2), math.log(1 / 4)]
    for sample in BestOfN(4).run(program, seed=0).samples:
        assert sample.log_likelihood == pytest.approx(log_potential(observed, aggregate))


def test_the_last_word_about_a_text_is_what_telescopes():
    judge = VERIFIERS["last"]  # .9 for a, .3 for abb

    def program() -> None:
        text = TOY.prompt("^") + "a"
        pyro.sample("yes", judge(text), obs=True)
        pyro.sample("no", judge(text), obs=False)
        pyro.sample("end", judge(text + "bb"), obs=True)

    (sample,) = BestOfN(1).run(program).samples
    said = [r.log_likelihood for r in sample.records]
    exact = [math.log(0.9), math.log(0.1 / 0.9), math.log(0.3 / 0.1)]
    assert said == pytest.approx(exact)


def test_a_verdict_that_was_drawn_does_not_telescope_in_forks():
    judge = VERIFIERS["last"]

    def program() -> None:
        text = TOY.prompt("^") + "a"
        pyro.sample("drawn", judge(text))
        ppl.condition(True)
        pyro.sample("x", dist.Bernoulli(0.5))
        pyro.sample("end", judge(text + "bb"), obs=True)

    tree = ppl.Tree(program)
    (node,) = tree.expand([tree.root])
    for child in tree.expand([node], 3):
        assert child.log_increment == pytest.approx(math.log(0.3))


def test_forks_know_what_a_drawn_verdict_said():
    count = [0]

    def judge(text: ppl.Text) -> float:
        count[0] += 1
        return 0.5

    counting = FunctionVerifier(judge, name="counting")

    def program() -> float:
        drawn = counting(TOY.prompt("^"))
        pyro.sample("ok", drawn)
        ppl.condition(True)
        pyro.sample("x", dist.Bernoulli(0.5))
        return drawn.log_probability

    tree = ppl.Tree(program, seed=0)
    node = tree.expand([tree.root])[0]
    assert {n.result for n in tree.expand([node], 4)} == {math.log(0.5)}
    assert count == [1]
