"""Proofs tactic by tactic: what a state is, and who can say what a tactic does to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class ProofState:
    """How far a proof has come: plain data from which any process can rebuild it.

    Attributes:
        statement: what is to be proved.
        tactics: what was done, in order.
        goals: what is left to prove, the first being the next; none if nothing is.
        env: the environment of the statement, where the prover has several.
    """

    statement: str
    tactics: tuple[str, ...]
    goals: tuple[str, ...]
    env: int | None = None

    @property
    def done(self) -> bool:
        """No goal is left. Whether that is a proof is for `accepts` to say."""
        return not self.goals

    @property
    def proof(self) -> str:
        """The tactics as one proof: `by`, and a line for each."""
        return "by\n" + "\n".join("  " + t.replace("\n", "\n  ") for t in self.tactics)


@dataclass(frozen=True)
class TacticError:
    """A tactic that leads nowhere.

    Attributes:
        message: what was said about it.
        refused: False where there is no verdict, because the prover failed over it.
    """

    message: str
    refused: bool = True


class Prover(Protocol):
    """What searches over proofs need: `LeanRepl` and `Propositional` are provers."""

    def start(self, statement: str) -> ProofState:
        """The state in which nothing of the statement is proved."""

    def apply(self, state: ProofState, tactic: str) -> ProofState | TacticError:
        """The state after a tactic, or what is wrong with it."""

    def accepts(self, state: ProofState) -> bool | None:
        """Whether a state without goals is a proof, checked as a whole; None for no verdict."""
