"""Searchers as text: what `repr` writes is read back, and nothing is evaluated."""

from __future__ import annotations

import inspect
import math
import sys
from dataclasses import dataclass

import pytest
from programs import ONE_PARTICLE, SEARCHERS

from ppl import decide
from ppl.errors import SearchStateError
from ppl.searchers import SMC, AStar, BestOfN, Frontier, Greedy, Searcher, VectorizedSMC
from ppl.searchers.parse import parse, spell

ALL = [*SEARCHERS, *ONE_PARTICLE, Greedy(), VectorizedSMC(7)]


@pytest.mark.parametrize("searcher", ALL, ids=repr)
def test_what_repr_writes_is_read_back(searcher):
    assert parse(repr(searcher)) == searcher
    assert type(parse(repr(searcher))) is type(searcher)
    assert spell(searcher) == repr(searcher)


def test_every_rule_that_stops_a_search_is_read():
    rules = [getattr(decide, name) for name in decide.__all__]
    kinds = {r for r in rules if inspect.isclass(r) and issubclass(r, decide.StoppingRule)}
    for kind in kinds - {decide.StoppingRule}:
        rule = kind()
        assert parse(repr(rule)) == rule
        assert type(parse(repr(rule))) is kind


@dataclass(frozen=True)
class Outsider(Searcher[Frontier]):
    n: int
    words: tuple[str, ...] = ()
    numbers: tuple[float, ...] = (math.inf, -1.5)
    table: object = None
    f: object = None

    def start(self, tree):
        return Frontier((tree.root,) * self.n)

    def step(self, tree, state):
        return state.after(over=True), {}

    def result(self, tree, state):
        raise NotImplementedError


def estimate(node) -> float:
    return 0.0


def test_searchers_from_farther_off_and_functions_go_by_their_import_path():
    for searcher in (
        Outsider(2),
        Outsider(2, ("'", '"\n'), (1.0,), {"a": [1, None, b"x"]}, estimate),
        AStar(4, cost_to_go=estimate),
    ):
        assert parse(spell(searcher)) == searcher
    assert spell(Outsider(3)).startswith(f"{__name__}.Outsider(n=3, ")
    with pytest.raises(SearchStateError, match=r"names no known class.*my_package\.search\.Mine"):
        parse("Outsider(n=3)")


def test_a_module_is_imported_only_if_that_is_asked_for(tmp_path, monkeypatch):
    (tmp_path / "farther_off.py").write_text(
        "from dataclasses import dataclass\nfrom ppl.searchers import BestOfN\n"
        "@dataclass(frozen=True)\nclass Mine(BestOfN):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SearchStateError, match="module is imported"):
        parse("farther_off.Mine(n=3)")
    assert "farther_off" not in sys.modules
    found = parse("farther_off.Mine(n=3)", imports=True)
    assert (found.n, type(found).__module__) == (3, "farther_off")
    assert parse(spell(found)) == found
    del sys.modules["farther_off"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "SMC",
        "16",
        "SMC(",
        "SMC(16); 1",
        "__import__('os').system('true')",
        "SMC(__import__('os').getpid())",
        "SMC(num_particles=(lambda: 3)())",
        "SMC(2 + 2)",
        "SMC([x for x in (1,)][0])",
        "SMC(f'{1}')",
        "SMC(*(1, 2))",
        "SMC(**{'num_particles': 3})",
        "SMC.__init__(3)",
        "os.system('true')",
        "dict(a=1)",
        "State()",
        "BestOfN(n=nowhere.at_all)",
        "BestOfN(\0)",
        "(" * 500 + "1" + ")" * 500,
        "SMC(" * 5000,
        "SMC(1, tempering=" + "-" * 100_000 + "1)",
    ],
    ids=lambda text: text[:40],
)
def test_nothing_else_is_read(text):
    with pytest.raises(SearchStateError):
        parse(text)


def test_settings_are_checked_by_the_searcher():
    with pytest.raises(ValueError, match="num_particles=0"):
        parse("SMC(0)")
    with pytest.raises(TypeError, match="width"):
        parse("SMC(4, width=3)")
    with pytest.raises(ValueError, match="n=<built-in function getpid>"):
        parse("BestOfN(n=posix.getpid)")  # named, not called
    assert parse("SMC(16)") == SMC(16)
    assert parse(" BestOfN(\n  n=3,\n)") == BestOfN(3)


@pytest.mark.parametrize(
    ("searcher", "match"),
    [
        (AStar(4, cost_to_go=lambda node: 0.0), "AStar, cost_to_go.*lambda"),
        (Outsider(2, table=object()), "Outsider, table is <object.*no text describes"),
        (Outsider(2, f=math), "no text describes"),
    ],
)
def test_settings_without_a_text_are_named(searcher, match):
    with pytest.raises(SearchStateError, match=match):
        spell(searcher)
