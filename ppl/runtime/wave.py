"""What a search waits for: waves of particles, and questions to models.

`ask` is the only way to ask a model: from a program's verifier, from `tree.score`, from outside of
any search. The requests join the batches of all searches, and whoever asks waits for the answers
while others go on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ppl.language.cost import Account
from ppl.runtime.batch import Group, Host, Request
from ppl.runtime.branches import Told
from ppl.runtime.coroutine import this_thread
from ppl.runtime.job import current_job
from ppl.runtime.loop import loop_here, turn
from ppl.runtime.particle import Checkpoint, Particle, Segment


class Wave(Group):
    """Particles on their way to their next checkpoints.

    Args:
        host: who waits.
        particles: who runs.
        account: who pays.
        quorum: how many arrivals are waited for; None for all.

    Attributes:
        arrived: the checkpoints of those who have arrived, by their number in `particles`.
        wanted: how many arrivals are waited for.
        delivered: the numbers of those that the search has.
    """

    def __init__(
        self,
        host: Host,
        particles: Sequence[Particle],
        account: Account,
        quorum: int | None = None,
    ) -> None:
        super().__init__(host, len(particles), account)
        self.particles = particles
        self.arrived: dict[int, Checkpoint] = {}
        self.delivered: set[int] = set()
        self.wanted = len(particles) if quorum is None else quorum
        # The first to come must not wait until the last have drawn to be judged.
        self.eager = quorum is not None

    @property
    def over(self) -> bool:
        """True if enough have arrived, or the wave has failed."""
        return self.failure is not None or len(self.arrived) >= self.wanted

    def take(self, index: Any, reply: Any) -> Any:
        """Runs a particle on to its next request, or to its checkpoint (None). Replies to branches
        of a particle come under its number followed by theirs."""
        if isinstance(index, tuple):
            index, reply = index[0], Told(index[1:], reply)
        event = self.particles[index].advance(reply)
        if not isinstance(event, Checkpoint):
            return event
        self.arrived[index] = event
        if len(self.arrived) >= self.wanted:
            self.host.seat.news[self] = None
        return None

    def label(self, index: Any) -> str:
        """The particle and where it is."""
        number: int = index[0] if isinstance(index, tuple) else index
        return self.particles[number].label

    def move(self, host: Host, thread: object) -> bool:
        """Lets another host of the same loop and thread wait for the wave; False if it cannot."""
        if host.loop is not self.host.loop or any(p.thread is not thread for p in self.particles):
            self.host.loop.drop(self)
            return False
        if host is self.host:
            return True
        with turn():  # another thread may be about to answer it
            old = self.host.seat
            self.host = host
            if old is not host.seat:
                host.seat.queue += [entry for entry in old.queue if entry[0] is self]
                old.queue[:] = [entry for entry in old.queue if entry[0] is not self]
                if old.news.pop(self, self) is None:
                    host.seat.news[self] = None
        return True

    def close(self) -> None:
        """Ends the particles that the search does not have."""
        for index, particle in enumerate(self.particles):
            # Greenlets of another thread cannot be unwound here; they end with their thread.
            if index not in self.delivered and particle.thread is this_thread():
                particle.close()


@dataclass(eq=False)
class Flight:
    """Children that were expanded together, until the last has arrived.

    Attributes:
        parents: the node of the tree that each continues.
        first: number of the first child; the others follow.
        segments: how the choices of each are made.
        missing: which of them the tree does not have yet.
        wave: their particles, None where nothing runs; `offset` says which child each is.
    """

    parents: list[Any]
    first: int
    segments: Sequence[Segment]
    simulated: bool
    quorum: int | None
    missing: list[int] = field(default_factory=list)
    offset: list[int] = field(default_factory=list)
    wave: Wave | None = None

    def __post_init__(self) -> None:
        self.missing = list(range(len(self.parents)))

    def stop(self) -> None:
        """Ends what runs; it can be started again."""
        wave, self.wave = self.wave, None
        if wave is not None:
            wave.host.loop.drop(wave)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "wave": None}


class Questions(Group):
    """Requests whose answers somebody waits for."""

    def __init__(self, host: Host, requests: Sequence[Request]) -> None:
        super().__init__(host, len(requests), requests[0].ledger)
        self.requests = requests
        self.answers: dict[int, Any] = {}

    @property
    def over(self) -> bool:
        """True if all are answered, or one cannot be."""
        return self.failure is not None or len(self.answers) == self.size

    def take(self, index: int, reply: Any) -> Any:
        """At first the request itself; then its answer, which is kept (None)."""
        if reply is None:
            return self.requests[index]
        self.answers[index] = reply
        if self.over:
            self.host.seat.news[self] = None
        return None

    def label(self, index: int) -> str:
        """The request's own label."""
        return self.requests[index].label


def ask(requests: Sequence[Request]) -> list[Any]:
    """Asks models or verifiers, in the batches of everybody; the answers in order.

    Verifiers that ask language models do it with this (and say so: `asks_models`). The request's
    account pays; `request.ledger.for_verifier()` of a `JudgeRequest` is the one to hand on.

    Raises:
        BudgetExhausted: an account cannot pay; nothing is answered.
        PPLError: a model failed.
    """
    if not requests:
        return []
    questions = Questions(current_job() or Host(loop_here()), requests)
    questions.start()
    until([questions], lambda: questions.over)
    if questions.failure is not None:
        raise questions.failure
    return [questions.answers[i] for i in range(len(requests))]


def until(groups: Sequence[Group], over: Callable[[], bool]) -> None:
    """Waits, while others go on, until `over()`: in the job that waits for the groups, or, outside
    of any search, by running the loop."""
    if over():
        return
    job = current_job()
    if job is not None:
        job.wait(groups, over)
        return
    groups[0].host.loop.run_groups(groups, over)
