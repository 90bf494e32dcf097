"""Faults in posteriors: decision rules, weights, genealogy."""

from fault import Fault

POSTERIOR, NODE = "ppl/posterior/posterior.py", "ppl/runtime/node.py"
TESTS, LAW = "tests/test_posterior.py", "tests/exact/test_one_law.py"
ANYTIME = "tests/test_anytime.py"

FAULTS = [
    Fault(
        POSTERIOR,
        "(s.value is not None, s.log_likelihood)",
        "(s.value is not None, s.log_weight)",
        TESTS,
    ),
    Fault(
        POSTERIOR,
        "max(finished, key=lambda s: s.log_joint, default=None)",
        "max(finished, key=lambda s: s.log_likelihood, default=None)",
        f"{TESTS} {LAW} -k 'map or decision'",
    ),
    Fault(POSTERIOR, '0.0 if weights == "flat" else s.log_weight', "s.log_weight", TESTS),
    Fault(POSTERIOR, '0.0 if weights == "flat" else s.log_weight', "0.0", TESTS),
    Fault(
        POSTERIOR,
        "winner(keyed([s.value for s in there], key), logs)",
        "winner([s.value for s in there], logs)",
        TESTS,
    ),
    Fault(POSTERIOR, "else there[won[0]].value", "else there[0].value", TESTS),
    Fault("ppl/posterior/votes.py", "/ math.fsum(p for p, _ in weighted)", "", TESTS),
    Fault(
        POSTERIOR,
        "(values[i], p / mass) for p, i in",
        "(values[i], p) for p, i in",
        "tests/test_posterior.py -k average",
    ),
    Fault(
        POSTERIOR,
        "order = ranked([p for p, _ in counted])",
        "order = ranked([-p for p, _ in counted])",
        TESTS,
    ),
    Fault(
        POSTERIOR,
        "p = np.where(finished, self.probabilities, 0.0)",
        "p = np.where(finished, 1.0, 0.0)",
        "tests/test_posterior.py -k draws_follow",
    ),
    Fault(
        POSTERIOR,
        "p = np.where(finished, self.probabilities, 0.0)",
        "p = np.where(finished, self.probabilities, self.probabilities)",
        "tests/test_posterior.py -k average",
    ),
    Fault(POSTERIOR, 'generator(seed, "posterior")', 'generator("posterior")', TESTS),
    Fault(
        POSTERIOR,
        "return 1.0 / total if total > 0 else 0.0",
        "return 1.0 / max(self.probabilities) if total > 0 else 0.0",
        TESTS,
    ),
    Fault(
        POSTERIOR,
        "return math.fsum(r.joint() for r in self.records)",
        'return math.fsum(r.joint() for r in self.records if r.kind == "choice")',
        f"{TESTS} {LAW} -k 'state or loaded'",
    ),
    Fault(POSTERIOR, 'attributes.get("probability", 0.0) + float(p)', "float(p)", TESTS),
    Fault(
        POSTERIOR,
        "node.answered and not node.finished,",
        "node.answered,",
        "tests/test_posterior.py -k not_provisional",
    ),
    Fault(
        POSTERIOR,
        "log_evidence=result.log_evidence,",
        "log_evidence=result.log_evidence or None,",
        "tests/exact/test_evidence.py tests/test_particle_filter.py -k 'dead_sets or one_particle'",
    ),
    Fault("ppl/posterior/shown.py", "<code style=", "<span style=", "tests/test_cells.py"),
    Fault(
        "ppl/posterior/shown.py",
        "merged[answer] = probability + p, number + 1, max(score, s.score)",
        "merged[answer] = probability + p, number + 1, s.score",
        TESTS,
    ),
    Fault(
        "ppl/posterior/shown.py",
        "(not answered[i], -rows[i][0], -rows[i][2])",
        "(-rows[i][0], -rows[i][2])",
        TESTS,
    ),
    Fault(
        POSTERIOR,
        "return np.zeros(len(weights)) if weights.dead else weights.probabilities",
        "return weights.probabilities",
        "tests/test_posterior.py -k dead_have_no",
    ),
    Fault(
        NODE,
        "return math.exp(min(self.log_likelihood, 700.0))",
        "return math.exp(min(self.log_weight, 700.0))",
        "tests/test_programs.py -k own_checkpoint",
    ),
]
