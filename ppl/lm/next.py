"""The law of the next token itself: for programs that look before they draw, or work token by
token."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyro
import torch
from pyro.distributions import TorchDistribution
from pyro.poutine import runtime
from pyro.poutine.runtime import am_i_wrapped
from torch import Tensor

from ppl.errors import WeightError
from ppl.language.randomness import uniforms
from ppl.language.site import Draw, Site, Visit
from ppl.language.text import Continuation, StopReason
from ppl.lm import sampling
from ppl.lm.base import ContinueRequest, LMDistribution
from ppl.lm.sampling import warped_log_probs


class NextToken(LMDistribution):
    """What `lm.next(text)` is: the law of one token, which can be read as well as drawn.

    As a distribution it is `lm(text, max_tokens=1)`: with one seed it draws the same tokens, and
    its values are continuations of one token. What is read of it comes from the pass of the draw;
    if it is read first, the draw costs none.

    In a search, what is read is part of the particle's record, so that forks ask no model: a
    number, or, for `log_probs` and `probs`, `[V]` of them, which is worth avoiding with a large
    vocabulary. A program that draws and then reads makes one pass a token, always; one that reads,
    marks a checkpoint and then draws makes another for every fork.
    """

    keeps = True

    @property
    def log_probs(self) -> Tensor:
        """`[V]` log-probabilities, on the CPU; minus infinity for what cannot be drawn."""
        found: Tensor = self._read("log_probs")
        return found

    @property
    def probs(self) -> Tensor:
        """`[V]` probabilities, on the CPU."""
        return self.log_probs.exp()

    @property
    def entropy(self) -> float:  # type: ignore[override]
        """In nats: 0 if only one token can follow."""
        return float(self._read("entropy"))

    @property
    def margin(self) -> float:
        """Probability of the likeliest token minus that of the second likeliest."""
        return float(self._read("margin"))

    @property
    def log_mass(self) -> float:
        """Log-probability that the same law without `allowed=` gives to what is allowed, before
        top-k, top-p and min-p cut it: what a factor has to add for masked draws to follow the
        model's law given that all of them are allowed. 0 without `allowed=`."""
        return float(self._read("log_mass"))

    def enumerate_support(self, expand: bool = False) -> list[Continuation]:  # type: ignore[override]
        """Every continuation that can be drawn, by token id."""
        possible = torch.isfinite(self.log_probs).nonzero().squeeze(1).tolist()
        return [self._continuation(token) for token in possible]

    def support(self) -> list[tuple[Any, float]]:
        """The same, with log-probabilities, for exact enumeration."""
        row = self._log_probs()
        tokens = torch.isfinite(row).nonzero().squeeze(1).tolist()
        return [(self._continuation(token), float(row[token])) for token in tokens]

    # -- drawing and scoring ----------------------------------------------------------------------

    def draw(self, visit: Visit, msg: Any, key: int, target: Any = None) -> Draw:
        """From the law if it is known by now; otherwise a row of the batch, which brings it."""
        if self._logits is None or visit.greedy or target is not None:
            return super().draw(visit, msg, key, target)
        number = np.array([key], dtype=np.uint64)
        mask = self._allowed(self._logits.shape[-1])
        u = uniforms(number, np.array([0]))
        invert = getattr(self.model, "invert", None)
        warp = [self.spec.warp]
        (token,), (log_prob,) = sampling.draw(self._logits[None], warp, [mask], u, invert)
        if not math.isfinite(log_prob):
            if mask is None or not sampling.nothing_left(self._logits, mask):
                raise WeightError(f"{visit.label}: the next-token distribution is not finite")
            token, log_prob = int(mask.nonzero()[0]), -math.inf
        return self._continuation(token), log_prob, None

    def score(self, visit: Visit, msg: Any, value: Any) -> float:
        """From the law if it is known by now; otherwise in the batch of all particles."""
        if self._logits is None:
            return super().score(visit, msg, value)
        self.check(value, visit.label)
        if len(value.tokens) != 1:
            return -math.inf
        return float(self._log_probs()[value.tokens[0]])

    # -- reading ----------------------------------------------------------------------------------

    def _read(self, what: str) -> Any:
        """What is read of the law: recorded in a particle, else found out here."""
        particle = runtime._PYRO_STACK[0] if am_i_wrapped() else None
        number = getattr(particle, "next_number", None)
        if number is None:
            return self.reading(what)
        return pyro.sample(f"law_{number('law')}", _Reading(self, what))

    def reading(self, what: str) -> Any:
        """`[V]` log-probabilities or a number; asks the model itself if the law is not known."""
        if what == "log_mass":
            return self._log_mass()
        row = self._log_probs()
        if what == "log_probs":
            return row.cpu()
        row = row.double()
        if what == "entropy":
            return max(0.0, -float((row.exp() * row).nan_to_num(0.0).sum()))
        first, second = row.exp().topk(2).values.tolist() if len(row) > 1 else (1.0, 0.0)
        return first - second

    def _log_mass(self) -> float:
        logits = self._known()
        mask = self._allowed(len(logits))
        if mask is None:
            return 0.0
        # In float64 at once: log-softmax in between would be one pass over the vocabulary more.
        scaled = logits.double() / (self.spec.warp.temperature or 1.0)
        kept = scaled[mask.to(scaled.device)]
        return min(0.0, float(kept.logsumexp(0) - scaled.logsumexp(0)))

    def _log_probs(self) -> Tensor:
        row = self._known()
        return warped_log_probs(row[None], [self.spec.warp], [self._allowed(len(row))])[0]

    def _known(self) -> Tensor:
        """`[V]` logits, by a pass if there has been none."""
        if self._logits is None:
            model: Any = self.model
            rows = model.logits_along([self.spec.tokens], [(0,)], [None])
            self._logits = next(iter(rows))[0]
        return self._logits

    def _allowed(self, size: int) -> Tensor | None:
        return self.spec.allowed_after((), "lm.next", size, self.model.codec)

    def _continuation(self, token: int) -> Continuation:
        codec = self.model.codec
        reason: StopReason = "end" if token in codec.end_tokens else "length"
        said = codec.decode_after((token,), self.spec.tokens)
        return Continuation((token,), said, reason, codec.identity, self.model.kv)

    def __repr__(self) -> str:
        return f"lm.next({self.model.name}, {len(self.spec.tokens)} tokens)"


class _Reading(Site, TorchDistribution):  # type: ignore[misc]
    """What is read of a law: a function of the text, found out by a pass."""

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012 (the name is torch's)
    has_rsample = False
    told = True

    def __init__(self, law: NextToken, what: str) -> None:
        self.law, self.what = law, what
        super().__init__(validate_args=False)

    def draw(self, visit: Visit, msg: Any, key: int, target: Any = None) -> Draw:
        """Asks for the law in the batch of all particles, unless it is known."""
        law = self.law
        if law._logits is None:
            ledger = visit.ledger.of(law.model)
            request = ContinueRequest(
                law.model, law.spec, key, visit.label, ledger, None, law.keeps
            )
            law.seen(visit.ask(request))
        return law.reading(self.what), 0.0, None

    def score(self, visit: Visit, msg: Any, value: Any) -> float:
        """Set from outside, it is taken at its word."""
        return 0.0

    @property
    def fingerprint(self) -> tuple[object, ...]:
        """That of the law, and what is read."""
        return ("law", self.what, *self.law.fingerprint)
