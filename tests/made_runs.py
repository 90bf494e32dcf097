"""A run's folder, made up: questions of known difficulty, a verifier that is right more often than
not. Nothing of it comes from a model; `python tests/made_runs.py FOLDER` writes one to look at."""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

SIX = ("task", "problem", "model", "program", "searcher", "seed")


def cell(record: Mapping[str, Any]) -> str:
    told = "\x1f".join(str(record[name]) for name in SIX)
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def candidate(answer: str | None, gold: str = "1", **fields: Any) -> dict[str, Any]:
    """A candidate as a line of `candidates.jsonl` has it."""
    scores = fields.pop("scores", [])
    logs = sum(math.log(s) if s else -math.inf for s in scores)
    return {
        "answer": answer,
        "right": None if answer is None else answer == gold,
        "finished": answer is not None,
        "log_weight": logs,
        "log_likelihood": logs,
        "log_prob": -1.0,
        "tokens": 10,
        "steps": [],
        "scores": scores,
        "ancestor": None,
        **fields,
    }


def result(problem: str, searcher: str, n: int, **fields: Any) -> dict[str, Any]:
    """A row as a line of `results.jsonl` has it."""
    row = {
        "task": "made",
        "problem": problem,
        "model": "none",
        "program": "steps",
        "searcher": searcher,
        "n": n,
        "budget": None,
        "seed": 0,
        "gold": "1",
        "answer": "1",
        "right": True,
        "answers": {"best": "1"},
        "rights": {"best": True},
        "log_evidence": None,
        "cost": {"lm_tokens": 10 * n, "prompt_tokens": 5, "verifier_tokens": 12 * n, "flops": None},
        "seconds": 1.0,
        "stopped": "done",
        "error": None,
        **fields,
    }
    return {"cell": cell(row), **row}


def write(
    folder: Path, rows: Sequence[Mapping[str, Any]], pools: Mapping[str, Sequence[Any]]
) -> Path:
    """The three files. `pools` by cell."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"ppl": "0", "study": {"task": "made"}}))
    for name, records in (
        ("results.jsonl", rows),
        ("candidates.jsonl", [{"cell": c, "candidates": p} for c, p in pools.items()]),
    ):
        lines = [json.dumps(_finite(record)) + "\n" for record in records]
        (folder / name).write_text("".join(lines))
    return folder


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {k: _finite(v) for k, v in value.items()}
    return [_finite(v) for v in value] if isinstance(value, list | tuple) else value


def study(
    folder: Path, *, questions: int = 60, seed: int = 0, seeds: int = 1, largest: int = 64
) -> Path:
    """A run of searchers over questions whose difficulty is Beta(0.8, 1)."""
    rng = np.random.default_rng(seed)
    rows, pools = [], {}
    for q in range(questions):
        p, gold = rng.beta(0.8, 1.0), str(int(rng.integers(2, 90)))
        wrong = [str(int(w)) for w in rng.integers(100, 400, 6)]
        shares = rng.dirichlet([0.6] * 6)
        for s in range(seeds):
            sizes = [n for n in (4, 16, 64) if n <= largest]
            names = [("BestOfN", largest), *(("SMC", n) for n in sizes)]
            for name, n in names:
                searcher = f"{name}({n})"
                lift = 0.0 if searcher.startswith("BestOfN") else 0.5 * p * (1 - p) * math.log2(n)
                share = min(0.99, p + lift / 3)
                found = []
                for _ in range(n):
                    draw = rng.random()
                    good = draw < share
                    answer = gold if good else str(rng.choice(wrong, p=shares))
                    steps = int(rng.integers(3, 8))
                    scores = rng.beta(8, 1.6 if good else 2.6, steps).round(4).tolist()
                    if rng.random() < 0.04:
                        answer = None
                    tokens = int(rng.integers(8, 14)) * steps
                    found.append(
                        candidate(
                            answer,
                            gold,
                            scores=scores,
                            tokens=tokens,
                            steps=[f"{rng.integers(10**6)} at {t}" for t in range(steps)],
                            log_prob=float(-rng.gamma(4 if good else 5, 3)),
                        )
                    )
                rows.append(_row(q, gold, searcher, n, s, found))
                pools[rows[-1]["cell"]] = found
    rows[7].update(error="WeightError: log-probability is NaN", answer=None, right=None)
    rows[7].update(answers={}, rights={})
    pools.pop(rows[7]["cell"])
    return write(folder, rows, pools)


def _row(
    q: int, gold: str, searcher: str, n: int, seed: int, found: list[dict[str, Any]]
) -> dict[str, Any]:
    there = [c for c in found if c["answer"] is not None]
    best = max(there, key=lambda c: c["log_likelihood"], default=None)
    totals: dict[str, float] = {}
    for c in there:
        totals[c["answer"]] = totals.get(c["answer"], 0.0) + math.exp(c["log_weight"])
    answers = {
        "best": best and best["answer"],
        "vote": max(totals, key=lambda a: totals[a], default=None),
    }
    lm = sum(c["tokens"] for c in found)
    calls = sum(len(c["scores"]) for c in found)
    pages = {
        "lm": {
            "lm_tokens": lm,
            "prompt_tokens": 60 + calls - n,
            "draws": calls,
            "parameters": 135_000_000,
        },
        "prm": {"verifier_tokens": lm + calls, "parameters": 70_000_000},
    }
    flops = 2 * 135e6 * (60 + lm - n) + 2 * 70e6 * (lm + calls)
    return result(
        f"made/{q}",
        searcher,
        n,
        seed=seed,
        gold=gold,
        answer=answers["best"],
        right=answers["best"] == gold,
        answers=answers,
        rights={rule: None if a is None else a == gold for rule, a in answers.items()},
        cost={
            "lm_tokens": lm,
            "prompt_tokens": 60 + calls - n,
            "verifier_tokens": lm + calls,
            "lm_calls": calls,
            "verifier_calls": calls,
            "flops": flops,
            "models": pages,
        },
        seconds=0.01 * n,
    )


if __name__ == "__main__":
    print(study(Path(sys.argv[1]), questions=int(sys.argv[2]) if len(sys.argv) > 2 else 100))
