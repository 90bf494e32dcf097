"""Small tokenizers of every family, trained here: what they share is only what they are asked.

Each is a Hugging Face tokenizer as a published model of its family ships it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import torch
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from tokenizers.processors import TemplateProcessing
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import ppl

CORPUS = [
    "the quick brown fox jumps over the lazy dog. 2 + 3 = 5\nso the answer is 5\n",
    "Step 1: one two three four\n\nStep 2: café über 日本語 🙂 naïve\n",
    "def add(a, b):\n    return a + b\n",
] * 20
# No newline in the vocabulary: SentencePiece models write it in bytes.
WORDS = [
    "the quick brown fox jumps over the lazy dog . 2 + 3 = 5 so the answer is 5 one two - step "
    "0 1 4 6 7 8 9 café"
] * 30
SPECIAL = ["<pad>", "<s>", "</s>"]
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA2 = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system role') }}"
    "{% elif m['role'] == 'user' %}{{ '<s>[INST] ' + m['content'] | trim + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] | trim + ' </s>' }}{% endif %}{% endfor %}"
)


def wrapped(tokenizer: Tokenizer, **settings: Any) -> PreTrainedTokenizerFast:
    settings = {"bos_token": "<s>", "eos_token": "</s>", **settings}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **settings)


def _byte_level(vocabulary: int, special: list[str], **settings: Any) -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, **settings)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=special,
            initial_alphabet=alphabet,
            show_progress=False,
        ),
    )
    return made


def byte_level(vocabulary: int = 400) -> PreTrainedTokenizerFast:
    """As GPT-2, Qwen and Llama-3: bytes as letters, a token may hold part of a character."""
    chat = ["<|im_start|>", "<|im_end|>"]
    made = wrapped(_byte_level(vocabulary, SPECIAL + chat), eos_token="<|im_end|>")
    made.chat_template = CHATML
    # As Qwen-3: a word that a template knows, and that is no special token.
    made.add_tokens([AddedToken("<think>", special=False), AddedToken("</think>", special=False)])
    return made


def _sentence_pieces(prepend: bool) -> PreTrainedTokenizerFast:
    """`▁` for spaces and bytes for what the vocabulary lacks."""
    made = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    every_byte = [f"<0x{byte:02X}>" for byte in range(256)]
    made.train_from_iterator(
        WORDS,
        trainers.BpeTrainer(
            vocab_size=420,
            special_tokens=["<unk>", "<s>", "</s>", *every_byte],
            show_progress=False,
        ),
    )
    plan = json.loads(made.to_str())
    plan["added_tokens"] = [a for a in plan["added_tokens"] if not a["content"].startswith("<0x")]
    made = Tokenizer.from_str(json.dumps({**plan, "pre_tokenizer": None}))
    spaces = normalizers.Replace(" ", "▁")
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if prepend:
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces])
        steps.append(decoders.Strip(" ", 1, 0))
    else:
        made.normalizer = spaces
    made.decoder = decoders.Sequence(steps)
    made.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return wrapped(made, unk_token="<unk>")


def llama2() -> PreTrainedTokenizerFast:
    """As Llama-2, Mistral, TinyLlama and Phi-3: a space before every string, `<s>` before that."""
    made = _sentence_pieces(prepend=True)
    made.chat_template = LLAMA2
    return made


def gemma() -> PreTrainedTokenizerFast:
    """As Gemma: `▁` for spaces, none put before a string; `<s>` first."""
    return _sentence_pieces(prepend=False)


def metaspace() -> PreTrainedTokenizerFast:
    """As newer conversions of SentencePiece: the space is the pre-tokenizer's; no bytes."""
    made = Tokenizer(models.BPE(unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    made.decoder = decoders.Metaspace(prepend_scheme="always")
    made.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=300, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False
        ),
    )
    return wrapped(made, unk_token="<unk>")


def unigram() -> PreTrainedTokenizerFast:
    """As T5 and XLNet: a unigram model that normalises (NFKC)."""
    made = Tokenizer(models.Unigram())
    made.normalizer = normalizers.NFKC()
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    made.decoder = decoders.Metaspace(prepend_scheme="always")
    made.train_from_iterator(
        CORPUS,
        trainers.UnigramTrainer(
            vocab_size=150,
            special_tokens=["<unk>", "<s>", "</s>"],
            unk_token="<unk>",
            show_progress=False,
        ),
    )
    return wrapped(made, unk_token="<unk>")


def word_piece() -> PreTrainedTokenizerFast:
    """As BERT: lower case, no spaces kept, `##` for what continues a word, two tokens around."""
    made = Tokenizer(models.WordPiece(unk_token="<unk>"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece(cleanup=False)
    made.train_from_iterator(
        CORPUS,
        trainers.WordPieceTrainer(
            vocab_size=200, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False
        ),
    )
    made.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return wrapped(made, unk_token="<unk>")


def word_ends() -> PreTrainedTokenizerFast:
    """As GPT-1: a mark at the end of words, which reads as a space unless the text ends there."""
    made = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.BPEDecoder(suffix="</w>")
    made.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=250,
            special_tokens=["<unk>", "<s>", "</s>"],
            end_of_word_suffix="</w>",
            show_progress=False,
        ),
    )
    return wrapped(made, unk_token="<unk>")


def gaps() -> PreTrainedTokenizerFast:
    """Ids with holes: the largest is far beyond the number of tokens; several end tokens."""
    plan = json.loads(_byte_level(300, SPECIAL).to_str())
    plan["model"]["vocab"] |= {"ĊĊ": 342}
    plan["model"]["merges"].append(["Ċ", "Ċ"])
    settings = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    for token, content in ((340, "<|im_end|>"), (347, "<|eot|>")):
        plan["model"]["vocab"][content] = token
        plan["added_tokens"].append({"id": token, "content": content, "special": True, **settings})
    return wrapped(Tokenizer.from_str(json.dumps(plan)), eos_token="<|im_end|>")


FAMILIES: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    make.__name__: make
    for make in (
        byte_level, llama2, gemma, metaspace, unigram, word_piece, word_ends, gaps,
    )
}  # fmt: skip
EXACT = ("byte_level", "llama2", "gemma", "gaps")
"""Those that can write every string; the others know too few characters, or normalise."""


def model(tokenizer: Any, *, vocabulary: int | None = None, **settings: Any) -> LlamaForCausalLM:
    """A tiny Llama with random weights, as large as the tokenizer's largest id."""
    size = vocabulary or 1 + max(tokenizer.get_vocab().values())
    torch.manual_seed(0)
    shape = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 256,
        "initializer_range": 0.3,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": None,
    }
    return LlamaForCausalLM(LlamaConfig(vocab_size=size, **{**shape, **settings})).eval()


def language_model(tokenizer: Any, name: str, **settings: Any) -> ppl.HFModel:
    """A language model of this tokenizer."""
    return ppl.HFModel(model(tokenizer, **settings), tokenizer, name=name, kv_bytes=1 << 24)
