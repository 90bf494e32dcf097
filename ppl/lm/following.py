"""Running batches whose only row follows a text that is known.

A search that goes back to a node draws again from texts of which the engine knows how they went on
(`ppl.lm.engine.prefix`). As long as a row draws what was drawn before it needs no pass, only draws:
the logits of all that is known come from one product of the head, and the tokens are drawn
together, each by its own number. The row shows one token a step like all others, so what its search
pays, and which rows are done first, is as without.
"""

from __future__ import annotations

import math
from collections import deque

import numpy as np
from torch import Tensor

from ppl.errors import PPLError
from ppl.language.randomness import Uniforms, uniforms
from ppl.lm import sampling
from ppl.lm.base import Drawn, Tokens
from ppl.lm.company import gives_back
from ppl.lm.decode import LogitsModel, Session, _admit
from ppl.lm.engine.decoder import EngineDecoder
from ppl.lm.row import Row

# Known tokens that are drawn together: what is drawn beyond the first that differs is for nothing.
_MOST = 16


class FollowingSession(Session):
    """A running batch of an engine; see `Session` for what it is to others.

    Args:
        model: what draws.
        decoder: an empty batch of it.
    """

    def __init__(self, model: LogitsModel, decoder: EngineDecoder) -> None:
        super().__init__(model)
        self._decoder: EngineDecoder = decoder
        self._drawn: deque[tuple[int, float]] = deque()  # by the only row, and not shown
        self._behind = 0  # tokens that it has shown, and the decoder does not have

    @gives_back
    def step(self) -> dict[int, Drawn | PPLError | None]:
        """Shows one token of every row; answers those that are done."""
        if not self._drawn:
            return super().step()
        (row,) = self._rows
        if row.unwanted or self._waiting or _admit([row]):
            self._catch_up()
            super()._go_on([0])
            return super().step()
        try:
            drawn: Drawn | PPLError | None = row.push(self.model, *self._drawn.popleft())
        except PPLError as error:
            drawn = error
        self._behind += 1
        if drawn is not None:
            self._go_on([])
            return {row.ticket: drawn}
        if not self._drawn:
            self._catch_up()
            self._go_on([0])
        return {}

    def _go_on(self, keep: list[int]) -> None:
        self._drawn.clear()
        if len(self._rows) == 1 and keep and not self._waiting and _plain(row := self._rows[0]):
            found = self._decoder.known_after(row.new[-1], _MOST)
            self._drawn = deque() if found is None else _drawn_along(row, *found)
        self._behind = 1
        if not self._drawn:
            super()._go_on(keep)

    def _catch_up(self) -> None:
        """Lets the decoder have all but the last token that its row has shown."""
        (row,) = self._rows
        self._decoder.follow(row.new[len(row.new) - self._behind : -1])
        self._uniforms = Uniforms([row.request.key], [len(row.new)])
        self._drawn.clear()


def _plain(row: Row) -> bool:
    """Whether what it draws depends on its tokens only by their logits, and is all that is read."""
    return row.request.spec.allowed is None and row.request.under is None


def _drawn_along(row: Row, known: Tokens, logits: Tensor) -> deque[tuple[int, float]]:
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
    drawn: deque[tuple[int, float]] = deque()
    for i, (token, log_prob) in enumerate(zip(tokens, log_probs, strict=True)):
        if not math.isfinite(log_prob):
            break  # said where it is drawn by itself
        drawn.append((token, log_prob))
        if i == len(known) or token != known[i]:
            break
    return drawn
