"""Records: what happened at one site, and how a distribution is recognised on replay."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import pyro  # noqa: F401 (all of it before its parts: threads)
import torch
from pyro.distributions import Unit
from pyro.distributions.util import scale_and_mask
from torch.distributions.utils import lazy_property

from ppl.errors import ArgumentError
from ppl.language.arguments import shown
from ppl.language.site import Kind


@dataclass(slots=True)
class Record:
    """What happened at one site.

    Attributes:
        name: the site.
        kind: what is replayed, see `ppl.language.site.Kind`.
        value: the value of the site.
        log_likelihood: log-probability of what was observed here (0 for a choice).
        log_ratio: log-share of a choice in the target, scaled and masked, minus its log-probability
            under what proposed it (0 where the model proposed and nothing is scaled).
        log_prior: log-probability of the choice under the model, None if not computed yet.
        log_scores: step scores of a verdict, else None.
        log_proposal: log-probability of the choice under the guide, None where the model proposed.
        decision: True for a choice that is the program's own to make, which it marks by
            `infer={"decision": True}` (see `ppl.plan`).
        fingerprint: what the distribution was, compared on replay.
    """

    name: str
    kind: Kind
    value: Any
    log_likelihood: float = 0.0
    log_ratio: float = 0.0
    log_prior: float | None = None
    log_scores: tuple[float, ...] | None = None
    log_proposal: float | None = None
    decision: bool = False
    _distribution: Any = None
    _fingerprint: tuple[object, ...] | None = None

    @property
    def distribution(self) -> Any:
        """What it was drawn from under the model; None for one that was read from a file."""
        return self._distribution

    @property
    def fingerprint(self) -> tuple[object, ...]:
        """Computed when first needed: most particles are never replayed."""
        if self._fingerprint is None:
            self._fingerprint = fingerprint(self._distribution)
        return self._fingerprint

    def prior(self) -> float:
        """`log_prior`, computed now if it was not."""
        if self.log_prior is None:
            self.log_prior = site_log_prob(self._distribution, self.value)
        return self.log_prior

    def proposal(self) -> float:
        """Log-probability of the choice under what proposed it, the guide or the model."""
        return self.prior() if self.log_proposal is None else self.log_proposal

    def joint(self) -> float:
        """The site's share of the log joint density, scaled and masked as the program says."""
        if self.kind != "choice":
            return self.log_likelihood
        return self.proposal() + self.log_ratio

    def __getstate__(self) -> tuple[Any, ...]:
        self._fingerprint = self.fingerprint
        if self.kind == "choice":
            self.prior()
        return (*(getattr(self, name) for name in self.__slots__[:-2]), None, self._fingerprint)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        for name, value in zip(self.__slots__, state, strict=True):
            setattr(self, name, value)


def decides(name: str, infer: Any) -> bool:
    """Whether a site is a decision.

    Raises:
        ArgumentError: its `infer=` does not say so clearly.
    """
    said = infer.get("decision", False)
    if not isinstance(said, bool):
        raise ArgumentError(f"site {name!r}: infer={{'decision': {shown(said)}}}: True or False")
    return said


def fingerprint(distribution: Any) -> tuple[object, ...]:
    """What identifies a distribution: its class and the exact values of its parameters."""
    own = getattr(distribution, "fingerprint", None)
    if own is not None:
        return tuple(own)
    kind: Any = type(distribution)
    parts: list[object] = [kind.__name__]
    for name in _held(kind, tuple(getattr(distribution, "arg_constraints", ()))):
        value = distribution.__dict__.get(name)
        if isinstance(value, torch.Tensor):
            parts.append((name, tuple(value.shape), content(value)))
    base = getattr(distribution, "base_dist", None)
    if base is not None:
        parts.append(fingerprint(base))
    return tuple(parts)


@functools.lru_cache(maxsize=1024)
def _held(kind: type, parameters: tuple[str, ...]) -> tuple[str, ...]:
    """The attributes that hold what a distribution of this class was given, in order."""
    # probs and logits are computed from each other when first asked for, the given one is _param.
    plain = [n for n in parameters if not isinstance(getattr(kind, n, None), lazy_property)]
    return (*sorted(plain), "_param")


def content(value: torch.Tensor) -> bytes:
    """The bytes of a tensor's numbers."""
    try:
        return bytes(value.numpy(force=True).tobytes())
    except TypeError:  # numpy has no such type: bfloat16, float8
        flat = value.detach().cpu().reshape(-1)
        return bytes(flat.view(torch.uint8).numpy().tobytes())


def site_log_prob(
    fn: Any,
    value: Any,
    scale: Any = 1.0,
    mask: Any = None,
    *,
    args: Any = (),
    kwargs: Any = None,
) -> float:
    """Log-probability of a site's value, summed over its elements and scaled or masked as asked."""
    plain = isinstance(scale, float) and scale == 1.0 and mask is None
    number: float  # `item`, as `float` of a tensor that a program learns warns
    if plain and type(fn) is Unit and value.shape[:-1] == fn.log_factor.shape:
        # What `pyro.factor` makes: the sum of its factors, without the broadcasting of nothing,
        # which takes longer than all else at the site.
        factor = fn.log_factor
        number = (factor.sum() if factor.ndim else factor).item()
        return float(number)
    log_prob = fn.log_prob(value, *args, **(kwargs or {}))
    if not plain:
        log_prob = scale_and_mask(log_prob, scale, mask)
    number = (log_prob.sum() if log_prob.ndim else log_prob).item()
    return float(number)
