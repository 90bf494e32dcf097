"""What a particle needs of a site: the contract of whatever stands in `pyro.sample(name, ...)`.

Plain Pyro distributions are used as they are. A distribution that asks a model, or means something
to the search, is a `Site` too: it draws and scores through the particle that visits it, which turns
its requests into batches. Language models, verdicts, AWRS and twists are such sites, and so is any
class that derives from `Site` and implements what it can do.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol, TypeVar

from ppl.language.cost import Account
from ppl.language.text import Continuation, Text

Kind = Literal["choice", "observed", "twist", "deterministic"]
"""A choice is replayed; an observation's weight is; a deterministic value is neither."""

Draw = tuple[Any, float | None, float | None]
"""A value; its log-probability, and that under another distribution: each None where not free."""


S = TypeVar("S", bound="Site")


class Visit(Protocol):
    """A particle that has come to a site, as the site sees it.

    Attributes:
        site: the site, for messages: "site 'step_3'".
        ledger: the account that pays.
        text: what a language model last extended.
        log_twist: what the weight includes for now, and is divided out at the next checkpoint.
    """

    site: str
    text: Text | None
    log_twist: float

    @property
    def ledger(self) -> Account:
        """The account that pays for what the site asks."""
        ...

    @property
    def label(self) -> str:
        """Who and where, for messages: "site 'step_3' of particle 17"."""
        ...

    @property
    def greedy(self) -> bool:
        """True if the most likely value is wanted in place of a draw."""
        ...

    def key(self, *parts: int | str) -> int:
        """A 64-bit key of this particle's segment and `parts`, for all randomness."""
        ...

    def together(self, *parts: int | str) -> tuple[int, int]:
        """A key of `parts` that all have who set out together from one checkpoint, and the place of
        this one among them, from 0: for draws that share out what there is. Where draws have to be
        independent, everybody is alone."""
        ...

    def wrote(self, text: Text, value: Continuation) -> None:
        """`text` is now `text + value`: a language model has extended it."""
        ...

    def ask(self, request: Any) -> Any:
        """Waits for the reply to a request, which joins the batch of all particles."""
        ...


class Entry(Protocol):
    """What is noted of the site, and told to forks (see `ppl.runtime.record.Record`)."""

    kind: Kind
    value: Any
    log_scores: tuple[float, ...] | None


class Site:
    """A distribution that knows the particle that visits it. Log-probabilities are scalars.

    `msg` is Pyro's message of the sample statement, with its name, arguments, scale and mask.

    Attributes:
        decidable: True if a searcher may take its value (`decide=` of `Tree.expand`).
        told: True if its value follows from the choices before it (a model is asked for it), so
            that nobody chooses it: `Tree.force` asks again.
    """

    decidable: bool = False
    told: bool = False

    def beside(self, target: Any) -> Site:
        """The law of a guide's statement where the model has the distribution `target`."""
        return self

    def draw(self, visit: Visit, msg: Any, key: int, target: Any = None) -> Draw:
        """A draw that is a function of `key` alone; under `target` too, where that comes free."""
        raise NotImplementedError(f"{type(self).__name__} cannot be drawn, only observed")

    def score(self, visit: Visit, msg: Any, value: Any) -> float:
        """Log-probability of drawing a given value.

        Raises:
            ObservationError: it is no value of this kind of site.
        """
        raise NotImplementedError(f"{type(self).__name__} cannot score a given value")

    def weigh(self, visit: Visit, msg: Any, entry: Entry) -> float:
        """The log of what observing `entry.value` multiplies into the target, scaled and masked."""
        return share(self.score(visit, msg, entry.value), msg)

    def reweighed(self, msg: Any, value: Any, log_prob: float) -> float:
        """What scale and mask leave of the log-probability of a drawn value."""
        return share(log_prob, msg)

    def passed(self, visit: Visit, entry: Entry) -> None:
        """The statement has its value. What a fork shall be told goes into the entry."""

    def repeat(self, visit: Visit, entry: Entry) -> None:
        """The statement has its value again, from the record; nothing may be asked."""
        self.passed(visit, entry)

    def support(self) -> list[tuple[Any, float]]:
        """All values with their log-probabilities, for exact enumeration."""
        raise NotImplementedError

    @property
    def fingerprint(self) -> tuple[object, ...]:
        """What identifies the distribution when a program is replayed."""
        return (type(self).__name__,)


def made(kind: type[S], *arguments: Any) -> S:
    """An object of a class of sites, by Python alone. Of distributions Pyro's metaclass asks first
    whether another is to be made in its place, which takes longer than to make one."""
    new: S = type.__call__(kind, *arguments)
    return new


def share(log_prob: float, msg: Any) -> float:
    """What `poutine.scale` and `mask` leave of a scalar log-probability, as Pyro counts it.

    A mask of False leaves 0, whatever the probability was.
    """
    mask = msg["mask"]
    if mask is not None and not mask:
        return 0.0
    return log_prob * float(msg["scale"])
