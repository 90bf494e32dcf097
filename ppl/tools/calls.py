"""Tool calls as chat models write them: read exactly, or refused with what is wrong.

    hermes   <tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>      Qwen, Hermes, SmolLM
    llama    {"name": "add", "parameters": {"a": 1}}                            Llama 3
    mistral  [TOOL_CALLS] [{"name": "add", "arguments": {"a": 1}}]              Mistral
             [TOOL_CALLS]add[ARGS]{"a": 1}                                      its later tokenizers
    granite  <|tool_call|>[{"name": "add", "arguments": {"a": 1}}]              Granite 3.0 to 3.2
    deepseek (calls begin)(call begin)add(sep){"a": 1}(call end)(calls end)     V3.1; its marks
             function(sep)add, and the JSON in a fence                          V3, R1: full width
    qwen     <tool_call><function=add><parameter=a>1</parameter></function></tool_call>
                                                                                Qwen3-Coder
    glm      <tool_call>add<arg_key>a</arg_key><arg_value>1</arg_value></tool_call>
                                                                                GLM 4.5 and later

The last two write values without types: `tools=` says which are strings, see `read_calls`.
A format's marks are control tokens of some tokenizers, which are no part of a text's string, so
calls are read off the tokens (`tool_calls`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NoReturn, get_args

from ppl.errors import ToolError
from ppl.language.arguments import checked
from ppl.language.codec import Codec
from ppl.language.json_numbers import finite, no_constant
from ppl.language.text import Continuation, Text
from ppl.lm.base import LanguageModel

Format = Literal["hermes", "llama", "mistral", "granite", "deepseek", "qwen", "glm"]
Tools = Sequence[Mapping[str, Any]]
_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_TAG = "<|python_tag|>"
_CALLS, _ARGS, _ID = "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"
_FUNCTION, _FUNCTION_END = "<function=", "</function>"
_PARAMETER, _PARAMETER_END = "<parameter=", "</parameter>"
_KEY, _KEY_END, _VALUE, _VALUE_END = "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"
_GRANITE = "<|tool_call|>"
_DEEP, _DEEP_END, _DEEP_CALL, _DEEP_CALL_END, _DEEP_SEP = (
    f"<\uff5ctool\u2581{name}\uff5c>"
    for name in ("calls\u2581begin", "calls\u2581end", "call\u2581begin", "call\u2581end", "sep")
)


@dataclass(frozen=True)
class ToolCall:
    """A call that a model asks for.

    Attributes:
        name: of the tool.
        arguments: by name; what JSON can say.
        identity: the call's own name, which some formats give it; else empty.
    """

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    identity: str = ""


@checked
def tool_calls(
    lm: LanguageModel,
    said: Text | Continuation,
    *,
    format: Format | None = None,
    tools: Tools | None = None,
) -> list[ToolCall]:
    """The tool calls in what a model wrote, in order; none if it just answers.

    Args:
        lm: the model, whose chat template tells the format.
        said: a step, or a text, of which what follows the prompt is read.
        format: the format, where it is not that of the template.
        tools: what the model was told of its tools, see `read_calls`.

    Raises:
        ToolError: a call is malformed or unfinished (the message can be shown to the model), or the
            template has no format that is known here.
        TokenizerError: another tokenizer made it.
    """
    mine = lm.codec.identity
    made_with = said.codec.identity if isinstance(said, Text) else said.made_with
    if made_with not in (None, mine):
        raise mine.refused(made_with, "said")
    tokens = said.tokens[said.prompt_length :] if isinstance(said, Text) else said.tokens
    return read_calls(_written(lm.codec, tokens), format or format_of(lm), tools)


@checked
def format_of(lm: LanguageModel) -> Format:
    """The format of tool calls that a model's chat template shows it. Raises ToolError if none."""
    template = getattr(getattr(lm.codec, "tokenizer", None), "chat_template", None)
    several = isinstance(template, dict)
    said = json.dumps(template, ensure_ascii=False) if several else str(template or "")
    if _OPEN in said and _FUNCTION in said:
        return "qwen"
    if _OPEN in said and _KEY in said:
        return "glm"
    if _OPEN in said:
        return "hermes"
    if _CALLS in said:
        return "mistral"
    if _GRANITE in said:
        return "granite"
    if _DEEP in said:
        return "deepseek"
    if _TAG in said or ("ipython" in said and "parameters" in said):
        return "llama"
    raise ToolError(
        f"the chat template of {lm.name} shows no tool calls that are known here: say which "
        f"format the model writes, format= one of {', '.join(get_args(Format))}"
    )


@checked
def read_calls(string: str, format: Format, tools: Tools | None = None) -> list[ToolCall]:
    """The tool calls in a string, in order; none if there are none.

    Args:
        string: what was written.
        format: how calls are written.
        tools: descriptions of functions, `{"name": ..., "parameters": <JSON schema>}`, bare or as
            `{"type": "function", "function": ...}`. Only `"qwen"` and `"glm"` look at them, whose
            values have no types: what the schema calls a string is one, anything else is JSON.
            Where there is no schema, a value is JSON if it can be, and else a string: "007" stays,
            and "7" becomes a number.

    Raises:
        ToolError: a call is malformed or unfinished, or a value that is to be no string is no JSON.
    """
    if format in _TAGGED:
        return list(_tagged(string, _TAGGED[format], _schemas(tools or ())))
    return list(_READERS[format](string))


def _written(codec: Codec, tokens: Sequence[int]) -> str:
    """What tokens say, with control tokens spelled out, without those that end a text."""
    special = codec.special_tokens
    parts = (
        special[t].encode() if t in special else codec.piece(t)
        for t in tokens
        if t not in codec.end_tokens
    )
    return b"".join(parts).decode(errors="replace")


def _hermes(string: str) -> Iterator[ToolCall]:
    at = 0
    while (begin := string.find(_OPEN, at)) >= 0:
        if _CLOSE in string[at:begin]:
            _refuse(f"a {_CLOSE} without its {_OPEN}", string, at)
        found, at = _object(string, begin + len(_OPEN))
        if not string.startswith(_CLOSE, at):
            _refuse(f"no {_CLOSE} after the call's JSON object", string, at)
        at += len(_CLOSE)
        yield _call(found, "arguments", string, begin)
    if _CLOSE in string[at:]:
        _refuse(f"a {_CLOSE} without its {_OPEN}", string, at)


def _llama(string: str) -> Iterator[ToolCall]:
    tagged = string.lstrip().startswith(_TAG)
    body = string.lstrip().removeprefix(_TAG).strip()
    if not tagged and not body.startswith("{"):
        return
    at = 0
    while True:
        begin = at
        found, at = _object(body, at)
        if begin == 0 and not tagged and not {"name", "parameters"} & found.keys():
            return  # an answer that happens to be JSON
        yield _call(found, "parameters", body, begin, ("type",))
        if at == len(body):
            return
        if body[at] != ";":
            _refuse(
                "something other than a call follows the call (calls are divided by ;)", body, at
            )
        at += 1


def _mistral(string: str) -> Iterator[ToolCall]:
    at = string.find(_CALLS)
    if at < 0:
        return
    at = _space(string, at + len(_CALLS))
    if string.startswith("[", at):
        yield from _listed(string, at)
        return
    while True:
        begin = at
        mark = string.find(_ARGS, at)
        if mark < 0:
            _refuse(f"neither a JSON list nor a name and {_ARGS} after {_CALLS}", string, at)
        name, _, identity = string[at:mark].partition(_ID)
        found, at = _object(string, mark + len(_ARGS))
        named = {"name": name.strip(), "arguments": found, "id": identity.strip()}
        yield _call(named, "arguments", string, begin)
        if not string.startswith(_CALLS, at):
            _ended(string, at)
            return
        at = _space(string, at + len(_CALLS))


def _listed(string: str, at: int) -> Iterator[ToolCall]:
    """A JSON list of calls, which ends what was written."""
    entries, end = _json(string, at)
    for entry in entries:
        if not isinstance(entry, dict):
            _refuse("a call is a JSON object", string, at)
        yield _call(entry, "arguments", string, at)
    _ended(string, end)


def _granite(string: str) -> Iterator[ToolCall]:
    at = string.find(_GRANITE)
    if at < 0:
        return
    at = _space(string, at + len(_GRANITE))
    if not string.startswith("[", at):
        _refuse(f"no JSON list after {_GRANITE}", string, at)
    yield from _listed(string, at)


def _deepseek(string: str) -> Iterator[ToolCall]:
    at = string.find(_DEEP)
    if at < 0:
        return
    at = _space(string, at + len(_DEEP))
    while True:
        begin, mark = at, string.find(_DEEP_SEP, at)
        if not string.startswith(_DEEP_CALL, at) or mark < 0:
            _refuse(f"no {_DEEP_CALL} with a name and {_DEEP_SEP}", string, at)
        name, at = string[at + len(_DEEP_CALL) : mark].strip(), mark + len(_DEEP_SEP)
        fenced = not string.startswith("{", _space(string, at))
        if fenced:  # what stood before was the kind of tool
            fence = string.find("```json", at)
            if name != "function" or fence < 0:
                _refuse("neither a JSON object nor a function's name and ```json", string, at)
            name, at = string[at:fence].strip(), fence + len("```json")
        found, at = _object(string, at)
        if fenced:
            at = _after("```", string, at)
        at = _after(_DEEP_CALL_END, string, at)
        yield _call({"name": name, "arguments": found}, "arguments", string, begin)
        if string.startswith(_DEEP_END, at):
            _ended(string, at + len(_DEEP_END))
            return


def _after(mark: str, string: str, at: int) -> int:
    """Behind a mark that has to stand here, and the space that follows it."""
    if not string.startswith(mark, at):
        _refuse(f"no {mark} after the call's JSON object", string, at)
    return _space(string, at + len(mark))


Body = Callable[[str, int], tuple[str, list[tuple[str, str]], int]]


def _tagged(
    string: str, body: Body, schemas: Mapping[str, Mapping[str, Any]]
) -> Iterator[ToolCall]:
    """Calls between the same tags as Hermes', whose insides are tagged strings."""
    at = 0
    while (begin := string.find(_OPEN, at)) >= 0:
        if _CLOSE in string[at:begin]:
            _refuse(f"a {_CLOSE} without its {_OPEN}", string, at)
        name, values, at = body(string, _space(string, begin + len(_OPEN)))
        if not string.startswith(_CLOSE, at):
            _refuse(f"no {_CLOSE} after the call", string, at)
        at += len(_CLOSE)
        keys = [key for key, _ in values]
        if len({*keys}) < len(keys):
            _refuse(f"the call of {name!r} says an argument twice", string, begin)
        types = schemas.get(name, {})
        found = {key: _typed(key, value, types.get(key)) for key, value in values}
        yield _call({"name": name, "arguments": found}, "arguments", string, begin)
    if _CLOSE in string[at:]:
        _refuse(f"a {_CLOSE} without its {_OPEN}", string, at)


def _function(string: str, at: int) -> tuple[str, list[tuple[str, str]], int]:
    """Qwen3-Coder's body of a call: its name, its arguments as written, where it ends."""
    name, at = _between(_FUNCTION, ">", string, at)
    values, at = [], _space(string, at)
    while not string.startswith(_FUNCTION_END, at):
        key, at = _between(_PARAMETER, ">", string, at)
        value, at = _between("", _PARAMETER_END, string, at)
        values.append((key.strip(), value.removeprefix("\n").removesuffix("\n")))
        at = _space(string, at)
    return name.strip(), values, _space(string, at + len(_FUNCTION_END))


def _keyed(string: str, at: int) -> tuple[str, list[tuple[str, str]], int]:
    """GLM's body of a call."""
    ends = [i for mark in (_KEY, _CLOSE) if (i := string.find(mark, at)) >= 0]
    name, values = string[at : min(ends, default=at)].strip(), []
    at = min(ends, default=at)
    while string.startswith(_KEY, at):
        key, at = _between(_KEY, _KEY_END, string, at)
        value, at = _between(_VALUE, _VALUE_END, string, _space(string, at))
        values.append((key.strip(), value))
        at = _space(string, at)
    return name, values, at


def _between(first: str, last: str, string: str, at: int) -> tuple[str, int]:
    """What stands between two marks, of which the first has to stand here."""
    end = string.find(last, at + len(first))
    if not string.startswith(first, at) or end < 0:
        _refuse(f"no {first or 'value'} with its {last}", string, at)
    return string[at + len(first) : end], end + len(last)


def _schemas(tools: Tools) -> dict[str, dict[str, Any]]:
    """The schema of each argument of each tool."""
    functions = [tool.get("function", tool) for tool in tools]
    try:
        return {f["name"]: dict(f.get("parameters", {}).get("properties", {})) for f in functions}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ToolError(
            'tools: descriptions such as {"name": "add", "parameters": {"properties": {"a": '
            '{"type": "number"}}}} are wanted'
        ) from error


def _typed(key: str, value: str, schema: Any) -> Any:
    """A value as its schema says, or as it looks if nothing is said."""
    said = schema.get("type") if isinstance(schema, Mapping) else None
    kinds = {said} if isinstance(said, str) else set(said or ())
    if "null" in kinds and value.strip() in ("null", "None"):
        return None
    if "string" in kinds:
        return value
    if "boolean" in kinds and value.strip() in ("True", "False"):  # as Python spells them
        return value.strip() == "True"
    try:
        return _DECODER.decode(value)
    except (ValueError, RecursionError):
        if not kinds:
            return value
    return _refuse(f"{key!r} is no {' or '.join(sorted(kinds))}", value, 0)


_TAGGED: dict[Format, Body] = {"qwen": _function, "glm": _keyed}
_READERS: dict[Format, Callable[[str], Iterator[ToolCall]]] = {
    "hermes": _hermes,
    "llama": _llama,
    "mistral": _mistral,
    "granite": _granite,
    "deepseek": _deepseek,
}


def _call(
    found: Mapping[str, Any], key: str, string: str, at: int, others: tuple[str, ...] = ()
) -> ToolCall:
    """The call that a JSON object describes."""
    name, arguments, identity = found.get("name"), found.get(key), found.get("id", "")
    if not isinstance(name, str) or not name:
        _refuse('a call needs a "name", a string', string, at)
    if not isinstance(arguments, dict):
        _refuse(f'the call of {name!r} needs "{key}", a JSON object', string, at)
    strange = [k for k in found if k not in ("name", key, "id", *others)]
    if strange:
        _refuse(f"the call of {name!r} has the unknown key {strange[0]!r}", string, at)
    if not isinstance(identity, str):
        _refuse(f'the "id" of the call of {name!r} is no string', string, at)
    return ToolCall(name, arguments, identity)


def _object(string: str, at: int) -> tuple[dict[str, Any], int]:
    """A JSON object that begins at `at`, and where what follows it begins; space is skipped."""
    at = _space(string, at)
    if not string.startswith("{", at):
        _refuse("a JSON object is missing", string, at)
    found, end = _json(string, at)
    return found, _space(string, end)


def _json(string: str, at: int) -> tuple[Any, int]:
    try:
        return _DECODER.raw_decode(string, at)
    except json.JSONDecodeError as error:
        _refuse(f"no JSON: {error.msg}", string, error.pos)
    except (ValueError, RecursionError) as error:
        _refuse(f"no JSON: {error}", string, at)


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(n for n in names if names.count(n) > 1)!r} occurs twice")
    return found


_DECODER = json.JSONDecoder(
    object_pairs_hook=_pairs, parse_constant=no_constant, parse_float=finite
)


def _space(string: str, at: int) -> int:
    while at < len(string) and string[at] in " \t\r\n":
        at += 1
    return at


def _ended(string: str, at: int) -> None:
    if _space(string, at) < len(string):
        _refuse("something follows the calls", string, at)


def _refuse(what: str, string: str, at: int) -> NoReturn:
    raise ToolError(f"the tool call is malformed: {what}, at {string[at : at + 40]!r}")
