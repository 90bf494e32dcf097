"""Conversations through a chat template: what people wrote stays what people wrote.

The template's control tokens divide a conversation into turns. A question that spells one out must
not end a turn, so such words are encoded as characters. What a template refuses, drops or does not
know is an error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ppl.errors import PromptError

Message = Mapping[str, Any]
_PRIVATE = range(0xE000, 0xF900)  # Unicode's characters for private use


def render(
    tokenizer: Any,
    name: str,
    messages: Sequence[Message],
    arguments: Mapping[str, Any],
    *,
    behind: bool = False,
) -> list[str]:
    """The conversation up to where the model goes on: behind the header of its turn, or behind the
    last message if that is the assistant's.

    Args:
        tokenizer: with a chat template.
        name: for messages.
        messages: each with a role and a content.
        arguments: for the template, such as `enable_thinking`.
        behind: they follow what the assistant said; only what comes after its words is given.

    Returns:
        Parts that join to the rendered conversation, to be encoded one by one: they are divided
        within every control token that a message spells out.

    Raises:
        PromptError: the template raises, drops a message, or knows no such argument.
    """
    template = tokenizer.get_chat_template(tools=arguments.get("tools"))
    for argument in arguments:
        if argument not in template:
            raise PromptError(
                f"lm.chat({argument}=...): the chat template of {name} knows no such argument"
            )
    special, spelled = _control_tokens(tokenizer, template)
    everything = template + "".join(message["content"] for message in messages)
    unused = (chr(code) for code in _PRIVATE if chr(code) not in everything)
    mark, words = next(unused), next(unused)
    if behind:  # a conversation in which those words of the assistant can be found again
        before = [{"role": "user", "content": "?"}, {"role": "assistant", "content": words}]
        messages = [*before, *messages]
    marked: list[dict[str, Any]] = []
    for message in messages:
        # A template may look for its words in what the assistant said, as for "</think>".
        control = special if message["role"] == "assistant" else special + spelled
        marked.append({**message, "content": _divided(message["content"], control, mark)})
    rendered = _apply(tokenizer, name, marked, arguments)
    for i, message in enumerate(marked):
        # What the assistant said may be cut: templates leave earlier thoughts out.
        if message["role"] != "assistant" and message["content"].strip() not in rendered:
            other = [*marked[:i], {**message, "content": mark}, *marked[i + 1 :]]
            if _apply(tokenizer, name, other, arguments) == rendered:
                raise PromptError(
                    f"the chat template of {name} drops the {message['role']} message "
                    f"{messages[i]['content'][:60]!r}: say it in the user's message"
                )
    if behind:
        if rendered.count(words) != 1:
            raise PromptError(
                f"the chat template of {name} does not write what the assistant said as it is, so "
                "no turn can follow it: render the whole conversation, lm.chat([...])"
            )
        rendered = rendered.partition(words)[2]
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
