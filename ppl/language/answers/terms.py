r"""Terms: what is added, multiplied and raised to powers.

Read by recursive descent, wholly or not at all. Where a notation has two readings, such as `1/2x`
or `\sin(x)^2`, it has none here.
"""

from __future__ import annotations

from fractions import Fraction
from typing import TypeAlias

from ppl.language.answers.notation import FUNCTIONS, Token, UnreadableError, spelled

Tree: TypeAlias = tuple[object, ...]
"""An expression: `("number", Fraction)`, `("symbol", name)`, or an operation and its arguments."""


def read_term(found: list[Token]) -> Tree:
    """The term that these tokens are.

    Raises:
        UnreadableError: they are none, or may be several.
    """
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
        tree: Tree = (name, argument) if base is None else ("logarithm", argument, base)
        return tree if power is None else ("power", tree, power)


def has(tree: object, operation: str) -> bool:
    """Whether an operation occurs in a term."""
    if not isinstance(tree, tuple):
        return False
    return tree[:1] == (operation,) or any(has(branch, operation) for branch in tree)


def signed(tree: Tree, sign: int) -> Tree:
    """The term with every plus-or-minus read as one of the two."""
    branches = tuple(signed(b, sign) if isinstance(b, tuple) else b for b in tree)
    if tree[0] == "pm":
        way, branch = branches[1], branches[2]
        return branch if way == sign else ("neg", branch)  # type: ignore[return-value]
    return branches
