"""Adaptive branching Monte Carlo tree search (Inoue, Misaki, Imajuku, Kuroki, Nakamura, Akiba 2025,
arXiv:2503.04412): how wide and how deep to go is itself sampled.

    from the root: draw a score for "a new child here" (GEN) and for going on below (Thompson)
                   take the largest; stop at GEN, or at a node without open children
    expand         one new child; its score r is what it has observed
    back up        r to the arms on the path

Variant A (node aggregation) has two arms at every node, GEN and CONT, and an arm per child, each
with a conjugate posterior: the direct children's scores belong to GEN, those of deeper ones to
CONT. Variant M (mixed model) has a group per child, r = alpha_j + s_y e, alpha_j = mu + s_a e_j;
GEN is a new group. Mean and group effects are integrated analytically, and a grid over the two
scales does the rest, so a decision takes no Markov chain. Not samplers: there is no evidence.

With several language models (multi-LLM AB-MCTS) GEN or CONT is decided as with one, and at GEN then
who writes: by the posteriors of A, or a mixed model whose groups are the language models. That is
the strategy `pooled`; with `stack` the model is drawn first, by all scores of what it made below
the node, and GEN or CONT is then its own: every model has a pair of arms at every node.

With `batch` several descents are made before any of their scores is known, each a draw of its own,
and all new children are one batch of the models. Wide batches make wide trees: five at most.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ppl.errors import WeightError
from ppl.language import checks
from ppl.language.arguments import check_fields
from ppl.language.randomness import generator
from ppl.runtime.node import Node
from ppl.runtime.particle import Decide
from ppl.runtime.result import Result
from ppl.runtime.tree import Tree
from ppl.searchers.search import Note, Searcher, all_dead
from ppl.searchers.state import State
from ppl.searchers.trees.actions import Actions
from ppl.searchers.trees.arms import Arms, Floats, draw_beta, draw_gaussian, draw_mixed
from ppl.searchers.trees.persistent import IntMap, Log

Ints = NDArray[np.int64]
GEN, CONT = 0, 1


@dataclass(frozen=True, eq=False)
class Branch:
    """A node's memory: scores of its direct children, of deeper ones, and of each child's subtree.

    Attributes:
        ways: the arms GEN and CONT.
        children: in the order in which they were made.
        below: an arm per child: all scores of its subtree.
        open: numbers of the children that can be gone on with.
        rounded: of each child, how often its subtree has the score k / 100, by k.
        commonest: `[K]` the largest of these counts of each child.
        makers: the action that made each child, -1 where there is none.
        stacks: of each action, the arms GEN and CONT of what it made here.
    """

    ways: Arms = field(default_factory=lambda: Arms.without_scores(2))
    children: Log[Node] = field(default_factory=Log)
    below: Arms = field(default_factory=Arms.without_scores)
    open: Log[int] = field(default_factory=Log)
    rounded: IntMap[Mapping[int, int]] = field(default_factory=IntMap)
    commonest: Ints = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    makers: Log[int] = field(default_factory=Log)
    stacks: IntMap[Arms] = field(default_factory=IntMap)

    def append(self, child: Node, maker: int = -1) -> Branch:
        """With a new child, its own score not yet backed up."""
        return replace(
            self,
            makers=self.makers.append(maker),
            open=self.open.append(len(self.children)) if child.open else self.open,
            children=self.children.append(child),
            below=self.below.append(),
            commonest=np.append(self.commonest, 0),
        )

    def back_up(self, way: int, child: int, score: float) -> Branch:
        """With a score of the subtree of a child, for GEN if it is the child's own."""
        place, counts = round(100 * score), self.rounded.get(child, {})
        count = counts.get(place, 0) + 1
        commonest = self.commonest.copy()
        commonest[child] = max(commonest[child], count)
        maker, stacks = self.makers[child], self.stacks
        if maker >= 0:
            stacks = stacks.set(maker, self.stack(maker).add(way, score))
        return replace(
            self,
            stacks=stacks,
            ways=self.ways.add(way, score),
            below=self.below.add(child, score),
            rounded=self.rounded.set(child, {**counts, place: count}),
            commonest=commonest,
        )

    def stack(self, action: int) -> Arms:
        """The arms GEN and CONT of what an action has made here."""
        return self.stacks.get(action, _TWO)


_TWO = Arms.without_scores(2)
_LARGEST = 1e100  # score: its square is kept


@dataclass(frozen=True)
class BranchState(State):
    """What the next round needs.

    Attributes:
        branches: by number of node.
        actions: what is known of the actions, None without.
        seen: all nodes that have grown.
        answers: those that are answers: whose program has returned, or has said what it would
            return.
        simulations: how many have grown.
    """

    branches: IntMap[Branch] = field(default_factory=IntMap)
    actions: Actions | None = None
    answers: Log[Node] = field(default_factory=Log)
    seen: Log[Node] = field(default_factory=Log)
    simulations: int = 0


@dataclass(frozen=True)
class _Descent:
    """Where a new child is to be, the children on the way there, and who makes it."""

    node: Node
    path: tuple[tuple[int, int], ...]
    decide: Decide | None


@dataclass(frozen=True)
class _AdaptiveBranching(Searcher[BranchState]):
    simulations: int
    actions: str | None = field(default=None, kw_only=True)
    strategy: Literal["pooled", "stack"] = field(default="pooled", kw_only=True)
    batch: int = field(default=1, kw_only=True)

    def __post_init__(self) -> None:
        checks.count(simulations=self.simulations, batch=self.batch)
        checks.one_of(("pooled", "stack"), strategy=self.strategy)
        check_fields(self)
        if self.batch > 5:
            raise ValueError(f"batch={self.batch}: from 1 to 5; wider ones make the tree too wide")
        if self.strategy == "stack" and self.actions is None:
            raise ValueError("strategy='stack' is about actions: say which, actions='llm'")

    @abstractmethod
    def choose(self, here: Branch, rng: np.random.Generator) -> int | None:
        """The open child to go on with (there is one), or None for GEN."""

    @abstractmethod
    def draw(self, sums: Floats, rng: np.random.Generator) -> Floats:
        """A draw for each arm, from `[3, K]` sums of its scores."""

    def start(self, tree: Tree) -> BranchState:
        return BranchState(actions=None if self.actions is None else Actions(self.actions))

    def step(self, tree: Tree, state: BranchState) -> tuple[BranchState, Note]:
        numbers = range(state.simulations, min(state.simulations + self.batch, self.simulations))
        descents = [self._descend(tree, state, number) for number in numbers]
        children = tree.expand(
            [descent.node for descent in descents], decide=[d.decide for d in descents]
        )
        branches, actions = state.branches, state.actions
        for descent, child in zip(descents, children, strict=True):
            score = self._score(child)
            if actions is not None:
                actions = actions.back_up(child, score)
            maker = -1 if actions is None else actions.maker(child)
            parent = branches.get(descent.node.identity, Branch()).append(child, maker)
            parent = parent.back_up(GEN, len(parent.children) - 1, score)
            branches = branches.set(descent.node.identity, parent)
            for number, choice in descent.path:
                branches = branches.set(number, branches[number].back_up(CONT, choice, score))
        seen = state.seen.append(*children)
        answers = state.answers.append(*(child for child in children if child.answered))
        done = state.simulations + len(children)
        over = done == self.simulations
        if over and not answers:
            answers = answers.append(*self._run_on(tree, seen))
        return state.after(
            branches=branches,
            actions=actions,
            seen=seen,
            answers=answers,
            simulations=done,
            over=over,
        ), {}

    def _descend(self, tree: Tree, state: BranchState, number: int) -> _Descent:
        """From the root to a node that gets a new child, by the scores that are known."""
        rng = generator(tree.seed, "branching", number)
        node, path, wanted = tree.root, list[tuple[int, int]](), None
        known = [] if state.actions is None else range(len(state.actions.scores))
        while (here := state.branches.get(node.identity)) is not None and here.open:
            if self.strategy == "stack" and known:
                choice, wanted = self._choose_stacked(here, len(known), rng)
            else:
                choice = self.choose(here, rng)
            if choice is None:
                break
            path.append((node.identity, choice))
            node, wanted = here.children[choice], None
        return _Descent(node, tuple(path), self._decide(tree, state, number, wanted))

    def _choose_stacked(
        self, here: Branch, actions: int, rng: np.random.Generator
    ) -> tuple[int | None, int]:
        """An action, by all scores of what it made here; then its own new child (None), or one of
        those that it made."""
        stacks = [here.stack(action) for action in range(actions)]
        sums = np.stack([stack.sums.sum(1) for stack in stacks], 1)
        action = int(self.draw(sums, rng).argmax())
        own = [child for child in here.open if here.makers[child] == action]
        gen, cont = self.draw(stacks[action].sums, rng)
        if not own or gen >= cont:
            return None, action
        scores = self.draw(here.below.sums.take(own, axis=1), rng)
        return own[int(scores.argmax())], action

    def _run_on(self, tree: Tree, seen: Sequence[Node]) -> list[Node]:
        """Nothing has finished: the best node to its program's end, or the next best."""
        for node in sorted(seen, key=lambda node: -node.log_likelihood):
            (end,) = tree.rollout([node])
            if end.finished and not end.dead:
                return [end]
        raise all_dead(tree, seen, self)

    def _decide(
        self, tree: Tree, state: BranchState, number: int, wanted: int | None
    ) -> Decide | None:
        if state.actions is None:
            return None
        rng = generator(tree.seed, "action", number)
        return state.actions.decide(self.draw, rng, wanted)

    def _score(self, node: Node) -> float:
        if node.value > _LARGEST:
            raise WeightError(
                f"node {node.identity} has the score {node.value:.4g}, whose posterior overflows; "
                "AB-MCTS takes scores as those of a verifier, in [0, 1], or of that size"
            )
        return node.value

    def result(self, tree: Tree, state: BranchState) -> Result:
        return Result.by_likelihood(state.answers or [n for n in state.seen if n.open])


@dataclass(frozen=True)
class ABMCTSA(_AdaptiveBranching):
    """AB-MCTS with node aggregation.

    Attributes:
        simulations: nodes to grow. Every node that is an answer is a candidate: one whose program
            has returned, or has said with `ppl.answer` what it would return (in a program that
            refines whole answers, every node). If there is none by then, the best is run on to its
            end.
        prior: `"gaussian"`: normal-inverse-chi-squared (0, 1, 1, 0.1); `"beta"`: (0.5, 0.5). What
            is drawn is an arm's mean.
        actions: name of the discrete choices, up to a trailing number as in `llm_3`, that pick what
            makes the next step, such as a language model. They are not drawn from the program's
            distribution, which only says what is possible.
        strategy: `"pooled"`: GEN or CONT first, then who; `"stack"`: who first, then GEN or CONT by
            what that action made.
        batch: new nodes a round, 1 to 5, in one batch of the models.
    """

    prior: Literal["gaussian", "beta"] = "gaussian"

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.one_of(("gaussian", "beta"), prior=self.prior)

    def _score(self, node: Node) -> float:
        if self.prior == "beta" and not 0 <= node.value <= 1:
            raise WeightError(
                f"node {node.identity} has the score {node.value:.4g}; prior='beta' needs scores "
                "in [0, 1], as those of a verifier; take prior='gaussian'"
            )
        return super()._score(node)

    def choose(self, here: Branch, rng: np.random.Generator) -> int | None:
        """An open child of highest drawn mean, or None to draw a new one: Thompson sampling."""
        gen, cont = self.draw(here.ways.sums, rng)
        if gen >= cont:
            return None
        means = self.draw(here.below.sums.take(list(here.open), axis=1), rng)
        return here.open[int(means.argmax())]

    def draw(self, sums: Floats, rng: np.random.Generator) -> Floats:
        """`[K]` means drawn from the posteriors of K arms with the sums `[3, K]`."""
        return (draw_gaussian if self.prior == "gaussian" else draw_beta)(sums, rng)


@dataclass(frozen=True)
class ABMCTSM(_AdaptiveBranching):
    """AB-MCTS with a mixed model. Priors as published: mu ~ N(0.5, 0.2^2), s_a ~ HalfNormal(0.2),
    s_y ~ HalfNormal(0.3); what is drawn is a new score.

    A child is passed over once its subtree has four scores of which three quarters are equal to two
    digits, as in the published code: then the next best child, and GEN only if none is left.

    Attributes:
        simulations: nodes to grow. Every node that is an answer is a candidate: one whose program
            has returned, or has said with `ppl.answer` what it would return (in a program that
            refines whole answers, every node). If there is none by then, the best is run on to its
            end.
        actions: name of the discrete choices, up to a trailing number as in `llm_3`, that pick what
            makes the next step, such as a language model. They are not drawn from the program's
            distribution, which only says what is possible.
        strategy: `"pooled"`: GEN or CONT first, then who; `"stack"`: who first, then GEN or CONT by
            what that action made.
        batch: new nodes a round, 1 to 5, in one batch of the models.
    """

    def choose(self, here: Branch, rng: np.random.Generator) -> int | None:
        """An open, unsettled child of highest drawn score, or None to draw a new one."""
        sums, going = here.below.sums, list(here.open)
        scores, new = draw_mixed(sums, rng)
        number = sums[0, going]
        settled = (number >= 4) & (here.commonest[going] >= 0.75 * number)
        scores = scores[going]
        if new >= scores.max():
            return None
        scores[settled] = -np.inf
        return None if settled.all() else here.open[int(scores.argmax())]

    def draw(self, sums: Floats, rng: np.random.Generator) -> Floats:
        """`[K]` scores drawn from the mixed model of K arms with the sums `[3, K]`."""
        return draw_mixed(sums, rng)[0]
