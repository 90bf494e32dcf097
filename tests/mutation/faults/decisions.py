"""Faults in decision rules and in what is said of fewer samples, or more."""

from fault import Fault

VOTES, VOTING = "ppl/posterior/votes.py", "ppl/decide/voting.py"
RPC, RANKS = "ppl/decide/perplexity.py", "ppl/decide/ranks.py"
PESSIMISM, CERTAINTY = "ppl/decide/pessimism.py", "ppl/decide/certainty.py"
RISKS, CONFORMAL = "ppl/decide/risk.py", "ppl/decide/conformal.py"
RISK, READING = "ppl/decide/bayes_risk.py", "ppl/decide/aggregation.py"
SET, LAW = "ppl/decide/set_aggregator.py", "ppl/decide/laws.py"
COVERAGE, TTSPM = "ppl/decide/scaling/coverage.py", "ppl/decide/scaling/ttspm.py"
CONFIDENCE, CANDIDATES = "ppl/decide/confidence.py", "ppl/decide/candidates.py"
LAWS, RULES = "tests/test_decide_laws.py", "tests/test_decide_rules.py"
CHOICES, SCALING = "tests/test_decide_selective.py", "tests/test_scaling.py"
AGGREGATES = "tests/test_decide_aggregate.py"
PLAN, PLANNING = "ppl/runtime/planning.py", "tests/exact/test_planning.py"

FAULTS = [
    Fault(VOTES, "np.isneginf(top), there,", "np.isneginf(top), 0.0,", f"{LAWS} -k 4_with"),
    Fault(VOTES, "np.exp(logs - top)", "np.exp(logs)", f"{LAWS} -k tied"),
    Fault(VOTES, "keepdims=True) * (1 - _ALIKE)", "keepdims=True)", f"{LAWS} -k expectation"),
    Fault(
        VOTES,
        "weights[falling[0]] * (1 - _ALIKE)",
        "weights[falling[0]]",
        "tests/test_posterior.py -k rounding",
    ),
    Fault(VOTES, "totals / np.maximum(members, 1)", "totals", f"{RULES} -k differ"),
    Fault(
        VOTES,
        "log_weights[i] > log_weights[kept[thing]]",
        "log_weights[i] < log_weights[kept[thing]]",
        f"{RULES} -k spellings",
    ),
    Fault(VOTES, "return int(np.argmax(log_weights))", "return 0", f"{RULES} -k spellings"),
    Fault(
        VOTES,
        "return spelled.index(int(np.argmax(leading(totals, seen)[0])))",
        "return 0",
        f"{RULES} -k spellings",
    ),
    Fault(VOTES, "[None if value is None else key(value)", "[key(value)", f"{RULES} {LAWS}"),
    Fault(
        VOTING,
        "np.where(numbers < 0, count, numbers)[None], logs[None], count + 1",
        "numbers[None], logs[None], count",
        f"{LAWS} -k 3_no_answer",
    ),
    Fault(
        VOTING,
        "leading(*pooled(numbers[None], logs[None], count))[0]",
        "totals[0][:count]",
        f"{LAWS} -k 3_no_answer_may",
    ),
    Fault(VOTING, "((given < 0) | np.isinf(given)).any()", "False", f"{LAWS} -k 10"),
    Fault(VOTING, "there[np.argmax(ranks[there])]", "there[np.argmin(ranks[there])]", LAWS),
    Fault(RPC, "np.where(counted, logs, -np.inf)", "logs", f"{RULES} -k exact"),
    Fault(RPC, "means[0] > means[1]", "means[0] < means[1]", f"{RULES} -k lower"),
    Fault(
        RPC,
        "(bad > good) & (probabilities < probabilities.mean())",
        "bad > good",
        f"{RULES} -k stays",
    ),
    Fault(RPC, "logs - logs.max(), -1e-12", "logs, -1e-12", f"{RULES} -k lower"),
    Fault(
        RPC, "fitted.success and max(means) <= math.log(_MOST_MEAN)", "True", f"{RULES} -k nothing"
    ),
    Fault(
        RPC,
        'columns["log_probs"] / np.maximum(columns["tokens"], 1)',
        'columns["log_probs"]',
        f"{RULES} -k mean",
    ),
    Fault(RPC, 'return columns["log_joints"]', 'return columns["log_probs"]', f"{RULES} -k exact"),
    Fault(RANKS, "- np.maximum(above, 0.0) ** draws", "", f"{RULES} -k bests"),
    Fault(
        RANKS, "/ np.maximum(alike, 1)\n        with", "\n        with", "tests/test_estimators.py"
    ),
    Fault(RANKS, "/ np.maximum(total, 1)) ** self.power", "/ 1.0) ** -self.power", RULES),
    Fault(PESSIMISM, "np.cumsum(p * r, axis=-1) - beta", "np.cumsum(p * r, axis=-1)", RULES),
    Fault(PESSIMISM, "inside.sum(axis=-1, keepdims=True) - 1", "inside.sum() * 0", RULES),
    Fault(CERTAINTY, "-(laws.mean() + np.log(laws.shape[1]))", "-laws.mean()", RULES),
    Fault(CERTAINTY, "laws.shape[1] - most :]", ": most]", f"{RULES} -k uniform"),
    Fault(CERTAINTY, "1 - self.keep, -1", "self.keep, -1", f"{RULES} -k deepconf"),
    Fault(CERTAINTY, "np.where(stays, sure, 0.0)", "np.where(stays, 1.0, 0.0)", RULES),
    Fault(CERTAINTY, "if len(tokens) <= window:", "if len(tokens) < 1:", f"{RULES} -k text"),
    Fault(CONFIDENCE, "sums[0] = 0.0", "", f"{RULES} -k soft"),
    Fault(CONFIDENCE, "total = sure.sum()", "total = sums.sum()", f"{RULES} -k soft"),
    Fault(RISK, "gains - gains.min()", "gains", f"{LAWS} -k utility"),
    Fault(RISK, "@ totals[0]", "@ np.ones(len(firsts))", f"{RULES} {LAWS} -k 'risk or utility'"),
    Fault(RISKS, "-wrong / (1 - wrong)", "-wrong", f"{CHOICES} -k games"),
    Fault(RISKS, "right + (1 - right) * wrong, 0.0", "right, 0.0", f"{CHOICES} -k accuracy"),
    Fault(RISKS, "np.repeat(errors / size, size)", "1 - right", f"{CHOICES} -k risk"),
    Fault(RISKS, "np.unique(-sure, ", "np.unique(sure, ", f"{CHOICES} -k risk"),
    Fault(CONFORMAL, "(len(misses) + 1) * (1 - alpha)", "len(misses) * (1 - alpha)", CHOICES),
    Fault(CONFORMAL, "1.0 if rank > len(misses) else", "", f"{CHOICES} -k rank"),
    Fault(CONFORMAL, "self.threshold >= 1.0 - _ROUNDING", "False", CHOICES),
    Fault(READING, "int(found[1]) - 1", "int(found[1])", AGGREGATES),
    Fault(READING, "if len(set(numbers.tolist())) <= 1:", "if not members:", AGGREGATES),
    Fault(READING, "bool((same[1:] != same[0]).all())", "False", AGGREGATES),
    Fault(SET, "/ counts - values.mean()", "/ counts", f"{AGGREGATES} -k learns"),
    Fault(SET, "2 * np.bincount(", "np.bincount(", f"{AGGREGATES} -k learns"),
    Fault(LAW, "np.diff(below**n)", "mass", f"{RULES} -k law"),
    Fault(LAW, "math.log(n) - (n - 1) / n", "math.log(n)", f"{RULES} -k law"),
    Fault(LAW, "n * max(0.0, 1.0 - float(p.sum()))", "0.0", f"{RULES} -k law"),
    Fault(COVERAGE, "betaln(alpha, beta + k)", "betaln(alpha + k, beta)", SCALING),
    Fault(COVERAGE, "left * self.alpha / ", "left * self.beta / ", f"{SCALING} -k gains"),
    Fault(COVERAGE, "if counts.max() < 2:", "if counts.max() < 1:", f"{SCALING} -k refused"),
    Fault(
        COVERAGE, "return top - float(repeated @ value)", "return top - float(value.sum())", SCALING
    ),
    Fault(COVERAGE, "0.0 if least else min(found)", "min(found)", f"{SCALING} -k end"),
    Fault(COVERAGE, "return -math.exp(log_a), b", "return -log_a, b", f"{SCALING} -k line"),
    Fault(TTSPM, "math.log1p(-p) - 1e-9)", "math.log1p(-p) + 1)", f"{SCALING} -k saturation"),
    Fault(TTSPM, "if eps >= f_max * p:", "if eps > p:", f"{SCALING} -k saturation"),
    Fault(CANDIDATES, '(known["log_weights"]() > -np.inf)', "True", f"{LAWS} -k without"),
    Fault(
        CANDIDATES,
        'if k != "rewards" or "log_scores" not in more}',
        "if True}",
        f"{RULES} -k lacks",
    ),
    # What deciding is worth.
    Fault(PLAN, "        scores = below\n", "        scores = [-v for v in below]\n", PLANNING),
    Fault(PLAN, "-math.log(len(logs)) if", "0.0 if", PLANNING),
    Fault(PLAN, "v + log_p / temperature", "v + log_p", PLANNING),
    Fault(PLAN, "(value, 0.0 if decision else log_p)", "(value, log_p)", PLANNING),
    Fault(PLAN, "[w + temperature * v for", "[w + v for", PLANNING),
    Fault(
        PLAN,
        "reward=found[1] - math.fsum(log_p for _, log_p in choices)",
        "reward=found[1]",
        PLANNING,
    ),
    Fault(PLAN, "if value > best.value or", "if value < best.value or", PLANNING),
]
