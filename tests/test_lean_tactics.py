"""Lean's tactic mode, against a script whose replies are those of the REPL's own tests."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys

import pytest
from work import until

from ppl.errors import LeanError
from ppl.runtime.worker import Process
from ppl.verifiers import LeanRepl, ProofState, TacticError

FAKE = r"""
import json, os, pathlib, sys, time
folder = pathlib.Path(sys.argv[1])
with open(folder / "started", "a") as file: print(os.getpid(), file=file)
block, made, states = "", [], []
def shown(goals): return ["p q : Prop\nh : p ∧ q\n⊢ " + goal for goal in goals]
def said(data, severity="error"):
    return [{"severity": severity, "pos": {"line": 0, "column": 0}, "data": data}]
def answer(request):
    if "cmd" in request:
        cmd = request["cmd"]
        made.append(cmd)
        reply = {"env": len(made) - 1}
        if "nonsense" in cmd: return reply | {"messages": said("unknown identifier")}
        if cmd.endswith("by sorry"):
            goal = cmd.rpartition(" : ")[2].partition(" :=")[0]
            states.append([goal])
            hole = {"proofState": len(states) - 1, "goal": shown([goal])[0]}
            warning = said("declaration uses `sorry`", "warning")
            return reply | {"sorries": [hole], "messages": warning}
        if "#print" in cmd:
            if cmd.partition("axioms ")[2] not in ("t", "«odd name».t"):
                return reply | {"messages": said("unknown constant")}
            return reply | {"messages": said("'t' does not depend on any axioms", "info")}
        if "tricky" in cmd: return reply | {"messages": said("fail to show termination")}
        return reply
    tactic, number = request["tactic"], request["proofState"]
    with open(folder / "asked", "a") as file: print(tactic, file=file)
    if number >= len(states): return {"message": "Unknown proof state."}
    goals = list(states[number])
    reply = {}
    if tactic == "constructor" and " ∧ " in goals[0]: goals[:1] = goals[0].split(" ∧ ", 1)
    elif tactic == "assumption" and len(goals[0]) == 1: goals.pop(0)
    elif tactic == "tricky": goals.pop(0)
    elif tactic == "swap": goals.append(goals.pop(0))
    elif tactic == "clock": goals[0] += " at " + str(os.getpid())
    elif tactic == "exact fake":
        goals, reply["messages"] = [], said("Unknown identifier `fake`")
        reply["proofStatus"] = "Incomplete: contains sorry"
    elif tactic == "apply t":
        goals, reply["proofStatus"] = [], "Error: kernel type check failed: (kernel)"
    elif tactic == "have by hole": reply["sorries"] = [{"proofState": 0, "goal": "⊢ p"}]
    elif tactic == "hang": time.sleep(600)
    elif tactic == "die" or (tactic == "old" and len(states) > 3): sys.exit(1)
    elif tactic == "old": goals.pop(0)
    elif tactic == "junk": return {"goals": "none"}
    else: return {"message": "Lean error:\n<input>:1:1: unknown tactic"}
    states.append(goals)
    status = "Completed" if not goals else "Incomplete: open goals remain"
    return {"proofState": len(states) - 1, "goals": shown(goals), "proofStatus": status} | reply
for line in sys.stdin:
    if line.strip():
        block += line
        continue
    request = json.loads(block); block = ""
    if request.get("tactic") == "talk": print('{"proofState": 7, "goals": []}\n', flush=True)
    if request.get("tactic") == "nest": print("[" * 100_000 + "\n", flush=True)
    print(json.dumps(answer(request)) + "\n", flush=True)
"""
STATEMENT = "theorem t (h : p ∧ q) : p ∧ q ∧ p :="


@pytest.fixture
def lean(tmp_path):
    made = []

    def start(**limits):
        made.append(LeanRepl([sys.executable, "-c", FAKE, str(tmp_path)], **limits))
        return made[-1]

    start.folder = tmp_path
    yield start
    for repl in made:
        repl.close()


def lines(lean, name):
    return (lean.folder / name).read_text().split("\n")[:-1]


def applied(repl, state, *tactics):
    for tactic in tactics:
        state = repl.apply(state, tactic)
        assert isinstance(state, ProofState), state
    return state


def test_a_proof_tactic_by_tactic(lean):
    with lean() as repl:
        begun = repl.start(STATEMENT)
        assert begun == ProofState(STATEMENT, (), ("p q : Prop\nh : p ∧ q\n⊢ p ∧ q ∧ p",))
        two = repl.apply(begun, "constructor")
        assert [g.rpartition("⊢ ")[2] for g in two.goals] == ["p", "q ∧ p"]
        # A state stays as it is: both go on from it.
        assert applied(repl, two, "assumption", "constructor").goals[0].endswith("q")
        assert [g[-1] for g in applied(repl, two, "swap", "constructor").goals] == ["q", "p", "p"]
        end = applied(repl, two, "assumption", "constructor", "assumption", "assumption")
        assert end.done
        assert (
            end.proof
            == "by\n  constructor\n  assumption\n  constructor\n  assumption\n  assumption"
        )
        assert repl.accepts(end, name="t") is repl.accepts(end) is True
        assert repl.accepts(two, name="t") is False


def test_a_killed_process_rebuilds_all_states(lean):
    with lean() as repl:
        begun = repl.start(STATEMENT)
        two = repl.apply(begun, "constructor")
        states = [begun, two, applied(repl, two, "swap"), applied(repl, two, "assumption")]
        before = [repl.apply(state, "constructor") for state in states]
        for _ in range(2):
            os.kill(int(lines(lean, "started")[-1]), signal.SIGKILL)
            assert [repl.apply(state, "constructor") for state in states] == before
        assert len(lines(lean, "started")) == 3
    # States are data: another process, which never saw them, takes them from a file.
    stored = json.loads(json.dumps([dataclasses.asdict(state) for state in states]))
    read = [ProofState(s["statement"], tuple(s["tactics"]), tuple(s["goals"])) for s in stored]
    assert read == states
    with lean() as other:
        assert [other.apply(state, "constructor") for state in reversed(read)] == before[::-1]


def test_what_is_known_is_not_done_again(lean):
    with lean() as repl:
        deep = applied(repl, repl.start(STATEMENT), "constructor", "assumption", "constructor")
        repl.close()
        for tactic in ("assumption", "swap", "nothing"):
            repl.apply(deep, tactic)
        again = ["constructor", "assumption", "constructor"]
        assert lines(lean, "asked") == [*again, *again, "assumption", "swap", "nothing"]


@pytest.mark.parametrize(
    ("tactic", "says"),
    [
        ("nothing", "unknown tactic"),
        ("exact fake", "Unknown identifier"),  # leaves no goals, and proves nothing
        ("apply t", "kernel type check"),  # likewise: the theorem by itself
        ("have by hole", "sorry"),
        ("sorry", "sorry assumes"),
        ("exact native_decide", "native_decide assumes"),
    ],
)
def test_tactics_that_are_refused(lean, tactic, says):
    with lean() as repl:
        begun = repl.start(STATEMENT)
        error = repl.apply(begun, tactic)
        assert isinstance(error, TacticError)
        assert says in error.message
        assert error.refused
        assert len(lines(lean, "started")) == 1


def test_no_goal_left_is_no_proof_before_the_whole_is_checked(lean):
    with lean() as repl:
        end = applied(repl, repl.start("theorem t : p :="), "tricky")
        assert end.done
        assert repl.accepts(end, name="t") is False
        assert "no goals" in repl.apply(end, "assumption").message


@pytest.mark.parametrize(
    ("tactic", "refused", "processes"), [("hang", True, 2), ("die", False, 3), ("junk", False, 3)]
)
def test_a_tactic_that_fails_costs_its_process(lean, tactic, refused, processes):
    with lean() as repl:
        two = applied(repl, repl.start(STATEMENT), "constructor")
        repl.seconds = 0.5 if tactic == "hang" else 60.0
        error = repl.apply(two, tactic)
        repl.seconds = 60.0
        assert isinstance(error, TacticError)
        assert error.refused is refused
        assert applied(repl, two, "assumption").goals[0].endswith("q ∧ p")
        assert len(lines(lean, "started")) == processes


def test_a_process_that_fails_of_old_age_is_no_fault_of_the_tactic(lean):
    with lean() as repl:
        begun = repl.start(STATEMENT)
        two = applied(repl, begun, "constructor")
        applied(repl, two, "swap", "swap", "swap")
        assert applied(repl, two, "old").tactics == ("constructor", "old")
        assert len(lines(lean, "started")) == 2
    with lean(renew_after=2) as repl:
        two = applied(repl, repl.start(STATEMENT), "constructor")
        for _ in range(4):
            applied(repl, two, "swap")
        assert len(lines(lean, "started")) == 2 + 3


def test_tactics_that_do_not_repeat_are_an_error(lean):
    with lean() as repl:
        late = applied(repl, repl.start(STATEMENT), "clock")
        repl.close()
        with pytest.raises(LeanError, match="lead to other goals"):
            repl.apply(late, "swap")


def test_statements_that_lean_refuses(lean):
    with lean() as repl:
        with pytest.raises(LeanError, match=r"no theorem: unknown identifier"):
            repl.start("theorem nonsense :=")
        assert repl.start(STATEMENT).tactics == ()


@pytest.mark.parametrize(
    "statement",
    [
        "theorem t(h : p): p :=",
        "theorem t.{u} {p : Sort u} (h : p) : p :=",
        "/-- A lemma about p. -/\ntheorem t: p :=",
        "lemma first : q := trivial\ntheorem t {p : Prop} : p :=",
        "theorem «odd name».t : p :=",
    ],
)
def test_a_theorem_s_name_is_found_in_its_statement(lean, statement):
    with lean() as repl:
        end = applied(repl, repl.start(statement), "old")
        assert repl.accepts(end) is True


def test_no_reply_is_taken_for_the_next(lean, monkeypatch):
    """What a tactic made Lean print, and an answer that nobody waited for, are dropped."""
    with lean() as repl:
        begun = repl.start(STATEMENT)
        repl.apply(begun, "talk")
        assert until(lambda: not repl._held[0].process._replies.empty())  # both have been said
        assert len(applied(repl, begun, "constructor").goals) == 2

        def interrupted(self, limit, doing):
            monkeypatch.undo()
            raise KeyboardInterrupt

        monkeypatch.setattr(Process, "hear", interrupted)
        with pytest.raises(KeyboardInterrupt):
            repl.apply(begun, "swap")
        assert len(applied(repl, begun, "constructor").goals) == 2
        nested = repl.apply(begun, "nest")
        assert isinstance(nested, TacticError)
        assert not nested.refused
