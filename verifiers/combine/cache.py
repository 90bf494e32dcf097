"""Asks a verifier only once about each text."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence

from ppl.errors import VerifierError
from ppl.language.arguments import checked
from ppl.language.text import Text
from ppl.runtime.verdict import JudgeRequest, Verifier


class Cached(Verifier):
    """A verifier that remembers its answers by token ids and step marks.

    Worth it for verifiers that are dear and have no memory of their own (judges on a server,
    functions that run something). Models on our engine reuse prefixes anyway. Equal texts in one
    batch are asked about once, and only those who ask first pay.

    Args:
        verifier: a deterministic verifier; its name, meaning, aggregate and floor are kept.
        most: answers to remember, the least recently used are forgotten first.
        key: what of a text the verifier looks at besides the prompt, such as the last answer; by
            default the whole text and its division into steps. With a key, the verifier must give
            one number for the text, not one per step.

    Raises:
        ValueError: the verifier is pseudo-marginal (its estimates must be drawn anew), or a ranker.
        VerifierError: there is a key, and the verifier gives a number per step.

    Attributes:
        hits, misses: requests answered from memory, and not.
    """

    @checked
    def __init__(
        self,
        verifier: Verifier,
        *,
        most: int = 100_000,
        key: Callable[[Text], Hashable] | None = None,
    ) -> None:
        if not isinstance(verifier, Verifier):
            raise ValueError(f"{verifier.name} only ranks; Cached remembers a Verifier's answers")
        if verifier.pseudo_marginal:
            raise ValueError(
                f"{verifier.name} is pseudo-marginal: particles need estimates of their own, so "
                "there is nothing to remember"
            )
        if most < 1:
            raise ValueError(f"most={most}: must be at least 1")
        self.verifier, self.most, self.key = verifier, most, key
        self.name, self.meaning = verifier.name, verifier.meaning
        self.aggregate, self.floor = verifier.aggregate, verifier.floor
        self.asks_models = verifier.asks_models
        self.hits = self.misses = 0
        self._answers: OrderedDict[Hashable, Sequence[float]] = OrderedDict()

    def judge(self, requests: Sequence[JudgeRequest]) -> list[Sequence[float]]:
        """What was asked before is answered from memory, equal texts of one call are asked once."""
        keys = [self._key(request) for request in requests]
        known = {key: self._answers[key] for key in keys if key in self._answers}
        new = {k: r for k, r in zip(keys, requests, strict=True) if k not in known}
        self.misses += len(new)
        self.hits += len(requests) - len(new)
        if new:
            answers = self.verifier.judge(list(new.values()))
            if self.key is not None and any(len(answer) != 1 for answer in answers):
                raise VerifierError(
                    f"Cached({self.name}, key=...) needs a verifier that gives one number for the "
                    "text, this one gives one per step; leave key= out"
                )
            known |= zip(new, answers, strict=True)
        self._answers |= known
        for key in known:
            self._answers.move_to_end(key)
        while len(self._answers) > self.most:
            self._answers.popitem(last=False)
        return [known[key] for key in keys]

    def _key(self, request: JudgeRequest) -> Hashable:
        text = request.text
        if self.key is not None:
            return text.codec, text.tokens[: text.prompt_length], self.key(text)
        return text.codec, text.tokens, text.step_ends, request.since
