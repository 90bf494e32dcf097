"""The scheduler: turns every particle's waiting requests into batches.

A request to continue a text joins its model's running batch at once, whoever else is in there, and
the particle goes on as soon as its own text is drawn. Everything else (scores, judgements) waits
until no particle of the same search is being continued, and then runs as one batch too.

Searches run as greenlets, so that several questions share the batches: a search that expands its
tree waits until its particles are at their checkpoints, while others go on.
"""

from __future__ import annotations

import weakref
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from greenlet import getcurrent, greenlet

from ppl.errors import PPLError, ProgramError, VerifierError
from ppl.lm.base import ContinueRequest, LanguageModel, RunningBatch
from ppl.runtime.keyed import generators_kept
from ppl.runtime.particle import Checkpoint, Particle, Request
from ppl.runtime.verdict import JudgeRequest, Scorer

T = TypeVar("T")

# The scheduler that runs a given search greenlet.
_SEARCHES: weakref.WeakKeyDictionary[greenlet, None] = weakref.WeakKeyDictionary()


class BudgetExhausted(Exception):  # noqa: N818 (a signal, not an error: searches catch it)
    """The budget does not pay for what was asked; nothing of it was done or kept."""


class _Wave:
    """Particles that one search waits for together."""

    def __init__(self, particles: Sequence[Particle], search: greenlet | None) -> None:
        self.particles, self.search = particles, search
        self.arrived: dict[int, Checkpoint] = {}
        self.drawing = 0  # particles that wait for a continuation
        self.failure: BaseException | None = None

    @property
    def over(self) -> bool:
        return self.failure is not None or len(self.arrived) == len(self.particles)

    def outcome(self) -> list[Checkpoint]:
        return [self.arrived[i] for i in range(len(self.particles))]


def run_to_checkpoints(particles: Sequence[Particle]) -> list[Checkpoint]:
    """Runs every particle to its next checkpoint, all requests batched.

    Inside `run_searches` the batches are shared with the other searches.

    Raises:
        BudgetExhausted: a ledger ran out. The particles are closed.
        PPLError: a particle failed. The particles are closed.
    """
    if not particles:
        return []
    here = getcurrent()
    if here in _SEARCHES:
        assert here.parent is not None
        outcome: list[Checkpoint] = here.parent.switch(_Wave(particles, here))
        return outcome
    wave = _Wave(particles, None)
    _Loop().run([wave], [])
    if wave.failure is not None:
        raise wave.failure
    return wave.outcome()


def run_searches(searches: Sequence[Callable[[], Any]]) -> list[Any]:
    """Runs functions that expand trees, side by side; returns their results in order.

    If one raises, the others are abandoned and the error is raised.
    """
    results: dict[int, Any] = {}

    def job(number: int, function: Callable[[], Any]) -> Callable[[], None]:
        def run() -> None:
            results[number] = function()

        return run

    _Loop().run([], [greenlet(job(i, f)) for i, f in enumerate(searches)])
    return [results[i] for i in range(len(searches))]


Step = tuple[_Wave, int, Any]
"""A particle of a wave (by its number), and the reply with which it goes on."""
Waiting = tuple[_Wave, int, Request]
"""A particle of a wave, and what it asks."""


class _Loop:
    """Resume what can run, collect requests, execute them in batches, repeat."""

    def __init__(self) -> None:
        self._sessions: dict[LanguageModel, RunningBatch] = {}
        # Who waits for a ticket of a session.
        self._drawing: dict[tuple[LanguageModel, int], tuple[_Wave, int]] = {}
        self._held: list[Waiting] = []

    def run(self, waves: list[_Wave], searches: list[greenlet]) -> None:
        try:
            with generators_kept():
                self._run(waves, searches)
        finally:
            for session in self._sessions.values():
                session.close()

    def _run(self, waves: list[_Wave], searches: list[greenlet]) -> None:
        queue: list[Step] = [(wave, i, None) for wave in waves for i in range(len(wave.particles))]
        for search in searches:
            _SEARCHES[search] = None
            queue += self._resume(search, ())
        while queue or self._held or self._drawing:
            if queue:
                touched = self._advance(queue)
                queue = []
            else:
                queue, touched = self._work()
            for wave in touched:
                if wave.failure is not None:
                    self._abandon(wave)
                if wave.over and wave.search is not None:
                    queue += self._resume(wave.search, wave)
            queue = [entry for entry in queue if entry[0].failure is None]

    def _advance(self, queue: list[Step]) -> dict[_Wave, None]:
        """Resumes particles until each asks or arrives; returns their waves."""
        draws: list[tuple[_Wave, int, ContinueRequest]] = []
        touched: dict[_Wave, None] = {}
        for wave, index, reply in queue:
            touched[wave] = None
            if wave.failure is not None:
                continue
            try:
                event = wave.particles[index].advance(reply)
            except Exception as error:
                _fail(wave, error)
                continue
            if isinstance(event, Checkpoint):
                wave.arrived[index] = event
            elif isinstance(event, ContinueRequest):
                draws.append((wave, index, event))
            else:
                self._held.append((wave, index, event))
        _stop_the_broke(draws)
        for wave, index, request in draws:
            if wave.failure is None:
                _book_call(request)
                model = request.model
                session = self._sessions.get(model)
                if session is None:
                    session = self._sessions[model] = model.session()
                self._drawing[model, session.submit(request)] = (wave, index)
                wave.drawing += 1
        return touched

    def _work(self) -> tuple[list[Step], dict[_Wave, None]]:
        """One batch of model work: what is held, if its turn has come, else one token each."""
        ready = [entry for entry in self._held if entry[0].drawing == 0]
        if ready:
            self._held = [entry for entry in self._held if entry[0].drawing > 0]
            return _execute(ready)
        queue: list[Step] = []
        touched: dict[_Wave, None] = {}
        for model, session in self._sessions.items():
            if not session.running:
                continue
            rows = [entry for (m, _), entry in self._drawing.items() if m is model]
            for ticket, drawn in _named(model, rows, session.step).items():
                wave, index = self._drawing.pop((model, ticket))
                wave.drawing -= 1
                if isinstance(drawn, PPLError):
                    if wave.failure is None:
                        _fail(wave, drawn)
                        touched[wave] = None
                elif drawn is not None:
                    queue.append((wave, index, drawn))
                elif wave.failure is None:
                    _fail(wave, BudgetExhausted())
                    touched[wave] = None
        return queue, touched

    def _abandon(self, wave: _Wave) -> None:
        """Nobody waits for what a failed wave has asked."""
        self._held = [entry for entry in self._held if entry[0] is not wave]
        for model, session in self._sessions.items():
            mine = {t for (m, t), (w, _) in self._drawing.items() if m is model and w is wave}
            session.cancel(mine)
            for ticket in mine:
                del self._drawing[model, ticket]

    def _resume(self, search: greenlet, news: _Wave | tuple[()]) -> list[tuple[_Wave, int, Any]]:
        """Lets a search go on; returns the first steps of the wave it asks for next."""
        search.parent = getcurrent()
        if isinstance(news, _Wave) and news.failure is not None:
            wave = search.throw(news.failure)
        elif isinstance(news, _Wave):
            wave = search.switch(news.outcome())
        else:
            wave = search.switch()
        if not isinstance(wave, _Wave):  # the search has returned
            return []
        return [(wave, i, None) for i in range(len(wave.particles))]


def _execute(waiting: list[Waiting]) -> tuple[list[Step], dict[_Wave, None]]:
    """Scores and judgements: one batch per model and kind of request."""
    _stop_the_broke(waiting)
    touched = {wave: None for wave, _, _ in waiting}
    groups: defaultdict[tuple[Any, type], list[Waiting]] = defaultdict(list)
    for wave, index, request in waiting:
        if wave.failure is None:
            owner = request.verifier if isinstance(request, JudgeRequest) else request.model
            groups[owner, type(request)].append((wave, index, request))
    queue: list[Step] = []
    for (owner, kind), entries in groups.items():
        requests: list[Any] = [request for _, _, request in entries]
        for request in requests:
            _book_call(request)
        if kind is JudgeRequest:
            answers = _judged(owner, requests)
        else:
            rows = [(wave, index) for wave, index, _ in entries]
            answers = _named(owner, rows, partial(owner.score_batch, requests))
        queue += [(w, i, answer) for (w, i, _), answer in zip(entries, answers, strict=True)]
    return queue, touched


def _judged(verifier: Scorer, requests: list[JudgeRequest]) -> Sequence[Any]:
    """One batch of judgements; whatever the verifier raises becomes an error that names it."""
    try:
        return verifier.judge_checked(requests)
    except PPLError:
        raise
    except Exception as error:
        where = _where([request.label for request in requests])
        raise VerifierError(
            f"verifier {verifier.name} raised at {where}: {type(error).__name__}: {error}"
        ) from error


def _named(model: LanguageModel, rows: Sequence[tuple[_Wave, int]], work: Callable[[], T]) -> T:
    """Model work; whatever the backend raises becomes an error that names the model."""
    try:
        return work()
    except PPLError:
        raise
    except Exception as error:
        where = _where([wave.particles[index].label for wave, index in rows])
        raise ProgramError(
            f"the language model {model.name} raised at {where}: {type(error).__name__}: {error}"
        ) from error


def _where(labels: Sequence[str]) -> str:
    others = f" (or one of {len(labels) - 1} others in its batch)" if labels[1:] else ""
    return labels[0] + others


def _stop_the_broke(waiting: Sequence[Waiting]) -> None:
    """Fails the waves whose ledgers cannot pay for all that they ask together."""
    asked = Counter(id(r.ledger) for _, _, r in waiting if r.ledger is not None)
    for wave, _, request in waiting:
        ledger = request.ledger
        if ledger is None or wave.failure is not None:
            continue
        if ledger.calls_left < asked[id(ledger)] or ledger.out_of_time:
            _fail(wave, BudgetExhausted())


def _book_call(request: Request) -> None:
    if request.ledger is not None:
        judged = isinstance(request, JudgeRequest)
        request.ledger.add(**{"verifier_calls" if judged else "lm_calls": 1})


def _fail(wave: _Wave, error: BaseException) -> None:
    wave.failure = error
    for particle in wave.particles:
        particle.close()
