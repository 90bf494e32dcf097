"""Peers against exact answers and against ppl: one fake model, one fake verifier, many seeds.

    python -m venv a && a/bin/pip install llamppl==0.2.3 genlm-backend==0.3.1
    python -m venv b && b/bin/pip install its_hub==1.2.0
    python -m venv c && c/bin/pip install "treequest[abmcts-m]==0.3.3"
    python -m venv d && d/bin/pip install genlm-control==0.4.1
    python -m venv e && e/bin/pip install git+https://github.com/IBM/prompt-declaration-language@92ba118
    python tests/benchmarks/against_peers.py --peers {a,b,c,d,e}/bin/python

The toy of tests/programs.py: 15 texts, exact evidence .46236. Each peer runs in its own environment
(peers.py, the released algorithm with a fake model); a peer that no environment has is left out.
docs/peers.md discusses what this prints.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from scipy.stats import chi2_contingency, mannwhitneyu, norm

import ppl
from ppl.searchers import ABMCTSA, SMC, ParticleFilter, ParticleGibbs, PowerSMC, SMCSteering
from ppl.searchers.search import Searcher
from ppl.searchers.trees.arms import Floats, draw_mixed

sys.path.append(str(Path(__file__).parents[1]))
from peers import GROUPS, PACKAGES, PROBABILITIES, first_two, more_a
from programs import TOY, VERIFIERS, toy, unjudged

SIDES: dict[str, Searcher] = {
    "SMC(4)": SMC(4, 0.5, "multinomial"),
    "SMC(4, 1.0)": SMC(4, 1.0),
    "SMCSteering(2, 4)": SMCSteering(2, 4),
    "SMCSteering(3, 2)": SMCSteering(3, 2),
    "SMCSteering(4, 3)": SMCSteering(4, 3),
    "SMCSteering(3, 2), c solved": SMCSteering(3, 2),
}


def ask(pythons: Sequence[str], peer: str, *options: str) -> dict[str, Any] | None:
    """What peers.py prints about a peer, from the first environment that has it."""
    package = PACKAGES.get(peer, peer)
    for python in pythons:
        look = f"import importlib.metadata as m; m.version({package!r})"
        if subprocess.run([python, "-c", look], check=False, capture_output=True).returncode == 0:
            command = [python, str(Path(__file__).with_name("peers.py")), peer, *options]
            done = subprocess.run(command, check=False, capture_output=True, text=True)
            if done.returncode == 0:
                found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
                return found
            print(f"{peer}: does not run in {python}: {done.stderr.strip().splitlines()[-1]}")
    print(f"{peer}: in none of the environments, left out\n")
    return None


def share(values: Iterable[Any]) -> str:
    """Mean of numbers or truths with its standard error."""
    array = np.array(list(values), dtype=float)
    return f"{array.mean():.4f} +- {array.std(ddof=1) / math.sqrt(len(array)):.4f}"


def same_law(ours: Sequence[Any], theirs: Sequence[Any]) -> tuple[float, float, float]:
    """Two samples of a discrete variable: total variation, what it would be on average if both came
    from one law, and the p-value of a chi-square test (rare values pooled)."""
    a, b = Counter(ours), Counter(theirs)
    table = np.array([[a[v], b[v]] for v in sorted({*a, *b})], dtype=float)
    rare = table.sum(1) < 10
    if rare.any():
        table = np.concatenate([table[~rare], table[rare].sum(0, keepdims=True)])
    table = table[table.sum(1) > 0]
    shares = table / table.sum(0)
    distance = float(np.abs(shares[:, 0] - shares[:, 1]).sum() / 2)
    pooled = table.sum(1) / table.sum()
    spread = np.sqrt(pooled * (1 - pooled) * (1 / table.sum(0)).sum())
    noise = float(norm.expect(abs) * spread.sum() / 2)
    p_value = 1.0 if len(table) == 1 else float(chi2_contingency(table, correction=False).pvalue)
    return distance, noise, p_value


# -- evidence ----------------------------------------------------------------------------------


def evidence(pythons: Sequence[str], runs: int) -> None:
    """llamppl's SMC and steering beside ours: mean of exp(log_evidence), exact value .46236."""
    theirs = ask(pythons, "llamppl", "--runs", str(runs))
    if theirs is None:
        return
    exact = math.exp(ppl.enumerate_program(toy).log_evidence)
    print(f"llamppl {theirs['version']}, evidence of the toy, exact {exact:.5f}, {runs} runs each")
    print(f"{'':<28}{'llamppl':>20}{'error/s.e.':>12}{'ppl':>20}{'error/s.e.':>12}")
    for name, searcher in SIDES.items():
        done = searcher.run_many(toy, [()] * runs, seed=range(runs))
        own = [math.exp(posterior.log_evidence) for posterior in done]
        line = f"{name:<28}"
        for values in (theirs["evidence"][name], own):
            error = (np.mean(values) - exact) / (np.std(values, ddof=1) / math.sqrt(runs))
            line += f"{share(values):>20}{error:>12.1f}"
        print(line)
    fixed = theirs["constant"]
    weights, keep = np.array(fixed["weights"]), fixed["keep"]
    print(
        f"keeping {keep} of the weights {weights.tolist()}: llamppl's c is {fixed['c']:.3f}, with"
    )
    print(
        f"sum min(1, c w) = {np.minimum(1, fixed['c'] * weights).sum():.3f}; it should be {keep}\n"
    )


def control(pythons: Sequence[str], runs: int) -> None:
    """genlm-control's SMC beside ours: a product with a critic, and the model to the power two."""
    theirs = ask(pythons, "control", "--runs", str(runs))
    if theirs is None:
        return
    exact = math.exp(ppl.enumerate_program(toy).log_evidence)
    square = ppl.enumerate_program(squared).log_evidence
    print(f"genlm-control {theirs['version']}, evidence, {runs} runs of 4 particles each")
    print(f"{'':<28}{'exact':>9}{'genlm-control':>20}{'error/s.e.':>12}{'ppl':>20}{'':>12}")
    for name, searcher, program, truth in (
        ("SMC(4)", SIDES["SMC(4)"], toy, exact),
        ("SMC(4, 1.0)", SIDES["SMC(4, 1.0)"], toy, exact),
        ("PowerSMC(4)", PowerSMC(4, 0.5, "multinomial"), unjudged, math.exp(square)),
    ):
        done = searcher.run_many(program, [()] * runs, seed=range(runs))
        own = [math.exp(posterior.log_evidence) for posterior in done]
        line = f"{name:<28}{truth:>9.5f}"
        for values in (theirs[name], own):
            error = (np.mean(values) - truth) / (np.std(values, ddof=1) / math.sqrt(runs))
            line += f"{share(values):>20}{error:>12.1f}"
        print(line)
    print()


def squared() -> None:
    """Its evidence is the sum of squared probabilities of the toy's texts."""
    text = TOY.prompt("^")
    for t in range(3):
        law = TOY(text, max_tokens=1)
        step = pyro.sample(f"step_{t}", law)
        pyro.factor(f"again_{t}", law.log_prob(step))
        text = text + step
        if step.finished:
            break


# -- engines of PPDL ----------------------------------------------------------------------------


def engines(pythons: Sequence[str], particles: int) -> None:
    """PPDL's engines beside the exact laws, and beside as many draws of the exact law."""
    theirs = ask(pythons, "ppdl", "--runs", str(particles))
    if theirs is None:
        return
    rng = np.random.default_rng(0)
    print(f"PPDL {theirs['version']}, {particles} particles: P(answer = 1), total variation of the")
    print("law of texts from the exact one, by chance for independent draws; ms a particle")
    posterior, prior = (ppl.enumerate_program(p).marginal() for p in (judged, unjudged))
    for engine, found in theirs["laws"].items():
        exact = prior if engine == "maj" else posterior
        far = sum(abs(found["law"].get(k, 0) - p) for k, p in exact.items()) / 2
        draws = rng.multinomial(particles, list(exact.values()), size=400) / particles
        chance = float(np.abs(draws - np.array(list(exact.values()))).sum(1).mean() / 2)
        print(
            f"  {engine:<12}{_one(found['law'], 1.0):>8.3f} (exact {_one(exact, 1.0):.3f})"
            f"{far:>8.3f}{chance:>8.3f}{1000 * found['seconds'] / particles:>8.0f}"
        )
    print()


def judged() -> str:
    """The toy with the product of its scores, and its text as the result."""
    text = TOY.prompt("^")
    for t in range(3):
        step = pyro.sample(f"step_{t}", TOY(text, max_tokens=1))
        text = text + step
        pyro.sample(f"ok_{t}", VERIFIERS["prod"](text), obs=True)
        if step.finished:
            break
    return text.text


# -- particle filter and particle Gibbs ---------------------------------------------------------


def limit(weight: str, again: bool) -> str:
    """A program whose exact posterior is the law of a particle filter with endless particles."""
    text = TOY.prompt("^")
    for t in range(3):
        step = pyro.sample(f"step_{t}", TOY(text, max_tokens=1))
        text = text + step
        score = more_a(text.text)
        log_weight = {"odds": math.log(score / (1 - score)), "exp": score, "r": math.log(score)}
        rounds = 3 - t if again and step.finished else 1
        pyro.factor(f"f_{t}", torch.tensor(rounds * log_weight[weight], dtype=torch.float64))
        if step.finished:
            break
    return text.text


def pairs() -> str:
    """Three symbols of two kinds; the odds of the first two scores are the likelihood."""
    text = ""
    for t in range(3):
        text += "ab"[int(pyro.sample(f"x_{t}", dist.Bernoulli(0.5)))]
        score = first_two(text)
        pyro.factor(f"f_{t}", torch.tensor(math.log(score / (1 - score)), dtype=torch.float64))
    return text


def letters() -> str:
    """The toy, with its text as the result."""
    text = TOY.prompt("^")
    for t in range(3):
        step = pyro.sample(f"step_{t}", TOY(text, max_tokens=1))
        text = text + step
        pyro.sample(f"ok_{t}", VERIFIERS["last"](text), obs=True)
        if step.finished:
            break
    return text.text


def filters(pythons: Sequence[str], runs: int) -> None:
    """its_hub's particle filter and particle Gibbs beside ours and beside exact laws."""
    theirs = ask(pythons, "its_hub", "--runs", str(runs))
    if theirs is None:
        return
    print(f"its_hub {theirs['version']}, particle filter, {runs} runs of 8 particles")
    searcher = ParticleFilter(8, "odds")
    done = searcher.run_many(letters, [()] * runs, seed=range(runs))
    # Ours come in the order of their ancestors: take each place equally often.
    own = [posterior.samples[i % 8].value for i, posterior in enumerate(done)]
    distance, noise, p = same_law(own, theirs["texts"])
    print(f"  {searcher!r} against its_hub, law of one particle of the final set:")
    print(f"  total variation {distance:.4f}, by chance {noise:.4f}; chi-square p = {p:.2f}")
    large = Counter(theirs["large"])
    total = large.total()
    print(f"  its_hub with {total} particles: P(answer = 1) = {_one(large, total):.4f};")
    print("  total variation from the limit for many particles of a filter that weighs by")
    for weight, again in [("r", False), ("odds", False), ("odds", True)]:
        exact = ppl.enumerate_program(limit, weight, again).marginal()
        far = sum(abs(large[k] / total - exact.get(k, 0)) for k in {*large, *exact}) / 2
        once = "again every round" if again else "once (the posterior)" if weight == "r" else "once"
        name = f"{weight}, finished texts {once}"
        print(f"    {name:<44}{far:.4f}   its P(answer = 1) {_one(exact, 1.0):.4f}")
    print("  the best particle was lost in the last resampling, share of the runs:")
    print(f"  {share(theirs['lost'])} on the toy, {share(theirs['lost, mild'])} with mild scores")
    print(f"  asked for systematic resampling: {theirs['resampling asked for systematic']}")
    print(f"  steps taken with max_steps=3: {theirs['steps with max_steps=3']}")

    print(f"its_hub {theirs['version']}, particle Gibbs")
    print("  shares of (free, reference) in the second sweep, where all have the same scores:")
    print("  " + ", ".join(f"({a:.3f}, {b:.3f})" for a, b in theirs["second sweep"]))
    exact_pairs = ppl.enumerate_program(pairs).marginal(lambda text: text[:2])
    ours = []
    for posterior in ParticleGibbs(4, 8).run_many(pairs, [()] * runs, seed=range(runs)):
        last = posterior.samples[-4:]
        weights = np.exp([s.log_weight for s in last])
        hits = [s.value[:2] == "aa" for s in last]
        ours.append(float(weights @ hits / weights.sum()))
    print(f"  P(text starts with aa) after 8 sweeps of 4, exact {exact_pairs['aa']:.4f}:")
    print(f"  its_hub {share(t[:2] == 'aa' for t in theirs['chain'])}, ppl {share(ours)}\n")


def _one(law: Any, total: float) -> float:
    return float(sum(v for k, v in law.items() if k.count("a") - k.count("b") == 1) / total)


# -- adaptive branching --------------------------------------------------------------------------


def endless(simulations: int) -> None:
    """The toy without `$`: a text may always go on."""
    text = ""
    for t in range(simulations + 1):
        text += "ab"[int(pyro.sample(f"x_{t}", dist.Categorical(torch.tensor(PROBABILITIES[:2]))))]
        before = 1.0 if t == 0 else more_a(text[:-1])
        pyro.factor(f"f_{t}", torch.tensor(math.log(more_a(text) / before), dtype=torch.float64))


def shapes(pythons: Sequence[str], trees: int, simulations: int) -> None:
    """treequest's AB-MCTS-A beside ours: shapes of trees on the same scores."""
    sizes = ["--runs", str(trees), "--simulations", str(simulations)]
    theirs = ask(pythons, "treequest", *sizes)
    if theirs is None:
        return
    print(f"treequest {theirs['version']}, AB-MCTS-A, {trees} trees of {simulations} nodes each")
    print(f"{'':<26}{'treequest':>19}{'ppl':>19}{'TV':>8}{'chance':>8}{'p':>6}")
    for prior in ("gaussian", "beta"):
        own = [_shape(ABMCTSA(simulations, prior), simulations, seed) for seed in range(trees)]
        for i, name in enumerate(("root children", "depth", "leaves")):
            a, b = ([shape[i] for shape in side] for side in (own, theirs["shapes"][prior]))
            distance, noise, _ = same_law(a, b)
            p = float(mannwhitneyu(a, b).pvalue)  # sees shifts that a table of rare values hides
            line = f"{prior + ', ' + name:<26}{share(b):>19}{share(a):>19}"
            print(f"{line}{distance:>8.3f}{noise:>8.3f}{p:>6.2f}")
    print()


def _shape(searcher: Searcher, simulations: int, seed: int) -> tuple[int, int, int]:
    search = searcher.begin(endless, simulations, seed=seed)
    search.run()
    nodes = search.tree.nodes
    parents = {id(node.parent) for node in nodes}
    wide = sum(node.parent is nodes[0] for node in nodes)
    return wide, max(node.depth for node in nodes), sum(id(n) not in parents for n in nodes)


def mixed(pythons: Sequence[str], fits: int) -> None:
    """treequest's AB-MCTS-M beside ours: predictions and decisions for the same scores."""
    theirs = ask(pythons, "mixed", "--runs", str(fits))
    if theirs is None:
        return
    rng = np.random.default_rng(0)
    draws = np.array(theirs["draws"])  # [J + 1, draws], the last a new group
    sums = np.array([[len(g), sum(g), sum(x * x for x in g)] for g in GROUPS]).T
    found = [draw_mixed(sums, rng) for _ in range(20_000)]
    drawn = np.array([[*own, new] for own, new in found]).T
    print(f"treequest {theirs['version']}, AB-MCTS-M, scores {GROUPS}, {fits} fits")
    names = [*(f"child {j}" for j in range(len(GROUPS))), "new"]
    print(f"{'':<34}" + "".join(f"{name:>10}" for name in names))
    rows = [
        ("predictive mean, treequest", draws.mean(1)),
        ("predictive mean, ppl", drawn.mean(1)),
        ("predictive deviation, treequest", draws.std(1)),
        ("predictive deviation, ppl", drawn.std(1)),
        ("chosen, treequest (each apart)", _chosen(_shuffled(draws, rng))),
        ("chosen, ppl if each apart", _chosen(_shuffled(drawn, rng))),
        ("chosen, ppl (one joint draw)", _chosen(drawn)),
    ]
    for name, values in rows:
        print(f"{name:<34}" + "".join(f"{value:>10.3f}" for value in values))


def _shuffled(draws: Floats, rng: np.random.Generator) -> Floats:
    """Each arm's draws in an order of their own: independent draws of the marginals."""
    return np.array([rng.permutation(row) for row in draws])


def _chosen(draws: Floats) -> Floats:
    """Share of the draws in which each arm is the largest."""
    return np.asarray(np.bincount(draws.argmax(0), minlength=len(draws)) / draws.shape[1])


def main() -> None:
    parser = argparse.ArgumentParser(description="peers against exact answers and against ppl")
    parser.add_argument("--peers", nargs="+", help="pythons of environments that hold the peers")
    parser.add_argument("--runs", type=int, default=3000, help="of the particle methods")
    parser.add_argument("--particles", type=int, default=600, help="of PPDL's engines")
    parser.add_argument("--trees", type=int, default=1500, help="per prior of AB-MCTS-A")
    parser.add_argument("--simulations", type=int, default=24, help="nodes of a tree")
    parser.add_argument("--fits", type=int, default=5, help="of AB-MCTS-M, seconds each")
    options = parser.parse_args()
    if not options.peers:
        parser.error(
            "say with --peers which pythons have llamppl, its_hub, treequest, ... (see above)"
        )
    evidence(options.peers, options.runs)
    control(options.peers, options.runs)
    engines(options.peers, options.particles)
    filters(options.peers, options.runs)
    shapes(options.peers, options.trees, options.simulations)
    mixed(options.peers, options.fits)


if __name__ == "__main__":
    main()
