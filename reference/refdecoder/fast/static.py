"""A KV cache for the fast path: what all layers of a pass share is found once, and nothing asks the device.

``Cache`` finds in every layer where a pass writes and what it may see. Here both are found once a pass, by ``aim``,
from tensors alone. So a pass can be recorded and played again: its addresses stay, and with a fixed ``seen`` so do its
shapes.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right

from ..cache import Cache, Side
from ..config import Config

FLASH = (torch.bfloat16, torch.float16)
"""Formats of the kernel on CUDA that needs no mask for a pass with tokens before it."""


class StaticCache(Cache):
    """Keys and values of B rows as in ``Cache``, but with heads before slots in memory, and what a pass has in common.

    Products over the slots of a head read memory in order then, and need no copy of it.
    """

    layers: list[tuple[Tensor, Tensor]]
    """Keys and values of each layer, [B, H_kv, slots + 1, D]: views of the memory that ``keys`` and ``values`` name."""
    slots: Tensor
    """Where the tokens of the pass go, [B, T]; padding goes to the spare last slot."""
    seen: int
    """S: slots that the pass reads; all of its positions lie before."""
    mask: Tensor | None
    """What is added to the scores, [B, 1, T, S]; None where ``causal`` says it all."""
    causal: bool
    """Whether query t may see the slots up to t, and no others; without this and a mask it may see all."""

    def __init__(
        self,
        config: Config,
        rows: int,
        capacity: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        """Allocate ``capacity`` slots for each of ``rows`` rows; errors are those of ``Cache``."""
        super().__init__(config, rows, capacity, dtype, device)
        L, B, slots, H_kv, D = self.keys.shape
        self._hold(self.keys.view(L, B, H_kv, slots, D), self.values.view(L, B, H_kv, slots, D))  # zeros anyhow
        self.window = config.sliding_window
        self.every = torch.arange(capacity, device=device)  # all slots
        self.rows = torch.arange(rows, device=device)[:, None]  # [B, 1]

    def _hold(self, keys: Tensor, values: Tensor) -> None:
        """Make ``keys`` and ``values`` [L, B, H_kv, slots + 1, D] the memory of this cache."""
        self.keys, self.values = keys.transpose(2, 3), values.transpose(2, 3)  # the shape that they have in Cache
        self.layers = list(zip(keys.unbind(), values.unbind(), strict=True))

    def reserve(self, counts: Sequence[int], padding: Side = "right") -> Tensor:
        """Make room and return positions as ``Cache.reserve`` does, and aim the pass at them."""
        held = {length for length, count in zip(self.lengths, counts, strict=True) if count}
        given = {count for count in counts if count}
        positions = super().reserve(counts, padding)
        # Padding on the right may be taken for further tokens: real ones do not see it, and it is stored nowhere.
        if len(held) == 1 and (len(given) == 1 or padding == "right"):
            self.aim(positions, held.pop() + max(given), aligned=True)
        else:
            self.aim(positions, self.span, aligned=False)
        return positions

    def aim(self, positions: Tensor, seen: int, *, aligned: bool) -> None:
        """Prepare a pass at ``positions`` [B, T], -1 for padding, which reads the first ``seen`` slots of every row.

        Args:
            positions: where the new tokens stand.
            seen: number of slots; all positions are below.
            aligned: the caller knows that token t of every row stands at slot ``seen`` - T + t, or is padding, so that
                a mask can be cheaper, or none is needed.
        """
        T = positions.shape[1]
        self.slots, self.seen = torch.where(positions < 0, self.capacity, positions), seen
        triangle = aligned and (self.window is None or seen <= self.window)
        self.causal = triangle and seen == T
        if triangle and (T == 1 or self.causal):
            self.mask = None
        elif triangle and positions.is_cuda and self.keys.dtype in FLASH:
            self.mask = causal_lower_right(T, seen)  # no tensor is made: the kernel knows what it stands for
        else:
            self.mask = self._mask(positions)

    def _mask(self, positions: Tensor) -> Tensor:
        """Return 0 where a query may look and -inf where not, [B, 1, T, S]; padding looks as if from position 0."""
        positions = positions.clamp(min=0)[:, None, :, None]  # [B, 1, T, 1]
        slots = self.every[: self.seen]
        hidden = slots > positions
        if self.window is not None:
            hidden = hidden | (slots <= positions - self.window)
        return torch.zeros_like(hidden, dtype=self.keys.dtype).masked_fill(hidden, float("-inf"))

    def store(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store ``keys`` and ``values`` [B, T, H_kv, D] where ``aim`` said; return all seen, [B, H_kv, S, D]."""
        held_keys, held_values = self.layers[layer]
        held_keys[self.rows, :, self.slots] = keys
        held_values[self.rows, :, self.slots] = values
        return held_keys[:, :, : self.seen], held_values[:, :, : self.seen]

    def write(self, layer: int, positions: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Do what ``Cache.write`` does, for modules that are not fused; ``positions`` are those that ``aim`` knows."""
        keys, values = self.store(layer, keys, values)
        return keys.transpose(1, 2), values.transpose(1, 2)  # [B, H_kv, S, D] to [B, S, H_kv, D]

    def clear(self) -> None:
        """Forget all tokens of all rows."""
        for row in range(len(self.lengths)):
            self.truncate(row, 0)

    def fork(self) -> StaticCache:
        """Return a copy that shares no memory with this cache."""
        twin = copy.copy(self)
        twin.lengths = list(self.lengths)
        twin._hold(self.keys.transpose(2, 3).clone(), self.values.transpose(2, 3).clone())
        return twin
