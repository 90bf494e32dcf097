"""Iterative agent decoding (IAD: Chakraborty et al. 2025, arXiv:2504.01931): every candidate is
written after reading what became of the best and the worst so far.

    feedback = ""
    for t = 1 .. T
        draw a candidate (or `width` of them) from the task and the feedback; score it
        keep the best, and the worst
        feedback = what is said of the two, with their scores

The program asks for what it may read with `feedback()`, which is "" in the first round and outside
of this search:

    text = lm.chat(question + feedback())
    text = text + pyro.sample("answer", lm(text))
    pyro.sample("ok", verifier(text), obs=True)

A score is what the program's verifiers say of the whole candidate. The gain over best-of-N is what
the feedback carries: with an empty one this is best-of-N, in law, and where a verifier's verdict is
noise so is what is read of it. Not a sampler.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pyro
from pyro.poutine.runtime import am_i_wrapped

from ppl.errors import ArgumentError, ProgramError
from ppl.language import checks
from ppl.language.arguments import check_fields, checked, shown
from ppl.runtime.node import Node
from ppl.runtime.particle import Decide
from ppl.runtime.result import Result
from ppl.runtime.tree import Tree
from ppl.searchers.anytime import rank
from ppl.searchers.sampling.told import Told
from ppl.searchers.search import Note, Searcher, all_dead
from ppl.searchers.state import Frontier


class Feedback(Told):
    """What the search says of earlier candidates."""

    nothing = ""

    @property
    def fingerprint(self) -> tuple[object, ...]:
        """Its kind."""
        return ("feedback",)


@checked
def feedback(name: str = "feedback") -> str:
    """What `IterativeAgentDecoding` says of the best and the worst candidate so far.

    "" in the first round and outside of that search. It has to come before anything that is
    weighed.

    Args:
        name: of the site.
    """
    if not am_i_wrapped():
        return ""
    said: str = pyro.sample(name, Feedback())
    return said


@dataclass(frozen=True)
class Tried:
    """A candidate, as feedback is made of it.

    Attributes:
        result: what the program returned.
        score: the value its verifiers give it, in [0, 1] if they give probabilities; 1 where
            nothing is observed.
        text: what a language model wrote last, "" where none did.
    """

    result: Any
    score: float
    text: str


def best_and_worst(best: Tried, worst: Tried) -> str:
    """Both texts with their scores, and what to do."""
    if best is worst:
        shown = f"An earlier answer, of score {best.score:.2f}:\n{best.text}"
    else:
        shown = (
            f"The best answer so far, of score {best.score:.2f}:\n{best.text}\n\n"
            f"The worst answer so far, of score {worst.score:.2f}:\n{worst.text}"
        )
    scale = "Scores are from 0 to 1. " if best.score <= 1 else ""
    return f"\n\n{shown}\n\n{scale}Write a better answer."


@dataclass(frozen=True)
class Candidates(Frontier):
    """The nodes are the candidates that are being written.

    Attributes:
        done: those that have ended and are not dead, in the order of their rounds.
        turn: which of the rounds it is, from 0.
        said: the feedback that the round reads.
    """

    done: tuple[Node, ...] = ()
    turn: int = 0
    said: str = ""


@dataclass(frozen=True)
class IterativeAgentDecoding(Searcher[Candidates]):
    """Rounds of candidates, each of which reads of the best and the worst before it.

    `best` is the best candidate of all rounds, the first among equals; `vote()` is that of all of
    them. Costs `rounds * width` runs of the program, one batch of `width` after the other. A
    candidate that has died is read by nobody, and one whose result is None is worse than any other.

    Attributes:
        rounds: T.
        width: candidates of a round, which read the same.
        feedback: says from the best and the worst so far (the same one while there is one) what
            the next round reads; for a critique by a model, let the program return it with its
            answer. None: both texts and their scores (`best_and_worst`). "": nothing is read, and
            this is `BestOfN(rounds * width)` in law.
    """

    steers: ClassVar[bool] = False

    rounds: int
    width: int = 1
    feedback: Callable[[Tried, Tried], str] | str | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        checks.count(rounds=self.rounds, width=self.width)
        if isinstance(self.feedback, str) and self.feedback:
            raise ArgumentError(
                f"feedback={shown(self.feedback)}: a function of the best and the worst so far, "
                '"" for nothing to read, or None for both texts and their scores'
            )

    def start(self, tree: Tree) -> Candidates:
        """The first round, which reads nothing."""
        return Candidates((tree.root,) * self.width)

    def step(self, tree: Tree, state: Candidates) -> tuple[Candidates, Note]:
        """Takes every candidate of the round a step further, or begins the next round."""
        nodes = list(state.nodes)
        going = [i for i, node in enumerate(nodes) if node.open]
        children = tree.expand([nodes[i] for i in going], decide=_telling(state.said))
        for i, child in zip(going, children, strict=True):
            nodes[i] = child
        if any(node.open for node in nodes):
            return state.after(nodes=tuple(nodes)), {}
        done = (*state.done, *(node for node in nodes if not node.dead))
        turn = state.turn + 1
        if turn == self.rounds and not done:
            raise all_dead(tree, nodes, self)
        note: dict[str, Any] = {"turn": turn, "scores": [node.value for node in nodes]}
        note |= {"best": _best(done).value, "read": state.said} if done else {}
        if turn == self.rounds:
            return state.after(nodes=tuple(nodes), done=done, turn=turn, over=True), note
        nodes = [tree.root] * self.width
        return state.after(nodes=tuple(nodes), done=done, turn=turn, said=self._said(done)), note

    def _said(self, done: tuple[Node, ...]) -> str:
        """What is read of these."""
        if not done or isinstance(self.feedback, str):
            return ""
        best, worst = _best(done), min(done, key=rank)
        tried = {id(node): _tried(node) for node in (best, worst)}
        says = best_and_worst if self.feedback is None else self.feedback
        said = says(tried[id(best)], tried[id(worst)])
        if not isinstance(said, str):
            raise ProgramError(f"feedback= returned {shown(said)}: a string is what programs read")
        return said

    def result(self, tree: Tree, state: Candidates) -> Result:
        """All candidates that have ended, by likelihood; before there are any, those on the way."""
        on_the_way = [node for node in state.nodes if node is not tree.root]
        return Result.by_likelihood(list(state.done) or on_the_way)


def _best(done: tuple[Node, ...]) -> Node:
    """The first of those with the highest score; no answer is worse than any."""
    return max(done, key=rank)


def _tried(node: Node) -> Tried:
    return Tried(node.result, node.value, "" if node.text is None else node.text.text)


def _telling(said: str) -> Decide:
    def decide(name: str, distribution: Any) -> Any:
        return said if isinstance(distribution, Feedback) else None

    return decide
