"""Replies with numbered items, read by their numbers and never by their order.

    A[1]: 18
    A[3]: 7          {1: "18", 3: "7"}: there is no second, and the third stays the third

A line that begins like a mark and is none (`A[two]: 9`) belongs to nobody, and neither does what
stands behind a mark within a line (`A[1]: 18, A[2]: 9`): it ends the item before it and begins
none. A number that says two different things says nothing.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from itertools import pairwise


def items(
    reply: str, letter: str, numbers: Collection[int], *, cut: bool = False
) -> dict[int, str]:
    """The items of a reply by their numbers.

    Args:
        reply: the text.
        letter: what marks begin with: `A` for `A[1]:`.
        numbers: those that are wanted; others are left out.
        cut: the reply was cut off, so that its last item may not be whole and is left out.
    """
    # What ends an item: a line that begins like a mark, or a question's; or such a mark in a line.
    begins = re.compile(
        rf"^[\s*_#>`-]*[{letter}Q][ \t]*(?:\[|\d{{1,6}}[ \t]*[\]:])"
        rf"|\b[{letter}Q]\[\d{{1,6}}\][ \t*_`]*:",
        re.MULTILINE,
    )
    mark = re.compile(
        rf"^[\s*_#>`-]*{letter}[ \t]*\[?[ \t]*(\d{{1,6}})[ \t]*\]?[ \t*_`]*:[*_]*", re.MULTILINE
    )
    starts = [match.start() for match in begins.finditer(reply)]
    found: dict[int, str] = {}
    conflicting: set[int] = set()
    for start, end in pairwise([*starts, len(reply)]):
        match = mark.match(reply, start, end)
        if match is None or (cut and end == len(reply)):
            continue
        number, said = int(match[1]), reply[match.end() : end].strip()
        if found.setdefault(number, said) != said:
            conflicting.add(number)
    return {n: said for n, said in found.items() if n in numbers and n not in conflicting}
