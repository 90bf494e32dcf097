"""Tiny random-weight reward models of each published layout, saved as their authors save them."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    LlamaForTokenClassification,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2Model,
)

from ppl.lm.sources import TINY

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{{ '<|begin_of_text|>' }}{% for m in messages %}"
    "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content']|trim"
    " + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": 0,
}


def tokenizer(added: list[str], *, special: list[str] = (), template: str | None = None, bos=None):
    made = AutoTokenizer.from_pretrained(TINY / "lm")
    made.add_tokens(added)
    made.add_special_tokens(
        {"additional_special_tokens": list(special), **({"bos_token": bos} if bos else {})}
    )
    made.chat_template = template or made.chat_template
    return made


def qwen(folder: Path) -> Path:
    torch.manual_seed(1)
    words = tokenizer([], special=["<|im_start|>", "<|im_end|>", "<extra_0>"], template=CHATML)
    backbone = Qwen2Model(Qwen2Config(vocab_size=len(words), **SHAPE))
    head = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2))
    state = {f"model.{k}": v for k, v in backbone.state_dict().items()}
    return _save(
        folder,
        words,
        backbone.config,
        {**state, **{f"score.{k}": v for k, v in head.state_dict().items()}},
        "Qwen2ForProcessRewardModel",
        {"AutoModel": "modeling_qwen2_rm.Qwen2ForProcessRewardModel"},
    )


def skywork(folder: Path) -> Path:
    torch.manual_seed(2)
    words = tokenizer([], bos="<|begin|>")
    model = Qwen2ForCausalLM(Qwen2Config(vocab_size=len(words), **SHAPE))
    head = nn.Linear(32, 1)
    state = {**model.state_dict(), **{f"v_head.summary.{k}": v for k, v in head.named_parameters()}}
    return _save(folder, words, model.config, state, "Qwen2ForPrmModel", None, shards=2)


def shepherd(folder: Path) -> Path:
    torch.manual_seed(3)
    words = tokenizer([" ки"], bos="<s>")
    model = MistralForCausalLM(MistralConfig(vocab_size=len(words), sliding_window=None, **SHAPE))
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def rlhflow(folder: Path) -> Path:
    torch.manual_seed(4)
    special = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    words = tokenizer([], special=special, template=LLAMA3)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(words), **SHAPE))
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def classifier(folder: Path) -> Path:
    torch.manual_seed(5)
    words = tokenizer([])
    labels = {"id2label": {0: "no", 1: "yes"}, "label2id": {"no": 0, "yes": 1}}
    config = LlamaConfig(vocab_size=len(words), **labels, **SHAPE)
    LlamaForTokenClassification(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def reward(folder: Path, outputs: int = 1) -> Path:
    torch.manual_seed(6)
    words = tokenizer([])
    # One of them pads with its end token, as many published models do.
    shape = {**SHAPE, "pad_token_id": 1 if outputs == 1 else 0}
    config = LlamaConfig(vocab_size=len(words), num_labels=outputs, **shape)
    LlamaForSequenceClassification(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def _save(folder, words, config, state, architecture, auto_map, shards=1) -> Path:
    folder.mkdir(parents=True)
    words.save_pretrained(folder)
    written = {**config.to_dict(), "architectures": [architecture]}
    if auto_map:
        written["auto_map"] = auto_map  # points to code that must never run
    (folder / "config.json").write_text(json.dumps(written))
    state = {k: v.detach().contiguous().clone() for k, v in state.items()}
    if shards == 1:
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    names, where = sorted(state), {}
    for i in range(shards):
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        part = {k: state[k] for k in names[i::shards]}
        save_file(part, folder / file, metadata={"format": "pt"})
        where |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 0}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a saved model."""
    state: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        state |= load_file(file)
    return state
