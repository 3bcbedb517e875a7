"""Planted faults of a KV cache that are alive only past its first block, its first chunks, or its first copy."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lmconform.faults.fault import Fault
from lmconform.faults.kv_cache import FaultyCache, WithCache
from refdecoder.cache import Cache, Side

BLOCK, PAGE = 16, 64
"""Slots that a cache grows by, and slots of a page."""


class _Grown(FaultyCache):
    def reserve(self, counts: Sequence[int], padding: Side = "right") -> Tensor:
        for row, (length, count) in enumerate(zip(self.lengths, counts, strict=True)):
            if length > 0 and -(-length // BLOCK) < -(-(length + count) // BLOCK):
                self.keys[:, row, length - 1] = 0
                self.values[:, row, length - 1] = 0
        return super().reserve(counts, padding)


class LosesASlotWhenItGrows(WithCache):
    """A row that outgrows its blocks of 16 is copied to more of them, without its last token."""

    name = "fault: growth loses a slot"
    cache_class = _Grown


class _OnePage(FaultyCache):
    def write(self, layer: int, positions: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        k, v = super().write(layer, positions, keys, values)
        slots = torch.arange(k.shape[1], device=k.device)
        own = (slots >= positions.clamp(min=0).amin()).expand(len(slots))
        read = torch.where(own | (slots < PAGE), slots, slots % PAGE)  # [S]
        return k[:, read], v[:, read]


class ReadsTheFirstPageForAll(WithCache):
    """Cached tokens from position 64 on are looked for in the first page of 64."""

    name = "fault: first page for all"
    cache_class = _OnePage


class _SecondChunk(FaultyCache):
    def write(self, layer: int, positions: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        k, v = super().write(layer, positions, keys, values)
        if positions.shape[1] > 1 and positions[0, 0] > 0:
            k, v = k.clone(), v.clone()
            self.keys[layer, :, positions[0, 0]] = 0
            self.values[layer, :, positions[0, 0]] = 0
        return k, v


class ForgetsTheFirstTokenOfALaterChunk(WithCache):
    """Of a prefill chunk over a cache the first token is not kept for the passes after it."""

    name = "fault: first token of a later chunk lost"
    cache_class = _SecondChunk


class _LastSlotMissing(FaultyCache):
    def fork(self) -> Cache:
        twin = super().fork()
        last = list(range(BLOCK - 1, twin.span, BLOCK))
        twin.keys[:, :, last] = 0
        twin.values[:, :, last] = 0
        return twin


class ForksLoseTheLastSlotOfABlock(WithCache):
    """A fork copies 15 of the 16 slots of each full block."""

    name = "fault: fork loses the last slot of a block"
    cache_class = _LastSlotMissing


class _ForkOfAFork(FaultyCache):
    forked = False

    def fork(self) -> Cache:
        twin = super().fork()
        vars(twin)["forked"] = True
        if self.forked:
            twin.keys, twin.values = self.keys, self.values
        return twin


class ForksOfForksShareSlots(WithCache):
    """The fork of a fork writes to the slots of the fork that it was made from."""

    name = "fault: fork of a fork shares slots"
    cache_class = _ForkOfAFork


class _ABlockTooMany(FaultyCache):
    def truncate(self, row: int, length: int) -> None:
        super().truncate(row, length)
        if length % BLOCK == 0:
            self.keys[:, row, max(length - BLOCK, 0) : length] = 0
            self.values[:, row, max(length - BLOCK, 0) : length] = 0


class FreesABlockTooMany(WithCache):
    """Truncation to a multiple of 16 frees the last block that stays, too."""

    name = "fault: truncation frees a block too many"
    cache_class = _ABlockTooMany


class _NeverToNothing(FaultyCache):
    def truncate(self, row: int, length: int) -> None:
        super().truncate(row, length or self.lengths[row])


class KeepsAllWhenCutToNothing(WithCache):
    """Truncation to 0 tokens keeps all of them, as the slice of the last 0 does."""

    name = "fault: truncation to 0 keeps all"
    cache_class = _NeverToNothing


FAULTS = (
    Fault(LosesASlotWhenItGrows, "KV-3", "transformers#37574", "cache.memory"),
    Fault(ReadsTheFirstPageForAll, "KV-3", "vllm#36580", "cache.slots"),
    Fault(ForgetsTheFirstTokenOfALaterChunk, "KV-3", "vllm#36580", "cache.slots"),
    Fault(ForksOfForksShareSlots, "KV-4", "transformers#34232", "cache.fork"),
    Fault(FreesABlockTooMany, "KV-5", "rMLX#382", "cache.truncate"),
    Fault(KeepsAllWhenCutToNothing, "KV-5", "Token-Print#268", "cache.truncate"),
    Fault(ForksLoseTheLastSlotOfABlock, "KV-11", "mlx-lm#1547", "cache.fork"),
)
