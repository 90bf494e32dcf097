"""Every Python block of README and docs runs, top to bottom, one namespace per page."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import pytest

from ppl.study import Study

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
# What follows a block there as ```text is what it prints.
SHOWN = {"start.md"}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_code_blocks(page, capsys):
    blocks = FENCE.findall(page.read_text())
    assert "python" in [kind for kind, _ in blocks]
    namespace: dict[str, object] = {"__name__": "__main__"}
    printed = ""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Pyro says so whenever a model with observations is run forward on its own.
        warnings.filterwarnings("ignore", "trying to observe", RuntimeWarning)
        for kind, block in blocks:
            if kind == "python":
                exec(compile(block, str(page), "exec"), namespace)
                printed = capsys.readouterr().out
            elif kind == "text" and page.name in SHOWN:
                assert printed == block


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_blocks_that_are_not_run_are_none_of_python(page, tmp_path):
    """Commands are `sh`, what is printed is `text`, studies are `toml`; others nobody would run."""
    blocks = FENCE.findall(page.read_text())
    assert {kind for kind, _ in blocks} <= {"python", "sh", "text", "toml"}
    for kind, block in blocks:
        if kind == "toml":
            (tmp_path / "study.toml").write_text(block)
            assert Study.read(tmp_path / "study.toml").groups


def anchors(page: Path) -> set[str]:
    """Of a page's headings, as the site and code hosts make them."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.MULTILINE):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        anchor = re.sub(r"[^\w\s-]", "", words).strip().lower()
        assert anchor not in found, f"{page.name}: two headings are {heading!r}"
        found.add(re.sub(r"[\s-]+", "-", anchor))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", page.read_text())):
        target, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        file = page.parent / target if target else page
        assert file.exists(), link
        assert not anchor or anchor in anchors(file), link


def test_how_do_i_answers():
    """Each answer has words; most have code that runs, and none is longer than a screen."""
    page = (ROOT / "docs" / "howto.md").read_text()
    answers = re.split(r"^### ", page, flags=re.MULTILINE)[1:]
    assert len(answers) >= 25
    for answer in answers:
        question, _, said = answer.partition("\n")
        assert question.endswith("?"), question
        assert len(FENCE.sub("", said).split()) >= 8, question
        assert len(said.splitlines()) <= 45, question
    assert sum("```python" in answer for answer in answers) >= 25


@pytest.mark.parametrize(("table", "least"), [("papers.md", 30), ("peers.md", 10)])
def test_the_table_of_papers_names_tests_that_are_there(table, least):
    page = (ROOT / "docs" / table).read_text()
    rows = [line for line in page.splitlines() if line.startswith("|") and ".py" in line]
    assert len(rows) >= least
    file = ""
    for row in rows:
        for name in re.findall(r"`((?:exact/)?test_\w+\.py)?(?:::(test_\w+))?`", row):
            file, test = name[0] or file, name[1]
            if name[0]:
                assert (ROOT / "tests" / file).is_file(), file
            if test:
                assert f"def {test}(" in (ROOT / "tests" / file).read_text(), f"{file}::{test}"
