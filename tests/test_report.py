"""The report of made-up runs: reading, lines, comparisons, halves, and every format."""

from __future__ import annotations

import csv
import hashlib
import html.parser
import io
import json
import math
import re
import shutil
import subprocess
from xml.etree import ElementTree as ET

import made_runs
import numpy as np
import pytest
from made_runs import candidate, result
from rich.console import Console

from ppl.errors import ArgumentError, StudyError
from ppl.study.compare import differences
from ppl.study.halves import choose_rules, choose_threshold, half
from ppl.study.report import FORMATS, read, report
from ppl.study.report_plots import _ticks, curves
from ppl.study.selection import RULES
from ppl.study.tables import family, sections

BY_NAME = {rule.name: rule for rule in RULES}
pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return made_runs.study(tmp_path_factory.mktemp("runs") / "made", questions=16, largest=16)


@pytest.fixture(scope="module")
def made(folder, tmp_path_factory):
    return report(folder, out=tmp_path_factory.mktemp("out"))


@pytest.fixture(scope="module")
def section(folder):
    (found,) = sections(read(folder))
    return found


def files(made):
    return {path.name: path for path in made.files}


# -- reading -------------------------------------------------------------------------------------


def test_what_was_written_is_read(folder):
    runs = read(folder)
    lines = (folder / "results.jsonl").read_text().splitlines()
    assert [row.cell for row in runs.rows] == [json.loads(line)["cell"] for line in lines]
    first = json.loads(lines[0])
    row = runs.rows[0]
    assert (row.problem, row.n, row.rights, row.cost) == (
        first["problem"],
        first["n"],
        first["rights"],
        first["cost"],
    )
    assert len(runs.candidates[row.cell]) == row.n
    assert sum(r.error is not None for r in runs.rows) == 1
    assert not runs.torn


def test_a_torn_last_line_is_a_run_that_goes_on(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "going")
    for name in ("results.jsonl", "candidates.jsonl"):
        path = tmp_path / "going" / name
        path.write_bytes(path.read_bytes()[:-20])
    runs = read(tmp_path / "going")
    assert len(runs.rows) == len(read(folder).rows) - 1
    assert len(runs.torn) == 2
    again = report(tmp_path / "going")
    assert any("going on" in line for line in again.head)


def test_shards_are_one_study_and_doubles_count_once(folder, tmp_path):
    lines = (folder / "results.jsonl").read_text().splitlines(keepends=True)
    for name, part in (("a", lines[:30]), ("b", lines[20:])):
        shutil.copytree(folder, tmp_path / name)
        (tmp_path / name / "results.jsonl").write_text("".join(part))
    runs = read(tmp_path / "a", tmp_path / "b")
    whole = read(folder)
    assert runs.rows == whole.rows
    assert runs.doubled == 10
    assert runs.candidates == whole.candidates


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("{", "line 1 is no JSON"),
        ("[]", "line 1 is no JSON object"),
        ('{"cell": "a"}', "line 1: task is missing"),
        (json.dumps({**result("q", "SMC(4)", 4), "n": "4"}), "line 1: n '4'"),
        (json.dumps({**result("q", "SMC(4)", 4), "right": 1}), "line 1: right 1"),
        (json.dumps({**result("q", "SMC(4)", 4), "rights": {"best": "yes"}}), "best 'yes'"),
    ],
)
def test_what_is_no_row_is_refused_by_file_and_line(tmp_path, line, named):
    (tmp_path / "results.jsonl").write_text(line + "\n")
    with pytest.raises(StudyError, match=r"results\.jsonl, " + re.escape(named) + "|" + named):
        read(tmp_path)


@pytest.mark.parametrize("told", [{"format": "other"}, {"format": "ppl-study", "version": 99}])
def test_an_unknown_format_is_refused_by_name(folder, tmp_path, told):
    shutil.copytree(folder, tmp_path / "new")
    (tmp_path / "new" / "config.json").write_text(json.dumps(told))
    with pytest.raises(StudyError, match=f"'?{list(told.values())[-1]}'?"):
        read(tmp_path / "new")
    (tmp_path / "new" / "config.json").write_text('{"format": "ppl-study", "version": 1}')
    assert read(tmp_path / "new").rows


def test_folders_and_arguments_are_refused_by_name(folder, tmp_path):
    for call, named in (
        (read, "folders: none"),
        (lambda: read(tmp_path), "folders: .* holds no run"),
        (lambda: report(folder, formats=["pdf"]), "formats='pdf'"),
        (lambda: report(folder, baseline="SMC(3)"), r"baseline='SMC\(3\)'"),
        (lambda: report(folder, seed=0.5), "seed=0.5"),
    ):
        with pytest.raises((ArgumentError, ValueError), match=named):
            call()
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ArgumentError, match="folders: no results yet"):
        report(tmp_path)


# -- lines ---------------------------------------------------------------------------------------


def test_at_full_size_a_rule_is_what_the_searcher_itself_answered(folder, section):
    """The stored right of best and of the vote, question by question."""
    runs = read(folder)
    stored = {row.problem: row for row in runs.rows if row.searcher == "BestOfN(16)"}
    for name, rule in (("best", "best"), ("vote", "weighted vote")):
        line = section.pools.line(BY_NAME[rule], 16)
        for question, outcome, cost in zip(line.questions, line.outcomes, line.spent, strict=True):
            row = stored[question]
            assert outcome == float(row.rights[name] is True)
            assert cost.flops == pytest.approx(row.cost["flops"])
            assert cost.verifier_tokens == pytest.approx(row.cost["verifier_tokens"])


@pytest.mark.parametrize(
    ("weights", "vote"), [((0.0, -1.0, -2.0), "weighted vote"), ((0.0, 0.0, -math.inf), "vote")]
)
def test_a_name_is_one_rule_in_every_line(tmp_path, weights, vote):
    """A posterior's vote is by weight; where all weigh alike it is the plain one."""
    rows, pools = [], {}
    for searcher, some in (
        ("SMC(3)", weights),
        ("BestOfN(2)", (0.0, 0.0)),
        ("BestOfN(3)", weights),
    ):
        rows.append(result("q", searcher, len(some), rights={"best": True, "vote": True}))
        pools[rows[-1]["cell"]] = [
            candidate(answer, log_weight=w) for answer, w in zip("122", some, strict=False)
        ]
    (section,) = sections(read(made_runs.write(tmp_path / "run", rows, pools)))
    own = {line.name for line in section.lines if not line.reselected}
    assert own == {f"{s}, {rule}" for s in ("SMC(3)", "BestOfN(2)") for rule in ("best", vote)}


def test_a_curve_is_of_means_or_of_runs_as_they_were(tmp_path):
    rows, pools = [], {}
    for searcher, n, budget in (
        ("BestOfN(4)", 4, None),
        ("BestOfN(2)", 2, None),
        ("BestOfN(3)", 3, {"tokens": 20}),
    ):
        rows.append(result("q", searcher, n, budget=budget))
        pools[rows[-1]["cell"]] = [
            candidate(str(i), scores=[0.9 - 0.1 * i], log_weight=-0.1 * i) for i in range(n)
        ]
    (section,) = sections(read(made_runs.write(tmp_path / "run", rows, pools)))
    drawn = {curve.name: curve.lines for curve in curves(section)}
    assert {line.reselected for line in drawn["BestOfN, best"]} == {True}
    assert [line.n for line in drawn["BestOfN, best"]] == [1, 2, 4]
    assert [line.name for line in drawn["BestOfN, best (limited)"]] == [
        "BestOfN(3) ≤ 20 tokens, best"
    ]


def test_failed_searches_count_as_not_right(folder, section):
    (failed,) = [row for row in read(folder).rows if row.error is not None]
    lines = [x for x in section.lines if x.errors]
    assert {line.searcher for line in lines} == {failed.searcher}
    for line in lines:
        assert len(line.questions) == 16
        assert line.outcomes[line.questions.index(failed.problem)] == 0.0
    assert any("1 of" in note and "failed" in note for note in section.notes)


def test_limits_make_no_independent_samples(tmp_path):
    rows = [
        result(f"q{i}", "BestOfN(2)", 2, budget={"tokens": 20}, stopped="budget") for i in range(3)
    ]
    pools = {row["cell"]: [candidate("1"), candidate("2")] for row in rows}
    (section,) = sections(read(made_runs.write(tmp_path / "run", rows, pools)))
    assert section.pools is None
    assert [line.name for line in section.lines] == ["BestOfN(2) ≤ 20 tokens, best"]
    assert any("limit" in note for note in section.notes)


def test_seeds_are_means_and_questions_the_unit(tmp_path):
    rows = [
        result("q", "SMC(2)", 2, seed=seed, rights={"best": right})
        for seed, right in enumerate((True, False, True, None))
    ]
    (section,) = sections(read(made_runs.write(tmp_path / "run", rows, {})))
    (line,) = section.lines
    assert (line.accuracy, line.outcomes.tolist(), line.unreadable) == (0.5, [0.5], 1)
    assert line.tokens_per_right == pytest.approx((20 + 5 + 24) / 0.5)


@pytest.mark.parametrize(
    ("searcher", "name"),
    [
        ("SMC(16)", "SMC"),
        ("SMC(num_particles=16)", "SMC"),
        ("SMC(16, ess_threshold=0.3)", "SMC(ess_threshold=0.3)"),
        ("BeamSearch(4, 4)", "BeamSearch"),
        ("X(16, values=(1, 2), y=3)", "X(values=(1, 2), y=3)"),
        ("odd", "odd"),
    ],
)
def test_sizes_of_one_searcher_make_a_curve(searcher, name):
    assert family(searcher, 16) == name


# -- comparisons and choices ---------------------------------------------------------------------


def test_the_baseline_spends_what_the_line_does(section):
    found = differences(section)
    assert all(d.baseline == "vote" for d in found)
    inside = [d for d in found if d.paired is not None]
    assert len(inside) > 5
    for d in inside:
        assert d.equal
        assert d.paired.difference == pytest.approx(
            d.line.accuracy - _vote_at(section, d.k), abs=1e-9
        )
    # Whoever reads with a verifier pays for it: the vote has more candidates then.
    best = next(d for d in inside if d.line.rule == "best" and d.line.n == 4)
    assert best.k > 5
    largest = next(d for d in found if d.line.rule == "best" and d.line.n == 16)
    assert largest.paired is None  # the stored candidates do not cost as much


def _vote_at(section, k):
    low = min(int(k), section.pools.n - 1)
    at = [section.pools.line(BY_NAME["vote"], n).accuracy for n in (low, low + 1)]
    return (1 - (k - low)) * at[0] + (k - low) * at[1]


def test_a_searcher_may_be_the_baseline(section):
    found = differences(section, "SMC(16)")
    assert {d.baseline for d in found} == {"SMC(16), best"}
    own = [d for d in found if not d.line.reselected]
    names = {"SMC(16), weighted vote", "SMC(4), best", "SMC(4), weighted vote"}
    assert {d.line.name for d in own} == names
    assert all(d.paired.test == "McNemar" for d in own)
    other = next(d for d in own if d.line.searcher == "SMC(4)")
    assert not other.equal
    assert other.ratio < 0.5
    again = [d for d in found if d.line.reselected and d.paired is not None]
    assert again
    assert all(d.equal for d in again)


def test_halves_are_by_hash_and_apart(section):
    assert half("gsm8k/17") == hashlib.sha256(b"gsm8k/17").digest()[0] // 128
    sides = [half(f"q/{i}") for i in range(2000)]
    assert 900 < sum(sides) < 1100
    chosen = choose_rules(section.pools)
    assert [c.k for c in chosen] == [2, 4, 8, 16]
    questions = list(section.pools.members)
    other = [i for i, q in enumerate(questions) if half(q) == 1]
    for c in chosen:
        assert c.questions == (16 - len(other), len(other))
        if c.draws is None:
            outcomes = section.pools.line(BY_NAME[c.rule], c.k).outcomes
            assert c.accuracy == pytest.approx(outcomes[other].mean())
        assert c.low <= c.accuracy <= c.high


def test_rules_of_noise_gain_nothing_on_the_other_half(tmp_path):
    """Choosing pays on the half it is done on, and on the other it is a coin."""
    rng = np.random.default_rng(5)
    rows, pools = [], {}
    for q in range(160):
        rows.append(result(f"q{q}", "BestOfN(2)", 2))
        pools[rows[-1]["cell"]] = [
            candidate(
                str(1 + int(rng.integers(2))), scores=rng.random(3).tolist(), log_prob=-rng.random()
            )
            for _ in range(2)
        ]
    (section,) = sections(read(made_runs.write(tmp_path / "run", rows, pools)))
    (chosen,) = choose_rules(section.pools)
    assert chosen.tried > 5
    assert chosen.seen > 0.5
    assert abs(chosen.accuracy - 0.5) < 3 * math.sqrt(0.25 / chosen.questions[1])
    assert chosen.seen == max(
        section.pools.line(rule, 2).outcomes[[half(f"q{q}") == 0 for q in range(160)]].mean()
        for rule in section.pools.rules
        if rule.real
    )


def test_the_threshold_answers_where_candidates_agree(tmp_path):
    """Questions on which all agree are right, and those on which half does are wrong."""
    rows, pools = [], {}
    for q in range(40):
        rows.append(result(f"q{q}", "BestOfN(4)", 4))
        answers = "1111" if q % 2 else "2234"
        pools[rows[-1]["cell"]] = [candidate(a) for a in answers]
    (section,) = sections(read(made_runs.write(tmp_path / "run", rows, pools)))
    found = choose_threshold(section.pools)
    other = [q for q in range(40) if half(f"q{q}") == 1]
    share = sum(q % 2 for q in other) / len(other)
    assert (found.threshold, found.accuracy) == (1.0, 1.0)
    assert found.answered == pytest.approx(share)
    assert found.utility == pytest.approx(share)
    assert found.always == pytest.approx(2 * share - 1)


# -- formats -------------------------------------------------------------------------------------


def test_every_format_is_written_and_the_same_again(made, folder, tmp_path):
    assert set(files(made)) == {
        "accuracy.png",
        "accuracy.svg",
        "report.md",
        "lines.csv",
        "differences.csv",
        "chosen.csv",
        "report.html",
    }
    again = files(report(folder, out=tmp_path))
    for name, path in files(made).items():
        assert path.read_bytes() == again[name].read_bytes(), name
    only = report(folder, out=tmp_path / "few", formats=["md"])
    assert [path.name for path in only.files] == ["report.md"]
    assert "![" not in (tmp_path / "few" / "report.md").read_text()
    assert report(folder).files == ()
    assert set(FORMATS) == {"md", "csv", "png", "svg", "html"}


def test_numbers_are_in_the_files(made):
    rows = list(csv.DictReader(io.StringIO(made.csv)))
    lines = [line for each in made.results for line in each.section.lines]
    assert len(rows) == len(lines)
    for row, line in zip(rows, lines, strict=True):
        assert float(row["accuracy"]) == line.accuracy
        assert float(row["tokens"]) == line.cost.tokens
        assert float(row["low"]) <= line.accuracy <= float(row["high"])
    best = next(x for x in lines if x.rule == "best" and x.n == 16 and x.reselected)
    text = files(made)["report.md"].read_text()
    assert f"{100 * best.accuracy:.1f}" in text
    assert "![Accuracy against tokens](accuracy.png)" in text
    widths = {line.count("|") - line.count("\\|") for line in text.split("### ")[1].splitlines()
              if line.startswith("|")}  # fmt: skip
    assert len(widths) == 1
    assert "CHOSEN on one half" in text
    assert "REPORTED on the other" in text
    found = list(csv.DictReader(io.StringIO(files(made)["differences.csv"].read_text())))
    assert {row["baseline"] for row in found} == {"vote"}
    assert any(row["difference"] for row in found)
    assert files(made)["chosen.csv"].read_text().count("\n") == 1 + 4


def test_the_terminal_shows_it(made):
    console = Console(width=140, file=io.StringIO(), record=True)
    console.print(made)
    text = console.export_text()
    for word in ("oracle", "random", "majority of the bests", "N=16", "SMC(16)", "McNemar"):
        assert word in text
    narrow = Console(width=80, file=io.StringIO(), record=True)
    narrow.print(made)
    text = narrow.export_text()
    assert "columns are left out here" in text
    lines = [line for line in text.splitlines() if line.startswith("SMC(4)    best")]
    assert re.search(r" \d+\.\d +\d+\.\d … \d+\.\d ", lines[0])


def test_pictures_are_pictures(made):
    assert files(made)["accuracy.png"].read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    text = files(made)["accuracy.svg"].read_text()
    root = ET.fromstring(text)
    assert root.tag.endswith("svg")
    words = {"".join(e.itertext()).strip() for e in root.iter() if e.tag.endswith("text")}
    assert {"oracle", "random", "BestOfN, vote", "SMC, best"} <= words
    assert "currentColor" in text
    assert "#010203" not in text


@pytest.mark.parametrize(
    "tokens", [(744, 813), (11, 12), (0.5, 0.5), (53, 724), (10, 10_000), (3, 3e7)]
)
def test_an_axis_has_marks_to_read_between(tokens):
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    axes.set_xscale("log")
    _ticks(axes, tokens)
    low, high = axes.get_xlim()
    assert low <= min(tokens) <= max(tokens) <= high
    places = [place for place in axes.get_xticks() if low <= place <= high]
    assert 3 <= len(places) <= 10
    assert len({label.get_text() for label in axes.get_xticklabels()}) == len(places)


class Page(html.parser.HTMLParser):
    """What a page is made of."""

    def __init__(self):
        super().__init__()
        self.tags, self.ids, self.open, self.links = [], [], [], []

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.tags.append(tag)
        self.ids += [found["id"]] if "id" in found else []
        self.links += [v for k, v in attrs if k in ("src", "href", "xlink:href") and v]
        if tag in ("table", "tr", "section", "svg", "details", "script", "style"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if self.open and self.open[-1] == tag:
            self.open.pop()


def test_the_page_needs_nothing_else(tmp_path):
    rows, pools = [], {}
    for task in ("a & b", "<script>c"):
        for q in range(4):
            rows.append(result(f"{task}/{q}", "BestOfN(2)", 2, task=task))
            pools[rows[-1]["cell"]] = [candidate("1"), candidate(str(q))]
    text = report(made_runs.write(tmp_path / "run", rows, pools)).html
    page = Page()
    page.feed(text)
    assert not page.open
    assert page.tags.count("svg") == 2
    assert len(set(page.ids)) == len(page.ids)
    assert page.links
    assert all(link.startswith("#") and link[1:] in page.ids for link in page.links)
    assert not re.findall(r"url\(#(?!p\d)", text)
    assert page.tags.count("script") == 1
    assert "prefers-color-scheme: dark" in text


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium here")
def test_a_browser_shows_it_and_sorts_its_tables(made, tmp_path):
    page = made.html.replace(
        "</body>",
        """<script>
        const head = [...document.querySelectorAll("th")].find(h => h.textContent === "% right");
        head.click();
        const cells = [...head.closest("table").tBodies[0].rows].map(
          r => parseFloat(r.cells[head.cellIndex].textContent.replace("~", "")));
        document.getElementById("theme").click();
        document.title = JSON.stringify([cells, document.documentElement.dataset.theme]);
        </script></body>""",
    )
    path = tmp_path / "page.html"
    path.write_text(page)
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += [f"--user-data-dir={tmp_path / 'browser'}", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=True)
    title = re.search(r"<title>(.*?)</title>", done.stdout)
    cells, theme = json.loads(html.unescape(title[1]))
    assert len(cells) > 10
    assert cells == sorted(cells, reverse=True)
    assert theme in ("light", "dark")
