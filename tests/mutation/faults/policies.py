"""Faults in beams, queues, trees and other searchers that decide instead of drawing."""

from fault import Fault

BEAMS, TREES = "searchers/beams", "searchers/trees"
BEAM, QUEUE = f"{BEAMS}/beam.py", f"{BEAMS}/best_first.py"
DVTS, GREEDY, REBASE = f"{BEAMS}/dvts.py", f"{BEAMS}/greedy.py", f"{BEAMS}/rebase.py"
MANY, PHI = f"{BEAMS}/multi_perspective.py", f"{BEAMS}/phi_decoding.py"
MCTS, GUMBEL, RAIN = f"{TREES}/mcts.py", f"{TREES}/gumbel_mcts.py", f"{TREES}/rain.py"
BACKUPS, EXPECTIMAX = f"{TREES}/backups.py", f"{TREES}/expectimax.py"
WAYS, BACKED = f"{TREES}/ways.py", "tests/exact/test_backups.py"
AB, ARMS, ACTIONS = f"{TREES}/ab_mcts.py", f"{TREES}/arms.py", f"{TREES}/actions.py"
REFINE, PERSISTENT = f"{TREES}/tree_refinement.py", f"{TREES}/persistent.py"
ROLLOVER, LIKELIHOOD = "searchers/sampling/rollover.py", "searchers/likelihood.py"
LAST, SEARCH = "searchers/anytime.py", "searchers/search.py"

OPTIMAL, SEARCHERS = "tests/exact/test_optimality.py", "tests/test_searchers.py"
TREES = "tests/test_mcts.py"
GUMBELS, RAINS = "tests/exact/test_gumbel_mcts.py", "tests/exact/test_rain.py"
BRANCHING, ACTS = "tests/exact/test_ab_mcts.py", "tests/exact/test_actions.py"
PHIS, VIEWS = "tests/exact/test_phi_decoding.py", "tests/test_multi_perspective.py"
ROLLS, REFINED = "tests/test_rollover.py", "tests/test_tree_refinement.py"
ANYTIME, MAPS = "tests/test_anytime.py", "tests/test_persistent.py"

FAULTS = [
    # Beams.
    Fault(BEAM, "(1 - share) * node.log_promise", "node.log_promise", f"{OPTIMAL} -k beam"),
    Fault(BEAM, "s + share * log_prior(node)", "s - share * log_prior(node)", f"{OPTIMAL} -k beam"),
    Fault(BEAM, "np.argsort([-s for s", "np.argsort([s for s", f"{OPTIMAL} {SEARCHERS} -k beam"),
    Fault(BEAM, "(self.beam_width if first else 1)", "1", "tests/test_searchers.py -k first_round"),
    Fault(
        BEAM,
        "pool = [node for node in state.nodes if node.finished]",
        "pool = []",
        f"{SEARCHERS} -k beam",
    ),
    Fault(
        BEAM,
        "order[: self.beam_width]",
        "order[: self.beam_width + 1]",
        f"{SEARCHERS} {OPTIMAL} tests/test_golden.py -k beam",
    ),
    Fault(
        BEAM,
        "self.temperature * self.decay**rounds",
        "self.temperature * self.decay",
        f"{OPTIMAL} -k cool",
    ),
    Fault(
        BEAM,
        "math.exp(min(score, 700.0)) / tau",
        "score / tau",
        "tests/exact/test_optimality.py -k cool_down",
    ),
    Fault(BEAM, "self.lookahead, greedy=True)", "self.lookahead)", f"{OPTIMAL} -k lookahead"),
    Fault(
        BEAM,
        "tree.rollout(nodes, self.lookahead,",
        "tree.rollout(nodes, self.lookahead + 1,",
        f"{OPTIMAL} -k lookahead",
    ),
    # Queues.
    Fault(
        QUEUE,
        "return [(-node.log_promise,) for",
        "return [(node.log_promise,) for",
        f"{OPTIMAL} -k best_first",
    ),
    Fault(
        QUEUE,
        "key=lambda entry: (entry[0][k], entry[1])",
        "key=lambda entry: (entry[0][k], -entry[1])",
        f"{OPTIMAL} -k best_first",
    ),
    Fault(
        QUEUE,
        "spent -= log_prior(node)",
        "spent += log_prior(node)",
        "tests/exact/test_optimality.py -k in_numbers",
    ),
    Fault(
        QUEUE,
        "max(0.0, b - a)",
        "b - a",
        "tests/exact/test_optimality.py -k in_numbers",
    ),
    Fault(
        QUEUE,
        "if self.cost_to_go is None or node.finished:",
        "if self.cost_to_go is None:",
        "tests/exact/test_optimality.py -k in_numbers",
    ),
    Fault(
        QUEUE,
        "return spent + self.weight * self.cost_to_go(node)",
        "return spent",
        "tests/exact/test_optimality.py -k in_numbers",
    ),
    Fault(
        QUEUE,
        "state.expanded >= self.simulations",
        "state.expanded > self.simulations",
        f"{OPTIMAL} {VIEWS}",
    ),
    Fault(
        QUEUE,
        "if child.open or self.queues_finished",
        "if child.open",
        f"{OPTIMAL} -k 'star or mode'",
    ),
    Fault(
        QUEUE,
        "min(orders, len(left), self.simulations - state.expanded)",
        "min(orders, len(left))",
        f"{VIEWS}",
    ),
    Fault(DVTS, "nodes[i] = max(own,", "nodes[i] = min(own,", f"{OPTIMAL} -k dvts"),
    Fault(
        DVTS,
        "if node.finished and not node.dead)",
        "if node.finished)",
        f"{OPTIMAL} tests/test_laws.py -k 'dvts or DVTS'",
        equivalent="what is dead has not finished",
    ),
    Fault(
        DVTS,
        "key=lambda node: node.log_promise)",
        "key=lambda node: node.log_increment)",
        "tests/exact/test_optimality.py -k not_by_the_weight",
    ),
    Fault(GREEDY, "1, greedy=True)", "1)", f"{OPTIMAL} -k greedy"),
    Fault(
        REBASE,
        "self.n - len(finished), self.temperature",
        "self.n, self.temperature",
        f"{OPTIMAL} -k rebase",
    ),
    Fault(
        REBASE,
        "math.ceil(budget * (mass[node] / rest) - 1e-9)",
        "math.floor(budget * (mass[node] / rest) + 1e-9)",
        f"{OPTIMAL} -k rebase",
    ),
    Fault(REBASE, "mass[node] / rest)", "mass[node] / mass.sum())", f"{OPTIMAL} -k rebase"),
    Fault(
        REBASE, "dtype=float) / temperature", "dtype=float) * temperature", f"{OPTIMAL} -k rebase"
    ),
    Fault(REBASE, "- 1e-9))", "))", f"{OPTIMAL} -k rebase"),
    Fault(MANY, "-float(len(node.text))", "float(len(node.text))", VIEWS),
    Fault(MANY, "tuple(-score for score in row)", "tuple(row)", VIEWS),
    Fault(MANY, "                known.add(form)\n", "", VIEWS),
    Fault(MANY, "before = tree.nodes[1 : -len(children)]", "before = tree.nodes[:1]", VIEWS),
    # Monte Carlo tree search.
    Fault(
        MCTS,
        "math.sqrt(math.log(parent_visits) / visits)",
        "math.sqrt(parent_visits / visits)",
        f"{TREES} -k uct",
    ),
    Fault(
        MCTS,
        "math.sqrt(math.log(parent_visits) / visits)",
        "math.sqrt(math.log(parent_visits)) / visits",
        f"{TREES} -k uct",
    ),
    Fault(MCTS, "_C1, _C2 = 1.25, 19652.0", "_C1, _C2 = 1.25, 19562.0", f"{TREES} -k puct"),
    Fault(MCTS, "_C1, _C2 = 1.25, 19652.0", "_C1, _C2 = 1.5, 19652.0", f"{TREES} -k puct"),
    Fault(
        MCTS,
        "(parent_visits + _C2 + 1) / _C2",
        "(parent_visits + _C2) / _C2",
        f"{TREES} -k puct",
    ),
    Fault(
        MCTS,
        "math.sqrt(parent_visits) / (1 + visits)",
        "math.sqrt(parent_visits) / max(1, visits)",
        f"{TREES} -k puct",
    ),
    Fault(BACKUPS, "total + leaf.value", "max(total, leaf.value)", f"{TREES} -k mcts"),
    Fault(BACKUPS, "self.temperature * leaf.log_likelihood", "leaf.log_likelihood", BACKED),
    Fault(BACKUPS, "(total - math.log(visits)) / self", "total / self", BACKED),
    Fault(EXPECTIMAX, "if fork.decision:\n            return max(below)", "", BACKED),
    Fault(EXPECTIMAX, "p + rest * o.way.drawn / draws", "p", BACKED),
    Fault(EXPECTIMAX, "if options[0].way.decision:\n                return max(below)", "", BACKED),
    Fault(EXPECTIMAX, "for i in fork.possible)", "for i in groups)", BACKED),
    Fault(
        EXPECTIMAX,
        "[fork.log_probs[taken] for taken in groups]",
        "[0.0 for taken in groups]",
        BACKED,
    ),
    Fault(WAYS, "if tail and (record.decision or", "if tail and (False or", BACKED),
    Fault(
        MCTS,
        "Statistics(here.visits + 1,",
        "Statistics(here.visits + (node is not path[0]),",
        f"{TREES} -k mcts",
    ),
    Fault(
        MCTS,
        "means = [self._rule.value(s.total, s.visits) for s in own]",
        "means = [s.total / (s.visits + passing[c.identity]) for s, c in zip(own, options)]",
        f"{TREES} tests/test_golden.py -k 'leaves or on_their_way or MCTS'",
    ),
    Fault(
        MCTS,
        "counts = [s.visits + passing[c.identity] for",
        "counts = [s.visits for",
        f"{TREES} -k on_their_way",
    ),
    Fault(
        MCTS,
        "len(here.children) + growing[node.identity] < self.width",
        "len(here.children) < self.width",
        f"{TREES} -k 'leaves or on_their_way'",
    ),
    Fault(
        MCTS,
        "closed = all(statistics",
        "closed = any(statistics",
        "tests/test_mcts.py -k something_open",
    ),
    Fault(
        MCTS,
        "softmax([confidence(c.records) for c in siblings])",
        "softmax([confidence(c.history) for c in siblings])",
        "tests/test_mcts.py -k not_of_their_past",
    ),
    Fault(MCTS, "if not state.statistics[c.identity].closed]", "]", f"{TREES} -k mcts"),
    Fault(LIKELIHOOD, "/ max(sum(sizes), 1)", "/ max(len(sizes), 1)", f"{PHIS} -k confidence"),
    Fault(
        LIKELIHOOD,
        "math.fsum(r.prior() for r in records if r.kind",
        "math.fsum(r.joint() for r in records if r.kind",
        "tests/test_mcts.py -k knows_no_scale",
    ),
    # Gumbel.
    Fault(
        GUMBEL,
        "-np.log(np.cumsum(rng.exponential(size=n)))",
        "-np.log(np.sort(rng.exponential(size=n)))",
        f"{GUMBELS} -k arrivals",
    ),
    Fault(
        GUMBEL,
        "_VISIT_OFFSET = 50.0",
        "_VISIT_OFFSET = 5.0",
        "tests/exact/test_gumbel_mcts.py -k interior_rule",
    ),
    Fault(
        GUMBEL,
        "counts / (1 + counts.sum())",
        "counts / max(1, counts.sum())",
        "tests/exact/test_gumbel_mcts.py -k counts_half",
    ),
    Fault(
        GUMBEL,
        "(first + total * float(np.mean(means or [0.0]))) / (1 + total)",
        "(first + float(np.mean(means or [0.0]))) / 2",
        f"{GUMBELS} -k interior",
    ),
    Fault(GUMBEL, "first = self.first if self.visits else value", "first = value", GUMBELS),
    Fault(
        GUMBEL,
        "considered = max(min(2, actions), considered // 2)",
        "considered = max(1, considered // 2)",
        f"{GUMBELS} -k halving",
    ),
    Fault(
        GUMBEL,
        "math.ceil(math.log2(actions))",
        "math.floor(math.log2(actions))",
        f"{GUMBELS} -k halving",
    ),
    Fault(GUMBEL, "if here[i].visits == visits]", "]", f"{GUMBELS} -k most_visited"),
    Fault(GUMBEL, "first.setdefault(origin(node), k)", "first[origin(node)] = k", GUMBELS),
    Fault(GUMBEL, "np.array(state.gumbels) + sigma(", "sigma(", GUMBELS),
    # RAIN.
    Fault(
        RAIN,
        "_ALIKE, _SHARED, _CLOSE = 0.95, 0.2, 0.03",
        "_ALIKE, _SHARED, _CLOSE = 0.95, 0.5, 0.03",
        RAINS,
    ),
    Fault(
        RAIN,
        "_ALIKE, _SHARED, _CLOSE = 0.95, 0.2, 0.03",
        "_ALIKE, _SHARED, _CLOSE = 0.8, 0.2, 0.03",
        f"{RAINS} -k hundredths",
    ),
    Fault(RAIN, "0.75 * priors + 0.25 / len(children)", "0.75 * priors + 0.25", RAINS),
    Fault(RAIN, "value = 2 * min(leaf.value, 1.0) - 1", "value = min(leaf.value, 1.0)", RAINS),
    Fault(RAIN, "self.q + (v - self.q) * weight / total", "self.q + (v - self.q) / total", RAINS),
    Fault(RAIN, "visits > self.enough_visits and", "visits >= self.enough_visits and", RAINS),
    Fault(RAIN, "visits >= state.limit", "visits > state.limit", RAINS),
    Fault(RAIN, "(q - q.min()) / (np.ptp(q) + 1e-5)", "q - q.min()", RAINS),
    Fault(
        RAIN,
        "others.max() + others.min(), max(others.sum(), others.max())",
        "others.max(), max(others.sum(), others.max())",
        RAINS,
    ),
    Fault(RAIN, ".visits + self.more)", ".visits)", f"{RAINS} -k of_its_own"),
    Fault(RAIN, ">= 2 * self.width:", ">= self.width:", RAINS),
    # Adaptive branching.
    Fault(
        AB,
        "branches[number].back_up(CONT, choice, score)",
        "branches[number].back_up(GEN, choice, score)",
        BRANCHING,
    ),
    Fault(AB, "ways=self.ways.add(way, score)", "ways=self.ways.add(GEN, score)", BRANCHING),
    Fault(AB, "if gen >= cont:", "if gen <= cont:", BRANCHING),
    Fault(
        AB,
        "(number >= 4) &",
        "(number >= 1) &",
        f"{BRANCHING} tests/test_golden.py -k 'ab_mcts or ABMCTS or memories or deep'",
    ),
    Fault(AB, "scores[settled] = -np.inf", "pass", f"{BRANCHING} -k settled"),
    Fault(
        AB,
        "for child in children if child.answered",
        "for child in children if child.finished",
        f"{BRANCHING} {REFINED} {ANYTIME}",
    ),
    Fault(ARMS, "kappa, nu = 1 + n, 1 + n", "kappa, nu = 1 + n, 2 + n", BRANCHING),
    Fault(ARMS, "n * mean**2 / kappa) / nu", "mean**2 / kappa) / nu", BRANCHING),
    Fault(
        ARMS,
        "variance = nu * tau2 / 2 / rng.gamma(nu / 2)",
        "variance = nu * tau2 / rng.gamma(nu)",
        BRANCHING,
    ),
    Fault(
        ARMS,
        "rng.beta(0.5 + total, 0.5 + n - total)",
        "rng.beta(1 + total, 1 + n - total)",
        BRANCHING,
    ),
    Fault(ARMS, "np.log(precision) / 2", "np.log(precision)", BRANCHING),
    Fault(ARMS, "- n.sum() * _LOG_S_Y", "- len(n) * _LOG_S_Y", BRANCHING),
    Fault(
        ARMS,
        "share = 1 / (_RATIOS[:, None] + 1 / sizes)",
        "share = 1 / (_RATIOS[:, None] + sizes)",
        BRANCHING,
    ),
    Fault(ARMS, "own = 1 / s_a**2 + n / s_y**2", "own = 1 / s_a**2 + 1 / s_y**2", BRANCHING),
    Fault(ARMS, "math.hypot(s_a, s_y)", "s_y", BRANCHING),
    Fault(ARMS, "squares - n * mean**2", "squares - mean**2", BRANCHING),
    Fault(
        ACTIONS,
        "draw(known.scores.sums, rng)[arms].argmax()",
        "draw(known.scores.sums, rng)[arms].argmin()",
        ACTS,
    ),
    Fault(ACTIONS, 're.sub(r"_\\d+$", "", name) == self.site', "name.startswith(self.site)", ACTS),
    Fault(ACTIONS, "> 1.01 * impossible)", ">= 0)", ACTS),
    # phi-Decoding.
    Fault(PHI, "log_softmax(c)) - math.log(2)", "log_softmax(c))", PHIS),
    Fault(PHI, "value - before[node] for", "value for", PHIS),
    Fault(PHI, "t + 1 >= self.min_steps", "t >= self.min_steps", PHIS),
    Fault(
        PHI,
        "scores.mean() - max(self.sigma * scores.std(), 1e-9)",
        "scores.mean() + max(self.sigma * scores.std(), 1e-9)",
        PHIS,
    ),
    Fault(PHI, ".most_common(1)[0][0]", ".most_common()[-1][0]", PHIS),
    Fault(
        PHI,
        "max(alignment) >= self.agreement",
        "max(alignment) > self.agreement",
        f"{PHIS} -k full_agreement",
    ),
    Fault(
        PHI,
        "softmax([beams[i].advantage / self.temperature for i in inside])",
        "softmax([beams[i].foresight / self.temperature for i in inside])",
        PHIS,
    ),
    # Rollover, refinement.
    Fault(ROLLOVER, "child, self.quota + left)", "child, self.quota)", ROLLS),
    Fault(
        ROLLOVER,
        "child.log_promise > state.bar + _ROUNDING",
        "child.log_promise >= state.bar",
        ROLLS,
    ),
    Fault(
        ROLLOVER,
        "best, self.quota), note",
        "best, self.quota + left), note",
        f"{ROLLS} tests/test_golden.py",
        equivalent="no try is left there",
    ),
    Fault(ROLLOVER, "max(state.bar, child.log_promise) if", "child.log_promise if", ROLLS),
    Fault(
        ROLLOVER,
        "left, best = state.quota - 1, state.best",
        "left, best = state.quota, state.best",
        ROLLS,
    ),
    Fault(
        ROLLOVER,
        'bar = state.bar if self.bar == "ever" else node.log_promise',
        "bar = state.bar",
        ROLLS,
    ),
    Fault(REFINE, "node.depth <= self.depth", "node.depth < self.depth", REFINED),
    Fault(
        REFINE, "child.value > self.threshold + _ROUNDING", "child.value > self.threshold", REFINED
    ),
    Fault(
        REFINE, "child.value > self.threshold + _ROUNDING", "child.value >= self.threshold", REFINED
    ),
    Fault(REFINE, "min(self.branch, self.simulations - state.grown)", "self.branch", REFINED),
    Fault(
        REFINE,
        "self._kept(tree, alive, grown) + queue, ()",
        "queue + self._kept(tree, alive, grown), ()",
        REFINED,
    ),
    Fault(
        REFINE,
        "(node.log_likelihood, node.answered))",
        "node.log_likelihood)",
        f"{REFINED} -k for_nothing",
    ),
    Fault(PERSISTENT, "if len(self._items) == self._length else", "if True else", MAPS),
    Fault(PERSISTENT, "while number >> (_BITS * levels):", "if number >> (_BITS * levels):", MAPS),
    # Every search ends with an answer, and a stopped one with its best.
    Fault(
        LAST,
        "key=lambda node: -node.log_promise)",
        "key=lambda node: node.log_promise)",
        f"{ANYTIME} -k dead_end",
    ),
    Fault(LAST, "if rank(best) > max(held):", "if False:", f"{ANYTIME} -k it_gave_up"),
    Fault(
        LAST,
        "        if not ends[-1].dead:\n            break\n",
        "        break\n",
        f"{ANYTIME} -k dead_end",
    ),
    Fault(
        LAST,
        "    return Result(nodes, log_weights)",
        "    return result",
        f"{ANYTIME} tests/test_laws.py -k 'budget or limit'",
    ),
    Fault(
        LAST,
        "if found and result.log_evidence is None:",
        "if found:",
        f"{ANYTIME} -k nothing_else",
    ),
    Fault(
        SEARCH,
        "                run_best_on(self.tree, self._result())\n",
        "                pass\n",
        ANYTIME,
    ),
    Fault(
        SEARCH,
        "if self.exhausted or self.settled or not self.over or not result.answered:",
        "if False:",
        f"{ANYTIME} tests/test_laws.py -k 'budget or limit'",
    ),
    Fault(
        SEARCH,
        "if self.state.round == 1 and self.searcher.steers:",
        "if self.state.round == 1:",
        f"{ANYTIME} {SEARCHERS} -k 'steps or step or best_of_n'",
    ),
    Fault(
        SEARCH,
        "for a, s in zip(arguments, seeds, strict=True)\n",
        "for a, s in zip(arguments, seeds[:1] * len(seeds), strict=True)\n",
        "tests/test_laws.py -k one_by_one",
    ),
]
