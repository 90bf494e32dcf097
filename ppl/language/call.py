"""`ppl.call`: whatever is no pure function of a program's choices, run once and remembered.

A tool, a clock, a database, a file. The site draws by calling; its value is what came back, and
forks are told it. Probability one, whatever it is: the world is no part of the model.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from pyro.distributions import TorchDistribution
from pyro.poutine import runtime
from pyro.poutine.runtime import am_i_wrapped
from torch import Tensor

from ppl.errors import ProgramError, ToolError
from ppl.language import checks
from ppl.language.arguments import checked
from ppl.language.cost import Page
from ppl.language.data import PLAIN, NotPlainError, copied, digest
from ppl.language.errand import ELSEWHERE, Errand, in_thread
from ppl.language.site import Draw, Site, Visit

_Outcome = tuple[Any, BaseException | None]


@dataclass(frozen=True, slots=True)
class Called:
    """What a call gave: the value of its site.

    Attributes:
        tool: the function's name.
        arguments: a digest of what it was called with.
        content: a digest of what came back.
        result: what the function returned.
        error: what it raised, as a string; None if it returned.
    """

    tool: str
    arguments: str
    content: str
    result: Any = field(default=None, compare=False)
    error: str | None = None

    @classmethod
    def of(cls, tool: str, arguments: str, result: Any, error: str | None) -> Called:
        """With the digest of what came back."""
        return cls(tool, arguments, digest((result, error)), result, error)


class Call(Site, TorchDistribution):  # type: ignore[misc]
    """What calling a function gives: all mass on that, found out by calling.

    A given `Called` has probability one if it is of the same function with equal arguments, else
    zero; any other value is somebody's word for the result, and taken at it.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012 (the name is torch's)
    has_rsample = False

    def __init__(
        self, function: Callable[..., Any], args: Sequence[Any], seconds: float | None = None
    ) -> None:
        self.function, self.args, self.seconds = function, tuple(args), seconds
        inner: Any = function
        bound: list[Any] = []
        while isinstance(inner, functools.partial):
            bound.append((inner.args, inner.keywords))
            inner = inner.func
        self.tool: str = getattr(inner, "__qualname__", type(inner).__qualname__)
        self.arguments = digest((self.args, bound))
        call = inner if inspect.isroutine(inner) else getattr(inner, "__call__", inner)  # noqa: B004
        self._awaits = inspect.iscoroutinefunction(call)
        self.raised: BaseException | None = None
        super().__init__(validate_args=False)

    def draw(self, visit: Visit, msg: Any, key: int, target: Any = None) -> Draw:
        """Calls the function, now or beside everything else. The draw has probability one."""
        ledger = visit.ledger.of(Page(self.tool))
        ledger.add(tool_calls=1)
        started = self._start()
        if callable(started):
            started = visit.ask(Errand(started, visit.label, ledger))
        return self._called(started, visit.label), 0.0, None

    def sample(self, sample_shape: torch.Size | Sequence[int] = ()) -> Called:  # type: ignore[override]
        """Calls the function and waits for it."""
        started = self._start()
        outcome = started().result() if callable(started) else started
        return self._called(outcome, "a call outside a search")

    def _start(self) -> _Outcome | Callable[[], Any]:
        """What came of it, or what begins it elsewhere."""
        args = [_own(each) for each in self.args]
        if self._awaits or self.seconds is not None:
            return lambda: ELSEWHERE.submit(lambda: self._finish(self.function, args))
        with _no_handlers():
            result, error = _outcome(self.function, args)
        if error is not None:
            return None, error
        if inspect.isawaitable(result):
            return lambda: ELSEWHERE.submit(lambda: self._finish(lambda: result, ()))
        return result, None

    async def _finish(self, function: Callable[..., Any], args: Sequence[Any]) -> _Outcome:
        try:
            async with asyncio.timeout(self.seconds) as limit:
                if self._awaits:
                    result, error = function(*args), None
                else:
                    begun = in_thread(lambda: _outcome(function, args))
                    result, error = await asyncio.wrap_future(begun)
                return (await result if inspect.isawaitable(result) else result), error
        except TimeoutError as error:
            late = limit.expired()
            return None, TimeoutError(f"not done after {self.seconds} s") if late else error
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():  # nobody waits any more
                raise
            return None, error
        except (Exception, SystemExit, KeyboardInterrupt) as error:
            return None, error

    def _called(self, outcome: _Outcome, label: str) -> Called:
        result, self.raised = outcome
        if self.raised is not None:
            error = f"{type(self.raised).__name__}: {self.raised}"
            return Called.of(self.tool, self.arguments, None, error)
        try:
            return Called.of(self.tool, self.arguments, copied(result), None)
        except NotPlainError as error:
            raise ProgramError(
                f"{label}: {self.tool} returned {error}, which is no data and cannot be told to "
                f"forks: let it return plain data ({PLAIN}), such as its str(...) or a dict of "
                "what matters in it"
            ) from None

    def score(self, visit: Visit, msg: Any, value: Any) -> float:
        """Zero for what such a call may have given."""
        return float(self.log_prob(value))

    def log_prob(self, value: object) -> Tensor:
        """Scalar float64 tensor, see the class."""
        mine = (self.tool, self.arguments)
        other = isinstance(value, Called) and (value.tool, value.arguments) != mine
        return torch.tensor(-torch.inf if other else 0.0, dtype=torch.float64)

    def support(self) -> list[tuple[Any, float]]:
        """What it gives, found out by calling: once on every path of an enumeration."""
        return [(self.sample(), 0.0)]

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> Call:
        """Itself, for an empty batch shape: one particle makes one call."""
        if len(batch_shape):
            raise ValueError("ppl.call cannot be used inside a vectorised pyro.plate")
        return self

    @property
    def fingerprint(self) -> tuple[object, ...]:
        """Function and arguments: on replay the program has to call with the same."""
        return ("call", self.tool, self.arguments)

    def __repr__(self) -> str:
        return f"Call({self.tool}, {len(self.args)} arguments)"


@checked
def call(name: str, f: Callable[..., Any], *args: Any, seconds: float | None = None) -> Any:
    """Calls `f(*args)` once, and returns what it gave; forks of the particle are told it.

    For all that is no pure function of the program's choices: tools, clocks, files, databases. What
    comes back is part of the record: stored with a posterior, and replayed instead of called.
    Draws before it are repeated exactly, so whatever a program does with the world goes through
    here. The result has to be plain data; the program gets a copy of it, and `f` gets copies of
    arguments that are.

    A plain function runs at once, and everybody waits for it. One that is slow takes `seconds`, or
    is an `async` function: such calls of all particles run side by side, and models and programs go
    on meanwhile. They run in threads, or in one event loop in a thread of the library's own. A
    plain function that is late runs on in its thread, unheard.

    Outside of searches it simply calls; `pyro.condition` and `ppl.do` set the result from outside.

    Args:
        name: site name, unique in the program.
        f: the function; keyword arguments are bound with `functools.partial`.
        *args: its arguments.
        seconds: most that it may take, on the wall.

    Raises:
        ToolError: `f` raised, or was late. Recorded as well, so a program may catch it and go on.
        ProgramError: the result is no plain data.
    """
    if seconds is not None:
        checks.positive(seconds=seconds)
    site = Call(f, args, seconds)
    called = pyro.sample(name, site)
    if not isinstance(called, Called):  # set from outside
        return called
    if called.error is not None:
        place = getattr(runtime._PYRO_STACK[0], "label", None) if am_i_wrapped() else None
        where = place or f"site {name!r}"
        raise ToolError(f"{where}: {site.tool} failed: {called.error}") from site.raised
    return copied(called.result)


def _outcome(function: Callable[..., Any], args: Sequence[Any]) -> _Outcome:
    """What came of a call. No future carries a StopIteration, so what was raised is a value."""
    try:
        return function(*args), None
    except Exception as error:
        return None, error


def _own(value: Any) -> Any:
    """A copy of plain data; anything else as it is."""
    try:
        return copied(value)
    except NotPlainError:
        return value


@contextmanager
def _no_handlers() -> Iterator[None]:
    """Inside, nobody handles Pyro's statements: what a tool draws is no choice of the program."""
    outside = runtime._PYRO_STACK[:]
    runtime._PYRO_STACK[:] = []
    try:
        yield
    finally:
        runtime._PYRO_STACK[:] = outside
