"""Rows that get several tokens at once; see `ppl.lm.leading`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ppl.lm.engine.decoder import EngineDecoder, whole
from ppl.lm.engine.engine import Engine
from ppl.lm.engine.runs import Slot, Tokens
from ppl.lm.sampling import Warp


class Asked(NamedTuple):
    """How the rows of a burst draw.

    Attributes:
        uniforms: `[T, rows]` by which.
        pauses: `[V]` of each row 1 for tokens with which it may end; read where bursts pause.
        temperatures: of each row, by which its logits are divided.
        steps: most of each row; its slot may make more for others.
        patient: whether slots that have paused may wait for others: for as many steps, all
            together, as are one step of all.
    """

    uniforms: NDArray[np.float64]
    pauses: Sequence[NDArray[np.uint8]]
    temperatures: Sequence[float]
    steps: Sequence[int]
    patient: bool


class Bursts(Protocol):
    """Makes several decode steps at once, each of the tokens drawn after the one before.

    Attributes:
        few: so few rows are worth it whoever comes between.
        pausing: whether a slot pauses with a token with which a row of it may end; else it goes on.
        shares: whether rows may be of one slot; where they draw different tokens, a burst ends.
    """

    few: int
    pausing: bool
    shares: bool

    def takes(self, warps: Sequence[Warp]) -> int:
        """How many steps of rows that draw so one burst may be; 0 for none."""

    def __call__(
        self,
        slots: Sequence[Slot],
        texts: Sequence[Tokens],
        slot_of: Sequence[int],
        asked: Asked,
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]] | None:
        """Computes the last token of each text, draws the next, computes that, and so on; of the
        last that is drawn nothing is computed.

        Args:
            slots: have all but the last token of each text, and room for so many more.
            texts: of each slot.
            slot_of: of each row which of the slots has its text.
            asked: how rows draw.

        Returns:
            Tokens and their log-probabilities `[t, rows]`: of each row up to where it paused, or
            where there is no distribution (NaN), then tokens are -1; None where rows read something
            together, or are no longer steps of one program, which is not for a burst.
        """


class LeadingDecoder(EngineDecoder):
    """An `EngineDecoder` whose rows may have more tokens than they have shown.

    Args:
        engine, head: as there.
        bursts: makes several steps at once; None where they have to be by themselves.

    Attributes:
        few, pausing: as of `bursts`.
    """

    def __init__(
        self, engine: Engine, head: Callable[[Tensor], Tensor], bursts: Bursts | None = None
    ) -> None:
        super().__init__(engine, head)
        self._bursts = bursts
        self.few = 1 if bursts is None else bursts.few
        self.pausing = bursts is None or bursts.pausing

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

    def bursts(self, warps: Sequence[Warp]) -> int:
        """How many steps of the active rows, which draw so, one burst may be; 0 for none: all have
        to be in slots, and where these are not shared each in its own."""
        if self._bursts is None or any(stem.slot is None for stem in self._stems):
            return 0
        if len(self._stems) != len(self._stem_of) and not self._bursts.shares:
            return 0
        return self._bursts.takes(warps)

    @property
    def width(self) -> int:
        """How many logits a row has."""
        return self._logits.shape[1]

    @whole
    def burst(
        self,
        tokens: Sequence[int],
        asked: Asked,
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]] | None:
        """Appends to each row its token, and then what is drawn, but for the last; see `Bursts`.
        None, and nothing, where rows have left their slots since `bursts` was asked."""
        assert self._bursts is not None
        before, clock = (self._stems, self._stem_of), self._engine.slots.clock
        if any(stem.slot is None for stem in self._stems):
            return None  # another batch has taken the memory of one since
        self._branch(range(len(tokens)), [(token,) for token in tokens])
        slots = [stem.slot for stem in self._stems if stem.slot is not None]
        self._engine.room(slots, [len(asked.uniforms)] * len(slots))
        made = self._bursts(slots, self._texts, self._stem_of, asked)
        if made is None:
            self._engine.slots.drop_since(clock)  # forked for nothing
            self._stems, self._stem_of = before
            return None
        # Those of before are nobody's; there are as many as stems.
        self._logits = self._logits[:1].expand(len(self._stems), -1)
        of_stem = dict(zip(self._stem_of, made[0].T.tolist(), strict=True))  # of any row of it
        for i, stem in enumerate(self._stems):
            drawn = of_stem[i]
            there = drawn.index(-1) if drawn[-1] == -1 else len(drawn)
            stem.text = (*stem.text, *drawn[: there - 1])
        return made

    @whole
    def leave(self, rows: Sequence[int], texts: Sequence[Tokens] | None) -> None:
        """Ends some of the active rows; the others stay where they are. What is behind these texts
        of theirs, if any are given, is nobody's."""
        shown: Sequence[Tokens | None] = [None] * len(rows) if texts is None else texts
        gone = dict(zip(rows, shown, strict=True))
        staying = [stem for row, stem in enumerate(self._stem_of) if row not in gone]
        kept = {stem: i for i, stem in enumerate(dict.fromkeys(staying))}
        for row, text in gone.items():
            stem = self._stems[self._stem_of[row]]
            if self._stem_of[row] in kept:
                continue
            if text is not None and len(text) < len(stem.text):
                self._engine.runner.unwanted(len(stem.text) - len(text))
                stem.text = text
            self._close(stem)
        self._logits = self._logits[list(kept)]
        self._stems = [self._stems[stem] for stem in kept]
        self._stem_of = [kept[stem] for stem in staying]

    @whole
    def settle(self, texts: Sequence[Tokens]) -> None:
        """Lets the active rows have these texts, with which theirs begin, or to which theirs go on
        along what is known; `advance` has to follow. What they give up stays known."""
        for stem, text in zip((self._stems[stem] for stem in self._stem_of), texts, strict=True):
            if len(stem.text) > len(text):
                self._close(stem)
            stem.text = text
