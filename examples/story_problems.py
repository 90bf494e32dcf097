"""Stories with a number to keep account of, made on demand, each with its exact account.

Somebody has some things, gets and loses others, and is asked how many are left: three to five
events of eight kinds, and asides whose numbers do not count. Every sentence takes one line of
account, such as `29+14=43` or, of an aside, `43=43`. Story i depends on i and the seed only; in
which half it is, train or test, the SHA-256 of its id tells (`ppl.tasks.split`).
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from ppl.tasks import Problem, Task

NAMES = {
    "he": ("Tom", "Ben", "Omar", "Luis", "Ivan", "Kofi", "Jack", "Noah", "Sam", "Erik"),
    "she": ("Anna", "Mia", "Sara", "Lena", "Zoe", "Nina", "Ruth", "Emma", "Ida", "Maya"),
}
FRIENDS = ("Paul", "Lucy", "Carl", "Rosa", "Hugo", "Dora", "Finn", "Vera")
THINGS = (
    "apples", "books", "marbles", "stickers", "coins", "cards", "pencils", "shells", "stamps",
    "balloons", "toys", "eggs", "cookies", "buttons", "beads", "peaches",
)  # fmt: skip


@dataclass(frozen=True)
class Event:
    """What happens in a sentence.

    Attributes:
        says: the sentence; `{he}`, `{friend}`, `{things}` and `{k}` are filled in.
        line: what the account says, with `{n}` for the number before.
    """

    says: str
    line: str


EVENTS = (
    Event("{He} buys {k} more.", "{n}+{k}"),
    Event("{He} finds {k} {things} on the way home.", "{n}+{k}"),
    Event("{friend} gives {him} {k} {things}.", "{n}+{k}"),
    Event("In the evening {he} gets {k} from a neighbour.", "{n}+{k}"),
    Event("{He} gives {k} to {friend}.", "{n}-{k}"),
    Event("{He} loses {k} of them.", "{n}-{k}"),
    Event("{k} {things} are stolen.", "{n}-{k}"),
    Event("{friend} takes away {k}.", "{n}-{k}"),
)
ASIDES = (
    Event("{friend} is {k} years old.", "{n}"),
    Event("It is {k} o'clock.", "{n}"),
    Event("The house has number {k}.", "{n}"),
)
FEWEST, MOST = 3, 5  # events
LARGEST = 99  # no account goes beyond this
_LINE = re.compile(r"(\d+)(?:([-+])(\d+))?")


def worth(line: str) -> int | None:
    """The value of a line of account without its `=`: a number, a sum or a difference; None if it
    is none of these, or below 0."""
    match = _LINE.fullmatch(line)
    if match is None:
        return None
    a, b = int(match[1]), int(match[3] or 0)
    return a + b if match[2] != "-" else a - b if a >= b else None


def story(i: int, seed: int = 0) -> Problem:
    """Story i; `meta` has its `sentences` without the question, and the `account`, a line for each
    sentence but the first."""
    rng = random.Random(f"{seed}/{i}")
    he = rng.choice(("he", "she"))
    name, things = rng.choice(NAMES[he]), rng.choice(THINGS)
    number = rng.randint(3, 30)
    sentences, account = [f"{name} has {number} {things}."], []
    events = rng.randint(FEWEST, MOST)
    aside = rng.randrange(2 * events)  # half of the stories have one
    for place in range(events):
        for kinds in (EVENTS, ASIDES)[: 2 if place == aside else 1]:
            event, k = _event(rng, kinds, number)
            told = {
                "he": he, "He": he.capitalize(), "him": {"he": "him", "she": "her"}[he],
                "friend": rng.choice(FRIENDS), "things": things, "k": k,
            }  # fmt: skip
            sentences.append(event.says.format(**told))
            line = event.line.format(n=number, k=k)
            number = worth(line) or 0
            account.append(f"{line}={number}")
    question = " ".join([*sentences, f"How many {things} does {name} have now?"])
    meta = {"sentences": sentences, "account": account}
    return Problem(f"stories/{seed}/{i}", question, str(number), meta)


def _event(rng: random.Random, kinds: Sequence[Event], number: int) -> tuple[Event, int]:
    """An event that leaves a number from 1 to `LARGEST`."""
    while True:
        event, k = rng.choice(kinds), rng.randint(2, 15)
        if 1 <= (worth(event.line.format(n=number, k=k)) or 0) <= LARGEST:
            return event, k


def stories(count: int, seed: int = 0) -> Task:
    """The first so many stories; a longer list begins with the shorter one."""
    return Task("stories", [story(i, seed) for i in range(count)], about="stories with an account")


def shortened(problem: Problem, lines: int) -> Problem:
    """A story that stops after so many lines of its account."""
    sentences = problem.meta["sentences"][: lines + 1]
    account = problem.meta["account"][:lines]
    asks = problem.question.rpartition(". ")[2]
    return Problem(
        f"{problem.id}/{lines}",
        " ".join([*sentences, asks]),
        account[-1].rpartition("=")[2],
        {"sentences": sentences, "account": account},
    )


def right_lines(problem: Problem, results: Sequence[int | None]) -> int:
    """How many results agree with the account before the first that does not."""
    count = 0
    for result, line in zip(results, problem.meta["account"], strict=False):
        if str(result) != line.rpartition("=")[2]:
            break
        count += 1
    return count
