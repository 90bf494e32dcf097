"""What the embedded tiny model can do, measured on held-out problems."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from scipy.stats import mannwhitneyu
from tiny_responses import Encoder, Row, Sample, labelled, prm_batch, sample
from transformers import (
    AutoModelForCausalLM,
    AutoModelForTokenClassification,
    LlamaForTokenClassification,
)

from ppl.study.intervals import wilson
from ppl.tasks import TASKS, Judge, Problem, problems

# Answers per problem where the verifier's ranking within a problem is measured.
ANSWERS = 8


def auc(scores: Sequence[float], labels: Sequence[bool]) -> float:
    """Area under the ROC curve (Mann-Whitney, ties count half); NaN without both labels."""
    good = [score for score, label in zip(scores, labels, strict=True) if label]
    bad = [score for score, label in zip(scores, labels, strict=True) if not label]
    if not good or not bad:
        return math.nan
    return float(mannwhitneyu(good, bad).statistic) / (len(good) * len(bad))


@torch.inference_mode()
def step_scores(
    model: LlamaForTokenClassification, encoder: Encoder, samples: Sequence[Sample]
) -> list[list[float]]:
    """Probability of "good" at each step end of each response, in order."""
    model.eval()
    out: list[list[float]] = []
    for start in range(0, len(samples), 128):
        chunk = samples[start : start + 128]
        places = [labelled(encoder, one)[0] for one in chunk]
        ids, *_ = prm_batch([Row(one.prompt + one.response, {}, {}) for one in chunk], encoder.pad)
        good = model(input_ids=ids, use_cache=False).logits.softmax(-1)[..., 1]
        out += [good[i, place].tolist() for i, place in enumerate(places)]
    return out


def held_out_truth(problem: Problem) -> str:
    """What :func:`tiny_data.step_labels` needs to know about an evaluation problem."""
    metadata = problem.meta["metadata"]
    if problem.meta["task"] == "arithmetic":
        return str(metadata["expression"]).replace(" ", "")
    return f"{','.join(map(str, metadata['numbers']))}={metadata['target']}"


def evaluate(lm: Path, prm: Path, held_out: int, seed: int) -> dict[str, dict[str, float]]:
    """Accuracy and step AUC on held-out problems, and ranking among answers to one problem.

    Per task: single-sample accuracy at temperature 1 with its 95% Wilson interval; AUC over all
    step ends of those samples; and, for a fifth of the problems with 8 answers each, the mean AUC
    of the last score within a problem and the accuracy of the answer with the best last score.
    """
    torch.manual_seed(seed)
    encoder = Encoder(lm)
    policy = AutoModelForCausalLM.from_pretrained(lm)
    verifier = AutoModelForTokenClassification.from_pretrained(prm)
    out: dict[str, dict[str, float]] = {}
    pooled: tuple[list[float], list[bool]] = ([], [])
    with Judge() as judge:
        for task in TASKS:
            asked = problems(task, held_out, seed)
            samples = sample(policy, encoder, [_asked(problem) for problem in asked])
            right = sum(judge.score_many(asked, [one.answer for one in samples]))
            low, high = wilson(right, len(asked))
            scores = [s for row in step_scores(verifier, encoder, samples) for s in row]
            labels = [label for one in samples for label in labelled(encoder, one)[1]]
            pooled[0].extend(scores)
            pooled[1].extend(labels)
            several = [
                problem for problem in asked[: max(1, held_out // 5)] for _ in range(ANSWERS)
            ]
            answers = sample(policy, encoder, [_asked(problem) for problem in several])
            correct = judge.score_many(several, [one.answer for one in answers])
            last = [
                row[-1] if one.ended else 0.0
                for one, row in zip(answers, step_scores(verifier, encoder, answers), strict=True)
            ]
            out[task] = {
                "problems": len(asked),
                "right": right,
                "accuracy": right / len(asked),
                "low": low,
                "high": high,
                "steps": len(labels),
                "good_steps": sum(labels),
                "auc": auc(scores, labels),
                **_within(last, correct),
            }
    out["pooled"] = {"steps": len(pooled[1]), "good_steps": sum(pooled[1]), "auc": auc(*pooled)}
    for name, numbers in out.items():
        print(name, " ".join(f"{k}={v:.4g}" for k, v in numbers.items()), flush=True)
    return out


def _asked(problem: Problem) -> tuple[str, str, str]:
    return problem.meta["task"], held_out_truth(problem), problem.question


def _within(last: Sequence[float], correct: Sequence[bool]) -> dict[str, float]:
    """How well the last score ranks the answers to one problem, over all problems."""
    groups = [slice(i, i + ANSWERS) for i in range(0, len(last), ANSWERS)]
    areas = [a for g in groups if not math.isnan(a := auc(last[g], correct[g]))]
    best = [correct[g][max(range(ANSWERS), key=lambda i: last[g][i])] for g in groups]
    return {
        "within_auc": sum(areas) / len(areas) if areas else math.nan,
        "mean_of_8": sum(correct) / len(correct),
        "best_of_8": sum(best) / len(best),
        "any_of_8": sum(any(correct[g]) for g in groups) / len(groups),
    }
