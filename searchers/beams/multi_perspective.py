"""Best-first search under several rankings at once (MPS-Prover: Liang, Song, Li, Yang, Zhang, Mi,
Yu 2025, arXiv:2505.10962).

    queue = {root}
    repeat  pop, under each perspective, the best node that none before it has popped
            expand all of them k times, as one batch; push the children that are new

With a width that adapts, a node whose k draws differ is drawn more of: in all

    k_t = clip(round(k_max H_t / H_max), k, k_max)

with H_t the entropy of its k draws, as they came out, and H_max = log k. The paper adapts its width
too; how, we do not know, and this rule is ours.

One perspective alone is best-first search. Several keep one bad critic from trapping the search: a
node that any of them likes gets its turn. A state is new if no earlier one has its normal form. The
paper ranks proof states by a learned critic and by rules (few cases, short states); here a
perspective is a rule by name, a function of the node, or a verifier. Not a sampler.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from ppl.errors import VerifierError
from ppl.language import checks
from ppl.language.arguments import check_fields
from ppl.runtime.node import Node
from ppl.runtime.tree import Tree
from ppl.runtime.verdict import Scorer
from ppl.searchers.beams.best_first import QueueSearch
from ppl.searchers.duplicates import origin
from ppl.searchers.likelihood import log_prior

Perspective = str | Callable[[Node], float] | Scorer


def _log_promise(node: Node) -> float:
    return node.log_promise


def _brevity(node: Node) -> float:
    return 0.0 if node.text is None else -float(len(node.text))


RULES: dict[str, Callable[[Node], float]] = {
    "likelihood": _log_promise,
    "prior": log_prior,
    "shortest": _brevity,
}


@dataclass(frozen=True, repr=False)
class MultiPerspective(QueueSearch):
    """Expands in every round the best open node under each perspective.

    The last round is cut so that `simulations` holds. What ranks first under two perspectives is
    expanded once, and the later one takes its next best.

    Attributes:
        perspectives: what ranks nodes, higher is better. `"likelihood"`: the observed
            log-likelihood with its twist, by which `BestFirst` goes; `"prior"`: log-probability of
            the choices under the model; `"shortest"`: fewest tokens. Or a function of the node; or
            a verifier or ranker, which judges every open node's text once (`tree.score`).
        normal_form: equal for nodes that stand for the same state; an open node whose state some
            earlier one had, an ancestor or any other, is dropped. Asked again in every round: give
            it a cache if it is dear. None drops only siblings that chose the same.
        most_expansions: k_max of the width that adapts, with `expansions`, at least 2, as k; None
            draws k of every node.

    Raises:
        VerifierError: a perspective gives NaN, or what is no number.
        SearchStateError: a verifier is to judge a node without a text; or every state left is a
            duplicate although nothing has finished.
    """

    perspectives: tuple[Perspective, ...] = ("likelihood", "prior", "shortest")
    normal_form: Callable[[Node], Hashable] | None = None
    most_expansions: int | None = field(default=None, metadata={"quiet": True})

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.perspectives, tuple) or not self.perspectives:
            raise ValueError(f"perspectives={self.perspectives!r}: a tuple of at least one")
        for ranking in self.perspectives:
            named = isinstance(ranking, str) and ranking in RULES
            if not (named or isinstance(ranking, Scorer) or callable(ranking)):
                raise ValueError(
                    f"perspective {ranking!r}: one of {', '.join(RULES)}, a function of the node, "
                    "a verifier or a ranker"
                )
        if self.most_expansions is not None:
            checks.count(most_expansions=self.most_expansions)
            if not 2 <= self.expansions <= self.most_expansions:
                raise ValueError(
                    f"most_expansions={self.most_expansions}, expansions={self.expansions}: the "
                    "entropy of at least two draws decides how many more there are"
                )
        check_fields(self)

    def __repr__(self) -> str:
        said = {f.name: getattr(self, f.name) for f in fields(self)}
        if self.most_expansions is None:  # as before there was any
            del said["most_expansions"]
        return f"MultiPerspective({', '.join(f'{name}={v!r}' for name, v in said.items())})"

    def drawn(self, tree: Tree, nodes: Sequence[Node]) -> list[Node]:
        """`expansions` children of each node; of those whose children differ, more."""
        k, first = self.expansions, super().drawn(tree, nodes)
        if self.most_expansions is None:
            return first
        each = [first[i * k : (i + 1) * k] for i in range(len(nodes))]
        more = [self._width(children, self.most_expansions) - k for children in each]
        return first + tree.expand(nodes, more)

    def _width(self, children: Sequence[Node], most: int) -> int:
        """k_t of the module docstring."""
        shares = [n / len(children) for n in Counter(map(origin, children)).values()]
        entropy = -math.fsum(p * math.log(p) for p in shares)
        wanted = round(most * entropy / math.log(len(children)))
        return min(max(wanted, self.expansions), most)

    def priorities(self, tree: Tree, nodes: Sequence[Node]) -> list[tuple[float, ...]]:
        """An order for every perspective: the higher its score, the earlier."""
        if not nodes:
            return []
        columns = [self._ranked(tree, nodes, ranking) for ranking in self.perspectives]
        return [tuple(-score for score in row) for row in zip(*columns, strict=True)]

    def _ranked(self, tree: Tree, nodes: Sequence[Node], ranking: Perspective) -> list[float]:
        if isinstance(ranking, Scorer):
            return tree.score(nodes, ranking)
        rule = RULES[ranking] if isinstance(ranking, str) else ranking
        scores = list[float]()
        for node in nodes:
            said: Any = rule(node)
            try:
                scores.append(float(said))
            except (TypeError, ValueError):
                scores.append(math.nan)
            if math.isnan(scores[-1]):
                raise VerifierError(
                    f"perspective {ranking!r} gave {said!r} for node {node.identity}, "
                    f"{node.step!r}; return a number that ranks it"
                )
        return scores

    def fresh(self, tree: Tree, children: list[Node]) -> list[Node]:
        """Those of the new nodes that differ in choices, and in `normal_form` from all before."""
        new = super().fresh(tree, children)
        if self.normal_form is None:
            return new
        before = tree.nodes[1 : -len(children)]
        known = {self.normal_form(node) for node in before if node.open}
        kept = []
        for child in new:
            if child.open:
                form = self.normal_form(child)
                if form in known:
                    continue
                known.add(form)
            kept.append(child)
        return kept
