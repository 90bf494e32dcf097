"""Small random models of every kind, and what tests of the engine ask of them."""

from __future__ import annotations

import functools
import os
from unittest import mock

import numpy as np
import torch
import transformers as tf
from hypothesis import strategies as st

import ppl
from ppl.language.steps import StepRule
from ppl.lm.base import ContinueRequest, Spec
from ppl.lm.engine.graphs import StepGraphs
from ppl.lm.engine.linear import pack_linears
from ppl.lm.sampling import Warp

# Where the engine runs: `cuda` puts the exactness tests on a GPU (tests/benchmarks/gpu.sh does).
DEVICE = torch.device(os.environ.get("PPL_TEST_DEVICE", "cpu"))


ON_GPU = DEVICE.type == "cuda"


SMALL = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


GPT2 = {
    "vocab_size": 97,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


NEOX = {k: v for k, v in SMALL.items() if k != "num_key_value_heads"}


FAMILIES = {
    "Llama": lambda: tf.LlamaConfig(**SMALL),
    "Qwen2": lambda: tf.Qwen2Config(**SMALL),
    "Qwen3": lambda: tf.Qwen3Config(**SMALL, head_dim=8),
    "Mistral": lambda: tf.MistralConfig(**SMALL, sliding_window=None),
    "Gemma": lambda: tf.GemmaConfig(**SMALL, head_dim=8),
    "Phi": lambda: tf.PhiConfig(**SMALL),
    "Phi3": lambda: tf.Phi3Config(**SMALL),
    "Granite": lambda: tf.GraniteConfig(**SMALL, logits_scaling=3.0),
    "GPT2": lambda: tf.GPT2Config(**GPT2),
    "GPTNeoX": lambda: tf.GPTNeoXConfig(**NEOX),
}


class Letters:
    """A tokenizer of 97 ids, each its own letter."""

    eos_token_id = 2
    chat_template = None

    def __len__(self) -> int:
        return 97

    def encode(self, string, add_special_tokens=False):
        return [ord(c) - 0x4E00 for c in string]

    def decode(self, tokens, **_):
        return "".join(chr(0x4E00 + t) for t in tokens if t != 2)

    def get_vocab(self):
        return {chr(0x4E00 + i): i for i in range(97)}


def random_model(config) -> object:
    torch.manual_seed(0)
    return tf.AutoModelForCausalLM.from_config(config).eval().to(DEVICE)


def make(name: str = "Llama", **options) -> ppl.HFModel:
    return ppl.HFModel(random_model(FAMILIES[name]()), Letters(), name=name, **options)


def some_texts(seed: int = 0) -> list[tuple[int, ...]]:
    """Ragged texts with shared prefixes, forks, twins, and one inside another."""
    rng = np.random.default_rng(seed)
    root = tuple(rng.integers(3, 97, 17).tolist())
    branch = (*root, *rng.integers(3, 97, 11).tolist())
    other = tuple(rng.integers(3, 97, 5).tolist())
    return [root, branch, (*branch, 5, 6), (*branch, 5, 7, 8), other, branch, (*root[:9], 4, 4)]


def make_trunks(engine, texts) -> list[int]:
    """Makes each a common beginning, as if three rows wanted it: in how many parts it lies."""
    engine.sharing.price, engine.sharing.block = -1, 4
    slots = engine.seat(texts, [3] * len(texts))
    assert all(slot.trunk for slot in slots)
    parts = [len(slot.trunk) for slot in slots]
    for slot in slots:
        engine.drop(slot)
    return parts


def plain_log_probs(model, text: tuple[int, ...], new: tuple[int, ...]) -> float:
    ids = torch.tensor([text + new], device=DEVICE)
    with torch.inference_mode():
        logits = model(input_ids=ids, use_cache=False).logits[0].double()
    picked = torch.log_softmax(logits, -1)[len(text) - 1 : -1]
    return float(picked.gather(1, torch.tensor(new, device=DEVICE)[:, None]).sum())


def request(lm, text, seed=0, max_tokens=6, ledger=None, **warp) -> ContinueRequest:
    spec = Spec(text, StepRule(), max_tokens, Warp(**warp), None)
    return ContinueRequest(lm, spec, 1234567 + 7919 * seed, ledger=ledger)


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(
            ["open", "open", "step", "step", "step", "fork", "close", "read", "evict", "clear"]
        ),
        st.lists(st.integers(0, 999), min_size=1, max_size=4),
        st.lists(st.integers(3, 6), max_size=4).map(tuple),
    ),
    min_size=4,
    max_size=20,
)


def interleaved(engine, operations, plain_states, within: float = 1e-4) -> None:
    """Does this with rows of an engine, and compares all that it says of them with another."""
    assert_close = functools.partial(assert_near, within=within)
    texts: list[tuple[int, ...]] = [(3,)]
    rows: list[tuple[object, tuple[int, ...], torch.Tensor]] = []
    for kind, numbers, suffix in operations:
        chosen = (
            [i % len(rows) for i in dict.fromkeys(n % len(rows) for n in numbers)] if rows else []
        )
        if kind == "open":
            # From anywhere inside a known text, then on in other words.
            asked = [texts[n % len(texts)] for n in numbers]
            asked = [t[: 1 + n % len(t)] + suffix for t, n in zip(asked, numbers, strict=True)]
            slots, hidden = engine.open(asked)
            for text, state in dict(zip(asked, hidden, strict=True)).items():
                rows.append((slots.get(text), text, state))
            # What was known needs a slot to go on from; twins get one each.
            seated = [i for i, (slot, *_) in enumerate(rows) if slot is None]
            wanted = [rows[i][1] for i in seated]
            for i, slot in zip(seated, engine.seat(wanted + wanted[:1]), strict=False):
                rows[i] = (slot, *rows[i][1:])
            for slot in engine.slots.busy:
                if all(slot is not s for s, *_ in rows):
                    engine.close(slot, wanted[0])
        elif kind == "fork":
            for i, slot in zip(chosen, engine.fork([rows[i][0] for i in chosen]), strict=True):
                rows.append((slot, *rows[i][1:]))
        elif kind == "step" and chosen:
            tokens = [3 + n % 5 for n in range(len(chosen))]
            longer = [(*rows[i][1], token) for i, token in zip(chosen, tokens, strict=True)]
            states = engine.step([rows[i][0] for i in chosen], longer)
            for i, text, state in zip(chosen, longer, states, strict=True):
                rows[i] = (rows[i][0], text, state)
        elif kind == "close":
            for i in chosen:
                engine.close(*rows[i][:2])
            rows = [row for i, row in enumerate(rows) if i not in chosen]
        elif kind == "read":
            asked = [texts[n % len(texts)] + suffix for n in numbers]
            first = [n % len(t) for n, t in zip(numbers, asked, strict=True)]
            for text, at, states in zip(asked, first, engine.hidden(asked, first), strict=True):
                assert_close(states, plain_states(text)[at:])
            texts += asked
        elif kind == "evict":
            before, engine.pool.capacity = engine.pool.capacity, 0
            engine.pool.trim()
            engine.pool.capacity = before
        elif kind == "clear":
            engine.pool.clear()
        texts += [text for _, text, _ in rows]
        for text in texts[-5:]:
            if (state := engine.known(text)) is not None:
                assert_close(state, plain_states(text)[-1])
        for _, text, state in rows:
            assert_close(state, plain_states(text)[-1])
        texts = [t for t in dict.fromkeys(texts) if len(t) < 60][-20:]
    for slot, text, _ in rows:
        engine.close(slot, text)


def emulated(step, device):
    """As on a GPU: a step is captured with its shapes, and what it returns is written over."""
    output = step().clone()
    return lambda: output.copy_(step())


def captured(name: str = "Llama", **options) -> ppl.HFModel:
    """A model whose steps are captured, on a GPU or as if there were one."""
    if ON_GPU:
        return make(name, graphs=True, **options)
    with mock.patch("ppl.lm.engine.graphs.cuda_graph", emulated):
        return make(name, graphs=True, **options)


def step_graphs(engine) -> StepGraphs:
    """Captured for good on a GPU, emulated elsewhere."""
    if ON_GPU:
        return StepGraphs(engine.runner.captured_pass, engine.device)
    return emulated_graphs(engine)


def emulated_graphs(engine) -> StepGraphs:
    def on_this_memory(step, device):
        replay, kv = emulated(step, device), engine.slots.kv

        def checked():
            assert engine.slots.kv is kv, "replayed on memory that is gone"
            return replay()

        return checked

    return StepGraphs(engine.runner.captured_pass, engine.device, on_this_memory)


@functools.cache
def engine_of(kv_bytes: int, compile: bool = False, pack: bool = False):
    model, few = random_model(FAMILIES["Llama"]()), torch.tensor([[1, 2]], device=DEVICE)
    if pack:
        pack_linears(model, lambda: model(input_ids=few, use_cache=False))
    return ppl.HFModel(model, Letters(), name="Llama", kv_bytes=kv_bytes, compile=compile).engine


@functools.cache
def plain_states(text: tuple[int, ...]) -> torch.Tensor:
    return (
        engine_of(1 << 20)
        .base(torch.tensor([text], device=DEVICE), use_cache=False)
        .last_hidden_state[0]
    )


def assert_near(ours: torch.Tensor, plain: torch.Tensor, within: float) -> None:
    assert ours.shape == plain.shape
    assert float((ours - plain).abs().max()) < within


assert_close = functools.partial(assert_near, within=1e-4)
