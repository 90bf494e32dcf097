"""Formal languages in two roles: as a verifier of texts, and as a mask of the next token.

A mask (`allowed=grammar.mask(text)`) makes every draw obey, but renormalising token by token bends
the distribution: it draws from

    q(x) = prod_t p(x_t | x_<t) / Z_t,    Z_t = mass of the tokens allowed after x_<t,

which is not the model's own distribution given that the text obeys, p(x | x in L), because a
beginning that leaves little mass to go on (small Z_t) is not punished for it. The importance weight
p(x) / q(x) = prod_t Z_t straightens it. In a program: let the *model* draw freely and observe the
grammar, and let the *guide* draw with the mask; the library weighs by p / q.

Parsing and masks: llguidance (extra `grammar`). See also Park et al. 2024, "Grammar-aligned
decoding"; Loula et al. 2025, "Syntactic and semantic control of large language models via SMC".
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppl.errors import GrammarError
from ppl.language.arguments import checked
from ppl.language.codec import Codec
from ppl.language.text import Text
from ppl.runtime.verdict import JudgeRequest, Verifier

Tokens = tuple[int, ...]
_STATES = 4096  # parser states kept, the least recently used go first
# Where only one string can follow, llguidance would allow only its usual tokens; but a model may
# spell it otherwise, and a guide that never does so gives wrong weights.
_EVERY_SPELLING = '%llguidance {"no_forcing": true}'


class Grammar(Verifier):
    """Texts of a context-free language, written in llguidance's dialect of Lark.

    As a verifier it says 1 or 0: an unfinished text must be the beginning of a text of the
    language, a finished one must belong to it. The language speaks of what follows the prompt.

    Args:
        lark: the grammar; its start rule is `start`.
        name: shown in messages.

    Raises:
        GrammarError: the grammar does not compile, or llguidance is not installed.

    Example:
        >>> from ppl.verifiers import Grammar
        >>> sums = Grammar('start: NUMBER ("+" NUMBER)*' + chr(10) + 'NUMBER: /[0-9]+/')
    """

    aggregate = "last"
    floor = 0.0

    @checked
    def __init__(self, lark: str, *, name: str | None = None) -> None:
        self._compile(lark, name or f"Grammar({lark!r})", "lark")

    def _compile(self, lark: str, name: str, argument: str) -> None:
        matcher = _llguidance().LLMatcher
        self.name, self._grammar = name, matcher.grammar_from_lark(f"{lark}\n{_EVERY_SPELLING}")
        complaint = matcher.validate_grammar(self._grammar)
        if complaint:
            raise GrammarError(f"{argument}: {name} does not compile: {complaint}")
        self._states: OrderedDict[tuple[Codec, Tokens], Any] = OrderedDict()

    @checked
    def mask(self, text: Text) -> Callable[[Tokens], Tensor]:
        """What may follow `text`, for `lm(text, allowed=...)`: from the new tokens to a mask `[V]`.

        The end of the text is allowed exactly where the text belongs to the language.
        """
        return _Following(self, text)

    def judge(self, requests: Sequence[JudgeRequest]) -> list[Sequence[float]]:
        """0 if some member of the language begins so (once ended: is the text), else -inf."""
        return [[0.0 if self._obeys(request.text) else -np.inf] for request in requests]

    def _obeys(self, text: Text) -> bool:
        tokens = text.tokens[text.prompt_length :]
        if text.finished:  # the last token ended it, perhaps that of another model
            tokens = tokens[:-1]
        state = self._state(text.codec, tokens)
        return state is not None and (not text.finished or bool(state.is_accepting()))

    def _state(self, codec: Codec, tokens: Tokens) -> Any:
        """The parser after `tokens`, None if they leave the language; shared, never changed."""
        known = next(
            (n for n in range(len(tokens), -1, -1) if (codec, tokens[:n]) in self._states), -1
        )
        if known < 0:
            start = _llguidance().LLMatcher(_tokenizer(codec), self._grammar, log_level=0)
            self._remember((codec, ()), start)
            known = 0
        state = self._remember((codec, tokens[:known]), self._states[codec, tokens[:known]])
        for n in range(known, len(tokens)):
            if state is not None:
                state = state.deep_copy()
                legal = state.validate_tokens([tokens[n]]) == 1
                state = state if legal and state.consume_token(tokens[n]) else None
            self._remember((codec, tokens[: n + 1]), state)
        return state

    def _remember(self, key: tuple[Codec, Tokens], state: Any) -> Any:
        self._states[key] = state
        self._states.move_to_end(key)
        if len(self._states) > _STATES:
            self._states.popitem(last=False)
        return state


class _Following:
    """What may follow a text; as `allowed=` of a site it goes by the grammar's name."""

    def __init__(self, grammar: Grammar, text: Text) -> None:
        self._grammar, self._codec = grammar, text.codec
        self._begun = text.tokens[text.prompt_length :]
        self.fingerprint = (grammar.name, self._begun)

    def __call__(self, new: Tokens) -> Tensor:
        state, size = self._grammar._state(self._codec, self._begun + tuple(new)), self._codec.size
        if state is None:
            return torch.zeros(size, dtype=torch.bool)
        bits = np.frombuffer(state.compute_bitmask(), dtype=np.uint8)
        flags = np.unpackbits(bits, bitorder="little", count=size)
        return torch.from_numpy(flags.view(np.bool_))


class Regex(Grammar):
    """Texts that a regular expression matches as a whole (Rust's syntax, no look-around).

    Args:
        pattern: the expression.
        name: shown in messages.
    """

    @checked
    def __init__(self, pattern: str, *, name: str | None = None) -> None:
        grammar = json.loads(_llguidance().LLMatcher.grammar_from_regex(pattern))
        self._compile(
            grammar["grammars"][0]["lark_grammar"], name or f"Regex({pattern!r})", "pattern"
        )


class JsonSchema(Grammar):
    """JSON texts that a schema accepts.

    Args:
        schema: a JSON schema, as a mapping or a string.
        whitespace: whether blanks between the parts of the JSON text are allowed; without them
            every value has fewer spellings.
        name: shown in messages.
    """

    @checked
    def __init__(
        self,
        schema: Mapping[str, Any] | str,
        *,
        whitespace: bool = False,
        name: str | None = None,
    ) -> None:
        text = schema if isinstance(schema, str) else json.dumps(schema)
        try:
            grammar = _llguidance().LLMatcher.grammar_from_json_schema(
                text, overrides={"whitespace_flexible": whitespace}
            )
        except ValueError as error:
            raise GrammarError(f"the JSON schema cannot be read: {error}") from error
        inner = json.loads(grammar)["grammars"][0]["json_schema"]
        self._compile(f"start: %json {json.dumps(inner)}", name or f"JsonSchema({text})", "schema")


def _llguidance() -> Any:
    try:
        import llguidance
    except ImportError as error:
        raise GrammarError(
            "grammars need the package llguidance: pip install 'ppl-search[grammar]'"
        ) from error
    return llguidance


@lru_cache(maxsize=8)
def _tokenizer(codec: Codec) -> Any:
    """llguidance's view of a tokenizer; takes about a second for a large vocabulary."""
    wrapper = _llguidance().TokenizerWrapper(_Pieces(codec))
    return _llguidance().LLTokenizer(wrapper, eos_token=sorted(codec.end_tokens))


class _Pieces:
    """A codec spelled out token by token: a grammar reads what `Text.text` reads."""

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self.eos_token_id = min(codec.end_tokens)
        self.bos_token_id = None
        self.tokens = [codec.piece(token) for token in range(codec.size)]
        special = dict.fromkeys(codec.end_tokens, "<end>") | dict(codec.special_tokens)
        for token, name in special.items():
            self.tokens[token] = name.encode()
        self.special_token_ids = sorted(special)

    def __call__(self, string: str | bytes) -> list[int]:
        raise ValueError(f"nothing is to be encoded, yet {string!r} was asked for")
