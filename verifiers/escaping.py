"""Texts inside of prompts that have a structure."""

from __future__ import annotations

from typing import Any


def escaped(string: str, tokenizer: Any, tag: str) -> str:
    """`string` without the tag and the special tokens, so that a text cannot pose as structure."""
    for token in {tag.strip(), *tokenizer.all_special_tokens} - {""}:
        string = string.replace(token, f"{token[0]} {token[1:]}")
    return string
