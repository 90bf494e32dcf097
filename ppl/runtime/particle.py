"""Particles: one running copy of a program that can be suspended, recorded and forked.

A particle runs in a greenlet and is the Pyro messenger at the bottom of its handler stack. Where a
site asks a model it parks the request; at a checkpoint it parks itself. Everything it was told is
in its record, so a fork is a new greenlet that is fed the record: no model is asked again. Programs
must therefore be deterministic given their choices, which replay checks.

A checkpoint is a maximal run of observe, factor and twist statements: nothing random happens inside
such a run, so comparing particles once, after it, loses nothing.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import pyro  # noqa: F401 (all of it before its parts: threads)
from pyro.distributions.distribution import COERCIONS
from pyro.poutine.messenger import Messenger

from ppl.errors import (
    DuplicateSiteError,
    NonDeterministicProgramError,
    ObservationError,
    PPLError,
    ProgramError,
    WeightError,
)
from ppl.language.cost import Account
from ppl.language.errand import Errand
from ppl.language.primitives import in_order
from ppl.language.randomness import key
from ppl.language.site import Draw, Site
from ppl.language.text import Continuation, Text
from ppl.lm.base import ContinueRequest, LMDistribution, ScoreRequest
from ppl.runtime.branches import Several, run_branches
from ppl.runtime.called import Calls
from ppl.runtime.coroutine import PAUSE, Coroutine, Slice, park, this_thread
from ppl.runtime.factor import light
from ppl.runtime.guide import Guide, Proposal
from ppl.runtime.program import Program, Task, check_result
from ppl.runtime.record import Record, decides, fingerprint, site_log_prob
from ppl.runtime.site import site_of
from ppl.runtime.verdict import JudgeRequest, own_verdicts

__all__ = ["Checkpoint", "Decide", "Particle", "Program", "Request", "Segment", "Task"]

Request = ContinueRequest | ScoreRequest | JudgeRequest | Errand | Several
# From a site's name and distribution: the value to take in place of a draw, None to draw.
Decide = Callable[[str, Any], Any]


@dataclass(frozen=True, slots=True)
class Segment:
    """How the choices up to the next checkpoint are made.

    Attributes:
        forced: values to take by site name instead of drawing; None to draw.
        decide: asked before a choice is drawn.
        greedy: language models give their most likely tokens.
        power: language models draw every token with its probability to this power, renormalised.
        alone: no draw is made together with others.
    """

    forced: Mapping[str, Any] | None = None
    decide: Decide | None = None
    greedy: bool = False
    power: float = 1.0
    alone: bool = False


DRAWN = Segment()

COERCIONS.append(light)  # Pyro asks it before it makes a distribution


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The particle waits: after a checkpoint, at its end, or dead."""

    finished: bool = False
    result: Any = None
    dead_at: str | None = None


_WAITING = Checkpoint()


class Particle(Messenger):  # type: ignore[misc]
    """A running copy of a program; the `ppl.language.site.Visit` of all its sites.

    Args:
        task: what to run.
        history: records of the choices already made; replayed without asking any model.
        seed: the search's seed.
        identity: number of the tree node whose segment this particle is about to run; with the
            seed and the site it keys all randomness.
        ledger: the account that pays.
        segment: how the choices of the segment are made.
        calls: the search's account of which verifiers matter.
        first: `identity` of the first of those who set out together from one node.
    """

    light_factors = True  # see `ppl.runtime.factor`

    def __init__(
        self,
        task: Task,
        history: list[Record],
        *,
        seed: int,
        identity: int,
        ledger: Account,
        segment: Segment = DRAWN,
        calls: Calls | None = None,
        first: int | None = None,
    ) -> None:
        super().__init__()
        self.task, self.seed, self.ledger = task, seed, ledger
        self.thread = this_thread()  # greenlets belong to it
        self._replay, self._calls = history, calls
        self._position = 0
        self._values: dict[str, Any] = {}
        self._numbers: dict[str, int] = {}
        self.prefix = ""  # of sites, in the branch that runs
        self._written: Text | tuple[Text, Continuation] | None = None
        self.provisional: tuple[Any, ...] = ()  # what `ppl.answer` said last, if anything
        self._model = Coroutine(self._run, self)
        self._guide: Guide | None = None
        if task.guide is not None:
            program = functools.partial(task.guide, *task.args, **task.kwargs)
            self._guide = Guide(program, self._values, self._propose)
        self.begin(identity, segment, first)

    def begin(self, identity: int, segment: Segment = DRAWN, first: int | None = None) -> None:
        """Starts the next segment, as tree node `identity`."""
        self.identity, self.segment = identity, segment
        self._first = identity if first is None or segment.alone else first
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
        """Ends the particle where it waits; what its clean-up raises is warned of.

        The particle is given up by then: its search, and whatever ended it, stay as they are.
        """
        for coroutine in (self._model, self._guide):
            try:
                if coroutine is not None:
                    coroutine.close()
            except Exception as error:
                warnings.warn(
                    f"the program of particle {self.identity} was ended at {self.site}, where a "
                    f"`finally` or `with` of its own raised {type(error).__name__}: {error}",
                    RuntimeWarning,
                    stacklevel=2,
                )

    def say(self, value: Any) -> None:
        """What the result would be if the program ended here; replayed with the program."""
        self.provisional = (value,)

    def parallel(self, name: str, functions: Sequence[Callable[[], Any]]) -> list[Any]:
        """Runs branches side by side; a guide proposes site by site, so beside one in order."""
        if self._guide is not None:
            return in_order(functions, name)
        return run_branches(self, name, functions)

    def arrival(self, dead_at: str | None) -> Checkpoint:
        """What is said where all branches have come to a checkpoint, or one is dead."""
        return Checkpoint(dead_at=dead_at)

    def next_number(self, word: str) -> int:
        """0, 1, 2, ... for sites that are numbered automatically."""
        self._numbers[word] = self._numbers.get(word, -1) + 1
        return self._numbers[word]

    # -- what a site sees ---------------------------------------------------------------------

    @property
    def label(self) -> str:
        """Who and where, for messages."""
        return f"{self.site} of particle {self.identity}"

    @property
    def text(self) -> Text | None:
        """What a language model last extended; put together when somebody looks at it, as most of
        what is written, and all of what is replayed, is soon extended again."""
        if isinstance(self._written, tuple):
            text, value = self._written
            self._written = text + value
        return self._written

    @text.setter
    def text(self, text: Text | None) -> None:
        self._written = text

    def wrote(self, text: Text, value: Continuation) -> None:
        """See `ppl.language.site.Visit`."""
        self._written = text, value

    @property
    def greedy(self) -> bool:
        """True if language models give their most likely tokens."""
        return self.segment.greedy

    def key(self, *parts: int | str) -> int:
        """A key of this segment and `parts`."""
        return key(self.seed, self.identity, *parts)

    def together(self, *parts: int | str) -> tuple[int, int]:
        """A key of those who set out together, and the place among them."""
        return key(self.seed, "together", self._first, *parts), self.identity - self._first

    ask = staticmethod(park)

    # -- sites, as the program comes to them --------------------------------------------------

    def _run(self) -> Checkpoint:
        with own_verdicts(self._calls):
            result = self.task.program(*self.task.args, **self.task.kwargs)
        check_result(result, f"the program of particle {self.identity}")
        if self._position < len(self._replay):
            missing = self._replay[self._position].name
            raise NonDeterministicProgramError(
                f"on replay the program of particle {self.identity} ended before site "
                f"{missing!r}, which its record has; {_DETERMINISM}"
            )
        if self._guide is not None and not self._replay:
            self._guide.check_used()
        self.log_twist = 0.0  # a twist ends with the program
        return Checkpoint(finished=True, result=result)

    def _process_message(self, msg: Any) -> None:
        # As every messenger does, but without looking for its methods by name at every site.
        if msg["type"] == "sample":
            self._pyro_sample(msg)

    def _postprocess_message(self, msg: Any) -> None:
        pass

    def _pyro_sample(self, msg: Any) -> None:
        """One sample statement of the program."""
        if msg["done"]:  # an inner handler (replay) has decided already
            return
        # Programs without a model let others go on here.
        if perf_counter() > Slice.ends and Slice.spent():
            park(PAUSE)
        name: str = msg["name"]
        self.site = f"site {name!r}"
        if name in self._values:
            raise DuplicateSiteError(
                f"site {name!r} occurs twice in particle {self.identity}; number the sites of a "
                "loop, as in f'step_{t}'"
            )
        if not hasattr(msg["fn"], "log_prob"):
            got = type(msg["fn"]).__name__
            number = isinstance(msg["fn"], bool | int | float)
            remedy = (
                "make a verifier of the function that gave it, with @ppl.verifiers.verifier, and "
                "call that on a text, or add a log-weight with pyro.factor(name, log_weight)"
                if number
                else "call a model or verifier on a text, as in prm(text)"
            )
            raise ProgramError(
                f"{self.label}: pyro.sample needs a distribution, got {got}; {remedy}"
            )
        site = site_of(msg["fn"])
        if self._position < len(self._replay):
            self._repeat(msg, site)
        elif msg["infer"].get("_deterministic"):
            self.records.append(Record(name, "deterministic", msg["value"]))
        elif msg["is_observed"]:
            self._observe(msg, site)
        else:
            self._choose(msg, site)
        self._values[name] = msg["value"]
        msg["done"] = True

    def _repeat(self, msg: Any, site: Site) -> None:
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
        if record.kind == "choice":
            msg["value"] = record.value
        site.repeat(self, record)

    def _observe(self, msg: Any, site: Site) -> None:
        record = Record(msg["name"], "observed", msg["value"], _distribution=msg["fn"])
        record.log_likelihood = self._finite(site.weigh(self, msg, record), msg["fn"])
        site.passed(self, record)
        self.records.append(record)
        self.at_checkpoint = True
        if record.log_likelihood == -math.inf:
            park(Checkpoint(dead_at=record.name))

    def _choose(self, msg: Any, site: Site) -> None:
        name, fn = msg["name"], msg["fn"]
        decision = decides(name, msg["infer"])
        if self.at_checkpoint:
            park(_WAITING)
            self.site = f"site {name!r}"
        proposal = None if self._guide is None else self._guide.propose(name, fn)
        if proposal is None:
            proposal = self._decided(name, fn, site)
        if proposal is None and self.segment.power != 1:
            proposal = self._sharpened(msg, fn)
        if proposal is None:
            value, log_prior, _ = self._draw(msg, site, "model")
            record = Record(
                name, "choice", value, log_prior=log_prior, decision=decision, _distribution=fn
            )
            if _reweighed(msg):  # the model's own draw stands for its share of the target
                prior = record.prior()
                record.log_ratio = self._finite(site.reweighed(msg, value, prior) - prior, fn)
        else:
            value, log_q, log_p = proposal
            if log_p is None:
                log_p = site.score(self, msg, value)
            share = log_p
            if _reweighed(msg) and log_p > -math.inf:
                share = site.reweighed(msg, value, log_p)
            # Where its law has nothing that may be drawn, whoever proposes is dead, as a draw is.
            ratio = -math.inf if log_q == -math.inf else self._finite(share - log_q, fn)
            record = Record(name, "choice", value, 0.0, ratio, log_p, None, log_q, decision, fn)
        site.passed(self, record)
        self.records.append(record)
        msg["value"] = value
        if -math.inf in (record.log_ratio, record.log_prior):  # the model rules out the proposal
            park(Checkpoint(dead_at=name))

    def _decided(self, name: str, fn: Any, site: Site) -> Proposal | None:
        """The value that the searcher takes at a choice, proposed by a point mass; None to draw."""
        if self.segment.decide is None or not site.decidable:
            return None
        value = self.segment.decide(name, fn)
        return None if value is None else (value, 0.0, None)

    def _sharpened(self, msg: Any, fn: Any) -> Proposal | None:
        """A draw from a language model's own law to a power, None where the model itself draws."""
        if not isinstance(fn, LMDistribution):
            return None
        warp = fn.spec.warp.sharpened(self.segment.power)
        if warp is None:
            return None
        law = LMDistribution(fn.model, fn.text, replace(fn.spec, warp=warp))
        value, log_q, log_p = self._draw(msg, law, "model", fn)
        assert log_q is not None
        return value, log_q, log_p

    def _propose(self, msg: Any, target: Any) -> Proposal:
        """A draw for the guide's statement, where the model has the distribution `target`."""
        decided = self._decided(msg["name"], target, site_of(target))
        if decided is not None:
            return decided
        value, log_q, log_p = self._draw(msg, site_of(msg["fn"]).beside(target), "guide", target)
        if log_q is None:
            log_q = site_log_prob(msg["fn"], value, args=msg["args"], kwargs=msg["kwargs"])
        return value, log_q, log_p

    def _draw(self, msg: Any, site: Site, role: str, target: Any = None) -> Draw:
        if self.segment.forced is None or site.told:
            return site.draw(self, msg, self.key(msg["name"], role), target)
        name, forced = msg["name"], self.segment.forced
        if name in forced:
            try:
                log_prob = site.score(self, msg, forced[name])
            except (ObservationError, ValueError, TypeError, AttributeError):
                log_prob = -math.inf  # a value of another kind of site
            if log_prob > -math.inf:
                return forced[name], log_prob, None
        park(Checkpoint(dead_at=name))
        raise AssertionError("a dead particle is never resumed")

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


def _reweighed(msg: Any) -> bool:
    """True under `poutine.scale` or `mask`."""
    scale = msg["scale"]
    return msg["mask"] is not None or not (isinstance(scale, float) and scale == 1.0)
