"""What a package index shows of README: links and pictures lead to the repository."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def distribution():
    """The script, which is in no package."""
    file = ROOT / "docs" / "site" / "distribution.py"
    spec = importlib.util.spec_from_file_location("distribution", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_links_and_pictures_become_addresses(distribution):
    text = "[a](docs/a.md#b) ![p](docs/p.png) [w](https://w.org/x) [h](#here)"
    found = distribution.absolute(text, "https://r.org/x/", "v1")
    assert found.split() == [
        "[a](https://r.org/x/blob/v1/docs/a.md#b)",
        "![p](https://r.org/x/raw/v1/docs/p.png)",
        "[w](https://w.org/x)",
        "[h](#here)",
    ]


def test_a_picture_that_is_a_link(distribution):
    found = distribution.absolute("[![p](p.png)](docs/a.md)", "https://r.org", "v1")
    assert found == "[![p](https://r.org/raw/v1/p.png)](https://r.org/blob/v1/docs/a.md)"


def test_code_stays_as_it_is(distribution):
    code = "```python\nx = f[0](1)\n```\n"
    assert distribution.absolute(code, "https://r.org", "v1") == code


def test_nothing_relative_is_left_in_readme(distribution):
    readme = (ROOT / "README.md").read_text()
    found = distribution.absolute(readme, "https://r.org/ppl", "v1")
    outside = re.sub(r"^```.*?^```", "", found, flags=re.DOTALL | re.MULTILINE)
    targets = re.findall(r"\]\(([^)\s]+)\)", outside)
    ours = [target for target in targets if target.startswith("https://r.org/ppl/")]
    assert len(ours) > 20
    assert all(target.startswith(("https://", "#")) for target in targets)
    for target in ours:
        path = target.removeprefix("https://r.org/ppl/").partition("/v1/")[2].partition("#")[0]
        assert (ROOT / path).exists(), target
    # Nothing else has changed.
    assert re.sub(r"https://r\.org/ppl/(?:blob|raw)/v1/", "", found) == readme


def test_the_address_stands_in_one_place(distribution):
    stated = '[project]\nversion = "2.1"\n[project.urls]\nRepository = "https://r.org"\n'
    assert distribution.released(stated) == ("https://r.org", "v2.1")
    with pytest.raises(SystemExit, match=r"\[project\.urls\]"):
        distribution.released('[project]\nversion = "2.1"\n')
