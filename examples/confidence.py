"""What is an answer's q worth? Confidences of the embedded pair's own answers, before and after.

16 answers to each of some held-out problems, drawn with `tiny-lines`: half of the problems serve to
fit, the other half to report. Three sources say how likely an answer is right: the probability that
the writer gives its own text, as it is and through Platt's map, fitted on the labels of the other
problems; a confidence head on the writer's last hidden state, fitted on truth values, or on soft
targets alone (how much of the reward model's confidence agrees with the answer), for which no truth
is needed; and the reward model, as it is and through Platt's map. Prints expected calibration
error, Brier score, AUC, and what a weighted vote makes of each.

    python examples/confidence.py --problems 40
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import search_gain
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from scipy.stats import rankdata

import ppl
from ppl import decide
from ppl.searchers import BestOfN
from ppl.tasks.lines import LINE_TASKS, LineProblem, held_out_problems
from ppl.verifiers import (
    PRM,
    Calibrated,
    ConfidenceHead,
    JudgeRequest,
    Platt,
    Verifier,
    log_odds,
    log_potential,
    reliability,
)

Floats = NDArray[np.float64]


class WholeText(Verifier):
    """A reward model's word on a whole text: the potential of all its steps, as one number.

    Its own product is a likelihood of every step; as a statement about the answer it is far too
    sure, or too shy, and wants calibration.
    """

    meaning = "outcome"

    def __init__(self, prm: PRM) -> None:
        self.prm, self.name = prm, f"{prm.name}, whole texts"

    def judge(self, requests: Sequence[JudgeRequest]) -> list[Sequence[float]]:
        """One log-probability for each text."""
        asked = [JudgeRequest(self.prm, r.text, 0, r.label, r.ledger, r.key) for r in requests]
        scores = self.prm.judge_checked(asked)
        return [[min(0.0, log_potential(s, self.prm.aggregate))] for s in scores]


@dataclass(frozen=True)
class Drawn:
    """All answers to some problems.

    Attributes:
        texts, answers, right: of each sample.
        owner: whose problem each belongs to.
        score: log of what the reward model says of each.
        own: log-probability of each text under the model that wrote it.
    """

    texts: list[ppl.Text]
    answers: list[object]
    right: NDArray[np.bool_]
    owner: NDArray[np.int64]
    score: Floats
    own: Floats

    def of(self, problem: int) -> NDArray[np.int64]:
        """Which samples answer a problem."""
        return np.flatnonzero(self.owner == problem)


def draw(asked: Sequence[LineProblem], n: int, lm: ppl.HFModel, prm: PRM) -> Drawn:
    """N samples of each problem."""
    found = search_gain.in_parts(BestOfN(n), n, [(problem, lm, prm) for problem in asked])
    rows = [
        (s.text, s.value if s.finished else None, i, np.log(max(s.score, 1e-30)), own(s))
        for i, posterior in enumerate(found)
        for s in posterior.samples  # type: ignore[union-attr]
    ]
    texts, answers, owner, score, probability = zip(*rows, strict=True)
    right = [a is not None and asked[i].check(a) for a, i in zip(answers, owner, strict=True)]
    columns = map(np.array, (right, owner, score, probability))
    return Drawn(list(texts), list(answers), *columns)


def own(sample: ppl.Sample) -> float:
    """Log-probability that the writer gives its text."""
    return math.fsum(r.prior() for r in sample.records if r.kind == "choice")


def soft_targets(drawn: Drawn) -> Floats:
    """Soft self-consistency of every answer, with the reward model's word as confidence."""
    targets = np.zeros(len(drawn.texts))
    for problem in np.unique(drawn.owner):
        mine = drawn.of(problem)
        answers = [drawn.answers[i] for i in mine]
        targets[mine] = decide.soft_self_consistency(answers, np.exp(drawn.score[mine]))
    return targets


def platt_for(log_p: Floats, right: NDArray[np.bool_]) -> Platt:
    """From the log-odds of a confidence to how often the answer is right."""
    return Platt.fit(log_odds(log_p), right)


def confidences(before: Drawn, after: Drawn, lm: ppl.HFModel, prm: PRM) -> dict[str, Floats]:
    """Log-probabilities `[n]` of "this answer is right" for new samples, by their source."""
    whole = WholeText(prm)
    heads = {
        "head, truth values": before.right.astype(float),
        "head, soft targets": soft_targets(before),
    }
    sources: dict[str, Verifier] = {
        name: ConfidenceHead.fit(lm, before.texts, y, ridge=300.0) for name, y in heads.items()
    }
    sources["reward model"] = whole
    sources["reward model, Platt"] = Calibrated(whole, platt_for(before.score, before.right))
    found = {
        "own probability": after.own,
        "own probability, Platt": platt_for(before.own, before.right)(log_odds(after.own)),
    }
    for name, verifier in sources.items():
        requests = [JudgeRequest(verifier, text) for text in after.texts]
        found[name] = np.array([scores[-1] for scores in verifier.judge_checked(requests)])
    return found


def auc(confidence: Floats, right: NDArray[np.bool_]) -> float:
    """How often a right answer is surer than a wrong one, over all problems."""
    ranks, good = rankdata(confidence), right.sum()
    return float((ranks[right].sum() - good * (good + 1) / 2) / (good * (len(right) - good)))


def voted(drawn: Drawn, confidence: Floats, asked: Sequence[LineProblem]) -> float:
    """Accuracy of the vote in which every answer counts by its confidence."""
    hits = []
    for problem, one in enumerate(asked):
        mine = drawn.of(problem)
        found = decide.Candidates([drawn.answers[i] for i in mine], confidences=confidence[mine])
        hits.append(one.check(decide.vote(found, "confidence")))
    return float(np.mean(hits))


def main(argv: Sequence[str] | None = None) -> dict[str, ppl.verifiers.Reliability]:
    """Draws, fits, and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", type=int, default=40, help="held-out problems a task")
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    lm, prm = search_gain.load(1)
    asked = [p for task in LINE_TASKS for p in held_out_problems(task, args.problems, args.seed)]
    fitting, report = asked[::2], asked[1::2]
    before = draw(fitting, args.samples, lm, prm)
    after = draw(report, args.samples, lm, prm)
    table = Table(
        title=f"{len(after.texts)} answers to {len(report)} problems, {after.right.mean():.0%} "
        f"right; fitted on {len(before.texts)} of {len(fitting)} others",
        box=SIMPLE_HEAD,
    )
    table.add_column("confidence", no_wrap=True)
    for heading in ("says", "ECE", "Brier", "AUC", "its vote"):
        table.add_column(heading, justify="right")
    found = {}
    for name, log_p in confidences(before, after, lm, prm).items():
        found[name] = report_on = reliability(log_p, after.right)
        table.add_row(
            name,
            f"{np.exp(log_p).mean():.0%}",
            f"{report_on.ece:.3f}",
            f"{report_on.brier:.3f}",
            f"{auc(log_p, after.right):.3f}",
            f"{voted(after, np.exp(log_p), report):.0%}",
        )
    Console(width=100).print(table)
    return found


if __name__ == "__main__":
    main()
