"""Examples run at small size."""

from __future__ import annotations

import json
import re
from pathlib import Path

import accuracy_vs_budget
import agents_of_models
import backward_checks
import choosing_answers
import compare_searchers
import custom_verifier
import numpy as np
import pytest
import quantile_head
import scaling_flaws
import search_gain
import self_steering
import training_rows
import verifier_calibration
from bubblewrap import needs_bubblewrap

ROOT = Path(__file__).parents[1]


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
    small = ["--problems", "1", "--budgets", "2", "--records", str(tmp_path / "r.jsonl")]
    small += ["--out", str(tmp_path), "--workers", "1"]
    rows = compare_searchers.main(small)
    printed = capsys.readouterr().out
    for name in compare_searchers.SEARCHERS:
        assert printed.count(name) >= 1
    assert "for the vote of SMC(2), BestOfN needs" in printed
    assert (tmp_path / "compare-searchers.png").stat().st_size > 5000
    assert compare_searchers.main([*small, "--show"]) == rows
    assert capsys.readouterr().out == printed


def test_samples_needed_is_read_between_measured_budgets():
    points = [(16, 0.6), (4, 0.2)]
    assert compare_searchers.samples_needed(points, 0.4) == pytest.approx(8)
    assert compare_searchers.samples_needed(points, 0.1) == 4
    assert compare_searchers.samples_needed(points, 0.7) == float("inf")


def test_savings_have_an_interval_over_problems():
    def row(name, n, right):
        rights = tuple(i < right for i in range(100))
        return search_gain.Row("all", name, n, rights, rights, 0, 0, 0.0)

    rows = [row("SMC", 4, 50), row("BestOfN", 4, 40), row("BestOfN", 16, 60)]
    needed, low, high = compare_searchers.savings(rows, 4, "BestOfN")
    assert needed == pytest.approx(8)
    assert 4 <= low < 8 < high <= 16


def test_leads_are_counted_on_the_same_problems():
    def search(problem, name, n, best):
        return scaling_flaws.Found(
            "chain", problem, "none", name, n, best, best, best, best, 1, 1.0, 10
        )

    said = {("BestOfN", 4): "100", ("SMC", 4): "111", ("BestOfN", 64): "110", ("SMC", 64): "101"}
    found = [
        search(problem, name, n, right == "1")
        for (name, n), rights in said.items()
        for problem, right in zip("abc", rights, strict=True)
    ]
    few, many, change = scaling_flaws.leads(found[::-1], "none", "SMC")
    assert (few.wins, few.losses, few.difference) == (2, 0, pytest.approx(2 / 3))
    assert (many.wins, many.losses, many.p) == (1, 1, 1.0)
    assert change.difference == pytest.approx(-2 / 3)
    assert scaling_flaws.leads(found, "none", "REBASE") is None


def test_the_page_on_choosing_says_what_the_records_say():
    page = (ROOT / "docs" / "choosing.md").read_text()
    kept = ROOT / "examples" / "records"
    found = scaling_flaws.records(kept / "scaling-flaws.jsonl.gz")
    assert {len(scaling_flaws.rights(found, "sd 4", name, 256)) for name in ("SMC", "VGB")} == {60}
    lines = scaling_flaws.leads_markdown(found)
    shown = [
        line for line in lines if line.split(" | ")[0] in ("| SMC", "| BeamSearch", "| REBASE")
    ]
    assert len(shown) == 12
    for line in [*shown, *scaling_flaws.crossings_markdown(found), *scaling_flaws.markdown(found)]:
        assert line in page
    rows = search_gain.pooled(compare_searchers.records(kept / "compare-searchers.jsonl"))
    table = page.partition("### Long problems, every searcher")[2].partition("\n###")[0]
    for name in {row.searcher for row in rows}:
        mine = {row.n: row for row in rows if row.searcher == name}
        cells = next(x for x in table.split("\n") if x.startswith(f"| {name} |")).split(" | ")
        for i, n in enumerate((4, 16, 64)):
            assert cells[1 + i].startswith(f"{sum(mine[n].vote) / 60:.0%} (")
            assert cells[4 + i] == f"{sum(mine[n].best) / 60:.0%}"
        assert cells[7].rstrip(" |") == f"{mine[64].lm_tokens / 60:,.0f}"


def test_a_run_goes_on_from_its_records_and_shows_them_again(tmp_path, capsys, monkeypatch):
    kept = tmp_path / "rows.jsonl"
    asked = []

    def measured(task, name, n, count, seed):
        asked.append((task, name, n))
        return search_gain.Row(task, name, n, (True, False), (True, True), 10, 20, 0.5)

    monkeypatch.setattr(search_gain, "measured", measured)
    first = search_gain.measure(2, (4,), 0, ("BestOfN",), kept=kept)
    with kept.open("a") as file:
        file.write('{"task": "chain", "sea')  # cut off
    assert search_gain.records(kept) == first
    rows = search_gain.measure(2, (4,), 0, ("BestOfN", "SMC"), kept=kept)
    assert len(asked) == 6
    assert len(set(asked)) == 6
    assert search_gain.ordered(search_gain.records(kept)) == rows
    with pytest.raises(SystemExit, match="2 problems a task, not of 3"):
        search_gain.measure(3, (4,), 0, ("BestOfN", "SMC"), kept=kept)
    monkeypatch.setattr(search_gain, "measured", None)
    shown = search_gain.main(["--records", str(kept), "--show", "--out", str(tmp_path)])
    assert shown == rows
    assert "50%" in capsys.readouterr().out


def test_scaling_flaws(tmp_path, capsys):
    small = ["--problems", "1", "--budgets", "4", "--records", str(tmp_path / "r.jsonl")]
    small += ["--out", str(tmp_path), "--workers", "1", "--noises", "sd 2", "sd 4, lasting"]
    small += ["--searchers", "BestOfN", "sampled beams", "tempered SMC", "VGB"]
    found = scaling_flaws.main(small)
    printed = capsys.readouterr().out
    assert len(found) == 3 * 2 * 4
    assert all(f.any or not (f.best or f.vote) for f in found)
    assert all((f.reached == 1) or not f.any for f in found)
    assert all(1 <= f.ancestors <= (4 if f.searcher != "VGB" else 64) for f in found)
    again = scaling_flaws.main([*small, "--show"])
    assert again == found
    assert capsys.readouterr().out == printed
    assert (tmp_path / "scaling-flaws.png").stat().st_size > 5000


def test_the_page_says_what_the_stored_run_of_scaling_flaws_says():
    root = Path(__file__).parents[1]
    found = scaling_flaws.records(root / "examples" / "records" / "scaling-flaws.jsonl.gz")
    page = (root / "docs" / "choosing.md").read_text()
    lines = scaling_flaws.markdown(found)
    assert len(lines) == 7 * 5
    for line in lines:
        assert line in page


@pytest.mark.parametrize(
    ("advantage", "paths", "share"),
    [(1, 2, 0.760), (1, 4, 0.552), (1, 16, 0.261), (1, 64, 0.111), (2, 4, 0.823), (2, 64, 0.381)],
)
def test_more_paths_bury_the_valid_one_under_noise(advantage, paths, share):
    assert scaling_flaws.ranked_first(advantage, paths) == pytest.approx(share, abs=6e-4)
    rng = np.random.default_rng(0)
    scores = rng.standard_normal((40_000, paths))
    scores[:, 0] += advantage
    assert np.mean(scores.argmax(1) == 0) == pytest.approx(share, abs=0.01)


def test_choosing_answers(capsys):
    choosing_answers.main(["--problems", "4", "--samples", "4"])
    printed = capsys.readouterr().out
    for name in (*choosing_answers.RULES, "set aggregator"):
        assert f"  {name} " in printed
    assert "AURC" in printed
    assert printed.count("hold the right one") == 3
    assert re.search(r"coverage of 4 samples, forecast from 2: Beta-binomial \d", printed)


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


def test_training_rows(tmp_path, capsys):
    small = ["--problems", "2", "--drafts", "4", "--answers", "9", "--simulations", "6"]
    rows = training_rows.main([*small, "--seed", "1", "--out", str(tmp_path)])
    assert {f"{name}.jsonl" for name in rows} == {path.name for path in tmp_path.iterdir()}
    for name, written in rows.items():
        read = (tmp_path / f"{name}.jsonl").read_text().splitlines()
        assert [json.loads(line) for line in read] == written
    assert rows["step-labels"]
    for row in (*rows["refinements-bfs"], *rows["refinements-dfs"]):
        assert row["chosen_score"] > training_rows.CONTENT >= row["rejected_score"]
        assert row["chosen"] != row["rejected"]
    assert "are doubted" in capsys.readouterr().out


def test_backward_checks(capsys):
    """Every different answer is asked about once: what the habit of a slip hides stays hidden."""
    small = ["--questions", "3", "--particles", "6", "--samples", "1", "--repeats", "1"]
    right = backward_checks.main(small)
    assert {"one sample", "vote", "FOBAR, alpha 0.5", "FOBAR, alpha 0"} <= right.keys()
    assert all(0 <= share <= 1 for share in right.values())
    printed = capsys.readouterr().out
    candidates, particles = map(int, re.findall(r"paid for (\d+).*for (\d+),", printed)[0])
    assert 3 <= candidates < particles == 18


def test_agents_of_models(capsys):
    found = agents_of_models.main(["--runs", "6", "--noise", "0", "--skill", "0.9"])
    printed = capsys.readouterr().out
    assert found["iterative, 2 rounds"] == 1  # in closed form, without noise
    rows = {line[:22].strip(): line[22:].split() for line in printed.splitlines()[1:]}
    assert float(rows["mixture of agents"][2]) == 5
    assert float(rows["best of 3"][1]) == 3


@needs_bubblewrap
def test_self_steering_example(capsys):
    (shares,) = self_steering.main(["--count", "1", "--particles", "4"])
    printed = capsys.readouterr().out
    assert shares["smc"] == shares["is"] == shares["rejection"] == 1
    assert printed.count("mended: site 'step_0.0' of particle") == 3


@pytest.mark.parametrize(
    ("obeys", "text", "right"),
    [
        (self_steering.three_sentences, "It is. Waves come! They go.", True),
        (self_steering.three_sentences, "It is. They come! Waves go.", False),
        (self_steering.without_e, "A ship is on its way.", True),
        (self_steering.without_e, "The ship is on its way.", False),
        (self_steering.six_words, "It was a dark and stormy night.", False),
        (self_steering.six_words, "It was a dark, cold night.", True),
    ],
)
def test_the_checkers_that_planners_do_not_know(obeys, text, right):
    assert obeys(text) is right
