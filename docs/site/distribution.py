"""Prepares a release: a copy of the tree whose README works away from the repository.

A package index shows README.md, where links to `docs/guide.md` and pictures of the repository lead
nowhere. In the copy they are addresses of the repository at the release's tag. The repository's
address stands in one place, `[project.urls]` in pyproject.toml:

    [project.urls]
    Repository = "https://..."

    python docs/site/distribution.py build/distribution
    python -m build build/distribution --outdir dist
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]

_LINK = re.compile(r"(!?)(\[(?:[^\[\]]|\[[^\]]*\])*\])\(([^)\s]+)\)")


def absolute(readme: str, repository: str, tag: str) -> str:
    """The text with all relative links and pictures under `repository`, at `tag`.

    Args:
        readme: Markdown.
        repository: address of a repository that serves `/blob/TAG/FILE`, and `/raw/TAG/FILE` for
            the bytes of a file, as GitHub does.
        tag: such as `"v0.1.0"`.
    """

    def lead(match: re.Match[str]) -> str:
        picture, words, target = match.groups()
        words = _LINK.sub(lead, words)  # a picture that is a link
        if re.match(r"[a-z]+:|#", target):
            return f"{picture}{words}({target})"
        kind = "raw" if picture else "blob"
        return f"{picture}{words}({repository.rstrip('/')}/{kind}/{tag}/{target})"

    parts = re.split(r"(^```.*?^```)", readme, flags=re.DOTALL | re.MULTILINE)
    return "".join(part if part.startswith("```") else _LINK.sub(lead, part) for part in parts)


def released(pyproject: str) -> tuple[str, str]:
    """The repository's address and the tag of this version, from the text of pyproject.toml.

    Raises:
        SystemExit: no address is stated.
    """
    project = tomllib.loads(pyproject)["project"]
    repository = project.get("urls", {}).get("Repository")
    if not repository:
        raise SystemExit(
            "pyproject.toml states no address: add [project.urls] with Repository = "
            '"https://...", under which the links of README.md will be'
        )
    return repository, f"v{project['version']}"


def main(argv: list[str] | None = None) -> None:
    """Copies what git has at HEAD to a new folder and rewrites README.md there."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("folder", type=Path, help="where the copy goes; must not exist")
    args = parser.parse_args(argv)
    repository, tag = released((ROOT / "pyproject.toml").read_text())
    args.folder.mkdir(parents=True)
    tree = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, capture_output=True, check=True)
    subprocess.run(["tar", "-x", "-C", str(args.folder)], input=tree.stdout, check=True)
    readme = args.folder / "README.md"
    readme.write_text(absolute(readme.read_text(), repository, tag))
    sys.stdout.write(f"{args.folder}: README.md leads to {repository} at {tag}\n")


if __name__ == "__main__":
    main()
