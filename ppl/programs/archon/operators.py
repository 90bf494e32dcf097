"""Archon's operators on texts (Saad-Falcon et al. 2024, arXiv 2409.15254), as functions from
`Drafts` to `Drafts`.

    generate     the question -> n drafts                     log-weight 0
    fuse         k drafts, and what critics said -> n new      no weight
    rank         k -> the m best, in order                     weights are kept
    critique     k -> the same k, each with a critique         no weight
    verify       k -> those judged correct                     weights are kept

A draft that a critic has spoken about is read together with that from then on, so its own
probability is no longer the law of what is chosen: its weight is dropped, as that of a text that
was made of others. Whom an operator asks is a language model, or a function of the prompt; rankers
and verifiers may be a `Verifier` or a `Ranker` of this library as well. The prompts are ours.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from ppl.errors import ArgumentError
from ppl.language import checks
from ppl.language.arguments import check_fields, checked, shown
from ppl.lm.base import LanguageModel
from ppl.programs.archon.asking import Writer, replies, scores
from ppl.programs.archon.drafts import Draft, Drafts
from ppl.programs.marked import items
from ppl.runtime.verdict import Scorer, Verifier

_VERDICT = re.compile(r"\[\s*(correct|incorrect)\s*\]", re.IGNORECASE)
_MARKED = "as in\nC[1]: ...\nC[2]: ..."


@dataclass(frozen=True, kw_only=True)
class Operator:
    """What all operators have.

    Attributes:
        kind: its name.
        alone: whether nothing else may be in its layer.
        max_tokens, temperature: of what it has written; `None` for max_tokens is no limit.
    """

    kind: ClassVar[str]
    alone: ClassVar[bool] = True

    max_tokens: int | None = 2048
    temperature: float = 0.7

    def __post_init__(self) -> None:
        check_fields(self)
        if self.max_tokens is not None:
            checks.count(max_tokens=self.max_tokens)
        checks.nonnegative(temperature=self.temperature)

    def __call__(self, drafts: Drafts) -> Drafts:
        """What becomes of drafts."""
        raise NotImplementedError

    def size(self, k: int) -> int:
        """How many drafts it makes of k, at most."""
        return k

    def calls(self, k: int) -> int:
        """How often it asks somebody about k drafts, at most."""
        return 1

    def name(self, drafts: Drafts) -> str:
        """Of its sites."""
        return f"{self.kind}_{drafts.depth}"

    def asked(
        self, drafts: Drafts, writers: Sequence[Writer], prompts: Sequence[str]
    ) -> list[tuple[str, Any]]:
        """What writers say."""
        settings = {"max_tokens": self.max_tokens, "temperature": self.temperature}
        return replies(self.name(drafts), writers, prompts, **settings)


@dataclass(frozen=True)
class Writing(Operator):
    """One that has a writer write new drafts.

    Attributes:
        writer, samples: who writes, and how many.
    """

    alone: ClassVar[bool] = False

    writer: Writer
    samples: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.count(samples=self.samples)
        _writer(self.writer)

    def written(self, drafts: Drafts, prompt: str) -> list[tuple[str, Any]]:
        """What the writer says to a prompt, sample by sample."""
        return self.asked(drafts, [self.writer] * self.samples, [prompt] * self.samples)

    def size(self, k: int) -> int:
        """As many as it samples."""
        return self.samples

    def calls(self, k: int) -> int:
        """One a sample."""
        return self.samples


@dataclass(frozen=True)
class Generate(Writing):
    """See `generate`."""

    kind: ClassVar[str] = "generate"

    def __call__(self, drafts: Drafts) -> Drafts:
        """Drafts of its own; it reads none."""
        said = self.written(drafts, _with_tests(drafts))
        name = self.name(drafts)
        made = [Draft(s, 0.0, f"{name}/{i}", written=t) for i, (s, t) in enumerate(said)]
        return drafts.after(made)


@dataclass(frozen=True)
class Fuse(Writing):
    """See `fuse`."""

    kind: ClassVar[str] = "fuse"

    def __call__(self, drafts: Drafts) -> Drafts:
        """New drafts, made of all."""
        prompt = (
            f"{_with_tests(drafts)}\n\nHere are {len(drafts)} responses to this, of which any may "
            f"be wrong:\n\n{listed(drafts)}\n\nWrite one response that is better than each of "
            "them: keep what is right, leave out what is not. Write the response only."
        )
        said = self.written(drafts, prompt)
        name, sources = self.name(drafts), tuple(draft.origin for draft in drafts)
        return drafts.after(
            [
                Draft(s, None, f"{name}/{i}", sources=sources, written=t)
                for i, (s, t) in enumerate(said)
            ]
        )


@dataclass(frozen=True)
class Rank(Operator):
    """See `rank`."""

    kind: ClassVar[str] = "rank"

    judge: Writer | Scorer
    top: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _writer(self.judge)
        if self.top is not None:
            checks.count(top=self.top)

    def __call__(self, drafts: Drafts) -> Drafts:
        """The best first, and no more than `top`."""
        name, order = self.name(drafts), list(range(len(drafts)))
        flags: tuple[str, ...] = ()
        if isinstance(self.judge, Scorer):
            found = scores(name, self.judge, drafts.drafts)
            order.sort(key=lambda i: -found[i])
        else:
            prompt = (
                f"{drafts.question}\n\nHere are {len(drafts)} responses to this:\n\n"
                f"{listed(drafts)}\n\nRank them from best to worst. End with their numbers in "
                'order, as in "2 > 1 > 3".'
            )
            ((said, _),) = self.asked(drafts, [self.judge], [prompt])
            order, flags = _order(said, len(drafts), name)
        kept = order[: self.top]
        ranked = [drafts.drafts[i].through(f"{name}: place {p}") for p, i in enumerate(kept, 1)]
        return drafts.after(ranked, *flags)

    def size(self, k: int) -> int:
        """No more than `top`."""
        return k if self.top is None else min(self.top, k)

    def calls(self, k: int) -> int:
        """One for all; a scorer is asked about each."""
        return k if isinstance(self.judge, Scorer) else 1


@dataclass(frozen=True)
class Critique(Operator):
    """See `critique`."""

    kind: ClassVar[str] = "critique"

    writer: Writer

    def __post_init__(self) -> None:
        super().__post_init__()
        _writer(self.writer)

    def __call__(self, drafts: Drafts) -> Drafts:
        """The same drafts, with what is said of each."""
        prompt = (
            f"{drafts.question}\n\nHere are {len(drafts)} responses to this:\n\n{listed(drafts)}"
            "\n\nSay of each what is good about it and what is not, each beginning with its mark "
            f"on a line of its own, {_MARKED}"
        )
        ((said, _),) = self.asked(drafts, [self.writer], [prompt])
        name, count = self.name(drafts), len(drafts)
        found = items(said, "C", range(1, count + 1))
        flags = () if len(found) == count else (f"{name}: {count - len(found)} without a critique",)
        return drafts.after(
            [
                draft.through(name, critique=found.get(i, draft.critique), log_weight=None)
                for i, draft in enumerate(drafts, 1)
            ],
            *flags,
        )


@dataclass(frozen=True)
class Verify(Operator):
    """See `verify`."""

    kind: ClassVar[str] = "verify"

    judge: Writer | Scorer
    threshold: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        _writer(self.judge)
        checks.probability(threshold=self.threshold)
        judge = self.judge
        if isinstance(judge, Scorer) and not (
            isinstance(judge, Verifier) and judge.meaning != "reward"
        ):
            raise ArgumentError(
                f"judge={shown(judge)}: it says which is better and not what is right; rank "
                "with it, or calibrate it first"
            )

    def __call__(self, drafts: Drafts) -> Drafts:
        """Those that are judged correct; all of them, and a flag, if none is."""
        name, flags = self.name(drafts), []
        if isinstance(self.judge, Scorer):
            found = scores(name, self.judge, drafts.drafts)
            verdicts: list[bool | None] = [math.exp(score) >= self.threshold for score in found]
        else:
            prompts = [
                f"{drafts.question}\n\nHere is a response to this:\n\n{_one(draft)}\n\nIs it "
                "correct? Reason about it, and end with [Correct] or [Incorrect]."
                for draft in drafts
            ]
            said = self.asked(drafts, [self.judge] * len(prompts), prompts)
            verdicts = [_verdict(reply) for reply, _ in said]
        unread = sum(verdict is None for verdict in verdicts)
        if unread:
            flags.append(f"{name}: {unread} without a verdict")
        kept = [d.through(name) for d, right in zip(drafts, verdicts, strict=True) if right]
        if not kept:
            return drafts.after(drafts.drafts, *flags, f"{name}: rejected all")
        return drafts.after(kept, *flags)

    def calls(self, k: int) -> int:
        """One for each."""
        return k


@checked
def generate(
    writer: Writer, samples: int = 1, *, max_tokens: int | None = 2048, temperature: float = 0.7
) -> Generate:
    """Draws drafts from the question alone. Several generators in a layer are an ensemble.

    Args:
        writer: a language model, which is asked in its chat template; or a program of the question
            that returns a string or a `Text`.
        samples: n, drafts.
        max_tokens, temperature: of a model's draft; as published.
    """
    return Generate(writer, samples, max_tokens=max_tokens, temperature=temperature)


@checked
def fuse(
    writer: Writer, samples: int = 1, *, max_tokens: int | None = 2048, temperature: float = 0.7
) -> Fuse:
    """Writes new texts from all drafts, and from what critics said of them. May exceed them all.

    Args:
        writer: who reads and writes.
        samples: new texts.
        max_tokens, temperature: of what a model writes.
    """
    return Fuse(writer, samples, max_tokens=max_tokens, temperature=temperature)


@checked
def rank(
    judge: Writer | Scorer,
    top: int | None = None,
    *,
    max_tokens: int | None = 2048,
    temperature: float = 0.7,
) -> Rank:
    """Orders drafts, and keeps the best.

    Args:
        judge: a model that reads all and ends with their numbers in order (numbers that it leaves
            out come after the others, in their order); or a verifier or ranker.
        top: m, how many are kept; None for all.
        max_tokens, temperature: of what a model writes.
    """
    return Rank(judge, top, max_tokens=max_tokens, temperature=temperature)


@checked
def critique(
    writer: Writer, *, max_tokens: int | None = 2048, temperature: float = 0.7
) -> Critique:
    """Says what is good and bad about each draft, in one call, for rankers and fusers to read.

    Args:
        writer: the critic.
        max_tokens, temperature: of what a model writes.
    """
    return Critique(writer, max_tokens=max_tokens, temperature=temperature)


@checked
def verify(
    judge: Writer | Scorer,
    *,
    threshold: float = 0.5,
    max_tokens: int | None = 2048,
    temperature: float = 0.7,
) -> Verify:
    """Keeps the drafts that are judged correct. If none is, all stay, and a flag says so.

    Args:
        judge: a model that reasons about a draft and ends with [Correct] or [Incorrect]; a reply
            with neither counts as rejection and is flagged. Or a verifier.
        threshold: probability from which a verifier's draft stays.
        max_tokens, temperature: of what a model writes.
    """
    return Verify(judge, threshold, max_tokens=max_tokens, temperature=temperature)


def listed(drafts: Drafts) -> str:
    """The drafts with their numbers, and critiques where there are."""
    return "\n\n".join(f"Response {i}: {_one(draft)}" for i, draft in enumerate(drafts, 1))


def _one(draft: Draft) -> str:
    said = draft.text.strip()
    return said if draft.critique is None else f"{said}\n(A critic says: {draft.critique})"


def _with_tests(drafts: Drafts) -> str:
    if not drafts.tests:
        return drafts.question
    return f"{drafts.question}\n\nIt should pass these tests:\n" + "\n".join(drafts.tests)


def _order(said: str, count: int, name: str) -> tuple[list[int], tuple[str, ...]]:
    """The places in a ranking, the missing ones last and in their order.

    It is the line with `>` that names most, the last among equals: reasons may hold the sign, too.
    """
    lines = [line for line in said.splitlines() if line.strip()]
    ranks = [line for line in lines if ">" in line] or lines[-1:]
    named = [[int(n) - 1 for n in re.findall(r"\d{1,6}", line)] for line in ranks]
    orders = [[i for i in dict.fromkeys(row) if 0 <= i < count] for row in named]
    known = max(reversed(orders), key=len, default=[])
    missing = [i for i in range(count) if i not in known]
    flags = (f"{name}: {len(missing)} not ranked",) if missing else ()
    return known + missing, flags


def _verdict(said: str) -> bool | None:
    found = _VERDICT.findall(said)
    return found[-1].lower() == "correct" if found else None


def _writer(writer: Any) -> None:
    if not isinstance(writer, LanguageModel | Scorer) and not callable(writer):
        raise ArgumentError(f"writer={shown(writer)}: a language model, or a function of a prompt")
