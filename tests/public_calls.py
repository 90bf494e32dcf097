"""Every public callable with arguments that it accepts, and what no argument of its kind may be.

`CALLS` is the table that `test_public_boundaries.py` goes through: it changes one argument of a
call at a time. What an argument may be is read off its annotation.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch

import ppl
from ppl import decide, export, searchers, tasks, verifiers
from ppl.lm.sources import TINY
from ppl.posterior.posterior import Posterior
from ppl.runtime.result import Result
from ppl.runtime.weights import Weights


@dataclass(frozen=True)
class Call:
    """A public callable with arguments that it takes.

    Attributes:
        name: as the user writes it.
        make: gives the callable and its good arguments, by name; anew for every call.
        free: arguments that may be anything, or are judged only together with others.
        bad: more values that no such argument may have.
    """

    name: str
    make: Callable[[], tuple[Callable[..., Any], dict[str, Any]]]
    free: tuple[str, ...] = ()
    bad: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    def arguments(self) -> dict[str, inspect.Parameter]:
        """The parameters that are tried, by name."""
        function, _ = self.make()
        return {
            name: p
            for name, p in inspect.signature(function).parameters.items()
            if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) and name not in self.free
        }

    def __str__(self) -> str:
        return self.name


@cache
def lm() -> ppl.TableLM:
    return ppl.TableLM({"a": 0.5, "b": 0.3, "$": 0.2}, symbols="^ab$", context_length=12)


@cache
def tiny() -> ppl.HFModel:
    return ppl.load("tiny")


@cache
def reward_model() -> tuple[Any, Any]:
    """Model and tokenizer of the embedded verifier."""
    return verifiers.FORMATS["token-classification"].head.load(TINY / "prm")


def text() -> ppl.Text:
    return lm().prompt("^") + lm().continuation("ab")


@verifiers.verifier
def half(text):
    return 0.5


@verifiers.ranker
def longest(text):
    return float(len(text))


def program():
    text = lm().prompt("^")
    for i in range(2):
        text = text + ppl_sample(f"step_{i}", lm()(text, max_tokens=1))
        if text.finished:
            break
    return text.text


def ppl_sample(name, distribution):
    import pyro

    return pyro.sample(name, distribution)


def tree() -> ppl.Tree:
    return ppl.Tree(program)


@cache
def posterior() -> Posterior:
    return searchers.BestOfN(2).run(program)


def node() -> ppl.Node:
    return tree().root


@cache
def embedder() -> verifiers.Embedder:
    model, tokenizer = tiny().model, tiny().codec.tokenizer
    return verifiers.Embedder(model.base_model, tokenizer, name="embedder")


def of(function: Callable[..., Any], /, **arguments: Any) -> Callable[[], Any]:
    """The same callable with the same arguments every time."""
    return lambda: (function, arguments)


def classes() -> list[Call]:
    """The constructors of searchers: all settings have defaults, or are counts."""
    found = []
    for name in searchers.__all__:
        kind = getattr(searchers, name)
        if not inspect.isclass(kind) or name in (*NOT_CALLED, "Result", "Weights"):
            continue
        needed = {
            p.name: {"share": 0.5}.get(p.name, 20)
            for p in inspect.signature(kind).parameters.values()
            if p.default is p.empty
        }
        found.append(Call(name, of(kind, **needed)))
    return found


NOT_CALLED = {
    "AGGREGATES": "a constant",
    "Answer": "a string",
    "Continuation": "made by models and by lm.continuation, which checks",
    "Cost": "made by accounts",
    "Equality": "an enumeration",
    "FalsePositives": "made by false_positive_rate",
    "FORMATS": "a constant",
    "Frontier": "made by searchers",
    "JudgeRequest": "made by the runtime, one per verdict",
    "LMDistribution": "made by calling a model, which checks",
    "LanguageModel": "abstract; its methods are tried on a TableLM",
    "LogitsModel": "abstract",
    "Node": "made by trees",
    "PPLError": "raised here, not by users",
    "Particles": "made by searchers",
    "Sample": "made by posteriors",
    "Search": "its methods are tried on one that Searcher.begin made",
    "Searcher": "abstract; its methods are tried on a BestOfN",
    "State": "made by searchers",
    "StoppingRule": "abstract",
    "Text": "made by lm.prompt and lm.chat, which check",
    "Verdict": "made by calling a verifier, which checks",
    "Verifier": "abstract",
    "Ranker": "abstract",
    "Scorer": "abstract",
    "Agreement": "made by agreement()",
    "ForwardBackward": "made by fobar",
    "Aggregate": "a type",
    "Meaning": "a type",
    "Outcome": "made by sandboxes",
    "ProofState": "made by provers",
    "Prover": "abstract",
    "TacticError": "made by provers",
    "Reliability": "made by reliability()",
    "TaskName": "a type",
    "ValueCurve": "made by ImperfectVerifier.curve",
    "Entry": "made by known()",
}

NEGATIVE, NAN, INFINITE = -1, math.nan, math.inf
POSITIVE = (0, NEGATIVE, INFINITE)
SHARE = (NEGATIVE, 1.5, INFINITE)
COUNT = (0, NEGATIVE)
BYTES = (*COUNT, 2.5, INFINITE, "0", "-1GB", "2 parsecs", "2GB more", "Gi")


def searching(name: str) -> Callable[[], Any]:
    """A method of a small searcher."""

    def make():
        method = getattr(searchers.BestOfN(2), name)
        many = {"arguments": [(), ()]} if name == "run_many" else {}
        return method, {"program": program, **many}

    return make


CALLS = [
    *classes(),
    Call("Searcher.run", searching("run")),
    Call("Searcher.run_many", searching("run_many"), bad={"seed": ([1], [1, 2.5], "ab")}),
    Call("Searcher.begin", searching("begin")),
    Call("Searcher.arun", searching("arun")),
    Call("VectorizedSMC.run", of(searchers.VectorizedSMC(2).run, program=lambda: torch.zeros(2))),
    Call(
        "VectorizedSMC.run_many",
        of(searchers.VectorizedSMC(2).run_many, program=lambda: torch.zeros(2), arguments=[()]),
    ),
    Call(
        "run_all", lambda: (searchers.run_all, {"searches": [searchers.BestOfN(2).begin(program)]})
    ),
    Call("Search", lambda: (searchers.Search, {"searcher": searchers.BestOfN(2), "tree": tree()})),
    Call("Search.run", lambda: (searchers.BestOfN(2).begin(program).run, {})),
    Call("feedback", of(searchers.feedback)),
    Call("others", of(searchers.others, k=2), bad={"k": COUNT}),
    Call(
        "check_searcher",
        of(searchers.check_searcher, searcher=searchers.BestOfN(2), programs=[program], runs=2),
        bad={"runs": COUNT, "programs": ([3],)},
    ),
    Call(
        "Weights", of(Weights, log_weights=[0.0, -1.0]), bad={"log_weights": ([NAN], "ab", [[0.0]])}
    ),
    Call("Weights.equal", of(Weights.equal, n=3), bad={"n": (NEGATIVE,)}),
    Call(
        "Weights.add",
        of(Weights.equal(2).add, log_increments=[0.0, 1.0]),
        bad={"log_increments": ([NAN, 0.0], [0.0])},
    ),
    Call(
        "Weights.flatten",
        of(Weights.equal(2).flatten, temperature=2.0),
        bad={"temperature": POSITIVE},
    ),
    Call(
        "Weights.resample",
        of(Weights.equal(2).resample, ancestors=[0, 0]),
        bad={"ancestors": ([0, 2], [-1, 0], [0.5, 1])},
        free=("log_offspring",),
    ),
    Call(
        "Result",
        lambda: (Result, {"nodes": [node()], "log_weights": [0.0]}),
        bad={"log_weights": ([NAN], [0.0, 1.0])},
    ),
    Call("Result.by_likelihood", lambda: (Result.by_likelihood, {"nodes": [node()]})),
    Call(
        "Budget",
        of(ppl.Budget, tokens=3),
        bad={
            "tokens": (NEGATIVE, 2.5),
            "calls": (NEGATIVE, 2.5),
            "seconds": (NEGATIVE,),
            "settled": (0.0, 1.0, NEGATIVE, "beta"),
        },
    ),
    Call("Seen", of(decide.Seen, classes=(0, 1)), bad={"classes": ((0, -2),), "left": (NEGATIVE,)}),
    Call("Seen.of", of(decide.Seen.of, answers=["a"]), bad={"left": (NEGATIVE,)}),
    Call("equality", of(ppl.equality, a="1/2", b="0.5")),
    Call("Tree", of(ppl.Tree, program=program)),
    Call(
        "Tree.expand",
        lambda: _tree("expand"),
        bad={"counts": (NEGATIVE, [1, 2], [-1], 2.5), "quorum": (NEGATIVE, 5)},
    ),
    Call("Tree.collect", lambda: (tree().collect, {}), bad={"quorum": (NEGATIVE,)}),
    Call("Tree.rollout", lambda: _tree("rollout"), bad={"horizon": (NEGATIVE,)}),
    Call("Tree.force", lambda: _tree("force")),
    Call("Tree.score", lambda: _tree("score")),
    Call(
        "Posterior",
        lambda: (
            Posterior,
            {"samples": posterior().samples, "log_evidence": None, "cost": ppl.Cost()},
        ),
    ),
    Call("Posterior.of", lambda: (Posterior.of, {"tree": tree(), "result": Result([], [])})),
    Call("Posterior.vote", lambda: (posterior().vote, {}), bad={"weights": ("bogus", "")}),
    Call("Posterior.sample", lambda: (posterior().sample, {"seed": 0})),
    Call("Posterior.expectation", lambda: (posterior().expectation, {"f": len})),
    Call("Posterior.marginal", lambda: (posterior().marginal, {})),
    Call("Posterior.save", lambda: (posterior().save, {"path": "/dev/null/none"})),
    Call("Posterior.view", lambda: (posterior().view, {"path": "/dev/null/none"})),
    Call("Posterior.to_graphml", lambda: (posterior().to_graphml, {"path": "/dev/null/none"})),
    Call("Posterior.to_mermaid", lambda: (posterior().to_mermaid, {}), bad={"most": COUNT}),
    Call("Posterior.to_arviz", lambda: (posterior().to_arviz, {}), bad={"draws": COUNT}),
    Call(
        "preference_pairs",
        lambda: (export.preference_pairs, {"posterior": posterior()}),
        bad={"margin": (-1.0,), "kind": ("answers",), "against": ("root",)},
    ),
    Call("trajectories", lambda: (export.trajectories, {"posterior": posterior()})),
    Call("step_labels", lambda: (export.step_labels, {"posterior": posterior(), "right": bool})),
    Call("node_values", lambda: (export.node_values, {"posterior": tree(), "right": bool})),
    Call("write_rows", of(export.write_rows, rows=[], path="/dev/null/none")),
    Call("Posterior.load", lambda: (Posterior.load, {"path": "/nowhere"})),
    Call("Search.load", lambda: (searchers.Search.load, {"path": "/nowhere"})),
    Call(
        "AWRS",
        lambda: (ppl.AWRS, {"proposal": lm()(lm().prompt("^"), max_tokens=1), "valid": bool}),
        bad={"max_candidates": COUNT},
    ),
    Call("StepRule", of(ppl.StepRule)),
    Call("StepRule.of", of(ppl.StepRule.of, until="x"), bad={"until": ("", [], [""], 3, [3])}),
    Call(
        "TableLM",
        of(ppl.TableLM, probabilities={"a": 0.5, "$": 0.5}, symbols="^a$"),
        bad={"symbols": ("", "aa$", "ab"), "end": ("", "ab"), "context_length": (1, NEGATIVE)},
    ),
    Call(
        "lm",
        lambda: (lm(), {"text": lm().prompt("^")}),
        bad={
            "max_tokens": COUNT,
            "temperature": (NEGATIVE, INFINITE),
            "top_p": (0, *SHARE),
            "top_k": COUNT,
            "min_p": SHARE,
            "until": ("", [], [""]),
        },
    ),
    Call("lm.encode", lambda: (lm().encode, {"string": "a"})),
    Call("lm.prompt", lambda: (lm().prompt, {"string": "a"}), bad={"string": ("", "\ud800")}),
    Call(
        "lm.chat",
        lambda: (lm().chat, {"messages": "a"}),
        bad={"messages": ("", [], [None], [{}], 3)},
    ),
    Call(
        "lm.continuation",
        lambda: (lm().continuation, {"value": "a"}),
        bad={"value": ([1.5], [-1], [10**6], "\ud800", 3)},
    ),
    Call("lm.retokenize", lambda: (lm().retokenize, {"value": text()})),
    Call(
        "HFModel",
        lambda: (
            ppl.HFModel,
            {"model": tiny().model, "tokenizer": tiny().codec.tokenizer, "name": "m"},
        ),
        free=("model", "tokenizer"),
        bad={"context_length": COUNT, "kv_bytes": BYTES},
    ),
    Call(
        "load",
        of(ppl.load, source="tiny"),
        bad={
            "dtype": ("foo", 3),
            "device": ("nope", 3),
            "kv_bytes": BYTES,
            "context_length": COUNT,
            "replicas": COUNT,
        },
    ),
    Call(
        "HFModel.with_adapter",
        lambda: (ppl.HFModel.with_adapter, {"self": tiny(), "adapter": "/nowhere"}),
        free=("self",),
        bad={"adapter": (3, None), "name": (3,)},
    ),
    Call(
        "register", of(ppl.register, prefix="fresh:", loader=len), bad={"prefix": ("", "http://")}
    ),
    Call("twist", of(ppl.twist, name="t", log_value=0.0), bad={"log_value": (INFINITE, -INFINITE)}),
    Call("writers", of(ppl.writers, models={"a": lm()}), bad={"models": ({}, {"a": 3})}),
    Call("condition", of(ppl.condition, value=True), free=("value",)),
    Call("answer", of(ppl.answer, value=1)),
    Call("power", of(ppl.power, program=program, alpha=2.0), bad={"alpha": POSITIVE}),
    Call("Thinking", of(ppl.Thinking), bad={"end": ("",), "inside": (3,), "after": (3,)}),
    Call(
        "forced",
        lambda: (ppl.forced, {"name": "f", "lm": lm(), "text": text(), "end": None, "most": 3}),
        bad={"times": (NEGATIVE,), "least": (NEGATIVE,), "most": COUNT, "words": ("",)},
    ),
    Call("parallel", of(ppl.parallel, functions=[dict])),
    Call("perturbed", of(ppl.perturbed, perturbations=["a"]), bad={"perturbations": ([], [3])}),
    Call(
        "plan",
        of(ppl.plan, program=program),
        bad={"most": COUNT, "temperature": (NEGATIVE, INFINITE), "kind": ("best",)},
    ),
    Call("call", of(ppl.call, name="c", f=dict), bad={"seconds": POSITIVE}),
    Call("do", of(ppl.do, program=program, data={})),
    Call(
        "selfsteer",
        of(
            ppl.selfsteer,
            planner=lambda messages: "def step(state): state.finish()\ndef check(text): return 1",
            follower=lm(),
            task="^",
            particles=1,
            begin=lm().prompt,
        ),
        bad={
            "particles": COUNT,
            "retries": (NEGATIVE,),
            "engine": ("mcmc",),
            "steps": COUNT,
            "max_tokens": COUNT,
            "temperature": POSITIVE,
            "planner_tokens": COUNT,
            "planner_temperature": (NEGATIVE, INFINITE),
        },
    ),
    Call(
        "programs.mixture_of_agents",
        of(ppl.programs.mixture_of_agents, lm=lm()),
        bad={
            "samples": COUNT,
            "temperature": (NEGATIVE, INFINITE),
            "reading_temperature": (NEGATIVE, INFINITE),
            "max_tokens": COUNT,
            "critique_tokens": COUNT,
            "answer_tokens": COUNT,
        },
    ),
    Call("drafted", of(ppl.drafted, program=program, models=lm())),
    Call("enumerate_program", of(ppl.enumerate_program, program=program), bad={"most": COUNT}),
    Call("extract_answer", of(ppl.extract_answer, string="a")),
    Call("verifier()", lambda: (half, {"text": text()})),
    Call(
        "tasks.problems",
        of(tasks.problems, task="arithmetic", n=1),
        bad={"task": ("bogus", ""), "n": (NEGATIVE,)},
    ),
    Call(
        "tasks.allowed_answer",
        of(tasks.allowed_answer, task="arithmetic", answer="3"),
        bad={"task": ("bogus",)},
    ),
    Call("tasks.Problem", of(tasks.Problem, id="a", question="b"), bad={"id": ("",)}),
    Call("tasks.Task", lambda: (tasks.Task, {"name": "a", "problems": [problem()]})),
    Call("tasks.known", of(tasks.known)),
    Call("tasks.load", of(tasks.load, name="lines/chain"), bad={"name": ("", "bogus")}),
    Call(
        "tasks.split",
        lambda: (tasks.split, {"task": tasks.load("lines/chain", n=2), "half": "train"}),
        bad={"fraction": SHARE},
    ),
    Call("tasks.same_answer", lambda: (tasks.same_answer, {"problem": problem(), "answer": "3"})),
    Call("tasks.same_text", lambda: (tasks.same_text, {"problem": problem(), "answer": "3"})),
    Call("tasks.arithmetic_key", of(tasks.arithmetic_key, expression="1 + 2")),
    Call("tasks.countdown_key", of(tasks.countdown_key, numbers=[1, 2], target=3)),
    Call("tasks.held_out", of(tasks.held_out, key="a")),
    Call("tasks.is_correct", lambda: (tasks.is_correct, {"problem": problem(), "answer": "3"})),
    Call("tasks.Judge", of(tasks.Judge), bad={"limit": POSITIVE, "start_limit": POSITIVE}),
    Call("tasks.Judge.score", lambda: (tasks.Judge().score, {"problem": problem(), "answer": "x"})),
    Call(
        "tasks.Judge.score_many",
        lambda: (tasks.Judge().score_many, {"problems": [problem()], "answers": ["x"]}),
        bad={"answers": ([],)},
    ),
]


def problem() -> tasks.Problem:
    return tasks.Problem("arithmetic:1+2", "1 + 2?", "3", {"dataset": "basic_arithmetic"})


def _tree(verb: str) -> tuple[Any, dict[str, Any]]:
    grown = tree()
    (child,) = grown.expand([grown.root])
    if verb == "force":
        return grown.force, {"nodes": [grown.root], "examples": [child]}
    if verb == "score":
        return grown.score, {"nodes": [child], "verifier": half}
    return getattr(grown, verb), {"nodes": [grown.root]}
