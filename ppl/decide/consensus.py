"""Parallel-Probe's consensus (Zheng et al. 2026, arXiv:2602.03845): samples that run side by side
say again and again what their answer would be; stop when the majority has been of one mind for a
while, and on the way drop those that keep dissenting.

The answers are those of `ppl.answer` at the checkpoints of the program, and the results of samples
that have ended. Asking costs nothing and disturbs nobody: a program says it in passing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ppl.decide.seen import Seen
from ppl.decide.stopping import StoppingRule
from ppl.errors import ArgumentError
from ppl.language import checks
from ppl.language.arguments import check_fields


@dataclass(frozen=True)
class Consensus(StoppingRule):
    """The same answer has led at several checkpoints in a row.

    With `drop`, samples that have said something else than the leader at so many checkpoints in a
    row go no further and have no vote; they are paid for as far as they have come. Those that have
    ended, or said nothing, stay. A right answer that few think of at first is lost that way: the
    vote is no longer one among draws of the program.

    Attributes:
        rounds: checkpoints in a row, the present one among them. Published: 3 alone, 18 with
            dissenters dropped and a probe every few hundred tokens.
        share: of all samples that the leader has to have at each of them; those that have said
            nothing are for nobody. Published: any.
        drop: checkpoints of dissent after which a sample is dropped; None: nobody is.
            `BestOfN` alone does so.
        warm_up: checkpoints at the beginning at which dissent does not count.
    """

    rounds: int = 3
    share: float = 0.0
    drop: int | None = None
    warm_up: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        checks.count(rounds=self.rounds)
        checks.probability(share=self.share)
        checks.count(least=0, warm_up=self.warm_up)
        if self.drop is not None:
            checks.count(drop=self.drop)
        elif self.warm_up:
            raise ArgumentError(f"warm_up={self.warm_up!r}: nobody is dropped; give drop=")

    @property
    def probes(self) -> int:  # type: ignore[override]
        """As many as are compared, and as tell that the warm-up is over."""
        return max(self.rounds, 0 if self.drop is None else self.warm_up + self.drop)

    def stops(self, seen: Seen) -> bool:
        """True once the leader has led for so many checkpoints.

        Raises:
            ArgumentError: nobody has looked at earlier checkpoints.
        """
        if not seen.probes:
            if seen.classes:
                raise ArgumentError("seen: has no probes, of which this rule compares the last")
            return False
        if len(seen.probes) < self.rounds:
            return False
        led = {leading(row, self.share) for row in seen.probes[-self.rounds :]}
        return len(led) == 1 and None not in led

    def dissenters(self, seen: Seen) -> tuple[int, ...]:
        """Which samples to drop: all that have dissented for so long."""
        if self.drop is None or len(seen.probes) < self.warm_up + self.drop:
            return ()
        rows = seen.probes[-self.drop :]
        led = [leading(row) for row in rows]
        return tuple(
            i
            for i in range(len(seen))
            if all(row[i] >= 0 and row[i] != leader for row, leader in zip(rows, led, strict=True))
        )


def leading(classes: Sequence[int], share: float = 0.0) -> int | None:
    """The most frequent class, the first seen among equals; None if nothing has been said, or it
    has less than a share of the samples."""
    counts = np.bincount([c for c in classes if c >= 0]) if any(c >= 0 for c in classes) else None
    if counts is None or counts.max() < share * len(classes):
        return None
    return int(counts.argmax())
