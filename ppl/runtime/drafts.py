"""A program as the guide of itself, with other models: small ones draft, the program's own weigh.

    searcher.run(program, guide=ppl.drafted(program, small))

is speculative decoding by SMC (arXiv:2604.15672): particles are drafted step by step by a small
model; the large one scores every step in a single pass, and the log-weight gains log p - log q.
Nothing is rejected and the law is the program's, where speculative decoding has to throw away what
follows the first token that is refused.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import pyro  # noqa: F401 (all of it before its parts: threads)
from pyro.poutine.messenger import Messenger

from ppl.errors import GuideError
from ppl.language.arguments import checked
from ppl.lm.base import LanguageModel, LMDistribution


@checked
def drafted(
    program: Callable[..., Any], models: LanguageModel | Mapping[str, LanguageModel]
) -> Callable[..., Any]:
    """A guide that runs the program with other language models and observes nothing.

    Args:
        program: the model; its other choices are proposed as it has them.
        models: who drafts: one for all, or by the name of the model that is replaced; models that
            are not named draft for themselves. They need the tokenizer of the model they replace.
            A run that asks none of those named warns.
    """
    by_name = dict(models) if isinstance(models, Mapping) else models
    return functools.partial(_drafting, program, by_name)


def _drafting(
    program: Callable[..., Any],
    models: LanguageModel | Mapping[str, LanguageModel],
    *args: Any,
    **kwargs: Any,
) -> Any:
    with _Drafts(models) as drafts:
        result = program(*args, **kwargs)
    drafts.check_used()
    return result


class _Drafts(Messenger):  # type: ignore[misc]
    def __init__(self, models: LanguageModel | Mapping[str, LanguageModel]) -> None:
        super().__init__()
        self._models = models
        self._met: set[str] = set()

    def check_used(self) -> None:
        """Warns if a whole run came to models, and to none of those that are to be replaced."""
        names = set(self._models) if isinstance(self._models, Mapping) else set()
        if names and self._met and names.isdisjoint(self._met):
            warnings.warn(
                f"models={sorted(names)}: a run of the program asked {sorted(self._met)} and none "
                "of these, so nobody drafted; give the names of its models",
                stacklevel=2,
            )

    def _pyro_sample(self, msg: Any) -> None:
        if msg["infer"].get("_deterministic"):
            return
        if msg["is_observed"]:
            msg["done"] = msg["stop"] = True
            return
        fn = msg["fn"]
        if not isinstance(fn, LMDistribution):
            return
        own = fn.model
        self._met.add(own.name)
        small = self._models.get(own.name) if isinstance(self._models, Mapping) else self._models
        if small is None or small is own:
            return
        if small.codec.identity != own.codec.identity:
            raise GuideError(
                f"site {msg['name']!r}: {small.name} cannot draft for {own.name}, which has "
                "another tokenizer: what one writes has no probability under the other"
            )
        msg["fn"] = LMDistribution(small, fn.text, fn.spec)
