"""Pages that MkDocs makes while it builds: the API reference, the examples, the model cards.

The reference lists what each public module exports, read from the sources without importing them,
so a name cannot be forgotten. Pages link to files of the repository as they lie there
(`../examples/x.py`), which works where the repository is read; here such links are led to the
pages made of these files.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Reference:
    """One page of the API reference.

    Attributes:
        page: its name.
        title: its heading.
        about: what stands below the heading.
        module: the public module that it documents, whole; or none.
        names: what it documents besides, by full name.
    """

    page: str
    title: str
    about: str
    module: str | None = None
    names: tuple[str, ...] = ()

    def members(self) -> list[str]:
        """Full names of everything on the page, in its order."""
        exported = [f"{self.module}.{name}" for name in exports(self.module)] if self.module else []
        return [*exported, *self.names]


CURATED = (
    Reference(
        "ppl",
        "ppl",
        "What programs are written with, models, results. `import ppl` and use these names.",
        "ppl",
    ),
    Reference(
        "searchers",
        "ppl.searchers",
        "Inference engines, and what is needed to write one. [Which one when](../choosing.md), "
        "and [what each promises](../exactness.md).",
        "ppl.searchers",
        ("ppl.searchers.parse.parse",),
    ),
    Reference(
        "verifiers",
        "ppl.verifiers",
        "Likelihoods of *correct so far*, and what measures, mends and combines them. "
        "[Where to begin](../verifiers.md).",
        "ppl.verifiers",
    ),
    Reference(
        "decide",
        "ppl.decide",
        "Rules that choose among samples, and rules that stop. "
        "[Which rule when](../choosing-answers.md), [when to stop](../stopping.md).",
        "ppl.decide",
    ),
    Reference(
        "scaling",
        "ppl.decide.scaling",
        "What rules would do with fewer samples, or more: estimates without bias, fits, forecasts.",
        "ppl.decide.scaling",
    ),
    Reference(
        "allocate",
        "ppl.allocate",
        "How to spend a budget, from records. [What to do with a budget](../allocation.md).",
        "ppl.allocate",
    ),
    Reference(
        "programs",
        "ppl.programs",
        "Programs of papers, ready to run under any searcher.",
        "ppl.programs",
    ),
    Reference(
        "kernels",
        "ppl.searchers.kernels",
        "Parts of particle methods, whose law is derived. [Samplers from parts](../kernels.md).",
        None,
        tuple(
            f"ppl.searchers.kernels.{name}"
            for name in (
                "check_kernel",
                "Composed",
                "Kernel",
                "Chain",
                "Repeat",
                "Law",
                "Cloud",
                "Extend",
                "Weigh",
                "Resample",
                "Split",
                "Merge",
                "Twist",
                "Untwist",
                "Move",
                "SuffixMH",
                "TraceMH",
                "PIMH",
                "extend",
                "weigh",
                "merge",
                "untwist",
                "repeat",
                "resample",
                "split",
                "twist",
                "suffix_mh",
                "trace_mh",
                "pimh",
            )
        ),
    ),
    Reference(
        "calibration",
        "ppl.calibration",
        "Tests of samplers by simulation. [Is a sampler right?](../sampler-calibration.md)",
        None,
        (
            "ppl.calibration.sbc",
            "ppl.calibration.tarp",
            "ppl.calibration.draws_of",
            "ppl.calibration.Ranks",
            "ppl.calibration.Coverage",
        ),
    ),
    Reference(
        "archon",
        "ppl.programs.archon",
        "Operators on texts, architectures of them, and the search for one. "
        "[Systems of prompts](../systems-of-prompts.md) shows how.",
        "ppl.programs.archon",
    ),
    Reference("tasks", "ppl.tasks", "Problems with answers that can be checked.", "ppl.tasks"),
    Reference(
        "errors",
        "ppl.errors",
        "Everything raised on purpose is a `PPLError`; catch that, or one of its kinds.",
        "ppl.errors",
    ),
    Reference(
        "extending",
        "For extensions",
        "What models, sites, verifiers and programs of your own may build on, beside the names of "
        "the other pages. [Extending](../extending.md) and [models](../models.md) show how.",
        None,
        (
            "ppl.language.answers.Answer",
            "ppl.language.call.Called",
            "ppl.language.cost.Page",
            "ppl.language.errand.Errand",
            "ppl.language.randomness.generator",
            "ppl.language.site.Site",
            "ppl.lm.base.Drawn",
            "ppl.lm.decode.Decoder",
            "ppl.lm.decode.PlainDecoder",
            "ppl.lm.eviction.Eviction",
            "ppl.lm.eviction.Delayed",
            "ppl.lm.eviction.DMS",
            "ppl.lm.next.NextToken",
            "ppl.lm.texts.TextMaker",
            "ppl.lm.server.ServerModel",
            "ppl.lm.server.ServerPool",
            "ppl.lm.table.SymbolCodec",
            "ppl.runtime.loop.SHARED",
            "ppl.runtime.wave.ask",
            "ppl.posterior.pictures.draw_genealogy",
            "ppl.tasks.chain.Chain",
        ),
    ),
    Reference(
        "export",
        "ppl.export",
        "Searches as rows to train on. [Looking at a search](../view.md#training-data) shows how.",
        "ppl.export",
    ),
    Reference(
        "report",
        "Reports",
        "What stored candidates say of every rule at every N. [Reports](../report.md) shows how.",
        None,
        (
            "ppl.study.report.report",
            "ppl.study.report.Report",
            "ppl.study.runs.Runs",
            "ppl.study.runs.read",
            "ppl.study.intervals.wilson",
            "ppl.study.intervals.mcnemar",
            "ppl.study.intervals.paired",
            "ppl.study.intervals.Paired",
        ),
    ),
)

# Packages whose names are for the library itself; what users need of them is exported elsewhere.
INSIDE = {"ppl.language", "ppl.lm", "ppl.posterior", "ppl.runtime", "ppl.tiny"}

# Documents of the repository, outside of docs/, that pages may link to.
CARDS = {
    "ppl/tiny/README.md": ("cards/tiny.md", "Model card: tiny"),
    "ppl/tiny/lines/README.md": ("cards/tiny-lines.md", "Model card: tiny-lines"),
}


def _file(module: str) -> Path:
    path = ROOT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def exports(module: str) -> list[str]:
    """What a module exports: its `__all__`, or else its public classes and functions."""
    tree = ast.parse(_file(module).read_text())
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
    own = [n.name for n in tree.body if isinstance(n, ast.ClassDef | ast.FunctionDef)]
    return [name for name in own if not name.startswith("_")]


@lru_cache(maxsize=1)
def references() -> tuple[Reference, ...]:
    """All pages of the reference: those above, and one for each further package with exports."""
    known = {reference.module for reference in CURATED} | INSIDE
    pages = list(CURATED[:-1])
    for init in sorted((ROOT / "ppl").glob("*/__init__.py")):
        module = f"ppl.{init.parent.name}"
        if module not in known and exports(module):
            said = ast.get_docstring(ast.parse(init.read_text())) or ""
            pages.append(Reference(init.parent.name, module, said.split("\n\n")[0], module))
    return (*pages, CURATED[-1])


def examples() -> dict[str, Path]:
    """Pages of the examples that can be run, and their files."""
    files = sorted((ROOT / "examples").rglob("*.py"))
    runnable = [f for f in files if 'if __name__ == "__main__"' in f.read_text()]
    return {str(f.relative_to(ROOT).with_suffix(".md")): f for f in runnable}


@lru_cache(maxsize=1)
def _package() -> Any:
    import griffe

    return griffe.load("ppl", search_paths=[str(ROOT)], resolve_aliases=True)


def _target(name: str) -> Any:
    """What a full name stands for. A module hides a function that has its name."""
    found = _package()[name.removeprefix("ppl.")]
    found = found.final_target if found.is_alias else found
    return found[found.name] if found.is_module and found.name in found.members else found


def summary(name: str) -> str:
    """The first sentence of what is documented under a full name, as one line of Markdown."""
    found = _target(name)
    said = found.docstring.value if found.docstring else ""
    first = " ".join(said.split("\n\n")[0].split())
    sentence = re.split(r"(?<!\bal)[.:]\s+(?=[A-Z`\[(])", first, maxsplit=1)[0].rstrip(".:")
    return sentence.replace("|", r"\|")


def reference_page(reference: Reference) -> str:
    """The page's Markdown: a table of all names, then each with its docstring."""
    lines = [f"# {reference.title}", "", reference.about, "", "| name | |", "|---|---|"]
    for name in reference.members():
        lines.append(f"| [`{name.rpartition('.')[2]}`](#{name}) | {summary(name)} |")
    for name in reference.members():
        lines += ["", *_documented(name)]
    return "\n".join(lines) + "\n"


# Of a searcher these are its algorithm; what they do is said once, in `Searcher`.
_OWN = "start|step|result|priorities|move|choose|draw|quota|fresh|begin|run|run_many|arun|with_"
_FILTERS = f'["!^_[^_]", "!^__(?!call__)", "!^({_OWN})$"]'


def _documented(name: str) -> list[str]:
    found = _target(name)
    lines = []
    if found.path.split(".")[-2:] == [found.name] * 2:  # under its own name, which leads here too
        lines = [f"[](){{#{name}}}", "", f"::: {found.path}"]
    else:
        lines = [f"::: {name}"]
    if found.parent.path.startswith("ppl.searchers.") and name not in _CONTRACTS:
        lines += ["    options:", f"      filters: {_FILTERS}", "      show_bases: false"]
        said = found.parent.docstring
        if found.is_class and said:
            where = found.parent.filepath.resolve().relative_to(ROOT)
            lines += ["", f'??? note "The algorithm, from {where}"', ""]
            lines += [f"    {line}".rstrip() for line in said.value.splitlines()]
    return lines


_CONTRACTS = tuple(
    f"ppl.searchers.{name}" for name in ("Searcher", "Search", "State", "Frontier", "Particles")
)


def example_page(path: Path) -> str:
    """An example's docstring as text, the rest of its source below."""
    source = path.read_text()
    tree = ast.parse(source)
    said = ast.get_docstring(tree) or ""
    begin = tree.body[0].end_lineno or 0 if said else 0
    rest = "\n".join(source.splitlines()[begin:]).strip()
    where = path.relative_to(ROOT)
    return f"# {where.name}\n\n{said}\n\n`{where}`:\n\n~~~~~~python\n{rest}\n~~~~~~\n"


def _card(path: str, title: str) -> str:
    text = (ROOT / path).read_text()
    return re.sub(r"\A# .*\n", f"# {title}\n", text)


@lru_cache(maxsize=1)
def made_of() -> dict[str, str]:
    """The page that is made of a file of the repository, by the file's path."""
    made = {str(path.relative_to(ROOT)): page for page, path in examples().items()}
    made |= {path: page for path, (page, _) in CARDS.items()}
    for reference in references():
        if reference.module is not None:
            made[str(_file(reference.module).relative_to(ROOT))] = f"api/{reference.page}.md"
    return made


# -- what MkDocs calls ----------------------------------------------------------------------------


def on_config(config: Any) -> Any:
    """Adds the pages made here to the navigation."""
    config.nav.insert(
        -1,
        {
            "Examples": [
                {page.removeprefix("examples/").removesuffix(".md"): page} for page in examples()
            ]
        },
    )
    config.nav.insert(-1, {"API reference": [{r.title: f"api/{r.page}.md"} for r in references()]})
    return config


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages made here."""
    made = {f"api/{r.page}.md": reference_page(r) for r in references()}
    made |= {page: example_page(path) for page, path in examples().items()}
    made |= {page: _card(path, title) for path, (page, title) in CARDS.items()}
    for page, text in made.items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Leads links to files of the repository to the pages made of them."""
    up = "../" * page.file.src_uri.count("/")
    made = made_of()

    def led(match: re.Match[str]) -> str:
        target, anchor = match[1], match[2] or ""
        return f"]({up}{made[target]}{anchor})" if target in made else match[0]

    return re.sub(r"\]\(\.\./([^)#\s]+)(#[^)]*)?\)", led, markdown)
