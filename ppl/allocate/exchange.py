"""A larger model, or more tokens of a smaller one? The exchange at equal FLOPs.

A model of P parameters takes 6 P D_pre FLOPs to pretrain on D_pre tokens, and 2 P D_inf to write
D_inf tokens over its life. One of M P parameters takes M times both. What the smaller saves pays
for k times its own inference tokens (Snell et al. 2024, arXiv 2408.03314, section 7):

    6 P D_pre + 2 P k D_inf = M (6 P D_pre + 2 P D_inf)    =>    k = M + 3 (D_pre / D_inf) (M - 1)
"""

from __future__ import annotations

from ppl.errors import ArgumentError
from ppl.language import checks
from ppl.language.arguments import checked


@checked
def exchange(times: float, pretraining: float, inference: float) -> float:
    """k: how many times as many tokens the smaller model may write for the price of the larger.

    M + 3 (D_pre / D_inf) (M - 1). With little inference ahead (D_inf << D_pre) it is large, and
    many samples of a small model are cheap beside one of a large; with much it is M.

    Args:
        times: M, the larger model's size over the smaller one's, 1 or more.
        pretraining: D_pre, tokens of pretraining; 0 if both models are there already.
        inference: D_inf, tokens that the larger model would write altogether.
    """
    checks.positive(times=times, inference=inference)
    checks.nonnegative(pretraining=pretraining)
    if times < 1:
        raise ArgumentError(f"times={times!r}: 1 or more, the larger model over the smaller")
    return times + 3 * (pretraining / inference) * (times - 1)
