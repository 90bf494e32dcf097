"""Faults in verdicts: aggregation, telescoping, floors, who is asked what."""

from fault import Fault

VERDICT, CALLED = "ppl/runtime/verdict.py", "ppl/runtime/called.py"
OWN = "tests/test_own_verifiers.py"
PROGRAMS, LAWS = "tests/test_programs.py", "tests/test_verifier_laws.py"
BOUNDS, LAW = "tests/test_boundaries.py", "tests/exact/test_one_law.py"
ERRORS, EVIDENCE = "tests/test_errors.py", "tests/exact/test_evidence.py"

FAULTS = [
    # Potentials.
    Fault(
        VERDICT,
        'return log_scores[-1]\n        case "min"',
        'return log_scores[0]\n        case "min"',
        PROGRAMS,
    ),
    Fault(VERDICT, "return min(log_scores)", "return max(log_scores)", PROGRAMS),
    Fault(VERDICT, "math.log(total / len(log_scores))", "math.log(total)", PROGRAMS),
    Fault(
        VERDICT,
        "math.fsum(math.exp(s) for s in log_scores)",
        "math.exp(math.fsum(log_scores) / len(log_scores)) * len(log_scores)",
        PROGRAMS,
    ),
    Fault(
        VERDICT,
        "return math.fsum(log_scores) / len(log_scores)",
        "return math.fsum(log_scores) / (len(log_scores) + 1)",
        PROGRAMS,
    ),
    Fault(
        VERDICT,
        'case "prod":\n            return math.fsum(log_scores)',
        'case "prod":\n            return log_scores[-1]',
        PROGRAMS,
    ),
    # What is observed telescopes.
    Fault(
        VERDICT,
        "-math.inf if dead else self._observed - before",
        "-math.inf if dead else self._observed",
        PROGRAMS,
    ),
    Fault(
        VERDICT,
        "-math.inf if dead else self._observed - before",
        "self._observed - before",
        f"{PROGRAMS} {LAW} -k state_the_enumerated",
    ),
    Fault(
        VERDICT,
        "self._observed = potential if value else _log1mexp(potential)",
        "self._observed = potential",
        f"{PROGRAMS} -k false_observation",
    ),
    Fault(
        VERDICT,
        "previous._observed or 0.0",
        "log_potential(previous._chain, self.verifier.aggregate)",
        f"{PROGRAMS} {LAW} -k 'false_observation or state_the_enumerated'",
    ),
    Fault(
        VERDICT,
        "(() if previous is None else previous._chain) + self.log_scores",
        "self.log_scores",
        PROGRAMS,
    ),
    Fault(
        VERDICT,
        "since = 0 if previous is None else len(previous.text.step_ends)",
        "since = 0",
        f"{PROGRAMS} {LAWS}",
    ),
    Fault(
        VERDICT,
        "if verdict is not self and verdict._observed is not None:",
        "if verdict is not self:",
        "tests/test_boundaries.py -k before_a_draw",
    ),
    Fault(
        VERDICT,
        "for verdict in reversed(self._along(text)):",
        "for verdict in self._along(text):",
        "tests/test_boundaries.py -k last_word",
    ),
    Fault(VERDICT, "            text = text.parent\n", "            text = None\n", PROGRAMS),
    Fault(
        VERDICT,
        "return share(self.observe(entry.value), msg)",
        "return self.observe(entry.value)",
        f"{BOUNDS} -k scaled_verdict",
    ),
    Fault(
        VERDICT,
        "log_prob = self._log_bernoulli(value) if self._drawn else self.observe(value)",
        "log_prob = self.observe(value)",
        f"{LAW} -k pyros_own",
    ),
    Fault(
        VERDICT,
        "return self.log_probability if value else _log1mexp(self.log_probability)",
        "return self.log_probability",
        f"{LAW} -k state_the_enumerated",
    ),
    Fault(
        VERDICT,
        "return 0.0 if previous is None else previous.log_probability",
        "return 0.0",
        f"{LAWS} {PROGRAMS} {BOUNDS}",
    ),
    # One particle's verdicts are its own, and forks know them.
    Fault(
        VERDICT,
        "return self._run.verdicts.setdefault((id(text), self.verifier.name), [])",
        "return text.verdicts.setdefault(self.verifier.name, [])",
        f"{EVIDENCE} -k shared_text",
    ),
    Fault(
        VERDICT, "(id(text), self.verifier.name), [])", "(id(text), ''), [])", f"{PROGRAMS} {LAWS}"
    ),
    Fault(
        VERDICT,
        "entry.log_scores = self._log_scores",
        "pass",
        f"{BOUNDS} tests/test_searchers.py -k 'forks or fork'",
    ),
    Fault(
        VERDICT,
        "            self.settle(entry.log_scores)\n",
        "            pass\n",
        f"{BOUNDS} tests/test_searchers.py -k 'forks or fork'",
    ),
    Fault(
        VERDICT,
        "            self.observe(entry.value)\n        else:",
        "            self.observe(True)\n        else:",
        f"{LAW} -k forks_state",
    ),
    Fault(
        VERDICT,
        'if entry.kind == "observed":\n            self.observe(entry.value)\n'
        "        else:\n            self._drawn = True",
        "self.observe(entry.value)",
        "tests/test_boundaries.py -k drawn_does_not",
    ),
    Fault(
        VERDICT,
        'if entry.kind == "observed":\n            self.observe(entry.value)',
        'if entry.kind == "observed":\n            pass',
        f"{PROGRAMS} {EVIDENCE} -k 'telescop or aggregate'",
    ),
    Fault(VERDICT, 'visit.key(visit.site, "judge")', 'visit.key("judge")', f"{BOUNDS} -k own_key"),
    Fault(
        VERDICT,
        "if previous is not None and previous.verifier is not self.verifier:",
        "if False:",
        f"{LAWS} -k one_name",
    ),
    Fault(
        CALLED,
        "sorted(self.called - self.used)",
        "sorted(self.called)",
        f"{BOUNDS} -k never_observed",
    ),
    Fault(CALLED, "sorted(self.drawn - self.weighed)", "sorted(self.drawn)", f"{OWN} -k drawn"),
    Fault(
        VERDICT,
        "if isinstance(said, str | bytes):",
        "if isinstance(said, bytes):",
        f"{OWN} -k answers",
    ),
    Fault(
        VERDICT,
        'not hasattr(answers, "__len__") or isinstance(answers, str | Mapping)',
        "isinstance(answers, str | Mapping)",
        f"{OWN} -k answers",
    ),
    Fault(
        VERDICT,
        "self._run.calls.used.add(self.verifier.name)",
        "pass",
        f"{BOUNDS} -k never_observed",
    ),
    # Numbers.
    Fault(
        VERDICT,
        "high = math.log1p(-self.floor)",
        "high = 0.0",
        "tests/test_verifier_laws.py -k both_ends",
    ),
    Fault(
        VERDICT,
        "tuple(min(max(s, low), high) for",
        "tuple(min(s, high) for",
        "tests/test_verifier_laws.py -k both_ends",
    ),
    Fault(
        VERDICT,
        "low = math.log(self.floor) if self.floor else",
        "low = math.log(2 * self.floor) if self.floor else",
        "tests/test_verifier_laws.py -k both_ends",
    ),
    Fault(
        VERDICT,
        'if self.meaning == "reward":\n            return numbers',
        "if False:\n            return numbers",
        f"{LAWS} -k reward",
    ),
    Fault(
        VERDICT, "if len(numbers) not in (1, new_steps):", "if False:", f"{ERRORS} -k own_verifiers"
    ),
    Fault(
        VERDICT, "if len(numbers) != new_steps - blank:", "if False:", f"{ERRORS} -k own_verifiers"
    ),
    Fault(
        VERDICT, 'math.inf if self.meaning == "reward" else 1e-6', "math.inf", f"{LAWS} {ERRORS}"
    ),
    Fault(VERDICT, "if len(answers) != len(requests):", "if False:", ERRORS),
    Fault(
        VERDICT, "if not 0 <= self.floor < 0.5:", "if not 0 <= self.floor <= 1:", f"{LAWS} -k floor"
    ),
    Fault(
        VERDICT,
        'if meaning == "reward" and aggregate != "last":',
        "if False:",
        "tests/test_errors.py -k bad_settings",
    ),
    Fault(
        VERDICT,
        'if meaning in ("value", "outcome") and aggregate == "prod":',
        'if meaning == "value" and aggregate == "prod":',
        "tests/test_errors.py -k bad_settings",
    ),
    Fault(
        VERDICT,
        "        if not value:\n            self._refuse_reward",
        "        if False:\n            self._refuse_reward",
        f"{LAWS} -k reward",
    ),
]
