"""What a worker process does that runs one of several copies of a model (`ppl.runtime.replicas`).

It is told one message a line and answers in the same way: a pickled tuple in base64, between two
processes that trust each other. Draws are those of a running batch like any other
(`ppl.lm.decode.Session`), so they depend on their key and their text alone: which copy draws is
nowhere to be seen.
"""

from __future__ import annotations

import base64
import os
import pickle
import queue
import sys
import threading
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import IO, Any

import torch

from ppl.errors import PPLError, ProgramError
from ppl.language.cost import Account
from ppl.language.text import Continuation
from ppl.lm.base import ContinueRequest, Drawn, ScoreRequest, Spec, Tokens
from ppl.lm.calling import Calling
from ppl.lm.decode import LogitsModel
from ppl.lm.loading import load
from ppl.lm.row import Row

_BOOKED = ("prompt_tokens", "reused_tokens", "lm_tokens", "scored_tokens")


def packed(message: Any) -> str:
    """A message as one line."""
    return base64.b64encode(pickle.dumps(message, protocol=5)).decode()


def unpacked(line: str) -> Any:
    """The message of a line that `packed` made."""
    return pickle.loads(base64.b64decode(line))


def addressed(kind: str, ticket: int, label: str, what: Any) -> str:
    """A message for a copy, whose address can be read where what is in it cannot."""
    return packed((kind, ticket, label, packed(what)))


def opened(line: str) -> tuple[str, Any]:
    """The kind of a message that `addressed` made, and what is in it; of one that cannot be read,
    `"unread"` with its ticket and the reason."""
    kind, ticket, label, inside = unpacked(line)
    try:
        return kind, unpacked(inside)
    except Exception as error:  # what it names may be in no module that is found here
        return "unread", (
            ticket,
            ProgramError(
                f"{label}: a process of replicas cannot read what it is sent "
                f"({type(error).__name__}: {error}); a function in allowed= has to be in a module "
                "that can be imported, not in the script that runs, or load the model without "
                "replicas="
            ),
        )


@dataclass(frozen=True)
class About:
    """What is told of a copy once it is loaded.

    Attributes:
        name, codec, context_length, parameters, kv: of the model.
        token_count: how many logits it gives.
        warned: what loading it warned of.
    """

    name: str
    codec: Any
    context_length: int
    parameters: int | None
    kv: str | None
    token_count: int
    warned: tuple[str, ...]


@dataclass(frozen=True)
class Ask:
    """One request.

    Attributes:
        ticket: under which it is answered.
        spec: what to draw or score.
        key: of the uniforms.
        label: who asks.
        new: tokens of the continuation that were drawn before.
        most: how many to draw now.
        under, law: as in `ContinueRequest`.
        value: what is to be scored, None for a draw.
    """

    ticket: int
    spec: Spec
    label: str
    key: int = 0
    new: Tokens = ()
    most: int = 0
    under: Spec | None = None
    law: bool = False
    value: Tokens | None = None


@dataclass
class Answer:
    """What was drawn, or the score of what was asked.

    Attributes:
        tokens, log_probs: of the draw; the end is the last of what was allowed, or of the step.
        unders: what the other law gives to the draw up to each token.
        law: logits of the first token, if they were wanted.
        score: the log-probability that was asked for.
        costs: what it took, by the names of `ModelCost`.
        error: why there is nothing of it.
    """

    tokens: Tokens = ()
    log_probs: tuple[float, ...] = ()
    unders: tuple[float, ...] = ()
    law: torch.Tensor | None = None
    score: float = 0.0
    costs: Mapping[str, int] = field(default_factory=dict)
    error: Exception | None = None


class _Row(Row):
    """A row that remembers what each token had."""

    __slots__ = ("before", "calling", "log_probs", "unders")

    def begin(self, new: Sequence[int], calling: Calling) -> None:
        """Goes on after tokens that were drawn before."""
        self.before, self.calling = len(new), calling
        self.log_probs: list[float] = []
        self.unders: list[float] = []
        for token in new:
            self.new.append(token)
            calling.run(self.ticket, self.stop.after, token)

    def push(self, model: Any, token: int, log_prob: float) -> Drawn | None:
        """As `Row.push`."""
        self.log_probs.append(log_prob)
        self.unders.append(self.under)
        if self.request.spec.rule.pattern is None:
            return super().push(model, token, log_prob)
        return self.calling.run(self.ticket, super().push, model, token, log_prob)

    def answer(self) -> Answer:
        """What was drawn until now."""
        return Answer(
            tuple(self.new[self.before :]),
            tuple(self.log_probs),
            tuple(self.unders),
            self.law,
            costs=_costs(self.request.ledger),
        )


class Drawing:
    """A running batch of the model whose rows may have begun before."""

    def __init__(self, model: LogitsModel, calling: Calling) -> None:
        self._session, self._calling = model.session(), calling
        self.rows: dict[int, _Row] = {}

    @property
    def running(self) -> bool:
        """True while a row has no answer."""
        return self._session.running

    def close(self) -> None:
        """Ends the batch; the memory of its rows is free, also where a step of it has failed."""
        self._session.close()
        self.rows.clear()

    def take(self, ask: Ask) -> None:
        """Takes a draw in, under the ticket of who asks."""
        spec = Spec(
            ask.spec.tokens,
            ask.spec.rule,
            len(ask.new) + ask.most,
            ask.spec.warp,
            ask.spec.allowed,
        )
        model = self._session.model
        request = ContinueRequest(
            model, spec, ask.key, ask.label, Account(), ask.under, ask.law and not ask.new
        )
        row = _Row(model, request, ask.ticket)
        row.begin(ask.new, self._calling)
        self.rows[ask.ticket] = row
        self._session.take(row)

    def advance(self) -> dict[int, Answer]:
        """Draws one token for every row; answers those that are done."""
        answers: dict[int, Answer] = {}
        for ticket, drawn in self._session.step().items():
            row = self.rows.pop(ticket)
            if isinstance(drawn, Exception):
                answers[ticket] = Answer(error=sendable(drawn))
            else:
                answers[ticket] = row.answer()
        return answers

    def leave(self, tickets: Collection[int]) -> dict[int, Answer]:
        """Gives rows up: what they have drawn."""
        mine = [ticket for ticket in tickets if ticket in self.rows]
        self._session.cancel(mine)
        return {ticket: self.rows.pop(ticket).answer() for ticket in mine}


class Copy:
    """A loaded model that is asked by messages.

    Args:
        model: the model.
        reply: is handed answers by ticket.
        calling: is told whose functions run.
    """

    def __init__(self, model: LogitsModel, reply: Any, calling: Calling) -> None:
        self.model, self._reply, self._calling = model, reply, calling
        self._drawing: Drawing | None = None
        self._asked: dict[int, Ask] = {}

    @property
    def busy(self) -> bool:
        """Whether rows are running."""
        return self._drawing is not None and self._drawing.running

    def told(self, messages: Sequence[tuple[str, Any]]) -> None:
        """Takes in requests, and takes back others."""
        scores: list[Ask] = []
        for kind, what in messages:
            if kind == "draw":
                self._asked[what.ticket] = ask = self._watched(what)
                self._take(ask)
            elif kind == "score":
                scores.append(self._watched(what))
            elif kind == "logits":
                self._logits(what)
            elif kind == "fresh":
                self.model.fresh()
            elif kind == "unread":
                ticket, error = what
                self._reply({ticket: Answer(error=error)})
            elif self._drawing is not None:
                self._done(self._drawing.leave(what))
        if scores:
            self._scored(scores)

    def _watched(self, ask: Ask) -> Ask:
        """The request; while a function in `allowed=` runs, it is said whose that is."""

        def watched(spec: Spec) -> Spec:
            if not callable(spec.allowed):
                return spec
            return replace(spec, allowed=partial(self._calling.run, ask.ticket, spec.allowed))

        under = None if ask.under is None else watched(ask.under)
        return replace(ask, spec=watched(ask.spec), under=under)

    def _take(self, ask: Ask) -> None:
        if self._drawing is None:
            self._drawing = Drawing(self.model, self._calling)
        self._drawing.take(ask)

    def work(self) -> None:
        """One token for every row."""
        drawing = self._drawing
        assert drawing is not None
        try:
            self._done(drawing.advance())
        except Exception as error:
            self._broken(error)

    def _done(self, answers: Mapping[int, Answer]) -> None:
        for ticket in answers:
            self._asked.pop(ticket, None)
        if answers:
            self._reply(dict(answers))

    def _broken(self, error: Exception) -> None:
        """The batch failed: who is to blame is found by drawing each row by itself. They draw what
        they would have drawn."""
        asked = list(self._asked.values())
        if self._drawing is not None:
            self._drawing.close()
            self._drawing = None
        if len(asked) == 1:
            self._done({asked[0].ticket: Answer(error=sendable(error))})
            return
        for ask in asked:
            alone = Drawing(self.model, self._calling)
            alone.take(ask)
            answers: dict[int, Answer] = {}
            try:
                while alone.running:
                    answers |= alone.advance()
            except Exception as its_own:
                answers = {ask.ticket: Answer(error=sendable(its_own))}
                alone.close()
            self._done(answers)

    def _scored(self, asked: Sequence[Ask]) -> None:
        requests = []
        for ask in asked:
            value = Continuation(ask.value or (), "", "open", self.model.codec.identity)
            requests.append(ScoreRequest(self.model, ask.spec, value, ask.label, Account()))
        try:
            scores = self.model.score_batch(requests)
        except Exception as error:
            if len(asked) > 1:
                for ask in asked:
                    self._scored([ask])
                return
            self._reply({asked[0].ticket: Answer(error=sendable(error))})
            return
        self._reply(
            {
                ask.ticket: Answer(score=score, costs=_costs(request.ledger))
                for ask, request, score in zip(asked, requests, scores, strict=True)
            }
        )

    def _logits(self, asked: tuple[int, Tokens, Tokens]) -> None:
        ticket, prefix, continuation = asked
        account = Account()
        try:
            (rows,) = self.model.logits_along([prefix], [continuation], [account])
            answer = Answer(law=rows.clone().cpu(), costs=_costs(account))
        except Exception as error:
            answer = Answer(error=sendable(error))
        self._reply({ticket: answer})


def sendable(error: Exception, kinds: tuple[type[Exception], ...] = (PPLError,)) -> Exception:
    """An error that another process can read: itself if it is one of these, else what it says."""
    try:
        if isinstance(error, kinds) and isinstance(unpacked(packed(error)), type(error)):
            return error
    except Exception:  # errors of any library, which may have any arguments
        pass
    return ProgramError(f"a replica raised {type(error).__name__}: {error}")


def _costs(account: Account | None) -> dict[str, int]:
    assert account is not None
    cost = account.cost
    return {name: getattr(cost, name) for name in _BOOKED if getattr(cost, name)}


def main() -> None:
    """Loads what the first message names, says so, and serves until its input ends."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    inbox: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    threading.Thread(target=_forward, args=(sys.stdin, inbox), daemon=True).start()

    def say(message: Any) -> None:
        replies.write(packed(message) + "\n")
        replies.flush()

    first = inbox.get()
    if first is None:
        return
    source, settings, processors, threads, shared = unpacked(first)
    if processors:
        os.sched_setaffinity(0, processors)
        torch.set_num_threads(threads)
    try:
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("default")
            model: Any = load(source, **settings)
        say(
            About(
                model.name,
                model.codec,
                model.context_length,
                model.parameters,
                model.kv,
                int(getattr(model, "token_count", model.codec.size)),
                tuple(str(each.message) for each in heard if each.category is UserWarning),
            )
        )
    except Exception as error:
        say(sendable(error, (PPLError, TypeError, ValueError)))
        return
    copy = Copy(model, say, Calling(shared))
    while True:
        lines = [] if copy.busy else [inbox.get()]
        while not inbox.empty():
            lines.append(inbox.get())
        if None in lines:
            return
        copy.told([opened(line) for line in lines if line is not None])
        if copy.busy:
            copy.work()


def _forward(lines: IO[str], inbox: queue.SimpleQueue[str | None]) -> None:
    for line in lines:
        inbox.put(line)
    inbox.put(None)
