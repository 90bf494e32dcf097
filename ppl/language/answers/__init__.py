"""What the answer of a text is, and when two answers are equal. One law for the whole library."""

from ppl.language.answers.equality import equality, readable
from ppl.language.answers.extraction import Answer, extract_answer
from ppl.language.answers.notation import normal_form
from ppl.language.answers.values import Equality

__all__ = ["Answer", "Equality", "equality", "extract_answer", "normal_form", "readable"]
