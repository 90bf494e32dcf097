"""Any Python function of the text as a verifier."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence

from ppl.errors import VerifierError
from ppl.language import checks
from ppl.language.arguments import checked, shown
from ppl.language.text import Text
from ppl.runtime.verdict import (
    Aggregate,
    JudgeRequest,
    Meaning,
    Ranker,
    Verifier,
    check_declared,
    number,
)


class FunctionVerifier(Verifier):
    """A verifier made of a function from a text to the probability that it is right so far.

    Args:
        function: a pure function of the text; returns a probability or a bool.
        name: shown in messages, the function's name by default.
        meaning: what the probability says.
        aggregate: how the numbers combine along a text; `"last"` keeps only the latest.
        floor: 0 lets the function rule a text out for good.
    """

    @checked
    def __init__(
        self,
        function: Callable[[Text], float],
        *,
        name: str | None = None,
        meaning: Meaning = "step",
        aggregate: Aggregate = "last",
        floor: float = 0.0,
    ) -> None:
        checks.floor(floor=floor)
        self.function = function
        self.name = name or str(getattr(function, "__name__", "function"))
        check_declared(self.name, meaning, aggregate)
        self.meaning, self.aggregate, self.floor = meaning, aggregate, floor

    def judge(self, requests: Sequence[JudgeRequest]) -> list[Sequence[float]]:
        """One log-score per text, from one call each."""
        return [[self._log(request)] for request in requests]

    def _log(self, request: JudgeRequest) -> float:
        where = f"verifier {self.name} at {request.label}"
        probability = _called(self.function, request, where, _PROBABILITY)
        if not 0 <= probability <= 1 + 1e-6:  # also catches NaN; sums of float32 pass 1 by a hair
            raise VerifierError(
                f"{where} returned {probability} for {request.text.text!r}; {_PROBABILITY}"
            )
        return math.log(min(probability, 1.0)) if probability > 0 else -math.inf


class FunctionRanker(Ranker):
    """A ranker made of a function from a text to any number; higher is better.

    Args:
        function: a pure function of the text.
        name: shown in messages, the function's name by default.
    """

    @checked
    def __init__(self, function: Callable[[Text], float], *, name: str | None = None) -> None:
        self.function = function
        self.name = name or str(getattr(function, "__name__", "function"))

    def judge(self, requests: Sequence[JudgeRequest]) -> list[Sequence[float]]:
        """One score per text, from one call each."""
        return [
            [_called(self.function, r, f"ranker {self.name} at {r.label}", "return a number")]
            for r in requests
        ]


_PROBABILITY = "return a probability between 0 and 1, or a bool"


def _called(
    function: Callable[[Text], float], request: JudgeRequest, where: str, wanted: str
) -> float:
    """What a function says of a text. Raises VerifierError: it raised, or that is no number."""
    try:
        said: object = function(request.text)
    except Exception as error:
        raise VerifierError(
            f"{where} raised {type(error).__name__}: {error} for {request.text.text!r}"
        ) from error
    if inspect.iscoroutine(said):
        said.close()
        raise VerifierError(
            f"{where} is an async function; take a plain one, or wait for all texts of a batch in "
            "judge(requests) of a verifier class"
        )
    try:
        return number(said)
    except Exception as error:
        raise VerifierError(
            f"{where} returned {shown(said)} for {request.text.text!r}; {wanted}"
        ) from error


@checked
def verifier(
    function: Callable[[Text], float] | None = None,
    *,
    name: str | None = None,
    meaning: Meaning = "step",
    aggregate: Aggregate = "last",
    floor: float = 0.0,
) -> FunctionVerifier | Callable[[Callable[[Text], float]], FunctionVerifier]:
    """Turns a plain function of the text into a verifier; use as `@verifier` or `@verifier(...)`.

    Example:
        >>> @verifier
        ... def short(text):
        ...     return len(text.text) < 80
    """

    def wrap(f: Callable[[Text], float]) -> FunctionVerifier:
        return FunctionVerifier(f, name=name, meaning=meaning, aggregate=aggregate, floor=floor)

    return wrap if function is None else wrap(function)


@checked
def ranker(function: Callable[[Text], float]) -> FunctionRanker:
    """Turns a plain function of the text into a ranker; use as `@ranker`."""
    return FunctionRanker(function)
