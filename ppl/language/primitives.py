"""The words that this library adds to Pyro's own: `twist`, `condition`, `answer`, `parallel`, `do`
and `power`."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyro
import torch
from pyro.distributions import Unit
from pyro.poutine import runtime
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import am_i_wrapped

from ppl.errors import ArgumentError
from ppl.language import checks
from ppl.language.arguments import checked
from ppl.language.site import Entry, Site, Visit

_FRESH = itertools.count()


class TwistUnit(Site, Unit):  # type: ignore[misc]
    """The empty observation of a twist: probability one in the model, `log_value` in the search."""

    def __init__(self, log_value: float) -> None:
        super().__init__(torch.zeros(()), validate_args=False)
        self.log_value = log_value

    def weigh(self, visit: Visit, msg: Any, entry: Entry) -> float:
        """Adds `log_value` to what the next checkpoint divides out; the target has none of it."""
        entry.kind, entry.value = "twist", self.log_value
        visit.log_twist += self.log_value
        return 0.0

    @property
    def fingerprint(self) -> tuple[object, ...]:
        """Its kind and its value: a twist of another value is another program."""
        return ("twist", self.log_value)


_MOST_TWIST = 1e6  # leaves ten decimals of a weight


@checked
def twist(name: str, log_value: float | torch.Tensor) -> None:
    """Guides the search without changing what it targets.

    At this checkpoint the particle's log-weight includes `log_value`; it is taken out again at the
    next checkpoint and when the program ends, so evidence and posterior stay what they were for
    every finite twist. (One beyond a million guides as a million does: what is added and taken out
    again must not drown the weight.) A good twist is the log of the expected future likelihood
    (Zhao et al. 2024, "Probabilistic inference in language models via twisted SMC").

    Args:
        name: site name, unique in the program.
        log_value: finite log of a positive number. (To rule a particle out, use `condition`.)
    """
    if isinstance(log_value, torch.Tensor) and log_value.numel() != 1:
        raise ArgumentError(
            f"twist {name!r}: log_value has shape {tuple(log_value.shape)}; one number is wanted"
        )
    number = float(log_value)
    if not math.isfinite(number):
        raise ValueError(
            f"twist {name!r}: log_value={number}; a twist is finite, use ppl.condition to exclude"
        )
    if am_i_wrapped():
        number = min(max(number, -_MOST_TWIST), _MOST_TWIST)
        pyro.sample(name, TwistUnit(number), obs=torch.empty(0))


@checked
def condition(value: bool, name: str | None = None) -> None:
    """Requires `value` to be true: the particle's weight becomes zero otherwise.

    Args:
        value: the requirement.
        name: site name; numbered automatically if left out.
    """
    if not am_i_wrapped():
        return
    if name is None:
        # Whoever runs the program is at the bottom of Pyro's stack; a particle numbers from 0.
        numbered = getattr(runtime._PYRO_STACK[0], "next_number", None)
        number = next(_FRESH) if numbered is None else numbered("condition")
        name = f"condition_{number}"
    pyro.factor(name, torch.tensor(0.0 if value else -math.inf))


def answer(value: Any) -> None:
    """Says what the program's result would be if it ended here; the last word counts.

    A search that is stopped shows it where the program has not returned, and searches over whole
    answers (`ABMCTSA`, `ABMCTSM`, `TreeRefinement`) take every node that has one as a candidate.
    Nothing is drawn or weighed, and a program that returns is not bound by it.

    Args:
        value: of the kind that the program returns.
    """
    # As for `condition`: only a particle, at the bottom of Pyro's stack, listens.
    say = getattr(runtime._PYRO_STACK[0], "say", None) if am_i_wrapped() else None
    if say is not None:
        say(value)


@checked
def power(program: Callable[..., Any], alpha: float) -> Callable[..., Any]:
    """The program with the probability of every choice to a power: p(x)^alpha times what it
    observes.

    That is the joint law of whole results sharpened, which no temperature of single tokens gives.
    Everything that takes a program takes this one: choices are drawn as before and weighed with
    p^(alpha - 1). `ppl.searchers.PowerSMC` also draws them well.

    Args:
        program: the program.
        alpha: the exponent, positive; 1 changes nothing.
    """
    checks.positive(alpha=alpha)
    return functools.partial(_to_the_power, program, float(alpha))


def _to_the_power(program: Callable[..., Any], alpha: float, *args: Any, **kwargs: Any) -> Any:
    with _Power(alpha):
        return program(*args, **kwargs)


class _Power(Messenger):  # type: ignore[misc]
    def __init__(self, alpha: float) -> None:
        super().__init__()
        self._alpha = alpha

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["is_observed"] and not msg["infer"].get("_deterministic"):
            msg["scale"] = msg["scale"] * self._alpha


@checked
def parallel(functions: Sequence[Callable[[], Any]], *, name: str = "parallel") -> list[Any]:
    """Runs branches of one particle side by side; the law is that of running them in order.

        plan, facts = ppl.parallel([lambda: outline(text), lambda: research(text)], name="both")

    While one branch waits for a model the others go on, so that their requests share batches and
    what they wait for is the longest branch, not the sum. Their common text is computed once. A
    branch's sites are named `name/0/...`, `name/1/...`; `functools.partial` or a lambda binds its
    arguments. Branches must not change what others read: a join is ordinary code behind this call.

    In a search, a branch that has observed something waits at its next choice for the others to
    come as far, or to their ends: that is one checkpoint of the particle. Beside a guide, and
    outside of searches, branches run one after the other.

    Args:
        functions: of no arguments.
        name: unique in the program.

    Returns:
        What they return, in order.
    """
    run = getattr(runtime._PYRO_STACK[0], "parallel", None) if am_i_wrapped() else None
    if run is not None:
        results: list[Any] = run(name, functions)
        return results
    return in_order(functions, name)


def in_order(functions: Sequence[Callable[[], Any]], name: str) -> list[Any]:
    """Runs branches one after the other."""
    results = []
    for i, function in enumerate(functions):
        with Prefix(f"{name}/{i}/"):
            results.append(function())
    return results


class Prefix(Messenger):  # type: ignore[misc]
    """Inside, names of sites begin with something."""

    def __init__(self, prefix: str) -> None:
        super().__init__()
        self._prefix = prefix

    def _pyro_sample(self, msg: Any) -> None:
        msg["name"] = self._prefix + msg["name"]


@checked
def do(program: Callable[..., Any], data: Mapping[str, Any]) -> Callable[..., Any]:
    """The program with some sites set from outside (an intervention, not an observation).

    `pyro.poutine.do` does this for tensors and numbers; this one takes values of any kind, such as
    continuations. A site that is set costs no probability and draws nothing.

    Args:
        program: the program.
        data: values by site name.
    """

    @functools.wraps(program)
    def intervened(*args: Any, **kwargs: Any) -> Any:
        with _Intervention(data):
            return program(*args, **kwargs)

    return intervened


class _Intervention(Messenger):  # type: ignore[misc]
    def __init__(self, data: Mapping[str, Any]) -> None:
        super().__init__()
        self._data = data

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self._data:
            msg["value"] = self._data[msg["name"]]
            msg["done"] = msg["stop"] = True
