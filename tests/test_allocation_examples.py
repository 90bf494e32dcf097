"""Examples of allocation: compute-optimal records, solve or verify, imperfect verifiers."""

from __future__ import annotations

import math

import compute_optimal
import imperfect_verifier
import mixed_samples
import numpy as np
import pytest
import solve_or_verify as sv

from ppl.decide.scaling import majority_at_k, pass_at_k
from ppl.verifiers import Sandbox

PAGE = compute_optimal.RECORDS.parents[2] / "docs" / "allocation.md"

# -- solve or verify -------------------------------------------------------------------------------


def pool(right: int, wrong: int, verdicts) -> sv.Pool:
    """Right solutions are of class 0; wrong ones are of classes 1 and 2 in turn."""
    classes = np.array([0] * right + [1 + i % 2 for i in range(wrong)])
    return sv.Pool(classes, classes == 0, np.asarray(verdicts, dtype=float))


def test_perfect_verdicts_give_pass_at_s_at_their_cost(monkeypatch):
    monkeypatch.setattr(sv, "SUBSETS", 4000)
    n, c = 16, 3
    perfect = pool(c, n - c, np.repeat((np.arange(n) < c)[:, None], 32, axis=1))
    sizes = (1, 2, 4, 8, 16)
    _, verified = sv.accuracy(perfect, sizes, 0)
    exact = np.array([pass_at_k(n, c, s) for s in sizes])
    for rule in sv.RULES:
        found = verified[rule]  # [S, V], the same for every V
        assert np.ptp(found, axis=1).max() == 0
        assert np.abs(found[:, 0] - exact).max() < 3.5 * math.sqrt(0.25 / 4000)
    price = sv.cost(sizes, 0.5)
    assert price[2].tolist() == [4 * (1 + 0.5 * v) for v in sv.VERDICTS]
    mean = np.tile(exact[:, None], len(sv.VERDICTS))
    s, v = sv.optimum(mean, price, 7.0)
    assert (sizes[s], sv.VERDICTS[v]) == (4, 1)  # more verdicts only cost


@pytest.mark.parametrize("constant", [0.0, 0.3, 1.0])
def test_constant_verdicts_give_self_consistency(constant):
    useless = pool(5, 7, np.full((12, 32), constant))
    sizes = (1, 3, 5, 12)
    vote, verified = sv.accuracy(useless, sizes, 1)
    assert np.array_equal(verified["weighted"], np.tile(vote[:, None], len(sv.VERDICTS)))
    exact = [majority_at_k(useless.classes.tolist(), useless.right.tolist(), s) for s in sizes]
    assert np.abs(vote - exact).max() < 3.5 * math.sqrt(0.25 / sv.SUBSETS)
    assert vote[-1] == pytest.approx(exact[-1])


def test_zero_is_a_verdict_and_an_unfinished_rationale_is_none():
    """A verdict of 0.0 taken for missing, or a missing one for 0, changes the answer."""
    nan = math.nan
    verdicts = np.array([[0.0, 1.0], [0.4, nan], [nan, nan]])
    assert sv.scores(verdicts, 2) == pytest.approx([0.5, 0.4, 0.45])
    assert sv.scores(verdicts, 1) == pytest.approx([0.0, 0.4, 0.2])
    assert sv.scores(np.full((2, 3), nan), 3).tolist() == [0.5, 0.5]
    # Right 0.6 against a wrong one of (0.0, 1.0): mean .5 loses; if 0.0 were missing, 1 would win.
    decided = sv.Pool(np.array([0, 1]), np.array([True, False]), np.array([[0.6, 0.6], [0.0, 1.0]]))
    _, verified = sv.accuracy(decided, (2,), 0)
    two = sv.VERDICTS.index(2)
    assert verified["best"][0, two] == 1.0


def test_a_verifier_of_chosen_rates_follows_its_law():
    """Best of two by one verdict: p^2 + 2 p (1-p) [T (1-F) + (T F + (1-T)(1-F)) / 2]."""
    t, f = 0.8, 0.3
    pools = sv.scripted(400, 64, (t, f), 0.0, seed=0)
    found = sv.surface(pools, (1, 2))
    one = sv.VERDICTS.index(1)
    outcomes, exact = found.verified["best"][:, 1, one], []
    for each in pools:
        right, n = int(each.right.sum()), len(each.right)
        both = right * (right - 1) / (n * (n - 1))
        split = 2 * right * (n - right) / (n * (n - 1))
        exact.append(both + split * (t * (1 - f) + (t * f + (1 - t) * (1 - f)) / 2))
    error = np.std(outcomes - exact) / math.sqrt(len(exact))
    assert abs(np.mean(outcomes - exact)) < 3 * error
    assert error < 0.01


def test_exponents_of_a_power_law_are_found(monkeypatch):
    """Error S^-a + V^-b at cost S V: S ~ C^(b / (a + b)), V ~ C^(a / (a + b))."""
    sizes = sorted({round(2 ** (k / 4)) for k in range(60)})
    monkeypatch.setattr(sv, "VERDICTS", tuple(sizes))
    a, b = 0.6, 0.4
    errors = np.array(sizes, dtype=float)[:, None] ** -a + np.array(sizes, dtype=float) ** -b
    price = np.outer(sizes, sizes).astype(float)
    budgets = [2.0**k for k in range(4, 14)]
    s, v = sv.exponents(1 - errors, price, sizes, budgets)
    assert s == pytest.approx(0.4, abs=0.04)
    assert v == pytest.approx(0.6, abs=0.04)


def test_solve_or_verify(tmp_path, capsys):
    said = sv.main(["--out", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "lambda = 1.44" in printed
    assert len(said) == 2
    assert (tmp_path / "solve-or-verify.png").stat().st_size > 5000
    small = ["--scripted", "--problems", "20", "--lam", "1", "--out", str(tmp_path)]
    assert sv.main(small) == sv.main(small)


# -- imperfect verifiers ---------------------------------------------------------------------------


def test_resampling_ends_at_the_ceiling():
    """Programs are really run; then the simulation and the closed forms agree."""
    tasks = imperfect_verifier.make(2, 1, Sandbox(isolation="process"))
    rng, runs = np.random.default_rng(0), 6000
    for task in tasks:
        assert task.strong[0]
        assert task.weak[task.strong].all()  # the weak suite asks less
        assert (task.weak & ~task.strong).any()  # and lets mistakes pass
        shares, law = imperfect_verifier.resample(task, 12, runs, rng), task.law
        assert law.completeness == pytest.approx(1.0)
        for k in (1, 4, 12):
            exact = np.array(law.outcome(k))
            error = np.sqrt(exact * (1 - exact) / runs)
            assert (np.abs(shares[k] - exact) < 3.5 * error + 1e-9).all()
        r, s = law.success[0], law.soundness
        assert law.ceiling == pytest.approx(r / (r + (1 - r) * (1 - s)))
        found = imperfect_verifier.counted(task, 4000, rng)
        assert found.rate == pytest.approx(1 - s, abs=0.08)


def test_imperfect_verifier(tmp_path, capsys):
    small = ["--tasks", "2", "--runs", "200", "--attempts", "8", "--isolation", "process"]
    imperfect_verifier.main([*small, "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    assert printed.count("a wrong one costs") == 3
    assert (tmp_path / "imperfect-verifier.png").stat().st_size > 5000


# -- compute-optimal -------------------------------------------------------------------------------


def test_records_of_the_study(tmp_path, capsys):
    found = compute_optimal.main(["--out", str(tmp_path)])
    printed = capsys.readouterr().out
    assert printed.count("tokens") == 2 * 3 * 4
    # What docs/allocation.md says: no gain out of fold, whatever it looks like in sample.
    page = PAGE.read_text()
    for tables in found.values():
        for policy in tables.values():
            assert policy.questions == 120
            assert all(at.gain < 2 * at.error + 1e-9 for at in policy.at)
        for at in tables["oracle bins, free"].at[1:]:
            assert f"| {100 * at.gain:.1f} ± {100 * at.error:.1f} |" in page
        for at in tables["predicted bins, 4 samples, paid"].at[1:]:
            assert f"| {100 * at.gain:.1f} ± {100 * at.error:.1f} | 0.0 |" in page
        margin = tables["the same with a margin of 2"]
        assert [at.gain for at in margin.at[1:]] == [0.0, 0.0]
    assert (tmp_path / "compute-optimal.png").stat().st_size > 5000
    kept = compute_optimal.kept(compute_optimal.RECORDS)
    compute_optimal.keep(kept, tmp_path / "again.gz")
    assert compute_optimal.kept(tmp_path / "again.gz") == kept
    compute_optimal.main(["--study"])
    assert 'searchers = ["SMC(4)"' in capsys.readouterr().out


# -- mixed samples ---------------------------------------------------------------------------------


def test_a_mix_of_temperatures(tmp_path, capsys):
    found = mixed_samples.main([])
    printed = capsys.readouterr().out
    page = PAGE.read_text()
    for m in found:
        assert printed.count(f"{100 * m.coverage:.1f}") >= 1
        row = next(line for line in page.splitlines() if line.startswith(f"| {m.size} | 1 /"))
        assert f"| {100 * m.coverage:.1f} | {100 * m.single_coverage:.1f} |" in row
        assert f"| {100 * m.vote:.1f} | {100 * m.single_vote:.1f} |" in row
        assert sum(m.counts) == m.size
        assert m.coverage > m.vote
    samples = mixed_samples.kept(mixed_samples.RECORDS)
    mixed_samples.keep(samples, tmp_path / "again.gz")
    assert np.array_equal(mixed_samples.kept(tmp_path / "again.gz").classes, samples.classes)
    mixed_samples.main(["--study"])
    assert '[programs."T=1.3 p=0.8"]' in capsys.readouterr().out
