"""Faults in programs of several models, and in what steers one by a planner's module."""

from fault import Fault

ITERATIVE, TOLD = "searchers/sampling/iterative.py", "searchers/sampling/told.py"
MIXTURE, SELF = "ppl/programs/mixture.py", "ppl/programs/self_steering.py"
STEERING, WIRE = "ppl/programs/steering.py", "ppl/programs/steering_wire.py"
INSIDE, LETTERS = "ppl/programs/steering_inside.py", "ppl/programs/letters.py"
GUEST = "verifiers/exact/guest.py"

ITERATED, MIXED = "tests/exact/test_iterative.py", "tests/test_mixture_of_agents.py"
STEERED = "tests/test_self_steering.py tests/test_hostile_modules.py"

FAULTS = [
    # Iterative decoding.
    Fault(ITERATIVE, "return max(done, key", "return min(done, key", f"{ITERATED} -k falls"),
    Fault(ITERATIVE, "min(done, key", "max(done, key", f"{ITERATED} -k worst"),
    Fault(
        ITERATIVE,
        "(*state.done, *(node for node in nodes if not node.dead))",
        "(*state.done, *nodes)",
        f"{ITERATED} -k dead",
    ),
    # A mixture of agents.
    Fault(MIXTURE, "usable[:1] * (", "usable[-1:] * (", f"{MIXED} -k padded"),
    Fault(
        MIXTURE, "text.finished and text.text.strip()", "text.text.strip()", f"{MIXED} -k padded"
    ),
    Fault(MIXTURE, "[draw] * samples", "[draw] * 3", f"{MIXED} -k five"),
    # A module as a program.
    Fault(
        STEERING,
        "steering, begun = self.steering, self.prior",
        "steering, begun = self.steering, self.proposal",
        f"{STEERED} -k by_hand",
    ),
    Fault(
        STEERING,
        "law = _Hinted(law, lm(self.proposal",
        "law = _Hinted(lm(self.proposal, **settings), lm(self.proposal",
        f"{STEERED} -k by_hand",
    ),
    Fault(STEERING, "allowed[list(drawn.tokens)].all()", "True", f"{STEERED} -k by_hand"),
    Fault(
        STEERING,
        'pyro.sample(f"given_{self.given}", law, obs=words)',
        "pass",
        f"{STEERED} -k by_hand",
    ),
    Fault(STEERING, 'condition(right, "right")', "pass", f"{STEERED} -k by_hand"),
    Fault(
        STEERING,
        'condition(False, f"{site}!")\n            return None\n        return said',
        "return None\n        return said",
        f"{STEERED} -k one_particle",
    ),
    Fault(INSIDE, "if asked != line:", "if False:", f"{STEERED} -k wrong_with"),
    Fault(
        INSIDE,
        "exec(LOADED[FILE], space)",
        'space = LOADED.setdefault("space", space)\n'
        '    "step" in space or exec(LOADED[FILE], space)',
        f"{STEERED} -k nobody_s",
    ),
    Fault(
        LETTERS, "mask[token] = end and token", "mask[token] = token", f"{STEERED} -k characters"
    ),
    Fault(WIRE, "not math.isfinite(twist)", "False", f"{STEERED} -k believed"),
    # The outer loop, and the interpreter.
    Fault(SELF, "rng.random() < chance", "True", f"{STEERED} -k agree"),
    Fault(SELF, "math.log(kept / len(samples))", "math.log(kept)", f"{STEERED} -k agree"),
    Fault(
        SELF,
        "if not attempt.faults:\n            break",
        "if attempt.answered:\n            break",
        f"{STEERED} -k last_that_gave",
    ),
    Fault(GUEST, "if len(self._heard) > ANSWER_LIMIT:", "if False:", f"{STEERED} -k says_strings"),
    Fault(
        GUEST,
        "if self.why:\n                raise",
        "if False:\n                raise",
        f"{STEERED} -k not_asked_again",
    ),
]
