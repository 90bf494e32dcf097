"""One process that speaks the JSON protocol of leanprover-community/repl.

`lake exe repl` reads JSON objects separated by blank lines. `{"cmd": ..., "env": k}` is answered by
`{"env": n, "messages": [{"severity", "data", ...}], "sorries": [{"proofState", "goal"}]}`, and
`{"tactic": ..., "proofState": k}` by `{"proofState": n, "goals": [...], "proofStatus": ...}`, or by
`{"message": "Lean error: ..."}`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from ppl.errors import LeanError, WorkerError
from ppl.runtime.worker import Process, WorkerTimeoutError

# Lean quotes the word with apostrophes or, since 2025, with backticks.
_SORRY = re.compile(r"declaration uses .sorry.")


class TimeLimitError(LeanError):
    """No reply within the limit."""


class Lean:
    """One process, and all its children (`lake` starts Lean as one)."""

    def __init__(self, command: Sequence[str], folder: str | None) -> None:
        try:
            self.process = Process(command, "Lean", blocks=True, folder=folder)
        except WorkerError as error:
            raise LeanError(str(error)) from error

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self.process.alive

    def command(self, cmd: str, env: int | None, seconds: float) -> dict[str, Any]:
        """The reply to a command in an environment.

        Raises:
            LeanError: none in time, the process ended, or it breaks the protocol.
        """
        request = {"cmd": cmd} if env is None else {"cmd": cmd, "env": env}
        reply = self._ask(request, seconds)
        if not isinstance(reply.get("env"), int) or not _are_objects(reply, "messages", "sorries"):
            raise LeanError(f"Lean refused the request: {str(reply)[:200]}")
        return reply

    def tactic(self, tactic: str, state: int, seconds: float) -> dict[str, Any] | str:
        """The reply to a tactic in a proof state; a string says why it is refused.

        A tactic that fails may still leave no goals: what could not be understood is then taken for
        granted, and only messages and `proofStatus` say so.

        Raises:
            LeanError: as of `command`.
        """
        reply = self._ask({"tactic": tactic, "proofState": state}, seconds)
        message = reply.get("message")
        if isinstance(message, str) and message.startswith("Lean error"):
            return message
        goals, status = reply.get("goals"), str(reply.get("proofStatus", ""))
        if (
            not isinstance(reply.get("proofState"), int)
            or not isinstance(goals, list)
            or not all(isinstance(goal, str) for goal in goals)
            or not _are_objects(reply, "messages", "sorries")
        ):
            raise LeanError(f"Lean refused the request: {str(reply)[:200]}")
        for said in reply.get("messages", ()):
            if said.get("severity") == "error":
                return str(said.get("data"))
        if complains(reply) or reply.get("sorries"):
            return "it uses sorry"
        if not goals and status not in ("", "Completed"):
            return status
        return reply

    def stop(self) -> None:
        """Kills it and its children."""
        self.process.stop()

    def _ask(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        try:
            # As UTF-8: of symbols beyond 16 bits Lean long misread the escapes (lean4 issue 5445).
            self.process.tell(json.dumps(request, ensure_ascii=False))
            reply = self.process.hear(seconds, "checking")
        except WorkerTimeoutError as error:
            raise TimeLimitError(str(error)) from error
        except WorkerError as error:
            raise LeanError(str(error)) from error
        except BaseException:  # interrupted: its answer would be taken for the next
            self.stop()
            raise
        try:
            found = json.loads(reply)
        except (ValueError, RecursionError) as error:
            raise LeanError(f"Lean answered {reply[:100]!r}, which is no JSON") from error
        if not isinstance(found, dict):
            raise LeanError(f"Lean refused the request: {reply[:200]}")
        return found


def stop_all(processes: list[Lean]) -> None:
    """Ends the processes and empties the list."""
    while processes:
        processes.pop().stop()


def complains(reply: dict[str, Any]) -> bool:
    """Whether a reply has an error, or a warning that something is assumed."""
    return any(
        message.get("severity") == "error" or _SORRY.search(str(message.get("data")))
        for message in reply.get("messages", ())
    )


def _are_objects(reply: dict[str, Any], *names: str) -> bool:
    lists = [reply.get(name, []) for name in names]
    return all(isinstance(each, list) and all(isinstance(e, dict) for e in each) for each in lists)
