"""What may go wrong at the boundaries: always a `PPLError` that says where, and nothing is lost.

Complements `test_language.py`, which has every kind of error once.
"""

from __future__ import annotations

import pickle
import random
import shutil
import sys
import types
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from accuracy_vs_budget import solve
from programs import TOY, VERIFIERS, toy

import ppl
from ppl import errors
from ppl.lm.load import TINY
from ppl.searchers import MCTS, SMC, BeamSearch, BestOfN, Search
from ppl.verifiers import PRM, FunctionVerifier

ALL = [BestOfN(3), SMC(3), BeamSearch(2, 2), MCTS(4)]
each = pytest.mark.parametrize("searcher", ALL, ids=lambda s: type(s).__name__)


def boom(*_: object) -> None:
    raise RuntimeError("boom")


def run(program, **options) -> ppl.Posterior:
    return SMC(3).run(program, **options)


def one_step(**options):
    return lambda: pyro.sample("s", TOY(TOY.prompt("^"), **options))


def judged(verifier):
    def program():
        text = TOY.prompt("^") + pyro.sample("s", TOY(TOY.prompt("^"), max_tokens=1))
        pyro.sample("ok", verifier(text), obs=True)

    return program


@pytest.fixture(scope="module")
def tiny() -> tuple[ppl.HFModel, PRM]:
    return ppl.load("tiny"), PRM.load("tiny")


# -- the program and what it hands over --------------------------------------------------------


@pytest.mark.parametrize("option", [{"until": boom}, {"allowed": boom}], ids=["until", "allowed"])
def test_callables_of_the_program_that_raise(option):
    with pytest.raises(errors.ProgramError, match=r"until= or allowed=.*site 's' of.*boom") as info:
        run(one_step(max_tokens=2, **option))
    assert isinstance(info.value.__cause__, RuntimeError)


def test_the_runtime_is_usable_after_a_failed_batch():
    expected = SMC(3).run(toy, "prod", seed=1).best
    with pytest.raises(errors.ProgramError):
        SMC(3).run_many(lambda u: one_step(max_tokens=2, until=u)(), ["b", boom])
    assert SMC(3).run(toy, "prod", seed=1).best == expected


@pytest.mark.parametrize("token", [-1, 99])
def test_allowed_tokens_the_model_does_not_have(token):
    with pytest.raises(errors.NoAllowedTokenError, match=f"token {token}"):
        run(one_step(max_tokens=1, allowed={1, token}))


def test_allowed_tokens_of_probability_zero():
    with pytest.raises(errors.WeightError, match=r"site 's' of particle \d.*allowed="):
        run(one_step(max_tokens=1, allowed={0}))


def test_tables_that_are_no_distribution():
    lm = ppl.TableLM({"a": 0.5}, symbols="^a$", name="halves")
    with pytest.raises(errors.ProgramError, match=r"halves.*site 's'.*distribution"):
        run(lambda: pyro.sample("s", lm(lm.prompt("^"), max_tokens=1)))


def test_models_with_broken_weights_are_named(tiny, monkeypatch):
    lm, whole = tiny[0], tiny[0].logits
    monkeypatch.setattr(lm, "logits", lambda hidden: whole(hidden) * float("nan"))
    with pytest.raises(errors.WeightError, match=r"site 's' of particle \d.*weights and dtype"):
        run(lambda: pyro.sample("s", lm(lm.chat("Calculate 1 + 1."), max_tokens=2)))


def test_an_exception_names_the_last_site_and_keeps_its_type():
    def program():
        pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.factor("f", torch.tensor(0.0))
        pyro.sample("y", dist.Normal(0.0, 1.0))
        raise LookupError("lost")

    for searcher in ALL:
        with pytest.raises(errors.ProgramError, match=r"LookupError: lost.*particle \d+.*'y'") as e:
            searcher.run(program)
        assert isinstance(e.value.__cause__, LookupError)


def test_guides_that_raise_or_propose_another_kind():
    def model():
        pyro.sample("s", TOY(TOY.prompt("^"), max_tokens=1))

    with pytest.raises(errors.ProgramError, match="RuntimeError: boom"):
        run(model, guide=boom)
    with pytest.raises(errors.ObservationError, match=r"guide's value at site 's' of particle 1"):
        run(model, guide=lambda: pyro.sample("s", dist.Normal(0.0, 1.0)))


# -- verifiers ---------------------------------------------------------------------------------


class Own(ppl.Verifier):
    name = "own"

    def __init__(self, answer) -> None:
        self.answer = answer

    def judge(self, requests):
        return self.answer(requests)


@pytest.mark.parametrize(
    "answer",
    [boom, lambda r: None, lambda r: [None] * len(r), lambda r: [["good"]] * len(r)],
    ids=["raises", "None", "Nones", "strings"],
)
def test_own_verifiers_that_raise_are_named(answer):
    with pytest.raises(errors.VerifierError, match=r"own raised at site 'ok' of particle 1") as e:
        run(judged(Own(answer)))
    assert e.value.__cause__ is not None


def test_a_function_that_forgets_to_return_is_named():
    with pytest.raises(errors.VerifierError, match=r"forgets at site 'ok' of particle 1.*None"):
        run(judged(FunctionVerifier(lambda _: None, name="forgets")))


@pytest.mark.parametrize("make", [PRM.load, lambda s, **_: VERIFIERS["last"]], ids=["prm", "fn"])
def test_verifiers_judge_texts(make):
    with pytest.raises(TypeError, match="judges a Text, got str"):
        make("tiny")("a string")


def test_prm_settings():
    with pytest.raises(ValueError, match="aggregate="):
        PRM.load("tiny", aggregate="median")
    with pytest.raises(ValueError, match="floor="):
        PRM.load("tiny", floor=0.7)
    with pytest.raises(ValueError, match="aggregate="):
        FunctionVerifier(boom, aggregate="median")


# -- loading -----------------------------------------------------------------------------------


def rewritten(name: str, content: bytes):
    return lambda folder: (folder / name).write_bytes(content)


DAMAGE = {
    "config is no JSON": rewritten("config.json", b"{"),
    "config is a list": rewritten("config.json", b"[]"),
    "unknown kind": rewritten("config.json", b'{"model_type": "nothing-like-it"}'),
    "weights are junk": rewritten("model.safetensors", b"junk" * 9),
    "weights are empty": rewritten("model.safetensors", b""),
    "weights are cut off": lambda folder: rewritten(
        "model.safetensors", (folder / "model.safetensors").read_bytes()[:20_000]
    )(folder),
    "weights are missing": lambda folder: (folder / "model.safetensors").unlink(),
    "tokenizer is junk": rewritten("tokenizer.json", b"{"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_model_folders(damage, tmp_path):
    folder = tmp_path / "damaged"
    shutil.copytree(TINY / "lm", folder)
    DAMAGE[damage](folder)
    with pytest.raises(errors.ModelNotFoundError, match="damaged"):
        ppl.load(folder)


@pytest.mark.parametrize("content", [b"", b"junk", b"GGUF\x03\0\0\0"])
def test_damaged_gguf_files_leave_nothing_behind(content, tmp_path, monkeypatch):
    monkeypatch.setenv("PPL_CACHE", str(tmp_path / "cache"))
    (tmp_path / "model.gguf").write_bytes(content)
    with pytest.raises(errors.ModelNotFoundError, match=r"model\.gguf"):
        ppl.load(tmp_path / "model.gguf")
    assert not list((tmp_path / "cache" / "gguf").iterdir())


def test_a_file_is_no_model_folder(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(errors.ModelNotFoundError, match=r"config\.json"):
        ppl.load(tmp_path / "file")


def test_a_language_model_is_no_reward_model():
    """Its scoring head would be random numbers."""
    with pytest.raises(errors.ModelNotFoundError, match=r"lack the weights score"):
        PRM.load(TINY / "lm", good="LABEL_1", bad="LABEL_0")


# -- budgets -----------------------------------------------------------------------------------

TIGHT = [{"tokens": 0}, {"tokens": 1}, {"calls": 0}, {"calls": 1}, {"seconds": 0}]


@each
@pytest.mark.parametrize("limits", TIGHT, ids=str)
def test_next_to_no_budget(searcher, limits):
    posterior = searcher.run(toy, "prod", budget=ppl.Budget(**limits))
    assert posterior.stopped == "budget"
    assert (posterior.best, posterior.vote(), posterior.log_evidence) == (None, None, None)
    assert posterior.cost.lm_tokens <= limits.get("tokens", 1)
    assert posterior.cost.calls <= limits.get("calls", 99)
    if "seconds" in limits:
        assert posterior.cost.lm_tokens == 0
    assert "budget" in str(posterior)
    assert posterior.genealogy.number_of_nodes() >= 1
    for ask in (lambda: posterior.sample(0), lambda: posterior.expectation(float)):
        with pytest.raises(errors.SearchStateError, match="no finished particle"):
            ask()


@each
def test_budgets_hold_on_a_real_model_too(searcher, tiny):
    lm, prm = tiny
    for limit in (1, 25):
        budget = ppl.Budget(tokens=limit)
        posterior = searcher.run(solve, "Calculate 4 - 9 + 6.", lm, prm, budget=budget)
        assert posterior.cost.lm_tokens <= limit


def test_one_question_out_of_budget_leaves_the_others_alone():
    """The budget is each question's own."""
    alone = SMC(3).run(toy, "last", seed=2, budget=ppl.Budget(tokens=9))
    runs = SMC(3).run_many(toy, ["last"] * 3, seed=[1, 2, 3], budget=ppl.Budget(tokens=9))
    assert all(r.cost.lm_tokens <= 9 for r in runs)
    assert [s.value for s in runs[1].samples] == [s.value for s in alone.samples]


# -- files -------------------------------------------------------------------------------------


def test_garbage_never_escapes_as_another_error(tmp_path):
    rng = random.Random(0)
    for _ in range(300):
        (tmp_path / "g").write_bytes(rng.randbytes(rng.randint(0, 8)))
        for load in (ppl.Posterior.load, Search.load):
            with pytest.raises(errors.SearchStateError):
                load(tmp_path / "g")


@pytest.mark.parametrize("content", [3, ("ppl-posterior-1", 3), ("ppl-search-1", 3), ("a", "b")])
def test_pickles_of_something_else(content, tmp_path):
    (tmp_path / "other").write_bytes(pickle.dumps(content))
    for load in (ppl.Posterior.load, Search.load):
        with pytest.raises(errors.SearchStateError, match="other"):
            load(tmp_path / "other")


def test_a_posterior_is_no_search_and_the_reverse(tmp_path):
    SMC(2).run(toy, "prod").save(tmp_path / "posterior")
    SMC(2).begin(toy, "prod").save(tmp_path / "search")
    with pytest.raises(errors.SearchStateError, match="posterior"):
        Search.load(tmp_path / "posterior")
    with pytest.raises(errors.SearchStateError, match="search"):
        ppl.Posterior.load(tmp_path / "search")


def test_programs_that_are_gone_when_their_search_is_loaded(tmp_path, monkeypatch):
    module = types.ModuleType("a_module_of_this_test")
    module.program = types.FunctionType(toy.__code__, toy.__globals__, "program")
    module.program.__qualname__ = "program"
    module.program.__module__ = module.__name__
    monkeypatch.setitem(sys.modules, module.__name__, module)
    SMC(2).begin(module.program).save(tmp_path / "search")
    monkeypatch.setitem(sys.modules, module.__name__, types.ModuleType(module.__name__))
    with pytest.raises(errors.SearchStateError, match="program"):
        Search.load(tmp_path / "search")
    monkeypatch.delitem(sys.modules, module.__name__)
    with pytest.raises(errors.SearchStateError, match="a_module_of_this_test"):
        Search.load(tmp_path / "search")


def test_results_that_cannot_be_saved_leave_the_old_file(tmp_path):
    path: Path = tmp_path / "posterior"
    good = SMC(2).run(toy, "prod")
    good.save(path)
    with pytest.raises(errors.SearchStateError, match="pickled"):
        run(lambda: lambda: None).save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["posterior"]
    assert str(ppl.Posterior.load(path)) == str(good)
