"""Guides: programs that propose values for the sites they share with the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pyro  # noqa: F401 (all of it before its parts: threads)
from pyro.poutine.messenger import Messenger

from ppl.errors import GuideError
from ppl.runtime.coroutine import Coroutine, park
from ppl.runtime.program import check_result

Proposal = tuple[Any, float, float | None]
"""A value; its log-probability under the guide, and that under the model where it came free."""
Propose = Callable[[Any, Any], Proposal]
"""From Pyro's message of the guide's statement, and the model's distribution there."""


@dataclass(frozen=True, slots=True)
class _Offer:
    """A guide waits at a site that has no value yet."""

    name: str


@dataclass(frozen=True, slots=True)
class _Proposed:
    proposal: Proposal


class Guide(Messenger):  # type: ignore[misc]
    """A guide running beside the model, one site ahead of what the model asks for.

    Sites are matched by name, as in Pyro; sites the guide does not have are drawn from the model.

    Args:
        program: the guide, with its arguments.
        values: the values of the model's sites so far, by name; kept up to date by the particle.
        propose: draws at a site of the guide.
    """

    def __init__(
        self, program: Callable[[], Any], values: Mapping[str, Any], propose: Propose
    ) -> None:
        super().__init__()
        self._values, self._propose = values, propose
        self._coroutine = Coroutine(program, self)
        self._offer: _Offer | None = None
        self._ended = self._used = False

    def propose(self, name: str, target: Any) -> Proposal | None:
        """The guide's draw for a site of the model, None if the guide has no such site.

        Args:
            name: the site.
            target: the model's distribution there.
        """
        self._go_on()
        if self._offer is None or self._offer.name != name:
            return None
        event = self._coroutine.resume(target)
        while not isinstance(event, _Proposed):
            event = self._coroutine.resume(park(event))  # a model call made by the guide
        self._offer, self._used = None, True
        return event.proposal

    def _go_on(self) -> None:
        """Runs on to the next site that it offers, or to the end."""
        if self._offer is None and not self._ended:
            event = self._coroutine.resume(None)
            if isinstance(event, _Offer):
                self._offer = event
            else:
                check_result(event, "the guide")
                self._ended = True

    def check_used(self) -> None:
        """The model has ended, and so may the guide. One none of whose sites exists in the model
        is a mistake."""
        self._go_on()
        if self._offer is not None and not self._used:
            raise GuideError(
                f"the guide proposes site {self._offer.name!r}, but no site of the guide exists "
                "in the model: give them the same names"
            )

    def close(self) -> None:
        """Ends the guide's program where it stands."""
        self._coroutine.close()

    def _pyro_sample(self, msg: Any) -> None:
        name = msg["name"]
        if msg["done"] or msg["infer"].get("_deterministic"):
            return
        if msg["is_observed"]:
            raise GuideError(
                f"the guide observes site {name!r}: observations belong to the model, a guide only "
                "proposes"
            )
        if name in self._values:  # made in an earlier life of this particle
            msg["value"] = self._values[name]
        else:
            proposal = self._propose(msg, park(_Offer(name)))
            msg["value"] = proposal[0]
            park(_Proposed(proposal))
        msg["done"] = True
