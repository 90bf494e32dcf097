"""Rows that compute guesses of their next tokens along with the token that they have drawn.

A guess that turns out to be what is drawn next has its states already. The others are forgotten:
a row's slot is cut by position, and nothing of them was ever known to the prefix tree.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from ppl.errors import UnsupportedModelError
from ppl.language.cost import Account
from ppl.lm.engine.decoder import EngineDecoder, Stem, whole
from ppl.lm.engine.engine import Engine
from ppl.lm.engine.runs import Tokens


class Counts(Protocol):
    """Where guesses are counted.

    Attributes:
        tokens_drafted: guessed tokens that passes computed.
        tokens_accepted: those of them that were drawn next.
    """

    tokens_drafted: int
    tokens_accepted: int


class DraftDecoder(EngineDecoder):
    """An `EngineDecoder` whose rows may be ahead of what they have drawn; see `ahead`.

    Args:
        counts: where guesses are counted.
        engine, head, known_as: as there.

    Attributes:
        fresh: `[n, V]` logits of the rows that joined last.
    """

    def __init__(
        self,
        counts: Counts,
        engine: Engine,
        head: Callable[[Tensor], Tensor],
        known_as: Callable[[Tokens], Tokens] | None = None,
    ) -> None:
        super().__init__(engine, head, known_as)
        self._counts = counts
        self._guessed: list[int] = []  # per stem, tokens at its end that nobody has drawn yet
        self.fresh = torch.zeros(0)

    def packs(self, tokens: int) -> bool:
        """Whether a pass of so many tokens computes a row's guesses without padding other rows."""
        return self._engine.runner.as_steps(tokens)

    @whole
    def join(self, prefixes: Sequence[Tokens], ledgers: Sequence[Account | None]) -> None:
        """See `Decoder`; only the new rows have logits then."""
        first = len(self._stems)
        self._logits = self._logits[:0]
        super().join(prefixes, ledgers)
        self._guessed += [0] * (len(self._stems) - first)
        new = [stem - first for stem in self._stem_of[len(self._stem_of) - len(prefixes) :]]
        self.fresh = self._logits if new == list(range(len(self._logits))) else self._logits[new]

    @whole
    def ahead(
        self, keep: Sequence[int], tokens: Sequence[int], guesses: Sequence[Tokens]
    ) -> tuple[Sequence[Tensor] | Tensor, list[Tokens]]:
        """Drops all active rows but `keep`, appends to each its token and, behind it, guesses, in
        one pass. `settle` has to follow.

        Rows of one text that draw one token are computed as one, with the guesses of the first;
        what is known already needs none.

        Returns:
            For each row `[T, V]` the logits after its token and each guess, and these guesses.
        """
        blocks: dict[tuple[int, int], Tokens] = {}
        for row, token, guess in zip(keep, tokens, guesses, strict=True):
            stem = self._stem_of[row]
            if (stem, token) not in blocks:
                blocks[stem, token] = (token, *self._worth(self._stems[stem], token, guess))
        used = [blocks[self._stem_of[r], t] for r, t in zip(keep, tokens, strict=True)]
        if any(len(block) > 1 for block in used):
            logits: Sequence[Tensor] | Tensor = self.extend(keep, used)
        else:
            self.advance(keep, tokens)
            logits = self.logits[:, None]
        self._guessed = [0] * len(self._stems)
        for number, block in zip(self._stem_of, used, strict=True):
            self._guessed[number] = len(block) - 1
        self._counts.tokens_drafted += sum(self._guessed)
        return logits, [block[1:] for block in used]

    def _worth(self, stem: Stem, token: int, guess: Tokens) -> Tokens:
        """The guesses, unless the token itself is known: then nothing is computed."""
        known = stem.slot is None and self._engine.known((*stem.text, token)) is not None
        return () if known else guess

    @whole
    def settle(self, keep: Sequence[int], lengths: Sequence[int]) -> None:
        """Drops all active rows but `keep`, and cuts texts to what was drawn of them.

        Args:
            lengths: for each active row, those that are dropped too, how many tokens are left.
        """
        if len(keep) == len(self._stem_of) and not any(self._guessed):
            return
        old, was, pool = self._stems, self._stem_of, self._engine.pool
        longest = [0] * len(old)
        for number, length in zip(was, lengths, strict=True):
            longest[number] = max(longest[number], length)
        for stem, length, guessed in zip(old, longest, self._guessed, strict=True):
            self._counts.tokens_accepted += max(0, length - (len(stem.text) - guessed))
            if length < len(stem.text):
                stem.text = stem.text[:length]
                if stem.slot is not None:
                    stem.slot.shorten(length)
        kept = [(was[row], lengths[row]) for row in keep]
        numbers = {part: i for i, part in enumerate(dict.fromkeys(kept))}
        self._stem_of = [numbers[part] for part in kept]
        self._stems = []
        for number, length in numbers:
            stem = old[number]
            if length == len(stem.text):
                self._stems.append(stem)
            else:  # others of its rows are further, or were: it goes on from what is known
                if stem.slot is not None:
                    pool.insert(stem.text, stem.slot)
                self._stems.append(Stem(stem.text[:length], None))
        for stem in old:
            if all(stem is not kept_one for kept_one in self._stems):
                self._close(stem)
        self._guessed = [0] * len(self._stems)
        self._logits = self._logits[:0]


def refuse_drafts(engine: Engine, graphs: bool) -> None:
    """Raises UnsupportedModelError for an engine whose rows cannot take back what they computed."""
    keeps = engine.slots.keeps
    if engine.resumes:
        why = "its recurrent layers cannot take back what they have read"
    elif graphs:
        why = "captured steps take one token a row; load it with graphs=False"
    elif keeps.gives_up:
        why = (
            f"with kv='{keeps}' a row gives up what it may have to go back to; load it with 'full'"
        )
    else:
        return
    raise UnsupportedModelError(f"{engine.name}: no drafts: {why}")
