"""The laws of a verifier, to be run on one's own: `check_verifier(verifier, texts)`.

A verifier that breaks one of them gives wrong weights in silence: a score that depends on the rest
of the batch, a step that is judged again when others are appended, a number that changes when it
is asked for twice.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from ppl.errors import ObservationError, VerifierError
from ppl.language import checks
from ppl.language.arguments import checked
from ppl.language.text import Text
from ppl.runtime.verdict import AGGREGATES, MEANINGS, JudgeRequest, Ranker, Scorer, Verifier

Scores = tuple[float, ...]


@checked
def check_verifier(
    verifier: Scorer, texts: Sequence[Text], *, tolerance: float = 1e-5
) -> list[str]:
    """Checks a verifier (or ranker) on some texts, best ones with several steps.

    * declared: name, meaning and aggregate are of the known kinds, and only likelihoods can be
      observed;
    * numbers: as many as steps (or one for the text), none NaN, none out of range;
    * same again: equal for the same request; a verifier whose number changes must declare itself
      pseudo-marginal, and is then asked with the same key;
    * batch: what a text gets does not depend on what else is asked, nor on the order;
    * prefix: a step's score stays when steps are appended (of verifiers that give one per step);
    * since: asked for the new steps only, it gives what it gave for them before.

    Args:
        verifier: what to check.
        texts: some texts. Repeats are fine, unfinished texts too.
        tolerance: largest difference of two numbers that count as equal.

    Returns:
        The names of the laws that were checked.

    Raises:
        VerifierError: naming the law that does not hold and the text.
        ValueError: there are no texts.
    """
    checks.nonnegative(tolerance=tolerance)
    if not texts:
        raise ValueError("check_verifier(verifier, texts) needs at least one text")
    _declared(verifier, texts[0])
    law = _Law(verifier, tolerance)
    alone = [law.ask([text])[0] for text in texts]  # also checks the numbers
    law.compare("same again", texts, alone, [law.ask([text])[0] for text in texts])
    law.compare("batch", texts, alone, law.ask(texts))
    law.compare("batch", texts[::-1], alone[::-1], law.ask(texts[::-1]))
    checked = ["declared", "numbers", "same again", "batch"]
    per_step = [
        (text, scores)
        for text, scores in zip(texts, alone, strict=True)
        if len(text.step_ends) > 1 and len(scores) == len(text.step_ends)
    ]
    for text, scores in per_step:
        prefixes = [prefix(text, t) for t in range(1, len(text.step_ends))]
        shorter = [law.ask([p])[0][-1:] for p in prefixes]
        law.compare("prefix", prefixes, [(s,) for s in scores[:-1]], shorter)
        for since in range(1, len(text.step_ends)):
            law.compare("since", [text], [scores[since:]], law.ask([text], since))
    return checked + (["prefix", "since"] if per_step else [])


def prefix(text: Text, steps: int) -> Text:
    """The text up to the end of its step number `steps` (0 for the prompt alone)."""
    end = text.step_ends[steps - 1] if steps else text.prompt_length
    return Text(
        text.tokens[:end],
        text.codec,
        prompt_length=text.prompt_length,
        step_ends=text.step_ends[:steps],
        finished=text.finished and end == len(text.tokens),
        prompt_string=text.prompt_string,
    )


def _declared(verifier: Scorer, text: Text) -> None:
    if not isinstance(getattr(verifier, "name", None), str) or not verifier.name:
        raise VerifierError(f"law 'declared': {type(verifier).__name__} has no name")
    if verifier.meaning not in MEANINGS or verifier.aggregate not in AGGREGATES:
        raise VerifierError(
            f"law 'declared': {verifier.name} has meaning={verifier.meaning!r} and "
            f"aggregate={verifier.aggregate!r}; known are {MEANINGS} and {AGGREGATES}"
        )
    if isinstance(verifier, Ranker):
        try:
            verifier(text)
        except ObservationError:
            return
        raise VerifierError(f"law 'declared': {verifier.name} ranks, yet can be observed")
    if not isinstance(verifier, Verifier) or verifier.meaning == "rank":
        raise VerifierError(
            f"law 'declared': {verifier.name} means {verifier.meaning!r} but is a "
            f"{type(verifier).__name__}; likelihoods derive from Verifier, the rest from Ranker"
        )


@dataclasses.dataclass(frozen=True)
class _Law:
    verifier: Scorer
    tolerance: float

    def ask(self, texts: Sequence[Text], since: int = 0) -> list[Scores]:
        # One key for all: a pseudo-marginal number must be a function of text and key.
        requests = [JudgeRequest(self.verifier, t, since, "a law", key=1) for t in texts]
        return self.verifier.judge_checked(requests)

    def compare(
        self, law: str, texts: Sequence[Text], first: Sequence[Scores], second: Sequence[Scores]
    ) -> None:
        for text, a, b in zip(texts, first, second, strict=True):
            if len(a) != len(b) or not all(map(self._equal, a, b)):
                raise VerifierError(
                    f"law {law!r} does not hold for {self.verifier.name} (meaning "
                    f"{self.verifier.meaning!r}): {a} and {b} for {text.text!r}"
                )

    def _equal(self, a: float, b: float) -> bool:
        return math.isclose(a, b, rel_tol=0.0, abs_tol=self.tolerance) or a == b
