"""The part of `public_calls` about allocation and programs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from public_calls import COUNT, INFINITE, NAN, NEGATIVE, POSITIVE, SHARE, Call, half, lm, of

from ppl import allocate, programs
from ppl.lm.engine.use import KVUse
from ppl.searchers import BestOfN
from ppl.study.runs import Row, Runs


def made() -> list[allocate.Record]:
    own = [allocate.Record(f"q{q}", "a", q % 2, 1.0) for q in range(8)]
    return own + [allocate.Record(f"q{q}", "x", 0.0, 1.0, 1, (q < 4,)) for q in range(8)]


def runs() -> Runs:
    row = Row("c", "t", "q", "m", "p", "SMC(2)", 2, {}, 0, "1", True, {}, {"best": True}, {}, 0.0,
              "done", None)  # fmt: skip
    return Runs(("made",), (row,), {}, ())


class Kept:
    """Counts a byte a token."""

    kv = "full"

    def kv_use(self, prompt: int, new: Sequence[int]) -> KVUse:
        return KVUse(sum(new), prompt + sum(new))


KV: dict[str, Any] = {
    **{"problem": "q0", "kv": "full", "samples": 2, "length": 4},
    **{"right": 1.0, "bytes_read": 8.0, "peak_bytes": 6.0},
}


def scaled() -> list[allocate.KVRecord]:
    return [allocate.KVRecord(**{**KV, "problem": f"q{q}"}) for q in range(4)]


POLICY = allocate.by_difficulty(made(), ["a"], [5.0], bins=2)
P = [[0.5, 0.1], [0.2, 0.9]]

ALLOCATE_CALLS = [
    Call(
        "allocate.Record",
        of(allocate.Record, problem="q", strategy="a", right=1.0, cost=2.0),
        bad={"right": SHARE, "cost": (NEGATIVE, INFINITE)},
    ),
    Call(
        "allocate.records",
        of(allocate.records, runs=runs(), rules=["best"]),
        bad={"rules": ([], ["bogus"]), "unit": ("flops",)},
    ),
    Call(
        "allocate.by_difficulty",
        of(allocate.by_difficulty, records=made(), strategies=["a"], budgets=[5.0]),
        bad={
            "records": ([],),
            "strategies": ([], ["a", "a"], ["b"]),
            "budgets": ([], [0.0], [INFINITE], [0.5]),
            "bins": COUNT,
            "folds": (0, 1, 5),
            "samples": (0, 2),
            "margin": (NEGATIVE, INFINITE),
        },
        free=("estimate_seed",),
    ),
    Call(
        "allocate.Policy.choose",
        of(POLICY.choose, value=0.5, budget=5.0),
        bad={"value": SHARE, "budget": (1.0,)},
    ),
    Call(
        "allocate.Drawn",
        of(allocate.Drawn, tokens=3, answer="1", right=True),
        bad={"tokens": COUNT},
        free=("answer",),
    ),
    Call(
        "allocate.KVRecord",
        of(allocate.KVRecord, **KV),
        bad={
            "samples": COUNT,
            "length": COUNT,
            "right": SHARE,
            "bytes_read": (NEGATIVE, INFINITE),
            "peak_bytes": (NEGATIVE, INFINITE),
        },
    ),
    Call(
        "allocate.kv_records",
        of(
            allocate.kv_records,
            lm=Kept(),
            problem="q",
            prompt=3,
            drawn=[allocate.Drawn(3, "1", True)],
            samples=[1],
            lengths=[4],
        ),
        bad={
            "lm": (lm(),),
            "samples": ([], [0], [2]),
            "lengths": ([], [0]),
            "prompt": COUNT,
        },
    ),
    Call(
        "allocate.hyper_scale",
        of(allocate.hyper_scale, records=scaled()),
        bad={"records": ([], scaled()[:1]), "folds": (0, 1, 5)},
    ),
    Call(
        "allocate.HyperScale.frontier",
        of(allocate.hyper_scale(scaled()).frontier),
        bad={"by": ("seconds",), "kv": ("int8",)},
    ),
    Call(
        "allocate.HyperScale.gain",
        of(allocate.hyper_scale(scaled()).gain, budget=9.0, kv="full"),
        bad={"budget": (*POSITIVE, 1.0), "kv": ("int8",), "over": ("int8",), "by": ("seconds",)},
    ),
    Call(
        "allocate.exchange",
        of(allocate.exchange, times=2.0, pretraining=1.0, inference=1.0),
        bad={"times": (*POSITIVE, 0.5), "pretraining": (NEGATIVE,), "inference": POSITIVE},
    ),
    Call(
        "allocate.mix",
        of(allocate.mix, success=P, budget=3.0),
        bad={
            "success": ([], [0.5], [[1.5]], [[NAN]]),
            "budget": (*POSITIVE, 0.5),
            "cost": ([1.0], [0.0, 1.0], NAN),
            "draws": (0, [1], 0.5),
            "starts": COUNT,
        },
        free=("prior",),
    ),
    Call(
        "allocate.mix_coverage",
        of(allocate.mix_coverage, counts=[1, 2], right=[[1, 0]], draws=2),
        bad={"counts": ([1], [3, 0], [NEGATIVE, 0]), "right": ([1],), "draws": (0, [1])},
    ),
    Call(
        "programs.revise",
        of(programs.revise, lm=lm()),
        bad={"rounds": COUNT, "memory": COUNT, "max_tokens": COUNT},
        free=("temperature", "top_p"),  # of the model's own call, at its site
    ),
    Call(
        "programs.revision_prompt", of(programs.revision_prompt, question="What?", answers=["one"])
    ),
    Call(
        "programs.revisions",
        lambda: (
            programs.revisions,
            {
                "posterior": BestOfN(1).run(
                    programs.revise(
                        lm(), 1, verifier=half, ask=lambda q, _: lm().prompt("^"), max_tokens=1
                    ),
                    "q",
                )
            },
        ),
    ),
    Call(
        "programs.rounds_and_rows",
        of(programs.rounds_and_rows, total=4),
        bad={"total": COUNT, "ratio": POSITIVE},
    ),
]

NOT_CALLED_ALLOCATE = {
    "AtBudget": "made by by_difficulty",
    "HyperScale": "made by hyper_scale; its methods are tried",
    "KVGain": "made by HyperScale.gain",
    "KVPoint": "made by hyper_scale",
    "Policy": "made by by_difficulty; its method is tried",
}
