"""RAIN, rewindable inference (Li, Wei, Zhao, Zhang, Zhang 2023, arXiv:2309.07124): search from
where the text stands, commit one step, go on with what the search knows below it.

    repeat  down from the root by (q - min q) / (max q - min q) + c p sqrt(N) / (1 + n)
            expand the leaf: the model's greedy step and samples; v = 2 * value - 1 in [-1, 1]
            back up v: n += 1, q += (v - q) / n; and in part to siblings that read alike
            if a step has been visited enough and is good enough, or the search took long enough:
                the most visited step becomes the root

The value is what the program has observed, in the paper the model's own judgement of its text
(`ppl.verifiers.SelfEvaluation`, `Judge`). A step is the program's, in the paper a set of 1, 2, 4,
then 10 tokens, judged at the next punctuation mark. Not a sampler: there is no evidence.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ppl.runtime.tree import Node, Tree
from ppl.searchers.beams.beam import distinct
from ppl.searchers.search import Searcher, all_dead, answers

Floats = NDArray[np.float64]
# The published code's: cosine from which texts are alike, the share of a value that they get, and
# the spread per child below which all are.
_ALIKE, _SHARED, _CLOSE = 0.95, 0.2, 0.03


@dataclass
class Belief:
    """What is known of a step.

    Attributes:
        prior: p, its share of its siblings' probability.
        visits: simulations that passed, or ended here.
        weight: n, visits and what similar siblings gave.
        q: mean value, in [-1, 1]; 0 before the first.
        children: steps after it.
        meaning: mean embedding of the texts that passed; None before the first.
        drawn: steps drawn after it, equal and dead ones too.
        closed: everything below is dead.
    """

    prior: float = 1.0
    visits: int = 0
    weight: float = 0.0
    q: float = 0.0
    children: list[Node] = field(default_factory=list)
    meaning: Floats | None = None
    drawn: int = 0
    closed: bool = False

    def learn(self, v: float, weight: float = 1.0) -> None:
        """Takes a value into the mean."""
        self.weight += weight
        self.q += (v - self.q) * weight / self.weight


@dataclass
class Rewind:
    """What the next simulation needs.

    Attributes:
        root: the last step that was committed.
        beliefs: by number of node.
        limit: visits of the root at which a step is committed in any case.
    """

    root: Node
    beliefs: dict[int, Belief]
    limit: int
    over: bool = False
    info: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class RAIN(Searcher):
    """Rewindable inference; all defaults are the published ones.

    Attributes:
        simulations: visits of a root after which a step is committed,
        more: or so many more than it had when it became the root, if that is later.
        width: children of a node: the greedy step, the others drawn; equal ones count once.
        exploration: c.
        enough_visits, enough_value: a child with more visits and a higher q is committed at once.
        embed: strings to their vectors `[n, d]`, such as `Embedder.load().embed`. With it a value
            also counts, by a fifth of the cosine, for siblings that read alike (cosine of at least
            0.95); and where all children read alike and are bad, another is drawn, up to twice the
            width. Has to be picklable if the search is to be saved.

    `posterior.samples[0]` is the text that was committed; `best` is the best of all that finished.
    """

    simulations: int = 50
    more: int = 15
    width: int = 10
    exploration: float = 2.0
    enough_visits: int = 6
    enough_value: float = 0.8
    embed: Callable[[Sequence[str]], Any] | None = None

    def __post_init__(self) -> None:
        if min(self.simulations, self.more, self.width) < 1 or self.enough_visits < 0:
            raise ValueError(f"{self!r}: simulations, more and width at least 1, visits from 0")
        if not 0 <= self.exploration < math.inf:
            raise ValueError(f"exploration={self.exploration}: zero or more")

    def start(self, tree: Tree) -> Rewind:
        return Rewind(tree.root, {tree.root.identity: Belief()}, self.simulations)

    def step(self, tree: Tree, state: Rewind) -> Rewind:
        beliefs = state.beliefs
        path = self._descend(state)
        leaf = path[-1]
        if leaf.open:
            self._grow(beliefs, leaf, self._drawn(tree, leaf), leaf is state.root)
        value = 2 * min(leaf.value, 1.0) - 1
        self._back_up(beliefs, path, -1.0 if beliefs[leaf.identity].closed else value)
        for node in path[:-1]:
            if self._all_alike_and_bad(beliefs, node):
                self._grow(beliefs, node, tree.expand([node]), node is state.root)
        if beliefs[state.root.identity].closed:
            return self._back_from(tree, state)
        committed = self._to_commit(state)
        if committed is None:
            return state
        own = beliefs[committed.identity]
        note = {"committed": committed.identity, "visits": own.visits, "q": own.q}
        if own.children:
            self._grow(beliefs, committed, [], True)  # a root's priors
        over = committed.finished
        return replace(self._at(state, committed), over=over, info=[*state.info, note])

    def _at(self, state: Rewind, root: Node) -> Rewind:
        limit = max(self.simulations, state.beliefs[root.identity].visits + self.more)
        return replace(state, root=root, limit=limit)

    def _back_from(self, tree: Tree, state: Rewind) -> Rewind:
        """What was committed turned out to be a dead end: back to where something is alive."""
        for node in reversed(state.root.path[:-1]):
            here = state.beliefs[node.identity]
            here.closed = not _open(state.beliefs, node)
            if not here.closed:
                return self._at(state, node)
        if not answers(tree):
            raise all_dead(tree, tree.nodes[1:], self)
        return replace(state, over=True)

    def _descend(self, state: Rewind) -> list[Node]:
        """The path from the root to a leaf."""
        path = [state.root]
        while options := _open(state.beliefs, path[-1]):
            below = [state.beliefs[child.identity] for child in options]
            total = state.beliefs[path[-1].identity].weight
            path.append(options[int(np.argmax(scores(below, total, self.exploration)))])
        return path

    def _drawn(self, tree: Tree, leaf: Node) -> list[Node]:
        """The greedy step, and samples."""
        return tree.rollout([leaf], 1, greedy=True) + tree.expand([leaf], self.width - 1)

    def _grow(
        self, beliefs: dict[int, Belief], node: Node, drawn: Sequence[Node], is_root: bool
    ) -> None:
        """More children for a node; all their priors are set anew."""
        here = beliefs[node.identity]
        children = [c for c in distinct([*here.children, *drawn]) if not c.dead]
        here.children, here.closed = children, not children
        here.drawn += len(drawn)
        if children:
            # The greedy one is the first, if it is alive.
            log_priors = [_log_prior(child) for child in children]
            priors = step_priors(log_priors, greedy=children[0].simulated)
            if is_root:
                priors = 0.75 * priors + 0.25 / len(children)
            for child, prior in zip(children, priors.tolist(), strict=True):
                beliefs.setdefault(child.identity, Belief()).prior = prior

    def _back_up(self, beliefs: dict[int, Belief], path: Sequence[Node], value: float) -> None:
        for node in path:
            beliefs[node.identity].visits += 1
            beliefs[node.identity].learn(value)
        for parent in reversed(path[:-1]):
            here = beliefs[parent.identity]
            here.closed = all(beliefs[child.identity].closed for child in here.children)
        if self.embed is None or path[-1].text is None:
            return
        (vector,) = np.asarray(self.embed([path[-1].text.text]), dtype=float)
        for parent, node in itertools.pairwise(path):
            own = beliefs[node.identity]
            own.meaning = (
                vector if own.meaning is None else own.meaning + (vector - own.meaning) / own.visits
            )
            for child in beliefs[parent.identity].children:
                other = beliefs[child.identity]
                if child is not node and other.meaning is not None:
                    cosine = _cosine(own.meaning, other.meaning)
                    if cosine >= _ALIKE:
                        other.learn(value, _SHARED * cosine)

    def _all_alike_and_bad(self, beliefs: dict[int, Belief], node: Node) -> bool:
        below = [beliefs[child.identity] for child in _open(beliefs, node)]
        meanings = [b.meaning for b in below if b.meaning is not None]
        if not meanings or beliefs[node.identity].drawn >= 2 * self.width:
            return False
        spread = float(np.linalg.norm(np.var(meanings, axis=0)))
        return spread < _CLOSE * len(below) and max(b.q for b in below) < 0

    def _to_commit(self, state: Rewind) -> Node | None:
        options = _open(state.beliefs, state.root)
        if not options:
            return None
        beliefs = {child: state.beliefs[child.identity] for child in options}
        most = max(options, key=lambda child: (beliefs[child].visits, beliefs[child].q))
        good = beliefs[most].visits > self.enough_visits and beliefs[most].q > self.enough_value
        spent = state.beliefs[state.root.identity].visits >= state.limit
        return most if good or spent else None

    def result(
        self, tree: Tree, state: Rewind
    ) -> tuple[Sequence[Node], Sequence[float], float | None]:
        nodes = sorted(answers(tree), key=lambda node: node is not state.root)
        return nodes, [node.log_likelihood for node in nodes], None


def scores(below: Sequence[Belief], total: float, exploration: float) -> Floats:
    """`[K]` what selection maximises: rescaled q plus the bonus of the prior."""
    names = "q", "prior", "weight"
    q, prior, weight = (np.array([getattr(b, name) for b in below]) for name in names)
    rescaled = (q - q.min()) / (np.ptp(q) + 1e-5)
    return np.asarray(rescaled + exploration * prior * math.sqrt(total) / (1 + weight))


def step_priors(log_probs: Sequence[float], *, greedy: bool = True) -> Floats:
    """`[K]` shares of the probability of steps.

    If the first is the greedy one it is likelier than any sample: it gets at least as much as the
    most and the least likely sample together, at most as much as all of them; beside a single
    sample the same as that.
    """
    probs = np.exp(np.array(log_probs) - max(log_probs))
    if greedy and len(probs) > 1:
        others = probs[1:]
        probs[0] = np.clip(probs[0], others.max() + others.min(), max(others.sum(), others.max()))
    return np.asarray(probs / probs.sum())


def _log_prior(node: Node) -> float:
    return math.fsum(r.prior() for r in node.records if r.kind == "choice")


def _open(beliefs: dict[int, Belief], node: Node) -> list[Node]:
    """Children below which something is alive."""
    return [c for c in beliefs[node.identity].children if not beliefs[c.identity].closed]


def _cosine(a: Floats, b: Floats) -> float:
    return float(a @ b / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-12))
