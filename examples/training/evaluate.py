"""What the decoder and the reward model can do on held-out problems: the gates, with 95% intervals.

    python examples/training/evaluate.py --model build/tiny
    python examples/training/evaluate.py --model build/tiny --device cuda --problems 500

For every task:

* single-sample accuracy at temperature 1 (Wilson interval);
* AUC among siblings: lines that the decoder samples after one right prefix, right against wrong,
  pairs of one prefix only, counted as often as they are sampled; of the reward model at the line's
  end, and of the decoder's own log-probability of the line (interval: bootstrap over problems);
* AUC within a problem: whole answers, right against wrong, by the last score, averaged over the
  problems that have both; of the reward model, and of the decoder's log-probability;
* expected calibration error at line ends (15 bins), and the mean score and share of right by step.

A problem is held out exactly if `ppl.tasks.held_out` says so of its key: training never saw it.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from data import END_ID, LINE_TASKS, UNKNOWN, Chain, LineProblem, Tree, labelled_response, line_ids
from networks import Response, load_decoder, load_reward, sample, tree_log_odds
from numpy.typing import NDArray
from vocabulary import encode, prompt

from ppl.study.intervals import wilson
from ppl.tasks.lines import held_out_problems

Floats = NDArray[np.float64]
Interval = tuple[float, float, float]  # estimate, low, high
SIBLINGS = 12  # lines sampled after each right prefix
ANSWERS = 8  # answers sampled to each problem


def wins(scores: Floats, good: NDArray[np.bool_]) -> tuple[float, int]:
    """Pairs of a good and a bad in which the good scores higher (ties half), and all such pairs."""
    difference = scores[good][:, None] - scores[~good][None, :]
    return float((difference > 0).sum() + 0.5 * (difference == 0).sum()), difference.size


def ratio_interval(parts: Sequence[tuple[float, float]], seed: int = 0) -> Interval:
    """Sum of the first over sum of the second, with a 95% bootstrap interval over the parts."""
    values = np.array(parts, dtype=float).reshape(-1, 2)
    if not values[:, 1].sum():
        return math.nan, math.nan, math.nan
    draws = np.random.default_rng(seed).integers(len(values), size=(1000, len(values)))
    tops, bottoms = values[draws].sum(1).T
    low, high = np.quantile(tops / np.maximum(bottoms, 1e-9), [0.025, 0.975])
    top, bottom = values.sum(0)
    return float(top / bottom), float(low), float(high)


def calibration_error(probs: Floats, good: NDArray[np.bool_], bins: int = 15) -> float:
    """Expected calibration error: gap of mean score and share of good in bins of equal width."""
    at = np.minimum((probs * bins).astype(int), bins - 1)
    gaps = [abs((probs[at == b] - good[at == b]).sum()) for b in range(bins) if (at == b).any()]
    return float(sum(gaps) / len(probs))


def right_path(problem: LineProblem, rng: Random) -> list[str]:
    """Right lines, likely ones where the careless solver hits one."""
    lines: list[str] = []
    while not lines or lines[-1].endswith("\n"):
        right = problem.right_lines(lines)
        tries = (problem.careless_line(lines, rng) for _ in range(3))
        lines.append(next((line for line in tries if line in right), None) or rng.choice(right))
    return lines


def siblings(
    decoder: Any, reward: Any, problems: Sequence[LineProblem], rng: Random
) -> dict[str, Interval]:
    """AUC among siblings of both judges."""
    paths = [right_path(p, rng) for p in problems]
    places = [(i, t) for i, path in enumerate(paths) for t in range(len(path))]
    prefixes = []
    for i, t in places:
        ids = [*prompt(problems[i].question), *(x for line in paths[i][:t] for x in line_ids(line))]
        prefixes += [ids] * SIBLINGS
    lines = sample(decoder, prefixes, one_line=True)
    trees = []
    for n in range(len(places)):
        tree = Tree()
        tree.add(prefixes[n * SIBLINGS], [UNKNOWN] * len(prefixes[n * SIBLINGS]), 0, 0)
        for k in range(SIBLINGS):
            ids = lines[n * SIBLINGS + k].ids
            tree.add(ids, [UNKNOWN] * len(ids), k + 1, len(prefixes[n * SIBLINGS]))
        tree.end[len(prefixes[n * SIBLINGS]) - 1] = 0
        trees.append(tree)
    odds = tree_log_odds(reward, trees)
    counts = {name: np.zeros((len(problems), 2)) for name in ("reward model", "log-probability")}
    for n, (i, t) in enumerate(places):
        own = lines[n * SIBLINGS : (n + 1) * SIBLINGS]
        right = [line_ids(line) for line in problems[i].right_lines(paths[i][:t])]
        good = np.array([r.ids in right for r in own])
        by_reward = odds[n][np.flatnonzero(trees[n].end)]
        by_decoder = np.array([sum(r.log_probs) for r in own])
        counts["reward model"][i] += wins(by_reward, good)
        counts["log-probability"][i] += wins(by_decoder, good)
    return {name: ratio_interval([(a, b) for a, b in c]) for name, c in counts.items()}


def within(
    problems: Sequence[LineProblem], answers: Sequence[Response], last: Floats
) -> dict[str, Interval]:
    """AUC among the answers to one problem, averaged over problems that have right and wrong."""
    by: dict[str, list[tuple[float, float]]] = {"reward model": [], "log-probability": []}
    for i, problem in enumerate(problems):
        own = slice(i * ANSWERS, (i + 1) * ANSWERS)
        good = np.array([problem.check(r.text) for r in answers[own]])
        logs = np.array([sum(r.log_probs) for r in answers[own]])
        for name, scores in (("reward model", last[own]), ("log-probability", logs)):
            won, pairs = wins(scores, good)
            if pairs:
                by[name].append((won / pairs, 1.0))
    return {name: ratio_interval(parts) for name, parts in by.items()}


def evaluate_task(decoder: Any, reward: Any, task: str, n: int, seed: int) -> dict[str, Any]:
    problems = held_out_problems(task, n, seed)
    prompts = [prompt(p.question) for p in problems]
    answers = sample(decoder, [ids for ids in prompts for _ in range(ANSWERS)])
    right = [p.check(answers[i * ANSWERS].text) for i, p in enumerate(problems)]
    trees = [labelled_response(problems[i // ANSWERS], r.groups) for i, r in enumerate(answers)]
    odds = tree_log_odds(reward, trees)
    last = np.array(
        [row[-1] if r.text is not None else -1e9 for r, row in zip(answers, odds, strict=True)]
    )
    probs, good, step = [], [], []
    for tree, row in zip(trees, odds, strict=True):
        ends = np.flatnonzero(tree.end)
        probs += list(1 / (1 + np.exp(-row[ends])))
        good += [tree.label[e] == 1 for e in ends]
        step += list(range(len(ends)))
    p, g, s = np.array(probs), np.array(good), np.array(step)
    groups = [slice(i * ANSWERS, (i + 1) * ANSWERS) for i in range(n)]
    correct = np.array([problems[i // ANSWERS].check(r.text) for i, r in enumerate(answers)])
    return {
        "problems": n,
        "accuracy": (sum(right) / n, *wilson(sum(right), n)),
        "siblings": siblings(decoder, reward, problems[: n // 2], Random(seed)),
        "within": within(problems, answers, last),
        "ece": calibration_error(p, g),
        "best_of_8": float(np.mean([correct[k][last[k].argmax()] for k in groups])),
        "any_of_8": float(np.mean([correct[k].any() for k in groups])),
        "first_wrong_step": np.bincount(
            [
                t.label.count(1) and int(np.sum(np.array(t.end)[np.array(t.label) == 1]))
                for t in trees
            ]
        ).tolist(),
        "by_step": [
            [int(k), float(p[s == k].mean()), float(g[s == k].mean()), int((s == k).sum())]
            for k in np.unique(s)
        ],
        "tokens": float(np.mean([len(r.ids) for r in answers])),
    }


def reads(reward: Any) -> dict[str, float]:
    """Log-odds of four answers to 2+3: right, doubled, nothing, noise."""
    problem = Chain("2+3")
    said = {"5": "a=5", "55": "a=55", "nothing": "a=", "(((": "a=((("}
    trees = [labelled_response(problem, [[*encode(text), END_ID]]) for text in said.values()]
    odds = tree_log_odds(reward, trees)
    return {name: float(row[-1]) for name, row in zip(said, odds, strict=True)}


def gates(report: dict[str, Any]) -> dict[str, bool]:
    """Every gate and whether it is met."""
    out = {
        "5 beats 55, nothing and (((": report["reads"]["5"]
        > max(v for k, v in report["reads"].items() if k != "5")
    }
    for task in LINE_TASKS:
        r = report[task]
        out |= {
            f"{task}: accuracy in 25% to 50%": 0.25 <= r["accuracy"][0] <= 0.5,
            f"{task}: AUC among siblings >= .90": r["siblings"]["reward model"][0] >= 0.9,
            f"{task}: AUC among siblings >= .95 (wanted)": r["siblings"]["reward model"][0] >= 0.95,
            f"{task}: above the decoder's log-probability": r["siblings"]["reward model"][0]
            > r["siblings"]["log-probability"][0],
            f"{task}: AUC within a problem >= .85": r["within"]["reward model"][0] >= 0.85,
            f"{task}: ECE <= .05": r["ece"] <= 0.05,
        }
    return out


def show(report: dict[str, Any]) -> None:
    def text(interval: Interval) -> str:
        return f"{interval[0]:.3f} [{interval[1]:.3f}, {interval[2]:.3f}]"

    for task in LINE_TASKS:
        r = report[task]
        print(f"{task}: {r['problems']} problems, {r['tokens']:.0f} tokens an answer")
        print(f"  accuracy        {text(r['accuracy'])}")
        for kind in ("siblings", "within"):
            for judge, interval in r[kind].items():
                print(f"  {kind:9s} AUC   {text(interval)}  {judge}")
        print(
            f"  ECE {r['ece']:.3f}   best of 8 {r['best_of_8']:.3f}   any of 8 {r['any_of_8']:.3f}"
        )
        print(f"  answers by right lines: {r['first_wrong_step']}")
        steps = " ".join(f"{k}:{p:.2f}/{g:.2f}" for k, p, g, _ in r["by_step"])
        print(f"  mean score / share right by step: {steps}")
    print("2+3:", "  ".join(f"{k} {v:+.2f}" for k, v in report["reads"].items()))
    for gate, met in report["gates"].items():
        print("met   " if met else "MISSED", gate)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="folder with lm/ and prm/")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--problems", type=int, default=300, help="held-out problems a task")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="where to write all figures")
    args = parser.parse_args(argv)
    torch.manual_seed(args.seed)
    decoder = load_decoder(args.model / "lm", args.device)
    reward = load_reward(args.model / "prm", args.device)
    report: dict[str, Any] = {
        task: evaluate_task(decoder, reward, task, args.problems, args.seed) for task in LINE_TASKS
    }
    report["reads"] = reads(reward)
    report["gates"] = gates(report)
    show(report)
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n")
    return report


if __name__ == "__main__":
    main()
