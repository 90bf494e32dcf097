"""Branches of one particle, side by side: what `ppl.parallel` runs in a search.

Each branch is a coroutine with records of its own. While one waits for a model, the others go on,
so one particle has several requests on their way. Nothing depends on whose answer comes first: a
branch that comes to its next checkpoint waits until all others have come to theirs or have ended;
then the particle stands at a checkpoint, with what the branches have recorded since, in their
order. So a fork hands each branch its own part of the record.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pyro  # noqa: F401 (all of it before its parts: threads)
from pyro.poutine import runtime

from ppl.errors import DuplicateSiteError, NonDeterministicProgramError
from ppl.language.primitives import Prefix
from ppl.runtime.coroutine import PAUSE, Coroutine, park

Path = tuple[int, ...]
"""Numbers of branches, from the outermost in."""

# What of a particle each branch has for itself.
_OWN = (
    "_replay",
    "_position",
    "_numbers",
    "prefix",
    "records",
    "at_checkpoint",
    "site",
    "_written",
    "provisional",
)


@dataclass(frozen=True, slots=True)
class Several:
    """Requests of several branches of a particle; perhaps none, where answers are still to come."""

    parts: tuple[tuple[Path, Any], ...]


@dataclass(frozen=True, slots=True)
class Told:
    """The answer to a request of one branch."""

    path: Path
    reply: Any


@dataclass(frozen=True, slots=True)
class _End:
    result: Any


class _Branch:
    """One branch: a coroutine, and what of the particle's state is its own."""

    def __init__(self, particle: Any, prefix: str, function: Callable[[], Any]) -> None:
        self.text, self.said = particle._written, particle.provisional
        self.state = {name: getattr(particle, name) for name in _OWN}
        start = particle.prefix + prefix
        mine = [r for r in particle._replay[particle._position :] if r.name.startswith(start)]
        self.state |= {"_replay": mine, "_position": 0, "_numbers": {}, "records": []}
        self.state["prefix"] = start
        self.waits = self.over = False
        self.dead_at: str | None = None
        self.result: Any = None

        def run() -> _End:
            with Prefix(prefix):
                return _End(function())

        context = contextvars.copy_context()  # a greenlet begins with an empty one
        self.coroutine = Coroutine(lambda: context.run(run), particle)
        self.coroutine._stack = runtime._PYRO_STACK[:]
        self.coroutine._plates = list(runtime._DIM_ALLOCATOR._stack)

    def resume(self, particle: Any, reply: Any) -> Any:
        """Runs on, with the particle's state its own."""
        outside = {name: getattr(particle, name) for name in _OWN}
        vars(particle).update(self.state)
        try:
            return self.coroutine.resume(reply)
        finally:
            self.state = {name: getattr(particle, name) for name in _OWN}
            vars(particle).update(outside)


class _Branches:
    """All branches of one `ppl.parallel`, until the last has ended."""

    def __init__(self, particle: Any, name: str, functions: Sequence[Callable[[], Any]]) -> None:
        self.particle = particle
        self.all = [_Branch(particle, f"{name}/{i}/", f) for i, f in enumerate(functions)]
        self.asked: list[tuple[Path, Any]] = []
        self.paused: list[_Branch] = []
        self.flying = 0  # requests without an answer
        self.owed = 0  # pauses whose end has not been said

    def run(self) -> list[Any]:
        """Runs all; their results."""
        ready: list[tuple[_Branch, Any]] = [(branch, None) for branch in self.all]
        while True:
            for branch, reply in ready:
                self._go(branch, reply)
            ready = []
            arrived = all(branch.over or branch.waits for branch in self.all)
            if arrived and not self.owed:
                self._gather()
                if all(branch.over for branch in self.all):
                    return [branch.result for branch in self.all]
                ready = self._checkpoint()
                continue
            ready = self._wait()

    def _go(self, branch: _Branch, reply: Any) -> None:
        event = branch.resume(self.particle, reply)
        number = self.all.index(branch)
        if isinstance(event, _End):
            branch.over, branch.result = True, event.result
            if branch.state["_position"] < len(branch.state["_replay"]):
                missing = branch.state["_replay"][branch.state["_position"]].name
                raise NonDeterministicProgramError(
                    f"on replay branch {branch.state['prefix']!r} of particle "
                    f"{self.particle.identity} ended before site {missing!r}, which its record "
                    "has; programs must be deterministic given their choices"
                )
        elif event is PAUSE:
            self.paused.append(branch)
        elif isinstance(event, Several):
            self._ask([((number, *path), request) for path, request in event.parts])
        elif hasattr(event, "dead_at"):  # a checkpoint
            branch.waits, branch.dead_at = True, event.dead_at
        else:
            self._ask([((number,), event)])

    def _ask(self, parts: Sequence[tuple[Path, Any]]) -> None:
        self.asked += parts
        self.flying += len(parts)

    def _wait(self) -> list[tuple[_Branch, Any]]:
        """Hands out what was asked; who can go on, and with what reply."""
        asked, self.asked = self.asked, []
        pauses = bool(self.paused) and not asked and not self.owed
        self.owed += pauses
        got = park(PAUSE if pauses else Several(tuple(asked)))
        ready: list[tuple[_Branch, Any]] = [(branch, None) for branch in self.paused]
        self.paused = []
        if isinstance(got, Told) and got.reply is not None:
            self.flying -= 1
            first, rest = got.path[0], got.path[1:]
            ready.append((self.all[first], Told(rest, got.reply) if rest else got.reply))
        else:
            self.owed -= 1
        return ready

    def _gather(self) -> None:
        """What the branches have recorded becomes the particle's, in their order."""
        particle = self.particle
        for branch in self.all:
            state = branch.state
            particle.records += state["records"]
            state["records"] = []
            if state["_written"] is not branch.text:
                branch.text = particle._written = state["_written"]
            if state["provisional"] is not branch.said:
                branch.said = particle.provisional = state["provisional"]
            particle.at_checkpoint = particle.at_checkpoint or state["at_checkpoint"]

    def _checkpoint(self) -> list[tuple[_Branch, Any]]:
        """The particle stands at a checkpoint, or is dead."""
        dead = [branch.dead_at for branch in self.all if branch.dead_at is not None]
        park(self.particle.arrival(dead[0] if dead else None))
        going = [branch for branch in self.all if branch.waits]
        for branch in self.all:
            branch.state["at_checkpoint"] = branch.waits = False
        return [(branch, None) for branch in going]


def run_branches(particle: Any, name: str, functions: Sequence[Callable[[], Any]]) -> list[Any]:
    """Runs functions side by side as branches of a particle; their results, in order."""
    whole = f"{particle.prefix}{name}/"
    if whole in particle._values:
        raise DuplicateSiteError(
            f"ppl.parallel comes twice to the name {name!r} in particle {particle.identity}: give "
            "each its own, as in name=f'both_{t}'"
        )
    particle._values[whole] = None
    outer = particle.site
    branches = _Branches(particle, name, functions)
    replayed = sum(len(branch.state["_replay"]) for branch in branches.all)
    rest = particle._replay[particle._position :]
    if not all(record.name.startswith(whole) for record in rest[:replayed]):
        raise NonDeterministicProgramError(
            f"on replay particle {particle.identity} came to the branches of {name!r} with other "
            "sites before them than in its record; programs must be deterministic given their "
            "choices"
        )
    particle._position += replayed
    particle.site = f"the branches of {name!r}"
    with ExitStack() as ended:
        for branch in branches.all:
            ended.callback(branch.coroutine.close)
        results = branches.run()
    particle.site = outer
    return results
