"""Faults in systems of prompts: wordings, batches, languages, architectures."""

from fault import Fault

STRATA, MARKED, BATCH = (
    "ppl/language/perturbed.py",
    "ppl/programs/marked.py",
    "ppl/programs/batch_prompt.py",
)
JOINT, RISK = "ppl/language/answers/joint.py", "ppl/decide/bayes_risk.py"
HEDGED, WARPED = "searchers/sampling/hedged.py", "ppl/lm/warped.py"
ROOM = "ppl/programs/archon"
OPERATORS, TESTING = f"{ROOM}/operators.py", f"{ROOM}/testing.py"
POLICIES, SEARCH = f"{ROOM}/policies.py", f"{ROOM}/search.py"
LAYERS = f"{ROOM}/architecture.py"
PERTURBED, BATCHES = "tests/test_perturbed.py", "tests/test_batch_prompt.py"
LANGUAGES, ARCHON = (
    "tests/test_multilingual.py",
    "tests/test_archon.py tests/test_architecture_search.py",
)

FAULTS = [
    Fault(STRATA, '"strata", turn', '"strata"', f"{PERTURBED} -k two_choices"),
    Fault(STRATA, "order[place]", "order[0]", f"{PERTURBED} -k shared_out"),
    Fault(STRATA, ".permutation(self.count)", ".permutation(1)", f"{PERTURBED} -k shared_out"),
    Fault(
        "searchers/particles/alive.py",
        "tree.expand(open_, alone=True)",
        "tree.expand(open_)",
        f"{PERTURBED} -k conditional",
    ),
    Fault(
        "searchers/particles/conditional_smc.py",
        "tree.expand(going, alone=True)",
        "tree.expand(going)",
        f"{PERTURBED} -k conditional",
    ),
    Fault(MARKED, "conflicting.add(number)", "pass", f"{BATCHES} -k test_items"),
    Fault(MARKED, "(cut and end == len(reply))", "False", f"{BATCHES} -k cut_off"),
    Fault(BATCH, "JointAnswer(one, call)", "JointAnswer(one, n)", f"{BATCHES} -k refused_as"),
    Fault(JOINT, "!= i:", "== -1:", f"{BATCHES} -k refused_as"),
    Fault(RISK, "_of_mean_one(own) for", "own for", f"{LANGUAGES} -k means_are"),
    Fault(
        HEDGED,
        "if self.greedy:\n            return",
        "if False:\n            return",
        f"{LANGUAGES} -k joins",
    ),
    Fault(WARPED, "and fn.spec.warp == _PLAIN", "", f"{LANGUAGES} -k itself_are_kept"),
    Fault(
        OPERATORS,
        "drafts.after(drafts.drafts, *flags",
        "drafts.after(kept, *flags",
        f"{ARCHON} -k rejects_all",
    ),
    Fault(OPERATORS, "return known + missing, flags", "return known, flags", f"{ARCHON} -k append"),
    Fault(OPERATORS, "draft.critique), log_weight=None", "draft.critique)", f"{ARCHON} -k critics"),
    Fault(TESTING, "lambda i: -passed[i]", "lambda i: passed[i]", f"{ARCHON} -k pass_most"),
    Fault(LAYERS, "and layer[0].alone", "and False", f"{ARCHON} -k rules"),
    Fault(
        POLICIES,
        "-board.mean(point))\n    split",
        "board.mean(point))\n    split",
        f"{ARCHON} -k 'planted and tpe'",
    ),
    Fault(SEARCH, "if reserved + price > self.left:", "if False:", f"{ARCHON} -k several_workers"),
]
