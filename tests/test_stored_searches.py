"""Searches as files: programs, models and searchers are named, states go by their fields."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from accuracy_vs_budget import solve
from files import refused, rewrite, with_meta
from programs import SEARCHERS, TOY, branching, contents, toy, toy_guide, toy_twisted

import ppl
from ppl.errors import SearchStateError
from ppl.posterior.models import about, load_again
from ppl.searchers import SMC, BestOfN, Frontier, Result, Search, Searcher
from ppl.verifiers import FunctionVerifier

HERE = Path(__file__).parent


def resumed(search: Search, path: Path, **given) -> ppl.Posterior:
    """Saved after a round, loaded, run on."""
    search.step()
    search.save(path)
    again = Search.load(path, **given)
    facts = [(n.identity, n.log_weight, n.choices, n.text) for n in search.tree.nodes]
    assert [(n.identity, n.log_weight, n.choices, n.text) for n in again.tree.nodes] == facts
    assert again.tree.cost.lm_tokens == search.tree.cost.lm_tokens
    assert repr(again.searcher) == repr(search.searcher)
    assert again.notes == search.notes
    assert again.tree.account.elapsed >= search.tree.account.elapsed - 60
    return again.run()


# -- what comes back -------------------------------------------------------------------------------


@pytest.mark.parametrize("searcher", SEARCHERS, ids=repr)
def test_saved_in_any_round_a_search_ends_as_it_would_have(searcher, tmp_path):
    whole = searcher.begin(branching, seed=3)
    search = searcher.begin(branching, seed=3)
    while not search.over:
        search.step()
        search.save(tmp_path / "s")
        search = Search.load(tmp_path / "s")
    assert contents(search.run()) == contents(whole.run())
    assert search.posterior().log_evidence == whole.posterior().log_evidence
    assert search.tree.cost.lm_tokens == whole.tree.cost.lm_tokens
    assert len(search.notes) == len(whole.notes)


def test_guides_twists_partials_and_budgets(tmp_path):
    for begin in (
        lambda: SMC(4, 1.0).begin(toy, "last", guide=toy_guide, seed=1),
        lambda: SMC(4, 1.0).begin(toy_twisted, before=False, seed=2),
        lambda: SMC(4, 1.0).begin(partial(toy_twisted, before=False), seed=2),
        lambda: SMC(4, 1.0).begin(toy, seed=1, budget=ppl.Budget(tokens=7, seconds=1e6)),
    ):
        assert contents(resumed(begin(), tmp_path / "s")) == contents(begin().run())
    search = Search.load(tmp_path / "s")
    assert search.tree.budget == ppl.Budget(tokens=7, seconds=1e6)


def of_data(numbers, *, table, kind):
    x = pyro.sample("x", dist.Normal(torch.zeros(()), numbers["scale"]))
    pyro.factor("f", table.sum() * float(kind) * x)
    return float(x)


def test_arguments_are_data(tmp_path):
    given = {"table": torch.ones(2, dtype=torch.bfloat16), "kind": Fraction(1, 3)}
    one, other = (SMC(3).begin(of_data, {"scale": 2.0}, seed=4, **given) for _ in range(2))
    assert contents(resumed(one, tmp_path / "s")) == contents(other.run())
    search = SMC(3).begin(of_data, object(), **given)
    with pytest.raises(SearchStateError, match="argument 0 of the program holds <object"):
        search.save(tmp_path / "s")


def long_or_short() -> int:
    text = TOY.prompt("^") + pyro.sample("s", TOY(TOY.prompt("^"), max_tokens=30))
    ppl.condition(True)
    return len(text)


def test_children_underway_start_again(tmp_path):
    search = SMC(3).begin(long_or_short, seed=3)
    search.tree.expand([search.tree.root], 8, quorum=1)
    assert search.tree.underway
    search.save(tmp_path / "s")
    again = Search.load(tmp_path / "s")
    assert again.tree.underway.keys() == search.tree.underway.keys()
    grown = [(n.identity, n.choices, n.log_weight) for n in again.tree.collect()]
    assert grown == [(n.identity, n.choices, n.log_weight) for n in search.tree.collect()]


@dataclass(frozen=True)
class Counter(Frontier):
    seen: dict[int, tuple[float, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Outsider(Searcher[Counter]):
    n: int = 2

    def start(self, tree):
        return Counter((tree.root,) * self.n)

    def step(self, tree, state):
        moved = iter(tree.expand([node for node in state.nodes if node.open]))
        nodes = tuple(next(moved) if node.open else node for node in state.nodes)
        seen = {**state.seen, state.round: tuple(node.value for node in nodes)}
        return state.after(nodes=nodes, seen=seen, over=not any(n.open for n in nodes)), {}

    def result(self, tree, state):
        return Result.by_likelihood(state.nodes)


def test_searchers_from_elsewhere_are_stored_like_our_own(tmp_path):
    whole = Outsider(3).begin(toy, seed=5)
    search = Outsider(3).begin(toy, seed=5)
    assert contents(resumed(search, tmp_path / "s")) == contents(whole.run())
    assert Search.load(tmp_path / "s").state.seen.keys() == {0}


# -- models ----------------------------------------------------------------------------------------


def test_models_are_loaded_as_they_were(tiny, tmp_path):
    lm, prm = tiny
    begin = partial(SMC(3, 1.0).begin, solve, "Calculate 2 + 2 - 3.", seed=1)
    whole = begin(lm, prm).run()
    ended = resumed(begin(lm, prm), tmp_path / "s")
    assert [s.value for s in ended.samples] == [s.value for s in whole.samples]
    assert [str(s.text) for s in ended.samples] == [str(s.text) for s in whole.samples]
    again = Search.load(tmp_path / "s", models={lm.name: lm, prm.name: prm})
    assert again.tree.args[1:] == (lm, prm)
    code = (
        "import sys; from ppl.searchers import Search; "
        "print([(s.value, str(s.text)) for s in Search.load(sys.argv[1]).run().samples])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "s")],
        capture_output=True, text=True, check=True, cwd=HERE.parent / "examples", timeout=900,
    )  # fmt: skip
    assert done.stdout.strip() == repr([(s.value, str(s.text)) for s in whole.samples])


def with_models(lm, judge):
    text = lm.prompt("^") + pyro.sample("s", lm(lm.prompt("^"), max_tokens=2))
    pyro.sample("ok", judge(text), obs=True)
    return text.text


def test_models_made_by_hand_have_to_be_given(tmp_path):
    judge = FunctionVerifier(lambda text: 0.5, name="judge")
    search = SMC(2).begin(with_models, TOY, judge, seed=1)
    search.save(tmp_path / "s")
    refused(
        tmp_path / "s",
        r"the model 'toy' was made is not known.*models=\{'toy': model\}",
        Search.load,
    )
    with pytest.raises(SearchStateError, match="models='other': the file names 'toy', 'judge'"):
        Search.load(tmp_path / "s", models={"other": TOY})
    other = ppl.TableLM({"a": 0.5, "$": 0.5}, symbols="^a$", name="toy")
    with pytest.raises(SearchStateError, match=r"'toy' had the tokenizer .* now it has"):
        Search.load(tmp_path / "s", models={"toy": other, "judge": judge})
    again = Search.load(tmp_path / "s", models={"toy": TOY, "judge": judge})
    assert contents(again.run()) == contents(search.run())
    with pytest.raises(SearchStateError, match=r"two models .* have the name 'toy'"):
        SMC(2).begin(with_models, TOY, other).save(tmp_path / "s")


def test_the_loader_of_models_is_found_by_the_name_that_it_had(tiny):
    row = about(tiny[0])
    assert row["loaded"]["loader"] == "ppl.lm.loading:load"
    row["loaded"]["loader"] = "ppl.lm.load:load"  # as files of before have it
    (again,) = load_again([row], {})
    assert again.name == tiny[0].name
    assert again.origin.loader == "ppl.lm.loading:load"


def test_keys_are_never_written_and_code_of_models_never_run(tiny, tmp_path):
    prm = tiny[1]
    lm = ppl.load("tiny", token="hf_secret")
    search = SMC(2).begin(solve, "Calculate 2 + 2 - 3.", lm, prm, seed=1)
    search.save(tmp_path / "s")
    with zipfile.ZipFile(tmp_path / "s") as archive:
        whole = b"".join(archive.read(name) for name in archive.namelist())
    assert b"hf_secret" not in whole
    refused(tmp_path / "s", "was loaded with token, which files do not keep", Search.load)

    def remote(old):
        meta = json.loads(old)
        for row in meta["models"]:
            row["loaded"] |= {"withheld": [], "settings": {"trust_remote_code": True}}
        return json.dumps(meta).encode()

    rewrite(tmp_path / "s", {"meta.json": remote})
    refused(tmp_path / "s", "asks to run code of the model", Search.load)

    def others(old):
        meta = json.loads(old)
        meta["models"][0]["loaded"] = {"loader": "os:system", "source": "true", "settings": {},
                                       "withheld": []}  # fmt: skip
        return json.dumps(meta).encode()

    rewrite(tmp_path / "s", {"meta.json": others})
    refused(tmp_path / "s", "'os:system' is no function of this library that loads", Search.load)


# -- programs --------------------------------------------------------------------------------------

SCRIPT = """
import pyro, ppl
from programs import TOY
from ppl.searchers import SMC
def program():
    pyro.sample("s", TOY(TOY.prompt("^"), max_tokens=1))
    ppl.condition(True)
SMC(2).begin(program).save("search")
"""


def ran(script: str, folder: Path) -> str:
    """What a script says when it fails, empty if it does not."""
    (folder / "script.py").write_text(script)
    environment = {"PYTHONPATH": f"{HERE}:{HERE.parent}", "PATH": "/usr/bin:/bin"}
    return subprocess.run(
        [sys.executable, "script.py"],
        capture_output=True, text=True, check=False, cwd=folder, env=environment, timeout=900,
    ).stderr  # fmt: skip


def test_programs_of_a_script_are_found_by_one_that_says_the_same(tmp_path):
    assert not ran(SCRIPT, tmp_path)
    with pytest.raises(SearchStateError, match=r"(?s)'program' was .*run its cell.*It was:.*def"):
        Search.load(tmp_path / "search")
    load = SCRIPT.replace('SMC(2).begin(program).save("search")', "Search.load('search').run()")
    load = load.replace("import SMC", "import Search")
    assert not ran(load.replace("    ppl.c", "    # so far\n    ppl.c"), tmp_path)
    other = ran(load.replace("max_tokens=1", "max_tokens=2"), tmp_path)
    assert re.search(
        r"SearchStateError: .*__main__:program is not what it was when the "
        r"search was saved \(`\.\.\..*max_tokens=1\)\)` then, `\.\.\..*max_tokens=2\)\)` now\): "
        r"define it as it was, or hand the one over that is meant: "
        r"Search\.load\(path, program=\.\.\.\)\. It was:\n\ndef program\(\):\n",
        other,
    )


class Callable:
    def __call__(self):
        return toy("prod")

    def method(self):
        return toy("prod")


def closure():
    def inner():
        return toy("prod")

    return inner


@pytest.mark.parametrize(
    "program",
    [
        lambda: toy("prod"),
        Callable(),
        Callable().method,
        partial(lambda kind: toy(kind=kind), "prod"),
        closure(),
        partial(toy, kind=Fraction),  # an argument that is no data
    ],
    ids=["lambda", "object", "method", "partial of a lambda", "closure", "partial of a class"],
)
def test_programs_without_a_name_are_handed_over(program, tmp_path):
    SMC(2).begin(program, seed=1).save(tmp_path / "s")
    with pytest.raises(
        SearchStateError, match=r"its program, .*hand it over, Search\.load\(path, p"
    ):
        Search.load(tmp_path / "s")
    search = SMC(4, 1.0).begin(closure(), seed=1)
    search.step()
    search.save(tmp_path / "t")
    assert contents(Search.load(tmp_path / "t", closure()).run()) == contents(search.run())


MODULE = """
import pyro, ppl
from programs import TOY
IMPORTED = True
def program():
    text = TOY.prompt("^")
    for t in range(3):
        text = text + pyro.sample(f"s_{t}", TOY(text, max_tokens=1, allowed={1, 2}))
        pyro.factor(f"f_{t}", 0.3 * text.text.count("a"))
    return text.text
def guide():
    pass
"""


def test_with_a_program_given_nothing_is_imported(tmp_path, monkeypatch):
    (tmp_path / "a_program_of_this_test.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    import a_program_of_this_test as module

    search = SMC(3, 1.0).begin(module.program, seed=1)
    search.step()
    search.save(tmp_path / "s")
    SMC(3).begin(module.program, guide=module.guide).save(tmp_path / "guided")
    monkeypatch.delitem(sys.modules, module.__name__)
    given = Search.load(tmp_path / "s", module.program)
    assert module.__name__ not in sys.modules
    with pytest.raises(SearchStateError, match="saved with a guide"):
        Search.load(tmp_path / "guided", module.program)
    assert Search.load(tmp_path / "guided", module.program, guide=module.guide).tree.guide
    assert module.__name__ not in sys.modules
    named = Search.load(tmp_path / "s")
    assert module.__name__ in sys.modules
    assert contents(given.run()) == contents(named.run()) == contents(search.run())
    monkeypatch.delitem(sys.modules, module.__name__)


def test_another_program_than_the_one_that_was_saved_is_noticed(tmp_path):
    search = SMC(3, 1.0).begin(toy, seed=1)
    search.step()
    search.save(tmp_path / "s")
    with pytest.warns(UserWarning, match="the program is not what it was .*its lines are others"):
        other = Search.load(tmp_path / "s", branching)
    with pytest.raises(ppl.PPLError, match="on replay"):
        other.run()


# -- files that mean harm --------------------------------------------------------------------------


def changed_state(old: bytes, content) -> bytes:
    return json.dumps({"state": content}).encode()


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        (with_meta(searcher="__import__('os').getpid()"), "names no known class"),
        (with_meta(searcher="SMC(0)"), "num_particles=0"),
        (with_meta(searcher="elsewhere.Mine(1)"), "'elsewhere' cannot be imported"),
        (with_meta(program={"function": "os.path:"}), "is no import path"),
        (with_meta(program={"function": "__main__:nothing"}), "'nothing' was defined in a"),
        (with_meta(program=3), "its program is 3"),
        (with_meta(next=None, budget={"carbon": 1}), "column 'carbon' of Budget"),
        (with_meta(args=[{"model": 7}]), "holds no saved search"),
        ({"nodes.jsonl": lambda _: b""}, "there are no nodes"),
        ({"nodes.jsonl": lambda old: old + old.splitlines()[0]}, "no other, is the root"),
        ({"nodes.jsonl": lambda old: old.replace(b'"depth":1', b'"_particle":1')}, "_particle"),
        ({"state.json": lambda _: b'{"state":{"node":99}}'}, "holds no saved search"),
        ({"state.json": lambda _: b'{"state":{"fields":["subprocess:Popen",{"args":"true"}]}}'},
         "'subprocess:Popen' is no part of a searcher's state"),
        ({"state.json": lambda _: b'{"state":{"fields":["ppl.searchers.search:Search",{}]}}'},
         "is no frozen dataclass"),
        ({"state.json": lambda _: b'{"state":{"fields":["ppl.searchers.state:State",{"a":1}]}}'},
         "column 'a' of State is not known here"),
    ],
)  # fmt: skip
def test_files_that_mean_harm_are_refused_by_name(changes, match, tmp_path):
    search = SMC(2).begin(toy, seed=1)
    search.step()
    search.save(tmp_path / "s")
    rewrite(tmp_path / "s", changes)
    refused(tmp_path / "s", match, Search.load)


def test_a_state_may_hold_no_nodes_from_elsewhere(tmp_path):
    search, other = (BestOfN(2).begin(toy, seed=1) for _ in range(2))
    search.step()
    other.step()
    search.state = other.state
    with pytest.raises(SearchStateError, match="the state Samples holds node 1, which is not in"):
        search.save(tmp_path / "s")
