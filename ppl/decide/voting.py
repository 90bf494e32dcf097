r"""One vote for all rules that pool the weights of equal answers.

Nearly every rule is an argmax over classes of a sum (or maximum, or mean) of weights, and rules
differ in the weight that a candidate gets. So a rule *is* its weights:

    vote(posterior)                               importance weights: the posterior marginal's mode
    vote(posterior, "flat")                       self-consistency (Wang et al. 2022, 2203.11171)
    vote(posterior, "score")                      weighted majority
    vote(posterior, "score", combine="max")       best-of-N
    vote(candidates, "confidence")                self-calibration (Huang et al. 2025, 2503.00031)
    vote(posterior, RPC())                        perplexity consistency, pruned (2502.00511)
    vote(posterior, MajorityOfTheBests(4))        (2511.18630)
    vote(posterior, lambda c: 2 * c["log_scores"])    your own: log-weights from what is known

Weights are logarithms throughout, and have no scale. A verifier's values, the particles' weights
(which contain the verifier already: do not multiply them by its values again) and probabilities
can be voted with; rewards of any scale and raw logits cannot, as negative votes would reward what
is rare: map them to (0, 1) first, or only compare them (`best`).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ppl.decide.candidates import Candidates, answer_numbers
from ppl.decide.columns import COLUMNS, Columns, Floats, Weighting, dead
from ppl.errors import ArgumentError, SearchStateError
from ppl.language import checks
from ppl.language.arguments import checked, shown
from ppl.language.randomness import generator
from ppl.posterior.posterior import Posterior
from ppl.posterior.votes import Combine, heaviest_of, leading, pooled, speaker, winner


def posterior_weights(columns: Columns) -> Floats:
    """The importance weights."""
    return columns["log_weights"]


def flat_weights(columns: Columns) -> Floats:
    """One vote each."""
    return dead(columns["log_weights"])


def score_weights(columns: Columns) -> Floats:
    """The verifier's value."""
    return columns["log_scores"] + dead(columns["log_weights"])


def confidence_weights(columns: Columns) -> Floats:
    """The probability that the answer is right."""
    with np.errstate(divide="ignore"):
        logs: Floats = np.log(columns["confidences"])
    return logs + dead(columns["log_weights"])


def probability_weights(columns: Columns) -> Floats:
    """The text's own probability, once for each distinct text is `RPC(prune=False)`."""
    return columns["log_probs"] + dead(columns["log_weights"])


NAMED: dict[str, Weighting] = {
    "posterior": posterior_weights,
    "flat": flat_weights,
    "score": score_weights,
    "confidence": confidence_weights,
    "probability": probability_weights,
}
"""Weights by name."""

Weights = str | Weighting | Sequence[float]
Source = Posterior | Candidates | Sequence[Any]
Key = Callable[[Any], Hashable] | None


@checked
def vote(
    candidates: Posterior | Candidates | Sequence[Any],
    weights: Any = "posterior",
    *,
    key: Callable[[Any], Hashable] | None = None,
    combine: Combine = "sum",
    unique: bool = False,
) -> Any:
    """The answer whose class is the heaviest.

    Args:
        candidates: a posterior, candidates, or plain answers.
        weights: a name (`"posterior"`, `"flat"`, `"score"`, `"confidence"`, `"probability"`), a
            rule such as `RPC()`, a function from what is known to log-weights, or `[N]` weights
            themselves, zero or more, no logarithms.
        key: maps an answer to what votes for it, as in `Posterior.vote`.
        combine: what a class makes of its members' weights. `"max"` is best-of-N; `"mean"` is a
            lottery for rare answers, and here to compare with.
        unique: equal texts count once, with the largest of their weights.

    Returns:
        An answer of the winning class, spelled as most of it; the first seen among tied classes.
        None if there is no answer. None never wins while there is one.

    Raises:
        ArgumentError: weights that are unknown, or need what is not known of the candidates.
    """
    found = Candidates.of(candidates)
    logs, kept = _weighed(found, weights, unique)
    answers = found.answers(key)
    won = winner([answers[i] for i in kept], logs[kept], combine)
    return None if won is None else found.values[kept[won[0]]]


@checked
def shares(
    candidates: Posterior | Candidates | Sequence[Any],
    weights: Any = "posterior",
    *,
    key: Callable[[Any], Hashable] | None = None,
    unique: bool = False,
) -> list[tuple[Any, float]]:
    """Answers, and the share of all weight that the class of each has; the heaviest first.

    What candidates without an answer weigh stays with them, so that shares may add up to less than
    one. The first answer is that of `vote`.

    Args:
        candidates, weights, key, unique: as of `vote`.
    """
    found = Candidates.of(candidates)
    logs, kept = _weighed(found, weights, unique)
    everyone = found.answers(key)
    answers = [everyone[i] for i in kept]
    numbers = answer_numbers(answers)
    if not (numbers >= 0).any():
        return []
    logs = logs[kept]
    if np.isneginf(logs[numbers >= 0]).all():  # they count alike then, and so does no answer
        logs = np.where(found.alive[kept], 0.0, -np.inf)
    # No answer is a class of its own here, with a share and without a chance.
    count = int(numbers.max()) + 1
    totals, _ = pooled(np.where(numbers < 0, count, numbers)[None], logs[None], count + 1)
    parts = totals[0] / totals[0].sum()
    rows = []
    for number in range(count):
        members = np.flatnonzero(numbers == number)
        chosen = members[speaker([answers[i] for i in members.tolist()], logs[members])]
        rows.append((found.values[kept[int(chosen)]], float(parts[number])))
    # By themselves: beside what no answer weighs, all of them may be too small for a float.
    first = int(np.argmax(leading(*pooled(numbers[None], logs[None], count))[0]))
    order = sorted(range(count), key=lambda number: (number != first, -rows[number][1]))
    return [rows[number] for number in order]


@checked
def best(candidates: Posterior | Candidates | Sequence[Any], by: str = "log_scores") -> Any:
    """The answer of the candidate that ranks highest: best-of-N. None if there is no answer.

    Only the order counts, so that any column will do, also one that cannot be voted with. The first
    among equals.

    Args:
        candidates: a posterior, candidates.
        by: what is known of them: `"log_scores"`, `"rewards"`, `"log_probs"`, `"certainties"`, ...
    """
    checks.one_of(COLUMNS, by=by)
    found = Candidates.of(candidates)
    there = np.flatnonzero(found.columns.there)
    ranks = found.columns[by]
    return found.values[int(there[np.argmax(ranks[there])])] if len(there) else None


@checked
def draw(
    candidates: Posterior | Candidates | Sequence[Any],
    weights: Any = "posterior",
    *,
    seed: int,
) -> Any:
    """An answer drawn with the candidates' weights.

    Args:
        candidates, weights: as of `vote`.
        seed: of the draw.

    Raises:
        SearchStateError: no candidate has an answer.
    """
    checks.seed(seed=seed)
    found = Candidates.of(candidates)
    logs, _ = _weighed(found, weights, False)
    there = np.flatnonzero(found.columns.there)
    if not len(there):
        raise SearchStateError("no candidate has an answer to draw")
    one_each = np.arange(len(there), dtype=np.int64)[None]
    totals, _ = pooled(one_each, logs[there][None], len(there))
    index = generator(seed, "decide").choice(len(there), p=totals[0] / totals[0].sum())
    return found.values[int(there[index])]


def weigh(found: Candidates, weights: Weights) -> Floats:
    """`[N]` log-weights of candidates by a rule."""
    size = len(found)
    if isinstance(weights, str):
        if weights not in NAMED:
            raise ArgumentError(
                f"weights={weights!r}: one of {', '.join(map(repr, NAMED))}, a rule, a function, "
                "or a number for each candidate"
            )
        logs: ArrayLike = NAMED[weights](found.columns)
    elif callable(weights):
        logs = weights(found.columns) if size else ()
    else:
        given = checks.numbers(weights=weights)
        if given.shape != (size,):
            raise ArgumentError(f"weights: of shape {list(given.shape)} for {size} candidates")
        if ((given < 0) | np.isinf(given)).any():
            raise ArgumentError(
                f"weights={shown(weights)}: zero or more, and finite; negative votes would reward "
                "what is rare"
            )
        with np.errstate(divide="ignore"):
            logs = np.log(given) + dead(found.columns["log_weights"])
    logs = checks.numbers(weights=logs)
    if logs.shape != (size,):
        raise ArgumentError(f"weights: of shape {list(logs.shape)} for {size} candidates")
    if np.isposinf(logs).any():
        raise ArgumentError("weights: a log-weight is plus infinity")
    return logs


def _weighed(found: Candidates, weights: Weights, unique: bool) -> tuple[Floats, list[int]]:
    """Log-weights `[N]`, and which candidates are counted: each text once if so asked."""
    logs = weigh(found, weights)
    if not unique:
        return logs, list(range(len(found)))
    alive = np.flatnonzero(found.alive)  # a dead copy must not stand for the others
    kept = heaviest_of(found.columns["texts"][alive].tolist(), logs[alive])
    return logs, alive[kept].tolist()
