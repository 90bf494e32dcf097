"""The decode loop shared by all backends: draw, stop, account; and scoring by teacher forcing."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from ppl.cost import Ledger
from ppl.errors import StepNeverEndedError, WeightError
from ppl.lm.base import ContinueRequest, Drawn, LanguageModel, ScoreRequest
from ppl.lm.sampling import inverse_cdf, warped_log_probs
from ppl.randomness import uniforms
from ppl.steps import StepRule
from ppl.text import Codec, Continuation, StopReason

# Tokens that a step without max_tokens is planned with.
_USUAL_STEP = 256


class _Row:
    """One request on its way."""

    __slots__ = ("limit", "log_prob", "new", "request", "stops", "where")

    def __init__(self, model: LanguageModel, request: ContinueRequest, where: int) -> None:
        spec = request.spec
        room = model.context_length - len(spec.tokens)
        self.request, self.where = request, where
        self.limit = room if spec.max_tokens is None else min(spec.max_tokens, room)
        self.new: list[int] = []
        self.log_prob = 0.0
        characters = spec.rule.single_characters
        self.stops = None if characters is None else _tokens_with(model.codec, characters)

    def push(self, model: LanguageModel, token: int, log_prob: float) -> Drawn | None:
        """Appends a token; returns the finished draw if the continuation ends here."""
        self.new.append(token)
        self.log_prob += log_prob
        reason = _stop_reason(model, self.request.spec.rule, self.new, self.stops)
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
        return Drawn(Continuation(tokens, model.codec.decode(tokens), reason), self.log_prob)


def _stop_reason(
    model: LanguageModel, rule: StepRule, new: Sequence[int], stops: frozenset[int] | None
) -> StopReason | None:
    if new[-1] in model.codec.end_tokens:
        return "end"
    if stops is not None:
        return "until" if new[-1] in stops else None
    return "until" if not rule.never and rule(model.codec.decode(new)) else None


@lru_cache(maxsize=32)
def _tokens_with(codec: Codec, characters: frozenset[str]) -> frozenset[int]:
    """Ids of all tokens whose string contains one of `characters` (single ASCII characters:
    these never span two tokens, so a stop rule about them can look at one token at a time)."""
    pieces = ((i, codec.decode((i,))) for i in range(codec.size))
    return frozenset(i for i, piece in pieces if not characters.isdisjoint(piece))


def draw(model: LanguageModel, requests: Sequence[ContinueRequest]) -> list[Drawn | None]:
    """Draws every request; rows leave the batch as they stop.

    A request whose ledger has no tokens or time left is given up (None): all rows of one ledger
    are given up together, so that no budget is ever exceeded and no row is favoured.
    """
    results: list[Drawn | None] = [None] * len(requests)
    size = model.batch_rows(max((_expected_length(r) for r in requests), default=1))
    for begin in range(0, len(requests), size):
        _draw_batch(model, requests, range(begin, min(begin + size, len(requests))), results)
    return results


def _expected_length(request: ContinueRequest) -> int:
    """Tokens that a row is expected to hold in the end; a guess where nothing limits it."""
    new = request.spec.max_tokens
    return len(request.spec.tokens) + (_USUAL_STEP if new is None else new)


def _draw_batch(
    model: LanguageModel,
    requests: Sequence[ContinueRequest],
    indices: range,
    results: list[Drawn | None],
) -> None:
    rows = [_Row(model, requests[i], i) for i in indices]
    keys = np.array([row.request.key for row in rows], dtype=np.uint64)
    decoder = model.start([r.request.spec.tokens for r in rows], [r.request.ledger for r in rows])
    try:
        for position in range(max(row.limit for row in rows)):
            broke = _admit(rows)
            keep = [j for j, row in enumerate(rows) if id(row.request.ledger) not in broke]
            if not keep:
                return
            # Rows given up stay in the decoder until it advances; they draw nothing.
            logits = decoder.logits if len(keep) == len(rows) else decoder.logits[keep]
            tokens, log_probs = _draw_tokens(logits, [rows[j] for j in keep], keys[keep], position)
            going: list[int] = []
            for j, token, log_prob in zip(keep, tokens, log_probs, strict=True):
                drawn = rows[j].push(model, token, log_prob)
                if drawn is None:
                    going.append(j)
                else:
                    results[rows[j].where] = drawn
            if not going:
                return
            decoder.advance(going, [rows[j].new[-1] for j in going])
            rows, keys = [rows[j] for j in going], keys[going]
    finally:
        decoder.close()


def _admit(rows: Sequence[_Row]) -> set[int]:
    """Books one token per row; the ids of the ledgers that cannot pay for theirs."""
    counts = Counter(id(row.request.ledger) for row in rows if row.request.ledger is not None)
    ledgers: dict[int, Ledger] = {
        id(row.request.ledger): row.request.ledger for row in rows if row.request.ledger is not None
    }
    broke = set()
    for which, count in counts.items():
        ledger = ledgers[which]
        if ledger.tokens_left < count or ledger.out_of_time:
            broke.add(which)
        else:
            ledger.add(lm_tokens=count)
    return broke


def _draw_tokens(
    logits: Tensor, rows: Sequence[_Row], keys: np.ndarray, position: int
) -> tuple[list[int], list[float]]:
    specs = [row.request.spec for row in rows]
    allowed = [s.allowed_after(tuple(row.new)) for s, row in zip(specs, rows, strict=True)]
    log_probs = warped_log_probs(logits, [s.warp for s in specs], allowed)
    tokens = inverse_cdf(log_probs.exp(), uniforms(keys, position))
    chosen = log_probs.gather(1, tokens[:, None]).squeeze(1).tolist()
    for row, log_prob in zip(rows, chosen, strict=True):
        if not math.isfinite(log_prob):
            raise WeightError(
                f"{row.request.label}: the next-token distribution is not finite; check the "
                "model's weights and dtype, and that allowed= admits a token of the vocabulary"
            )
    return tokens.tolist(), chosen


def score(model: LanguageModel, requests: Sequence[ScoreRequest]) -> list[float]:
    """Log-probability of each given continuation, `-inf` where `draw` could not return it."""
    results = [-math.inf] * len(requests)
    possible = [i for i, request in enumerate(requests) if _could_be_drawn(model, request)]
    lengths = [len(requests[i].spec.tokens) + len(requests[i].value.tokens) for i in possible]
    size = model.batch_rows(max(lengths, default=1))
    for begin in range(0, len(possible), size):
        batch = [(i, requests[i]) for i in possible[begin : begin + size]]
        logits_along = model.logits_along(
            [r.spec.tokens for _, r in batch],
            [r.value.tokens for _, r in batch],
            [r.ledger for _, r in batch],
        )
        for (i, request), logits in zip(batch, logits_along, strict=True):
            results[i] = _log_prob(request, logits)
            if request.ledger is not None:
                request.ledger.add(scored_tokens=len(request.value.tokens))
    return results


def _log_prob(request: ScoreRequest, logits: Tensor) -> float:
    tokens, spec = request.value.tokens, request.spec
    allowed = [spec.allowed_after(tokens[:t]) for t in range(len(tokens))]
    log_probs = warped_log_probs(logits, [spec.warp] * len(tokens), allowed)
    chosen = log_probs.gather(1, torch.tensor(tokens, device=logits.device)[:, None])
    total = float(chosen.double().sum())
    if math.isnan(total):
        raise WeightError(f"{request.label}: {request.value.text!r} has log-probability NaN")
    return total


def _could_be_drawn(model: LanguageModel, request: ScoreRequest) -> bool:
    """True if a draw that chose these tokens would have stopped at the last and not before."""
    tokens, rule = request.value.tokens, request.spec.rule
    room = model.context_length - len(request.spec.tokens)
    limit = room if request.spec.max_tokens is None else min(room, request.spec.max_tokens)
    if not tokens or len(tokens) > limit:
        return False
    characters = rule.single_characters
    stops = None if characters is None else _tokens_with(model.codec, characters)
    reasons = [_stop_reason(model, rule, tokens[:t], stops) for t in range(1, len(tokens) + 1)]
    cut = request.spec.max_tokens is not None and len(tokens) == limit
    return all(r is None for r in reasons[:-1]) and (reasons[-1] is not None or cut)
