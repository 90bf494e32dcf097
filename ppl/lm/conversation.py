"""Conversations through a chat template: what people wrote stays what people wrote.

The template's control tokens divide a conversation into turns. A question that spells one out must
not end a turn, so such words are encoded as characters. What a template refuses, drops or does not
know is an error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ppl.errors import PromptError
from ppl.language.codec import checked_string

Message = Mapping[str, Any]
_PRIVATE = range(0xE000, 0xF900)  # Unicode's characters for private use


def checked_messages(messages: object) -> list[dict[str, Any]]:
    """The messages, a bare string as the user's. Raises PromptError if there is nothing to ask."""
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    if not isinstance(messages, Sequence) or isinstance(messages, bytes):
        raise PromptError(
            "messages: lm.chat takes a question or a list of messages, got "
            f"{type(messages).__name__}; of a Text take text.text"
        )
    checked = []
    for message in messages:
        if not isinstance(message, Mapping) or not {"role", "content"} <= set(message):
            said = dict(message) if isinstance(message, Mapping) else message
            raise PromptError(
                f"messages: lm.chat: {said!r} is no message; give each a 'role' and a 'content'"
            )
        for part in ("role", "content"):
            checked_string(message[part], f"lm.chat: the {part!r} of a message")
        checked.append(dict(message))
    if not checked or not checked[-1]["content"]:
        raise PromptError("messages: the question is empty: give the model something to answer")
    return checked


def render(
    tokenizer: Any, name: str, messages: Sequence[Message], arguments: Mapping[str, Any]
) -> list[str]:
    """The conversation up to where the model goes on: behind the header of its turn, or behind the
    last message if that is the assistant's.

    Args:
        tokenizer: with a chat template.
        name: for messages.
        messages: each with a role and a content.
        arguments: for the template, such as `enable_thinking`.

    Returns:
        Parts that join to the rendered conversation, to be encoded one by one: they are divided
        within every control token that a message spells out.

    Raises:
        PromptError: the template raises, drops a system message, or knows no such argument.
    """
    template = tokenizer.get_chat_template(tools=arguments.get("tools"))
    for argument in arguments:
        if argument not in template:
            raise PromptError(
                f"lm.chat({argument}=...): the chat template of {name} knows no such argument"
            )
    special, spelled = _control_tokens(tokenizer, template)
    everything = template + "".join(message["content"] for message in messages)
    mark = next(chr(code) for code in _PRIVATE if chr(code) not in everything)
    marked: list[dict[str, Any]] = []
    for message in messages:
        # A template may look for its words in what the assistant said, as for "</think>".
        control = special if message["role"] == "assistant" else special + spelled
        marked.append({**message, "content": _divided(message["content"], control, mark)})
    rendered = _apply(tokenizer, name, marked, arguments)
    for i, message in enumerate(marked):
        if message["role"] == "system" and message["content"].strip() not in rendered:
            other = [*marked[:i], {**message, "content": mark}, *marked[i + 1 :]]
            if _apply(tokenizer, name, other, arguments) == rendered:
                raise PromptError(
                    f"the chat template of {name} drops the system message "
                    f"{messages[i]['content'][:60]!r}: say it in the user's message"
                )
    return rendered.split(mark)


def _apply(
    tokenizer: Any, name: str, messages: Sequence[Message], arguments: Mapping[str, Any]
) -> str:
    goes_on = messages[-1]["role"] == "assistant"
    try:
        rendered: str = tokenizer.apply_chat_template(
            list(messages),
            add_generation_prompt=not goes_on,
            continue_final_message=goes_on,
            tokenize=False,
            **arguments,
        )
    except Exception as error:  # whatever the template's own code raises
        roles = ", ".join(message["role"] for message in messages)
        raise PromptError(
            f"the chat template of {name} cannot render the messages ({roles}): "
            f"{type(error).__name__}: {error}"
        ) from error
    return rendered


def _control_tokens(tokenizer: Any, template: str) -> tuple[list[str], list[str]]:
    """The special tokens, and the other added tokens that the template writes itself."""
    added = list(getattr(tokenizer, "added_tokens_decoder", {}).values())
    special = [str(token) for token in added if token.special]
    spelled = [s for s in map(str, added) if s not in special and s.strip() and s in template]
    return special, spelled


def _divided(content: str, control: Sequence[str], mark: str) -> str:
    """`content` with the mark behind the first character of every control token in it."""
    for token in control:
        if len(token) == 1 and token in content:
            raise PromptError(f"lm.chat: a message contains the control character {token!r}")
        while token in content:  # again, for they may overlap
            content = content.replace(token, token[0] + mark + token[1:])
    return content
