"""Proofs tactic by tactic, searched under several perspectives (MPS-Prover: Liang et al. 2025).

The program lets a model write one tactic per step and has the prover apply it; a proof counts if
the checker accepts the whole. The search is `MultiPerspective`: fewest goals, shortest state, few
case splits, made progress, and a width that adapts to how much the drawn tactics differ. (The paper
also has a learned critic, and a rule of its own for the width, which we do not know.)

    python examples/prove.py                        # 16 tautologies, nine searches, offline
    python examples/prove.py --statement "((p -> q) -> p) -> p"
    python examples/prove.py --lean "lake exe repl" --model MODEL --statement "theorem t : ..."

Offline the prover is `Propositional`: tactics of propositional logic and a kernel that checks proof
terms. The writer without weights knows which tactics fit the first goal and little of which lead
on: it prefers those that are seldom wrong, and a fifth of what it writes fits by chance only. So
the table compares searches, not provers.
"""

from __future__ import annotations

import argparse
import random
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import pyro
import torch

import ppl
from ppl.errors import AllParticlesDeadError, SearchStateError
from ppl.language.primitives import condition
from ppl.searchers import MultiPerspective
from ppl.verifiers import LeanRepl, ProofState, Propositional, Prover
from ppl.verifiers.exact.propositional import formulas, kernel
from ppl.verifiers.exact.propositional.tactics import Goal, fitting

# -- the program ----------------------------------------------------------------------------------

ASK = """Goals:
{goals}
Next tactic: """


def begun(prover: Prover, statement: str) -> list[str]:
    """The goals of a statement of which nothing is proved."""
    return list(prover.start(statement).goals)


def applied(
    prover: Prover, statement: str, path: tuple[str, ...], goals: list[str], tactic: str
) -> list[str] | None:
    """The goals after a tactic, None if it is refused; a state is its statement and its path."""
    after = prover.apply(ProofState(statement, path, tuple(goals)), tactic)
    return list(after.goals) if isinstance(after, ProofState) else None


def accepted(prover: Prover, statement: str, path: tuple[str, ...]) -> bool:
    """Whether the whole is a proof."""
    return prover.accepts(ProofState(statement, path, ())) is True


def prove(statement: str, prover: Prover, lm: ppl.LanguageModel, steps: int = 24) -> str:
    """A proof of the statement, one tactic per step; what does not fit has weight zero."""
    goals = ppl.call("start", begun, prover, statement)
    condition(True, "begun")  # a checkpoint of its own: no state may lead back to this one
    path: tuple[str, ...] = ()
    for t in range(steps):
        asked = lm.prompt(ASK.replace("{goals}", "\n\n".join(goals)))
        line = pyro.sample(f"tactic_{t}", lm(asked, until="\n", max_tokens=80))
        tactic = line.text.strip()
        goals = ppl.call(f"goals_{t}", applied, prover, statement, path, goals, tactic)
        condition(goals is not None, f"fits_{t}")
        path = (*path, tactic)
        if not goals:
            condition(ppl.call("whole", accepted, prover, statement, path), "proved")
            return ProofState(statement, path, ()).proof
    condition(False, "in_time")
    return ""


# -- perspectives ---------------------------------------------------------------------------------


def goals_of(node: ppl.Node) -> list[str]:
    """The goals at a node."""
    calls = [r.value for r in node.records if r.name == "start" or r.name.startswith("goals_")]
    return calls[-1].result or []


def size(node: ppl.Node) -> int:
    """Characters of its goals."""
    return sum(map(len, goals_of(node)))


def fewest_goals(node: ppl.Node) -> float:
    """How few goals are left."""
    return -float(len(goals_of(node)))


def shortest_state(node: ppl.Node) -> float:
    """How short they are."""
    return -float(size(node))


def few_case_splits(node: ppl.Node) -> float:
    """How seldom a tactic on the way has made more goals of one."""
    counts = [len(goals_of(each)) for each in node.path[1:]]
    return -float(sum(b > a for a, b in pairwise(counts)))


def made_progress(node: ppl.Node) -> float:
    """By how much the last tactic has shortened what is to be proved."""
    before = node.parent
    return float(size(before) - size(node)) if before is not None and before.depth else 0.0


def longest_state(node: ppl.Node) -> float:
    """A critic that errs, planted to see what it does alone and in company."""
    return float(size(node))


def breadth_first(node: ppl.Node) -> float:
    """How near to the root: what a search without a perspective does."""
    return -float(node.depth)


def state(node: ppl.Node) -> tuple[tuple[tuple[str, ...], str], ...]:
    """What is to be shown from what, whatever the names: equal for states that are the same."""
    found = []
    for goal in goals_of(node):
        *hypotheses, target = goal.split("\n")
        known = {line.partition(" : ")[2] or line for line in hypotheses}
        found.append((tuple(sorted(known)), target))
    return tuple(sorted(found))


FOUR = (fewest_goals, shortest_state, few_case_splits, made_progress)
Rules = tuple[Callable[[ppl.Node], float], ...]


def searchers(nodes: int, k: int) -> dict[str, MultiPerspective]:
    """Searches of as many nodes: with one perspective, with four, and with a width that adapts."""

    def under(rules: Rules, draws: int, most: int | None = None) -> MultiPerspective:
        return MultiPerspective(nodes, draws, rules, state, most_expansions=most)

    alone = {f"best-first, {rule.__name__}": under((rule,), k) for rule in FOUR}
    return {
        "breadth-first": under((breadth_first,), k),
        **alone,
        "best-first, longest_state": under((longest_state,), k),
        "four perspectives": under(FOUR, k),
        "four and longest_state": under((*FOUR, longest_state), k),
        "four, width adapts": under(FOUR, max(2, k // 2), 2 * k),
    }


# -- a writer without weights ---------------------------------------------------------------------

LIKES = {"assumption": 6.0, "intro": 3.0, "split": 2.0, "cases": 2.0, "exfalso": 0.3, "exact": 0.5}


def read(text: str) -> Goal:
    """A goal from its text."""
    *known, target = text.strip().split("\n")
    pairs = [line.split(" : ", 1) for line in known]
    hypotheses = tuple((name, formulas.parse(formula)) for name, formula in pairs)
    return Goal(hypotheses, formulas.parse(target.removeprefix("⊢ ")), named=99)


@lru_cache(maxsize=50_000)
def options(goal: str) -> dict[str, float]:
    """Lines for a goal, and how gladly they are written."""
    asked = read(goal)
    found = {f"{t}\n": LIKES.get(t.split()[0], 1.0) for t in fitting(asked)}
    if isinstance(asked.target, tuple) and asked.target[0] in "→∧":
        found.pop("by_contra\n", None)  # nobody would
    wrong = ["intro\n", "split\n", "left\n", "assumption\n", "apply h1\n", "cases h2\n"]
    share = 0.25 * (sum(found.values()) or 1.0) / len(wrong)
    return found | {line: found.get(line, 0.0) + share for line in wrong}


@lru_cache(maxsize=200_000)
def script(prefix: str) -> dict[str, float]:
    """The next character of a tactic for the first goal."""
    goals, _, said = prefix.removeprefix("Goals:\n").rpartition("\nNext tactic: ")
    weights: dict[str, float] = {}
    for line, p in options(goals.split("\n\n")[0]).items():
        if line.startswith(said):
            weights[line[len(said)]] = weights.get(line[len(said)], 0.0) + p
    total = sum(weights.values())
    return {letter: p / total for letter, p in weights.items()}


def writer() -> ppl.TableLM:
    """A language model over characters that follows the script."""
    letters = sorted({*"Goals:Nexttactic abcdefghijklmnopqrstuvwxyz0123456789_()\n→∧∨¬⊢F", "\x00"})
    return ppl.TableLM(
        script, symbols="".join(letters), end="\x00", context_length=20_000, name="script"
    )


# -- problems -------------------------------------------------------------------------------------


def formula(rng: random.Random, depth: int) -> formulas.Formula:
    """A random one over three atoms."""
    if depth == 0 or rng.random() < 0.15:
        return rng.choice("pqr")
    connective = rng.choice("→→∧∨¬")
    left = formula(rng, depth - 1)
    if connective == "¬":
        return formulas.negation(left)
    return (connective, left, formula(rng, depth - 1))


def tautologies(n: int, *, seed: int, depth: int = 3) -> list[str]:
    """Random formulas that are true in every row of their truth tables, all different.

    What is an instance of a → a, or follows from one side alone, is left out.
    """
    rng, found = random.Random(seed), dict[str, None]()
    while len(found) < n:
        f = formula(rng, depth)
        if isinstance(f, tuple) and len(formulas.atoms(f)) == 3 and formulas.tautology(f):
            _, a, b = f
            contradicted = f[0] == "→" and formulas.tautology(formulas.negation(a))
            if a != b and not formulas.tautology(b) and not contradicted:
                found[formulas.show(f)] = None
    return list(found)


# -- the comparison -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """What a search has found.

    Attributes:
        proof: or None.
        path: its tactics.
        expanded: nodes that were expanded until then.
        drawn: tactics that were drawn until then.
    """

    proof: str | None
    path: tuple[str, ...]
    expanded: int
    drawn: int


def run(
    searcher: MultiPerspective, statement: str, prover: Prover, lm: ppl.LanguageModel, seed: int
) -> Found:
    """Searches until there is a proof, or the nodes are spent."""
    search = searcher.begin(prove, statement, prover, lm, seed=seed)
    found: list[ppl.Node] = []
    try:
        while not found and (search.state is None or search.state.expanded < searcher.simulations):
            search.step()
            found = list(search.state.nodes)
            if not search.state.waiting:
                break
    except (AllParticlesDeadError, SearchStateError):  # nothing is left to expand
        pass
    expanded = search.state.expanded if search.state is not None else 0
    drawn = search.tree.cost.lm_calls
    search.tree.close()
    if not found:
        return Found(None, (), expanded, drawn)
    lines = [r.value.text.strip() for r in found[0].history if r.name.startswith("tactic_")]
    return Found(found[0].result, tuple(lines), expanded, drawn)


def compare(args: argparse.Namespace, lm: ppl.LanguageModel) -> dict[str, list[Found]]:
    """All searches on all problems, and the table."""
    prover = Propositional()
    problems = tautologies(args.problems, seed=args.seed)
    budgets = [b for b in (10, 20, 30, 40, 80, 160) if b < args.nodes] + [args.nodes]
    print(f"{len(problems)} tautologies; proved within so many nodes, k = {args.width}\n")
    print(f"{'search':<30}" + "".join(f"{b:>6}" for b in budgets) + f"{'tactics a problem':>20}")
    table: dict[str, list[Found]] = {}
    for name, searcher in searchers(args.nodes, args.width).items():
        table[name] = [
            run(searcher, statement, prover, lm, 1000 * args.seed + i)
            for i, statement in enumerate(problems)
        ]
        ends = [f.expanded if f.proof else args.nodes + 1 for f in table[name]]
        drawn = sum(f.drawn for f in table[name]) / len(problems)
        counts = "".join(f"{sum(e <= b for e in ends):>6}" for b in budgets)
        print(f"{name:<30}{counts}{drawn:>20.0f}")
    ours = [(p, f) for p, f in zip(problems, table["four perspectives"], strict=True) if f.proof]
    terms = [prover.term(ProofState(p, f.path, ())) for p, f in ours]
    n = sum(map(kernel.classical, terms))
    print(f"\nof {len(ours)} proofs by four perspectives {len(ours) - n} are intuitionistic")
    if ours:
        statement, longest = max(ours, key=lambda each: len(each[1].path))
        print(f"\ntheorem : {statement} :=\n{longest.proof}")
    return table


def main(argv: list[str] | None = None) -> dict[str, list[Found]]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--problems", type=int, default=16)
    parser.add_argument("--nodes", type=int, default=50, help="most nodes a search expands")
    parser.add_argument("--width", type=int, default=4, help="k, tactics drawn at a node")
    parser.add_argument("--statement", help="prove this one only")
    parser.add_argument("--lean", help="what starts the REPL, such as 'lake exe repl'")
    parser.add_argument("--model", default="script", help="script, or a model's name")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    lm = writer() if args.model == "script" else ppl.load(args.model)
    if args.statement is None:
        return compare(args, lm)
    prover: Prover = LeanRepl(shlex.split(args.lean)) if args.lean else Propositional()
    name = "four perspectives"
    found = run(searchers(args.nodes, args.width)[name], args.statement, prover, lm, args.seed)
    print(f"{args.statement}\n{found.proof or 'no proof'}")
    print(f"{found.expanded} nodes, {found.drawn} tactics")
    return {name: [found]}


if __name__ == "__main__":
    main()
