"""Guesses of what rows draw next, which one pass computes along with what they have drawn: what
there is to set.

A guess changes no draw. A row draws each token from the model's own law by its own number, as
without guesses; a guess that is right has its states already, one that is wrong is forgotten.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ppl.errors import UnsupportedModelError
from ppl.language import checks

if TYPE_CHECKING:
    from ppl.lm.base import LanguageModel
    from ppl.lm.decode import LogitsModel


@dataclass(frozen=True)
class Drafts:
    """How guesses are made; `ppl.load(..., drafts=)`.

    Attributes:
        source: `"siblings"` guesses from what followed the same tokens before, in any text of the
            model; a smaller language model with the same tokenizer draws guesses itself, with the
            numbers, masks and settings of the row.
        depth: most guesses a row and pass.
        ngram: most tokens that are looked up together, for `"siblings"`.
        switch: `"auto"` measures what passes cost and how many guesses are right, and guesses as
            far as that saves time, if it does; `"always"` guesses as far as it can.
    """

    source: Literal["siblings"] | LogitsModel = "siblings"
    depth: int = 8
    ngram: int = 4
    switch: Literal["auto", "always"] = "auto"

    def __post_init__(self) -> None:
        checks.count(depth=self.depth, ngram=self.ngram)
        if self.switch not in ("auto", "always"):
            raise ValueError(f"switch={self.switch!r}: 'auto' or 'always'")
        if isinstance(self.source, str) and self.source != "siblings":
            raise ValueError(
                f"drafts={self.source!r}: 'siblings', or a model: drafts=ppl.load(...)"
            )


def drafts_of(given: str | LanguageModel | Drafts, model: LogitsModel) -> Drafts:
    """What `drafts=` says.

    Raises:
        ValueError: another word than "siblings".
        UnsupportedModelError: a model that gives no logits here, or has another tokenizer.
    """
    if not isinstance(given, Drafts):
        given = Drafts(given)  # type: ignore[arg-type]
    small = given.source
    if isinstance(small, str):
        return given
    if not hasattr(small, "decoder"):
        raise UnsupportedModelError(
            f"drafts={small!r}: guesses are drawn here, by a model in this process"
        )
    if small.codec.identity != model.codec.identity:
        raise UnsupportedModelError(
            f"drafts={small!r}: it has another tokenizer than {model.name}; only a model with the "
            "same can guess its tokens"
        )
    return given
