"""Monte Carlo tree search over checkpoints: UCT (Kocsis and Szepesvari 2006) or PUCT (Silver et al.
2017; constants of MuZero, Schrittwieser et al. 2020).

    select    from the root, while the node has `width` children: go to the child maximising
              Q(child) + C sqrt(ln N(node) / N(child))                               (UCT)
              Q(child) + P(child) sqrt(N(node)) / (1 + N(child)) (c1 + ln((N(node) + c2 + 1) / c2))
    expand    draw one more child of the node reached
    evaluate  run the program on from the child to its end, and take what it observed there;
              or take what the child itself has observed
    back up   add the value to every node on the path

Q is the mean of the values below a node, P the probability of a step among its siblings, by the
mean log-probability of its tokens. Several leaves can be on their way in one batch: simulations
that have not come back count as visits in the bonus only, not in Q (Liu et al. 2020,
arXiv:1810.11755).
With evaluation by rollout one simulation costs one completion, so `simulations` compares directly
with N of best-of-N. Every completion is a candidate answer. Not a sampler: the candidates follow no
stated distribution and there is no evidence.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from scipy.special import softmax

from ppl.language import checks
from ppl.runtime.node import Node
from ppl.runtime.result import Result
from ppl.runtime.tree import Tree
from ppl.searchers.likelihood import confidence
from ppl.searchers.search import Note, Searcher, all_dead
from ppl.searchers.state import State
from ppl.searchers.trees.persistent import IntMap, Log

_C1, _C2 = 1.25, 19652.0


@dataclass(frozen=True)
class Statistics:
    """What MCTS knows of one tree node: N, sum of values, children drawn, nothing left below."""

    visits: int = 0
    total: float = 0.0
    children: tuple[Node, ...] = ()
    closed: bool = False


@dataclass(frozen=True)
class MCTSState(State):
    """What the next simulation needs; the statistics are by number of node."""

    statistics: IntMap[Statistics]
    answers: Log[Node] = field(default_factory=Log)
    simulations: int = 0


@dataclass(frozen=True)
class MCTS(Searcher[MCTSState]):
    """Monte Carlo tree search.

    Attributes:
        simulations: how many leaves to evaluate.
        width: children per node; a node with fewer gets a new one before any is revisited (their
            first-play value is infinite).
        exploration: C of UCT. The classic square root of two suits values in [0, 1].
        selection: `"uct"` or `"puct"`.
        evaluation: `"rollout"` runs each leaf to its end; `"verifier"` takes what it has observed,
            which costs a step instead of a completion and needs an informed verifier. If nothing
            has finished then, the end of the most visited path is run on to the program's end.
        leaves: simulations on their way at the same time, as one batch; 1 is the textbook's.
    """

    simulations: int
    width: int = 4
    exploration: float = math.sqrt(2)
    selection: Literal["uct", "puct"] = "uct"
    evaluation: Literal["rollout", "verifier"] = "rollout"
    leaves: int = 1

    def __post_init__(self) -> None:
        checks.count(simulations=self.simulations, width=self.width, leaves=self.leaves)
        checks.nonnegative(exploration=self.exploration)
        checks.one_of(("uct", "puct"), selection=self.selection)
        checks.one_of(("rollout", "verifier"), evaluation=self.evaluation)

    def start(self, tree: Tree) -> MCTSState:
        """The root, never visited."""
        return MCTSState(IntMap({tree.root.identity: Statistics()}))

    def step(self, tree: Tree, state: MCTSState) -> tuple[MCTSState, Note]:
        """`leaves` simulations at once: select, expand, evaluate, back up."""
        statistics = state.statistics
        paths = self._select(tree.root, state)
        children = tree.expand([path[-1] for path in paths])
        leaves = tree.rollout(children) if self.evaluation == "rollout" else children
        for path, child, leaf in zip(paths, children, leaves, strict=True):
            at = path[-1].identity
            here = statistics[at]
            statistics = statistics.set(at, replace(here, children=(*here.children, child)))
            statistics = statistics.set(child.identity, Statistics(closed=not child.open))
            statistics = _backed_up([*path, child], leaf.value, statistics, self.width)
        found = [leaf for leaf in leaves if leaf.finished and not leaf.dead]
        answers = state.answers.append(*found)
        done = state.simulations + len(paths)
        over = done == self.simulations or statistics[tree.root.identity].closed
        if over and not answers and not self._standing(tree.root, statistics):
            raise all_dead(tree, leaves, self)
        return state.after(statistics=statistics, answers=answers, simulations=done, over=over), {}

    def _select(self, root: Node, state: MCTSState) -> list[list[Node]]:
        """Paths from the root to nodes that can take another child, one per simulation."""
        paths: list[list[Node]] = []
        passing: Counter[int] = Counter()  # simulations on their way through a node
        growing: Counter[int] = Counter()  # children on their way
        for _ in range(min(self.leaves, self.simulations - state.simulations)):
            path = [root]
            while path:
                node = path[-1]
                here = state.statistics[node.identity]
                if len(here.children) + growing[node.identity] < self.width:
                    break
                options = [c for c in here.children if not state.statistics[c.identity].closed]
                if not options:  # all that is left below waits for its first value
                    path = []
                else:
                    scores = self._scores(node, options, state.statistics, passing)
                    path.append(options[int(np.argmax(scores))])
            if not path:
                break
            growing[path[-1].identity] += 1
            passing.update(node.identity for node in path)
            paths.append(path)
        return paths

    def _scores(
        self,
        node: Node,
        options: Sequence[Node],
        statistics: Mapping[int, Statistics],
        passing: Counter[int],
    ) -> list[float]:
        """What selection maximises, for each of the children."""
        visits = statistics[node.identity].visits + passing[node.identity]
        own = [statistics[c.identity] for c in options]
        means = [s.total / s.visits for s in own]
        counts = [s.visits + passing[c.identity] for s, c in zip(own, options, strict=True)]
        if self.selection == "uct":
            pairs = zip(means, counts, strict=True)
            return [uct(mean, visits, count, self.exploration) for mean, count in pairs]
        siblings = statistics[node.identity].children
        prior = dict(zip(siblings, softmax([confidence(c.records) for c in siblings]), strict=True))
        triples = zip(means, [float(prior[c]) for c in options], counts, strict=True)
        return [puct(mean, p, visits, count) for mean, p, count in triples]

    def _standing(self, root: Node, statistics: Mapping[int, Statistics]) -> list[Node]:
        """Where the search stands while nothing has finished: the end of the most visited path.
        Nothing where leaves were run to their ends, since all of them were dead."""
        node = root
        while self.evaluation == "verifier" and statistics[node.identity].children:
            children = statistics[node.identity].children
            node = max(children, key=lambda c: statistics[c.identity].visits * (not c.dead))
        return [] if node is root or node.dead else [node]

    def result(self, tree: Tree, state: MCTSState) -> Result:
        # A vote among completions counts each by its value.
        """All answers found, weighted by likelihood; before the first, the nodes that stand."""
        return Result.by_likelihood(state.answers or self._standing(tree.root, state.statistics))


def uct(mean: float, parent_visits: int, visits: int, exploration: float) -> float:
    """Mean value plus the UCB1 bonus C sqrt(ln N / n)."""
    return mean + exploration * math.sqrt(math.log(parent_visits) / visits)


def puct(mean: float, prior: float, parent_visits: int, visits: int) -> float:
    """Mean value plus the bonus of AlphaZero, with the growing constant of MuZero."""
    growth = _C1 + math.log((parent_visits + _C2 + 1) / _C2)
    return mean + prior * math.sqrt(parent_visits) / (1 + visits) * growth


def _backed_up(
    path: list[Node], value: float, statistics: IntMap[Statistics], width: int
) -> IntMap[Statistics]:
    """Adds the value along the path, and closes nodes below which all is finished or dead, so that
    no simulation is wasted on what cannot change."""
    for node in reversed(path):
        here = statistics[node.identity]
        closed = here.closed
        if len(here.children) == width:
            closed = all(statistics[c.identity].closed for c in here.children)
        new = Statistics(here.visits + 1, here.total + value, here.children, closed)
        statistics = statistics.set(node.identity, new)
    return statistics
