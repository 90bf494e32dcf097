"""The Lean protocol, against a script that speaks it. No Lean is needed."""

from __future__ import annotations

import math
import sys

import pytest

import ppl
from ppl.errors import LeanError
from ppl.verifiers import LeanProof, LeanRepl, check_verifier

# Knows one theorem; replies over several lines and ends each with a blank one, as the real one.
FAKE = r"""
import json, sys, time
block = ""
axioms = "'t' does not depend on any axioms"
env = 0
for line in sys.stdin:
    if line.strip():
        block += line
        continue
    request = json.loads(block); block = ""
    cmd = request["cmd"]
    reply = {"env": env}; env += 1
    message = lambda severity, data: [{"severity": severity, "pos": {"line": 1}, "data": data}]
    if cmd.startswith("#print axioms"):
        reply["messages"] = message("info", axioms)
    elif "hang" in cmd: time.sleep(60)
    elif "die" in cmd: sys.exit(1)
    elif "junk" in cmd: print("not json\n", flush=True); continue
    elif "unknown" in cmd: reply = {"message": "Unknown environment."}
    elif "hole" in cmd:
        reply["messages"] = message("warning", "declaration uses 'sorry'")
    elif "choice" in cmd: axioms = "'t' depends on axioms: [propext, Classical.choice]"
    elif "trust" in cmd: axioms = "'t' depends on axioms: [propext, Lean.ofReduceBool]"
    elif "rfl" not in cmd: reply["messages"] = message("error", "unsolved goals")
    print(json.dumps(reply, indent=1) + "\n", flush=True)
"""
STATEMENT = "theorem t : 1 + 1 = 2 :="


def lean(seconds=20.0):
    return LeanRepl([sys.executable, "-c", FAKE], seconds=seconds)


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
        ("by trust", False),  # an axiom beyond the standard ones
    ],
)
def test_proofs(proof, accepted):
    with lean() as repl:
        assert repl.proves(STATEMENT, proof, name="t") is accepted


@pytest.mark.parametrize(
    ("proof", "says"),
    [("hang", "within"), ("die", "ended"), ("junk", "JSON"), ("unknown", "Unknown environment")],
)
def test_protocol_errors_are_no_failed_proofs(proof, says):
    with lean(seconds=1) as repl, pytest.raises(LeanError, match=says):
        repl.proves(STATEMENT, proof, name="t")


def test_missing_lean_is_named():
    with pytest.raises(LeanError, match="install Lean"):
        LeanRepl(["no-such-command-anywhere"])


def test_as_a_verifier():
    lm = ppl.TableLM({"$": 1.0}, symbols="^by rflsim$", end="$")
    with lean() as repl:
        proof = LeanProof(repl, STATEMENT, name="t", floor=0.01)
        texts = [lm.prompt("^") + s for s in ("by rfl", "by sim")]
        assert "batch" in check_verifier(proof, texts)
        scores = [proof(text).log_probability for text in texts]
    assert scores == pytest.approx([math.log(0.99), math.log(0.01)])
