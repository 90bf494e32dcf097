"""The documentation as a site: it builds without a warning, and misses no public name."""

from __future__ import annotations

import ast
import html.parser
import importlib
import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("mkdocs")
pytest.importorskip("material")
pytest.importorskip("mkdocstrings_handlers.python")

ROOT = Path(__file__).parent.parent
CONFIG = ROOT / "docs" / "site" / "mkdocs.yml"


@pytest.fixture(scope="module")
def pages() -> ModuleType:
    """The hook that makes pages."""
    spec = importlib.util.spec_from_file_location("site_pages", CONFIG.parent / "pages.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site. Strict: a link, an anchor or a page that leads nowhere ends it."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet"]
    command += ["--config-file", str(CONFIG), "--site-dir", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


class Parsed(html.parser.HTMLParser):
    """What a page defines, leads to and loads."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.ids |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        if tag == "link" and given.get("rel") not in ("canonical", "prev", "next"):
            self.loaded.append(given.get("href", ""))
        if tag in ("script", "img", "iframe") and given.get("src"):
            self.loaded.append(given["src"])


@pytest.fixture(scope="module")
def parsed(site) -> dict[Path, Parsed]:
    return {page: Parsed(page) for page in site.rglob("*.html")}


def test_every_public_name_is_in_the_reference(pages, site, parsed):
    for reference in pages.references():
        members = reference.members()
        assert members
        ids = parsed[site / "api" / f"{reference.page}.html"].ids
        assert not set(members) - ids, f"api/{reference.page}: not documented"


def test_every_public_module_has_a_page(pages):
    known = {reference.module for reference in pages.references()}
    assert {"ppl", "ppl.errors", "ppl.searchers", "ppl.verifiers", "ppl.tasks"} <= known
    for init in (ROOT / "ppl").glob("*/__init__.py"):
        module = f"ppl.{init.parent.name}"
        assert (module in known) == (module not in pages.INSIDE and bool(pages.exports(module)))
    searchers = importlib.import_module("ppl.searchers")
    assert pages.exports("ppl.searchers") == searchers.__all__  # read without importing it


def test_classes_and_functions_say_what_they_are(pages):
    for reference in pages.references():
        for name in reference.members():
            what = pages._target(name)
            assert pages.summary(name) or what.is_attribute, f"{name} has no docstring"


def test_what_the_pages_import_is_in_the_reference(pages):
    listed = {name for reference in pages.references() for name in reference.members()}
    listed |= {pages._target(name).path for name in listed}
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
            for node in ast.walk(ast.parse(block)):
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ppl"):
                    used = {f"{node.module}.{alias.name}" for alias in node.names}
                    assert used <= listed, f"{page.name}: {used - listed}"


def test_links_and_anchors_lead_somewhere(site, parsed):
    checked = 0
    for page, content in parsed.items():
        if page.name == "404.html":
            continue  # its links are absolute
        for link in content.links:
            target, _, anchor = link.partition("#")
            if re.match(r"[a-z]+:", target):
                continue
            file = (page.parent / target).resolve() if target else page
            if file.is_dir():
                file /= "index.html"
            assert file.is_file(), f"{page.name}: {link}"
            if anchor and not anchor.startswith("__") and file.suffix == ".html":
                assert anchor in parsed[file].ids, f"{page.name}: {link}"
            checked += 1
    assert checked > 1000


def test_nothing_is_fetched_from_elsewhere(site, parsed):
    for page, content in parsed.items():
        for source in content.loaded:
            assert not re.match(r"(https?:)?//", source), f"{page.name}: {source}"
    assert (site / "search" / "search_index.js").is_file()  # a search without a server


def test_every_page_can_be_found(pages):
    """MkDocs warns of pages outside of the navigation; here, of those that were left out."""
    config = CONFIG.read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert f": {page.name}\n" in config, f"{page.name} is missing in {CONFIG.name}"
