"""Equality of mathematical answers, by math-verify (extra `math`), with its traps closed.

math-verify 0.9 answers False both for a wrong answer and for one that it could not read or finish,
needs the main thread for its own time limits, and takes an unreadable gold answer for different
from everything. Here it runs in a worker process under our limits, and there are three answers:
equal, different, unknown.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Self

from ppl.errors import MathAnswerError, WorkerError
from ppl.language import checks
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
from math_verify import (
    ExprExtractionConfig, LatexExtractionConfig, StringExtractionConfig, parse, verify)
print("ready", file=reply, flush=True)
MATH = [LatexExtractionConfig(), ExprExtractionConfig()]

def read(string):
    # Without a fallback string: it makes equal garbage equal. Bare LaTeX is read once more as
    # mathematics, and a bare letter as a choice.
    latex = "$" + string + "$" if any(c in string for c in "^{}" + chr(92)) else string
    for text, config in ((string, MATH), (latex, MATH), (string, [StringExtractionConfig()])):
        found = parse(text, config, fallback_mode="no_fallback", parsing_timeout=None,
                      raise_on_error=True)
        if found:
            return found
    return []

for line in sys.stdin:
    gold, answer = json.loads(line)
    try:
        golds = read(gold)
        if not golds:
            result = "empty"
        else:
            answers = read(answer)
            # A letter in math mode is a symbol, a bare one a choice: spelled alike is equal.
            same = gold.strip(" $") == answer.strip(" $")
            result = True if same else verify(
                golds, answers, timeout_seconds=None, raise_on_error=True) if answers else None
    except BaseException:
        result = None
    print(json.dumps(result), file=reply, flush=True)
"""


class MathComparer:
    """Compares answers in one warm worker process; safe to use from any thread.

    Args:
        limit: seconds for one comparison.
        start_limit: seconds for the worker to start.
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
        """Whether `answer` equals `gold` (the order matters); None if that cannot be told.

        Unknown are answers that cannot be read, raise, or take too long or too much memory.

        Raises:
            MathAnswerError: `gold` has no mathematical content: the data are wrong.
            WorkerError: math-verify is not installed.
        """
        self.worker.start()
        try:
            result = self.worker.ask([gold, answer], self.limit)
        except WorkerError:
            return None
        if result == "empty":
            raise MathAnswerError(
                f"the gold answer {gold!r} has no mathematical content; correct the data, or "
                "compare words with == instead"
            )
        return None if result is None else bool(result)


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
