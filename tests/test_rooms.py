"""Where things live: no file imports in a circle, and no room imports from a room above it."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import networkx as nx
import pytest
from packages import imported, parsed, sources

# From the bottom to the top: a file may import from its own room and from those before it.
ROOMS = [
    "ppl.locks",
    "ppl.lazy",
    "ppl.errors",
    "ppl.language",
    "ppl.lm",
    "ppl.runtime",
    "ppl.posterior",
    "ppl.export",
    "ppl.decide",
    "ppl.searchers",
    "ppl.calibration",
    "ppl.verifiers",
    "ppl.tools",
    "ppl.programs",
    "ppl.allocate",
    "ppl.tasks",
    "ppl.tiny",
    "ppl.study",
    "ppl.serve",
    "ppl.cli",
    "ppl.__main__",
]


def imports(path: Path, modules: dict[str, Path]) -> set[str]:
    """Modules of the library that a file imports, at its top, in a function, or for types only."""
    return imported(ast.walk(parsed(path)), modules) & modules.keys()


@pytest.fixture(scope="module")
def graph() -> nx.DiGraph:
    modules = sources()
    graph: nx.DiGraph = nx.DiGraph()
    graph.add_nodes_from(modules)
    graph.add_edges_from((m, i) for m, path in modules.items() for i in imports(path, modules))
    return graph


def room(module: str) -> int | None:
    """The number of a module's room; None for the package's own front."""
    return next((i for i, r in enumerate(ROOMS) if module == r or module.startswith(r + ".")), None)


def test_no_file_imports_in_a_circle(graph):
    circles = [sorted(c) for c in nx.strongly_connected_components(graph) if len(c) > 1]
    assert not circles
    assert not list(nx.selfloop_edges(graph))


def test_arrows_point_downwards_only(graph):
    upward = [
        (a, b)
        for a, b in graph.edges
        if room(a) is not None and room(b) is not None and room(a) < room(b)
    ]
    assert not upward
    # The front may import all rooms, and no room the front.
    assert not [(a, b) for a, b in graph.edges if b == "ppl"]


def test_every_file_has_a_room(graph):
    assert [m for m in graph if room(m) is None] == ["ppl"]


def test_files_are_short():
    long = {m: n for m, p in sources().items() if (n := len(p.read_text().splitlines())) > 500}
    assert not long


def test_rooms_open_when_they_are_asked_for():
    code = (
        "import sys, ppl; assert 'ppl.searchers' not in sys.modules; "
        "ppl.calibration.sbc, ppl.decide.vote, ppl.searchers.SMC, ppl.verifiers.PRM; "
        "ppl.tasks.load, ppl.study.Study; "
        "assert not hasattr(ppl, 'rooms')"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=900)
