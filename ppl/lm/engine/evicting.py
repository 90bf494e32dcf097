"""Attention whose heads give tokens up: what each of them sees, layer by layer.

What an eviction says of a token is kept beside its keys and values, so that it goes wherever they
go: to forks, trunks and the prefix tree. In a pass, each layer writes the scores of its new tokens,
and reads those of all tokens of every row, in the order of the text, wherever they are.

Symbols: `B` rows, `H` key-value heads, `Q` new tokens of each, `P` positions of the longest text,
in whole groups, `L` columns that a pass sees.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ppl.lm.engine.layout import Layout
from ppl.lm.engine.packing import packed, stay
from ppl.lm.engine.reach import asked, evaluated
from ppl.lm.engine.slots import Window
from ppl.lm.engine.trunk import Standing
from ppl.lm.eviction import Eviction


class Evicting:
    """What the heads give up in one pass. As a context, it hears what attention is given.

    Args:
        evicts: what decides.
        base: the decoder.
        window: the memory of the pass; None for a pass over whole texts, from nothing.
        standing: which rows stand on a trunk.
    """

    def __init__(
        self,
        evicts: Eviction,
        base: nn.Module,
        window: Window | None = None,
        standing: Standing | None = None,
    ) -> None:
        self._evicts, self._window, self._standing = evicts, window, standing
        self._attending = [m for m in base.modules() if getattr(m, "layer_idx", None) is not None]
        self._hooks: list[Any] = []
        self._heard: tuple[nn.Module, Tensor] | None = None
        self._mask: Tensor | None = None

    def __enter__(self) -> None:
        self._hooks = [
            m.register_forward_pre_hook(self._hear, with_kwargs=True) for m in self._attending
        ]

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _hear(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = args[0] if args else kwargs.get("hidden_states")
        if isinstance(given, Tensor):
            self._heard = module, given

    def mask(self, module: Any, key: Tensor, mask: Tensor) -> Tensor:
        """Writes what is said of the new tokens of a layer, and what its heads see then.

        Args:
            module: the layer's attention.
            key: `[B, H, L, D]` of all that is seen, new ones included.
            mask: `[B, 1, Q, L]` what the layer looks at, as it was made for the pass.

        Returns:
            `[B, H, Q, L]`, or the mask where nothing can be given up yet.
        """
        running = asked()
        function = running.made[id(mask)][1]
        if self._mask is not None:
            del running.made[id(self._mask)]
            self._mask = None
        scores = self._scored(module, key, running.positions)
        if int(running.positions.max()) < self._evicts.delay:
            return mask
        stays = self._stays(module.layer_idx, scores, running.positions)

        def sees(row: Tensor, head: Tensor, at: Tensor, keys: Tensor) -> Tensor:
            recent = keys > at - self._evicts.delay
            # Behind the longest text is nothing that anybody sees.
            kept = stays[row, head, keys.clamp(max=stays.shape[2] - 1)]
            return function(row, head, at, keys) & (recent | kept)

        heads, size = key.shape[1:3]
        seen = evaluated(sees, running.positions, running.keys(size), heads=heads)
        if self._window is not None and self._window.left is not None:
            assert running.holes is not None
            columns, end = torch.arange(size, device=key.device), running.holes[:, :1]
            old = (columns < end) & (columns >= end - self._window.left[:, None])
            kept = packed(scores[:, :, :size])
            seen = torch.where(old[:, None, None], kept[:, :, None], seen)
        self._mask = seen
        running.made[id(seen)] = seen, sees
        return seen

    def _scored(self, module: Any, key: Tensor, positions: Tensor) -> Tensor:
        """Scores of all columns, those of new tokens written: `[B, H, L]`."""
        layer, window = int(module.layer_idx), self._window
        if self._heard is None or self._heard[0] is not module:
            raise RuntimeError(f"what a {type(module).__name__} is given was not seen")
        inputs = self._heard[1]
        if window is None:
            return self._evicts.score(layer, inputs, key, positions).float()
        where = window.columns[:, None, :, None].expand(-1, key.shape[1], -1, key.shape[3])
        # Rows that compute for nobody write behind what is seen.
        new = key.gather(2, where.clamp(max=key.shape[2] - 1))
        window.rate(layer, self._evicts.score(layer, inputs, new, positions))
        return window.scores(layer)

    def _stays(self, layer: int, scores: Tensor, positions: Tensor) -> Tensor:
        """Which tokens stay, by position: `[B, H, P]`; of those that are packed anything."""
        group, size = self._evicts.group, int(positions.max()) + 1
        whole = -(-size // group) * group
        at = torch.arange(whole, device=scores.device)
        running, standing = asked(), self._standing
        places = at.expand(len(scores), -1)
        if running.bases is not None:
            places = places - running.bases[:, None]
        if running.holes is not None:
            first, lost = running.holes.unbind(1)
            behind = places >= (first + lost)[:, None]
            places = places - lost[:, None] * behind
        places = places.clamp(0, scores.shape[2] - 1)
        of_all = scores.gather(2, places[:, None].expand(-1, scores.shape[1], -1))
        if standing is not None:
            for some in standing.groups:
                rows = slice(None) if some.rows is None else some.rows
                for part in some.trunk:
                    of_all[rows, :, part.start : part.stop] = part.piece.kv[-1][layer].squeeze(-1)
        return stay(self._evicts, of_all)


def scored_heads(layout: Layout, evicts: Eviction) -> int:
    """How many heads every layer of a model has, whose layers are alike.

    Raises:
        ValueError: the eviction does not fit the model.
    """
    for number, layer in enumerate(layout.layers):
        assert layer is not None
        heads, dim = layer[0]
        inputs, keys = torch.zeros(1, 2, layout.hidden), torch.zeros(1, heads, 2, dim)
        scores = evicts.score(number, inputs, keys, torch.arange(2)[None])
        if scores.shape != (1, heads, 2):
            raise ValueError(
                f"kv={evicts.name}: scores of 2 tokens in layer {number} are {tuple(scores.shape)},"
                f" not {(1, heads, 2)}: one for each of its {heads} key-value heads"
            )
    return heads
