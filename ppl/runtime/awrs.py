"""Adaptive weighted rejection sampling: a proposal for constraints on tokens (Lipkin, LeBrun,
Vigly, Loula et al. 2025, arXiv:2504.05410).

Draws a token from p(v) given that v is valid, and estimates the mass of the valid tokens, without
checking the whole vocabulary:

    w = 1
    repeat  draw v from p without what was rejected; q = its probability there
            if v is invalid: reject it; w *= 1 - q
    draw one token more from what is left; unless it is valid too: w *= q
    return v, w

E[w 1{v}] = p(v) 1{v valid}: the pair is properly weighted (the paper's recursive estimator).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pyro  # noqa: F401 (all of it before its parts: threads)
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from ppl.language.arguments import checked
from ppl.language.randomness import key as key_of
from ppl.language.site import Draw, Site, Visit
from ppl.language.text import Continuation, Text
from ppl.lm.base import ContinueRequest, Drawn, LMDistribution, Spec

Ask = Callable[[Spec, int], Drawn]
"""Draws from a spec; the number tells the draws of one site apart."""


class AWRS(Site, TorchDistribution):  # type: ignore[misc]
    """Proposes one valid token, in a guide for a model that requires it to be valid:

        def model():
            ...
            token = pyro.sample("token", lm(text, max_tokens=1))
            ppl.condition(valid(text + token))

        def guide():
            ...
            token = pyro.sample("token", AWRS(lm(text, max_tokens=1), valid))

    The particle's weight is multiplied by w (and by model over proposal, should they differ), so
    evidence and posterior are exactly those of the model without the guide, with fewer dead
    particles. Where no valid token is found, an invalid one is proposed and the model's condition
    rules it out.

    Every candidate is drawn by the model: one token, in the batch of all others, paid from the
    budget. Rejected candidates are left out by `allowed=`.

    Args:
        proposal: `lm(text, max_tokens=1)`, with any positive temperature and `allowed`.
        valid: whether the text with one token more may go on; deterministic.
        max_candidates: give up after so many invalid ones. The weight is then zero, which biases
            the evidence downwards; None never gives up.

    Raises:
        ValueError: the proposal draws more than one token, or cuts the distribution (top-p, top-k,
            min-p), which has another shape once a token is left out.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012 (the name is torch's)
    has_rsample = False

    @checked
    def __init__(
        self,
        proposal: LMDistribution,
        valid: Callable[[Text], bool],
        *,
        max_candidates: int | None = None,
    ) -> None:
        spec = proposal.spec
        if spec.max_tokens != 1:
            raise ValueError("AWRS proposes one token: give it lm(text, max_tokens=1)")
        warp = spec.warp
        if warp.temperature == 0 or warp.top_p < 1 or warp.top_k is not None or warp.min_p > 0:
            raise ValueError(f"AWRS needs the whole distribution, not one cut by {warp}")
        if max_candidates is not None and max_candidates < 1:
            raise ValueError(f"max_candidates={max_candidates}: at least 1")
        self.proposal, self.valid, self.max_candidates = proposal, valid, max_candidates
        super().__init__(validate_args=False)

    def draw(self, visit: Visit, msg: Any, key: int, target: Any = None) -> Draw:
        """A token, and log(p / w) in the place of its log-probability."""
        model = self.proposal.model

        def ask(spec: Spec, number: int) -> Drawn:
            request = ContinueRequest(model, spec, key_of(key, number), visit.label, visit.ledger)
            drawn: Drawn = visit.ask(request)
            return drawn

        return *self.propose(ask), None

    def score(self, visit: Visit, msg: Any, value: Any) -> float:
        """Not available, see `log_prob`."""
        return float(self.log_prob(value))

    def propose(self, ask: Ask) -> tuple[Continuation, float]:
        """A token v and log(p(v) / w): what takes the place of its log-probability."""
        spec, model = self.proposal.spec, self.proposal.model
        size = model.token_count  # a model may give more ids than its tokenizer has
        allowed = spec.allowed_after((), "AWRS", size, model.codec)
        left = torch.ones(size, dtype=torch.bool) if allowed is None else allowed
        drawn = ask(replace(spec, allowed=left), 0)
        number = 1
        while not self._valid(drawn):
            left = _without(left, drawn)
            # q = 1: nothing but this token had any mass.
            if not left.any() or drawn.log_prob > -1e-12 or number == self.max_candidates:
                return drawn.value, 0.0
            drawn = ask(replace(spec, allowed=left), number)
            number += 1
        # p(v) is q times every 1 - q before it, and w is those times q or 1: p(v) / w is 1 or q.
        left = _without(left, drawn)
        if not left.any() or drawn.log_prob > -1e-12:
            return drawn.value, drawn.log_prob
        another = self._valid(ask(replace(spec, allowed=left), number))
        return drawn.value, drawn.log_prob if another else 0.0

    def _valid(self, drawn: Drawn) -> bool:
        return bool(self.valid(self.proposal.text + drawn.value))

    def sample(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> Continuation:  # type: ignore[override]
        """A token without its weight, keyed by torch's global generator."""
        if len(sample_shape):
            raise ValueError("AWRS draws one token; use a searcher for many")

        def ask(spec: Spec, number: int) -> Drawn:
            seed = int(torch.randint(0, 2**63 - 1, ()))
            model = self.proposal.model
            drawn = model.sample_batch([ContinueRequest(model, spec, seed)])[0]
            assert drawn is not None  # without a ledger nothing runs out
            return drawn

        return self.propose(ask)[0]

    def log_prob(self, value: object) -> Tensor:
        """Not available: a draw comes with a random weight instead."""
        raise NotImplementedError(
            "AWRS has no log_prob, its draws carry a random weight; use it in a guide, and not "
            "together with ancestor_sampling=True"
        )

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> AWRS:
        """Itself, for an empty batch shape: one particle draws one token."""
        if len(batch_shape):
            raise ValueError("AWRS cannot be used inside a vectorised pyro.plate")
        return self

    @property
    def fingerprint(self) -> tuple[object, ...]:
        """That of the proposal, and the rule's name."""
        return ("AWRS", *self.proposal.fingerprint, getattr(self.valid, "__qualname__", ""))

    def __repr__(self) -> str:
        return f"AWRS({self.proposal!r}, {getattr(self.valid, '__name__', self.valid)})"


def _without(left: Tensor, drawn: Drawn) -> Tensor:
    left = left.clone()  # requests on their way keep theirs
    left[list(drawn.value.tokens)] = False
    return left
