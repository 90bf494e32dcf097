"""Selection-Inference on generated chains of rules, with an exact checker of every step.

A problem has rules ("If Anne is kind then Anne is tall."), a fact and a question; two rules lead
nowhere for every rule that is needed, and a third of the questions cannot be answered. A proof is
valid if each conclusion follows from the statements selected for it. One trace, the best of N, a
particle filter and the papers' beam of three run the same program (`ppl.programs`).

    python examples/selection_inference.py                    # scripted models that err, offline
    python examples/selection_inference.py --model smollm2 --problems 12 --width 8

The scripted models select something useless a third of the time, conclude wrongly a fifth of the
time, and judge a trace rightly four times in five at most: what the table shows is what search
makes of such models, not what any language model can do.
"""

from __future__ import annotations

import argparse
import random
import re
import warnings
from dataclasses import dataclass
from functools import lru_cache

import torch
from smollm2 import find_gguf

import ppl
from ppl.programs import UNKNOWN, Inference, derivation, selection_inference
from ppl.searchers import SMC, BeamSearch, BestOfN, Searcher

QUALITIES = ["kind", "tall", "old", "slow", "rich", "calm", "loud", "neat", "wise", "cold", "warm"]
QUALITIES += ["glad", "poor", "soft", "tidy", "fast"]
RULE = re.compile(r"If (.+) then (Anne is (?:not )?\w+)\.")

# -- problems, and what is true of them -----------------------------------------------------------


@dataclass(frozen=True)
class Puzzle:
    """Facts, a question, and its answer."""

    facts: tuple[str, ...]
    question: str
    answer: str


def puzzle(seed: int, *, length: int) -> Puzzle:
    """A chain of `length` rules among others; the answer is yes, no, or not to be had."""
    rng = random.Random(seed)
    qualities = rng.sample(QUALITIES, len(QUALITIES))
    chain, spare = qualities[: length + 1], qualities[length + 1 :]
    answer = ("yes", "no", UNKNOWN)[seed % 3]
    conclusions = list(chain[1:])
    if answer == "no":
        conclusions[-1] = f"not {chain[-1]}"
    rules = [f"If Anne is {a} then Anne is {b}." for a, b in zip(chain, conclusions, strict=False)]
    if answer == UNKNOWN:
        rules.pop(rng.randrange(len(rules)))
    for _ in range(length):  # one that can be applied and leads away, one that cannot
        rules.append(f"If Anne is {rng.choice(chain[:-1])} then Anne is {spare.pop()}.")
        rules.append(f"If Anne is {spare[0]} then Anne is {rng.choice(spare[1:])}.")
    facts = [*rules, f"Anne is {chain[0]}."]
    rng.shuffle(facts)
    return Puzzle(tuple(facts), f"Is Anne {chain[-1]}?", answer)


def consequences(statements: tuple[str, ...]) -> set[str]:
    """All that follows, by rules as often as they apply."""
    known = {s for s in statements if not s.startswith("If")}
    rules = [found.groups() for s in statements if (found := RULE.fullmatch(s))]
    while new := {f"{b}." for a, b in rules if f"{a}." in known} - known:
        known |= new
    return known


def follows(step: Inference) -> bool:
    """Whether the conclusion follows from the premises."""
    return step.conclusion in (consequences(step.premises) | set(step.premises))


def right(problem: Puzzle, sample: ppl.Sample | None) -> tuple[bool, bool]:
    """Whether the answer is right, and whether, besides, every step is valid."""
    if sample is None:
        return False, False
    answer = sample.value == problem.answer
    return answer, answer and all(map(follows, derivation(sample, problem.facts)))


# -- models without weights -----------------------------------------------------------------------


def writer(errors: float = 1.0) -> ppl.TableLM:
    """Four models in one, told apart by their prompts; `errors` scales how often they err."""

    @lru_cache(maxsize=200_000)
    def script(prefix: str) -> dict[str, float]:
        said = prefix.rpartition("\n\n")[2] if "This reasoning is" not in prefix else prefix
        if "This reasoning is" in said:
            asked, _, begun = said.rpartition("This reasoning is")
            options = judged(asked, errors)
        elif "Selection: [" in said:
            asked, _, begun = said.rpartition("Selection: [")
            options = selections(asked, errors)
        elif "Answer:" in said:
            asked, _, begun = said.rpartition("Answer:")
            options = answers(asked, errors)
        else:
            asked, _, begun = said.rpartition("\n")[2].rpartition("Therefore,")
            options = conclusions(asked, errors)
        weights: dict[str, float] = {}
        for option, p in options.items():
            if option.startswith(begun) and p > 0:
                weights[option[len(begun)]] = weights.get(option[len(begun)], 0.0) + p
        if not weights:  # what the mask leaves out
            return {"\x00": 1.0}
        total = sum(weights.values())
        return {letter: p / total for letter, p in weights.items()}

    letters = sorted({*map(chr, range(32, 127)), "\n", "\x00"})
    return ppl.TableLM(
        script, symbols="".join(letters), end="\x00", context_length=6000, name="script"
    )


@lru_cache(maxsize=5000)
def selections(asked: str, errors: float) -> dict[str, float]:
    """Rules with their fact, gladly those that say something new; else any two statements."""
    lines = dict(re.findall(r"^(\d+)\. (.+)$", asked, re.MULTILINE))
    known = {s: label for label, s in lines.items() if not s.startswith("If")}
    options: dict[str, float] = {}
    for label, rule in lines.items():
        found = RULE.fullmatch(rule)
        if found and f"{found[1]}." in known:
            new = f"{found[2]}." not in known
            options[f"{label}, {known[f'{found[1]}.']}]"] = 1.0 if new else 0.1 * errors
    total = sum(options.values()) or 1.0
    pairs = [f"{a}, {b}]" for a in lines for b in lines if a != b]
    for pair in pairs:
        options[pair] = options.get(pair, 0.0) + 0.5 * errors * total / len(pairs) + 1e-9
    return options


@lru_cache(maxsize=5000)
def conclusions(asked: str, errors: float) -> dict[str, float]:
    """What follows; where nothing new does, what a hasty reader would conclude from the words."""
    statements = tuple(f"{s}." for s in asked.strip().removesuffix(".").split(". "))
    new = consequences(statements) - set(statements)
    guesses = [f"Anne is {q}." for q in QUALITIES]
    if new:
        options, share = dict.fromkeys(sorted(new), 1.0), 0.25 * errors
    else:
        options, share = {statements[-1]: 1.0 - errors}, errors
        hasty = [f"{found[2]}." for s in statements if (found := RULE.fullmatch(s))]
        guesses = (hasty or guesses[:4]) + guesses
    for guess in guesses:
        options[guess] = options.get(guess, 0.0) + share / len(QUALITIES)
    return {f" {conclusion}\n": p for conclusion, p in options.items()}


def answers(asked: str, errors: float) -> dict[str, float]:
    """Whether the last inference answers the question; rarely a guess."""
    known, question = re.findall(r"Known: (.*)\nQuestion: (.*)\n", asked)[-1]
    wanted = question.removeprefix("Is ").removesuffix("?").replace("Anne ", "Anne is ") + "."
    denied = wanted.replace(" is ", " is not ")
    truth = " yes" if known == wanted else " no" if known == denied else " unknown"
    guess = 0.03 * errors
    return {w: guess + (w == truth) for w in (" yes", " no", " unknown")}


@lru_cache(maxsize=5000)
def judged(asked: str, errors: float) -> dict[str, float]:
    """Four times in five right about whether every step so far is valid, and so an answer."""
    steps = re.findall(r"^(.+) Therefore, (.+)$", asked, re.MULTILINE)
    split = [tuple(f"{s}." for s in a.removesuffix(".").split(". ")) for a, _ in steps]
    valid = all(follows(Inference(a, b)) for a, (_, b) in zip(split, steps, strict=True))
    question = re.search(r"^Question: Is Anne (\w+)\?$", asked, re.MULTILINE)
    answer = asked.rpartition("\nAnswer: ")[2].strip()
    if question and answer in ("yes", "no"):
        said = f"Anne is {'' if answer == 'yes' else 'not '}{question[1]}."
        valid = valid and steps[-1][1] == said
    p = 1.0 - 0.2 * errors if valid else 0.2 * errors
    return {" correct": p + 1e-9, " incorrect": 1.0 - p + 1e-9}


# -- the comparison -------------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> dict[str, list[tuple[bool, bool]]]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="script", help="script, smollm2, or a model's name")
    parser.add_argument("--problems", type=int, default=18)
    parser.add_argument("--length", type=int, default=3, help="rules that are needed")
    parser.add_argument("--width", type=int, default=12, help="particles, samples, beam candidates")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    lm = (
        writer()
        if args.model == "script"
        else ppl.load(find_gguf() if args.model == "smollm2" else args.model)
    )
    problems = [puzzle(1000 * args.seed + i, length=args.length) for i in range(args.problems)]
    searchers: dict[str, Searcher] = {
        "BestOfN(1)": BestOfN(1),
        f"BestOfN({args.width})": BestOfN(args.width),
        f"SMC({args.width})": SMC(args.width),
        f"BeamSearch(3, {args.width // 3})": BeamSearch(3, args.width // 3),
    }
    print(f"{args.problems} problems of {args.length} steps, {lm.name}\n")
    print(f"{'searcher':<18}{'right':>7}{'and valid':>11}{'Unknown':>9}{'tokens a problem':>18}")
    table: dict[str, list[tuple[bool, bool]]] = {}
    shown = None
    for name, searcher in searchers.items():
        arguments = [(lm, p.facts, p.question) for p in problems]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            posteriors = searcher.run_many(
                selection_inference,
                arguments,
                seed=[1000 * args.seed + i for i in range(len(problems))],
                steps=args.length + 1,
            )
        found = [p for p in posteriors if isinstance(p, ppl.Posterior)]
        samples = [p.best_sample for p in found]
        table[name] = [right(p, s) for p, s in zip(problems, samples, strict=True)]
        tokens = sum(p.cost.lm_tokens + p.cost.verifier_tokens for p in found) / len(problems)
        unknown = sum(s is not None and s.value == UNKNOWN for s in samples)
        answered, valid = (sum(column) for column in zip(*table[name], strict=True))
        print(f"{name:<18}{answered:>7}{valid:>11}{unknown:>9}{tokens:>18.0f}")
        shown = samples[0]
    if shown is not None:
        print(f"\n{problems[0].question} {problems[0].answer}. The beam says {shown.value}:")
        for step in derivation(shown, problems[0].facts):
            print(f"  {step}{'' if follows(step) else '   <- does not follow'}")
    return table


if __name__ == "__main__":
    main()
