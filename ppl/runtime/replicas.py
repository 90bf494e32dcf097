"""Several copies of a model behind one session: a worker process for each device or NUMA node.

Draws are keyed, so which copy draws changes nothing but rounding: a search over replicas gives what
it gives over one model. A row goes where most of its text is known already, as long as no copy has
much more than its share of the rows; what is new goes, question by question, to the copy with the
fewest. The processes end with this one (`ppl.runtime.process`); one that died is started anew, and
asked again, once, what the other had not answered.
"""

from __future__ import annotations

import math
import os
import threading
import warnings
import weakref
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from itertools import count, groupby
from pathlib import Path
from typing import Any, Never

import torch
from torch import Tensor

from ppl.errors import PPLError, ProgramError, UnsupportedModelError, WorkerError
from ppl.language.cost import Account
from ppl.language.steps import StepRule
from ppl.lm.base import Drawn, ScoreRequest, Spec, Tokens
from ppl.lm.decode import LogitsModel
from ppl.lm.held import Held
from ppl.lm.replica import About, Answer, Ask, packed
from ppl.lm.row import Row
from ppl.lm.running import answers
from ppl.lm.server.flight import Scoring, ServerSession
from ppl.lm.server.prefixes import Prefixes
from ppl.runtime.link import Link
from ppl.runtime.process import forget_in_children
from ppl.runtime.worker import Process, stop_all

# Tokens of a block of what is known.
_BLOCK = 16
# A copy may have so much more than its share of the rows.
_SLACK = 9 / 8


class Replicas(Held, LogitsModel):
    """Several copies of a local model, each in a process of its own; see `ppl.load(replicas=)`.

    Args:
        source: as in `ppl.load`.
        devices: of each copy.
        settings: others of `ppl.load`; `kv_bytes` is that of each copy.

    Attributes:
        devices: as given.
        moved: rows that went elsewhere than where most of their text was known, so that none has
            much more than its share.

    Raises:
        WorkerError: a process does not start.
    """

    elsewhere = True

    def __init__(self, source: str | Path, devices: Sequence[str], **settings: Any) -> None:
        self._source, self._settings, self.devices = str(source), settings, tuple(devices)
        self._processors = _divided(self.devices)
        self._links: list[Link] = []
        self._held: list[Process] = []
        self._starting, self._placing = threading.Lock(), threading.Lock()
        self._tickets = count(1)
        self._prefixes, self.moved = Prefixes(_BLOCK), 0
        self._finalizer = weakref.finalize(self, stop_all, self._held)
        forget_in_children(self)
        about = self._started()
        self.name, self.codec = about.name, about.codec
        self.context_length, self.parameters = about.context_length, about.parameters
        self.kv = about.kv
        self._token_count = about.token_count

    @property
    def token_count(self) -> int:
        """How many logits it gives."""
        return self._token_count

    def with_adapter(self, *_: Any, **__: Any) -> Never:
        """Raises UnsupportedModelError: adapters stand beside the weights of a model in this
        process."""
        raise UnsupportedModelError(
            f"{self.name}: replicas have no adapters beside their weights; put one into these, "
            "ppl.load(model, adapter=folder, replicas=...), or load the model without replicas="
        )

    def _first(self, number: int) -> Any:
        settings = {**self._settings, "device": self.devices[number]}
        on_cpu = sum(bool(processors) for processors in self._processors)
        threads = max(1, torch.get_num_threads() // on_cpu) if on_cpu else 0
        return self._source, settings, self._processors[number], threads

    def _started(self) -> About:
        """Starts all, side by side."""
        names = [f"replica {i + 1} of {len(self.devices)}" for i in range(len(self.devices))]
        try:
            for number, name in enumerate(names):
                link = Link(f"{name} of {self._source}", self._first(number))
                self._links.append(link)
                self._held.append(link.process)
            abouts = [link.about() for link in self._links]  # all of them, side by side
        except BaseException:
            self.stop()
            raise
        for said in dict.fromkeys(said for about in abouts for said in about.warned):
            warnings.warn(f"{self._source}: {said}", stacklevel=2)
        return abouts[0]

    def link(self, number: int) -> Link:
        """The worker of a copy; a new one where it died."""
        with self._starting:
            if not self._links:  # in a forked child, or after `stop`
                self._started()
            if not self._links[number].alive:
                with self._placing:
                    self._prefixes.forget(number)
                fresh = Link(self._links[number].name, self._first(number))
                self._held[number] = fresh.process
                try:
                    fresh.about()
                except BaseException:  # interrupted: nobody would listen to it
                    fresh.process.stop()
                    raise
                self._links[number] = fresh
            return self._links[number]

    def stop(self) -> None:
        """Ends the processes; a later request starts them again."""
        stop_all(self._held)
        self._links.clear()

    def forget(self) -> None:
        """In a forked child: the processes are the parent's; the next request starts others."""
        self._held.clear()
        self._links = []
        self._starting, self._placing = threading.Lock(), threading.Lock()

    def fresh(self) -> None:
        """See `LogitsModel`."""
        for number, link in enumerate(self._links):
            with self._placing:
                self._prefixes.forget(number)
            link.fresh()

    def session(self) -> ReplicaSession:  # type: ignore[override]
        """A running batch of what the copies draw."""
        return ReplicaSession(self)

    def score_batch(  # type: ignore[override]
        self, requests: Sequence[ScoreRequest]
    ) -> list[float | None]:
        """As `ServerModel.score_batch`."""
        return answers(self.session(), requests)

    def logits_along(
        self,
        prefixes: Sequence[Tokens],
        continuations: Sequence[Tokens],
        ledgers: Sequence[Account | None],
    ) -> Iterator[Tensor]:
        """See `LogitsModel`."""
        where = self.places(prefixes, [0] * len(self.devices))
        asked = []
        for number, prefix, new in zip(where, prefixes, continuations, strict=True):
            ticket = next(self._tickets)
            link, label = self.link(number), "logits_along"
            asked.append(link.ask("logits", ticket, label, (ticket, prefix, new)))
        for future, ledger in zip(asked, ledgers, strict=True):
            answer = future.result()
            if ledger is not None:
                ledger.add(**answer.costs)
            assert answer.law is not None
            yield answer.law

    def ask(self, number: int, kind: str, ask: Ask) -> Future[Answer]:
        """Asks a copy; `ask` gets a ticket."""
        ticket = next(self._tickets)
        asked = replace(ask, ticket=ticket)
        future = self.link(number).ask(kind, ticket, ask.label, asked)
        future.ticket = ticket  # type: ignore[attr-defined]
        return future

    def places(self, texts: Sequence[Tokens], loads: Sequence[int]) -> list[int]:
        """For each text the copy that is to go on with it.

        Args:
            loads: rows that each copy has already.
        """
        copies, now = len(self.devices), list(loads)
        most = math.ceil(_SLACK * (sum(now) + len(texts)) / copies)
        found = [0] * len(texts)
        order = sorted(range(len(texts)), key=texts.__getitem__)
        with self._placing:
            for text, alike in groupby(order, key=texts.__getitem__):
                known = self._prefixes.lengths(text, copies)
                seen = list(known)
                for i in alike:
                    free = [c for c in range(copies) if now[c] < most] or list(range(copies))
                    found[i] = best = min(free, key=lambda c: (-seen[c], now[c]))
                    self.moved += known[best] < max(known)
                    now[best] += 1
                    seen[best] = len(text)  # who begin alike stay together
                    self._prefixes.remember(text, best)
        return found

    def knows(self, number: int, text: Tokens) -> None:
        """A copy has computed a text."""
        with self._placing:
            self._prefixes.remember(text, number)


class _Client:
    """What `ServerSession` asks of a client."""

    def __init__(self, session: ReplicaSession) -> None:
        self._session = session
        self.endpoint = self

    def begin(self, future: Future[Answer]) -> Future[Answer]:
        return future

    def check_draws(self, spec: Spec, label: str) -> None:
        _sent(spec, label)

    def check_scores(self, spec: Spec, label: str) -> None:
        _sent(spec, label)

    def draw(self, row: Row, most: int) -> Future[Answer]:
        request = row.request
        under = None if request.under is None else _sent(request.under, request.label)
        ask = Ask(
            0,
            _sent(request.spec, request.label),
            request.label,
            request.key,
            tuple(row.new),
            most,
            under,
            request.law,
        )
        return self._session.ask("draw", row, row.tokens, ask)

    def scored(self, request: ScoreRequest) -> Future[Answer]:
        spec = replace(_sent(request.spec, request.label), rule=StepRule(), max_tokens=None)
        ask = Ask(0, spec, request.label, value=request.value.tokens)
        return self._session.ask("score", request, request.spec.tokens, ask)


class ReplicaSession(ServerSession):
    """Draws and scores of several copies, with the interface of `ppl.lm.decode.Session`.

    As with servers, a request reserves the tokens that it may draw, so that a token budget is never
    exceeded; what one cuts off may be another part of a search than with one model.
    """

    def __init__(self, model: Replicas) -> None:
        super().__init__(model, _Client(self), 1 << 30)  # type: ignore[arg-type]
        self._replicas = model
        self._where: dict[int, int] = {}  # where what is to be sent goes, by identity
        self._on: dict[Future[Any], int] = {}
        self._left: set[Future[Any]] = set()
        self._again: set[int] = set()  # tickets of what was asked again

    def ask(self, kind: str, whose: Row | ScoreRequest, text: Tokens, ask: Ask) -> Future[Answer]:
        """Asks the copy that was chosen."""
        number = self._where.get(id(whose))
        if number is None:
            number = self._replicas.places([text], self._loads())[0]
        future = self._replicas.ask(number, kind, ask)
        self._on[future] = number
        return future

    def _loads(self) -> list[int]:
        flying = Counter(self._on.values())
        return [flying[number] for number in range(len(self._replicas.devices))]

    def step(self, patience: float = 0.1) -> dict[int, Drawn | float | PPLError | None]:
        """As `ServerSession.step`."""
        waiting = [w for w in self._waiting if not w.unwanted]
        texts = [w.tokens if isinstance(w, Row) else w.request.spec.tokens for w in waiting]
        places = self._replicas.places(texts, self._loads())
        whose = [w if isinstance(w, Row) else w.request for w in waiting]
        self._where = {id(w): place for w, place in zip(whose, places, strict=True)}
        done = super().step(patience)
        self._leave()
        return done

    def cancel(self, tickets: Collection[int]) -> None:
        """Nobody waits for these any more."""
        super().cancel(tickets)
        self._leave()

    def close(self) -> None:
        """Ends what runs, and books it."""
        for row, _ in self._flying.values():
            row.unwanted = True
        self._leave()
        super().close()

    def _leave(self) -> None:
        """Tells copies what nobody waits for."""
        flying: Any = self._flying
        gone = [f for f, (row, _) in flying.items() if row.unwanted and f not in self._left]
        self._left.update(gone)
        for number in {self._on[future] for future in gone}:
            tickets = [f.ticket for f in gone if self._on[f] == number]
            if self._replicas._links:
                self._replicas._links[number].leave(tickets)

    def _landed(self, future: Future[Any]) -> tuple[Row | Scoring, int]:
        number = self._on.pop(future)
        self._left.discard(future)
        row, tokens = super()._landed(future)
        if isinstance(row, Row) and not future.cancelled() and future.exception() is None:
            self._replicas.knows(number, (*row.tokens, *future.result().tokens))
        return row, tokens

    def _extended(self, row: Row, answer: Any) -> Drawn | None:
        before = row.under
        if answer.law is not None and not row.new:
            row.law = answer.law
        for token, log_prob, under in zip(
            answer.tokens, answer.log_probs, answer.unders, strict=True
        ):
            row.under = before + under
            drawn = row.push(self.model, token, log_prob)
            if drawn is not None:
                return drawn
        return None

    def _with_under(self, row: Row, drawn: Drawn) -> Drawn:
        return drawn

    def _book(self, row: Row, answer: Any) -> None:
        if row.request.ledger is not None:
            row.request.ledger.add(**answer.costs)

    def _taken(self, row: Row | Scoring, future: Future[Any]) -> Any:
        died = future.exception()
        if isinstance(died, WorkerError) and not row.unwanted and row.ticket not in self._again:
            self._again.add(row.ticket)
            warnings.warn(f"{died}; what it was asked is asked again", stacklevel=2)
            return row
        if isinstance(row, Scoring):
            answer: Answer = future.result()
            if row.request.ledger is not None:
                row.request.ledger.add(**answer.costs)
            return answer.score
        return super()._taken(row, future)


def _sent(spec: Spec, label: str) -> Spec:
    """A spec as it is sent: where a function says where the step ends, that is asked here.

    Raises:
        ProgramError: its `allowed=` cannot be sent.
    """
    rule = StepRule() if spec.rule.predicate is not None else spec.rule
    if callable(spec.allowed):
        try:
            packed(spec.allowed)
        except Exception as error:
            raise ProgramError(
                f"{label}: allowed= is a function that cannot be sent to the processes of "
                f"replicas ({type(error).__name__}: {error}); give token ids or a mask, or load "
                "the model without replicas="
            ) from error
    return replace(spec, rule=rule)


def _divided(devices: Sequence[str]) -> list[set[int]]:
    """The processors of each copy on a CPU, those of one NUMA node side by side; none for others
    and where processes cannot be bound."""
    on_cpu = [i for i, device in enumerate(devices) if torch.device(device).type == "cpu"]
    found: list[set[int]] = [set() for _ in devices]
    if not on_cpu or not hasattr(os, "sched_setaffinity"):
        return found
    mine = sorted(os.sched_getaffinity(0), key=lambda cpu: (_node_of(cpu), cpu))
    share = len(mine) // len(on_cpu)
    for place, number in enumerate(on_cpu):  # where they are too few, all may run on all
        found[number] = set(mine[place * share : (place + 1) * share] or mine)
    return found


def _node_of(processor: int) -> int:
    """The NUMA node of a processor; 0 where that is not said."""
    nodes = Path(f"/sys/devices/system/cpu/cpu{processor}").glob("node[0-9]*")
    return min((int(node.name.removeprefix("node")) for node in nodes), default=0)
