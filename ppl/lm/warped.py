"""A program whose language models draw with another warp."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pyro  # noqa: F401 (all of it before its parts: threads)
from pyro.poutine.messenger import Messenger

from ppl.language.arguments import checked
from ppl.lm.base import LMDistribution
from ppl.lm.sampling import Warp

_PLAIN = Warp()


@checked
def warped(
    program: Callable[..., Any], *, temperature: float = 1.0, min_p: float = 0.0
) -> Callable[..., Any]:
    """The program with a temperature and a floor wherever it has said nothing about either.

    Draws of language models that have a warp of their own keep it, and observations are what they
    are. The warped law is the law of the new program: nothing is weighed.

    Args:
        program: the program.
        temperature, min_p: as of `lm(text, ...)`.
    """
    return functools.partial(_run, program, Warp(temperature, min_p=min_p))


def _run(program: Callable[..., Any], warp: Warp, *args: Any, **kwargs: Any) -> Any:
    with _Warping(warp):
        return program(*args, **kwargs)


class _Warping(Messenger):  # type: ignore[misc]
    def __init__(self, warp: Warp) -> None:
        super().__init__()
        self._warp = warp

    def _pyro_sample(self, msg: Any) -> None:
        fn = msg["fn"]
        if isinstance(fn, LMDistribution) and not msg["is_observed"] and fn.spec.warp == _PLAIN:
            msg["fn"] = fn.respecified(replace(fn.spec, warp=self._warp))
