"""Particles: one running copy of a program that can be suspended, recorded and forked.

A particle runs in a greenlet with one Pyro messenger at the bottom of its handler stack. At a
language model or verifier site it parks its request; at a checkpoint it parks itself. Everything it
was told is in its record, so a fork is a new greenlet that is fed the record: no model is asked
again. Programs must therefore be deterministic given their choices, which replay checks.

A checkpoint is a maximal run of observe, factor and twist statements: nothing random happens inside
such a run, so comparing particles once, after it, loses nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from threading import get_ident
from time import perf_counter
from typing import Any

import torch
from pyro.poutine import runtime
from pyro.poutine.messenger import Messenger

from ppl.errors import (
    DuplicateSiteError,
    NonDeterministicProgramError,
    ObservationError,
    PPLError,
    ProgramError,
    WeightError,
)
from ppl.language.cost import Ledger
from ppl.language.primitives import TwistUnit
from ppl.language.randomness import key
from ppl.language.text import Continuation, Text
from ppl.lm.base import (
    ContinueRequest,
    Drawn,
    LanguageModel,
    LMDistribution,
    ScoreRequest,
    Spec,
)
from ppl.lm.sampling import Warp
from ppl.runtime.awrs import AWRS
from ppl.runtime.coroutine import PAUSE, Coroutine, Slice, park
from ppl.runtime.guide import Guide
from ppl.runtime.record import Record, fingerprint, site_log_prob
from ppl.runtime.verdict import JudgeRequest, Verdict, own_verdicts

Program = Callable[..., Any]
Request = ContinueRequest | ScoreRequest | JudgeRequest
# From a site's name and distribution: the value to take in place of a draw, None to draw.
Decide = Callable[[str, Any], Any]


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
        self.thread = get_ident()  # greenlets belong to it
        self._replay = history
        self._position = 0
        self._names: dict[str, Any] = {}
        self._numbers: dict[str, int] = {}
        self.text: Text | None = None
        self._model = Coroutine(self._run, _ModelMessenger(self))
        self._guide = Guide(self) if task.guide is not None else None
        self.begin(identity)

    def begin(self, identity: int) -> None:
        """Starts the next segment, as tree node `identity`."""
        self.identity = identity
        self.records: list[Record] = []
        self.forced: Mapping[str, Any] | None = None  # values to take instead of drawing
        self.decide: Decide | None = None  # asked before a choice is drawn
        self.greedy = False  # language models give their most likely tokens
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
        with own_verdicts():
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
        if not hasattr(msg["fn"], "log_prob"):
            raise ProgramError(
                f"{self.label}: pyro.sample needs a distribution, got {type(msg['fn']).__name__}; "
                "call a model or verifier on a text, as in prm(text)"
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
                park(Checkpoint())
                self.site = f"site {name!r}"
            record = self._choose(msg)
            self.records.append(record)
            msg["value"] = record.value
            if -math.inf in (
                record.log_ratio,
                record.log_prior,
            ):  # the guide proposed what the model rules out
                park(Checkpoint(dead_at=name))
        if isinstance(msg["fn"], LMDistribution):
            self.text = msg["fn"].text + msg["value"]
        self._names[name] = msg["value"]
        msg["done"] = True

    def _observe(self, record: Record) -> None:
        self.records.append(record)
        self.at_checkpoint = True
        if record.log_likelihood == -math.inf:
            park(Checkpoint(dead_at=record.name))

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
                log_prob = site_log_prob(
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
        proposal = self._guide.propose(name, fn) if self._guide is not None else None
        if proposal is None:
            proposal = self.decided(name, fn)
        if proposal is None:
            value, log_prior, _ = self.draw(msg)
            record = Record(name, "choice", value, log_prior=log_prior, _distribution=fn)
        else:
            value, log_q, free = proposal
            log_p = self._log_prior(msg, value) if free is None else free
            ratio = self._finite(log_p - log_q, fn)
            record = Record(
                name,
                "choice",
                value,
                log_ratio=ratio,
                log_prior=log_p,
                log_proposal=log_q,
                _distribution=fn,
            )
        if _reweighted(msg):  # poutine.scale or mask around a choice: the target's share of it
            if isinstance(fn, LMDistribution | Verdict):
                scaled = record.prior() * _factor(msg)
            else:
                scaled = site_log_prob(
                    fn,
                    record.value,
                    msg["scale"],
                    msg["mask"],
                    args=msg["args"],
                    kwargs=msg["kwargs"],
                )
            record.log_ratio += scaled - record.prior()
        return record

    def decided(self, name: str, fn: Any) -> tuple[Any, float, None] | None:
        """The value that the searcher takes at a choice, proposed by a point mass; None to draw."""
        if self.decide is None or isinstance(fn, LMDistribution | Verdict | AWRS):
            return None
        value = self.decide(name, fn)
        return None if value is None else (value, 0.0, None)

    def _log_prior(self, msg: Any, value: Any) -> float:
        if isinstance(msg["fn"], LMDistribution):
            msg["fn"].check(value, f"the guide's value at {self.label}")
            return self._score(msg["fn"], value)
        return site_log_prob(msg["fn"], value, args=msg["args"], kwargs=msg["kwargs"])

    def draw(
        self, msg: Any, role: str = "model", target: Any = None
    ) -> tuple[Any, float | None, float | None]:
        """A keyed draw from the site's distribution.

        Returns:
            The value; its log-probability, and that under the distribution `target`, each None
            where it is not free.
        """
        if self.forced is not None:
            return *self._take(msg), None
        fn = msg["fn"]
        site_key = key(self.seed, self.identity, msg["name"], role)
        if isinstance(fn, LMDistribution):
            # A guide that continues the same text as the model does gets both from one pass.
            spec = fn.spec
            same = isinstance(target, LMDistribution) and target.model is fn.model
            under = target.spec if same and target.spec.tokens == spec.tokens else None
            if self.greedy:
                under = spec if target is None else under
                spec = replace(spec, warp=Warp(temperature=0.0))
            drawn: Drawn = park(
                ContinueRequest(fn.model, spec, site_key, self.label, self.ledger, under)
            )
            if self.greedy and target is None:  # the choice is the model's, at its own probability
                return drawn.value, drawn.log_prob_under, None
            return drawn.value, drawn.log_prob, drawn.log_prob_under
        if isinstance(fn, AWRS):
            return *fn.draw(partial(self._candidate, fn.proposal.model, site_key)), None
        if isinstance(fn, Verdict):
            self._judge(fn)
        # torch's generator is global; seeding it here makes the draw a function of the key alone.
        torch.default_generator.manual_seed(site_key & (2**63 - 1))
        return fn(*msg["args"], **msg["kwargs"]), None, None

    def _candidate(self, model: LanguageModel, site_key: int, spec: Spec, number: int) -> Drawn:
        drawn: Drawn = park(
            ContinueRequest(model, spec, key(site_key, number), self.label, self.ledger)
        )
        return drawn

    def _take(self, msg: Any) -> tuple[Any, float]:
        """The forced value of the site and its log-probability; the particle dies if there is no
        such value, or the site could not have it."""
        assert self.forced is not None
        name = msg["name"]
        if name in self.forced:
            try:
                log_prob = self._log_prior(msg, self.forced[name])
            except (ObservationError, ValueError, TypeError, AttributeError):
                log_prob = -math.inf  # a value of another kind of site
            if log_prob > -math.inf:
                return self.forced[name], log_prob
        park(Checkpoint(dead_at=name))
        raise AssertionError("a dead particle is never resumed")

    def _score(self, fn: LMDistribution, value: Continuation) -> float:
        log_prob: float = park(ScoreRequest(fn.model, fn.spec, value, self.label, self.ledger))
        return log_prob

    def _judge(self, fn: Verdict) -> tuple[float, ...]:
        log_scores: tuple[float, ...] = park(
            fn.request(self.label, self.ledger, key(self.seed, self.identity, self.site, "judge"))
        )
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
            if perf_counter() > Slice.ends:  # programs without a model let others go on here
                park(PAUSE)
            self.particle.visit(msg)


def current_particle() -> Particle | None:
    """The particle whose program is running, or None outside a search."""
    stack = runtime._PYRO_STACK
    bottom = stack[0] if stack else None
    return bottom.particle if isinstance(bottom, _ModelMessenger) else None
