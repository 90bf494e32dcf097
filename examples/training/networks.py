"""The two networks: plain Llama shapes in Hugging Face format, sampled and scored in batches."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from data import END_ID, PAD_ID, Array, Tree, stack
from numpy.typing import NDArray
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForTokenClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForTokenClassification,
)
from vocabulary import characters, encode, save_tokenizer, vocabulary

MAX_NEW_TOKENS = 64
NEWLINE_ID = encode("\n")[0]


@dataclass(frozen=True)
class Shape:
    hidden: int
    layers: int
    heads: int
    mlp: int

    def config(self) -> LlamaConfig:
        return LlamaConfig(
            vocab_size=len(vocabulary()),
            hidden_size=self.hidden,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.heads,
            intermediate_size=self.mlp,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=END_ID,
            pad_token_id=PAD_ID,
        )


def new_decoder(shape: Shape) -> LlamaForCausalLM:
    model = LlamaForCausalLM(shape.config())
    embed_characters(model)
    return model


def new_reward(shape: Shape) -> LlamaForTokenClassification:
    config = shape.config()
    config.id2label = {0: "bad", 1: "good"}
    config.label2id = {"bad": 0, "good": 1}
    model = LlamaForTokenClassification(config)
    embed_characters(model)
    return model


@torch.no_grad()
def embed_characters(model: Any) -> None:
    """Starts the embeddings as sums over characters: `41` and `48` have the same tens in common.

    With independent embeddings, every sum and every product of single-token numbers must be learned
    by heart (docs/training.md has the comparison).
    """
    rows = model.model.embed_tokens.weight  # [vocabulary, hidden]
    shared: dict[tuple[str, int], Tensor] = {}
    for token, i in vocabulary().items():
        own = 0.3 * torch.randn(rows.shape[1])
        for key in characters(token):
            own += shared.setdefault(key, torch.randn(rows.shape[1]))
        rows[i] = 0.02 * own / own.std()


def parameters(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def save(model: Any, folder: Path) -> None:
    """Weights as float16, declared as float32 in which every loader then computes."""
    copy.deepcopy(model).to("cpu", torch.float16).save_pretrained(folder)
    save_tokenizer(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["dtype"] = "float32"
    path.write_text(json.dumps(config, indent=2) + "\n")
    for file in folder.iterdir():
        file.chmod(0o644)


def load_decoder(folder: Path, device: str) -> LlamaForCausalLM:
    model: LlamaForCausalLM = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.to(device).eval()


def load_reward(folder: Path, device: str) -> LlamaForTokenClassification:
    model: LlamaForTokenClassification = AutoModelForTokenClassification.from_pretrained(
        folder, dtype=torch.float32
    )
    return model.to(device).eval()


# --- the reward model on trees ----------------------------------------------------------------


def tree_mask(segment: Tensor, cut: Tensor) -> Tensor:
    """`[rows, 1, time, time]`: what each token attends to (True)."""
    at = torch.arange(segment.shape[1], device=segment.device)
    own = (segment[:, :, None] == segment[:, None, :]) & (at[None, :, None] >= at[None, None, :])
    trunk = (segment[:, None, :] == 0) & (at[None, None, :] < cut[:, :, None])
    return (own | trunk & (segment[:, :, None] > 0))[:, None]


def hidden_states(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """Last hidden states `[rows, time, hidden]` of a batch of trees."""
    out: Tensor = model.model(
        input_ids=batch["ids"],
        attention_mask=tree_mask(batch["segment"], batch["cut"]),
        position_ids=batch["position"],
        use_cache=False,
    ).last_hidden_state
    return out


def log_odds(model: LlamaForTokenClassification, hidden: Tensor) -> Tensor:
    """Log-odds of "good", float32, one for each hidden state."""
    logits = model.score(hidden).float()
    difference: Tensor = logits[..., 1] - logits[..., 0]
    return difference


def to_device(batch: dict[str, Array], device: str) -> dict[str, Tensor]:
    return {k: torch.from_numpy(v).to(device, non_blocking=True) for k, v in batch.items()}


# --- sampling and scoring ---------------------------------------------------------------------


@dataclass(frozen=True)
class Response:
    """What the decoder wrote, with its log-probability of every token."""

    ids: list[int]
    log_probs: list[float]

    @property
    def groups(self) -> list[list[int]]:
        """The ids of its lines: cut after every newline token and end token."""
        groups: list[list[int]] = [[]]
        for token in self.ids:
            groups[-1].append(token)
            if token in (NEWLINE_ID, END_ID):
                groups.append([])
        return [g for g in groups if g]

    @property
    def text(self) -> str | None:
        """What was written, or None where the response did not end."""
        if not self.ids or self.ids[-1] != END_ID:
            return None
        return text_of(self.ids[:-1])


def text_of(ids: Sequence[int]) -> str:
    """Text of ids. Special tokens are written out, so that they never pass for something right."""
    return "".join(_tokens()[i] for i in ids).replace("Ġ", " ").replace("Ċ", "\n")


@cache
def _tokens() -> list[str]:
    return list(vocabulary())


@torch.inference_mode()
def sample(
    decoder: LlamaForCausalLM,
    prefixes: Sequence[Sequence[int]],
    *,
    temperature: float = 1.0,
    one_line: bool = False,
    rows: int | None = None,
) -> list[Response]:
    """One continuation of each prefix (ids of prompt and lines), in order.

    Prefixes of similar length share a left-padded batch; uses torch's global generator.
    """
    device = decoder.device
    rows = rows or (2048 if device.type == "cuda" else 256)
    stops = [END_ID, NEWLINE_ID] if one_line else [END_ID]
    order = sorted(range(len(prefixes)), key=lambda i: len(prefixes[i]))
    out: dict[int, Response] = {}
    for start in range(0, len(order), rows):
        chunk = order[start : start + rows]
        width = max(len(prefixes[i]) for i in chunk)
        ids = torch.tensor([[PAD_ID] * (width - len(prefixes[i])) + [*prefixes[i]] for i in chunk])
        mask = torch.tensor(
            [[0] * (width - len(prefixes[i])) + [1] * len(prefixes[i]) for i in chunk]
        )
        made = decoder.generate(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            do_sample=True,
            temperature=temperature,
            top_k=0,
            top_p=1.0,
            max_new_tokens=8 if one_line else MAX_NEW_TOKENS,
            eos_token_id=stops,
            pad_token_id=PAD_ID,
            return_dict_in_generate=True,
            output_logits=True,
        )
        tokens = made.sequences[:, width:]
        logits = torch.stack(made.logits, 1)  # [rows, new, vocabulary]
        log_probs = logits.float().log_softmax(-1).gather(2, tokens[..., None])[..., 0].cpu()
        for i, row, scores in zip(chunk, tokens.tolist(), log_probs.tolist(), strict=True):
            length = next((j + 1 for j, t in enumerate(row) if t in stops), len(row))
            out[i] = Response(row[:length], scores[:length])
    return [out[i] for i in range(len(prefixes))]


@torch.inference_mode()
def tree_log_odds(
    reward: LlamaForTokenClassification, trees: Sequence[Tree], rows: int = 512
) -> list[NDArray[np.float64]]:
    """Log-odds of "good" at every token of every tree."""
    order = sorted(range(len(trees)), key=lambda i: len(trees[i].ids))
    out: dict[int, NDArray[np.float64]] = {}
    for start in range(0, len(order), rows):
        chunk = order[start : start + rows]
        batch = to_device(stack([trees[i] for i in chunk]), str(reward.device))
        odds = log_odds(reward, hidden_states(reward, batch)).double().cpu().numpy()
        for i, row in zip(chunk, odds, strict=True):
            out[i] = row[: len(trees[i].ids)]
    return [out[i] for i in range(len(trees))]
