"""SMC that runs a program once for all particles: for state-space models of tensors.

    x = pyro.sample(...)     one draw of N rows; whatever is computed from it has N rows
    observations             log w += log G, a vector
    at the next choice       if ESS < kappa N: gather the ancestors' rows of all choices so far,
                             and run the program again from its start, fed with them
    at the end               log Z += log mean w

Same target, estimator and defaults as `SMC`, no Python per particle. Running again is what makes
the program's own variables follow their ancestors; it costs R T / 2 sites for R resamplings over T
steps, each of them a few tensor operations on N rows. Programs that branch on their choices, ask a
language model or a verifier, or have a guide, are for `SMC`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pyro
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.poutine.messenger import Messenger

from ppl.errors import (
    AllParticlesDeadError,
    DuplicateSiteError,
    NonDeterministicProgramError,
    PPLError,
    ProgramError,
    WeightError,
)
from ppl.language import checks
from ppl.language.cost import Cost
from ppl.language.primitives import TwistUnit
from ppl.language.randomness import generator, key
from ppl.lm.base import LMDistribution
from ppl.posterior.posterior import Posterior, Sample
from ppl.runtime.awrs import AWRS
from ppl.runtime.loop import turn
from ppl.runtime.program import Program, check_program
from ppl.runtime.record import Record
from ppl.runtime.verdict import Verdict
from ppl.runtime.weights import Weights
from ppl.searchers.parse import register
from ppl.searchers.resampling import SCHEMES, Scheme, check_scheme
from ppl.searchers.search import seeds_of


@register
@dataclass(frozen=True)
class VectorizedSMC:
    """Sequential Monte Carlo over programs whose values are tensors with a row per particle.

    The program is the one that `SMC` runs, written for one particle, as long as it does the same to
    every row: a choice comes as a tensor `[N, *event_shape]`, so use elementwise mathematics,
    `to_event` for what belongs to one particle, `torch.where` where you would branch, and return a
    tensor `[N, ...]`.

    Attributes:
        num_particles: N.
        ess_threshold: as in `SMC`.
        resampling: as in `SMC`.
    """

    num_particles: int
    ess_threshold: float = 0.5
    resampling: Scheme = "systematic"

    def __post_init__(self) -> None:
        checks.count(num_particles=self.num_particles)
        checks.probability(ess_threshold=self.ess_threshold)
        check_scheme(self.resampling)

    def run(self, program: Program, *args: Any, seed: int = 0, **kwargs: Any) -> Posterior:
        """Runs the program on all particles.

        Returns:
            A posterior with a sample per particle; `value` is its row of what the program returned.

        Raises:
            ProgramError: the program does something that is not done row by row.
            AllParticlesDeadError: every weight is zero.
        """
        return self.begin(program, *args, seed=seed, **kwargs).run()

    def run_many(
        self,
        program: Program,
        arguments: Sequence[Any],
        *,
        seed: int | Sequence[int] = 0,
        **kwargs: Any,
    ) -> list[Posterior | AllParticlesDeadError]:
        """Runs the program for many questions, one after the other: each is a batch already.

        Args:
            arguments: one entry per question; a tuple is unpacked into several arguments.
            seed: one seed for all, or one per question.

        Returns:
            A posterior per question, or the error where all particles died.
        """
        seeds = seeds_of(seed, arguments)
        found: list[Posterior | AllParticlesDeadError] = []
        for argument, s in zip(arguments, seeds, strict=True):
            given = argument if isinstance(argument, tuple) else (argument,)
            try:
                found.append(self.run(program, *given, seed=s, **kwargs))
            except AllParticlesDeadError as error:
                found.append(error)
        return found

    async def arun(self, program: Program, *args: Any, **options: Any) -> Posterior:
        """`run` for callers in an event loop, in a thread; takes what `run` takes."""
        return await asyncio.to_thread(lambda: self.run(program, *args, **options))

    def begin(self, program: Program, *args: Any, seed: int = 0, **kwargs: Any) -> VectorizedSearch:
        """A search to be stepped by hand: a step runs the program to its next resampling."""
        check_program(program)
        checks.seed(seed=seed)
        return VectorizedSearch(self, program, args, kwargs, seed)

    def with_(self, **changes: Any) -> VectorizedSMC:
        """A copy with other settings."""
        return replace(self, **changes)


class VectorizedSearch:
    """A running search over vectorised particles.

    Attributes:
        over: the program has run to its end.
        notes: what each checkpoint had to tell.
    """

    def __init__(
        self,
        searcher: VectorizedSMC,
        program: Program,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        seed: int,
    ) -> None:
        self.searcher, self.over = searcher, False
        self._program, self._args, self._kwargs = program, args, kwargs
        self._rows = _Rows(searcher, seed)
        self._values: list[Any] = []
        self._seconds = 0.0

    @property
    def notes(self) -> list[dict[str, Any]]:
        """What each checkpoint had to tell, in order."""
        return self._rows.notes

    @torch.no_grad()
    def step(self) -> None:
        """Runs the program until ancestors are drawn, or to its end. Does nothing once over."""
        if self.over:
            return
        started, rows, n = time.perf_counter(), self._rows, self.searcher.num_particles
        with turn(), torch.random.fork_rng(devices=[]):
            try:
                with rows:
                    result = self._program(*self._args, **self._kwargs)
                    rows.expect("its end")
            except _Resampled:
                return
            except PPLError:
                raise
            except Exception as error:
                raise ProgramError(
                    f"the program raised {type(error).__name__} after {rows.site}: {error}; "
                    f"VectorizedSMC runs it once for all {n} particles, so it cannot branch on a "
                    "choice or make a number of it; use torch.where, or SMC"
                ) from error
            finally:
                self._seconds += time.perf_counter() - started
        self._values = _per_particle(result, n)
        self.over = True

    def run(self, on_step: Callable[[VectorizedSearch], None] | None = None) -> Posterior:
        """Steps to the end. `on_step` is called after every step."""
        while not self.over:
            self.step()
            if on_step is not None:
                on_step(self)
        return self.posterior()

    def posterior(self) -> Posterior:
        """The weighted rows; before the end they have no values, and there is no evidence."""
        rows, n = self._rows, self.searcher.num_particles
        observed = [
            s.log_probs.double().numpy() for s in rows.sites.values() if s.kind == "observed"
        ]
        log_likelihoods = np.sum(observed, axis=0) if observed else np.zeros(n)
        values = self._values if self.over else [None] * n
        each = zip(values, rows.weights.tolist(), log_likelihoods.tolist(), strict=True)
        return Posterior(
            [
                Sample(v, w, g, self.over, i, None, _Records(rows.sites, i))
                for i, (v, w, g) in enumerate(each)
            ],
            log_evidence=rows.weights.log_evidence if self.over else None,
            cost=Cost(seconds=self._seconds),
            searcher=repr(self.searcher),
            history=rows.notes,
        )


def _per_particle(result: Any, n: int) -> list[Any]:
    if result is None:
        return [None] * n
    if not isinstance(result, torch.Tensor) or result.shape[:1] != (n,):
        shape = list(result.shape) if isinstance(result, torch.Tensor) else type(result).__name__
        raise ProgramError(
            f"the program returned {shape}; VectorizedSMC needs a tensor with a row for each "
            f"of the {n} particles, or None"
        )
    return result.tolist() if result.dim() == 1 else list(result)


class _Resampled(BaseException):
    """Ancestors were drawn: run again. Not an Exception, so that programs do not catch it."""


@dataclass
class _Site:
    """A choice `[N, *event_shape]` or what was given, with its log-probabilities `[N]`."""

    kind: Literal["choice", "observed", "deterministic"]
    value: Any
    log_probs: torch.Tensor

    def gather(self, ancestors: torch.Tensor) -> None:
        self.log_probs = self.log_probs.index_select(0, ancestors)
        if self.kind == "choice":
            self.value = self.value.index_select(0, ancestors)


class _Rows(Messenger):  # type: ignore[misc]
    """The particles: what happened at every site so far, and the weights."""

    def __init__(self, settings: VectorizedSMC, seed: int) -> None:
        super().__init__()
        self.settings, self.n, self.seed = settings, settings.num_particles, seed
        self.sites: dict[str, _Site] = {}
        self.weights = Weights.equal(self.n)
        self.notes: list[dict[str, Any]] = []
        self._checkpoints = 0
        self._unvalidated = ExitStack()

    def __enter__(self) -> Any:
        self.site = "the start"
        self._seen: set[str] = set()
        self._expected = iter(list(self.sites))
        self._at_checkpoint = False
        if self.sites:  # what is only repeated has been validated
            self._unvalidated.enter_context(pyro.validation_enabled(False))
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        self._unvalidated.close()
        super().__exit__(*error)

    def _pyro_sample(self, msg: Any) -> None:
        if msg["done"]:  # an inner handler (replay) has decided already
            return
        name = msg["name"]
        self.site = f"site {name!r}"
        if name in self._seen:
            raise DuplicateSiteError(
                f"site {name!r} occurs twice; number the sites of a loop, as in f'step_{{t}}'"
            )
        self.expect(name)
        self._seen.add(name)
        if name in self.sites:
            self._repeat(msg, self.sites[name])
        elif msg["infer"].get("_deterministic"):
            self.sites[name] = _Site("deterministic", msg["value"], torch.zeros(self.n))
        elif msg["is_observed"]:
            self._observe(msg)
        else:
            self._choose(msg)
        msg["done"] = True

    def expect(self, name: str) -> None:
        """What was visited before a resampling must be visited again, in the same order."""
        expected = next(self._expected, name)
        if expected != name:
            raise NonDeterministicProgramError(
                f"run again, the program came to {name!r} where it had come to {expected!r}; it "
                "must be deterministic given its choices"
            )

    def _repeat(self, msg: Any, site: _Site) -> None:
        if site.kind == "choice":
            msg["value"] = site.value.clone()  # the program may change its own in place
        else:  # it may have been computed from choices
            site.value = msg["value"]
        if len(self._seen) == len(self.sites):
            self._unvalidated.close()

    def _choose(self, msg: Any) -> None:
        if self._at_checkpoint:
            self._at_checkpoint = False
            self._maybe_resample()
        fn = msg["fn"]
        self._check(msg)
        if not fn.batch_shape:
            fn = fn.expand(torch.Size([self.n]))
        # torch's generator is global; seeding it here makes the draw a function of the key alone.
        torch.default_generator.manual_seed(key(self.seed, msg["name"], "rows") & (2**63 - 1))
        value = fn.sample()
        msg["value"] = value.clone()
        self.sites[msg["name"]] = _Site("choice", value, fn.log_prob(value))

    def _observe(self, msg: Any) -> None:
        self._check(msg)
        log_probs = msg["fn"].log_prob(msg["value"])
        if log_probs.shape not in (torch.Size([]), torch.Size([self.n])):
            raise self._not_by_row(log_probs.shape)
        log_probs = log_probs.expand(self.n)
        self.sites[msg["name"]] = _Site("observed", msg["value"], log_probs)
        log_increments = log_probs.double().numpy()
        if np.isnan(log_increments).any() or log_increments.max() == np.inf:
            raise WeightError(f"{self.site} gives a log-weight that is not a number or infinite")
        self.weights = self.weights.add(log_increments)
        self._at_checkpoint = True
        if self.weights.dead:
            raise AllParticlesDeadError(
                f"all {self.n} particles are dead, killed at {self.site}; use more particles or a "
                "softer likelihood"
            )

    def _maybe_resample(self) -> None:
        size, t = self.weights.ess, self._checkpoints
        resample = size < self.settings.ess_threshold * self.n * (1 - 1e-9)
        note = {"ess": size, "resampled": resample, "log_evidence": self.weights.log_carried}
        self.notes.append(note)
        self._checkpoints += 1
        if resample:
            rng = generator(self.seed, "resample", t)
            ancestors = SCHEMES[self.settings.resampling](self.weights.probabilities, self.n, rng)
            rows = torch.as_tensor(ancestors)
            for site in self.sites.values():
                site.gather(rows)
            self.weights = self.weights.resample(ancestors)
            raise _Resampled

    def _check(self, msg: Any) -> None:
        fn = msg["fn"]
        plain = isinstance(fn, torch.distributions.Distribution | TorchDistributionMixin)
        if not plain or isinstance(fn, LMDistribution | Verdict | TwistUnit | AWRS):
            raise ProgramError(
                f"{self.site} is a {type(fn).__name__}; VectorizedSMC runs plain Pyro "
                "distributions only, take SMC"
            )
        if msg["cond_indep_stack"] or msg["scale"] != 1.0 or msg["mask"] is not None:
            raise ProgramError(
                f"{self.site} is in a plate, or scaled or masked; VectorizedSMC knows one batch "
                "dimension, its particles: use to_event, or SMC"
            )
        if fn.batch_shape not in (torch.Size([]), torch.Size([self.n])):
            raise self._not_by_row(fn.batch_shape)

    def _not_by_row(self, shape: torch.Size) -> ProgramError:
        return ProgramError(
            f"{self.site} has the batch shape {list(shape)}; VectorizedSMC needs [] or "
            f"[{self.n}], a row per particle: say with to_event what belongs to one particle"
        )


class _Records(Sequence[Record]):
    """What happened in one particle, made when asked for: most are not."""

    def __init__(self, sites: dict[str, _Site], row: int) -> None:
        self.sites, self.row = sites, row

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        name, site = list(self.sites.items())[index]
        log_prob, value = float(site.log_probs[self.row]), site.value
        if site.kind == "observed":
            return Record(name, "observed", value, log_likelihood=log_prob)
        if isinstance(value, torch.Tensor) and value.shape[:1] == site.log_probs.shape:
            value = value[self.row]
        return Record(name, site.kind, value, log_prior=log_prob)

    def __len__(self) -> int:
        return len(self.sites)
