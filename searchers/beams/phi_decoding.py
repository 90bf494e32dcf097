"""phi-Decoding (Xu, Yan, Ma, Zhao, Liu, Lin, Wu 2025, arXiv:2503.13288): steps chosen by where the
model itself would go from there, without a verifier.

    beams = M times the start
    repeat  draw N next steps of every beam
            in width: drop steps of low confidence (mean log-probability)
            foresight: run every step left on to its end; F = mean log-probability of what it says
            advantage A = F - F of the beam it continues; alignment C = share of its cluster
            draw M steps without replacement from (softmax(A / tau) + softmax(C / tau)) / 2
            in depth: if most foresights agree, stop looking ahead
    run the beams on to their ends; of two clusters of answers take the larger, and from it draw one
    by softmax(A / tau)

Confidence, foresight and agreement are the model's own, so their errors go together. Likelihoods
that the program observes choose nothing here; zeros kill. The released code differs: tau is 0.1 for
the advantage and absent for the alignment, and foresight has temperature 1 whatever the steps have.
Costs up to M * N completions a level. Not a sampler: there is no evidence.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax, softmax

from ppl.language import checks
from ppl.language.randomness import generator, key
from ppl.language.text import Continuation
from ppl.runtime.node import Node
from ppl.runtime.result import Result
from ppl.runtime.tree import Tree
from ppl.searchers.likelihood import confidence
from ppl.searchers.resampling import without_replacement
from ppl.searchers.search import Note, Searcher, all_dead
from ppl.searchers.state import State

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Beam:
    """A node, the F of its foresight, and the advantage with which it was chosen."""

    node: Node
    foresight: float = 0.0
    advantage: float = 0.0


@dataclass(frozen=True)
class Beams(State):
    """What the next round needs.

    Attributes:
        beams: those that go on.
        finished: those whose program has returned.
        foreseen: completions of the last foresight that finished, should a budget end the search.
        settled: no foresight is left to do.
    """

    beams: tuple[Beam, ...]
    finished: tuple[Beam, ...] = ()
    foreseen: tuple[Node, ...] = ()
    settled: bool = False


@dataclass(frozen=True)
class PhiDecoding(Searcher[Beams]):
    """Foresight sampling with the paper's settings.

    The answers are the ends of the beams: `posterior.samples[0]` is the paper's choice among them,
    and `best` too if the program observes nothing. `vote()` counts each by exp(A / tau).

    Attributes:
        beam_width: M.
        samples: N, steps drawn from every beam.
        num_clusters: K, clusters of foresights.
        temperature: tau.
        sigma: steps less confident than the mean by so many standard deviations are dropped.
        agreement: delta, share of the largest cluster at which looking ahead ends.
        min_steps, max_steps: rounds of foresight, at least (before agreement ends it) and at most.

    Needs scikit-learn (`pip install ppl-search[cluster]`).
    """

    beam_width: int = 4
    samples: int = 4
    num_clusters: int = 3
    temperature: float = 0.6
    sigma: float = 1.0
    agreement: float = 0.7
    min_steps: int = 4
    max_steps: int = 8

    def __post_init__(self) -> None:
        checks.count(beam_width=self.beam_width, samples=self.samples)
        checks.count(num_clusters=self.num_clusters, max_steps=self.max_steps)
        checks.count(least=0, min_steps=self.min_steps)
        checks.positive(temperature=self.temperature, agreement=self.agreement)
        checks.probability(agreement=self.agreement)
        checks.nonnegative(sigma=self.sigma)
        if self.min_steps > self.max_steps:
            raise ValueError(f"{self!r}: min_steps <= max_steps")

    def start(self, tree: Tree) -> Beams:
        """`beam_width` beams, all at the root."""
        return Beams((Beam(tree.root),) * self.beam_width)

    def step(self, tree: Tree, state: Beams) -> tuple[Beams, Note]:
        """Draws steps, foresees the confident ones to their ends, and chooses by advantage and
        alignment; once foresight has ended, runs the beams on to their ends."""
        if state.settled or not state.beams:
            return self._finish(tree, state), {}
        t = state.round
        rng = generator(tree.seed, "phi", t)
        children = tree.expand([beam.node for beam in state.beams], self.samples)
        before = {c: b.foresight for b in state.beams for c in children if c.parent is b.node}
        alive = [child for child in children if not child.dead]
        kept = self._confident(alive, rng)
        ends = tree.rollout(kept)
        pairs = [(node, end) for node, end in zip(kept, ends, strict=True) if not end.dead]
        foreseen = tuple(end for _, end in pairs)
        if not pairs:
            if state.finished or state.foreseen:
                return state.after(beams=(), settled=True), {}
            raise all_dead(tree, [*children, *ends], self)
        # What a step says counts where nothing comes after it.
        values = [confidence(e.history[len(n.history) :] or n.records) for n, e in pairs]
        advantages = [value - before[node] for value, (node, _) in zip(values, pairs, strict=True)]
        seed = key(tree.seed, "clusters", t)
        labels = clusters([said(n, e) for n, e in pairs], self.num_clusters, seed)
        sizes = Counter(labels)
        alignment = [sizes[label] / len(labels) for label in labels]
        log_weights = log_foresight_weights(advantages, alignment, self.temperature)
        wanted = self.beam_width - len(state.finished)
        chosen = [
            Beam(pairs[i][0], values[i], advantages[i])
            for i in without_replacement(log_weights.tolist(), wanted, rng)
        ]
        agreed = max(alignment) >= self.agreement and t + 1 >= self.min_steps
        note = {
            "survivors": len(kept),
            "largest": max(alignment),
            "chosen": [beam.node.identity for beam in chosen],
        }
        return state.after(
            beams=tuple(beam for beam in chosen if beam.node.open),
            finished=(*state.finished, *(beam for beam in chosen if beam.node.finished)),
            foreseen=foreseen,
            settled=agreed or t + 1 == self.max_steps,
        ), note

    def _confident(self, nodes: Sequence[Node], rng: np.random.Generator) -> list[Node]:
        """In-width pruning; filled up to M by the softmax of the confidence."""
        scores = np.array([confidence(node.records) for node in nodes])
        if len(nodes) <= self.beam_width:
            return list(nodes)
        # Equal ones, which rounding may set apart from their mean, are all kept.
        keep = scores > scores.mean() - max(self.sigma * scores.std(), 1e-9)
        missing = self.beam_width - int(keep.sum())
        if missing > 0:
            others = np.flatnonzero(~keep)
            keep[others[without_replacement(scores[others].tolist(), missing, rng)]] = True
        return [node for node, kept in zip(nodes, keep, strict=True) if kept]

    def _finish(self, tree: Tree, state: Beams) -> Beams:
        ends = tree.rollout([beam.node for beam in state.beams])
        pairs = zip(state.beams, ends, strict=True)
        run_on = (replace(b, node=end) for b, end in pairs if not end.dead)
        finished = (*state.finished, *run_on)
        if not finished and not state.foreseen:
            raise all_dead(tree, ends, self)
        return state.after(beams=(), finished=self._ordered(tree, finished), over=True)

    def _ordered(self, tree: Tree, beams: tuple[Beam, ...]) -> tuple[Beam, ...]:
        """The paper's choice first: from the larger of two clusters of answers."""
        if not beams:
            return beams
        labels = clusters([said(tree.root, b.node) for b in beams], 2, key(tree.seed, "answers"))
        larger = Counter(labels).most_common(1)[0][0]
        inside = [i for i, label in enumerate(labels) if label == larger]
        weights = softmax([beams[i].advantage / self.temperature for i in inside])
        choice = int(generator(tree.seed, "answer").choice(inside, p=weights))
        return (beams[choice], *(b for i, b in enumerate(beams) if i != choice))

    def result(self, tree: Tree, state: Beams) -> Result:
        """Finished beams with log-weight A / tau; before that, what was foreseen, all alike."""
        if state.finished:
            log_weights = [beam.advantage / self.temperature for beam in state.finished]
            return Result([beam.node for beam in state.finished], log_weights)
        nodes = state.foreseen or [b.node for b in state.beams if b.node is not tree.root]
        return Result(nodes, [0.0] * len(nodes))


def said(start: Node, end: Node) -> str:
    """What was chosen from the step at `start` on: its text, other values as Python shows them."""
    records = [*start.records, *end.history[len(start.history) :]]
    values = [r.value for r in records if r.kind == "choice"]
    return " ".join(v.text if isinstance(v, Continuation) else repr(v) for v in values)


def log_foresight_weights(
    advantages: Sequence[float], alignment: Sequence[float], temperature: float
) -> Floats:
    """`[n]` log of the mean of softmax(A / tau) and softmax(C / tau)."""
    a, c = (np.asarray(x, dtype=float) / temperature for x in (advantages, alignment))
    return np.asarray(np.logaddexp(log_softmax(a), log_softmax(c)) - math.log(2))


def clusters(strings: Sequence[str], number: int, seed: int) -> list[int]:
    """A label for each string: k-means of their TF-IDF vectors.

    Args:
        number: most clusters; equal strings are never apart.
    """
    try:
        from sklearn.cluster import KMeans
        from sklearn.feature_extraction.text import TfidfVectorizer
    except ImportError as error:
        raise ImportError(
            "PhiDecoding needs scikit-learn: pip install 'ppl-search[cluster]'"
        ) from error
    if not any(string.strip() for string in strings):
        return [0] * len(strings)
    # Single characters are words, too: formulas are made of them.
    words = TfidfVectorizer(token_pattern=r"\w+|[^\w\s]", lowercase=False)
    vectors = words.fit_transform(strings).toarray()
    number = min(number, len(np.unique(vectors, axis=0)))
    labels = KMeans(number, n_init=10, random_state=seed % 2**32).fit_predict(vectors)
    return [int(label) for label in labels]
