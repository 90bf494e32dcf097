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
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ppl.language import checks
from ppl.language.arguments import check_fields
from ppl.runtime.node import Node
from ppl.runtime.result import Result
from ppl.runtime.tree import Tree
from ppl.searchers.anytime import answers
from ppl.searchers.duplicates import distinct
from ppl.searchers.likelihood import log_prior_of
from ppl.searchers.search import Note, Searcher, all_dead
from ppl.searchers.state import State
from ppl.searchers.trees.persistent import IntMap

Floats = NDArray[np.float64]
# The published code's: cosine from which texts are alike, the share of a value that they get, and
# the spread per child below which all are.
_ALIKE, _SHARED, _CLOSE = 0.95, 0.2, 0.03


@dataclass(frozen=True, eq=False)
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
    children: tuple[Node, ...] = ()
    meaning: Floats | None = None
    drawn: int = 0
    closed: bool = False

    def learn(self, v: float, weight: float = 1.0) -> Belief:
        """With a value taken into the mean."""
        total = self.weight + weight
        return replace(self, weight=total, q=self.q + (v - self.q) * weight / total)


Beliefs = IntMap[Belief]


@dataclass(frozen=True)
class Rewind(State):
    """What the next simulation needs.

    Attributes:
        root: the last step that was committed.
        beliefs: by number of node.
        limit: visits of the root at which a step is committed in any case.
    """

    root: Node
    beliefs: Beliefs
    limit: int


@dataclass(frozen=True)
class RAIN(Searcher[Rewind]):
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
        checks.count(simulations=self.simulations, more=self.more, width=self.width)
        checks.count(least=0, enough_visits=self.enough_visits)
        checks.nonnegative(exploration=self.exploration)
        check_fields(self)

    def start(self, tree: Tree) -> Rewind:
        """The root, with a full number of simulations."""
        return Rewind(tree.root, IntMap({tree.root.identity: Belief()}), self.simulations)

    def step(self, tree: Tree, state: Rewind) -> tuple[Rewind, Note]:
        """One simulation below the root; when they suffice, a step is committed."""
        beliefs, root = state.beliefs, state.root
        path = self._descend(state)
        leaf = path[-1]
        if leaf.open:
            beliefs = self._grown(beliefs, leaf, self._drawn(tree, leaf), leaf is root)
        value = 2 * min(leaf.value, 1.0) - 1
        beliefs = self._backed_up(beliefs, path, -1.0 if beliefs[leaf.identity].closed else value)
        for node in path[:-1]:
            if self._all_alike_and_bad(beliefs, node):
                beliefs = self._grown(beliefs, node, tree.expand([node]), node is root)
        state = state.after(beliefs=beliefs)
        if beliefs[root.identity].closed:
            return self._back_from(tree, state), {}
        committed = self._to_commit(state)
        if committed is None:
            return state, {}
        own = beliefs[committed.identity]
        note = {"committed": committed.identity, "visits": own.visits, "q": own.q}
        if own.children:  # a root's priors
            state = replace(state, beliefs=self._grown(beliefs, committed, [], True))
        return replace(self._at(state, committed), over=committed.finished), note

    def _at(self, state: Rewind, root: Node) -> Rewind:
        limit = max(self.simulations, state.beliefs[root.identity].visits + self.more)
        return replace(state, root=root, limit=limit)

    def _back_from(self, tree: Tree, state: Rewind) -> Rewind:
        """What was committed turned out to be a dead end: back to where something is alive."""
        for node in reversed(state.root.path[:-1]):
            closed = not _open(state.beliefs, node)
            state = replace(state, beliefs=_with(state.beliefs, node, closed=closed))
            if not closed:
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

    def _grown(self, beliefs: Beliefs, node: Node, drawn: Sequence[Node], is_root: bool) -> Beliefs:
        """With more children for a node; all their priors are set anew."""
        here = beliefs[node.identity]
        children = tuple(c for c in distinct([*here.children, *drawn]) if not c.dead)
        beliefs = _with(
            beliefs, node, children=children, closed=not children, drawn=here.drawn + len(drawn)
        )
        if children:
            # The greedy one is the first, if it is alive.
            log_priors = [log_prior_of(child.records) for child in children]
            priors = step_priors(log_priors, greedy=children[0].simulated)
            if is_root:
                priors = 0.75 * priors + 0.25 / len(children)
            for child, prior in zip(children, priors.tolist(), strict=True):
                own = beliefs.get(child.identity, Belief())
                beliefs = beliefs.set(child.identity, replace(own, prior=prior))
        return beliefs

    def _backed_up(self, beliefs: Beliefs, path: Sequence[Node], value: float) -> Beliefs:
        for node in path:
            here = beliefs[node.identity]
            beliefs = _with(beliefs, node, visits=here.visits + 1)
            beliefs = beliefs.set(node.identity, beliefs[node.identity].learn(value))
        for parent in reversed(path[:-1]):
            beliefs = _with(beliefs, parent, closed=not _open(beliefs, parent))
        if self.embed is None or path[-1].text is None:
            return beliefs
        (vector,) = np.asarray(self.embed([path[-1].text.text]), dtype=float)
        for parent, node in itertools.pairwise(path):
            own = beliefs[node.identity]
            meaning = own.meaning
            meaning = vector if meaning is None else meaning + (vector - meaning) / own.visits
            beliefs = _with(beliefs, node, meaning=meaning)
            for child in beliefs[parent.identity].children:
                other = beliefs[child.identity]
                if child is not node and other.meaning is not None:
                    cosine = _cosine(meaning, other.meaning)
                    if cosine >= _ALIKE:
                        other = other.learn(value, _SHARED * cosine)
                        beliefs = beliefs.set(child.identity, other)
        return beliefs

    def _all_alike_and_bad(self, beliefs: Beliefs, node: Node) -> bool:
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

    def result(self, tree: Tree, state: Rewind) -> Result:
        """Answers, the one that was arrived at first; weighted by likelihood."""
        nodes = sorted(answers(tree), key=lambda node: node is not state.root)
        return Result.by_likelihood(nodes or [state.root])


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


def _with(beliefs: Beliefs, node: Node, **changes: Any) -> Beliefs:
    return beliefs.set(node.identity, replace(beliefs[node.identity], **changes))


def _open(beliefs: Beliefs, node: Node) -> list[Node]:
    """Children below which something is alive."""
    return [c for c in beliefs[node.identity].children if not beliefs[c.identity].closed]


def _cosine(a: Floats, b: Floats) -> float:
    return float(a @ b / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-12))
