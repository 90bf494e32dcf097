"""The scheduler: turns every particle's waiting requests into batches.

Searches run as greenlets too, so that several questions can share one batch: a search that expands
its tree waits until its particles are at their checkpoints, while others go on.
"""

from __future__ import annotations

import weakref
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from greenlet import getcurrent, greenlet

from ppl.cost import Ledger
from ppl.errors import PPLError, ProgramError, VerifierError
from ppl.lm.base import ContinueRequest, ScoreRequest
from ppl.program import Checkpoint, Particle, Request
from ppl.verdict import JudgeRequest

# The scheduler that runs a given search greenlet.
_SEARCHES: weakref.WeakKeyDictionary[greenlet, None] = weakref.WeakKeyDictionary()


class BudgetExhausted(Exception):  # noqa: N818 (a signal, not an error: searches catch it)
    """The budget does not pay for what was asked; nothing of it was done or kept."""


class _Wave:
    """Particles that one search waits for together."""

    def __init__(self, particles: Sequence[Particle], search: greenlet | None) -> None:
        self.particles, self.search = particles, search
        self.arrived: dict[int, Checkpoint] = {}
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


class _Loop:
    """Resume what can run, collect requests, execute them in groups, repeat."""

    def run(self, waves: list[_Wave], searches: list[greenlet]) -> None:
        state = torch.random.get_rng_state()  # particles seed torch's generator for their draws
        try:
            self._run(waves, searches)
        finally:
            torch.random.set_rng_state(state)

    def _run(self, waves: list[_Wave], searches: list[greenlet]) -> None:
        queue = [(wave, i, None) for wave in waves for i in range(len(wave.particles))]
        for search in searches:
            _SEARCHES[search] = None
            queue += self._resume(search, ())
        while queue:
            waiting: list[tuple[_Wave, int, Request]] = []
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
                else:
                    waiting.append((wave, index, event))
            queue = self._execute(waiting)
            for wave in {**touched, **{w: None for w, _, _ in waiting}}:
                if wave.over and wave.search is not None:
                    queue += self._resume(wave.search, wave)
            queue = [entry for entry in queue if entry[0].failure is None]

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

    def _execute(self, waiting: list[tuple[_Wave, int, Request]]) -> list[tuple[_Wave, int, Any]]:
        """One batch per model and kind of request."""
        self._stop_the_broke(waiting)
        groups: defaultdict[tuple[Any, type], list[tuple[_Wave, int, Any]]] = defaultdict(list)
        for wave, index, request in waiting:
            if wave.failure is None:
                owner = request.verifier if isinstance(request, JudgeRequest) else request.model
                groups[owner, type(request)].append((wave, index, request))
        replies: list[tuple[_Wave, int, Any]] = []
        for (owner, kind), entries in groups.items():
            requests = [request for _, _, request in entries]
            for request in requests:
                _book_call(request.ledger, kind)
            answers = _ask(owner, kind, requests)
            for (wave, index, _), answer in zip(entries, answers, strict=True):
                if answer is None:
                    _fail(wave, BudgetExhausted())
                else:
                    replies.append((wave, index, answer))
        return replies

    def _stop_the_broke(self, waiting: list[tuple[_Wave, int, Request]]) -> None:
        asked = Counter(id(r.ledger) for _, _, r in waiting if r.ledger is not None)
        for wave, _, request in waiting:
            ledger = request.ledger
            if ledger is None or wave.failure is not None:
                continue
            if ledger.calls_left < asked[id(ledger)] or ledger.out_of_time:
                _fail(wave, BudgetExhausted())


def _ask(owner: Any, kind: type, requests: Sequence[Any]) -> Sequence[Any]:
    """One batch; what a verifier or the program's own `until=` or `allowed=` raises is named."""
    try:
        if kind is ContinueRequest:
            answers: Sequence[Any] = owner.sample_batch(requests)
        elif kind is ScoreRequest:
            answers = owner.score_batch(requests)
        else:
            answers = owner.judge_checked(requests)
    except PPLError:
        raise
    except Exception as error:
        others = f" (or one of {len(requests) - 1} others in its batch)" if requests[1:] else ""
        where = f"at {requests[0].label}{others}: {type(error).__name__}: {error}"
        if kind is JudgeRequest:
            raise VerifierError(f"verifier {owner.name} raised {where}") from error
        raise ProgramError(
            f"{owner.name} or the until= or allowed= given to it raised {where}"
        ) from error
    return answers


def _book_call(ledger: Ledger | None, kind: type) -> None:
    if ledger is not None:
        lm = kind in (ContinueRequest, ScoreRequest)
        ledger.add(**{"lm_calls" if lm else "verifier_calls": 1})


def _fail(wave: _Wave, error: BaseException) -> None:
    wave.failure = error
    for particle in wave.particles:
        particle.close()
