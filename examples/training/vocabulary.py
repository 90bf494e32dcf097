"""One vocabulary for all tasks: numbers, steps, cells, words of questions are tokens.

A lossless byte-level tokenizer in Hugging Face format whose pieces are cut by one regular
expression; a piece that is in the vocabulary is one token, any other falls into its bytes. A line
is two or three tokens, so that a search step costs little; `characters` says what tokens have in
common, so that nothing of that need be learned.
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

PAD, END, USER, ASSISTANT = SPECIAL = ("<|pad|>", "<|end|>", "<|user|>", "<|assistant|>")
PHRASES = ("Start with ", "Place eight queens: ", "Solve this mini sudoku: ")
STEPS = [f" {step}{sign}" for step in "abcdefghijkl" for sign in "+-*"]
NAMES = [f"{step}=" for step in "abcdefghijkl"]
QUEENS = [f"{column}{row}" for column in "abcdefgh" for row in range(8)]
CELLS = [f"{column}{row}={digit}" for column in "abcd" for row in "1234" for digit in "1234"]
PIECES = "|".join(
    [
        *PHRASES,
        r"[a-d][1-4]=[1-4]",
        r" [a-l][-+*]",
        r"[a-l]=",
        r"[a-h][0-7]",
        r"\d{1,2}",
        r"\n",
        r"[^\n]",
    ]
)
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ message['content'] + '<|end|>' }}"
    "{% elif message['role'] == 'user' %}"
    "{{ '<|user|>' + message['content'] + '<|assistant|>' }}"
    "{% else %}{{ message['content'] }}{% endif %}{% endfor %}"
)


@cache
def vocabulary() -> dict[str, int]:
    """Token to id, in the byte-level alphabet (where a space is `Ġ` and a newline `Ċ`)."""
    numbers = [str(n) for n in range(10, 100)]
    whole = [w.replace(" ", "Ġ") for w in (*PHRASES, *STEPS, *NAMES, *QUEENS, *CELLS)]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = dict.fromkeys([*SPECIAL, *alphabet, *numbers, *whole])
    return {token: i for i, token in enumerate(tokens)}


def encode(text: str) -> list[int]:
    """Ids of a text of the tasks: what the tokenizer gives, without it (for the data workers)."""
    ids = vocabulary()
    out = []
    for piece in re.findall(PIECES, text):
        piece = piece.replace(" ", "Ġ").replace("\n", "Ċ")
        out += [ids[piece]] if piece in ids else [ids[c] for c in piece]
    return out


def characters(token: str) -> list[tuple[str, int]]:
    """The characters of a token, each with its place from the right: `41` has a 4 in the tens."""
    return [(character, place) for place, character in enumerate(reversed(token))]


def prompt(question: str) -> list[int]:
    """Exactly what the chat template renders."""
    ids = vocabulary()
    return [ids[USER], *encode(question), ids[ASSISTANT]]


def save_tokenizer(folder: Path) -> None:
    tokenizer = Tokenizer(models.BPE(vocabulary(), [], ignore_merges=True))
    cut = pre_tokenizers.Split(Regex(PIECES), "isolated")
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([cut, bytes_])
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )
    fast.save_pretrained(folder)
    # The chat template stays in tokenizer_config.json, the one file that every reader knows.
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config["chat_template"] = CHAT_TEMPLATE
    config["tokenizer_class"] = "PreTrainedTokenizerFast"  # the name that every version knows
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n")
    (folder / "chat_template.jinja").unlink(missing_ok=True)
