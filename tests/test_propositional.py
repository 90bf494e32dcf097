"""The kernel of propositional logic: sound whatever is handed to it, complete where it is said."""

from __future__ import annotations

import contextlib
import heapq
import inspect
import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppl.verifiers import ProofState, Propositional, TacticError
from ppl.verifiers.exact.propositional import formulas, kernel
from ppl.verifiers.exact.propositional.formulas import parse, show, tautology

PROVER = Propositional()
CHECKED = settings(derandomize=True, deadline=None, database=None)

FORMULAS = st.recursive(
    st.sampled_from(["p", "q", "r", False]),
    lambda inner: st.tuples(st.sampled_from("→∧∨"), inner, inner),
    max_leaves=6,
)

# Of the second list no formula is intuitionistically valid.
INTUITIONISTIC = [
    "p → q → p",
    "(p → q → r) → (p → q) → p → r",
    "p ∧ q ↔ q ∧ p",
    "p ∨ q ↔ q ∨ p",
    "(p → q) → ¬q → ¬p",
    "¬(p ∨ q) ↔ ¬p ∧ ¬q",
    "¬p ∨ ¬q → ¬(p ∧ q)",
    "p ∧ (q ∨ r) ↔ p ∧ q ∨ p ∧ r",
    "(p ∧ q → r) ↔ (p → q → r)",
    "p → ¬¬p",
    "¬¬¬p → ¬p",
    "¬¬(p ∨ ¬p)",
    "False → p",
    "¬p → p → q",
]
CLASSICAL = [
    "p ∨ ¬p",
    "¬¬p → p",
    "((p → q) → p) → p",
    "(¬q → ¬p) → p → q",
    "¬(p ∧ q) → ¬p ∨ ¬q",
    "(p → q) ∨ (q → p)",
    "(p → q) → ¬p ∨ q",
]


def searched(statement: str, *, without: str = "", most: int = 4000) -> ProofState | None:
    """A proof by trying every tactic, the least states first; None if all states are seen."""
    start = PROVER.start(statement)
    queue, order, seen = [(0, 0, start)], itertools.count(1), set()
    while queue:
        *_, state = heapq.heappop(queue)
        for tactic in PROVER.fitting(state):
            if tactic == without:
                continue
            after = PROVER.apply(state, tactic)
            assert isinstance(after, ProofState), (tactic, after)
            if after.done:
                return after
            goals = PROVER.goals(after)
            form = frozenset((frozenset(f for _, f in g.hypotheses), g.target) for g in goals)
            if form not in seen:
                seen.add(form)
                heapq.heappush(queue, (sum(map(len, after.goals)), next(order), after))
        assert len(seen) < most, statement
    return None


@pytest.mark.parametrize("statement", INTUITIONISTIC)
def test_intuitionistic_tautologies_have_proofs_without_the_classical_rule(statement):
    end = searched(statement, without="by_contra")
    assert end is not None
    assert PROVER.accepts(end)
    assert not kernel.classical(PROVER.term(end))
    assert tautology(parse(statement))


@pytest.mark.parametrize("statement", CLASSICAL)
def test_classical_tautologies_need_it(statement):
    end = searched(statement)
    assert end is not None
    assert PROVER.accepts(end)
    assert kernel.classical(PROVER.term(end))
    assert tautology(parse(statement))


@pytest.mark.parametrize("statement", ["p ∨ ¬p", "¬¬p → p", "¬(p ∧ q) → ¬p ∨ ¬q"])
def test_without_it_every_state_is_seen_and_none_is_a_proof(statement):
    assert searched(statement, without="by_contra") is None


@pytest.mark.parametrize("statement", ["p", "p → q", "p ∨ q → p", "(p → q) → q → p", "¬p"])
def test_what_is_no_tautology_has_no_proof(statement):
    assert not tautology(parse(statement))
    assert searched(statement, without="by_contra") is None


def random_end(statement: str, rng: random.Random, steps: int = 30) -> ProofState:
    """Where tactics taken at random lead, those that close a goal first."""
    state = PROVER.start(statement)
    for _ in range(steps):
        fit = PROVER.fitting(state)
        if state.done or not fit:
            break
        tactic = "assumption" if "assumption" in fit and rng.random() < 0.7 else rng.choice(fit)
        after = PROVER.apply(state, tactic)
        assert isinstance(after, ProofState)
        state = after
    return state


@settings(CHECKED, max_examples=250)
@given(FORMULAS, st.integers(0, 10**6))
def test_whatever_tactics_prove_is_true_in_every_row(formula, seed):
    """And the other way round: an end without goals is accepted, so tactics make right terms."""
    end = random_end(show(formula), random.Random(seed))
    assert PROVER.accepts(end) is end.done
    assert not end.done or tautology(formula)


# -- the kernel against terms that are none of any tactic's ---------------------------------------


def parts(term):
    """All terms and formulas within a term, it included."""
    if isinstance(term, tuple):
        for part in term[1:]:
            yield from parts(part)
    yield term


def changed(term, rng: random.Random, pool):
    """The term with one part put in another's place, or another rule."""
    if not isinstance(term, tuple) or rng.random() < 0.2:
        return rng.choice(pool)
    swaps = {"fst": "snd", "snd": "fst", "inl": "inr", "inr": "inl", "absurd": "inl", "dne": "fun"}
    if term[0] in swaps and rng.random() < 0.3:
        return (swaps[term[0]], *term[1:])
    i = rng.randrange(1, len(term))
    return (*term[:i], changed(term[i], rng, pool), *term[i + 1 :])


def corpus(n: int):
    """Proofs of the stated tautologies, and what comes of them by one to three changes."""
    rng = random.Random(0)
    proofs = [PROVER.term(searched(statement)) for statement in [*INTUITIONISTIC, *CLASSICAL]]
    pool = sorted({part for proof in proofs for part in parts(proof)}, key=repr)
    yield from proofs
    for _ in range(n):
        term = rng.choice(proofs)
        for _ in range(rng.randrange(1, 4)):
            term = changed(term, rng, pool)
        yield term


@pytest.fixture(scope="module")
def terms():
    return list(corpus(8000))


def refuted(proved, terms) -> list[object]:
    """Formulas that a kernel lets terms prove although a row of their truth table is false."""
    found = []
    for term in terms:
        try:
            formula = proved(term, {})
        except Exception:
            continue
        if not (formulas.well_formed(formula) and tautology(formula)):
            found.append(formula)
    return found


def test_no_term_proves_what_a_truth_table_refutes(terms):
    assert refuted(kernel.proved, terms) == []
    accepted = 0
    for term in terms:
        with contextlib.suppress(kernel.NoProofError):
            accepted += kernel.proved(term, {}) is not None
    assert accepted > 200  # many of the changed terms are proofs, of something else


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("return b if proved(argument, known) == a else _wrong(term)", "return b"),
        ("proved(right, {**known, h: b}) == first", "first"),
        ("_read(c) if proved(impossible, known) is False", "_read(c) if proved(impossible, known)"),
        ('_made(proved(pair, known), "∧")[1]', '_made(proved(pair, known), "∧")[2]'),
        ('("→", _read(a), proved(body, {**known, h: a}))', "proved(body, {**known, h: a})"),
        ("{**known, h: supposed}) is False", "{**known, h: supposed}) == a"),
        ('("∨", proved(left, known), _read(b))', "_read(b)"),
        ("return known[term]", "return False"),
    ],
)
def test_a_kernel_that_errs_in_one_rule_is_found_out(right, wrong, terms):
    source = inspect.getsource(kernel)
    assert source.count(right) == 1
    namespace = {"__name__": "wrong"}
    exec(compile(source.replace(right, wrong), "wrong", "exec"), namespace)
    proofs = terms[: len(INTUITIONISTIC) + len(CLASSICAL)]
    stated = [parse(statement) for statement in [*INTUITIONISTIC, *CLASSICAL]]
    accepts = [namespace["proves"](term, f) for term, f in zip(proofs, stated, strict=True)]
    assert refuted(namespace["proved"], terms) or not all(accepts)


# -- formulas, and the prover ---------------------------------------------------------------------


@CHECKED
@given(FORMULAS)
def test_a_formula_is_read_as_it_is_shown(formula):
    assert parse(show(formula)) == formula


def test_formulas_bind_as_is_usual():
    assert parse("p -> q -> r") == ("→", "p", ("→", "q", "r"))
    assert parse("~p & q | r") == ("∨", ("∧", ("→", "p", False), "q"), "r")
    assert parse("p <-> q") == ("∧", ("→", "p", "q"), ("→", "q", "p"))
    # As in Lean: ↔ binds least, and is of two sides.
    assert parse("p -> q <-> r") == parse("(p -> q) <-> r") != parse("p -> (q <-> r)")
    assert parse("p <-> q -> r") == parse("p <-> (q -> r)")
    assert parse("p | q -> r <-> ~p & q") == parse("((p | q) -> r) <-> ((~p) & q)")
    assert parse("True") == parse("~False")
    assert formulas.tautology(parse("p -> True"))
    assert not formulas.tautology(parse("True -> p"))
    assert show(parse("(p -> q) -> (r | p) & q")) == "(p → q) → (r ∨ p) ∧ q"
    for wrong in ("", "p q", "(p", "p ->", "p ? q", ")", "~", "p <-> q <-> r", "φ", "p → ∧ q"):
        with pytest.raises(
            ValueError, match=r"no formula: .* connectives → ∧ ∨ ¬ ↔ \(or -> & \| ~ <->\)"
        ):
            PROVER.start(wrong)
    with pytest.raises(ValueError, match="too deep"):
        parse("(" * 500 + "p" + ")" * 500)


def test_truth_tables():
    rows = [frozenset(), frozenset("p"), frozenset("q"), frozenset("pq")]
    assert [formulas.value(parse("p → q"), row) for row in rows] == [True, False, True, True]
    assert [formulas.value(parse("p ∧ q"), row) for row in rows] == [False, False, False, True]
    assert [formulas.value(parse("p ∨ q"), row) for row in rows] == [False, True, True, True]
    assert not formulas.value(False, rows[3])


def test_tactics_that_do_not_fit_say_why():
    state = PROVER.start("p ∨ q → q")
    for tactic, says in (
        ("split", "no ∧"),
        ("cases h1", "no hypothesis h1"),
        ("intro h", "tactics are"),
        ("cases", "tactics are"),
        ("magic", "tactics are"),
        ("", "tactics are"),
        ("assumption", "no hypothesis is the goal"),
    ):
        error = PROVER.apply(state, tactic)
        assert isinstance(error, TacticError)
        assert says in error.message
    after = PROVER.apply(state, "intro")
    assert "does not lead" in PROVER.apply(after, "apply h1").message
    assert not PROVER.accepts(after)


def test_states_are_rebuilt_from_their_paths():
    """A prover that has seen nothing goes on from any state, also after its cache was emptied."""
    from ppl.verifiers.exact.propositional import prover

    end = searched("p ∧ (q ∨ r) → p ∧ q ∨ p ∧ r")
    prover._cached.cache_clear()
    fresh = Propositional()
    half = ProofState(end.statement, end.tactics[:4], ("whatever was said",))
    for tactic in end.tactics[4:]:
        half = fresh.apply(half, tactic)
    assert half == end
    assert fresh.accepts(half)
    # What says that it is done, and never was, is no proof.
    for path in (("magic",), ("intro", "assumption"), end.tactics[:-1], (*end.tactics, "intro")):
        assert fresh.accepts(ProofState(end.statement, path, ())) is False
