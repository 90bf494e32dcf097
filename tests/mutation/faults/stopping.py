"""Faults in stopping rules and in the searchers that spend and stop by them."""

from fault import Fault

RULES, SEEN, TEST = "ppl/decide/stopping.py", "ppl/decide/seen.py", "ppl/decide/sequential.py"
CONSENSUS, SETTLING = "ppl/decide/consensus.py", "searchers/settling.py"
ROOM = "searchers/sampling"
RACE, SWITCH, GATED = f"{ROOM}/first_finish.py", f"{ROOM}/model_switch.py", f"{ROOM}/gated.py"
ADAPTIVE, FRACTURED, BEST_OF_N = (
    f"{ROOM}/adaptive.py",
    f"{ROOM}/fractured.py",
    f"{ROOM}/best_of_n.py",
)
STOPPING, AGREED = "tests/test_stopping.py", "tests/test_consensus.py"
FINISH = "tests/test_first_finish.py"
SWITCHING, GATES = "tests/test_model_switch.py", "tests/test_gated.py"
ATTEMPTS, CUTS = "tests/test_adaptive_sampling.py", "tests/test_fractured.py"

FAULTS = [
    Fault(RULES, "            return first - second > seen.left", "            return first - second >= seen.left", f"{STOPPING} -k exact"),
    Fault(RULES, "betainc(second + 1.0, first + 1.0, 0.5)", "betainc(second + 0.5, first + 0.5, 0.5)", f"{STOPPING} -k beta_rule"),
    Fault(RULES, "betainc(second + 1.0, first + 1.0, 0.5)", "betainc(second, first + 1.0, 0.5)", f"{STOPPING} -k beta_rule"),
    Fault(RULES, "np.sort(np.append(counts, [0.0] * max(0, 2 - len(counts))))", "np.sort(counts)", f"{STOPPING} -k dirichlet"),
    Fault(RULES, "if seen.votes.sum() < 2 or", "if seen.votes.sum() < 1 or", f"{STOPPING} -k confidence"),
    Fault(RULES, "max(known, key=lambda i: sure[i], default=None)", "known[-1] if known else None", f"{STOPPING} -k surest"),
    Fault(RULES, "// 2 + 1)", "// 2 + 2)", f"{STOPPING} -k no_more_than"),
    Fault(SEEN, "self.left + len(self) - n,", "self.left,", f"{STOPPING} -k 'first or settings'"),
    Fault(SEEN, "given * (given.sum() / np.square(given).sum())", "given * (len(given) / given.sum())", f"{STOPPING} -k effective"),
    Fault(TEST, "math.log((1 - beta) / self.alpha)", "math.log(1 / self.alpha)", f"{STOPPING} -k consol"),
    Fault(TEST, "math.log(0.5)\n        return float", "0.0\n        return float", f"{STOPPING} -k mixture"),
    Fault(CONSENSUS, "len(led) == 1 and None not in led", "len(led) == 1", f"{AGREED} -k last"),
    Fault(CONSENSUS, "row[i] >= 0 and row[i] != leader", "row[i] != leader", f"{AGREED} -k dissent"),
    Fault(CONSENSUS, "rows = seen.probes[-self.drop :]", "rows = seen.probes[-1:]", f"{AGREED} -k dissent"),
    Fault(CONSENSUS, "self.warm_up + self.drop)", "self.drop)", f"{AGREED} -k dissent"),
    Fault(BEST_OF_N, "dropped=(*now.dropped, *sorted(out))", "dropped=tuple(sorted(out))", f"{AGREED} -k 'dropped or out'"),
    Fault(BEST_OF_N, "for i in now.kept if nodes[i].open]", "for i in range(len(nodes)) if nodes[i].open]", f"{AGREED} -k dropped"),
    Fault(SETTLING, "if not rule.probes and any(", "if False and any(", f"{STOPPING} -k open"),
    Fault(BEST_OF_N, "if state.over and not self.rules(tree):", "if state.over:", f"{STOPPING} -k exactly_four"),
    Fault(BEST_OF_N, '"in_flight": len(begun) - enough', '"in_flight": enough', f"{STOPPING} -k flight"),
    Fault(RACE, "winner = first[int(tie)]", "winner = first[0]", f"{FINISH} -k ties"),
    Fault(RACE, "tree.abandon()", "tree.collect()", f"{FINISH} -k costs"),
    Fault(RACE, "node.result is not None or", "True or", f"{FINISH} -k blank"),
    Fault(SWITCH, "entropy / math.log2(k)", "entropy / math.log2(max(2, len(counts)))", f"{SWITCHING} -k weight_of"),
    Fault(SWITCH, "1 / k + (1 - 1 / k) * (1", "(1", f"{SWITCHING} -k weight_of"),
    Fault(SWITCH, "agreed >= self.agreement or", "agreed > self.agreement or", f"{SWITCHING} -k unanimous"),
    Fault(GATED, "if steps == 0:", "if steps < 0:", f"{GATES} -k constant"),
    Fault(GATED, "- math.log(self.gamma) +", "+ math.log(self.gamma) +", f"{GATES} -k momentum"),
    Fault(GATED, "self.alpha**steps", "self.alpha ** (steps + 1)", f"{GATES} -k momentum"),
    Fault(GATED, "for i in unsure], self.expansions - 1)", "for i in unsure], self.expansions)", f"{GATES} -k drawn_again"),
    Fault(ADAPTIVE, "any(q >= self.accept - _ROUNDING for", "any(q > 1 - self.accept for", f"{ATTEMPTS} -k exact_q"),
    Fault(ADAPTIVE, "(-q[i], tie[i])", "(-q[i], i)", f"{ATTEMPTS} -k uniform"),
    Fault(ADAPTIVE, "(-q[i], tie[i])", "(q[i], tie[i])", f"{ATTEMPTS} -k best_share"),
    Fault(ADAPTIVE, "share * (last - first)", "share * last", f"{ATTEMPTS} -k warmer"),
    Fault(FRACTURED, "range(own, self.answers)", "range(self.answers)", f"{CUTS} -k closed_form"),
    Fault(FRACTURED, "depth * len(thought) // self.depths", "depth", f"{CUTS} -k 'parts or closed'"),
    Fault(FRACTURED, "return values[now]", "return values[1 - now]", f"{CUTS} -k plain_sampling"),
]  # fmt: skip
