"""Requests for short texts that can be checked exactly, of ten kinds, made from a seed.

`obeys` is the checker. It reads a whole text, and shares no code with the automaton that watches
beginnings (`writing_automaton`); the tests hold that both say the same.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
           "eleven", "twelve")  # fmt: skip
TOPICS = ("the sea", "a garden", "the night", "a city", "an old man", "the winter", "a dog",
          "a school", "the morning", "a journey", "music", "a kitchen", "the rain", "a friend",
          "the moon", "a forest")  # fmt: skip
NOUNS = ("river", "stars", "door", "winter", "music", "mother", "time", "bread", "night", "school",
         "money", "house", "sun", "book", "tree", "song", "road", "fire", "city", "sea",
         "garden", "friend", "moon", "dog")  # fmt: skip
COMMON = ("the", "a", "and", "is", "of", "in", "to", "with", "was", "that")
INITIALS = "abcdefhilmoprstw"  # letters with which many words begin

LONGEST_WORD = 14  # letters, where letters count
WORD = r"[A-Za-z]+(?:['-][A-Za-z]+)*"
LINE = re.compile(rf"{WORD}(?:[,;:]? {WORD})*[,;:.!?]?")


@dataclass(frozen=True)
class Request:
    """What is asked of a text; rules that are not asked for are empty.

    Attributes:
        kind: name of the kind.
        question: what the model is told.
        lines: for each line, the least and the most words.
        mirrored: the numbers of words in the lines read the same backwards.
        initials: the first letters of the words, in order.
        banned_letters, banned_words: not to be used.
        ordered: words that occur in this order.
        last: the last word.
        letters: how many there are in all; None for any number.
        growing: every word has more letters than the one before.
    """

    kind: str
    question: str
    lines: tuple[tuple[int, int], ...] = ((5, 12),)
    mirrored: bool = False
    initials: str = ""
    banned_letters: str = ""
    banned_words: frozenset[str] = frozenset()
    ordered: tuple[str, ...] = ()
    last: str = ""
    letters: int | None = None
    growing: bool = False

    @property
    def stop(self) -> re.Pattern[str]:
        """Matches once a text has ended: its last line has a full stop, or ends."""
        return re.compile(rf"(?:[^\n]*\n){{{len(self.lines) - 1}}}[^\n]*[.!?\n]")

    @property
    def most_words(self) -> int:
        """Most words of a text."""
        return sum(most for _, most in self.lines)


def plain(string: str) -> str:
    """The text without quotation marks around it and what follows its end; plain apostrophes."""
    string = re.sub("[“”]", '"', string.replace("’", "'"))
    return re.sub(r'(?<=[.!?\n])[ \n"]*$', "", string).lstrip('"').removesuffix("\n")


def obeys(request: Request, string: str) -> bool:
    """The checker: is this whole text what was asked for?

    A sentence ends with a full stop (or ! or ?), a poem ends as it likes.
    """
    lines = plain(string).split("\n")
    if len(lines) != len(request.lines) or not all(LINE.fullmatch(line) for line in lines):
        return False
    if not lines[0][0].isupper() or (len(lines) == 1 and lines[0][-1] not in ".!?"):
        return False
    per_line = [[w.lower() for w in re.findall(WORD, line)] for line in lines]
    counts = [len(words) for words in per_line]
    words = [word for line in per_line for word in line]
    sizes = [sum(map(str.isalpha, word)) for word in words]
    found = iter(words)
    return (
        all(least <= n <= most for n, (least, most) in zip(counts, request.lines, strict=True))
        and (not (request.growing or request.letters) or max(sizes) <= LONGEST_WORD)
        and (not request.mirrored or counts == counts[::-1])
        and (not request.initials or [w[0] for w in words] == list(request.initials))
        and not set(request.banned_letters) & set("".join(words))
        and not request.banned_words & set(words)
        and all(word in found for word in request.ordered)
        and (not request.last or words[-1] == request.last)
        and request.letters in (None, sum(sizes))
        and (not request.growing or all(b > a for a, b in pairwise(sizes)))
    )


def number_of_words(rng: random.Random) -> Request:
    n = rng.randint(6, 11)
    ask = f"Write one sentence of exactly {NUMBERS[n]} words about {rng.choice(TOPICS)}."
    return Request("number of words", ask, ((n, n),))


def last_word(rng: random.Random) -> Request:
    n, last = rng.randint(6, 10), rng.choice(NOUNS)
    ask = f'Write one sentence of exactly {NUMBERS[n]} words that ends with "{last}".'
    return Request("last word", ask, ((n, n),), last=last)


def first_letters(rng: random.Random) -> Request:
    initials = "".join(rng.choice(INITIALS) for _ in range(rng.randint(4, 6)))
    n = len(initials)
    listed = ", ".join(initials[:-1]) + " and " + initials[-1]
    ask = f"Write one sentence of {NUMBERS[n]} words that begin with the letters {listed}."
    return Request("first letters", ask, ((n, n),), initials=initials)


def banned_letter(rng: random.Random) -> Request:
    letter, topic = rng.choice("etaosin"), rng.choice(TOPICS)
    ask = f"Write one short sentence about {topic}. Do not use the letter {letter}."
    return Request("forbidden letter", ask, banned_letters=letter)


def banned_words(rng: random.Random) -> Request:
    words = rng.sample(COMMON, 4)
    listed = ", ".join(f'"{w}"' for w in words)
    ask = f"Write one short sentence about {rng.choice(TOPICS)}. Do not use the words {listed}."
    return Request("forbidden words", ask, banned_words=frozenset(words))


def ordered_words(rng: random.Random) -> Request:
    words = tuple(rng.sample(NOUNS, 3))
    listed = f'"{words[0]}", "{words[1]}" and "{words[2]}"'
    ask = f"Write one sentence with the words {listed}, in this order."
    return Request("words in order", ask, ((5, 12),), ordered=words)


def line_lengths(rng: random.Random) -> Request:
    counts = [rng.randint(3, 6) for _ in range(3)]
    first, second, third = (NUMBERS[c] for c in counts)
    ask = (
        f"Write a poem of three lines about {rng.choice(TOPICS)}. The first line has {first} "
        f"words, the second {second} words, the third {third} words."
    )
    return Request("line lengths", ask, tuple((c, c) for c in counts))


def palindrome(rng: random.Random) -> Request:
    ask = (
        f"Write a poem of five short lines about {rng.choice(TOPICS)}. The numbers of words in its "
        "lines read the same backwards, such as 2, 3, 4, 3, 2."
    )
    return Request("palindrome of counts", ask, ((2, 5),) * 5, mirrored=True)


def number_of_letters(rng: random.Random) -> Request:
    n = rng.randint(22, 40)
    ask = f"Write one short sentence about {rng.choice(TOPICS)} with exactly {n} letters."
    return Request("number of letters", ask, ((4, 10),), letters=n)


def growing_words(rng: random.Random) -> Request:
    n = rng.randint(4, 5)
    ask = (
        f"Write one sentence of {NUMBERS[n]} words about {rng.choice(TOPICS)}, in which every word "
        "is longer than the one before."
    )
    return Request("growing words", ask, ((n, n),), growing=True)


KINDS: tuple[Callable[[random.Random], Request], ...] = (
    number_of_words,
    last_word,
    first_letters,
    banned_letter,
    banned_words,
    ordered_words,
    line_lengths,
    palindrome,
    number_of_letters,
    growing_words,
)


def requests(count: int, seed: int = 0) -> list[Request]:
    """The first `count` requests, the kinds in turn; no question occurs twice.

    Request i is the same whatever `count` is.
    """
    rng, found, asked = random.Random(seed), [], set()
    while len(found) < count:
        request = KINDS[len(found) % len(KINDS)](rng)
        if request.question not in asked:
            asked.add(request.question)
            found.append(request)
    return found
