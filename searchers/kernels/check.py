"""The laws of kernels, to be run on one's own: `check_kernel(kernel, program)`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from scipy import stats

from ppl.errors import AllParticlesDeadError, SearchStateError
from ppl.language import checks
from ppl.language.arguments import checked
from ppl.language.randomness import generator
from ppl.runtime.enumeration import ExactResult, enumerate_program
from ppl.runtime.node import Node
from ppl.runtime.tree import Tree
from ppl.searchers.kernels.composed import Composed
from ppl.searchers.kernels.kernel import Cloud, Kernel
from ppl.searchers.resampling import systematic

_MOST = 20_000


@checked
def check_kernel(
    kernel: Kernel,
    program: Callable[[], Any],
    *,
    claims: Literal["proper", "invariant"] | None = None,
    num_particles: int = 4,
    runs: int = 500,
    seed: int = 0,
) -> str:
    """Runs the test of what a kernel says it keeps; the first failure raises.

    `proper`: the kernel takes particles from the program's beginning to its end; for every result
    the mean over runs of its share of weight, times the evidence, is the result's exact mass.
    `invariant`: particles start from exact draws of whole runs and are moved once; their results
    still follow the posterior, and their weights are what they were.

    Args:
        kernel: such as `repeat(extend >> weigh >> resample())`, or `TraceMH()`.
        program: small enough to be enumerated; what it returns tells its runs apart.
        claims: what to test in the place of what the kernel's law says.
        num_particles: for `proper`.
        runs: seeds that masses are averaged over; three times as many particles are moved.
        seed: of the draws.

    Returns:
        What was tested: `"proper"` or `"invariant"`.

    Raises:
        SearchStateError: it does not hold, or the kernel says that it keeps neither.
        ValueError: the program has equal results of different runs.
    """
    checks.count(num_particles=num_particles, runs=runs)
    law = kernel.law
    said = claims or ("invariant" if law.invariant else "proper" if law.proper else None)
    if said is None:
        raise SearchStateError(f"{kernel!r} keeps {law.says}: there is nothing to check")
    exact = enumerate_program(program)
    if said == "proper":
        _proper(kernel, program, exact, num_particles, runs, seed)
    else:
        _invariant(kernel, program, exact, 3 * runs, seed)
    return said


def _proper(
    kernel: Kernel, program: Callable[[], Any], exact: ExactResult, n: int, runs: int, seed: int
) -> None:
    masses = {v: p * math.exp(exact.log_evidence) for v, p in exact.marginal().items()}
    searcher = Composed(n, kernel)
    found = np.zeros((runs, len(masses)))
    place = {value: i for i, value in enumerate(masses)}
    for run in range(runs):
        search = searcher.begin(program, seed=seed + run)
        try:
            search.run()
        except AllParticlesDeadError:
            continue
        state = search.state
        shares = state.weights.probabilities * math.exp(state.weights.log_evidence)
        for node, share in zip(state.nodes, shares, strict=True):
            if share > 0 and not node.finished:
                raise SearchStateError(
                    f"{kernel!r} does not take particles to the program's end, so that nothing can "
                    "be said of its weights: repeat it"
                )
            if share > 0:
                found[run, place[node.result]] += share
    found = np.column_stack([found, found.sum(1)])
    expected = np.array([*masses.values(), sum(masses.values())])
    # A value that few runs find has a spread that cannot be told from them: that of independent
    # particles of equal weight is the least that is assumed.
    least = np.sqrt(expected * expected[-1] / n)
    error = np.maximum(found.std(0, ddof=1), least) / math.sqrt(runs)
    off = np.abs(found.mean(0) - expected) / error
    if off.max() > 4.5:
        i = int(off.argmax())
        what = [*map(repr, masses), "the evidence"][i]
        raise SearchStateError(
            f"law 'proper' does not hold for {kernel!r}: {what} has the mass "
            f"{found.mean(0)[i]:.5g} +- {error[i]:.2g} over {runs} runs, where {expected[i]:.5g} "
            "is exact"
        )


def _invariant(
    kernel: Kernel, program: Callable[[], Any], exact: ExactResult, count: int, seed: int
) -> None:
    law = exact.marginal()
    if len(law) < len(exact.values):
        raise ValueError(
            f"program: {len(exact.values)} runs have {len(law)} results; let it return what tells "
            "its runs apart, such as its text"
        )
    tree = Tree(program, seed=seed)
    cloud = kernel(tree, Cloud.of(_exact_draws(tree, law, count), None))
    seen = Counter(node.result for node in cloud.nodes)
    expected = np.array([count * p for p in law.values()])
    observed = np.array([seen[value] for value in law])
    rare = expected < 5
    if rare.any():
        expected = np.append(expected[~rare], expected[rare].sum())
        observed = np.append(observed[~rare], observed[rare].sum())
    weights = cloud.weights
    if not np.allclose(weights.log_weights + weights.log_carried, 0.0, rtol=0.0, atol=1e-9):
        raise SearchStateError(
            f"law 'invariant' does not hold for {kernel!r}: it changes weights, and so the evidence"
        )
    statistic = float(((observed - expected) ** 2 / expected).sum())
    freedom = max(len(expected) - 1, 1)
    tree.close()
    if stats.chi2.sf(statistic, freedom) < 1e-5:
        raise SearchStateError(
            f"law 'invariant' does not hold for {kernel!r}: {count} exact draws of the posterior, "
            f"moved once, no longer follow it (chi-square {statistic / freedom:.3g} per degree of "
            "freedom)"
        )


def _exact_draws(tree: Tree, law: dict[Any, float], count: int) -> list[Node]:
    """Whole runs, each result as often as it should be up to rounding."""
    leaves: dict[Any, Node] = {}
    drawn = 0
    # What not one of the draws would be, on average, is not waited for.
    while missing := [v for v, p in law.items() if p * count >= 1 and v not in leaves]:
        if drawn >= _MOST:
            raise ValueError(
                f"program: {drawn} runs did not give {missing[0]!r}, which is possible"
            )
        for leaf in tree.rollout(tree.expand([tree.root], 200)):
            if not leaf.dead:
                leaves.setdefault(leaf.result, leaf)
        drawn += 200
    values = [value for value in law if value in leaves]
    shares = np.array([law[value] for value in values])
    shares /= shares.sum()
    return [leaves[values[i]] for i in systematic(shares, count, generator(tree.seed, "start"))]
