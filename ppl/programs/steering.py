"""A module that a planner wrote, as a program: its steps run in the sandbox, its draws here.

    particle                        sandbox
    step t of a text     ->         step(state), up to its first request
    draw a continuation  <-         extend(...)
    the same, answered   ->         step(state) again, up to its next request
    ...
    weigh, next step     <-         its end: what to keep, a twist

Every exchange is a `ppl.call`, so it is recorded, told to forks and never repeated. The law is that
of the follower under the *prior* prompt, times what is observed, given that nothing is required in
vain and `check` holds:

    p(x) prod P(observed words) 1{masks, requirements, check}

Hints, the *proposal* prompt and masks say what is drawn from instead, q(x); they are a guide, and
weights have p(x) / q(x).
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pyro
from pyro.distributions import TorchDistribution
from torch import Tensor

from ppl.errors import ProgramError, ToolError, WorkerError
from ppl.language import checks
from ppl.language.arguments import checked
from ppl.language.call import call
from ppl.language.primitives import answer, condition, twist
from ppl.language.site import Site
from ppl.language.text import Continuation, Text
from ppl.lm.base import LanguageModel, LMDistribution, Spec
from ppl.programs.letters import tokens_of
from ppl.programs.steering_wire import (
    End,
    Extend,
    Mask,
    ModuleError,
    Observe,
    Reject,
    prompts_of,
    request_of,
    verdict_of,
)
from ppl.verifiers.exact.guest import Guest
from ppl.verifiers.exact.sandbox import Sandbox

_INSIDE = Path(__file__).with_name("steering_inside.py")
_MOST_REQUESTS = 64  # of one step


@dataclass(frozen=True)
class Fault:
    """What went wrong in a module.

    Attributes:
        where: site and particle, as in "site 'step_3.1' of particle 17"; "the module" where it does
            not load, "the search" where that failed.
        said: the last lines of the traceback, or what is wrong.
    """

    where: str
    said: str

    def __str__(self) -> str:
        return f"{self.where}: {self.said}"


class Steering:
    """The program of a module. Serves as a context: its interpreter ends with it.

        with Steering(module, follower) as program:
            posterior = SMC(32).run(program, task, guide=program.proposals)

    Returns the text as a string. A particle in whose step or check something is raised, or whose
    step asks for what the follower cannot do, has weight zero, and `faults` says what it was; the
    others go on. A module whose interpreter had to be
    stopped (late, dead, out of memory, or saying what is no answer) is not asked again, and all its
    particles die.

    Args:
        module: Python that defines `step(state)` and `check(text)`, and may define the strings
            `prior` and `proposal`, prompts in place of the task. See
            `ppl.programs.steering_prompt`.
        follower: writes.
        begin: makes a text of a prompt; `follower.chat` by default.
        steps: the text ends after so many steps.
        max_tokens: most tokens of one extend.
        temperature: of the follower, in the law and in what is drawn from.
        note: how a hint stands in the follower's text, with `{hint}` in its place.
        sandbox: the limits; `seconds` is that of one answer.

    Attributes:
        faults: what was raised, each once, in the order in which it happened.

    Raises:
        SandboxError: code cannot be isolated here.
        ProgramError: the module does not load, or lacks a function.
    """

    @checked
    def __init__(
        self,
        module: str,
        follower: LanguageModel,
        *,
        begin: Callable[[str], Text] | None = None,
        steps: int = 64,
        max_tokens: int = 64,
        temperature: float = 1.0,
        note: str = " (Note to self: {hint})",
        sandbox: Sandbox | None = None,
    ) -> None:
        checks.count(steps=steps, max_tokens=max_tokens)
        checks.positive(temperature=temperature)
        self.follower, self.begin = follower, begin or follower.chat
        self.steps, self.max_tokens, self.temperature = steps, max_tokens, temperature
        self.note = note
        self.faults: list[Fault] = []
        self._tokens = functools.lru_cache(maxsize=64)(tokens_of)
        # Modules are deterministic, so particles that stand at one place ask once.
        self._told = functools.lru_cache(maxsize=4096)(self._answer)
        self._guest = Guest(sandbox or Sandbox(), _INSIDE.read_text(encoding="utf-8"))
        try:
            self.prior, self.proposal = self._loaded(module)
        except BaseException:
            self.close()
            raise

    def _loaded(self, module: str) -> tuple[str | None, str | None]:
        try:
            return prompts_of(self._guest.call("load", module))
        except (WorkerError, ModuleError) as error:
            raise ProgramError(f"the module does not load: {error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the interpreter."""
        self._guest.stop()

    # -- the program ------------------------------------------------------------------------------

    def __call__(self, task: str) -> str | None:
        """Writes one text for a task; None in a particle that is given up."""
        call("begun", _begun)  # the guide meets the model here
        prior = self.begin(self.prior or task)
        proposal = self.begin(self.proposal or self.prior or task)
        particle = _Particle(self, prior, proposal)
        for t in range(self.steps):
            if not particle.step(t):
                return None
            if particle.over:
                break
            answer(particle.prior.text)
        if not particle.right():
            return None
        return particle.prior.text

    def proposals(self, task: str) -> None:
        """The guide: draws from the proposal where the module says what that is."""
        pyro.sample("begun", _Proposal())
        for k in itertools.count():
            pyro.sample(f"draw_{k}", _Proposal())

    def allowed(self, mask: Mask) -> Tensor:
        """Boolean mask `[V]` of the tokens that a module's mask leaves."""
        return self._tokens(self.follower, mask.only, mask.never, mask.end)

    def move(
        self, asked: int, room: int, step: int, text: str, finished: bool, memory: str, answers: str
    ) -> str:
        """What a step asks next, see `request_of`; raises what is wrong with it.

        Args:
            asked: how often the step has asked.
            room: tokens that the context still holds.
            step, text, finished, memory, answers: of the particle, as the module meets it.
        """
        said = self._told("move", step, text, finished, memory, answers)
        request = request_of(said)
        if asked == _MOST_REQUESTS and not isinstance(request, End | Reject):
            raise ModuleError(f"step {step} asks more than {_MOST_REQUESTS} times")
        for hint in () if isinstance(request, Reject) else request.hints:
            self.spelled(self.note.replace("{hint}", hint))
        if isinstance(request, Observe) and len(self.spelled(request.words).tokens) > room:
            raise ModuleError(f"no room to observe {request.words!r:.80}: the context is full")
        if isinstance(request, Extend) and request.mask and not self.allowed(request.mask).any():
            raise ModuleError(f"{request.mask} leaves no token that the follower could write")
        return said

    def spelled(self, words: str) -> Continuation:
        """Words in the follower's tokens."""
        return self.follower.continuation(words, finished=False)

    def judge(self, text: str) -> str:
        """What `check` says, see `verdict_of`; raises what is wrong with it."""
        return self._told("judge", text)

    def _answer(self, name: str, *arguments: str | float) -> str:
        said = self._guest.call(name, *arguments)
        (request_of if name == "move" else verdict_of)(said)
        return said

    def exchanged(self, site: str, exchange: Callable[..., str], *arguments: Any) -> str | None:
        """What the sandbox answers this particle; None if something is wrong: then it is noted, and
        the particle has weight zero."""
        try:
            said: str = call(site, exchange, *arguments)
        except ToolError as error:
            where, _, what = str(error).partition(f": {exchange.__qualname__} failed: ")
            raised = what.partition(": ")[2]  # behind the exception's name
            fault = Fault(where, raised)
            if raised not in [known.said for known in self.faults]:
                self.faults.append(fault)
            condition(False, f"{site}!")
            return None
        return said


class _Particle:
    """One text on its way."""

    def __init__(self, steering: Steering, prior: Text, proposal: Text) -> None:
        self.steering, self.prior, self.proposal = steering, prior, proposal
        self.memory, self.over = "{}", False
        self.draws = self.given = 0

    def step(self, t: int) -> bool:
        """A step of the module; False if the particle is given up."""
        steering, begun = self.steering, self.prior
        answers: list[tuple[str, dict[str, Any]]] = []
        observed: list[tuple[LMDistribution, Continuation]] = []
        while True:
            # From its beginning, with one answer more.
            now = (len(answers), self.room, t, begun.text, begun.finished, self.memory)
            site = f"step_{t}.{len(answers)}"
            said = steering.exchanged(site, steering.move, *now, json.dumps(answers))
            if said is None:
                return False
            request = request_of(said)
            if isinstance(request, Reject):
                condition(False, f"reject_{t}")
                return False
            self.note(request.hints)
            if isinstance(request, End):
                break
            if isinstance(request, Observe):
                observed.append(self.observe(request.words))
                answers.append((said, {}))
                continue
            written = self.extend(request)
            if written is None:
                return False
            answers.append((said, {"text": written, "finished": self.prior.finished or self.full}))
        # Weighed at the end of the step and not within, so that particles are compared there.
        for law, words in observed:
            pyro.sample(f"given_{self.given}", law, obs=words)
            self.given += 1
        self.memory = request.memory
        self.over = request.finished or self.prior.finished or self.full
        twist(f"twist_{t}", request.twist)
        return True

    @property
    def room(self) -> int:
        """How many tokens may follow, under either prompt."""
        longest = max(len(self.prior.tokens), len(self.proposal.tokens))
        return self.steering.follower.context_length - longest

    @property
    def full(self) -> bool:
        """Whether the context holds no more."""
        return self.room < 1

    def extend(self, request: Extend) -> str | None:
        """A draw from the proposal, under the prior's law; None if a mask forbids it."""
        if self.full:
            return ""
        steering, lm = self.steering, self.steering.follower
        most = min(request.max_tokens or steering.max_tokens, steering.max_tokens, self.room)
        settings: dict[str, Any] = {
            "until": request.until,
            "max_tokens": most,
            "temperature": steering.temperature,
        }
        allowed = None if request.mask is None else steering.allowed(request.mask)
        law = lm(self.prior, **settings)
        if allowed is not None or self.proposal.tokens != self.prior.tokens:
            law = _Hinted(law, lm(self.proposal, **settings, allowed=allowed))
        site, self.draws = f"draw_{self.draws}", self.draws + 1
        drawn: Continuation = pyro.sample(site, law)
        self.prior, self.proposal = self.prior + drawn, self.proposal + drawn
        if allowed is not None and not allowed[list(drawn.tokens)].all():
            condition(False, f"{site}!")
            return None
        return drawn.text

    def observe(self, words: str) -> tuple[LMDistribution, Continuation]:
        """Writes words; what their probability is read from."""
        given = self.steering.spelled(words)
        law = self.steering.follower(self.prior, temperature=self.steering.temperature)
        self.prior, self.proposal = self.prior + given, self.proposal + given
        return law, given

    def note(self, hints: Sequence[str]) -> None:
        """Puts hints into the text that is drawn from."""
        for hint in hints:
            if not self.proposal.finished:
                self.proposal = self.proposal + self.steering.note.replace("{hint}", hint)

    def right(self) -> bool:
        """Whether the module's check takes the text."""
        said = self.steering.exchanged("check", self.steering.judge, self.prior.text)
        right = said is not None and verdict_of(said)
        condition(right, "right")
        return right


class _Hinted(LMDistribution):
    """A law of the follower, and what it is drawn from where the guide is heard."""

    def __init__(self, law: LMDistribution, proposal: LMDistribution) -> None:
        super().__init__(law.model, law.text, law.spec)
        self.proposal = proposal

    def respecified(self, spec: Spec) -> LMDistribution:
        """Another law, drawn from as before."""
        return _Hinted(LMDistribution(self.model, self.text, spec), self.proposal)


class _Proposal(Site, TorchDistribution):  # type: ignore[misc]
    """Draws what the model's distribution at this site says that it be drawn from."""

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012 (the name is torch's)

    def __init__(self) -> None:
        super().__init__(validate_args=False)

    def beside(self, target: Any) -> Site:
        """The proposal, or the law itself."""
        law: Site = target.proposal if isinstance(target, _Hinted) else target
        return law


def _begun() -> None:
    """What happens before a particle's first draw: nothing."""
