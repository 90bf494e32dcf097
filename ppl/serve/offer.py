"""What an endpoint offers: models by name, each with a verifier, a program and a searcher."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from ppl.errors import ArgumentError
from ppl.language.arguments import check_fields, shown
from ppl.lm.base import LanguageModel
from ppl.lm.loading import load
from ppl.runtime.program import check_program
from ppl.runtime.verdict import Verifier
from ppl.searchers.parse import imported, parse
from ppl.searchers.sampling.best_of_n import BestOfN
from ppl.searchers.search import Searcher
from ppl.serve.programs import READY, Answering
from ppl.serve.refusal import RefusedError

Rule = Literal["vote", "best"]
RULES: tuple[Rule, ...] = ("vote", "best")


@dataclass(frozen=True)
class Offer:
    """One model as an endpoint offers it.

    Attributes:
        lm: the model, or a name for `ppl.load`.
        verifier: what judges its answers, a name for `PRM.load`, or None.
        searcher: of requests that name none: settings, or a text such as `"SMC(16)"`. None is
            `BestOfN(16)`.
        program: of requests that name none, by its name. None is `"steps"` with a verifier and
            `"whole"` without one.
        rule: which answer comes first: `"vote"` takes the heaviest class of equal answers, `"best"`
            the text that the verifier likes best.
        step: the string that ends a step.
        answer: what of an answer's string is voted on; None takes `ppl.extract_answer`.
    """

    lm: LanguageModel | str
    verifier: Verifier | str | None = None
    searcher: Searcher[Any] | str | None = None
    program: str | None = None
    rule: Rule = "vote"
    step: str = "\n"
    answer: Callable[[str], Hashable] | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.step:
            raise ArgumentError("step='': a string that ends a step, such as '\\n'")


@dataclass(frozen=True)
class Offered:
    """An offer with everything loaded."""

    lm: LanguageModel
    verifier: Verifier | None
    searcher: Searcher[Any]
    program: str
    rule: Rule
    step: str
    answer: Callable[[str], Hashable] | None


class Menu:
    """All offers and programs of an endpoint, by name.

    Args:
        models: offers, models, or names for `ppl.load`, by the name that requests use.
        verifier, searcher: for those models that bring none.
        programs: those of the operator's own, by name: functions, or import paths
            (`"module:function"`), which are imported here.

    Raises:
        ArgumentError: there is no model, or an offer is none.
    """

    def __init__(
        self,
        models: Mapping[str, Offer | LanguageModel | str],
        *,
        verifier: Verifier | str | None = None,
        searcher: Searcher[Any] | str | None = None,
        programs: Mapping[str, Answering | str] | None = None,
    ) -> None:
        if not models:
            raise ArgumentError("models={}: name at least one, as in {'tiny': ppl.load('tiny')}")
        self.programs: dict[str, Answering] = dict(READY)
        for name, program in (programs or {}).items():
            if name in READY:
                raise ArgumentError(f"programs: {name!r} is the name of one that is there already")
            found = imported(program, imports=True) if isinstance(program, str) else program
            check_program(found, f"programs[{name!r}]")
            self.programs[name] = found
        # A name of several offers is one model.
        self._lm, self._judge = cache(load), cache(_judge)
        if isinstance(verifier, str):
            verifier = self._judge(verifier)
        self.offers: dict[str, Offered] = {}
        for name, model in models.items():
            if not isinstance(name, str) or not name or not name.isprintable():
                raise ArgumentError(f"models: {shown(name)} is no name that a request can use")
            offer = model if isinstance(model, Offer) else Offer(model)
            self.offers[name] = self._offered(name, offer, verifier, searcher)

    def _offered(
        self,
        name: str,
        offer: Offer,
        verifier: Verifier | None,
        searcher: Searcher[Any] | str | None,
    ) -> Offered:
        judge = offer.verifier or verifier
        if isinstance(judge, str):
            judge = self._judge(judge)
        chosen = searcher if offer.searcher is None else offer.searcher
        chosen = parse(chosen) if isinstance(chosen, str) else chosen or BestOfN(16)
        if not isinstance(chosen, Searcher):
            raise ArgumentError(f"models[{name!r}]: searcher={shown(chosen)}: as in 'SMC(16)'")
        program = offer.program or ("whole" if judge is None else "steps")
        if program not in self.programs:
            raise ArgumentError(
                f"models[{name!r}]: program={program!r}: one of {', '.join(self.programs)}"
            )
        lm = self._lm(offer.lm) if isinstance(offer.lm, str) else offer.lm
        return Offered(lm, judge, chosen, program, offer.rule, offer.step, offer.answer)

    def find(self, model: str) -> tuple[str, Offered, str | None]:
        """The offer that a request's `model` names, and the searcher behind the colon, if any.

        Raises:
            RefusedError: there is no such model (404).
        """
        if model in self.offers:
            return model, self.offers[model], None
        for name in sorted(self.offers, key=len, reverse=True):  # a name may have colons of its own
            if model.startswith(f"{name}:"):
                return name, self.offers[name], model[len(name) + 1 :]
        raise RefusedError(
            404,
            f"there is no model {model[:80]!r}; this server has {', '.join(self.offers)}, and "
            "takes a searcher behind a colon, as in model='NAME:SMC(16)'",
            param="model",
            code="model_not_found",
        )


def _judge(name: str) -> Verifier:
    from ppl.verifiers.models.prm import PRM  # transformers, where a judge is named

    return PRM.load(name)
