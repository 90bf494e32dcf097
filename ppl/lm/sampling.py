"""From logits to one drawn token per row, exactly and in a few vectorised passes.

Order of the warps, as in `transformers`: allowed tokens, temperature, top-k, top-p, min-p. What is
drawn follows the warped and renormalised distribution, and its log-probability is what is recorded.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ppl.language import checks

Invert = Callable[[Tensor, NDArray[np.float64]], tuple[list[int], list[float]] | None]
"""From logits `[B, V]` and uniforms `[B]` to tokens and their log-probabilities, or None where it
does not serve."""

# Entries that are added up at once before a cumulative sum over the sums; of so few that this does
# not pay there is one cumulative sum.
_BLOCK = 256
ONE_LEVEL = 8 * _BLOCK
# Probabilities that are drawn from at once on a CPU.
_CPU_PART = 1 << 19


@dataclass(frozen=True, slots=True)
class Warp:
    """How a row's next-token distribution is reshaped before drawing.

    Attributes:
        temperature: divides the logits; 0 puts all mass on the most likely token.
        top_p: keeps the smallest set of most likely tokens whose mass reaches this.
        top_k: keeps this many most likely tokens (None: all).
        min_p: drops tokens less likely than this share of the most likely one (0: none).
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None
    min_p: float = 0.0

    def __post_init__(self) -> None:
        checks.nonnegative(temperature=self.temperature)
        checks.probability(top_p=self.top_p, min_p=self.min_p)
        if self.top_p == 0:
            raise ValueError("top_p=0: keeps no token; temperature=0 keeps the likeliest")
        if self.top_k is not None:
            checks.count(top_k=self.top_k)

    @property
    def only_heats(self) -> bool:
        """Whether it divides the logits and does nothing else: all tokens can still be drawn."""
        keeps_all = self.top_p == 1 and self.top_k is None and self.min_p == 0
        return keeps_all and self.temperature > 0

    def sharpened(self, power: float) -> Warp | None:
        """The warp under which tokens have their probability to a power, renormalised.

        None where no warp does: top-p would keep fewer tokens of a sharper distribution, and what
        it drops could never be drawn.
        """
        if self.top_p < 1:
            return None
        return replace(self, temperature=self.temperature / power, min_p=self.min_p**power)


_cached = functools.lru_cache(maxsize=1024, typed=True)(Warp)


def warp_of(temperature: float, top_p: float, top_k: int | None, min_p: float) -> Warp:
    """The `Warp` of these settings, which programs ask for at every step: checked once."""
    try:
        return _cached(temperature, top_p, top_k, min_p)
    except TypeError:  # what cannot be hashed is no number; the warp itself says so
        return Warp(temperature, top_p, top_k, min_p)


# The very object that programs get, so that whether all rows have it is soon told.
PLAIN = warp_of(1.0, 1.0, None, 0.0)


def warped_log_probs(
    logits: Tensor, warps: Sequence[Warp], allowed: Sequence[Tensor | None]
) -> Tensor:
    """Log-probabilities `[B, V]` of the warped, renormalised next-token distributions.

    Args:
        logits: `[B, V]`; half precision is computed in float32.
        warps: one per row.
        allowed: per row a boolean mask `[V]` (CPU) of what may be drawn, or None for everything.

    Returns:
        `[B, V]`; minus infinity where a token is excluded, and for all of a row that allows nothing
        of what has any probability.
    """
    given = logits.to(_at_least_float32(logits.dtype))
    logits, empty = _keep_only(given, allowed), None
    if logits is not given:
        empty = (logits.amax(-1) == -torch.inf) & (given.amax(-1) > -torch.inf)  # nothing is NaN
    temperature = np.array([w.temperature for w in warps])
    if np.any(temperature != 1.0):
        logits = _divided(logits, temperature)
    vocabulary = logits.shape[-1]
    top_k = np.array([w.top_k or vocabulary for w in warps])
    top_k = np.minimum(np.where(temperature == 0, 1, top_k), vocabulary)
    if np.any(top_k < vocabulary):
        logits = _top_k(logits, top_k)
    log_probs = torch.log_softmax(logits, dim=-1)
    top_p = np.array([w.top_p for w in warps])
    if np.any(top_p < 1.0):
        log_probs = _top_p(log_probs, top_p)
    min_p = np.array([w.min_p for w in warps])
    if np.any(min_p > 0.0):
        log_probs = _min_p(log_probs, min_p)
    return log_probs if empty is None else log_probs.masked_fill(empty[:, None], -torch.inf)


def draw(
    logits: Tensor,
    warps: Sequence[Warp],
    allowed: Sequence[Tensor | None],
    uniforms: NDArray[np.float64],
    invert: Invert | None = None,
) -> tuple[list[int], list[float]]:
    """A token for each row, and its log-probability under the row's warped distribution.

    Args:
        logits, warps, allowed: as in `warped_log_probs`.
        uniforms: `[B]` in (0, 1).
        invert: a program for rows with nothing to reshape, but for their temperature.

    Returns:
        Token ids and log-probabilities, one each per row; NaN where there is no distribution (what
        is allowed may have no probability, see `nothing_left`).
    """
    rows, size = logits.shape
    plain, on_cpu = warps.count(PLAIN) == rows, logits.device.type == "cpu"
    own = invert if plain or all(warp.only_heats for warp in warps) else None
    drawn = own(_keep_only(logits, allowed), uniforms) if own is not None and plain else None
    # As many rows at once as its cache takes: fresh memory for the probabilities of all rows would
    # cost more, in page faults, than drawing from them.
    most = max(1, _CPU_PART // size)
    if drawn is None and on_cpu and rows > most:
        parts = [slice(at, at + most) for at in range(0, rows, most)]
        each = [draw(logits[p], warps[p], allowed[p], uniforms[p], own) for p in parts]
        return [t for some, _ in each for t in some], [p for _, some in each for p in some]
    if own is not None and not plain:
        drawn = own(_keep_only(heated(logits, warps), allowed), uniforms)
    if drawn is not None:
        return drawn
    tokens, log_probs = _draw(logits, warps, allowed, uniforms)
    if on_cpu:
        return tokens.tolist(), log_probs.tolist()
    # One transfer for both: float64 holds every token id exactly.
    tokens_, log_probs_ = torch.stack([tokens.double(), log_probs.double()]).tolist()
    return [int(token) for token in tokens_], log_probs_


def nothing_left(logits: Tensor, mask: Tensor | None) -> bool:
    """Whether a mask `[V]` leaves nothing of what has any probability by the logits `[V]`: no
    fault of the model's, but of who chose what led there. What is drawn then has none."""
    if mask is None or not bool(logits.amax() > -torch.inf):  # a NaN is no number of a model's law
        return False
    return bool(logits[mask.to(logits.device)].amax() == -torch.inf)


def _draw(
    logits: Tensor,
    warps: Sequence[Warp],
    allowed: Sequence[Tensor | None],
    uniforms: NDArray[np.float64],
) -> tuple[Tensor, Tensor]:
    if all(warp.only_heats for warp in warps):
        # Nothing to leave out: probabilities in one pass, logarithms only of those drawn.
        plain = warps.count(PLAIN) == len(warps)
        logits = _keep_only(logits if plain else heated(logits, warps), allowed)
        return draw_plainly(logits, _sent(torch.from_numpy(uniforms), logits.device))
    warped = warped_log_probs(logits, warps, allowed)
    tokens, _ = inverse_cdf(warped.exp(), _sent(torch.from_numpy(uniforms), warped.device))
    return tokens, warped.gather(1, tokens[:, None]).squeeze(1)


def draw_plainly(logits: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """As `draw`, of laws of which nothing is left out: looks at no value, so that a GPU need not
    be waited for.

    Args:
        logits: `[B, V]`.
        uniforms: `[B]` float64 in (0, 1), on their device.

    Returns:
        `[B]` int64 token ids, and `[B]` float64 log-probabilities.
    """
    probs = torch.softmax(logits, dim=-1, dtype=_at_least_float32(logits.dtype))
    tokens, total = inverse_cdf(probs, uniforms)
    return tokens, probs.gather(1, tokens[:, None]).squeeze(1).double().log() - total.log()


def heated(logits: Tensor, warps: Sequence[Warp]) -> Tensor:
    """Logits `[B, V]` divided by their rows' temperatures, in float32 at least."""
    temperature = np.array([w.temperature for w in warps])
    return _divided(logits.to(_at_least_float32(logits.dtype)), temperature)


def _divided(logits: Tensor, temperature: NDArray[np.float64]) -> Tensor:
    # Greedy rows are divided by one and then reduced to their arg max.
    divisor = np.where(temperature == 0, 1.0, temperature)
    return logits / torch.as_tensor(divisor, dtype=logits.dtype, device=logits.device)[:, None]


def _sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy on the device that nobody waits for: from pageable memory a copy waits until all that
    was launched before, here the pass, has run, and only then the draw could be launched."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype.itemsize < 4 else dtype


def _keep_only(logits: Tensor, allowed: Sequence[Tensor | None]) -> Tensor:
    if all(mask is None for mask in allowed):
        return logits
    everything = torch.ones(logits.shape[-1], dtype=torch.bool, device="cpu")
    keep = torch.stack([everything if mask is None else mask for mask in allowed])  # [B, V]
    return logits.masked_fill(~_sent(keep, logits.device), -torch.inf)


def _top_k(logits: Tensor, top_k: NDArray[np.int64]) -> Tensor:
    # A stable sort, so that exactly k tokens survive even among equal logits.
    order = torch.argsort(logits, dim=-1, descending=True, stable=True)
    rank = torch.arange(logits.shape[-1], device=logits.device)
    drop_sorted = rank[None, :] >= torch.as_tensor(top_k, device=logits.device)[:, None]
    drop = torch.zeros_like(drop_sorted).scatter_(1, order, drop_sorted)
    return logits.masked_fill(drop, -torch.inf)


def _top_p(log_probs: Tensor, top_p: NDArray[np.float64]) -> Tensor:
    ordered, order = torch.sort(log_probs, dim=-1, descending=True, stable=True)
    probs = ordered.double().exp()
    before = probs.cumsum(-1) - probs  # mass of the strictly more likely tokens
    limit = torch.as_tensor(top_p, device=log_probs.device)[:, None]
    # A sum that reaches the limit but for its rounding has reached it: what is needed, no more.
    drop_sorted = (before >= limit - _rounding(log_probs)) & (limit < 1)
    drop = torch.zeros_like(drop_sorted).scatter_(1, order, drop_sorted)
    return torch.log_softmax(log_probs.masked_fill(drop, -torch.inf), dim=-1)


def _min_p(log_probs: Tensor, min_p: NDArray[np.float64]) -> Tensor:
    with np.errstate(divide="ignore"):
        floor = torch.as_tensor(np.log(min_p), device=log_probs.device)[:, None]
    least = log_probs.double().amax(-1, keepdim=True) + floor
    drop = log_probs.double() < least - _rounding(log_probs)  # what is at the floor is kept
    return torch.log_softmax(log_probs.masked_fill(drop, -torch.inf), dim=-1)


def _rounding(log_probs: Tensor) -> float:
    """By how much sums of probabilities, and differences of their logarithms, may be off."""
    return 8 * torch.finfo(log_probs.dtype).eps


def inverse_cdf(probs: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Draws one index per row by inverting the cumulative distribution at the given uniforms.

    Two levels: first the block whose cumulative mass passes the uniform, then the index inside it;
    a single cumulative sum over 50,000 entries costs several times as much. An index of
    probability zero is never drawn.

    Args:
        probs: `[B, V]` non-negative; rows need not sum to one.
        uniforms: `[B]` float64 in (0, 1), on their device.

    Returns:
        `[B]` int64 indices, and `[B]` float64 sums of the rows.
    """
    block = _BLOCK
    batch, size = probs.shape
    # Times any total, this stays below the total: never beyond the last index with any mass.
    u = uniforms.clamp(max=1 - 2.0**-52)[:, None]
    if size <= ONE_LEVEL:
        mass = probs.cumsum(-1, dtype=torch.float64)
        total = mass[:, -1:]
        found = torch.searchsorted(mass, u * total, right=True)
        # A row of NaN has no index to give; the caller sees its NaN log-probability.
        return found.squeeze(1).clamp_(max=size - 1), total.squeeze(1)
    blocks = -(-size // block)
    if size % block:
        probs = torch.nn.functional.pad(probs, (0, blocks * block - size))
    padded = probs.view(batch, blocks, block)
    mass = padded.sum(-1).cumsum(-1, dtype=torch.float64)  # [B, blocks]
    total = mass[:, -1:]
    which = torch.searchsorted(mass, u * total, right=True).clamp_(max=blocks - 1)  # [B, 1]
    start = torch.where(which > 0, mass.gather(1, (which - 1).clamp(min=0)), 0.0)
    inner = padded.gather(1, which[:, :, None].expand(-1, 1, block)).squeeze(1)  # [B, block]
    inside = torch.searchsorted(inner.double().cumsum(-1), u * total - start, right=True)
    # Rounding may leave u beyond the block's last entry: step back to its last possible index.
    last = block - 1 - (inner > 0).flip(-1).to(torch.uint8).argmax(-1, keepdim=True)
    found = which * block + torch.minimum(inside, last)
    return found.squeeze(1).clamp_(max=size - 1), total.squeeze(1)
