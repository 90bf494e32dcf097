"""Running batches that draw several tokens at once where they can, and show one a step.

Two things need no pass, or no step, for each token. A row that is alone and goes back to where a
search has been draws again from texts of which the engine knows how they went on
(`ppl.lm.engine.prefix`): as long as it draws what was drawn before it needs only draws, and the
logits of all that is known come from one product of the head. And some models make several steps
at once (`ppl.lm.engine.bursts`).

Each token is drawn by its own number from its own logits, as without. Rows show one token a step
like all others, so what their search pays, and which of them are done first, is as without, too.
Where something comes between, a row that joins, or a budget that ends, they go back to what they
have shown; what was computed stays known.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ppl.errors import PPLError
from ppl.language.randomness import Uniforms, uniforms
from ppl.lm import sampling
from ppl.lm.base import Drawn, Tokens
from ppl.lm.company import gives_back
from ppl.lm.decode import LogitsModel, Session, _book, _broke, _payers
from ppl.lm.engine.leading import Asked, LeadingDecoder
from ppl.lm.row import Row

# Known tokens that are drawn together: what is drawn beyond the first that differs is for nothing.
_MOST = 16
# Steps in which nobody comes between, after which many rows make more than one at once.
_CALM = 8

Step = list[tuple[int, float] | None]
"""Of each row a token, and its log-probability; None for one that has paused."""


class LeadingSession(Session):
    """A running batch of an engine; see `Session` for what it is to others.

    Args:
        model: what draws.
        decoder: an empty batch of it.
    """

    def __init__(self, model: LogitsModel, decoder: LeadingDecoder) -> None:
        super().__init__(model)
        self._decoder: LeadingDecoder = decoder
        # Drawn, and not shown. As long as there are any, the decoder has other texts than rows.
        self._drawn: deque[Step] = deque()
        # Steps since rows joined others that were running, or paused and did not end.
        self._calm = 2 * _MOST

    @gives_back
    def step(self) -> dict[int, Drawn | PPLError | None]:
        """Shows one token of every row; answers those that are done."""
        rows, paused = self._rows, bool(self._drawn) and None in self._drawn[0]
        self._calm = 0 if paused or (self._waiting and rows) else self._calm + 1
        if not self._drawn:
            return super().step()
        payers = _payers(rows)
        if paused or self._waiting or any(row.unwanted for row in rows) or _broke(payers):
            self._settle()
            super()._go_on(list(range(len(rows))))
            return super().step()
        _book(payers)
        done: dict[int, Drawn | PPLError | None] = {}
        for row, now in zip(rows, self._drawn.popleft(), strict=True):
            assert now is not None
            try:
                drawn: Drawn | PPLError | None = row.push(self.model, *now)
            except PPLError as error:
                drawn = error
            if drawn is not None:
                done[row.ticket] = drawn
        going = [i for i, row in enumerate(rows) if row.ticket not in done]
        if not self._drawn:
            self._settle()
            self._go_on(going)
        elif done:
            self._leave(going)
        return done

    def _go_on(self, keep: list[int]) -> None:
        if not keep:  # what they are ahead of what they have shown stays known
            self._drawn.clear()
        elif (
            (len(keep) <= self._decoder.few or self._calm >= _CALM)
            and not self._waiting
            and all(_plain(self._rows[i]) for i in keep)
        ):
            if len(keep) < len(self._rows):
                self._leave(keep)
                keep = list(range(len(keep)))
            self._lead()
        if not self._drawn:
            super()._go_on(keep)

    def _leave(self, keep: list[int]) -> None:
        """All rows but these are done; these stay as far ahead of what they have shown."""
        staying = set(keep)
        gone = [i for i in range(len(self._rows)) if i not in staying]
        shown = [self._rows[i].text[:-1] for i in gone] if self._drawn else None
        with self._company.lock:
            self._decoder.leave(gone, shown)
            self._drawn = deque([step[i] for i in keep] for step in self._drawn if keep)
            self.held = [row for i, row in enumerate(self.held) if i in staying]
            self._rows = [self._rows[i] for i in keep]
            self._uniforms.keep(keep)

    def _settle(self) -> None:
        """Lets the decoder have all but the last token that its rows have shown."""
        self._drawn.clear()
        rows = self._rows
        self._decoder.settle([row.text[:-1] for row in rows])
        for row in rows:
            row.computed = 0
        keys, positions = zip(*((row.request.key, len(row.new)) for row in rows), strict=True)
        self._uniforms = Uniforms(keys, positions)

    def _lead(self) -> None:
        """Draws what can be drawn at once."""
        rows = self._rows
        if len(rows) == 1:
            found = self._decoder.known_after(rows[0].new[-1], _MOST)
            if found is not None:
                self._drawn = _drawn_along(rows[0], *found)
                return
        self._burst()

    def _burst(self) -> None:
        rows, pausing = self._rows, self._decoder.pausing
        if pausing and any(row.stop.asked for row in rows):
            return
        most = min(self._decoder.bursts([row.request.spec.warp for row in rows]), _left(rows))
        if len(rows) > self._decoder.few:
            most = min(most, self._calm // 2)
        steps = [min(most, row.limit - len(row.new)) for row in rows]
        if not pausing:
            steps = [min(steps)] * len(rows)
        if max(steps) < 2:
            return
        most = max(steps)
        size = self._decoder.width
        pauses = [row.stop.pauses(size) for row in rows] if pausing else []
        keys = np.array([row.request.key for row in rows], dtype=np.uint64)[:, None]
        positions = np.array([len(row.new) for row in rows])[:, None] + np.arange(most)
        numbers = uniforms(keys, positions).T
        longest = max(row.length for row in rows) + most
        with self._company.lock:
            if len(rows) > self._company.room(self.model, longest, self):
                return
            last = [row.new[-1] for row in rows]
            heat = [row.request.spec.warp.temperature for row in rows]
            patient = self._calm >= _CALM
            made = self._decoder.burst(last, Asked(numbers, pauses, heat, steps, patient))
            if made is None:
                return
            for row in rows:  # others that share the memory go by it
                row.computed = row.length + len(made[0]) - 1
        self._drawn = _steps(*made)
        if not self._drawn:  # what has no distribution is told where it is drawn by itself
            self._settle()


def _steps(tokens: NDArray[np.int64], log_probs: NDArray[np.float64]) -> deque[Step]:
    """What is drawn in each step of which anything is shown."""
    there = (tokens >= 0) & np.isfinite(log_probs)
    steps = zip(tokens.tolist(), log_probs.tolist(), there.tolist(), strict=True)
    drawn = ([(t, p) if one else None for t, p, one in zip(*step, strict=True)] for step in steps)
    return deque(step for step in drawn if any(step))


def _plain(row: Row) -> bool:
    """Whether what it draws depends on its tokens only by their logits, and is all that is read."""
    return row.request.spec.allowed is None and row.request.under is None


def _left(rows: Sequence[Row]) -> int:
    """How many tokens of each row those who pay have left."""
    payers = _payers(rows).items()
    return int(min([_MOST, *(ledger.tokens_left / count for ledger, count in payers)]))


def _drawn_along(row: Row, known: Tokens, logits: Tensor) -> deque[Step]:
    """What a row draws, each with its log-probability, up to the first token that is not known.

    Args:
        known: `n` tokens that may follow.
        logits: `[n + 1, V]` before each of them, and after the last.
    """
    count = len(logits)
    keys = np.full(count, row.request.key, dtype=np.uint64)
    numbers = uniforms(keys, len(row.new) + np.arange(count))
    own = getattr(row.request.model, "invert", None)
    warps, masks = [row.request.spec.warp] * count, [None] * count
    tokens, log_probs = sampling.draw(logits, warps, masks, numbers, own)
    drawn: deque[Step] = deque()
    for i, (token, log_prob) in enumerate(zip(tokens, log_probs, strict=True)):
        if not math.isfinite(log_prob):
            break  # said where it is drawn by itself
        drawn.append([(token, log_prob)])
        if i == len(known) or token != known[i]:
            break
    return drawn
