"""What keys and values of a batch take: bytes that its steps read, and most that are kept at once.

Closed forms of how many tokens there are, which no machine and no allocator changes. What an engine
takes is more: slots of one length, rows that give up a window's or a head's tokens only now and
then, and what the prefix tree keeps of rows that are done.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ppl.lm.engine.memory import Memory
from ppl.lm.engine.runs import Match


@dataclass(frozen=True, slots=True)
class KVUse:
    """Bytes of keys and values, of rows that begin with one prompt.

    Attributes:
        read: that the tokens of all steps look at, each row for itself: of `T` new tokens after a
            prompt of `P`, `T - 1` steps look at `P + 1, ..., P + T - 1` tokens, or at what `kv=`
            leaves of them. The pass over the prompt computes rather than reads, and is not counted.
        peak: most that are kept at once, last hidden states included, if all rows run side by side
            and each goes when it is done. A prompt that rows share is one copy.
    """

    read: int
    peak: int


def use_of(memory: Memory, prompt: int, new: Sequence[int]) -> KVUse:
    """Of one row for each of `new`, which draws so many tokens, after one prompt of so many."""
    slots, keeps = memory.slots, memory.slots.keeps
    steps = range(max(new))  # before the first of them nothing is computed but the prompt
    alive = [sum(count > step for count in new) for step in steps]
    seen = sum(alive[step] * keeps.kept(prompt + step) for step in steps[1:])
    text = tuple(range(prompt))
    _, shared = memory.rest(text, Match(0, ()), {text: len(new)})

    def tail(step: int) -> int:
        if keeps.gives_up and not memory.slides:
            return prompt + step - shared
        return keeps.kept(prompt + step, shared)

    most = shared + max(alive[step] * tail(step) for step in steps)
    of_states = slots.layout.hidden * slots.dtype.itemsize
    each = memory.bytes_per_token
    return KVUse(seen * (each - of_states), most * each)
