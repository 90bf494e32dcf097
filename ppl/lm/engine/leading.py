"""Rows that get several tokens at once; see `ppl.lm.leading`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ppl.lm.engine.burst import Burst
from ppl.lm.engine.decoder import EngineDecoder, Stem, whole
from ppl.lm.engine.engine import Engine
from ppl.lm.engine.runs import Tokens
from ppl.lm.sampling import Warp


class LeadingDecoder(EngineDecoder):
    """An `EngineDecoder` whose rows may have more tokens than they have shown.

    Args:
        engine, head: as there.
        bursts: makes several steps at once; None where they have to be by themselves.
    """

    def __init__(
        self, engine: Engine, head: Callable[[Tensor], Tensor], bursts: Burst | None = None
    ) -> None:
        super().__init__(engine, head)
        self._bursts = bursts

    def known_after(self, token: int, most: int) -> tuple[Tokens, Tensor] | None:
        """What the only active row may go on with after a token, all of it known: tokens, and
        logits `[1 + n, V]` after the first and after each of these. None where that is not known,
        or there are several ways."""
        return None if self._stems[0].slot is not None else self._known_after(token, most)

    @whole
    def _known_after(self, token: int, most: int) -> tuple[Tokens, Tensor] | None:
        text = (*self._stems[0].text, token)
        found = self._engine.pool.after(text, most)
        if found is None:
            return None
        tokens, states = found
        return tokens, self._head(states, [text] * len(states))

    @whole
    def follow(self, tokens: Sequence[int]) -> None:
        """Lets the only active row go on along what is known; `advance` has to follow."""
        self._stems = [Stem((*self._stems[0].text, *tokens), None)]

    def bursts(self, warps: Sequence[Warp]) -> int:
        """How many steps of the active rows, which draw so, one burst may be; 0 for none: each has
        to be alone with its text, and in a slot."""
        if self._bursts is None or len(self._stems) != len(self._stem_of):
            return 0
        if any(stem.slot is None for stem in self._stems):
            return 0
        return self._bursts.takes(warps)

    @whole
    def burst(
        self,
        tokens: Sequence[int],
        uniforms: NDArray[np.float64],
        pauses: Sequence[NDArray[np.uint8]],
        temperatures: Sequence[float],
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]] | None:
        """Appends to each row its token, and then what is drawn, but for the last; see `Burst`."""
        assert self._bursts is not None
        stems = [self._stems[stem] for stem in self._stem_of]
        slots = [stem.slot for stem in stems if stem.slot is not None]
        texts = [(*stem.text, token) for stem, token in zip(stems, tokens, strict=True)]
        self._engine.room(slots, [len(uniforms)] * len(slots))
        made = self._bursts(slots, texts, uniforms, pauses, temperatures)
        if made is not None:
            for stem, text, drawn in zip(stems, texts, made[0][:-1].T.tolist(), strict=True):
                stem.text = (*text, *drawn)
        return made

    @whole
    def cut(self, count: int) -> None:
        """Takes so many last tokens back of all active rows; they are known from then on."""
        for stem in self._stems:
            self._close(stem)
            stem.text = stem.text[: len(stem.text) - count]
