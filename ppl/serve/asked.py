"""A request's body, read and held to the limits: which search it asks for, and how to answer."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ppl.language.cost import Budget
from ppl.lm.sampling import Warp
from ppl.searchers.search import Searcher
from ppl.serve.choice import searcher_of
from ppl.serve.fields import Fields
from ppl.serve.limits import Limits
from ppl.serve.offer import RULES, Menu, Offered, Rule
from ppl.serve.programs import Answering, Question
from ppl.serve.refusal import RefusedError

Form = Literal["chat", "completion"]
# What a completion without max_tokens gets, as OpenAI and vLLM have it.
_COMPLETION_TOKENS = 16
_MOST_STOPS = 16
_ROLES = ("system", "developer", "user", "assistant")
# Fields that clients send along and that no answer depends on.
_CARRIED = ("user", "metadata", "safety_identifier", "prompt_cache_key")
# Fields that would change the answer, with the values that do not.
_REFUSED: Mapping[str, tuple[Any, ...]] = {
    "logit_bias": ({},),
    "frequency_penalty": (0, 0.0),
    "presence_penalty": (0, 0.0),
    "service_tier": ("auto", "default"),
}
_REFUSED_IN: Mapping[Form, Mapping[str, tuple[Any, ...]]] = {
    "chat": {
        "logprobs": (False,),
        "top_logprobs": (0,),
        "tools": ([],),
        "tool_choice": ("none", "auto"),
        "functions": ([],),
        "function_call": ("none", "auto"),
        "response_format": ({"type": "text"},),
        "modalities": (["text"],),
        "store": (False,),
    },
    "completion": {"logprobs": (), "echo": (False,), "suffix": ("",), "best_of": (1,)},
}


@dataclass(frozen=True, eq=False)
class Asked:
    """What a request asks for.

    Attributes:
        model: as the request writes it.
        question, program, program_name, searcher, rule, budget, seed: of the search.
        offered: the model's offer.
        answers: how many are wanted.
        stream: whether the answer comes as events.
        usage: whether the events end with what was used.
        form: of the answer.
    """

    model: str
    offered: Offered
    question: Question
    program: Answering
    program_name: str
    searcher: Searcher[Any]
    rule: Rule
    budget: Budget
    seed: int
    answers: int
    stream: bool
    usage: bool
    form: Form


def asked(body: Mapping[str, Any], form: Form, menu: Menu, limits: Limits) -> Asked:
    """Reads a request. Raises RefusedError, which names the field."""
    fields = Fields(body)
    model = fields.word("model")
    if model is None:
        raise RefusedError(400, "model: missing", param="model", code="missing")
    _, offered, behind = menu.find(model)
    ours = fields.object("ppl")
    name = ours.word("program") or offered.program
    if name not in menu.programs:
        raise ours.refuse("program", f"one of {', '.join(menu.programs)}")
    searcher = _searcher(ours, behind, offered, limits)
    question = _question(fields, form, offered)
    if name == "whole" and question.verifier is None and searcher.steers:
        raise RefusedError(
            400,
            f"{type(searcher).__name__} chooses between steps, and this model answers in one piece "
            "and has no verifier: ask for 'BestOfN(...)', or for ppl.program='steps'",
            param=ours.name("searcher"),
            code="invalid_searcher",
        )
    options = fields.object("stream_options")
    found = Asked(
        model=model,
        offered=offered,
        question=question,
        program=menu.programs[name],
        program_name=name,
        searcher=searcher,
        rule=_rule(ours) or offered.rule,
        budget=_budget(ours.object("budget"), limits),
        seed=_seed(fields, ours),
        answers=fields.whole("n", 1, limits.particles) or 1,
        stream=fields.flag("stream"),
        usage=options.flag("include_usage"),
        form=form,
    )
    options.neutral({"include_obfuscation": (False,)})
    for carried in _CARRIED:
        fields.any(carried)
    fields.neutral(_REFUSED)
    fields.neutral(_REFUSED_IN[form])
    for each in (options, ours, fields):
        each.end()
    return found


def _searcher(ours: Fields, behind: str | None, offered: Offered, limits: Limits) -> Searcher[Any]:
    text = ours.word("searcher")
    if text is not None and behind is not None and text != behind:
        raise ours.refuse("searcher", f"the model's name asks for {behind!r}: say it once")
    if text is not None:
        return searcher_of(text, limits.particles, ours.name("searcher"))
    if behind is not None:
        return searcher_of(behind, limits.particles, "model")
    return offered.searcher


def _rule(ours: Fields) -> Rule | None:
    rule = ours.word("rule")
    for known in RULES:
        if rule == known:
            return known
    if rule is not None:
        raise ours.refuse("rule", f"one of {', '.join(RULES)}")
    return None


def _budget(fields: Fields, limits: Limits) -> Budget:
    granted = limits.budget
    budget = Budget(
        tokens=fields.whole("tokens", 1, granted.tokens) or granted.tokens,
        calls=fields.whole("calls", 1, granted.calls) or granted.calls,
        seconds=fields.number("seconds", granted.seconds) or granted.seconds,
    )
    fields.end()
    return budget


def _seed(fields: Fields, ours: Fields) -> int:
    """The request's, or a fresh one, which the answer tells: asking twice draws twice."""
    seed, own = fields.whole("seed"), ours.whole("seed")
    if seed is not None and own is not None and seed != own:
        raise ours.refuse("seed", f"seed={seed} says another: say it once")
    given = own if seed is None else seed
    return secrets.randbelow(2**31) if given is None else given


def _question(fields: Fields, form: Form, offered: Offered) -> Question:
    limit = fields.whole("max_tokens", 1)
    messages = prompt = None
    if form == "chat":
        newer = fields.whole("max_completion_tokens", 1)
        if limit is not None and newer is not None and limit != newer:
            raise fields.refuse("max_completion_tokens", f"max_tokens={limit} says another")
        limit = newer if limit is None else limit
        messages = _messages(fields)
    else:
        limit = limit or _COMPLETION_TOKENS
        prompt = _prompt(fields)
    return Question(
        lm=offered.lm,
        verifier=offered.verifier,
        messages=messages,
        prompt=prompt,
        max_tokens=limit,
        stop=fields.words("stop", _MOST_STOPS),
        warp=_warp(fields),
        step=offered.step,
    )


def _warp(fields: Fields) -> dict[str, Any]:
    given: dict[str, Any] = {
        "temperature": fields.number("temperature"),
        "top_p": fields.number("top_p"),
        "top_k": fields.whole("top_k", -1),
        "min_p": fields.number("min_p"),
    }
    if given["top_k"] in (0, -1):  # as vLLM has it: all of them
        given["top_k"] = None
    warp = {name: value for name, value in given.items() if value is not None}
    for name, value in warp.items():
        try:
            Warp(**{name: value})
        except ValueError as error:
            raise RefusedError(400, str(error), param=name, code="invalid_value") from error
    return warp


def _messages(fields: Fields) -> tuple[dict[str, str], ...]:
    messages = fields.any("messages")
    if not isinstance(messages, list) or not messages:
        raise fields.refuse("messages", "a list of messages, at least one")
    found = []
    for i, message in enumerate(messages):
        if not isinstance(message, dict):
            raise fields.refuse("messages", f"[{i}] is no object")
        said = Fields(message, f"messages[{i}].")
        role = said.word("role")
        if role not in _ROLES:
            raise said.refuse("role", f"one of {', '.join(_ROLES)}")
        found.append({"role": role, "content": _content(said)})
        said.neutral({"name": (), "tool_calls": ([],), "refusal": (), "audio": ()})
        said.end()
    return tuple(found)


def _content(said: Fields) -> str:
    """The text of a message, whose parts are joined."""
    content = said.any("content")
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise said.refuse("content", "a string, or a list of text parts")
    parts = []
    for part in content:
        if not isinstance(part, dict) or part.get("type") != "text":
            raise said.refuse("content", "this server reads text parts only")
        if not isinstance(part.get("text"), str):
            raise said.refuse("content", "a text part has a text")
        parts.append(part["text"])
    return "".join(parts)


def _prompt(fields: Fields) -> str | tuple[int, ...]:
    prompt = fields.any("prompt")
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
        prompt = prompt[0]
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, list) and all(type(token) is int for token in prompt):
        return tuple(prompt)
    raise fields.refuse(
        "prompt", "a string or token ids; several prompts are several requests, which share batches"
    )
