"""The KV cache: allocated once, and slot = position.

The key of row b at position p lies in slot p of row b. So a query at position p may see the slots up to p, whatever
was cached before and however the new tokens arrive: the mask is lower-right aligned by construction.

A model with a sliding window never looks back further than its window, and a cache could drop what is older. This one
keeps it: slots stay positions, and any length can be truncated to, at the price of memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from .config import Config
from .errors import InputError

Side = Literal["left", "right"]


def pad(rows: Sequence[Sequence[int]], fill: int, side: Side, device: torch.device) -> Tensor:
    """Return ragged ``rows`` as one tensor [B, T], with ``fill`` on ``side`` of the shorter ones."""
    width = max(map(len, rows))
    fills = [[fill] * (width - len(row)) for row in rows]
    table = [[*extra, *row] if side == "left" else [*row, *extra] for row, extra in zip(rows, fills, strict=True)]
    return torch.tensor(table, dtype=torch.long, device=device)


class Cache:
    """Keys and values of B rows, [L, B, S + 1, H_kv, D] each, and the number of tokens that every row holds.

    Padding writes to the spare last slot, which no query reads. Slots past a row's length hold zeros: a masked weight
    is 0, but 0 * NaN is NaN, so what lies there must be finite.
    """

    def __init__(
        self,
        config: Config,
        rows: int,
        capacity: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        kv_heads: int | None = None,
    ) -> None:
        """Allocate ``capacity`` slots for each of ``rows`` rows, and all KV heads or only ``kv_heads`` of them.

        Raises:
            InputError: fewer than one row or slot, or more slots than the model has positions.
        """
        if rows < 1 or not 1 <= capacity <= config.max_position_embeddings:
            raise InputError(
                f"A cache of {rows} rows and {capacity} slots was asked for; it needs at least one row, and from 1 to "
                f"{config.max_position_embeddings} slots (max_position_embeddings)."
            )
        heads = config.num_key_value_heads if kv_heads is None else kv_heads
        shape = (config.num_hidden_layers, rows, capacity + 1, heads, config.head_dim)
        self.capacity = capacity
        self.lengths = [0] * rows
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)

    @property
    def span(self) -> int:
        """Slots in use by the longest row; queries look no further."""
        return max(self.lengths)

    @property
    def nbytes(self) -> int:
        """Bytes allocated for keys and values, the spare slot included."""
        return self.keys.nbytes + self.values.nbytes

    def reserve(self, counts: Sequence[int], padding: Side = "right") -> Tensor:
        """Make room for ``counts[b]`` new tokens in row b, and return their positions, [B, max(counts)].

        This is the only place where lengths grow. Rows with fewer tokens than others get -1, which marks padding, on
        the side ``padding``.

        Raises:
            InputError: a row would hold more tokens than the cache has slots. Nothing is changed then.
        """
        self.require(counts)
        places = [range(length, length + count) for length, count in zip(self.lengths, counts, strict=True)]
        self.lengths = [place.stop for place in places]
        return pad(places, -1, padding, self.keys.device)

    def require(self, counts: Sequence[int]) -> None:
        """Raise InputError unless every row b has room for ``counts[b]`` more tokens."""
        for row, (length, count) in enumerate(zip(self.lengths, counts, strict=True)):
            if length + count > self.capacity:
                raise InputError(
                    f"Row {row} of the KV cache holds {length} tokens and was to take {count} more, but has "
                    f"{self.capacity} slots. Allocate a cache with a larger capacity."
                )

    def write(self, layer: int, positions: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store ``keys`` and ``values`` [B, T, H_kv, D] at ``positions`` [B, T]; return all in use, [B, S, H_kv, D]."""
        rows = torch.arange(len(self.lengths), device=positions.device)[:, None]  # [B, 1]
        slots = torch.where(positions < 0, self.capacity, positions)  # padding goes to the spare slot
        self.keys[layer, rows, slots] = keys
        self.values[layer, rows, slots] = values
        return self.keys[layer, :, : self.span], self.values[layer, :, : self.span]

    def truncate(self, row: int, length: int) -> None:
        """Forget all but the first ``length`` tokens of a row; raise InputError if it holds fewer."""
        if not 0 <= length <= self.lengths[row]:
            raise InputError(f"Row {row} holds {self.lengths[row]} tokens; it cannot be cut to {length}.")
        self.keys[:, row, length:] = 0
        self.values[:, row, length:] = 0
        self.lengths[row] = length

    def fork(self) -> Cache:
        """Return a copy that shares no memory with this cache."""
        twin = object.__new__(Cache)
        twin.capacity, twin.lengths = self.capacity, list(self.lengths)
        twin.keys, twin.values = self.keys.clone(), self.values.clone()
        return twin
