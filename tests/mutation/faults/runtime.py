"""Faults in particles, guides, records and sites."""

from fault import Fault

PARTICLE, GUIDE = "ppl/runtime/particle.py", "ppl/runtime/guide.py"
RECORD, PLAIN, KEYED = "ppl/runtime/record.py", "ppl/runtime/site.py", "ppl/runtime/keyed.py"
TREE, SITE = "ppl/runtime/tree.py", "ppl/language/site.py"
NODE = "ppl/runtime/node.py"
RANDOM, WORDS = "ppl/language/randomness.py", "ppl/language/primitives.py"

LAW, SITES = "tests/exact/test_one_law.py", "tests/test_sites.py"
ERRORS, BOUNDS = "tests/test_errors.py", "tests/test_boundaries.py"
EVIDENCE, FORCE = "tests/exact/test_evidence.py", "tests/exact/test_invariance.py"
SEARCHERS = "tests/test_searchers.py"
SAMPLING = "tests/test_sampling.py"

FAULTS = [
    Fault(
        "ppl/runtime/factor.py",
        "with torch.inference_mode(False):",
        "if True:",
        "tests/test_factor.py -k comes_first",
    ),
    # A twist guides, and is gone at the end.
    Fault(
        PARTICLE,
        "self.log_twist = 0.0  # a twist ends with the program",
        "pass",
        f"{EVIDENCE} -k twists",
    ),
    Fault(
        PARTICLE,
        "        self.log_twist = 0.0\n        self.at_checkpoint = False",
        '        self.log_twist = getattr(self, "log_twist", 0.0)\n'
        "        self.at_checkpoint = False",
        f"{LAW} -k forks",
    ),
    Fault(NODE, "particle.log_twist - parent.log_twist", "particle.log_twist", f"{LAW} -k decided"),
    Fault(
        NODE,
        "particle.log_twist - parent.log_twist",
        "particle.log_twist + parent.log_twist",
        f"{EVIDENCE} -k twists",
    ),
    Fault(
        NODE,
        "ratio + particle.log_twist - parent.log_twist",
        "ratio - parent.log_twist",
        f"{EVIDENCE} -k twists",
    ),
    Fault(
        NODE,
        "log_twist=0.0 if dead else particle.log_twist",
        "log_twist=0.0 if dead else parent.log_twist + particle.log_twist",
        "tests/test_programs.py -k own_checkpoint",
    ),
    Fault(
        NODE,
        "return self.log_likelihood + self.log_twist",
        "return self.log_likelihood",
        f"{SEARCHERS} -k twists",
    ),
    Fault(
        WORDS,
        "visit.log_twist += self.log_value",
        "visit.log_twist = self.log_value",
        "tests/test_programs.py -k own_checkpoint",
    ),
    Fault(WORDS, "if not math.isfinite(number):", "if math.isnan(number):", f"{ERRORS} -k twists"),
    Fault(
        WORDS,
        "0.0 if value else -math.inf",
        "0.0 if value else -30.0",
        f"{LAW} -k state_the_enumerated",
    ),
    # Randomness is keyed by who draws.
    Fault(
        PARTICLE,
        "key(self.seed, self.identity, *parts)",
        "key(self.seed, *parts)",
        f"{BOUNDS} -k own_key",
    ),
    Fault(
        PARTICLE,
        "key(self.seed, self.identity, *parts)",
        "key(self.identity, *parts)",
        f"{BOUNDS} tests/test_laws.py -k 'own_key or same_seed'",
    ),
    Fault(
        PARTICLE,
        'self.key(msg["name"], role)',
        "self.key(role)",
        "tests/test_boundaries.py -k one_segment",
    ),
    Fault(PLAIN, "keyed.seed(key, fn)", "pass", f"{BOUNDS} -k generator"),
    Fault(KEYED, "_generator(device).set_state(state)", "pass", BOUNDS),
    Fault(KEYED, "if _lent and device not in _lent[-1]:", "if _lent:", BOUNDS),
    Fault(KEYED, "found |= devices(value)", "pass", f"{BOUNDS} -k wrappers"),
    Fault(RANDOM, '"\\x1f".join', '"".join', f"{SAMPLING} -k keys"),
    Fault(RANDOM, "dtype=np.uint64)) + 1", "dtype=np.uint64))", f"{SAMPLING} -k uniforms"),
    Fault(RANDOM, ".astype(np.float64) + 0.5)", ".astype(np.float64))", f"{SAMPLING} -k uniforms"),
    Fault(
        TREE,
        "self._next += len(parents)",
        "self._next += 1",
        "tests/test_searchers.py -k one_number",
    ),
    # What is replayed is what was.
    Fault(PARTICLE, 'if record.name != msg["name"]:', "if False:", f"{ERRORS} -k change_on_replay"),
    Fault(
        PARTICLE,
        'if fingerprint(msg["fn"]) != record.fingerprint:',
        "if False:",
        f"{ERRORS} -k change_on_replay",
    ),
    Fault(
        PARTICLE,
        "if self._position < len(self._replay):\n            missing",
        "if False:\n            missing",
        f"{ERRORS} -k change_on_replay",
    ),
    Fault(
        PARTICLE,
        "if name in self._values:\n            raise",
        "if False:\n            raise",
        f"{ERRORS} -k duplicate",
    ),
    Fault(PARTICLE, "        site.repeat(self, record)\n", "", f"{LAW} -k forks"),
    Fault(
        RECORD,
        "parts.append((name, tuple(value.shape), content(value)))",
        "parts.append((name, tuple(value.shape)))",
        f"{ERRORS} -k change_on_replay",
    ),
    Fault(
        RECORD,
        "parts.append(fingerprint(base))",
        "pass",
        "tests/test_errors.py -k change_on_replay",
    ),
    Fault(
        RECORD,
        '(*sorted(plain), "_param")',
        "(*sorted(plain),)",
        "tests/test_errors.py -k change_on_replay",
    ),
    Fault(
        RECORD,
        'if self.kind == "choice":\n            self.prior()',
        'if self.kind == "twist":\n            self.prior()',
        "tests/test_posterior.py -k plain_choices",
    ),
    Fault(
        "ppl/lm/base.py",
        "str(s.rule), s.max_tokens, s.warp, ",
        "str(s.rule), s.max_tokens, ",
        "tests/test_errors.py -k change_on_replay",
    ),
    Fault(
        "ppl/lm/base.py",
        "(name, s.tokens, str(s.rule), ",
        "(name, str(s.rule), ",
        f"{ERRORS} {SITES}",
    ),
    Fault(
        "ppl/lm/base.py",
        "s.warp, *fingerprint(s.allowed))",
        "s.warp)",
        "tests/test_errors.py -k change_on_replay",
    ),
    Fault(
        "ppl/lm/masks.py",
        "        array = np.flatnonzero(array)",
        "        pass",
        "tests/test_masks.py -k site_is_known",
    ),
    Fault(
        "ppl/lm/masks.py",
        'return ("allowed", name) if own is None else ("allowed", *own)',
        'return ("allowed", name)',
        "tests/test_masks.py tests/test_grammar.py -k 'site_is_known or grammars'",
    ),
    Fault(
        "ppl/lm/masks.py",
        "return allowed.detach().clone()",
        "return allowed.detach()",
        "tests/test_masks.py -k refills",
    ),
    Fault(
        "ppl/lm/masks.py",
        "return allowed.copy()",
        "return allowed",
        "tests/test_masks.py -k refills",
    ),
    # Checkpoints.
    Fault(
        PARTICLE,
        "self.at_checkpoint = True\n",
        "self.at_checkpoint = bool(self.records[1:])\n",
        "tests/test_programs.py -k at_the_start",
    ),
    Fault(
        PARTICLE,
        "if record.log_likelihood == -math.inf:",
        "if False:",
        "tests/test_laws.py -k everything_dead",
    ),
    Fault(
        PARTICLE,
        "if -math.inf in (record.log_ratio, record.log_prior):",
        "if False:",
        f"{ERRORS} -k outside_the_model",
    ),
    Fault(
        PARTICLE,
        "math.isnan(log_prob) or log_prob == math.inf",
        "math.isnan(log_prob)",
        "tests/test_errors.py -k no_numbers",
    ),
    Fault(
        PARTICLE,
        "math.isnan(log_prob) or log_prob == math.inf",
        "log_prob == math.inf",
        "tests/test_errors.py -k no_numbers",
    ),
    Fault(
        PARTICLE,
        "if perf_counter() > Slice.ends and Slice.spent():",
        "if False:",
        "tests/test_loop_alone.py -k plain_sites",
    ),
    # Scale, mask, guide: what a choice weighs.
    Fault(
        PARTICLE,
        "                share = site.reweighed(msg, value, log_p)\n",
        "                pass\n",
        f"{LAW} -k state_the_enumerated",
    ),
    Fault(
        PARTICLE,
        "site.reweighed(msg, value, prior) - prior, fn)",
        "site.reweighed(msg, value, prior), fn)",
        f"{LAW} -k state_the_enumerated",
    ),
    Fault(
        PARTICLE, "self._finite(share - log_q, fn)", "self._finite(share, fn)", f"{LAW} -k state"
    ),
    Fault(
        PARTICLE, "self._finite(share - log_q, fn)", "self._finite(-log_q, fn)", f"{LAW} -k state"
    ),
    Fault(
        PARTICLE,
        'return msg["mask"] is not None or not (',
        "return not (",
        f"{LAW} -k state_the_enumerated",
    ),
    Fault(
        PARTICLE,
        "not (isinstance(scale, float) and scale == 1.0)",
        "False",
        f"{LAW} -k state_the_enumerated",
    ),
    Fault(
        PARTICLE,
        'log_q = site_log_prob(msg["fn"], value, args=msg["args"], kwargs=msg["kwargs"])',
        "log_q = 0.0",
        f"{LAW} -k state_the_enumerated",
    ),
    Fault(
        PARTICLE,
        "log_p = site.score(self, msg, value)",
        "log_p = log_q",
        f"{LAW} -k state_the_enumerated",
    ),
    Fault(SITE, 'return log_prob * float(msg["scale"])', "return log_prob", f"{LAW} -k state"),
    Fault(SITE, "if mask is not None and not mask:", "if False:", f"{LAW} -k state"),
    Fault(
        SITE,
        "return share(self.score(visit, msg, entry.value), msg)",
        "return self.score(visit, msg, entry.value)",
        f"{LAW} -k state",
    ),
    Fault(
        PLAIN,
        'msg["fn"], value, msg["scale"], msg["mask"],',
        'msg["fn"], value, 1.0, msg["mask"],',
        f"{LAW} -k state",
    ),
    Fault(
        PLAIN,
        'msg["fn"], value, msg["scale"], msg["mask"],',
        'msg["fn"], value, msg["scale"], None,',
        f"{LAW} -k state",
    ),
    Fault(
        RECORD,
        "return self.prior() if self.log_proposal is None else self.log_proposal",
        "return self.prior()",
        f"{LAW} -k state",
    ),
    Fault(
        RECORD, "return self.proposal() + self.log_ratio", "return self.prior()", f"{LAW} -k state"
    ),
    Fault(
        RECORD,
        "scale == 1.0 and mask is None\n",
        "scale == 1.0\n",
        f"{LAW} -k state",
    ),
    # Guides.
    Fault(
        GUIDE,
        "if self._offer is None or self._offer.name != name:",
        "if self._offer is None:",
        f"{ERRORS} {LAW} -k guid",
    ),
    Fault(GUIDE, "self._coroutine.resume(park(event))", "self._coroutine.resume(None)", SITES),
    Fault(
        GUIDE,
        "self._offer, self._used = None, True",
        "self._offer = None",
        "tests/test_errors.py -k more_sites",
    ),
    Fault(
        GUIDE,
        "if self._offer is not None and not self._used:",
        "if not self._used:",
        "tests/test_errors.py -k more_sites",
    ),
    Fault(GUIDE, 'if msg["is_observed"]:', "if False:", f"{ERRORS} -k guides"),
    Fault(
        GUIDE,
        "if name in self._values:  # made in an earlier life of this particle",
        "if False:",
        f"{SITES} {EVIDENCE} -k guide",
    ),
    Fault(PARTICLE, "self._guide.check_used()", "pass", f"{ERRORS} -k guides"),
    Fault(PARTICLE, "and not self._replay:", ":", f"{ERRORS} {EVIDENCE} -k guide"),
    Fault(
        "ppl/lm/base.py",
        "if same and target.spec.tokens == spec.tokens else None",
        "if same else None",
        f"{SITES} -k another_prompt",
    ),
    Fault(
        "ppl/lm/base.py",
        "isinstance(target, LMDistribution) and target.model is self.model",
        "isinstance(target, LMDistribution)",
        "tests/test_searchers.py -k another_model",
    ),
    # What a searcher decides or forces.
    Fault(
        PARTICLE,
        "if self.segment.decide is None or not site.decidable:",
        "if self.segment.decide is None:",
        f"{SITES} -k decidable",
    ),
    Fault(
        PARTICLE,
        "return None if value is None else (value, 0.0, None)",
        "return None if value is None else (value, -0.7, None)",
        "tests/exact/test_actions.py -k sum_to_the_evidence",
    ),
    Fault(
        PARTICLE,
        "        if decided is not None:\n            return decided\n",
        "",
        "tests/exact/test_actions.py -k sum_to_the_evidence",
    ),
    Fault(PARTICLE, "return forced[name], log_prob, None", "return forced[name], 0.0, None", FORCE),
    Fault(
        PARTICLE,
        "            if log_prob > -math.inf:\n",
        "            if True:\n",
        f"{FORCE} {SITES}",
    ),
    Fault(
        PARTICLE,
        "        if name in forced:\n",
        "        if forced:\n",
        f"{SITES} {FORCE} -k forced",
    ),
    Fault(
        TREE,
        "(names != list(chosen) or child.finished != example.finished)",
        "names != list(chosen)",
        f"{SITES} -k forced",
    ),
    Fault(
        TREE,
        "(names != list(chosen) or child.finished != example.finished)",
        "child.finished != example.finished",
        f"{SITES} -k forced",
    ),
    Fault(
        TREE,
        "child.log_increment = child.log_weight = child.log_likelihood = -math.inf",
        "child.log_increment = -math.inf",
        f"{SITES} -k forced",
    ),
    Fault(
        TREE,
        "particle.begin(identity, segment, first)",
        "particle.begin(identity)",
        f"{SITES} -k still_run",
    ),
    Fault(
        TREE,
        "particle, node._particle = node._particle, None\n        if particle is not None and",
        "particle = node._particle\n        if particle is not None and",
        f"{SEARCHERS} -k fork",
    ),
    Fault("ppl/runtime/process.py", " 3 6 12 24 48 96;", ";", "tests/test_processes.py -k tidies"),
    Fault(
        "ppl/runtime/process.py",
        "done; break; done",
        "done; done",
        "tests/test_processes.py -k tidies",
    ),
]
