"""Sequential revisions: answers in a row, each written with the ones before it in sight.

Snell et al. 2024 (arXiv 2408.03314), section 6: a budget of N answers may be spent on N independent
ones, on one row of N revisions, or on some rows side by side. Which ratio is best depends on how
difficult the question is (`ppl.allocate.by_difficulty` finds it from records).

    rounds, rows = rounds_and_rows(16, ratio=4.0)             # 8 revisions in a row, 2 rows
    posterior = BestOfN(rows).run(revise(lm, rounds, verifier=judge), question)
    posterior.best                                            # the best of all 16
    decide.vote(revisions(posterior))                         # a vote of all 16

What revisions are worth is the model's matter: one that was not trained to revise repeats itself,
or spoils what was right.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import pyro
import torch

from ppl.decide.candidates import Candidates
from ppl.errors import ArgumentError
from ppl.language import checks
from ppl.language.answers import extract_answer
from ppl.language.arguments import checked
from ppl.language.primitives import answer as say
from ppl.language.text import Continuation, Text
from ppl.lm.base import LanguageModel
from ppl.posterior.posterior import Posterior
from ppl.runtime.verdict import Verifier

Ask = Callable[[str, Sequence[str]], Text]
_ROUND = re.compile(r"revision_(\d+)")


@checked
def revise(
    lm: LanguageModel,
    rounds: int = 4,
    *,
    verifier: Verifier | None = None,
    ask: Ask | None = None,
    read: Callable[[str], Any] = extract_answer,
    memory: int = 4,
    max_tokens: int = 1024,
    temperature: float = 1.0,
    top_p: float = 1.0,
) -> Callable[[str], Any]:
    """A program `question -> answer` that answers `rounds` times, each time with the last answers
    in its prompt.

    The law of a row is that of its draws, one after the other, times the verifier's value of the
    answer that it likes best: the other answers of the row are judged and weigh nothing. So
    `BestOfN(rows)` returns the best of all `rounds * rows` answers as `best`. Without a verifier
    a row's answer is its last, as the paper's majority vote has it decide over all
    (`revisions`). Costs `rounds` draws, with prompts that grow up to `memory` answers, and as many
    verdicts.

    Args:
        lm: writes.
        rounds: answers in a row; 1 is plain sampling.
        verifier: judges each answer, whole; None for none.
        ask: makes the prompt of a round from the question and the last answers, oldest first; by
            default `lm.chat(revision_prompt(question, answers))`.
        read: finds the answer in what was written; None where there is none, which is never chosen
            while another has one.
        memory: how many of the last answers are in sight; 4 as published.
        max_tokens, temperature, top_p: of each answer.
    """
    checks.count(rounds=rounds, memory=memory, max_tokens=max_tokens)
    prompt = ask or (lambda question, seen: lm.chat(revision_prompt(question, seen)))

    def revised(question: str) -> Any:
        seen: list[str] = []
        best: tuple[tuple[bool, float], Any] | None = None
        for t in range(rounds):
            text = prompt(question, seen[-memory:])
            law = lm(text, max_tokens=max_tokens, temperature=temperature, top_p=top_p)
            written: Continuation = pyro.sample(f"revision_{t}", law)
            seen.append(written.text)
            value, log_score = read(written.text), 0.0
            if verifier is not None:
                log_score = _aside(f"ok_{t}", verifier, text + written)
            rank = (value is not None, log_score)
            # Without a verifier all are alike, and the last is the row's answer.
            if best is None or rank > best[0] or (verifier is None and value is not None):
                best = rank, value
            say(best[1])
        assert best is not None
        if verifier is not None:
            pyro.factor("chosen", torch.tensor(best[0][1], dtype=torch.float64))
        return best[1]

    return revised


def _aside(name: str, verifier: Verifier, text: Text) -> float:
    """The verifier's log-value of a text, recorded and without weight."""
    verdict = verifier(text)
    with pyro.poutine.mask(mask=False):
        pyro.sample(name, verdict, obs=True)
    return verdict.log_probability


@checked
def revision_prompt(question: str, answers: Sequence[str]) -> str:
    """What a model that was not trained to revise is asked; the question alone without answers."""
    if not answers:
        return question
    listed = "\n\n".join(f"Attempt {i}:\n{a.strip()}" for i, a in enumerate(answers, 1))
    return (
        f"{question.strip()}\n\nEarlier attempts, of which any may be wrong, the latest last:\n\n"
        f"{listed}\n\nFind what is wrong in them and answer the question anew."
    )


@checked
def revisions(posterior: Posterior, *, read: Callable[[str], Any] = extract_answer) -> Candidates:
    """Every answer of every row, for the rules of `ppl.decide`: each counts alike.

    `log_scores` are the verifier's, if there was one; `texts` tell answers apart.

    Args:
        posterior: of `revise` under any searcher.
        read: as in `revise`.

    Raises:
        ArgumentError: no sample has a site that `revise` makes.
    """
    values: list[Any] = []
    texts: list[Any] = []
    log_scores: list[float] = []
    log_weights: list[float] = []
    for sample in posterior.samples:
        judged = {r.name: r.log_scores for r in sample.records if r.log_scores is not None}
        for record in sample.records:
            found = _ROUND.fullmatch(record.name)
            if not found:
                continue
            values.append(read(record.value.text))
            texts.append(record.value.tokens)
            log_weights.append(-math.inf if sample.log_weight == -math.inf else 0.0)
            score = judged.get(f"ok_{found[1]}")
            if score:
                log_scores.append(score[-1])
    if not values:
        raise ArgumentError("posterior: no sample has a site revision_0; it is none of revise()")
    known = len(log_scores) == len(values)
    return Candidates(
        values,
        log_weights=log_weights,
        log_scores=log_scores if known else None,
        texts=texts,
    )


@checked
def rounds_and_rows(total: int, ratio: float = 1.0) -> tuple[int, int]:
    """How to divide a budget of answers: rounds in a row, and rows side by side.

    Of all divisors the pair whose ratio is nearest to `ratio`, on a logarithmic scale; the longer
    rows among equals. Their product is `total`.

    Args:
        total: answers in all.
        ratio: rounds over rows: large for one long row, small for independent answers.
    """
    checks.count(total=total)
    checks.positive(ratio=ratio)
    pairs = [(d, total // d) for d in range(total, 0, -1) if total % d == 0]
    return min(pairs, key=lambda pair: round(abs(math.log(pair[0] / pair[1] / ratio)), 9))
