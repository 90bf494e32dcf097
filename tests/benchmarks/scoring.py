"""Scoring throughput: texts and tokens per second on the engine, against plain `transformers`.

    python tests/benchmarks/scoring.py --questions 32 --responses 8

Three kinds of work. The embedded reward model judges whole responses, several to a question; it
judges the same responses as a search asks, again after every step; and SmolLM2-135M-Instruct scores
given continuations of a few prompts. The plain ways compute every text in full, one forward each or
padded batches, and read logits only where they are needed. Tokens are those of all texts asked
about. The engine's cache is empty at the start of every run; its numbers are compared with those of
the plain ways.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from machine import machine
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

import ppl
from ppl.language.text import Continuation
from ppl.lm.base import ContinueRequest, ScoreRequest
from ppl.lm.engine.engine import Engine
from ppl.lm.sources import TINY
from ppl.runtime.verdict import JudgeRequest
from ppl.tasks import TASKS, problems
from ppl.verifiers import PRM
from ppl.verifiers.laws import prefix

Numbers = list[float]
NEW_TOKENS = 32
PROMPTS = (
    "Once upon a time there was an old lighthouse on a small island far out in the sea. Every",
    "The recipe is simple: take two eggs, some flour and a little milk, stir well, and then",
    "In a right triangle, the square of the longest side equals the sum of the squares of",
    "Dear colleagues, I am writing to you because our laboratory has decided that from now on",
    "Water freezes at zero degrees Celsius. When it freezes it expands, which is the reason why",
    "The committee met on Tuesday to discuss the new bridge. After a long debate its members",
    "A list holds values in order; a dictionary maps keys to values. To count words one would",
    "The train left the station at noon and reached the harbour two hours later, where the",
)


def respond(lm: ppl.LanguageModel, questions: Sequence[str], each: int) -> list[ppl.Text]:
    """Responses of the embedded model, `each` to every question, with their steps."""
    texts = [lm.chat(q) for q in questions for _ in range(each)]
    for t in range(12):
        going = [i for i, text in enumerate(texts) if not text.finished]
        requests = [
            ContinueRequest(lm, lm(texts[i], until="\n", max_tokens=40).spec, i << 8 | t)
            for i in going
        ]
        for i, drawn in zip(going, lm.sample_batch(requests), strict=True):
            assert drawn is not None  # without a ledger nothing runs out
            texts[i] = texts[i] + drawn.value
    return texts


class Judging:
    """Step scores of responses: one wave of requests for whole texts, or one for every step."""

    def __init__(self, texts: Sequence[ppl.Text], every_step: bool) -> None:
        self.prm, self.engine = (prm := PRM.load("tiny")), prm.engine
        self.model, _ = prm.format.head.load(TINY / "prm")
        self.column = [self.model.config.label2id[label] for label in ("good", "bad")]
        most = max(len(text.step_ends) for text in texts)
        self.waves = [
            [JudgeRequest(prm, prefix(x, t), t - 1) for x in texts if len(x.step_ends) >= t]
            for t in range(1, most + 1)
        ]
        if not every_step:
            self.waves = [[JudgeRequest(prm, text) for text in texts]]
        self.texts = sum(map(len, self.waves))
        self.tokens = sum(len(r.text.tokens) for wave in self.waves for r in wave)

    def by_engine(self) -> Numbers:
        answers = [scores for wave in self.waves for scores in self.prm.judge(wave)]
        return [score for scores in answers for score in scores]

    @torch.inference_mode()
    def by_transformers(self, rows: int) -> Numbers:
        found: Numbers = []
        for wave in self.waves:
            for begin in range(0, len(wave), rows):
                part = wave[begin : begin + rows]
                # Causal: what is right of a text does not reach into it.
                ids = pad_sequence([torch.tensor(r.text.tokens) for r in part], batch_first=True)
                mask = pad_sequence([torch.ones(len(r.text.tokens)) for r in part], True)
                logits = self.model(input_ids=ids, attention_mask=mask).logits
                for row, request in zip(logits, part, strict=True):
                    ends = [end - 1 for end in request.text.step_ends[request.since :]]
                    good, bad = row[ends][:, self.column].T
                    found += torch.nn.functional.logsigmoid(good - bad).tolist()
        return found


class Scoring:
    """Log-probabilities of given continuations, several of every prompt."""

    def __init__(self, lm: ppl.HFModel, plain: Any, each: int, rows: int) -> None:
        self.lm, self.model, self.engine = lm, plain, lm.engine
        prompts = [lm.prompt(p) for p in PROMPTS for _ in range(each)]
        specs = [lm(p, max_tokens=NEW_TOKENS).spec for p in prompts]
        self.requests = []
        for begin in range(0, len(specs), rows):
            asked = [ContinueRequest(lm, s, i) for i, s in enumerate(specs[begin:][:rows], begin)]
            drawn = lm.sample_batch(asked)
            values = [d.value for d in drawn if d is not None]
            self.requests += [
                ScoreRequest(lm, ask.spec, value) for ask, value in zip(asked, values, strict=True)
            ]
        self.texts = len(self.requests)
        self.tokens = sum(len(r.spec.tokens + r.value.tokens) for r in self.requests)

    def by_engine(self) -> Numbers:
        return self.lm.score_batch(self.requests)

    @torch.inference_mode()
    def by_transformers(self, rows: int) -> Numbers:
        found: Numbers = []
        for begin in range(0, len(self.requests), rows):
            part = self.requests[begin : begin + rows]
            values = [r.value for r in part]
            longest = max(len(v.tokens) for v in values)
            # Padded on the left, so that the continuations stand at the end of every row.
            whole = [torch.tensor((r.spec.tokens + r.value.tokens)[::-1]) for r in part]
            ids = pad_sequence(whole, batch_first=True).flip(1)
            mask = pad_sequence([torch.ones(len(w)) for w in whole], True).flip(1).long()
            logits = self.model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=(mask.cumsum(1) - 1).clamp(min=0),
                logits_to_keep=longest + 1,
            ).logits[:, :-1]
            found += [_sum(row, v) for row, v in zip(logits, values, strict=True)]
        return found


def _sum(logits: Tensor, value: Continuation) -> float:
    log_probs = torch.log_softmax(logits[-len(value.tokens) :].float(), -1)
    return float(log_probs.gather(1, torch.tensor(value.tokens)[:, None]).double().sum())


def measure(name: str, work: Judging | Scoring, rows: int, repeats: int) -> str:
    """Prints one line for every way, medians of `repeats` runs taking turns; returns a remark."""
    engine: Engine = work.engine
    ways: dict[str, Callable[[], Numbers]] = {
        "transformers, one each": lambda: work.by_transformers(1),
        "transformers, padded": lambda: work.by_transformers(rows),
        "engine": work.by_engine,
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    answers: dict[str, Numbers] = {}
    computed = 0
    for _ in range(repeats):
        for way, run in ways.items():
            engine.pool.clear()
            before, begun = engine.tokens_computed, time.perf_counter()
            answers[way] = run()
            seconds[way].append(time.perf_counter() - begun)
            computed = engine.tokens_computed - before  # the engine comes last
    medians = {way: statistics.median(taken) for way, taken in seconds.items()}
    alone, padded, ours = medians.values()
    for way, taken in medians.items():
        last = way == "engine"
        print(
            f"| {name} | {way} | {work.texts / taken:,.1f} | {work.tokens / taken:,.0f} | "
            f"{alone / taken:.1f} | {f'{1 - computed / work.tokens:.0%}' if last else '-'} |",
            flush=True,
        )
    wrong = max(
        abs(a - b) for way in ways for a, b in zip(answers[way], answers["engine"], strict=True)
    )
    return (
        f"{name}: {work.texts} texts, {work.tokens:,} tokens; engine / padded = "
        f"{padded / ours:.2f}; numbers differ by at most {wrong:.0e}"
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--questions", type=int, default=32, help="of each task, for the PRM")
    parser.add_argument("--responses", type=int, default=8, help="texts per question or prompt")
    parser.add_argument("--rows", type=int, default=64, help="texts in a padded batch")
    parser.add_argument("--repeats", type=int, default=3, help="the medians are of so many runs")
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    parser.add_argument("--no-smollm2", action="store_true", help="the embedded model only")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    print(f"{machine()}\n")
    print("| work | way | texts/s | tokens/s | times one each | tokens reused |")
    print("|---|---|---|---|---|---|")
    asked = [p.question for task in TASKS for p in problems(task, options.questions)]
    texts = respond(ppl.load("tiny"), asked, options.responses)
    remarks = [
        measure(name, Judging(texts, every_step), options.rows, options.repeats)
        for name, every_step in (("PRM, whole responses", False), ("PRM, after every step", True))
    ]
    if not options.no_smollm2:
        sys.path.append(str(Path(__file__).parents[2] / "examples"))
        from smollm2 import find_gguf

        lm, plain = ppl.load(find_gguf()), ppl.load(find_gguf(), pack=False).model
        work = Scoring(lm, plain, options.responses, options.rows)
        remarks.append(measure("SmolLM2, continuations", work, options.rows, options.repeats))
    print("", *remarks, sep="\n")


if __name__ == "__main__":
    main()
