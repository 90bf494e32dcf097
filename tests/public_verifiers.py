"""The verifiers' part of `public_calls`: every public callable with arguments that it accepts."""

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
    embedder,
    half,
    longest,
    of,
    reward_model,
    text,
    tiny,
)
from torch import nn

from ppl import verifiers

FLOOR = {"floor": (NEGATIVE, 0.5, 0.7, INFINITE)}
LABELS = ([0, 2, 1], [0.5, 1, 0], ["good", "bad", "bad"], None)
SCORES = [-1.0, 0.5, 2.0, 1.0]
TRUTHS = [0, 1, 1, 0]


def of_some_steps(given):
    return len(given.steps) > 1


def linear(hidden):
    return hidden.sum(-1)


VERIFIER_CALLS = [
    Call(
        "quantile_head_of",
        lambda: (
            verifiers.quantile_head_of,
            {"log_odds": linear, "hidden": torch.zeros(2, 3), "quantiles": [0.5]},
        ),
        bad={"quantiles": ([], [1.5]), "hidden": (torch.zeros(3),)},
    ),
    Call(
        "LeanProof",
        of(verifiers.LeanProof, repl=object.__new__(verifiers.LeanRepl), statement="s", name="t"),
        bad={**FLOOR, "unknown": SHARE},
    ),
    Call("Cached", of(verifiers.Cached, verifier=half), bad={"most": COUNT}),
    Call(
        "Calibrated",
        of(verifiers.Calibrated, scorer=half, calibrator=verifiers.Platt(1.0, 0.0)),
        bad=FLOOR,
    ),
    Call(
        "Channel",
        of(verifiers.Channel, verifier=half, tpr=0.9, fpr=0.1),
        bad={"tpr": SHARE, "fpr": SHARE},
    ),
    Call(
        "Flipped",
        of(verifiers.Flipped, verifier=half, tpr=0.9, fpr=0.1),
        bad={"tpr": SHARE, "fpr": SHARE},
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
    Call("Check", of(verifiers.Check, source="f = 1", names=("f",), tests=("f()",))),
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
        "Embedder",
        lambda: (
            verifiers.Embedder,
            {"model": tiny().model, "tokenizer": tiny().codec.tokenizer, "name": "e"},
        ),
        free=("model", "tokenizer"),
        bad={"max_tokens": COUNT},
    ),
    Call("Embedder.load", of(verifiers.Embedder.load, source="/nowhere")),
    Call("Embedder.embed", lambda: (embedder().embed, {"strings": ["a"]})),
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
    Call("FunctionVerifier", of(verifiers.FunctionVerifier, function=len), bad=FLOOR),
    Call("FunctionRanker", of(verifiers.FunctionRanker, function=len)),
    Call("verifier", of(verifiers.verifier, function=len), bad=FLOOR),
    Call("ranker", of(verifiers.ranker, function=len)),
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
    Call("Grammar", of(verifiers.Grammar, lark='start: "a"'), bad={"lark": ("", "(")}),
    Call("Regex", of(verifiers.Regex, pattern="a+"), bad={"pattern": ("(",)}),
    Call(
        "JsonSchema",
        of(verifiers.JsonSchema, schema={"type": "object"}),
        bad={"schema": ("{", {"type": "bogus"})},
    ),
    Call("Labels", of(verifiers.Labels)),
    Call("Words", of(verifiers.Words)),
    Call("Layers", of(verifiers.Layers, names=("a",)), bad={"names": ((),)}),
    Call(
        "LeanRepl",
        of(verifiers.LeanRepl, command=["false"]),
        bad={
            "command": ([],),
            "seconds": POSITIVE,
            "setup_seconds": POSITIVE,
            "renew_after": COUNT,
        },
    ),
    Call("MathAnswer", of(verifiers.MathAnswer, gold="3"), bad={**FLOOR, "unknown": SHARE}),
    Call(
        "MathComparer", of(verifiers.MathComparer), bad={"limit": POSITIVE, "start_limit": POSITIVE}
    ),
    Call(
        "MathPrompter",
        of(verifiers.MathPrompter, values={"A": 1.0}),
        bad={**FLOOR, "draws": COUNT, "values": ({}, {"A": NAN}, {"A": "x"}, {3: 1.0})},
    ),
    Call(
        "agreement",
        of(verifiers.agreement, forms=[], values={"A": 1.0}),
        bad={"draws": COUNT, "values": ({}, {"A": NAN}, {"A": "x"}, {3: 1.0}), "seed": (NEGATIVE,)},
    ),
    Call(
        "Sandbox",
        of(verifiers.Sandbox),
        bad={"seconds": POSITIVE, "memory": COUNT, "processes": COUNT, "file_bytes": COUNT},
    ),
    Call(
        "UnitTests",
        of(verifiers.UnitTests, tests=["assert f(1) == 2"], names=["f"]),
        bad={**FLOOR, "tests": ([], "", [3]), "names": ([], "f", ["f", "f"], ["1"]), "runs": COUNT},
    ),
    Call("Similarity", lambda: (verifiers.Similarity, {"reference": "a", "embedder": embedder()})),
    Call(
        "clusters",
        lambda: (verifiers.clusters, {"strings": ["a"], "embedder": embedder()}),
        bad={"threshold": (2.0, -2.0)},
    ),
    Call(
        "semantic_entropy",
        of(verifiers.semantic_entropy, classes={"a": 0}, probabilities={"a": 1.0}),
        bad={"probabilities": ({"a": -1.0}, {"b": 1.0}, {"a": NAN})},
    ),
    Call(
        "Judge",
        lambda: (verifiers.Judge, {"lm": tiny(), "ask": verifiers.chat("{question}{text}")}),
        bad={
            **FLOOR,
            "verdicts": ({}, {"Yes": 1.0}, {"Yes": 2.0, "No": 0.0}, {"Yes": NAN, "No": 0.0}),
        },
    ),
    Call(
        "LogOdds",
        lambda: (verifiers.LogOdds, {"lm": tiny(), "ask": verifiers.chat("{question}{text}")}),
        bad={"floor": (0, NEGATIVE, 0.5, INFINITE), "verdicts": ({}, {"Yes": 1.0})},
    ),
    Call("Propositional", of(verifiers.Propositional)),
    Call(
        "Propositional.start",
        of(verifiers.Propositional().start, statement="p"),
        bad={"statement": ("", "p &", "(p")},
    ),
    Call(
        "Propositional.apply",
        of(
            verifiers.Propositional().apply,
            state=verifiers.Propositional().start("p -> p"),
            tactic="intro",
        ),
    ),
    Call(
        "GenRM",
        lambda: (verifiers.GenRM, {"lm": tiny()}),
        bad={
            **FLOOR,
            "rationales": (NEGATIVE,),
            "max_tokens": COUNT,
            "temperature": (NEGATIVE, INFINITE),
            "verdict": ("",),
        },
    ),
    Call(
        "SelfEvaluation",
        lambda: (verifiers.SelfEvaluation, {"lm": tiny()}),
        bad={**FLOOR, "question": ("",)},
    ),
    Call(
        "FOBAR",
        lambda: (verifiers.FOBAR, {"lm": tiny()}),
        bad={
            "floor": (0, *FLOOR["floor"]),
            "samples": COUNT,
            "masks": COUNT,
            "max_tokens": COUNT,
            "temperature": (NEGATIVE, INFINITE),
            "prompt": ("", "no place"),
        },
    ),
    Call(
        "fobar",
        lambda: (
            verifiers.fobar,
            {"posterior": ["4"], "question": "2 and 2?", "lm": tiny(), "max_tokens": 2},
        ),
        free=("weights",),
        bad={
            "samples": COUNT,
            "masks": COUNT,
            "alpha": SHARE,
            "eps": (0, *POSITIVE),
            "max_tokens": COUNT,
            "temperature": (NEGATIVE, INFINITE),
            "prompt": ("", "no place"),
        },
    ),
    Call(
        "FOBAR.count",
        lambda: (verifiers.FOBAR(tiny(), max_tokens=2).count, {"question": "2?", "answers": ["2"]}),
    ),
    Call("FOBAR.draws", lambda: (verifiers.FOBAR(tiny()).draws, {"question": "2?"})),
    Call(
        "forward_backward",
        of(verifiers.forward_backward, forward={"a": 1.0}, backward={}),
        bad={
            "alpha": SHARE,
            "epsilon": POSITIVE,
            "forward": ({}, {"a": -1.0}, {"a": NAN}, {"a": 0.0}),
            "backward": ({"a": NAN}, {"a": -1.0}),
        },
    ),
    Call("PRMFormat", of(verifiers.PRMFormat, name="f", head=verifiers.Labels())),
    Call(
        "PRM",
        lambda: (
            verifiers.PRM,
            {"model": reward_model()[0], "tokenizer": reward_model()[1], "name": "p"},
        ),
        free=("model", "tokenizer"),
        bad={**FLOOR, "kv_bytes": COUNT, "kv": ("half", "")},
    ),
    Call(
        "PRM.load",
        of(verifiers.PRM.load, source="tiny"),
        bad={
            **FLOOR,
            "kv_bytes": COUNT,
            "kv": ("half",),
            "format": ("bogus",),
            "device": ("nope",),
        },
    ),
    Call(
        "ConfidenceHead",
        lambda: (verifiers.ConfidenceHead, {"lm": tiny(), "weight": [0.0] * 192}),
        bad={**FLOOR, "weight": ([0.0], [NAN] * 192, "ab"), "bias": (NAN, INFINITE)},
    ),
    Call(
        "ConfidenceHead.fit",
        lambda: (
            verifiers.ConfidenceHead.fit,
            {"lm": tiny(), "texts": [tiny().chat("1 + 2"), tiny().chat("3")], "targets": [0, 1]},
        ),
        bad={**FLOOR, "ridge": POSITIVE, "targets": ([0, 2], [0.5], [NAN, 1])},
    ),
    Call(
        "RewardModel.load",
        of(verifiers.RewardModel.load, source="/nowhere"),
        bad={"kv_bytes": COUNT, "kv": ("half",)},
    ),
    Call(
        "OutcomeModel.load",
        of(verifiers.OutcomeModel.load, source="/nowhere"),
        bad={**FLOOR, "kv_bytes": COUNT, "kv": ("half",)},
    ),
    Call(
        "Potential",
        of(verifiers.Potential, ranker=longest, temperature=1.0),
        bad={"temperature": POSITIVE},
    ),
    Call(
        "check_verifier",
        lambda: (verifiers.check_verifier, {"verifier": half, "texts": [text()]}),
        bad={"texts": ([],), "tolerance": (NEGATIVE, INFINITE)},
    ),
    Call("chat", of(verifiers.chat, template="{question}{text}")),
    Call("tagged", of(verifiers.tagged, tag="+")),
    Call(
        "log_odds",
        of(verifiers.log_odds, log_probs=[-1.0]),
        bad={"log_probs": ("ab", [NAN], [1.0], None)},
    ),
    Call(
        "log_potential",
        of(verifiers.log_potential, log_scores=[-1.0], aggregate="last"),
        bad={"aggregate": ("bogus",)},
    ),
    Call("step_scores", lambda: (verifiers.step_scores, {"scorer": half, "texts": [text()]})),
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
