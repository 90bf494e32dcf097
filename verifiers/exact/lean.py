"""Lean 4 proofs, through the published JSON protocol of leanprover-community/repl.

Whole proofs (`LeanRepl.proves`, `LeanProof`), and proofs tactic by tactic (`start`, `apply`,
`accepts`). Tested against a script that speaks the protocol, with replies copied from the tests of
that repository, and not against Lean itself. Lean evaluates code while it checks (`#eval`, macros):
give `command` a sandbox of its own for proofs that a model wrote.
"""

from __future__ import annotations

import math
import re
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Self

from ppl.errors import LeanError
from ppl.language import checks
from ppl.language.arguments import checked
from ppl.language.text import Text
from ppl.runtime.process import forget_in_children
from ppl.runtime.verdict import JudgeRequest, Verifier
from ppl.verifiers.exact.lean_process import Lean, TimeLimitError, complains, stop_all
from ppl.verifiers.exact.proof_state import ProofState, TacticError

_CHEATS = re.compile(r"\b(sorry|admit|axiom|native_decide|unsafe|implemented_by|opaque|macro\w*)\b")
_AXIOMS = re.compile(r"depends on axioms: \[([^\]]*)\]")
_Path = tuple[str, int | None, tuple[str, ...]]  # statement, environment, tactics
# Up to a universe `.{u}`, a binder or the colon, none of which needs a space before it.
_NAME = re.compile(r"\b(?:theorem|lemma)\s+((?:«[^»]*»|[^\s:(\[{⦃«.]|\.(?!\{))+)")
_STANDARD = {"propext", "Classical.choice", "Quot.sound"}


class LeanRepl:
    """Lean behind the protocol: one process, replaced by a fresh one when it fails or grows old.

    A proof that hangs, kills Lean or makes it talk nonsense costs its process and nothing else: the
    next proof finds a fresh one, in which the environments it needs have been made again. Any
    thread may ask, one at a time; a forked child asks a process of its own.

    Args:
        command: starts it, such as `["lake", "exe", "repl"]`.
        folder: where; the Lean project.
        seconds: limit for one reply about a proof.
        setup_seconds: limit for the start, and for one reply to `command` (imports are slow).
        renew_after: proofs, or tactics, per process: Lean keeps every environment and every proof
            state, so its memory only grows.

    Raises:
        LeanError: it does not start, also at a second attempt.
        ValueError: a limit is not positive.
    """

    @checked
    def __init__(
        self,
        command: Sequence[str],
        *,
        folder: str | None = None,
        seconds: float = 60.0,
        setup_seconds: float = 300.0,
        renew_after: int = 200,
    ) -> None:
        if not command:
            raise ValueError("command=[]: what starts Lean, such as ['lake', 'exe', 'repl']")
        if not (0 < seconds < math.inf and 0 < setup_seconds < math.inf and renew_after >= 1):
            raise ValueError(
                f"seconds={seconds}, setup_seconds={setup_seconds}, renew_after={renew_after}: "
                "limits are positive and finite"
            )
        self._start, self.folder = list(command), folder
        self.seconds, self.setup_seconds, self.renew_after = seconds, setup_seconds, renew_after
        self._made: list[tuple[str, int | None]] = []  # how each environment came about
        self._numbers: dict[int, int] = {}  # what the present process calls it
        self._states: dict[_Path, int] = {}  # likewise, of proof states
        self._proofs = 0  # and tactics, that the present process has seen
        self._held: list[Lean] = []
        self._lock = threading.RLock()
        self._finalizer = weakref.finalize(self, stop_all, self._held)
        forget_in_children(self)
        self._ready(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the process; a later call starts a new one."""
        with self._lock:
            stop_all(self._held)
            self._numbers, self._states, self._proofs = {}, {}, 0

    def forget(self) -> None:
        """In a forked child: the process is the parent's; the next request starts another."""
        self._held.clear()
        self._numbers, self._states, self._proofs = {}, {}, 0
        self._lock = threading.RLock()

    def command(self, cmd: str, env: int | None = None) -> dict[str, Any]:
        """The reply to one command of yours in environment `env` (imports only without).

        Its `"env"` names the new environment and stays valid when the process is replaced. For
        proofs that a model wrote see `proves`.

        Raises:
            LeanError: Lean does not start, no reply in time, the process ended, or the reply breaks
                the protocol.
        """
        with self._lock:
            here = self._ready(env)
            try:
                reply = self._held[0].command(cmd, here, self.setup_seconds)
            except LeanError:
                self.close()
                raise
            number = len(self._made)
            self._made.append((cmd, env))
            self._numbers[number] = reply["env"]
            return reply | {"env": number}

    def proves(
        self, statement: str, proof: str, *, name: str, env: int | None = None
    ) -> bool | None:
        """Whether `statement` followed by `proof` is accepted, without cheating.

        Accepted means: no message of severity error, no `sorry` (which is only a warning), no word
        in the proof that assumes what it should prove, no axioms beyond the three standard ones,
        and all that within the time limit. None if there is no verdict: the process ended or broke
        the protocol over it, and so did a fresh one.

        Args:
            statement: up to and with `:=`; it is sent as it stands.
            proof: what comes after it.
            name: the theorem's name in the statement.
            env: environment with the imports, as `command` names it.

        Raises:
            LeanError: Lean does not start, or does not make `env` again.
        """
        if _CHEATS.search(proof):
            return False
        # Twice: the first process may suffer from what earlier proofs left in it.
        for _ in range(2):
            with self._lock:
                if self._proofs >= self.renew_after:
                    self.close()
                here = self._ready(env)
                self._proofs += 1
                try:
                    return self._accepts(f"{statement} {proof}", name, here)
                except TimeLimitError:
                    self.close()
                    return False
                except LeanError:
                    self.close()
        return None

    def start(self, statement: str, *, env: int | None = None) -> ProofState:
        """The state in which nothing of the statement is proved.

        Args:
            statement: up to and with `:=`, as in `proves`.
            env: environment with the imports, as `command` names it.

        Raises:
            LeanError: Lean refuses the statement, gives no reply within `setup_seconds`, or does
                not start.
        """
        state = ProofState(statement, (), (), env)
        with self._lock:
            self._ready(env)
            try:
                goals = self._begin(state)
            except LeanError:
                self.close()
                raise
        return replace(state, goals=goals)

    def apply(self, state: ProofState, tactic: str) -> ProofState | TacticError:
        """The state after a tactic, or what is wrong with it; `state` stays as it is.

        A process that does not know the state, being a fresh one, first does all its tactics again.
        A tactic that runs over `seconds` or ends Lean costs its process; where a fresh one fails
        over it too, the error says that there is no verdict (`refused=False`).

        Args:
            state: from `start` or `apply`, of this process or any other, with the environments of
                `command` made alike.
            tactic: one tactic; it applies to the first goal, unless it says otherwise.

        Raises:
            LeanError: Lean does not start; or the tactics of `state` do not lead there again.
        """
        if state.done:
            return TacticError("no goals are left")
        if found := _CHEATS.search(tactic):
            return TacticError(f"{found[0]} assumes what is to be proved")
        said = ""
        for attempt in range(2):
            with self._lock:
                if self._proofs >= self.renew_after:
                    self.close()
                self._ready(state.env)
                try:
                    self._rebuild(state)
                except LeanError:
                    if attempt:
                        raise
                    continue
                self._proofs += 1
                try:
                    return self._after(state, tactic)
                except TimeLimitError as error:
                    self.close()
                    return TacticError(str(error))
                except LeanError as error:
                    self.close()
                    said = str(error)
        return TacticError(said, refused=False)

    def accepts(self, state: ProofState, *, name: str | None = None) -> bool | None:
        """Whether a state without goals is a proof: all its tactics, checked as one by `proves`.

        That no goal is left does not make it one: tactic mode trusts tactics, and a proof that uses
        the theorem itself shows only here.

        Args:
            state: of which no goal is left.
            name: the theorem's name in the statement; found there if it is left out.

        Raises:
            ValueError: the statement has no name.
        """
        if not state.done:
            return False
        if name is None:
            found = _NAME.findall(state.statement)
            if not found:
                raise ValueError(f"name=None: {state.statement[:60]!r} is no named theorem")
            name = found[-1]  # comments and what it builds on come before
        return self.proves(state.statement, state.proof, name=name, env=state.env)

    def _begin(self, state: ProofState) -> tuple[str, ...]:
        """Has the present process start a proof; its goals."""
        here = self._here(state.env)
        reply = self._held[0].command(f"{state.statement} by sorry", here, self.setup_seconds)
        holes = reply.get("sorries", [])
        wrong = [m.get("data") for m in reply.get("messages", ()) if m.get("severity") == "error"]
        told = len(holes) == 1 and isinstance(holes[0].get("goal"), str)
        if wrong or not told or not isinstance(holes[0].get("proofState"), int):
            raise LeanError(
                f"{state.statement[:80]!r} followed by a proof is no theorem: "
                f"{wrong[0] if wrong else f'{len(holes)} goals to begin with'}"
            )
        self._states[state.statement, state.env, ()] = holes[0]["proofState"]
        return (holes[0]["goal"],)

    def _after(self, state: ProofState, tactic: str) -> ProofState | TacticError:
        number = self._states[state.statement, state.env, state.tactics]
        reply = self._held[0].tactic(tactic, number, self.seconds)
        if isinstance(reply, str):
            return TacticError(reply)
        after = replace(state, tactics=(*state.tactics, tactic), goals=tuple(reply["goals"]))
        self._states[after.statement, after.env, after.tactics] = reply["proofState"]
        return after

    def _rebuild(self, state: ProofState) -> None:
        """Sees to it that the present process knows the state."""
        statement, env, tactics = state.statement, state.env, state.tactics
        known = len(tactics)
        while known >= 0 and (statement, env, tactics[:known]) not in self._states:
            known -= 1
        if known == len(tactics):
            return
        try:
            goals = self._begin(ProofState(statement, (), (), env)) if known < 0 else ("",)
            now: ProofState | TacticError = ProofState(
                statement, tactics[: max(known, 0)], goals, env
            )
            for tactic in tactics[max(known, 0) :]:
                assert isinstance(now, ProofState)
                now = self._after(now, tactic)
                if isinstance(now, TacticError):
                    raise LeanError(f"{tactic!r} was accepted before and is not now: {now.message}")
        except LeanError:
            self.close()
            raise
        if now != state:
            self.close()
            raise LeanError(
                f"the tactics {'; '.join(tactics)!r} lead to other goals than before; what depends "
                "on time or chance cannot be searched"
            )

    def _accepts(self, theorem: str, name: str, here: int | None) -> bool:
        reply = self._held[0].command(theorem, here, self.seconds)
        if reply.get("sorries") or complains(reply):
            return False
        asked = self._held[0].command(f"#print axioms {name}", reply["env"], self.seconds)
        if complains(asked):
            return False
        said = " ".join(str(message.get("data", "")) for message in asked.get("messages", ()))
        if "does not depend on any axioms" in said:
            return True
        found = _AXIOMS.search(said)
        return found is not None and {a.strip() for a in found[1].split(",")} <= _STANDARD

    def _ready(self, env: int | None) -> int | None:
        """Sees to a process that runs and has environment `env`; its number there."""
        if env is not None and not 0 <= env < len(self._made):
            raise LeanError(f"no environment {env}: `command` has made {len(self._made)} so far")
        if self._held and not self._held[0].alive:
            self.close()
        try:
            return self._here(env)
        except LeanError:
            self.close()
        try:
            return self._here(env)
        except LeanError as error:
            self.close()
            raise LeanError(
                f"{' '.join(self._start)} does not start ({error}); install Lean, and try the "
                "command by hand"
            ) from error

    def _here(self, env: int | None) -> int | None:
        if not self._held:
            self._held.append(Lean(self._start, self.folder))
            # A process that cannot do this says nothing about any proof.
            self._held[0].command("example : True := trivial", None, self.setup_seconds)
        if env is None:
            return None
        if env not in self._numbers:
            cmd, parent = self._made[env]
            here = self._here(parent)
            self._numbers[env] = self._held[0].command(cmd, here, self.setup_seconds)["env"]
        return self._numbers[env]


class LeanProof(Verifier):
    """Whether a text proves a theorem: probability one or zero, moved inside by `floor`.

    Args:
        repl: Lean.
        statement, name, env: as in `LeanRepl.proves`.
        extract: finds the proof in a text; all of it by default.
        unknown: probability that stands for a proof on which Lean gives no verdict. One that runs
            over its time is not such: it does not prove the theorem within the limit.
        floor: scores are clipped to [floor, 1 - floor].
    """

    @checked
    def __init__(
        self,
        repl: LeanRepl,
        statement: str,
        *,
        name: str,
        env: int | None = None,
        extract: Callable[[Text], str] = lambda text: text.text,
        unknown: float = 0.5,
        floor: float = 1e-6,
    ) -> None:
        checks.floor(floor=floor)
        if not 0 <= unknown <= 1:
            raise ValueError(f"unknown={unknown}: must be a probability")
        self.repl, self.statement, self.theorem, self.env = repl, statement, name, env
        self.extract, self.unknown, self.floor = extract, unknown, floor
        self.name, self.meaning = f"LeanProof({name})", "outcome"

    def judge(self, requests: Sequence[JudgeRequest]) -> list[Sequence[float]]:
        """One log-score per text: its proof is checked, equal proofs once."""
        proofs = [self.extract(request.text) for request in requests]
        known = {
            p: self.repl.proves(self.statement, p, name=self.theorem, env=self.env)
            for p in dict.fromkeys(proofs)
        }
        return [[self._log_score(known[p])] for p in proofs]

    def _log_score(self, proved: bool | None) -> float:
        score = self.unknown if proved is None else float(proved)
        return math.log(score) if score > 0 else -math.inf
