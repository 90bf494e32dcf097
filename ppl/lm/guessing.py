"""What one model has of guesses of what its rows draw next: where they come from, and what is known
of how right they are.

Guesses cost time where they are not used, too, so as little is done about them as can be. Laws are
kept of what is drawn as long as guesses are computed. Where none was for a while, rows draw as if
there were none, and are looked at from time to time: a guess is checked against what is then drawn
without being computed.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ppl.errors import PPLError, PromptError
from ppl.language.randomness import uniforms
from ppl.lm import sampling
from ppl.lm.ahead import Ahead
from ppl.lm.base import Tokens
from ppl.lm.company import Company
from ppl.lm.decode import LogitsModel
from ppl.lm.drafts import Drafts
from ppl.lm.ngrams import Guess, Ngrams, Share, leading, share_of
from ppl.lm.pace import Switch
from ppl.lm.row import Row
from ppl.locks import lock

# Kinds of guesses of a model: how likely it found them, in tenths.
_TENTHS = 11
# A row that is so many tokens ahead of the last guesses no more.
_FAR = 4
# Up to so many passes after a guess was computed, laws are kept of what is drawn; so many later, if
# there are more than a few rows, little is done, and it is looked into every so many passes.
_SOON, _LONG, _FEW, _SELDOM = 4, 16, 2, 8
# Of texts that were drawn meanwhile so many are kept until then.
_UNREAD = 64
# Tokens that were drawn with another probability than these say all about their law themselves.
_OPEN = (math.log(0.02), math.log(0.9))
# A small model is asked again after so many passes for which it was not worth it.
_AGAIN = 64


class Drafting:
    """What one model has of drafts.

    Args:
        settings: how it guesses.
        vocabulary: how many token ids it has.

    Attributes:
        settings: as given.
        tokens_drafted: guessed tokens that passes computed.
        tokens_accepted: those of them that were drawn next; the others were computed for nothing.
        row_passes: rows of passes: so many tokens would be drawn without guesses.
    """

    def __init__(self, settings: Drafts, vocabulary: int) -> None:
        self.settings, self._vocabulary = settings, vocabulary
        self.tokens_drafted = self.tokens_accepted = self.row_passes = 0
        self.store = Ngrams(settings.ngram)
        self.small = None if isinstance(settings.source, str) else settings.source
        kinds = self.store.kinds if self.small is None else _TENTHS
        self.switch = Switch(kinds, settings.switch == "always")
        self._least = 0.0  # how likely right a guess has to be, so that it is looked for
        self._lock = lock()  # sessions of several threads write to the store
        self._passes, self._since = 0, _SOON + 1  # passes, and those since a guess was computed
        self._idle = False  # guessing has not been worth it for long
        self._unread: deque[Tokens] = deque(maxlen=_UNREAD)
        self._asked, self._seconds = 0, 0.0  # of the small model: passes since, seconds a token

    @property
    def acceptance(self) -> float:
        """Which part of the guesses that passes computed were right."""
        return self.tokens_accepted / max(1, self.tokens_drafted)

    def __repr__(self) -> str:
        return f"Drafting({self.tokens_accepted} of {self.tokens_drafted} guesses right)"

    def forget(self) -> None:
        """Counts from zero, and knows no text; what passes cost is kept."""
        self.tokens_drafted = self.tokens_accepted = self.row_passes = 0
        self.fresh()

    def fresh(self) -> None:
        """Knows no text, nor does the small model."""
        self.store = Ngrams(self.settings.ngram)
        self._unread.clear()
        if self.small is not None:
            self.small.fresh()

    def guesses(
        self,
        rows: Sequence[Row],
        aheads: Sequence[Ahead],
        packs: Callable[[int], bool],
        waiting: bool,
    ) -> int:
        """Sets for each row what it guesses, and how much of this to compute.

        Rows show their tokens together, so one that is far ahead of another gains nothing by being
        further, unless others wait for its place.

        Args:
            rows, aheads: of a pass.
            packs, waiting: see `Switch.depths`.

        Returns:
            How many rows may guess.
        """
        always = self.settings.switch == "always"
        limit = math.inf if always or waiting else min(a.lead for a in aheads) + _FAR
        near = [i for i, ahead in enumerate(aheads) if ahead.lead < limit]
        self._passes += 1
        self._since += 1
        for ahead in aheads:
            ahead.proposed, ahead.depth = [], 0
        self._idle = not always and len(rows) > _FEW and self._since > _LONG
        if not self.switch.could(len(rows), packs) or (self._idle and self._passes % _SELDOM):
            return len(near)
        if self._idle or self._unread:
            self._catch_up(rows if self._idle else ())
        rooms = [min(self.settings.depth, row.limit - len(row.new) - 1) for row in rows]
        small = self.small
        if small is None:
            self._least = self.switch.least(len(rows))
            for i in near:
                aheads[i].proposed = self._from_store(rows[i], aheads[i], rooms[i])
        else:
            # Its context may be shorter than that of whom it guesses for.
            rooms = [
                min(room, small.context_length - row.length)
                for room, row in zip(rooms, rows, strict=True)
            ]
            asking = [i for i in near if rooms[i] > 0]
            longest = max((rows[i].length + rooms[i] for i in asking), default=1)
            company = small.company or Company(contextlib.nullcontext())
            with company.lock:  # its memory may be full of rows that it draws for others
                asking = asking[: company.room(small, longest)]
                some, theirs = [rows[i] for i in asking], [aheads[i] for i in asking]
                self._from_model(small, some, theirs, [rooms[i] for i in asking], len(rows))
        chains = []
        for i in near:
            chain, chance = [], 1.0
            for _, kind in aheads[i].proposed:
                chance *= min(0.98, self.switch.rate(kind) * aheads[i].trust)
                chain.append(chance)
            chains.append(chain)
        depths = self.switch.depths(chains, len(rows), packs, waiting)
        if any(depths):
            self._since = 0
        for i, depth in zip(near, depths, strict=True):
            aheads[i].depth = depth
        return len(near)

    def _catch_up(self, rows: Sequence[Row]) -> None:
        """Reads what was drawn while nobody looked."""
        if self.small is None:
            with self._lock:
                while self._unread:
                    self.store.read(self._unread.popleft())
                for row in rows:
                    self.store.read(row.tokens)

    def _from_store(self, row: Row, ahead: Ahead, depth: int) -> list[Guess]:
        proposed: list[Guess] = []
        if depth <= 0:
            return proposed
        context = last(row, self.settings.ngram)
        start = len(row.new)
        numbers = uniforms(ahead.key, np.arange(start, start + depth)).tolist()
        chance = 1.0
        for number in numbers:
            guess = self.store.guess(context, number)
            if guess is None:
                break
            chance *= self.switch.rate(guess.kind) * ahead.trust
            if chance < self._least and proposed:
                break
            proposed.append(guess)
            context.append(guess.token)
        return proposed

    def _from_model(
        self,
        small: LogitsModel,
        rows: Sequence[Row],
        aheads: Sequence[Ahead],
        depths: Sequence[int],
        beside: int,
    ) -> None:
        """A smaller model draws on, with each row's numbers, masks and settings."""
        most = self._worth(beside, aheads, max(depths, default=0))
        if not most:
            return
        going = list(range(len(rows)))
        started = time.perf_counter()
        decoder = small.decoder()
        # Either may have token ids that the other has not.
        try:
            decoder.join([rows[i].tokens for i in going], [None] * len(going))
        except PromptError:
            return
        try:
            for step in range(most):
                logits = decoder.logits[:, : self._vocabulary]
                some = [rows[i] for i in going]
                news = [
                    [*rows[i].new, *(guess.token for guess in aheads[i].proposed)] for i in going
                ]
                try:
                    masks = [
                        r.request.spec.allowed_after(
                            new, r.request.label, self._vocabulary, small.codec
                        )
                        for r, new in zip(some, news, strict=True)
                    ]
                except PPLError:  # said where the row itself comes so far
                    break
                size = logits.shape[-1]
                allowed = [None if mask is None else mask[:size] for mask in masks]
                keys = np.concatenate([aheads[i].key for i in going])
                numbers = uniforms(keys, np.array([len(new) for new in news]))
                warps = [row.request.spec.warp for row in some]
                tokens, log_probs = sampling.draw(logits, warps, allowed, numbers)
                keep = []
                for at, (i, token, log_prob) in enumerate(
                    zip(going, tokens, log_probs, strict=True)
                ):
                    if not math.isfinite(log_prob):
                        continue
                    aheads[i].proposed.append(Guess(token, round(10 * math.exp(log_prob))))
                    ends = token in small.codec.end_tokens
                    if not ends and len(aheads[i].proposed) < min(depths[i], most):
                        keep.append(at)
                if step == most - 1 or not keep:
                    break
                going = [going[at] for at in keep]
                decoder.advance(keep, [aheads[i].proposed[-1].token for i in going])
        finally:
            decoder.advance([], [])
        self._seconds = (time.perf_counter() - started) / (step + 1)

    def _worth(self, beside: int, aheads: Sequence[Ahead], depth: int) -> int:
        """How many guesses of each row a small model should be asked for, in a pass of so many
        rows."""
        base = self.switch.costs.of(beside)
        if self.settings.switch == "always" or not self._seconds or base is None or not depth:
            return depth
        self._asked += 1
        rate = self.switch.mean * sum(ahead.trust for ahead in aheads) / len(aheads)
        best, most, gained, chance = 0, 1 / base, 1.0, 1.0
        for guesses in range(1, depth + 1):
            chance *= min(0.98, rate)
            gained += chance
            tokens = beside + guesses * len(aheads)
            speed = gained / ((self.switch.costs.of(tokens) or base) + guesses * self._seconds)
            if speed > most:
                best, most = guesses, speed
        if best or self._asked > _AGAIN:
            self._asked = 0
        return best or int(self._asked == 0)

    def read(self, row: Row) -> None:
        """What a row that joins goes on from."""
        if self.small is None and row.limit > 1:
            with self._lock:
                self.store.read(row.request.spec.tokens)

    def ended(self, row: Row) -> None:
        """A row has drawn all of its text."""
        if self._idle and self.small is None and row.limit > 1:
            self._unread.append(row.tokens)

    def told(self, aheads: Sequence[Ahead], drawn: Sequence[Sequence[int]]) -> None:
        """What rows drew after a pass, whatever of their guesses it computed."""
        found = 0
        for ahead, tokens in zip(aheads, drawn, strict=True):
            for guess, token in zip(ahead.proposed, tokens, strict=False):
                right = guess.token == token
                ahead.right = 0.9 * ahead.right + right
                ahead.hoped = 0.9 * ahead.hoped + self.switch.rate(guess.kind)
                self.switch.tell(guess.kind, right)
                if not right:
                    break
                found += 1
        if self._idle and 2 * found > len(aheads):  # there is something to guess again
            self._since = _SOON + 1

    def note(
        self,
        rows: Sequence[Row],
        allowed: Sequence[Tensor | None],
        logits: Tensor,
        numbers: NDArray[np.float64],
        tokens: Sequence[int],
        log_probs: Sequence[float],
    ) -> None:
        """From which laws what was drawn; the tokens are not yet behind the rows' texts."""
        if self.small is not None or self._idle or all(row.limit == 1 for row in rows):
            return
        contexts = [last(row, self.settings.ngram) for row in rows]
        # What the store says anyway need not be told again.
        told = [self.store.guess(*each) for each in zip(contexts, numbers.tolist(), strict=True)]
        new = [i for i, guess in enumerate(told) if guess is None or guess.token != tokens[i]]
        whole = [
            i
            for i in new
            if (self._since <= _SOON or self.settings.switch == "always")
            and _OPEN[0] < log_probs[i] < _OPEN[1]
            and allowed[i] is None
            and rows[i].request.spec.warp.only_heats
        ]
        laws: dict[int, list[Share]] = {}
        if whole:
            # A row at a time stays in the processor's cache; on a device each would be a transfer.
            parts = [[i] for i in whole] if logits.device.type == "cpu" else [whole]
            for part in parts:
                some = sampling.heated(logits[part], [rows[i].request.spec.warp for i in part])
                laws |= zip(part, leading(torch.softmax(some, -1)), strict=True)
        for i in new:
            law = laws.get(i) or [share_of(tokens[i], log_probs[i], float(numbers[i]))]
            with self._lock:
                self.store.note(contexts[i], law)


def last(row: Row, count: int) -> list[int]:
    """The last tokens of a row's text, so many if it has them."""
    new = row.new[-count:]
    missing = count - len(new)
    return [*row.request.spec.tokens[-missing:], *new] if missing else new
