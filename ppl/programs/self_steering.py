"""Self-steering (DisCIPL: Grand, Tenenbaum, Mansinghka, Lew, Andreas 2025, arXiv:2504.07081): a
planner writes the inference program, followers run it.

    repeat at most 1 + `retries` times
        the planner writes a module for the task (and, from the second time on, for the errors)
        the engine runs it with N particles of the follower
        if nothing was raised, and a text came of it, that is the result

What a module means is said in `ppl.programs.steering`, what a planner is told in
`ppl.programs.steering_prompt`. Model-written code runs in the sandbox alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import pyro

from ppl.errors import (
    AllParticlesDeadError,
    PPLError,
    PromptError,
    SandboxError,
    ServerError,
    SteeringError,
)
from ppl.language import checks
from ppl.language.arguments import checked, shown
from ppl.language.cost import Budget, Cost
from ppl.language.placeholders import filled
from ppl.language.printed import Printed
from ppl.language.randomness import generator, key
from ppl.language.text import Text
from ppl.lm.base import LanguageModel
from ppl.posterior.posterior import Posterior, Sample
from ppl.programs import steering_prompt
from ppl.programs.steering import Fault, Steering
from ppl.searchers.particles.smc import SMC
from ppl.searchers.sampling.best_of_n import BestOfN
from ppl.verifiers.exact.code import code_of
from ppl.verifiers.exact.sandbox import Sandbox

Engine = Literal["smc", "is", "rejection"]
Messages = Sequence[Mapping[str, str]]
Planner = LanguageModel | Callable[[Messages], str]
"""A model, or a function from a conversation to what is said next."""


@dataclass(frozen=True)
class Attempt:
    """One module of the planner's.

    Attributes:
        module: what it wrote.
        faults: what went wrong, in order; empty where nothing did.
        posterior: what came of it; None if it did not come to a search, or the search failed.
        cost: of writing and running it.
    """

    module: str
    faults: tuple[Fault, ...]
    posterior: Posterior | None = field(repr=False)
    cost: Cost = field(repr=False)

    @property
    def answered(self) -> bool:
        """Whether a text came of it."""
        return self.posterior is not None and self.posterior.best_sample is not None


@dataclass(frozen=True)
class SelfSteered(Printed):
    """What came of it.

    Attributes:
        posterior: of texts, as strings.
        program: the module that it is of.
        attempts: all modules, the last one last.
    """

    posterior: Posterior
    program: str
    attempts: tuple[Attempt, ...]

    def __str__(self) -> str:
        """The module, the posterior, and what it took."""
        number = len(self.attempts)
        of = f"\nof {number} modules that the planner wrote" if number > 1 else ""
        return f"{self.program.strip()}\n\n{self.posterior}{of}"

    @property
    def faults(self) -> tuple[Fault, ...]:
        """Of the module that the posterior is of: empty unless every module had some."""
        return next(a.faults for a in self.attempts if a.posterior is self.posterior)

    @property
    def cost(self) -> Cost:
        """Of all attempts, the planner's part included."""
        return sum((attempt.cost for attempt in self.attempts), Cost())


@checked
def selfsteer(
    planner: Planner,
    follower: LanguageModel,
    task: str,
    particles: int = 32,
    retries: int = 3,
    engine: Engine = "smc",
    *,
    begin: Callable[[str], Text] | None = None,
    steps: int = 64,
    max_tokens: int = 64,
    temperature: float = 1.0,
    note: str = " (Note to self: {hint})",
    planner_tokens: int = 2048,
    planner_temperature: float = 1.0,
    sandbox: Sandbox | None = None,
    seed: int = 0,
    budget: Budget | None = None,
) -> SelfSteered:
    """Has a planner write the program by which a follower writes.

        found = ppl.selfsteer(ppl.load("http://host:8000/v1"), ppl.load(small), "Write ...")
        print(found.posterior.sample(0), found.program)

    The posterior is that of the module (see `ppl.programs.Steering`), whichever the engine: `"smc"`
    resamples particles between steps, `"is"` weighs whole ones, `"rejection"` draws from the prior,
    without hints, and keeps a text with the probability of what was observed. All three estimate
    the module's evidence, without bias where it is the planner's first. A particle in which
    something was raised has weight zero and leaves the others as they are; the planner reads of it,
    as it does of a module that does not load, hangs, or leaves no particle alive, and writes
    another, as long as its context holds the conversation. Where every module has faults, the last
    one that gave a text is the result, and `faults` is not empty.

    Args:
        planner: a language model, or a function from messages to an answer. The module is what
            stands in the answer's fence.
        follower: writes the text.
        task: what is asked for; the follower's prompt, where a module has no other.
        particles: N; texts that are written, for rejection.
        retries: how often the planner may write another module.
        engine: see above.
        begin, steps, max_tokens, temperature, note: as for `ppl.programs.Steering`.
        planner_tokens, planner_temperature: of the planner, if it is a model.
        sandbox: the limits of the module; `seconds` is that of one exchange.
        seed: one seed, one result, if the planner is a function or draws by it.
        budget: limits the search of each module.

    Raises:
        SteeringError: no module gave a text; its `attempts` say why.
        SandboxError: code cannot be isolated here.
        ServerError: a model's server fails.
    """
    checks.count(particles=particles, planner_tokens=planner_tokens)
    checks.count(least=0, retries=retries)
    checks.nonnegative(planner_temperature=planner_temperature)
    checks.seed(seed=seed)
    settings: dict[str, Any] = {
        "begin": begin,
        "steps": steps,
        "max_tokens": max_tokens,
        "temperature": temperature,
        "note": note,
        "sandbox": sandbox,
    }
    messages = [{"role": "user", "content": steering_prompt.first(task, particles, steps)}]
    attempts: list[Attempt] = []
    for number in range(1 + retries):
        drawn = seed if number == 0 else key(seed, "selfsteer", number) >> 1
        try:
            said, cost = _written(planner, messages, planner_tokens, planner_temperature, drawn)
        except PromptError:
            if not attempts:
                raise
            break  # no room for what was wrong: what there is has to do
        attempt = _tried(code_of(said), follower, task, engine, particles, settings, drawn, budget)
        attempts.append(replace(attempt, cost=cost + attempt.cost))
        if not attempt.faults:
            break
        faults = "\n\n".join(map(str, attempt.faults[:3]))
        again = filled(steering_prompt.AGAIN, faults=faults)
        messages += [{"role": "assistant", "content": said}, {"role": "user", "content": again}]
    answered = [attempt for attempt in attempts if attempt.answered]
    chosen = next((a for a in answered if not a.faults), answered[-1] if answered else None)
    if chosen is None or chosen.posterior is None:
        last = attempts[-1].faults[0] if attempts[-1].faults else "it was stopped by its budget"
        raise SteeringError(
            f"none of {len(attempts)} modules gave a text; of the last one: {last}", attempts
        )
    return SelfSteered(chosen.posterior, chosen.module, tuple(attempts))


def _written(
    planner: Planner, messages: Messages, most: int, temperature: float, seed: int
) -> tuple[str, Cost]:
    """What the planner says next, and its price."""
    if not isinstance(planner, LanguageModel):
        said = planner([dict(message) for message in messages])
        if not isinstance(said, str):
            raise SteeringError(f"planner: it said {shown(said)}, which is no string", [])
        return said, Cost()
    lm: LanguageModel = planner

    def program() -> str:
        text = lm.chat([dict(message) for message in messages])
        room = lm.context_length - len(text.tokens)
        law = lm(text, max_tokens=min(most, room), temperature=temperature)
        written: Text = text + pyro.sample("module", law)
        return written.text

    posterior = BestOfN(1).run(program, seed=seed)
    return str(posterior.samples[0].value), posterior.cost


def _tried(
    module: str,
    follower: LanguageModel,
    task: str,
    engine: Engine,
    particles: int,
    settings: Mapping[str, Any],
    seed: int,
    budget: Budget | None,
) -> Attempt:
    """Runs a module; the cost is that of running it."""
    try:
        steering = Steering(module, follower, **settings)
    except SandboxError:
        raise
    except PPLError as error:
        return Attempt(module, (Fault("the module", str(error)),), None, Cost())
    with steering:
        searcher = SMC(particles) if engine == "smc" else BestOfN(particles)
        guide = None if engine == "rejection" else steering.proposals
        posterior: Posterior | None = None
        failed: list[Fault] = []
        search = searcher.begin(steering, task, guide=guide, seed=seed, budget=budget)
        try:
            posterior = search.run()
            if engine == "rejection":
                posterior = _kept(posterior, seed)
        except AllParticlesDeadError as error:
            posterior = error.posterior
            failed = [Fault("the search", f"no particle is left: {error}")]
        except (SandboxError, ServerError):
            raise
        except PPLError as error:
            failed = [Fault("the search", str(error))]
        faults = (*steering.faults, *failed)
    if posterior is not None and posterior.best_sample is None and posterior.stopped == "done":
        faults = faults or (Fault("the search", "no text was kept"),)
    return Attempt(module, faults, posterior, search.account.cost)


def _kept(posterior: Posterior, seed: int) -> Posterior:
    """Rejection: a text drawn from the prior is kept with the probability of what it observed,
    which is at most one. (The weight of a text that a budget cut off still has a twist.)"""
    rng = generator(seed, "rejection")
    samples: list[Sample] = []
    for sample in posterior.samples:
        chance = math.exp(min(sample.log_weight, 0.0))
        keep = rng.random() < chance
        samples.append(replace(sample, log_weight=0.0 if keep else -math.inf))
    kept = sum(sample.log_weight == 0.0 for sample in samples)
    evidence = math.log(kept / len(samples)) if kept else -math.inf
    return Posterior(
        samples,
        log_evidence=None if posterior.log_evidence is None else evidence,
        cost=posterior.cost,
        nodes=posterior.nodes,
        searcher=posterior.searcher,
        stopped=posterior.stopped,
        history=posterior.history,
        models=posterior.models,
    )
