r"""How answers are spelled: LaTeX, bare or delimited, and plain text become one sequence of tokens.

What does not change the meaning goes here: delimiters, spacing, `\left`, `\dfrac`, thousands
separators, trailing dots. What could change it is left for the reader of the tokens to judge.
"""

from __future__ import annotations

import re
from decimal import Decimal
from functools import lru_cache
from typing import NamedTuple

MAX_LENGTH = 2000  # characters; what is longer is no final answer


class UnreadableError(ValueError):
    """A string that is not (unambiguously) an answer in the notation that is known here."""


class Token(NamedTuple):
    """One piece of notation.

    Attributes:
        kind: `number`, `symbol`, `command`, `text` or `sign` (of which brackets are some).
        value: its spelling, free of variants.
    """

    kind: str
    value: str


_UNICODE = {
    **{c: f"^{{{d}}}" for c, d in zip("⁰¹²³⁴⁵⁶⁷⁸⁹", "0123456789", strict=True)},
    **{c: f"_{{{d}}}" for c, d in zip("₀₁₂₃₄₅₆₇₈₉", "0123456789", strict=True)},
    **dict.fromkeys("−–‐‑", "-"),
    **dict.fromkeys("\u00a0\u2009\u202f\u2002\u2003\u200b", " "),
    **{"×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "÷": r"\div ", "±": r"\pm ", "∓": r"\mp "},
    **{"π": r"\pi ", "∞": r"\infty ", "°": r"^\circ ", "√": r"\sqrt ", "θ": r"\theta "},
    **{"≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "∈": r"\in ", "∪": r"\cup ", "∩": r"\cap "},
    **{"½": r"\frac{1}{2}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}", "∅": r"\emptyset "},
    **{"’": "'", "′": "'", "⟨": r"\langle ", "⟩": r"\rangle ", "，": ","},
}

_SPACING = re.compile(
    r"(\\\\)|\\(?:left|right|[bB]igg?[lr]?|displaystyle|textstyle|limits|quad|qquad|hfill)(?![A-Za-z])"
    r"|\\[,;:! ]|~|\\hspace\{[^{}]*\}|&nbsp;"
)
# 10,\!080 and 10{,}080 and 10\,080: one number, whatever stands around it.
_JOINED_THOUSANDS = re.compile(r"(?<=[0-9])(?:,\s*\\!|\{,\}|\\,|,\s*\\ )\s*(?=[0-9]{3}(?![0-9]))")
_THOUSANDS = re.compile(r"(?<![0-9.,])[0-9]{1,3}(?:,[0-9]{3})+(?!,?[0-9])")
_SPACED_THOUSANDS = re.compile(r"[+-]?[0-9]{1,3}(?: [0-9]{3})+(?:\.[0-9]+)?")
_ZERO_GROUP = re.compile(r",0[0-9]{2}(?![0-9])")
_TEXT = "text|mbox|hbox|textbf|textit|textrm|textnormal|textsf|mathrm|mathit|mathsf|operatorname"
_TOKEN = re.compile(
    rf"""
    (?P<repeating>[0-9]*\.[0-9]*\\overline\s*\{{[0-9]+\}})
    |(?P<scientific>(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][+-]?[0-9]+(?![0-9A-Za-z.]))
    |(?P<number>[0-9]+(?:\.[0-9]+)?|\.[0-9]+)
    |\\(?:{_TEXT})\s*\{{(?P<text>[^{{}}]*)\}}
    |(?P<named>\\(?:mathbf|mathbb|mathcal|boldsymbol|vec|hat|bar)\s*\{{\s*\\?[A-Za-z]+\s*\}})
    |(?P<environment>\\(?:begin|end)\s*\{{[a-z]+\}})
    |(?P<command>\\[A-Za-z]+|\\.)
    |(?P<word>[A-Za-z]+)
    |(?P<sign>\*\*|<=|>=|!=|==|[-+*/^_!|,;:()\[\]{{}}<>=%$'&])
    |(?P<space>\s+)
    """,
    re.VERBOSE,
)

_SAME_COMMAND = {
    "dfrac": "frac", "tfrac": "frac", "cfrac": "frac", "dbinom": "binom", "tbinom": "binom",
    "leq": "le", "leqslant": "le", "geq": "ge", "geqslant": "ge", "neq": "ne", "lt": "<",
    "gt": ">", "times": "*", "cdot": "*", "ast": "*", "div": "/", "infin": "infty", "inf": "infty",
    "lbrace": r"\{", "rbrace": r"\}", "lbrack": "[", "rbrack": "]", "lparen": "(", "rparen": ")",
    "vert": "|", "lvert": "|", "rvert": "|", "mid": "|", "varnothing": "emptyset", "colon": ":",
    "degree": "circ", "degrees": "circ", "arcsin": "asin", "arccos": "acos", "arctan": "atan",
    "varphi": "phi", "varepsilon": "epsilon", "percent": "%", "isin": "in", "bmod": "mod",
}  # fmt: skip
FUNCTIONS = frozenset(
    ["sin", "cos", "tan", "cot", "sec", "csc", "asin", "acos", "atan", "sinh", "cosh", "tanh",
     "ln", "log", "exp"]
)  # fmt: skip
SYMBOLS = frozenset(
    ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa",
     "lambda", "mu", "nu", "xi", "pi", "rho", "sigma", "tau", "upsilon", "phi", "chi", "psi",
     "omega", "Gamma", "Delta", "Theta", "Lambda", "Xi", "Pi", "Sigma", "Phi", "Psi", "Omega",
     "infty", "emptyset", "ell", "hbar"]
)  # fmt: skip
COMMANDS = FUNCTIONS | frozenset(
    ["frac", "sqrt", "binom", "pm", "mp", "le", "ge", "ne", "in", "cup", "cap", "circ",
     "lfloor", "rfloor", "lceil", "rceil", "langle", "rangle"]
)  # fmt: skip
_PLAIN_WORDS = {
    "pi": "pi", "sqrt": "sqrt", "infinity": "infty", "inf": "infty", "oo": "infty",
    **{name: name for name in FUNCTIONS}, "arcsin": "asin", "arccos": "acos", "arctan": "atan",
}  # fmt: skip
_SHORT_UNITS = frozenset(
    ["mm", "cm", "dm", "km", "mg", "kg", "ml", "dl", "mi", "ft", "yd", "oz", "lb", "lbs", "hr",
     "hrs", "sec", "min", "mph", "kph", "rad", "deg", "day", "am", "pm"]
)  # fmt: skip
_LITTLE_WORDS = frozenset(
    ["and", "or", "no", "yes", "odd", "one", "two", "six", "ten", "not", "all", "any", "nor",
     "the", "mod"]
)  # fmt: skip
_ARGUMENTS = {"frac": 2, "binom": 2, "sqrt": 1}


def clean(string: str) -> str:
    """`string` without delimiters, spacing commands, thousands separators and final dots."""
    if len(string) > MAX_LENGTH:
        raise UnreadableError(f"{len(string)} characters")
    s = "".join(_UNICODE.get(c, c) for c in string)
    s = _JOINED_THOUSANDS.sub("", s)
    s = _SPACING.sub(lambda m: m.group(1) or " ", s)
    for _ in range(8):  # wrappers in wrappers; a fixed bound, as each takes a pass
        before, s = s, _unwrapped(s.strip())
        if s == before:
            break
    s = _without_dollars(s)
    return _without_thousands(s).strip()


_WRAPPERS = (
    re.compile(r"\$\$?([^$]*[^$\\])\$\$?", re.S),
    re.compile(r"\\\((.*)\\\)", re.S),
    re.compile(r"\\\[(.*)\\\]", re.S),
    re.compile(rf"\\(?:boxed|fbox|{_TEXT})\s*\{{([^{{}}]*)\}}", re.S),
    re.compile(r"\*\*([^*]+)\*\*", re.S),
    re.compile(r"`([^`]+)`", re.S),
)
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{(.*)\}", re.S)


def _unwrapped(s: str) -> str:
    while s.endswith((".", ",", ";", "\\\\", " ")) and not s.endswith("\\,"):
        s = s[:-2] if s.endswith("\\\\") else s[:-1]
    for wrapper in _WRAPPERS:
        if found := wrapper.fullmatch(s):
            inner = found.group(1)
            if "\\(" not in inner and "\\[" not in inner:
                return inner.strip()
    found = _BOX.fullmatch(s)
    if found and _balanced(found.group(1)):
        return found.group(1).strip()
    if s.startswith("{") and s.endswith("}") and _balanced(s[1:-1]):
        return s[1:-1].strip()
    return s


def _balanced(s: str) -> bool:
    depth = 0
    for piece in re.findall(r"\\.|[{}]", s, re.S):
        depth += {"{": 1, "}": -1}.get(piece, 0)
        if depth < 0:
            return False
    return depth == 0


def _without_dollars(s: str) -> str:
    """Inner math delimiters go; a lone dollar sign is money."""
    places = [m.start() for m in re.finditer(r"(?<!\\)\$", s)]
    if len(places) % 2 == 0:
        s = re.sub(r"(?<!\\)\$", " ", s) if places else s
    else:
        s = re.sub(r"(?<!\\)\$", r"\\$", s)
    return s.replace("\\(", " ").replace("\\)", " ")


def _without_thousands(s: str) -> str:
    """Commas between digits are thousands separators outside brackets, where groups say so."""
    if _SPACED_THOUSANDS.fullmatch(s):
        return s.replace(" ", "")
    depth, last, out = 0, 0, []
    depths = []
    for c in s:
        depth += (c in "([{") - (c in ")]}")
        depths.append(depth)
    for m in _THOUSANDS.finditer(s):
        if depths[m.start()] <= 0 or _ZERO_GROUP.search(m.group()):
            out += [s[last : m.start()], m.group().replace(",", "")]
            last = m.end()
    return "".join([*out, s[last:]])


def tokens(string: str) -> list[Token]:
    """The tokens of an answer.

    Raises:
        UnreadableError: it holds a character that the notation does not know.
    """
    s = clean(string)
    found: list[Token] = []
    place = 0
    while place < len(s):
        m = _TOKEN.match(s, place)
        if m is None:
            raise UnreadableError(f"{s[place]!r} is not known here")
        place = m.end()
        kind, value = m.lastgroup, m.group()
        match kind:
            case "repeating":
                found.append(Token("number", re.sub(r"\s", "", value)))
            case "scientific":
                found.append(Token("number", _scientific(value)))
            case "number":
                found += _numbers(value, found)
            case "text":
                found += _text(m.group("text"), found)
            case "named":
                found.append(Token("symbol", re.sub(r"\s", "", value)))
            case "environment":
                found.append(Token("command", re.sub(r"\s", "", value)[1:]))
            case "command":
                found.append(_command(value))
            case "word":
                found += _word(value, s, m.start())
            case "sign":
                found.append(Token("sign", {"**": "^", "<=": "le", ">=": "ge", "!=": "ne",
                                            "==": "="}.get(value, value)))  # fmt: skip
    return [Token(t.kind, t.value) for t in _grouped(found)]


def _numbers(value: str, before: list[Token]) -> list[Token]:
    r"""`\frac14` takes single digits, as TeX does."""
    digits = _wanted(before)
    if digits and value.isdigit():
        head = [Token("number", c) for c in value[:digits]]
        return [*head, Token("number", value[digits:])] if value[digits:] else head
    return [Token("number", value)]


def _wanted(before: list[Token]) -> int:
    r"""How many unbraced arguments of a `\frac` are still missing after these tokens."""
    if before and before[-1] == Token("command", "frac"):
        return 2
    if len(before) > 1 and before[-2] == Token("command", "frac") and before[-1].value != "{":
        return 1
    depth = 0
    for i in range(len(before) - 1, -1, -1):
        depth += (before[i].value == "}") - (before[i].value == "{")
        if depth == 0:
            closed = before[-1].value == "}" and i > 0
            return int(closed and before[i - 1] == Token("command", "frac"))
    return 0


def _scientific(value: str) -> str:
    """3.5e-6 in full; 2e-5 could also be twice Euler's number less five."""
    digits, exponent = re.split("[eE]", value)
    if ("." not in digits and "e" in value) or abs(int(exponent)) > 300:
        raise UnreadableError(f"what is {value}?")
    return format(Decimal(digits).scaleb(int(exponent)), "f")


def _text(words: str, before: list[Token]) -> list[Token]:
    words = " ".join(words.split())
    choice = re.fullmatch(r"\(?([A-Za-z])\)?\.?", words)
    if choice and not (before and before[-1].kind == "number"):  # 5 m is a length
        return [Token("symbol", choice.group(1))]
    if words in FUNCTIONS:
        return [Token("command", words)]
    return [Token("text", words)] if words else []


def _command(value: str) -> Token:
    name = value[1:]
    name = _SAME_COMMAND.get(name, name)
    if name in SYMBOLS:
        return Token("symbol", f"\\{name}")
    if name in COMMANDS:
        return Token("command", name)
    if name in ("{", "}", "\\", "$", "%") or name.startswith("\\"):
        return Token("sign", {"{": r"\{", "}": r"\}", "\\": r"\\"}.get(name, name))
    if len(name) == 1 and not name.isalpha():
        if name in "<>*/[]()|:":
            return Token("sign", name)
        raise UnreadableError(f"{value} is not known here")
    raise UnreadableError(f"{value} is not known here")


def _word(word: str, s: str, place: int) -> list[Token]:
    """A run of letters: a function's name, a word, or a product of variables."""
    if word in _PLAIN_WORDS:
        return [_command(f"\\{_PLAIN_WORDS[word]}")]
    # What follows `_` or `^` is an index.
    index = s[:place].rstrip(" {").endswith(("_", "^"))
    around = s[place - 1 : place] + s[place + len(word) : place + len(word) + 1]
    alone = len(word) > 2 and not word.isupper() and not around.strip(" ,;.")
    spoken = word.lower() in _LITTLE_WORDS or (len(word) > 3 and re.search("[aeiouyAEIOUY]", word))
    if not index and (alone or spoken or (word in _SHORT_UNITS and _after_number(s, place))):
        return [Token("text", word)]
    if len(word) > 2 and word.isupper():
        return [Token("symbol", word)]
    return [Token("symbol", c) for c in word]


def _after_number(s: str, place: int) -> bool:
    return s[:place].rstrip()[-1:] in tuple("0123456789}")


def _grouped(found: list[Token]) -> list[Token]:
    r"""Arguments of `^`, `_`, `\frac` and `\sqrt` in braces, and no braces around nothing."""
    out: list[Token] = []
    _group_until(found, 0, out, None, 0)
    return out


_OPEN, _CLOSE = Token("sign", "{"), Token("sign", "}")


def _group_until(
    found: list[Token], i: int, out: list[Token], end: Token | None, depth: int
) -> int:
    if depth > 40:
        raise UnreadableError("nested too deeply")
    while i < len(found):
        token = found[i]
        if token == end:
            return i + 1
        if token == _CLOSE:
            raise UnreadableError("a brace is closed that was never opened")
        i += 1
        if token == _OPEN:
            out.append(token)
            i = _group_until(found, i, out, _CLOSE, depth + 1)
            out.append(_CLOSE)
            continue
        out.append(token)
        wanted = _ARGUMENTS.get(token.value, 0) if token.kind == "command" else 0
        if token.kind == "sign" and token.value in ("^", "_"):
            wanted = 1
        if token == Token("command", "sqrt") and i < len(found) and found[i].value == "[":
            close = next((k for k in range(i, len(found)) if found[k].value == "]"), None)
            if close is None:
                raise UnreadableError("the index of a root is not closed")
            out += [Token("sign", "["), *found[i + 1 : close], Token("sign", "]")]
            i = close + 1
        plain = token == Token("command", "sqrt") and i < len(found) and found[i].value == "("
        for _ in range(0 if plain else wanted):
            i = _argument(found, i, out, depth)
    if end is not None:
        raise UnreadableError("a brace is not closed")
    return i


def _argument(found: list[Token], i: int, out: list[Token], depth: int) -> int:
    if i >= len(found):
        raise UnreadableError("an argument is missing")
    if found[i] == _OPEN:
        out.append(_OPEN)
        i = _group_until(found, i + 1, out, _CLOSE, depth + 1)
        out.append(_CLOSE)
        return i
    out.append(_OPEN)
    signed = found[i].value in "+-" and found[i].kind == "sign" and i + 1 < len(found)
    if signed:  # 2^-3
        out.append(found[i])
        i += 1
    token = found[i]
    if token.kind == "command" and token.value in _ARGUMENTS:
        out.append(token)
        i += 1
        for _ in range(_ARGUMENTS[token.value]):
            i = _argument(found, i, out, depth + 1)
    elif token.kind in ("number", "symbol") or token == Token("command", "circ"):
        out.append(token)
        i += 1
    elif token.value == "(":  # 2^(n+1)
        close, nested = i, 0
        while close < len(found):
            nested += (found[close].value == "(") - (found[close].value == ")")
            if nested == 0:
                break
            close += 1
        else:
            raise UnreadableError("a bracket is not closed")
        _group_until([*found[i + 1 : close], _CLOSE], 0, out, _CLOSE, depth + 1)
        i = close + 1
    else:
        raise UnreadableError(f"{token.value!r} cannot be an argument")
    out.append(_CLOSE)
    return i


def spelled(found: list[Token]) -> str:
    """A string of which these are the tokens."""
    return " ".join(_spelling(t) for t in found)


def _spelling(token: Token) -> str:
    kind, value = token
    if kind == "text":
        return rf"\text{{{value}}}"
    if kind == "command":
        return f"\\{value}"
    if kind == "sign":
        return {"%": r"\%", "$": r"\$", "le": r"\le", "ge": r"\ge", "ne": r"\ne"}.get(value, value)
    return value


@lru_cache(maxsize=16384)
def normal_form(string: str) -> str:
    """One spelling for what differs in spelling only; blank if there is nothing in `string`.

    The normal form of a normal form is itself. A string that cannot be read keeps its words,
    without delimiters and with single spaces.
    """
    for _ in range(4):  # to the fixed point, which is nearly always the first
        try:
            form = spelled(tokens(string))
        except UnreadableError:
            form = " ".join((string if len(string) > MAX_LENGTH else clean(string)).split())
        if form == string:
            break
        string = form
    return string
