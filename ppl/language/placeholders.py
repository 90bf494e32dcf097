"""Prompts with places to fill in."""

from __future__ import annotations

import re

_PLACE = re.compile(r"\{(\w+)\}")


def filled(template: str, /, **parts: str) -> str:
    """The template with each part in its place, `{name}`, and whatever else is in braces as it is.

    In one pass: what is filled in may contain braces itself, and the places of other parts.
    """
    return _PLACE.sub(lambda place: parts.get(place[1], place[0]), template)
