"""The part of `public_calls` about calibration, noise and ensembles of verifiers."""

from __future__ import annotations

import torch
from public_calls import (
    COUNT,
    INFINITE,
    NAN,
    NEGATIVE,
    POSITIVE,
    SHARE,
    Call,
    half,
    longest,
    of,
    text,
)
from public_verifiers import FLOOR
from torch import nn

from ppl import verifiers

LABELS = ([0, 2, 1], [0.5, 1, 0], ["good", "bad", "bad"], None)
SCORES = [-1.0, 0.5, 2.0, 1.0]
TRUTHS = [0, 1, 1, 0]


def of_some_steps(given):
    return len(given.steps) > 1


def linear(hidden):
    return hidden.sum(-1)


CALIBRATION_CALLS = [
    Call(
        "quantile_head_of",
        lambda: (
            verifiers.quantile_head_of,
            {"log_odds": linear, "hidden": torch.zeros(2, 3), "quantiles": [0.5]},
        ),
        bad={"quantiles": ([], [1.5]), "hidden": (torch.zeros(3),)},
    ),
    Call(
        "LogitNoise",
        of(verifiers.LogitNoise, verifier=half, sd=0.1),
        bad={"sd": (NEGATIVE, INFINITE)},
    ),
    Call(
        "QuestionBias",
        of(verifiers.QuestionBias, verifier=half, sd=0.1),
        bad={"sd": (NEGATIVE, INFINITE)},
    ),
    Call(
        "DawidSkene",
        of(verifiers.DawidSkene, prior=0.5, tpr=(0.9,), fpr=(0.1,)),
        bad={"prior": SHARE, "tpr": ((1.5,), (0.9, 0.9)), "fpr": ((-0.5,), (0.1, 0.1))},
    ),
    Call(
        "DawidSkene.fit",
        of(verifiers.DawidSkene.fit, votes=[[0, 1, 1], [1, 1, 0]]),
        bad={"votes": ([[0, 1]], "ab", [[0, 2, 1]], None), "rounds": COUNT},
    ),
    Call(
        "DawidSkene.log_odds",
        of(verifiers.DawidSkene(0.5, (0.9,), (0.1,)).log_odds, votes=[[1]]),
        bad={"votes": ("ab", [[2]], [[1, 1]], [1], None)},
    ),
    Call(
        "Ensemble",
        of(verifiers.Ensemble, verifiers=[half]),
        bad={
            **FLOOR,
            "verifiers": ([], [longest], [3]),
            "groups": ([[0, 0]], [[1]], [[]], [["a"]]),
            "weights": ([NAN], [1.0, 1.0], ["a"]),
            "prior": (0, 1, *SHARE),
            "intercept": (INFINITE,),
        },
    ),
    Call(
        "Ensemble.fit",
        of(verifiers.Ensemble.fit, verifiers=[half], scores=[[s] for s in SCORES], labels=TRUTHS),
        bad={
            **FLOOR,
            "labels": LABELS,
            "scores": ([[NAN]] * 4, [[1.0]], "ab", None),
            "penalty": (NEGATIVE, INFINITE),
            "verifiers": ([],),
        },
    ),
    Call(
        "Votes",
        of(verifiers.Votes, verifiers=[half], model=verifiers.DawidSkene(0.5, (0.9,), (0.1,))),
        bad={**FLOOR, "verifiers": ([], [half, half])},
    ),
    Call(
        "ImperfectVerifier",
        of(verifiers.ImperfectVerifier, success=(0.5,), completeness=0.9, soundness=0.9),
        bad={
            "success": ((1.5,), (0.5, 0.5), ()),
            "completeness": SHARE,
            "soundness": SHARE,
            "prior": ((0.5,), (0.5, 0.5)),
        },
    ),
    Call(
        "ImperfectVerifier.outcome",
        of(_imperfect := verifiers.ImperfectVerifier((0.5,), 0.9, 0.9).outcome, attempts=2),
        bad={"attempts": (NEGATIVE,)},
    ),
    Call(
        "ImperfectVerifier.value",
        of(verifiers.ImperfectVerifier((0.5,), 0.9, 0.9).value, attempts=2, right=1.0, wrong=0.0),
        bad={"attempts": (NEGATIVE,)},
    ),
    Call(
        "ImperfectVerifier.best_budget",
        of(verifiers.ImperfectVerifier((0.5,), 0.9, 0.9).best_budget, right=1.0, wrong=0.0),
        bad={"most": (NEGATIVE,)},
    ),
    Call(
        "GroupPlatt",
        of(verifiers.GroupPlatt, overall=verifiers.Platt(1.0, 0.0)),
        bad={"refits": ([1], 3)},
    ),
    Call(
        "Refit",
        of(verifiers.Refit, group="g", slope=1.0, intercept=0.0),
        bad={"slope": POSITIVE, "intercept": (NAN, INFINITE)},
    ),
    Call(
        "GroupPlatt.fit",
        of(verifiers.GroupPlatt.fit, scores=SCORES, labels=TRUTHS, groups={"all": [True] * 4}),
        bad={
            "labels": LABELS,
            "groups": ({"g": [True]}, {"g": [0.5] * 4}, {"g": "no"}),
            "least_gain": (NEGATIVE,),
        },
    ),
    Call(
        "step_groups",
        lambda: (verifiers.step_groups, {"groups": {"long": of_some_steps}, "texts": [text()]}),
        bad={"texts": ("ab", [1])},
    ),
    Call(
        "reliability_by_group",
        of(
            verifiers.reliability_by_group,
            log_probs=[-0.1, -0.2, -0.3, -0.4],
            labels=TRUTHS,
            groups={"all": [True] * 4},
        ),
        bad={"labels": LABELS, "groups": ({"g": [True]},), "bins": COUNT},
    ),
    Call(
        "ImperfectVerifier.curve",
        of(verifiers.ImperfectVerifier((0.5,), 0.9, 0.9).curve, most=2, right=1.0, wrong=0.0),
        bad={"most": (NEGATIVE,)},
    ),
    Call(
        "fit_types",
        of(verifiers.fit_types, accepted=[0, 3], draws=4, completeness=0.9, soundness=0.8),
        bad={
            "accepted": ([], [5, 0], [0.5, 0], [NEGATIVE, 0], NAN),
            "draws": (0, 2.5, [1, 2, 3], NAN),
            "completeness": (*SHARE, 0.1),
            "soundness": SHARE,
            "types": (0, 3),
        },
    ),
    Call(
        "false_positive_rate",
        of(verifiers.false_positive_rate, candidates=[1], checks=bool, stronger_checks=bool),
        bad={"candidates": ([],)},
    ),
    Call(
        "Isotonic",
        of(verifiers.Isotonic, scores=(0.0, 1.0), probs=(0.1, 0.9)),
        bad={"scores": ((), (1.0, 0.0), (0.0, NAN)), "probs": ((0.5,), (0.1, 1.5), (0.9, 0.1))},
    ),
    Call(
        "Isotonic.fit",
        of(verifiers.Isotonic.fit, scores=SCORES, labels=TRUTHS),
        bad={"labels": LABELS, "scores": ([NAN] * 4, [1.0], "ab", None)},
    ),
    Call(
        "Platt",
        of(verifiers.Platt, slope=1.0, intercept=0.0),
        bad={"slope": (INFINITE,), "intercept": (INFINITE,)},
    ),
    Call(
        "Platt.fit",
        of(verifiers.Platt.fit, scores=SCORES, labels=TRUTHS),
        bad={"labels": LABELS, "scores": ([NAN] * 4, [1.0], "ab", None)},
    ),
    Call("Temperature", of(verifiers.Temperature, temperature=1.0), bad={"temperature": POSITIVE}),
    Call(
        "Temperature.fit",
        of(verifiers.Temperature.fit, scores=SCORES, labels=TRUTHS),
        bad={"labels": LABELS, "scores": ([NAN] * 4, [1.0], "ab", None)},
    ),
    Call(
        "log_odds",
        of(verifiers.log_odds, log_probs=[-1.0]),
        bad={"log_probs": ("ab", [NAN], [1.0], None)},
    ),
    Call(
        "reliability",
        of(verifiers.reliability, log_probs=[-1.0, -0.5, -2.0, -1.0], labels=TRUTHS),
        bad={
            "labels": LABELS,
            "log_probs": ([NAN] * 4, [1.0] * 4, [-1.0], "ab", None),
            "bins": COUNT,
            "steps": ([0], [0.5] * 4, [-1] * 4, "abcd"),
        },
    ),
    Call(
        "quantile_head",
        of(verifiers.quantile_head, weight=torch.zeros(2, 3), bias=None, quantiles=[0.5]),
        bad={
            "quantiles": ([], [0.5, 0.1], [1.5], [NAN]),
            "weight": (torch.zeros(3),),
            "bias": (torch.zeros(3),),
        },
    ),
    Call(
        "pinball",
        of(verifiers.pinball, probs=torch.zeros(2, 1), success=torch.zeros(2), quantiles=[0.5]),
        bad={
            "quantiles": ([], [1.5], [0.1, 0.5]),
            "success": (torch.zeros(3), torch.full((2,), NAN)),
        },
    ),
    Call(
        "fit_quantiles",
        lambda: (
            verifiers.fit_quantiles,
            {
                "head": nn.Linear(3, 1),
                "hidden": torch.zeros(2, 3),
                "success": torch.zeros(2),
                "quantiles": [0.5],
                "rounds": 1,
            },
        ),
        bad={
            "quantiles": ([], [1.5], [0.1, 0.5]),
            "success": (torch.zeros(3), torch.full((2,), 2.0)),
            "rounds": COUNT,
            "learning_rate": POSITIVE,
            "weight_decay": (NEGATIVE, INFINITE),
        },
    ),
    Call(
        "samples_needed",
        of(verifiers.samples_needed, success=0.5),
        bad={"success": SHARE, "confidence": (0, 1, *SHARE), "most": COUNT},
    ),
]
