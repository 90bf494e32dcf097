"""The verifiers' part of `public_calls`: every public callable with arguments that it accepts."""

from __future__ import annotations

from public_calls import (
    BYTES,
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

from ppl import verifiers

FLOOR = {"floor": (NEGATIVE, 0.5, 0.7, INFINITE)}

VERIFIER_CALLS = [
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
    Call("Check", of(verifiers.Check, source="f = 1", names=("f",), tests=("f()",))),
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
    Call("FunctionVerifier", of(verifiers.FunctionVerifier, function=len), bad=FLOOR),
    Call("FunctionRanker", of(verifiers.FunctionRanker, function=len)),
    Call("verifier", of(verifiers.verifier, function=len), bad=FLOOR),
    Call("ranker", of(verifiers.ranker, function=len)),
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
        bad={**FLOOR, "kv_bytes": BYTES, "kv": ("half", "")},
    ),
    Call(
        "PRM.load",
        of(verifiers.PRM.load, source="tiny"),
        bad={
            **FLOOR,
            "kv_bytes": BYTES,
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
        bad={"kv_bytes": BYTES, "kv": ("half",)},
    ),
    Call(
        "OutcomeModel.load",
        of(verifiers.OutcomeModel.load, source="/nowhere"),
        bad={**FLOOR, "kv_bytes": BYTES, "kv": ("half",)},
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
        "log_potential",
        of(verifiers.log_potential, log_scores=[-1.0], aggregate="last"),
        bad={"aggregate": ("bogus",)},
    ),
    Call("step_scores", lambda: (verifiers.step_scores, {"scorer": half, "texts": [text()]})),
]
