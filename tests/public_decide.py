"""The part of `public_calls` about decisions: every public callable with arguments it accepts."""

from __future__ import annotations

from typing import Any

from public_calls import COUNT, INFINITE, NAN, NEGATIVE, POSITIVE, SHARE, Call, lm, of

from ppl import decide
from ppl.decide import scaling
from ppl.searchers import BestOfN

ANSWERS = {"candidates": ["a", "b"]}
LAWS = ([], [[-1.0], [2.0]], [NAN], "ab", None)
PAIRS = {"confidences": [0.5, 0.9], "correct": [0, 1]}
COUNTS: dict[str, Any] = {"n": (0, 2.5, [1, 2, 3], NAN), "c": ([], [-1, 0], [9, 0], [0.5, 0], NAN)}


def known() -> decide.Candidates:
    logs = [-1.0, -2.0]
    return decide.Candidates(["a", "b"], log_scores=logs, log_probs=logs, tokens=[1, 2])


def reader(texts):
    return 0


def fitted() -> decide.SampleSetAggregator:
    return decide.SampleSetAggregator.fit([known(), known()], [[1, 0], [0, 1]])


BETA = scaling.BetaBinomial(0.5, 2.0)

DECIDE_CALLS = [
    Call(
        "decide.Candidates",
        of(decide.Candidates, values=["a", "b"]),
        bad={
            "log_weights": ([0.0], [0.0, INFINITE], [NAN, 0.0], "ab"),
            "log_scores": ([0.0], [1.0, 0.0]),
            "rewards": ([INFINITE, 0.0],),
            "confidences": ([0.5, 1.5],),
            "tokens": ([-1, 2],),
            "written": (["a"],),
        },
    ),
    Call("decide.Candidates.of", of(decide.Candidates.of, source=["a"])),
    Call(
        "decide.vote",
        of(decide.vote, **ANSWERS),
        bad={"weights": ("bogus", [1.0], [-1.0, 1.0], [NAN, 1.0], None), "combine": ("median",)},
    ),
    Call("decide.shares", of(decide.shares, **ANSWERS), bad={"weights": ("bogus", [1.0])}),
    Call("decide.best", lambda: (decide.best, {"candidates": known()}), bad={"by": ("bogus",)}),
    Call("decide.draw", of(decide.draw, **ANSWERS, seed=0), bad={"weights": ("bogus",)}),
    Call("decide.RPC", of(decide.RPC)),
    Call(
        "decide.MajorityOfTheBests",
        of(decide.MajorityOfTheBests),
        bad={"draws": COUNT, "by": ("bogus",)},
    ),
    Call(
        "decide.Borda",
        of(decide.Borda, power=1.0),
        bad={"power": (NEGATIVE, INFINITE), "by": ("bogus",)},
    ),
    Call("decide.Pessimistic", of(decide.Pessimistic, beta=1.0), bad={"beta": POSITIVE}),
    Call(
        "decide.pessimistic_law",
        of(decide.pessimistic_law, rewards=[1.0, 2.0], beta=1.0),
        bad={
            "rewards": ([], [NAN], [INFINITE, 0.0], "a"),
            "beta": POSITIVE,
            "probabilities": ([1.0], [0.5, 0.6], [-0.5, 1.5]),
        },
    ),
    Call("decide.DeepConf", of(decide.DeepConf), bad={"keep": (0.0, *SHARE)}),
    Call(
        "decide.token_confidence",
        of(decide.token_confidence, log_probs=[[-1.0, -0.5]]),
        bad={"log_probs": LAWS, "top": COUNT},
    ),
    Call(
        "decide.self_certainty",
        of(decide.self_certainty, log_probs=[[-1.0, -0.5]]),
        bad={"log_probs": LAWS},
    ),
    Call(
        "decide.trace_confidence",
        of(decide.trace_confidence, token_confidences=[1.0, 2.0]),
        bad={"token_confidences": ([], [NAN], "a"), "window": COUNT, "share": SHARE},
    ),
    Call(
        "decide.soft_self_consistency",
        of(decide.soft_self_consistency, answers=["a"], confidences=[0.5]),
        bad={"confidences": ([0.5, 0.5], [1.5], [NAN], "a")},
    ),
    Call(
        "decide.minimum_bayes_risk",
        of(decide.minimum_bayes_risk, **ANSWERS, utility=lambda a, b: float(a == b)),
        bad={"weights": ("bogus",), "utility": (lambda a, b: NAN,)},
    ),
    Call(
        "decide.best_of_n_law",
        of(decide.best_of_n_law, probabilities=[0.5, 0.5], scores=[0, 1], n=2),
        bad={"probabilities": ([], [0.5, 0.6], [-1.0, 2.0]), "scores": ([1],), "n": COUNT},
    ),
    Call("decide.best_of_n_divergence", of(decide.best_of_n_divergence, n=2), bad={"n": COUNT}),
    Call(
        "decide.vote_law",
        of(decide.vote_law, probabilities=[0.5, 0.4], n=2),
        bad={"probabilities": ([], [0.5, 0.6], [-1.0, 2.0]), "n": COUNT},
    ),
    Call(
        "decide.answering_threshold",
        of(decide.answering_threshold, wrong=-1.0),
        bad={"wrong": (0.5, -INFINITE)},
    ),
    Call(
        "decide.answer_or_abstain",
        of(decide.answer_or_abstain, **ANSWERS),
        bad={"threshold": SHARE, "wrong": (0.5,), "weights": ("bogus",)},
    ),
    Call(
        "decide.selective_score",
        of(decide.selective_score, **PAIRS, threshold=0.5),
        bad={"correct": ([1], [0, 2]), "confidences": ([], [NAN, 1]), "wrong": (0.5,)},
    ),
    Call(
        "decide.risk_coverage",
        of(decide.risk_coverage, **PAIRS),
        bad={"correct": ([1], [0, 2]), "confidences": ([], [NAN, 1])},
    ),
    Call(
        "decide.ConformalSets.fit",
        of(decide.ConformalSets.fit, candidates=[["a"]], gold=["a"]),
        bad={"alpha": SHARE, "gold": ([], [None]), "weights": ("bogus",)},
    ),
    Call(
        "decide.aggregate",
        of(decide.aggregate, **ANSWERS, program=reader, searcher=BestOfN(1)),
        bad={"k": (0, -1)},
    ),
    Call(
        "decide.flip_rate",
        of(decide.flip_rate, candidates=["a", "a"], program=reader, searcher=BestOfN(1)),
        bad={"k": COUNT, "shuffles": COUNT},
    ),
    Call(
        "decide.sample_set_answer",
        lambda: (
            decide.sample_set_answer,
            {"lm": lm(), "question": "^", "texts": ["a"], "prompt": lambda question, texts: "^"},
        ),
        bad={"max_tokens": COUNT},
    ),
    Call(
        "decide.universal_self_consistency",
        lambda: (
            decide.universal_self_consistency,
            {"lm": lm(), "question": "^", "texts": ["a"], "max_tokens": 2},
        ),
        bad={"max_tokens": COUNT},
    ),
    Call(
        "decide.SampleSetAggregator.fit",
        lambda: (
            decide.SampleSetAggregator.fit,
            {"candidates": [known(), known()], "correct": [[1, 0], [0, 1]]},
        ),
        bad={"correct": ([[1]], [[0, 0], [0, 0]]), "penalty": POSITIVE},
    ),
    Call(
        "decide.SampleSetAggregator.probabilities",
        lambda: (fitted().probabilities, {"candidates": known()}),
    ),
    Call(
        "scaling.pass_at_k", of(scaling.pass_at_k, n=3, c=1, k=2), bad={"k": (0, 4), "c": (4, -1)}
    ),
    Call(
        "scaling.random_of_k",
        of(scaling.random_of_k, n=3, answered=2, c=1, k=2),
        bad={"k": (0, 4), "answered": (0, 4)},
    ),
    Call(
        "scaling.pass_at_k_perturbed",
        of(scaling.pass_at_k_perturbed, rates=[0.5, 0.2], k=2),
        bad={"rates": ([], [1.5], [[0.5]], NAN), "k": COUNT},
    ),
    Call(
        "scaling.best_of_k",
        of(scaling.best_of_k, scores=[1.0, 2.0], correct=[0, 1], k=1),
        bad={"k": (0, 3), "scores": ([NAN, 1.0],), "correct": ([1], [2, 0]), "n": (1,)},
    ),
    Call(
        "scaling.majority_at_k",
        of(scaling.majority_at_k, answers=["a", "b"], correct=[0, 1], k=1),
        bad={"k": (0, 3), "correct": ([1], [2, 0])},
    ),
    Call(
        "scaling.coverage_curve",
        of(scaling.coverage_curve, n=4, c=[1, 2], k=[1, 2]),
        bad={**COUNTS, "k": ([0], [5], [1.5])},
    ),
    Call("scaling.fit_beta_binomial", of(scaling.fit_beta_binomial, n=4, c=[1, 2]), bad=COUNTS),
    Call("scaling.fit_power_law", of(scaling.fit_power_law, n=4, c=[1, 2]), bad=COUNTS),
    Call(
        "scaling.BetaBinomial",
        of(scaling.BetaBinomial, alpha=0.5, beta=2.0),
        free=("alpha_interval", "beta_interval", "problems", "region"),
        bad={"alpha": POSITIVE, "beta": POSITIVE},
    ),
    Call("scaling.BetaBinomial.coverage", of(BETA.coverage, k=2), bad={"k": COUNT}),
    Call("scaling.BetaBinomial.interval", of(BETA.interval, k=2), bad={"k": COUNT}),
    Call("scaling.BetaBinomial.gain", of(BETA.gain, k=2), bad={"k": (NEGATIVE,)}),
    Call("scaling.BetaBinomial.saturation", of(BETA.saturation, eps=0.1), bad={"eps": POSITIVE}),
    Call("scaling.PowerLaw.coverage", of(scaling.PowerLaw(-1.0, -0.5).coverage, k=2)),
    Call(
        "scaling.saturation",
        of(scaling.saturation, p=0.1),
        bad={"p": SHARE, "f_max": SHARE, "eps": POSITIVE},
    ),
    Call(
        "scaling.fit_ttspm",
        of(scaling.fit_ttspm, n=[1, 2], accuracy=[0.1, 0.2]),
        bad={"n": ([1, 1], [0, 2], [NAN, 1]), "accuracy": ([0.1], [0.1, 1.5])},
    ),
    Call("scaling.TTSPM.accuracy", of(scaling.TTSPM(0.1, 0.9, 0.0).accuracy, n=2)),
    Call("scaling.TTSPM.saturation", of(scaling.TTSPM(0.1, 0.9, 0.0).saturation, eps=0.1)),
]

NOT_CALLED_HERE = {
    "Abstained": "made by answer_or_abstain",
    "Aggregated": "made by aggregate",
    "AnswerSet": "made by ConformalSets",
    "Columns": "made by Candidates",
    **dict.fromkeys(
        ("Consensus", "EarlyStop", "Seen", "SequentialTest", "Settled", "StoppingRule"),
        "a stopping rule, or what one sees: see tests/test_stopping.py",
    ),
    "PessimisticLaw": "made by pessimistic_law",
    "RiskCoverage": "made by risk_coverage",
    "SelectiveScore": "made by selective_score",
    "Weighting": "a type",
}
