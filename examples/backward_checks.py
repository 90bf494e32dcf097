"""Two ways to check an answer by writing it anew: backward from it, and as several formulas.

Word problems in arithmetic, and a writer that slips: often enough, for some questions mostly, it
calculates something else. `fobar` masks each number of a question and lets the writer find it back
from every different answer (Jiang et al. 2023, arXiv:2308.07758); the price is answers x numbers x
samples, whatever the number of particles. `math_prompter` lets it write expressions and functions
of variables until two agree on random numbers (Imani et al. 2023, arXiv:2303.05398).

The writer is a script, so that all runs offline and in a minute: what the table shows is what these
methods do with errors of known kinds, no measurement of a language model. Some slips stay when it
reasons backward (`--habit`): those no backward check can see. Formulas are run in the sandbox;
without one, MathPrompter is left out.

    python examples/backward_checks.py
    python examples/backward_checks.py --model Qwen/Qwen2.5-0.5B-Instruct --questions 20
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from random import Random

import pyro
import torch

import ppl
from ppl.decide import vote
from ppl.errors import SandboxError
from ppl.language.cost import Cost
from ppl.programs import algebraic_template, math_prompter
from ppl.searchers import BestOfN
from ppl.verifiers import Sandbox, fobar

Law = Mapping[str, float]
Numbers = tuple[int, int, int]


@dataclass(frozen=True)
class Reading:
    """What somebody calculates who reads a question in one way, and how it is written down."""

    value: Callable[[float, float, float], float]
    spellings: tuple[str, ...]


@dataclass(frozen=True)
class Kind:
    """A kind of question: its words, with places for three numbers, and how it can be read; the
    first reading is right."""

    words: str
    readings: tuple[Reading, ...]


PRODUCT = Reading(lambda a, b, c: a * b - c, ("{a}*{b} - {c}", "{b}*{a} - {c}", "-{c} + {a}*{b}"))
ADDED = Reading(lambda a, b, c: a * b + c, ("{a}*{b} + {c}", "{c} + {a}*{b}", "{b}*{a} + {c}"))
SUM = Reading(lambda a, b, c: a + b + c, ("{a} + {b} + {c}", "{c} + {b} + {a}", "{b} + {a} + {c}"))
REST = Reading(lambda a, b, c: a + b - c, ("{a} + {b} - {c}", "{b} + {a} - {c}", "{a} - {c} + {b}"))
BAGS = Reading(
    lambda a, b, c: a * (b + c), ("{a}*({b} + {c})", "{a}*{b} + {a}*{c}", "({c} + {b})*{a}")
)
OPEN = Reading(
    lambda a, b, c: (a - c) * b, ("({a} - {c})*{b}", "{a}*{b} - {b}*{c}", "{b}*({a} - {c})")
)
SHARED = Reading(
    lambda a, b, c: (a + b) // c,
    ("({a} + {b})//{c}", "({b} + {a})//{c}", "({a} + {b} - ({a} + {b}) % {c})//{c}"),
)
APART = Reading(
    lambda a, b, c: a // c + b // c,
    ("{a}//{c} + {b}//{c}", "{b}//{c} + {a}//{c}", "({a} - {a} % {c})//{c} + {b}//{c}"),
)

KINDS = (
    Kind(
        "There are {} crates with {} eggs each, and {} eggs are sold. How many eggs are left?",
        (PRODUCT, REST, ADDED),
    ),
    Kind(
        "{} bags hold {} red and {} blue marbles each. How many marbles are there?",
        (BAGS, ADDED, SUM),
    ),
    Kind(
        "Ann has {} coins and Bob {}. Together they buy pens for {} coins each. How many pens?",
        (SHARED, APART, REST),
    ),
    Kind(
        "A hall has {} rows of {} seats, and {} rows are closed. How many seats are open?",
        (OPEN, PRODUCT, ADDED),
    ),
)


@dataclass(frozen=True)
class Question:
    """A question, and with what probability the writer reads it in which way."""

    kind: Kind
    numbers: Numbers
    law: tuple[float, float, float]

    @property
    def words(self) -> str:
        """As it is asked."""
        return self.kind.words.format(*self.numbers)

    @property
    def right(self) -> str:
        """The answer."""
        return self.read(0, self.numbers)

    def read(self, reading: int, numbers: Sequence[int]) -> str:
        """The answer by one reading, for these numbers."""
        return str(int(self.kind.readings[reading].value(*numbers)))


def questions(count: int, seed: int) -> list[Question]:
    """Questions of all kinds. Between .25 and .75 of the readings are right; one slip has most of
    the rest, and for some questions more than the right reading, so that the vote is wrong."""
    rng = Random(seed)
    made = []
    for i in range(count):
        numbers = (rng.randint(12, 40), rng.randint(5, 12), rng.randint(2, 4))
        right, slip = rng.uniform(0.25, 0.75), rng.uniform(0.6, 0.95)
        law = (right, (1 - right) * slip, (1 - right) * (1 - slip))
        made.append(Question(KINDS[i % len(KINDS)], numbers, law))
    return made


class Script(ppl.TableLM):
    """A chat model that draws one of a few replies, letter by letter."""

    def __init__(self, replies: Callable[[str], Law], name: str = "script") -> None:
        self.replies = lru_cache(maxsize=10_000)(replies)
        letters = sorted({*map(chr, range(32, 127)), "\n", "\x00", "\x01"})
        super().__init__(
            lru_cache(maxsize=200_000)(self._next),
            symbols="".join(letters),
            end="\x00",
            context_length=4000,
            name=name,
        )

    def chat(self, messages: object, **_: object) -> ppl.Text:
        """The message, and then the reply."""
        return self.prompt(f"{messages}\x01")

    def _next(self, prefix: str) -> Law:
        asked, _, said = prefix.rpartition("\x01")
        letters: dict[str, float] = {}
        for reply, p in self.replies(asked).items():
            whole = f"{reply}\x00"
            if whole.startswith(said):
                letters[whole[len(said)]] = letters.get(whole[len(said)], 0.0) + p
        total = sum(letters.values())
        return {letter: p / total for letter, p in letters.items()}


def script(asked: Sequence[Question], habit: float = 0.2, noise: float = 0.15) -> Script:
    """The writer for these questions.

    Args:
        asked: what it can be asked.
        habit: how often it calculates with a slip of its own when it reasons backward.
        noise: how often it finds nothing sensible then.
    """
    solving = {question.words: question for question in asked}
    masked = {_masked(question, m): (question, m) for question in asked for m in range(3)}
    templates = {algebraic_template(q.words).text: q for q in asked}

    def replies(message: str) -> Law:
        if message in solving:
            return _forward(solving[message])
        head, _, rest = message.partition("\n")
        if head in masked:
            answer = re.search(r"question above is (.*), what", rest)
            assert answer is not None
            return _backward(*masked[head], answer[1], habit, noise)
        return _formulas(templates[head], "function" in rest)

    return Script(replies)


def _forward(question: Question) -> Law:
    law: dict[str, float] = {}
    for reading, p in enumerate(question.law):
        reply = f"The answer is {question.read(reading, question.numbers)}."
        law[reply] = law.get(reply, 0.0) + p
    return law


def _backward(question: Question, place: int, answer: str, habit: float, noise: float) -> Law:
    """Solves for the number that is hidden, by one reading or another."""
    slips = question.law[1] + question.law[2]
    shares = [1 - habit - noise, *(habit * p / slips for p in question.law[1:])]
    law = {"I do not know.": noise}
    for reading, p in enumerate(shares):
        tried = [
            [*question.numbers[:place], x, *question.numbers[place + 1 :]] for x in range(2, 200)
        ]
        fits = [numbers[place] for numbers in tried if question.read(reading, numbers) == answer]
        for x in fits or ["not a number"]:  # where several fit, it says one of them
            reply = f"x is {x}."
            law[reply] = law.get(reply, 0.0) + p / len(fits or [1])
    return law


def _formulas(question: Question, function: bool) -> Law:
    template = algebraic_template(question.words)
    by_number = {value: name for name, value in template.values.items()}
    names = dict(zip("abc", (by_number[n] for n in question.numbers), strict=True))
    law: dict[str, float] = {}
    for reading, p in zip(question.kind.readings, question.law, strict=True):
        for spelling in reading.spellings:
            form = spelling.format(**names)
            arguments = ", ".join(template.values)
            reply = f"def f({arguments}):\n    return {form}" if function else f"Answer = {form}"
            law[reply] = law.get(reply, 0.0) + p / len(reading.spellings)
    return law


def _masked(question: Question, place: int) -> str:
    return question.kind.words.format(*("x" if i == place else n
                                        for i, n in enumerate(question.numbers)))  # fmt: skip


def solve(question: str, lm: ppl.LanguageModel) -> ppl.Answer | None:
    """One chain."""
    text = lm.chat(question)
    return (text + pyro.sample("chain", lm(text, max_tokens=256, temperature=0.7))).answer


def sandboxed() -> bool:
    """Whether model-written code can be isolated here."""
    try:
        Sandbox().require()
    except SandboxError as error:
        print(f"MathPrompter is left out: {error}")
        return False
    return True


def main(argv: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="script", help="script, or what ppl.load takes")
    parser.add_argument("--questions", type=int, default=20)
    parser.add_argument("--particles", type=int, default=16)
    parser.add_argument("--samples", type=int, default=4, help="backward draws per mask")
    parser.add_argument("--repeats", type=int, default=3, help="of MathPrompter")
    parser.add_argument("--habit", type=float, default=0.2, help="slips that stay when reasoning")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    asked = questions(args.questions, args.seed)
    lm = script(asked, args.habit) if args.model == "script" else ppl.load(args.model)

    right: dict[str, list[bool]] = {}
    costs: dict[str, list[Cost]] = {}
    particles = candidates = 0

    def book(name: str, question: Question, answer: object, *spent: Cost) -> None:
        given = None if answer is None else ppl.Answer(answer)
        same = given is not None and ppl.equality(question.right, given) is ppl.Equality.EQUAL
        right.setdefault(name, []).append(same)
        costs.setdefault(name, []).extend(spent)

    prompted = sandboxed()
    for i, question in enumerate(asked):
        posterior = BestOfN(args.particles).run(solve, question.words, lm, seed=i)
        book("one sample", question, posterior.samples[0].value)
        book("vote", question, vote(posterior, "flat"), posterior.cost)
        for alpha in (0.5, 0.0):
            found = fobar(posterior, question.words, lm, samples=args.samples, alpha=alpha, seed=i)
            spent = (posterior.cost, found.cost)
            book(f"FOBAR, alpha {alpha:g}", question, found.best, *spent)
        particles += sum(sample.value is not None for sample in posterior.samples)
        candidates += len(found)
        if prompted:
            once = BestOfN(1).run(math_prompter, lm, question.words, repeats=args.repeats, seed=i)
            book(f"MathPrompter, {args.repeats} repeats", question, once.best, once.cost)
    print(f"{len(asked)} questions, {args.particles} particles\n")
    print(f"{'':<26}{'right':>6}{'generations':>14}{'tokens':>9}   (per question)")
    for name, truths in right.items():
        spent = Cost.total(costs[name]) if costs.get(name) else None
        price = (
            "" if spent is None
            else f"{spent.lm_calls / len(asked):>14.1f}{spent.lm_tokens / len(asked):>9.0f}"
        )  # fmt: skip
        print(f"{name:<26}{sum(truths) / len(asked):>6.0%}{price}")
    print(
        f"\nbackward draws are paid for {candidates} different answers; asked for every particle "
        f"they would be for {particles}, {particles / max(candidates, 1):.1f} times as many"
    )
    return {name: sum(truths) / len(asked) for name, truths in right.items()}


if __name__ == "__main__":
    main()
