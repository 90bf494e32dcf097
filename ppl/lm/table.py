"""A language model given by explicit next-token probabilities, for exact tests.

Small enough that every text can be enumerated (`ppl.enumerate_program`), so evidences and
posteriors are known exactly. Use it to test programs, verifiers and searchers without weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from ppl.errors import PromptError
from ppl.language import checks
from ppl.language.arguments import checked, shown
from ppl.language.codec import Codec
from ppl.language.cost import Account
from ppl.language.text import Continuation, StopReason
from ppl.lm.base import LMDistribution, Tokens
from ppl.lm.decode import LogitsModel
from ppl.lm.sampling import warped_log_probs

Probabilities = Mapping[str, float]


class SymbolCodec(Codec):
    """One token per symbol of an alphabet; the end symbols decode to nothing.

    Attributes:
        symbols: the alphabet, each a single character.
        end: the symbol that ends a text.
    """

    def __init__(self, symbols: str, end: str, name: str = "table") -> None:
        if len(set(symbols)) != len(symbols) or len(end) != 1 or end not in symbols:
            raise ValueError(
                f"symbols {symbols!r} must be distinct characters, and one of them the end {end!r}"
            )
        self.symbols, self.end, self.size, self.name = symbols, end, len(symbols), name
        self.end_tokens = frozenset({symbols.index(end)})
        self._pieces = [b"" if symbol == end else symbol.encode() for symbol in symbols]

    def encode(self, string: str) -> Tokens:
        """A symbol, a token. Raises ValueError for what is not in the alphabet."""
        unknown = set(string) - set(self.symbols)
        if unknown:
            raise ValueError(f"symbols {sorted(unknown)} are not in the alphabet {self.symbols!r}")
        return tuple(self.symbols.index(c) for c in string)

    def piece(self, token: int) -> bytes:
        """The symbol, in UTF-8."""
        return self._pieces[token]


class TableLM(LogitsModel):
    """A language model over a few symbols with explicit next-token probabilities.

    Args:
        probabilities: maps what was written so far (prompt included) to the next symbol's
            probabilities; or one mapping that holds for every prefix.
        symbols: the alphabet, a string: one character a token. Include `^` if you want a neutral
            prompt.
        end: the symbol that ends a text.
        context_length: most symbols of a text.

    Attributes:
        calls: batches computed, for tests that count.
        tokens_computed: next-token distributions looked up, for tests that count.

    Example:
        >>> lm = TableLM({"a": 0.5, "b": 0.3, "$": 0.2}, symbols="^ab$", end="$")
        >>> round(float(lm(lm.prompt("^"), max_tokens=1).log_prob(lm.continuation("a")).exp()), 6)
        0.5
    """

    @checked
    def __init__(
        self,
        probabilities: Probabilities | Callable[[str], Probabilities],
        *,
        symbols: str,
        end: str = "$",
        context_length: int = 64,
        name: str = "table",
    ) -> None:
        checks.count(least=2, context_length=context_length)
        self.name, self.context_length = name, context_length
        self.codec: SymbolCodec = SymbolCodec(symbols, end, name)
        self._probabilities = probabilities
        self.calls = 0
        self.tokens_computed = 0

    def _logits(self, tokens: Tokens) -> Tensor:
        """`[V]` float64 logits after `tokens`."""
        self.tokens_computed += 1
        if not all(0 <= t < self.codec.size for t in tokens):
            raise PromptError(
                f"{self.name}: {list(tokens)} are not all token ids of this model, which are 0 to "
                f"{self.codec.size - 1}; make texts with lm.prompt or lm.encode"
            )
        prefix = "".join(self.codec.symbols[t] for t in tokens)
        p = self._probabilities(prefix) if callable(self._probabilities) else self._probabilities
        row = torch.tensor([p.get(s, 0.0) for s in self.codec.symbols], dtype=torch.float64)
        if not torch.isclose(row.sum(), torch.ones((), dtype=torch.float64)) or (row < 0).any():
            strange = [s for s in p if s not in set(self.codec.symbols)]
            why = (
                f"{strange[0]!r} is none of the symbols {self.codec.symbols!r}, which are single "
                "characters; a model of whole words is given letter by letter"
                if strange
                else "one of them is negative"
                if (row < 0).any()
                else f"they add up to {float(row.sum()):.6g}"
            )
            raise ValueError(
                f"probabilities after {prefix!r} do not form a distribution: {why}: {shown(p)}"
            )
        return row.log()

    def logits_along(
        self,
        prefixes: Sequence[Tokens],
        continuations: Sequence[Tokens],
        ledgers: Sequence[Account | None],
    ) -> Iterator[Tensor]:
        """Logits `[T, V]` before each token of every continuation, looked up one by one."""
        self.calls += 1
        for prefix, new, ledger in zip(prefixes, continuations, ledgers, strict=True):
            if ledger is not None:
                ledger.add(reused_tokens=len(prefix))  # a table computes nothing
            yield torch.stack([self._logits(prefix + new[:t]) for t in range(len(new))])

    def support(self, distribution: LMDistribution) -> list[tuple[Continuation, float]]:
        """Every continuation that `distribution` can draw, with its log-probability."""
        spec = distribution.spec
        ends = self.codec.end_tokens
        room = self.context_length - len(spec.tokens)
        limit = room if spec.max_tokens is None else min(room, spec.max_tokens)
        found: list[tuple[Continuation, float]] = []
        frontier: list[tuple[Tokens, float]] = [((), 0.0)]
        while frontier:
            new, log_prob = frontier.pop()
            logits = self._logits(spec.tokens + new)[None]
            allowed = [spec.allowed_after(new, "support()", logits.shape[-1], self.codec)]
            row = warped_log_probs(logits, [spec.warp], allowed)[0].tolist()
            for token, step in enumerate(row):
                if step == float("-inf"):
                    continue
                tokens, total = (*new, token), log_prob + step
                text = self.codec.decode_after(tokens, spec.tokens)
                reason: StopReason
                if token in ends:
                    reason = "end"
                elif not spec.rule.never and spec.rule(text):
                    reason = "until"
                elif len(tokens) == limit:
                    reason = "length"
                else:
                    frontier.append((tokens, total))
                    continue
                value = Continuation(tokens, text, reason, self.codec.identity)
                found.append((value, total))
        return found
