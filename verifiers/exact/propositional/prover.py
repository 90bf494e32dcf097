"""Propositional logic as a prover: what `LeanRepl` is for Lean, without Lean."""

from __future__ import annotations

from functools import lru_cache

from ppl.language.arguments import checked
from ppl.verifiers.exact.proof_state import ProofState, TacticError
from ppl.verifiers.exact.propositional import formulas, kernel, tactics
from ppl.verifiers.exact.propositional.kernel import Term
from ppl.verifiers.exact.propositional.tactics import Goal, Partial, TacticFailedError


class Propositional:
    """Proves formulas of propositional logic tactic by tactic, and checks proofs.

    For searches over proofs where Lean is not at hand: states, tactics and goals look alike, and an
    end counts only if a kernel of some forty lines, which knows nothing of tactics, accepts its
    term. It holds nothing between calls but a cache, so states travel.

        prover = Propositional()
        state = prover.start("p ∧ q → q ∧ p")
        for tactic in ("intro", "cases h1", "split", "exact h3", "exact h2"):
            state = prover.apply(state, tactic)
        assert prover.accepts(state)
    """

    @checked
    def start(self, statement: str) -> ProofState:
        """The state in which nothing is proved.

        Args:
            statement: a formula in atoms and `→ ∧ ∨ ¬ ↔ False`, also written `-> & | ~ <->`.

        Raises:
            ValueError: it is none.
        """
        return _state(statement, (), _partial(statement, ()))

    @checked
    def apply(self, state: ProofState, tactic: str) -> ProofState | TacticError:
        """The state after a tactic on the first goal, or what is wrong with it."""
        path = (*state.tactics, tactic)
        try:
            return _state(state.statement, path, _partial(state.statement, path))
        except TacticFailedError as error:
            return TacticError(str(error))

    @checked
    def accepts(self, state: ProofState) -> bool:
        """Whether the kernel accepts the term of a state as a proof of its statement."""
        try:
            return kernel.proves(self.term(state), formulas.parse(state.statement))
        except TacticFailedError:  # a state from elsewhere, whose tactics lead nowhere
            return False

    @checked
    def term(self, state: ProofState) -> Term:
        """The proof that the tactics have made; goals that are left are holes in it."""
        return _partial(state.statement, state.tactics).term

    @checked
    def fitting(self, state: ProofState) -> list[str]:
        """All tactics that fit the first goal."""
        goals = self.goals(state)
        return tactics.fitting(goals[0]) if goals else []

    @checked
    def goals(self, state: ProofState) -> tuple[Goal, ...]:
        """The goals as formulas."""
        return _partial(state.statement, state.tactics).goals


def _state(statement: str, path: tuple[str, ...], partial: Partial) -> ProofState:
    return ProofState(statement, path, tuple(map(str, partial.goals)))


def _partial(statement: str, path: tuple[str, ...]) -> Partial:
    """What a path of tactics has made. From the first one on, so that nothing nests deeply."""
    for length in range(len(path)):
        _cached(statement, path[:length])
    return _cached(statement, path)


@lru_cache(maxsize=1 << 16)
def _cached(statement: str, path: tuple[str, ...]) -> Partial:
    if not path:
        return Partial.of(formulas.parse(statement))
    return tactics.after(_cached(statement, path[:-1]), path[-1])
