"""Language models as distributions.

`lm(text, until=...)` is a Pyro distribution over `Continuation`s. A `LanguageModel` is what a
search needs: it draws (`session`) and scores (`score_batch`). A model whose logits are at hand is a
`ppl.lm.decode.LogitsModel`, which needs to provide no more than these.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Never

import pyro  # noqa: F401 (all of it before its parts: threads)
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from ppl.errors import NoAllowedTokenError, ObservationError, ProgramError, PromptError
from ppl.language import checks
from ppl.language.codec import Codec
from ppl.language.cost import Account
from ppl.language.foreign import OF_CALLS, OF_MODELS, refuse_unknown
from ppl.language.site import Draw, Entry, Site, Visit, made
from ppl.language.steps import StepRule, Until
from ppl.language.text import Continuation, Text
from ppl.language.thinking import Thinking
from ppl.lm.masks import Allowed, as_mask, fingerprint, kept
from ppl.lm.running import Drawn, RunningBatch, answers
from ppl.lm.sampling import Warp, warp_of
from ppl.lm.stopping import misfit
from ppl.lm.texts import TextMaker

__all__ = [
    "ContinueRequest",
    "Drawn",
    "LMDistribution",
    "LanguageModel",
    "RunningBatch",
    "ScoreRequest",
    "Spec",
    "Tokens",
]

Tokens = tuple[int, ...]


# Nobody changes one of these, or a request, but they are not frozen: one of each is made at every
# site, and that would take five times as long.
@dataclass(slots=True, unsafe_hash=True)
class Spec:
    """Everything that defines one continuation distribution, apart from the model."""

    tokens: Tokens
    rule: StepRule
    max_tokens: int | None
    warp: Warp
    allowed: Allowed

    def allowed_after(
        self, new: Sequence[int], label: str, size: int, codec: Codec
    ) -> Tensor | None:
        """Boolean mask `[size]` of the tokens that may follow `new`, None for all.

        Args:
            new: tokens of the continuation so far.
            label: who asks, for messages.
            size: number of logits the model has.
            codec: its tokenizer.
        """
        allowed = self.allowed
        if callable(allowed):
            try:
                allowed = allowed(tuple(new))
                if isinstance(allowed, Tensor):
                    allowed = allowed.clone()  # it may fill the same tensor for the next row
            except Exception as error:
                raise ProgramError(
                    f"{label}: allowed= raised {type(error).__name__}: {error} after {len(new)} "
                    "new tokens"
                ) from error
        if allowed is None:
            return None
        try:
            return as_mask(allowed, size, codec.size)
        except NoAllowedTokenError as error:
            message = f"{label}, after {len(new)} new tokens: {error}"
            raise NoAllowedTokenError(message) from None


@dataclass(slots=True, unsafe_hash=True)
class ContinueRequest:
    """Draw one continuation.

    Attributes:
        model: the language model.
        spec: what to draw from.
        key: 64-bit key of the uniforms (see `ppl.language.randomness`).
        label: who asks, for error messages ("site 'step_3' of particle 17").
        ledger: the account that pays, or None.
        under: another distribution of the same model after the same text, under which the
            log-probability of what is drawn is wanted too; it costs no pass of its own.
        law: the logits from which the first token is drawn are wanted too.
    """

    model: LanguageModel
    spec: Spec
    key: int
    label: str = "a call outside a search"
    ledger: Account | None = None
    under: Spec | None = None
    law: bool = False


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """Ask for the log-probability of a given continuation."""

    model: LanguageModel
    spec: Spec
    value: Continuation
    label: str = "a call outside a search"
    ledger: Account | None = None


_SETTINGS = ("until", "max_tokens", "temperature", "top_p", "top_k", "min_p", "allowed")


class LanguageModel(TextMaker):
    """A language model; call it on a `Text` to get a distribution over continuations.

    One of your own sets the attributes and implements `session` and `score_batch`; if it has
    logits, derive from `ppl.LogitsModel` instead.

    Attributes:
        name: shown in messages and used to tell models apart.
        codec: the tokenizer.
        context_length: most tokens of prompt and continuation together.
        parameters: how many it has, None where that is not known; for the price of a token.
        kv: what it keeps of keys and values, see `ppl.load`; None where that is not known.
        elsewhere: True where others do the work: nobody waits for it in `score_batch`, the running
            batch takes scores as well (see `RunningBatch`).
    """

    parameters: int | None = None
    kv: str | None = None
    elsewhere: bool = False

    @property
    def together(self) -> LanguageModel:
        """The model whose running batch takes the requests of this one: itself, or another one with
        which it has its rows computed."""
        return self

    def __call__(
        self,
        text: Text,
        *,
        until: Until | StepRule | Thinking = None,
        max_tokens: int | None = None,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int | None = None,
        min_p: float = 0.0,
        allowed: Allowed = None,
        **unknown: Any,
    ) -> LMDistribution:
        """The distribution over what this model appends to `text`.

        Args:
            text: what is there so far; must not be finished.
            until: where the continuation ends: a string, several, a regular expression, a callable
                on the new text, or a `ppl.Thinking` for models that think aloud. It also ends where
                the model ends the text.
            max_tokens: cut after this many tokens (`reason == "length"`). Without it, a step that
                never ends is an error once the context is full.
            temperature, top_p, top_k, min_p: warps of the next-token distribution, see
                `ppl.lm.sampling.Warp`.
            allowed: the tokens that may be drawn: ids, a boolean mask `[V]` (torch or numpy), or
                a callable from the new tokens to either. The distribution is renormalised over
                them, token by token.
            unknown: nothing; a name that another library uses is answered with ours.

        Raises:
            TypeError: `text` is no `Text`, or there is no such setting.
            TokenizerError: it was made with another tokenizer than this model's.
            PromptError: the text is finished, empty, or fills the context.
            ValueError: a setting is out of range.
        """
        if unknown:
            refuse_unknown("lm(text, ...)", unknown, _SETTINGS, OF_CALLS)
        if not isinstance(text, Text):
            raise TypeError(
                f"text: lm(...) continues a Text, got {type(text).__name__}: start with "
                "lm.prompt(string) or lm.chat(question)"
            )
        mine, made_with = self.codec.identity, text.codec.identity
        if made_with is not mine and made_with != mine:
            said = (text.text or text.prompt)[:40]
            raise mine.refused(made_with, f"{self.name}: the text {said!r}")
        if text.finished:
            raise PromptError(
                f"the text is finished, {self.name} cannot continue it: leave the loop when "
                "step.finished is true"
            )
        if not text.tokens:
            raise PromptError("the prompt is empty: a language model needs at least one token")
        if len(text.tokens) >= self.context_length:
            raise PromptError(
                f"the text has {len(text.tokens)} tokens, {self.name} holds "
                f"{self.context_length}: shorten the prompt, or leave the loop when "
                "len(text.tokens) is lm.context_length"
            )
        if max_tokens is not None and not (type(max_tokens) is int and max_tokens > 0):
            checks.count(max_tokens=max_tokens)
        rule = StepRule.of(until.at(text) if isinstance(until, Thinking) else until)
        warp = warp_of(temperature, top_p, top_k, min_p)
        spec = Spec(text.tokens, rule, max_tokens, warp, kept(allowed))
        return made(LMDistribution, self, text, spec)

    def next(self, *args: Any, **kwargs: Any) -> Any:
        """The law of the next token; see `ppl.LogitsModel.next`, which has it.

        Raises ProgramError: the model gives no logits.
        """
        raise ProgramError(
            f"{self.name} draws and scores, but gives no logits (it is behind a server), so the "
            "law of its next token cannot be read: load the model itself, or take "
            "lm(text, max_tokens=1)"
        )

    @abstractmethod
    def session(self) -> RunningBatch:
        """A running batch that requests join and leave."""

    def sample_batch(self, requests: Sequence[ContinueRequest]) -> list[Drawn | None]:
        """Draws all requests as one batch; None where the paying ledger ran out.

        What a server still works on for a ledger without time is given up, as when a search ends.
        """
        return answers(self.session(), requests)

    @abstractmethod
    def score_batch(self, requests: Sequence[ScoreRequest]) -> Sequence[float | None]:
        """Exact log-probabilities of continuations, `-inf` where a draw could not return them; None
        where the paying ledger ran out of time, which only what is `elsewhere` looks at."""

    def support(self, distribution: LMDistribution) -> list[tuple[Continuation, float]]:
        """Every continuation that `distribution` can draw, with its log-probability.

        Raises ProgramError unless the model can be enumerated, as a `TableLM` can.
        """
        raise ProgramError(f"only a TableLM can be enumerated, not {self!r}")

    if not TYPE_CHECKING:  # where types are checked, there are no other attributes

        def __getattr__(self, name: str) -> Never:
            """Raises AttributeError, for a name of another library with what to do here."""
            said = f"{type(self).__name__!r} object has no attribute {name!r}"
            hint = OF_MODELS.get(name)
            raise AttributeError(f"{said}: {hint.format(name=name)}" if hint else said)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"


class LMDistribution(Site, TorchDistribution):  # type: ignore[misc]
    """The law of the next continuation of a text.

    `log_prob(value)` is the sum of the warped, renormalised token log-probabilities up to and
    including the token at which the continuation stopped: exactly the probability that `sample`
    returns `value`. A value that `sample` could not return has log-probability minus infinity.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012 (the name is torch's)
    has_rsample = False
    keeps = False  # whether the law of the first token is wanted with every draw
    _logits: Tensor | None = None
    # All that torch's constructor would set of every object, for as long as all else takes here.
    _batch_shape = _event_shape = torch.Size()
    _validate_args = False

    def __init__(self, model: LanguageModel, text: Text, spec: Spec) -> None:
        self.model, self.text, self.spec = model, text, spec

    def respecified(self, spec: Spec) -> LMDistribution:
        """The same law with other settings."""
        return type(self)(self.model, self.text, spec)

    def sample(self, sample_shape: torch.Size | Sequence[int] = ()) -> Continuation:  # type: ignore[override]
        """One continuation, keyed by torch's global generator. Inside a search, the search's
        own keyed randomness is used and all particles' requests run as one batch."""
        if len(sample_shape):
            raise ValueError("lm(...) draws one continuation; use a searcher for many")
        low, high = torch.randint(0, 2**32, (2,), dtype=torch.int64, device="cpu").tolist()
        drawn = self.model.sample_batch(
            [ContinueRequest(self.model, self.spec, (high << 32) | low)]
        )[0]
        assert drawn is not None  # without a ledger nothing runs out
        if drawn.log_prob == -math.inf:  # in a search, whoever came here is dead
            raise NoAllowedTokenError(
                f"{self!r}: none of the tokens that allowed= admits has any probability"
            )
        return drawn.value

    def log_prob(self, value: Continuation) -> Tensor:
        """Scalar float64 tensor, see the class."""
        self.check(value)
        self.check_kv(value, "a continuation")
        score = self.model.score_batch([ScoreRequest(self.model, self.spec, value)])[0]
        assert score is not None  # without a ledger nothing runs out
        return torch.tensor(score, dtype=torch.float64, device="cpu")

    def draw(self, visit: Visit, msg: Any, key: int, target: Any = None) -> Draw:
        """One row of the batch. A `target` of the same model after the same text costs no pass."""
        spec = self.spec
        same = isinstance(target, LMDistribution) and target.model is self.model
        under = target.spec if same and target.spec.tokens == spec.tokens else None
        greedy = visit.greedy
        if greedy:
            under = spec if target is None else under
            spec = replace(spec, warp=Warp(temperature=0.0))
        ledger = visit.ledger.of(self.model)
        request = ContinueRequest(self.model, spec, key, visit.label, ledger, under, self.keeps)
        drawn: Drawn = visit.ask(request)
        if self.keeps:
            self.seen(drawn)
        if greedy and target is None:  # the choice is the model's, at its own probability
            return drawn.value, drawn.log_prob_under, None
        return drawn.value, drawn.log_prob, drawn.log_prob_under

    def seen(self, drawn: Drawn) -> None:
        """Keeps the law that came with a draw."""
        self._logits = drawn.logits

    def score(self, visit: Visit, msg: Any, value: Any) -> float:
        """What `log_prob` gives, in the batch of all particles."""
        whose = "" if msg["is_observed"] else "the guide's value at "
        self.check(value, whose + visit.label)
        log_prob: float = visit.ask(
            ScoreRequest(self.model, self.spec, value, visit.label, visit.ledger)
        )
        return log_prob

    def weigh(self, visit: Visit, msg: Any, entry: Entry) -> float:
        """As for all sites; what no draw could be is an error, not a zero."""
        self.check_observed(entry.value, visit.label)
        return super().weigh(visit, msg, entry)

    def check_observed(self, value: object, label: str) -> None:
        """Raises ObservationError unless a draw could end where `value` does."""
        self.check(value, label)
        self.check_kv(value, label)
        wrong = misfit(self.model.codec, self.spec, self.model.context_length, value, label)
        if wrong is not None:
            raise ObservationError(f"{label}: obs={value!s:.60} {wrong}")

    def passed(self, visit: Visit, entry: Entry) -> None:
        """The visitor's text is now this one with the value at its end."""
        visit.wrote(self.text, entry.value)

    def support(self) -> list[tuple[Any, float]]:
        """Every continuation with its log-probability; only a `TableLM` can."""
        return list(self.model.support(self))

    def check(self, value: object, label: str = "a continuation") -> None:
        """Raises ObservationError unless `value` is something this distribution speaks about, and
        TokenizerError if it was made with another tokenizer."""
        if not isinstance(value, Continuation):
            raise ObservationError(
                f"{label}: a language model is observed with a Continuation, got "
                f"{type(value).__name__}; make one with lm.continuation(string)"
            )
        mine = self.model.codec.identity
        made_with = value.made_with
        if made_with is not mine and made_with is not None and made_with != mine:
            raise mine.refused(made_with, f"{label}: the continuation {value.text[:40]!r}")

    def check_kv(self, value: object, label: str) -> None:
        """Raises ObservationError if the value was drawn from a model that keeps other keys and
        values: that is a draw of another law. A guide may be such a model: what it proposes is
        weighed by both laws."""
        mine = self.model.kv
        if not isinstance(value, Continuation) or None in (mine, value.kv):
            return
        if value.kv != mine:
            raise ObservationError(
                f"{label}: {value.text[:40]!r} was drawn with kv={value.kv!r}, and is to be scored "
                f"by {self.model.name} with kv={mine!r}, which is another law: score it with the "
                "model that drew it; or make it by hand, lm.continuation(value.tokens), if a score "
                "under both is meant"
            )

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> LMDistribution:
        """Only the trivial expansion exists: continuations do not live in tensors."""
        if len(batch_shape):
            raise ValueError("lm(...) cannot be used inside a vectorised pyro.plate")
        return self

    @property
    def fingerprint(self) -> tuple[object, ...]:
        """What identifies the distribution when a program is replayed."""
        s, name = self.spec, self.model.name
        return (name, s.tokens, str(s.rule), s.max_tokens, s.warp, *fingerprint(s.allowed))

    def __repr__(self) -> str:
        return f"lm({self.model.name}, {len(self.spec.tokens)} tokens, until={self.spec.rule})"
