"""Faults in the tree, coroutines, enumeration and AWRS."""

from fault import Fault

COROUTINE, ENUMERATION = "ppl/runtime/coroutine.py", "ppl/runtime/enumeration.py"
AWRS, TREE = "ppl/runtime/awrs.py", "ppl/runtime/tree.py"
NODE = "ppl/runtime/node.py"

LAW, SITES = "tests/exact/test_one_law.py", "tests/test_sites.py"
BOUNDS = "tests/test_boundaries.py"
EVIDENCE = "tests/exact/test_evidence.py"
SEARCHERS, PROPOSALS = "tests/test_searchers.py", "tests/exact/test_awrs.py"
ANYTIME = "tests/test_anytime.py"

FAULTS = [
    Fault(
        "ppl/runtime/program.py",
        "if code is None:",
        "if True:",
        f"{ANYTIME} -k marks_no_step",
    ),
    # The tree.
    Fault(
        NODE,
        "else parent.log_weight + increment",
        "else increment",
        f"{LAW} -k decided",
    ),
    Fault(
        NODE,
        "else parent.log_likelihood + likelihood",
        "else likelihood",
        f"{LAW} -k forks",
    ),
    Fault(
        NODE,
        "return not self.dead and (self.finished or bool(self.provisional))",
        "return self.finished or bool(self.provisional)",
        f"{ANYTIME} tests/exact/test_ab_mcts.py tests/test_tree_refinement.py",
    ),
    Fault(
        TREE,
        "            steps += 1\n",
        "            steps += 2\n",
        "tests/test_searchers.py -k horizon",
    ),
    Fault(
        TREE,
        "[segment], simulated=True)",
        "[segment], simulated=False)",
        f"{SEARCHERS} -k rollouts tests/test_golden.py",
    ),
    Fault(TREE, "Segment(greedy=greedy)", "Segment()", "tests/exact/test_optimality.py -k greedy"),
    Fault(NODE, "provisional=particle.provisional", "provisional=()", ANYTIME),
    Fault(
        NODE,
        "depth=parent.depth + 1",
        "depth=parent.depth",
        "tests/test_tree_refinement.py -k depth",
    ),
    Fault(
        TREE,
        "if number and not node.open:",
        "if False:",
        f"{SEARCHERS} {SITES} tests/test_loop.py tests/test_loop_alone.py tests/test_loop_parks.py",
    ),
    Fault(
        TREE,
        "if quorum is None else min(quorum, most)",
        "",
        "tests/test_loop_parks.py -k waits_for_no_more",
    ),
    Fault(
        TREE,
        "            flight.stop()\n\n    @checked\n    def rollout",
        "            pass\n\n    @checked\n    def rollout",
        "tests/test_loop_parks.py -k underway",
    ),
    Fault(
        TREE,
        'key(self.seed, node.identity, verifier.name, "score")',
        'key(self.seed, verifier.name, "score")',
        "tests/test_loop.py tests/test_loop_alone.py tests/test_loop_parks.py tests/test_multi_perspective.py",
    ),
    Fault(
        TREE,
        "[log_potential(scores, verifier.aggregate) for",
        '[log_potential(scores, "last") for',
        "tests/test_searchers.py -k potentials_of_all",
    ),
    # Coroutines and Pyro's state.
    Fault(
        COROUTINE,
        "runtime._PYRO_STACK[:], plates._stack = outside, dims",
        "runtime._PYRO_STACK[:] = outside",
        "tests/test_boundaries.py -k keep_their_dimensions",
    ),
    Fault(
        COROUTINE,
        "runtime._PYRO_STACK[:], plates._stack = outside, dims",
        "plates._stack = dims",
        BOUNDS,
    ),
    Fault(COROUTINE, "self._greenlet.parent = getcurrent()", "pass", f"{BOUNDS} {SITES}"),
    # The oracle.
    Fault(
        ENUMERATION,
        "math.exp(w - self.log_evidence)",
        "math.exp(w)",
        f"{EVIDENCE} -k marginal",
    ),
    Fault(
        ENUMERATION,
        '        self.log_weight += log_prob\n        msg["done"]',
        '        msg["done"]',
        f"{EVIDENCE} -k published_toy",
    ),
    Fault(ENUMERATION, "(value, share(log_p, msg)) for", "(value, log_p) for", f"{LAW} -k state"),
    Fault(
        ENUMERATION,
        "if p.exp() > 1.01 * torch.finfo(p.dtype).eps",
        "if True",
        f"{LAW} -k state",
    ),
    Fault(
        ENUMERATION,
        "if runs > most:",
        "if False:",
        "tests/test_programs.py -k gives_up",
    ),
    # Adaptive weighted rejection sampling.
    Fault(
        AWRS,
        "drawn.log_prob if another else 0.0",
        "0.0 if another else drawn.log_prob",
        PROPOSALS,
    ),
    Fault(
        AWRS,
        "return drawn.value, drawn.log_prob if another else 0.0",
        "return drawn.value, drawn.log_prob",
        PROPOSALS,
    ),
    Fault(
        AWRS,
        "            left = _without(left, drawn)\n",
        "",
        f"{PROPOSALS} -k own_probability",
    ),
    Fault(AWRS, "left = left.clone()", "pass", "tests/test_masks.py"),
    Fault(
        AWRS, "or number == self.max_candidates", "or number - 1 == self.max_candidates", PROPOSALS
    ),
    Fault(AWRS, "key_of(key, number)", "key_of(key)", PROPOSALS),
    Fault(
        AWRS,
        "warp.temperature == 0 or warp.top_p < 1 or",
        "warp.temperature == 0 or",
        PROPOSALS,
    ),
]
