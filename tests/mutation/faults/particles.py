"""Faults in weights, resampling and the searchers that are samplers."""

from fault import Fault

WEIGHTS, RESAMPLING = "ppl/runtime/weights.py", "searchers/resampling.py"
ROOM = "searchers/particles"
SEARCHER_LAWS = "tests/test_searcher_laws.py"
SMC, STEERING, ALIVE = f"{ROOM}/smc.py", f"{ROOM}/steering.py", f"{ROOM}/alive.py"
MOVE, TEMPERATURE = f"{ROOM}/resample_move.py", f"{ROOM}/temperature.py"
METROPOLIS = f"{ROOM}/metropolis.py"
FILTER, CSMC = f"{ROOM}/particle_filter.py", f"{ROOM}/conditional_smc.py"
GIBBS, VECTORIZED = f"{ROOM}/particle_gibbs.py", f"{ROOM}/vectorized.py"
BEST_OF_N = "searchers/sampling/best_of_n.py"

OF_WEIGHTS, SCHEMES = "tests/test_weights.py", "tests/test_resampling.py"
EVIDENCE, PARTICLES = "tests/exact/test_evidence.py", "tests/exact/test_particles.py"
INVARIANCE, SEARCHERS = "tests/exact/test_invariance.py", "tests/test_searchers.py"
TEMPERATURES, ROWS = "tests/exact/test_temperature.py", "tests/exact/test_vectorized.py"
FILTERS, GOLDEN = "tests/test_particle_filter.py", "tests/test_golden.py"
ANYTIME = "tests/test_anytime.py"

FAULTS = [
    # Weights.
    Fault(WEIGHTS, "self.log_sum - float(np.log(len(self)))", "self.log_sum", OF_WEIGHTS),
    Fault(WEIGHTS, "return self.log_carried + self.log_mean", "return self.log_mean", OF_WEIGHTS),
    Fault(
        WEIGHTS,
        "self.log_weights[drawn] - self.log_mean - log_offspring[drawn]",
        "self.log_weights[drawn] - log_offspring[drawn]",
        OF_WEIGHTS,
    ),
    Fault(
        WEIGHTS,
        "self.log_weights[drawn] - self.log_mean - log_offspring[drawn]",
        "self.log_weights[drawn] - self.log_mean - log_offspring",
        f"{OF_WEIGHTS} {TEMPERATURES}",
    ),
    Fault(
        WEIGHTS,
        "self.log_weights + factors, self.log_carried)",
        "self.log_weights + factors)",
        OF_WEIGHTS,
    ),
    Fault(WEIGHTS, "self.log_weights / temperature", "self.log_weights * temperature", SEARCHERS),
    Fault(WEIGHTS, "1.0 / np.sum(probabilities**2)", "1.0 / np.max(probabilities)", OF_WEIGHTS),
    Fault(WEIGHTS, "np.exp(log_weights - log_weights.max())", "np.exp(log_weights)", SCHEMES),
    Fault(WEIGHTS, "log_weights.flags.writeable = False", "pass", OF_WEIGHTS),
    Fault(
        WEIGHTS, "carried = self.log_carried + self.log_mean", "carried = self.log_mean", OF_WEIGHTS
    ),
    # Resampling.
    Fault(RESAMPLING, "np.minimum(indices, last)", "indices", SCHEMES),
    Fault(RESAMPLING, "    edges /= edges[-1]\n", "", SCHEMES),
    Fault(
        RESAMPLING, "np.arange(n) + rng.random(n)) / n", "np.arange(n) + rng.random()) / n", SCHEMES
    ),
    Fault(
        RESAMPLING,
        "(np.arange(n) + rng.random()) / n",
        "(np.arange(n) + rng.random(n)) / n",
        SCHEMES,
    ),
    Fault(RESAMPLING, "(np.arange(n) + rng.random()) / n", "(np.arange(n) + 0.5) / n", SCHEMES),
    Fault(
        RESAMPLING,
        "np.sort(rng.random(n))",
        "(np.arange(n) + rng.random(n)) / n",
        f"{SCHEMES} {INVARIANCE} -k 'variances or one_law'",
    ),
    Fault(
        RESAMPLING,
        "multinomial(fractions / fractions.sum(), rest, rng)",
        "multinomial(probabilities, rest, rng)",
        SCHEMES,
    ),
    Fault(
        RESAMPLING,
        "rng.random() * (rise + fall) < fall",
        "rng.random() * (rise + fall) < rise",
        SCHEMES,
    ),
    Fault(
        RESAMPLING, "rise = min(1 - fractions[i], fractions[j])", "rise = 1 - fractions[i]", SCHEMES
    ),
    Fault(
        RESAMPLING,
        "weights[kept:] = tails[kept] / (n - kept)",
        "weights[kept:] = tails[kept] / n",
        SCHEMES,
    ),
    Fault(RESAMPLING, "    weights[kept:] = tails[kept] / (n - kept)\n", "", SCHEMES),
    Fault(
        RESAMPLING,
        "(n - np.arange(n)) * weights[:n] <= tails[:n]",
        "n * weights[:n] <= tails[:n]",
        SCHEMES,
    ),
    Fault(RESAMPLING, "kept + systematic(", "systematic(", SCHEMES),
    Fault(
        RESAMPLING,
        "+ rng.gumbel(",
        "- rng.gumbel(",
        "tests/exact/test_optimality.py -k without_replacement",
    ),
    # SMC.
    Fault(
        SMC,
        "size < self.ess_threshold * self.num_particles",
        "size > self.ess_threshold * self.num_particles",
        f"{SEARCHERS} -k smc",
    ),
    Fault(
        SMC,
        "size < self.ess_threshold * self.num_particles",
        "size < self.ess_threshold * 1",
        f"{SEARCHERS} -k smc",
    ),
    Fault(
        SMC,
        "* (1 - 1e-9):",
        ":",
        f"{SEARCHERS} {GOLDEN} -k smc",
        equivalent="equal weights that rounding has resampled are copied once each",
    ),
    Fault(
        SMC,
        "np.log(len(nodes) * probabilities)",
        "np.log(probabilities)",
        f"{PARTICLES} {SEARCHERS} -k temperature",
    ),
    Fault(
        SMC,
        "weights = weights.resample(ancestors)\n",
        "weights = Weights.equal(len(nodes))\n",
        f"{EVIDENCE} -k every_scheme",
    ),
    Fault(
        SMC,
        "(self._exponent(t) - 1) * n.log_likelihood",
        "self._exponent(t) * n.log_likelihood",
        "tests/test_searchers.py -k tempered_rounds",
    ),
    Fault(SMC, "0.0 if n.dead else", "", f"{PARTICLES} {SEARCHERS} -k 'temper'"),
    Fault(
        SMC,
        "if temperature == 1 and priorities is weights:",
        "if temperature == 1:",
        "tests/exact/test_particles.py -k 'temperatures_do_not and tempering'",
    ),
    Fault(
        SMC,
        "priorities.log_weights, t + 1)",
        "priorities.log_weights, t)",
        "tests/test_searchers.py -k rounds_from_one",
    ),
    Fault(SMC, 'generator(tree.seed, "resample", t)', 'generator(tree.seed, "resample")', GOLDEN),
    Fault(SMC, "if not over and size", "if size", GOLDEN),
    Fault(
        SMC,
        "log_increments = np.zeros(len(nodes))",
        "log_increments = np.array([n.log_increment * n.finished for n in nodes])",
        f"{EVIDENCE} -k every_scheme",
    ),
    Fault(
        SMC,
        "log_increments[i] = child.log_increment",
        "log_increments[i] = child.log_weight",
        f"{EVIDENCE} -k every_scheme",
    ),
    Fault(
        SMC,
        "return [nodes[a] for a in ancestors], weights, temperature",
        "return list(nodes), weights, temperature",
        f"{EVIDENCE} -k every_scheme",
    ),
    Fault(
        SMC,
        "nodes, moved = self.move(tree, nodes, t + 1)",
        "moved = {}",
        f"{GOLDEN} -k ResampleMove tests/exact/test_invariance.py",
    ),
    # SMC without replacement.
    Fault(
        STEERING,
        "log_weight - np.log(self.expansions) + child.log_increment",
        "log_weight + child.log_increment",
        f"{PARTICLES} -k steering",
    ),
    Fault(STEERING, "Weights.equal(n, -np.log(n))", "Weights.equal(n)", f"{PARTICLES} -k steering"),
    Fault(
        STEERING,
        "Weights(total + np.log(shares))",
        "Weights(np.log(shares))",
        f"{PARTICLES} -k steering",
    ),
    Fault(
        STEERING,
        "float(np.logaddexp.reduce(shares))",
        "float(shares.max())",
        "tests/exact/test_particles.py -k can_hold_every_text",
    ),
    Fault(
        STEERING,
        "                log_weights.append(log_weight)\n",
        "                log_weights.append(log_weight + node.log_increment)\n",
        f"{PARTICLES} -k steering",
    ),
    Fault(
        STEERING,
        ", p=np.exp(shares - mass))",
        ")",
        "tests/test_boundaries.py -k estimated_verifier",
    ),
    Fault(
        STEERING,
        "if mass > -np.inf and len({_told(nodes[i]) for i in group}) > 1:",
        "if False:",
        "tests/test_boundaries.py -k estimated_verifier",
    ),
    Fault(
        "searchers/duplicates.py",
        "(child.parent.identity, *map(_comparable, child.choices))",
        "(*map(_comparable, child.choices),)",
        f"{PARTICLES} {SEARCHERS} -k 'steering or beam'",
    ),
    Fault(
        "searchers/duplicates.py",
        "isinstance(value, torch.Tensor)",
        "False",
        "tests/exact/test_vgb.py tests/test_multi_perspective.py -k tensors",
    ),
    # Kernels, and what samplers are tested by.
    Fault(
        "searchers/kernels/kernel.py",
        "owes=after.owes | law.owes",
        "owes=after.owes",
        "tests/exact/test_kernels.py -k debt",
    ),
    Fault(
        "searchers/kernels/check.py",
        "weights.log_weights + weights.log_carried, 0.0, rtol",
        "0.0, 0.0, rtol",
        "tests/exact/test_kernels.py -k leaves_weights",
    ),
    Fault(
        "ppl/calibration.py",
        "rtol=1e-9, atol=0.0",
        "rtol=0.0, atol=1e-9",
        "tests/test_sampler_calibration.py -k unit",
    ),
    # Alive particle filter.
    Fault(ALIVE, "np.log(proposals - 1)", "np.log(proposals)", f"{PARTICLES} -k alive"),
    Fault(
        ALIVE,
        "kept = alive[: self.num_particles]",
        "kept = alive[1:]",
        f"{PARTICLES} -k alive_evidence",
        equivalent="survivors are independent draws of one law: any N of the N + 1 do",
    ),
    Fault(ALIVE, "while len(alive) <= n:", "while len(alive) < n:", f"{PARTICLES} -k alive"),
    Fault(
        ALIVE,
        "node.log_increment if ancestor.open else 0.0",
        "node.log_increment",
        f"{PARTICLES} -k finished_particle_is_alive",
    ),
    Fault(
        ALIVE,
        "rng.choice(n, wanted, p=probabilities)",
        "rng.choice(n, wanted)",
        f"{PARTICLES} -k alive",
    ),
    Fault(
        ALIVE,
        "drawn = rng.choice(n, wanted, p=probabilities)",
        "drawn = np.sort(rng.choice(n, wanted, p=probabilities))",
        f"{PARTICLES} -k left_out",
    ),
    Fault(ALIVE, '"ancestors", t, proposals)', '"ancestors", t)', f"{PARTICLES} {GOLDEN} -k alive"),
    Fault(ALIVE, "error.log_evidence = math.nan", "pass", f"{PARTICLES} -k alive"),
    # Moves.
    Fault(
        MOVE,
        "new.log_weight - old.log_weight for",
        "old.log_weight - new.log_weight for",
        f"{INVARIANCE} -k metropolis",
    ),
    Fault(
        METROPOLIS,
        "np.log(uniforms) < log_ratios",
        "uniforms < log_ratios",
        f"{INVARIANCE} -k metropolis",
    ),
    Fault(
        MOVE,
        "max(rounds - last, 0) + 1",
        "max(rounds - last - 1, 0) + 1",
        f"{INVARIANCE} -k moves",
    ),
    Fault(MOVE, "rounds, move).random", "move).random", f"{SEARCHER_LAWS} -k randomness"),
    # Temperatures.
    Fault(TEMPERATURE, "max(1.0, (1 - u) / e)", "max(1.0, 1 / e)", TEMPERATURES),
    Fault(TEMPERATURE, "return 2 - u", "return 1 + u", TEMPERATURES),
    Fault(TEMPERATURE, ".sum()) / math.log(n)", ".sum())", TEMPERATURES),
    Fault(TEMPERATURE, "1 / (h + (1 - h) * u)", "1 / (h + h * u)", TEMPERATURES),
    Fault(TEMPERATURE, "or u >= self.early_phase", "", TEMPERATURES),
    Fault(TEMPERATURE, "e >= self.ess_threshold or", "", TEMPERATURES),
    Fault(TEMPERATURE, "self.share * len(log_weights)", "self.share", TEMPERATURES),
    Fault(TEMPERATURE, "return 1 / float(brentq(", "return float(brentq(", TEMPERATURES),
    # The published particle filter.
    Fault(FILTER, "np.log(rewards) - np.log1p(-rewards)", "np.log(rewards)", FILTERS),
    Fault(FILTER, "np.where([node.dead for node in nodes], -np.inf, rewards)", "rewards", FILTERS),
    Fault(
        FILTER,
        "Weights(log_weights / temperature)",
        "Weights(log_weights)",
        f"{FILTERS} {TEMPERATURES}",
    ),
    Fault(FILTER, "        nodes = [nodes[a] for a in ancestors]\n", "", FILTERS),
    # Conditional SMC and its chains.
    Fault(
        CSMC,
        "_at(sweep.reference, sweep.rounds + 1))",
        "_at(sweep.reference, sweep.rounds))",
        f"{INVARIANCE} -k sweep",
    ),
    Fault(CSMC, "(1.0 - exponent) * likelihood", "exponent * likelihood", f"{INVARIANCE} -k sweep"),
    Fault(
        CSMC,
        "math.fsum(gains) + math.fsum(densities)",
        "math.fsum(gains)",
        f"{INVARIANCE} -k sweep",
    ),
    Fault(
        CSMC,
        "sweep.weights.log_weights[i] + math.fsum(gains)",
        "math.fsum(gains)",
        f"{INVARIANCE} -k sweep",
    ),
    Fault(
        CSMC,
        "log_odds[i] = sweep.weights.log_weights[i] + math.fsum(gains)",
        "log_odds[i] = sweep.weights.log_weights[i]",
        f"{INVARIANCE} -k sweep",
    ),
    Fault(
        CSMC,
        "    if child is parent:\n        return 0.0\n",
        "",
        f"{INVARIANCE} -k rounds_of_a_sweep",
    ),
    Fault(CSMC, "len(sweep.nodes) - len(fixed)", "len(sweep.nodes)", f"{INVARIANCE} -k sweep"),
    Fault(
        CSMC,
        "multinomial(sweep.weights.probabilities, 1, rng)[0]",
        "np.argmax(sweep.weights.probabilities)",
        f"{INVARIANCE} -k sweep",
    ),
    Fault(
        CSMC,
        '"resample", sweep.number, sweep.rounds)',
        '"resample", sweep.rounds)',
        f"{INVARIANCE} {GOLDEN} -k 'chains or Gibbs or Tempering'",
    ),
    Fault(
        GIBBS,
        "s.weights.log_weights - s.weights.log_sum for",
        "s.weights.log_weights for",
        f"{INVARIANCE} {GOLDEN} -k 'chains or Gibbs'",
    ),
    Fault(GIBBS, "(b[i] - b[i + 1]) *", "(b[i + 1] - b[i]) *", f"{INVARIANCE} -k exchanging"),
    Fault(
        GIBBS,
        "range((number - 1) % 2,",
        "range(0,",
        f"{INVARIANCE} {GOLDEN} -k 'exchanging or chains or Tempering'",
    ),
    Fault(
        GIBBS,
        "number * k + i, reference",
        "number * k, reference",
        f"{INVARIANCE} {GOLDEN} -k 'exchanging or chains or Tempering'",
    ),
    # All particles in one run.
    Fault(VECTORIZED, "                site.gather(rows)\n", "                pass\n", ROWS),
    Fault(
        VECTORIZED,
        "self.weights = self.weights.add(",
        "self.weights = Weights.equal(self.n).add(",
        ROWS,
    ),
    Fault(
        VECTORIZED,
        "size < self.settings.ess_threshold * self.n",
        "size > self.settings.ess_threshold * self.n",
        ROWS,
    ),
    Fault(VECTORIZED, 'key(self.seed, msg["name"], "rows")', 'key(self.seed, "rows")', ROWS),
    Fault(
        VECTORIZED, 'msg["value"] = value.clone()', 'msg["value"] = value', f"{ROWS} -k in_place"
    ),
    Fault(
        VECTORIZED,
        'msg["value"] = site.value.clone()',
        'msg["value"] = site.value',
        f"{ROWS} -k in_place",
    ),
    Fault(
        VECTORIZED,
        'generator(self.seed, "resample", t)',
        'generator(self.seed, "resample")',
        f"{SEARCHER_LAWS} -k randomness",
    ),
    Fault(VECTORIZED, "if self.over else None,\n            cost", ",\n            cost", ROWS),
    # Best of N.
    Fault(
        BEST_OF_N,
        "weights.tolist(), weights.log_evidence)",
        "weights.tolist(), weights.log_sum)",
        f"{EVIDENCE} -k best_of_n",
    ),
    Fault(BEST_OF_N, "int(min(affordable, 2 * ended))", "int(affordable)", ANYTIME),
    Fault(BEST_OF_N, "if affordable >= _AMPLE * len(everyone):", "if False:", ANYTIME),
    Fault(
        BEST_OF_N,
        "begun = [node for node in kept if node is not tree.root]",
        "begun = list(kept)",
        f"{ANYTIME} -k limit_buys",
    ),
]
