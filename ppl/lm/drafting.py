"""Running batches whose rows are ahead of what they answer, because guesses were right.

Passes compute guesses of a row's next tokens along with the token that it has drawn
(`ppl.lm.engine.drafts`). Each token is then drawn from its own logits by its own number, as without
guesses; as long as guesses are what is drawn, no pass is needed for the next. A row that is ahead
shows one token a step like all others: what its search pays, and which rows are done first, is as
without guesses.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppl.errors import PPLError
from ppl.language.randomness import uniforms
from ppl.lm.ahead import Ahead
from ppl.lm.base import Drawn
from ppl.lm.company import gives_back
from ppl.lm.decode import LogitsModel, Session, _admit, _allowed, _draw_tokens
from ppl.lm.engine.drafts import DraftDecoder
from ppl.lm.guessing import Drafting
from ppl.lm.row import Row


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
        passing = any(self._aheads[row.ticket].lead == 0 for row in self._rows)
        running, over = len(self._rows), len(self._over)
        if passing:
            self._pass()
            self._settle()
        if not new and not self._waiting:
            self._drafting.switch.showed(running + over, running, passing)
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
                self._drafting.ended(row)
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
        packs, waiting = self._decoder.packs, bool(self._waiting)
        near = drafting.guesses(rows, aheads, packs, waiting)
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
        drafting.told(aheads, [r.new[start:] for r, start in zip(rows, before, strict=True)])
        tokens = [1 + len(guess) for guess in used]
        size = sum(tokens)
        if size > len(rows) and not packs(size):
            size = len(rows) * max(tokens)
        small = drafting.small is not None
        drafting.switch.costs.timed(size, time.perf_counter() - (asked if small else started))
        if size > len(rows):
            gained = sum(len(row.new) - start - 1 for row, start in zip(rows, before, strict=True))
            drafting.switch.guessed(len(rows), size, gained / max(1, near), waiting)

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
