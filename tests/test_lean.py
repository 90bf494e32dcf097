"""The Lean protocol, against a script that speaks it. No Lean is needed."""

from __future__ import annotations

import contextlib
import math
import sys
from pathlib import Path

import pytest
from work import until

import ppl
from ppl.errors import LeanError
from ppl.verifiers import LeanProof, LeanRepl, check_verifier

# Knows one theorem and its own environments; replies over several lines and ends each with a blank
# one, as the real one. Writes down its process number when it starts; does not where "broken" lies.
FAKE = r"""
import json, os, pathlib, sys, time
folder = pathlib.Path(sys.argv[1])
if (folder / "broken").exists(): sys.exit(1)
with open(folder / "started", "a") as file: print(os.getpid(), file=file)
block = ""
axioms = "'t' does not depend on any axioms"
made, served = [], 0
for line in sys.stdin:
    if line.strip():
        block += line
        continue
    if "\\ud" in block: block = '{"cmd": "cannot read surrogate pairs"}'  # nor could Lean, long
    request = json.loads(block); block = ""
    cmd, env = request["cmd"], request.get("env")
    if env is not None and env >= len(made):
        print('{"message": "Unknown environment."}\n', flush=True); continue
    reply = {"env": len(made)}; made.append((made[env] if env is not None else "") + cmd)
    message = lambda severity, data: [{"severity": severity, "pos": {"line": 1}, "data": data}]
    if cmd.startswith("example"): pass
    elif cmd.startswith("import"): time.sleep(("Slow" in cmd) + 600 * ("Never" in cmd))
    elif cmd.startswith("#print axioms"):
        reply["messages"] = message("info", axioms)
    elif "hang" in cmd: time.sleep(600)
    elif "die" in cmd or "old" in cmd and served: sys.exit(1)
    elif "junk" in cmd: print("not json\n", flush=True); continue
    elif "odd" in cmd: reply["messages"] = ["of another kind"]
    elif "refused" in cmd: reply = {"message": "Could not parse JSON"}
    elif "hole" in cmd:
        reply["messages"] = message("warning", "declaration uses 'sorry'")
    elif "choice" in cmd: axioms = "'t' depends on axioms: [propext, Classical.choice]"
    elif "trust" in cmd: axioms = "'t' depends on axioms: [propext, Lean.ofReduceBool]"
    elif "rfl" not in cmd or "needs" in cmd and "import Nat" not in made[-1]:
        reply["messages"] = message("error", "unsolved goals")
    served += "theorem" in cmd
    print(json.dumps(reply, indent=1) + "\n", flush=True)
"""
STATEMENT = "theorem t : 1 + 1 = 2 :="


class Patient(LeanRepl):
    """Waits long for all but what hangs: no machine is too slow for it."""

    def proves(self, statement, proof, **options):
        self.seconds = 0.5 if proof == "hang" else 60.0
        return super().proves(statement, proof, **options)


@pytest.fixture
def lean(tmp_path):
    """Starts the fake, under a shell as Lean runs under lake. `folder` is where it keeps notes."""
    made = []

    def start(**limits):
        command = ["sh", "-c", f'{sys.executable} -c "$0" "$1"; exit $?', FAKE, str(tmp_path)]
        made.append(Patient(command, **limits))
        return made[-1]

    start.folder = tmp_path
    yield start
    for repl in made:
        repl.close()


def started(lean):
    """Numbers of the processes there were."""
    return [int(line) for line in (lean.folder / "started").read_text().split()]


def ended(pid):
    """Whether the process ends within a moment (one that is dead and not buried yet has)."""
    stat = Path(f"/proc/{pid}/stat")

    def dead():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            return stat.read_text().rpartition(")")[2].split()[0] in "ZX"
        return True

    return until(dead)


@pytest.mark.parametrize(
    ("proof", "accepted"),
    [
        ("by rfl", True),
        ("by choice", True),
        ("by simp", False),
        ("by hole", False),  # only a warning
        ("by rfl; sorry", False),
        ("by rfl\naxiom cheat : False", False),
        ("by native_decide; rfl", False),
        ("by rfl -- in 𝓝 x", True),
        ("by trust", False),  # an axiom beyond the standard ones
    ],
)
def test_proofs(lean, proof, accepted):
    with lean() as repl:
        assert repl.proves(STATEMENT, proof, name="t") is accepted


@pytest.mark.parametrize(
    ("proof", "verdict", "processes"),
    [
        ("hang", False, 2),  # it does not prove it in time
        ("die", None, 3),  # no verdict, also not from a fresh process
        ("junk", None, 3),
        ("odd", None, 3),
        ("refused", None, 3),
        ("by rfl -- old", True, 2),  # dies of what the process did before
    ],
)
def test_a_bad_proof_costs_its_process_and_nothing_else(lean, proof, verdict, processes):
    with lean() as repl:
        assert repl.proves(STATEMENT, "by rfl", name="t") is True
        assert repl.proves(STATEMENT, proof, name="t") is verdict
        assert repl.proves(STATEMENT, "by rfl", name="t") is True
        assert repl.proves(STATEMENT, "by simp", name="t") is False
        pids = started(lean)
        assert len(pids) == processes
        assert all(map(ended, pids[:-1]))
    assert ended(pids[-1])


def test_environments_are_made_again(lean):
    with lean() as repl:
        nothing = repl.command("def unused := 0")["env"]
        imports = repl.command("import Nat")["env"]
        env = repl.command("open Nat", imports)["env"]
        assert repl.command("import Nat")["env"] > env > imports > nothing
        for proof, verdict in (("by rfl needs", True), ("hang", False), ("die", None)):
            assert repl.proves(STATEMENT, proof, name="t", env=env) is verdict
            assert repl.proves(STATEMENT, "by rfl needs", name="t", env=env) is True
            assert repl.proves(STATEMENT, "by rfl needs", name="t", env=nothing) is False
        assert repl.command("needs rfl", env).get("messages") is None
        with pytest.raises(LeanError, match="no environment 7"):
            repl.proves(STATEMENT, "by rfl", name="t", env=7)


def test_imports_have_a_limit_of_their_own(lean):
    with lean(seconds=0.5) as repl:
        env = repl.command("import Slow")["env"]
        assert repl.proves(STATEMENT, "hang", name="t", env=env) is False
        repl.seconds = 0.5  # nor is the new process, which imports again, hurried by it
        assert repl.command("#print axioms t", env)["messages"]
        assert repl.proves(STATEMENT, "by rfl", name="t", env=env) is True
    with lean() as repl:
        repl.setup_seconds = 0.5
        with pytest.raises(LeanError, match=r"within 0\.5 s"):
            repl.command("import Never")


def test_an_old_process_is_replaced(lean):
    with lean(renew_after=2) as repl:
        env = repl.command("import Nat")["env"]
        for _ in range(5):
            assert repl.proves(STATEMENT, "by rfl needs", name="t", env=env)
        assert len(started(lean)) == 3


def test_lean_that_does_not_start_is_an_error(lean):
    with pytest.raises(LeanError, match="install Lean"):
        LeanRepl(["no-such-command-anywhere"])
    repl = lean()
    (lean.folder / "broken").touch()
    assert repl.proves(STATEMENT, "hang", name="t") is False
    with pytest.raises(LeanError, match=r"does not start .*died while"):
        repl.proves(STATEMENT, "by rfl", name="t")
    (lean.folder / "broken").unlink()
    assert repl.proves(STATEMENT, "by rfl", name="t")
    with pytest.raises(ValueError, match="renew_after=0"):
        lean(renew_after=0)


def test_commands_that_fail_are_errors(lean):
    with lean(setup_seconds=60) as repl:
        for cmd, says in (("die", "died"), ("junk", "JSON"), ("refused", "Could not parse")):
            with pytest.raises(LeanError, match=says):
                repl.command(cmd)
        assert repl.command("import Nat")["env"] == 0


def test_as_a_verifier(lean):
    lm = ppl.TableLM({"$": 1.0}, symbols="^by rflsimhangde$", end="$")
    with lean() as repl:
        proof = LeanProof(repl, STATEMENT, name="t", floor=0.01)
        texts = [lm.prompt("^") + s for s in ("by rfl", "by sim")]
        assert "batch" in check_verifier(proof, texts)
        # Those that give no answer end nothing, and are not taken for one another.
        texts = [lm.prompt("^") + s for s in ("hang", "die", "by sim", "by rfl")]
        asked = proof.judge_checked([ppl.JudgeRequest(proof, text) for text in texts])
        assert [math.exp(score) for (score,) in asked] == pytest.approx([0.01, 0.5, 0.01, 0.99])
    with pytest.raises(ValueError, match="unknown=2"):
        LeanProof(repl, STATEMENT, name="t", unknown=2)
