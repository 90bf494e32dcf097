"""One pass of a model of which less is kept, without any cache of ours."""

from __future__ import annotations

import functools
import itertools
import math
import statistics
from collections.abc import Callable

import pyro
import torch
import transformers as tf
from engines import DEVICE, FAMILIES, Letters, random_model

import ppl
from ppl.lm.engine.kv import KV
from ppl.searchers import SMC

PROMPT = tuple(3 + (7 * i * i + 5 * i) % 90 for i in range(20))
LETTERS = (5, 6)


class Rounding(tf.DynamicCache):
    """Keys and values to eight bits, each head's of a token by their own largest."""

    def update(self, key_states, value_states, *args, **kwargs):
        def eight_bits(x):
            unit = x.abs().amax(-1, keepdim=True) / 127
            return torch.where(unit > 0, (x / unit).round(), 0.0) * unit

        return super().update(eight_bits(key_states), eight_bits(value_states), *args, **kwargs)


@torch.inference_mode()
def compressed(model, kv: str, text: tuple[int, ...]) -> torch.Tensor:
    """Last hidden states `[n, hidden]` of a text by one pass of the compressed model, without any
    cache of ours."""
    keeps, n = KV.read(kv), len(text)
    at = torch.arange(n)
    seen = at <= at[:, None]
    if keeps.window:
        seen &= (at > at[:, None] - keeps.window) | (at < keeps.sinks)
    mask = torch.zeros(1, 1, n, n).masked_fill_(~seen, torch.finfo(torch.float32).min)
    cache = Rounding() if keeps.int8 else None
    return model.base_model(
        input_ids=torch.tensor([text], device=DEVICE),
        attention_mask=mask.to(DEVICE),
        past_key_values=cache,
        use_cache=keeps.int8,
    ).last_hidden_state[0]


@functools.cache
def sharp(kv: str) -> ppl.HFModel:
    """Of which it matters what is kept."""
    model = random_model(FAMILIES["Llama"]())
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight *= 8
    return ppl.HFModel(model, Letters(), name="sharp", kv=kv)


def tilted(lm, factors: bool = True):
    """Six tokens in three steps, each with a factor."""

    def program():
        text = ppl.Text(PROMPT, lm.codec)
        for t in range(3):
            step = pyro.sample(f"x{t}", lm(text, max_tokens=2, allowed=LETTERS))
            text = text + step
            if factors:
                pyro.factor(f"ok{t}", torch.tensor(0.7 * step.tokens.count(5) - 0.4))

    return program


def evidence(lm, states: Callable[[tuple[int, ...]], torch.Tensor]) -> float:
    """Of `tilted`, by all its texts, from last hidden states `[n, hidden]` of a text."""
    total = 0.0
    for new in itertools.product(LETTERS, repeat=6):
        logits = lm.logits(states((*PROMPT, *new))[len(PROMPT) - 1 : -1]).double()
        of_all = logits[:, list(LETTERS)].log_softmax(-1)
        log_p = sum(float(of_all[t, LETTERS.index(token)]) for t, token in enumerate(new))
        total += math.exp(log_p + 0.7 * new.count(5) - 3 * 0.4)
    return total


def estimates(kv: str, seeds: int, guide=None) -> tuple[float, float]:
    """Mean of the evidence over seeds, and its standard error."""
    smc, program = SMC(8, ess_threshold=0.9), tilted(sharp(kv))
    found = [math.exp(smc.run(program, guide=guide, seed=s).log_evidence) for s in range(seeds)]
    return statistics.fmean(found), statistics.stdev(found) / seeds**0.5
