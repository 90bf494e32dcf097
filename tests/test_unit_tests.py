"""Unit tests as a verifier: what counts as a test, and what a program can win by."""

from __future__ import annotations

import pyro
import pytest
from bubblewrap import needs_bubblewrap

import ppl
from ppl.errors import VerifierError
from ppl.searchers import BestOfN
from ppl.verifiers import Check, Sandbox, UnitTests
from ppl.verifiers.exact.sandbox import Outcome

LM = ppl.TableLM({"0": 0.2, "1": 0.3, "2": 0.5}, symbols="^012$", end="$")


@needs_bubblewrap
@pytest.mark.parametrize(("partial", "floor"), [(False, 0.0), (False, 0.1), (True, 0.0)])
def test_unit_tests_as_a_likelihood(partial, floor):
    """The evidence of a one-token program is known: P(x) times the clipped score, summed."""
    tests = UnitTests(
        ["assert f() > 0", "assert f() < 2"],
        names=["f"],
        prefix="def f(): return ",
        partial=partial,
        floor=floor,
    )

    def program():
        text = LM.prompt("^")
        text = text + pyro.sample("x", LM(text, max_tokens=1))
        pyro.sample("ok", tests(text), obs=True)
        return text.text

    exact = ppl.enumerate_program(program)
    scores = {"0": 0.5, "1": 1.0, "2": 0.5} if partial else {"0": 0.0, "1": 1.0, "2": 0.0}
    joint = {
        x: p * min(max(scores[x], floor), 1 - floor)
        for x, p in (("0", 0.2), ("1", 0.3), ("2", 0.5))
    }
    total = sum(joint.values())
    want = {x: p / total for x, p in joint.items() if p > 0}
    assert exact.marginal() == pytest.approx(want)
    posterior = BestOfN(20).run(program, seed=0)
    assert posterior.vote() == max(want, key=want.get)


def test_unit_tests_need_tests():
    with pytest.raises(ValueError, match="at least one"):
        UnitTests([], names=["f"])
    with pytest.raises(TypeError, match="names="):
        UnitTests("assert f()", names="f")


def test_what_does_not_pass_is_run_again_and_counted(monkeypatch):
    """Programs by name: one always passes, one fails at first, one never gets further."""
    fate = {"good": ["passed"], "flaky": ["failed", "half", "passed"], "bad": ["half"] * 3}
    passed = {"passed": (True, True), "half": (True, False), "failed": (False, False)}
    asked: list[list[str]] = []

    class Scripted:
        def run(self, checks):
            asked.append([c.source for c in checks])
            ends = [fate[c.source].pop(0) for c in checks]
            return [Outcome("passed" if e == "passed" else "failed", passed[e]) for e in ends]

    monkeypatch.setattr("ppl.verifiers.exact.unit_tests.shared_pool", lambda _: Scripted())
    tests = UnitTests(["assert f()", "assert g()"], names=["f", "g"], partial=True, runs=3)
    outcomes = tests.outcomes(["good", "flaky", "bad", "flaky"])
    assert asked == [["good", "flaky", "bad"], ["flaky", "bad"], ["flaky", "bad"]]
    assert [sum(o.passed) for o in outcomes] == [2, 2, 1, 2]
    assert tests.flaky == 1
    with pytest.raises(ValueError, match="runs=0"):
        UnitTests("assert f()", names=["f"], runs=0)


CLASS = "class T:\n    def test(self):\n        assert f(2) == 4\n"


@pytest.mark.parametrize(
    "tests",
    [
        "",
        "# only a comment",
        "pass",
        "'f(2) == 4'",
        "f(2) == 4",
        "f(2)",
        "f",
        "print(f(2))",
        "x = f(2)",
        "[f(x) == 4 for x in range(3)]",
        "results = []\nresults.append(f(2))",
        "def test_f():\n    assert f(2) == 4",
        "def a():\n    b()\ndef b():\n    assert f(2) == 4",
        "def check(g):\n    return g(2) == 4\ncheck(f)",
        CLASS,
        "assert True",
        "assert (f(2) == 4, 'must be four')",
        "assert 1 == 1\nf(2)",
        "def f(x): return 4",
        ["assert f(2) == 4", ""],
    ],
)
def test_tests_that_cannot_fail_are_refused_when_they_are_made(tests):
    with pytest.raises(VerifierError, match=r"test \d of \d .* passes (without calling|whatever)"):
        UnitTests(tests, names=["f"])


@pytest.mark.parametrize(
    ("tests", "setup"),
    [
        ("assert f(2) == 4", ""),
        ("if f(2) != 4: raise ValueError", ""),
        ("def check(g):\n    assert g(2) == 4\ncheck(f)", ""),
        ("check(f)", "def check(g):\n    assert g(2) == 4"),
        ("def a():\n    b()\ndef b():\n    assert f(2) == 4\na()", ""),
        (CLASS + "T().test()", ""),
        ("import unittest\nunittest.TestCase().assertEqual(f(2), 4)", ""),
        ("for x in [2]:\n    with open('/dev/null'):\n        assert f(x) == x * x", ""),
        ("eval('f(2)') == 4 or exit(1)", ""),
        ("import asyncio\nasync def main():\n    assert f(2) == 4\nasyncio.run(main())", ""),
        ("(lambda g: exec('assert g(2) == 4', {'g': g}))(f)", ""),
    ],
)
@needs_bubblewrap
def test_tests_that_can_fail_are_taken_and_right(tests, setup):
    suite = UnitTests(tests, names=["f"], setup=setup)
    right, wrong = suite.outcomes(["def f(x): return x * x", "def f(x): return 5"])
    assert (right.status, wrong.status) == ("passed", "failed"), (right, wrong)


@pytest.mark.parametrize(
    ("tests", "setup", "says"),
    [
        ("assert f(2) ==", "", "test 1 of 1 .* does not compile"),
        (["assert f(2) == 4", "return f(2)"], "", "test 2 of 2 .* does not compile"),
        ("assert f(2) == 4", "def (", "setup does not compile"),
    ],
)
def test_tests_that_do_not_compile_are_refused(tests, setup, says):
    with pytest.raises(VerifierError, match=says):
        UnitTests(tests, names=["f"], setup=setup)


@pytest.mark.parametrize(
    ("tests", "setup", "says"),
    [
        ("assert f(2) == 4", "1 / 0", "ZeroDivisionError"),
        ("assert f(2) == 4", "import no_such_module", "ModuleNotFoundError"),
        ("assert f(2) == 4", "raise SystemExit", "SystemExit"),
        ("assert helper(f(2)) == 4", "", "test 1 ends without a call .*helper"),
        (["assert f(2) == 4", "if False:\n    assert f(2) == 4"], "", "test 2 ends without a call"),
        ("assert callable(f)", "", "test 1 ends without a call"),
        ("assert f(lambda: 4) == 4", "", "test 1 ends without a call .*not plain data"),
    ],
)
@needs_bubblewrap
def test_tests_that_are_at_fault_are_no_verdict(tests, setup, says):
    """Whatever the program does: also if it ends its process at once."""
    suite = UnitTests(tests, names=["f"], setup=setup)
    with pytest.raises(VerifierError, match=rf"UnitTests\(f\): .*{says}"):
        suite.outcomes(["def f(x): return 4"])


@needs_bubblewrap
def test_a_program_cannot_make_its_tests_invalid():
    suite = UnitTests(["assert f(2) == 4", "assert f(0) == 0"], names=["f"])
    programs = ["import os\ndef f(x): os._exit(0)", "def f(x): raise SystemExit", "", "f = 4"]
    for outcome in suite.outcomes(programs):
        assert outcome.status in ("error", "failed")
        assert outcome.passed == (False, False)


PROGRAM = """
def f(x):
    if x == 2: raise IndexError("two")
    if x == 3: raise KeyError("three")
    if x == 4: raise AttributeError("four")
    if x == 5: raise StopIteration
    return x
"""


@pytest.mark.parametrize(
    "test",
    [
        "try: f(2)\nexcept IndexError as e: assert str(e) == 'two'\nelse: assert False",
        "try: f(3)\nexcept LookupError: pass\nelse: assert False",
        "import contextlib\nwith contextlib.suppress(KeyError):\n    f(3)\n    assert False",
        "import unittest\ncase = unittest.TestCase()\nwith case.assertRaises(IndexError): f(2)\n"
        "case.assertRaises(KeyError, f, 3)\ncase.assertRaises(AttributeError, f, 4)",
        "def g(x):\n    try:\n        return f(x)\n    except LookupError:\n        return 7\n"
        "assert list(map(g, [2, 3, 6])) == [7, 7, 6]",
        "import asyncio\nasync def h(x): return f(x)\nasync def main():\n    try: await h(2)\n"
        "    except IndexError: return 1\nassert asyncio.run(main()) == 1",
        "try: f(5)\nexcept RuntimeError as e: assert 'StopIteration' in str(e)\nelse: assert False",
        "assert list(map(f, [6, 7])) == [6, 7] and max(f(x) for x in (8, 9)) == 9",
        "from concurrent.futures import ThreadPoolExecutor\nwith ThreadPoolExecutor(3) as t:\n"
        "    assert list(t.map(f, [6] * 50)) == [6] * 50",
        "assert f('a' * 900_000)[:3] == 'aaa'",
    ],
)
@needs_bubblewrap
def test_what_a_right_program_raises_reaches_its_tests(test):
    outcome = Sandbox().run(Check(PROGRAM, ("f",), (test,)))
    assert outcome.status == "passed", outcome


@needs_bubblewrap
def test_large_programs_and_arguments_are_no_failures():
    source = "#" * (2 << 20) + "\ndef f(x): return len(x)"
    tests = ("assert f('a' * 2_000_000) == 2_000_000",)
    assert Sandbox().run(Check(source, ("f",), tests)).status == "passed"
    outcome = Sandbox().run(Check("def f(x): return 'a' * x", ("f",), ("f(1_100_000)",)))
    assert (outcome.status, outcome.why) == ("failed", "the result is longer than 1048576 bytes")


@pytest.mark.parametrize(
    "names", [[], ["f", "f"], [""], ["not a name"], ["class"], ["__builtins__"], [3]]
)
def test_names_are_names(names):
    with pytest.raises(ValueError, match="names"):
        UnitTests("assert f(2) == 4", names=names)


@pytest.mark.parametrize(
    "wrong", [{"runs": 1.5}, {"runs": True}, {"setup": 3}, {"prefix": None}, {"floor": 0.7}]
)
def test_other_arguments_are_checked(wrong):
    with pytest.raises((ValueError, TypeError), match=next(iter(wrong))):
        UnitTests("assert f(2) == 4", names=["f"], **wrong)
    with pytest.raises(TypeError, match=r"tests=\[3\]"):
        UnitTests([3], names=["f"])
