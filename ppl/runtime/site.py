"""Plain Pyro distributions as sites (see `ppl.language.site`): tensors, drawn and scored here."""

from __future__ import annotations

from typing import Any

from ppl.errors import ObservationError
from ppl.language.site import Draw, Entry, Site, Visit
from ppl.runtime import keyed
from ppl.runtime.record import site_log_prob


class _Plain(Site):
    """Any distribution that is no `Site`; it stands in `msg["fn"]`.

    Its log-probabilities have elements, which a mask may choose from.
    """

    decidable = True

    def draw(self, visit: Visit, msg: Any, key: int, target: Any = None) -> Draw:
        fn = msg["fn"]
        keyed.seed(key, fn)
        return fn(*msg["args"], **msg["kwargs"]), None, None

    def score(self, visit: Visit, msg: Any, value: Any) -> float:
        return site_log_prob(msg["fn"], value, args=msg["args"], kwargs=msg["kwargs"])

    def weigh(self, visit: Visit, msg: Any, entry: Entry) -> float:
        value = entry.value
        try:
            return self.reweighed(msg, value, 0.0)
        except (ValueError, TypeError, AttributeError) as error:
            raise ObservationError(
                f"{visit.label}: {type(msg['fn']).__name__} cannot be observed with {value!r} "
                f"({type(error).__name__}: {error}); give obs= a value of its support"
            ) from error

    def reweighed(self, msg: Any, value: Any, log_prob: float) -> float:
        return site_log_prob(
            msg["fn"], value, msg["scale"], msg["mask"], args=msg["args"], kwargs=msg["kwargs"]
        )


PLAIN = _Plain()


def site_of(distribution: Any) -> Site:
    """How a particle speaks with what stands in a sample statement."""
    return distribution if isinstance(distribution, Site) else PLAIN
