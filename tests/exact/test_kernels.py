"""Kernels: the law of a composition, and slips that `check_kernel` notices."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import contents, toy

import ppl
from ppl.errors import SearchStateError, WeightError
from ppl.searchers import SMC, ResampleMove, Search, check_searcher, parse
from ppl.searchers.kernels import (
    PIMH,
    Composed,
    Kernel,
    Resample,
    TraceMH,
    check_kernel,
    extend,
    merge,
    pimh,
    repeat,
    resample,
    split,
    suffix_mh,
    trace_mh,
    twist,
    untwist,
    weigh,
)
from ppl.searchers.kernels.kernel import Keeps
from ppl.searchers.resampling import SCHEMES


def ragged() -> tuple[int, ...]:
    """Runs of one to three steps, each weighed; what is good now is likely good next."""
    states: list[int] = []
    for t in range(3):
        likely = 0.8 if states and states[-1] else 0.3
        states.append(int(pyro.sample(f"x_{t}", dist.Bernoulli(likely))))
        pyro.factor(f"f_{t}", torch.tensor(-0.3 if states[-1] else -1.2, dtype=torch.float64))
        if pyro.sample(f"stop_{t}", dist.Bernoulli(0.4)) == 1:
            states.append(-1)
            break
    return tuple(states)


def hopeful(node) -> float:
    return 0.8 * sum(float(c) for c in node.choices) - 0.2


STEP = extend >> weigh
SMC_KERNEL = repeat(STEP >> resample())


@pytest.mark.parametrize("scheme", [*SCHEMES, "chopthin"])
def test_smc_is_its_parts_bit_for_bit(scheme):
    composed = Composed(7, repeat(extend >> weigh >> resample(scheme, below=0.9)))
    for seed in range(3):
        a = composed.run(toy, "prod", seed=seed)
        b = SMC(7, 0.9, scheme).run(toy, "prod", seed=seed)
        assert contents(a) == contents(b)
        assert a.log_evidence == b.log_evidence
        assert a.cost.lm_tokens == b.cost.lm_tokens


def test_the_law_follows_from_the_parts():
    assert SMC_KERNEL.law.says == "proper"
    assert trace_mh().law.says == pimh(3).law.says == "invariant"
    assert (trace_mh() >> pimh(3)).law.says == "invariant"
    assert (SMC_KERNEL >> trace_mh()).law.says == "proper"
    assert repeat(trace_mh(), times=4).law.says == "invariant"
    assert extend.law.says == "neither, as it owes weigh"
    assert repeat(extend >> resample()).law.says == "neither, as it owes weigh"
    twisted = repeat(untwist >> STEP >> twist(hopeful) >> resample())
    assert twisted.law.says == "neither, as it owes untwist"
    assert (twisted >> untwist).law.says == "proper"
    # A move targets what the weights stand for without twists and debts.
    assert (extend >> suffix_mh() >> weigh).law.says == "neither"
    assert (repeat(STEP >> twist(hopeful) >> suffix_mh() >> untwist)).law.says == "neither"


def test_only_what_is_proper_has_an_evidence():
    owing = Composed(5, repeat(untwist >> STEP >> twist(hopeful)))
    assert owing.run(ragged, seed=0).log_evidence is None
    paid = Composed(5, repeat(untwist >> STEP >> twist(hopeful)) >> untwist)
    assert paid.run(ragged, seed=0).log_evidence is not None


@pytest.mark.parametrize(
    "kernel",
    [
        repeat(STEP),
        repeat(STEP >> resample("multinomial", below=1.0)),
        repeat(STEP >> resample("chopthin", below=1.0)),
        repeat(untwist >> STEP >> twist(hopeful) >> resample(below=1.0)) >> untwist,
        repeat(split(3) >> STEP >> merge >> resample("ssp", size=4)),
        repeat(STEP >> resample(below=1.0) >> suffix_mh(2) >> trace_mh()),
        repeat(STEP >> resample(below=1.0)) >> trace_mh() >> pimh(2),
    ],
    ids=range(7),
)
def test_proper_kernels_are_proper(kernel):
    assert check_kernel(kernel, ragged, runs=50) == "proper"


@pytest.mark.parametrize("kernel", [trace_mh(), pimh(2), repeat(pimh(1), times=2)], ids=repr)
def test_invariant_kernels_are_invariant(kernel):
    assert check_kernel(kernel, ragged, runs=120) == "invariant"


# -- near misses ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Unreset(Resample):
    """Resamples and keeps the old weights, too."""

    def __call__(self, tree, cloud):
        new = super().__call__(tree, cloud)
        if new is cloud:
            return cloud
        kept = [cloud.weights.log_weights[cloud.nodes.index(node)] for node in new.nodes]
        return replace(new, weights=new.weights.add(kept))


@dataclass(frozen=True)
class Unpaid(TraceMH):
    """Leaves out len(x) / len(y)."""

    def log_correction(self, old, new):
        return 0.0


@dataclass(frozen=True)
class Reestimating(PIMH):
    """Estimates the old evidence anew, whatever it came with."""

    def __call__(self, tree, cloud):
        seeds = range(1000 * cloud.round, 1000 * cloud.round + len(cloud.nodes))
        runs = SMC(self.num_particles, 1.0).run_many(ragged, [()] * len(seeds), seed=seeds)
        anew = tuple(run.log_evidence for run in runs)
        return super().__call__(tree, replace(cloud, log_evidences=anew))


@dataclass(frozen=True)
class Halved(Kernel):
    """Splits without sharing the weight."""

    keeps: ClassVar[Keeps] = "proper"

    def __call__(self, tree, cloud):
        new = split(2)(tree, cloud)
        return replace(new, weights=new.weights.add([math.log(2.0)] * len(new.nodes)))


@pytest.mark.parametrize(
    ("kernel", "claims", "runs"),
    [
        (repeat(STEP >> Unreset(below=1.0)), "proper", 100),
        (repeat(STEP >> twist(hopeful) >> resample(below=1.0)), "proper", 100),
        (repeat(Halved() >> STEP >> resample(size=4)), "proper", 60),
        (Unpaid(), "invariant", 1000),
        (Reestimating(1), "invariant", 200),
    ],
    ids=["weights not reset", "twist not removed", "weight not shared", "len / len'", "Z anew"],
)
def test_near_misses_are_noticed(kernel, claims, runs):
    with pytest.raises(SearchStateError, match=f"law '{claims}' does not hold"):
        check_kernel(kernel, ragged, claims=claims, runs=runs)


def test_what_keeps_nothing_is_said():
    with pytest.raises(SearchStateError, match="owes untwist: there is nothing to check"):
        check_kernel(repeat(STEP >> twist(hopeful)), ragged)
    with pytest.raises(SearchStateError, match="does not take particles to the program's end"):
        check_kernel(STEP, ragged)
    with pytest.raises(ValueError, match="let it return what tells its runs apart"):
        check_kernel(trace_mh(), partial(toy, "prod"))


# -- as searchers --------------------------------------------------------------------------------


def test_moves_after_resampling_are_those_of_resample_move():
    kernel = repeat(STEP >> resample(below=1.0) >> suffix_mh(1))
    exact = math.exp(ppl.enumerate_program(ragged).log_evidence)
    for searcher in (Composed(3, kernel), ResampleMove(3, 1.0)):
        runs = searcher.run_many(ragged, [()] * 60, seed=range(60))
        z = [math.exp(r.log_evidence) for r in runs]
        spread = torch.tensor(z).std().item() / math.sqrt(60)
        assert abs(sum(z) / 60 - exact) < 4 * spread


@pytest.mark.parametrize(
    "kernel",
    [SMC_KERNEL, repeat(split(2) >> STEP >> merge >> resample(size=3)) >> trace_mh()],
    ids=["SMC", "split and merge"],
)
def test_a_composed_searcher_obeys_the_laws(kernel):
    checked = check_searcher(Composed(3, kernel), [partial(toy, "prod"), ragged], runs=25)
    assert {"resumed", "evidence"} <= set(checked)


def test_it_is_spelled_and_saved(tmp_path):
    searcher = Composed(4, repeat(untwist >> STEP >> twist(hopeful) >> resample()) >> untwist)
    assert parse.parse(parse.spell(searcher)) == searcher
    whole = searcher.run(ragged, seed=1)
    search = searcher.begin(ragged, seed=1)
    search.step()
    search.save(tmp_path / "search")
    assert contents(Search.load(tmp_path / "search").run()) == contents(whole)


def test_only_kernels_are_put_together():
    with pytest.raises(TypeError):
        extend >> 3
    with pytest.raises(ppl.PPLError, match="kernel="):
        Composed(3, SMC(3))
    with pytest.raises(ValueError, match="m=0"):
        split(0)


def once() -> int:
    """A program of a single step: a repetition behind it does nothing at all."""
    x = int(pyro.sample("x", dist.Bernoulli(0.25)))
    pyro.factor("f", torch.tensor(math.log(0.9 if x else 0.1), dtype=torch.float64))
    return x


def test_what_may_not_happen_pays_no_debt():
    for kernel in (extend >> repeat(weigh), extend >> repeat(weigh, times=0)):
        assert not kernel.law.proper
        assert Composed(4, kernel).run(once, seed=0).log_evidence is None
        with pytest.raises(SearchStateError, match="does not hold"):
            check_kernel(kernel, once, claims="proper", runs=50)
    assert (extend >> repeat(weigh, times=1)).law.proper
    assert (repeat(STEP, times=1) >> trace_mh()).law.proper


def test_what_would_never_end_is_refused():
    for kernel in (repeat(weigh), extend >> repeat(repeat(weigh) >> extend)):
        with pytest.raises(SearchStateError, match="no particle any further"):
            Composed(2, kernel).run(ragged, seed=0)


def test_an_invariant_kernel_leaves_weights_alone():
    """The particles stay, and so does their law; but what weighs them is another target."""
    with pytest.raises(SearchStateError, match="changes weights"):
        check_kernel(twist(hopeful), ragged, claims="invariant", runs=50)


def test_a_twist_is_finite():
    with pytest.raises(WeightError, match="finite"):
        Composed(3, extend >> weigh >> twist(impossible) >> untwist).run(ragged, seed=0)


def impossible(node) -> float:
    return -math.inf
