"""Language models as distributions: the protocol, the Hugging Face engine, the table model."""

from ppl.lm.base import LanguageModel, LMDistribution
from ppl.lm.decode import LogitsModel
from ppl.lm.huggingface import HFModel
from ppl.lm.load import load, register
from ppl.lm.table import TableLM

__all__ = [
    "HFModel",
    "LMDistribution",
    "LanguageModel",
    "LogitsModel",
    "TableLM",
    "load",
    "register",
]
