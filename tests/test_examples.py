"""Examples run at small size."""

from __future__ import annotations

import accuracy_vs_budget
import pytest


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
