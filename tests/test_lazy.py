"""What packages give late: that it is all there, what it is called, and that it is no module."""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import pickle
import py_compile
import subprocess
import sys
import typing
from pkgutil import iter_modules

import pytest
from packages import homes, parsed, run_at_import, sources

import ppl
from ppl import decide, lazy, lm, posterior, study, verifiers

MODULES = sources()
PACKAGES = [name for name, path in MODULES.items() if path.name == "__init__.py"]
LATE = ["ppl", "ppl.lm", "ppl.posterior", "ppl.decide", "ppl.verifiers", "ppl.study"]


def run(*program: str) -> str:
    """What a program prints that has a process of its own; nothing goes to stderr."""
    done = subprocess.run(
        [sys.executable, "-c", *program], capture_output=True, text=True, timeout=600, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_these_packages_give_names_late():
    attached = [name for name in PACKAGES if "= attach(" in ast.unparse(parsed(MODULES[name]))]
    assert {name for name in attached if homes(name, MODULES)} == set(LATE)


@pytest.mark.parametrize("package", LATE)
def test_names_for_types_and_names_that_are_given_are_the_same(package):
    assert lazy.homes(package) == homes(package, MODULES)
    assert sorted(lazy.homes(package)) == sorted(importlib.import_module(package).__all__)
    for block in parsed(MODULES[package]).body:
        if isinstance(block, ast.If):
            counted = [alias.name for each in block.body for alias in each.names]
            assert len(counted) == len(set(counted))


@pytest.mark.parametrize("package", LATE)
def test_no_name_is_that_of_a_module_beside_it(package):
    modules = {each.name for each in iter_modules(importlib.import_module(package).__path__)}
    assert not modules & lazy.homes(package).keys()


# Importing a module sets it as an attribute of its package, whatever was there: a name that is
# given late would be a module from then on.
ORDERS = ("names first", "modules from the last")
WALK = """
import importlib, sys, types
order, modules, names = sys.argv[1], sys.argv[2].split(), dict(
    (package, rest.split(",")) for package, _, rest in (row.partition("=") for row in sys.argv[3:])
)
if order == "names first":
    early = {p: [getattr(importlib.import_module(p), n) for n in names[p]] for p in names}
for module in reversed(modules) if order == "modules from the last" else modules:
    importlib.import_module(module)
found = {p: [getattr(importlib.import_module(p), n) for n in names[p]] for p in names}
for package, values in found.items():
    for name, value in zip(names[package], values):
        if isinstance(value, types.ModuleType):
            print(f"{package}.{name} is a module")
if order == "names first":
    assert all(a is b for p in names for a, b in zip(early[p], found[p]))
"""


@pytest.mark.parametrize("order", ORDERS)
def test_names_are_no_modules_in_whatever_order_they_are_imported(order):
    modules = " ".join(name for name in MODULES if name != "ppl.__main__")
    names = [f"{p}={','.join(found)}" for p in PACKAGES if (found := _public(p))]
    assert run(WALK, order, modules, *names) == ""


def _public(package: str) -> list[str]:
    for node in run_at_import(parsed(MODULES[package]).body):
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return [str(name) for name in ast.literal_eval(node.value)]
    return []


@pytest.mark.parametrize("package", LATE)
def test_names_are_what_their_modules_have(package):
    front = importlib.import_module(package)
    for name, module in lazy.homes(package).items():
        assert getattr(front, name) is getattr(importlib.import_module(module), name), name
        assert name in vars(front)  # the second time nothing is looked up
    assert set(dir(front)) >= {*front.__all__, "__all__", "__doc__"}
    assert dir(front) == sorted(set(dir(front)))


def test_names_are_listed_before_they_are_there_and_a_star_gives_them_all():
    program = """
import ppl, sys
listed = dir(ppl)
assert "torch" not in sys.modules and "__main__" not in listed
assert {*ppl.__all__, "searchers", "verifiers", "errors", "lm"} <= {*listed}
from ppl import *
assert all(globals()[name] is getattr(ppl, name) for name in ppl.__all__)
assert {*listed} <= {*dir(ppl)}
"""
    run(program)


def test_modules_are_there_without_being_imported():
    run("import ppl; ppl.errors.PPLError; ppl.lm.drafts.Drafts; ppl.runtime.tree.Tree")


def test_a_name_that_is_not_there():
    with pytest.raises(AttributeError, match=r"^module 'ppl' has no attribute 'Tabel'$") as missed:
        ppl.Tabel  # noqa: B018
    assert (missed.value.name, missed.value.obj) == ("Tabel", ppl)  # Python adds what is near
    said = r"^module 'ppl' has no attribute 'SMC': it is in ppl.searchers$"
    with pytest.raises(AttributeError, match=said):
        ppl.SMC  # noqa: B018
    for room, name in (("verifiers", "PRM"), ("decide", "vote")):
        with pytest.raises(AttributeError, match=f"it is in ppl.{room}$"):
            getattr(ppl, name)
    with pytest.raises(AttributeError, match=r"^module 'ppl.lm' has no attribute 'loadd'$"):
        lm.loadd  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'vot'"):
        from ppl.decide import vot  # noqa: F401
    # Tools ask for private names all the time: nothing is looked for, and no program begins.
    said = run(
        "import ppl, sys; print(hasattr(ppl, '_ipython_display_'), hasattr(ppl, '__main__'), "
        "'numpy' in sys.modules)"
    )
    assert said.split() == ["False"] * 3


def test_a_name_that_is_not_there_is_looked_for_without_importing_anything():
    program = """
import ppl, sys
for name in ("Tabel", "SMC", "vote"):
    print(hasattr(ppl, name), {"numpy", "torch", "ppl.searchers", "ppl.decide"} & {*sys.modules})
"""
    assert run(program).splitlines() == ["False set()"] * 3


@pytest.mark.parametrize("package", ["ppl.searchers", *LATE])
def test_public_names_are_read_without_importing(package):
    assert lazy.public(package) == importlib.import_module(package).__all__


def test_what_fails_inside_of_a_module_is_said(tmp_path, monkeypatch):
    (tmp_path / "late").mkdir()
    (tmp_path / "late" / "__init__.py").write_text(
        """
from typing import TYPE_CHECKING
from ppl.lazy import attach
if TYPE_CHECKING:
    from no_such_module_anywhere import gone
    from math import (
        pi,
        tau,
    )
else:
    __getattr__, __dir__ = attach(__name__)
"""
    )
    monkeypatch.syspath_prepend(tmp_path)
    late = importlib.import_module("late")
    with pytest.raises(ModuleNotFoundError, match="no_such_module_anywhere"):
        late.gone  # noqa: B018
    assert late.pi == vars(late)["pi"] == 3.141592653589793
    assert {"gone", "pi", "tau"} <= {*dir(late)}
    assert "tau" not in vars(late)


def test_a_package_without_its_source_says_so(tmp_path, monkeypatch):
    (tmp_path / "bare").mkdir()
    source = tmp_path / "bare" / "__init__.py"
    source.write_text("from ppl.lazy import attach\n__getattr__, __dir__ = attach(__name__)\n")
    py_compile.compile(str(source), cfile=str(source.with_suffix(".pyc")))
    source.unlink()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match=r"^the source of bare is needed, and was not shipped$"):
        importlib.import_module("bare")


def test_threads_that_ask_at_once_get_the_same():
    said = run(
        """
import sys, threading
sys.setswitchinterval(1e-6)
import ppl
NAMES = ("load", "TableLM", "Posterior", "HFModel", "searchers", "verifiers", "AWRS", "decide") * 2
barrier, found = threading.Barrier(len(NAMES)), {}
def ask(place, name):
    barrier.wait()
    found[place] = getattr(ppl, name)
threads = [threading.Thread(target=ask, args=each) for each in enumerate(NAMES)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert len(found) == len(NAMES)
assert all(found[place] is getattr(ppl, name) for place, name in enumerate(NAMES))
assert found[0] is sys.modules["ppl.lm.loading"].load
print("all")
"""
    )
    assert said == "all\n"


@pytest.mark.parametrize("front", [ppl, lm, posterior, decide, verifiers, study])
def test_names_are_pickled_and_have_type_hints(front):
    for name in front.__all__:
        value = getattr(front, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert pickle.loads(pickle.dumps(value)) is value
            typing.get_type_hints(value)


def test_what_another_process_pickled_and_help():
    program = """
import ppl, pickle, sys
help(ppl.load)
print(pickle.dumps((ppl.load, ppl.Budget(tokens=3))).hex())
"""
    *said, pickled = run(program).splitlines()
    assert pickle.loads(bytes.fromhex(pickled)) == (ppl.load, ppl.Budget(tokens=3))
    assert said[0] == "Help on function load in module ppl.lm.loading:"
    assert any("A language model, run in this process or by a server." in line for line in said)


MANY = """
import os, random, sys, threading
import ppl
names, missed = list(ppl.__all__), []
random.Random(int(sys.argv[1])).shuffle(names)
barrier = threading.Barrier(8)
def ask(part):
    barrier.wait()
    for name in part:
        try:
            getattr(ppl, name)
        except BaseException as error:
            missed.append((name, error))
threads = [threading.Thread(target=ask, args=(names[i::8],), daemon=True) for i in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join(120)
print(missed or [thread for thread in threads if thread.is_alive()], flush=True)
os._exit(0)
"""


@pytest.mark.parametrize("seed", ["0", "1"])
def test_threads_that_ask_for_all_names_at_once_find_nothing_half_there(seed):
    assert run(MANY, seed) == "[]\n"


FORKED = """
import os, signal, threading
from ppl import lazy
import ppl
held, over = threading.Event(), threading.Event()
def importing():
    with lazy._FIRST:
        held.set()
        over.wait()
thread = threading.Thread(target=importing)
thread.start()
held.wait()
child = os.fork()
if not child:
    signal.alarm(60)  # whoever waits for the parent's thread is ended
    ppl.Budget
    os._exit(0)
print(os.waitpid(child, 0)[1])
over.set()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes of POSIX")
def test_a_child_that_is_forked_while_a_thread_imports_waits_for_nobody():
    assert run(FORKED) == "0\n"


def test_modules_ask_no_front_while_they_are_imported():
    """Whoever asks a front for a name has a lock, and may be waiting for the module that asks."""
    late = {package: lazy.homes(package) for package in LATE}
    for name, path in MODULES.items():
        for node in run_at_import(parsed(path).body):
            if isinstance(node, ast.ImportFrom) and node.module in late:
                asked = {alias.name for alias in node.names} & late[node.module].keys()
                assert not asked, f"{name}: import {asked} from where they are"


def test_all_of_pyro_is_imported_before_its_parts():
    """Pyro's modules import each other: a thread that imports a part does not wait for one that is
    at another part, and finds it half there."""
    for name, path in MODULES.items():
        body = list(run_at_import(parsed(path).body))
        parts = [n for n in body if isinstance(n, ast.ImportFrom) and str(n.module)[:5] == "pyro."]
        whole = [n for n in body if isinstance(n, ast.Import) and n.names[0].name == "pyro"]
        assert not parts or (whole and whole[0].lineno < parts[0].lineno), name


def test_a_name_with_a_dot_is_no_name():
    assert not hasattr(ppl, "no_module.part")
