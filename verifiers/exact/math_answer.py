"""Equality of mathematical answers as a verifier, with math-verify for a second opinion.

`ppl.equality` decides. What it cannot read is handed to math-verify (extra `math`), in a worker
process under our limits, and its word is taken only where it can be trusted: math-verify 0.9
answers False both for a wrong answer and for one that it could not read, and reads the fragment of
a string that it knows, so that its True needs both orders of the two and all digits of both.
"""

from __future__ import annotations

import importlib.util
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Self

from ppl.errors import MathAnswerError, WorkerError
from ppl.language import checks
from ppl.language.answers import Equality, equality, readable
from ppl.language.arguments import checked
from ppl.language.text import Text
from ppl.runtime.verdict import JudgeRequest, Verifier
from ppl.runtime.worker import Worker

_WORKER = """
import json, os, sys
reply = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
import resource
resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify
print("ready", file=reply, flush=True)
MATH = [LatexExtractionConfig(), ExprExtractionConfig()]

def read(string):
    # Without a fallback string, which makes equal garbage equal, and with delimiters, without
    # which the first number of a formula is taken for the whole.
    latex = string if "$" in string or "boxed" in string else "$" + string + "$"
    return parse(latex, MATH, fallback_mode="no_fallback", parsing_timeout=None,
                 raise_on_error=True)

for line in sys.stdin:
    try:
        a, b = map(read, json.loads(line))
        result = None
        if a and b:
            result = all(verify(x, y, timeout_seconds=None, raise_on_error=True)
                         for x, y in ((a, b), (b, a)))
    except BaseException:
        result = None
    print(json.dumps(result), file=reply, flush=True)
"""


class MathComparer:
    """Compares answers; safe to use from any thread.

    Args:
        limit: seconds for one second opinion.
        start_limit: seconds for its worker process to start, when it is first needed.
    """

    @checked
    def __init__(self, limit: float = 5.0, start_limit: float = 120.0) -> None:
        checks.positive(limit=limit, start_limit=start_limit)
        self.limit = limit
        self.worker = Worker(_WORKER, "math-verify", "ppl-search[math]", start_limit)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stops the worker; a later call starts a new one."""
        self.worker.stop()

    @checked
    def equal(self, gold: str, answer: str) -> bool | None:
        """Whether `answer` equals `gold`; None if that cannot be told. The order does not matter.

        Unknown are answers that cannot be read, or only in part, or in two ways, and those on
        which math-verify raises or takes too long or too much memory. Without the extra `math`
        there is no second opinion, and more is unknown.

        Raises:
            MathAnswerError: `gold` has no content: the data are wrong.
        """
        _check_gold(gold)
        found = equality(gold, answer)
        if found is not Equality.UNKNOWN:
            return found is Equality.EQUAL
        if readable(gold) and readable(answer):
            return None  # both are read, and it cannot be told
        return self._second_opinion(gold, answer)

    def _second_opinion(self, gold: str, answer: str) -> bool | None:
        """True, if math-verify finds two formulas of the same numbers and names equal; else None.

        Its no is worth nothing here: it may come from a fragment.
        """
        if not (_formula(gold) and _formula(answer)) or _atoms(gold) != _atoms(answer):
            return None
        if importlib.util.find_spec("math_verify") is None:
            return None
        self.worker.start()
        try:
            return self.worker.ask([gold, answer], self.limit) or None
        except WorkerError:
            return None


def _check_gold(gold: str) -> None:
    if not re.search(r"\w", gold):
        raise MathAnswerError(
            f"the gold answer {gold!r} has neither digits nor letters; correct the data"
        )


def _formula(string: str) -> bool:
    """Whether there is nothing but mathematics in it: no words, no several boxes."""
    bare = re.sub(r"\\[A-Za-z]+", " ", string)
    return re.search(r"[0-9]|[A-Za-z]", bare) is not None and not re.search(r"[A-Za-z]{2}", bare)


def _atoms(string: str) -> Counter[str]:
    """Its numbers, letters, relations and brackets. Formulas that differ in them are not equal by a
    mere other order of the same terms."""
    bare = re.sub(r"\\(?:left|right|displaystyle|limits|[dtc]?frac)\b", "", string.replace("$", ""))
    return Counter(re.findall(r"[0-9]|[A-Za-z]+|[<>=()\[\]+^_-]", bare))


_shared: list[MathComparer] = []


def shared_comparer() -> MathComparer:
    """The comparer of all verifiers with default limits."""
    if not _shared:
        _shared.append(MathComparer())
    return _shared[0]


class MathAnswer(Verifier):
    """Whether a text's answer equals the known one. An oracle: for evaluation and for tests.

    Observed inside a search it tells the search the solution; what comes out is then no measure of
    the model.

    Args:
        gold: the right answer.
        extract: finds the answer in a text, `text.answer` by default. No answer is wrong.
        unknown: probability that stands for an answer which cannot be compared: neither right nor
            wrong.
        floor: scores are clipped to [floor, 1 - floor].
        comparer: limits of the comparison.

    Raises:
        MathAnswerError: `gold` has no content.

    Example:
        >>> from ppl.verifiers import MathAnswer
        >>> third = MathAnswer("1/3")
    """

    @checked
    def __init__(
        self,
        gold: str,
        *,
        extract: Callable[[Text], str | None] = lambda text: text.answer,
        unknown: float = 0.5,
        floor: float = 1e-6,
        comparer: MathComparer | None = None,
    ) -> None:
        checks.floor(floor=floor)
        if not 0 <= unknown <= 1:
            raise ValueError(f"unknown={unknown}: must be a probability")
        _check_gold(gold)
        self.gold, self.extract, self.unknown, self.floor = gold, extract, unknown, floor
        self.name, self.meaning = f"MathAnswer({gold!r})", "outcome"
        self._comparer = comparer or shared_comparer()

    def judge(self, requests: Sequence[JudgeRequest]) -> list[Sequence[float]]:
        """One log-score per text: its answer against the gold one, equal answers once."""
        answers = [self.extract(request.text) for request in requests]
        known = {a: self._comparer.equal(self.gold, a) for a in set(answers) if a is not None}
        return [[self._log_score(known[a] if a is not None else False)] for a in answers]

    def _log_score(self, equal: bool | None) -> float:
        score = self.unknown if equal is None else float(equal)
        return math.log(score) if score > 0 else -math.inf
