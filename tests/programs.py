"""Programs on the enumerable toy of three symbols, shared by the tests.

The toy: p(a) = .5, p(b) = .3, p($) = .2, `$` ends the text, three symbols at most; the verifier
gives .9 with more a than b, .6 at a tie, .3 with fewer. Fifteen texts, known exact answers.
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch

import ppl
from ppl.runtime import verdict
from ppl.searchers import (
    ABMCTSA,
    ABMCTSM,
    DVTS,
    MCTS,
    RAIN,
    REBASE,
    SMC,
    VGB,
    AdaptiveSampling,
    AliveParticleFilter,
    AStar,
    BeamSearch,
    BestFirst,
    BestOfN,
    EntropicAnnealing,
    FirstFinish,
    FracturedSampling,
    Gated,
    GumbelMCTS,
    Hedged,
    IterativeAgentDecoding,
    LookaheadSearch,
    MomentumUncertainty,
    MultiPerspective,
    ParallelTempering,
    ParticleFilter,
    ParticleGibbs,
    PhiDecoding,
    PowerMH,
    PowerSMC,
    PowerTempering,
    RecursiveSelfAggregation,
    ResampleMove,
    RolloverBudgetForcing,
    Settled,
    SMCSteering,
    StochasticBeamSearch,
    TargetESS,
    TreeRefinement,
)
from ppl.verifiers import FunctionVerifier

# Every searcher, small: each obeys all laws of test_laws.py. Add a line, inherit the suite.
SEARCHERS = [
    BestOfN(6),
    BestOfN(12, stop=Settled("beta", 0.85)),
    SMC(6, 0.9),
    SMC(6, 1.0, "ssp", resampling_temperature=2.0, tempering=(0.5,)),
    SMC(6, 0.8, resampling_temperature=TargetESS(0.7)),
    ParticleFilter(6),
    ParticleFilter(6, "exp", EntropicAnnealing(6), "systematic"),
    SMCSteering(3, 2),
    SMCSteering(3, 3, merge_duplicates=True),
    AliveParticleFilter(4, max_proposals=100),
    ParticleGibbs(3, 3),
    ParticleGibbs(3, 2, ancestor_sampling=True),
    ParallelTempering(2, 3, inverse_temperatures=(1.0, 0.4)),
    ResampleMove(4, 1.0, last=2, moves=2),
    SMC(6, 0.9, "chopthin"),
    PowerSMC(6, 0.9),
    PowerSMC(5, 1.0, "chopthin", alpha=3.0, ramp=2),
    PowerMH(5, 3, chains=2),
    PowerTempering(5, 3, alphas=(1.0, 2.5)),
    BeamSearch(2, 3),
    BeamSearch(3, 2, likelihood=0.2),
    StochasticBeamSearch(2, 3, decay=0.5),
    StochasticBeamSearch(2, 3, decay=0.5, form="released"),
    LookaheadSearch(2, 3),
    DVTS(2, 3),
    REBASE(6),
    BestFirst(6, 2),
    AStar(12, 3),
    MultiPerspective(9, 2),
    RolloverBudgetForcing(12, 3, "parent"),
    FirstFinish(2),
    Gated(3, 3, MomentumUncertainty(gamma=0.7)),
    AdaptiveSampling(12, 0.75, prune_at=(1, 2)),
    FracturedSampling(3, 2, 2),
    TreeRefinement(9, threshold=0.95),
    TreeRefinement(12, threshold=0.95, order="dfs", select="sample"),
    MCTS(6),
    ABMCTSA(40),
    ABMCTSM(14),
    ABMCTSA(40, batch=4),
    MCTS(7, 3, leaves=3),
    MCTS(16, 2, selection="puct", evaluation="verifier", leaves=2),
    GumbelMCTS(8, 3, width=2),
    PhiDecoding(2, 3, 2),
    RAIN(6, 2, 3),
    VGB(30, 3),
    VGB(30, 4, law="model"),
    RecursiveSelfAggregation(4, 2),
    Hedged(4),
    IterativeAgentDecoding(3, 2),
]
# The smallest of each whose `best` is one plain sample of the program.
ONE_PARTICLE = [
    BestOfN(1),
    SMC(1),
    ParticleFilter(1),
    SMCSteering(1, 1),
    AliveParticleFilter(1),
    ParticleGibbs(1, 3),
    ResampleMove(1, 1.0),
    BeamSearch(1, 1),
    DVTS(1, 1),
    REBASE(1),
    BestFirst(3, 1),
    AStar(4, 1),
    MultiPerspective(3, 1),
    RolloverBudgetForcing(1, 1),
    FirstFinish(1),
    AdaptiveSampling(1),
    FracturedSampling(1, 1, 1),
    IterativeAgentDecoding(1),
    MCTS(1),
    GumbelMCTS(1),
    PhiDecoding(1, 1),
]

TOY = ppl.TableLM({"a": 0.5, "b": 0.3, "$": 0.2}, symbols="^ab$", end="$", name="toy")
# Proposes more a than the model and ends less often: a guide for TOY.
PROPOSER = ppl.TableLM({"a": 0.6, "b": 0.3, "$": 0.1}, symbols="^ab$", end="$", name="proposer")


def more_a(text: ppl.Text) -> float:
    a, b = text.text.count("a"), text.text.count("b")
    return 0.9 if a > b else 0.6 if a == b else 0.3


VERIFIERS = {
    aggregate: FunctionVerifier(more_a, name=f"more_a_{aggregate}", aggregate=aggregate)
    for aggregate in verdict.AGGREGATES
}


def difference(text: ppl.Text) -> int:
    return text.text.count("a") - text.text.count("b")


def toy(aggregate: str = "prod") -> int:
    """Ends early at `$`: particles finish at different steps."""
    text = TOY.prompt("^")
    for t in range(3):
        step = pyro.sample(f"step_{t}", TOY(text, max_tokens=1))
        text = text + step
        pyro.sample(f"ok_{t}", VERIFIERS[aggregate](text), obs=True)
        if step.finished:
            break
    return difference(text)


def unjudged() -> str:
    """The toy without its verifier: its text."""
    text = TOY.prompt("^")
    for t in range(3):
        step = pyro.sample(f"step_{t}", TOY(text, max_tokens=1))
        text = text + step
        ppl.twist(f"step_ends_{t}", 0.0)
        if step.finished:
            break
    return text.text


def toy_twisted(before: bool = True) -> int:
    """The same law as `toy()`, with arbitrary positive twists on the way."""
    text = TOY.prompt("^")
    for t in range(3):
        step = pyro.sample(f"step_{t}", TOY(text, max_tokens=1))
        text = text + step
        push = 1.3 * text.text.count("b") - 0.7 * t
        if before:
            ppl.twist(f"twist_{t}", push)
        pyro.sample(f"ok_{t}", VERIFIERS["prod"](text), obs=True)
        if not before:
            ppl.twist(f"twist_{t}", push)
        if step.finished:
            break
    return difference(text)


def toy_guide(*_: object) -> None:
    text = PROPOSER.prompt("^")
    for t in range(3):
        step = pyro.sample(f"step_{t}", PROPOSER(text, max_tokens=1))
        text = text + step
        if step.finished:
            break


def branching() -> tuple[str, int]:
    """Different sites in different branches, a hard condition, and words of the program's own."""
    kind = pyro.sample("kind", dist.Bernoulli(0.4))
    text = TOY.prompt("^")
    if kind == 1:
        text = text + pyro.sample("long", TOY(text, until="b", max_tokens=3))
        ppl.condition("a" in text.text)
    else:
        text = text + "a"
        for t in range(2):
            step = pyro.sample(f"short_{t}", TOY(text, max_tokens=1, temperature=2.0))
            text = text + step
            pyro.factor(f"taste_{t}", torch.tensor(0.5 * text.text.count("a") - 0.3))
            if step.finished:
                break
    pyro.sample("end", VERIFIERS["last"](text), obs=True)
    return text.text, int(kind)


def scored_once(aggregate: str = "prod") -> int:
    """The same joint law as `toy("prod")`, all factors paid at the end."""
    text = TOY.prompt("^")
    total = 0.0
    for t in range(3):
        step = pyro.sample(f"step_{t}", TOY(text, max_tokens=1))
        text = text + step
        total += float(torch.tensor(more_a(text)).log())
        if step.finished:
            break
    pyro.factor("all", torch.tensor(total, dtype=torch.float64))
    return difference(text)


def hmm(observations: tuple[int, ...]) -> int:
    """A discrete hidden Markov model of plain Pyro sites."""
    state = pyro.sample("x_0", dist.Categorical(HMM_INITIAL))
    for t, y in enumerate(observations):
        if t:
            state = pyro.sample(f"x_{t}", dist.Categorical(HMM_TRANSITION[state]))
        pyro.sample(f"y_{t}", dist.Categorical(HMM_EMISSION[state]), obs=torch.tensor(y))
    return int(state)


HMM_INITIAL = torch.tensor([0.6, 0.4], dtype=torch.float64)
HMM_TRANSITION = torch.tensor([[0.8, 0.2], [0.3, 0.7]], dtype=torch.float64)
HMM_EMISSION = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]], dtype=torch.float64)


def kalman(observations: tuple[float, ...]) -> float:
    """A linear-Gaussian state-space model: x' = .9 x + N(0, .5), y = 1.5 x + N(0, .8)."""
    x = pyro.sample("x_0", dist.Normal(torch.tensor(0.0), 1.0))
    for t, y in enumerate(observations):
        if t:
            x = pyro.sample(f"x_{t}", dist.Normal(0.9 * x, 0.5))
        pyro.sample(f"y_{t}", dist.Normal(1.5 * x, 0.8), obs=torch.tensor(y))
    return float(x)


def contents(posterior: ppl.Posterior) -> list[tuple[object, float, str]]:
    """What two equal posteriors have in common."""
    return [(s.value, s.log_weight, str(s.text)) for s in posterior.samples]
