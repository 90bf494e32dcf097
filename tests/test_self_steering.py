"""Self-steering: a module's law against the same program by hand, faults, hostile modules."""

from __future__ import annotations

import math
import re

import numpy as np
import pyro
import pytest
from bubblewrap import needs_bubblewrap
from served import serve

import ppl
from ppl.errors import ArgumentError, PromptError, SteeringError
from ppl.lm.server import ServerModel
from ppl.lm.warped import warped
from ppl.programs import Fault, Steering, selfsteer, steering_prompt
from ppl.programs.letters import tokens_of
from ppl.searchers import SMC, BeamSearch, BestOfN, Hedged, ParticleGibbs


# Behind `!`, the proposal prompt, and behind a hint, `?`, more a are written, and fewer ends.
def law(prefix: str) -> dict[str, float]:
    if prefix[0] == "^":
        return {"a": 0.5, "b": 0.3, "$": 0.2}
    return {"a": 0.4, "b": 0.3, "$": 0.3} if "?" in prefix else {"a": 0.6, "b": 0.25, "$": 0.15}


TOY = ppl.TableLM(law, symbols="^!?ab$", end="$", name="toy")
PLAIN = {"begin": TOY.prompt, "note": "{hint}"}

# Every word of the API.
WHOLE = """
proposal = "!"

def step(state):
    state.seen = getattr(state, "seen", 0) + 1
    if state.step == 1:
        state.hint("?")
    if state.step == 2:
        state.mask(never="b")
    before = state.text
    written = state.extend(max_tokens=1)
    state.require(state.text == before + written and "?" not in before)
    if state.step == 0:
        state.require(written != "b")
        state.observe("b")
    state.twist(0.7 * state.text.count("a"))
    if state.seen == 4:
        state.finish()

def check(text):
    return text.endswith("a")
"""


def by_hand() -> str | None:
    """The law of WHOLE."""
    text = TOY.prompt("^")
    for t in range(4):
        step = pyro.sample(f"draw_{t}", TOY(text, max_tokens=1))
        text = text + step
        ppl.condition(t != 2 or "b" not in step.text)
        if t == 0:
            ppl.condition(step.text == "a")  # neither b, nor the end, behind which nothing stands
            if step.text != "a":
                return None
            pyro.sample("given", TOY(text), obs=TOY.continuation("b", finished=False))
            text = text + "b"
        if step.finished:
            break
    ppl.condition(text.text.endswith("a"))
    return text.text


SHORT = """
def step(state):
    written = state.extend(max_tokens=1)
    state.require(written != "b" or state.step != 1)
    if state.step == 2:
        state.finish()

def check(text):
    return len(text) > 1
"""


def answering(*modules: str):
    """A planner that says these, one after the other, and what it was told."""
    told: list[list[dict[str, str]]] = []

    def planner(messages):
        told.append(messages)
        return f"Here it is.\n```python\n{modules[min(len(told), len(modules)) - 1]}\n```"

    return planner, told


# -- the law --------------------------------------------------------------------------------------


@needs_bubblewrap
def test_a_module_is_the_same_program_as_written_by_hand():
    with Steering(WHOLE, TOY, **PLAIN) as program:
        scripted = ppl.enumerate_program(program, "^")
    direct = ppl.enumerate_program(by_hand)
    assert scripted.log_evidence == pytest.approx(direct.log_evidence, abs=1e-9)
    assert scripted.marginal() == pytest.approx(direct.marginal())
    assert program.faults == []


@needs_bubblewrap
def test_evidence_is_unbiased_under_hints_masks_and_another_prompt():
    exact = math.exp(ppl.enumerate_program(by_hand).log_evidence)
    runs = 30
    with Steering(WHOLE, TOY, **PLAIN) as program:
        found = SMC(8).run_many(program, ["^"] * runs, guide=program.proposals, seed=range(runs))
        posterior = BestOfN(8).run(program, "^", guide=program.proposals, seed=0)
    z = np.exp([getattr(one, "log_evidence", -math.inf) for one in found])
    error = z.std(ddof=1) / math.sqrt(runs)
    assert abs(z.mean() - exact) < 4 * error < 0.5 * exact
    # What is drawn is weighed by p / q: both laws are as the records have them.
    for sample in posterior.samples:
        drawn = [r for r in sample.records if r.name.startswith("draw_")]
        for t, record in enumerate(drawn):
            text = record.value.text or "$"
            q = law("!?" if t else "!")[text] / (0.7 if t == 2 else 1.0)
            assert record.log_proposal == pytest.approx(math.log(q))
            assert record.log_prior == pytest.approx(math.log(law("^")[text]))
            assert record.log_ratio == pytest.approx(math.log(law("^")[text] / q))


@needs_bubblewrap
def test_one_seed_gives_what_the_program_by_hand_gives():
    def direct() -> str:
        text = TOY.prompt("^")
        for t in range(3):
            step = pyro.sample(f"draw_{t}", TOY(text, max_tokens=1))
            text = text + step
            if t == 1 and step.text == "b":
                ppl.condition(False, "reject_1")
            ppl.twist(f"twist_{t}", 0.0)
            if step.finished:
                break
        ppl.call("check", dict)
        ppl.condition(len(text.text) > 1, "right")
        return text.text

    with Steering(SHORT, TOY, **PLAIN) as program:
        for seed in range(3):
            ours = SMC(8).run(program, "^", seed=seed)
            theirs = SMC(8).run(direct, seed=seed)
            assert alive(ours) == alive(theirs)
            assert ours.log_evidence == theirs.log_evidence


def alive(posterior):
    return [(s.value, s.log_weight) for s in posterior.samples if s.log_weight > -math.inf]


@needs_bubblewrap
def test_the_engines_agree_in_law():
    exact = ppl.enumerate_program(by_hand)
    modes = {}
    for engine, particles in (("smc", 120), ("is", 120), ("rejection", 400)):
        planner, _ = answering(WHOLE)
        found = selfsteer(planner, TOY, "^", particles, 0, engine, **PLAIN, seed=1)
        assert found.faults == ()
        assert str(found) == f"{found.program.strip()}\n\n{found.posterior}"
        marginal = found.posterior.marginal()
        distance = sum(abs(marginal.get(v, 0) - p) for v, p in exact.marginal().items()) / 2
        n = found.posterior.ess
        assert distance < 1.2 * math.sqrt(len(exact.marginal()) / n), engine
        assert found.posterior.log_evidence == pytest.approx(exact.log_evidence, abs=0.7)
        modes[engine] = found.posterior
    kept = [s for s in modes["rejection"].samples if s.log_weight > -math.inf]
    assert {s.log_weight for s in kept} == {0.0}
    assert math.exp(modes["rejection"].log_evidence) == pytest.approx(len(kept) / 400)
    # Equal weights: the weighted share of a property is the plain one.
    plain = sum(s.value == "aba" for s in kept) / len(kept)
    assert modes["rejection"].expectation(lambda v: float(v == "aba")) == pytest.approx(plain)
    # Keeping all that is not ruled out would forget what `observe` costs.
    alive = len([s for s in modes["is"].samples if s.log_weight > -math.inf])
    assert len(kept) / 400 < 0.5 * alive / 120


@needs_bubblewrap
def test_any_searcher_runs_it():
    with Steering(SHORT, TOY, **PLAIN) as program:
        assert BeamSearch(2, 2).run(program, "^", guide=program.proposals, seed=0).best
        assert len(program("^") or "") <= 3  # also outside of a search


@needs_bubblewrap
def test_ancestor_sampling_leaves_the_posterior_under_hints():
    """It scores what the guide could have drawn."""
    with Steering(WHOLE, TOY, **PLAIN) as program:
        exact = ppl.enumerate_program(program, "^").marginal()
        search = ParticleGibbs(12, 40, ancestor_sampling=True)
        found = search.run(program, "^", guide=program.proposals, seed=0).marginal()
    distance = sum(abs(found.get(v, 0) - p) for v, p in exact.items()) / 2
    assert distance < 0.12


@needs_bubblewrap
def test_a_temperature_of_the_law_is_none_of_the_proposal_s():
    """`Hedged` makes the law another one; weights correct for what is drawn from."""
    exact = ppl.enumerate_program(warped(by_hand, temperature=0.7)).log_evidence
    with Steering(WHOLE, TOY, **PLAIN) as program:
        search = Hedged(400, temperature=0.7, min_p=0.0, greedy=0)
        found = search.run(program, "^", guide=program.proposals, seed=0)
    assert found.log_evidence == pytest.approx(exact, abs=0.3)


@needs_bubblewrap
def test_state_is_the_particle_s_and_globals_are_nobody_s():
    module = """
count = 0
def step(state):
    global count
    count += 1
    state.steps = getattr(state, "steps", ()) + (state.step,)
    state.extend(max_tokens=1)
    state.require(count == 1 or count == "no more")
    state.require(state.steps == tuple(range(state.step + 1)))
def check(text):
    return count == 0
"""
    with Steering(module, TOY, **PLAIN, steps=3) as program:
        posterior = SMC(8, 1.0).run(program, "^", seed=2)
        assert posterior.log_evidence == 0
        assert max(len(s.value) for s in posterior.samples) == 3


@needs_bubblewrap
def test_limits_of_text_and_tokens():
    small = ppl.TableLM({"a": 1.0}, symbols="^a$", end="$", context_length=6, name="small")
    module = "def step(state):\n    state.extend()\ndef check(text):\n    return True"
    with Steering(module, small, begin=small.prompt, max_tokens=2, steps=2) as program:
        assert SMC(2).run(program, "^").best == "aaaa"
    with Steering(module, small, begin=small.prompt, max_tokens=4, steps=9) as program:
        assert SMC(2).run(program, "^").best == "aaaaa"  # all that the context holds


# -- faults ---------------------------------------------------------------------------------------

CHECK = "\ndef check(text):\n    return True\n"
FRAGILE = SHORT.replace("if state.step == 2", "1 / (state.text != 'ab')\n    if state.step == 2")


@needs_bubblewrap
def test_what_one_particle_raises_leaves_the_others_as_they_are():
    """The law is that of the module given that nothing is raised."""
    with Steering(FRAGILE.replace('written != "b" or ', "True or "), TOY, **PLAIN) as program:
        exact = ppl.enumerate_program(program, "^")
        program.faults.clear()
        posterior = SMC(64, 0.0).run(program, "^", seed=0)
        (fault,) = program.faults
    assert not any(value.startswith("ab") for value in exact.marginal())
    assert {s.value for s in posterior.samples if s.finished and s.log_weight > -math.inf} <= set(
        exact.marginal()
    )
    assert re.fullmatch(r"site 'step_1\.1' of particle \d+", fault.where)
    assert "1 / (state.text != 'ab')" in fault.said
    assert fault.said.endswith("ZeroDivisionError: division by zero")
    dead = [s for s in posterior.samples if s.log_weight == -math.inf]
    assert 0 < len(dead) < 64


WIDE = ppl.TableLM(law, symbols="^!?ab$", end="$", context_length=256, name="wide")


@needs_bubblewrap
@pytest.mark.parametrize(
    ("asks", "said"),
    [
        ("for _ in range(65): state.observe('a')", "step 0 asks more than 64 times"),
        ("for _ in range(9): state.observe('a' * 32)", "no room to observe 'aaa"),
        ("state.observe('Z')", "symbols ['Z'] are not in the alphabet"),
        ("state.hint('Z'); state.extend()", "symbols ['Z'] are not in the alphabet"),
        ("state.mask(only='Z', end=False); state.extend()", "leaves no token"),
    ],
)
def test_what_one_particle_asks_in_vain_leaves_the_others_as_they_are(asks, said):
    module = f"def step(state):\n    if state.extend(max_tokens=1) == 'a':\n        {asks}\n"
    module += "    state.finish()\ndef check(text):\n    return True"
    with Steering(module, WIDE, begin=WIDE.prompt, note="{hint}") as program:
        exact = ppl.enumerate_program(program, "^")
        program.faults.clear()
        posterior = SMC(16).run(program, "^", guide=program.proposals, seed=0)
        (fault,) = program.faults
    assert exact.marginal() == pytest.approx({"b": 0.6, "": 0.4})  # given that it is not a
    assert {s.value for s in posterior.samples if s.log_weight > -math.inf} == {"b", ""}
    assert re.fullmatch(r"site 'step_0\.\d+' of particle \d+", fault.where)
    assert said in fault.said


@needs_bubblewrap
def test_rejection_keeps_what_a_budget_cut_off_with_a_twist_in_its_weight():
    planner, _ = answering(
        "def step(state):\n    state.extend(max_tokens=1); state.twist(999)" + CHECK
    )
    found = selfsteer(planner, TOY, "^", 8, 0, "rejection", **PLAIN, budget=ppl.Budget(tokens=4))
    assert (found.posterior.stopped, found.posterior.log_evidence) == ("budget", None)
    assert found.posterior.best is not None


@needs_bubblewrap
def test_a_planner_without_room_for_the_faults_leaves_what_there_is():
    module = FRAGILE.replace('written != "b" or ', "True or ")
    room = len(steering_prompt.first("^", 32, 64)) + len(module) + 50
    found = selfsteer(writer(module, room), TOY, "^", 32, 3, **PLAIN)
    assert len(found.attempts) == 1
    assert found.faults
    assert found.posterior.best is not None
    with pytest.raises(PromptError):
        selfsteer(writer(module, 99), TOY, "^", 32, 3, **PLAIN)


@needs_bubblewrap
def test_a_faulty_module_is_mended():
    planner, told = answering(WHOLE.replace("state.seen ==", "state.sen =="), WHOLE)
    found = ppl.selfsteer(planner, TOY, "^", 16, **PLAIN)
    assert [bool(attempt.faults) for attempt in found.attempts] == [True, False]
    assert found.faults == ()
    assert found.program == found.attempts[1].module
    assert found.posterior.best is not None
    first, second = told
    assert [m["role"] for m in second] == ["user", "assistant", "user"]
    assert second[0] == first[0]
    assert "AttributeError: 'State' object has no attribute 'sen'" in second[2]["content"]
    assert re.search(r"site 'step_\d\.\d' of particle \d+", second[2]["content"])
    assert found.cost.lm_tokens == sum(a.cost.lm_tokens for a in found.attempts)


@needs_bubblewrap
@pytest.mark.parametrize(
    ("module", "said"),
    [
        ("def step(state)", "SyntaxError"),
        ("def step(state):\n    pass", "no function check"),
        ("import nothing_of_this_name", "ModuleNotFoundError"),
        (SHORT + "\nprior = 3", "prior is no string"),
        (SHORT.replace("len(text) > 1", "False"), "no particle is left"),
        (SHORT.replace("len(text) > 1", "1 / 0"), "line 9, in check"),
        (SHORT.replace("max_tokens=1", "max_tokens=0"), "a whole number above 0"),
        (SHORT.replace("max_tokens=1", "'', 1"), "a string, or several"),
        (SHORT.replace("state.require", "state.keep = open; state.require"), "keeps in its state"),
        (SHORT.replace("def step", "async def step"), "step() has not run"),
        (SHORT.replace("state.finish", "yield state.finish"), "step() has not run"),
        (SHORT.replace("def check", "async def check"), "check() has not run"),
        (SHORT.replace("state.require", "state.twist(1e308); state.twist(1e308); state.require"),
         "finite in sum"),
        (
            "import random\ndef step(state):\n    state.extend(max_tokens=1 + int(1e9 * "
            "random.random()))\n    state.extend()\ndef check(text):\n    return True",
            "not deterministic",
        ),
        (
            "def step(state):\n    try:\n        state.extend()\n    except BaseException:\n"
            "        pass\ndef check(text):\n    return True",
            "catch Exception, not everything",
        ),
        ("def step(state):\n    state.observe('x')\ndef check(text):\n    return True", "x"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_module_is_said(module, said):
    planner, told = answering(module)
    with pytest.raises(SteeringError) as caught:
        selfsteer(planner, TOY, "^", 4, 1, **PLAIN)
    assert len(caught.value.attempts) == len(told) == 2
    assert said in str(caught.value.attempts[0].faults[0])
    assert said in told[1][-1]["content"]


@needs_bubblewrap
def test_where_all_modules_have_faults_the_last_that_gave_a_text_is_taken():
    planner, _ = answering(FRAGILE.replace('written != "b" or ', "True or "))
    found = selfsteer(planner, TOY, "^", 32, 1, **PLAIN)
    assert len(found.attempts) == 2
    assert found.posterior is found.attempts[1].posterior
    assert [type(fault) for fault in found.faults] == [Fault]


@needs_bubblewrap
def test_a_budget_limits_every_search():
    planner, _ = answering(WHOLE)
    found = selfsteer(planner, TOY, "^", 64, 0, "is", **PLAIN, budget=ppl.Budget(tokens=60))
    assert found.posterior.stopped == "budget"
    assert found.posterior.cost.lm_tokens <= 60


# -- masks, planners ------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["tiny", "tiny-lines"])
def test_masks_are_of_characters(source):
    lm = ppl.load(source)
    pieces = [lm.codec.piece(t).decode(errors="replace") for t in range(lm.codec.size)]
    special = lm.codec.special_tokens.keys() | lm.codec.end_tokens
    for only, never in ((None, "3\n"), ("12 +", ""), ("12 +", "2")):
        for end in (True, False):
            mask = tokens_of(lm, only, never, end)
            for token, allowed in enumerate(mask.tolist()):
                if token in special:
                    assert allowed == (end and token in lm.codec.end_tokens)
                else:
                    fits = only is None or set(pieces[token]) <= set(only)
                    assert allowed == (
                        bool(pieces[token]) and fits and not set(pieces[token]) & set(never)
                    )
    assert tokens_of(lm, "1", "", False).sum() >= 1


@needs_bubblewrap
def test_a_mask_that_leaves_nothing_is_a_fault():
    planner, _ = answering(WHOLE.replace('never="b"', 'never="ab!?^", end=False'))
    with pytest.raises(SteeringError, match="leaves no token"):
        selfsteer(planner, TOY, "^", 4, 0, **PLAIN)


def writer(module: str = SHORT, context_length: int = 9000) -> ppl.TableLM:
    """A language model that answers whatever it is asked with a module."""
    said = f"```python{module}```"
    letters = "".join(sorted({*map(chr, range(32, 127)), "\n"}))

    def spelled(prefix: str) -> dict[str, float]:
        answer = prefix.rpartition("and nothing else.\n")[2]
        return {said[len(answer)]: 1.0} if len(answer) < len(said) else {"\x00": 1.0}

    return ppl.TableLM(
        spelled,
        symbols=letters + "\x00",
        end="\x00",
        context_length=context_length,
        name="writer",
    )


@needs_bubblewrap
def test_a_model_plans():
    found = selfsteer(writer(), TOY, "^", 16, 0, **PLAIN)
    assert found.program.strip() == SHORT.strip()
    assert found.attempts[0].cost.models["writer"].lm_tokens > 100
    assert found.cost.models["toy"].lm_tokens == found.posterior.cost.lm_tokens


@needs_bubblewrap
def test_a_served_model_plans():
    planner = writer()
    with serve(planner) as server:
        remote = ServerModel(server.url, "writer", tokenizer=planner.codec)
        found = selfsteer(remote, TOY, "^", 16, 0, **PLAIN, planner_tokens=400)
        assert [asked["max_tokens"] for asked in server.asked].count(400) == 1
    assert found.program.strip() == SHORT.strip()
    assert found.faults == ()


def test_arguments():
    planner, _ = answering(SHORT)
    for wrong in (
        {"engine": "mcmc"},
        {"particles": 0},
        {"retries": -1},
        {"planner": "tiny"},
        {"task": 3},
        {"temperature": 0.0},
    ):
        given = {"planner": planner, "follower": TOY, "task": "^", **PLAIN} | wrong
        with pytest.raises((ArgumentError, ValueError), match=f"{next(iter(wrong))}="):
            selfsteer(**given)
    with pytest.raises(SteeringError, match="no string"):
        selfsteer(lambda messages: 3, TOY, "^", **PLAIN)
