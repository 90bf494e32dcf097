"""Faults in calibration, noise, ensembles, heads and in what is built around verifiers."""

from fault import Fault

ROOM = "verifiers/combine"
CALIBRATION, NOISE = f"{ROOM}/calibration.py", f"{ROOM}/noise.py"
GROUPS = f"{ROOM}/groups.py"
ENSEMBLE, IMPERFECT = f"{ROOM}/ensemble.py", f"{ROOM}/imperfect.py"
RELIABILITY, CACHE = f"{ROOM}/reliability.py", f"{ROOM}/cache.py"
PRM, OUTCOME = "verifiers/models/prm.py", "verifiers/models/outcome.py"
QUANTILE, HEADS = "verifiers/models/quantile.py", "verifiers/models/heads.py"
FUNCTION = "verifiers/function.py"

TESTS, LAWS = "tests/test_calibration.py tests/test_ensembles.py", "tests/test_verifier_laws.py"
FORMATS, OUTCOMES = "tests/test_prm_formats.py", "tests/test_outcome_verifiers.py"

FAULTS = [
    # Calibration.
    Fault(CALIBRATION, "(good + 1) / (good + 2)", "good / (good + 2)", TESTS),
    Fault(CALIBRATION, "1 / (len(labels) - good + 2)", "1 / (len(labels) + 2)", TESTS),
    Fault(CALIBRATION, "log_p - np.log(-np.expm1(log_p))", "log_p", TESTS),
    Fault(
        CALIBRATION,
        "np.asarray(scores, dtype=np.float64) / self.temperature",
        "np.asarray(scores, dtype=np.float64) * self.temperature",
        TESTS,
    ),
    Fault(CALIBRATION, "return cls(1 / float(slope))", "return cls(float(slope))", TESTS),
    Fault(CALIBRATION, "weights=counts).x", "weights=None).x", TESTS),
    Fault(CALIBRATION, "edge = 1 / (len(y) + 2)", "edge = 0.0", TESTS),
    Fault(CALIBRATION, "if not slope > 0:", "if False:", TESTS),
    Fault(CALIBRATION, "scores[i] = scores[i][spoken]", "pass", TESTS),
    Fault(CALIBRATION, "prefix(text, 1 + t) for", "prefix(text, t) for", "tests/test_groups.py"),
    Fault(GROUPS, "if not slope > 0:", "if False:", "tests/test_groups.py"),
    Fault(GROUPS, "gain < max(least_gain, 1e-9)", "gain < 1e-9", "tests/test_groups.py"),
    Fault(GROUPS, "z[m], y[m])", "z, y)", "tests/test_groups.py"),
    Fault(CALIBRATION, "prefix(text, t + 1) for", "prefix(text, t) for", TESTS),
    Fault(CALIBRATION, "raw = scorer.meaning in", "raw = scorer.meaning not in", TESTS),
    Fault(
        CALIBRATION,
        "self.asks_models = scorer.pseudo_marginal, scorer.asks_models",
        "self.asks_models = False, False",
        f"{TESTS} {LAWS} tests/test_accounts.py",
    ),
    # Noise.
    Fault(NOISE, "self.fpr + (self.tpr - self.fpr) * math.exp(s)", "self.tpr * math.exp(s)", TESTS),
    Fault(
        NOISE,
        "self.fpr + (self.tpr - self.fpr) * math.exp(s)",
        "self.fpr + self.tpr * math.exp(s)",
        TESTS,
    ),
    Fault(NOISE, "self.tpr if s > math.log(0.5) else self.fpr", "self.tpr", TESTS),
    Fault(NOISE, '"flip", *request.text.tokens[:end]', '"flip", *request.text.tokens', TESTS),
    Fault(NOISE, '"logit", *text.tokens[:at]', '"logit", at', TESTS),
    Fault(NOISE, "self.persistence * noise + rest * own", "noise + rest * own", TESTS),
    Fault(NOISE, "math.sqrt(1 - self.persistence**2)", "1 - self.persistence", TESTS),
    Fault(
        NOISE,
        "log_odds(log_probs) + self.sd * np.array(noise)",
        "log_odds(log_probs) + np.array(noise)",
        TESTS,
    ),
    Fault(
        NOISE, '"question", *text.tokens[: text.prompt_length]', '"question", *text.tokens', TESTS
    ),
    Fault(
        NOISE,
        "end if step.strip() else (ends[-1] if ends else text.prompt_length)",
        "end",
        TESTS,
    ),
    Fault(NOISE, "_step_ends(text)[since:]", "_step_ends(text)[:since]", f"{TESTS} {LAWS}"),
    Fault(
        NOISE,
        "if not 0 <= fpr <= tpr <= 1:",
        "if not (0 <= fpr <= 1 and 0 <= tpr <= 1):",
        f"{TESTS} tests/test_errors.py",
    ),
    # Ensembles.
    Fault(
        ENSEMBLE,
        "for member in log_probs]) - self.prior_log_odds",
        "for member in log_probs])",
        TESTS,
    ),
    Fault(ENSEMBLE, "odds[list(g)].mean(0)", "odds[list(g)].sum(0)", TESTS),
    Fault(ENSEMBLE, "member[-1:] or silent", "member[:1] or silent", TESTS),
    Fault(ENSEMBLE, "float(log_expit(self.prior_log_odds)),)", "0.0,)", TESTS),
    Fault(
        ENSEMBLE,
        "self.prior_log_odds if intercept is None else intercept",
        "0.0 if intercept is None else intercept",
        TESTS,
    ),
    Fault(
        ENSEMBLE,
        "bounds = [(0.0, None)] * len(parts)",
        "bounds = [(None, None)] * len(parts)",
        TESTS,
    ),
    Fault(
        ENSEMBLE,
        "np.log(t) - np.log(f), np.log1p(-t) - np.log1p(-f)",
        "np.log(t) - np.log(f), np.log1p(-f) - np.log1p(-t)",
        TESTS,
    ),
    Fault(
        ENSEMBLE,
        "np.where(np.isnan(v), 0.0, np.where(",
        "np.where(np.isnan(v), failed, np.where(",
        TESTS,
    ),
    Fault(ENSEMBLE, "logit(self.prior) + ratios.sum(1)", "ratios.sum(1)", TESTS),
    Fault(ENSEMBLE, "fpr = ((1 - good) @ v + 1)", "fpr = (good @ v + 1)", TESTS),
    Fault(ENSEMBLE, "mine[i] = said[-1:]", "mine[i] = said", TESTS),
    Fault(ENSEMBLE, "mine[i] = said[-1:]", "pass", TESTS),
    # Imperfect verifiers.
    Fault(IMPERFECT, "(1 - r) * (1 - self.soundness)", "(1 - r) * self.soundness", TESTS),
    Fault(
        IMPERFECT,
        "none = float(p @ reject**attempts)",
        "none = float(p @ reject ** (attempts - 1))",
        TESTS,
    ),
    Fault(
        IMPERFECT, "good * right + bad * wrong - price", "good * right - bad * wrong - price", TESTS
    ),
    Fault(IMPERFECT, "good * right + bad * wrong - price", "good * right + bad * wrong", TESTS),
    Fault(IMPERFECT, "np.concatenate([[0.0], totals])", "totals", TESTS),
    Fault(IMPERFECT, "right / (right + wrong) if", "right if", TESTS),
    # Reliability.
    Fault(
        RELIABILITY,
        "b.count * abs(b.predicted - b.observed)",
        "abs(b.predicted - b.observed)",
        TESTS,
    ),
    Fault(RELIABILITY, "float(np.mean((p - y) ** 2))", "float(np.mean(abs(p - y)))", TESTS),
    Fault(
        RELIABILITY,
        'np.searchsorted(edges, p, side="left")',
        'np.searchsorted(edges, p, side="right")',
        TESTS,
    ),
    Fault(
        RELIABILITY, "loss = -(xlogy(y, p) + xlogy(~y,", "loss = -(xlogy(y, p) - xlogy(~y,", TESTS
    ),
    # Memory of answers.
    Fault(
        CACHE,
        "return text.codec, text.tokens, text.step_ends, request.since",
        "return text.codec, text.tokens, request.since",
        f"{LAWS} {TESTS}",
    ),
    Fault(
        CACHE,
        "return text.codec, text.tokens, text.step_ends, request.since",
        "return text.codec, text.tokens, text.step_ends",
        f"{LAWS} {TESTS}",
    ),
    Fault(
        CACHE,
        "return text.codec, text.tokens[: text.prompt_length], self.key(text)",
        "return self.key(text)",
        "tests/test_tree_refinement.py -k other_questions",
    ),
    Fault(
        CACHE, "self._answers.popitem(last=False)", "self._answers.popitem()", f"{LAWS} -k cached"
    ),
    Fault(
        CACHE,
        "            self._answers.move_to_end(key)\n",
        "            pass\n",
        f"{LAWS} -k cached",
    ),
    Fault(
        CACHE, "if verifier.pseudo_marginal:", "if False:", f"{LAWS} -k 'cached or noisy or slip'"
    ),
    # Reward models.
    Fault(
        PRM,
        "[p - positions[0] for p in positions]",
        "[p - positions[0] - 1 for p in positions]",
        FORMATS,
    ),
    Fault(
        PRM,
        "[end - 1 for end in wanted]",
        "[max(end - 2, 0) for end in wanted]",
        f"{FORMATS} -k probabilities",
    ),
    Fault(PRM, "sum(map(bool, stripped[:since]))", "since", FORMATS),
    Fault(PRM, "wanted = ends[since:] or", "wanted = ends or", f"{FORMATS} {LAWS}"),
    Fault(
        PRM,
        "if wanted and wanted[-1] > self.engine.context_length:",
        "if False:",
        f"{FORMATS} -k too_long",
    ),
    Fault(
        PRM,
        'natural: Aggregate = "prod" if self.meaning == "step" else "last"',
        'natural: Aggregate = "prod"',
        f"{FORMATS} -k combine",
    ),
    Fault(
        PRM,
        '"verifier_tokens", _REUSED)',
        '_REUSED, "verifier_tokens")',
        "tests/test_accounts.py -k 'flops or ensemble or totals'",
    ),
    Fault(
        HEADS,
        "else out[:, 1] - out[:, 0]",
        "else out[:, 0] - out[:, 1]",
        f"{FORMATS} -k probabilities",
    ),
    Fault(
        HEADS,
        "layers += [nn.ReLU()] * bool(layers) + [linear]",
        "layers += [linear]",
        f"{FORMATS} -k probabilities",
    ),
    Fault(
        HEADS,
        "logsigmoid(log_odds.double())",
        "logsigmoid(log_odds)",
        f"{FORMATS} -k exact_for",
    ),
    Fault(
        OUTCOME,
        "scores[-1] / self.temperature",
        "scores[-1] * self.temperature",
        f"{LAWS} {OUTCOMES}",
    ),
    Fault(OUTCOME, "log_probs[:, self._good]", "log_probs[:, 0]", f"{OUTCOMES} -k plain_forward"),
    Fault(
        OUTCOME,
        "escaped(text.text, tokenizer",
        "(lambda t, *_: t)(text.text, tokenizer",
        f"{OUTCOMES} -k anothers_turn",
    ),
    Fault(
        QUANTILE,
        "torch.maximum(q * error, (q - 1) * error)",
        "torch.maximum((1 - q) * error, -q * error)",
        TESTS,
    ),
    Fault(
        QUANTILE, "math.ceil(math.log(1 - confidence)", "math.floor(math.log(1 - confidence)", TESTS
    ),
    Fault(QUANTILE, "weight[1] - weight[0]", "weight[0] - weight[1]", TESTS),
    Fault(
        FUNCTION,
        "if not 0 <= probability <= 1 + 1e-6:",
        "if not 0 <= probability:",
        "tests/test_errors.py",
    ),
]
