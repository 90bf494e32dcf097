"""Faults in allocation, in revisions, and in what is said of imperfect verifiers."""

from fault import Fault

DIFFICULTY, RECORDS, MIX = (f"ppl/allocate/{name}.py" for name in ("difficulty", "records", "mix"))
EXCHANGE, REVISE = "ppl/allocate/exchange.py", "ppl/programs/revise.py"
IMPERFECT, ACCEPTANCE = (f"verifiers/combine/{name}.py" for name in ("imperfect", "acceptance"))
BEST_OF_N, PAIRS = "searchers/sampling/best_of_n.py", "ppl/export/pairs.py"
BINS, MIXES, ROWS = "tests/test_allocate.py", "tests/test_mix.py", "tests/test_revise.py"
WEAK = "tests/test_imperfect.py"
HYPER, SCALES = "ppl/allocate/hyper_scale.py", "tests/test_hyper_scale.py"
KEEPS, USE = "ppl/lm/engine/kv.py", "ppl/lm/engine/use.py"

FAULTS = [
    Fault(HYPER, "if point.accuracy > best:", "if point.accuracy >= best:", f"{SCALES} -k planted"),
    Fault(
        HYPER,
        "self._right[self._fold != fold][:, within]",
        "self._right[:, within]",
        f"{SCALES} -k other_questions",
    ),
    Fault(
        HYPER,
        "d if d.tokens <= length else Drawn(length, None, False)",
        "d",
        f"{SCALES} -k grid",
    ),
    Fault(KEEPS, "-(-max(base, self.sinks) // group)", "max(base, self.sinks) // group", SCALES),
    Fault(KEEPS, "behind * (group - most)", "behind * group", SCALES),
    Fault(USE, "for step in steps[1:])", "for step in steps)", SCALES),
    Fault(USE, "most = shared + max(", "most = max(", f"{SCALES} -k rows_share"),
    Fault(
        DIFFICULTY,
        "train, test = everyone[fold != k], everyone[fold == k]",
        "train, test = everyone, everyone[fold == k]",
        f"{BINS} -k noise",
    ),
    Fault(
        DIFFICULTY,
        "if r.seed != by and r.strategy in column:",
        "if r.strategy in column:",
        f"{BINS} -k say_how_difficult",
    ),
    Fault(DIFFICULTY, "cost <= budget - price + 1e-9", "cost <= budget + 1e-9", f"{BINS} -k paid"),
    Fault(
        DIFFICULTY,
        "table.cost[everyone, policy] + table.price",
        "table.cost[everyone, policy]",
        f"{BINS} -k paid",
    ),
    Fault(
        DIFFICULTY, "price.append(r.cost * k / len(own))", "price.append(r.cost)", f"{BINS} -k paid"
    ),
    Fault(DIFFICULTY, 'side="right"))', 'side="left"))', f"{BINS} -k few_values"),
    Fault(DIFFICULTY, "if c > value.min()", "if c >= value.min()", f"{BINS} -k few_values"),
    Fault(
        DIFFICULTY, "np.lexsort((cost, -share))", "np.lexsort((cost, share))", f"{BINS} -k planted"
    ),
    Fault(DIFFICULTY, "gains.mean() > margin * error", "gains.mean() > 0", f"{BINS} -k margin"),
    Fault(
        RECORDS,
        "float(row.rights.get(rule) is True)",
        "float(row.rights.get(rule) is not False)",
        f"{BINS} -k study",
    ),
    Fault(RECORDS, "c.scores[-1] if", "c.scores[0] if", f"{BINS} -k study"),
    Fault(RECORDS, "if _INDEPENDENT.match(row.searcher) else ()", "", f"{BINS} -k study"),
    Fault(EXCHANGE, "times + 3 *", "times + 6 *", f"{BINS} -k flops"),
    Fault(
        MIX, "left *= np.maximum(b + steps, 0)[:, j]", "left *= b[:, j]", f"{MIXES} -k without_bias"
    ),
    Fault(
        MIX,
        "gains = left @ (a / (a + b + steps)) / by",
        "gains = (a / (a + b + steps)).sum(axis=0) / by",
        f"{MIXES} -k specialists",
    ),
    Fault(
        MIX, "if j == now or counts[j] >= limits[j]:", "if j == now:", f"{MIXES} -k without_bias"
    ),
    Fault(
        MIX,
        "(prices / prices.min(), np.ones(many))",
        "(prices / prices.min(),)",
        f"{MIXES} -k unequal",
    ),
    Fault(MIX, "(prices / prices.min(), np", "(prices, np", f"{MIXES} -k unit"),
    Fault(RECORDS, "for c in pool if judged)", "for c in pool)", f"{BINS} -k study"),
    Fault(ACCEPTANCE, "min(_MOST_TYPES, told, different)", "min(_MOST_TYPES, told)", WEAK),
    Fault(ACCEPTANCE, "any(each is None for each in found)", "False", WEAK),
    Fault(PAIRS, "if (at, b, a) not in found]", "]", "tests/test_export.py -k contradictions"),
    Fault(
        MIX,
        "(values + prior[0]) / (of + prior[0] + prior[1])",
        "values / of",
        f"{MIXES} -k impossible",
    ),
    Fault(
        MIX,
        "np.stack([values, of - values, -np.ones_like(values)])",
        "np.stack([values / of, 1 - values / of, np.zeros_like(values)])",
        f"{MIXES} -k without_bias",
    ),
    Fault(
        MIX,
        "1 - pass_at_k(int(of[i, j]), int(hits[i, j]), n)",
        "(1 - hits[i, j] / of[i, j]) ** n",
        f"{MIXES} -k bias",
    ),
    Fault(MIX, "if value > best + 1e-12:", "if value < best:", f"{MIXES} -k specialists"),
    Fault(
        BEST_OF_N,
        "node.log_weight - sum(r.log_ratio for r in made)",
        "node.log_weight",
        f"{MIXES} -k law",
    ),
    Fault(
        BEST_OF_N,
        "order = sorted(((k + 0.5) / n, j)",
        "order = sorted((j, j)",
        f"{MIXES} -k draws_the_mix",
    ),
    Fault(REVISE, "with pyro.poutine.mask(mask=False):", "if True:", f"{ROWS} -k law"),
    Fault(
        REVISE,
        "prompt(question, seen[-memory:])",
        "prompt(question, seen[:memory])",
        f"{ROWS} -k sees",
    ),
    Fault(
        REVISE,
        "rank = (value is not None, log_score)",
        "rank = (True, log_score)",
        f"{ROWS} -k no_answer",
    ),
    Fault(REVISE, "or (verifier is None and value is not None)", "", f"{ROWS} -k sees"),
    Fault(
        REVISE,
        "torch.tensor(best[0][1], dtype=torch.float64)",
        "torch.tensor(log_score, dtype=torch.float64)",
        f"{ROWS} -k law",
    ),
    Fault(
        REVISE,
        "-math.inf if sample.log_weight == -math.inf else 0.0",
        "sample.log_weight",
        f"{ROWS} -k vote",
    ),
    Fault(
        IMPERFECT,
        "shares = good[accepts] / (good + bad)[accepts]",
        "shares = good[accepts]",
        f"{WEAK} -k ceiling",
    ),
    Fault(
        IMPERFECT,
        "return abstain + float(gains.sum())",
        "return float(gains.sum())",
        f"{WEAK} -k curves",
    ),
    Fault(
        IMPERFECT,
        "np.cumsum(reject ** ks[:-1, None], axis=0)",
        "np.cumsum(reject ** ks[1:, None], axis=0)",
        f"{WEAK} -k curves",
    ),
    Fault(
        ACCEPTANCE,
        "int((weak & ~strong).sum())",
        "int((weak & strong).sum())",
        f"{WEAK} -k false_positives",
    ),
    Fault(
        ACCEPTANCE,
        "_share(self.false, self.drawn - self.right)",
        "_share(self.false, self.accepted)",
        f"{WEAK} -k false_positives",
    ),
    Fault(
        ACCEPTANCE,
        "np.exp(logs - totals[:, None]) * times[:, None]",
        "np.exp(logs - totals[:, None])",
        f"{WEAK} -k types",
    ),
    Fault(
        ACCEPTANCE,
        "(2 * types - 1) * math.log(problems)",
        "0 * math.log(problems)",
        f"{WEAK} -k one_type",
    ),
    Fault(ACCEPTANCE, "(accepts - span[0]) / (span[1] - span[0])", "accepts", f"{WEAK} -k types"),
]
