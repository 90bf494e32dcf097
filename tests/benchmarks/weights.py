"""Weights of eight bits: how far results are off, and how long products take, by kind and rows.

    python tests/benchmarks/weights.py

SmolLM2-135M-Instruct. Products: those with all of its weights, one step's worth, on one thread, in
milliseconds of processor time (so that other work on the machine counts little), the least of some
turns that the kinds take. Kinds: bfloat16 as `ppl.load` lays it out, in large pages, and the same
by oneDNN; int8 as `weights="int8"` does, in large pages; and what torch has: `_weight_int8pack_mm`,
`_weight_int4pack_mm_for_cpu` (32 to a scale; random weights) and dynamic quantisation by oneDNN.
Errors: against a float32 forward on a text of 143 tokens.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from generate_vs_ppl import STORY
from machine import machine
from torch import Tensor, nn

import ppl
from ppl.lm.engine.linear import LaidOutLinear, PackedLinear
from ppl.lm.engine.pages import enlarge
from ppl.lm.engine.quantised import Int8Linear

TEXT = (
    " ran down to the shore, where the waves were already breaking over the rocks. 'Is anybody "
    "there?' he shouted, but the wind carried his voice away. The quick brown fox. def f(x): "
    "return x*x + 3*x - 7. In 1815, the Congress of Vienna redrew the map of Europe."
)
GROUPS = (32, 64, 192, None)

Product = Callable[[Tensor], Any]


def joined(model: Any) -> list[nn.Linear]:
    """The products of a step: layers that are given the same input are one."""

    def of(*layers: nn.Linear) -> nn.Linear:
        one = nn.Linear(layers[0].in_features, 1, bias=False)
        one.weight = nn.Parameter(torch.cat([layer.weight for layer in layers]).bfloat16(), False)
        one.out_features = len(one.weight)
        return one

    found = []
    for block in model.model.layers:
        a, m = block.self_attn, block.mlp
        found += [of(a.q_proj, a.k_proj, a.v_proj), of(a.o_proj)]
        found += [of(m.gate_proj, m.up_proj), of(m.down_proj)]
    return [*found, of(model.lm_head)]


def kinds(layer: nn.Linear) -> dict[str, Product]:
    """A product with one weight, by kind."""
    weight = layer.weight.float()
    scale = weight.abs().amax(1) / 127
    whole = (weight / scale[:, None]).round().to(torch.int8)
    half = scale.bfloat16()
    four = torch.ops.aten._convert_weight_to_int4pack_for_cpu(
        torch.randint(0, 16, weight.shape, dtype=torch.int32), 1
    )
    pairs = torch.rand(weight.shape[1] // 32, len(weight), 2).bfloat16()
    none = torch.zeros(len(scale), dtype=torch.long)
    quantised = torch.quantize_per_channel(weight, scale.double(), none, 0, torch.qint8)
    dynamic = torch.ops.quantized.linear_prepack(quantised, None)
    return {
        "bfloat16": (packed := PackedLinear(layer)),
        "oneDNN": packed.by_library,
        "int8": Int8Linear(layer),
        "int8pack_mm": lambda x: torch._weight_int8pack_mm(x, whole, half),
        "int4pack_mm": lambda x: torch.ops.aten._weight_int4pack_mm_for_cpu(x, four, 32, pairs),
        "dynamic": lambda x: torch.ops.quantized.linear_dynamic(x.float(), dynamic, False),
    }


def products(model: Any, rows: list[int], repeats: int) -> None:
    """Prints the table of times."""
    torch.backends.quantized.engine = "onednn"
    layers = joined(model)
    sides = [kinds(layer) for layer in layers]
    ours = [side[kind] for side in sides for kind in ("bfloat16", "int8")]
    enlarge(part for layer in ours if isinstance(layer, LaidOutLinear) for part in layer.memory)
    print(f"{'rows':>4}" + "".join(f"{kind:>13}" for kind in sides[0]), flush=True)
    for count in rows:
        xs = [torch.randn(count, layer.in_features).bfloat16() for layer in layers]

        def milliseconds(kind: str, xs: list[Tensor] = xs) -> float:
            started = time.thread_time()
            for x, side in zip(xs, sides, strict=True):
                side[kind](x)
            return 1e3 * (time.thread_time() - started)

        turns = [[milliseconds(kind) for kind in sides[0]] for _ in range(repeats)]
        print(f"{count:>4}" + "".join(f"{min(t):>13.1f}" for t in zip(*turns, strict=True)))


def errors(source: Path) -> None:
    """Prints how far models are off."""
    plain = ppl.load(source, device="cpu", dtype="float32", pack=False)
    ids = torch.tensor([plain.encode(STORY + TEXT)])
    exact = plain.model(input_ids=ids).logits[0].double()
    law = exact.log_softmax(-1)

    def told(name: str, model: Any) -> None:
        logits = model(input_ids=ids).logits[0].double()
        ours = logits.log_softmax(-1)
        divergence = (law.exp() * (law - ours)).sum(-1).mean()
        loss = -ours[:-1].gather(1, ids[0, 1:, None]).mean()
        same = (law.argmax(-1) == ours.argmax(-1)).double().mean()
        rms = (logits - exact).square().mean().sqrt()
        print(f"{name:>22}{divergence:>10.1e}{rms:>8.3f}{loss:>8.4f}{same:>8.3f}", flush=True)

    print(f"\n{'':>22}{'KL':>10}{'rms':>8}{'loss':>8}{'argmax':>8}")
    told("float32", plain.model)
    told("bfloat16", ppl.load(source, device="cpu", dtype="bfloat16").model)
    for dtype in ("float32", "bfloat16"):
        model = ppl.load(source, device="cpu", dtype=dtype, weights="int8").model
        told(f"int8, {dtype}", model)
    for group in GROUPS:
        model = ppl.load(source, device="cpu", dtype="float32", pack=False).model
        for layer in model.modules():
            if isinstance(layer, nn.Linear):
                parts = layer.weight.view(layer.out_features, -1, group or layer.in_features)
                scale = parts.abs().amax(2, keepdim=True) / 127
                rounded = (parts / scale.clamp(min=1e-30)).round() * scale
                layer.weight = nn.Parameter(rounded.flatten(1), False)
        told(f"{group or 'all'} to a scale", model)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description="weights of eight bits: errors and times")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64, 256])
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    warnings.filterwarnings("ignore", "torch.quantize_per")
    torch.set_num_threads(1)
    sys.path.append(str(Path(__file__).parents[2] / "examples"))
    from smollm2 import find_gguf

    print(f"{machine()}\n")
    plain = ppl.load(find_gguf(), device="cpu", dtype="float32", pack=False).model
    products(plain, options.rows, options.repeats)
    errors(find_gguf())


if __name__ == "__main__":
    main()
