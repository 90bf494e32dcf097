"""examples/stopping.py: replays by hand, and the table in the docs from the records kept."""

from __future__ import annotations

import math
import re
from pathlib import Path

import confidence
import numpy as np
import pytest
import search_gain
import stopping
from stopping import Point, Pool

from ppl import decide
from ppl.searchers import AdaptiveSampling, BestOfN, FracturedSampling, Gated
from ppl.tasks.lines import held_out_problems
from ppl.verifiers import Calibrated, Platt

ROOT = Path(__file__).parent.parent
RECORDS = ROOT / "examples" / "records" / "stopping.jsonl"


def pool(classes: str, right: str, tokens: tuple[int, ...] | None = None, **more) -> Pool:
    known = sorted(set(classes) - {"."})
    numbers = tuple(known.index(c) if c != "." else -1 for c in classes)
    lengths = tokens or (1,) * len(classes)
    scores = more.get("scores", (0.5,) * len(classes))
    return Pool("chain", "p", "samples", numbers, tuple(c in right for c in known), lengths, scores)


def order(one: Pool) -> np.ndarray:
    return np.arange(len(one.classes))


def test_what_a_rule_pays_for_are_batches():
    unanimous, torn = pool("a" * 64, "a"), pool("ab" * 32, "a")
    beta = stopping.until(decide.Settled("beta", 0.95))
    assert beta(unanimous, order(unanimous)) == 4
    assert beta(torn, order(torn)) == 64
    exact = stopping.until(decide.Settled("exact"))
    assert exact(unanimous, order(unanimous)) == 33  # after 32 the rest could still tie
    early = stopping.until(decide.EarlyStop(tau=0.8))
    sure = pool("abcd", "c", scores=(0.1, 0.2, 0.9, 0.3))
    assert early(sure, order(sure)) == 4
    assert early(sure, order(sure)[::-1]) == 2


def test_what_is_chosen_counts_ties_by_their_share():
    one = pool("aab.b", "b", scores=(0.9, 0.1, 0.6, 1.0, 0.5))
    assert stopping.chosen(one, order(one), "vote") == 0.5
    assert stopping.chosen(one, order(one), "weighted") == 1.0
    assert stopping.chosen(one, order(one), "best") == 0.0
    assert stopping.chosen(one, np.array([3]), "vote") == 0.0
    nothing = pool("abc", "a", scores=(0.0, 0.0, 0.0))  # what was not drawn is no candidate
    assert stopping.chosen(nothing, np.array([2]), "weighted") == 0.0
    assert stopping.chosen(nothing, np.array([0, 2]), "weighted") == 0.5


def test_replays_are_means_over_orders():
    pools = [pool("aaab", "a", (3, 3, 3, 3)), pool("cccc", "", (2, 2, 2, 2))]
    point = stopping.replayed(pools, "2", "weighted", lambda one, _: 2)
    assert point.tokens.tolist() == [2 * 6.0, 2 * 4.0]  # written, and read
    assert point.right[1] == 0
    assert 0.5 < point.right[0] < 1
    race = stopping.first_finish([pool("aaa.b", "b", (4, 5, 6, 1, 2))], 5)
    assert race.right.tolist() == [1.0]
    assert race.tokens.tolist() == [2 + 2 + 2 + 1 + 2]


def test_a_saving_is_read_between_fixed_numbers():
    fixed = [(0.2, 10.0), (0.4, 40.0), (0.4, 80.0), (0.5, 160.0)]
    assert stopping.saving(0.3, 10.0, fixed) == pytest.approx(0.5)
    assert stopping.saving(0.4, 30.0, fixed) == pytest.approx(0.25)
    assert stopping.saving(0.2, 10.0, fixed) == pytest.approx(0.0)
    assert stopping.saving(0.6, 40.0, fixed) == pytest.approx(0.75)  # better than all: the best
    falling = [*fixed, (0.45, 320.0)]
    assert stopping.saving(0.6, 40.0, falling) == pytest.approx(0.75)
    assert stopping.saving(0.4, 20.0, falling) == pytest.approx(0.5)
    assert math.isnan(stopping.saving(0.1, 1.0, fixed))
    low, high = stopping.interval([0.1] * 50 + [math.nan] * 3)
    assert (low, high) == pytest.approx((0.1, 0.1))
    assert math.isnan(stopping.interval([0.1] * 50 + [math.nan] * 30)[0])


def test_a_small_run_is_kept_and_shown_again(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(stopping, "MOST", 4)
    monkeypatch.setattr(stopping, "LINES", {"gated": 2, "every step": 2})
    monkeypatch.setattr(stopping, "FITTED", 4)
    monkeypatch.setattr(stopping, "FRACTURED", {"fractured 2x2x2": (2, 2, 2)})
    small = ["--problems", "1", "--records", str(tmp_path / "r.jsonl")]
    points = stopping.main(small)
    printed = capsys.readouterr().out
    for name in (*stopping.RULES, *stopping.ADAPTIVE, "first of 2", "gated, 2", "every step, 1"):
        assert printed.count(name) == 1
    assert printed.count("fractured 2x2x2") == 2  # voted on, and weighted
    again = stopping.main([*small, "--show"])
    assert capsys.readouterr().out == printed
    assert [p.rule for p in again] == [p.rule for p in points]
    pools = stopping.read(tmp_path / "r.jsonl")
    wholes = {*stopping.ADAPTIVE, *stopping.FRACTURED}
    assert {len(p.classes) for p in pools if p.method not in wholes} == {2, 4}
    assert {p.method for p in pools} > wholes
    for one in pools:
        assert one.right or set(one.classes) == {-1}
        assert not one.again or one.method != "samples"
        if one.method == "every step":  # four candidates for every step
            assert all(a >= 1 for a in one.again)
            assert min(one.tokens) >= 4


def test_searches_that_are_kept_as_a_whole(tiny):
    from accuracy_vs_budget import solve

    lm, prm = tiny
    assert stopping.shared(11, 3) == (4, 4, 3)
    sure = calibrated(prm)
    for searcher in (
        AdaptiveSampling(6, 0.9, sure, batches=(2, 4), prune_at=(4,)),
        FracturedSampling(2, 2, 2),
    ):
        posterior = searcher.run(solve, "Calculate 4 - 9 + 6.", lm, prm, seed=1)
        name = "adaptive .80" if isinstance(searcher, AdaptiveSampling) else "fractured 4x4x2"
        one = stopping.pool("tiny", name, Asked(), posterior)
        assert sum(one.tokens) == posterior.cost.lm_tokens  # pruned ones and shared ones too
        if name == "adaptive .80":  # the surest is the answer
            assert one.scores == tuple(sorted(one.scores, reverse=True))
            assert max(one.scores) < 1
    point = stopping.replayed([one], name, "vote", lambda one, order: len(order))
    assert point.tokens.tolist() == [sum(one.tokens)]


class Asked:
    key = "p"

    def check(self, answer) -> bool:
        return answer is not None


def calibrated(prm):
    return Calibrated(confidence.WholeText(prm), Platt(0.5, -0.1))


def test_a_cut_thought_is_answered_afresh():
    """In a trace nobody is told to answer; at a cut the rest of the lines is drawn again."""
    lm, prm = search_gain.load(1)
    (problem,) = held_out_problems("queens", 1)
    search = FracturedSampling(2, 2, 2).begin(stopping.may_be_cut, problem, lm, prm, seed=0)
    posterior = search.run()
    places = FracturedSampling.places(posterior)
    assert {depth for _, depth, _ in places.values()} == {1, 2}
    assert all(sample.finished for sample in posterior.samples)
    told = [r for s in posterior.samples for r in s.records if r.name.startswith("answer_")]
    assert {float(r.value) for r in told} == {0.0, 1.0}


def test_tokens_of_a_line_are_those_of_all_its_candidates(tiny):
    from accuracy_vs_budget import solve

    lm, prm = tiny
    for searcher in (BestOfN(3), Gated(3, 3, None)):
        posterior = searcher.run(solve, "Calculate 4 - 9 + 6.", lm, prm, seed=1)
        tokens = [stopping.drawn(posterior, s.node)[0] for s in posterior.samples]
        assert sum(tokens) == pytest.approx(posterior.cost.lm_tokens, abs=3)


def test_samples_of_stories_are_those_of_the_study():
    """All 64 of each story are voted on, weighed and compared as `word_problems.py` does."""
    found = stopping.stories(ROOT / "examples" / "records" / "word-problems.jsonl.gz")
    assert len(found) == 300
    page = (ROOT / "docs" / "stopping.md").read_text(encoding="utf-8")
    rows = [line for line in page.split("```text\n")[2].splitlines() if line.startswith("   64 ")]
    study = (ROOT / "docs" / "real-models.md").read_text(encoding="utf-8")
    _, _, _, best, _, vote, weighted, *_ = re.search(r" best-of-N +64 .*", study)[0].split()
    everyone = np.arange(64)
    for row, family, said in zip(
        rows, ("vote", "weighted", "best"), (vote, weighted, best), strict=True
    ):
        point = stopping.replayed(found, "64", family, lambda one, order: len(order))
        right = np.mean([stopping.chosen(one, everyone, family) for one in found])
        assert point.right.mean() == pytest.approx(right)
        assert 100 * right == pytest.approx(float(said.rstrip("%")), abs=0.15)  # ties
        assert row.split()[2:4] == [f"{point.tokens.mean():.0f}", f"{100 * right:.0f}%"]


def test_the_table_of_the_docs_is_that_of_the_records(capsys):
    points = stopping.main(["--records", str(RECORDS), "--show"])
    printed = "\n".join(line.rstrip() for line in capsys.readouterr().out.splitlines())
    page = (ROOT / "docs" / "stopping.md").read_text(encoding="utf-8")
    block = page.partition("```text\n")[2].partition("\n```")[0]
    assert block.splitlines() == printed.strip("\n").splitlines()
    named = {p.rule: p for p in points if isinstance(p, Point)}
    fixed = next(p for p in points if p.rule == "64" and p.family == "vote")
    # What the page says of them.
    assert named["exact"].right == pytest.approx(fixed.right)
    assert named["exact"].tokens.mean() < fixed.tokens.mean()
    assert named["beta .95"].tokens.mean() < 0.8 * fixed.tokens.mean()
