r"""What an answer says: numbers, expressions, tuples, intervals, sets, relations, matrices, words.

A reader of tokens (see `notation`) that knows little and guesses nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

from ppl.language.answers.notation import Token, UnreadableError, tokens
from ppl.language.answers.terms import Tree, has, read_term, signed


@dataclass(frozen=True)
class Expression:
    """A number or a term, perhaps with a unit.

    Attributes:
        tree: the term.
        unit: its words, blank without one; `power` is their exponent.
        percent: the term is to be divided by 100.
        places: digits after the point if this is a number written as a decimal, else None.
    """

    tree: Tree
    unit: str = ""
    power: str = ""
    percent: bool = False
    places: int | None = None


@dataclass(frozen=True)
class Based:
    """Digits in a number system, such as 40_9."""

    digits: str
    base: str


@dataclass(frozen=True)
class Words:
    """An answer in words, in lower case and without articles."""

    words: tuple[str, ...]


@dataclass(frozen=True)
class Group:
    """Items in brackets, in order: a point, a tuple, an interval."""

    brackets: str
    items: tuple[Reading, ...]


@dataclass(frozen=True)
class Collection:
    """Items in no order. `braced` tells a set from a mere list of answers."""

    items: tuple[Reading, ...]
    braced: bool


@dataclass(frozen=True)
class Union:
    """A union of sets, in no order."""

    items: tuple[Reading, ...]


@dataclass(frozen=True)
class Relation:
    """Sides with `=`, `<`, `le`, `>`, `ge`, `ne` or `in` between them."""

    sides: tuple[Reading, ...]
    signs: tuple[str, ...]


@dataclass(frozen=True)
class Ratio:
    """a : b or longer."""

    items: tuple[Tree, ...]


@dataclass(frozen=True)
class Matrix:
    """Rows of cells; `bars` makes it a determinant."""

    rows: tuple[tuple[Reading, ...], ...]
    bars: bool


Reading: TypeAlias = (
    Expression | Based | Words | Group | Collection | Union | Relation | Ratio | Matrix
)

MAX_ITEMS = 50  # of a list; they are compared in pairs

_RELATIONS = frozenset(["=", "<", ">", "le", "ge", "ne", "in"])
_OPEN, _CLOSE = (
    frozenset(["(", "[", "{", r"\{", "lfloor", "lceil", "langle"]),
    frozenset([")", "]", "}", r"\}", "rfloor", "rceil", "rangle"]),
)
_ARTICLES = frozenset(["the", "a", "an"])
# Words after a number that are no unit: they change it, or say that there is more to it.
_NO_UNIT = frozenset(
    ["and", "or", "not", "no", "minus", "plus", "times", "over", "under", "less", "more", "than",
     "least", "most", "about", "approximately", "roughly", "nearly", "almost", "squared", "cubed",
     "half", "quarter", "third", "thirds", "fourths", "hundred", "thousand", "million", "billion",
     "trillion", "dozen", "mod", "modulo", "is", "are", "if", "to", "from", "remainder", "none",
     "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
     "eleven", "twelve", "maybe", "wrong", "per", "each", "of", "by", "infinity", "false", "true",
     "undefined"]
)  # fmt: skip
_SAME_UNIT = {
    "deg": "degree", "percents": "percent", "inch": "in", "inches": "in", "foot": "ft",
    "feet": "ft", "yards": "yd", "yard": "yd", "meter": "m", "meters": "m", "metre": "m",
    "metres": "m", "centimeter": "cm", "centimeters": "cm", "kilometer": "km", "kilometers": "km",
    "millimeters": "mm", "gram": "g", "grams": "g", "kilograms": "kg", "kilogram": "kg",
    "hr": "hour", "hrs": "hour", "min": "minute", "sec": "second", "lbs": "lb", "pounds": "lb",
    "pound": "lb", "bucks": "dollar", "usd": "dollar", "people": "person",
}  # fmt: skip


@lru_cache(maxsize=8192)
def read(string: str) -> Reading:
    """What `string` says.

    Raises:
        UnreadableError: it is blank, has several readings, or is in no known notation.
    """
    found = tokens(string)
    if not found:
        raise UnreadableError("blank")
    return _answer(found, 0)


def _split(found: list[Token], signs: frozenset[str]) -> tuple[list[list[Token]], list[str]]:
    """The pieces between these tokens outside brackets, and the tokens."""
    pieces: list[list[Token]] = [[]]
    between: list[str] = []
    depth = 0
    for token in found:
        if token.kind != "text":
            depth += (token.value in _OPEN) - (token.value in _CLOSE)
            depth += token.value.startswith("begin{") - token.value.startswith("end{")
        if depth < 0:
            raise UnreadableError("a bracket is closed that was never opened")
        if depth == 0 and token.value in signs and token.kind != "symbol":
            between.append(token.value)
            pieces.append([])
        else:
            pieces[-1].append(token)
    if depth:
        raise UnreadableError("a bracket is not closed")
    return pieces, between


def _answer(found: list[Token], depth: int) -> Reading:
    if depth > 20:
        raise UnreadableError("nested too deeply")
    pieces, between = _split(found, frozenset([",", ";", "and", "or", "nor"]))
    if between:
        # "1, 2, and 3": one separator.
        kept = [
            p for k, p in enumerate(pieces) if p or k == 0 or k > len(between) - 1
            or not (between[k - 1] in ",;" and between[k] in ("and", "or"))
        ]  # fmt: skip
        if "nor" in between or not all(kept):
            raise UnreadableError("an item of a list is missing")
        if len(kept) > MAX_ITEMS:
            raise UnreadableError("too long a list")
        return Collection(_expanded([_answer(p, depth + 1) for p in kept]), braced=False)
    return _object(found, depth)


def _expanded(items: list[Reading]) -> tuple[Reading, ...]:
    r"""`1 \pm a` in a list stands for two of its items."""
    flat: list[Reading] = []
    for item in items:
        flat += item.items if isinstance(item, Collection) and not item.braced else [item]
    return tuple(flat)


def _object(found: list[Token], depth: int) -> Reading:
    sides, signs = _split(found, _RELATIONS)
    if signs:
        if not all(sides):
            raise UnreadableError("a relation without a side")
        return Relation(tuple(_object(s, depth + 1) for s in sides), tuple(signs))
    parts, cups = _split(found, frozenset(["cup"]))
    if cups:
        return Union(tuple(_object(p, depth + 1) for p in parts))
    parts, colons = _split(found, frozenset([":"]))
    if colons:
        return Ratio(tuple(read_term(p) for p in parts))
    if found and found[0].value.startswith("begin{") and found[0].kind == "command":
        return _matrix(found, depth)
    inside = _enclosed(found)
    if inside is not None:
        opening, closing = found[0].value, found[-1].value
        if opening == r"\{":
            items = _answer(inside, depth + 1) if inside else Collection((), braced=False)
            listed = isinstance(items, Collection) and not items.braced
            members = items.items if isinstance(items, Collection) and listed else (items,)
            return Collection(members, braced=True)
        pieces, commas = _split(inside, frozenset([",", ";"]))
        if commas:
            if not all(pieces):
                raise UnreadableError("an item is missing between brackets")
            return Group(opening + closing, tuple(_object(p, depth + 1) for p in pieces))
    return _leaf(found)


def _enclosed(found: list[Token]) -> list[Token] | None:
    """What stands between the first token and the last if these are a pair of brackets."""
    if len(found) < 2 or found[0].value not in ("(", "[", r"\{", "langle"):
        return None
    if found[0].kind == "text" or found[-1].kind == "text":
        return None
    depth = 0
    for i, token in enumerate(found):
        if token.kind == "text":
            continue
        depth += (token.value in _OPEN) - (token.value in _CLOSE)
        if depth == 0:
            last = i == len(found) - 1
            pair = {r"\{": (r"\}",), "langle": ("rangle",)}.get(found[0].value, (")", "]"))
            return found[1:-1] if last and token.value in pair else None
    return None


def _matrix(found: list[Token], depth: int) -> Matrix:
    kind = found[0].value[len("begin{") : -1]
    if kind not in ("pmatrix", "bmatrix", "matrix", "vmatrix", "Bmatrix"):
        raise UnreadableError(f"{kind} is no matrix")
    if found[-1].value != f"end{{{kind}}}":
        raise UnreadableError("there is something behind the matrix")
    rows, _ = _split(found[1:-1], frozenset([r"\\"]))
    if not rows[-1]:
        rows.pop()
    cells = [_split(row, frozenset(["&"]))[0] for row in rows]
    if not cells or any(len(row) != len(cells[0]) or not all(row) for row in cells):
        raise UnreadableError("rows of a matrix differ in length")
    return Matrix(
        tuple(tuple(_object(cell, depth + 1) for cell in row) for row in cells), kind == "vmatrix"
    )


# -- numbers and terms with their units ----------------------------------------------------------


def _leaf(found: list[Token]) -> Reading:
    if found and all(t.kind == "text" for t in found):
        return _words(found)
    body, unit, power, percent = _unit(found)
    if unit and not any(t.kind == "number" for t in body):
        return _words(found)
    based = _based(body)
    if based is not None:
        if unit or percent:
            raise UnreadableError("a numeral of another base with a unit")
        return based
    places = _places(body)
    tree = read_term(body)
    if has(tree, "pm"):
        both = (signed(tree, 1), signed(tree, -1))
        parts = tuple(Expression(t, unit, power, percent) for t in both)
        return Collection(parts, braced=False)
    return Expression(tree, unit, power, percent, places)


def _words(found: list[Token]) -> Words:
    said = " ".join(t.value for t in found).lower()
    kept = "".join(c if c.isalnum() or c in "-'" else " " for c in said).split()
    words = tuple(w for w in kept if w not in _ARTICLES)
    if not words:
        raise UnreadableError("no words")
    return Words(words)


def is_number_word(word: str) -> bool:
    """Whether a word may stand for a number, or for none."""
    return (
        word in _NO_UNIT
        or re.search(r"teen|ty$|ty-|th$|illion|nothing|empty|twi", word) is not None
    )


def _unit(found: list[Token]) -> tuple[list[Token], str, str, bool]:
    """The term, its unit, the unit's exponent, and whether it is a percentage."""
    body, power = list(found), ""
    if body[:1] == [Token("sign", "$")]:
        rest, unit, _, percent = _unit(body[1:])
        if percent or unit not in ("", "dollar"):
            raise UnreadableError("money with another unit")
        return rest, "dollar", "", False
    if body[:2] == [Token("sign", "-"), Token("sign", "$")]:
        return [body[0], *body[2:]], "dollar", "", False
    if body[-1:] == [Token("sign", "%")]:
        return body[:-1], "", "", True
    if body[-1:] == [Token("sign", "$")]:
        return body[:-1], "dollar", "", False
    if [t.value for t in body[-4:]] == ["^", "{", "circ", "}"]:
        return body[:-4], "degree", "", False
    if body[-1:] == [Token("command", "circ")]:
        return body[:-1], "degree", "", False
    raised = [t.value for t in body[-4:]]
    if len(body) > 4 and raised[0] == "^" and raised[1] == "{" and body[-5].kind == "text":
        power, body = raised[2], body[:-4]
    said: list[str] = []
    while len(body) > 1 and body[-1].kind == "text":
        said = [*body.pop().value.lower().replace(".", "").split(), *said]
    if not said:
        return found, "", "", False
    if any(w in _NO_UNIT or not w.replace("-", "").replace("/", "").isalpha() for w in said):
        raise UnreadableError(f"{' '.join(said)!r} is no unit")
    if said in (["percent"], ["per", "cent"]):
        return body, "", "", True
    if said[0] in ("square", "sq", "cubic"):
        power = "3" if said.pop(0) == "cubic" else "2"
    return body, " ".join(_one_unit(w) for w in said), power, False


def _one_unit(word: str) -> str:
    if word in _SAME_UNIT:
        return _SAME_UNIT[word]
    return word[:-1] if len(word) > 3 and word.endswith("s") and word[-2] != "s" else word


def _based(body: list[Token]) -> Based | None:
    sign = "-" if body[:1] == [Token("sign", "-")] else ""
    rest = body[len(sign) :]
    values = [t.value for t in rest]
    if len(values) < 5 or values[1:3] != ["_", "{"] or values[-1] != "}":
        return None
    if rest[0].kind != "number" or not re.fullmatch(r"[0-9.]+", values[0]):
        return None
    return Based(sign + (values[0].lstrip("0") or "0"), "".join(values[3:-1]))


def _places(body: list[Token]) -> int | None:
    numbers = [t for t in body if t.kind == "number"]
    if len(numbers) != 1 or any(t.value not in "+-" for t in body if t.kind != "number"):
        return None
    digits = numbers[0].value
    return None if "over" in digits or "." not in digits else len(digits.split(".")[1])
