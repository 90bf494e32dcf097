"""Ready-made tools, and tool calls as chat models write them."""

from __future__ import annotations

import json

import pytest
from bubblewrap import needs_bubblewrap
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import TOY

import ppl
from ppl import errors
from ppl.searchers import BestOfN
from ppl.tools import Python, ToolCall, format_of, read_calls, tool_calls
from ppl.verifiers import Sandbox

ADD = ToolCall("add", {"a": 1, "b": [2.5, None, "é</tool_call>"]})
NOW = ToolCall("now", {})


def as_json(call: ToolCall, key: str) -> str:
    return json.dumps({"name": call.name, key: call.arguments}, ensure_ascii=False)


# As DeepSeek's vocabulary spells them: a wide bar, and a low line that is a block.
DEEP_SEP = "<｜tool▁sep｜>"


def arguments(call: ToolCall) -> str:
    return json.dumps(call.arguments, ensure_ascii=False)


def deepseek(bodies: list[str]) -> str:
    each = (f"<｜tool▁call▁begin｜>{body}<｜tool▁call▁end｜>" for body in bodies)
    return "I look.<｜tool▁calls▁begin｜>" + "\n".join(each) + "<｜tool▁calls▁end｜>"


def written(format: str, calls: list[ToolCall]) -> str:
    match format:
        case "hermes":
            each = (f"<tool_call>\n{as_json(c, 'arguments')}\n</tool_call>" for c in calls)
            return "Let me see.\n" + "\n".join(each)
        case "llama":
            return "<|python_tag|>" + "; ".join(as_json(c, "parameters") for c in calls)
        case "granite":
            return "<|tool_call|>[" + ", ".join(as_json(c, "arguments") for c in calls) + "]"
        case "deepseek":
            return deepseek([f"{c.name}{DEEP_SEP}{arguments(c)}" for c in calls])
        case "deepseek, fenced":
            each = (f"{c.name}\n```json\n{arguments(c)}\n```" for c in calls)
            return deepseek([f"function{DEEP_SEP}{one}" for one in each])
        case "qwen":
            parameters = (
                "".join(
                    f"<parameter={key}>\n{shown(value)}\n</parameter>\n"
                    for key, value in call.arguments.items()
                )
                for call in calls
            )
            each = (
                f"<tool_call>\n<function={c.name}>\n{p}</function>\n</tool_call>"
                for c, p in zip(calls, parameters, strict=True)
            )
            return "Let me see.\n" + "\n".join(each)
        case "glm":
            parameters = (
                "".join(
                    f"<arg_key>{key}</arg_key>\n<arg_value>{shown(value)}</arg_value>\n"
                    for key, value in call.arguments.items()
                )
                for call in calls
            )
            each = (
                f"<tool_call>{c.name}\n{p}</tool_call>"
                for c, p in zip(calls, parameters, strict=True)
            )
            return "Let me see.\n" + "\n".join(each)
        case _:
            return "[TOOL_CALLS] [" + ", ".join(as_json(c, "arguments") for c in calls) + "]"


def shown(value) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


FORMATS = ["hermes", "llama", "mistral", "granite", "deepseek", "deepseek, fenced"]


def read(string: str, format: str) -> list[ToolCall]:
    return read_calls(string, format.partition(",")[0])  # type: ignore[arg-type]


@pytest.mark.parametrize("format", FORMATS)
def test_calls_are_read_as_they_were_written(format):
    for calls in ([ADD], [ADD, NOW], [NOW, NOW]):
        assert read(written(format, calls), format) == calls
    for answer in ("", "The sum is 3.", "name: add", "[1, 2]", "a < b"):
        assert read(answer, format) == []


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
CALLS = st.lists(
    st.builds(ToolCall, st.text("abc_", min_size=1, max_size=5), st.dictionaries(st.text(), JSON)),
    min_size=1,
    max_size=3,
)


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(CALLS, st.sampled_from(FORMATS), st.data())
def test_any_call_comes_back_and_a_part_of_it_never_does(calls, format, data):
    whole = written(format, calls)
    assert read(whole, format) == calls
    begins = {"hermes": 24, "llama": 14, "mistral": 12, "granite": 13}
    begin = begins.get(format, len(deepseek([])) - 18)
    whole = written(format, calls[:1])
    cut = data.draw(st.integers(begin, len(whole) - 1))
    if whole[:cut].strip() != whole.strip():
        with pytest.raises(errors.ToolError, match="malformed"):
            read(whole[:cut], format)


@pytest.mark.parametrize(
    ("format", "string", "message"),
    [
        ("hermes", "<tool_call>", "object is missing"),
        ("hermes", '<tool_call>{"name": "add"}</tool_call>', '"arguments", a JSON object'),
        ("hermes", '<tool_call>{"arguments": {}}</tool_call>', 'needs a "name"'),
        ("hermes", '<tool_call>{"name": "", "arguments": {}}</tool_call>', 'needs a "name"'),
        ("hermes", '<tool_call>{"name": 3, "arguments": {}}</tool_call>', 'needs a "name"'),
        ("hermes", '<tool_call>{"name": "a", "arguments": "{}"}</tool_call>', "a JSON object"),
        ("hermes", '<tool_call>{"name": "a", "arguments": {}, "x": 1}</tool_call>', "key 'x'"),
        ("hermes", '<tool_call>{"name": "a", "name": "b", "arguments": {}}</tool_call>', "twice"),
        ("hermes", '<tool_call>{"name": "a", "arguments": {"x": NaN}}</tool_call>', "NaN"),
        ("hermes", '<tool_call>{"name": "a", "arguments": {"x": -1e999}}</tool_call>', "too large"),
        ("hermes", "<tool_call>{'name': 'a'}</tool_call>", "double quotes"),
        ("hermes", '<tool_call>{"name": "a", "arguments": {}}', "no </tool_call>"),
        ("hermes", '<tool_call>{"name": "a", "arguments": {}} x</tool_call>', "no </tool_call>"),
        ("hermes", '{"name": "a", "arguments": {}}</tool_call>', "without its <tool_call>"),
        ("hermes", "<tool_call>[]</tool_call>", "object is missing"),
        ("hermes", "<tool_call>" + '{"a":' * 100_000, "no JSON"),
        ("llama", "<|python_tag|>print(3)", "object is missing"),
        ("llama", '{"name": "a"}', '"parameters", a JSON object'),
        ("llama", '{"name": "a", "parameters": {}} and more', "divided by ;"),
        ("llama", '{"name": "a", "parameters": {}};', "object is missing"),
        ("llama", '{"name": "a", "parameters": {', "no JSON"),
        ("mistral", "[TOOL_CALLS] add(1)", "neither a JSON list nor"),
        ("mistral", "[TOOL_CALLS] [3]", "a call is a JSON object"),
        ("mistral", '[TOOL_CALLS] [{"name": "a", "arguments": {}}] x', "something follows"),
        ("mistral", '[TOOL_CALLS]a[ARGS]{"x": 1} y', "something follows"),
        ("mistral", "[TOOL_CALLS]a[ARGS]", "object is missing"),
        ("mistral", '[TOOL_CALLS] [{"name": "a", "arguments": {}, "id": 3}]', '"id"'),
        ("granite", '<|tool_call|>{"name": "a", "arguments": {}}', "no JSON list"),
        ("granite", '<|tool_call|>[{"name": "a"}]', '"arguments", a JSON object'),
        ("granite", '<|tool_call|>[{"name": "a", "arguments": {}}] x', "something follows"),
        ("deepseek", deepseek([]), "no <｜tool▁call▁begin｜>"),
        ("deepseek", deepseek([f"a{DEEP_SEP}3"]), "neither a JSON object nor"),
        ("deepseek", deepseek([f'b{DEEP_SEP}a\n```json\n{{"x": 1}}\n```']), "neither a JSON"),
        ("deepseek", deepseek([f'function{DEEP_SEP}a\n```json\n{{"x": 1}}']), "no ``` after"),
        ("deepseek", deepseek([f"a{DEEP_SEP}{{}} x"]), "no <｜tool▁call▁end｜>"),
        ("deepseek", deepseek([f"{DEEP_SEP}{{}}"]), 'needs a "name"'),
        ("deepseek", deepseek([f"a{DEEP_SEP}{{}}"]) + "x", "something follows"),
    ],
)
def test_what_is_malformed_is_refused(format, string, message):
    with pytest.raises(errors.ToolError, match=message):
        read_calls(string, format)


def test_other_shapes_of_the_families():
    assert read_calls('{"type": "function", "name": "a", "parameters": {"x": 1}}', "llama") == [
        ToolCall("a", {"x": 1})
    ]
    assert read_calls('{"answer": 3}', "llama") == []  # an answer that happens to be JSON
    ids = '[TOOL_CALLS] [{"name": "a", "arguments": {}, "id": "abc123def"}]'
    assert read_calls(ids, "mistral") == [ToolCall("a", {}, "abc123def")]
    later = '[TOOL_CALLS]a[CALL_ID]abc[ARGS]{"x": 1}[TOOL_CALLS]b[ARGS]{}'
    assert read_calls(later, "mistral") == [ToolCall("a", {"x": 1}, "abc"), ToolCall("b", {})]


def test_control_tokens_are_read_and_the_end_is_not():
    lm = ppl.load("tiny")
    special = {i: s for i, s in lm.codec.special_tokens.items() if i not in lm.codec.end_tokens}
    token, mark = next(iter(special.items()))
    said = lm.continuation((token, *lm.encode("3"), min(lm.codec.end_tokens)))
    from ppl.tools.calls import _written

    assert said.text == "3"
    assert _written(lm.codec, said.tokens) == f"{mark}3"


class Templated:
    """A codec's tokenizer with a chat template."""

    def __init__(self, template) -> None:
        self.chat_template = template


@pytest.mark.parametrize(
    ("template", "format"),
    [
        ("{{ '<tool_call>' }}", "hermes"),
        ("{{ '[TOOL_CALLS] ' }}", "mistral"),
        ("{{ '<|python_tag|>' }}", "llama"),
        ("role == 'ipython' parameters", "llama"),
        ({"default": "", "tool_use": "<tool_call>"}, "hermes"),
        ("respond with <|tool_call|> followed by a JSON list", "granite"),
        ("{{ '<｜tool▁calls▁begin｜>' }}", "deepseek"),
        ({"default": "", "tool_use": "<｜tool▁calls▁begin｜>"}, "deepseek"),
        ("<tool_call> <function=name>", "qwen"),
        ("<tool_call>name <arg_key>k</arg_key>", "glm"),
    ],
)
def test_the_template_tells_the_format(template, format, monkeypatch):
    lm = ppl.TableLM({"a": 1.0}, symbols="a$")
    monkeypatch.setattr(lm.codec, "tokenizer", Templated(template), raising=False)
    assert format_of(lm) == format


# What can stand between tags: names without marks, strings without "<" and breaks at their ends.
PLAIN = st.text('ab 7é\n"{', max_size=6).map(str.strip)
TYPED = st.dictionaries(
    st.text("abc_", min_size=1, max_size=4),
    st.one_of(PLAIN, st.integers(), st.booleans(), st.none(), st.lists(st.integers(), max_size=2)),
    max_size=3,
)


def schema(call: ToolCall) -> dict:
    kinds = {str: "string", int: "integer", bool: "boolean", type(None): "null", list: "array"}
    properties = {key: {"type": kinds[type(value)]} for key, value in call.arguments.items()}
    return {"name": call.name, "parameters": {"type": "object", "properties": properties}}


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    st.lists(
        st.builds(ToolCall, st.text("xyz", min_size=1, max_size=3), TYPED),
        min_size=1,
        max_size=3,
        unique_by=lambda call: call.name,
    ),
    st.sampled_from(["qwen", "glm"]),
    st.data(),
)
def test_tagged_calls_come_back_with_their_types(calls, format, data):
    """A string that looks like a number is told from a number by the schema."""
    whole = written(format, calls)
    tools = [data.draw(st.sampled_from([schema(c), {"type": "function", "function": schema(c)}]))
             for c in calls]  # fmt: skip
    assert read_calls(whole, format, tools) == calls
    cut = data.draw(
        st.integers(whole.index("<tool_call>") + 11, len(written(format, calls[:1])) - 1)
    )
    with pytest.raises(errors.ToolError, match="malformed"):
        read_calls(whole[:cut], format, tools)


@pytest.mark.parametrize(
    ("format", "inside", "message"),
    [
        ("qwen", "", "no <function="),
        ("qwen", "<function=a>", "no <parameter="),
        ("qwen", "<function=a><parameter=x>1</function>", "no value with its </parameter>"),
        ("qwen", "<function=></function>", 'needs a "name"'),
        ("qwen", "<function=a></function> x", "no </tool_call>"),
        ("qwen", "<function=a><parameter=n>two</parameter></function>", "'n' is no integer"),
        ("glm", "", 'needs a "name"'),
        ("glm", "a<arg_key>x</arg_key>", "no <arg_value>"),
        ("glm", "a<arg_key>n</arg_key><arg_value>two</arg_value>", "'n' is no integer"),
        ("glm", "a" + 2 * "<arg_key>x</arg_key><arg_value>1</arg_value>", "argument twice"),
    ],
)
def test_malformed_tagged_calls_are_refused(format, inside, message):
    tools = [{"name": "a", "parameters": {"properties": {"n": {"type": "integer"}}}}]
    with pytest.raises(errors.ToolError, match=message):
        read_calls(f"<tool_call>{inside}</tool_call>", format, tools)


def test_without_a_schema_a_value_is_json_if_it_can_be():
    said = written("glm", [ToolCall("a", {"x": "007", "y": 7, "z": [1], "w": "True"})])
    assert read_calls(said, "glm") == [ToolCall("a", {"x": "007", "y": 7, "z": [1], "w": "True"})]
    assert read_calls(said.replace("007", "8"), "glm")[0].arguments["x"] == 8
    optional = [{"name": "a", "parameters": {"properties": {"w": {"type": ["string", "null"]}}}}]
    assert read_calls(said.replace("True", "None"), "glm", optional)[0].arguments["w"] is None
    logical = [{"name": "a", "parameters": {"properties": {"w": {"type": "boolean"}}}}]
    assert read_calls(said, "glm", logical)[0].arguments["w"] is True
    for tools in ([{}], [{"function": 3}], [{"name": "a", "parameters": 3}]):
        with pytest.raises(errors.ToolError, match="tools: descriptions"):
            read_calls(said, "glm", tools)


def test_a_template_without_tools_is_named_and_a_format_may_be_said():
    with pytest.raises(errors.ToolError, match=r"template of toy.*format="):
        tool_calls(TOY, TOY.continuation("ab"))
    assert tool_calls(TOY, TOY.continuation("ab"), format="llama") == []
    assert tool_calls(TOY, TOY.prompt("^") + "ab", format="hermes") == []
    with pytest.raises(errors.TokenizerError):
        tool_calls(TOY, ppl.load("tiny").continuation("3"), format="llama")


@needs_bubblewrap
def test_python_as_a_tool():
    python = Python()
    assert python("print('a')\n1 + 2") == "a\n3\n"
    assert python("x = 3") == ""
    assert python("1 / 0") == "ZeroDivisionError: division by zero\n"
    assert python("def f(:").startswith("SyntaxError")
    assert python("import sys; sys.exit(3)") == "SystemExit: 3\n"
    assert python("'''\"' + chr(10)").startswith("SyntaxError")
    assert Python(most=3)("print('abcdef')") == "abc"
    assert "stopped" in Python(Sandbox(seconds=0.5))("while True: pass")
    with pytest.raises(errors.ArgumentError, match="code"):
        python(3)
    for most in (0, 16_001, 2.5):
        with pytest.raises((ValueError, TypeError), match="most"):
            Python(most=most)


@needs_bubblewrap
def test_python_in_a_program():
    def program():
        return ppl.call("run", Python(), "print(6 * 7)", seconds=600)

    assert BestOfN(3).run(program).best == "42\n"
