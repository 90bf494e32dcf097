"""Exact answers by enumeration: runs a program once for every possible choice sequence.

The oracle for tests. It shares nothing with the particle runtime but the program: it is a Pyro
messenger that answers the program's choices from a list and notes where it has to branch.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro  # noqa: F401 (all of it before its parts: threads)
import torch
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from scipy.special import logsumexp

from ppl.errors import PPLError
from ppl.language.arguments import checked
from ppl.language.classes import by_value, tally
from ppl.language.site import Site, share
from ppl.lm.base import LMDistribution
from ppl.runtime.program import check_program, check_result
from ppl.runtime.record import site_log_prob
from ppl.runtime.verdict import own_verdicts


@dataclass(frozen=True)
class ExactResult:
    """Everything there is to know about an enumerable program.

    Attributes:
        values: what the program returns, one entry per choice sequence of positive weight.
        log_weights: log joint of choices and observations, aligned with `values`.
    """

    values: list[Any]
    log_weights: list[float]

    @property
    def log_evidence(self) -> float:
        """Log of the total mass; minus infinity if nothing is possible."""
        return float(logsumexp(self.log_weights)) if self.log_weights else -math.inf

    def marginal(self, f: Callable[[Any], Any] = lambda value: value) -> dict[Any, float]:
        """Exact posterior probability of every value of `f`; equal values count together."""
        values = [f(value) for value in self.values]
        weights = [math.exp(w - self.log_evidence) for w in self.log_weights]
        return by_value((values[i], p) for p, i in tally(values, weights))


@checked
def enumerate_program(
    program: Callable[..., Any], *args: Any, most: int = 100_000, **kwargs: Any
) -> ExactResult:
    """Runs `program` for every sequence of choices.

    Args:
        program: its choices must come from a `TableLM`, a verdict, or from Pyro distributions with
            finite support and scalar values (`Bernoulli`, `Categorical`, ...). Values that cannot
            be drawn do not count, also where a mask would give them weight.
        most: give up beyond this many runs.

    Raises:
        PPLError: a choice cannot be enumerated, or there are too many.
    """
    check_program(program)
    values, log_weights = [], []
    pending: list[list[Any]] = [[]]
    runs = 0
    while pending:
        choices = pending.pop()
        runs += 1
        if runs > most:
            raise PPLError(f"the program has more than {most} choice sequences; raise most=")
        found = run_with(choices, functools.partial(program, *args, **kwargs))
        if isinstance(found, Branch):
            pending += [[*choices, choice] for choice in found.support]
        elif found[1] > -math.inf:
            values.append(found[0])
            log_weights.append(found[1])
    return ExactResult(values, log_weights)


def run_with(
    choices: list[tuple[Any, float]], program: Callable[[], Any]
) -> Branch | tuple[Any, float]:
    """Runs a program whose first choices are given, each with its log-probability.

    Returns:
        The next choice, if there is one; else the result and the log joint of choices and
        observations.
    """
    messenger = _Enumerator(choices)
    try:
        with messenger, own_verdicts():
            value = program()
    except Branch as branch:
        return branch
    check_result(value, "the program")
    return value, messenger.log_weight


class Branch(Exception):  # noqa: N818 (carries the support out of the program, no error)
    """A choice that is not decided yet.

    Attributes:
        name: of its site.
        support: all its values with their log-probabilities.
        infer: what the program says of it in `pyro.sample(..., infer=)`.
    """

    def __init__(self, name: str, support: list[tuple[Any, float]], infer: Any) -> None:
        super().__init__(name)
        self.name, self.support, self.infer = name, support, infer


class _Enumerator(Messenger):  # type: ignore[misc]
    def __init__(self, choices: list[tuple[Any, float]]) -> None:
        super().__init__()
        self._choices, self._next, self.log_weight = choices, 0, 0.0

    def _pyro_sample(self, msg: Any) -> None:
        fn = msg["fn"]
        if msg["infer"].get("_deterministic"):
            return
        if msg["is_observed"]:
            if isinstance(fn, LMDistribution):
                fn.check_observed(msg["value"], f"site {msg['name']!r}")
            if self.log_weight > -math.inf:
                given = {"args": msg["args"], "kwargs": msg["kwargs"]}
                self.log_weight += site_log_prob(
                    fn, msg["value"], msg["scale"], msg["mask"], **given
                )
            return
        if self._next == len(self._choices):
            raise Branch(msg["name"], _support(msg), msg["infer"])
        msg["value"], log_prob = self._choices[self._next]
        self._next += 1
        self.log_weight += log_prob
        msg["done"] = True


def _support(msg: Any) -> list[tuple[Any, float]]:
    """What can be drawn, with its share of the joint log-density: scaled and masked."""
    name, fn = msg["name"], msg["fn"]
    if isinstance(fn, Site):
        try:
            support = fn.support()
        except (NotImplementedError, PPLError) as error:
            raise PPLError(f"site {name!r}: {fn!r} cannot be enumerated: {error}") from error
        return [(value, share(log_p, msg)) for value, log_p in support if log_p > -math.inf]
    if not getattr(fn, "has_enumerate_support", False) or fn.batch_shape != torch.Size():
        raise PPLError(f"site {name!r}: {type(fn).__name__} has no finite scalar support")
    pairs = [(value, fn.log_prob(value)) for value in fn.enumerate_support()]
    plain = msg["mask"] is None and isinstance(msg["scale"], float) and msg["scale"] == 1.0
    if plain:
        return [(value, p.item()) for value, p in pairs]
    # PyTorch clamps probabilities of zero to the smallest step of their type.
    return [
        (value, scale_and_mask(p, msg["scale"], msg["mask"]).item())
        for value, p in pairs
        if p.exp() > 1.01 * torch.finfo(p.dtype).eps
    ]
