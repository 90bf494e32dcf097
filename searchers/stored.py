"""Searches as files: see `ppl.posterior.container` for the format.

The tree is rows of nodes and records. The program, and functions among its arguments, are import
paths, with what they said (`ppl.searchers.said`); models are the calls that loaded them; the
searcher is its settings as text; the state is a frozen dataclass by the names of its fields, as are
the values that states are made of.

What is defined in a notebook or a script is named as well, `"__main__:solve"`. A program that
nothing names (a lambda, one made by a function, an object) has to be handed over at loading.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from numbers import Real
from pathlib import Path
from types import FunctionType, MappingProxyType
from typing import Any

from ppl.errors import SearchStateError
from ppl.language.cost import Account, Budget
from ppl.lm.base import LanguageModel
from ppl.posterior.container import Container, write
from ppl.posterior.decoder import Decoder, build
from ppl.posterior.encoder import Encoder
from ppl.posterior.models import about, load_again
from ppl.posterior.store import cost_of, cost_row, damage, decoder_of, rows_of
from ppl.posterior.values import NotDataError
from ppl.runtime.node import Node
from ppl.runtime.particle import Segment
from ppl.runtime.program import Program
from ppl.runtime.source import code_of
from ppl.runtime.tree import Tree
from ppl.runtime.verdict import Scorer
from ppl.runtime.wave import Flight
from ppl.searchers.parse import imported, named, parse, spell
from ppl.searchers.said import check, compare, functions_of, missing, said
from ppl.searchers.trees.persistent import IntMap, Log

# Where values that states are made of live, besides the module of the searcher.
_OF_STATES = ("ppl.searchers.", "ppl.runtime.weights")


def save(
    path: str | Path,
    searcher: Any,
    tree: Tree,
    state: Any,
    notes: Sequence[Mapping[str, Any]],
    exhausted: bool,
    settled: bool,
) -> None:
    """Writes a search between two rounds, whole or not at all.

    Raises:
        SearchStateError: something is no data, or has no name (it is named); or the file cannot be
            written.
    """
    encoder = _Encoder(tree, type(searcher).__module__)
    meta: dict[str, Any] = {
        "searcher": spell(searcher, main=True),
        "searcher_class": named(type(searcher), "the searcher's class", main=True),
        "program": encoder.program(tree.program, "program"),
        "guide": None if tree.guide is None else encoder.program(tree.guide, "guide"),
        "args": [encoder.value(a, f"argument {i} of the program") for i, a in enumerate(tree.args)],
        "kwargs": encoder.row(tree.kwargs, "the program's arguments"),
        "seed": encoder.value(tree.seed, "the seed"),
        "budget": _budget_row(tree.budget),
        "cost": cost_row(tree.cost),
        "elapsed": tree.account.elapsed,
        "next": tree._next,
        "exhausted": exhausted,
        "settled": settled,
    }
    nodes = [_node_row(encoder, node) for node in tree.nodes]
    flights = [_flight_row(encoder, flight) for flight in tree._flights]
    history = rows_of(encoder, notes)
    content = encoder.value(state, f"the state {type(state).__name__}")
    encoder.keep_settings(searcher)
    meta |= {"models": encoder.model_rows(tree), "tokenizers": encoder.tokenizers}
    meta["said"] = encoder.said
    tables = {"nodes": nodes, "flights": flights, "history": history, **encoder.tables}
    write(path, "search", meta, tables, encoder.arrays, {"state": content})


def load(
    path: str | Path,
    program: Program | None,
    guide: Program | None,
    models: Mapping[str, Any],
) -> dict[str, Any]:
    """Reads what `save` wrote; see `Search.load`.

    Returns:
        What was given to `save`, by name.
    """
    container = Container(path, "search")
    try:
        with damage(container):
            return _loaded(container, program, guide, models)
    except SearchStateError as error:
        if str(path) in str(error):
            raise
        raise SearchStateError(f"{path} cannot be loaded: {error}") from error


def _loaded(
    container: Container,
    program: Program | None,
    guide: Program | None,
    models: Mapping[str, Any],
) -> dict[str, Any]:
    meta, imports = container.meta, program is None
    kept = meta.get("said", {})
    if imports or meta["searcher_class"].startswith("ppl.searchers."):
        searcher = parse(meta["searcher"], imports=imports)
    else:
        searcher = parse(meta["searcher"])
    for path, setting in _settings(searcher):
        if path in kept.get("others", {}):
            check(kept["others"][path], setting, path, "")
    at_hand = load_again(meta["models"], models)
    decoder = _decoder(container, at_hand, imports)
    if guide is not None:
        compare(kept.get("guide", ()), guide, "guide")
    elif meta["guide"] is not None:
        if not imports:
            raise SearchStateError(
                f"it was saved with a guide, {meta['guide']}: give it, Search.load(path, "
                "program=..., guide=...)"
            )
        guide = _looked_up(meta["guide"], kept.get("guide", ()), decoder, "guide")
    if program is None:
        program = _looked_up(meta["program"], kept.get("program", ()), decoder, "program")
    else:
        program = searcher.target(program)
        compare(kept.get("program", ()), program, "program")
    tree = Tree(
        program,
        tuple(map(decoder.value, meta["args"])),
        decoder.row(meta["kwargs"]),
        guide,
        decoder.value(meta["seed"]),
        _budget(meta["budget"]),
    )
    tree.account = Account(tree.budget, cost_of(meta["cost"]), float(meta["elapsed"]))
    nodes = _nodes(decoder, container.rows("nodes"))
    tree.root, tree.nodes, tree._next = (
        next(iter(nodes.values())),
        list(nodes.values()),
        meta["next"],
    )
    tree._flights = [_flight(decoder, row, nodes) for row in container.rows("flights")]
    decoder.kinds |= _of_states(decoder, nodes, type(searcher).__module__)
    return {
        "searcher": searcher,
        "tree": tree,
        "state": decoder.value(container.json("state.json")["state"]),
        "notes": [decoder.row(row) for row in container.rows("history")],
        "exhausted": bool(meta["exhausted"]),
        "settled": bool(meta.get("settled", False)),
    }


def _looked_up(row: Any, kept: Sequence[Any], decoder: Decoder, what: str) -> Any:
    """The program of a name, if it says what it said."""
    if isinstance(row, dict) and "handed" in row:
        raise SearchStateError(
            f"its {what}, {row['handed']!r}, is a lambda, a function made by another one, one that "
            f"was replaced, or an object, which no name finds: hand it over, Search.load(path, "
            f"program=...{'' if what == 'program' else ', guide=...'})"
        )
    found = decoder.value(row)
    if not callable(found):
        raise ValueError(f"its {what} is {found!r}")
    for said_of, function in zip(kept, functions_of(found), strict=False):
        check(said_of, function, f"{function.__module__}:{function.__qualname__}", what)
    return found


def _settings(searcher: Any) -> Iterator[tuple[str, Any]]:
    """Functions among a searcher's settings, with their names."""
    for field in dataclasses.fields(searcher):
        value = getattr(searcher, field.name)
        if isinstance(value, FunctionType):
            yield f"{value.__module__}:{value.__qualname__}", value


def _budget_row(budget: Budget) -> dict[str, Any]:
    row = {f.name: getattr(budget, f.name) for f in dataclasses.fields(budget)}
    if row["settled"] is not None and not isinstance(row["settled"], Real):
        row["settled"] = spell(row["settled"])
    return row


def _budget(row: Mapping[str, Any]) -> Budget:
    settled = row.get("settled")
    rule = {"settled": parse(settled)} if isinstance(settled, str) else {}
    return build(Budget, {**row, **rule})


# -- nodes ---------------------------------------------------------------------------------------


def _node_row(encoder: _Encoder, node: Node) -> dict[str, Any]:
    kept = ("identity", "parent", "records")
    names = [f.name for f in dataclasses.fields(node) if not f.name.startswith("_")]
    where = f"node {node.identity}"
    row = encoder.row({n: getattr(node, n) for n in names if n not in kept}, where)
    return {
        "identity": node.identity,
        "parent": None if node.parent is None else node.parent.identity,
        **row,
        "records": [encoder.record(record, where) for record in node.records],
    }


def _nodes(decoder: Decoder, rows: Sequence[Any]) -> dict[int, Node]:
    nodes: dict[int, Node] = {}
    for row in rows:
        parent, numbers = row.pop("parent"), row.pop("records")
        if (parent is None) != (not nodes):
            raise ValueError("the first node, and no other, is the root")
        above = None if parent is None else nodes[parent]
        records = tuple(decoder.records[number] for number in numbers)
        node = decoder.build(Node, row, parent=above, records=records)
        nodes[node.identity] = node
    if not nodes:
        raise ValueError("there are no nodes")
    return nodes


def _flight_row(encoder: _Encoder, flight: Flight) -> dict[str, Any]:
    """Children underway: they start again, and draw what they would have drawn."""
    segments = []
    for segment in flight.segments:
        if segment.decide is not None:
            raise SearchStateError(
                "the search has children underway whose choices its searcher decides, which cannot "
                "be saved: tree.collect() or tree.abandon() them first"
            )
        forced = segment.forced
        forced_row = None if forced is None else encoder.row(forced, "a forced segment")
        row = {
            "forced": forced_row,
            "greedy": segment.greedy,
            "power": segment.power,
            "alone": segment.alone,
        }
        segments.append(row)
    return {
        "parents": [parent.identity for parent in flight.parents],
        "first": flight.first,
        "segments": segments,
        "simulated": flight.simulated,
        "quorum": flight.quorum,
        "missing": flight.missing,
    }


def _flight(decoder: Decoder, row: dict[str, Any], nodes: Mapping[int, Node]) -> Flight:
    segments = [
        Segment(
            forced=None if s["forced"] is None else decoder.row(s["forced"]),
            greedy=bool(s["greedy"]),
            power=float(s.get("power", 1.0)),
            alone=bool(s.get("alone", False)),
        )
        for s in row["segments"]
    ]
    parents = [nodes[number] for number in row["parents"]]
    flight = Flight(parents, row["first"], segments, bool(row["simulated"]), row["quorum"])
    if not set(row["missing"]) <= set(flight.missing) or len(segments) != len(parents):
        raise ValueError("children underway do not fit their parents")
    flight.missing = list(row["missing"])
    return flight


# -- values that only searches hold --------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Code:
    """Stands for a program where a value is wanted: it is named, whatever it is."""

    program: Program


class _Encoder(Encoder):
    """Encodes also what is named: functions, models, nodes of the tree, and parts of states."""

    def __init__(self, tree: Tree, module: str) -> None:
        super().__init__(fingerprints=True)
        self.module = module
        self._nodes = {node.identity: node for node in tree.nodes}
        self._models: list[Any] = []
        self.said: dict[str, Any] = {"others": {}}

    def program(self, program: Program, what: str) -> Any:
        """A program by name; if it has none, what it is called."""
        self.said[what] = [said(function) for function in functions_of(program)]
        models, others = len(self._models), dict(self.said["others"])
        try:
            return self.value(_Code(program), f"the {what}")
        except SearchStateError:
            del self._models[models:]
            return {"handed": self.said[what][0]["name"]}
        finally:
            self.said["others"] = others

    def keep_settings(self, searcher: Any) -> None:
        """Notes what functions among the searcher's settings say."""
        self.said["others"] |= {path: said(function) for path, function in _settings(searcher)}

    def model_rows(self, tree: Tree) -> list[dict[str, Any]]:
        """For `meta.json`: models among the arguments, which are loaded again."""
        rows = [about(model) for model in self._models]
        names = [row["name"] for row in rows]
        for model, row in zip(self._models, rows, strict=True):
            if names.count(row["name"]) > 1 and row["loaded"] is None:
                raise SearchStateError(
                    f"two models among the program's arguments have the name {model.name!r}, and "
                    "how they were loaded is not known: give them different names (name=)"
                )
        return rows

    def other(self, value: Any) -> Any:
        if isinstance(value, _Code):
            return self._code(value.program)
        if isinstance(value, LanguageModel | Scorer):
            known = [i for i, model in enumerate(self._models) if model is value]
            if not known:
                self._models.append(value)
            return {"model": known[0] if known else len(self._models) - 1}
        if isinstance(value, FunctionType | functools.partial):
            return self._code(value)
        if isinstance(value, Node):
            if self._nodes.get(value.identity) is not value:
                raise NotDataError(f"node {value.identity}, which is not in the tree,")
            return {"node": value.identity}
        if isinstance(value, Log):
            return {"log": [self._value(x) for x in value]}
        if isinstance(value, IntMap):
            return {"intmap": self._pairs(value)}
        if isinstance(value, MappingProxyType):
            return {"mapping": self._pairs(value)}
        if _is_frozen(type(value)) and _of_module(type(value).__module__, self.module):
            cls = named(type(value), "the class", main=True)
            return {"fields": [cls, self.fields(value)]}
        return super().other(value)

    def _code(self, program: Any) -> Any:
        if isinstance(program, functools.partial) and type(program) is functools.partial:
            given = [self._value(list(program.args)), self._value(dict(program.keywords))]
            return {"partial": [self._code(program.func), *given]}
        path = named(program, "the function", main=True)
        if path.startswith("__main__:") and code_of(program) is None:
            raise SearchStateError(
                f"the function {path} was typed into a shell, and its source is not known: define "
                "it in a module, a script or a notebook"
            )
        self.said["others"][path] = said(program)
        return {"function": path}


def _decoder(container: Container, models: Sequence[Any], imports: bool) -> Decoder:
    codecs = [model.codec for model in models if isinstance(model, LanguageModel)]
    decoder = decoder_of(container, codecs=codecs, devices=True)

    def partial(content: Any) -> Any:
        function, args, kwargs = content
        return functools.partial(
            decoder.value(function), *decoder.value(args), **decoder.value(kwargs)
        )

    kept = container.meta.get("said", {})

    def function(path: Any) -> Any:
        try:
            found = imported(path, imports=imports)
        except SearchStateError as error:
            if str(path).startswith("__main__:"):
                raise SearchStateError(missing(path, kept)) from error
            raise
        if path in kept.get("others", {}):
            check(kept["others"][path], found, path, "")
        return found

    decoder.kinds |= {
        "function": function,
        "partial": partial,
        "model": lambda number: models[number],
    }
    return decoder


def _of_states(
    decoder: Decoder, nodes: Mapping[int, Node], module: str
) -> dict[str, Callable[[Any], Any]]:
    def fields(content: Any) -> Any:
        path, row = content
        if not _of_module(path.partition(":")[0], module):
            raise SearchStateError(f"{path!r} is no part of a searcher's state")
        cls = imported(path, imports=path.startswith(_OF_STATES))
        if not isinstance(cls, type) or not _is_frozen(cls):
            raise SearchStateError(f"{path!r} is no frozen dataclass")
        return decoder.build(cls, row)

    def pairs(content: Any) -> dict[Any, Any]:
        return {decoder.value(k): decoder.value(v) for k, v in content}

    return {
        "node": lambda number: nodes[number],
        "log": lambda content: Log(map(decoder.value, content)),
        "intmap": lambda content: IntMap(pairs(content)),
        "mapping": lambda content: MappingProxyType(pairs(content)),
        "fields": fields,
    }


def _is_frozen(cls: type) -> bool:
    return dataclasses.is_dataclass(cls) and bool(cls.__dataclass_params__.frozen)  # type: ignore[attr-defined]


def _of_module(module: str, searcher: str) -> bool:
    return module == searcher or f"{module}.".startswith(_OF_STATES)
