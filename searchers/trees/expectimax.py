"""Expectimax over the choices between two checkpoints: decisions are maximised, chance is averaged.

A child of a node came about by a few choices of the program. Those whose values are a short list
(`dist.Bernoulli`, `dist.Categorical`, ...) are forks: the search takes a value there, at a decision
the most promising one, at chance the one that has come too rarely so far, so that frequencies are
the law's to within one visit. What follows, a text or a number, is drawn: the tail.

    F(decision)  max of F below
    F(chance)    (1/lambda) log sum w exp(lambda F below)         lambda = 0: sum w F
                 w = p, among the values seen                     at a fork
                 w = p + (1 - sum of p seen) (share of the draws) at a tail: what was seen has its
                     probability, what was not is taken to be like it; densities count 0

F is in units of R, the sum of what a run observes. Once all that can happen was seen, F of the root
is `ppl.plan(program, kind="planning", temperature=lambda).value`, exactly.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy.special import softmax

from ppl.language.text import Continuation
from ppl.runtime.node import Node
from ppl.runtime.particle import Decide
from ppl.runtime.planning import pooled
from ppl.searchers.likelihood import confidence
from ppl.searchers.trees.backups import bounded_exp
from ppl.searchers.trees.persistent import IntMap
from ppl.searchers.trees.statistics import Statistics
from ppl.searchers.trees.ways import Fork, Key, Way, key_of, listed, way_of

_WHOLE = 1.0 - 1e-6  # of probability: distributions of floats sum to about one

Known = Mapping[int, Statistics]
Place = tuple[int, tuple[int, ...]]
"""Where a simulation is between two checkpoints: the node, and what was taken since."""
Score = Callable[[float, float, int, int], float]
"""Of Q, prior, visits of the place and visits of the value: what selection maximises."""


@dataclass(frozen=True)
class Option:
    """A child with what is known of it; `way` is there."""

    node: Node
    way: Way
    visits: int
    worth: float
    closed: bool


@dataclass(frozen=True)
class Round:
    """What the simulations of one round know of each other.

    Attributes:
        score: how decisions are selected.
        passing: how many are on their way through a place.
        growing: how many are to bring a new tail there.
    """

    score: Score
    passing: Counter[Place]
    growing: Counter[Place]

    def scores(
        self, worths: Sequence[float], priors: Sequence[float], counts: Sequence[int]
    ) -> list[float]:
        """What selection maximises, for each value of a decision."""
        total = sum(counts)
        rows = zip(worths, priors, counts, strict=True)
        return [self.score(bounded_exp(w), p, total, n) for w, p, n in rows]


@dataclass(frozen=True)
class Expectimax:
    """The rule.

    Attributes:
        temperature: lambda.
        width: draws of a tail; what was drawn is visited again afterwards.
    """

    temperature: float
    width: int

    # -- one round ---------------------------------------------------------------------------------

    def select(
        self, root: Node, known: Known, most: int, score: Score
    ) -> tuple[list[list[Node]], list[Decide]]:
        """Where simulations go: paths to nodes that get another child, and what it takes at forks.

        Args:
            root, known: the tree.
            most: simulations at a time.
            score: see `Score`.
        """
        paths: list[list[Node]] = []
        decides: list[Decide] = []
        now = Round(score, Counter(), Counter())
        for _ in range(most):
            path = [root]
            step: Node | dict[str, Key] | None = root
            while isinstance(step, Node):
                step = self._descend(path[-1], options_of(path[-1], known), now)
                if isinstance(step, Node):
                    path.append(step)
            if step is None:
                break
            paths.append(path)
            decides.append(taking(step))
        return paths, decides

    def backed_up(
        self, path: Sequence[Node], child: Node, leaf: Node, known: IntMap[Statistics]
    ) -> IntMap[Statistics]:
        """What is known after one simulation more. A child that is there already, as it was drawn
        before, is visited instead."""
        way, parent = way_of(child), known[path[-1].identity]
        siblings = options_of(path[-1], known)
        twin = next((o for o in siblings if way.same(child, o.way, o.node)), None)
        if twin is None:
            new = Statistics(1, leaf.log_likelihood, (), not child.open, way)
            known = known.set(child.identity, new)
            children = (*parent.children, child)
            known = known.set(path[-1].identity, replace(parent, children=children))
        else:
            here = known[twin.node.identity]
            total = here.total
            if not here.children:  # F of what was simulated from it
                n = here.visits + 1
                logs = [math.log((n - 1) / n), -math.log(n)]
                total = pooled([total, leaf.log_likelihood], logs, self.temperature)
            way = replace(here.way or way, drawn=twin.way.drawn + 1)
            here = replace(here, visits=here.visits + 1, total=total, way=way)
            known = known.set(twin.node.identity, here)
        for node in reversed(path):
            here, options = known[node.identity], options_of(node, known)
            worth, closed = self.worth(options), self.closed(options)
            here = replace(here, visits=here.visits + 1, total=worth, closed=closed)
            known = known.set(node.identity, here)
        return known

    # -- what children are worth together ----------------------------------------------------------

    def worth(self, options: Sequence[Option], depth: int = 0) -> float:
        """F of the place where a node's children part, after `depth` forks."""
        groups = _groups(options, depth)
        fork = _fork(options, depth)
        if fork is None:
            below = [option.worth for option in options]
            if options[0].way.decision:
                return max(below)
            return pooled(below, _logs(self.shares(options)), self.temperature)
        below = [self.worth(group, depth + 1) for group in groups.values()]
        if fork.decision:
            return max(below)
        shares = softmax([fork.log_probs[taken] for taken in groups]).tolist()
        return pooled(below, _logs(shares), self.temperature)

    def shares(self, options: Sequence[Option]) -> list[float]:
        """The weights w of tails."""
        probs = [0.0 if math.isnan(o.way.log_prob) else math.exp(o.way.log_prob) for o in options]
        rest = max(0.0, 1.0 - math.fsum(probs))
        draws = sum(o.way.drawn for o in options)
        shares = [p + rest * o.way.drawn / draws for p, o in zip(probs, options, strict=True)]
        total = math.fsum(shares)
        return [share / total for share in shares]

    def closed(self, options: Sequence[Option], depth: int = 0) -> bool:
        """Whether nothing is left to see from this place on."""
        fork = _fork(options, depth)
        if fork is None:
            return self.full(options) and all(option.closed for option in options)
        groups = _groups(options, depth)
        return all(i in groups and self.closed(groups[i], depth + 1) for i in fork.possible)

    def full(self, options: Sequence[Option], more: int = 0) -> bool:
        """Whether no more tails are drawn here, with so many on their way."""
        if sum(option.way.drawn for option in options) + more >= self.width:
            return True
        probs = [math.exp(o.way.log_prob) for o in options if not math.isnan(o.way.log_prob)]
        return math.fsum(probs) >= _WHOLE

    # -- where a simulation goes -------------------------------------------------------------------

    def _descend(
        self, node: Node, options: Sequence[Option], now: Round
    ) -> Node | dict[str, Key] | None:
        """A child to go on from, or what to take at forks on the way to a new one; None where all
        that is left waits for its first value."""
        forced: dict[str, Key] = {}
        prefix: tuple[int, ...] = ()
        while options:
            place = (node.identity, prefix)
            fork = _fork(options, len(prefix))
            if fork is None:
                if self.full(options, now.growing[place]):
                    return self._tail(options, place, now)
                now.growing[place] += 1
                break
            taken = self._taken(fork, options, place, now)
            if taken is None:
                return None
            forced[fork.name] = fork.values[taken]
            options = _groups(options, len(prefix)).get(taken, [])
            prefix = (*prefix, taken)
            now.passing[node.identity, prefix] += 1
        return forced

    def _taken(self, fork: Fork, options: Sequence[Option], place: Place, now: Round) -> int | None:
        """The value to take at a fork."""
        node, prefix = place
        groups, depth = _groups(options, len(prefix)), len(prefix) + 1
        counts = [
            sum(o.visits for o in groups.get(i, [])) + now.passing[node, (*prefix, i)]
            for i in range(len(fork.values))
        ]
        left = [i for i in fork.possible if i not in groups or not self.closed(groups[i], depth)]
        ready = [i for i in left if i in groups or not counts[i]]  # others wait for a first value
        if not ready:
            return None
        probs = softmax(fork.log_probs).tolist()
        if not fork.decision:
            return _rarest(ready, probs, counts)
        new = [i for i in ready if i not in groups]
        if new:
            return new[0]
        worths = [self.worth(groups[i], depth) for i in ready]
        scores = now.scores(worths, [probs[i] for i in ready], [counts[i] for i in ready])
        return ready[int(np.argmax(scores))]

    def _tail(self, options: Sequence[Option], place: Place, now: Round) -> Node | None:
        """Which of the children with different tails is visited again."""
        ready = [i for i, option in enumerate(options) if not option.closed]
        if not ready:
            return None
        node, prefix = place
        counts = [o.visits + now.passing[node, (*prefix, ~i)] for i, o in enumerate(options)]
        if options[0].way.decision:
            priors = softmax([confidence(o.node.records) for o in options]).tolist()
            worths = [options[i].worth for i in ready]
            scores = now.scores(worths, [priors[i] for i in ready], [counts[i] for i in ready])
            best = ready[int(np.argmax(scores))]
        else:
            best = _rarest(ready, self.shares(options), counts)
        now.passing[node, (*prefix, ~best)] += 1
        return options[best].node

    # -- what is to be done ------------------------------------------------------------------------

    def decided(self, root: Node, known: Known) -> list[tuple[str, Any]]:
        """The best decisions from the start on, up to the first chance of two outcomes."""
        found: list[tuple[str, Any]] = []
        options, depth = options_of(root, known), 0
        while options:
            fork = _fork(options, depth)
            if fork is not None:
                if not fork.decision and len(fork.possible) > 1:
                    break
                groups = _groups(options, depth)
                worths = {i: self.worth(group, depth + 1) for i, group in groups.items()}
                best = max(worths, key=worths.__getitem__)
                if fork.decision:
                    found.append((fork.name, _plain(fork.values[best])))
                options, depth = groups[best], depth + 1
                continue
            option = max(options, key=lambda o: o.worth)
            if option.way.decision:
                last = option.node.records[option.way.tail[-1]]
                found.append((last.name, _plain(last.value)))
            elif len(options) > 1 or not math.exp(option.way.log_prob) >= _WHOLE:
                break
            options, depth = options_of(option.node, known), 0
        return found


def options_of(node: Node, known: Known) -> list[Option]:
    """The children of a node."""
    found = []
    for child in known[node.identity].children:
        own = known[child.identity]
        found.append(Option(child, own.way or Way(), own.visits, own.total, own.closed))
    return found


def taking(forced: Mapping[str, Key]) -> Decide:
    """For `Tree.expand`: takes these values, and leaves the rest to the program."""

    def decide(name: str, distribution: Any) -> Any:
        if name not in forced:
            return None
        values = listed(distribution) or []
        return next((value for value in values if key_of(value) == forced[name]), None)

    return decide


def _plain(value: Any) -> Any:
    """A value for people."""
    if isinstance(value, Continuation):
        return value.text
    if torch.is_tensor(value):
        return value.tolist()
    if isinstance(value, tuple):
        return value[0] if len(value) == 1 else list(value)
    return value


def _fork(options: Sequence[Option], depth: int) -> Fork | None:
    """The fork after so many; None where there is only the tail."""
    forks = options[0].way.forks
    return forks[depth] if len(forks) > depth else None


def _groups(options: Sequence[Option], depth: int) -> dict[int, list[Option]]:
    groups: dict[int, list[Option]] = {}
    for option in options:
        if len(option.way.forks) > depth:
            groups.setdefault(option.way.forks[depth].taken, []).append(option)
    return groups


def _logs(shares: Sequence[float]) -> list[float]:
    return [math.log(share) if share > 0 else -math.inf for share in shares]


def _rarest(ready: Sequence[int], shares: Sequence[float], counts: Sequence[int]) -> int:
    """Whose visits are furthest behind its share."""
    total = sum(counts) + 1
    return max(ready, key=lambda i: shares[i] * total - counts[i])
