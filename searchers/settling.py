"""How a search heeds `Budget(settled=)`: the rule that is meant, and whether it has come true."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

from ppl.decide.consensus import Consensus
from ppl.decide.seen import Seen
from ppl.decide.sequential import SequentialTest
from ppl.decide.stopping import EarlyStop, Settled, StoppingRule
from ppl.errors import ArgumentError
from ppl.language.arguments import shown
from ppl.runtime.node import Node
from ppl.runtime.result import Result
from ppl.searchers.parse import register

for _rule in (Consensus, EarlyStop, SequentialTest, Settled):  # settings that texts name
    register(_rule)


def rule_of(asked: Any) -> StoppingRule | None:
    """The rule that is meant: a number is the level of the Beta rule, by the samples' weights.

    Raises:
        TypeError: it is none.
    """
    if asked is None or isinstance(asked, StoppingRule):
        return asked
    if isinstance(asked, Real):
        return Settled("beta", float(asked), weights="posterior")
    raise TypeError(
        f"settled={shown(asked)}: a probability such as 0.95, or a rule of ppl.decide such as "
        "Settled('exact')"
    )


def check_heeded(rule: StoppingRule | None, settles: bool, searcher: str) -> None:
    """Raises ArgumentError if a rule would drop samples of a searcher that drops none."""
    if rule is not None and rule.drop is not None and not settles:
        raise ArgumentError(
            f"settled={rule!r}: {searcher} drops nobody; take BestOfN(n, stop=...), or leave out "
            "drop="
        )


def seen(
    rule: StoppingRule, nodes: Sequence[Node], log_weights: Sequence[float], left: float = math.inf
) -> Seen:
    """What a rule looks at, of samples in order.

    Args:
        rule: which.
        nodes: one per sample.
        log_weights: of each.
        left: most samples that may still come.
    """
    weighed = log_weights if rule.weights == "posterior" else None
    confidence, probes = rule.confidence, rule.probes
    return Seen.of_nodes(nodes, weighed, confidence=confidence, left=left, probes=probes)


def settled(asked: Any, result: Callable[[], Result]) -> bool:
    """Whether the answers of a search that would go on are settled.

    While some of its nodes are open they have votes still to come, and those that have ended are
    the short ones: only a rule that looks at what open ones say is asked then.
    """
    rule = rule_of(asked)
    if rule is None:
        return False
    now = result()
    pairs = zip(now.nodes, now.log_weights, strict=True)
    if not rule.probes and any(node.open and weight > -math.inf for node, weight in pairs):
        return False
    return rule.stops(seen(rule, now.nodes, now.log_weights))
