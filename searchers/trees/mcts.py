"""Monte Carlo tree search over checkpoints: UCT (Kocsis and Szepesvari 2006) or PUCT (Silver et al.
2017; constants of MuZero, Schrittwieser et al. 2020).

    select    from the root, while the node has `width` children: go to the child maximising
              Q(child) + C sqrt(ln N(node) / N(child))                               (UCT)
              Q(child) + P(child) sqrt(N(node)) / (1 + N(child)) (c1 + ln((N(node) + c2 + 1) / c2))
    expand    draw one more child of the node reached
    evaluate  run the program on from the child to its end, and take what it observed there;
              or take what the child itself has observed
    back up   add the value to every node on the path

Q is the mean of the values below a node, or what `backup` says (`ppl.searchers.trees.backups`,
`ppl.searchers.trees.expectimax`), P the probability of a step among its siblings, by the
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
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, get_args

import numpy as np
from scipy.special import softmax

from ppl.errors import ArgumentError
from ppl.language import checks
from ppl.posterior.posterior import Posterior
from ppl.runtime.node import Node
from ppl.runtime.result import Result
from ppl.runtime.tree import Tree
from ppl.searchers.likelihood import confidence
from ppl.searchers.search import Note, Searcher, all_dead
from ppl.searchers.state import State
from ppl.searchers.trees.backups import Max, Mean, Soft
from ppl.searchers.trees.expectimax import Expectimax
from ppl.searchers.trees.persistent import IntMap, Log
from ppl.searchers.trees.statistics import Statistics

Backup = Literal["mean", "max", "soft", "expectimax"]
_C1, _C2 = 1.25, 19652.0


@dataclass(frozen=True)
class MCTSState(State):
    """What the next simulation needs; the statistics are by number of node."""

    statistics: IntMap[Statistics]
    answers: Log[Node] = field(default_factory=Log)
    simulations: int = 0


@dataclass(frozen=True, repr=False)
class MCTS(Searcher[MCTSState]):
    """Monte Carlo tree search.

    With lambda the `temperature`, R the sum of what a run observes, and Q in units of exp(R):

    * `backup="mean"`: Q is the mean of exp(R) over the simulations below.
    * `"max"`: the largest. It takes luck for skill, and is what `best` looks for.
    * `"soft"`: exp of (1/lambda) log mean exp(lambda R), a log-mean-exp at an inverse temperature:
      `"mean"` at 1, towards `"max"` as lambda grows.
    * `"expectimax"`: sites with `infer={"decision": True}` are maximised, all others are averaged
      under their law. The search takes the values of decisions, and of chance whose values are a
      short list, by itself; what is drawn (texts) it draws `width` times. Where all that can happen
      is seen, log Q of the root is `ppl.plan(program, temperature=lambda).value`, and the search
      ends. Before, a maximum of estimates is optimistic. A decision needs a checkpoint between it
      and a text before it. Tools are taken to give the same again.

    But for `"mean"`, notes tell log Q of the root as `log_value`.

    Attributes:
        simulations: how many leaves to evaluate.
        width: children per node; a node with fewer gets a new one before any is revisited (their
            first-play value is infinite). Of expectimax: draws of a text.
        exploration: C of UCT. The classic square root of two suits values in [0, 1].
        selection: `"uct"` or `"puct"`. Expectimax selects at decisions only.
        evaluation: `"rollout"` runs each leaf to its end; `"verifier"` takes what it has observed,
            which costs a step instead of a completion and needs an informed verifier. If nothing
            has finished then, the end of the most visited path is run on to the program's end.
        leaves: simulations on their way at the same time, as one batch; 1 is the textbook's.
        backup: what a node makes of what is below.
        temperature: lambda of `"soft"` and `"expectimax"`, an inverse temperature as in `ppl.plan`;
            0 is the mean of R.
    """

    simulations: int
    width: int = 4
    exploration: float = math.sqrt(2)
    selection: Literal["uct", "puct"] = "uct"
    evaluation: Literal["rollout", "verifier"] = "rollout"
    leaves: int = 1
    backup: Backup = field(default="mean", metadata={"quiet": True})
    temperature: float = field(default=1.0, metadata={"quiet": True})

    def __post_init__(self) -> None:
        checks.count(simulations=self.simulations, width=self.width, leaves=self.leaves)
        checks.nonnegative(exploration=self.exploration, temperature=self.temperature)
        checks.one_of(("uct", "puct"), selection=self.selection)
        checks.one_of(("rollout", "verifier"), evaluation=self.evaluation)
        checks.one_of(get_args(Backup), backup=self.backup)
        if self.temperature != 1 and self.backup in ("mean", "max"):
            raise ArgumentError(
                f"temperature={self.temperature!r}: backup={self.backup!r} has none; 'soft' and "
                "'expectimax' do"
            )

    def __repr__(self) -> str:
        given = [
            f"{f.name}={getattr(self, f.name)!r}"
            for f in fields(self)
            if not (f.metadata.get("quiet") and getattr(self, f.name) == f.default)
        ]
        return f"{type(self).__name__}({', '.join(given)})"

    @property
    def _rule(self) -> Mean | Max | Soft:
        """What totals are."""
        if self.backup == "soft":
            return Soft(self.temperature)
        return Max() if self.backup == "max" else Mean()

    @property
    def _planner(self) -> Expectimax | None:
        return Expectimax(self.temperature, self.width) if self.backup == "expectimax" else None

    def start(self, tree: Tree) -> MCTSState:
        """The root, never visited."""
        if self.backup == "expectimax" and tree.guide is not None:
            raise ArgumentError(
                "guide: backup='expectimax' averages under the program's own law; leave the guide "
                "out"
            )
        return MCTSState(IntMap({tree.root.identity: Statistics(total=self._rule.start)}))

    def step(self, tree: Tree, state: MCTSState) -> tuple[MCTSState, Note]:
        """`leaves` simulations at once: select, expand, evaluate, back up."""
        statistics, planner = state.statistics, self._planner
        if planner is None:
            paths = self._select(tree.root, state)
            children = tree.expand([path[-1] for path in paths])
        else:
            most = min(self.leaves, self.simulations - state.simulations)
            paths, taken = planner.select(tree.root, statistics, most, self._score)
            children = tree.expand([path[-1] for path in paths], decide=taken)
        leaves = tree.rollout(children) if self.evaluation == "rollout" else children
        for path, child, leaf in zip(paths, children, leaves, strict=True):
            if planner is not None:
                statistics = planner.backed_up(path, child, leaf, statistics)
                continue
            at = path[-1].identity
            here = statistics[at]
            statistics = statistics.set(at, replace(here, children=(*here.children, child)))
            new = Statistics(total=self._rule.start, closed=not child.open)
            statistics = statistics.set(child.identity, new)
            statistics = _backed_up([*path, child], leaf, statistics, self.width, self._rule)
        found = [leaf for leaf in leaves if leaf.finished and not leaf.dead]
        answers = state.answers.append(*found)
        done = state.simulations + len(paths)
        over = done == self.simulations or statistics[tree.root.identity].closed
        if over and not answers and not self._standing(tree.root, statistics):
            raise all_dead(tree, leaves, self)
        note = self._note(tree.root, statistics)
        state = state.after(statistics=statistics, answers=answers, simulations=done, over=over)
        return state, note

    def _note(self, root: Node, statistics: Mapping[int, Statistics]) -> Note:
        own, planner = statistics[root.identity], self._planner
        if planner is not None:
            decided = [list(pair) for pair in planner.decided(root, statistics)]
            return {"log_value": own.total, "decided": decided}
        if self.backup == "mean":
            return {}
        return {"log_value": self._rule.log_value(own.total, own.visits)}

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
        means = [self._rule.value(s.total, s.visits) for s in own]
        counts = [s.visits + passing[c.identity] for s, c in zip(own, options, strict=True)]
        priors = [0.0] * len(options)  # UCT has none
        if self.selection == "puct":
            siblings = statistics[node.identity].children
            shares = softmax([confidence(c.records) for c in siblings])
            prior = dict(zip(siblings, shares, strict=True))
            priors = [float(prior[c]) for c in options]
        rows = zip(means, priors, counts, strict=True)
        return [self._score(mean, p, visits, count) for mean, p, count in rows]

    def _score(self, mean: float, prior: float, parent_visits: int, visits: int) -> float:
        if self.selection == "uct":
            return uct(mean, parent_visits, visits, self.exploration)
        return puct(mean, prior, parent_visits, visits)

    def _standing(self, root: Node, statistics: Mapping[int, Statistics]) -> list[Node]:
        """Where the search stands while nothing has finished: the end of the most visited path.
        Nothing where leaves were run to their ends, since all of them were dead."""
        node = root
        while self.evaluation == "verifier" and statistics[node.identity].children:
            children = statistics[node.identity].children
            node = max(children, key=lambda c: statistics[c.identity].visits * (not c.dead))
        return [] if node is root or node.dead else [node]

    @staticmethod
    def decided(posterior: Posterior) -> dict[str, Any]:
        """What expectimax would do before it has seen any chance, by site; a text as its string."""
        notes: Any = [note["decided"] for note in posterior.history if "decided" in note]
        return dict(notes[-1]) if notes else {}

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
    path: list[Node],
    leaf: Node,
    statistics: IntMap[Statistics],
    width: int,
    rule: Mean | Max | Soft,
) -> IntMap[Statistics]:
    """Adds the leaf's value along the path, and closes nodes below which all is finished or dead,
    so that no simulation is wasted on what cannot change."""
    for node in reversed(path):
        here = statistics[node.identity]
        closed = here.closed
        if len(here.children) == width:
            closed = all(statistics[c.identity].closed for c in here.children)
        total = rule.add(here.total, leaf)
        statistics = statistics.set(
            node.identity, Statistics(here.visits + 1, total, here.children, closed)
        )
    return statistics
