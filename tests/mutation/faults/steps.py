"""Faults in programs and provers that go step by step."""

from fault import Fault

POINTING, PROGRAM = "ppl/programs/pointing.py", "ppl/programs/selection_inference.py"
ODDS = "verifiers/generative/log_odds.py"
LEAN, PROCESS = "verifiers/exact/lean.py", "verifiers/exact/lean_process.py"
LOGIC = "verifiers/exact/propositional"
WIDTH = "searchers/beams/multi_perspective.py"

INFERENCE, TACTICS = "tests/test_selection_inference.py", "tests/test_lean_tactics.py"
FORMULAS, SEARCH = "tests/test_propositional.py", "tests/test_multi_perspective.py"

FAULTS = [
    # Pointing at labels and words.
    Fault(POINTING, "self._last.items() if label not in chosen]", "self._last.items()]", INFERENCE),
    Fault(POINTING, "self._more.items() if label not in chosen]", "self._more.items()]", INFERENCE),
    Fault(POINTING, "+ 1 < min(self.most", "< min(self.most", INFERENCE),
    Fault(POINTING, "if b[: len(a)] == a:", "if False:", INFERENCE),
    Fault(POINTING, "found or {code[0] for code in codes}", "found", INFERENCE),
    # Selection, inference, halter, value.
    Fault(
        PROGRAM, 'infer(models["infer"], selected)', 'infer(models["infer"], context)', INFERENCE
    ),
    Fault(
        PROGRAM, "context += [said] if said not in context else []", "context += [said]", INFERENCE
    ),
    Fault(PROGRAM, "context[label - 1] for label", "context[label - 2] for label", INFERENCE),
    Fault(PROGRAM, "    return UNKNOWN", "    return str(answer.strip())", INFERENCE),
    Fault(PROGRAM, "tuple(context[int(n) - 1] for", "tuple(context[int(n) - 2] for", INFERENCE),
    Fault(ODDS, "math.log(p) - math.log1p(-p)", "math.log(p)", INFERENCE),
    Fault(
        ODDS,
        "min(max(math.exp(log_p), self.floor), 1.0 - self.floor)",
        "math.exp(log_p)",
        INFERENCE,
    ),
    # Lean, tactic by tactic.
    Fault(LEAN, "if now != state:", "if False:", TACTICS),
    Fault(LEAN, "        known = len(tactics)\n", "        known = -1\n", TACTICS),
    Fault(LEAN, "return TacticError(said, refused=False)", "return TacticError(said)", TACTICS),
    Fault(LEAN, "for attempt in range(2):", "for attempt in range(1):", TACTICS),
    Fault(PROCESS, 'if said.get("severity") == "error":', "if False:", TACTICS),
    Fault(PROCESS, 'if complains(reply) or reply.get("sorries"):', "if complains(reply):", TACTICS),
    Fault(PROCESS, 'if not goals and status not in ("", "Completed"):', "if False:", TACTICS),
    Fault(PROCESS, 'message.startswith("Lean error")', 'message.startswith("Error")', TACTICS),
    # Propositional logic.
    Fault(
        f"{LOGIC}/kernel.py",
        "return b if proved(argument, known) == a else",
        "return b if a else",
        FORMULAS,
    ),
    Fault(f"{LOGIC}/kernel.py", "proved(right, {**known, h: b}) == first", "first", FORMULAS),
    Fault(
        f"{LOGIC}/kernel.py",
        "is False else _wrong(term)\n        case",
        "else _wrong(term)\n        case",
        FORMULAS,
    ),
    Fault(f"{LOGIC}/tactics.py", "if formula == goal.target:", "if formula:", FORMULAS),
    Fault(f"{LOGIC}/tactics.py", "goal.named + len(added)", "goal.named", FORMULAS),
    Fault(
        f"{LOGIC}/formulas.py",
        "return not value(a, true) or value(b, true)",
        "return value(b, true)",
        FORMULAS,
    ),
    Fault(f"{LOGIC}/formulas.py", '("↔", "→", "∨", "∧")', '("→", "↔", "∨", "∧")', FORMULAS),
    Fault(
        "ppl/runtime/worker.py",
        "if self.in_turn and not self._replies.empty() and self.alive:",
        "if False:",
        f"{TACTICS} -k taken_for_the_next",
    ),
    # A width that adapts.
    Fault(WIDTH, "self.most_expansions) - k for", "self.most_expansions) for", SEARCH),
    Fault(WIDTH, "math.log(len(children))", "math.log(most)", SEARCH),
    Fault(WIDTH, "min(max(wanted, self.expansions), most)", "min(wanted, most)", SEARCH),
]
