"""What particles and verifiers ask of models, as batches.

A request to continue a text joins its model's running batch at once, whoever else is in there, and
who asked goes on as soon as that text is drawn. Everything else (scores, judgements) waits until
no request of its group is being drawn, and then runs as one batch too. Batches are asked for
what they have and never waited for, so a slow server holds up nobody.

A failure is its own: an error that names one request fails that one; where a whole batch fails and
several searches share it, it is asked again search by search, as draws depend on their keys alone.

What is to be done outside of models (`Errand`) is begun at once and looked after here, too.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

from ppl.errors import PPLError, ProgramError, VerifierError
from ppl.language.cost import Account, named, share_seconds
from ppl.language.errand import Errand
from ppl.lm.base import ContinueRequest, LanguageModel, ScoreRequest
from ppl.lm.running import Drawn, RunningBatch
from ppl.runtime.branches import Several
from ppl.runtime.turns import Seat
from ppl.runtime.verdict import JudgeRequest, Scorer

T = TypeVar("T")
Request = ContinueRequest | ScoreRequest | JudgeRequest | Errand


class BudgetExhausted(Exception):  # noqa: N818 (a signal, not an error: searches catch it)
    """The budget does not pay for what was asked; nothing of it was done or kept."""


class Cancelled(Exception):  # noqa: N818 (a signal: nobody waits any more)
    """A group is given up because who waited for it has gone."""


class Host:
    """Who waits for groups.

    Attributes:
        loop: what runs them.
        seat: where their answers go.
        search: whose work it is: failures and cancellations stay within one search.
    """

    def __init__(self, loop: Any, seat: Seat | None = None, search: object = None) -> None:
        self.loop = loop
        self.seat = Seat() if seat is None else seat
        self.search = self if search is None else search


class Group(ABC):
    """Members that somebody waits for together; each makes requests, one at a time.

    Args:
        host: who waits.
        size: number of members.
        account: who pays for the time of members, or None.

    Attributes:
        eager: True if scores and judgements of the group need not wait for its continuations.
        failure: why the group is given up.
        judging: judgements of the group that ask models themselves.
    """

    eager = False

    def __init__(self, host: Host, size: int, account: Account | None) -> None:
        self.host, self.size, self.account = host, size, account
        self.failure: BaseException | None = None
        self.judging: set[Any] = set()

    @property
    def search(self) -> object:
        """Whose work it is."""
        return self.host.search

    @abstractmethod
    def take(self, index: int, reply: Any) -> Any:
        """Lets a member go on with the reply to its last request (None at first); its next
        request, `PAUSE`, or None if it has arrived."""

    @abstractmethod
    def label(self, index: int) -> str:
        """Who and where, for messages."""

    def close(self) -> None:  # noqa: B027 (most have nothing to end)
        """Ends members that still run."""

    def start(self) -> None:
        """Lets all members begin."""
        self.host.seat.queue += [(self, i, None) for i in range(self.size)]

    def reply(self, index: int, answer: Any) -> None:
        """Lets a member go on as soon as its seat has a turn."""
        self.host.seat.queue.append((self, index, answer))

    def fail(self, error: BaseException) -> None:
        """Gives the group up; the first reason counts."""
        if self.failure is None:
            self.failure = error
        self.host.seat.news[self] = None


Waiting = tuple[Group, Any, Any]
"""A member of a group by its number (for a branch, followed by the branch's), and its request."""
_Key = tuple[LanguageModel, object]


@dataclass
class _Running:
    """A running batch, and who waits for which of its tickets."""

    session: RunningBatch
    rows: dict[int, Waiting] = field(default_factory=dict)


class Batches:
    """The models' work for all searches of a loop.

    Args:
        judge: starts a judgement that itself asks models: `judge(verifier, group, waiting)`.
    """

    def __init__(self, judge: Callable[[Scorer, Group, list[Waiting]], None]) -> None:
        self._judge = judge
        self._running: dict[_Key, _Running] = {}
        self._held: list[Waiting] = []
        self._errands: list[tuple[Waiting, Future[Any]]] = []
        # Searches whose requests to a model run by themselves, after a batch with others failed.
        self._apart: set[tuple[Any, object]] = set()

    @property
    def busy(self) -> bool:
        """True if somebody waits for an answer."""
        held = self._held or self._errands
        return bool(held) or any(running.rows for running in self._running.values())

    def ask(self, asked: Sequence[Waiting]) -> None:
        """Takes requests in; answers go to the groups' seats."""
        if any(isinstance(w[2], Several) or isinstance(w[1], tuple) for w in asked):
            asked = [part for waiting in asked for part in _parts(waiting)]
        _stop_the_broke([w for w in asked if _runs(w[2])])
        going = [(g, i, _billed(request)) for g, i, request in asked if g.failure is None]
        _book_calls([request for _, _, request in going if _runs(request)])
        for group, index, request in going:
            if group.failure is not None:
                continue
            if _runs(request):
                self._submit(group, index, request)
            elif isinstance(request, Errand):
                self._send((group, index, request))
            else:
                self._held.append((group, index, request))

    def _send(self, waiting: Waiting) -> None:
        """Begins an errand."""
        try:
            future = waiting[2].begin()
        except Exception as error:
            waiting[0].fail(_failed(waiting[2], error))
            return
        self._errands.append((waiting, future))

    def _fetch(self) -> bool:
        """Hands out the answers of errands that are done; True if there were any."""
        errands = self._errands
        if not errands:
            return False
        self._errands = []
        for waiting, future in errands:
            group, index, errand = waiting
            if group.failure is not None:
                future.cancel()
            elif future.done():
                try:
                    group.reply(index, future.result())
                except Exception as error:  # or it was cancelled by somebody else
                    group.fail(_failed(errand, error))
            elif errand.ledger is not None and errand.ledger.out_of_time:
                future.cancel()
                group.fail(BudgetExhausted())
            else:
                self._errands.append((waiting, future))
        return len(self._errands) < len(errands)

    def _submit(self, group: Group, index: int, request: ContinueRequest | ScoreRequest) -> None:
        model = request.model.together
        key = (model, group.search if (model, group.search) in self._apart else None)
        rows = [(group, index, request)]
        try:
            running = self._running.get(key)
            if running is None:
                running = self._running[key] = _Running(_named(model, rows, model.session))
            ticket = _named(model, rows, partial(running.session.submit, request))
        except PPLError as error:
            group.fail(error)
            return
        running.rows[ticket] = rows[0]

    def work(self) -> list[Future[Any]]:
        """One batch of model work: what is held, if its turn has come, else one token each.

        Returns:
            What others are working on, to wait for, if there is nothing to do here before.
        """
        fetched = self._fetch()
        if self._held:
            drawing = {g for running in self._running.values() for g, _, _ in running.rows.values()}
            drawing |= {waiting[0] for waiting, _ in self._errands}
            ready = [w for w in self._held if w[0].eager or w[0] not in drawing]
            if ready:
                self._execute(ready)
                return []
        flying: list[Future[Any]] = [future for _, future in self._errands]
        idle = not fetched
        for key, running in list(self._running.items()):
            if running.rows:
                idle = not self._step(key, running) and idle
                flying += getattr(running.session, "in_flight", ())
            elif running.session.running:  # rows that nobody waits for any more
                self._close(key)
        return flying if idle else []

    def _step(self, key: _Key, running: _Running) -> bool:
        """Draws a token for every row; False if all that was done is to look for answers."""
        started = time.perf_counter()
        session, payers = running.session, [r.ledger for _, _, r in running.rows.values()]
        remote = hasattr(session, "in_flight")
        ended: list[Account | None] = []
        try:
            answers = session.step(0.0) if remote else session.step()  # type: ignore[call-arg]
            for ticket, drawn in answers.items():
                waiting = running.rows.get(ticket)
                if waiting is not None:  # else it was given up in this very step
                    if isinstance(drawn, Drawn):
                        ended.append(waiting[2].ledger)
                    self._deliver(key[0], waiting, drawn)
                    del running.rows[ticket]
        except BaseException as error:
            self._broken(key, error)
            if not isinstance(error, Exception):
                raise
            return True
        finally:
            _book(ended, "draws")
            share_seconds(time.perf_counter() - started, payers)
        return bool(answers) or not remote

    def _deliver(self, model: LanguageModel, waiting: Waiting, drawn: Any) -> None:
        group, index, _ = waiting
        if drawn is None:
            group.fail(BudgetExhausted())
        elif isinstance(drawn, Exception):
            group.fail(_error_of(model, [waiting], drawn))
        else:
            group.reply(index, drawn)

    def _broken(self, key: _Key, error: BaseException) -> None:
        """A running batch failed or was interrupted: it ends, and those who are not to blame are
        drawn again; if several may be, each search by itself."""
        model, running = key[0], self._running[key]
        rows = [waiting for waiting in running.rows.values() if not _answered(waiting)]
        self._close(key, error)
        to_blame = isinstance(error, Exception) and len({g.search for g, _, _ in rows}) == 1
        for group, index, request in rows:
            if to_blame:
                group.fail(_error_of(model, rows, error))
                continue
            if isinstance(error, Exception):
                self._apart.add((model, group.search))
            self._submit(group, index, request)

    def _execute(self, waiting: list[Waiting]) -> None:
        """Scores and judgements, of those that are held: one batch per model and kind of request.
        They are held until they are done, as an interrupt may come between."""
        _stop_the_broke(waiting)
        batches: defaultdict[tuple[Any, type, object], list[Waiting]] = defaultdict(list)
        for group, index, request in waiting:
            if group.failure is None:
                model, kind = _owner(request), type(request)
                own: object = group.search if (model, group.search) in self._apart else None
                if kind is JudgeRequest and model.asks_models:
                    own = group
                batches[model, kind, own].append((group, index, request))
        done: set[int] = set()
        try:
            for (model, kind, own), entries in batches.items():
                if own is not None and own is entries[0][0]:
                    _book_calls([request for _, _, request in entries])
                    self._judge(model, entries[0][0], entries)
                else:
                    self._batch(model, kind, entries)
                done.update(id(request) for _, _, request in entries)
        finally:
            taken = {id(request) for _, _, request in waiting}
            self._held = [
                w
                for w in self._held
                if id(w[2]) not in taken
                or (w[0].failure is None and id(w[2]) not in done and not _answered(w))
            ]

    def _batch(self, model: Any, kind: type, entries: list[Waiting]) -> None:
        started = time.perf_counter()
        requests = [request for _, _, request in entries]
        try:
            if kind is JudgeRequest:
                answers: Sequence[Any] = judged(model, requests)
            else:
                answers = _named(model, entries, partial(model.score_batch, requests))
        except Exception as error:
            searches: defaultdict[object, list[Waiting]] = defaultdict(list)
            for waiting in entries:
                searches[waiting[0].search].append(waiting)
            if len(searches) > 1:
                for own, alone in searches.items():
                    self._apart.add((model, own))
                    self._batch(model, kind, alone)
                return
            for group, _, _ in entries:
                group.fail(error)
            return
        for (group, index, _), answer in zip(entries, answers, strict=True):
            group.reply(index, answer)
        _book_calls(requests)
        share_seconds(time.perf_counter() - started, (r.ledger for r in requests))

    def bill_waiting(self, seconds: float) -> None:
        """Bills time in which nothing was done but to wait for answers from outside."""
        rows = [w for batch in self._running.values() for w in batch.rows.values()]
        share_seconds(seconds, [w[2].ledger for w in (*rows, *(w for w, _ in self._errands))])

    def cancel(self, group: Group) -> None:
        """Nobody waits for what a group has asked any more."""
        self._held = [w for w in self._held if w[0] is not group]
        for _, future in [e for e in self._errands if e[0][0] is group]:
            future.cancel()
        self._errands = [e for e in self._errands if e[0][0] is not group]
        for running in self._running.values():
            mine = {t for t, (g, _, _) in running.rows.items() if g is group}
            if mine:
                running.session.cancel(mine)
            for ticket in mine:
                del running.rows[ticket]

    def rest(self) -> None:
        """Ends the running batches that nobody waits for."""
        for key in [key for key, running in self._running.items() if not running.rows]:
            self._close(key)
        if not self._running:
            self._apart.clear()

    def _close(self, key: _Key, error: BaseException | None = None) -> None:
        session = self._running.pop(key).session
        if getattr(session, "in_flight", ()):  # of those who have gone; nobody waits for servers
            threading.Thread(target=session.close, name="ppl close", daemon=True).start()
            return
        try:
            session.close()
        except Exception as second:
            if error is None:
                raise
            error.add_note(f"ending {key[0].name}'s batch after that raised {second!r}")


def _parts(waiting: Waiting) -> list[Waiting]:
    """The requests of the branches of a member, under its number followed by theirs."""
    group, index, request = waiting
    number = index[0] if isinstance(index, tuple) else index
    if isinstance(request, Several):
        return [(group, (number, *path), part) for path, part in request.parts]
    return [(group, number, request)]


def _answered(waiting: Waiting) -> bool:
    """True if the reply is on its way: what was interrupted must not be answered twice."""
    group, index, _ = waiting
    return any(g is group and i == index for g, i, _ in group.host.seat.queue)


def judged(verifier: Scorer, requests: list[JudgeRequest]) -> Sequence[Any]:
    """One batch of judgements; whatever the verifier raises becomes an error that names it."""
    try:
        return verifier.judge_checked(requests)
    except (PPLError, BudgetExhausted):
        raise
    except Exception as error:
        where = _where([request.label for request in requests])
        raise VerifierError(
            f"verifier {verifier.name} raised at {where}: {type(error).__name__}: {error}"
        ) from error


def _named(model: LanguageModel, rows: Sequence[Waiting], work: Callable[[], T]) -> T:
    """Model work; whatever the backend raises becomes an error that names the model."""
    try:
        return work()
    except PPLError:
        raise
    except Exception as error:
        raise _error_of(model, rows, error) from error


def _error_of(model: LanguageModel, rows: Sequence[Waiting], error: BaseException) -> BaseException:
    if isinstance(error, PPLError):
        return error
    where = _where([group.label(index) for group, index, _ in rows])
    named = ProgramError(
        f"the language model {model.name} raised at {where}: {type(error).__name__}: {error}"
    )
    named.__cause__ = error
    return named


def _failed(errand: Errand, error: BaseException) -> BaseException:
    if isinstance(error, PPLError):
        return error
    named = ProgramError(f"{errand.label}: an errand failed: {type(error).__name__}: {error}")
    named.__cause__ = error
    return named


def _where(labels: Sequence[str]) -> str:
    others = f" (or one of {len(labels) - 1} others in its batch)" if labels[1:] else ""
    return labels[0] + others


def _stop_the_broke(waiting: Collection[Waiting]) -> None:
    """Fails the groups whose accounts cannot pay for all that they ask together."""
    accounts = [r.ledger for _, _, r in waiting if r.ledger is not None]
    asked = Counter(account.book for account in accounts if not account.verifying)
    broke = {a for a in set(accounts) if a.calls_left < asked[a.book] or a.out_of_time}
    for group, _, request in waiting:
        if request.ledger in broke and group.failure is None:
            group.fail(BudgetExhausted())


def _runs(request: Request) -> bool:
    """Whether the request joins its model's running batch: a draw, and what others score."""
    if type(request) is ContinueRequest:
        return True
    return isinstance(request, ScoreRequest) and request.model.elsewhere


def _owner(request: ContinueRequest | ScoreRequest | JudgeRequest) -> Any:
    """The model or verifier that answers."""
    return request.verifier if isinstance(request, JudgeRequest) else request.model


def _billed(request: Any) -> Any:
    """The request with its account open at the page of who answers."""
    account: Account | None = request.ledger
    if account is None or isinstance(request, Errand):
        return request
    model = _owner(request)
    if account.model is model:
        return request
    if type(request) is ContinueRequest:  # the frequent kind; `replace` takes a few microseconds
        r = request
        return ContinueRequest(r.model, r.spec, r.key, r.label, account.of(model), r.under, r.law)
    return replace(request, ledger=account.of(model))


def _book_calls(requests: Sequence[Request]) -> None:
    """Books a call for each of some requests, which are all judgements or none is."""
    judgements = bool(requests) and isinstance(requests[0], JudgeRequest)
    _book([r.ledger for r in requests], "verifier_calls" if judgements else "lm_calls")


def _book(ledgers: Sequence[Account | None], what: str) -> None:
    """Books one of something to each of the accounts, as often as it is named."""
    for ledger, count in named(ledgers).items():
        ledger.add(**{what: count})
