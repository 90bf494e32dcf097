r"""What an answer says: numbers, expressions, tuples, intervals, sets, relations, matrices, words.

A reader of tokens (see `notation`) that knows little and guesses nothing: where a notation has two
readings, such as `1/2x` or `\sin(x)^2`, it has none here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from typing import TypeAlias

from ppl.language.answers.notation import (
    FUNCTIONS,
    Token,
    UnreadableError,
    normal_form,
    spelled,
    tokens,
)

Tree: TypeAlias = tuple[object, ...]
"""An expression: `("number", Fraction)`, `("symbol", name)`, or an operation and its arguments."""


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

_RELATIONS = frozenset(["=", "<", ">", "le", "ge", "ne", "in"])
_OPEN, _CLOSE = frozenset(["(", "[", "{", r"\{", "lfloor", "lceil", "langle"]), frozenset(
    [")", "]", "}", r"\}", "rfloor", "rceil", "rangle"]
)
_ARTICLES = frozenset(["the", "a", "an"])
# Words after a number that are no unit: they change it, or say that there is more to it.
_NO_UNIT = frozenset(
    "and or not no minus plus times over under less more than least most about approximately "
    "roughly nearly almost squared cubed half quarter third thirds fourths hundred thousand "
    "million billion trillion dozen mod modulo is are if to from remainder none zero one two three "
    "four five six seven eight nine ten eleven twelve maybe wrong per each of by infinity false "
    "true undefined".split()
)
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
        return Ratio(tuple(_term(p) for p in parts))
    if found and found[0].value.startswith("begin{") and found[0].kind == "command":
        return _matrix(found, depth)
    inside = _enclosed(found)
    if inside is not None:
        opening, closing = found[0].value, found[-1].value
        if opening == r"\{":
            items = _answer(inside, depth + 1) if inside else Collection((), braced=False)
            listed = isinstance(items, Collection) and not items.braced
            return Collection(items.items if listed else (items,), braced=True)  # type: ignore[union-attr]
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
    tree = _term(body)
    if _has(tree, "pm"):
        both = (_signed(tree, 1), _signed(tree, -1))
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
    values = [t.value for t in body]
    if len(values) < 5 or values[1:3] != ["_", "{"] or values[-1] != "}":
        return None
    if body[0].kind != "number" or not values[0].isdigit():
        return None
    return Based(values[0].lstrip("0") or "0", "".join(values[3:-1]))


def _places(body: list[Token]) -> int | None:
    numbers = [t for t in body if t.kind == "number"]
    if len(numbers) != 1 or any(t.value not in "+-" for t in body if t.kind != "number"):
        return None
    digits = numbers[0].value
    return None if "over" in digits or "." not in digits else len(digits.split(".")[1])


def _has(tree: object, operation: str) -> bool:
    if not isinstance(tree, tuple):
        return False
    return tree[:1] == (operation,) or any(_has(branch, operation) for branch in tree)


def _signed(tree: Tree, sign: int) -> Tree:
    """The term with every plus-or-minus read as one of the two."""
    branches = tuple(_signed(b, sign) if isinstance(b, tuple) else b for b in tree)
    if tree[0] == "pm":
        way, branch = branches[1], branches[2]
        return branch if way == sign else ("neg", branch)  # type: ignore[return-value]
    return branches


# -- terms ---------------------------------------------------------------------------------------


def _term(found: list[Token]) -> Tree:
    parser = _Terms(found)
    tree = parser.sum()
    if parser.place != len(found):
        raise UnreadableError(f"{found[parser.place].value!r} is out of place")
    return tree


def number(digits: str) -> Fraction:
    r"""The value of digits with a point, perhaps with a repeating part `\overline{...}`."""
    if "\\" not in digits:
        return Fraction(digits if digits[0] != "." else f"0{digits}")
    head, tail = digits.split("\\overline{")
    whole, point = head.split(".")
    period = tail[:-1]
    start = Fraction(int((whole + point) or "0"), 10 ** len(point))
    return start + Fraction(int(period), (10 ** len(period) - 1) * 10 ** len(point))


class _Terms:
    """Recursive descent; a term is read wholly or not at all."""

    def __init__(self, found: list[Token]) -> None:
        self.found, self.place, self.depth = found, 0, 0

    def peek(self, ahead: int = 0) -> Token:
        at = self.place + ahead
        return self.found[at] if at < len(self.found) else Token("end", "")

    def at(self, *values: str) -> bool:
        token = self.peek()
        return token.kind in ("sign", "command") and token.value in values

    def take(self, value: str) -> None:
        if not self.at(value):
            raise UnreadableError(f"{value!r} is missing")
        self.place += 1

    def sum(self) -> Tree:
        self.depth += 1
        if self.depth > 40:
            raise UnreadableError("nested too deeply")
        terms: list[Tree] = []
        while not terms or self.at("+", "-", "pm", "mp"):
            sign = ""
            if self.at("+", "-", "pm", "mp"):
                sign = self.peek().value
                self.place += 1
            product = self.product()
            match sign:
                case "-":
                    product = ("neg", product)
                case "pm" | "mp":
                    product = ("pm", 1 if sign == "pm" else -1, product)
            terms.append(product)
        self.depth -= 1
        return terms[0] if len(terms) == 1 else ("sum", *terms)

    def product(self) -> Tree:
        tree = self.factor(first=True)
        factors: list[Tree] = [tree]
        divided = False
        while True:
            if self.at("*", "/"):
                divided = self.peek().value == "/"
                self.place += 1
                negative = self.at("-")
                self.place += negative
                factor = self.factor(first=True)
                factor = ("neg", factor) if negative else factor
                factors.append(("inverse", factor) if divided else factor)
            elif self.starts():
                if divided:
                    raise UnreadableError("how far does the divisor go?")
                if self.peek().kind == "number":
                    raise UnreadableError("two numbers side by side")
                factors.append(self.factor(first=False))
            else:
                return factors[0] if len(factors) == 1 else ("product", *factors)

    def starts(self) -> bool:
        """Whether a factor begins here without a sign."""
        token = self.peek()
        if token.kind in ("number", "symbol"):
            return True
        if token.kind == "command":
            return token.value in FUNCTIONS or token.value in (
                "frac", "sqrt", "binom", "lfloor", "lceil",
            )  # fmt: skip
        return token.kind == "sign" and token.value in ("(", "[", "{")

    def factor(self, *, first: bool) -> Tree:
        mixed = self.mixed() if first else None
        tree = mixed if mixed is not None else self.atom()
        while True:
            if self.at("!"):
                self.place += 1
                if self.at("!") or self.at("^"):
                    raise UnreadableError("several factorials, or a power of one")
                tree = ("factorial", tree)
            elif self.at("^"):
                if [self.peek(k).value for k in range(1, 4)] == ["{", "circ", "}"]:
                    self.place += 4
                    return ("product", tree, ("degree",))
                if mixed is not None:
                    raise UnreadableError("a power of a mixed number")
                self.place += 1
                exponent = self.braced()
                if self.at("^"):
                    raise UnreadableError("a power of a power without brackets")
                tree = ("power", tree, exponent)
            elif self.at("%"):
                self.place += 1
                return ("product", tree, ("number", Fraction(1, 100)))
            else:
                return tree

    def mixed(self) -> Tree | None:
        r"""`1\frac{4}{5}` and `1 4/5`."""
        if self.peek().kind != "number" or not self.peek().value.isdigit():
            return None
        rest = self.found[self.place + 1 : self.place + 8]
        values = [t.value for t in rest]
        whole = Fraction(self.peek().value)
        if (
            values[:2] == ["frac", "{"]
            and values[3:5] == ["}", "{"]
            and values[6:7] == ["}"]
            and values[2].isdigit()
            and values[5].isdigit()
        ):
            above, below, used = values[2], values[5], 8
        elif (
            len(values) > 2
            and values[0].isdigit()
            and values[1] == "/"
            and values[2].isdigit()
            and rest[0].kind == rest[2].kind == "number"
        ):
            above, below, used = values[0], values[2], 4
        else:
            return None
        if int(below) == 0:
            raise UnreadableError("division by zero")
        self.place += used
        return ("number", whole + Fraction(int(above), int(below)))

    def braced(self) -> Tree:
        self.take("{")
        tree = self.sum()
        self.take("}")
        return tree

    def raw(self) -> str:
        """The tokens of a braced argument, as they are."""
        begin, depth = self.place, 0
        while True:
            token = self.peek()
            if token.kind == "end":
                raise UnreadableError("an index is not closed")
            depth += (token.value == "{") - (token.value == "}")
            self.place += 1
            if depth == 0:
                return spelled(self.found[begin + 1 : self.place - 1])

    def atom(self) -> Tree:
        token = self.peek()
        self.place += 1
        match token.kind, token.value:
            case "number", digits:
                if self.at("_"):
                    raise UnreadableError("a numeral of another base inside a term")
                return ("number", number(digits))
            case "symbol", name:
                return self.symbol(name)
            case "sign", "(" | "[" as bracket:
                tree = self.sum()
                self.take(")" if bracket == "(" else "]")
                return tree
            case "sign", "{":
                self.place -= 1
                return self.braced()
            case "sign", "|":
                tree = self.sum()
                self.take("|")
                return ("abs", tree)
            case "command", "lfloor" | "lceil" as name:
                tree = self.sum()
                self.take("r" + name[1:])
                return ("floor" if name == "lfloor" else "ceil", tree)
            case "command", "frac":
                above, below = self.braced(), self.braced()
                return ("product", above, ("inverse", below))
            case "command", "binom":
                return ("binom", self.braced(), self.braced())
            case "command", "sqrt":
                return self.root()
            case "command", name if name in FUNCTIONS:
                return self.function(name)
        raise UnreadableError(f"{token.value or 'the end'!r} is out of place")

    def root(self) -> Tree:
        index: Tree = ("number", Fraction(2))
        if self.at("["):
            self.place += 1
            index = self.sum()
            self.take("]")
        if self.at("("):
            self.place += 1
            radicand = self.sum()
            self.take(")")
        else:
            radicand = self.braced()
        return ("root", radicand, index)

    def symbol(self, name: str) -> Tree:
        if self.at("_"):
            self.place += 1
            name = f"{name}_{self.raw()}"
        while self.at("'"):
            self.place += 1
            name += "'"
        if name[0] in "fgh" and self.at("("):  # an unknown function: its argument is in its name
            begin, depth = self.place, 0
            while depth or self.place == begin:
                if self.peek().kind == "end":
                    raise UnreadableError("a bracket is not closed")
                depth += self.at("(") - self.at(")")
                self.place += 1
            name += spelled(self.found[begin : self.place])
        return ("symbol", name)

    def function(self, name: str) -> Tree:
        power = base = None
        if self.at("_"):
            if name != "log":
                raise UnreadableError(f"an index at {name}")
            self.place += 1
            base = self.braced()
        if self.at("^"):
            self.place += 1
            power = self.braced()
        if self.at("(", "["):
            bracket = ")" if self.at("(") else "]"
            self.place += 1
            argument = self.sum()
            self.take(bracket)
            if self.at("^", "!"):
                raise UnreadableError(f"a power behind {name}(...)")
        else:
            factors = [self.factor(first=True)]
            while self.peek().kind in ("number", "symbol") or self.at("frac", "sqrt"):
                factors.append(self.factor(first=False))
            if self.at("(", "[", "/", "*"):
                raise UnreadableError(f"where does the argument of {name} end?")
            argument = factors[0] if len(factors) == 1 else ("product", *factors)
        if power == ("neg", ("number", Fraction(1))):
            raise UnreadableError(f"the inverse of {name}, or its reciprocal?")
        tree: Tree = (name, argument) if base is None else ("log", argument, base)
        return tree if power is None else ("power", tree, power)


def without_unit(expression: Expression) -> Expression:
    """The same number."""
    return replace(expression, unit="", power="")


__all__ = [
    "Based", "Collection", "Expression", "Group", "Matrix", "Ratio", "Reading", "Relation", "Tree",
    "Union", "UnreadableError", "Words", "normal_form", "number", "read", "without_unit",
]  # fmt: skip
