"""A real browser for tests of pages: Chromium without a window, as Debian has it."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

PROGRAM = next(
    (
        found
        for name in ("chromium", "chromium-browser", "google-chrome")
        if (found := shutil.which(name))
    ),
    None,
)
needs_chromium = pytest.mark.skipif(PROGRAM is None, reason="needs Chromium, and found none")


def _ran(page: Path, fragment: str, *options: str) -> str:
    with TemporaryDirectory() as profile:
        done = subprocess.run(
            [
                str(PROGRAM),
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--hide-scrollbars",
                "--window-size=1400,900",
                "--virtual-time-budget=3000",
                "--enable-logging=stderr",
                f"--user-data-dir={profile}",
                *options,
                f"{page.resolve().as_uri()}#{fragment}",
            ],
            capture_output=True,
            timeout=900,
            check=True,
        )
    said = done.stderr.decode(errors="replace")
    errors = [line for line in said.splitlines() if "CONSOLE" in line]
    assert not errors, errors
    return done.stdout.decode("utf-8")


def dom(page: Path, fragment: str = "") -> str:
    """What a page has become once its scripts have run, as HTML.

    Fails if the page wrote anything to its console, as an uncaught error or a refused load does.
    """
    return _ran(page, fragment, "--dump-dom")


def picture(page: Path, path: Path, fragment: str = "") -> bytes:
    """A picture of the page, as PNG."""
    _ran(page, fragment, f"--screenshot={path}")
    return path.read_bytes()


def facts(content: str) -> dict[str, str]:
    """The `data-` attributes of the body."""
    found = re.search(r"<body ([^>]*)>", content)
    assert found, "the page's scripts have not run"
    return {
        name: html.unescape(value) for name, value in re.findall(r'data-(\w+)="([^"]*)"', found[1])
    }


def rows(content: str) -> list[str]:
    """The lines of the outline, in words."""
    lines = re.findall(r'<div class="line[^"]*"[^>]*aria-label="([^"]*)"', content)
    return [html.unescape(line) for line in lines]
