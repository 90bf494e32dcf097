"""A quantile head for the embedded reward model, trained on rollouts.

Park et al. 2025 (arXiv 2506.09338). From the question and from every step of a response, the model
completes `--rollouts` times; the share of right completions is the success rate of that prefix. The
head learns its 10%, 50% and 90% quantiles on every other problem. On the rest it prints how many
success rates lie below each quantile, and how many samples the low quantile asks for.

    python examples/quantile_head.py --problems 100
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
import pyro
import torch
from torch import Tensor

import ppl
from ppl.searchers import BestOfN
from ppl.tasks import TASKS, Judge, Problem, problems
from ppl.verifiers import PRM, fit_quantiles, pinball, quantile_head_of, samples_needed
from ppl.verifiers.laws import prefix

QUANTILES = (0.1, 0.5, 0.9)


def go_on(text: ppl.Text, lm: ppl.LanguageModel) -> str | None:
    for t in range(12):
        step = pyro.sample(f"step_{t}", lm(text, until="\n", max_tokens=40))
        text = text + step
        if step.finished:
            break
    return text.answer


def prefixes(
    lm: ppl.LanguageModel, asked: Sequence[Problem], seed: int
) -> tuple[list[ppl.Text], np.ndarray]:
    """The question and all unfinished prefixes of one response each, and whose they are `[n]`."""
    questions = [lm.chat(p.question) for p in asked]
    seeds = [seed * len(asked) + i for i in range(len(asked))]
    drawn = BestOfN(1).run_many(go_on, [(q, lm) for q in questions], seed=seeds)
    texts, owners = [], []
    for i, posterior in enumerate(drawn):
        text = posterior.samples[0].text
        parts = [prefix(text, t) for t in range(1, len(text.step_ends))]
        texts += [questions[i], *parts]
        owners += [i] * (1 + len(parts))
    return texts, np.array(owners)


def success_rates(
    lm: ppl.LanguageModel,
    texts: Sequence[ppl.Text],
    asked: Sequence[Problem],
    rollouts: int,
    seed: int,
) -> Tensor:
    """`[n]` shares of rollouts from each text that answer its problem rightly."""
    seeds = [seed * len(texts) + i for i in range(len(texts))]
    drawn = BestOfN(rollouts).run_many(go_on, [(t, lm) for t in texts], seed=seeds)
    with Judge(limit=60.0) as judge:
        right = [
            judge.score_many([problem] * rollouts, [s.value for s in posterior.samples])
            for problem, posterior in zip(asked, drawn, strict=True)
        ]
    return torch.tensor(np.mean(right, axis=1), dtype=torch.float32)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", type=int, default=100, help="per task")
    parser.add_argument("--rollouts", type=int, default=8, help="per prefix")
    parser.add_argument("--rounds", type=int, default=50, help="of training")
    parser.add_argument("--most", type=int, default=64, help="samples for one question")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    lm, prm = ppl.load("tiny"), PRM.load("tiny")
    asked = [p for task in TASKS for p in problems(task, args.problems, seed=args.seed)]
    texts, owners = prefixes(lm, asked, args.seed)
    rates = success_rates(lm, texts, [asked[i] for i in owners], args.rollouts, args.seed + 1)
    states = prm.states([ppl.JudgeRequest(prm, text) for text in texts])
    hidden = torch.stack([s[-1] for s in states])  # [n, hidden]
    fitting, report = torch.from_numpy(owners % 2 == 0), torch.from_numpy(owners % 2 == 1)
    print(f"{fitting.sum()} prefixes to fit, {report.sum()} to report; mean success "
          f"{rates.mean():.2f}, never {(rates == 0).float().mean():.2f}, "
          f"always {(rates == 1).float().mean():.2f}")  # fmt: skip

    head = quantile_head_of(prm.log_odds, hidden, QUANTILES)
    raw = head(hidden.clone()).sigmoid().detach()  # three times the raw probability
    fit_quantiles(head, hidden[fitting], rates[fitting], QUANTILES, rounds=args.rounds)
    fitted = head(hidden.clone()).sigmoid().detach()

    # A rate from n rollouts is known to half of 1/n; many are 0 or 1, so coverage is an interval.
    half = 0.5 / args.rollouts
    print("\n| quantile | raw: below - at most | fitted: below - at most |\n|---|---|---|")
    for j, q in enumerate(QUANTILES):
        cells = [f"{q:.0%}"]
        for guess in (raw[report, j], fitted[report, j]):
            truth = rates[report]
            below, most = (truth < guess - half).float(), (truth <= guess + half).float()
            cells.append(f"{below.mean():.0%} - {most.mean():.0%}")
        print("| " + " | ".join(cells) + " |")
    for name, guess in (("raw", raw), ("fitted", fitted)):
        print(f"pinball loss, {name}: {pinball(guess[report], rates[report], QUANTILES):.4f}")

    print(f"\nsamples for 99%, at most {args.most}, over the questions of the report:")
    first = torch.from_numpy(np.append(True, owners[1:] != owners[:-1])) & report
    for name, guess in (("raw probability", raw), ("10% quantile", fitted)):
        needed = [samples_needed(p, most=args.most) for p in guess[first, 0].tolist()]
        print(f"by {name}: median {np.median(needed):.0f}, mean {np.mean(needed):.1f}")


if __name__ == "__main__":
    main()
