"""Beginnings of texts: an automaton over characters that knows whether a request can still be met.

It is the potential of a prefix (alive or dead), and by running all tokens of a vocabulary through
its table at once it is also the mask of the tokens that keep a text alive.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from writing_requests import LONGEST_WORD, Request

import ppl

_UNKNOWN, _DEAD = -2, -1
_LONGEST_TOKEN = 16  # characters; longer ones are never allowed
_OTHER = "*"  # a word that is no beginning of any word that matters


class Place(NamedTuple):
    """Where a text stands.

    Attributes:
        mark: what stood last: "start", a "letter", a "joint" inside a word, a "gap" before a word,
            a "comma", a full "stop" at a line's end, or the "end" of all.
        counts: words in each line so far, the current one included.
        spelled: the current word, if it may become one that matters.
        size: letters of the current word, if sizes count.
        before: letters of the previous word, if words must grow.
        letters: letters until now, if their number counts.
        met: how many of the ordered words have occurred.
    """

    mark: str
    counts: tuple[int, ...] = (0,)
    spelled: str = ""
    size: int = 0
    before: int = 0
    letters: int = 0
    met: int = 0


class Automaton:
    """Follows a text of one request, character by character.

    Args:
        request: the request.

    Places are numbered as they are met, and their successors are kept in a table, so that a
    vocabulary can be run through it with one look-up a character.
    """

    def __init__(self, request: Request) -> None:
        self.request = request
        self._sized = request.growing or request.letters is not None
        self._words = {*request.banned_words, *request.ordered} | {request.last} - {""}
        self._places: list[Place] = []
        self._numbers: dict[Place, int] = {}
        self._table: NDArray[np.int32] = np.full((0, 128), _UNKNOWN, dtype=np.int32)
        self._masks: dict[int, Tensor] = {}
        self._start = self._number(Place("start"))

    # -- what others ask ----------------------------------------------------------------------

    def read(self, string: str) -> Place | None:
        """The place after `string`; None if the request can no longer be met."""
        number = self._read(string)
        return None if number == _DEAD else self._places[number]

    def alive(self, string: str) -> bool:
        """Whether a text that begins so can still be what was asked for."""
        return self._read(string) != _DEAD

    def complete(self, string: str) -> bool:
        """Whether the text may end here."""
        number = self._read(string)
        return number != _DEAD and self._complete(self._places[number])

    def mask(self, string: str, lm: ppl.LanguageModel) -> Tensor:
        """Boolean `[V]`: the tokens after which a text that begins with `string` is alive; the
        end-of-text token if it may end here."""
        number = self._read(string)
        if number == _DEAD:
            raise ValueError(f"{string!r} is dead: no token can follow")
        if number not in self._masks:
            self._masks[number] = self._mask(number, lm)
        return self._masks[number]

    def wanted(self, at: Place) -> tuple[str, int]:
        """A word that is still required, and about how many words may come before it."""
        request, left = self.request, self._words_left(at)[1]
        if request.last:
            return (request.last, left - 1) if left else ("", 0)
        pending = request.ordered[at.met :]
        if not pending or not left:
            return "", 0
        # The word that is being written may be the first of them, and is not among those left.
        return pending[0], max(0, left // len(pending) - 1)

    # -- the automaton ------------------------------------------------------------------------

    def _read(self, string: str) -> int:
        number = self._start
        for char in string.replace("’", "'").replace("“", '"').replace("”", '"'):
            number = self._after(number, ord(char)) if ord(char) < 128 else _DEAD
            if number == _DEAD:
                break
        return number

    def _number(self, place: Place | None) -> int:
        if place is None:
            return _DEAD
        if place not in self._numbers:
            self._numbers[place] = len(self._places)
            self._places.append(place)
            if len(self._places) > len(self._table):
                more = np.full((len(self._table) + 64, 128), _UNKNOWN, dtype=np.int32)
                self._table = np.concatenate([self._table, more])
        return self._numbers[place]

    def _after(self, number: int, char: int) -> int:
        found = int(self._table[number, char])
        if found == _UNKNOWN:
            found = self._number(self._next(self._places[number], chr(char)))
            self._table[number, char] = found
        return found

    def _mask(self, number: int, lm: ppl.LanguageModel) -> Tensor:
        tokens, chars = vocabulary(lm)
        going = np.arange(len(tokens))  # tokens that are alive so far, and have characters left
        numbers = np.full(len(tokens), number, dtype=np.int32)
        alive = []
        for column in chars:
            column = column[going]
            over = column == 0
            alive.append(going[over])
            going, numbers, column = going[~over], numbers[~over], column[~over]
            following = self._table[numbers, column]
            while len(unknown := np.flatnonzero(following == _UNKNOWN)):
                for pair in np.unique(numbers[unknown].astype(np.int64) * 128 + column[unknown]):
                    self._after(*map(int, divmod(pair, 128)))
                following[unknown] = self._table[numbers[unknown], column[unknown]]
            kept = following != _DEAD
            going, numbers = going[kept], following[kept]
        mask = torch.zeros(lm.codec.size, dtype=torch.bool)
        mask[torch.from_numpy(tokens[np.concatenate(alive)])] = True
        mask[list(lm.codec.end_tokens)] = self._complete(self._places[number])
        return mask

    def _next(self, at: Place, char: str) -> Place | None:
        """The place after one more character; None if that is the end of all hope."""
        inside = at.mark == "letter"
        if at.mark == "end":
            return at if char in ' "\n' else None
        if char.isalpha():
            return self._letter(at, char)
        if at.mark == "start":
            return at if char == '"' else None
        if char in "'-":
            return self._spelled(at, char) if inside else None
        ended = self._ended(at) if inside else at
        if ended is None:
            return None
        if char in ",;:" and inside:
            return self._hopeful(ended._replace(mark="comma"))
        if char == " " and (inside or at.mark == "comma"):
            return self._hopeful(ended._replace(mark="gap"), more=True)
        if char in ".!?" and inside and self._line_may_end(ended):
            if len(at.counts) < len(self.request.lines):
                return ended._replace(mark="stop")
            return ended._replace(mark="end") if self._all_met(ended) else None
        if char == "\n" and (inside or at.mark in ("comma", "stop")) and self._line_may_end(ended):
            if len(at.counts) < len(self.request.lines):
                return ended._replace(mark="gap", counts=(*ended.counts, 0))
            poem = len(self.request.lines) > 1
            return ended._replace(mark="end") if poem and self._all_met(ended) else None
        return None

    def _letter(self, at: Place, char: str) -> Place | None:
        if at.mark in ("comma", "stop") or (at.mark == "start" and not char.isupper()):
            return None
        if at.mark in ("start", "gap"):  # a word begins
            most = self._bounds(at)[1]
            if at.counts[-1] == most:
                return None
            at = at._replace(counts=(*at.counts[:-1], at.counts[-1] + 1), spelled="", size=0)
            if self.request.initials:
                wanted = self.request.initials[sum(at.counts) - 1]
                if char.lower() != wanted:
                    return None
        if char.lower() in self.request.banned_letters:
            return None
        size = at.size + 1 if self._sized else 0
        letters = at.letters + 1 if self.request.letters is not None else 0
        return self._spelled(at._replace(size=size, letters=letters), char.lower())

    def _spelled(self, at: Place, char: str) -> Place | None:
        """With one more character of a word, which is a letter or a joint."""
        spelled = at.spelled + char
        if at.spelled == _OTHER or not any(word.startswith(spelled) for word in self._words):
            spelled = _OTHER
        if not self._forced(at).startswith(spelled) and self._forced(at):
            return None
        if at.size > self._longest(at):
            return None
        mark = "letter" if char.isalpha() else "joint"
        return self._hopeful(at._replace(mark=mark, spelled=spelled))

    def _ended(self, at: Place) -> Place | None:
        """After the end of the current word."""
        request, met, before = self.request, at.met, 0
        if at.spelled in request.banned_words:
            return None
        forced = self._forced(at)
        if forced and at.spelled != forced:
            return None
        if met < len(request.ordered) and at.spelled == request.ordered[met]:
            met += 1
        if request.growing:
            if at.size <= at.before:
                return None
            before = at.size
        return at._replace(spelled="", size=0, before=before, met=met)

    # -- what is still possible ---------------------------------------------------------------

    def _bounds(self, at: Place) -> tuple[int, int]:
        """Least and most words of the current line."""
        line, lines = len(at.counts) - 1, self.request.lines
        twin = len(lines) - 1 - line
        if self.request.mirrored and twin < line:
            return at.counts[twin], at.counts[twin]
        return lines[line]

    def _words_left(self, at: Place) -> tuple[int, int]:
        """Least and most words after the current one, in a request of one line."""
        least, most = self._bounds(at)
        return max(0, least - at.counts[-1]), most - at.counts[-1]

    def _forced(self, at: Place) -> str:
        """What the current word must be; empty for anything."""
        request = self.request
        if request.last and at.counts[-1] == request.lines[0][1]:
            return request.last
        if request.ordered and self._words_left(at)[1] + 1 == len(request.ordered) - at.met:
            return request.ordered[at.met]
        return ""

    def _longest(self, at: Place) -> int:
        """Most letters of the current word."""
        if not self.request.growing:
            return LONGEST_WORD
        return LONGEST_WORD - self._words_left(at)[0]

    def _hopeful(self, at: Place, more: bool = False) -> Place | None:
        """The place itself, unless counts rule it out; `more` if another word must follow."""
        request = self.request
        if more and at.counts[-1] == self._bounds(at)[1]:
            return None
        inside = at.mark in ("letter", "joint")
        if request.letters is not None:
            least, most = self._words_left(at)
            least = max(least, int(more))
            left = request.letters - at.letters - (at.mark == "joint")
            room = LONGEST_WORD - at.size if inside else 0
            if not least <= left <= most * LONGEST_WORD + room:
                return None
        if at.mark == "joint" and at.size >= self._longest(at):
            return None
        if at.mark == "comma" and not self._may_follow_comma(at):
            return None
        return at

    def _may_follow_comma(self, at: Place) -> bool:
        """A comma is followed by a word, or by a line's end where there are several lines."""
        if at.counts[-1] < self._bounds(at)[1]:
            return self.request.letters is None or at.letters < self.request.letters
        return len(self.request.lines) > 1

    def _line_may_end(self, at: Place) -> bool:
        least, most = self._bounds(at)
        return least <= at.counts[-1] <= most

    def _all_met(self, at: Place) -> bool:
        request = self.request
        return at.met == len(request.ordered) and request.letters in (None, at.letters)

    def _complete(self, at: Place) -> bool:
        if at.mark == "end":
            return True
        if len(at.counts) < len(self.request.lines) or at.mark not in ("letter", "stop", "comma"):
            return False
        if len(self.request.lines) == 1:
            return False
        ended = self._ended(at) if at.mark == "letter" else at
        return ended is not None and self._line_may_end(ended) and self._all_met(ended)


@lru_cache(maxsize=4)
def vocabulary(lm: ppl.LanguageModel) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Tokens `[n]` of plain characters, and their characters `[17, n]`, padded with zeros."""
    tokens, rows = [], []
    special = set(lm.codec.special_tokens) | set(lm.codec.end_tokens)
    for token in range(lm.codec.size):
        piece = lm.codec.piece(token)
        if token not in special and 0 < len(piece) <= _LONGEST_TOKEN and max(piece) < 128:
            tokens.append(token)
            rows.append(np.frombuffer(piece.ljust(_LONGEST_TOKEN + 1, b"\0"), dtype=np.uint8))
    return np.array(tokens), np.stack(rows, axis=1)
