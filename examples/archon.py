"""Archon: an architecture of operators is searched for under a limit of calls, and measured on
other problems.

Operators are those of the paper. The generator is the embedded pair's writer, its reward model
verifies and ranks, and the fuser is a script that takes the most frequent answer: offline, so that
every step can be looked at. With a model behind a server in their place it is the published system.

    python examples/archon.py --calls 4000 --method tpe
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Sequence

import pyro

import ppl
from ppl.programs.archon import (
    Archon,
    Found,
    Space,
    fuse,
    generate,
    rank,
    search_architectures,
    verify,
)
from ppl.searchers import BestOfN
from ppl.study.intervals import wilson
from ppl.tasks import Task
from ppl.verifiers import PRM, Verifier


def space(lm: ppl.LanguageModel, prm: Verifier) -> Space:
    """Architectures: samples, a verifier, a ranker that keeps so many, a fuser."""

    def solve(question: str) -> ppl.Text:
        text = lm.chat(question)
        for t in range(12):
            step = pyro.sample(f"step_{t}", lm(text, until="\n", max_tokens=8))
            text = text + step
            if step.finished:
                break
        return text

    def build(samples: int, verifier: float, ranker: int, fuser: bool) -> Archon | None:
        if ranker >= samples and ranker > 1:
            return None  # it would keep all, and nobody after it minds the order
        layers: list = [generate(solve, samples)]
        if verifier:
            layers.append(verify(prm, threshold=verifier))
        if ranker:
            layers.append(rank(prm, ranker))
        if fuser:
            layers.append(fuse(most_frequent))
        return Archon(layers, read=answer)

    choices = {
        "samples": [1, 2, 4, 8],
        "verifier": [0.0, 0.1, 0.5],
        "ranker": [0, 1, 3],
        "fuser": [False, True],
    }
    return Space(choices, build)


def answer(text: str) -> str:
    """The value of the last line."""
    return text.strip().rpartition("=")[2]


def most_frequent(prompt: str) -> str:
    """A scripted fuser: of the responses in its prompt, the answer that most of them end with."""
    listed = prompt.partition("\n\nWrite one response")[0]
    responses = re.split(r"^Response \d+: ", listed, flags=re.MULTILINE)[1:]
    (best, _), *_ = Counter(answer(response) for response in responses).most_common(1)
    return f"={best}"


def measured(archon: Archon, task: Task, seed: int) -> tuple[int, float]:
    """Problems solved, and calls a problem."""
    found = BestOfN(1).run_many(archon, [p.question for p in task], seed=seed)
    posteriors = [p for p in found if isinstance(p, ppl.Posterior)]
    right = sum(bool(task.score(p, q.best)) for p, q in zip(task, posteriors, strict=True))
    return right, sum(q.cost.calls for q in posteriors) / len(task)


def show(name: str, archon: Archon, task: Task, seed: int) -> None:
    """A line of the last table."""
    right, calls = measured(archon, task, seed)
    low, high = wilson(right, len(task))
    print(f"  {name:<24} {right / len(task):.2f} [{low:.2f}, {high:.2f}]  {calls:5.0f}  {archon}")


def main(argv: Sequence[str] | None = None) -> Found:
    """Searches, and measures what was found beside what one would have tried anyway."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_Help)
    parser.add_argument("--calls", type=int, default=4000, help="limit of the search")
    parser.add_argument("--method", default="tpe", choices=["random", "greedy", "tpe", "halving"])
    parser.add_argument("--problems", type=int, default=12, help="to search with")
    parser.add_argument("--others", type=int, default=40, help="to measure with")
    parser.add_argument("--workers", type=int, default=2, help="architectures at a time")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    where = space(ppl.load("tiny-lines"), PRM.load("tiny-lines"))
    task = ppl.tasks.load("lines/chain", n=args.problems + args.others)
    found = search_architectures(
        where,
        task[: args.problems],
        calls=args.calls,
        method=args.method,
        workers=args.workers,
        seed=args.seed,
    )
    print(f"{len(where)} architectures. {found}")
    print(f"on {args.others} other problems: solved, 95% interval, calls a problem")
    others, plain = task[args.problems :], {"verifier": 0.0, "fuser": False}
    show("found", found.program, others, args.seed + 1)
    show("one sample", where.build(samples=1, ranker=0, **plain), others, args.seed + 1)
    show("best of 8", where.build(samples=8, ranker=1, **plain), others, args.seed + 1)
    return found


class _Help(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    pass


if __name__ == "__main__":
    main()
