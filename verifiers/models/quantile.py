"""Quantile heads: how sure is the verifier, and how many samples does that ask for?

Park et al. 2025 (arXiv 2506.09338): the two-way head of a PRM becomes one sigmoid output for each
of several quantiles of the success rate, trained with the pinball loss on rollouts of the deployed
policy. A low quantile, a cautious estimate of the success rate, sets the number of samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ppl.errors import PRMFormatError
from ppl.language import checks
from ppl.language.arguments import checked
from ppl.verifiers.models.heads import LogOdds


@checked
def quantile_head(weight: Tensor, bias: Tensor | None, quantiles: Sequence[float]) -> nn.Linear:
    """A head with one output per quantile, which at first all say what the old head said.

    sigmoid(output) = softmax(bad, good)[good], because it starts from the difference of the rows.

    Args:
        weight: `[2, hidden]` of the rows (bad, good).
        bias: `[2]` or None.
        quantiles: in (0, 1), increasing.
    """
    _check(quantiles)
    if weight.ndim != 2 or len(weight) != 2:
        raise ValueError(f"weight of shape {list(weight.shape)}: [2, hidden], (bad, good)")
    if bias is not None and bias.shape != (2,):
        raise ValueError(f"bias of shape {list(bias.shape)}: [2], (bad, good)")
    head = nn.Linear(weight.shape[1], len(quantiles))
    with torch.no_grad():
        head.weight.copy_((weight[1] - weight[0]).expand(len(quantiles), -1))
        head.bias.fill_(0.0 if bias is None else float(bias[1] - bias[0]))
    return head


@torch.no_grad()
@checked
def quantile_head_of(log_odds: LogOdds, hidden: Tensor, quantiles: Sequence[float]) -> nn.Linear:
    """The same for the head of a PRM that is loaded, whatever its kind, if it is one linear layer.

    Args:
        log_odds: `prm.log_odds`.
        hidden: `[n, hidden]` of `prm.states`, on which the new head must agree with the old one.
        quantiles: as in `quantile_head`.

    Raises:
        PRMFormatError: the head has a hidden layer of its own (Qwen2.5-Math-PRM).
    """
    if hidden.ndim != 2:
        raise ValueError(f"hidden of shape {list(hidden.shape)}: [n, hidden]")
    width = hidden.shape[1]
    one = torch.eye(width, dtype=hidden.dtype, device=hidden.device)
    bias = log_odds(torch.zeros_like(one[:1]))  # [1]
    row = log_odds(one) - bias  # [hidden]
    head = quantile_head(
        torch.stack([torch.zeros_like(row), row]), torch.cat([0 * bias, bias]), quantiles
    ).to(hidden.device)
    off = (head(hidden.float())[:, 0] - log_odds(hidden)).abs().max()
    if not off < 0.1:  # half precision rounds log-odds to some hundredths
        raise PRMFormatError(
            f"the PRM's head is not linear in its states (log-odds differ by {float(off):.2g}): "
            "give quantile_head the weight and bias of its last layer, and fit it on what enters "
            "that layer"
        )
    return head


@checked
def pinball(probs: Tensor, success: Tensor, quantiles: Sequence[float]) -> Tensor:
    """Mean pinball loss; its minimiser is the quantile of `success` given the features.

    Args:
        probs: `[n, quantiles]` predictions.
        success: `[n]` success rates in [0, 1].
        quantiles: as the head's.
    """
    _check(quantiles)
    if probs.ndim != 2 or probs.shape[1] != len(quantiles):
        raise ValueError(f"probs of shape {list(probs.shape)} for quantiles={list(quantiles)}")
    _check_success(success, len(probs))
    q = torch.tensor(list(quantiles), dtype=probs.dtype, device=probs.device)
    error = success[:, None] - probs
    return torch.maximum(q * error, (q - 1) * error).mean()


@checked
def fit_quantiles(
    head: nn.Linear,
    hidden: Tensor,
    success: Tensor,
    quantiles: Sequence[float],
    *,
    rounds: int = 300,
    learning_rate: float = 0.01,
    weight_decay: float = 0.01,
) -> float:
    """Trains the head on hidden states of prefixes and the share of their rollouts that succeed.

    Args:
        head: from `quantile_head`; changed in place.
        hidden: `[n, hidden]`, as `PRM.states` gives them.
        success: `[n]` in [0, 1].
        quantiles: as the head's.
        rounds, learning_rate, weight_decay: of AdamW on all examples at once.

    Returns:
        The final loss.
    """
    _check(quantiles)
    checks.count(rounds=rounds)
    checks.positive(learning_rate=learning_rate)
    checks.nonnegative(weight_decay=weight_decay)
    _check_success(success, len(hidden))
    optimiser = torch.optim.AdamW(head.parameters(), lr=learning_rate, weight_decay=weight_decay)
    hidden = hidden.clone()  # the engine's tensors know no gradients
    for _ in range(rounds):
        optimiser.zero_grad()
        loss = pinball(head(hidden).sigmoid(), success, quantiles)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return float(loss.detach())


@checked
def samples_needed(success: float, *, confidence: float = 0.99, most: int = 1 << 30) -> int:
    """Samples after which at least one is right with probability `confidence`.

    N = ceil(log(1 - confidence) / log(1 - success)), at least 1 and at most `most`; `success` is
    clipped to [1e-4, 1 - 1e-4]. Give it a low quantile to be on the safe side.
    """
    checks.probability(success=success)
    checks.count(most=most)
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence}: between 0 and 1")
    p = min(max(success, 1e-4), 1 - 1e-4)
    return max(1, min(most, math.ceil(math.log(1 - confidence) / math.log1p(-p) - 1e-9)))


def _check(quantiles: Sequence[float]) -> None:
    if not quantiles or list(quantiles) != sorted({q for q in quantiles if 0 < q < 1}):
        raise ValueError(f"quantiles {list(quantiles)}: give increasing numbers between 0 and 1")


def _check_success(success: Tensor, number: int) -> None:
    if success.shape != (number,) or not ((success >= 0) & (success <= 1)).all():
        raise ValueError(f"success of shape {list(success.shape)}: [{number}], in [0, 1]")
