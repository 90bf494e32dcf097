"""Examples run at small size."""

from __future__ import annotations

import re

import accuracy_vs_budget
import compare_searchers
import custom_verifier
import pytest
import quantile_head
import verifier_calibration


def test_main_job(tmp_path, capsys):
    accuracy_vs_budget.main(["--problems", "2", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    for name in ("BestOfN", "SMC", "BeamSearch", "MCTS"):
        assert printed.count(name) == 3
    assert {p.name for p in tmp_path.iterdir()} == {"accuracy-vs-budget.png", "genealogy.png"}
    assert all(p.stat().st_size > 5000 for p in tmp_path.iterdir())


def test_main_job_has_help(capsys):
    with pytest.raises(SystemExit):
        accuracy_vs_budget.main(["--help"])
    assert "--problems" in capsys.readouterr().out


def test_compare_searchers(tmp_path, capsys):
    compare_searchers.main(["--problems", "1", "--budgets", "2", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    for name in compare_searchers.SEARCHERS:
        assert printed.count(name) >= 1
    assert printed.count("BestOfN ") >= 5  # once plain, four times by noise
    assert (tmp_path / "compare-searchers.png").stat().st_size > 5000


def test_samples_needed_is_read_between_measured_budgets():
    rows = [
        accuracy_vs_budget.Row("x", n, 10, {}, 0, right, 0, 0, 0.0)
        for n, right in ((4, 2), (16, 6))
    ]
    assert compare_searchers.samples_needed(rows, 0.4) == pytest.approx(8)
    assert compare_searchers.samples_needed(rows, 0.1) == 4
    assert compare_searchers.samples_needed(rows, 0.7) == float("inf")


def test_custom_verifiers(capsys):
    custom_verifier.main([])
    printed = capsys.readouterr().out
    assert printed.count("laws kept: declared, numbers, same again, batch") == 3
    assert printed.count("prefix, since") == 2  # not the function, which reads whole texts
    assert "log evidence" in printed


def test_verifier_calibration(tmp_path, capsys):
    small = ["--problems", "6", "--responses", "3", "--particles", "2", "--out", str(tmp_path)]
    verifier_calibration.main(small)
    printed = capsys.readouterr().out
    for name in ("raw", "temperature", "Platt", "isotonic"):
        assert f"\n{name}: " in printed
        assert f"| {name} | " in printed
    assert (tmp_path / "reliability.png").stat().st_size > 5000


def test_quantile_head_learns_from_rollouts(capsys):
    quantile_head.main(["--problems", "6", "--rollouts", "4"])
    printed = capsys.readouterr().out
    raw, fitted = (
        float(re.search(rf"pinball loss, {name}: (\S+)", printed)[1]) for name in ("raw", "fitted")
    )
    assert fitted < 0.7 * raw  # on problems that it was not fitted on
    low, high = (
        float(re.search(rf"by {name}: .* mean (\S+)", printed)[1])
        for name in ("raw probability", "10% quantile")
    )
    assert high > low  # the cautious estimate asks for more
