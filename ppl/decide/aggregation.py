"""Aggregators: a program that reads several samples and says the answer.

    posterior = BestOfN(8).run(solve, question)
    aggregate(posterior, universal_self_consistency, lm, question, searcher=BestOfN(1))

An aggregator is an ordinary program whose last argument is a list of texts. It returns the number
of the text it chooses, from 0, or, in the free form (sample set aggregators, Qi et al. 2025, arXiv
2506.09014), an answer of its own, which may be none of the samples'; that is flagged. Any searcher
runs it. What the order of the samples does to it is measured by `flip_rate`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyro

from ppl.decide.candidates import Candidates, answer_numbers
from ppl.errors import ArgumentError
from ppl.language import checks
from ppl.language.answers import Answer
from ppl.language.arguments import checked
from ppl.language.cost import Cost
from ppl.language.randomness import generator
from ppl.language.text import Continuation
from ppl.lm.base import LanguageModel
from ppl.posterior.posterior import Posterior
from ppl.posterior.votes import keyed

_CHOSEN = re.compile(r"most consistent response is\W+response\W*(\d+)", re.IGNORECASE)


class Runs(Protocol):
    """What runs a program: any searcher."""

    def run(self, program: Callable[..., Any], /, *args: Any, seed: int) -> Posterior:
        """The program's posterior."""


@checked
def universal_self_consistency(
    lm: LanguageModel, question: str, texts: Sequence[str], *, max_tokens: int = 128
) -> int | None:
    """Universal self-consistency (Chen et al. 2023, arXiv 2311.17311): a model names a response.

    It serves answers that cannot be compared, as summaries and code. A program: run it with
    `aggregate`, or call it in a program of your own.

    Args:
        lm: the model that reads.
        question: that the texts answer.
        texts: the responses.
        max_tokens: of its reply.

    Returns:
        The number of the response it names, from 0; None if it names none.
    """
    checks.count(max_tokens=max_tokens)
    text = lm.chat(consistency_prompt(question, texts))
    reply = pyro.sample("consistent", lm(text, max_tokens=max_tokens))
    found = _CHOSEN.search(reply.text)
    number = int(found[1]) - 1 if found else -1
    return number if 0 <= number < len(texts) else None


@checked
def consistency_prompt(question: str, texts: Sequence[str]) -> str:
    """What universal self-consistency asks."""
    return (
        f"I have generated the following responses to the question: {question.strip()}\n\n"
        f"{_listed(texts)}\n\n"
        "Evaluate these responses. Select the most consistent response based on majority "
        'consensus. Start your answer with "The most consistent response is Response X" (without '
        "quotes)."
    )


@checked
def sample_set_answer(
    lm: LanguageModel,
    question: str,
    texts: Sequence[str],
    *,
    max_tokens: int = 1024,
    prompt: Callable[[str, Sequence[str]], str] | None = None,
) -> Answer | None:
    """The free form of sample set aggregators: a model reads all samples and writes the answer.

    A program for `aggregate(..., key=ppl.Answer)`. The answer may be one that no sample has. Any
    model will do; one that was trained for it (Qi et al. 2025 train 0.5 to 3 billion parameters by
    reinforcement) brings its own `prompt`.

    Args:
        lm: the model that reads and writes.
        question: that the texts answer.
        texts: the samples.
        max_tokens: of what it writes.
        prompt: what it is asked, from the question and the texts.

    Returns:
        The final answer of what it wrote, see `ppl.extract_answer`; None without one.
    """
    checks.count(max_tokens=max_tokens)
    asked = (prompt or sample_set_prompt)(question, texts)
    text = lm.chat(asked)
    written: Continuation = pyro.sample("aggregated", lm(text, max_tokens=max_tokens))
    return (text + written).answer


@checked
def sample_set_prompt(question: str, texts: Sequence[str]) -> str:
    """What `sample_set_answer` asks of a model that was not trained for it."""
    return (
        f"{question.strip()}\n\nHere are {len(texts)} responses, of which any may be wrong:\n\n"
        f"{_listed(texts)}\n\n"
        "Compare them, and answer the question. End with the final answer in \\boxed{}."
    )


def _listed(texts: Sequence[str]) -> str:
    return "\n\n".join(f"Response {i}: {text.strip()}" for i, text in enumerate(texts, 1))


@dataclass(frozen=True)
class Aggregated:
    """What an aggregator said.

    Attributes:
        value: the answer; None if it said none.
        outside: whether no candidate has it.
        posterior: of the aggregator, None where it was not asked, as all candidates agreed.
        cost: of the aggregator alone.
    """

    value: Any
    outside: bool
    posterior: Posterior | None
    cost: Cost


@checked
def aggregate(
    candidates: Posterior | Candidates | Sequence[Any],
    program: Callable[..., Any],
    *args: Any,
    searcher: Runs,
    k: int = 5,
    key: Callable[[Any], Hashable] | None = None,
    seed: int = 0,
) -> Aggregated:
    """Lets a program choose among, or write an answer from, the first k candidates with an answer.

    Where they all agree, their answer is returned, and nobody is asked.

    Args:
        candidates: with texts as strings: a posterior has them, else `Candidates(..., written=)`.
        program: called with `args` and the list of texts. An int it returns is the number of a
            text; anything else is its own answer.
        args: of the program, before the texts.
        searcher: runs it; its `best` is taken.
        k: texts it reads.
        key: maps an answer to what it is compared by, as in `vote`.
        seed: of the run.

    Raises:
        ArgumentError: texts that are not known; a number that no text has.
    """
    checks.count(k=k)
    checks.seed(seed=seed)
    found = Candidates.of(candidates)
    members = np.flatnonzero(found.columns.there)[:k].tolist()
    return _aggregated(found, members, program, args, searcher, key, seed)


@checked
def flip_rate(
    candidates: Posterior | Candidates | Sequence[Any],
    program: Callable[..., Any],
    *args: Any,
    searcher: Runs,
    k: int = 5,
    shuffles: int = 8,
    key: Callable[[Any], Hashable] | None = None,
    seed: int = 0,
) -> float:
    """The share of shuffles of the same k texts for which an aggregator's answer is another one.

    Where the program draws, part of it is chance: run it greedily, or compare with runs of one
    order.

    Args:
        candidates, program, args, searcher, k, key: as of `aggregate`.
        shuffles: random orders that are compared with the first.
        seed: of the orders; every run has the same.
    """
    checks.count(k=k, shuffles=shuffles)
    checks.seed(seed=seed)
    found = Candidates.of(candidates)
    members = np.flatnonzero(found.columns.there)[:k].tolist()
    rng = generator(seed, "shuffles")
    orders = [
        members,
        *([members[i] for i in rng.permutation(len(members))] for _ in range(shuffles)),
    ]
    values = [
        _aggregated(found, order, program, args, searcher, key, seed).value for order in orders
    ]
    numbers = answer_numbers(keyed(values, key))
    return float(np.mean(numbers[1:] != numbers[0]))


def _aggregated(
    found: Candidates,
    members: Sequence[int],
    program: Callable[..., Any],
    args: Sequence[Any],
    searcher: Runs,
    key: Callable[[Any], Hashable] | None,
    seed: int,
) -> Aggregated:
    values = [found.values[i] for i in members]
    numbers = answer_numbers(keyed(values, key))
    if len(set(numbers.tolist())) <= 1:
        return Aggregated(values[0] if values else None, False, None, Cost())
    written = found.written
    posterior = searcher.run(program, *args, [written[i] for i in members], seed=seed)
    value = posterior.best
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        if not 0 <= value < len(members):
            raise ArgumentError(f"program: it chose text {value}, and was given {len(members)}")
        return Aggregated(values[int(value)], False, posterior, posterior.cost)
    if value is None:
        return Aggregated(None, False, posterior, posterior.cost)
    same = answer_numbers(keyed([value, *values], key))
    return Aggregated(value, bool((same[1:] != same[0]).all()), posterior, posterior.cost)
