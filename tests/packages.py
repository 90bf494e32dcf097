"""What the library's files import, read from their text."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def sources() -> dict[str, Path]:
    """Modules of the library by name. The two links are read where they point to."""
    found = {}
    for folder, name in (
        ("ppl", "ppl"),
        ("searchers", "ppl.searchers"),
        ("verifiers", "ppl.verifiers"),
    ):
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            if folder == "ppl" and parts[0] in ("searchers", "verifiers"):
                continue
            found[".".join((name, *(p for p in parts if p != "__init__")))] = path
    return found


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(statements: Iterator[ast.AST], modules: dict[str, Path]) -> set[str]:
    """What import statements import: modules of the library, and packages of others."""
    found: set[str] = set()
    for node in statements:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if whole in modules else str(node.module))
    return {name if name in modules else name.partition(".")[0] for name in found}


def typed_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def run_at_import(body: list[ast.stmt]) -> Iterator[ast.AST]:
    """The statements that run when a module is imported: not those of functions, or for types."""
    for node in body:
        yield node
        if isinstance(node, ast.If) and typed_only(node):
            yield from run_at_import(node.orelse if "not" not in ast.unparse(node.test) else [])
        elif isinstance(node, ast.If | ast.Try | ast.With | ast.ClassDef | ast.For):
            for part in ("body", "orelse", "finalbody"):
                yield from run_at_import(getattr(node, part, []))
            for handler in getattr(node, "handlers", ()):
                yield from run_at_import(handler.body)


def homes(package: str, modules: dict[str, Path]) -> dict[str, str]:
    """Of a package that imports late: the names it gives type checkers, and from which modules."""
    found = {}
    for node in parsed(modules[package]).body:
        if not isinstance(node, ast.If) or ast.unparse(node.test) != "TYPE_CHECKING":
            continue
        for each in node.body:
            assert isinstance(each, ast.ImportFrom), package
            if each.module != package:  # its own modules, which it gives as well
                found.update({alias.name: str(each.module) for alias in each.names})
    return found


def reached(start: str, modules: dict[str, Path]) -> dict[str, str]:
    """All that is imported when a module is, and what imports it; the packages around included."""
    found, waiting = {start: ""}, [start]
    while waiting:
        name = waiting.pop()
        if name not in modules:
            continue
        around = [name[:at] for at, letter in enumerate(name) if letter == "."]
        for each in (*around, *at_the_top(name, modules)):
            if each not in found:
                found[each] = name
                waiting.append(each)
    return found


@cache
def _top(name: str, path: Path) -> tuple[ast.AST, ...]:
    return tuple(run_at_import(parsed(path).body))


def at_the_top(name: str, modules: dict[str, Path]) -> set[str]:
    """What a module imports when it is imported: a name that a package gives late is imported from
    where it is."""
    statements = _top(name, modules[name])
    found = imported(iter(statements), modules)
    for node in statements:
        if isinstance(node, ast.ImportFrom) and str(node.module) in modules:
            late = homes(str(node.module), modules)
            found |= {late[alias.name] for alias in node.names if alias.name in late}
    return found
