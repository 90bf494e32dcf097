"""Whether two functions are the same program: their own lines, and what they use beside them."""

from __future__ import annotations

import functools
import sys

import pytest

from ppl.runtime.source import code_of, same, uses_of

HELPERS = """
import re, functools
from ppl.verifiers import verifier
PROMPT = "Answer:"
SHOTS = ("a", 1, (2.5, None))
END = re.compile("x+")
seen, counts, calls = [], {}, 0
text = "a variable of some cell"

def site(t):
    return f"step_{t}" + SUFFIX
SUFFIX = "!"

@functools.cache
def tool(x):
    return x + 1

@verifier
def short(text):
    return len(text.text) < 3

class Reader:
    least = 2
    def read(self, text):
        return text[self.least:]
"""
PROGRAM = """
def solve(question, steps=3, *, hot=1.5):
    global calls
    calls += 1
    text = question.text + PROMPT
    lines = [text for _ in SHOTS]
    seen.append(counts.setdefault(text))
    return END, site(1), tool(2), short(text), Reader().read(lines), text.upper()
"""


@pytest.fixture(autouse=True)
def cells(notebook):
    notebook.run(HELPERS)
    notebook.run(PROGRAM)


def solve(notebook):
    return notebook.module.solve


def test_what_a_program_uses_is_found(notebook):
    """Not what it sets, nor a local called like a variable of another cell, nor what may change."""
    assert set(uses_of(solve(notebook))) == {
        "END", "PROMPT", "Reader.least", "Reader.read", "SHOTS", "SUFFIX", "hot=", "short", "site",
        "steps=", "tool",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("cell", "name"),
    [
        ('PROMPT = "Say:"', "PROMPT"),
        ('SHOTS = ("a", 1, (2.5, 0))', "SHOTS"),
        ('import re\nEND = re.compile("x+", re.I)', "END"),
        ('SUFFIX = "?"', "SUFFIX"),
        ("def site(t):\n    return SUFFIX", "site"),
        ("import functools\n@functools.cache\ndef tool(x):\n    return x", "tool"),
        ("@verifier\ndef short(text):\n    return len(text.text) < 4", "short"),
        ("Reader.least = 3", "Reader.least"),
        ("steps = 4\n" + PROGRAM.replace("steps=3", "steps=4"), "steps="),
    ],
)
def test_what_is_changed_beside_a_program_is_noticed(notebook, cell, name):
    before, old = uses_of(solve(notebook)), solve(notebook)
    notebook.run(cell)
    after = uses_of(solve(notebook))
    assert {n for n in before | after if before.get(n) != after.get(n)} == {name}
    assert code_of(old) is not None
    assert (code_of(old) == code_of(solve(notebook))) == (name != "steps=")


READ = [
    "NAME[0]", "NAME[1:]", "[x for x in NAME]", "'\\n'.join(NAME)", "f'{NAME}'", "0 in NAME",
    "not NAME", "len(NAME)", "sorted(NAME)", "NAME.index(x)", "NAME + [x]", "[*NAME, x]",
    "f(*NAME)", "1 if NAME else 2", "[f(y) for y in x if y in NAME]", "(lambda: NAME[0])()",
    "list(map(f, NAME))",
]  # fmt: skip
CHANGED = [
    "NAME.append(x)", "f(NAME)", "x.join(NAME)", "[NAME]", "{1: NAME}", "(NAME, x)", "NAME or x",
    "x[NAME]", "NAME", "NAME.sort()", "x.NAME(NAME)", "(y := NAME)", "f(k=NAME)", "NAME(x)",
    "[NAME[0], NAME.pop()]", "NAME if x else 2", "len(x, key=NAME)",
]  # fmt: skip
BODIES = [
    *((f"return {each}", True) for each in READ),
    *((f"return {each}", False) for each in CHANGED),
    ("for y in NAME:\n  x += y", True),
    ("x += NAME", True),
    ("while NAME: break", True),
    ("NAME[0] = 1", False),
    ("NAME[0] += 1", False),
    ("del NAME[0]", False),
    ("y = NAME", False),
    ("for NAME[0] in x: pass", False),
    ("for y in x: NAME.append(y)", False),
    ("len = x\n return len(NAME)", False),
    ("with f(x) as NAME[0]: pass", False),
    ("*NAME, y = x", False),
]


@pytest.mark.parametrize(("body", "counts"), BODIES)
def test_a_list_that_is_only_read_is_a_constant(notebook, body, counts):
    def uses(value):
        notebook.run(f"NAME = {value}")
        return uses_of(notebook.module.reads)

    notebook.run(f"def f(*x): return x\ndef reads(x):\n {body}")
    one, same_again, other = uses(["a"]), uses(["a"]), uses(["b"])
    assert one == same_again
    assert ("NAME" in one) == (one != other) == counts


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("{'a': 1, 'b': (2, 'c')}", "{'a': 1, 'b': (2, 'd')}"),
        ("{'a': 1, 'b': 2}", "{'b': 2, 'a': 1}"),  # in another order it is gone through otherwise
        ("{'a', 'b'}", "{'a', 'c'}"),
        ("['a']", "('a',)"),
        ("[1]", "[1.0]"),
        ("[1]", "[True]"),
        ("[]", "[None]"),
        ("frozenset({'a', 'b'})", "frozenset({'a', 'c'})"),
    ],
)
def test_what_lists_dicts_and_sets_hold_is_told_apart(notebook, one, other):
    found = []
    for value in (one, one, other):
        notebook.run(f"NAME = {value}\ndef reads(x, more={value}):\n return x in NAME, x in more")
        found.append(uses_of(notebook.module.reads))
        assert set(found[-1]) == {"NAME", "more="}
    assert found[0] == found[1]
    assert {n for n in found[0] if found[0][n] != found[2][n]} == {"NAME", "more="}


def test_sets_are_said_alike_whatever_their_order(notebook):
    words = ["one", "two", "three", "four"]
    found = []
    for order in (words, words[::-1]):
        many = [*order, *map(str, range(50))]  # growing and shrinking gives another order
        notebook.module.NAME = set(many) - set(map(str, range(50)))
        notebook.module.FROZEN = frozenset(order)
        notebook.run("def reads(x):\n return x in NAME, x in FROZEN")
        found.append(uses_of(notebook.module.reads))
    assert found[0] == found[1]


def test_a_list_that_any_helper_may_change_is_no_constant(notebook):
    notebook.run("NAME = ['a']\ndef f(x): return NAME[0]\ndef g(x): NAME.append(x)\ne = g")
    notebook.run("def only(x): return f(x), NAME[0]")
    assert "NAME" in uses_of(notebook.module.only)
    for helper in "eg":  # it is met before the one that reads, or after
        notebook.run(f"def both(x): return {helper}(x), f(x)")
        assert "NAME" not in uses_of(notebook.module.both)
    notebook.run("NAME = ['a', ['b']]")  # whoever gets the inner one may change it
    assert "NAME" not in uses_of(notebook.module.only)


def test_lists_of_partials_and_defaults(notebook):
    notebook.run("def reads(x, shots=['a'], *, kept=[]):\n kept.append(x)\n return shots[0]")
    reads = notebook.module.reads
    assert set(uses_of(reads)) == {"shots="}
    before = uses_of(reads)
    reads(1)
    assert uses_of(reads) == before
    one, other = (uses_of(functools.partial(reads, shots=[x])) for x in "ab")
    assert one == before
    assert {n for n in one if one[n] != other[n]} == {"shots="}
    assert uses_of(functools.partial(reads, 1, kept=[1])) == {
        **before,
        "0=": uses_of(functools.partial(reads, 1))["0="],
    }


def test_cells_that_are_run_again_change_nothing(notebook):
    old, uses = solve(notebook), uses_of(solve(notebook))
    notebook.run(HELPERS.replace("def site(t):", "def site(t):  # where"))
    notebook.run("seen.append(1)\ncounts[2] = 3\ncalls = 9\ntext = 'another'")
    notebook.run("# a comment\n" + PROGRAM.replace("    calls += 1", "\n    calls += 1  # count"))
    again = solve(notebook)
    assert again is not old
    assert same(old, again)
    assert uses_of(again) == uses
    notebook.run(PROGRAM.replace("calls += 1", "calls += 2"))
    assert not same(old, solve(notebook))


def test_closures_and_partials_are_told_apart(notebook):
    notebook.run(
        "def made(k):\n    def inner(question):\n        return question * k\n    return inner\n"
    )
    made = notebook.module.made
    assert same(made(2), made(2))
    assert not same(made(2), made(3))
    plain = solve(notebook)
    few, many = (uses_of(functools.partial(plain, 1, steps=n)) for n in (2, 5))
    assert {n for n in few if few[n] != many[n]} == {"steps="}
    assert "0=" in few
    assert code_of(functools.partial(plain, 1)) == code_of(plain)


def test_programs_that_call_themselves_end(notebook):
    notebook.run("def even(n):\n    return n == 0 or odd(n - 1)")
    notebook.run("def odd(n):\n    return n > 0 and even(n - 1)")
    assert set(uses_of(notebook.module.even)) == {"odd"}


def test_a_file_that_was_written_anew_is_not_taken_for_what_runs(tmp_path, monkeypatch):
    """Lines have moved: what stands at a function's place is not the function."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "moving_lines.py").write_text("N = 3\ndef walks(n):\n    return n + N\n")
    walks = __import__("moving_lines").walks
    monkeypatch.delitem(sys.modules, "moving_lines", raising=False)
    assert code_of(walks) is not None
    (tmp_path / "moving_lines.py").write_text("# new\nN = 3\ndef walks(n):\n    return n + N\n")
    assert code_of(walks) is None


def test_without_a_source_nothing_is_claimed(notebook):
    space = {"__name__": "__main__"}
    exec(compile("def typed():\n    return 1", "<stdin>", "exec"), space)
    assert code_of(space["typed"]) is None
    assert not same(space["typed"], space["typed"])
    # Its file was written anew since: these are lines of something else.
    exec(compile("def moved():\n    return 1", __file__, "exec"), space)
    assert code_of(space["moved"]) is None


def test_fingerprints_are_the_same_in_all_versions_of_python(notebook):
    """As Python 3.10 to 3.13 have it, whose trees differ in fields that are empty."""
    notebook.run(
        """
def f(x, *, y=None):
    class A(list):
        z: int = 3
    return f'{x!r} {y:>3}' if x else [*y]
"""
    )
    assert code_of(notebook.module.f) == "e7ed3e9b7ac85a56"
