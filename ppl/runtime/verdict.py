"""Verifiers as likelihoods: the contract, and the distribution that a verifier call returns.

`pyro.sample("ok_3", prm(text), obs=True)` multiplies a particle's weight by

    A(s_1 .. s_t) / A(s_1 .. s_u)

where the s are the verifier's step probabilities, A is the aggregation (see `Aggregate`) and u is
where this verifier was last observed along this text. The factors telescope: at the end the target
is p_LM(x) * A(s_1 .. s_T), however often the verifier was asked and whatever the searcher.
"""

from __future__ import annotations

import contextlib
import inspect
import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NoReturn

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from ppl.errors import ObservationError, VerifierError
from ppl.language.arguments import checked, shown
from ppl.language.cost import Account
from ppl.language.printed import Named
from ppl.language.site import Draw, Entry, Site, Visit, made, share
from ppl.language.text import Text
from ppl.runtime import keyed
from ppl.runtime.called import Calls

Aggregate = Literal["prod", "last", "min", "mean", "geomean"]
"""How step scores s_1 .. s_t combine: product, latest, smallest, arithmetic mean, or geometric mean
(s_1 ... s_t)^(1/t), a product that does not punish length."""
AGGREGATES: tuple[Aggregate, ...] = ("prod", "last", "min", "mean", "geomean")

Meaning = Literal["step", "value", "outcome", "reward", "rank"]
"""What a number says. `step`: P(this step is correct). `value`: P(a completion from here is right).
`outcome`: P(the whole text is right). `reward`: a log-potential, which may be positive and has no
opposite. `rank`: only an order within a batch or a question; not a likelihood."""
MEANINGS: tuple[Meaning, ...] = ("step", "value", "outcome", "reward", "rank")


def check_declared(name: str, meaning: Meaning, aggregate: Aggregate) -> None:
    """Raises ValueError if a likelihood is declared wrongly.

    Warns if it multiplies numbers that are no factors: a value or an outcome already speaks about
    the whole text, and its product over steps counts the same evidence again and again (Zhang et
    al. 2025, arXiv 2501.07301).
    """
    if aggregate not in AGGREGATES:
        raise ValueError(f"aggregate={aggregate!r}: one of {', '.join(AGGREGATES)}")
    if meaning not in MEANINGS or meaning == "rank":
        raise ValueError(
            f"{name}: meaning={meaning!r}: a likelihood is one of {', '.join(MEANINGS[:-1])}; what "
            "only ranks is a Ranker"
        )
    if meaning == "reward" and aggregate != "last":
        raise ValueError(f"{name}: a reward is a potential of the whole text; aggregate='last'")
    if meaning in ("value", "outcome") and aggregate == "prod":
        warnings.warn(
            f"{name}: aggregate='prod' multiplies numbers that mean {meaning!r}, each of which "
            "already speaks about the whole text; aggregate='last' is natural",
            stacklevel=3,
        )


@checked
def log_potential(log_scores: Sequence[float], aggregate: Aggregate) -> float:
    """log A(s_1 .. s_t) for step log-probabilities log s; 0 for no steps (A of nothing is 1)."""
    if not log_scores:
        return 0.0
    match aggregate:
        case "prod":
            return math.fsum(log_scores)
        case "last":
            return log_scores[-1]
        case "min":
            return min(log_scores)
        case "mean":
            total = math.fsum(math.exp(s) for s in log_scores)
            return math.log(total / len(log_scores)) if total > 0 else -math.inf
        case "geomean":
            return math.fsum(log_scores) / len(log_scores)


@dataclass(frozen=True, slots=True)
class JudgeRequest:
    """Ask a verifier about a text.

    Attributes:
        verifier: the verifier, or whatever else scores texts.
        text: the text.
        since: number of its steps that this verifier has judged before.
        label: who asks, for error messages.
        ledger: the account that pays, or None.
        key: 64-bit key of the randomness of a pseudo-marginal verifier; others ignore it.
    """

    verifier: Scorer
    text: Text
    since: int = 0
    label: str = "a call outside a search"
    ledger: Account | None = None
    key: int = 0


class Scorer(Named, ABC):
    """Puts a number on texts. Implement `judge`, as a `Verifier` or as a `Ranker`.

    Attributes:
        name: shown in messages; observations of verifiers with the same name telescope together.
        meaning: what the number says.
        aggregate: how step scores combine.
        pseudo_marginal: True if the probability is an unbiased positive estimate, drawn anew for
            every request from `request.key` (Andrieu and Roberts 2009); False promises that the
            number is a function of the tokens alone.
        asks_models: True if `judge` asks language models, with `ppl.runtime.wave.ask`. It then runs
            beside everything else, and its requests join the batches of all searches.
    """

    name: str
    meaning: Meaning
    aggregate: Aggregate = "last"
    pseudo_marginal: bool = False
    asks_models: bool = False

    @abstractmethod
    def judge(self, requests: Sequence[JudgeRequest]) -> list[Sequence[float]]:
        """Numbers, one sequence per request: for verifiers log-probabilities.

        For each request: one entry for every step after `request.since` (steps whose string is
        blank may be left out); or a single entry that stands for all of them, if the text is read
        as a whole or there is no new step.
        """

    def judge_checked(self, requests: Sequence[JudgeRequest]) -> list[tuple[float, ...]]:
        """`judge`, with every number checked.

        Raises:
            VerifierError: naming this verifier, the site and the text (or the floor).
        """
        answers = self.judge(requests)
        said = None
        if not hasattr(answers, "__len__") or isinstance(answers, str | Mapping):
            if inspect.iscoroutine(answers):
                answers.close()
            said = shown(answers)
        elif len(answers) != len(requests):
            said = f"{len(answers)} results"
        if said is not None:
            asked = f"{len(requests)} texts ({', '.join(r.label for r in requests[:2])}, ...)"
            raise VerifierError(f"verifier {self.name} returned {said} for {asked}; {_JUDGE}")
        return [self._checked(r, a) for r, a in zip(requests, answers, strict=True)]

    def _checked(self, request: JudgeRequest, scores: Sequence[float]) -> tuple[float, ...]:
        where = f"verifier {self.name} at {request.label}"
        new_steps = len(request.text.step_ends) - request.since
        try:
            numbers = tuple(map(number, scores))
        except Exception as error:  # that they may be anything is the point
            raise VerifierError(
                f"{where} returned {shown(scores)} for {request.text.text!r}; {_JUDGE}"
            ) from error
        if len(numbers) not in (1, new_steps):
            blank = sum(not step.strip() for step in request.text.steps[request.since :])
            if len(numbers) != new_steps - blank:
                raise VerifierError(
                    f"{where} returned {len(numbers)} scores for {new_steps} new "
                    f"step{'s' * (new_steps != 1)} of {request.text.text!r}; return one per new "
                    "step, or one for the text"
                )
        for each in numbers:
            self._check_number(each, f"{where} returned", request.text)
        return numbers

    def __getattr__(self, attribute: str) -> Any:
        """Asked for what is not there: a name has to be given, and is easily forgotten."""
        said = f"{type(self).__name__!r} object has no attribute {attribute!r}"
        if attribute == "name":
            said += ": give it one, by which messages call it and its observations telescope"
        raise AttributeError(said)

    def _check_number(self, number: float, said: str, text: Text) -> None:
        if math.isnan(number) or number == math.inf:
            raise VerifierError(f"{said} {number} for {text.text!r}; a score is a number")


_JUDGE = "judge() must return a list with one sequence of numbers per request"


def number(said: Any) -> float:
    """Raises TypeError or ValueError: that is no number. Words are none, whatever they spell."""
    if isinstance(said, str | bytes):
        raise TypeError("words")
    return float(said)


_STATE = "ppl.verifiers.Potential(ranker, temperature=1.0)"
_CALIBRATE = "ppl.verifiers.Calibrated(ranker, Platt.fit(scores, labels), meaning='outcome')"


class Ranker(Scorer):
    """Says which text is better, not how likely any of them is to be right.

    Unnormalised rewards, numbers normalised over a batch, positions in a list. A searcher may rank
    by them (`tree.score`); a program cannot observe them, and what asks for a `Verifier` takes no
    `Ranker`. Calibrate one (`ppl.verifiers.Calibrated`) or state a temperature to make a likelihood
    of it.
    """

    meaning: Meaning = "rank"
    remedies: ClassVar[Mapping[str, str]] = {
        "a Verifier": f"a Ranker only ranks texts: calibrate it first, {_CALIBRATE}"
    }

    def __call__(self, text: Text) -> NoReturn:
        """Refused: a score without meaning as a probability cannot be observed."""
        raise ObservationError(
            f"{self.name} only ranks texts: its number is no likelihood and cannot be observed. "
            f"Rank with it (tree.score), state a temperature, observing {_STATE}(text), or "
            f"calibrate it on labels: {_CALIBRATE}"
        )


class Verifier(Scorer):
    """Says how likely it is that a text is correct so far.

    Implement `judge`. It must be deterministic given the tokens (or declare itself
    `pseudo_marginal`), and a text's score must not depend on what else is in the batch.

    Attributes:
        floor: probabilities are raised to this and lowered to one minus this before use; a
            verifier that may rule a text out for good has floor 0. It is part of the target.
    """

    meaning: Meaning = "step"
    floor: float = 0.0

    def __call__(self, text: Text) -> Verdict:
        """The distribution over "correct so far" of `text`; observe it `True`."""
        if not isinstance(text, Text):
            raise TypeError(f"text: verifier {self.name} judges a Text, got {type(text).__name__}")
        return made(Verdict, self, text)

    def _checked(self, request: JudgeRequest, scores: Sequence[float]) -> tuple[float, ...]:
        numbers = super()._checked(request, scores)
        if self.meaning == "reward":
            return numbers
        if not 0 <= self.floor < 0.5:  # also catches NaN
            raise VerifierError(
                f"verifier {self.name} at {request.label} has floor={self.floor}: probabilities "
                "are clipped to [floor, 1 - floor], so it must be in [0, 0.5)"
            )
        low = math.log(self.floor) if self.floor else -math.inf
        high = math.log1p(-self.floor)
        return tuple(min(max(s, low), high) for s in numbers)

    def _check_number(self, number: float, said: str, text: Text) -> None:
        if math.isnan(number) or number > (math.inf if self.meaning == "reward" else 1e-6):
            raise VerifierError(
                f"{said} {'NaN' if math.isnan(number) else f'{number:.6g}'} as a "
                f"log-probability for {text.text!r}; a probability lies in [0, 1] and "
                "its logarithm in [-inf, 0]"
            )
        super()._check_number(number, said, text)


@dataclass(frozen=True, slots=True)
class _Run:
    """The verdicts of one run of a program, by text and name. A Text made outside is shared by all
    runs; what one particle observes about it says nothing to others."""

    calls: Calls
    verdicts: dict[tuple[int, str], list[Verdict]] = field(default_factory=dict)


_run: ContextVar[_Run | None] = ContextVar("_run", default=None)


@contextlib.contextmanager
def own_verdicts(calls: Calls | None = None) -> Iterator[None]:
    """One run of a program: verdicts telescope within it only."""
    run = _Run(Calls() if calls is None else calls)
    token = _run.set(run)
    try:
        yield
        run.calls.called |= {name for _, name in run.verdicts}
    finally:
        _run.reset(token)


class Verdict(Site, TorchDistribution):  # type: ignore[misc]
    """What a verifier says about a text: a distribution over {True, False}.

    Drawn, it is Bernoulli with the latest step probability, which is its `log_prob` from then on,
    and no part of what telescopes. Observed, `log_prob(True)` is the increment log A_t - log A_u of
    the module docstring (which may be positive), and `log_prob(False)` is log(1 - A_t) - log A_u. A
    reward can only be observed True.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012 (the name is torch's)
    has_rsample = False
    # All that torch's constructor would set of every object.
    _batch_shape = _event_shape = torch.Size()
    _validate_args = False

    def __init__(self, verifier: Verifier, text: Text) -> None:
        self.verifier, self.text = verifier, text
        self._log_scores: tuple[float, ...] | None = None
        # Set when this verdict enters the target: its potential, and all scores that made it.
        self._observed: float | None = None
        self._increment: float | None = None
        self._chain: tuple[float, ...] = ()
        self._drawn = False
        self._run = _run.get()
        self._along(text).append(self)

    def request(self, label: str, ledger: Account | None, key: int = 0) -> JudgeRequest:
        """What has to be asked to know this verdict.

        Raises:
            ObservationError: another verifier of the same name was observed along this text.
        """
        previous = self._previous()
        if previous is not None and previous.verifier is not self.verifier:
            raise ObservationError(
                f"{label}: two verifiers named {self.verifier.name!r} judge the same text, or one "
                "its beginning; verifiers of one name telescope, so the second would replace what "
                "the first said: give them different names (name=), or make one verifier and use "
                "it for all steps"
            )
        since = 0 if previous is None else len(previous.text.step_ends)
        return JudgeRequest(self.verifier, self.text, since, label, ledger, key)

    def _along(self, text: Text) -> list[Verdict]:
        """Verdicts of this name on this very text, in the same run."""
        if self._run is None:
            of_text: list[Verdict] = text.verdicts.setdefault(self.verifier.name, [])
            return of_text
        return self._run.verdicts.setdefault((id(text), self.verifier.name), [])

    def _previous(self) -> Verdict | None:
        """The verdict of this name that was last observed along this text."""
        text: Text | None = self.text
        while text is not None:
            for verdict in reversed(self._along(text)):
                if verdict is not self and verdict._observed is not None:
                    found: Verdict = verdict
                    return found
            text = text.parent
        return None

    @property
    def log_scores(self) -> tuple[float, ...]:
        """Log-probabilities of the steps that are new in this verdict."""
        if self._log_scores is None:
            request = self.request("a call outside a search", None)
            self.settle(self.verifier.judge_checked([request])[0])
        assert self._log_scores is not None
        return self._log_scores

    def settle(self, log_scores: tuple[float, ...]) -> None:
        """Provides the scores from a batch or from a record, so that nothing is asked again."""
        self._log_scores = log_scores
        if self._run is not None:
            self._run.calls.used.add(self.verifier.name)

    @property
    def log_probability(self) -> float:
        """The verifier's latest step log-probability, before any aggregation."""
        if self.log_scores:
            return self.log_scores[-1]
        previous = self._previous()  # only blank steps since then
        return 0.0 if previous is None else previous.log_probability

    def observe(self, value: bool) -> float:
        """Makes `value` part of the target; returns the log-weight increment (once and for all)."""
        if not value:
            self._refuse_reward("observed False")
        if self._increment is None:
            previous = self._previous()
            before = 0.0 if previous is None else previous._observed or 0.0
            self._chain = (() if previous is None else previous._chain) + self.log_scores
            potential = log_potential(self._chain, self.verifier.aggregate)
            self._observed = potential if value else _log1mexp(potential)
            dead = before == -math.inf
            self._increment = -math.inf if dead else self._observed - before
        return self._increment

    def sample(self, sample_shape: torch.Size | Sequence[int] = ()) -> bool:  # type: ignore[override]
        """True with the latest step probability."""
        self._refuse_reward("sampled")
        self._drawn = True
        return bool(torch.rand((), dtype=torch.float64) < math.exp(self.log_probability))

    # -- as a site of a particle --------------------------------------------------------------

    def draw(self, visit: Visit, msg: Any, key: int, target: Any = None) -> Draw:
        """True with the latest step probability, a function of `key`."""
        self._judge(visit)
        if self._run is not None:
            self._run.calls.drawn.add(self.verifier.name)
        keyed.seed(key)
        value = self.sample()
        return value, self._log_bernoulli(value), None

    def score(self, visit: Visit, msg: Any, value: Any) -> float:
        """Log-probability of the latest step being judged `value`."""
        value = self.check(value, visit.label)
        self._refuse_reward("proposed")
        self._judge(visit)
        self._drawn = True
        self._weighs()
        return self._log_bernoulli(value)

    def weigh(self, visit: Visit, msg: Any, entry: Entry) -> float:
        """What observing `entry.value` adds: the aggregate's increment since the last verdict."""
        entry.value = self.check(entry.value, visit.label)
        self._judge(visit)
        self._weighs()
        return share(self.observe(entry.value), msg)

    def _weighs(self) -> None:
        if self._run is not None:
            self._run.calls.weighed.add(self.verifier.name)

    def passed(self, visit: Visit, entry: Entry) -> None:
        """Notes the scores, so that a fork asks the verifier nothing."""
        entry.log_scores = self._log_scores

    def repeat(self, visit: Visit, entry: Entry) -> None:
        """Takes scores and value from the record."""
        if entry.log_scores is not None:
            self.settle(entry.log_scores)
        if entry.kind == "observed":
            self.observe(entry.value)
        else:
            self._drawn = True

    def support(self) -> list[tuple[Any, float]]:
        """True and False, with the latest step's log-probabilities."""
        self._refuse_reward("enumerated")
        self._drawn = True
        return [(value, self._log_bernoulli(value)) for value in (True, False)]

    def _judge(self, visit: Visit) -> None:
        key = visit.key(visit.site, "judge")
        self.settle(visit.ask(self.request(visit.label, visit.ledger, key)))

    def _log_bernoulli(self, value: bool) -> float:
        return self.log_probability if value else _log1mexp(self.log_probability)

    def _refuse_reward(self, what: str) -> None:
        if self.verifier.meaning == "reward":
            raise ObservationError(
                f"verifier {self.verifier.name} gives a reward, which is no probability: it cannot "
                f"be {what}, only observed True"
            )

    def log_prob(self, value: object) -> Tensor:
        """Scalar float64 tensor, see the class."""
        value = self.check(value)
        log_prob = self._log_bernoulli(value) if self._drawn else self.observe(value)
        return torch.tensor(log_prob, dtype=torch.float64)

    @staticmethod
    def check(value: object, label: str = "a verdict") -> bool:
        """`value` as a bool. Raises ObservationError if it is no truth value."""
        if isinstance(value, Tensor) and value.numel() == 1 and value.dtype == torch.bool:
            return bool(value)
        if not isinstance(value, bool):
            raise ObservationError(
                f"{label}: a verifier is observed with True or False, got {value!r}"
            )
        return value

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> Verdict:
        """Itself, for an empty batch shape: one particle has one text."""
        if len(batch_shape):
            raise ValueError("a verdict cannot be used inside a vectorised pyro.plate")
        return self

    @property
    def fingerprint(self) -> tuple[object, ...]:
        """What identifies the distribution when a program is replayed."""
        return (self.verifier.name, self.verifier.aggregate, self.text.tokens, self.text.step_ends)

    def __repr__(self) -> str:
        return f"Verdict({self.verifier.name}, {self.text.text!r})"


def _log1mexp(log_p: float) -> float:
    """log(1 - p) from log p."""
    return math.log1p(-math.exp(log_p)) if log_p < 0 else -math.inf
