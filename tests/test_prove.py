"""The search for proofs of the examples: what is expanded, and what counts as a proof."""

from __future__ import annotations

import contextlib

import prove

import ppl
from ppl.errors import AllParticlesDeadError, SearchStateError
from ppl.searchers import MultiPerspective
from ppl.verifiers import ProofState, Propositional
from ppl.verifiers.exact.propositional.formulas import parse, tautology

PROVER = Propositional()
CIRCLE = "(p → p) → p"  # no tautology: `apply h1` leads from ⊢ p to ⊢ p for ever


def begun(statement: str, nodes: int = 25, perspectives=prove.FOUR, form=prove.state, seed=0):
    searcher = MultiPerspective(nodes, 4, perspectives, form)
    return searcher.begin(prove.prove, statement, PROVER, prove.writer(), seed=seed)


def path_states(node: ppl.Node) -> list[object]:
    return [prove.state(each) for each in node.path[1:]]


def expanded(form) -> list[ppl.Node]:
    """The nodes that a search in a circle expands."""
    search = begun(CIRCLE, perspectives=(prove.shortest_state,), form=form)
    with contextlib.suppress(AllParticlesDeadError, SearchStateError):  # where the circle is closed
        while search.state is None or search.state.expanded < 25:
            search.step()
    search.tree.close()
    parents = {node.parent.identity for node in search.tree.nodes[1:]} - {0}
    return [node for node in search.tree.nodes if node.identity in parents]


def test_a_state_equal_to_an_ancestor_s_is_not_expanded():
    found = expanded(prove.state)
    assert len(found) > 3
    for node in found:
        *above, here = path_states(node)
        assert here not in above
    assert len({prove.state(node) for node in found}) == len(found)
    # A near miss: without normal forms the search walks in the circle.
    assert any(path_states(node)[-1] in path_states(node)[:-1] for node in expanded(None))


def test_a_state_that_two_perspectives_like_is_expanded_once():
    search = begun("p ∧ q ∧ r → r ∧ q ∧ p", nodes=30)
    search.step()
    doubly, seen = 0, set()
    while not search.state.nodes and search.state.expanded <= 26:
        waiting = search.state.waiting
        firsts = [min(waiting, key=lambda e: (e[0][k], e[1]))[-1].identity for k in range(4)]
        search.step()
        batch = search.notes[-1]["nodes"]
        assert set(firsts) <= set(batch)
        assert len(set(batch)) == len(batch) == min(4, len(waiting))  # the later takes its next
        assert not seen & set(batch)
        seen |= set(batch)
        doubly += len(set(firsts)) < 4 < len(waiting)
    search.tree.close()
    assert doubly >= 3


def test_what_is_found_is_a_proof_and_its_tactics_are_there():
    statement = "p ∧ q → q ∧ p"
    searcher = prove.searchers(40, 4)["four perspectives"]
    found = prove.run(searcher, statement, PROVER, prove.writer(), 0)
    assert found.proof == "by\n  " + "\n  ".join(found.path)
    assert PROVER.accepts(ProofState(statement, found.path, ()))
    assert 0 < found.expanded <= 40
    assert found.drawn <= 4 * found.expanded


def test_a_tactic_that_leaves_no_goals_without_a_proof_is_not_believed():
    class Gullible(Propositional):
        """Says that all is done after the first tactic, as a prover in error might."""

        def apply(self, state, tactic):
            return ProofState(state.statement, (*state.tactics, tactic), ())

    searcher = prove.searchers(5, 4)["breadth-first"]
    for prover, proved in ((Gullible(), False), (PROVER, True)):
        found = prove.run(searcher, "p → p", prover, prove.writer(), 0)
        assert (found.proof is not None) is proved


def test_no_search_proves_what_is_false():
    for searcher in prove.searchers(8, 4).values():
        assert prove.run(searcher, "(p → q) → q", PROVER, prove.writer(), 0).proof is None


def test_problems_are_tautologies_and_not_trivial():
    problems = prove.tautologies(15, seed=3)
    assert len(set(problems)) == 15
    assert all(tautology(parse(p)) for p in problems)
    assert problems == prove.tautologies(15, seed=3)


def test_the_example(capsys):
    table = prove.main(["--problems", "2", "--nodes", "10"])
    printed = capsys.readouterr().out
    assert set(table) == set(prove.searchers(1, 4))
    assert all(f"\n{name} " in printed for name in table)
    problems = prove.tautologies(2, seed=0)
    proofs = [(p, f) for row in table.values() for p, f in zip(problems, row, strict=True)]
    assert all(PROVER.accepts(ProofState(p, f.path, ())) for p, f in proofs if f.proof)
