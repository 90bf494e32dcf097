"""Guides: programs that propose values for the sites they share with the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pyro.poutine.messenger import Messenger

from ppl.errors import GuideError
from ppl.runtime.coroutine import Coroutine, park
from ppl.runtime.record import site_log_prob

if TYPE_CHECKING:
    from ppl.runtime.particle import Particle


@dataclass(frozen=True, slots=True)
class _Offer:
    """A guide waits at a site that has no value yet."""

    name: str


@dataclass(frozen=True, slots=True)
class _Proposal:
    value: Any
    log_q: float  # under the guide
    log_p: float | None  # under the model's site, where the draw gave it along


class Guide(Messenger):  # type: ignore[misc]
    """A guide running beside the model, one site ahead of what the model asks for.

    Sites are matched by name, as in Pyro; sites the guide does not have are drawn from the model.
    """

    def __init__(self, particle: Particle) -> None:
        super().__init__()
        self._particle = particle
        self._coroutine = Coroutine(self._run, self)
        self._offer: _Offer | None = None
        self._started = self._ended = self._used = False

    def _run(self) -> None:
        task = self._particle.task
        assert task.guide is not None
        task.guide(*task.args, **task.kwargs)

    def propose(self, name: str, target: Any) -> tuple[Any, float, float | None] | None:
        """The guide's draw for a site of the model, None if the guide has no such site.

        Args:
            name: the site.
            target: the model's distribution there.

        Returns:
            The value, its log-probability under the guide, and under `target` if that came free.
        """
        if self._offer is None and not self._ended:
            self._next(None)
        if self._offer is None or self._offer.name != name:
            return None
        event = self._coroutine.resume(target)
        while not isinstance(event, _Proposal):
            event = self._coroutine.resume(park(event))  # a model call made by the guide
        self._offer, self._used = None, True
        return event.value, event.log_q, event.log_p

    def _next(self, value: Any) -> None:
        event = self._coroutine.resume(value)
        self._started = True
        if isinstance(event, _Offer):
            self._offer = event
        else:
            self._ended = True

    def check_used(self) -> None:
        """A guide none of whose sites exists in the model is a mistake."""
        if self._offer is not None and not self._used and not self._particle._replay:
            raise GuideError(
                f"the guide proposes site {self._offer.name!r}, but no site of the guide exists "
                "in the model: give them the same names"
            )

    def close(self) -> None:
        self._coroutine.close()

    def _pyro_sample(self, msg: Any) -> None:
        particle, name = self._particle, msg["name"]
        if msg["done"] or msg["infer"].get("_deterministic"):
            return
        if msg["is_observed"]:
            raise GuideError(
                f"the guide observes site {name!r}: observations belong to the model, a guide only "
                "proposes"
            )
        if name in particle._names:  # made in an earlier life of this particle
            msg["value"] = particle._names[name]
        else:
            target = park(_Offer(name))
            decided = particle.decided(name, target)
            value, log_q, log_p = decided or particle.draw(msg, "guide", target)
            msg["value"] = value
            if log_q is None:
                log_q = site_log_prob(msg["fn"], value, args=msg["args"], kwargs=msg["kwargs"])
            park(_Proposal(value, log_q, log_p))
        msg["done"] = True
