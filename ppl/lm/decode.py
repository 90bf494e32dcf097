"""Models whose logits are at hand, and the loop that they share: draw, stop, account; and scoring
by teacher forcing."""

from __future__ import annotations

import contextlib
import math
from abc import abstractmethod
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ppl.errors import PPLError, WeightError
from ppl.language.cost import Account, named
from ppl.language.foreign import OF_NEXT, refuse_unknown
from ppl.language.randomness import Uniforms
from ppl.language.text import Text
from ppl.lm import sampling
from ppl.lm.base import ContinueRequest, Drawn, LanguageModel, ScoreRequest, Spec, Tokens
from ppl.lm.company import Company, Member, gives_back
from ppl.lm.masks import Allowed
from ppl.lm.next import NextToken
from ppl.lm.row import Row, could_be_drawn
from ppl.lm.sampling import warped_log_probs

_OF_ONE_TOKEN = ("temperature", "top_p", "top_k", "min_p", "allowed")


class Decoder(Protocol):
    """A batch of rows being decoded; empty at first, and again at the end."""

    @property
    def logits(self) -> Tensor:
        """`[A, V]` next-token logits of the active rows, in the order in which they joined."""
        ...

    def join(self, prefixes: Sequence[Tokens], ledgers: Sequence[Account | None]) -> None:
        """Adds a row after each prefix; what is computed and reused goes to the ledgers."""
        ...

    def advance(self, keep: Sequence[int], tokens: Sequence[int]) -> None:
        """Drops all active rows but `keep`, appends one token to each, refreshes `logits`.

        What the dropped rows computed may be kept for later requests.
        """
        ...

    def extend(self, keep: Sequence[int], blocks: Sequence[Tokens]) -> list[Tensor]:
        """As `advance`, with one or more tokens for each row, in one pass.

        Returns:
            For each row `[T, V]`: the logits after each of its `T` new tokens.
        """
        ...

    def rewind(self, counts: Sequence[int]) -> None:
        """Takes back the last tokens of each active row, so many (0: none) as are given, but never
        all of its text; refreshes `logits`."""
        ...


class LogitsModel(LanguageModel):
    """A language model that gives the logits after any prefix.

    Attributes:
        company: the running batches of what computes, of all models that share it; None where no
            memory is divided among them.

    One of your own sets `name`, `codec` and `context_length` and implements `logits_along`. One
    that can keep what it has computed also has a `decoder` of its own.
    """

    company: Company | None = None

    @abstractmethod
    def logits_along(
        self,
        prefixes: Sequence[Tokens],
        continuations: Sequence[Tokens],
        ledgers: Sequence[Account | None],
    ) -> Iterator[Tensor]:
        """For each row, `[T, V]`: the logits from which each of `T` continuation tokens is drawn.

        The last of them is not read: row `t` depends on the prefix and the `t` tokens before it.

        Args:
            prefixes, continuations: token ids; none is empty.
            ledgers: where prefix tokens are booked, computed or reused.
        """

    def next(
        self,
        text: Text,
        *,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int | None = None,
        min_p: float = 0.0,
        allowed: Allowed = None,
        **unknown: Any,
    ) -> NextToken:
        """The law of the token that follows `text`: drawn like `lm(text, max_tokens=1)`, and read
        (`log_probs`, `entropy`, `margin`, `log_mass`) at no second pass. The settings are those of
        `lm(text, ...)`, and so is what it refuses; a name that it does not know (`unknown`) is
        answered with those that it does.
        """
        if unknown:
            refuse_unknown("lm.next(text, ...)", unknown, _OF_ONE_TOKEN, OF_NEXT)
        law = self(
            text,
            max_tokens=1,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            min_p=min_p,
            allowed=allowed,
        )
        return NextToken(self, law.text, law.spec)

    @property
    def together(self) -> LogitsModel:
        """See `LanguageModel`."""
        return self

    def marked(self, text: Tokens) -> Tokens:
        """A text as the decoder of `together` knows it, where several models share it."""
        return text

    def fresh(self) -> None:
        """Forgets what it knows of texts, where it keeps any of that: what was computed of them,
        and what followed what in them (`drafts=`). The next request pays for all of its text, and
        is guessed for from nothing, as the first was. Rows that run go on with what they have:
        how much of later prompts is known may depend on how far ahead they are."""

    def decoder(self) -> Decoder:
        """An empty batch."""
        return PlainDecoder(self)

    def batch_rows(self, length: int) -> int:
        """Most rows of `length` tokens that one batch may hold."""
        return 1 << 30

    def most_rows(self, texts: Sequence[Tokens], lengths: Sequence[int]) -> int:
        """As `batch_rows`, of rows that go on from such texts to such lengths: a model that keeps
        what they begin with only once may hold more of them."""
        return self.batch_rows(max(lengths, default=0))

    def session(self) -> Session:
        """A running batch that requests join and leave."""
        return Session(self)

    def score_batch(self, requests: Sequence[ScoreRequest]) -> list[float]:
        """Exact log-probabilities of given continuations, as one batch."""
        return score(self, requests)


class PlainDecoder:
    """A decoder that keeps texts only, and asks for the logits after them."""

    def __init__(self, model: LogitsModel) -> None:
        self._model = model
        self._texts: list[Tokens] = []
        self.logits = torch.zeros(0, model.codec.size)

    def join(self, prefixes: Sequence[Tokens], ledgers: Sequence[Account | None]) -> None:
        """See `Decoder`."""
        before = list(range(len(self._texts)))
        logits = self._after(prefixes, [()] * len(prefixes), ledgers)
        self._texts += prefixes
        new = torch.stack([rows[-1] for rows in logits])
        self.logits = torch.cat([self.logits, new]) if before else new

    def advance(self, keep: Sequence[int], tokens: Sequence[int]) -> None:
        """See `Decoder`."""
        self.extend(keep, [(token,) for token in tokens])

    def extend(self, keep: Sequence[int], blocks: Sequence[Tokens]) -> list[Tensor]:
        """See `Decoder`."""
        texts = [self._texts[row] for row in keep]
        begun = [(*text, block[0]) for text, block in zip(texts, blocks, strict=True)]
        logits = self._after(begun, [block[1:] for block in blocks], [None] * len(blocks))
        self._texts = [(*text, *block) for text, block in zip(texts, blocks, strict=True)]
        self.logits = torch.stack([rows[-1] for rows in logits]) if keep else self.logits[:0]
        return logits

    def rewind(self, counts: Sequence[int]) -> None:
        """See `Decoder`."""
        self._texts = [t[: len(t) - n] for t, n in zip(self._texts, counts, strict=True)]
        logits = self._after(self._texts, [()] * len(counts), [None] * len(counts))
        self.logits = torch.stack([rows[-1] for rows in logits]) if logits else self.logits[:0]

    def _after(
        self, texts: Sequence[Tokens], new: Sequence[Tokens], ledgers: Sequence[Account | None]
    ) -> list[Tensor]:
        """For each row `[T + 1, V]`: the logits after its text, and after each new token."""
        if not texts:
            return []
        # The last token of a continuation is not read: any will do.
        return list(self._model.logits_along(texts, [(*block, 0) for block in new], ledgers))


class Session(Member):
    """A running batch: requests join when there is room, and leave as soon as they are drawn.

    A row's draws depend on its own key and text only, so neither its company nor when it joins
    matters. A request whose ledger has no tokens or time left is given up (None): all rows of one
    ledger are given up together, so that no budget is ever exceeded and no row is favoured.

    Args:
        model: what draws.

    Attributes:
        joined: most rows that ran side by side.
    """

    def __init__(self, model: LogitsModel) -> None:
        self.model = model.together
        self.joined = 0
        self._decoder = self.model.decoder()
        self._rows: list[Row] = []  # in the decoder's order
        self._uniforms = Uniforms([], [])  # of the rows' next tokens
        self._masked = False  # whether a row may not draw everything
        self._waiting: deque[Row] = deque()
        self._tickets = 0
        self._company = self.model.company or Company(contextlib.nullcontext())
        self._company.add(self)

    @property
    def running(self) -> bool:
        """True while a request has no answer."""
        return bool(self._rows or self._waiting)

    def submit(self, request: ContinueRequest) -> int:
        """Takes a request in; its answer will come under the returned ticket."""
        self._tickets += 1
        self.take(Row(self.model, request, self._tickets))
        return self._tickets

    def take(self, row: Row) -> None:
        """Takes a row in, which may have begun before, under the ticket that it has."""
        self._waiting.append(row)

    def cancel(self, tickets: Collection[int]) -> None:
        """Nobody waits for these any more."""
        self._waiting = deque(row for row in self._waiting if row.ticket not in tickets)
        for row in self._rows:
            row.unwanted = row.unwanted or row.ticket in tickets

    @gives_back
    def step(self) -> dict[int, Drawn | PPLError | None]:
        """Draws one token for every row; answers those that are done, by ticket: with the error
        where a row's own rule raised."""
        self._join()
        rows = self._rows
        done: dict[int, Drawn | PPLError | None] = {}
        keep = [j for j, row in enumerate(rows) if not row.unwanted]
        broke = _admit([rows[j] for j in keep])
        if broke:
            for row in (*rows, *self._waiting):
                if row.request.ledger in broke:
                    done[row.ticket], row.unwanted = None, True
            self._waiting = deque(row for row in self._waiting if not row.unwanted)
            keep = [j for j in keep if not rows[j].unwanted]
        going: list[int] = []
        if keep:
            # Rows given up stay in the decoder until it advances; they draw nothing.
            logits = self._decoder.logits if len(keep) == len(rows) else self._decoder.logits[keep]
            drawing = [rows[j] for j in keep]
            masks: list[Tensor | None] = [None] * len(drawing)
            if self._masked:
                masks = [_allowed(row, row.request.spec, logits.shape[-1]) for row in drawing]
            numbers = self._uniforms.next()[keep]
            tokens, log_probs = _draw_tokens(logits, drawing, masks, numbers)
            for i, (j, token, log_prob) in enumerate(zip(keep, tokens, log_probs, strict=True)):
                if rows[j].request.law and not rows[j].new:
                    rows[j].law = logits[i].clone()  # the decoder may write there again
                try:
                    drawn = rows[j].push(self.model, token, log_prob)
                except PPLError as error:
                    done[rows[j].ticket] = error
                    continue
                if drawn is None:
                    going.append(j)
                else:
                    done[rows[j].ticket] = drawn
        self._go_on(going)
        return done

    def close(self) -> None:
        """Ends the batch; what its rows computed may be kept for later requests."""
        self._waiting.clear()
        self._go_on([])
        self._decoder.advance([], [])  # rows that joined it, and an interrupt kept from being ours

    def _go_on(self, keep: list[int]) -> None:
        """Drops all rows but these; the youngest wait again where memory no longer holds all."""
        if not self._rows:
            return
        with self._company.lock:
            most = self._company.staying(self, self.model, [self._rows[j] for j in keep])
            self._waiting.extendleft(self._rows[j] for j in reversed(keep[most:]))
            keep = keep[:most]
            self._decoder.advance(keep, [self._rows[j].new[-1] for j in keep])
            if len(keep) < len(self._rows):
                self._rows = [self._rows[j] for j in keep]
                self._uniforms.keep(keep)
            self.held = self._rows

    def _join(self) -> None:
        """Lets waiting requests in, first come first served, as far as memory goes."""
        if not self._waiting:
            return
        with self._company.lock:
            if len(self.held) < len(self._rows):
                return  # some have given way to others: they go on before any join
            count = self._company.joining(self, self.model, self._waiting)
            if not count:
                return
            joining = [self._waiting.popleft() for _ in range(count)]
            # A row that had to wait half-way has been booked already.
            ledgers = [None if row.new else row.request.ledger for row in joining]
            self._decoder.join([row.text for row in joining], ledgers)
            self._rows = self.held = self._rows + joining
            keys, drawn = zip(*((row.request.key, len(row.new)) for row in self._rows), strict=True)
            self._uniforms = Uniforms(keys, drawn)
            self._masked = any(row.request.spec.allowed is not None for row in self._rows)
            self.joined = max(self.joined, len(self._rows))


def _admit(rows: Sequence[Row]) -> set[Account]:
    """Books one token per row; the ledgers that cannot pay for theirs."""
    payers = _payers(rows)
    broke = _broke(payers)
    _book({ledger: count for ledger, count in payers.items() if ledger not in broke})
    return broke


def _payers(rows: Sequence[Row]) -> dict[Account, int]:
    """Ledgers, with how many of the rows each pays for."""
    return named(row.request.ledger for row in rows)


def _broke(payers: Mapping[Account, int]) -> set[Account]:
    """The ledgers that cannot pay for one token of each of their rows."""
    # What servers of the same search have reserved is not waited for.
    return {
        ledger
        for ledger, count in payers.items()
        if ledger.tokens_left < count or ledger.out_of_time
    }


def _book(payers: Mapping[Account, int]) -> None:
    for ledger, count in payers.items():
        ledger.add(lm_tokens=count)


def _draw_tokens(
    logits: Tensor,
    rows: Sequence[Row],
    allowed: Sequence[Tensor | None],
    uniforms: NDArray[np.float64],
) -> tuple[list[int], list[float]]:
    """A token for each row, and its log-probability; minus infinity where none of those that are
    allowed has any probability: it cannot be drawn, and whoever came to want it is dead."""
    warps = [row.request.spec.warp for row in rows]
    own = getattr(rows[0].request.model, "invert", None)  # all rows are of one engine
    tokens, log_probs = sampling.draw(logits, warps, allowed, uniforms, own)
    for i, (row, log_prob) in enumerate(zip(rows, log_probs, strict=True)):
        if not math.isfinite(log_prob):
            mask = allowed[i]
            if mask is not None and sampling.nothing_left(logits[i], mask):
                tokens[i], log_probs[i] = int(mask.nonzero()[0]), -math.inf
                continue
            raise WeightError(
                f"{row.request.label}: the next-token distribution is not finite; check the "
                "model's weights and dtype, and that allowed= admits a token of the vocabulary"
            )
    _add_log_probs_under(logits, rows, tokens)
    return tokens, log_probs


def _allowed(row: Row, spec: Spec, size: int) -> Tensor | None:
    if spec.allowed is None:
        return None
    return spec.allowed_after(row.new, row.request.label, size, row.request.model.codec)


def _add_log_probs_under(logits: Tensor, rows: Sequence[Row], tokens: Sequence[int]) -> None:
    """Reads the other log-probability that some rows ask for off the same logits."""
    others = [(i, r, r.request.under) for i, r in enumerate(rows) if r.request.under is not None]
    if not others:
        return
    which = [i for i, _, _ in others]
    size = logits.shape[-1]
    allowed = [_allowed(row, spec, size) for _, row, spec in others]
    log_probs = warped_log_probs(logits[which], [spec.warp for _, _, spec in others], allowed)
    chosen = log_probs[range(len(which)), [tokens[i] for i in which]].tolist()
    for (_, row, _), log_prob in zip(others, chosen, strict=True):
        row.under += log_prob


def score(model: LogitsModel, requests: Sequence[ScoreRequest]) -> list[float]:
    """Log-probability of each given continuation, `-inf` where `draw` could not return it."""
    results = [-math.inf] * len(requests)
    possible = [i for i, request in enumerate(requests) if could_be_drawn(model, request)]
    lengths = [len(requests[i].spec.tokens) + len(requests[i].value.tokens) for i in possible]
    size = model.batch_rows(max(lengths, default=1))
    for begin in range(0, len(possible), size):
        batch = [(i, requests[i]) for i in possible[begin : begin + size]]
        logits_along = model.logits_along(
            [r.spec.tokens for _, r in batch],
            [r.value.tokens for _, r in batch],
            [r.ledger for _, r in batch],
        )
        for (i, request), logits in zip(batch, logits_along, strict=True):
            results[i] = _log_prob(request, logits)
            if request.ledger is not None:
                request.ledger.add(scored_tokens=len(request.value.tokens))
    return results


def _log_prob(request: ScoreRequest, logits: Tensor) -> float:
    tokens, spec = request.value.tokens, request.spec
    size = logits.shape[-1]
    codec = request.model.codec
    allowed = [
        spec.allowed_after(tokens[:t], request.label, size, codec) for t in range(len(tokens))
    ]
    log_probs = warped_log_probs(logits, [spec.warp] * len(tokens), allowed)
    chosen = log_probs.gather(1, torch.tensor(tokens, device=logits.device)[:, None])
    total = float(chosen.double().sum())
    if math.isnan(total):
        raise WeightError(f"{request.label}: {request.value.text!r} has log-probability NaN")
    return total
