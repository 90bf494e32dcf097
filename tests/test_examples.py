"""Examples run at small size."""

from __future__ import annotations

import accuracy_vs_budget
import custom_verifier
import pytest
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


def test_custom_verifiers(capsys):
    custom_verifier.main([])
    printed = capsys.readouterr().out
    assert printed.count("laws kept: declared, numbers, same again, batch") == 3
    assert printed.count("prefix, since") == 2  # not the function, which reads whole texts
    assert "Posterior of SMC" in printed


def test_verifier_calibration(tmp_path, capsys):
    small = ["--problems", "6", "--responses", "3", "--particles", "2", "--out", str(tmp_path)]
    verifier_calibration.main(small)
    printed = capsys.readouterr().out
    for name in ("raw", "temperature", "Platt", "isotonic"):
        assert f"\n{name}: " in printed
        assert f"| {name} | " in printed
    assert (tmp_path / "reliability.png").stat().st_size > 5000
