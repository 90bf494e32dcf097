"""What all searchers share: settings are frozen, state is a value, one round at a time.

A searcher is a policy over `tree.expand`. It says how to start, what one round does, when it is
over, and which weighted nodes are its result; this file runs rounds, watches the budget, batches
several questions, and saves a search between two rounds.
"""

from __future__ import annotations

import contextlib
import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from numbers import Integral
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

from ppl.errors import AllParticlesDeadError, PPLError, SearchStateError
from ppl.language.arguments import checked, shown
from ppl.language.cost import Account, Budget
from ppl.language.foreign import OF_SEARCHERS, refuse_unknown
from ppl.posterior.posterior import Posterior, Stopped
from ppl.posterior.shown import several
from ppl.runtime.batch import BudgetExhausted
from ppl.runtime.job import current_job
from ppl.runtime.loop import SHARED, loop_here
from ppl.runtime.node import Node
from ppl.runtime.particle import Program
from ppl.runtime.result import Result
from ppl.runtime.tree import Tree
from ppl.searchers import stored as storage
from ppl.searchers.anytime import best_so_far, run_best_on, warn_without_steps
from ppl.searchers.parse import register
from ppl.searchers.settling import check_heeded, rule_of, settled
from ppl.searchers.state import State, of_round
from ppl.searchers.watching import both, check_watched, kept, progress_line

S = TypeVar("S", bound=State)
Note = Mapping[str, Any]
"""What is worth telling of a round, for people and plots; empty for nothing."""


class Searcher(ABC, Generic[S]):
    """An inference engine for programs. Subclasses are frozen dataclasses of their settings.

    `start` and `step` are functions of the tree and the state: a round leaves the state that it was
    given as it was, and reads no note. `ppl.searchers.check_searcher` holds a searcher to this and
    to the other laws.

    Attributes:
        steers: the searcher acts between the steps of a program, so that one which marks no steps
            is worth a warning.
        settles: the searcher itself heeds `Budget(settled=)`; the others are looked at by the
            search, after every round.
    """

    steers: ClassVar[bool] = True
    settles: ClassVar[bool] = False

    def __new__(cls, *args: Any, **settings: Any) -> Self:
        """Refuses settings of other libraries' names, and says what they are called here."""
        if dataclasses.is_dataclass(cls):
            refuse_unknown(f"{cls.__name__}(...)", settings, cls.settings(), OF_SEARCHERS)
        return super().__new__(cls)

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        register(cls)  # files and studies name it

    @classmethod
    def settings(cls) -> list[str]:
        """Names of the settings, in order."""
        return [f.name for f in dataclasses.fields(cls)] if dataclasses.is_dataclass(cls) else []

    def with_(self, **changes: Any) -> Self:
        """A copy with other settings: `SMC(16).with_(ess_threshold=1.0)`."""
        return dataclasses.replace(self, **changes)  # type: ignore[type-var]

    def target(self, program: Program) -> Program:
        """The program whose posterior this searcher is after: the one that it is given, unless it
        says otherwise. Its tree and its evidence are those of the target."""
        return program

    @abstractmethod
    def start(self, tree: Tree) -> S:
        """The state before the first round."""

    @abstractmethod
    def step(self, tree: Tree, state: S) -> tuple[S, Note]:
        """One round: the next state, `state.after(...)`, and what is worth telling of the round."""

    @abstractmethod
    def result(self, tree: Tree, state: S) -> Result:
        """The weighted nodes that a state stands for, at any time; `Result.log_evidence` is for
        searchers that are properly weighted."""

    def run(
        self,
        program: Program,
        *args: Any,
        guide: Program | None = None,
        seed: int = 0,
        budget: Budget | None = None,
        progress: bool = False,
        on_step: OnStep | None = None,
        **kwargs: Any,
    ) -> Posterior:
        """Searches one program.

        It runs in this thread; searches of other threads and event loops run beside it and share
        its models' batches. Ctrl-C ends this search alone.

        Args:
            program: the model; `args` and `kwargs` are handed to it (and to the guide).
            guide: proposes instead of the model at the sites it shares with it.
            seed: one seed, one result.
            budget: hard limits; the best found so far is returned when one is met.
            progress: show a line while searching.
            on_step: called with the running `Search` after every round.

        Raises:
            PPLError: naming the site, the particle and the remedy.
        """
        search = self.begin(program, *args, guide=guide, seed=seed, budget=budget, **kwargs)
        posterior: Posterior = run_all([search], progress=progress, on_step=on_step)[0]
        return posterior

    def run_many(
        self,
        program: Program,
        arguments: Sequence[Any],
        *,
        guide: Program | None = None,
        seed: int | Sequence[int] = 0,
        budget: Budget | None = None,
        progress: bool = False,
        on_step: OnStep | None = None,
        **kwargs: Any,
    ) -> list[Posterior | PPLError]:
        """Searches the program for many questions, their model calls batched together.

        Args:
            arguments: one entry per question; a tuple is unpacked into several arguments.
            seed: one seed for all, or one per question. Question i gives what
                `run(program, *arguments[i], seed=seed[i])` gives.
            budget: limits for each question on its own.
            on_step: called after every round of a question, with its running `Search`.

        Returns:
            A posterior per question; where one failed, the error itself, so that the other
            questions are not lost: an `AllParticlesDeadError` (it carries what was found until
            then), or any other `PPLError`. Their seconds add up to the time that passed.

        Raises:
            KeyboardInterrupt: with the questions' searches, in order, as its `searches`: those that
                are `over` give their `posterior()`, and `run_all` goes on with all. So does
                whatever else is raised that is no `PPLError` (by `on_step`, for one).
        """
        seeds = seeds_of(seed, arguments)
        searches = [
            self.begin(program, *_as_tuple(a), guide=guide, seed=s, budget=budget, **kwargs)
            for a, s in zip(arguments, seeds, strict=True)
        ]
        return run_all(searches, progress=progress, collect=True, on_step=on_step)

    async def arun(
        self,
        program: Program,
        *args: Any,
        guide: Program | None = None,
        seed: int = 0,
        budget: Budget | None = None,
        progress: bool = False,
        on_step: OnStep | None = None,
        **kwargs: Any,
    ) -> Posterior:
        """`run` for callers in an event loop; many at once share batches as in `run_many`.

        The program runs in a thread of the library's own (`ppl.runtime.loop`), all awaited ones in
        the same. Cancelling the task that awaits it ends this search alone; the `CancelledError`
        has it as its one of `searches`, see `run_many`.
        """
        search = self.begin(program, *args, guide=guide, seed=seed, budget=budget, **kwargs)
        check_watched(progress, on_step)
        with progress_line([search], progress) as shown, kept([search]):
            search.on_step = both(shown, on_step)
            posterior: Posterior = await SHARED.wait_for(search)
        return posterior

    def begin(
        self,
        program: Program,
        *args: Any,
        guide: Program | None = None,
        seed: int = 0,
        budget: Budget | None = None,
        **kwargs: Any,
    ) -> Search:
        """A search to be stepped by hand, saved and resumed."""
        limits = Budget() if budget is None else budget
        return Search(self, Tree(self.target(program), args, kwargs, guide, seed, limits))


class Search:
    """A running search: step it, save it, resume it anywhere, ask for its posterior at any time.

    Attributes:
        searcher: the settings.
        tree: what has grown.
        state: what the next round needs, None before the first.
        notes: what rounds had to tell, for people and plots.
        on_step: called with the search after every round of a run; not saved.
    """

    @checked
    def __init__(self, searcher: Searcher[Any], tree: Tree) -> None:
        self.searcher, self.tree = searcher, tree
        # Says now what is wrong with it.
        check_heeded(rule_of(tree.budget.settled), searcher.settles, type(searcher).__name__)
        self.state: Any = None
        self.notes: list[Note] = []
        self.exhausted = False
        self.settled = False
        self.on_step: OnStep | None = None
        self._stepping = False

    def __repr__(self) -> str:
        rounds = 0 if self.state is None else self.state.round
        over = "over" if self.over else "not over"
        return f"<Search by {self.searcher}: {over} after {several(rounds, 'round')}>"

    @property
    def account(self) -> Account:
        """Who pays."""
        return self.tree.account

    @property
    def over(self) -> bool:
        """True if no round is left, the budget is spent, or the answer is settled."""
        ended = self.exhausted or self.settled
        return ended or (self.state is not None and bool(self.state.over))

    def step(self) -> None:
        """One round of the searcher. Does nothing once the search is over."""
        if self.over:
            return
        if current_job() is None:
            loop_here().run([(self.step, self.account)])
            return
        if self._stepping:
            raise SearchStateError(
                "the search is in the middle of a round already: run it once at a time, from one "
                "thread"
            )
        self._stepping = True
        try:
            if self.state is None:
                self.state = self.searcher.start(self.tree)
            said = self.searcher.step(self.tree, self.state)
            self.state, note = of_round(said, self.searcher)
            if note:
                self.notes.append(note)
            if self.state.round == 1 and self.searcher.steers:
                warn_without_steps(self.tree, type(self.searcher).__name__)
            if self.state.over:
                self._end()
            elif not self.searcher.settles:
                self.settled = settled(self.tree.budget.settled, self._result)
        except BudgetExhausted:
            self.exhausted = True
            with contextlib.suppress(BudgetExhausted):  # one answer for what is left
                run_best_on(self.tree, self._result())
        finally:
            self._stepping = False

    def run(self, on_step: OnStep | None = None) -> Posterior:
        """Steps to the end. `on_step` is called after every round."""
        posterior: Posterior = run_all([self], on_step=on_step)[0]
        return posterior

    def rounds(self) -> Posterior:
        """What a loop runs: all rounds. Call `run`, or `ppl.runtime.loop.SHARED.submit(search)`."""
        try:
            while not self.over:
                self.step()
                if self.on_step is not None:
                    self.on_step(self)
        finally:
            self.tree.close()
        return self.posterior()

    def posterior(self) -> Posterior:
        """What is known now; the evidence only once the search is done."""
        result = self._result()
        if self.exhausted or self.settled or not self.over or not result.answered:
            result = best_so_far(self.tree, result)
        if self.tree.budget.settled is not None:  # whether it went on depended on what it saw
            result = dataclasses.replace(result, log_evidence=None)
        return Posterior.of(
            self.tree,
            result,
            searcher=repr(self.searcher),
            stopped=self._stopped,
            history=self.notes,
        )

    def _end(self) -> None:
        """No search ends without an answer that it could have had."""
        result = self._result()
        if not result.answered:
            ends = run_best_on(self.tree, result)
            if ends and ends[-1].dead:
                raise all_dead(self.tree, ends, self.searcher)

    @property
    def _stopped(self) -> Stopped:
        if self.exhausted:
            return "budget"
        if self.settled or self.state is None:
            return "settled" if self.settled else "done"
        stopped: Stopped = self.state.stopped
        return stopped

    def _result(self) -> Result:
        return Result([], []) if self.state is None else self.searcher.result(self.tree, self.state)

    @checked
    def save(self, path: str | Path) -> None:
        """Writes the search between two rounds to a file of named fields, whole or not at all.

        The program is named by its import path, in a notebook or script by its name there, and a
        fingerprint of what it says is kept; one that has no name (a lambda, or made by a function)
        has to be handed over when the search is loaded. Models among its arguments are named by how
        they were loaded, the searcher by its settings. All else has to be data.

        Raises:
            SearchStateError: something has no name or is no data (it is named); or the file cannot
                be written. An old file is then as it was.
        """
        storage.save(
            path,
            self.searcher,
            self.tree,
            self.state,
            self.notes,
            self.exhausted,
            self.settled,
        )

    @staticmethod
    @checked
    def load(
        path: str | Path,
        program: Program | None = None,
        *,
        guide: Program | None = None,
        models: Mapping[str, Any] | None = None,
    ) -> Search:
        """Reads what `save` wrote.

        Nothing in the file is run. But it names the program by import path, and **the module of
        that name is imported**, as are those of the guide, of functions among arguments and
        settings, and of a searcher from elsewhere; importing runs a module. Give the program to
        import nothing. Models among the arguments are loaded as the file says they were, with
        `ppl.load` or a verifier's `load`, never with `trust_remote_code`; give models to load none.

        The program that the name stands for has to say what it said when the search was saved, its
        own lines and what they use of its module: a cell may have been changed and run again. One
        that is handed over is always taken; if it says something else, with a warning. What was
        drawn is replayed with it, so that other draws are an error; what was finished keeps its
        result.

        Args:
            path: the file.
            program: takes the place of the one that is named.
            guide: likewise; has to be given with `program` if there was one.
            models: by name, take the place of those that are named. Models that were not loaded by
                name have to be given.

        Raises:
            SearchStateError: there is no such file; it holds something else, or what a newer or
                an earlier version wrote; or what it names is not here, or is another one now.
        """
        loaded = storage.load(path, program, guide, models or {})
        search = Search(loaded["searcher"], loaded["tree"])
        search.state, search.notes = loaded["state"], loaded["notes"]
        search.exhausted, search.settled = loaded["exhausted"], loaded["settled"]
        return search


OnStep = Callable[[Search], None]


@checked
def run_all(
    searches: Sequence[Search],
    *,
    progress: bool = False,
    collect: bool = False,
    on_step: OnStep | None = None,
) -> list[Any]:
    """Runs searches side by side, their requests in shared batches; searchers may differ.

    Args:
        searches: from `Searcher.begin`; each gives what it gives alone.
        progress: show a line with searches over, rounds done and tokens spent.
        collect: return a `PPLError` in its place instead of raising it.
        on_step: called after every round of a search, with it.

    Raises:
        PPLError: of the first that fails, unless they are collected; the others are abandoned.
        KeyboardInterrupt: with `searches` as its attribute, see `Searcher.run_many`.
    """

    def job(search: Search) -> Posterior | PPLError:
        try:
            return search.rounds()
        except PPLError as error:
            if not collect:
                raise
            return error

    with progress_line(searches, progress) as shown, kept(searches):
        for search in searches:
            search.on_step = both(shown, on_step)
        try:
            return loop_here().run([(partial(job, search), search.account) for search in searches])
        finally:
            for search in searches:
                search.on_step = None


@checked
def seeds_of(seed: int | Sequence[int], arguments: Sequence[Any]) -> list[int]:
    """One seed per question."""
    each: Any = [seed] * len(arguments) if isinstance(seed, Integral) else seed
    seeds = list(each)
    if len(seeds) != len(arguments):
        raise ValueError(f"seed={shown(seed)}: {len(seeds)} seeds for {len(arguments)} questions")
    return seeds


def _as_tuple(argument: Any) -> tuple[Any, ...]:
    return argument if isinstance(argument, tuple) else (argument,)


def all_dead(tree: Tree, nodes: Sequence[Node], searcher: Searcher[Any]) -> AllParticlesDeadError:
    """The error for a set without weight: names the sites and keeps what was seen."""
    sites = sorted({node.dead_at or "a weight of zero" for node in nodes})
    posterior = Posterior.of(
        tree,
        Result(nodes, [float("-inf")] * len(nodes), float("-inf")),
        searcher=repr(searcher),
    )
    dead = f"all {len(nodes)} particles are" if len(nodes) > 1 else "the one particle left is"
    more = "simulations" if "simulations" in searcher.settings() else "particles"
    return AllParticlesDeadError(
        f"{dead} dead, killed at {', '.join(map(repr, sites))}; use more {more}, a softer "
        "likelihood, or a guide that proposes what the condition wants",
        posterior,
    )
