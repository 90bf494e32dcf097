"""Is the embedded reward model's probability true, and what does SMC gain if it is?

Samples responses of the embedded model, labels every step exactly, fits calibrators on one set of
held-out problems, and reports on another: Brier score, calibration error, log-loss, and the
accuracy of SMC with the raw and the calibrated verifier. Writes `reliability.png`.

    python examples/verifier_calibration.py --problems 100
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyro
import torch
from matplotlib.figure import Figure
from tiny_data import step_labels
from tiny_evaluation import held_out_truth

import ppl
from ppl.searchers import SMC, BestOfN
from ppl.study.intervals import wilson
from ppl.tasks import TASKS, Judge, Problem, problems
from ppl.verifiers import PRM, Calibrated, Isotonic, Platt, Temperature, reliability, step_scores


def respond(question: str, lm: ppl.LanguageModel, verifier: ppl.Verifier | None) -> str | None:
    text = lm.chat(question)
    for t in range(12):
        step = pyro.sample(f"step_{t}", lm(text, until="\n", max_tokens=40))
        text = text + step
        if verifier is not None:
            pyro.sample(f"ok_{t}", verifier(text), obs=True)
        if step.finished:
            break
    return text.answer


def labelled_steps(
    lm: ppl.LanguageModel, prm: PRM, asked: Sequence[Problem], each: int, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Log-odds, exact labels and indices of the steps of `each` responses to every problem."""
    seeds = [seed * len(asked) + i for i in range(len(asked))]
    drawn = BestOfN(each).run_many(respond, [(p.question, lm, None) for p in asked], seed=seeds)
    texts, labels = [], []
    for problem, posterior in zip(asked, drawn, strict=True):
        for sample in posterior.samples:
            text = sample.text
            steps = text.text.split("\n")[: len(text.step_ends)]
            task, said = problem.meta["task"], held_out_truth(problem)
            truth = step_labels(task, said, steps, text.finished)
            if len(truth) == len(text.step_ends):  # else a step was cut off in the middle
                texts.append(text)
                spoken = [bool(step.strip()) for step in text.steps]  # blank steps have no score
                labels.append(np.array(truth)[spoken])
    scores = step_scores(prm, texts)
    index = [np.arange(len(s)) for s in scores]
    return np.concatenate(scores), np.concatenate(labels), np.concatenate(index)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", type=int, default=100, help="per task, for the report")
    parser.add_argument("--responses", type=int, default=4, help="per problem, to be labelled")
    parser.add_argument("--particles", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=1, help="SMC runs per problem")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(), help="folder for the picture")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    lm, prm = ppl.load("tiny"), PRM.load("tiny")
    report = [p for task in TASKS for p in problems(task, args.problems, seed=args.seed)]
    taken = {p.id for p in report}
    others = [p for task in TASKS for p in problems(task, args.problems, seed=args.seed + 1)]
    fitting = [p for p in others if p.id not in taken]

    scores, labels, _ = labelled_steps(lm, prm, fitting, args.responses, args.seed + 1)
    calibrators = {
        "raw": Temperature(1.0),
        "temperature": Temperature.fit(scores, labels),
        "Platt": Platt.fit(scores, labels),
        "isotonic": Isotonic.fit(scores, labels),
    }
    print(f"fitted on {len(labels)} steps of {len(fitting)} problems")
    print(calibrators["temperature"], calibrators["Platt"])

    scores, labels, steps = labelled_steps(lm, prm, report, args.responses, args.seed)
    figure = Figure(figsize=(4.6, 4.4), layout="constrained")
    axes = figure.subplots()
    for name, calibrator in calibrators.items():
        found = reliability(calibrator(scores), labels, steps=steps)
        if name != "isotonic":  # four curves are too many for one picture
            found.plot(axes, label=name)
        print(f"\n{name}: {found}")
    axes.legend()
    axes.set_title("embedded PRM, steps of held-out problems", fontsize=10)
    args.out.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out / "reliability.png", dpi=110)

    print(f"\n| verifier | best | vote() | 95% of vote() | ESS at the end, N={args.particles} |")
    print("|---|---|---|---|---|")
    with Judge() as judge:
        for name, calibrator in calibrators.items():
            verifier = prm if name == "raw" else Calibrated(prm, calibrator)
            best, vote, ess = 0, 0, []
            for repeat in range(args.repeats):
                seeds = [1000 * (args.seed + repeat) + i for i in range(len(report))]
                found = SMC(args.particles).run_many(
                    respond, [(p.question, lm, verifier) for p in report], seed=seeds
                )
                best += sum(judge.score_many(report, [r.best for r in found]))
                vote += sum(judge.score_many(report, [r.vote() for r in found]))
                ess += [r.ess for r in found]
            n = len(ess)
            low, high = wilson(vote, n)
            print(
                f"| {name} | {best / n:.1%} | {vote / n:.1%} | {low:.1%}-{high:.1%} "
                f"| {np.mean(ess):.1f} |"
            )


if __name__ == "__main__":
    main()
