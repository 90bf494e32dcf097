"""What one request may take, and how many there may be at a time."""

from __future__ import annotations

from dataclasses import dataclass

from ppl.language import checks
from ppl.language.arguments import check_fields
from ppl.language.cost import Budget


@dataclass(frozen=True)
class Limits:
    """What an endpoint grants. A request that asks for more is refused, not cut down in silence.

    Attributes:
        tokens: most tokens that a request may generate, all its candidates together. It is also
            the budget of a request that names none.
        calls: most requests to models and verifiers for one request; None for no limit.
        seconds: most seconds that a request may search; the time in the queue is not counted.
        particles: the largest searcher, see `ppl.serve.choice.size`; also most answers (`n`).
        running: most requests that search at a time. They share batches.
        waiting: most requests that wait for a place; what comes then is told to come later (429).
        body_bytes: the largest request (413), in bytes or as `"1MB"`.
        body_seconds: seconds within which a request has to have arrived, and its headers before
            that (408).
    """

    tokens: int = 100_000
    calls: int | None = None
    seconds: float = 300.0
    particles: int = 256
    running: int = 64
    waiting: int = 256
    body_bytes: float | str = 1_000_000
    body_seconds: float = 10.0

    def __post_init__(self) -> None:
        check_fields(self)
        checks.count(
            tokens=self.tokens,
            particles=self.particles,
            running=self.running,
        )
        object.__setattr__(self, "body_bytes", checks.nbytes(body_bytes=self.body_bytes))
        checks.count(least=0, waiting=self.waiting)
        if self.calls is not None:
            checks.count(calls=self.calls)
        checks.positive(seconds=self.seconds, body_seconds=self.body_seconds)

    @property
    def budget(self) -> Budget:
        """That of a request that names none."""
        return Budget(tokens=self.tokens, calls=self.calls, seconds=self.seconds)
