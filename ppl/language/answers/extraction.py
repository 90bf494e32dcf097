r"""Where a text states its answer.

One pass over the text for each place that is looked at: the time is linear, whatever a model in a
loop has written.
"""

from __future__ import annotations

import re


class Answer(str):
    """The answer of a text: a string, which votes are counted by `equality` rather than by letter.

    `extract_answer` and `text.answer` return it. A program that returns any other string is voted
    on by its letters; `posterior.vote(key=ppl.Answer)` reads its results as answers.
    """

    __slots__ = ()


_PIECE = re.compile(r"\\(boxed|fbox)(?![A-Za-z])[ \t]*|\\.|[{}]", re.S)
_UNBRACED = re.compile(r"[^\s{}$][^\n$]{0,199}(?=\$)|[^\s{}$]+")
_LABEL = re.compile(
    r"#{4,}[ \t]*"
    r"|(?:final\s+answer|the\s+answer|\banswer)[*_]{0,3}"
    r"(?:\s+is[*_]{0,3}(?:\s*:)?|\s*[:=])(?:[*_]{1,3}(?=\s|$))?[ \t]*"
    r"|(?:^|\n)[#*_ \t]*final\s+answer[#*_ \t]*(?=\n)",
    re.I,
)
_MATHEMATICS = re.compile(r"\$\$([^$]+)\$\$|\$([^$]+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]")
_BOLD = re.compile(r"(\*\*|__|`)(.+?)\1")
_SENTENCE_END = re.compile(r"[.!?]\s+(?=[A-Z])")
_ABBREVIATION = re.compile(r"\b(?:Dr|Mr|Mrs|Ms|St|vs|No|Prof|[A-Z])$")
_POLITE = re.compile(r"\W*I hope (?:it|this|that) (?:is|helps|answers)\b.*", re.I)
_BLANK = re.compile(r"[\s$*_`.\[\]\\()#-]*|```\w*")
_MOST = 4000  # characters behind a label in which its answer is looked for


def extract_answer(string: str) -> Answer | None:
    r"""The final answer that `string` states.

    Looked for in this order: the content of the last `\boxed{...}` or `\fbox{...}` that has one
    (braces may nest; `\boxed 42` will do); what follows the last `####`, `Answer:`, `the answer is`
    or `final answer`, on that line or the next; the last line that says anything. Dollar signs,
    bold face, a final dot and sentences after the answer are left out. None if nothing is stated:
    an empty box is no answer.
    """
    boxed = _boxed(string)
    if boxed:
        return Answer(boxed)
    for label in reversed(list(_LABEL.finditer(string))):
        here, *below = string[label.end() : label.end() + _MOST].split("\n", 2)
        if not _BLANK.fullmatch(here):
            stated = _bare(here)
            return Answer(stated) if stated else None  # an empty box
        if below and (stated := _bare(below[0])):
            return Answer(stated)
    for line in reversed(string.splitlines()):
        if not _BLANK.fullmatch(line) and not _POLITE.fullmatch(line):
            stated = _bare(line, sentence=False)
            return Answer(stated) if stated else None
    return None


def _boxed(string: str) -> str | None:
    """What the last box holds that is closed and not empty."""
    best: tuple[int, str] | None = None
    opened: list[int | None] = []  # where the content of each open brace begins, if it is a box
    place = 0
    while (m := _PIECE.search(string, place)) is not None:
        place = m.end()
        if m.group(1):
            if string[place : place + 1] == "{":
                opened.append(place + 1)
                place += 1
            elif unbraced := _UNBRACED.match(string, place):
                content = unbraced.group().strip().rstrip(".,;")
                if content and not content.startswith("\\boxed"):
                    best = max(best or (-1, ""), (place, content))
        elif m.group() == "{":
            opened.append(None)
        elif m.group() == "}" and opened:
            start = opened.pop()
            if start is not None and (content := string[start : m.start()].strip()):
                best = max(best or (-1, ""), (start, content))
    return None if best is None else best[1]


def _bare(line: str, *, sentence: bool = True) -> str:
    """The answer in a line, without what is written around it."""
    line = re.sub(r"\\(?:boxed|fbox)\s*\{\s*\}", "", line).strip()
    if line.endswith("**") and line.count("**") % 2:
        line = line[:-2].strip()  # bold that began before the answer
    for wrapper in (_BOLD, _MATHEMATICS, _BOLD):
        m = wrapper.match(line)
        rest = line[m.end() :].strip() if m else ""
        # "$42$. I hope it is correct.", but not "$42$ apples".
        if m and (not rest or re.match(r"[.!,](?:\s|$)", rest)):
            line = next(g for g in reversed(m.groups()) if g is not None).strip()
            sentence = False
    if sentence:
        for end in _SENTENCE_END.finditer(line):
            if not _ABBREVIATION.search(line[max(0, end.start() - 6) : end.start()]):
                line = line[: end.start()]
                break
    line = line.rstrip(".").strip() or line
    return "" if _BLANK.fullmatch(line) else line
