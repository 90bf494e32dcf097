"""A search as training data, after SPaR: refinements of whole answers, and the pairs they make.

The embedded pair `tiny-lines` answers held-out line problems (chain arithmetic by default). As in
SPaR (Cheng et al. 2024, arXiv:2412.11605), answers that the judge is not content with are refined
by a tree search, breadth first and depth first: a refinement keeps an answer up to some line and
writes the rest anew. The refinement that passes is chosen, the answer that it came from rejected. A
second search (MCTS over lines) gives values of steps. Nothing is trained: files of JSON lines are
written, and the exact checkers of the tasks say how good the rows are.

    python examples/training_rows.py --problems 40 --out build/rows
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from search_gain import load, solve

import ppl
from ppl.export import preference_pairs, step_labels, trajectories, write_rows
from ppl.searchers import MCTS, BestOfN, TreeRefinement
from ppl.tasks.lines import LineProblem, held_out_problems, right_steps, split_lines
from ppl.verifiers import PRM

Row = dict[str, Any]
CONTENT = 0.5  # the paper's threshold of a refinement that passes
NEXT = "\n\n"  # between the answers of a transcript


class Latest(ppl.Verifier):
    """What a reward model says of the last of several answers in one text."""

    def __init__(self, lm: ppl.LanguageModel, prm: PRM) -> None:
        self.lm, self.prm, self.name, self.meaning = lm, prm, "latest", "outcome"

    def judge(self, requests: Sequence[ppl.JudgeRequest]) -> list[Sequence[float]]:
        """The product over the answer's steps; with a floor, so that bad answers can be mended."""
        asked = [replace(r, verifier=self.prm, text=self.alone(r.text)) for r in requests]
        return [[max(math.fsum(scores), math.log(1e-3))] for scores in self.prm.judge(asked)]

    def alone(self, transcript: ppl.Text) -> ppl.Text:
        """The question with the last answer, line by line as it was written."""
        lines = split_lines(transcript.text.split(NEXT)[-1])
        return begun(self.lm, transcript.prompt.strip(), lines)


def begun(lm: ppl.LanguageModel, question: str, lines: Sequence[str]) -> ppl.Text:
    """A question with some lines of an answer; a line without a newline ends it."""
    text = lm.chat(question)
    for line in lines:
        text = text + lm.continuation(line, finished=not line.endswith("\n"))
    return text


def refine(
    problem: LineProblem, draft: str, lm: ppl.LanguageModel, latest: Latest, rounds: int = 4
) -> str:
    """Judges a draft; as long as the judge is not content, cuts the answer and goes on from there.

    All answers stand in one transcript, along which the judgements telescope: a node of the search
    is worth what its latest answer is.
    """
    transcript, answer = lm.chat(problem.question) + draft, draft
    for t in range(rounds):
        ppl.answer(answer)
        verdict = latest(transcript)
        pyro.sample(f"judged_{t}", verdict, obs=True)
        if verdict.log_probability > math.log(CONTENT):
            break
        lines = split_lines(answer)
        kept = int(pyro.sample(f"kept_{t}", dist.Categorical(torch.ones(len(lines)))))
        text = begun(lm, problem.question, lines[:kept])
        for i in range(kept, 16):
            text = text + pyro.sample(f"line_{t}_{i}", lm(text, until="\n", max_tokens=8))
            if text.finished:
                break
        answer = text.text
        transcript = transcript + NEXT + answer
    return answer


def main(argv: list[str] | None = None) -> dict[str, list[Row]]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--problems", type=int, default=40)
    parser.add_argument("--task", default="chain")
    parser.add_argument("--drafts", type=int, default=4, help="answers to each problem at first")
    parser.add_argument("--answers", type=int, default=21, help="most of a refinement tree")
    parser.add_argument("--simulations", type=int, default=16, help="of MCTS")
    parser.add_argument("--out", type=Path, default=Path("build/rows"))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    lm, prm = load()
    problems = held_out_problems(args.task, args.problems, args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    rows: dict[str, list[Row]] = {}

    drafts = BestOfN(args.drafts).run_many(solve, [(p, lm, prm) for p in problems], seed=args.seed)
    doubted = {
        (p, sample.text.text)
        for p, run in zip(problems, drafts, strict=True)
        for sample in run.samples
        if sample.finished and sample.text is not None and sample.score <= CONTENT
    }
    asked = [(p, draft, lm, Latest(lm, prm)) for p, draft in sorted(doubted, key=str)]
    print(f"{len(asked)} different answers to {len(problems)} problems are doubted")
    for order in ("bfs", "dfs"):
        searcher = TreeRefinement(args.answers, order=order, threshold=CONTENT)
        runs = searcher.run_many(refine, asked, seed=args.seed)
        found = [preference_pairs(run, kind="refinements", least=CONTENT) for run in runs]
        rows[f"refinements-{order}"] = [row for pairs in found for row in pairs]
        said = [(p, row) for (p, *_), pairs in zip(asked, found, strict=True) for row in pairs]
        chosen, rejected = ([p.check(row[k]) for p, row in said] for k in ("chosen", "rejected"))
        tokens = sum(run.cost.lm_tokens for run in runs)
        print(
            f"{order}: {len(said)} pairs for {tokens} tokens; right among the chosen "
            f"{share(chosen)}, among the rejected {share(rejected)}"
        )

    labels: list[tuple[float, bool]] = []
    rows["trajectories"], rows["step-labels"] = [], []
    searches = MCTS(args.simulations).run_many(
        solve, [(p, lm, prm) for p in problems], seed=args.seed
    )
    for problem, run in zip(problems, searches, strict=True):
        rows["trajectories"] += trajectories(run, right=right_of(problem))
        labelled = step_labels(run, right_of(problem))
        rows["step-labels"] += labelled
        for row in labelled:
            good = right_steps(problem, row["completions"])
            labels += [(label, i < good) for i, label in enumerate(row["labels"])]
    means = [np.mean([v for v, ok in labels if ok is kind] or [math.nan]) for kind in (True, False)]
    print(
        f"MCTS: {len(rows['trajectories'])} right trajectories, {len(labels)} labels of steps, on "
        f"average {means[0]:.2f} for right lines, {means[1]:.2f} from the first wrong one on"
    )
    for name, written in rows.items():
        write_rows(written, args.out / f"{name}.jsonl")
        print(f"{len(written):>6} rows in {name}.jsonl")
    return rows


def right_of(problem: LineProblem) -> Callable[[Any], bool]:
    """Says of an answer of `solve` if it is right."""
    lines = [problem.right_lines([])[0]]
    while lines[-1].endswith("\n"):
        lines.append(problem.right_lines(lines)[0])
    wanted = problem.answer("".join(lines))
    return lambda answer: bool(answer == wanted)


def share(of: Sequence[bool]) -> str:
    """Of truths, as a percentage."""
    return f"{100 * sum(of) / len(of):.0f}%" if of else "none"


if __name__ == "__main__":
    main()
