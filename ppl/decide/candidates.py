"""What decision rules choose from: answers, and what is known of each."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ppl.decide.columns import COLUMNS, Bools, Columns, Floats, Ints
from ppl.errors import ArgumentError
from ppl.language import checks
from ppl.language.answers.joint import refuse_joint
from ppl.language.arguments import checked, shown
from ppl.language.cached import cached_property
from ppl.language.classes import identity, numbered
from ppl.language.text import Continuation
from ppl.posterior.posterior import Posterior, Sample
from ppl.posterior.votes import keyed

_LOGS = ("log_weights", "log_scores", "log_probs", "log_joints")


class Candidates:
    """Answers with what is known of them. Rules take a posterior or plain answers in its place.

    Args:
        values: `[N]`, the answers; None for no answer, which never wins, and whose weight stays
            its own.
        log_weights: `[N]`, importance weights; minus infinity is dead and counts nowhere. By
            default all alike, as those of independent samples.
        log_scores: `[N]`, logarithms of a verifier's values in [0, 1].
        rewards: `[N]`, values on any scale, larger is better; by default exp(log_scores).
        log_probs: `[N]`, log p(text) under the law that was sampled.
        log_joints: `[N]`, log p(text) + log p(observations).
        tokens: `[N]`, generated tokens.
        texts: `[N]`, hashable: equal ones are one text.
        confidences: `[N]`, probabilities that the answer is right.
        certainties: `[N]`, how sure the model was of a text, see `trace_confidence`.
        written: `[N]`, the texts as strings, for rules that read them.

    Attributes:
        values: the answers.
        columns: what is known of them.
    """

    @checked
    def __init__(
        self,
        values: Sequence[Any],
        *,
        log_weights: ArrayLike | None = None,
        log_scores: ArrayLike | None = None,
        rewards: ArrayLike | None = None,
        log_probs: ArrayLike | None = None,
        log_joints: ArrayLike | None = None,
        tokens: ArrayLike | None = None,
        texts: Sequence[Hashable] | None = None,
        confidences: ArrayLike | None = None,
        certainties: ArrayLike | None = None,
        written: Sequence[str] | None = None,
    ) -> None:
        given: dict[str, Any] = {
            "log_weights": np.zeros(len(values)) if log_weights is None else log_weights,
            "log_scores": log_scores,
            "rewards": rewards,
            "log_probs": log_probs,
            "log_joints": log_joints,
            "tokens": tokens,
            "texts": texts,
            "confidences": confidences,
            "certainties": certainties,
        }
        self.values = list(values)
        refuse_joint(self.values)
        known = {
            name: _constant(_column(name, column, len(values)))
            for name, column in given.items()
            if column is not None
        }
        if written is not None and len(written) != len(values):
            raise ArgumentError(f"written: {len(written)} of them for {len(values)} values")
        self._start(known, None if written is None else lambda: written)

    def _start(
        self,
        known: dict[str, Callable[[], NDArray[Any]]],
        written: Callable[[], Sequence[str]] | None,
    ) -> None:
        self._written = written
        if "rewards" not in known and "log_scores" in known:
            scores = known["log_scores"]
            known["rewards"] = lambda: np.exp(np.minimum(scores(), 700.0))
        there = np.array([value is not None for value in self.values], dtype=np.bool_)
        self._known = known
        self.columns = Columns(there & (known["log_weights"]() > -np.inf), known)

    @classmethod
    @checked
    def of(cls, source: Posterior | Candidates | Sequence[Any], **columns: Any) -> Candidates:
        """The candidates of a posterior, of answers, or the same ones.

        Of a posterior's samples are known: weights, likelihoods (as scores), log-probabilities of
        choices, tokens, and what their texts are.

        Args:
            source: a posterior, candidates, or answers.
            columns: more that is known, or in the place of what is: as of `Candidates`.
        """
        if isinstance(source, Posterior):
            found = cls._of_samples(source.samples)
        elif isinstance(source, Candidates):
            found = source
        else:
            return cls(source, **columns)
        return found._with(columns) if columns else found

    @classmethod
    def _of_samples(cls, samples: Sequence[Sample]) -> Candidates:
        found = cls.__new__(cls)
        found.values = [s.value if s.answered else None for s in samples]
        known: dict[str, Callable[[], NDArray[Any]]] = {
            "log_weights": _constant(np.array([s.log_weight for s in samples], dtype=np.float64)),
            "log_scores": lambda: _floats(s.log_likelihood for s in samples),
            "log_probs": lambda: _floats(s.log_prob for s in samples),
            "log_joints": lambda: _floats(s.log_joint for s in samples),
            "tokens": lambda: _floats(sum(len(c.tokens) for c in _drawn(s)) for s in samples),
            "texts": lambda: _numbers([_choices(s) for s in samples]),
        }
        # Texts are read only by rules that ask for them.
        found._start(known, lambda: [str(s.text or s.value) for s in samples])
        return found

    def _with(self, columns: Mapping[str, Any]) -> Candidates:
        # The constructor checks what is given; what was there stays lazy.
        given = Candidates([0] * len(self.values), **columns)
        asked = [n for n, column in columns.items() if column is not None and n != "written"]
        more = {name: given._known[name] for name in asked}
        found = Candidates.__new__(Candidates)
        found.values = self.values
        known = {k: v for k, v in self._known.items() if k != "rewards" or "log_scores" not in more}
        found._start({**known, **more}, given._written or self._written)
        return found

    def __len__(self) -> int:
        return len(self.values)

    def __repr__(self) -> str:
        known = ", ".join(name for name in COLUMNS if name in self.columns)
        return f"<Candidates: {len(self)}, {int(self.columns.there.sum())} with answers; {known}>"

    @property
    def written(self) -> list[str]:
        """`[N]`, the texts as strings.

        Raises:
            ArgumentError: they are not known.
        """
        if self._written is None:
            raise ArgumentError(
                "written: this rule reads the texts, and they are not known here; give them as "
                "Candidates.of(..., written=[...]), a string for each candidate"
            )
        return list(self._written())

    def answers(self, key: Callable[[Any], Hashable] | None = None) -> list[Any]:
        """`[N]`, what votes for each candidate; None for those without an answer, and the dead."""
        there = self.columns.there.tolist()
        return keyed([v if t else None for v, t in zip(self.values, there, strict=True)], key)

    @cached_property
    def alive(self) -> Bools:
        """`[N]`, which candidates have weight, also without an answer."""
        return np.asarray(self.columns["log_weights"] > -np.inf)


def answer_numbers(answers: Sequence[Any]) -> Ints:
    """`[N]`, the class of each answer, numbered as they are first seen; -1 for None."""
    there = [i for i, answer in enumerate(answers) if answer is not None]
    found = np.full(len(answers), -1, dtype=np.int64)
    found[there] = numbered([answers[i] for i in there])
    return found


def _column(name: str, column: Any, size: int) -> NDArray[Any]:
    if name == "texts":
        found: NDArray[Any] = _numbers(list(column))
    else:
        found = checks.numbers(**{name: column})
    if found.shape != (size,):
        raise ArgumentError(f"{name}: of shape {list(found.shape)}, for {size} values")
    if name == "log_scores" and (found > 1e-9).any():
        raise ArgumentError(
            f"log_scores={shown(column)}: logarithms of values in [0, 1]; give what has another "
            "scale as rewards="
        )
    if name in _LOGS and np.isposinf(found).any():
        raise ArgumentError(f"{name}={shown(column)}: holds plus infinity")
    if name == "confidences" and not ((found >= 0) & (found <= 1)).all():
        raise ArgumentError(f"confidences={shown(column)}: probabilities, in [0, 1]")
    if name == "tokens" and not (found >= 0).all():
        raise ArgumentError(f"tokens={shown(column)}: numbers of tokens, none below zero")
    if name in ("rewards", "certainties", "tokens") and not np.isfinite(found).all():
        raise ArgumentError(f"{name}={shown(column)}: finite numbers")
    return found


def _constant(column: NDArray[Any]) -> Callable[[], NDArray[Any]]:
    return lambda: column


def _floats(numbers: Any) -> Floats:
    return np.array(list(numbers), dtype=np.float64)


def _numbers(things: Sequence[Hashable]) -> Ints:
    known: dict[Hashable, int] = {}
    return np.array([known.setdefault(thing, len(known)) for thing in things], dtype=np.int64)


def _choices(sample: Sample) -> Hashable:
    """All that was chosen in a particle: the same for two particles that are one text."""
    return tuple((r.name, identity(r.value)) for r in sample.records if r.kind == "choice")


def _drawn(sample: Sample) -> list[Continuation]:
    values = [r.value for r in sample.records if r.kind == "choice"]
    return [value for value in values if isinstance(value, Continuation)]
