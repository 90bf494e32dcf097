"""The instruction as programs, and the searches that run them at equal tokens.

Every program has the same target: what the model writes to the question, given that it obeys. They
differ in how they come to it. `whole` looks at the end; `stepwise` looks after every word; guides
propose only what keeps the text alive; `Ahead` says how much hope is left.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import pyro
from torch import Tensor
from writing_automaton import Automaton
from writing_requests import Request, obeys

import ppl
from ppl.lm.base import ScoreRequest
from ppl.runtime.wave import ask
from ppl.searchers import MCTS, SMC, BeamSearch, BestOfN, Searcher
from ppl.searchers.search import run_all

MOST_TOKENS = 40  # of a text
STEP_TOKENS = 8  # of a word


class Task:
    """A request put to a model.

    Args:
        lm: a chat model.
        request: what is asked.
    """

    def __init__(self, lm: ppl.LanguageModel, request: Request) -> None:
        self.lm, self.request, self.automaton = lm, request, Automaton(request)
        self.prompt = lm.chat(request.question)
        self._stop = request.stop

    @cached_property
    def expected(self) -> int:
        """About how many tokens a text has, or too many: a search that is cut returns little."""
        least = sum(low for low, _ in self.request.lines)
        # Words that are forced are rare ones, and take more tokens.
        a_word = 2.5 if self.request.initials or self.request.growing else 1.5
        return 4 + math.ceil(a_word * (least + 2 * self.request.most_words) / 3)

    def ended(self, text: ppl.Text) -> bool:
        """Whether a text is whole; if not, it is still being written, or was cut."""
        return text.finished or self._stop.search(text.text) is not None

    def alive(self, text: ppl.Text) -> bool:
        """Whether the text obeys, or can still come to."""
        automaton = self.automaton
        return (automaton.complete if self.ended(text) else automaton.alive)(text.text)

    def obeyed(self, text: ppl.Text) -> bool:
        """The checker, for whole texts."""
        return self.ended(text) and obeys(self.request, text.text)

    def until(self, text: ppl.Text) -> Callable[[str], bool]:
        """A step ends with the first token of the next word, or with the text.

        That a word has ended is seen when the next token begins with a space.
        """
        begun = text.text

        def word_or_end(new: str) -> bool:
            return " " in new or "\n" in new or self._stop.search(begun + new) is not None

        return word_or_end

    def allowed(self, text: ppl.Text) -> Callable[[tuple[int, ...]], Tensor]:
        """The mask of tokens that keep the text alive."""
        begun, codec = text.text, self.lm.codec

        def mask(new: tuple[int, ...]) -> Tensor:
            return self.automaton.mask(begun + codec.decode_after(new), self.lm)

        return mask


def whole(task: Task, masked: bool = False) -> ppl.Text:
    """Writes the text, then looks."""
    allowed = task.allowed(task.prompt) if masked else None
    law = task.lm(task.prompt, until=task.request.stop, max_tokens=MOST_TOKENS, allowed=allowed)
    text = task.prompt + pyro.sample("text", law)
    if not masked:
        ppl.condition(task.obeyed(text), "obeys")
    return text


def whole_masked(task: Task) -> ppl.Text:
    """Guide: every token keeps the text alive."""
    return whole(task, masked=True)


def stepwise(task: Task, masked: bool = False, ahead: bool = False) -> ppl.Text:
    """Writes word by word, and drops what can no longer obey."""
    text, hope = task.prompt, Ahead(task)
    for t in range(MOST_TOKENS):
        allowed = task.allowed(text) if masked else None
        law = task.lm(text, until=task.until(text), max_tokens=STEP_TOKENS, allowed=allowed)
        text = text + pyro.sample(f"step_{t}", law)
        if not masked:
            ppl.condition(task.alive(text), f"alive_{t}")
        if ahead:
            pyro.sample(f"ahead_{t}", hope(text), obs=True)
        if task.ended(text) or len(text) - task.prompt.prompt_length >= MOST_TOKENS:
            break
    if not masked:
        ppl.condition(task.obeyed(text), "obeys")
    return text


def twisted(task: Task) -> ppl.Text:
    """`stepwise`, with a twist after every word."""
    return stepwise(task, ahead=True)


def stepwise_masked(task: Task) -> ppl.Text:
    """Guide: every token keeps the text alive."""
    return stepwise(task, masked=True)


def tokenwise(task: Task, guided: bool = False) -> ppl.Text:
    """Writes token by token, and drops what can no longer obey."""
    text = task.prompt
    for t in range(MOST_TOKENS):
        law = task.lm(text, max_tokens=1)
        text = text + pyro.sample(f"token_{t}", ppl.AWRS(law, task.alive) if guided else law)
        if not guided:
            ppl.condition(task.alive(text), f"alive_{t}")
        if task.ended(text) or (guided and not task.alive(text)):
            break
    if not guided:
        ppl.condition(task.obeyed(text), "obeys")
    return text


def tokenwise_guided(task: Task) -> ppl.Text:
    """Guide: adaptive weighted rejection sampling."""
    return tokenwise(task, guided=True)


class Ahead(ppl.Verifier):
    """A twist, as a verifier whose last word counts: how likely is it to go on obediently?

    Of an unfinished text it is the mass of the tokens that keep it alive, times the probability
    that a word which is still required comes next, to a power that is smaller the more words may
    come before. Of a whole text it is 1, so that the target is what it is without.

    The mass of a set of tokens is p(v) / p(v | set) for any v in the set: two scores of one token,
    read from the state that the next draw needs anyway.

    Args:
        task: the request and its model.
    """

    name, meaning, aggregate, asks_models = "ahead", "value", "last", True

    def __init__(self, task: Task) -> None:
        self.task = task

    def judge(self, requests: Sequence[ppl.JudgeRequest]) -> list[Sequence[float]]:
        """One log-value a text, all scores in one batch."""
        asked = [self._asked(request) for request in requests]
        scores = iter(ask([score for parts in asked for score, _ in parts]))
        values: list[Sequence[float]] = []
        for parts in asked:
            log_value = math.fsum(weight * next(scores) for _, weight in parts)
            values.append([min(0.0, max(log_value, -20.0))])
        return values

    def _asked(self, request: ppl.JudgeRequest) -> list[tuple[ScoreRequest, float]]:
        """Scores and what each counts."""
        task, text = self.task, request.text
        if task.ended(text) or not task.alive(text):
            return []
        lm = task.lm
        mask = task.automaton.mask(text.text, lm)
        first = lm.continuation([int(mask.nonzero()[0, 0])])
        spent = request.ledger.for_verifier() if request.ledger else None

        def score(law: ppl.LMDistribution, value: ppl.Continuation) -> ScoreRequest:
            return ScoreRequest(lm, law.spec, value, request.label, spent)

        parts = [
            (score(lm(text, max_tokens=1), first), 1.0),
            (score(lm(text, max_tokens=1, allowed=mask), first), -1.0),
        ]
        place = task.automaton.read(text.text)
        word, before = task.automaton.wanted(place) if place else ("", 0)
        if word:
            wanted = lm.continuation(f" {word}")
            law = lm(text, max_tokens=len(wanted.tokens))
            parts.append((score(law, wanted), 1 / (1 + before)))
        return parts


@dataclass(frozen=True)
class Method:
    """A way to spend a budget of tokens on a request.

    Attributes:
        searcher: for a request, from how many texts the budget pays for.
        program, guide: what it runs.
        tokens_a_text: what a text costs, relative to an obedient one that is written once.
        least: texts below which it is not worth beginning.
        allowance: what the budget is multiplied by, where drawn tokens cost no pass of the model.
    """

    searcher: Callable[[int], Searcher]
    program: Callable[[Task], ppl.Text]
    guide: Callable[[Task], ppl.Text] | None = None
    tokens_a_text: float = 1.0
    least: int = 1
    allowance: float = 1.0


METHODS = {
    "best-of-N": Method(BestOfN, whole, tokens_a_text=1.3),
    "masks": Method(BestOfN, whole, whole_masked),
    "AWRS": Method(SMC, tokenwise, tokenwise_guided, tokens_a_text=5.0, allowance=5.0),
    "beam": Method(lambda n: BeamSearch(n // 4, 4, likelihood=0.5), stepwise, least=4),
    "SMC": Method(SMC, stepwise),
    "SMC, masks": Method(SMC, stepwise, stepwise_masked),
    "twisted SMC": Method(SMC, twisted, stepwise_masked),
    "MCTS": Method(lambda n: MCTS(n, leaves=4), stepwise),
}


@dataclass
class Spent:
    """What a method has found for one request, and what it cost."""

    texts: list[tuple[ppl.Text, float, float]]
    cost: ppl.Cost
    rounds: int = 0


def spend(method: Method, tasks: Sequence[Task], tokens: int, seeds: Sequence[int]) -> list[Spent]:
    """Runs a method on all tasks side by side, again and again while the tokens last.

    Args:
        method: what to run.
        tasks: the requests.
        tokens: how many each may generate; never exceeded. (AWRS draws most of its tokens from
            states that it has, so it may draw more of them.)
        seeds: one a task.

    Returns:
        For each task the texts that were finished, with their log-probability under the model and
        their log-weight. Texts that died before their end are not among them.
    """
    found = [Spent([], ppl.Cost()) for _ in tasks]
    tokens = round(tokens * method.allowance)
    while True:
        left = [tokens - spent.cost.lm_tokens for spent in found]
        sizes = [_size(method, task, n) for task, n in zip(tasks, left, strict=True)]
        going = [i for i, n in enumerate(sizes) if n > 0]
        if not going:
            return found
        searches = [
            method.searcher(sizes[i]).begin(
                method.program,
                tasks[i],
                guide=method.guide,
                seed=1000 * seeds[i] + found[i].rounds,
                budget=ppl.Budget(tokens=left[i]),
            )
            for i in going
        ]
        for i, posterior in zip(going, run_all(searches, collect=True), strict=True):
            _add(found[i], posterior)


def _size(method: Method, task: Task, left: int) -> int:
    """How many texts to begin with the tokens that are left."""
    texts = int(left / (task.expected * method.tokens_a_text))
    return texts if texts >= method.least else 0


def _add(found: Spent, posterior: ppl.Posterior | ppl.PPLError) -> None:
    if isinstance(posterior, ppl.errors.AllParticlesDeadError):
        posterior = posterior.posterior
    if not isinstance(posterior, ppl.Posterior):
        raise posterior
    found.rounds += 1
    found.cost += posterior.cost
    for sample in posterior.samples:
        if sample.text is not None and (sample.finished or sample.text.step_ends):
            log_prob = math.fsum(r.joint() for r in sample.records if r.kind == "choice")
            found.texts.append((sample.text, log_prob, sample.log_weight))
