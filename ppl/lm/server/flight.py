"""Requests in flight to a server, with the interface of `ppl.lm.decode.Session`."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Collection
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, replace

from ppl.errors import PPLError
from ppl.lm.base import ContinueRequest, Drawn, LanguageModel, ScoreRequest, Spec
from ppl.lm.row import Row, could_be_drawn
from ppl.lm.server.answer import Answer
from ppl.lm.server.client import Client

# Tokens asked for at once where only we can see the end of a step (regex, callable).
CHUNK = 32
# Seconds after which a waiting session looks at its time limits.
_GLANCE = 0.1
# Seconds that a session which ends waits for what is in flight, to book it.
_GRACE = 0.5


@dataclass(slots=True, eq=False)
class Scoring:
    """A continuation that is to be scored; for a draw that waits for it, or for itself (None)."""

    request: ScoreRequest
    ticket: int
    drawn: Drawn | None = None
    unwanted: bool = False


class ServerSession:
    """Draws and scores in flight, with the interface of `ppl.lm.decode.Session`.

    Every request reserves the tokens that it may draw, with its account, so a token budget is kept
    by several models together, as long as servers keep `max_tokens`; all that the server drew is
    booked, also what is cut off behind the end of a step or nobody waits for any more. A time limit
    is looked at between answers: what is in flight then is still paid for. A session that ends
    waits half a second for what is in flight; what takes longer is given up (the server sees the
    connection close) and cannot be booked.

    Args:
        model: what draws.
        client: asks its server.
        concurrency: most requests in flight at a time.

    Attributes:
        joined: most requests that were in flight at a time.
    """

    def __init__(self, model: LanguageModel, client: Client, concurrency: int) -> None:
        self.model, self._client, self._concurrency = model, client, concurrency
        self.joined = 0
        self._waiting: deque[Row | Scoring] = deque()
        # With the tokens reserved.
        self._flying: dict[Future[Answer], tuple[Row | Scoring, int]] = {}
        self._impossible: list[int] = []  # tickets of what cannot be drawn: nobody need be asked
        self._tickets = 0

    @property
    def running(self) -> bool:
        """True while a request has no answer."""
        return bool(self._waiting or self._flying or self._impossible)

    def submit(self, request: ContinueRequest | ScoreRequest) -> int:
        """Takes a request in; its answer will come under the returned ticket."""
        if isinstance(request, ScoreRequest):
            self._client.check_scores(request.spec, request.label)
            self._tickets += 1
            if could_be_drawn(self.model, request):
                self._waiting.append(Scoring(request, self._tickets))
            else:
                self._impossible.append(self._tickets)
            return self._tickets
        self._client.check_draws(request.spec, request.label)
        if request.under is not None and not _same_law(request.spec, request.under):
            self._client.check_scores(request.under, request.label)
        self._tickets += 1
        self._waiting.append(Row(self.model, request, self._tickets))
        return self._tickets

    def cancel(self, tickets: Collection[int]) -> None:
        """Nobody waits for these any more."""
        self._waiting = deque(row for row in self._waiting if row.ticket not in tickets)
        self._impossible = [ticket for ticket in self._impossible if ticket not in tickets]
        for row, _ in self._flying.values():
            row.unwanted = row.unwanted or row.ticket in tickets

    @property
    def in_flight(self) -> Collection[Future[Answer]]:
        """What the server is working on: a loop with nothing else to do waits for these."""
        return list(self._flying)

    def step(self, patience: float = _GLANCE) -> dict[int, Drawn | float | PPLError | None]:
        """Sends what may be sent and looks for answers; those that are done, by ticket.

        Args:
            patience: most seconds to wait for an answer.
        """
        done = self._send()
        done.update(dict.fromkeys(self._impossible, -math.inf))
        self._impossible.clear()
        if not self._flying:
            return done
        arrived, _ = wait(self._flying, patience, FIRST_COMPLETED)
        for future in arrived:
            row, _ = self._landed(future)
            try:
                answer = self._taken(row, future)
            except PPLError as error:  # of this request alone
                if not row.unwanted:
                    done[row.ticket] = error
                continue
            if row.unwanted:
                continue
            if isinstance(answer, Row | Scoring):
                self._waiting.append(answer)
            else:
                done[row.ticket] = answer
        return done

    def _taken(self, row: Row | Scoring, future: Future[Answer]) -> Drawn | float | Row | Scoring:
        """Books what has arrived: the answer to the request, or what must be asked next."""
        answer = future.result()
        if isinstance(row, Scoring):
            score = answer.score_of(row.request)
            return score if row.drawn is None else replace(row.drawn, log_prob_under=score)
        self._book(row, answer)
        drawn = None if row.unwanted else self._extended(row, answer)
        return row if drawn is None else self._with_under(row, drawn)

    def close(self) -> None:
        """Books what is in flight as far as it arrives soon, and gives up the rest."""
        self._waiting.clear()
        arrived, late = wait(self._flying, _GRACE) if self._flying else (set(), set())
        for future in late:
            future.cancel()
            self._landed(future)
        for future in arrived:
            row, _ = self._landed(future)
            if not future.cancelled() and future.exception() is None:
                row.unwanted = True
                self._taken(row, future)

    def _landed(self, future: Future[Answer]) -> tuple[Row | Scoring, int]:
        """Gives back what was reserved for an answer; all of it is booked instead."""
        row, tokens = self._flying.pop(future)
        if row.request.ledger is not None:
            row.request.ledger.reserve(-tokens)
        return row, tokens

    def _send(self) -> dict[int, Drawn | float | PPLError | None]:
        """Sends what may be sent; gives up all rows of a ledger that is spent.

        Scores draw nothing, so only time limits them.
        """
        rows = [*(row for row, _ in self._flying.values()), *self._waiting]
        ledgers = {id(r.request.ledger): r.request.ledger for r in rows if r.request.ledger}
        late = {which for which, ledger in ledgers.items() if ledger.out_of_time}
        broke = late | {
            which
            for which, ledger in ledgers.items()
            if ledger.tokens_left < 1 and not ledger.reserved
        }
        done: dict[int, Drawn | float | PPLError | None] = {}
        for row in rows:
            ended = late if isinstance(row, Scoring) else broke
            if id(row.request.ledger) in ended and not row.unwanted:
                done[row.ticket], row.unwanted = None, True
        waiting = [row for row in self._waiting if not row.unwanted]
        self._waiting.clear()
        sharing = Counter(id(row.request.ledger) for row in waiting if isinstance(row, Row))
        begin = self._client.endpoint.begin
        for row in waiting:
            if isinstance(row, Scoring):
                if len(self._flying) >= self._concurrency:
                    self._waiting.append(row)
                else:
                    self._flying[begin(self._client.scored(row.request))] = (row, 0)
                continue
            which, ledger = id(row.request.ledger), row.request.ledger
            left = math.inf if ledger is None else ledger.tokens_left
            if left < 1 or len(self._flying) >= self._concurrency:
                self._waiting.append(row)  # until others have given back what they reserved
                continue
            rule = row.request.spec.rule
            hidden = rule.pattern is not None or rule.predicate is not None
            # A fair share, or one long request would keep all others of a budget waiting.
            share = max(1, left / sharing[which])
            sharing[which] -= 1
            most = int(min(row.limit - len(row.new), CHUNK if hidden else math.inf, share))
            self._flying[begin(self._client.draw(row, most))] = (row, most)
            if ledger is not None:
                ledger.reserve(most)
        self.joined = max(self.joined, len(self._flying))
        return done

    def _extended(self, row: Row, answer: Answer) -> Drawn | None:
        """Appends tokens up to where the step ends; returns the draw if it does."""
        for token, log_prob in zip(answer.tokens, answer.log_probs, strict=True):
            row.under += log_prob
            drawn = row.push(self.model, token, log_prob)
            if drawn is not None:
                return drawn
        return None

    def _with_under(self, row: Row, drawn: Drawn) -> Drawn | Scoring:
        """The draw, or what is to be scored first: the draw under another law."""
        request, other = row.request, row.request.under
        if other is None or _same_law(request.spec, other):
            return drawn
        asked = ScoreRequest(self.model, other, drawn.value, request.label, request.ledger)
        if not could_be_drawn(self.model, asked):
            return replace(drawn, log_prob_under=-math.inf)
        return Scoring(asked, row.ticket, drawn)

    def _book(self, row: Row, answer: Answer) -> None:
        if row.request.ledger is not None:
            row.request.ledger.add(lm_tokens=len(answer.tokens))
        answer.book_prompt(row.request.ledger)


def _same_law(spec: Spec, other: Spec) -> bool:
    """True if each token has the same probability under both (their ends may differ)."""
    return (spec.tokens, spec.warp, other.allowed) == (other.tokens, other.warp, None)
