"""Messages of a conversation, checked where they enter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ppl.errors import PromptError
from ppl.language.codec import checked_string


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


def question_of(messages: Sequence[Mapping[str, str]]) -> str:
    """What is asked last; the assistant's own words if nothing is."""
    asked = [m["content"] for m in messages if m["role"] != "assistant"]
    return asked[-1] if asked else messages[-1]["content"]
