"""Lean 4 proofs, through the published JSON protocol of leanprover-community/repl.

`lake exe repl` reads JSON objects separated by blank lines: `{"cmd": ..., "env": k}` is answered by
`{"env": n, "messages": [{"severity", "data", ...}], "sorries": [...]}`. This file was tested
against a script that speaks the protocol, and not against Lean itself. Lean evaluates code while it
checks (`#eval`, macros): give `command` a sandbox of its own for proofs that a model wrote.
"""

from __future__ import annotations

import json
import math
import queue
import re
import subprocess
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import IO, Any, Self

from ppl.errors import LeanError
from ppl.text import Text
from ppl.verdict import JudgeRequest, Verifier

_CHEATS = re.compile(r"\b(sorry|admit|axiom|native_decide|unsafe|implemented_by|opaque|macro\w*)\b")
_AXIOMS = re.compile(r"depends on axioms: \[([^\]]*)\]")
_STANDARD = {"propext", "Classical.choice", "Quot.sound"}


class LeanRepl:
    """One process that speaks the protocol.

    Args:
        command: starts it, such as `["lake", "exe", "repl"]`.
        folder: where; the Lean project.
        seconds: limit for one reply.

    Raises:
        LeanError: it does not start.
    """

    def __init__(
        self, command: Sequence[str], *, folder: str | None = None, seconds: float = 60.0
    ) -> None:
        self.seconds = seconds
        try:
            self._process = subprocess.Popen(
                command,
                cwd=folder,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                encoding="utf-8",
            )
        except OSError as error:
            raise LeanError(
                f"{' '.join(command)} does not start ({error}); install Lean"
            ) from error
        self._replies: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        assert self._process.stdout is not None
        self._reader = threading.Thread(
            target=_blocks, args=(self._process.stdout, self._replies), daemon=True
        )
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def command(self, cmd: str, env: int | None = None) -> dict[str, Any]:
        """The reply to one command in environment `env` (imports only without).

        Raises:
            LeanError: no reply in time, the process ended, or the reply is no JSON object.
        """
        request = {"cmd": cmd} if env is None else {"cmd": cmd, "env": env}
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n\n")
            self._process.stdin.flush()
            reply = self._replies.get(timeout=self.seconds)
        except (OSError, ValueError) as error:
            raise LeanError(f"the Lean process is gone ({error})") from error
        except queue.Empty:
            self.close()
            raise LeanError(f"Lean did not answer within {self.seconds} s") from None
        if reply is None:
            raise LeanError("the Lean process ended without an answer")
        try:
            found = json.loads(reply)
        except ValueError as error:
            raise LeanError(f"Lean answered {reply[:100]!r}, which is no JSON") from error
        if not isinstance(found, dict) or "env" not in found:
            raise LeanError(f"Lean refused the request: {reply[:200]}")
        return found

    def proves(self, statement: str, proof: str, *, name: str, env: int | None = None) -> bool:
        """Whether `statement` followed by `proof` is accepted, without cheating.

        Accepted means: no message of severity error, no `sorry` (which is only a warning), no word
        in the proof that assumes what it should prove, and no axioms beyond the three standard
        ones.

        Args:
            statement: up to and with `:=`; it is sent as it stands.
            proof: what comes after it.
            name: the theorem's name in the statement.
            env: environment with the imports.

        Raises:
            LeanError: nothing is known about the proof.
        """
        if _CHEATS.search(proof):
            return False
        reply = self.command(f"{statement} {proof}", env)
        if reply.get("sorries") or _complains(reply):
            return False
        asked = self.command(f"#print axioms {name}", reply["env"])
        if _complains(asked):
            return False
        said = " ".join(str(message.get("data", "")) for message in asked.get("messages", ()))
        if "does not depend on any axioms" in said:
            return True
        found = _AXIOMS.search(said)
        return found is not None and {a.strip() for a in found[1].split(",")} <= _STANDARD

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.wait()
        self._reader.join(timeout=5)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()


class LeanProof(Verifier):
    """Whether a text proves a theorem: probability one or zero, moved inside by `floor`.

    Args:
        repl: a running Lean.
        statement, name, env: as in `LeanRepl.proves`.
        extract: finds the proof in a text; all of it by default.
        floor: scores are clipped to [floor, 1 - floor].
    """

    def __init__(
        self,
        repl: LeanRepl,
        statement: str,
        *,
        name: str,
        env: int | None = None,
        extract: Callable[[Text], str] = lambda text: text.text,
        floor: float = 1e-6,
    ) -> None:
        self.repl, self.statement, self.theorem, self.env = repl, statement, name, env
        self.extract, self.floor = extract, floor
        self.name, self.meaning = f"LeanProof({name})", "outcome"

    def judge(self, requests: Sequence[JudgeRequest]) -> list[Sequence[float]]:
        proofs = [self.extract(request.text) for request in requests]
        known = {
            p: self.repl.proves(self.statement, p, name=self.theorem, env=self.env)
            for p in dict.fromkeys(proofs)
        }
        return [[0.0 if known[p] else -math.inf] for p in proofs]


def _complains(reply: dict[str, Any]) -> bool:
    return any(
        message.get("severity") == "error" or "declaration uses 'sorry'" in str(message.get("data"))
        for message in reply.get("messages", ())
    )


def _blocks(stream: IO[str], replies: queue.SimpleQueue[str | None]) -> None:
    """Hands on what stands between blank lines, then None."""
    block = ""
    for line in stream:
        if line.strip():
            block += line
        elif block:
            replies.put(block)
            block = ""
    replies.put(block or None)
    if block:
        replies.put(None)
