"""Other wordings of one question, shared out among samples: what coverage gains and the vote keeps.

DivSampling (`ppl.perturbed`) on the embedded pair's arithmetic: a chain is reworded by changing the
order of additions and subtractions, which leaves its result and changes which steps are hard. And
batch prompts (`batch_prompt`): what a question costs if several share a call. With `--source` both
on a chat model, with roles and instructions as perturbations:

    python examples/diverse_prompts.py --problems 60
    python examples/diverse_prompts.py --source smollm2 --problems 20
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro
from smollm2 import find_gguf

import ppl
from ppl.decide.scaling import majority_at_k, pass_at_k
from ppl.programs import INSTRUCTIONS, ROLES, batch_prompt
from ppl.searchers import BestOfN
from ppl.study.intervals import paired
from ppl.tasks import Problem, Task
from ppl.tasks.chain import STEPS

Program = Callable[..., Any]
Rights = list[list[bool]]


def chains(lm: ppl.LanguageModel) -> Program:
    """The embedded pair's program: a chain, a step a line."""

    def solve(question: str) -> str:
        text = lm.chat(question)
        for t in range(12):
            step = pyro.sample(f"step_{t}", lm(text, until="\n", max_tokens=8))
            text = text + step
            if step.finished:
                break
        return text.text.strip().rpartition("=")[2]

    return solve


def reordered(by: int) -> Callable[[str], str]:
    """The chain with every run of additions and subtractions rotated by so many places, where all
    values on the way stay from 0 to 99; else as it is."""

    def reworded(question: str) -> str:
        start = int(re.findall(r"Start with (\d+)", question)[0])
        terms = re.findall(r"[a-l]([-+*])(\d+)", question)
        runs: list[list[tuple[str, str]]] = [[]]
        for term in terms:
            if term[0] == "*" or (runs[-1] and runs[-1][-1][0] == "*"):
                runs.append([])
            runs[-1].append(term)
        moved = [run[(i + by) % len(run)] for run in runs for i in range(len(run))]
        value = start
        for sign, digits in moved:
            n = int(digits)
            value = value * n if sign == "*" else value + n if sign == "+" else value - n
            if not 0 <= value <= 99:
                return question
        steps = " ".join(f"{name}{sign}{n}" for name, (sign, n) in zip(STEPS, moved, strict=False))
        return f"Start with {start}: {steps}"

    return reworded


def sums(count: int) -> Task:
    """Small questions in words for a chat model, with numbers as answers."""
    rng = np.random.default_rng(0)
    things = ("apples", "books", "coins", "shells")
    problems = []
    for i in range(count):
        a, b = (int(x) for x in rng.integers(2, 10, 2))
        thing = things[i % 4]
        asked = f"Tom has {a} {thing} and gets {b} more. How many {thing} does Tom have now?"
        problems.append(Problem(f"sums/{i}", asked, str(a + b)))
    return Task("sums", problems, lambda problem, said: bool(said) and number(said) == problem.gold)


def number(said: str) -> str | None:
    """The last whole number of an answer."""
    found = re.findall(r"\d+", said)
    return found[-1] if found else None


def in_words(lm: ppl.LanguageModel) -> Program:
    """A chat model's program."""

    def solve(question: str) -> str | None:
        text = lm.chat(f"{question}\nEnd with the number.")
        return number(pyro.sample("reply", lm(text, max_tokens=40, temperature=0.7)).text)

    return solve


@dataclass(frozen=True)
class Arm:
    """What one way of sampling did: for each problem, who of its samples is right, and what the
    vote of k gives."""

    name: str
    rights: Rights
    answers: list[list[Any]]

    def passed(self, k: int) -> list[float]:
        """pass@k of each problem, without bias: from all samples, or, where they are made to be
        different, from those that were drawn one after another."""
        if self.name != "shared out":
            return [pass_at_k(len(row), sum(row), k) for row in self.rights]
        return [float(np.mean([any(row[i]) for i in _parts(len(row), k)])) for row in self._rows]

    def voted(self, k: int) -> list[float]:
        """The vote of k, ties by their share; likewise."""
        pairs = zip(self.answers, self._rows, strict=True)
        parts = [slice(None)] if self.name != "shared out" else _parts(len(self.answers[0]), k)
        return [
            float(np.mean([majority_at_k(said[i], row[i].tolist(), k) for i in parts]))
            for said, row in pairs
        ]

    @property
    def _rows(self) -> list[Any]:
        return [np.array(row) for row in self.rights]


def _parts(n: int, k: int) -> list[slice]:
    return [slice(i, i + k) for i in range(0, n - k + 1, k)]


def drawn(name: str, program: Program, task: Task, n: int, seed: int) -> Arm:
    """n samples of every problem."""
    found = BestOfN(n).run_many(program, [p.question for p in task], seed=seed)
    answers = [[s.value for s in p.samples] for p in found if isinstance(p, ppl.Posterior)]
    rights = [
        [bool(task.score(problem, said)) for said in row]
        for problem, row in zip(task, answers, strict=True)
    ]
    return Arm(name, rights, answers)


def compare(
    program: Program, perturbations: Sequence[Any], task: Task, n: int, seed: int
) -> list[Arm]:
    """Samples of the question as it is, of independent wordings, and of wordings shared out."""
    arms = [
        drawn("as it is", program, task, n, seed),
        drawn(
            "independent", ppl.perturbed(perturbations, stratified=False)(program), task, n, seed
        ),
        drawn("shared out", ppl.perturbed(perturbations)(program), task, n, seed),
    ]
    print(f"{len(task)} problems, {len(perturbations)} wordings, {n} samples")
    ks = sorted({k for k in (1, len(perturbations), n) if k <= n})
    print("  " + " " * 12 + "".join(f"  pass@{k:<3}  vote@{k:<3}" for k in ks))
    for arm in arms:
        cells = [f"   {np.mean(arm.passed(k)):.3f}     {np.mean(arm.voted(k)):.3f}  " for k in ks]
        print(f"  {arm.name:<12}" + "".join(cells))
    for kind in ("passed", "voted"):
        ours, plain = (np.array(getattr(arm, kind)(n)) for arm in (arms[2], arms[0]))
        found = paired(ours.tolist(), plain.tolist())
        print(
            f"  shared out minus as it is, {kind} at {n}: {found.difference:+.3f} "
            f"[{found.low:+.3f}, {found.high:+.3f}], p = {found.p:.2g}"
        )
    return arms


def batches(lm: ppl.LanguageModel, task: Task, sizes: Sequence[int], ask: bool) -> None:
    """Prompt tokens a question by the size of a batch, and how many are right, if it is asked."""
    questions = [p.question for p in task]
    print("questions in a call, prompt tokens a question (E / b + q), right, missing")
    for size in sizes:
        program = batch_prompt(questions, size)
        line = f"  {size:3d}  {program.cost(lm).per_question:6.1f}"
        if ask:
            found = BestOfN(1).run(program, lm, seed=0, temperature=0.0).best
            right = sum(bool(task.score(p, found[i])) for i, p in enumerate(task))
            missing = sum(said is None for said in found.values())
            line += f"  {right / len(task):.2f}  {missing / len(task):.2f}"
        print(line)


def main(argv: Sequence[str] | None = None) -> list[Arm]:
    """Both parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_Help)
    parser.add_argument("--problems", type=int, default=40)
    parser.add_argument("--samples", type=int, default=12)
    parser.add_argument("--source", help="a chat model; smollm2 for the one from PyPI")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    if args.source is None:
        lm = ppl.load("tiny-lines")
        wordings = ["", reordered(1), reordered(2), reordered(3)]
        task = ppl.tasks.load("lines/chain", n=args.problems)
        arms = compare(chains(lm), wordings, task, args.samples, args.seed)
        batches(lm, task, (1, 2, 6, 12), ask=False)
        return arms
    lm = ppl.load(find_gguf() if args.source == "smollm2" else args.source)
    task = sums(args.problems)
    wordings = ["", *ROLES[:3], *INSTRUCTIONS[:2]]
    arms = compare(in_words(lm), wordings, task, args.samples, args.seed)
    batches(lm, task, (1, 2, 6), ask=True)
    return arms


class _Help(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    pass


if __name__ == "__main__":
    main()
