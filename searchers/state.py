"""States of searches: frozen values, handed to a round and handed back by it.

A state holds what the next round needs and nothing else. A round leaves the state that it was given
as it was, so that a search can be compared, kept, resumed and stepped again from anywhere; what
people and plots want to know is the round's note, which no round reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

from ppl.errors import SearchStateError
from ppl.language.arguments import shown
from ppl.runtime.node import Node
from ppl.runtime.weights import Weights


@dataclass(frozen=True, kw_only=True)
class State:
    """What all states have.

    Attributes:
        round: rounds done; with the seed and a word it keys what a round draws.
        over: no round is left to do.
        stopped: why it is over, once it is: `"done"`; `"settled"` where a stopping rule has ended
            it before its time; `"expansions"` where a search spent what it may expand before it had
            an answer.
    """

    round: int = 0
    over: bool = False
    stopped: Literal["done", "settled", "expansions"] = "done"

    def after(self, **changes: Any) -> Self:
        """The state one round later."""
        return replace(self, round=self.round + 1, **changes)


def of_round(said: Any, searcher: object) -> tuple[Any, Mapping[str, Any]]:
    """The state and the note that a round returned.

    Raises:
        SearchStateError: it returned something else.
    """
    if isinstance(said, tuple) and len(said) == 2:
        state, note = said
        if isinstance(state, State) and isinstance(note, Mapping):
            return state, note
    raise SearchStateError(
        f"{type(searcher).__name__}.step returned {shown(said)}: return two things, the next "
        "state, state.after(...), and a note, which is a mapping, {} for none"
    )


@dataclass(frozen=True)
class Frontier(State):
    """A set of nodes."""

    nodes: tuple[Node, ...]


@dataclass(frozen=True)
class Particles(Frontier):
    """`[N]` weighted nodes."""

    weights: Weights
