"""Running batches whose rows are ahead of what they answer, because guesses were right.

Passes compute guesses of a row's next tokens along with the token that it has drawn
(`ppl.lm.engine.drafts`). Each token is then drawn from its own logits by its own number, as without
guesses; as long as guesses are what is drawn, no pass is needed for the next. A row that is ahead
shows one token a step like all others: what its search pays, and which rows are done first, is as
without guesses.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ppl.errors import PPLError, PromptError
from ppl.language.randomness import uniforms
from ppl.lm import sampling
from ppl.lm.ahead import Ahead
from ppl.lm.base import Drawn
from ppl.lm.company import Company, gives_back
from ppl.lm.decode import LogitsModel, Session, _admit, _allowed, _draw_tokens
from ppl.lm.drafts import HOPELESS, Drafts, Switch
from ppl.lm.engine.drafts import DraftDecoder
from ppl.lm.ngrams import Guess, Ngrams, Share, leading, share_of
from ppl.lm.row import Row
from ppl.lm.sampling import _PLAIN, Warp

# Kinds of guesses of a model: how likely it found them, in tenths.
_TENTHS = 11
# A row that is so many tokens ahead of the last guesses no more.
_FAR = 4
# After so many passes without a guess that was worth it, it is looked into every so many passes.
_LONG, _SELDOM = 32, 8
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
        self._lock = threading.Lock()  # sessions of several threads write to the store
        self._passes = self._quiet = 0  # passes, and those since any guess was computed
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
        if self.small is not None:
            self.small.fresh()

    def guesses(
        self, rows: Sequence[Row], aheads: Sequence[Ahead], padded: bool, waiting: bool
    ) -> None:
        """Sets for each row what it guesses, and how much of this to compute.

        Rows show their tokens together, so one that is far ahead of another gains nothing by being
        further, unless others wait for its place.
        """
        always = self.settings.switch == "always"
        limit = math.inf if always or waiting else min(a.lead for a in aheads) + _FAR
        near = [i for i, ahead in enumerate(aheads) if ahead.lead < limit]
        self._passes += 1
        self._quiet += 1
        for ahead in aheads:
            ahead.proposed, ahead.depth = [], 0
        if self.quiet and self._passes % _SELDOM:
            return
        rooms = [min(self.settings.depth, row.limit - len(row.new) - 1) for row in rows]
        small = self.small
        if small is None:
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
        depths = self.switch.depths(chains, len(rows), padded)
        if any(depths):
            self._quiet = 0
        for i, depth in zip(near, depths, strict=True):
            aheads[i].depth = depth

    @property
    def quiet(self) -> bool:
        """Whether guessing has not been worth it for long: then little is done about it."""
        return self._quiet > _LONG

    def _from_store(self, row: Row, ahead: Ahead, depth: int) -> list[Guess]:
        proposed: list[Guess] = []
        if depth <= 0:
            return proposed
        context = last(row, self.settings.ngram)
        start = len(row.new)
        always = self.settings.switch == "always"
        numbers = uniforms(ahead.key, np.arange(start, start + depth)).tolist()
        chance = 1.0
        for number in numbers:
            guess = self.store.guess(context, number)
            if guess is None:
                break
            chance *= self.switch.rate(guess.kind) * ahead.trust
            if chance < HOPELESS and not always and proposed:
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
        base = self.switch.cost(beside)
        if self.settings.switch == "always" or not self._seconds or base is None or not depth:
            return depth
        self._asked += 1
        rate = self.switch.mean * sum(ahead.trust for ahead in aheads) / len(aheads)
        best, most, gained, chance = 0, 1 / base, 1.0, 1.0
        for guesses in range(1, depth + 1):
            chance *= min(0.98, rate)
            gained += chance
            tokens = beside + guesses * len(aheads)
            speed = gained / ((self.switch.cost(tokens) or base) + guesses * self._seconds)
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

    def told(self, ahead: Ahead, drawn: Sequence[int]) -> None:
        """What came after a pass of what was guessed."""
        for guess, token in zip(ahead.proposed, drawn, strict=False):
            right = guess.token == token
            ahead.right = 0.9 * ahead.right + right
            ahead.hoped = 0.9 * ahead.hoped + self.switch.rate(guess.kind)
            self.switch.tell(guess.kind, right)
            if not right:
                break

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
        if self.small is not None or all(row.limit == 1 for row in rows):
            return
        contexts = [last(row, self.settings.ngram) for row in rows]
        # What the store says anyway need not be told again.
        told = [self.store.guess(*each) for each in zip(contexts, numbers.tolist(), strict=True)]
        new = [i for i, guess in enumerate(told) if guess is None or guess.token != tokens[i]]
        whole = [
            i
            for i in new
            if allowed[i] is None and not self.quiet and _is_whole(rows[i].request.spec.warp)
        ]
        laws: dict[int, list[Share]] = {}
        if whole:
            some = (logits if len(whole) == len(rows) else logits[whole]).float()
            heat = [rows[i].request.spec.warp.temperature for i in whole]
            if any(each != 1 for each in heat):
                some = some / torch.tensor(heat, device=some.device)[:, None]
            laws = dict(zip(whole, leading(torch.softmax(some, -1)), strict=True))
        for i in new:
            law = laws.get(i) or [share_of(tokens[i], log_probs[i], float(numbers[i]))]
            with self._lock:
                self.store.note(contexts[i], law)


class DraftSession(Session):
    """A running batch with guesses; see `Session` for what it is to others.

    Args:
        model: what draws.
        drafting: what is known of drafts of this model.
        decoder: an empty batch of it.
    """

    def __init__(self, model: LogitsModel, drafting: Drafting, decoder: DraftDecoder) -> None:
        super().__init__(model)
        self._drafting = drafting
        self._decoder: DraftDecoder = decoder
        self._over: list[Row] = []  # rows that have drawn their last token, and not shown it
        self._aheads: dict[int, Ahead] = {}

    @property
    def running(self) -> bool:
        """True while a request has no answer."""
        return super().running or bool(self._over)

    def cancel(self, tickets: Any) -> None:
        """Nobody waits for these any more."""
        super().cancel(tickets)
        self._over = [row for row in self._over if row.ticket not in tickets]
        running = {row.ticket for row in self._rows}  # those are dropped by the next step
        for ticket in tickets:
            if ticket not in running:
                self._aheads.pop(ticket, None)

    @gives_back
    def step(self) -> dict[int, Drawn | PPLError | None]:
        """Shows one token of every row, and draws as many as there are logits for; answers those
        that are done."""
        before = len(self._rows)
        self._join()
        done: dict[int, Drawn | PPLError | None] = {}
        broke = _admit([row for row in (*self._rows, *self._over) if not row.unwanted])
        if broke:
            for row in (*self._rows, *self._over, *self._waiting):
                if row.request.ledger in broke:
                    done[row.ticket], row.unwanted = None, True
            self._waiting = type(self._waiting)(r for r in self._waiting if not r.unwanted)
            self._over = [row for row in self._over if not row.unwanted]
        new = self._rows[before:]
        if new:
            for row in new:
                if row.ticket not in self._aheads:
                    self._aheads[row.ticket] = Ahead(row.request.key)
                    self._drafting.read(row)
            wanted = [i for i, row in enumerate(new) if not row.unwanted]
            logits = self._decoder.fresh
            self._draw([new[i] for i in wanted], logits[wanted][:, None], [()] * len(wanted))
        self._settle()
        if any(self._aheads[row.ticket].lead == 0 for row in self._rows):
            self._pass()
            self._settle()
        for row in (*self._rows, *self._over):
            ahead = self._aheads[row.ticket]
            ahead.lead -= 1
            if ahead.lead == 0 and ahead.outcome is not None:
                if ahead.fatal:
                    assert isinstance(ahead.outcome, PPLError)
                    raise ahead.outcome
                done[row.ticket] = ahead.outcome
        self._over = [row for row in self._over if row.ticket not in done]
        for ticket in done:
            self._aheads.pop(ticket, None)
        return done

    def close(self) -> None:
        """Ends the batch."""
        self._waiting.clear()
        with self._company.lock:
            self._rows, self._over, self._aheads, self.held = [], [], {}, ()
            self._decoder.advance([], [])

    def _settle(self) -> None:
        """Drops rows that draw no more, and what they and the others have guessed wrongly."""
        going = [
            not row.unwanted and self._aheads[row.ticket].outcome is None for row in self._rows
        ]
        keep = [i for i, goes in enumerate(going) if goes]
        for row, goes in zip(self._rows, going, strict=True):
            if row.unwanted:
                self._aheads.pop(row.ticket, None)
            elif not goes:
                self._over.append(row)
        # Of each text all but the last token is computed.
        lengths = [row.length - 1 if row.new else row.length for row in self._rows]
        with self._company.lock:  # or others would park rows of before
            self._decoder.settle(keep, lengths)
            if len(keep) < len(self._rows):
                self._rows = [self._rows[i] for i in keep]
                kept = set(self._rows)
                self.held = [row for row in self.held if row in kept]

    def _pass(self) -> None:
        """One pass of all rows, and what is drawn after it."""
        drafting, rows = self._drafting, self._rows
        started = time.perf_counter()
        aheads = [self._aheads[row.ticket] for row in rows]
        padded = not self._decoder.packed
        drafting.guesses(rows, aheads, padded, bool(self._waiting))
        guesses = [tuple(guess.token for guess in a.proposed[: a.depth]) for a in aheads]
        asked = time.perf_counter()
        longest = max(row.length + len(guess) for row, guess in zip(rows, guesses, strict=True))
        with self._company.lock:
            if len(rows) > self._company.room(self.model, longest, self):
                most = self._company.staying(self, self.model, rows)
                for row in rows[most:]:  # it shows nothing now, and pays when it goes on
                    if row.request.ledger is not None:
                        row.request.ledger.add(lm_tokens=-1)
                self._waiting.extendleft(reversed(rows[most:]))
                self._rows = rows[:most]
                rows, aheads, guesses = self._rows, aheads[:most], [()] * most
            last_ones = [row.new[-1] for row in rows]
            logits, used = self._decoder.ahead(list(range(len(rows))), last_ones, guesses)
            self.held = rows
        drafting.row_passes += len(rows)
        before = [len(row.new) for row in rows]
        self._draw(rows, logits, used)
        for row, ahead, start in zip(rows, aheads, before, strict=True):
            drafting.told(ahead, row.new[start:])
        tokens = [1 + len(guess) for guess in used]
        size = len(rows) * max(tokens) if padded else sum(tokens)
        small = drafting.small is not None
        drafting.switch.timed(size, time.perf_counter() - (asked if small else started))

    def _draw(
        self,
        rows: Sequence[Row],
        logits: Sequence[Tensor] | Tensor,
        used: Sequence[Sequence[int]],
    ) -> None:
        """Draws for each row from its logits `[T, V]` as long as its guesses `[T - 1]` are what was
        drawn."""
        depth, alive = 0, list(range(len(rows)))
        while alive:
            if isinstance(logits, Tensor) and len(alive) == len(rows):
                some = logits[:, depth]
            else:
                some = torch.stack([logits[i][depth] for i in alive])
            alive = [
                alive[at]
                for at, token in self._draw_one([rows[i] for i in alive], some)
                if depth < len(used[alive[at]]) and used[alive[at]][depth] == token
            ]
            depth += 1

    def _draw_one(self, rows: Sequence[Row], logits: Tensor) -> list[tuple[int, int]]:
        """A token for each row; those that go on, by number, with their tokens."""
        masks: list[Tensor | None] = []
        drawing: list[int] = []
        for at, row in enumerate(rows):
            ahead = self._aheads[row.ticket]
            ahead.lead += 1
            try:
                masks.append(_allowed(row, row.request.spec, logits.shape[-1]))
                drawing.append(at)
            except PPLError as error:  # said where it would have been said without guesses
                ahead.outcome, ahead.fatal = error, True
        if not drawing:
            return []
        if len(drawing) < len(rows):
            logits = logits[drawing]
        some = [rows[at] for at in drawing]
        keys = np.array([row.request.key for row in some], dtype=np.uint64)
        numbers = uniforms(keys, np.array([len(row.new) for row in some]))
        tokens, log_probs = _draw_tokens(logits, some, masks, numbers)
        self._drafting.note(some, masks, logits, numbers, tokens, log_probs)
        going = []
        for i, (at, row) in enumerate(zip(drawing, some, strict=True)):
            ahead = self._aheads[row.ticket]
            if row.request.law and not row.new:
                row.law = logits[i].clone()  # the decoder may write there again
            try:
                ahead.outcome = row.push(self.model, tokens[i], log_probs[i])
            except PPLError as error:
                ahead.outcome = error
            if ahead.outcome is None:
                going.append((at, tokens[i]))
        return going


def _is_whole(warp: Warp) -> bool:
    """Whether all tokens can be drawn."""
    return warp.temperature > 0 and replace(warp, temperature=1.0) == _PLAIN


def last(row: Row, count: int) -> list[int]:
    """The last tokens of a row's text, so many if it has them."""
    new = row.new[-count:]
    missing = count - len(new)
    return [*row.request.spec.tokens[-missing:], *new] if missing else new
