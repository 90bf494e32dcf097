"""Searches whose program is in a notebook: saved, and resumed in the same kernel or another."""

from __future__ import annotations

import dataclasses
import sys

import pytest
from notebook import Notebook
from programs import contents

from ppl.errors import SearchStateError
from ppl.searchers import SMC, Search

PROGRAM = """
import pyro, ppl, torch
from programs import TOY
from ppl.verifiers import verifier
BONUS = 0.5
def worth(text):
    return BONUS * text.text.count("a")
@verifier
def likes(text):
    return 0.9 if "a" in text.text else 0.2
def solve(steps=3, reader=None):
    text = TOY.prompt("^")
    for t in range(steps):
        step = pyro.sample(f"s{t}", TOY(text, max_tokens=1))
        text = text + step
        pyro.factor(f"f{t}", torch.tensor(worth(text)))
        pyro.sample(f"ok{t}", likes(text), obs=True)
        if step.finished:
            break
    return reader(text.text) if reader else text.text
"""
SEARCHER = """
import dataclasses
from ppl.searchers import Searcher, Result
from ppl.searchers.state import State

@dataclasses.dataclass(frozen=True)
class Walk(State):
    nodes: tuple

@dataclasses.dataclass(frozen=True)
class Mine(Searcher):
    n: int = 4
    rate: object = None
    def start(self, tree):
        return Walk(nodes=(tree.root,) * self.n)
    def step(self, tree, state):
        going = [node for node in state.nodes if not node.finished]
        moved = iter(tree.expand(going, [1] * len(going)))
        nodes = tuple(node if node.finished else next(moved) for node in state.nodes)
        return state.after(nodes=nodes, over=all(node.finished for node in nodes)), {}
    def result(self, tree, state):
        return Result(state.nodes, [self.rate(node) for node in state.nodes])

def rate(node):
    return node.log_weight
"""


def begun(program, *args, searcher=None, **kwargs):
    search = (searcher or SMC(5, 1.0)).begin(program, *args, seed=4, **kwargs)
    search.step()
    return search


@pytest.fixture
def fresh(monkeypatch):
    """A kernel that has just begun, in which one cell is run."""

    def kernel(cell: str = "") -> object:
        book = Notebook(monkeypatch)
        book.run(cell)
        return book.module

    return kernel


def test_a_search_goes_on_in_the_same_kernel_and_in_a_fresh_one(fresh, tmp_path):
    search = begun(fresh(PROGRAM).solve)
    search.save(tmp_path / "s")
    right = contents(Search.load(tmp_path / "s").run())
    fresh(PROGRAM.replace("def solve", "\n# from the paper\ndef solve"))
    assert contents(Search.load(tmp_path / "s").run()) == right
    module = fresh(PROGRAM)
    assert contents(Search.load(tmp_path / "s", module.solve).run()) == right
    assert contents(search.run()) == right


def test_a_cell_that_is_run_again_is_the_same_program(notebook, tmp_path):
    """The search holds the function of before, whose name is another object's now."""
    notebook.run(PROGRAM)
    search = begun(notebook.module.solve)
    notebook.run(PROGRAM)
    assert notebook.module.solve is not search.tree.program
    search.save(tmp_path / "s")
    assert Search.load(tmp_path / "s").tree.program is notebook.module.solve
    notebook.run(PROGRAM.replace("max_tokens=1", "max_tokens=2"))
    search.save(tmp_path / "s")  # of the old one, which no name finds now
    with pytest.raises(SearchStateError, match=r"'solve', .*one that was replaced.*hand it over"):
        Search.load(tmp_path / "s")
    with pytest.warns(UserWarning, match=r"the program .*max_tokens=1.* then.*max_tokens=2.* now"):
        Search.load(tmp_path / "s", notebook.module.solve)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (
            "text = text + step",
            "text = step + text",
            r"`text = text \+ step` then, `text = step \+",
        ),
        ("BONUS = 0.5", "BONUS = 0.6", "'BONUS', which it uses, is another one now"),
        ('count("a")', 'count("b")', "'worth', which it uses"),
        ("else 0.2", "else 0.3", "'likes', which it uses"),
        ("steps=3", "steps=2", r"solve\(steps=3.* then, .*steps=2"),
    ],
)
def test_a_cell_that_was_changed_is_noticed(fresh, tmp_path, old, new, told):
    begun(fresh(PROGRAM).solve).save(tmp_path / "s")
    module = fresh(PROGRAM.replace(old, new))
    with pytest.raises(SearchStateError, match=f"(?s)__main__:solve is not .*{told}.*It was:.*def"):
        Search.load(tmp_path / "s")
    with pytest.warns(UserWarning, match=f"the program is not what it was .*{told}") as warned:
        Search.load(tmp_path / "s", module.solve)
    assert warned[0].filename == __file__


def test_in_a_kernel_without_its_cell_the_remedy_is_named(fresh, tmp_path):
    begun(fresh(PROGRAM).solve).save(tmp_path / "s")
    fresh()
    with pytest.raises(
        SearchStateError, match=r"(?s)'solve' was .*its cell before you load.*It was"
    ):
        Search.load(tmp_path / "s")


def test_a_shell_that_keeps_no_source_cannot_be_told_apart(fresh, tmp_path):
    begun(fresh(PROGRAM).solve).save(tmp_path / "s")
    module = fresh()
    exec(compile(PROGRAM, "<stdin>", "exec"), module.__dict__)
    with pytest.raises(SearchStateError, match="__main__:solve is what it was cannot be told"):
        Search.load(tmp_path / "s")
    search = begun(module.solve)
    search.save(tmp_path / "t")
    with pytest.raises(SearchStateError, match="hand it over"):
        Search.load(tmp_path / "t")
    assert contents(Search.load(tmp_path / "t", module.solve).run()) == contents(search.run())


def test_functions_among_the_arguments_are_held_to_the_same(fresh, tmp_path):
    cell = PROGRAM + "def read(text):\n    return text.upper()\n"
    module = fresh(cell)
    search = begun(module.solve, reader=module.read)
    search.save(tmp_path / "s")
    fresh(cell)
    assert contents(Search.load(tmp_path / "s").run()) == contents(search.run())
    module = fresh(cell.replace("upper", "lower"))
    for given in ({}, {"program": module.solve}):
        with pytest.raises(SearchStateError, match=r"__main__:read .*upper.* then, .*lower"):
            Search.load(tmp_path / "s", **given)
    other = begun(module.solve, reader=lambda text: text)
    with pytest.raises(SearchStateError, match="lambda"):
        other.save(tmp_path / "t")  # it could not be handed over


def test_guides_are_held_to_the_same(fresh, tmp_path):
    guide = PROGRAM.partition("def solve")[2].replace("ok{t}", "extra{t}")
    guide = "def guide" + "".join(
        line
        for line in guide.splitlines(keepends=True)
        if "factor" not in line and "obs" not in line
    )
    module = fresh(PROGRAM + guide)
    search = begun(module.solve, guide=module.guide)
    search.save(tmp_path / "s")
    right = contents(search.run())
    assert contents(Search.load(tmp_path / "s").run()) == right
    module = fresh(PROGRAM + guide.replace("max_tokens=1", "max_tokens=2"))
    with pytest.raises(
        SearchStateError, match=r"__main__:guide is not .*load\(path, guide=\.\.\.\)"
    ):
        Search.load(tmp_path / "s")
    with pytest.warns(UserWarning, match=r"the guide is not what it was .*max_tokens"):
        Search.load(tmp_path / "s", module.solve, guide=module.guide)


def test_searchers_of_a_notebook_are_named_too(fresh, tmp_path):
    module = fresh(PROGRAM + SEARCHER)
    search = begun(module.solve, searcher=module.Mine(3, module.rate))
    search.save(tmp_path / "s")
    assert contents(Search.load(tmp_path / "s").run()) == contents(search.run())
    module = fresh(PROGRAM + SEARCHER)
    again = Search.load(tmp_path / "s")
    assert type(again.searcher) is module.Mine
    assert dataclasses.asdict(again.searcher)["n"] == 3
    fresh(PROGRAM + SEARCHER.replace("return node.log_weight", "return 0.0"))
    with pytest.raises(SearchStateError, match=r"__main__:rate .*node\.log_weight.* then, .*0\.0"):
        Search.load(tmp_path / "s")


def test_modules_that_were_loaded_again_are_the_same(monkeypatch, tmp_path):
    """As under `%autoreload`: who imported a function holds the one of before."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "cells_of_mine.py").write_text(PROGRAM)
    from cells_of_mine import solve

    search = begun(solve)
    del sys.modules["cells_of_mine"]
    __import__("cells_of_mine")
    search.save(tmp_path / "s")
    again = Search.load(tmp_path / "s")
    assert again.tree.program is sys.modules["cells_of_mine"].solve
    assert contents(again.run()) == contents(search.run())
    monkeypatch.delitem(sys.modules, "cells_of_mine")
