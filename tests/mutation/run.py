"""Puts faults into a copy of the library, one at a time, and counts those that the tests notice.

    python tests/mutation/run.py                  # all of them
    python tests/mutation/run.py searchers -k smc # files of faults, and words of their names
    python tests/mutation/run.py --resume results # go on where an earlier run was ended
    python tests/mutation/run.py --sound          # the tests alone: all must pass without faults

A fault is noticed if one of its tests fails, or does not come to an end. Where all of its tests are
skipped, because this machine lacks what they need, nothing is known of it, and it is not counted.
Torch and the other large packages are imported once: every fault runs in a fork, on a copy of the
project of its own. Exits with 1 if fewer than 95% are noticed, or if a fault no longer fits the
code.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from fault import Fault

if TYPE_CHECKING:
    import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
WANTED = 0.95
FINAL = ("noticed", "late", "equivalent")
UNCOUNTED = ("equivalent", "skipped")
_SKIPPED = 6  # the first number that pytest does not exit with
# Plugins of packages that are imported already cannot be rewritten, which pytest warns about.
_PYTEST = ["-x", "-q", "-p", "no:cacheprovider", "-W", "ignore:Module already imported"]


@dataclass
class Running:
    """A fault whose tests run in a child process."""

    fault: Fault
    tree: Path
    log: Path
    deadline: float
    original: str


def faults(areas: Sequence[str], word: str) -> list[Fault]:
    """The faults of `faults/AREA.py`, of all areas if none is named."""
    found: list[Fault] = []
    for path in sorted((HERE / "faults").glob("*.py")):
        if areas and path.stem not in areas:
            continue
        spec = importlib.util.spec_from_file_location(f"faults_{path.stem}", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        found += [f for f in module.FAULTS if word in f.name]
    return found


def fits(fault: Fault) -> bool:
    """Whether what the fault changes stands in the code, once."""
    path = ROOT / fault.file
    return path.is_file() and path.read_text(encoding="utf-8").count(fault.old) == 1


def without_faults(todo: list[Fault]) -> list[Fault]:
    """The tests of all of them, each once, with nothing changed."""
    return list({f.tests: replace(f, new=f.old) for f in todo}.values())


def earlier(results: Path | None) -> dict[str, str]:
    """Verdicts that an earlier run has written and that need not be found again."""
    if results is None or not results.exists():
        return {}
    rows = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]
    return {row["fault"]: row["verdict"] for row in rows if row["verdict"] in FINAL}


def import_others() -> None:
    """Imports all that the library and its tests take from other packages, and no fault changes."""
    imports = "import sys, pytest, hypothesis, ppl.searchers, ppl.verifiers"
    listed = subprocess.run(
        [sys.executable, "-c", f"{imports}; print(*sys.modules)"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    for name in listed:
        if name.split(".")[0] not in ("ppl", "__main__"):
            with contextlib.suppress(ImportError):  # some are other names of a module
                importlib.import_module(name)
    assert "ppl" not in sys.modules


def copied(into: Path) -> Path:
    """The project's files, as they stand in the working tree, links as links."""
    names = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split("\0")
    for name in filter(None, names):
        source = ROOT / name
        if source.is_symlink() or source.exists():
            target = into / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target, follow_symlinks=False)
    return into


def start(fault: Fault, tree: Path, seconds: float) -> tuple[int, Running]:
    """Changes the copy and runs the fault's tests in a fork."""
    path = tree / fault.file
    original = path.read_text(encoding="utf-8")
    path.write_text(original.replace(fault.old, fault.new), encoding="utf-8")
    log = tree.with_suffix(".log")
    pid = os.fork()
    if pid == 0:
        _test(fault, tree, log)
    return pid, Running(fault, tree, log, time.monotonic() + seconds, original)


class Ran:
    """A plugin of pytest: counts the tests that were run, and not skipped."""

    count = 0

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.count += report.when == "call" and not report.skipped


def _test(fault: Fault, tree: Path, log: Path) -> None:
    """In the child: pytest over the copy, then out."""
    os.setsid()
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(tree)
    os.environ["PYTHONPATH"] = str(tree)
    sys.path[:] = [str(tree), *(p for p in sys.path if p not in (str(HERE), str(ROOT)))]
    code = 3
    try:
        import pytest

        ran = Ran()
        code = int(pytest.main([*shlex.split(fault.tests), *_PYTEST], plugins=[ran]))
        if code == 0 and not ran.count:
            code = _SKIPPED
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def judged(pid: int, running: Running) -> str | None:
    """`noticed`, `late` or `missed`, None while the tests run; 'broken' if pytest found none, and
    'skipped' if it ran none."""
    done, status = os.waitpid(pid, os.WNOHANG)
    if not done:
        if time.monotonic() < running.deadline:
            return None
        os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        return "late"
    code = os.waitstatus_to_exitcode(status)
    verdicts = {0: "missed", 1: "noticed", 2: "noticed", _SKIPPED: "skipped"}
    return verdicts.get(code, "noticed" if code < 0 else "broken")


def run(todo: list[Fault], workers: int, seconds: float) -> Iterator[tuple[Fault, str, str]]:
    """Each fault with its verdict and the end of its tests' output."""
    with tempfile.TemporaryDirectory() as folder:
        trees = [copied(Path(folder) / str(i)) for i in range(workers)]
        going: dict[int, Running] = {}
        waiting = list(reversed(todo))
        while waiting or going:
            while waiting and trees:
                pid, running = start(waiting.pop(), trees.pop(), seconds)
                going[pid] = running
            for pid, running in list(going.items()):
                verdict = judged(pid, running)
                if verdict is None:
                    continue
                del going[pid]
                path = running.tree / running.fault.file
                path.write_text(running.original, encoding="utf-8")
                trees.append(running.tree)
                yield running.fault, verdict, running.log.read_text(errors="replace")[-600:]
            time.sleep(0.05)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("areas", nargs="*", help="files of faults, without .py; default: all")
    parser.add_argument("-k", default="", metavar="WORD", help="only faults with this in the name")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seconds", type=float, default=240, help="limit of one fault's tests")
    parser.add_argument("--resume", type=Path, metavar="FILE", help="JSON lines: read and added to")
    parser.add_argument("--sound", action="store_true", help="the tests without faults")
    options = parser.parse_args(arguments)
    todo = faults(options.areas, options.k)
    if options.sound:
        todo = without_faults(todo)
    known = earlier(options.resume)
    counts = Counter(known[f.name] for f in todo if f.name in known)
    todo = [f for f in todo if f.name not in known]
    for fault in todo:
        if not fits(fault):
            counts["broken"] += 1
            print(f"broken     {fault.name}\n    does not stand in the code once", flush=True)
    todo = [f for f in todo if fits(f)]

    import_others()
    os.environ["OMP_NUM_THREADS"] = "1"

    for fault, verdict, said in run(todo, options.workers, options.seconds):
        counted = "equivalent" if fault.equivalent and verdict == "missed" else verdict
        counts[counted] += 1
        print(f"{counted:<11}{fault.name}", flush=True)
        if counted in (("noticed", "late", "broken") if options.sound else ("missed", "broken")):
            print("    " + "\n    ".join(said.splitlines()[-6:]), flush=True)
        if options.resume is not None:
            row = {"fault": fault.name, "tests": fault.tests, "verdict": counted}
            with options.resume.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
    noticed = counts["noticed"] + counts["late"]
    real = counts.total() - sum(counts[verdict] for verdict in UNCOUNTED)
    print(f"{noticed} of {real} faults noticed ({noticed / max(real, 1):.1%}); {dict(counts)}")
    if options.sound:
        return 0 if counts["missed"] + counts["skipped"] == counts.total() else 1
    return 0 if noticed >= WANTED * real and not counts["broken"] else 1


if __name__ == "__main__":
    sys.exit(main())
