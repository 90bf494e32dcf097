"""Samples and selection across languages (Khairi et al. 2025, "When Life Gives You Samples", arXiv
2506.20544).

    search = hedged(5, temperature=temperatures["de"])        # the greedy text is one of the five
    posterior = search.run(solve, question)
    aggregate(posterior, checklist_once, judge, question, searcher=Greedy(), k=5)
    cross_mbr(posterior, {"en": english, "fr": french}, utility)

`aggregate` and `flip_rate` are those of `ppl.decide`. Prompts are ours; the published values of
temperature and floor were not verified.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyro

from ppl.decide.bayes_risk import minimum_bayes_risk
from ppl.decide.candidates import Candidates
from ppl.errors import ArgumentError
from ppl.language import checks
from ppl.language.arguments import checked
from ppl.language.classes import identity
from ppl.language.randomness import generator
from ppl.lm.base import LanguageModel
from ppl.posterior.posterior import Posterior
from ppl.searchers.sampling.hedged import Hedged

_NAMED = re.compile(r"best response is\W+response\W*(\d+)", re.IGNORECASE)


@checked
def hedged(n: int, *, temperature: float = 0.7, min_p: float = 0.1, greedy: int = 1) -> Hedged:
    """A searcher: n texts, of which `greedy` are greedy and the others draws; see
    `ppl.searchers.Hedged`.

    Args:
        n, temperature, min_p, greedy: as there.
    """
    return Hedged(n, temperature, min_p, greedy)


@checked
def greedy_flags(posterior: Posterior) -> list[bool]:
    """Which samples are greedy texts, that is no draws: they have no weight in any estimate.

    Args:
        posterior: of `hedged(n)`.
    """
    simulated = {row["node"]: bool(row["simulated"]) for row in posterior.nodes}
    return [simulated[sample.node] for sample in posterior.samples]


@checked
def temperature_by_language(
    scores: Mapping[str, Mapping[float, Sequence[float]]],
) -> dict[str, float]:
    """The temperature of the best mean score for each language, on development problems.

    Report other problems: the best of several means is too high by chance.

    Args:
        scores: for each language and temperature the scores of what was chosen there, larger is
            better.

    Returns:
        By language; the lowest temperature among equals.
    """
    best = {}
    for language, by_temperature in scores.items():
        means = {}
        for temperature, found in by_temperature.items():
            checks.nonnegative(scores=temperature)
            row = checks.numbers(scores=found)
            if row.ndim != 1 or not len(row):
                raise ArgumentError(f"scores: {language}, {temperature}: at least one score")
            means[float(temperature)] = float(row.mean())
        if not means:
            raise ArgumentError(f"scores: {language}: at least one temperature")
        best[language] = min(means, key=lambda t: (-means[t], t))
    return best


@checked
def checklist_once(
    lm: LanguageModel, question: str, texts: Sequence[str], *, max_tokens: int = 512
) -> int | None:
    """A model writes a checklist, reads all texts by it, and names one, in one call (CHOPs).

    A program, for `ppl.decide.aggregate` or a program of your own. Models have a liking for places
    in a list: `ppl.decide.flip_rate` says how often the pick changes when the texts are shuffled.

    Args:
        lm: the judge.
        question: that the texts answer.
        texts: the candidates.
        max_tokens: of checklist and judgement together.

    Returns:
        The number of the text it names last, from 0; None if it names none.
    """
    checks.count(max_tokens=max_tokens)
    text = lm.chat(checklist_prompt(question, texts))
    reply = pyro.sample("checklist", lm(text, max_tokens=max_tokens))
    named = _NAMED.findall(reply.text)
    number = int(named[-1]) - 1 if named else -1
    return number if 0 <= number < len(texts) else None


@checked
def checklist_prompt(question: str, texts: Sequence[str]) -> str:
    """What `checklist_once` asks."""
    listed = "\n\n".join(f"Response {i}: {text.strip()}" for i, text in enumerate(texts, 1))
    return (
        f"Here is a request, and {len(texts)} responses to it.\n\nRequest: {question.strip()}\n\n"
        f"{listed}\n\n"
        "First write a short checklist of what a good response to this request has to do, also "
        "regarding its language. Then go through the responses by the checklist, in any order. End "
        'with "The best response is Response X".'
    )


@checked
def cross_mbr(
    candidates: Posterior | Candidates | Sequence[Any],
    others: Mapping[str, Posterior | Candidates | Sequence[Any]],
    utility: Callable[[Any, Any], float],
    weights: Any = "flat",
) -> Any:
    """argmax_i of the mean of u(y_i, y_j) over own samples and those in other languages (X-MBR).

    `ppl.decide.minimum_bayes_risk` with more references. With the utility 1 for equal answers and 0
    for others it is the vote, in which other languages speak for answers that are also one's own.

    Args:
        candidates: samples in the language of the answer: choices and references.
        others: samples in other languages: references. A language counts as many answers as it has.
        utility: u(chosen, reference), which has to compare texts across languages, as embeddings do
            (with a liking for languages they were trained on: look at it on your own).
        weights: of the references, as of `ppl.decide.vote`. Greedy texts count like others with
            `"flat"`.
    """
    return minimum_bayes_risk(candidates, utility, weights, references=others)


@checked
def pick_flip_rate(
    pick: Callable[[list[Any]], Any],
    candidates: Sequence[Any],
    *,
    shuffles: int = 8,
    seed: int = 0,
) -> float:
    """The share of shuffles of the same candidates of which `pick` takes another one.

    For rules on plain answers, such as `lambda own: cross_mbr(own, others, utility)`; of programs
    that read texts, `ppl.decide.flip_rate`.

    Args:
        pick: the rule.
        candidates: what it chooses from.
        shuffles: random orders that are compared with the given one.
        seed: of the orders.
    """
    checks.count(shuffles=shuffles)
    checks.seed(seed=seed)
    rng = generator(seed, "shuffles")
    taken = identity(pick(list(candidates)))
    orders = [rng.permutation(len(candidates)) for _ in range(shuffles)]
    flips = [identity(pick([candidates[i] for i in order])) != taken for order in orders]
    return float(np.mean(flips))
