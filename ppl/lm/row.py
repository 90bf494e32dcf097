"""One continuation on its way, token by token, and what could have been one."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from ppl.errors import StepNeverEndedError
from ppl.language.text import Continuation
from ppl.lm.base import ContinueRequest, Drawn, LanguageModel, ScoreRequest, Tokens
from ppl.lm.stopping import Stop, misfit

# Tokens that a step without max_tokens is planned with.
_USUAL_STEP = 256


class Row:
    """One request on its way.

    Attributes:
        computed: tokens that its memory has, if it may have some that were not drawn yet.
    """

    __slots__ = (
        "computed",
        "law",
        "limit",
        "log_prob",
        "new",
        "request",
        "stop",
        "ticket",
        "under",
        "unwanted",
    )

    def __init__(self, model: LanguageModel, request: ContinueRequest, ticket: int) -> None:
        spec = request.spec
        room = model.context_length - len(spec.tokens)
        self.request, self.ticket = request, ticket
        self.limit = room if spec.max_tokens is None else min(spec.max_tokens, room)
        self.new: list[int] = []
        self.log_prob = self.under = 0.0
        self.unwanted = False
        self.computed = 0
        self.law: Tensor | None = None
        self.stop = Stop(model.codec, spec.rule, spec.tokens, request.label)

    @property
    def tokens(self) -> Tokens:
        """Prefix and what was drawn so far."""
        return self.request.spec.tokens + tuple(self.new)

    @property
    def text(self) -> Tokens:
        """These tokens as the decoder knows them."""
        model: Any = self.request.model
        text: Tokens = model.marked(self.tokens)
        return text

    @property
    def length(self) -> int:
        """Tokens of prefix and what was drawn so far, or computed ahead of it."""
        return max(len(self.request.spec.tokens) + len(self.new), self.computed)

    @property
    def expected_length(self) -> int:
        """Tokens that the row is expected to hold in the end; a guess where nothing limits it."""
        new = self.limit if self.request.spec.max_tokens is not None else _USUAL_STEP
        expected = len(self.request.spec.tokens) + max(min(new, self.limit), len(self.new) + 1)
        return max(expected, self.computed)

    def push(self, model: LanguageModel, token: int, log_prob: float) -> Drawn | None:
        """Appends a token; returns the finished draw if the continuation ends here."""
        self.new.append(token)
        self.log_prob += log_prob
        reason = self.stop.after(token)
        if reason is None and log_prob == -math.inf:
            reason = "length"  # nothing goes on from what cannot be drawn
        if reason is None and len(self.new) == self.limit:
            if self.request.spec.max_tokens is None:
                raise StepNeverEndedError(
                    f"{self.request.label}: the step did not end (until {self.request.spec.rule}) "
                    f"before the context of {model.name} was full after {len(self.new)} new "
                    "tokens; pass max_tokens= or another until="
                )
            reason = "length"
        if reason is None:
            return None
        tokens = tuple(self.new)
        said = model.codec.decode_after(tokens, self.request.spec.tokens)
        value = Continuation(tokens, said, reason, model.codec.identity, model.kv)
        return Drawn(value, self.log_prob, self._log_prob_under(model, value), self.law)

    def _log_prob_under(self, model: LanguageModel, value: Continuation) -> float | None:
        spec, other = self.request.spec, self.request.under
        if other is None:
            return None
        same_steps = (spec.rule, spec.max_tokens) == (other.rule, other.max_tokens)
        asked = ScoreRequest(model, other, value, self.request.label)
        return self.under if same_steps or could_be_drawn(model, asked) else -math.inf


def could_be_drawn(model: LanguageModel, request: ScoreRequest) -> bool:
    """True if a draw that chose these tokens would have stopped at the last and not before; or, for
    the beginning of a step, not before the last."""
    spec, value = request.spec, request.value
    return misfit(model.codec, spec, model.context_length, value, request.label) is None
