"""Allocation by difficulty: what is a gain and what only looks like one; exchange of sizes."""

from __future__ import annotations

import dataclasses
import math

import made_runs
import numpy as np
import pytest

from ppl.allocate import Record, by_difficulty, exchange, records
from ppl.errors import ArgumentError
from ppl.study.report import read

QUESTIONS, DRAWS = 400, 16


def made(chance, *, seed=0, cost=lambda s: 10.0, same=False, questions=QUESTIONS):
    """Records of strategies `s` that are right with `chance(p, s)` on a question of difficulty p,
    and of samples with seed 1 that estimate p; `same`: strategy 0's outcome is one of these."""
    rng = np.random.default_rng(seed)
    found = []
    for q in range(questions):
        p = float(rng.beta(1.0, 1.0))
        drawn = tuple((rng.random(DRAWS) < p).tolist())
        name = f"q{q}"
        for s in range(4):
            right = float(rng.random() < chance(p, s))
            if same and s == 0:
                right = float(drawn[0])
            found.append(Record(name, f"s{s}", right, cost(s)))
        scores = tuple(0.5 + 0.4 * (float(d) - 0.5) for d in drawn)
        found.append(Record(name, "samples", 0.0, 8.0, 1, drawn, scores))
    return found


NAMES = [f"s{s}" for s in range(4)]


def test_strategies_that_differ_by_noise_gain_nothing_out_of_fold():
    """The leak made visible: on the questions that it was fitted to there is always a gain."""
    gains, in_sample = [], []
    for seed in range(100, 140):
        policy = by_difficulty(made(lambda p, s: p, seed=seed), NAMES, [20.0], seed=seed)
        (line,) = policy.at
        gains.append(line.gain)
        in_sample.append(line.in_sample)
        assert line.in_sample > 0
        assert abs(line.gain) < 3.5 * line.error
    error = np.std(gains, ddof=1) / math.sqrt(len(gains))
    print(f"out of fold {np.mean(gains):+.4f} +- {error:.4f}, in sample {np.mean(in_sample):+.4f}")
    assert abs(np.mean(gains)) < 2 * error
    assert np.mean(in_sample) > 5 * error


def crossing(p, s):
    """s0 is better on easy questions, s1 on hard ones; s2 and s3 are worse than both."""
    return [0.95 * p, 0.3 + 0.3 * p, 0.02, 0.01][s]


@pytest.mark.parametrize("difficulty", ["oracle", "predicted"])
def test_a_planted_interaction_is_found(difficulty):
    policy = by_difficulty(made(crossing, questions=2000), NAMES, [20.0], difficulty=difficulty)
    (line,) = policy.at
    assert line.choices[0] == "s0"
    assert line.choices[-2:] == ("s1", "s1")
    assert line.fixed in ("s0", "s1")
    # Without noise in the estimate: E max(.95 p, .3 + .3 p) - max(E, E) for uniform p.
    at = 0.3 / 0.65
    best = 0.95 / 2 * (1 - at**2) + 0.3 * at + 0.15 * at**2
    assert 3 * line.error < line.gain < best - 0.475 + 3 * line.error
    assert policy.choose(1.0, 25.0) == "s0"
    assert policy.choose(0.0 if difficulty == "oracle" else 0.3, 20.0) == "s1"


def test_a_margin_keeps_noise_out_and_what_is_planted():
    noise = [made(lambda p, s: p, seed=seed) for seed in range(6)]
    spread = {
        margin: np.mean(
            [
                len(set(by_difficulty(found, NAMES, [20.0], margin=margin).at[0].choices))
                for found in noise
            ]
        )
        for margin in (0.0, 3.0)
    }
    assert spread[0.0] > 2
    assert spread[3.0] == 1
    (line,) = by_difficulty(made(crossing, questions=2000), NAMES, [20.0], margin=3.0).at
    assert line.gain > 3 * line.error
    assert (line.choices[0], line.choices[-1]) == ("s0", "s1")


def test_the_estimate_is_paid():
    found = made(crossing, cost=lambda s: [10.0, 10.0, 2.0, 1.0][s])
    (line,) = by_difficulty(found, NAMES, [20.0]).at
    assert line.cost == pytest.approx(18.0)  # 10, and 8 for the estimate
    assert line.fixed_cost == pytest.approx(10.0)
    # At 12 only the cheap ones are left beside the estimate, while a single one has it all.
    (line,) = by_difficulty(found, NAMES, [12.0]).at
    assert set(line.choices) <= {"s2", "s3"}
    assert line.fixed in ("s0", "s1")
    assert line.gain < -3 * line.error
    (fewer,) = by_difficulty(found, NAMES, [12.0], samples=4).at
    assert set(fewer.choices) == {"s0", "s1"}
    assert fewer.cost == pytest.approx(12.0)
    (free,) = by_difficulty(found, NAMES, [10.0], paid=False).at
    assert free.cost == pytest.approx(10.0)
    with pytest.raises(ArgumentError, match="budgets: 8 pays for nothing"):
        by_difficulty(found, NAMES, [8.0])


def test_samples_that_answer_must_not_say_how_difficult_a_question_is():
    """A question on which s0 was lucky looks easy, and s0 good at what looks easy: a gain without
    any difference, also out of fold."""
    chance = lambda p, s: 0.5  # noqa: E731 (no question is easier than another)
    gains = {
        same: [
            by_difficulty(made(chance, seed=seed, same=same), NAMES, [20.0]).at[0].gain
            for seed in range(8)
        ]
        for same in (False, True)
    }
    error = np.std(gains[False], ddof=1) / math.sqrt(8)
    assert abs(np.mean(gains[False])) < 3 * error
    assert np.mean(gains[True]) > 0.05
    # So records of the estimate's seed are no strategy's.
    found = made(chance)
    with pytest.raises(ArgumentError, match="one more seed"):
        by_difficulty(found, ["samples"], [20.0])


def test_few_values_make_fewer_bins_and_none_is_empty():
    found = [
        r
        for q in range(40)
        for r in (
            Record(f"q{q}", "a", float(q % 2), 1.0),
            Record(f"q{q}", "x", 0.0, 1.0, 1, (q % 4 == 0,)),
        )
    ]
    policy = by_difficulty(found, ["a"], [5.0])
    assert policy.edges == (1.0,)
    assert policy.at[0].choices == ("a", "a")
    assert policy.at[0].gain == 0


def test_records_are_those_of_a_study(tmp_path):
    """Through the files: rules are strategies, candidates of best-of-N the samples."""
    rows, pools = [], {}
    for q in range(12):
        for searcher, seed, n in (("SMC(4)", 0, 4), ("BestOfN(4)", 0, 4), ("BestOfN(4)", 1, 4)):
            row = made_runs.result(
                f"made/{q}",
                searcher,
                n,
                seed=seed,
                answers={"best": "1", "vote": "2"},
                rights={"best": q % 2 == 0, "vote": None},
            )
            rows.append(row)
            pools[row["cell"]] = [
                made_runs.candidate("1" if i < q % 5 else "0", scores=[0.5, 0.1 * i])
                for i in range(4)
            ]
    rows[0].update(error="WeightError: NaN", rights={}, answers={}, answer=None, right=None)
    runs = read(made_runs.write(tmp_path / "run", rows, pools))
    found = records(runs)
    assert len(found) == 2 * len(rows)
    assert found[0] == Record("made/made/0", "SMC(4), best", 0.0, 40 + 5 + 48)
    assert {r.right for r in found if r.strategy.endswith("vote")} == {0.0}
    estimates = [r for r in found if r.seed == 1 and r.strategy == "BestOfN(4), best"]
    assert [sum(r.samples) for r in estimates] == [min(q % 5, 4) for q in range(12)]
    assert estimates[3].scores == pytest.approx((0.0, 0.1, 0.2, 0.3))
    assert not any(r.samples for r in found if r.strategy.startswith("SMC"))
    names = ["SMC(4), best", "BestOfN(4), best"]
    policy = by_difficulty(found, names, [200.0], bins=2)
    assert policy.samples == 4
    assert policy.price == pytest.approx(93.0)
    assert policy.at[0].fixed == "BestOfN(4), best"  # SMC failed on one
    by_n = records(runs, rules=["best"], unit="n")
    assert {r.cost for r in by_n} == {4.0}
    assert "| 200 |" in policy.markdown
    with pytest.raises(ArgumentError, match="rules"):
        records(runs, rules=["median"])
    with pytest.raises(ArgumentError, match="flops"):
        records(runs, unit="flops")
    # Where nothing judged there are no scores, rather than equal ones.
    for pool in pools.values():
        for candidate in pool:
            candidate["scores"] = []
    blind = records(read(made_runs.write(tmp_path / "blind", rows, pools)))
    assert not any(r.scores for r in blind)
    assert by_difficulty(blind, names, [200.0]).samples == 4
    with pytest.raises(ArgumentError, match="no scores"):
        by_difficulty(blind, names, [200.0], difficulty="predicted")


def test_scores_may_be_rewards():
    """Which lie anywhere: log-odds, say. A share of right samples does not."""

    def rewards(record):
        return dataclasses.replace(record, scores=tuple(6 * s - 3 for s in record.scores))

    shares = made(crossing, questions=200)
    policy = by_difficulty(list(map(rewards, shares)), NAMES, [20.0], difficulty="predicted")
    plain = by_difficulty(shares, NAMES, [20.0], difficulty="predicted")
    assert [line.choices for line in policy.at] == [line.choices for line in plain.at]
    for at in (-3.0, -0.5, 2.9):
        assert policy.choose(at, 20.0) == plain.choose((at + 3) / 6, 20.0)
    for of, value in ((policy, math.nan), (by_difficulty(shares, NAMES, [20.0]), -0.5)):
        with pytest.raises(ValueError, match="value"):
            of.choose(value, 20.0)


def test_what_is_missing_is_named():
    found = made(crossing, questions=20)
    with pytest.raises(ArgumentError, match="strategies: no record is of 's9'; there are s0"):
        by_difficulty(found, ["s9"], [20.0])
    gone = [r for r in found if not (r.problem == "q5" and r.strategy == "s2")]
    with pytest.raises(ArgumentError, match="'s2' was not run on q5"):
        by_difficulty(gone, NAMES, [20.0])
    with pytest.raises(ArgumentError, match="samples=17: q0 has 16"):
        by_difficulty(found, NAMES, [20.0], samples=17)
    with pytest.raises(ArgumentError, match="folds=11"):
        by_difficulty(found, NAMES, [20.0], folds=11)
    alone = [r for r in found if not (r.seed == 1 and r.problem == "q3")]
    with pytest.raises(ArgumentError, match="q3 has no samples with seed 1"):
        by_difficulty(alone, NAMES, [20.0])
    with pytest.raises(ArgumentError, match="smallest"):
        by_difficulty(found, NAMES, [20.0]).choose(0.5, 19.0)


def test_flops_of_both_sides_are_equal():
    for times, pretraining, inference in ((14.0, 100.0, 10.0), (14.0, 1.0, 100.0), (2.5, 0.0, 3.0)):
        k = exchange(times, pretraining, inference)
        small = 6 * pretraining + 2 * k * inference
        assert small == pytest.approx(times * (6 * pretraining + 2 * inference))
    assert exchange(14, 10, 10) == 14 + 3 * 13
    assert exchange(1, 1e6, 1) == 1
    with pytest.raises(ValueError, match="times"):
        exchange(0.5, 1, 1)
