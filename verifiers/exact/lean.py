"""Lean 4 proofs, through the published JSON protocol of leanprover-community/repl.

`lake exe repl` reads JSON objects separated by blank lines: `{"cmd": ..., "env": k}` is answered by
`{"env": n, "messages": [{"severity", "data", ...}], "sorries": [...]}`. This file was tested
against a script that speaks the protocol, and not against Lean itself. Lean evaluates code while it
checks (`#eval`, macros): give `command` a sandbox of its own for proofs that a model wrote.
"""

from __future__ import annotations

import json
import math
import re
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Self

from ppl.errors import LeanError, WorkerError
from ppl.language import checks
from ppl.language.arguments import checked
from ppl.language.text import Text
from ppl.runtime.process import forget_in_children
from ppl.runtime.verdict import JudgeRequest, Verifier
from ppl.runtime.worker import Process, WorkerTimeoutError

_CHEATS = re.compile(r"\b(sorry|admit|axiom|native_decide|unsafe|implemented_by|opaque|macro\w*)\b")
_AXIOMS = re.compile(r"depends on axioms: \[([^\]]*)\]")
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
        renew_after: proofs per process: Lean keeps the environment of every command, so its memory
            only grows.

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
        self._proofs = 0  # that the present process has seen
        self._held: list[_Lean] = []
        self._lock = threading.RLock()
        self._finalizer = weakref.finalize(self, _stop_all, self._held)
        forget_in_children(self)
        self._ready(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the process; a later call starts a new one."""
        with self._lock:
            _stop_all(self._held)
            self._numbers, self._proofs = {}, 0

    def forget(self) -> None:
        """In a forked child: the process is the parent's; the next request starts another."""
        self._held.clear()
        self._numbers, self._proofs = {}, 0
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
                reply = self._held[0].ask(cmd, here, self.setup_seconds)
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
                except _TimeLimitError:
                    self.close()
                    return False
                except LeanError:
                    self.close()
        return None

    def _accepts(self, theorem: str, name: str, here: int | None) -> bool:
        reply = self._held[0].ask(theorem, here, self.seconds)
        if reply.get("sorries") or _complains(reply):
            return False
        asked = self._held[0].ask(f"#print axioms {name}", reply["env"], self.seconds)
        if _complains(asked):
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
            self._held.append(_Lean(self._start, self.folder))
            # A process that cannot do this says nothing about any proof.
            self._held[0].ask("example : True := trivial", None, self.setup_seconds)
        if env is None:
            return None
        if env not in self._numbers:
            cmd, parent = self._made[env]
            here = self._here(parent)
            self._numbers[env] = self._held[0].ask(cmd, here, self.setup_seconds)["env"]
        return self._numbers[env]


class _TimeLimitError(LeanError):
    """No reply within the limit."""


class _Lean:
    """One process that speaks the protocol, and all its children (`lake` starts Lean as one)."""

    def __init__(self, command: Sequence[str], folder: str | None) -> None:
        try:
            self.process = Process(command, "Lean", blocks=True, folder=folder)
        except WorkerError as error:
            raise LeanError(str(error)) from error

    @property
    def alive(self) -> bool:
        return self.process.alive

    def ask(self, cmd: str, env: int | None, seconds: float) -> dict[str, Any]:
        request = {"cmd": cmd} if env is None else {"cmd": cmd, "env": env}
        try:
            # As UTF-8: of symbols beyond 16 bits Lean long misread the escapes (lean4 issue 5445).
            self.process.tell(json.dumps(request, ensure_ascii=False))
            reply = self.process.hear(seconds, "checking")
        except WorkerTimeoutError as error:
            raise _TimeLimitError(str(error)) from error
        except WorkerError as error:
            raise LeanError(str(error)) from error
        try:
            found = json.loads(reply)
        except ValueError as error:
            raise LeanError(f"Lean answered {reply[:100]!r}, which is no JSON") from error
        if not _well_formed(found):
            raise LeanError(f"Lean refused the request: {reply[:200]}")
        answer: dict[str, Any] = found
        return answer

    def stop(self) -> None:
        self.process.stop()


def _stop_all(processes: list[_Lean]) -> None:
    while processes:
        processes.pop().stop()


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


def _complains(reply: dict[str, Any]) -> bool:
    return any(
        message.get("severity") == "error" or "declaration uses 'sorry'" in str(message.get("data"))
        for message in reply.get("messages", ())
    )


def _well_formed(reply: object) -> bool:
    if not isinstance(reply, dict) or not isinstance(reply.get("env"), int):
        return False
    messages = reply.get("messages", [])
    return isinstance(messages, list) and all(isinstance(m, dict) for m in messages)
