"""ModelSwitch (Chen, Xun, Zhou et al. 2025, "Do We Truly Need So Many Samples?", arXiv:2504.00762):
ask the next model only where the last does not agree with itself.

    for each model, in order:
        draw K samples
        stop if their most frequent answer is as frequent as `agreement` asks
    vote over all samples, those of a model counting

        v = b + (1 - b) (1 - H / log2 K),   b = 1 / K,   H the entropy of its answers in bits

times a weight of one's own. H is divided by its largest value for K samples, not for as many
answers as were seen, as the released code does: that would make (3, 1, 1) more consistent than
(3, 2). Not a sampler.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from ppl.decide.seen import classes_of
from ppl.errors import ArgumentError, ProgramError
from ppl.language import checks
from ppl.language.arguments import check_fields
from ppl.runtime.node import Node
from ppl.runtime.particle import Decide
from ppl.runtime.result import Result
from ppl.runtime.tree import Tree
from ppl.searchers.search import Note, Searcher, all_dead
from ppl.searchers.state import State
from ppl.searchers.trees.actions import support, value_at


@dataclass(frozen=True)
class Asked(State):
    """What the next round needs.

    Attributes:
        groups: the samples of each model that was asked, in order.
        models: how many there are; None before the first has answered.
    """

    groups: tuple[tuple[Node, ...], ...] = ()
    models: int | None = None


@dataclass(frozen=True)
class ModelSwitch(Searcher[Asked]):
    """K samples of one model after another, until one agrees with itself.

    The program says by a discrete choice who writes, `pyro.sample("llm", dist.Categorical(...))`
    (or `llm_0`, `llm_1`, ... at every step); this searcher makes the choice. A first model that is
    always of one mind is the only one that is ever asked, however wrong: put the cheap one first
    only if it is unsure where it is wrong. `posterior.vote()` is the vote, and
    `posterior.cost.models` says what each model has cost.

    Attributes:
        n: K, samples of a model.
        site: name of the choice, without a trailing number.
        order: values of the choice by their place in its support, the first to be asked first; by
            default all.
        agreement: share of a model's samples that the most frequent answer has to have; 1 asks for
            all. A sample without an answer agrees with nobody.
        weights: of each model in `order`, beside v; by default equal.
    """

    steers: ClassVar[bool] = False

    n: int
    site: str = "llm"
    order: tuple[int, ...] | None = None
    agreement: float = 1.0
    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        checks.count(n=self.n)
        checks.probability(agreement=self.agreement)
        for place in self.order or ():
            checks.count(least=0, order=place)
        for weight in self.weights or ():
            checks.positive(weights=weight)
        if self.order == () or len(set(self.order or ())) < len(self.order or ()):
            raise ArgumentError(f"order={self.order!r}: each model once, at least one")
        if self.order and self.weights and len(self.order) != len(self.weights):
            raise ArgumentError(f"weights: {len(self.weights)} for {len(self.order)} in order")

    def start(self, tree: Tree) -> Asked:
        """K copies of the root, for the first model."""
        return Asked(((tree.root,) * self.n,))

    def step(self, tree: Tree, state: Asked) -> tuple[Asked, Note]:
        """Takes the samples of the present model one step further; if they have ended, asks the
        next or stops."""
        *before, nodes = state.groups
        met: list[int] = []
        going = [node for node in nodes if node.open]
        children = iter(tree.expand(going, decide=self._by(len(before), met)))
        nodes = tuple(next(children) if node.open else node for node in nodes)
        models = met[0] if met else state.models
        groups = (*before, nodes)
        if any(node.open for node in nodes):
            return state.after(groups=groups, models=models), {}
        if models is None:
            raise ProgramError(
                f"the program returned without a choice named {self.site!r} or '{self.site}_0': "
                f"site={self.site!r} names the pyro.sample sites that pick the model"
            )
        asked = len(self.order) if self.order is not None else models
        if self.weights is not None and len(self.weights) != asked:
            raise ArgumentError(f"weights: {len(self.weights)} for {asked} models")
        agreed = agreement(nodes)
        over = agreed >= self.agreement or len(groups) == asked
        every = [node for group in groups for node in group]
        if over and all(node.dead for node in every):
            raise all_dead(tree, every, self)
        note = {"model": self._place(len(before)), "agreement": agreed}
        if not over:
            groups = (*groups, (tree.root,) * self.n)
        return state.after(groups=groups, models=models, over=over), note

    def _place(self, turn: int) -> int:
        return turn if self.order is None else self.order[turn]

    def _by(self, turn: int, met: list[int]) -> Decide:
        """Decides for the model whose turn it is; `met` gets the number of models."""
        place = self._place(turn)

        def decide(name: str, distribution: Any) -> Any:
            if re.sub(r"_\d+$", "", name) != self.site:
                return None
            if self.order is not None:
                met.append(len(self.order))
                return value_at(name, distribution, place, f"order={self.order!r}")
            values = support(name, distribution)
            met.append(len(values))
            if place >= len(values):
                raise ProgramError(f"site {name!r} has {len(values)} values, others {met[0]}")
            return values[place]

        return decide

    def result(self, tree: Tree, state: Asked) -> Result:
        """All samples, by the consistency of their model."""
        nodes: list[Node] = []
        log_weights: list[float] = []
        for turn, group in enumerate(state.groups):
            begun = [node for node in group if node is not tree.root]
            own = 1.0 if self.weights is None else self.weights[turn]
            weight = math.log(own * consistency([c for c in _classes(group) if c])) if begun else 0
            nodes += begun
            log_weights += [-math.inf if node.dead else weight for node in begun]
        return Result(nodes, log_weights)


def agreement(nodes: Sequence[Node]) -> float:
    """The share of samples that give the most frequent answer."""
    known = [c for c in classes_of([[_said(node) for node in nodes]])[0] if c >= 0]
    return max(Counter(known).values(), default=0) / len(nodes)


def consistency(counts: Sequence[int]) -> float:
    """v of a model whose answers have these frequencies: 1 if all agree, 1/K if all differ."""
    k = sum(counts)
    if k < 2:
        return 1.0
    entropy = -math.fsum(c / k * math.log2(c / k) for c in counts if c)
    return 1 / k + (1 - 1 / k) * (1 - entropy / math.log2(k))


def _said(node: Node) -> Any:
    return node.result if node.finished and not node.dead else None


def _classes(nodes: Sequence[Node]) -> list[int]:
    """Sizes of the classes of answers; a sample without one is a class of its own."""
    classes = classes_of([[_said(node) for node in nodes]])[0]
    known = Counter(c for c in classes if c >= 0)
    return [*known.values(), *[1] * sum(c < 0 for c in classes)]
