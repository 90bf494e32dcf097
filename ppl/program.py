"""Particles: one running copy of a program that can be suspended, recorded and forked.

A particle runs in a greenlet with one Pyro messenger at the bottom of its handler stack. At a
language model or verifier site it parks its request; at a checkpoint it parks itself. Everything it
was told is in its record, so a fork is a new greenlet that is fed the record: no model is asked
again. Programs must therefore be deterministic given their choices, which replay checks.

A checkpoint is a maximal run of observe, factor and twist statements: nothing random happens inside
such a run, so comparing particles once, after it, loses nothing.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from greenlet import GreenletExit, getcurrent, greenlet
from pyro.distributions.util import scale_and_mask
from pyro.poutine import runtime
from pyro.poutine.messenger import Messenger
from torch.distributions.utils import lazy_property

from ppl.cost import Ledger
from ppl.errors import (
    DuplicateSiteError,
    GuideError,
    NonDeterministicProgramError,
    ObservationError,
    PPLError,
    ProgramError,
    WeightError,
)
from ppl.lm.base import ContinueRequest, Drawn, LMDistribution, ScoreRequest
from ppl.primitives import TwistUnit
from ppl.randomness import key
from ppl.text import Continuation, Text
from ppl.verdict import JudgeRequest, Verdict

Program = Callable[..., Any]
Request = ContinueRequest | ScoreRequest | JudgeRequest
Kind = Literal["choice", "observed", "twist", "deterministic"]


@dataclass(slots=True)
class Record:
    """What happened at one site.

    Attributes:
        name: the site.
        kind: a choice is replayed; an observation's weight is; a deterministic value is neither.
        value: the value of the site.
        log_likelihood: log-probability of what was observed here (0 for a choice).
        log_ratio: log model minus log proposal of a choice (0 where the model proposed).
        log_prior: log-probability of the choice under the model, None if not computed yet.
        log_scores: step scores of a verdict, else None.
        fingerprint: what the distribution was, compared on replay.
    """

    name: str
    kind: Kind
    value: Any
    log_likelihood: float = 0.0
    log_ratio: float = 0.0
    log_prior: float | None = None
    log_scores: tuple[float, ...] | None = None
    _distribution: Any = None
    _fingerprint: tuple[object, ...] | None = None

    @property
    def fingerprint(self) -> tuple[object, ...]:
        """Computed when first needed: most particles are never replayed."""
        if self._fingerprint is None:
            self._fingerprint = fingerprint(self._distribution)
        return self._fingerprint

    def prior(self) -> float:
        """`log_prior`, computed now if it was not."""
        if self.log_prior is None:
            self.log_prior = _site_log_prob(self._distribution, self.value)
        return self.log_prior

    def __getstate__(self) -> tuple[Any, ...]:
        self._fingerprint = self.fingerprint
        if self.kind == "choice":
            self.prior()
        fields = ("name", "kind", "value", "log_likelihood", "log_ratio", "log_prior", "log_scores")
        return (*(getattr(self, name) for name in fields), None, self._fingerprint)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        for name, value in zip(self.__slots__, state, strict=True):
            setattr(self, name, value)


def fingerprint(distribution: Any) -> tuple[object, ...]:
    """What identifies a distribution: its class and the exact values of its parameters."""
    own = getattr(distribution, "fingerprint", None)
    if own is not None:
        return tuple(own)
    parts: list[object] = [type(distribution).__name__]
    kind = type(distribution)
    # probs and logits are computed from each other when first asked for, the given one is _param.
    names = [
        n
        for n in sorted(getattr(distribution, "arg_constraints", ()))
        if not isinstance(getattr(kind, n, None), lazy_property)
    ]
    for name in [*names, "_param"]:
        value = distribution.__dict__.get(name)
        if isinstance(value, torch.Tensor):
            parts.append((name, tuple(value.shape), value.detach().cpu().numpy().tobytes()))
    base = getattr(distribution, "base_dist", None)
    if base is not None:
        parts.append(fingerprint(base))
    return tuple(parts)


def _site_log_prob(
    fn: Any,
    value: Any,
    scale: Any = 1.0,
    mask: Any = None,
    *,
    args: Any = (),
    kwargs: Any = None,
) -> float:
    log_prob = fn.log_prob(value, *args, **(kwargs or {}))
    if isinstance(scale, float) and scale == 1.0 and mask is None:
        return float(log_prob.sum())
    return float(scale_and_mask(log_prob, scale, mask).sum())


@dataclass(frozen=True, slots=True)
class Task:
    """A program with its arguments: what all particles of one search run."""

    program: Program
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    guide: Program | None = None


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The particle waits: after a checkpoint, at its end, or dead."""

    finished: bool = False
    result: Any = None
    dead_at: str | None = None


class _Coroutine:
    """A function in a greenlet that takes its part of Pyro's handler stack along."""

    def __init__(self, function: Callable[[], Any], messenger: Messenger) -> None:
        self._greenlet = greenlet(lambda _: function())
        self._stack: list[Messenger] = [messenger]

    def resume(self, value: Any) -> Any:
        outside = runtime._PYRO_STACK[:]
        runtime._PYRO_STACK[:] = self._stack
        self._greenlet.parent = getcurrent()
        try:
            return self._greenlet.switch(value)
        finally:
            self._stack = runtime._PYRO_STACK[:]
            runtime._PYRO_STACK[:] = outside

    def close(self) -> None:
        """Unwinds the function where it waits (its `finally` blocks run)."""
        if self._greenlet and not self._greenlet.dead:
            outside = runtime._PYRO_STACK[:]
            runtime._PYRO_STACK[:] = self._stack
            self._greenlet.parent = getcurrent()
            with contextlib.suppress(GreenletExit):
                self._greenlet.throw(GreenletExit)
            runtime._PYRO_STACK[:] = outside


def _park(event: Any) -> Any:
    """Hands `event` to whoever resumed this greenlet and waits for the reply."""
    parent = getcurrent().parent
    assert parent is not None
    return parent.switch(event)


class Particle:
    """A running copy of a program.

    Args:
        task: what to run.
        history: records of the choices already made; replayed without asking any model.
        seed: the search's seed.
        identity: number of the tree node whose segment this particle is about to run; with the
            seed and the site it keys all randomness.
        ledger: the account that pays.
    """

    def __init__(
        self, task: Task, history: list[Record], *, seed: int, identity: int, ledger: Ledger
    ) -> None:
        self.task, self.seed, self.ledger = task, seed, ledger
        self._replay = history
        self._position = 0
        self._names: dict[str, Any] = {}
        self._numbers: dict[str, int] = {}
        self.text: Text | None = None
        self._model = _Coroutine(self._run, _ModelMessenger(self))
        self._guide = _Guide(self) if task.guide is not None else None
        self.begin(identity)

    def begin(self, identity: int) -> None:
        """Starts the next segment, as tree node `identity`."""
        self.identity = identity
        self.records: list[Record] = []
        self.log_twist = 0.0
        self.at_checkpoint = False
        self.site = "the start"

    def advance(self, reply: Any) -> Request | Checkpoint:
        """Runs on with the reply to the last request until the next request or checkpoint."""
        try:
            event: Request | Checkpoint = self._model.resume(reply)
        except PPLError:
            raise
        except Exception as error:
            raise ProgramError(
                f"the program raised {type(error).__name__}: {error} (particle {self.identity}, "
                f"after {self.site})"
            ) from error
        return event

    def close(self) -> None:
        """Ends the particle where it waits."""
        self._model.close()
        if self._guide is not None:
            self._guide.close()

    @property
    def label(self) -> str:
        """Who and where, for messages."""
        return f"{self.site} of particle {self.identity}"

    def next_number(self, word: str) -> int:
        """0, 1, 2, ... for sites that are numbered automatically."""
        self._numbers[word] = self._numbers.get(word, -1) + 1
        return self._numbers[word]

    def _run(self) -> Checkpoint:
        result = self.task.program(*self.task.args, **self.task.kwargs)
        if self._position < len(self._replay):
            missing = self._replay[self._position].name
            raise NonDeterministicProgramError(
                f"on replay the program of particle {self.identity} ended before site "
                f"{missing!r}, which its record has; {_DETERMINISM}"
            )
        if self._guide is not None:
            self._guide.check_used()
        self.log_twist = 0.0  # a twist ends with the program
        return Checkpoint(finished=True, result=result)

    # -- sites, called by the messengers from inside the program -----------------------------

    def visit(self, msg: Any) -> None:
        """One sample statement of the program."""
        name: str = msg["name"]
        self.site = f"site {name!r}"
        if name in self._names:
            raise DuplicateSiteError(
                f"site {name!r} occurs twice in particle {self.identity}; number the sites of a "
                "loop, as in f'step_{t}'"
            )
        if self._position < len(self._replay):
            self._repeat(msg)
        elif msg["infer"].get("_deterministic"):
            self.records.append(Record(name, "deterministic", msg["value"]))
        elif isinstance(msg["fn"], TwistUnit):
            self._observe(Record(name, "twist", msg["fn"].log_value, _distribution=msg["fn"]))
            self.log_twist += msg["fn"].log_value
        elif msg["is_observed"]:
            self._observe(self._observation(msg))
        else:
            if self.at_checkpoint:
                _park(Checkpoint())
                self.site = f"site {name!r}"
            record = self._choose(msg)
            self.records.append(record)
            msg["value"] = record.value
            if record.log_ratio == -math.inf:  # the guide proposed what the model rules out
                _park(Checkpoint(dead_at=name))
        if isinstance(msg["fn"], LMDistribution):
            self.text = msg["fn"].text + msg["value"]
        self._names[name] = msg["value"]
        msg["done"] = True

    def _observe(self, record: Record) -> None:
        self.records.append(record)
        self.at_checkpoint = True
        if record.log_likelihood == -math.inf:
            _park(Checkpoint(dead_at=record.name))

    def _repeat(self, msg: Any) -> None:
        """Feeds a site from the record, checking that it is the same site."""
        record = self._replay[self._position]
        self._position += 1
        if record.name != msg["name"]:
            raise NonDeterministicProgramError(
                f"on replay particle {self.identity} came to site {msg['name']!r} where its record "
                f"has {record.name!r}; {_DETERMINISM}"
            )
        if record.kind == "deterministic":
            return
        if fingerprint(msg["fn"]) != record.fingerprint:
            raise NonDeterministicProgramError(
                f"on replay site {record.name!r} of particle {self.identity} has another "
                f"distribution than in its record; {_DETERMINISM}"
            )
        if isinstance(msg["fn"], Verdict) and record.log_scores is not None:
            msg["fn"].settle(record.log_scores)
            if record.kind == "observed":
                msg["fn"].observe(record.value)
        msg["value"] = record.value if record.kind == "choice" else msg["value"]

    def _observation(self, msg: Any) -> Record:
        fn, value = msg["fn"], msg["value"]
        record = Record(msg["name"], "observed", value, _distribution=fn)
        if isinstance(fn, LMDistribution):
            fn.check(value, self.label)
            log_prob = self._score(fn, value)
        elif isinstance(fn, Verdict):
            record.value = fn.check(value, self.label)
            record.log_scores = self._judge(fn)
            log_prob = fn.observe(record.value)
        else:
            try:
                log_prob = _site_log_prob(
                    fn, value, msg["scale"], msg["mask"], args=msg["args"], kwargs=msg["kwargs"]
                )
            except (ValueError, TypeError, AttributeError) as error:
                raise _observation_error(self.label, fn, value, error) from error
        if isinstance(fn, LMDistribution | Verdict):
            log_prob *= _factor(msg)
        record.log_likelihood = self._finite(log_prob, fn)
        return record

    def _choose(self, msg: Any) -> Record:
        name, fn = msg["name"], msg["fn"]
        proposal = self._guide.propose(name) if self._guide is not None else None
        if proposal is None:
            value, log_prior = self.draw(msg)
            record = Record(name, "choice", value, log_prior=log_prior, _distribution=fn)
        else:
            value, log_q = proposal
            log_p = self._log_prior(msg, value)
            ratio = self._finite(log_p - log_q, fn)
            record = Record(
                name, "choice", value, log_ratio=ratio, log_prior=log_p, _distribution=fn
            )
        if _reweighted(msg):  # poutine.scale or mask around a choice: the target's share of it
            if isinstance(fn, LMDistribution | Verdict):
                scaled = record.prior() * _factor(msg)
            else:
                scaled = _site_log_prob(
                    fn,
                    record.value,
                    msg["scale"],
                    msg["mask"],
                    args=msg["args"],
                    kwargs=msg["kwargs"],
                )
            record.log_ratio += scaled - record.prior()
        return record

    def _log_prior(self, msg: Any, value: Any) -> float:
        if isinstance(msg["fn"], LMDistribution):
            msg["fn"].check(value, f"the guide's value at {self.label}")
            return self._score(msg["fn"], value)
        return _site_log_prob(msg["fn"], value, args=msg["args"], kwargs=msg["kwargs"])

    def draw(self, msg: Any, role: str = "model") -> tuple[Any, float | None]:
        """A keyed draw from the site's distribution, with its log-probability where it is free."""
        fn = msg["fn"]
        site_key = key(self.seed, self.identity, msg["name"], role)
        if isinstance(fn, LMDistribution):
            drawn: Drawn = _park(
                ContinueRequest(fn.model, fn.spec, site_key, self.label, self.ledger)
            )
            return drawn.value, drawn.log_prob
        if isinstance(fn, Verdict):
            self._judge(fn)
        # torch's generator is global; seeding it here makes the draw a function of the key alone.
        torch.default_generator.manual_seed(site_key & (2**63 - 1))
        return fn(*msg["args"], **msg["kwargs"]), None

    def _score(self, fn: LMDistribution, value: Continuation) -> float:
        log_prob: float = _park(ScoreRequest(fn.model, fn.spec, value, self.label, self.ledger))
        return log_prob

    def _judge(self, fn: Verdict) -> tuple[float, ...]:
        log_scores: tuple[float, ...] = _park(fn.request(self.label, self.ledger))
        fn.settle(log_scores)
        return log_scores

    def _finite(self, log_prob: float, fn: Any) -> float:
        if math.isnan(log_prob) or log_prob == math.inf:
            raise WeightError(
                f"{self.label}: {type(fn).__name__} gives log-probability {log_prob}; a weight is "
                "a number or minus infinity"
            )
        return log_prob


_DETERMINISM = (
    "programs must be deterministic given their choices: draw randomness with pyro.sample, and "
    "keep clocks, global state and sets out of the control flow"
)


def _reweighted(msg: Any) -> bool:
    plain = isinstance(msg["scale"], float) and msg["scale"] == 1.0
    return not plain or msg["mask"] is not None


def _factor(msg: Any) -> float:
    """The scale of a scalar site; a mask of False makes it zero."""
    mask = msg["mask"]
    return float(msg["scale"]) * (1.0 if mask is None else float(mask))


def _observation_error(label: str, fn: Any, value: Any, error: Exception) -> PPLError:
    return ObservationError(
        f"{label}: {type(fn).__name__} cannot be observed with {value!r} "
        f"({type(error).__name__}: {error}); give obs= a value of its support"
    )


class _ModelMessenger(Messenger):  # type: ignore[misc]
    """The bottom of a particle's handler stack."""

    def __init__(self, particle: Particle) -> None:
        super().__init__()
        self.particle = particle

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["done"]:  # an inner handler (replay) may have decided already
            self.particle.visit(msg)


def current_particle() -> Particle | None:
    """The particle whose program is running, or None outside a search."""
    stack = runtime._PYRO_STACK
    bottom = stack[0] if stack else None
    return bottom.particle if isinstance(bottom, _ModelMessenger) else None


@dataclass(frozen=True, slots=True)
class _Offer:
    """A guide waits at a site that has no value yet."""

    name: str


@dataclass(frozen=True, slots=True)
class _Proposal:
    value: Any
    log_prob: float


class _Guide(Messenger):  # type: ignore[misc]
    """A guide running beside the model, one site ahead of what the model asks for.

    Sites are matched by name, as in Pyro; sites the guide does not have are drawn from the model.
    """

    def __init__(self, particle: Particle) -> None:
        super().__init__()
        self._particle = particle
        self._coroutine = _Coroutine(self._run, self)
        self._offer: _Offer | None = None
        self._started = self._ended = self._used = False

    def _run(self) -> None:
        task = self._particle.task
        assert task.guide is not None
        task.guide(*task.args, **task.kwargs)

    def propose(self, name: str) -> tuple[Any, float] | None:
        """The guide's draw for the site and its log-probability, None if it has no such site."""
        if self._offer is None and not self._ended:
            self._next(None)
        if self._offer is None or self._offer.name != name:
            return None
        event = self._coroutine.resume(True)
        while not isinstance(event, _Proposal):
            event = self._coroutine.resume(_park(event))  # a model call made by the guide
        self._offer, self._used = None, True
        return event.value, event.log_prob

    def _next(self, value: Any) -> None:
        event = self._coroutine.resume(value)
        self._started = True
        if isinstance(event, _Offer):
            self._offer = event
        else:
            self._ended = True

    def check_used(self) -> None:
        """A guide none of whose sites exists in the model is a mistake."""
        if self._offer is not None and not self._used and not self._particle._replay:
            raise GuideError(
                f"the guide proposes site {self._offer.name!r}, but no site of the guide exists "
                "in the model: give them the same names"
            )

    def close(self) -> None:
        self._coroutine.close()

    def _pyro_sample(self, msg: Any) -> None:
        particle, name = self._particle, msg["name"]
        if msg["done"] or msg["infer"].get("_deterministic"):
            return
        if msg["is_observed"]:
            raise GuideError(
                f"the guide observes site {name!r}: observations belong to the model, a guide only "
                "proposes"
            )
        if name in particle._names:  # made in an earlier life of this particle
            msg["value"] = particle._names[name]
        else:
            _park(_Offer(name))
            value, log_q = particle.draw(msg, role="guide")
            msg["value"] = value
            if log_q is None:
                log_q = _site_log_prob(msg["fn"], value, args=msg["args"], kwargs=msg["kwargs"])
            _park(_Proposal(value, log_q))
        msg["done"] = True
