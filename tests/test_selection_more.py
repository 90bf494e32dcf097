"""Rules that reports take by name: of stored candidates they make what `ppl.decide` does."""

from __future__ import annotations

import itertools

import made_runs
import numpy as np
import pytest

from ppl.cli.app import app
from ppl.decide import Candidates, best, shares, vote
from ppl.errors import ArgumentError
from ppl.study import runs as reader
from ppl.study.report import report
from ppl.study.selection import FITTED, MORE, RULES, Pool

BY_NAME = {rule.name: rule for rule in MORE}
ROW = reader._row(made_runs.result("made/0", "BestOfN(5)", 5), "here")


def stored(seed: int, n: int) -> list[dict]:
    """Candidates without ties, of which some are one text."""
    rng = np.random.default_rng(seed)
    texts = []
    for i in range(n):
        answer = None if rng.random() < 0.15 else str(rng.choice(["1", "2", "3"]))
        texts.append(
            made_runs.candidate(
                answer,
                scores=[round(float(rng.uniform(0.05, 0.95)), 6)],
                log_prob=float(-rng.uniform(0.5, 9)),
                tokens=int(rng.integers(1, 9)),
                steps=[f"text {i}"],
                confidence=float(rng.uniform(0.05, 0.95)),
                certainty=float(rng.uniform(1, 9)),
            )
        )
    return [texts[i] for i in rng.integers(0, n, n)] if rng.random() < 0.5 else texts


def candidates(found) -> Candidates:
    scores = [c["log_likelihood"] for c in found]
    return Candidates(
        [c["answer"] for c in found],
        log_scores=scores,
        log_probs=[c["log_prob"] for c in found],
        tokens=[c["tokens"] for c in found],
        texts=[tuple(c["steps"]) for c in found],
        confidences=[c["confidence"] for c in found],
        certainties=[c["certainty"] for c in found],
    )


def chosen(rule, found) -> float:
    """The chance that the rule is right on these candidates, by `ppl.decide` itself."""
    asked = candidates(found)
    if rule.choice == "drawn":
        drawn = dict(shares(asked, rule.weights))
        return drawn.get("1", 0.0)
    if rule.choice == "best":
        return float(best(asked, "certainties") == "1")
    found = shares(asked, rule.weights or rule.value)
    tied = [answer for answer, share in found if share >= found[0][1] * (1 - 1e-9)]
    return tied.count("1") / max(1, len(tied))


@pytest.mark.parametrize("rule", MORE, ids=lambda rule: rule.name)
def test_a_report_makes_of_subsets_what_the_rule_makes_of_them(rule):
    differ = 0
    for seed in range(12):
        found = stored(seed, 5)
        pool = Pool.of(ROW, [reader._candidate(c, "here") for c in found])
        assert pool.usable(rule)
        for k in (1, 3, 5):
            sets = list(itertools.combinations(found, k))
            expected = np.mean([chosen(rule, each) for each in sets])
            estimate = pool.estimate(rule, k)
            assert estimate.exact
            if len({tuple(c["steps"]) for c in found}) == 5:  # without ties
                assert estimate.chance == pytest.approx(expected), (seed, k)
                flat = np.mean([vote(candidates(e), "flat") == "1" for e in sets])
                differ += abs(flat - expected) > 1e-6
    assert differ > 0  # it is a rule of its own


def test_what_candidates_lack_is_named(tmp_path):
    plain = [{k: v for k, v in c.items() if k != "confidence"} for c in stored(1, 5)]
    plain = [{**c, "steps": []} for c in plain]
    pool = Pool.of(ROW, [reader._candidate(c, "here") for c in plain])
    assert pool.missing(BY_NAME["RPC"]) == ["steps"]
    assert pool.missing(BY_NAME["confidence vote"]) == ["confidence"]
    assert pool.missing(BY_NAME["DeepConf (10%)"]) == []
    assert len({rule.name for rule in (*RULES, *MORE)}) == len(RULES) + len(MORE)


def test_a_report_has_them_if_asked(tmp_path, capsys):
    folder = made_runs.study(tmp_path / "run", questions=4, largest=8)
    plain = report(folder)
    names = ["perplexity consistency", "RPC", "pessimistic (beta=0.1)"]
    made = report(folder, rules=[*names, "confidence vote"], baseline="vote")
    (section,) = [each.section for each in made.results]
    lines = {line.rule for line in section.lines if line.reselected}
    assert lines - {rule.name for rule in RULES} == set(names)
    assert {line.rule for line in plain.results[0].section.lines if line.reselected} == lines - set(
        names
    )
    assert f"{FITTED} for rules that fit a law" in " ".join(section.notes)
    assert "confidence vote: 4 of 4 questions lack 'confidence' values" in " ".join(section.notes)
    compared = {d.line.rule for d in made.results[0].differences}
    assert set(names) <= compared
    own = report(folder, rules=names[::2], baseline="SMC(4)")
    assert {d.line.rule for d in own.results[0].differences} >= set(names[::2])
    # All of them, what is the same in both is the same.
    same = {(x.rule, x.n): x.accuracy for x in plain.results[0].section.lines if x.reselected}
    again = {(x.rule, x.n): x.accuracy for x in section.lines if x.reselected}
    assert {key: again[key] for key in same} == same
    with pytest.raises(ArgumentError, match="rules='bogus': one of 'perplexity consistency'"):
        report(folder, rules=["bogus"])


def test_the_command_takes_them(tmp_path):
    from typer.testing import CliRunner

    folder = made_runs.study(tmp_path / "run", questions=4, largest=4)
    asked = ["report", str(folder), "--csv", "--rule", "RPC", "--rule", "Borda (p=1)"]
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 0
    assert ",RPC," in done.stdout
    assert ",Borda (p=1)," in done.stdout
