"""One set of samples, every rule: what each makes of them, and what the samples say of more.

Draws samples of held-out line problems with the embedded pair `tiny-lines`. One half of the
problems serves for what has to be fitted (the set aggregator, answer sets); all rules are reported
on the other half, with a quarter of the samples and with all, and 95% Wilson intervals over
problems. Then: answering only where the vote is sure, answer sets, and a forecast of coverage from
a quarter of the samples.

    python examples/choosing_answers.py --problems 60 --samples 32
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from search_gain import in_parts, load

import ppl
from ppl.decide import (
    RPC,
    Abstained,
    Borda,
    Candidates,
    ConformalSets,
    DeepConf,
    MajorityOfTheBests,
    Pessimistic,
    SampleSetAggregator,
    answer_or_abstain,
    answering_threshold,
    best,
    draw,
    risk_coverage,
    shares,
    token_confidence,
    trace_confidence,
    vote,
)
from ppl.decide.scaling import coverage_curve, fit_beta_binomial, fit_power_law
from ppl.searchers import BestOfN
from ppl.study.intervals import wilson
from ppl.tasks.lines import LINE_TASKS, LineProblem, held_out_problems
from ppl.verifiers import PRM

Choose = Callable[[Candidates], Any]
Question = tuple[LineProblem, Candidates]

RULES: dict[str, Choose] = {
    "one sample": lambda c: draw(c, "flat", seed=0) if c.columns.there.any() else None,
    "vote": lambda c: vote(c, "flat"),
    "best": best,
    "weighted vote": vote,
    "majority of the bests (root N)": lambda c: vote(c, MajorityOfTheBests()),
    "pessimistic (beta 0.1)": lambda c: vote(c, Pessimistic(0.1)),
    "perplexity consistency": lambda c: vote(c, RPC(prune=False)),
    "RPC": lambda c: vote(c, RPC()),
    "RPC (token mean)": lambda c: vote(c, RPC("token_mean")),
    "texts by their posterior": lambda c: vote(c, RPC("joint", prune=False)),
    "most certain": lambda c: best(c, "certainties"),
    "Borda of certainties (p=0.5)": lambda c: vote(c, Borda(0.5)),
    "DeepConf (10%)": lambda c: vote(c, DeepConf(0.1)),
    "DeepConf (90%)": lambda c: vote(c, DeepConf(0.9)),
}


def certainties(lm: ppl.HFModel, posterior: ppl.Posterior) -> list[float]:
    """DeepConf's confidence of each text: its tokens' laws, from one pass over all texts."""
    texts = [s.text for s in posterior.samples if s.text is not None]
    prefixes = [text.tokens[: text.prompt_length] for text in texts]
    written = [text.tokens[text.prompt_length :] for text in texts]
    laws = lm.logits_along(prefixes, written, [None] * len(texts))
    return [trace_confidence(token_confidence(one.log_softmax(-1).cpu().numpy())) for one in laws]


def sampled(
    asked: Sequence[LineProblem], n: int, lm: ppl.HFModel, prm: PRM
) -> Iterator[Candidates]:
    """N independent samples of each problem, with all that rules may ask for."""
    for posterior in in_parts(BestOfN(n), n, [(p, lm, prm) for p in asked]):
        assert isinstance(posterior, ppl.Posterior)  # this reward model rules no text out for good
        yield Candidates.of(posterior, certainties=certainties(lm, posterior))


def part(candidates: Candidates, members: Sequence[int]) -> Candidates:
    """Some of the candidates."""
    at = np.array(members)
    names = ("log_weights", "log_scores", "log_probs", "log_joints", "tokens", "certainties")
    return Candidates(
        [candidates.values[i] for i in members],
        texts=candidates.columns["texts"][at].tolist(),
        **{name: candidates.columns[name][at] for name in names},
    )


def accuracy(choose: Choose, questions: Sequence[Question], k: int) -> float:
    """The mean over problems, of disjoint sets of k of the samples."""
    found = []
    for problem, candidates in questions:
        sets = [range(i, i + k) for i in range(0, len(candidates) - k + 1, k)]
        rights = [problem.check(choose(part(candidates, members))) for members in sets]
        found.append(float(np.mean(rights)))
    return float(np.mean(found))


def rules_table(questions: Sequence[Question], rules: dict[str, Choose]) -> Table:
    """Every rule with a quarter of the samples, and with all."""
    n = len(questions[0][1])
    table = Table("rule", *(f"N = {k}" for k in (max(1, n // 4), n)), box=SIMPLE_HEAD)
    for name, choose in rules.items():
        cells = []
        for k in (max(1, n // 4), n):
            mean = accuracy(choose, questions, k)
            low, high = wilson(mean * len(questions), len(questions))
            cells.append(f"{mean:.1%} [{low:.0%}, {high:.0%}]")
        table.add_row(name, *cells)
    return table


def show_abstaining(report: Sequence[Question]) -> None:
    """The weighted vote's share as confidence: its curve, and three prices of a wrong answer."""
    sure, right = [], []
    for problem, candidates in report:
        first = shares(candidates)[:1]
        sure.append(first[0][1] if first else 0.0)
        right.append(bool(first) and problem.check(first[0][0]))
    curve, chance = risk_coverage(sure, right), 1 - float(np.mean(right))
    print("answering only where it pays, by the weighted vote's share:")
    print(f"  AURC {curve.area:.3f}; {chance:.3f} by chance, {curve.best_area:.3f} at best")
    for wrong in (0.0, -1.0, -20.0):
        given = [(p, answer_or_abstain(c, wrong=wrong)) for p, c in report]
        answers = [p.check(a) for p, a in given if not isinstance(a, Abstained)]
        worth = sum(1.0 if good else wrong for good in answers) / len(report)
        always = float(np.mean([1.0 if good else wrong for good in right]))
        accuracy = f"{np.mean(answers):.1%}" if answers else "none"
        print(
            f"  wrong = {wrong:g}, threshold {answering_threshold(wrong):.3f}: "
            f"{len(answers) / len(report):.1%} answered, {accuracy} of them right; "
            f"utility {worth:.3f}, answering always {always:.3f}"
        )


def show_sets(fitting: Sequence[Question], report: Sequence[Question]) -> None:
    """Sets of answers, calibrated on one half."""
    print("answer sets, calibrated on the other half:")
    gold = [right_answer(*question) for question in fitting]
    for alpha in (0.3, 0.2, 0.1):
        sets = ConformalSets.fit([c for _, c in fitting], gold, alpha)
        made = [(p, sets(c)) for p, c in report]
        hit = np.mean([s.everything or any(map(p.check, s.answers)) for p, s in made])
        size = np.mean([len(s) for _, s in made])
        more = ", and anything else" if made[0][1].everything else ""
        print(f"  alpha = {alpha}: {hit:.1%} hold the right one, of {size:.2f} in the mean{more}")


def show_forecast(rights: Sequence[Sequence[bool]]) -> None:
    """Coverage of all samples, from a quarter of them."""
    n = len(rights[0])
    few = max(2, n // 4)
    early = [sum(r[:few]) for r in rights]
    (truth,) = coverage_curve(n, [sum(r) for r in rights], [n])
    law, line = fit_beta_binomial(few, early), fit_power_law(few, early)
    low, high = law.interval(n)
    print(
        f"coverage of {n} samples, forecast from {few}: Beta-binomial {law.coverage(n):.1%} "
        f"[{low:.1%}, {high:.1%}], power law {line.coverage(n):.1%}; measured {truth:.1%}"
    )


def right_answer(problem: LineProblem, candidates: Candidates) -> Any:
    """A sampled answer that is right, or something that no sample says."""
    return next((v for v in candidates.values if problem.check(v)), "none was right")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", type=int, default=40, help="of each task")
    parser.add_argument("--samples", type=int, default=16, help="of each problem")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    lm, prm = load(threads=1)
    asked = [p for task in LINE_TASKS for p in held_out_problems(task, args.problems, args.seed)]
    questions = list(zip(asked, sampled(asked, args.samples, lm, prm), strict=True))
    fitting, report = questions[::2], questions[1::2]
    rights = [[p.check(value) for value in c.values] for p, c in questions]

    console = Console()
    aggregator = SampleSetAggregator.fit([c for _, c in fitting], rights[::2])
    console.print(rules_table(report, {**RULES, "set aggregator": aggregator}))

    show_abstaining(report)
    show_sets(fitting, report)
    show_forecast(rights)


if __name__ == "__main__":
    main()
