"""The laws of a searcher, to be run on one's own: `check_searcher(searcher)`.

A searcher that breaks one of them gives wrong results in silence: a state that changes under those
who hold it, a number that was read from a note, a finished particle that is weighed again.
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch

from ppl.errors import AllParticlesDeadError, PPLError, SearchStateError
from ppl.language import checks
from ppl.language.arguments import checked
from ppl.language.cost import Budget
from ppl.lm.table import TableLM
from ppl.posterior.posterior import Posterior
from ppl.runtime.enumeration import enumerate_program
from ppl.runtime.node import Node
from ppl.searchers.anytime import rank
from ppl.searchers.search import Search, Searcher
from ppl.searchers.state import State, of_round

Program = Callable[[], Any]
_MOST_ROUNDS = 10_000
_TOY = TableLM({"a": 0.5, "b": 0.3, "$": 0.2}, symbols="^ab$", end="$", name="the laws' toy")


def early_ends() -> str:
    """Up to three symbols; texts end early, and are liked for their a."""
    text = _TOY.prompt("^")
    for t in range(3):
        step = pyro.sample(f"step_{t}", _TOY(text, max_tokens=1))
        text = text + step
        lead = text.text.count("a") - text.text.count("b")
        pyro.factor(f"liked_{t}", torch.tensor(math.log(0.9 if lead > 0 else 0.6 + 0.3 * lead / 3)))
        if step.finished:
            break
    return text.text


@checked
def check_searcher(
    searcher: Searcher[Any],
    programs: Sequence[Program] = (early_ends,),
    *,
    seed: int = 0,
    runs: int = 300,
) -> list[str]:
    """Checks a searcher on some programs without arguments.

    * value: a round leaves the state it was given as it was, counts it, and a state is frozen;
    * notes: dropping them between rounds changes nothing;
    * seed: one seed, one result;
    * batch: questions searched side by side give what they give alone;
    * weighed once: what a node weighs never changes, and no finished one is gone on with;
    * limits: never exceeded; the best answer paid for is shown, and no evidence;
    * resumed: saved between two rounds and loaded, a search ends as it would have (of programs and
      states that can be saved);
    * evidence: where it is claimed, it is unbiased: its mean over `runs` seeds lies within 4.5
      standard errors of the exact one (of programs that can be enumerated).

    Args:
        searcher: what to check.
        programs: some programs; small ones, whose texts end at different times, show most.
        seed: of the searches.
        runs: seeds that the evidence is averaged over.

    Returns:
        The names of the laws that were checked.

    Raises:
        SearchStateError: naming the law that does not hold.
        ValueError: there are no programs.
    """
    checks.count(runs=runs)
    if not programs:
        raise ValueError("check_searcher(searcher, programs) needs at least one program")
    checked: dict[str, None] = {}
    for program in programs:
        law = _Law(searcher, program, seed)
        for name, check in law.checks(runs):
            if check():
                checked[name] = None
    return list(checked)


@dataclasses.dataclass(frozen=True)
class _Law:
    searcher: Searcher[Any]
    program: Program
    seed: int

    def checks(self, runs: int) -> list[tuple[str, Callable[[], bool]]]:
        return [
            ("value", self.value),
            ("notes", self.notes),
            ("seed", self.same_seed),
            ("batch", self.batch),
            ("weighed once", self.weighed_once),
            ("limits", self.limits),
            ("resumed", self.resumed),
            ("evidence", lambda: self.evidence(runs)),
        ]

    def require(self, law: str, holds: bool, found: str) -> None:
        if not holds:
            name = getattr(self.program, "__name__", repr(self.program))
            raise SearchStateError(
                f"law {law!r} does not hold for {self.searcher!r} on {name}: {found}"
            )

    def begin(self, budget: Budget | None = None) -> Search:
        return self.searcher.begin(self.program, seed=self.seed, budget=budget)

    def value(self) -> bool:
        search = self.begin()
        state = self.searcher.start(search.tree)
        try:
            for _ in range(_MOST_ROUNDS):
                self.require("value", isinstance(state, State), f"{type(state).__name__} no State")
                frozen = type(state).__dataclass_params__.frozen  # type: ignore[attr-defined]
                self.require("value", frozen, f"{type(state).__name__} is not a frozen dataclass")
                if state.over:
                    return True
                before = _contents(state)
                new, _ = of_round(self.searcher.step(search.tree, state), self.searcher)
                self.require("value", _contents(state) == before, "a round changed the old state")
                self.require("value", new is not state, "a round handed back the old state")
                counted = new.round == state.round + 1
                self.require("value", counted, f"round {new.round} after {state.round}")
                state = new
        finally:
            search.tree.close()
        raise SearchStateError(f"{self.searcher!r} is not over after {_MOST_ROUNDS} rounds")

    def notes(self) -> bool:
        search = self.begin()
        while not search.over:
            search.step()
            search.notes.clear()
        same = _outcome(search.run()) == _outcome(self.begin().run())
        self.require("notes", same, "without its notes it ends otherwise")
        return True

    def same_seed(self) -> bool:
        same = _outcome(self.begin().run()) == _outcome(self.begin().run())
        self.require("seed", same, "one seed gave two results")
        return True

    def batch(self) -> bool:
        seeds = [self.seed, self.seed + 1, self.seed]
        together = self.searcher.run_many(self.program, [()] * 3, seed=seeds)
        for one, s in zip(together, seeds, strict=True):
            alone = self.searcher.run_many(self.program, [()], seed=s)[0]
            same = _outcome(one) == _outcome(alone)
            self.require("batch", same, f"with others, seed {s} gave another result than alone")
        return True

    def weighed_once(self) -> bool:
        search, known = self.begin(), dict[int, tuple[Any, ...]]()
        while not search.over:
            search.step()
            for node in search.tree.nodes:
                facts = (node.log_weight, node.log_likelihood, node.finished)
                first = known.setdefault(node.identity, facts)
                self.require("weighed once", first == facts, f"{node} was {first}")
                going = node.parent is None or node.parent.open
                self.require("weighed once", going, f"{node} continues a finished one")
        return True

    def limits(self) -> bool:
        whole = self.begin().run().cost
        for share in (0.0, 0.1, 0.3, 0.6, 0.9):
            for unit in ("tokens", "calls"):
                total = whole.lm_tokens if unit == "tokens" else whole.calls
                limit = int(share * total)
                search = self.begin(Budget(**{unit: limit}))
                posterior = search.run()
                spent = posterior.cost.lm_tokens if unit == "tokens" else posterior.cost.calls
                self.require("limits", spent <= limit, f"{spent} {unit} where {limit} were allowed")
                if posterior.stopped != "budget":
                    continue
                claims = posterior.log_evidence is not None
                self.require("limits", not claims, f"stopped at {limit} {unit}, it gave evidence")
                self._shows_the_best(search, posterior, f"stopped at {limit} {unit}")
        return True

    def _shows_the_best(self, search: Search, posterior: Posterior, when: str) -> None:
        found = [node for node in search.tree.nodes if node.answered]
        best = posterior.best_sample
        self.require("limits", not found or best is not None, f"{when}, it hid its answers")
        claims = search.state is not None and (
            self.searcher.result(search.tree, search.state).log_evidence is not None
        )
        if best is not None and not claims:
            most = max(map(rank, found))
            shown = (best.value is not None, best.log_likelihood) >= most
            self.require("limits", shown, f"{when}, it showed {best.log_likelihood} of {most[1]}")

    def resumed(self) -> bool:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "search"
            try:
                self.begin().save(path)
            except SearchStateError:
                return False  # a program defined on the spot; nothing is said of the searcher
            search = self.begin()
            search.step()
            search.save(path)
            same = _outcome(Search.load(path).run()) == _outcome(self.begin().run())
        self.require("resumed", same, "saved, loaded and run on, it ended otherwise")
        return True

    def evidence(self, runs: int) -> bool:
        if self.begin().run().log_evidence is None:
            return False
        try:
            target = self.searcher.target(self.program)
            exact = math.exp(enumerate_program(target).log_evidence)
        except PPLError:
            return False
        found = self.searcher.run_many(self.program, [()] * runs, seed=range(runs))
        for one in found:
            if isinstance(one, PPLError) and not isinstance(one, AllParticlesDeadError):
                raise one
        claimed: list[float | None] = [getattr(one, "log_evidence", None) for one in found]
        self.require("evidence", None not in claimed, "it is claimed with some seeds only")
        estimates = np.exp(np.array(claimed, dtype=np.float64))
        error = float(estimates.std(ddof=1)) / math.sqrt(runs)
        off = abs(float(estimates.mean()) - exact)
        self.require(
            "evidence",
            off <= 4.5 * error + 1e-9 * exact,
            f"{estimates.mean():.5g} +- {error:.2g} over {runs} seeds, where {exact:.5g} is exact",
        )
        return True


def _outcome(found: Posterior | PPLError) -> Any:
    if isinstance(found, PPLError):
        return str(found)
    samples = [(s.node, repr(s.value), s.log_weight, str(s.text)) for s in found.samples]
    return samples, found.log_evidence


def _contents(value: Any) -> Any:
    """What can be compared before and after: a node is its number, an array its numbers."""
    if isinstance(value, Node):
        return "node", value.identity
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return type(value).__name__, [_contents(getattr(value, f.name)) for f in fields]
    if isinstance(value, np.ndarray):
        return value.shape, value.tolist()
    if isinstance(value, Mapping):
        return [(k, _contents(v)) for k, v in value.items()]
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_contents(entry) for entry in value]
    return repr(value)
