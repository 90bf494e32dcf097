"""What knowing when to stop saves: accuracy against tokens of rules that spend less where it shows.

64 samples of every held-out problem of the three line tasks, drawn once with the embedded pair
`tiny-lines` and kept, are replayed under every rule: a rule looks at answers in the order in which
they come, and independent samples may come in any, so a replay in many orders is exact and cheap.
First finish is replayed as well, the shortest of n; momentum gating, adaptive sampling and cut
thoughts are run. Prints for every rule
its accuracy, its tokens, and what it saves against a fixed number of samples of equal accuracy,
with 95% intervals over problems.

    python examples/stopping.py --problems 40 --records stopping.jsonl
    python examples/stopping.py --records stopping.jsonl --show
    python examples/stopping.py --stories examples/records/word-problems.jsonl.gz

The last replays the rules on what SmolLM2 said to problems in words (examples/word_problems.py).
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import confidence
import numpy as np
import pyro
import pyro.distributions as dist
import search_gain
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from stopping_pools import MOST, Pool, read, shared, stories

import ppl
from ppl import decide
from ppl.decide.seen import classes_of
from ppl.language.randomness import generator
from ppl.searchers import (
    AdaptiveSampling,
    BestOfN,
    FracturedSampling,
    Gated,
    MomentumUncertainty,
    Searcher,
)
from ppl.tasks.lines import LINE_TASKS, LineProblem, held_out_problems
from ppl.verifiers import PRM, Calibrated, Verifier

ORDERS = 10  # in which the samples of a problem are replayed
LINES = {"gated": 8, "every step": 4}
# Searches that are kept as a whole: cut thoughts by traces, depths, answers; adaptive sampling by
# the q at which it is content.
FRACTURED = {"fractured 4x4x2": (4, 4, 2)}
ADAPTIVE = {"adaptive .50": 0.5, "adaptive .80": 0.8}
FITTED = 16  # problems a task, others than those reported on, from which q is calibrated
Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Point:
    """One rule on all problems.

    Attributes:
        rule: its name.
        family: how it decides, which is also what fixed numbers it is held against.
        right: `[P]` chance to be right.
        tokens: `[P]` that the language model wrote, and the reward model read if it is asked: all
            that is written, once (what samples begin with alike is read once in fact).
        samples: `[P]`.
    """

    rule: str
    family: str
    right: Floats
    tokens: Floats
    samples: Floats


# -- drawing ---------------------------------------------------------------------------------------


def draw(count: int, seed: int = 0, methods: Sequence[str] = ()) -> Iterator[Pool]:
    """All pools, task by task; or those of some methods."""
    lm, prm = search_gain.load()
    sure = calibrated(count, seed, lm, prm) if not methods or {*methods} & {*ADAPTIVE} else None
    for task in LINE_TASKS:
        chosen = held_out_problems(task, count, seed)
        arguments = [(problem, lm, prm) for problem in chosen]
        for method, (searcher, width) in searchers(sure).items():
            if methods and method not in methods:
                continue
            for engine in (lm.engine, prm.engine):
                engine.pool.clear()
            program = may_be_cut if method in FRACTURED else search_gain.solve
            found = search_gain.in_parts(searcher, width, arguments, program)
            for problem, posterior in zip(chosen, found, strict=True):
                assert isinstance(posterior, ppl.Posterior)
                yield pool(task, method, problem, posterior)


def searchers(sure: Verifier | None) -> dict[str, tuple[Searcher, int]]:
    """What is run, with how many completions at a time it takes at most."""
    gated, every = LINES["gated"], LINES["every step"]
    found: dict[str, tuple[Searcher, int]] = {
        "samples": (BestOfN(MOST), MOST),
        "gated": (Gated(gated, 4, MomentumUncertainty()), 4 * gated),
        "every step": (Gated(every, 4, None), 4 * every),
    }
    for name, (n, depths, answers) in FRACTURED.items():
        found[name] = (FracturedSampling(n, depths, answers), n * depths * answers)
    for name, accept in ADAPTIVE.items():
        batches = (1, 1, 2, 4, 8, 16)
        rule = AdaptiveSampling(32, accept, sure, batches=batches, prune_at=(6, 12))
        found[name] = (rule, 16)
    return found


def calibrated(count: int, seed: int, lm: ppl.HFModel, prm: PRM) -> Verifier:
    """q: how likely a text is right, by the reward model and Platt's map, which is fitted on
    samples of problems that nothing is reported on."""
    others = [
        problem
        for task in LINE_TASKS
        for problem in held_out_problems(task, count + FITTED, seed)[count:]
    ]
    drawn = confidence.draw(others, 8, lm, prm)
    platt = confidence.platt_for(drawn.score, drawn.right)
    return Calibrated(confidence.WholeText(prm), platt)


def may_be_cut(problem: LineProblem, lm: ppl.LanguageModel, prm: Verifier) -> str | None:
    """`solve` that may be told, before a line, to answer from here: its lines are its thought, and
    what follows a cut is drawn afresh."""
    text, answering = lm.chat(problem.question), False
    for t in range(16):
        if t and not answering:
            answering = bool(pyro.sample(f"answer_{t}", dist.Bernoulli(1e-6)) == 1)
        step = pyro.sample(f"step_{t}", lm(text, until="\n", max_tokens=8))
        text = text + step
        pyro.sample(f"ok_{t}", prm(text), obs=True)
        if step.finished:
            return problem.answer(text.text)
    return None


def pool(task: str, method: str, problem: LineProblem, posterior: ppl.Posterior) -> Pool:
    """What is kept of one search."""
    answers = [s.value if s.finished else None for s in posterior.samples]
    (classes,) = classes_of([answers])
    spellings = {c: a for c, a in zip(classes, answers, strict=True) if c >= 0}
    scores = [s.score for s in posterior.samples]
    if method in FRACTURED or method in ADAPTIVE:
        tokens, again = shared(posterior.cost.lm_tokens, len(answers)), ()
        if method in ADAPTIVE:
            scores = [math.exp(s.log_weight) for s in posterior.samples]
    else:
        tokens, again = zip(*(drawn(posterior, s.node) for s in posterior.samples), strict=True)
    return Pool(
        task,
        problem.key,
        method,
        classes,
        tuple(problem.check(spellings[c]) for c in sorted(spellings)),
        tokens,
        tuple(round(score, 4) for score in scores),
        again if method != "samples" else (),
    )


def drawn(posterior: ppl.Posterior, node: int) -> tuple[int, int]:
    """Tokens written for a sample, candidates for its steps among them, and steps drawn again.

    Samples share the root alone: there, what was drawn is divided among them.
    """
    graph = posterior.genealogy
    tokens, again = 0.0, 0
    at = node
    while True:
        parents = list(graph.predecessors(at))
        if not parents:
            return round(tokens), again
        at = parents[0]
        children = [graph.nodes[child]["tokens"] for child in graph.successors(at)]
        share = 1 if graph.in_degree(at) else len(posterior.samples)
        tokens += sum(children) / share
        again += len(children) > share


# -- replaying -------------------------------------------------------------------------------------


def replayed(
    pools: Sequence[Pool],
    rule: str,
    family: str,
    spend: Callable[[Pool, NDArray[np.int64]], int],
) -> Point:
    """A rule on all pools: `spend(pool, order)` says how many of the samples are paid for."""
    rows = []
    for number, one in enumerate(pools):
        orders = generator(number, "orders").permuted(
            np.tile(np.arange(len(one.classes)), (ORDERS, 1)), axis=1
        )
        each = []
        for order in orders:
            paid = order[: spend(one, order)]
            tokens = float(np.array(one.tokens)[paid].sum())
            if family != "vote":
                tokens *= 1 + one.read
            each.append((chosen(one, paid, family), tokens, len(paid)))
        rows.append(np.mean(each, axis=0))
    return Point(rule, family, *np.array(rows).T)


def chosen(one: Pool, paid: NDArray[np.int64], family: str) -> float:
    """The chance that the choice among some samples is right; ties count by their share."""
    classes, scores = np.array(one.classes)[paid], np.array(one.scores)[paid]
    known = classes >= 0
    if not known.any():
        return 0.0
    right = np.array(one.right)
    if family == "best":
        top = scores[known] == scores[known].max()
        return float(right[classes[known][top]].mean())
    present = np.unique(classes[known])
    amounts = np.bincount(classes[known], scores[known] if family == "weighted" else None)[present]
    return float(right[present[amounts == amounts.max()]].mean())


def until(rule: decide.StoppingRule) -> Callable[[Pool, NDArray[np.int64]], int]:
    """How many samples `BestOfN(64, stop=rule)` pays for: batches of 1, 1, 2, 4, ..."""

    def spend(one: Pool, order: NDArray[np.int64]) -> int:
        classes = tuple(one.classes[i] for i in order)
        scores = tuple(one.scores[i] for i in order)
        paid = 1
        while paid < len(order):
            seen = decide.Seen(classes[:paid], scores[:paid], scores[:paid], len(order) - paid)
            if rule.stops(seen):
                break
            paid = min(paid + rule.batch(seen), len(order))
        return paid

    return spend


def first_finish(pools: Sequence[Pool], n: int) -> Point:
    """The shortest of n with an answer; all run as long as it does."""
    rows = []
    for number, one in enumerate(pools):
        rng, tokens, classes = generator(number, n, "race"), one.tokens, one.classes
        each = []
        for _ in range(ORDERS * MOST // n):
            racers = rng.choice(len(classes), n, replace=False).tolist()
            known = [i for i in racers if classes[i] >= 0] or racers
            length = min(tokens[i] for i in known)
            first = [i for i in known if tokens[i] == length]
            right = np.mean([classes[i] >= 0 and one.right[classes[i]] for i in first])
            each.append((right, sum(min(tokens[i], length) for i in racers), n))
        rows.append(np.mean(each, axis=0))
    return Point(f"first of {n}", "vote", *np.array(rows).T)


FIXED = (1, 2, 4, 8, 16, 32, 64)
RULES: dict[str, tuple[str, decide.StoppingRule]] = {
    "beta .80": ("vote", decide.Settled("beta", 0.80)),
    "beta .95": ("vote", decide.Settled("beta", 0.95)),
    "beta .99": ("vote", decide.Settled("beta", 0.99)),
    "dirichlet .95": ("vote", decide.Settled("dirichlet", 0.95)),
    "exact": ("vote", decide.Settled("exact")),
    "sequential test": ("vote", decide.SequentialTest()),
    "settled .80": ("weighted", decide.Settled("beta", 0.80, weights="posterior")),
    "settled .95": ("weighted", decide.Settled("beta", 0.95, weights="posterior")),
    "confidence .60": ("weighted", decide.Settled("confidence", 0.60)),
    "confidence .80": ("weighted", decide.Settled("confidence", 0.80)),
    "early stop .50": ("best", decide.EarlyStop(tau=0.50)),
    "early stop .80": ("best", decide.EarlyStop(tau=0.80)),
    "early stop .95": ("best", decide.EarlyStop(tau=0.95)),
}


def measured(pools: Sequence[Pool]) -> list[Point]:
    """Every rule, after the fixed numbers of its family."""
    samples = [one for one in pools if one.method == "samples"]

    def fixed(n: int) -> Callable[[Pool, NDArray[np.int64]], int]:
        return lambda one, order: n

    points = []
    for family in ("vote", "weighted", "best"):
        points += [replayed(samples, f"{n}", family, fixed(n)) for n in FIXED if n <= size(samples)]
        for name, (its, rule) in RULES.items():
            if its == family:
                points.append(replayed(samples, name, family, until(rule)))
        if family == "vote":
            points += [first_finish(samples, n) for n in (2, 4, 16) if n <= size(samples)]
        wholes = {"vote": FRACTURED, "weighted": FRACTURED, "best": ADAPTIVE}[family]
        for method in wholes:
            own = [one for one in pools if one.method == method]
            if own:
                points.append(replayed(own, method, family, lambda one, order: len(order)))
        if family == "weighted":
            for method, most in LINES.items():
                lines = [one for one in pools if one.method == method]
                for n in (1, 2, 4, 8):
                    if lines and n <= most:
                        points.append(replayed(lines, f"{method}, {n}", family, fixed(n)))
    return points


def size(pools: Sequence[Pool]) -> int:
    """Samples of a problem."""
    return len(pools[0].classes)


# -- what is saved ---------------------------------------------------------------------------------


def saving(accuracy: float, tokens: float, fixed: Sequence[tuple[float, float]]) -> float:
    """The share of tokens that a rule saves against a fixed number of samples of equal accuracy.

    Fixed numbers are read off between those that were measured, linearly in accuracy and in the
    logarithm of tokens. A rule that is better than all of them is held against the best; NaN for
    one that is worse than all.

    Args:
        accuracy, tokens: of the rule.
        fixed: accuracy and tokens of each fixed number, the smallest first.
    """
    for (low, few), (high, many) in itertools.pairwise(fixed):
        if low <= accuracy <= high:
            share = 0.0 if high == low else (accuracy - low) / (high - low)
            return 1.0 - tokens / math.exp((1 - share) * math.log(few) + share * math.log(many))
    best, price = max(fixed, key=lambda one: (one[0], -one[1]))
    return 1.0 - tokens / price if accuracy > best else math.nan


def means(point: Point, picks: NDArray[np.int64]) -> list[tuple[float, float]]:
    """Accuracy and tokens on resampled problems, `[R, P]`."""
    accuracy, tokens = point.right[picks].mean(axis=1), point.tokens[picks].mean(axis=1)
    return list(zip(accuracy.tolist(), tokens.tolist(), strict=True))


def interval(values: Sequence[float]) -> tuple[float, float]:
    """95% of what there is; NaN where a tenth is missing."""
    there = [v for v in values if not math.isnan(v)]
    if len(there) < 0.9 * len(values):
        return math.nan, math.nan
    low, high = np.quantile(there, [0.025, 0.975])
    return float(low), float(high)


def show(points: Sequence[Point], console: Console, model: str = "tiny-lines") -> None:
    """Prints the table."""
    problems = len(points[0].right)
    table = Table(
        title=f"{problems} held-out problems, at most {MOST} samples each; {model}",
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    table.add_column("rule", no_wrap=True)
    for heading in ("samples", "tokens", "right", "95% int.", "saved", "95% int."):
        table.add_column(heading, justify="right", no_wrap=True)
    rng = generator(0, "problems")
    picks = np.vstack([np.arange(problems), rng.integers(problems, size=(1000, problems))])
    titles = {
        "vote": "the vote, fixed numbers of samples:",
        "weighted": "the vote weighted by the reward model:",
        "best": "the best by the reward model:",
    }
    for family, title in titles.items():
        mine = [p for p in points if p.family == family]
        fixed = [p for p in mine if p.rule.isdigit()]
        table.add_row(title)
        # The first row is the problems as they are.
        curves = list(zip(*(means(point, picks) for point in fixed), strict=True))
        for point in mine:
            found = means(point, picks)
            low, high = np.quantile([accuracy for accuracy, _ in found], [0.025, 0.975])
            cells = ["", ""]
            if point not in fixed:
                saved = [saving(*one, curve) for one, curve in zip(found, curves, strict=True)]
                cells = [percent(saved[0]), span(*interval(saved[1:]))]
            table.add_row(
                f"  {point.rule}",
                f"{point.samples.mean():.1f}",
                f"{point.tokens.mean():.0f}",
                percent(float(point.right.mean())),
                span(float(low), float(high)),
                *cells,
            )
        table.add_section()
    console.print(table)


def percent(share: float) -> str:
    """A share, `-` for none."""
    return "-" if math.isnan(share) else f"{100 * share:.0f}%"


def span(low: float, high: float) -> str:
    """Two shares."""
    return "-" if math.isnan(low) else f"{100 * low:.0f} to {100 * high:.0f}"


def main(argv: Sequence[str] | None = None) -> list[Point]:
    """Draws, or reads what was drawn, and replays."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", type=int, default=40, help="held-out problems a task")
    parser.add_argument("--records", type=Path, default=Path("stopping.jsonl"), help="of samples")
    parser.add_argument("--methods", nargs="*", default=(), help="draw these alone, and add them")
    parser.add_argument("--show", action="store_true", help="replay what the records hold")
    parser.add_argument("--stories", type=Path, help="replay these samples of SmolLM2's instead")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    if args.stories:
        points = measured(stories(args.stories))
        show(points, Console(width=100), "SmolLM2-135M, stories")
        return points
    if not args.show:
        with args.records.open("a" if args.methods else "w", encoding="utf-8") as file:
            for one in draw(args.problems, args.seed, args.methods):
                print(json.dumps(asdict(one), separators=(",", ":")), file=file, flush=True)
    points = measured(read(args.records))
    show(points, Console(width=100))
    return points


if __name__ == "__main__":
    main()
