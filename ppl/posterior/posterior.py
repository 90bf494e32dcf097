"""What a search returns: weighted results, decision rules, diagnostics, cost, genealogy."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Never

import networkx as nx
import numpy as np
import pyro  # noqa: F401 (all of it before its parts: threads)
import torch
from numpy.typing import NDArray
from pyro.poutine import Trace

from ppl.errors import SearchStateError
from ppl.language import checks
from ppl.language.arguments import checked
from ppl.language.cached import cached_property
from ppl.language.call import Called
from ppl.language.classes import by_value, tally
from ppl.language.cost import Cost
from ppl.language.foreign import OF_POSTERIORS
from ppl.language.randomness import generator
from ppl.language.text import Continuation, Text
from ppl.posterior import exports, shown
from ppl.posterior import store as storage
from ppl.posterior.lineage import words
from ppl.posterior.models import about
from ppl.posterior.view import Page, page
from ppl.posterior.votes import average, keyed, ranked, winner
from ppl.runtime.node import Node
from ppl.runtime.record import Record
from ppl.runtime.result import Result
from ppl.runtime.tree import Tree
from ppl.runtime.weights import Weights

_LONGEST_VALUE = 2_000  # characters of a value at a node; all of it is in the sample's trace


@dataclass(frozen=True, eq=False)
class Sample:
    """One particle of a posterior.

    Attributes:
        value: what the program returned; if it had not finished, what it said last that it would
            return (`ppl.answer`), or None.
        log_weight: unnormalised log-weight.
        log_likelihood: sum of the observed log-probabilities; with verifiers the log of their
            potential A.
        finished: False if the search stopped before the program returned.
        node: number of the particle's last node in the genealogy.
        text: what the language model last extended, or None.
        records: everything that happened in the particle.
        provisional: True if `value` is what the program said it would return, were it to end there.
    """

    value: Any
    log_weight: float
    log_likelihood: float
    finished: bool
    node: int
    text: Text | None
    records: Sequence[Record] = field(repr=False)
    provisional: bool = False

    @property
    def answered(self) -> bool:
        """True if `value` is an answer, also a provisional one."""
        return self.finished or self.provisional

    @property
    def score(self) -> float:
        """exp(log_likelihood): with verifiers, the probability they give the whole text."""
        return math.exp(min(self.log_likelihood, 700.0))

    @property
    def log_prob(self) -> float:
        """log p(choices) under the program, whatever proposed them, neither scaled nor masked."""
        return math.fsum(r.prior() for r in self.records if r.kind == "choice")

    @property
    def log_joint(self) -> float:
        """log p(choices) + log p(observations), the unnormalised posterior density.

        Scaled and masked as the program says, like Pyro's own `Trace.log_prob_sum`."""
        return math.fsum(r.joint() for r in self.records)

    @cached_property
    def trace(self) -> Trace:
        """The particle as a Pyro trace: a node per site with `value` and `log_prob_sum`."""
        trace = Trace()
        for r in self.records:
            observed = r.kind != "choice"
            log_prob = r.joint()
            trace.add_node(
                r.name,
                type="sample",
                name=r.name,
                fn=None,
                value=r.value,
                is_observed=observed,
                log_prob_sum=torch.tensor(log_prob, dtype=torch.float64),
                infer={"_deterministic": True} if r.kind == "deterministic" else {},
                args=(),
                kwargs={},
                scale=1.0,
                mask=None,
                cond_indep_stack=(),
            )
        trace.add_node("_RETURN", name="_RETURN", type="return", value=self.value)
        return trace


Stopped = Literal["done", "budget", "settled", "expansions"]


class Posterior:
    """Weighted particles and everything one may want to know about the search.

    Attributes:
        samples: the particles.
        log_evidence: log of an unbiased estimate of the evidence (also known as log marginal
            likelihood, log_ml, logZ), or None from searchers that do not give one.
        cost: everything the search spent.
        stopped: why it ended: `"done"`; `"budget"`; `"settled"` by a rule of `ppl.decide`; or
            `"expansions"` where the searcher had spent its own before it had an answer and
            completed the best it had.
        searcher: the searcher's settings, as text that can be pasted back.
        history: per round what the searcher noted (for people and plots).
        models: of the models that the search asked: name, how it was loaded (None if it was not
            loaded by name), and the fingerprint of its tokenizer.
    """

    @checked
    def __init__(
        self,
        samples: Sequence[Sample],
        *,
        log_evidence: float | None,
        cost: Cost,
        nodes: Sequence[Mapping[str, Any]] = (),
        searcher: str = "",
        stopped: Stopped = "done",
        history: Sequence[Mapping[str, Any]] = (),
        models: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        for sample in samples:
            if math.isnan(sample.log_weight) or math.isnan(sample.log_likelihood):
                raise ValueError(f"samples: the weight or likelihood of {sample!r} is NaN")
        self.samples = list(samples)
        self.log_evidence = log_evidence
        self.cost = cost
        self.searcher = searcher
        self.stopped = stopped
        self.history = list(history)
        self.models = list(models)
        self._nodes = list(nodes)

    @classmethod
    @checked
    def of(
        cls,
        tree: Tree,
        result: Result,
        *,
        searcher: str = "",
        stopped: Stopped = "done",
        history: Sequence[Mapping[str, Any]] = (),
    ) -> Posterior:
        """The posterior of weighted nodes of a tree."""
        samples = [
            Sample(
                node.answer,
                float(log_weight),
                node.log_likelihood,
                node.finished,
                node.identity,
                node.text,
                tuple(node.history),
                node.answered and not node.finished,
            )
            for node, log_weight in zip(result.nodes, result.log_weights, strict=True)
        ]
        return cls(
            samples,
            log_evidence=result.log_evidence,
            cost=tree.cost,
            nodes=[_node_row(node) for node in tree.nodes],
            searcher=searcher,
            stopped=stopped,
            history=history,
            models=[about(model) for model in tree.account.models],
        )

    # -- weights ------------------------------------------------------------------------------

    @cached_property
    def probabilities(self) -> NDArray[np.float64]:
        """`[N]` normalised weights; all zero if every particle is dead."""
        weights = Weights(np.array([s.log_weight for s in self.samples], dtype=np.float64))
        return np.zeros(len(weights)) if weights.dead else weights.probabilities

    @property
    def ess(self) -> float:
        """Effective sample size of the weights, 1 / sum of squared probabilities; 0 if empty."""
        total = float(np.sum(self.probabilities**2))
        return 1.0 / total if total > 0 else 0.0

    # -- decision rules -----------------------------------------------------------------------

    @property
    def best_sample(self) -> Sample | None:
        """The answer of highest score; the first among equals, None without answers. One that is
        provisional counts as any other; a result of None is no answer, and the best only where
        there is no other."""
        finished = [s for s in self.samples if s.answered and s.log_weight > -math.inf]
        return max(finished, key=lambda s: (s.value is not None, s.log_likelihood), default=None)

    @property
    def best(self) -> Any:
        """The answer that the verifiers (and other observations) like best; None without one."""
        sample = self.best_sample
        return None if sample is None else sample.value

    @property
    def map(self) -> Any:
        """The result of the particle with the highest joint density of choices and observations."""
        finished = [s for s in self.samples if s.answered and s.log_weight > -math.inf]
        sample = max(finished, key=lambda s: s.log_joint, default=None)
        return None if sample is None else sample.value

    @checked
    def vote(
        self,
        key: Callable[[Any], Hashable] | None = None,
        *,
        weights: Literal["posterior", "flat"] = "posterior",
    ) -> Any:
        """The result with the largest total weight: the mode of the posterior marginal.

        Flat weights over independent samples make this self-consistency (Wang et al. 2022);
        importance weights make it weighted best-of-N. The weights already contain the verifier.
        `ppl.decide` has other rules.

        Args:
            key: maps a result to what votes for it; by default the result itself. Equal keys vote
                together: tensors by their elements, answers (`text.answer`, `ppl.Answer`) by
                `ppl.equality`, so that 1/2 and 0.5 are one candidate, everything else by `==`.
                None (no answer) never wins while another class has weight.
            weights: `"flat"` counts every finished particle once.

        Returns:
            A result of the winning class, spelled as most of it; None if there is no answer.
        """
        there = [s for s in self.samples if s.answered and s.log_weight > -math.inf]
        logs = np.array([0.0 if weights == "flat" else s.log_weight for s in there])
        won = winner(keyed([s.value for s in there], key), logs)
        return None if won is None else there[won[0]].value

    @checked
    def sample(self, seed: int) -> Any:
        """One result drawn with the particles' probabilities."""
        finished = np.array([s.answered for s in self.samples], dtype=bool)
        p = np.where(finished, self.probabilities, 0.0) if len(finished) else np.zeros(0)
        if p.sum() == 0:
            raise SearchStateError("there is no finished particle to draw from")
        index = generator(seed, "posterior").choice(len(p), p=p / p.sum())
        return self.samples[int(index)].value

    @checked
    def expectation(self, f: Callable[[Any], float]) -> float:
        """The weighted mean of `f(value)` over finished particles.

        Raises:
            ArgumentError: f gives what is no number.
        """
        pairs = [
            (p, s.value)
            for p, s in zip(self.probabilities, self.samples, strict=True)
            if s.answered and p > 0
        ]
        if not pairs:
            raise SearchStateError("there is no finished particle to average over")
        return average(pairs, f)

    @checked
    def marginal(self, f: Callable[[Any], Hashable] | None = None) -> dict[Any, float]:
        """Posterior probability of every value of `f` (of the result itself by default).

        Equal values count together, as in `vote`. Most probable first.

        Raises:
            TypeError: they are no keys of a dictionary (lists, arrays): `f` makes some of them.
        """
        values: list[Any] = []
        weights: list[float] = []
        for p, s in zip(self.probabilities, self.samples, strict=True):
            if s.answered and p > 0:
                values.append(s.value if f is None else f(s.value))
                weights.append(float(p))
        mass = math.fsum(weights)
        counted = tally(values, weights)
        order = ranked([p for p, _ in counted])
        return by_value((values[i], p / mass) for p, i in (counted[k] for k in order))

    # -- genealogy, storage, display ----------------------------------------------------------

    @property
    def nodes(self) -> list[dict[str, Any]]:
        """A row per node of the search, as `genealogy` has them, with `node` and `parent`."""
        return [dict(row) for row in self._nodes]

    @property
    def genealogy(self) -> nx.DiGraph[int]:
        """All nodes of the search with their attributes; edges go from parent to child."""
        graph: nx.DiGraph[int] = nx.DiGraph()
        for row in self._nodes:
            attributes = {k: v for k, v in row.items() if k not in ("node", "parent")}
            graph.add_node(row["node"], **attributes)
        for row in self._nodes:
            if row["parent"] is not None:
                graph.add_edge(row["parent"], row["node"])
        for sample, p in zip(self.samples, self.probabilities, strict=True):
            if sample.node in graph:
                attributes = graph.nodes[sample.node]
                attributes["probability"] = attributes.get("probability", 0.0) + float(p)
        return graph

    @checked
    def view(self, path: str | Path | None = None) -> Page:
        """The search as one HTML page that needs no network: tree, values, weights, dead ends.

        Args:
            path: where to write it, for example `"search.html"`; None writes nothing.

        Returns:
            The page, which a notebook shows; `str(page)` is its HTML.

        Raises:
            SearchStateError: the file cannot be written.
        """
        return page(self, path)

    @checked
    def to_graphml(self, path: str | Path) -> None:
        """Writes the genealogy as GraphML; see `ppl.posterior.exports.graphml`."""
        exports.graphml(self, path)

    @checked
    def to_mermaid(self, most: int = 60) -> str:
        """The genealogy as a Mermaid flowchart of at most so many nodes."""
        checks.count(most=most)
        return exports.mermaid(self, most)

    def to_frames(self) -> exports.Frames:
        """Pandas frames `samples`, `nodes` and `rounds`."""
        return exports.frames(self)

    @checked
    def to_arviz(self, draws: int | None = None, *, seed: int = 0) -> Any:
        """For ArviZ, weights and ancestors in `sample_stats`: see `ppl.posterior.exports.arviz`.

        Args:
            draws: so many equal draws from the particles, or None for the weighted particles.
            seed: of the draws.
        """
        if draws is not None:
            checks.count(draws=draws)
        return exports.arviz(self, draws, seed=seed)

    @checked
    def save(self, path: str | Path) -> None:
        """Writes the posterior to a file of named fields, whole or not at all.

        Everything in it is data, see `ppl.posterior.container`. Results, choices and notes have to
        be data too: numbers, strings, lists, tuples, dicts, sets, tensors, arrays, dates, texts.

        Raises:
            SearchStateError: a value is no data (the sample or site is named), or the file cannot
                be written; an old file is then as it was.
        """
        storage.save(
            path,
            self.samples,
            self._nodes,
            self.history,
            self.cost,
            self.models,
            log_evidence=self.log_evidence,
            searcher=self.searcher,
            stopped=self.stopped,
        )

    @staticmethod
    @checked
    def load(path: str | Path) -> Posterior:
        """Reads what `save` wrote. Nothing in the file is run, and no model is needed: texts say
        what they said, and can be extended once their model is loaded. Tensors are on the CPU.

        Raises:
            SearchStateError: there is no such file; it holds something else, or what a newer or
                an earlier version wrote.
        """
        return Posterior(**storage.load(path, Sample))

    def __getstate__(self) -> dict[str, Any]:
        cached = ("probabilities",)
        return {k: v for k, v in self.__dict__.items() if k not in cached}

    def __str__(self) -> str:
        return shown.as_text(self)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """A table for notebooks."""
        return shown.as_html(self)

    if not TYPE_CHECKING:  # where types are checked, there are no other attributes

        def __getattr__(self, name: str) -> Never:
            """Raises AttributeError, for a name of another library with what to do here."""
            said = f"'Posterior' object has no attribute {name!r}"
            hint = OF_POSTERIORS.get(name)
            raise AttributeError(f"{said}: {hint}" if hint else said)


def _node_row(node: Node) -> dict[str, Any]:
    sites = _sites(node)
    return {
        "node": node.identity,
        "parent": None if node.parent is None else node.parent.identity,
        "depth": node.depth,
        "step": node.step,
        "log_weight": node.log_weight,
        "value": node.value,
        "finished": node.finished,
        "dead_at": node.dead_at,
        "simulated": node.simulated,
        "result": node.result if node.finished else None,
        "tokens": node.cost.lm_tokens,
        "written": _written(node),
        **({"provisional": node.answer} if node.answered and not node.finished else {}),
        **({"sites": sites} if sites else {}),
    }


def _sites(node: Node) -> list[list[str]]:
    """What was chosen at which sites of a segment, what calls gave included; empty where that is
    the words of one text and nothing else."""
    made = [record for record in node.records if record.kind == "choice"]
    if len(made) < 2 and all(isinstance(record.value, Continuation) for record in made):
        return []
    return [[record.name, _said(record.value)[:_LONGEST_VALUE]] for record in made]


def _said(value: Any) -> str:
    if isinstance(value, Called):
        return words(value.result) if value.error is None else value.error
    if isinstance(value, Continuation):
        return value.text
    return words(value.tolist() if isinstance(value, torch.Tensor) else value)


def _written(node: Node) -> str | None:
    """What the text gained in a segment, where that is more than the step; None if it is not.

    A program's own words (`text + "literal"`) belong to no step of the model, but to its text."""
    text, before = node.text, None if node.parent is None else node.parent.text
    if text is None or text is before:
        return None
    known = text.prompt_length if before is None else len(before.tokens)
    drawn = sum(len(v.tokens) for v in node.choices if isinstance(v, Continuation))
    if len(text.tokens) - known <= drawn:  # fewer: some was written into other texts
        return None
    if before is not None and text.tokens[:known] != before.tokens:
        return None  # another text than before
    return "".join(text.steps[0 if before is None else len(before.steps) :])
