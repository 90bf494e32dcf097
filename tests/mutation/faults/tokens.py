"""Faults in what tokens say, where strings stand, and which tokenizer made what."""

from fault import Fault

CODEC, TEXT, STEPS = "ppl/language/codec.py", "ppl/language/text.py", "ppl/language/steps.py"
TOKENIZER, CHAT, BASE = "ppl/lm/tokenizer.py", "ppl/lm/conversation.py", "ppl/lm/base.py"
TEXTS = "ppl/lm/texts.py"
STOPPING, GRAMMAR, PRM = (
    "ppl/lm/stopping.py",
    "verifiers/exact/grammar.py",
    "verifiers/models/prm.py",
)
TOKENS, MIXING, TALK = "tests/test_tokenizers.py", "tests/test_mixing.py", "tests/test_chat.py"

FAULTS = [
    # A token belongs to one tokenizer.
    Fault(
        TEXT,
        "if made_with is not mine and made_with is not None and made_with != mine:",
        "if False:",
        MIXING,
    ),
    Fault(BASE, "if made_with is not mine and made_with != mine:", "if False:", MIXING),
    Fault(
        BASE,
        "if made_with is not mine and made_with is not None and made_with != mine:",
        "if False:",
        MIXING,
    ),
    Fault(CODEC, "self.end_tokens == other.end_tokens\n", "True\n", MIXING),
    Fault(CODEC, "name: str = field(compare=False)", "name: str", MIXING),
    Fault(
        TOKENIZER, "return digest([how, json.dumps(what).encode()])", "return digest([how])", MIXING
    ),
    Fault(TOKENIZER, "return digest([how, json.", "return digest([b'', json.", MIXING),
    Fault(TOKENIZER, ", sorted(self.special_tokens)]", "]", MIXING),
    Fault(
        TEXT,
        "return self.tokens, self.text, self.reason, self.made_with",
        "return self.tokens, self.text, self.reason, None",
        MIXING,
    ),
    # Its string stands somewhere.
    Fault(TOKENIZER, "string = self.decode((front, token)) if said else", "string =", TOKENS),
    Fault(
        TOKENIZER,
        "if self.decode_after(rest) == string:",
        "if False:",
        TOKENS,
        "the first string in front is right for all families here",
    ),
    Fault(TOKENIZER, "if self.decode_after(alone) == string or not string:", "if True:", TOKENS),
    Fault(TOKENIZER, "return tuple(whole[:start])", "return ()", TOKENS),
    Fault(TOKENIZER, "range(0x21, 0x7F)", "range(0x20, 0x7F)", TOKENS),
    Fault(TOKENIZER, "1 + max(self._vocabulary().values(), default=", "max((), default=", MIXING),
    Fault(TEXTS, "if tokens[: len(first)] != first:", "if True:", TOKENS),
    Fault(
        TEXTS,
        "self.codec.encode_after(checked_string(value",
        "self.codec.encode(checked_string(value",
        TOKENS,
    ),
    Fault(
        TEXT,
        "self.codec.encode_after(checked_string(other",
        "self.codec.encode(checked_string(other",
        TOKENS,
    ),
    Fault(
        PRM, "self.codec.encode_after(step, plain=True)", "self.codec.encode_after(step)", TOKENS
    ),
    Fault(PRM, "self.codec.encode_after(step, plain=True)", "self.codec.encode(step)", TOKENS),
    # A character is there when it is complete.
    Fault(CODEC, "self._utf8.decode(last)\n", "pass\n", TOKENS),
    Fault(CODEC, "len(last) >= _LONGEST_CHARACTER:", "len(last) >= 1:", TOKENS),
    Fault(
        CODEC,
        'b"".join(map(self._codec.piece, tokens)), final)',
        'b"".join(map(self._codec.piece, tokens)), True)',
        TOKENS,
    ),
    Fault(
        CODEC,
        'b"".join(map(self._codec.piece, tokens)), final)',
        'b"".join(map(self._codec.piece, tokens)), False)',
        TOKENS,
    ),
    Fault(
        TEXT,
        "reader = Reader(self.codec, self.tokens[: self.prompt_length])",
        "reader = Reader(self.codec)",
        TOKENS,
    ),
    # Steps end where their rule says.
    Fault(STEPS, "known + 1 - max(map(len, self.strings))", "known", TOKENS),
    Fault(
        STEPS,
        "known + 1 - max(map(len, self.strings))",
        "known + 1 - min(map(len, self.strings))",
        TOKENS,
    ),
    Fault(STOPPING, "Reader(codec, before) if reads", "Reader(codec) if reads", TOKENS),
    Fault(
        STOPPING, "self._rule(self._text, len(new))", "self._rule(self._text, len(new) - 1)", TOKENS
    ),
    # Grammars read what texts read, in every spelling.
    Fault(GRAMMAR, "'%llguidance {\"no_forcing\": true}'", "''", TOKENS),
    Fault(GRAMMAR, "| dict(codec.special_tokens)", "", TOKENS),
    # Conversations.
    Fault(CHAT, "token[0] + mark + token[1:]", "mark + token", TALK),
    Fault(CHAT, "while token in content:", "if token in content:", TALK),
    Fault(
        CHAT,
        'control = special if message["role"] == "assistant" else special + spelled',
        "control = special",
        TALK,
    ),
    Fault(
        CHAT,
        'control = special if message["role"] == "assistant" else special + spelled',
        "control = special + spelled",
        TALK,
    ),
    Fault(CHAT, "continue_final_message=goes_on", "continue_final_message=False", TALK),
    Fault(CHAT, "if argument not in template:", "if False:", TALK),
    Fault(CHAT, 'and message["content"].strip() not in rendered:', "and False:", TALK),
    Fault(CHAT, "if _apply(tokenizer, name, other, arguments) == rendered:", "if True:", TALK),
    Fault(TEXT, "if self.finished:", "if False:", TALK),
]
