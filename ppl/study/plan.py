"""What a study says: its names, and the groups and cells that follow from them."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from numbers import Real
from pathlib import Path
from typing import Any, Self

from ppl.errors import SearchStateError, StudyError
from ppl.language import checks
from ppl.language.arguments import checked, shown
from ppl.language.cached import cached_property
from ppl.language.cost import Budget
from ppl.searchers import Searcher
from ppl.searchers.parse import parse, spell
from ppl.study import sources
from ppl.study.problems import select
from ppl.tasks import Task

Names = Mapping[str, Any] | Sequence[Any]
"""A list of names or objects, or a mapping from names to what they stand for."""

_DOTTED = re.compile(r"[A-Za-z_]\w*\.[A-Za-z_]\w*")
# What says how many completions a searcher makes, by the names of its settings.
_WIDTHS = ("n", "num_particles", "simulations", "beam_width")
_TIMES = ("expansions", "sweeps")


@dataclass(frozen=True)
class Group:
    """Cells that differ in their problem only; they run side by side.

    Attributes:
        task, model, program: names in the study.
        searcher: as the study writes it.
        spelled: with all its settings, see `ppl.searchers.parse.spell`.
        n: completions of a problem that it is set to make, None where that is not told.
        budget: limits of a problem, None for none.
        seed: of the study.
    """

    task: str
    model: str
    program: str
    searcher: str
    spelled: str
    n: int | None
    budget: Budget | None
    seed: int

    @property
    def limits(self) -> dict[str, Any] | None:
        """The budget as plain data, without what is not limited."""
        if self.budget is None:
            return None
        limits = {f.name: getattr(self.budget, f.name) for f in fields(self.budget)}
        if limits["settled"] is not None and not isinstance(limits["settled"], Real):
            limits["settled"] = spell(limits["settled"])
        return {name: limit for name, limit in limits.items() if limit is not None}

    def cell(self, problem: str) -> str:
        """16 hex digits that name a problem in this group, here and on every machine."""
        parts = [self.task, problem, self.model, self.program, self.spelled, self.limits, self.seed]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]

    def __str__(self) -> str:
        limits = "" if not self.limits else f" {self.limits}"
        return f"{self.task} {self.model} {self.program} {self.searcher}{limits} seed {self.seed}"


@dataclass(frozen=True)
class Cell:
    """One problem in one group: one line of `results.jsonl`.

    Attributes:
        group: task, model, program, searcher, budget, seed.
        problem: name of the problem.
    """

    group: Group
    problem: str

    @property
    def identity(self) -> str:
        """16 hex digits that name it."""
        return self.group.cell(self.problem)


def question_seed(seed: int, problem: str) -> int:
    """The seed that a searcher gets: problems draw independently, and the same in every group.

    `searcher.run(program, ..., seed=question_seed(0, "gsm8k/17"))` repeats a cell.
    """
    return int.from_bytes(hashlib.sha256(f"{seed}:{problem}".encode()).digest()[:6], "big")


@dataclass(frozen=True)
class Plan:
    """What a study says, and what follows from it; see `ppl.study.Study`, which also runs it."""

    tasks: Names
    models: Names
    searchers: Sequence[str | Searcher[Any]]
    programs: Names = ("steps",)
    verifiers: Names = ()
    budgets: Sequence[Budget | Mapping[str, Any] | None] = (None,)
    seeds: Sequence[int] = (0,)
    folder: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        put = self._put
        for name in ("tasks", "models", "verifiers"):
            put(name, sources.sources(getattr(self, name), name))
        put("programs", sources.uses(self.programs))
        put("searchers", _listed("searchers", self.searchers, str | Searcher))
        for text in self.searchers:
            _parsed_early(text)
        put("budgets", tuple(map(_budget, _listed("budgets", self.budgets, object))) or (None,))
        put("seeds", _listed("seeds", self.seeds, object) or (0,))
        for seed in self.seeds:
            checks.seed(seeds=seed)
        for name in ("tasks", "models", "searchers", "programs"):
            if not getattr(self, name):
                raise StudyError(f"{name}: a study needs at least one")
        for name in ("budgets", "seeds"):
            values = list(getattr(self, name))
            if len(values) != len(set(values)):
                raise StudyError(f"{name}: one is there twice: {shown(values)}")
        for program, use in self.named("programs").items():
            if isinstance(use.verifier, str) and use.verifier not in self.verifiers:
                raise StudyError(
                    f"programs.{program}: no verifier {use.verifier!r}: the study has "
                    f"{', '.join(self.verifiers) or 'none'}"
                )

    def _put(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    @classmethod
    @checked
    def read(cls, path: str | Path) -> Self:
        """The study of a TOML file whose keys are the attributes of this class. Runs nothing.

        Raises:
            StudyError: there is no such file, it is no TOML, or no study.
        """
        try:
            with Path(path).open("rb") as file:
                found = tomllib.load(file)
        except OSError as error:
            raise StudyError(f"{path} cannot be read: {error.strerror or error}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise StudyError(f"{path} is no TOML: {error}") from error
        known = [f.name for f in fields(cls) if f.name != "folder"]
        for name in found:
            if name not in known:
                raise StudyError(f"{path}: unknown key {name!r}: a study has {', '.join(known)}")
        for name in ("tasks", "models", "searchers"):
            if name not in found:
                raise StudyError(f"{path}: {name} is missing: {name} = [...]")
        try:
            return cls(**found, folder=str(Path(path).resolve().parent))
        except StudyError as error:
            raise StudyError(f"{path}: {error}") from error

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """All combinations but for problems; those of one model stand together.

        Raises:
            StudyError: a searcher is unknown, or there twice.
        """
        parsed = [self._searcher(s) for s in self.searchers]
        spelled: dict[str, str] = {}
        for text, spelling, _ in parsed:
            if spelling in spelled:
                raise StudyError(f"searchers: {text} and {spelled[spelling]} are the same")
            spelled[spelling] = text
        return tuple(
            Group(task, model, program, text, spelling, n, budget, int(seed))
            for model, task, program, budget, seed, (text, spelling, n) in itertools.product(
                self.models, self.tasks, self.programs, self.budgets, self.seeds, parsed
            )
        )

    def cells(
        self, *, limit: int | None = None, problems: str | None = None, shard: Any = None
    ) -> Iterator[Cell]:
        """Everything that is run, in order. Loads the tasks, but no model.

        Args:
            limit, problems, shard: as in `run`.
        """
        chosen = {
            name: select(self.task(name), limit=limit, problems=problems, shard=shard)
            for name in self.tasks
        }
        for group in self.groups:
            for problem in chosen[group.task]:
                yield Cell(group, problem.id)

    @cached_property
    def _tasks(self) -> dict[str, Task]:
        return {}

    def named(self, kind: str) -> Mapping[str, Any]:
        """The study's `tasks`, `models`, `verifiers` or `programs`: names, and what they are."""
        found: Mapping[str, Any] = getattr(self, kind)
        return found

    def task(self, name: str) -> Task:
        """A task of the study by its name there; loaded once."""
        if name not in self._tasks:
            with sources.importing(self.folder):
                self._tasks[name] = sources.task_of(name, self.named("tasks")[name], self.folder)
        return self._tasks[name]

    def verifier(self, program: str, model: str) -> str | None:
        """The name of the verifier that a program gets when it runs with a model.

        Raises:
            StudyError: there are several, and nothing says which.
        """
        wanted = self.named("programs")[program].verifier
        if wanted is False or (wanted is None and not self.verifiers):
            return None
        if isinstance(wanted, str):
            return wanted
        if len(self.verifiers) == 1:
            return str(next(iter(self.verifiers)))
        if model in self.verifiers:
            return model
        raise StudyError(
            f"programs.{program}: which verifier with the model {model!r}? Of several, name one "
            f"(verifier = {next(iter(self.verifiers))!r}), or call it like the model"
        )

    def _searcher(self, searcher: str | Searcher[Any]) -> tuple[str, str, int | None]:
        if isinstance(searcher, str):
            try:
                with sources.importing(self.folder):
                    found = parse(searcher, imports=True)
            except (SearchStateError, TypeError, ValueError) as error:
                raise StudyError(f"searchers: {searcher!r}: {error}") from error
            text = searcher.strip()
        else:
            found, text = searcher, repr(searcher)
        if not isinstance(found, Searcher):
            raise StudyError(f"searchers: {text} is a {type(found).__name__}, no searcher")
        return text, spell(found), completions(found)

    def __getstate__(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


def completions(searcher: Searcher[Any]) -> int | None:
    """How many completions of a problem a searcher's settings stand for: 16 for `SMC(16)` and for
    `BeamSearch(4, 4)`; None for one whose settings do not tell."""
    settings = vars(searcher)
    widths = [settings[name] for name in _WIDTHS if isinstance(settings.get(name), int)]
    if not widths:
        return 1 if type(searcher).__name__ == "Greedy" else None
    if "n" in settings or "simulations" in settings:  # these count whole completions
        return int(widths[0])
    return int(widths[0]) * math.prod(int(settings.get(name, 1)) for name in _TIMES)


def _listed(name: str, values: Any, kind: Any) -> tuple[Any, ...]:
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise StudyError(f"{name}={shown(values)}: a list")
    for value in values:
        if not isinstance(value, kind):
            raise StudyError(f"{name}: {shown(value)} is none")
    return tuple(values)


def _budget(value: Any) -> Budget | None:
    if isinstance(value, Mapping):
        try:
            settled = value.get("settled")
            rule = {"settled": parse(settled)} if isinstance(settled, str) else {}
            value = Budget(**{**value, **rule})
        except (TypeError, ValueError, SearchStateError) as error:
            raise StudyError(f"budgets: {shown(dict(value))}: {error}") from error
    if value is not None and not isinstance(value, Budget):
        raise StudyError(f"budgets: {shown(value)}: limits such as {{'tokens': 4000}}, or None")
    return None if value == Budget() else value


def _parsed_early(text: str | Searcher[Any]) -> None:
    """Says now what is wrong with a searcher, unless it names a module that is yet to be run."""
    if not isinstance(text, str):
        return
    try:
        parse(text)
    except (SearchStateError, TypeError, ValueError) as error:
        if not _DOTTED.search(text):
            raise StudyError(f"searchers: {text!r}: {error}") from error
