"""The program in an answer: fences as CommonMark has them, and which block is the program."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from work import LINEAR, growth

import ppl
from ppl.verifiers.exact.code import blocks, code_of

BODY = "def f(x):\n    return x + 1\n"
USE = "print(f(1))\n"


def fenced(content: str, info: str = "python", fence: str = "```") -> str:
    return f"{fence}{info}\n{content}{fence}\n"


def indented(text: str, by: str) -> str:
    return "".join(by + line for line in text.splitlines(keepends=True))


ANSWERS = {
    "python": fenced(BODY),
    "Python": fenced(BODY, "Python") + "It adds one.\n",
    "PYTHON": fenced(BODY, "PYTHON"),
    "python3": fenced(BODY, "python3") + "It adds one.\n",
    "python3.11": fenced(BODY, "python3.11"),
    "py": fenced(BODY, "py"),
    "in braces": fenced(BODY, "{.python}"),
    "with attributes": fenced(BODY, 'python title="a.py" linenums="1"'),
    "after a space": fenced(BODY, " python") + "ok\n",
    "no info": fenced(BODY, ""),
    "another language by mistake": fenced(BODY, "text"),
    "carriage returns": fenced(BODY).replace("\n", "\r\n"),
    "tildes": fenced(BODY, fence="~~~"),
    "tildes around backticks": fenced(f'{BODY}"""\n```\nshown\n```\n"""\n', fence="~~~"),
    "a longer fence": fenced(BODY, fence="`````"),
    "a longer fence around a shorter": fenced(f'{BODY}"""\n```\n"""\n', fence="````"),
    "a longer end": f"```python\n{BODY}`````\nThanks.\n",
    "no end": f"Here:\n\n```python\n{BODY}",
    "indented by three": indented(fenced(BODY), "   "),
    "all indented": indented(f"Here:\n\n{fenced(BODY)}", "        "),
    "in a list": "1. Code:\n" + indented(fenced(BODY), "   "),
    "in a list, deeper": "- First\n  - Code:\n\n" + indented(fenced(BODY), "    "),
    "in a quotation": indented(fenced(BODY), "> "),
    "a shell block after it": fenced(BODY) + "Run it:\n" + fenced("python a.py\n", "bash"),
    "a usage block after it": fenced(BODY) + "Usage:\n" + fenced(USE, ""),
    "a usage block in Python": fenced(BODY) + "Usage:\n" + fenced(USE),
    "output after it": fenced(BODY) + "Output:\n" + fenced("2\n", "text"),
    "a session after it": fenced(BODY) + fenced(">>> f(1)\n2\n", "pycon"),
    "a shell block before it": fenced("pip install x\n", "sh") + fenced(BODY),
    "an attempt before it": fenced("def f(x):\n    return x + 2\nf(0)\n") + fenced(BODY),
    "pseudocode before it": fenced("f(x) := x plus 1\n") + fenced(BODY),
    "JSON after it": fenced(BODY, "") + fenced('{"a": 1}\n', "json"),
    "without a fence": BODY,
    "after a fence in the prompt": BODY + "```\nIt adds one.\n",
    "and more, after a fence in the prompt": f"{BODY}```\nUse it:\n{fenced(USE)}",
}


@pytest.mark.parametrize("shape", ANSWERS)
def test_the_program_is_found(shape):
    code = code_of(ANSWERS[shape]).replace("\r\n", "\n")
    names: dict[str, object] = {}
    exec(code, names)  # ours, and harmless
    assert names["f"](1) == 2  # type: ignore[operator]
    assert "print" not in code
    if "around" not in shape:
        assert code == BODY


def test_helpers_come_with_it():
    answer = "First:\n" + fenced("import math\n") + "Then:\n" + fenced("LIMIT = 3\n") + "And:\n"
    assert code_of(answer + fenced(BODY) + fenced(USE)).split("\n\n")[-1].endswith(BODY)
    names: dict[str, object] = {}
    exec(code_of(answer + fenced(BODY)), names)
    assert names["LIMIT"] == 3
    assert "math" in names
    assert "input" not in code_of(fenced("n = input()\n") + fenced(BODY))


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ("No code at all.", "No code at all."),
        ("", ""),
        ("a `f(1)` b", "a `f(1)` b"),
        (fenced("x = 1\n") + fenced("x = 2\n"), "x = 2\n"),
        (fenced("    return 1\n") + fenced(USE), "    return 1\n"),  # the body of a given signature
        (fenced("def f(x:\n"), "def f(x:\n"),  # wrong, and the program all the same
        ("```x``` inline\n", "```x``` inline\n"),
        ('def f():\n    """\n    ```\n    shown\n    ```\n    """\n', None),  # code, no fence
    ],
)
def test_other_answers(answer, code):
    assert code_of(answer) == (answer if code is None else code)


@settings(max_examples=60, deadline=None)
@given(
    content=st.lists(st.text(st.characters(codec="ascii", exclude_categories=["Cc"])), max_size=5),
    mark=st.sampled_from("`~"),
    length=st.integers(3, 7),
    indent=st.integers(0, 3),
    info=st.sampled_from(["", "python", "Python3", " py "]),
)
def test_a_fence_holds_exactly_its_lines(content, mark, length, indent, info):
    """Section 4.5: any lines, if the fence is longer than all runs of its mark in them."""
    run = max([length, *(line.count(mark) + 1 for line in content)])
    lines = "".join(line + "\n" for line in content)
    fence = mark * run
    text = "Text.\n\n" + indented(f"{fence}{info}\n{lines}{fence}\n", " " * indent)
    (block,) = blocks(text)
    assert block.content == lines
    assert block.info == info.strip()
    assert block.line == 2


@pytest.mark.parametrize("piece", ["```\n", "`", "~~~\n`", "- ", "> "])
def test_long_answers_take_no_longer_than_their_length(piece):
    assert growth(lambda size: code_of(piece * size), 1000) < LINEAR


def test_of_a_text():
    lm = ppl.TableLM({"$": 1.0}, symbols="^$`python\nx=1 ab", end="$")
    assert code_of(lm.prompt("^") + "a\n```python\nx=1\n```\nb\n") == "x=1\n"
    assert code_of(lm.prompt("^") + "x=1") == "x=1"
