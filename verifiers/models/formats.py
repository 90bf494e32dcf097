"""How published process reward models want to be asked: one declared format for each.

A format says how question and steps become tokens, where the scores are read, how logits become a
probability, and what that probability means. A rendering is a list of token pieces, one per step:
the score of step t is read at the last token of piece t. So there are as many scores as steps, and
appending a step cannot move an earlier score.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from ppl.errors import PRMFormatError
from ppl.language.arguments import check_fields, checked
from ppl.runtime.verdict import Aggregate, Meaning
from ppl.verifiers.escaping import escaped
from ppl.verifiers.models.heads import Head, Labels, Layers, Words

Tokens = tuple[int, ...]
Render = Callable[[Any, str, Sequence[str]], list[Tokens]]
"""(tokenizer, question, steps) to one token piece per step. Steps are stripped and not blank."""


@dataclass(frozen=True)
class PRMFormat:
    """Everything one has to know to run a process reward model.

    Attributes:
        name: its name, see `FORMATS`.
        head: where the number comes from: `Labels`, `Words` or `Layers`.
        render: question and steps to tokens; None reads the text's own tokens at the end of every
            step (token in, token out). All others render the text anew, from its strings.
        meaning: what the number says, see `ppl.runtime.verdict.Meaning`.
        aggregate: default for how step scores combine; None takes what suits the meaning, the
            product of steps and the latest of anything else (the latest step's score would drop
            what was said about those before it).
        tag: string at whose token the scores are read, "" if there is none. Where a text itself
            contains it (or a special token), a space is put into it.
        models: regular expression for the last part of the names of models of this format.
        architecture: what `config.json` calls the class, "" if that does not tell.
    """

    name: str
    head: Head
    render: Render | None = None
    meaning: Meaning = "step"
    aggregate: Aggregate | None = None
    tag: str = ""
    models: str = ""
    architecture: str = ""

    def __post_init__(self) -> None:
        check_fields(self)


def cut(tokenizer: Any, strings: Sequence[str], *, bos: bool = False) -> list[Tokens]:
    """Encodes the strings as one text and cuts the tokens where the strings end.

    Args:
        tokenizer: a fast tokenizer, which knows the characters of every token.
        strings: the parts.
        bos: put the tokenizer's begin-of-text token first.

    Raises:
        PRMFormatError: a token reaches over the end of a string.
    """
    if not tokenizer.is_fast:
        raise PRMFormatError("this format needs a fast tokenizer: positions come from its offsets")
    encoded = tokenizer(
        "".join(strings), add_special_tokens=False, return_offsets_mapping=True, verbose=False
    )
    ends = list(accumulate(map(len, strings)))
    pieces: list[list[int]] = [[] for _ in strings]
    if bos and tokenizer.bos_token_id is not None:
        pieces[0].append(tokenizer.bos_token_id)
    number = 0
    for token, (start, end) in zip(encoded.input_ids, encoded.offset_mapping, strict=True):
        while start >= ends[number] and number + 1 < len(ends):
            number += 1
        if end > ends[number]:
            raise PRMFormatError(
                f"the token {tokenizer.decode([token])!r} reaches over the end of "
                f"{strings[number]!r}: the format's tag must be a token of its own"
            )
        pieces[number].append(token)
    return [tuple(piece) for piece in pieces]


@checked
def tagged(tag: str, *, between: str = "", start: str = "{question}\n", bos: bool = True) -> Render:
    """Question, then every step with a tag after it: `start step1 tag between step2 tag ...`.

    Args:
        tag: at whose last token the score is read.
        between: what separates a tag from the next step.
        start: what comes first; `{question}` stands for the question.
        bos: put the tokenizer's begin-of-text token first.
    """

    def render(tokenizer: Any, question: str, steps: Sequence[str]) -> list[Tokens]:
        first = start.replace("{question}", question)
        strings = [(between if i else first) + step + tag for i, step in enumerate(steps)]
        return cut(tokenizer, strings, bos=bos)

    return render


def _qwen(tokenizer: Any, question: str, steps: Sequence[str]) -> list[Tokens]:
    messages = [
        {
            "role": "system",
            "content": "Please reason step by step, and put your final answer within \\boxed{}.",
        },
        {"role": "user", "content": question},
    ]
    start = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return cut(tokenizer, [start * (i == 0) + s + "<extra_0>" for i, s in enumerate(steps)])


def _skywork(tokenizer: Any, question: str, steps: Sequence[str]) -> list[Tokens]:
    """Every line is encoded on its own and ended by the newline's token. Lines inside a step get
    their newline too, but the step's score is read at its last one."""

    def encode(string: str) -> list[int]:
        ids: list[int] = tokenizer.encode(string, add_special_tokens=False)
        return ids

    newline = encode("\n")[-1]
    pieces = []
    for step in steps:
        lines = [encode(line) for line in step.split("\n") if line.strip()]
        pieces.append(tuple(token for line in lines for token in (*line, newline)))
    first = encode((tokenizer.bos_token or "") + question + "\n")
    return [(*first, *pieces[0]), *pieces[1:]]


def _rlhflow(tokenizer: Any, question: str, steps: Sequence[str]) -> list[Tokens]:
    """A dialogue in which the user gives the steps and the assistant answers "+" to each.

    A score is read where the model is about to answer. Step t is judged as if all before it had
    been found right, as the model was trained; "+" signs in the mathematics are never looked at.
    """
    turns: list[dict[str, str]] = []
    done, strings = "", []
    for step in steps:
        turns.append({"role": "user", "content": step if turns else f"{question} {step}"})
        dialogue = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        if not dialogue.startswith(done):
            raise PRMFormatError("the chat template rewrites earlier turns when one is added")
        strings.append(dialogue[len(done) :])
        done = dialogue
        turns.append({"role": "assistant", "content": "+"})
    return cut(tokenizer, strings)


TOKEN_CLASSIFICATION = PRMFormat("token-classification", Labels(), meaning="value")

FORMATS: dict[str, PRMFormat] = {
    f.name: f
    for f in [
        TOKEN_CLASSIFICATION,
        # Model card and paper (arXiv 2501.07301): labels filtered by consensus with a judge of
        # steps; the product ranks whole responses.
        PRMFormat(
            "qwen2.5-math-prm",
            Layers(("score.0", "score.2")),
            _qwen,
            meaning="step",
            aggregate="prod",
            tag="<extra_0>",
            models=r"Qwen2\.5-Math-PRM.*",
            architecture="Qwen2ForProcessRewardModel",
        ),
        # arXiv 2312.08935: labels are rollouts from the step; the paper ranks by the minimum.
        PRMFormat(
            "math-shepherd",
            Words("-", "+"),
            tagged(" ки", between="\n", start="{question} "),
            meaning="value",
            tag=" ки",
            models=r"math-shepherd.*",
        ),
        # Skywork's inference code; how its labels were made is not said, so it is read with care.
        PRMFormat(
            "skywork-o1-open-prm",
            Layers(("v_head.summary",)),
            _skywork,
            meaning="value",
            models=r"Skywork-o1-Open-PRM.*",
            architecture="Qwen2ForPrmModel",
        ),
        # RLHF-Reward-Modeling repository: labels are rollouts; its best-of-N takes the mean.
        PRMFormat(
            "rlhflow-llama3-prm",
            Words("-", "+"),
            _rlhflow,
            meaning="value",
            models=r"Llama3\.1-8B-PRM.*",
        ),
    ]
}
"""The formats known by name. Add your own: `FORMATS[mine.name] = mine`, or pass `format=mine`."""


def format_of(source: str | Path) -> PRMFormat:
    """The format of a model, from its name or from the `config.json` of its folder."""
    path = Path(source).expanduser()
    for known in FORMATS.values():
        if known.models and re.fullmatch(known.models, path.name, re.IGNORECASE):
            return known
    if (path / "config.json").is_file():
        classes = json.loads((path / "config.json").read_text()).get("architectures") or []
        for known in FORMATS.values():
            if known.architecture and known.architecture in classes:
                return known
    return TOKEN_CLASSIFICATION


def self_check(format: PRMFormat, tokenizer: Any, name: str) -> None:
    """Renders a few texts, so that a tokenizer that does not fit is refused when loading.

    Raises:
        PRMFormatError: labels are not one per step, a piece changes when a step is appended, or
            the tag is not one token that occurs only where it should.
    """
    if format.render is None:
        return
    inner = escaped(f"What is {format.tag} 2 + 3?", tokenizer, format.tag)
    steps = [inner, "First 2 + 3 = 5\nas one sees.", "The answer is \\boxed{5}."]
    pieces = format.render(tokenizer, inner, steps)
    if len(pieces) != len(steps) or not all(pieces):
        raise PRMFormatError(
            f"{name}: format {format.name!r} renders {len(steps)} steps as {len(pieces)} pieces of "
            f"{[len(p) for p in pieces]} tokens; give one piece per step, none empty"
        )
    for t in range(1, len(steps)):
        if format.render(tokenizer, inner, steps[:t]) != pieces[:t]:
            raise PRMFormatError(
                f"{name}: in format {format.name!r} the tokens of step {t} change when a step is "
                "appended; end each step with a token of its own"
            )
    if format.tag:
        at_end = {piece[-1] for piece in pieces}
        token = pieces[0][-1]
        said = tokenizer.decode([token]).strip()
        everywhere = sum(piece.count(token) for piece in pieces)
        if len(at_end) != 1 or said != format.tag.strip() or everywhere != len(steps):
            raise PRMFormatError(
                f"{name}: the tag {format.tag!r} of format {format.name!r} must be one token that "
                f"occurs once per step; here steps end with {sorted(at_end)} ({said!r}), which "
                f"occur {everywhere} times in {len(steps)} steps: is it the right tokenizer?"
            )
