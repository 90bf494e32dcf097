"""Language models as distributions: the protocol, the Hugging Face engine, the table model."""

from typing import TYPE_CHECKING

from ppl.lazy import attach

if TYPE_CHECKING:
    from ppl.lm.base import LanguageModel, LMDistribution
    from ppl.lm.decode import LogitsModel
    from ppl.lm.huggingface import HFModel
    from ppl.lm.loading import load, register
    from ppl.lm.table import TableLM
else:
    __getattr__, __dir__ = attach(__name__)

__all__ = [
    "HFModel",
    "LMDistribution",
    "LanguageModel",
    "LogitsModel",
    "TableLM",
    "load",
    "register",
]
