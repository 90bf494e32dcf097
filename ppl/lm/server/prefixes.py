"""Which server has seen how much of a prompt: block by block, as servers cache prefixes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence

# Blocks that are remembered, some ten megabytes; the ones not seen for longest are forgotten.
_MOST = 1 << 16


class Prefixes:
    """Remembers to which servers the leading blocks of prompts were sent.

    Args:
        block: tokens of a block. Servers cache whole blocks, vLLM those of 16.
    """

    def __init__(self, block: int) -> None:
        self._block = block
        self._seen: OrderedDict[int, set[int]] = OrderedDict()

    def remember(self, prompt: Sequence[int], server: int) -> None:
        """The server has computed this prompt, or is about to."""
        for key in self._keys(prompt):
            self._seen.setdefault(key, set()).add(server)
            self._seen.move_to_end(key)
        while len(self._seen) > _MOST:
            self._seen.popitem(last=False)

    def lengths(self, prompt: Sequence[int], servers: int) -> list[int]:
        """For each server, how many leading blocks of the prompt it has seen, `[servers]`."""
        found, still = [0] * servers, set(range(servers))
        for number, key in enumerate(self._keys(prompt), 1):
            still &= self._seen.get(key, set())
            if not still:
                break
            for server in still:
                found[server] = number
        return found

    def forget(self, server: int) -> None:
        """The server has lost its cache."""
        for seen in self._seen.values():
            seen.discard(server)

    def _keys(self, prompt: Sequence[int]) -> Iterator[int]:
        """A key for each whole block, which stands for all that comes before it, too."""
        key = 0
        for start in range(0, len(prompt) - self._block + 1, self._block):
            key = hash((key, tuple(prompt[start : start + self._block])))
            yield key
