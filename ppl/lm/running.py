"""Requests on their way: what a model that draws promises to whoever waits."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from ppl.errors import PPLError
from ppl.language.text import Continuation


@dataclass(frozen=True, slots=True)
class Drawn:
    """A drawn continuation with its log-probability under the warped distribution, and under the
    other one that was asked for; and the logits `[V]` of its first token, if they were."""

    value: Continuation
    log_prob: float
    log_prob_under: float | None = None
    logits: Tensor | None = None


class RunningBatch(Protocol):
    """Requests that a model is drawing; they join and leave it one by one.

    Where the work is done elsewhere, the batch takes scores in, too. It has `in_flight`, the
    futures of what is asked there, and its `step(patience)` waits at most so many seconds for one.

    Attributes:
        joined: most requests that ran side by side.
    """

    joined: int

    @property
    def running(self) -> bool:
        """True while a request has no answer."""
        ...

    def submit(self, request: Any) -> int:
        """Takes a `ContinueRequest` in (where the work is done elsewhere, a `ScoreRequest` too);
        its answer will come under the returned ticket."""
        ...

    def cancel(self, tickets: Collection[int]) -> None:
        """Nobody waits for these any more: they get no answer."""
        ...

    def step(self) -> Mapping[int, Drawn | float | PPLError | None]:
        """Does some work; answers what is done, by ticket: None where a ledger ran out, an error
        for a row that failed by itself, a number for a score. If it raises, the batch is lost."""
        ...

    def close(self) -> None:
        """Ends the batch, whatever is in it."""
        ...


def answers(session: RunningBatch, requests: Sequence[Any]) -> list[Any]:
    """What a batch of its own says to requests, in order: None where the paying ledger ran out.

    Raises:
        PPLError: one of them failed; the others are given up.
    """
    results: dict[int, Any] = {}
    try:
        tickets = [session.submit(request) for request in requests]
        while len(results) < len(tickets):  # what nobody waits for may still be in flight
            for ticket, answer in session.step().items():
                if isinstance(answer, PPLError):
                    raise answer
                results[ticket] = answer
    finally:
        session.close()
    return [results[ticket] for ticket in tickets]
