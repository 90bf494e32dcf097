"""Guesses of what rows draw next, which one pass computes along with what they have drawn: what
there is to set, and when it is worth it.

A guess changes no draw. A row draws each token from the model's own law by its own number, as
without guesses; a guess that is right has its states already, one that is wrong is forgotten.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Literal

from ppl.errors import UnsupportedModelError
from ppl.language import checks

if TYPE_CHECKING:
    from ppl.lm.base import LanguageModel
    from ppl.lm.decode import LogitsModel

# As if so many guesses of a kind had been made, of which this part was right.
_BEFORE, _RIGHT = 4.0, 0.3
# Counts are halved when there are so many, so that what was long ago counts for less.
_MANY = 256.0
# Seconds of so many passes of a size are kept, and for so many passes in all.
_TIMES, _AGE = 7, 400
# By so much a pass with guesses has to be better: what is chosen is what was estimated too well.
_WORTH = 1.05
# Guesses that are less likely right than this, with all before them, are not considered.
HOPELESS = 0.05


@dataclass(frozen=True)
class Drafts:
    """How guesses are made; `ppl.load(..., drafts=)`.

    Attributes:
        source: `"siblings"` guesses from what followed the same tokens before, in any text of the
            model; a smaller language model with the same tokenizer draws guesses itself, with the
            numbers, masks and settings of the row.
        depth: most guesses a row and pass.
        ngram: most tokens that are looked up together, for `"siblings"`.
        switch: `"auto"` measures what passes cost and how many guesses are right, and guesses as
            far as that saves time, if it does; `"always"` guesses as far as it can.
    """

    source: Literal["siblings"] | LogitsModel = "siblings"
    depth: int = 8
    ngram: int = 4
    switch: Literal["auto", "always"] = "auto"

    def __post_init__(self) -> None:
        checks.count(depth=self.depth, ngram=self.ngram)
        if self.switch not in ("auto", "always"):
            raise ValueError(f"switch={self.switch!r}: 'auto' or 'always'")
        if isinstance(self.source, str) and self.source != "siblings":
            raise ValueError(f"drafts={self.source!r}: 'siblings', or a language model")


def drafts_of(given: str | LanguageModel | Drafts, model: LogitsModel) -> Drafts:
    """What `drafts=` says.

    Raises:
        ValueError: another word than "siblings".
        UnsupportedModelError: a model that gives no logits here, or has another tokenizer.
    """
    if not isinstance(given, Drafts):
        given = Drafts(given)  # type: ignore[arg-type]
    small = given.source
    if isinstance(small, str):
        return given
    if not hasattr(small, "decoder"):
        raise UnsupportedModelError(
            f"drafts={small!r}: guesses are drawn here, by a model in this process"
        )
    if small.codec.identity != model.codec.identity:
        raise UnsupportedModelError(
            f"drafts={small!r}: it has another tokenizer than {model.name}; only a model with the "
            "same can guess its tokens"
        )
    return given


class Switch:
    """What passes cost, how often guesses are right, and so how far to guess.

    Nothing that is drawn depends on it.

    Args:
        kinds: of guesses.
        always: whether to guess as far as one can.
    """

    def __init__(self, kinds: int, always: bool) -> None:
        self._always = always
        self._made, self._right = [_BEFORE] * kinds, [_BEFORE * _RIGHT] * kinds
        self._seconds: dict[int, deque[float]] = defaultdict(lambda: deque(maxlen=_TIMES))
        self._last: dict[int, int] = {}
        self._passes = 0
        self._curve: list[tuple[int, float]] | None = None

    def rate(self, kind: int) -> float:
        """How often guesses of a kind are right."""
        return self._right[kind] / self._made[kind]

    @property
    def mean(self) -> float:
        """How often guesses of all kinds are right."""
        return sum(self._right) / sum(self._made)

    def tell(self, kind: int, right: bool) -> None:
        """A guess was made, and was right or wrong."""
        self._made[kind] += 1
        self._right[kind] += right
        if self._made[kind] > _MANY:
            self._made[kind] /= 2
            self._right[kind] /= 2

    def timed(self, tokens: int, seconds: float) -> None:
        """A pass of so many tokens took so long."""
        self._passes += 1
        self._curve = None
        size = _size(tokens)
        self._seconds[size].append(seconds)
        self._last[size] = self._passes

    def cost(self, tokens: int) -> float | None:
        """Seconds of a pass of so many tokens, None if nothing is known: between sizes that were
        measured a straight line, beyond the largest a guess that lets it be tried where much is to
        be gained."""
        if self._curve is None:
            self._curve = self._measured()
        below, least = 0, 0.0
        for size, seconds in self._curve:
            if tokens <= size:
                part = (tokens - below) / (size - below)
                return least + part * (seconds - least) if below else seconds
            below, least = size, seconds
        return least * math.sqrt(tokens / below) if below else None

    def _measured(self) -> list[tuple[int, float]]:
        """Seconds by size; noise aside, more tokens take no less."""
        known = sorted(s for s, last in self._last.items() if self._passes - last <= _AGE)
        seconds = itertools.accumulate((median(self._seconds[size]) for size in known), max)
        return list(zip(known, seconds, strict=True))

    def depths(self, chains: Sequence[Sequence[float]], rows: int, padded: bool) -> list[int]:
        """How many guesses of some rows to compute.

        Args:
            chains: for each of them the chance of each guess that it and all before it are right.
            rows: of the pass, with those that guess nothing.
            padded: whether all rows of a pass compute as many tokens as the one that has most.
        """
        if self._always:
            return [len(chain) for chain in chains]
        best = [0] * len(chains)
        base = self.cost(rows)
        if base is None:
            return best
        most = _WORTH * len(chains) / base
        chances = sorted({round(chance, 2) for chance in itertools.chain(*chains)}, reverse=True)
        for least in chances[:: max(1, len(chances) // 12)]:
            depths = [sum(round(chance, 2) >= least for chance in chain) for chain in chains]
            tokens = rows * (1 + max(depths)) if padded else rows + sum(depths)
            gained = sum(sum(chain[:d]) for chain, d in zip(chains, depths, strict=True))
            speed = (len(chains) + gained) / (self.cost(tokens) or base)
            if speed > most:
                best, most = depths, speed
        return best


def _size(tokens: int) -> int:
    """Passes of about so many tokens are taken together: up to 4 each apart, then by quarters."""
    if tokens <= 4:
        return tokens
    step = 1 << (tokens.bit_length() - 3)
    return -(-tokens // step) * step
