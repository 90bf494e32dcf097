"""What a study names: tasks, models, verifiers and programs, as texts until they are needed."""

from __future__ import annotations

import contextlib
import hashlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

from ppl import verifiers as kinds
from ppl.errors import PPLError, StudyError
from ppl.language.arguments import shown
from ppl.lm import load as load_model
from ppl.lm import sources as files
from ppl.lm.base import LanguageModel
from ppl.runtime.source import code_of, uses_of
from ppl.runtime.verdict import Scorer
from ppl.searchers.parse import imported, named
from ppl.study import programs
from ppl.tasks import Task, load

K = TypeVar("K")

READY = {"steps": programs.steps, "whole": programs.whole, "thinking": programs.thinking}
"""The programs that a study names by one word."""

_PLAIN = (bool, int, float, str, type(None))


@dataclass(frozen=True)
class Source:
    """How to come by something: what is loaded by name, or made by a function.

    Attributes:
        load: a name, as `ppl.load`, `PRM.load` or `ppl.tasks.load` takes it.
        make: or the import path `"module:function"` of a function that makes it.
        settings: keyword arguments of either; for a verifier, `kind` names its class.
    """

    load: str | None = None
    make: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def told(self) -> dict[str, Any]:
        """As plain data, for `config.json`."""
        call = _load_told(self.load or "") if self.make is None else {"make": self.make}
        return {**call, **self.settings}


@dataclass(frozen=True)
class Use:
    """A program with its settings.

    Attributes:
        program: one word for a ready one, an import path `"module:function"`, or a function
            `(problem, lm, verifier, **settings) -> answer`.
        settings: keyword arguments.
        verifier: the name of the verifier that it gets; False for none; None for the only one of
            the study, or among several the one that is named like the model.
    """

    program: str | Callable[..., Any]
    settings: Mapping[str, Any] = field(default_factory=dict, hash=False)
    verifier: str | bool | None = None

    def found(self) -> Callable[..., Any]:
        """The function itself.

        Raises:
            StudyError: there is none of that name.
        """
        return _ready_or(self.program, "the program")

    @property
    def told(self) -> dict[str, Any]:
        """As plain data. A program of one's own is told with what its code says, and with what it
        uses of its module, so that results of two versions are not mixed."""
        told: dict[str, Any] = {"use": self.program, **self.settings}
        if callable(self.program):
            try:
                told["use"] = named(self.program, "the program")
            except PPLError:
                told["use"] = getattr(self.program, "__qualname__", type(self.program).__name__)
        if self.program not in READY:
            told["code"] = code_of(self.found()) or "unknown"
            told["uses"] = uses_of(self.found())
        return told


def sources(entries: Any, what: str) -> dict[str, Any]:
    """Names and what they stand for, of a list or a table.

    Args:
        entries: a sequence of names, sources, or objects with a `name`; or a mapping from names to
            names, sources, objects, or mappings with `load` or `make` and settings.
        what: the argument, for messages.

    Raises:
        StudyError: an entry is none of that, or two have one name.
    """
    found: dict[str, Any] = {}
    for name, entry in _pairs(entries, what):
        if isinstance(entry, str):
            entry = Source(load=entry)
        elif isinstance(entry, Mapping):
            settings = dict(entry)
            load, make = settings.pop("load", None), settings.pop("make", None)
            if (load is None) == (make is None) or not isinstance(load or make, str):
                raise StudyError(
                    f"{what}.{name}: give load = a name, or make = an import path "
                    f"'module:function', got {shown(dict(entry))}"
                )
            entry = Source(load, make, settings)
        elif not isinstance(entry, Source) and not hasattr(entry, "name"):
            raise StudyError(f"{what}: {shown(entry)} is no name, no source, and has no name")
        _put(found, name, entry, what)
    return found


def uses(entries: Any) -> dict[str, Use]:
    """Programs by name, of a list of names, import paths and functions, or of a table.

    Raises:
        StudyError: an entry is none of that, or two have one name.
    """
    found: dict[str, Use] = {}
    for name, entry in _pairs(entries, "programs"):
        if isinstance(entry, str) or (callable(entry) and not isinstance(entry, Use)):
            entry = Use(entry)
        elif isinstance(entry, Mapping):
            settings = dict(entry)
            program, verifier = settings.pop("use", None), settings.pop("verifier", None)
            if not isinstance(program, str) and not callable(program):
                raise StudyError(
                    f"programs.{name}: use = one of {', '.join(READY)}, or an import path "
                    f"'module:function'; got {shown(program)}"
                )
            if verifier is True or not isinstance(verifier, str | bool | None):
                raise StudyError(
                    f"programs.{name}: verifier = the name of one, or false for none; got "
                    f"{shown(verifier)}"
                )
            entry = Use(program, settings, verifier)
        elif not isinstance(entry, Use):
            raise StudyError(f"programs: {shown(entry)} is no name, import path or function")
        if isinstance(entry.program, str) and ":" not in entry.program:
            _ready_or(entry.program, f"programs.{name}")
        _put(found, name, entry, "programs")
    return found


@contextlib.contextmanager
def importing(folder: str | None) -> Iterator[None]:
    """Modules beside the study's file can be imported inside."""
    if folder is None or folder in sys.path:
        yield
        return
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(folder)


def task_of(name: str, source: Any, folder: str | None = None) -> Task:
    """The task of a source, called by its name in the study."""
    if isinstance(source, Source) and source.load is not None and folder is not None:
        beside = Path(folder) / source.load
        if beside.is_file():  # a file of problems beside the study's own
            return _checked(name, load(str(beside), **source.settings), Task)
    return _checked(name, _opened(source, load, f"tasks.{name}"), Task)


def model_of(name: str, source: Any) -> LanguageModel:
    """The language model of a source."""
    with _setting(f"models.{name}"):
        found = _opened(source, load_model, f"models.{name}")
    return _checked(f"models.{name}", found, LanguageModel)


def verifier_of(name: str, source: Any) -> Any:
    """The verifier of a source."""
    if isinstance(source, Source) and source.load is not None:
        settings = dict(source.settings)
        kind = settings.pop("kind", "PRM")
        loader = getattr(getattr(kinds, str(kind), None), "load", None)
        if loader is None:
            with_load = [n for n in kinds.__all__ if hasattr(getattr(kinds, n), "load")]
            raise StudyError(
                f"verifiers.{name}: kind={kind!r}: one of {', '.join(with_load)}; or make = an "
                "import path 'module:function'"
            )
        with _setting(f"verifiers.{name}"):
            return loader(source.load, **settings)
    return _checked(f"verifiers.{name}", _opened(source, None, f"verifiers.{name}"), Scorer)


def told(source: Any) -> dict[str, Any]:
    """What `config.json` says of a task, model or verifier.

    Objects are told by what can be known of them: how they were loaded, their class and size.
    """
    if isinstance(source, Source):
        return source.told
    origin = getattr(source, "origin", None)
    if origin is not None:
        kept = {name: _shown(value) for name, value in origin.settings.items()}
        beside = {"name": source.name} if "base" in origin.withheld else {}
        return {**_load_told(origin.source), **kept, **beside}
    size = getattr(source, "parameters", None)
    about = {"object": type(source).__qualname__, "name": getattr(source, "name", "")}
    return about if size is None else {**about, "parameters": size}


def _load_told(source: str) -> dict[str, str]:
    """A file of weights by name and contents, as its folder is another on each machine."""
    path = files.file_here(source)
    if path is None:
        return {"load": source}
    return {"load": path.name, "contents": files.contents(path)}


def _shown(setting: Any) -> Any:
    if isinstance(setting, tuple):
        return [_shown(each) for each in setting]
    return setting if isinstance(setting, _PLAIN) else str(setting)


def contents(task: Task) -> str:
    """16 hex digits that change when a question, its name or its answer does."""
    digest = hashlib.sha256()
    for problem in task:
        for part in (problem.id, problem.question, repr(problem.gold)):
            digest.update(part.encode("utf-8", "surrogatepass") + b"\0")
    return digest.hexdigest()[:16]


def _pairs(entries: Any, what: str) -> list[tuple[str, Any]]:
    if isinstance(entries, Mapping):
        return [(str(name), entry) for name, entry in entries.items()]
    if isinstance(entries, str) or not isinstance(entries, Sequence):
        raise StudyError(f"{what}={shown(entries)}: a list, or a table of names")
    return [(_name(entry), entry) for entry in entries]


def _name(entry: Any) -> str:
    if isinstance(entry, str):
        return files.name_of(entry)
    if isinstance(entry, Source):
        return files.name_of(entry.load) if entry.load else str(entry.make)
    if isinstance(entry, Use):
        return _name(entry.program)
    return str(getattr(entry, "name", None) or getattr(entry, "__name__", shown(entry)))


def _put(found: dict[str, Any], name: str, entry: Any, what: str) -> None:
    if name in found:
        raise StudyError(f"{what}: two are called {name!r}; results could not be told apart")
    found[name] = entry


def _opened(source: Any, loader: Callable[..., Any] | None, what: str) -> Any:
    if not isinstance(source, Source):
        return source
    if source.make is None and loader is not None:
        return loader(source.load, **source.settings)
    made = _imported(str(source.make), what)
    return made(**source.settings) if callable(made) and not isinstance(made, Scorer) else made


@contextlib.contextmanager
def _setting(what: str) -> Iterator[None]:
    """Settings that are refused, with the name of what they are of."""
    try:
        yield
    except (TypeError, ValueError) as error:
        if isinstance(error, PPLError):
            raise
        raise StudyError(f"{what}: {error}") from error


def _imported(path: str, what: str) -> Any:
    try:
        return imported(path, imports=True)
    except PPLError as error:
        raise StudyError(f"{what}: {error}") from error


def _ready_or(program: str | Callable[..., Any], what: str) -> Callable[..., Any]:
    if not isinstance(program, str):
        return program
    if program in READY:
        return READY[program]
    if ":" not in program:
        raise StudyError(
            f"{what}: no program {program!r}: one of {', '.join(READY)}, or an import path such as "
            "'my_module:solve'"
        )
    found: Callable[..., Any] = _imported(program, what)
    return found


def _checked(name: str, found: Any, kind: Callable[..., K]) -> K:
    if not isinstance(found, cast(type[K], kind)):
        raise StudyError(f"{name} is a {type(found).__name__}, not a {kind.__name__}")
    return found
