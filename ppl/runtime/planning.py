"""Which inference is planning? What deciding is worth, exactly, for programs that can be enumerated
(Lazaro-Gredilla, Ku, Murphy, George 2024, "What type of inference is planning?", 2406.17863).

    arm = pyro.sample("arm", dist.Bernoulli(0.5), infer={"decision": True})
    win = pyro.sample("win", dist.Bernoulli(0.3))                      # chance
    pyro.factor("reward", 3.0 * win if arm else torch.tensor(1.0))     # R: all that is observed

With R the sum of what a run observes, lambda an inverse temperature, and P the law of chance:

    marginal        (1/lambda) log sum over decisions and chance of P exp(lambda R)
    planning        max over policies of (1/lambda) log E exp(lambda R)
    marginal_map    the same, over plans that are fixed before anything is seen
    map             (1/lambda) log max over decisions and chance of P exp(lambda R)
    uniform         as planning, for the policy that decides by lot

A sampler's answer is of the first kind and a search for the most probable run of the fourth: both
take luck for skill. marginal >= planning >= marginal_map >= map.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from scipy.special import logsumexp

from ppl.errors import ArgumentError, PPLError
from ppl.language import checks
from ppl.language.arguments import checked
from ppl.runtime.enumeration import Branch, run_with
from ppl.runtime.program import check_program
from ppl.runtime.record import decides

# PyTorch clamps probabilities of zero to the smallest step of a float.
_NEVER = math.log(1.01 * torch.finfo(torch.float32).eps)

Kind = Literal["marginal", "planning", "marginal_map", "map", "uniform"]
History = tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Plan:
    """What a kind of inference says of a program.

    Attributes:
        kind: which.
        value: in units of R.
        decisions: `"planning"`: for everything that may have been seen at a decision, as pairs
            (site, value) in order, what to do there. `"marginal_map"` and `"map"`: what to do at
            each site, by name. Empty for the others.
    """

    kind: Kind
    value: float
    decisions: Mapping[Any, Any]


@dataclass(frozen=True)
class _Node:
    """A choice with what may follow it, or the end of a run, whose `reward` is R."""

    name: str = ""
    decision: bool = False
    children: tuple[tuple[Any, float, _Node], ...] = ()
    reward: float = 0.0


@checked
def plan(
    program: Callable[..., Any],
    *args: Any,
    kind: Kind = "planning",
    temperature: float = 1.0,
    most: int = 100_000,
    **kwargs: Any,
) -> Plan:
    """The value of deciding well, or of being lucky, by enumeration.

    Sites with `infer={"decision": True}` are decisions: their own probabilities do not count, only
    their values, of which those that are never drawn are no options. All others are chance. What is
    observed (`pyro.factor`, verifiers) is the reward.

    Args:
        program, *args, **kwargs: as of `ppl.enumerate_program`, with the same limits.
        kind: see the module.
        temperature: lambda, the inverse temperature; 0 is the expected reward, which `"planning"`,
            `"marginal_map"` and `"uniform"` have.
        most: give up beyond this many runs.

    Raises:
        PPLError: a choice cannot be enumerated, or there are too many.
        ArgumentError: a kind without a limit at temperature 0.
    """
    check_program(program)
    checks.one_of(get_args(Kind), kind=kind)
    checks.nonnegative(temperature=temperature)
    checks.count(most=most)
    if temperature == 0 and kind in ("marginal", "map"):
        raise ArgumentError(
            f"temperature=0: kind={kind!r} has no limit there; 'planning', 'marginal_map' and "
            "'uniform' are expected rewards"
        )
    root = _tree(functools.partial(program, *args, **kwargs), most)
    pool = functools.partial(pooled, temperature=temperature)
    if kind == "marginal_map":
        return _best_fixed(root, pool)
    decisions: dict[Any, Any] = {}
    value = _value(root, kind, temperature, pool, (), decisions)
    if kind == "map":
        decisions = dict(_followed(root, decisions))
    return Plan(kind, value, decisions if kind in ("planning", "map") else {})


def _tree(program: Callable[[], Any], most: int) -> _Node:
    runs = itertools.count(1)

    def grown(choices: list[tuple[Any, float]]) -> _Node:
        if next(runs) > most:
            raise PPLError(f"the program has more than {most} choice sequences; raise most=")
        found = run_with(choices, program)
        if not isinstance(found, Branch):
            return _Node(reward=found[1] - math.fsum(log_p for _, log_p in choices))
        decision = decides(found.name, found.infer)
        # What a decision would have been drawn with counts nowhere, but where that is never.
        least = _NEVER if decision else -math.inf
        possible = [(value, log_p) for value, log_p in found.support if log_p > least]
        chances = [(value, 0.0 if decision else log_p) for value, log_p in possible]
        # Chance adds up to one, which floats of a distribution do but for their last digits.
        whole = 0.0 if decision else float(logsumexp([p for _, p in chances]))
        children = tuple((value, p - whole, grown([*choices, (value, p)])) for value, p in chances)
        return _Node(found.name, decision, children)

    return grown([])


def pooled(values: Sequence[float], log_weights: Sequence[float], temperature: float) -> float:
    """(1/lambda) log sum w exp(lambda v), or the mean of v at lambda = 0."""
    if temperature == 0:
        return math.fsum(
            math.exp(w) * v for w, v in zip(log_weights, values, strict=True) if w > -math.inf
        )
    top, low = max(values), min(values)
    if temperature * (top - low) < 1:  # all terms are alike, and their differences are the value
        weights = [math.exp(w) for w in log_weights]
        gains = math.fsum(
            w * math.expm1(temperature * (v - top)) for w, v in zip(weights, values, strict=True)
        )
        whole = math.fsum(weights)
        return top + (math.log(whole) + math.log1p(gains / whole)) / temperature
    terms = [w + temperature * v for w, v in zip(log_weights, values, strict=True)]
    return float(logsumexp(terms)) / temperature


def _value(
    node: _Node,
    kind: Kind,
    temperature: float,
    pool: Callable[[list[float], list[float]], float],
    seen: History,
    decisions: dict[Any, Any],
) -> float:
    """Backward from the ends: sums at chance; at decisions what the kind says."""
    if not node.children:
        return node.reward
    below = [
        _value(child, kind, temperature, pool, (*seen, (node.name, value)), decisions)
        for value, _, child in node.children
    ]
    logs = [log_p for _, log_p, _ in node.children]
    if kind == "map":  # chance is decided, too, at its price
        scores = [v + log_p / temperature for v, log_p in zip(below, logs, strict=True)]
    elif node.decision and kind == "planning":
        scores = below
    else:
        share = -math.log(len(logs)) if node.decision and kind == "uniform" else 0.0
        return pool(below, [log_p + share for log_p in logs])
    best = max(range(len(scores)), key=scores.__getitem__)
    decisions[seen] = node.children[best][0]
    return scores[best]


def _followed(root: _Node, decisions: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    """The decisions along the one run that was chosen."""
    node = root
    seen: History = ()
    while node.children:
        chosen = decisions[seen]
        if node.decision:
            yield node.name, chosen
        seen = (*seen, (node.name, chosen))
        node = next(child for value, _, child in node.children if value is chosen)


def _best_fixed(root: _Node, pool: Callable[[list[float], list[float]], float]) -> Plan:
    """The best of all plans that name a value for every decision beforehand."""
    options: dict[str, list[Any]] = {}

    def collect(node: _Node) -> None:
        if node.decision:
            known = options.setdefault(node.name, [])
            known += [value for value, _, _ in node.children if value not in known]
        for _, _, child in node.children:
            collect(child)

    def ends(node: _Node, fixed: Mapping[str, Any], log_p: float) -> Iterator[tuple[float, float]]:
        if not node.children:
            yield node.reward, log_p
        for value, more, child in node.children:
            if not node.decision or value == fixed[node.name]:
                yield from ends(child, fixed, log_p + more)

    collect(root)
    best = Plan("marginal_map", -math.inf, {})
    for values in itertools.product(*options.values()):
        fixed = dict(zip(options, values, strict=True))
        found = list(ends(root, fixed, 0.0))
        logs = [log_p for _, log_p in found]
        # A plan that cannot be followed everywhere is none.
        if not found or logsumexp(logs) < -1e-9:
            continue
        value = pool([reward for reward, _ in found], logs)
        if value > best.value or not best.decisions:
            best = Plan("marginal_map", value, fixed)
    return best
