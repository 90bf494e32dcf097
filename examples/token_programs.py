"""Programs that work token by token, at the engine's speed.

`lm.next(text)` is the law of the next token, which can be read as well as drawn, in one pass.

* A lipogram: no token with a certain letter. Each masked draw adds the log of the mass that the
  mask leaves (`law.log_mass`), so that what is sampled is the model's own law given that the letter
  never occurs, not the law of a model that is steered away from it one token at a time.
* A JSON number, by an automaton of ten states that masks the vocabulary.
* A watermark (Kirchenbauer et al. 2023, arXiv:2301.10226): tokens on a list keyed by the token
  before are preferred. Whether a text has one is a question to a program with one coin.

    python examples/token_programs.py                     # the embedded model
    python examples/token_programs.py --model smollm2     # SmolLM2, where it is installed
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from smollm2 import find_gguf
from torch import Tensor

import ppl
from ppl.searchers import SMC, BestOfN

# -- a lipogram -----------------------------------------------------------------------------------


@lru_cache
def tokens_without(lm: ppl.LogitsModel, letters: str) -> Tensor:
    """Mask `[V]` of the tokens that say none of the letters."""
    banned = letters.encode()
    pieces = map(lm.codec.piece, range(lm.codec.size))
    return torch.tensor([not any(byte in piece for byte in banned) for piece in pieces])


def lipogram(lm: ppl.LogitsModel, start: ppl.Text, letters: str, most: int = 30) -> str:
    """What follows `start`, without certain letters: exactly the model's law given that."""
    text, may = start, tokens_without(lm, letters)
    for t in range(most):
        law = lm.next(text, allowed=may)
        token = pyro.sample(f"token_{t}", law)
        text = text + token
        pyro.factor(f"mass_{t}", torch.tensor(law.log_mass))
        if token.finished:
            break
    return text.text


# -- a JSON number --------------------------------------------------------------------------------

# From state and kind of character to the next state; a number may end in the states of `_ENDS`.
_NUMBER = {
    ("start", "-"): "minus",
    ("start", "0"): "zero",
    ("start", "1"): "whole",
    ("minus", "0"): "zero",
    ("minus", "1"): "whole",
    ("whole", "0"): "whole",
    ("whole", "1"): "whole",
    ("zero", "."): "point",
    ("whole", "."): "point",
    ("point", "0"): "part",
    ("point", "1"): "part",
    ("part", "0"): "part",
    ("part", "1"): "part",
    **{(state, "e"): "e" for state in ("zero", "whole", "part")},
    **{("e", sign): "sign" for sign in "+-"},
    **{(state, digit): "power" for state in ("e", "sign", "power") for digit in "01"},
}
_ENDS = {"zero", "whole", "part", "power"}


def follow(state: str | None, string: str) -> str | None:
    """The state of the automaton after more characters; None if no number begins so."""
    for letter in string:
        kind = "1" if letter in "123456789" else "e" if letter == "E" else letter
        state = None if state is None else _NUMBER.get((state, kind))
    return state


@lru_cache
def going_on(lm: ppl.LogitsModel, state: str) -> Tensor:
    """Mask `[V]` of the tokens that go on with a number, and, where it may end, of the ends."""
    mask = torch.zeros(lm.codec.size, dtype=torch.bool)
    for token in range(lm.codec.size):
        piece = lm.codec.piece(token)
        said = piece.decode() if piece.isascii() else "?"
        mask[token] = bool(said) and follow(state, said) is not None
    if state in _ENDS:
        mask[list(lm.codec.end_tokens)] = True
    return mask


def json_number(lm: ppl.LogitsModel, start: ppl.Text, most: int = 12) -> str:
    """A number as JSON writes it; `ppl.condition` wants it whole within `most` tokens."""
    text, state = start, "start"
    for t in range(most):
        law = lm.next(text, allowed=going_on(lm, state))
        token = pyro.sample(f"token_{t}", law)
        text = text + token
        pyro.factor(f"mass_{t}", torch.tensor(law.log_mass))
        if token.finished:
            return text.text
        state = follow(state, token.text) or ""
    ppl.condition(state in _ENDS, "whole")
    return text.text


# -- a watermark ----------------------------------------------------------------------------------

DELTA = 2.0  # by how much the logits of the list are raised


@lru_cache(maxsize=4096)
def green(size: int, before: int) -> Tensor:
    """The list after a token: a random half of the vocabulary, as a mask `[V]`."""
    return torch.from_numpy(np.random.default_rng(before).random(size) < 0.5)


def log_ratio(lm: ppl.LogitsModel, text: ppl.Text, token: int) -> float:
    """log q(token) / p(token) of the watermarked law q(v) = p(v) exp(DELTA [v green]) / Z."""
    listed = green(lm.codec.size, text.tokens[-1])
    mass = math.exp(lm.next(text, allowed=listed).log_mass)
    return DELTA * bool(listed[token]) - math.log1p(math.expm1(DELTA) * mass)


def watermarked(lm: ppl.LogitsModel, start: ppl.Text, most: int) -> ppl.Text:
    """Targets the watermarked law: the model proposes, the list weighs."""
    text = start
    for t in range(most):
        token = pyro.sample(f"token_{t}", lm.next(text))
        pyro.factor(f"green_{t}", torch.tensor(log_ratio(lm, text, token.tokens[0])))
        text = text + token
        if token.finished:
            break
    return text


def detector(lm: ppl.LogitsModel, start: ppl.Text, tokens: tuple[int, ...]) -> bool:
    """One coin: was the text written by the watermarked law, or by the model's own?"""
    text, total = start, 0.0
    for token in tokens:
        total += log_ratio(lm, text, token)
        text = text.extended((token,))
    marked = pyro.sample("marked", dist.Bernoulli(torch.tensor(0.5)))
    pyro.factor("evidence", marked * total)
    return bool(marked)


# -- shown ----------------------------------------------------------------------------------------


def load(model: str) -> tuple[ppl.LogitsModel, str, str]:
    """A model, a question, and letters for it to avoid."""
    if model == "tiny":
        return ppl.load("tiny-lines"), "Start with 42: a*2 b-27 c+11 d+31 e-7 f-16", "7"
    source = find_gguf() if model == "smollm2" else model
    return ppl.load(source), "Tell me about the sea in two sentences.", "eE"


def timed(what: str, tokens: int, work: Callable[[], ppl.Posterior]) -> ppl.Posterior:
    """Runs, and prints tokens per second."""
    began = time.perf_counter()
    posterior = work()
    seconds = time.perf_counter() - began
    print(f"{what:<34}{(tokens or posterior.cost.lm_tokens) / seconds:>10.0f} tokens/s")
    return posterior


def engine(lm: ppl.LogitsModel, start: ppl.Text, most: int) -> str:
    """One draw of the whole: what the engine does by itself."""
    return (start + pyro.sample("all", lm(start, max_tokens=most))).text


def main(argv: list[str] | None = None) -> dict[str, object]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="tiny", help="tiny, smollm2, or a model's name")
    parser.add_argument("--particles", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=30, help="most tokens of a text")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    n, seed = args.particles, args.seed
    lm, question, letters = load(args.model)
    start = lm.chat(question)
    BestOfN(2).run(engine, lm, start, 2, seed=seed)  # warm
    timed("the engine alone", 0, lambda: BestOfN(n).run(engine, lm, start, args.tokens, seed=seed))
    freely = timed(
        "token by token", 0, lambda: BestOfN(n).run(lipogram, lm, start, "", args.tokens, seed=seed)
    )
    masked = timed(
        f"without {letters!r}, SMC",
        0,
        lambda: SMC(n).run(lipogram, lm, start, letters, args.tokens, seed=seed),
    )
    print(f"  freely:  {freely.samples[0].value!r}\n  without: {masked.vote()!r}")
    print(f"  log P(never {letters!r}) = {masked.log_evidence:.2f}")

    number = SMC(n).run(json_number, lm, lm.chat(question), seed=seed)
    print(f"a JSON number: {number.vote()!r}")

    marked = SMC(n).run(watermarked, lm, start, args.tokens, seed=seed).sample(seed)
    unmarked = BestOfN(1).run(watermarked, lm, start, args.tokens, seed=seed + 1).samples[0].text
    found: dict[str, object] = {"lipogram": masked, "number": number}
    for name, text in (("watermarked", marked), ("not", unmarked)):
        tokens = text.tokens[start.prompt_length :]
        exact = ppl.enumerate_program(detector, lm, start, tokens)
        found[name] = exact.marginal().get(True, 0.0)
        print(f"P(marked | {len(tokens)} tokens that are {name}) = {found[name]:.4f}")
    return found


if __name__ == "__main__":
    main()
