"""Selection-Inference (Creswell, Shanahan, Higgins 2022, arXiv:2205.09712), with the halter and the
value of "Faithful reasoning using large language models" (Creswell, Shanahan 2022,
arXiv:2208.14271).

    context = facts
    repeat  selection ~ LM_select(context, question)      labels of the context, nothing else
            inference ~ LM_infer(selected statements)     sees neither question nor other statements
            context  += inference
            answer    ~ LM_halt(question, inferences)     an answer, or "not yet"
            weigh by    LM_value(trace)                   log P(correct) - log P(incorrect)
    until an answer, or "Unknown" after the last step

So every statement of a trace follows from what it says it follows from, or the inference model has
erred at it: nothing else can have had an influence. The paper searches with a beam of partial
traces ranked by the value, which here is `BeamSearch`; `SMC` samples traces with probability
proportional to that of the models times the odds of the value. We know the papers' abstracts and
introductions; prompts, words and the width are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import pyro

from ppl.language import checks
from ppl.language.arguments import checked
from ppl.language.placeholders import filled
from ppl.language.primitives import condition
from ppl.language.text import Text
from ppl.lm.base import LanguageModel
from ppl.posterior.posterior import Sample
from ppl.programs.pointing import labels_of, words_of
from ppl.runtime.node import Node
from ppl.runtime.verdict import Verifier
from ppl.verifiers.generative.log_odds import LogOdds

Select = Callable[[LanguageModel, Sequence[str], str], Text]
"""Of the model, all statements, and the question: what is to be continued by labels."""
Infer = Callable[[LanguageModel, Sequence[str]], Text]
"""Of the model and the selected statements alone: what is to be continued by a new one."""
Halt = Callable[[LanguageModel, str, Sequence[str]], Text]
"""Of the model, the question, and the inferences so far: what is to be continued by an answer."""

UNKNOWN = "Unknown"

SELECT = """Point at the statements from which something new follows that helps with the question.

1. If Bo is tall then Bo is kind.
2. If Bo is old then Bo is slow.
3. Bo is tall.
Question: Is Bo kind?
Selection: [1, 3]

{statements}
Question: {question}
Selection: ["""

INFER = """Say what follows.

If Bo is tall then Bo is kind. Bo is tall. Therefore, Bo is kind.
If Al is slow then Al is poor. Al is slow. Therefore, Al is poor.
{statements} Therefore,"""

HALT = """Answer with yes, no, or unknown if what is known does not say it.

Known: Bo is kind.
Question: Is Bo kind?
Answer: yes

Known: Bo is not kind.
Question: Is Bo kind?
Answer: no

Known: Bo is tall.
Question: Is Bo kind?
Answer: unknown

Known: {statement}
Question: {question}
Answer:"""

VALUE = """{statements}
{steps}
This reasoning is"""


def numbered(statements: Sequence[str]) -> str:
    """The statements with the labels at which a selection points, one a line."""
    return "\n".join(f"{i}. {statement}" for i, statement in enumerate(statements, 1))


def ask_selection(lm: LanguageModel, statements: Sequence[str], question: str) -> Text:
    """An example, then the statements with their labels, then the question."""
    return lm.prompt(filled(SELECT, statements=numbered(statements), question=question))


def ask_inference(lm: LanguageModel, selected: Sequence[str]) -> Text:
    """Two examples, then the selected statements."""
    return lm.prompt(filled(INFER, statements=" ".join(selected)))


def ask_answer(lm: LanguageModel, question: str, inferences: Sequence[str]) -> Text:
    """Three examples, then the last inference with the question."""
    return lm.prompt(filled(HALT, statement=inferences[-1], question=question))


def _ask_value(lm: LanguageModel, trace: Text) -> Text:
    return lm.prompt(filled(VALUE, statements=trace.prompt, steps=trace.text.strip()))


@lru_cache(maxsize=8)
def trace_value(lm: LanguageModel) -> LogOdds:
    """The value function that a model gives: log P(" correct") - log P(" incorrect") after a trace.

    A trace is a text: the facts and the question are its prompt, and each step stands on a line of
    its own, with an answer behind the last.
    """
    return LogOdds(lm, _ask_value, name=f"trace_value({lm.name})")


@checked
def selection_inference(
    lm: LanguageModel | Mapping[str, LanguageModel],
    facts: Sequence[str],
    question: str,
    *,
    select: Select = ask_selection,
    infer: Infer = ask_inference,
    halt: Halt = ask_answer,
    value: Verifier | None = None,
    steps: int = 5,
    most: int = 3,
    answers: Sequence[str] = (" yes", " no"),
    undecided: str = " unknown",
    between: str = ", ",
    end: str = "]",
    max_tokens: int = 40,
) -> str:
    """Reasons step by step, each step from statements that it points at; a program.

    Under the model a trace has the probability of its selections (renormalised over labels of the
    context), inferences and verdicts; observed is `value`. A step is one checkpoint. It costs three
    calls of the model and one of the value.

        BeamSearch(3).run(selection_inference, lm, facts, question)
        SMC(16).run(selection_inference, {"select": a, "infer": b, "halt": a, "value": a}, ...)

    Args:
        lm: one model for all, or one for each of `"select"`, `"infer"`, `"halt"` and `"value"`.
        facts: the statements of the context; a statement's label is its number, from 1.
        question: what is to be answered.
        select, infer, halt: prompts. `infer` is handed the selected statements and nothing else.
        value: judges a trace (see `trace_value`, which is the default).
        steps: T, the most steps.
        most: labels in a selection.
        answers: what the halter may answer, as it follows its prompt; what is returned is stripped.
        undecided: what it says instead to go on.
        between, end: marks of a selection, see `ppl.programs.pointing.Labels`.
        max_tokens: of an inference, which ends with its line. An empty one is ruled out.

    Returns:
        The answer, or "Unknown" if the halter did not come to one. The steps are in the record:
        `derivation(sample, facts)`.
    """
    checks.count(steps=steps, most=most, max_tokens=max_tokens)
    if not facts:
        raise ValueError("facts=[]: statements to reason from, at least one")
    models = _models(lm)
    judge = trace_value(models["value"]) if value is None else value
    verdicts = words_of(models["halt"].codec, (*answers, undecided))
    context, inferences = list(facts), list[str]()
    trace = models["value"].prompt("\n".join([*facts, f"Question: {question}"]))
    for t in range(steps):
        labels = labels_of(models["select"].codec, len(context), most, between, end)
        pointer = models["select"](
            select(models["select"], tuple(context), question), allowed=labels, until=end
        )
        selected = tuple(
            context[label - 1] for label in labels.read(pyro.sample(f"select_{t}", pointer))
        )
        writer = models["infer"](
            infer(models["infer"], selected), until="\n", max_tokens=max_tokens
        )
        said = pyro.sample(f"infer_{t}", writer).text.strip()
        if not said:
            condition(False, f"says_something_{t}")
        context += [said] if said not in context else []
        inferences.append(said)
        halter = models["halt"](
            halt(models["halt"], question, tuple(inferences)), allowed=verdicts, until=verdicts.over
        )
        answer = pyro.sample(f"halt_{t}", halter).text
        trace = trace + f"\n{' '.join(selected)} Therefore, {said}"
        if answer != undecided:
            trace = trace + f"\nAnswer:{answer}"
        pyro.sample(f"value_{t}", judge(trace), obs=True)
        if answer != undecided:
            return str(answer.strip())
    return UNKNOWN


@dataclass(frozen=True)
class Inference:
    """A step of a trace.

    Attributes:
        premises: the selected statements.
        conclusion: what was said to follow.
    """

    premises: tuple[str, ...]
    conclusion: str

    def __str__(self) -> str:
        return f"{' '.join(self.premises)} Therefore, {self.conclusion}"


@checked
def derivation(particle: Sample | Node, facts: Sequence[str]) -> list[Inference]:
    """The steps of a particle of `selection_inference`, from its record.

    Args:
        particle: a sample of a posterior, or a node of a search.
        facts: those of the program.
    """
    records = particle.records if isinstance(particle, Sample) else particle.history
    said = {r.name: r.value.text for r in records if r.kind == "choice"}
    context, found = list(facts), list[Inference]()
    for t in range(len(said)):
        if f"infer_{t}" not in said:
            break
        digits = "".join(c if c.isdigit() else " " for c in said[f"select_{t}"])
        conclusion = said[f"infer_{t}"].strip()
        found.append(Inference(tuple(context[int(n) - 1] for n in digits.split()), conclusion))
        context += [conclusion] if conclusion not in context else []
    return found


_PARTS = ("select", "infer", "halt", "value")


def _models(lm: LanguageModel | Mapping[str, LanguageModel]) -> Mapping[str, LanguageModel]:
    if isinstance(lm, LanguageModel):
        return dict.fromkeys(_PARTS, lm)
    if set(lm) != set(_PARTS):
        raise ValueError(f"lm: a model for each of {', '.join(_PARTS)}; got {', '.join(lm)}")
    return lm
