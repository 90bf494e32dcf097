"""When two answers are equal: equal, different, or unknown.

Spelled alike is equal; otherwise both are read (see `reading`) and compared piece by piece. What
cannot be read, or can be read in two ways, is unknown, never different.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction

from ppl.language.answers import values
from ppl.language.answers.notation import UnreadableError, normal_form
from ppl.language.answers.reading import (
    Based,
    Collection,
    Expression,
    Group,
    Matrix,
    Ratio,
    Reading,
    Relation,
    Union,
    Words,
    is_number_word,
    read,
)
from ppl.language.answers.terms import Tree
from ppl.language.answers.values import Equality, same_value
from ppl.language.arguments import checked

EQUAL, DIFFERENT, UNKNOWN = Equality.EQUAL, Equality.DIFFERENT, Equality.UNKNOWN
_ROUNDED = 6  # digits after the point from which on a decimal may stand for what rounds to it


@checked
def equality(a: str, b: str) -> Equality:
    r"""Whether two answers are equal. Symmetric; every answer equals itself.

    Bare and delimited LaTeX and plain text are read alike. Equal are: other spellings, values
    (`\frac{1}{2}` and `0.5`, `10\%` and `0.1`, equal terms in the same variables), a list or set in
    any order, a number with and without its unit, `x = 5` and `5`, an inequality and its interval,
    equations with the same solutions by a constant factor, and a decimal of at least six places and
    what rounds to it. Different are two values, brackets, variables, orders of a tuple. Everything
    else is unknown: what cannot be read, units that differ, `5\%` and `5`, `40_9` and `36`.

    It costs about a millisecond for new answers, whatever they are: no power of more than 40,000
    bits is computed exactly, and no sum or product of four times as many, and nothing is ever run.
    """
    first, second = normal_form(a), normal_form(b)
    if first == second:
        return EQUAL
    try:
        return _same(read(first), read(second))
    except UnreadableError:
        return UNKNOWN


def readable(answer: str) -> bool:
    """Whether an answer is in a notation that is known here, without ambiguity."""
    try:
        read(normal_form(answer))
    except UnreadableError:
        return False
    return True


def _all(found: Sequence[Equality]) -> Equality:
    if DIFFERENT in found:
        return DIFFERENT
    return UNKNOWN if UNKNOWN in found else EQUAL


def _same(a: Reading, b: Reading) -> Equality:
    if a == b:
        return EQUAL
    if type(a) is type(b):
        return _OF_ONE_KIND[type(a)](a, b)
    for x, y in ((a, b), (b, a)):
        if isinstance(x, Relation) and not isinstance(y, Relation):
            return _relation_and(x, y)
        if isinstance(x, Collection) and len(x.items) == 1 and not isinstance(y, Collection):
            return _same(x.items[0], y)
    kinds = {type(a), type(b)}
    # Brackets around a list may have been forgotten; of a set and a tuple they say what is meant.
    if kinds == {Collection, Group}:
        braced = [c.braced for c in (a, b) if isinstance(c, Collection)]
        return DIFFERENT if braced[0] else UNKNOWN
    for x, y in ((a, b), (b, a)):
        if isinstance(x, Expression):
            return _expression_and(x, y)
    return UNKNOWN


def _expression_and(x: Expression, other: Reading) -> Equality:
    """A term and something that is none."""
    match other:
        case Collection() | Group() | Matrix() | Union():
            return DIFFERENT
        case Words():
            number = not values.free(x.tree) and not x.percent
            spoken = len(other.words) > 1 or is_number_word(other.words[0])
            return DIFFERENT if number and not spoken else UNKNOWN
        case Based():
            mean = {_in_base(other), int(other.digits) if other.digits.isdigit() else None}
            same = [same_value(x.tree, ("number", Fraction(m))) for m in mean if m is not None]
            return DIFFERENT if same and set(same) == {DIFFERENT} else UNKNOWN
    return UNKNOWN


def _expressions(a: Expression, b: Expression) -> Equality:
    value = _valued(a, b)
    if a.tree[0] == b.tree[0] == "symbol" and value is DIFFERENT:
        names = [str(e.tree[1]).lower() for e in (a, b)]
        return UNKNOWN if names[0] == names[1] else DIFFERENT  # choice a, or A?
    if a.unit and b.unit and a.unit != b.unit:
        return UNKNOWN
    if a.unit and b.unit and a.power != b.power:
        return DIFFERENT
    if "degree" in (a.unit, b.unit) and a.unit != b.unit and value is DIFFERENT:
        radians = [
            ("product", e.tree, ("degree",)) if e.unit == "degree" else e.tree for e in (a, b)
        ]
        if same_value(radians[0], radians[1]) is not DIFFERENT:
            return UNKNOWN
    return value


def _valued(a: Expression, b: Expression) -> Equality:
    x, y = _fraction(a), _fraction(b)
    found = same_value(x, y)
    if found is DIFFERENT and a.percent != b.percent:
        # 5% and 5: a slip of notation, perhaps.
        return UNKNOWN if same_value(a.tree, b.tree) is not DIFFERENT else DIFFERENT
    if found is not EQUAL and (a.places is None) != (b.places is None):
        places = a.places if b.places is None else b.places
        exact, decimal = (x, y) if a.places is None else (y, x)
        if places is not None and places >= _ROUNDED and not (a.percent or b.percent):
            return EQUAL if values.rounds_to(exact, decimal, places) else found
    return found


def _fraction(e: Expression) -> Tree:
    return ("product", e.tree, ("number", Fraction(1, 100))) if e.percent else e.tree


def _based(a: Based, b: Based) -> Equality:
    numbers = [_in_base(x) for x in (a, b)]
    return UNKNOWN if None not in numbers and numbers[0] == numbers[1] else DIFFERENT


def _in_base(x: Based) -> int | None:
    try:
        return int(x.digits, int(x.base)) if 2 <= int(x.base) <= 10 else None
    except ValueError:
        return None


def _words(a: Words, b: Words) -> Equality:
    """Single words are names, choices, yes or no; of phrases it cannot be told."""
    if len(a.words) == len(b.words) == 1:
        return DIFFERENT
    return UNKNOWN


def _groups(a: Group, b: Group) -> Equality:
    if a.brackets != b.brackets or len(a.items) != len(b.items):
        return DIFFERENT
    return _all([_same(x, y) for x, y in zip(a.items, b.items, strict=True)])


def _collections(a: Collection | Union, b: Collection | Union) -> Equality:
    table: list[list[Equality]] = []
    for x in a.items:
        table.append([_same(x, y) for y in b.items])
        if all(cell is DIFFERENT for cell in table[-1]):
            return DIFFERENT
    if any(all(row[k] is DIFFERENT for row in table) for k in range(len(b.items))):
        return DIFFERENT
    if len(a.items) != len(b.items):
        return UNKNOWN  # members said twice, or unknown ones
    if not _matched(table):
        return UNKNOWN
    # x = 1, y = 2 and 1, 2: is it in this order?
    names = [{n[0] for item in c.items if isinstance(item, Relation) and (n := _assigned(item))}
             for c in (a, b)]  # fmt: skip
    return UNKNOWN if names[0] != names[1] and max(map(len, names)) > 1 else EQUAL


def _matched(table: list[list[Equality]]) -> bool:
    """Whether all rows can be paired with a column of their own that is EQUAL (Kuhn 1955)."""
    owner: dict[int, int] = {}

    def place(row: int, tried: set[int]) -> bool:
        for column, cell in enumerate(table[row]):
            if cell is EQUAL and column not in tried:
                tried.add(column)
                if column not in owner or place(owner[column], tried):
                    owner[column] = row
                    return True
        return False

    return all(place(row, set()) for row in range(len(table)))


def _matrices(a: Matrix, b: Matrix) -> Equality:
    if len(a.rows) != len(b.rows) or len(a.rows[0]) != len(b.rows[0]) or a.bars != b.bars:
        return DIFFERENT
    cells = [
        _same(x, y)
        for row, other in zip(a.rows, b.rows, strict=True)
        for x, y in zip(row, other, strict=True)
    ]
    return _all(cells)


def _ratios(a: Ratio, b: Ratio) -> Equality:
    if len(a.items) != len(b.items):
        return DIFFERENT
    pairs = list(zip(a.items, b.items, strict=True))
    (x0, y0), *rest = pairs
    return _all([same_value(("product", x0, y), ("product", x, y0)) for x, y in rest])


# -- relations -----------------------------------------------------------------------------------

_TURNED = {"<": ">", ">": "<", "le": "ge", "ge": "le", "=": "=", "ne": "ne"}


def _relations(a: Relation, b: Relation) -> Equality:
    if "in" in a.signs or "in" in b.signs:
        return _memberships(a, b)
    a, b = _rising(a), _rising(b)
    if len(a.signs) == len(b.signs) == 1:
        return _single(a, b)
    if a.signs != b.signs:
        return DIFFERENT if "=" not in a.signs + b.signs else UNKNOWN
    found = _all([_same(x, y) for x, y in zip(a.sides, b.sides, strict=True)])
    return UNKNOWN if found is DIFFERENT and "=" in a.signs else found


def _rising(r: Relation) -> Relation:
    """The same relation without `>` and `ge`, if it has no `<` or `le`."""
    if {"<", "le"} & set(r.signs) or "in" in r.signs:
        return r
    if not {">", "ge"} & set(r.signs):
        return r
    return Relation(r.sides[::-1], tuple(_TURNED[s] for s in r.signs[::-1]))


def _memberships(a: Relation, b: Relation) -> Equality:
    sides = [(r.sides[0], r.sides[1]) if r.signs == ("in",) else None for r in (a, b)]
    if sides[0] is None or sides[1] is None:
        intervals = [_interval(r) for r in (a, b)]
        if intervals[0] is None or intervals[1] is None:
            return UNKNOWN
        return _groups(intervals[0], intervals[1])
    return _all([_same(x, y) for x, y in zip(sides[0], sides[1], strict=True)])


def _single(a: Relation, b: Relation) -> Equality:
    mine, other = _assigned(a), _assigned(b)
    if mine is not None and other is not None and mine[0] == other[0]:
        return _same(mine[1], other[1])
    trees = [_difference(r) for r in (a, b)]
    if trees[0] is None or trees[1] is None:
        return UNKNOWN
    same, sign = values.constant_ratio(trees[0], trees[1])
    if same and (a.signs == b.signs or set(a.signs + b.signs) in ({"<", ">"}, {"le", "ge"})):
        if a.signs[0] in ("=", "ne"):
            return EQUAL
        if sign == 0:
            return UNKNOWN
        return EQUAL if (sign > 0) == (a.signs == b.signs) else DIFFERENT
    if same:
        return DIFFERENT
    linear = values.affine(trees[0]) and values.affine(trees[1])
    return DIFFERENT if same is False and linear else UNKNOWN


def _difference(r: Relation) -> Tree | None:
    left, right = r.sides[0], r.sides[1]
    if not isinstance(left, Expression) or not isinstance(right, Expression):
        return None
    if left.unit or right.unit or left.percent or right.percent:
        return None
    return ("sum", left.tree, ("neg", right.tree))


def _assigned(r: Relation) -> tuple[Reading, Reading] | None:
    """The name and the value of `x = 5`; the name may be words."""
    if r.signs != ("=",):
        return None
    for name, value in ((r.sides[0], r.sides[1]), (r.sides[1], r.sides[0])):
        if isinstance(name, Words) or (isinstance(name, Group) and _point(name)):
            return name, value
        if isinstance(name, Expression) and name.tree[0] == "symbol" and not name.unit:
            return (name, value) if not _mentions(value, str(name.tree[1])) else None
    return None


def _point(group: Group) -> bool:
    """Whether it is a tuple of variables: (x, y) = (1, 2)."""
    return all(isinstance(i, Expression) and i.tree[0] == "symbol" for i in group.items)


def _mentions(reading: Reading, name: str) -> bool:
    match reading:
        case Expression():
            return name in values.free(reading.tree)
        case Group() | Collection() | Union():
            return any(_mentions(item, name) for item in reading.items)
        case Matrix():
            return any(_mentions(cell, name) for row in reading.rows for cell in row)
    return False


def _relation_and(r: Relation, other: Reading) -> Equality:
    """`x = 5` and 5; `x > 3` and an interval; `x in S` and S."""
    if r.signs == ("in",):
        return _same(r.sides[1], other)
    assigned = _assigned(r)
    if assigned is not None:
        return _same(assigned[1], other)
    interval = _interval(r)
    if interval is not None and isinstance(other, Group):
        return _groups(interval, other)
    return UNKNOWN


_INFINITY = Expression(("symbol", "\\infty"))
_MINUS_INFINITY = Expression(("neg", ("symbol", "\\infty")))


def _interval(r: Relation) -> Group | None:
    """The interval that an inequality in one variable describes."""
    if r.signs == ("in",):
        return r.sides[1] if isinstance(r.sides[1], Group) else None
    r = _rising(r)
    if not set(r.signs) <= {"<", "le"}:
        return None
    opening, closing = {"<": "(", "le": "["}, {"<": ")", "le": "]"}
    variable = [isinstance(s, Expression) and s.tree[0] == "symbol" for s in r.sides]
    if len(r.sides) == 3 and variable[1]:
        low, high = r.sides[0], r.sides[2]
        return Group(opening[r.signs[0]] + closing[r.signs[1]], (low, high))
    if len(r.sides) == 2 and variable[0] and not variable[1]:
        return Group("(" + closing[r.signs[0]], (_MINUS_INFINITY, r.sides[1]))
    if len(r.sides) == 2 and variable[1] and not variable[0]:
        return Group(opening[r.signs[0]] + ")", (r.sides[0], _INFINITY))
    return None


_OF_ONE_KIND: dict[type, Callable[..., Equality]] = {
    Expression: _expressions,
    Based: _based,
    Words: _words,
    Group: _groups,
    Collection: _collections,
    Union: _collections,
    Matrix: _matrices,
    Ratio: _ratios,
    Relation: _relations,
}
