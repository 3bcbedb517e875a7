"""Planted faults of the KV cache: where a chunk stands, and what lies in the slots."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lmconform.engines.reference import Reference
from lmconform.faults.fault import Fault, Rebuilt
from refdecoder import Attention, Decoder, DecoderConfig
from refdecoder.cache import Cache
from refdecoder.rope import cos_sin, rotate

# --- positions --------------------------------------------------------------------------------------------------------


class _Misplaced(Attention):
    """Rotates queries and keys at other positions than their slots."""

    def place(self, positions: Tensor, first: Tensor) -> Tensor:
        """The positions [B, T] to rotate at; ``first`` [B, 1] is the first of each row."""
        raise NotImplementedError

    def forward(self, x: Tensor, positions: Tensor, cos: Tensor, sin: Tensor, cache: Cache) -> Tensor:
        places = self.place(positions, positions[:, :1]).clamp(min=0)
        cos, sin = cos_sin(places, self.config.rope, self.config.head_dim, x.dtype)
        return super().forward(x, positions, cos, sin, cache)


class _Twice(_Misplaced):
    def place(self, positions: Tensor, first: Tensor) -> Tensor:
        return positions + first


class AddsThePromptTwice(Reference):
    """A chunk over a cache starts at twice the cached length."""

    name = "fault: prompt added twice"
    attention_class = _Twice


class _Late(_Misplaced):
    def place(self, positions: Tensor, first: Tensor) -> Tensor:
        return positions + (first > 0)


class StandsOneTooLate(Reference):
    """A chunk over a cache stands one position too late."""

    name = "fault: chunk one position late"
    attention_class = _Late


def _turned(x: Tensor, by: int, config: DecoderConfig) -> Tensor:
    """``x`` [B, H, T, D], rotated ``by`` positions more."""
    cos, sin = cos_sin(torch.full((1, 1), by, device=x.device), config.rope, config.head_dim, x.dtype)
    return rotate(x.transpose(1, 2), cos, sin).transpose(1, 2)


class _MovingOffset(Attention):
    def attend(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
        T, S = q.shape[2], k.shape[2]
        return super().attend(_turned(q, T, self.config) if S > T else q, k, v, visible)


class MovesTheOffsetBetweenKAndQ(Reference):
    """In a chunk over a cache, queries are rotated with the offset that is right for the next chunk."""

    name = "fault: offset moves between K and Q"
    attention_class = _MovingOffset


class _RotatedOnRead(Attention):
    def attend(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
        cached, new = k.split([k.shape[2] - q.shape[2], q.shape[2]], dim=2)
        return super().attend(q, torch.cat([_turned(cached, 1, self.config), new], dim=2), v, visible)


class RotatesCachedKeysOneFurther(Reference):
    """Cached keys are rotated when they are read, one position too far."""

    name = "fault: cached keys rotated one further"
    attention_class = _RotatedOnRead


# --- what lies in the slots -------------------------------------------------------------------------------------------


class FaultyCache(Cache):
    """A cache whose copies are of the same kind."""

    group: int
    """Query heads a KV head."""

    def fork(self) -> Cache:
        twin = super().fork()
        twin.__class__ = type(self)
        vars(twin)["group"] = self.group
        return twin

    def swap(self, order: Sequence[int]) -> None:
        """Reorder the rows of keys and values, and nothing else."""
        self.keys, self.values = self.keys[:, list(order)], self.values[:, list(order)]


class _Caching(Decoder):
    cache_class: type[FaultyCache]

    def new_cache(self, rows: int, capacity: int) -> Cache:
        cache = super().new_cache(rows, capacity)
        cache.__class__ = self.cache_class
        vars(cache)["group"] = self.config.num_attention_heads // self.config.num_key_value_heads
        return cache


class WithCache(Reference):
    """The reference with another cache."""

    cache_class: type[FaultyCache] = FaultyCache

    def build(self, config: DecoderConfig, attention: str) -> Decoder:
        built = super().build(config, attention)
        built.__class__ = _Caching
        vars(built)["cache_class"] = self.cache_class
        return built


class _StoredWrong(FaultyCache):
    """Hands a pass its own values as they are, and stores others for the passes after it."""

    def stored(self, keys: Tensor, values: Tensor, rows: Tensor, slots: Tensor) -> Tensor:
        """The values [B, T, H_kv, D] to store."""
        raise NotImplementedError

    def write(self, layer: int, positions: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        k, v = super().write(layer, positions, keys, values)
        v = v.clone()
        rows = torch.arange(len(self.lengths), device=positions.device)[:, None]  # [B, 1]
        slots = torch.where(positions < 0, self.capacity, positions)
        self.values[layer, rows, slots] = self.stored(keys, values, rows, slots)
        return k, v


class _FirstLayersValues(_StoredWrong):
    def stored(self, keys: Tensor, values: Tensor, rows: Tensor, slots: Tensor) -> Tensor:
        return self.values[0, rows, slots]


class CachesTheFirstLayersValues(WithCache):
    """All layers cache the values of the first."""

    name = "fault: values of the first layer"
    cache_class = _FirstLayersValues


class _KeysAsValues(_StoredWrong):
    def stored(self, keys: Tensor, values: Tensor, rows: Tensor, slots: Tensor) -> Tensor:
        return keys


class CachesKeysAsValues(WithCache):
    """The value cache is updated from the keys."""

    name = "fault: keys cached as values"
    cache_class = _KeysAsValues


class _SlotsOneLate(FaultyCache):
    def write(self, layer: int, positions: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        return super().write(layer, positions + (positions[:, :1] > 0), keys, values)


class WritesLaterChunksOneSlotLate(WithCache):
    """Every chunk after the first is written one slot too far."""

    name = "fault: later chunks one slot late"
    cache_class = _SlotsOneLate


class WholeCapacity(FaultyCache):
    @property
    def span(self) -> int:
        return self.capacity


class _UnwrittenToo(Attention):
    def visible(self, positions: Tensor, slots: Tensor) -> Tensor:
        return super().visible(positions, slots) | (slots > positions.amax(dim=1)[:, None, None])


class SeesUnwrittenSlots(WithCache):
    """Slots of a static cache that nothing was written to take part in attention."""

    name = "fault: unwritten slots visible"
    attention_class = _UnwrittenToo
    cache_class = WholeCapacity


class _OtherDecodeScale(Attention):
    def attend(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
        return super().attend(q * 1.25 if q.shape[2] == 1 and k.shape[2] > 1 else q, k, v, visible)


class ScalesDecodeStepsDifferently(Reference):
    """A decode step multiplies its queries by a scale that prefill does not have."""

    name = "fault: another scale in decode"
    attention_class = _OtherDecodeScale


class _AfterTheLastChunk(Attention):
    """Counts the tokens of the chunk before as all that are cached."""

    sizes: tuple[int, int] = (0, 0)

    def forward(self, x: Tensor, positions: Tensor, cos: Tensor, sin: Tensor, cache: Cache) -> Tensor:
        first = int(positions[:, 0].amax())
        before = self.sizes[1] if first else 0
        self.sizes = (before, x.shape[1])
        cos, sin = cos_sin((positions - first + before).clamp(min=0), self.config.rope, self.config.head_dim, x.dtype)
        return super().forward(x, positions, cos, sin, cache)


class TakesTheLastChunkForAll(Reference):
    """A chunk stands behind the length of the chunk before it alone: wrong from the third on."""

    name = "fault: behind the last chunk alone"
    attention_class = _AfterTheLastChunk


class _UnturnedInTheLastLayer(Attention):
    def attend(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
        cached, new = k.split([k.shape[2] - q.shape[2], q.shape[2]], dim=2)
        if cached.shape[2] and self.layer_index == self.config.num_hidden_layers - 1:
            back = -torch.arange(cached.shape[2], device=k.device)[None]  # [1, S]
            cos, sin = cos_sin(back, self.config.rope, self.config.head_dim, k.dtype)
            k = torch.cat([rotate(cached.transpose(1, 2), cos, sin).transpose(1, 2), new], dim=2)
        return super().attend(q, k, v, visible)


class UnturnedKeysInTheLastLayer(Reference):
    """The last layer caches its keys as they are before RoPE."""

    name = "fault: last layer caches unturned keys"
    attention_class = _UnturnedInTheLastLayer


class _LastNormInPrefill(Decoder):
    def forward(self, tokens: Tensor, positions: Tensor, cache: Cache, last: bool = False) -> Tensor:
        decode = tokens.shape[1] == 1 and bool(positions.amax() > 0)
        right = self.norm
        self._modules["norm"] = _Weighted(right.weight) if decode else right
        try:
            return super().forward(tokens, positions, cache, last)
        finally:
            self._modules["norm"] = right


class _Weighted(nn.Module):
    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


class NoLastNormInDecode(Rebuilt):
    """Decode steps go without the last norm."""

    name = "fault: no last norm in decode"
    parts: ClassVar = {Decoder: _LastNormInPrefill}


class _Float8(_StoredWrong):
    def stored(self, keys: Tensor, values: Tensor, rows: Tensor, slots: Tensor) -> Tensor:
        return values.to(torch.float8_e4m3fn).to(values.dtype)


class CachesInFloat8(WithCache):
    """Values are cached in 8 bits, in an engine of float16 that declares a cache of its own format."""

    name = "fault: cache in float8, undeclared"
    cache_class = _Float8

    def __init__(self, dtype: str = "float16", **options: Any) -> None:
        super().__init__(dtype, **options)


FAULTS = (
    Fault(SeesUnwrittenSlots, "KV-1", "transformers#30437", "cache.limit"),
    Fault(ScalesDecodeStepsDifferently, "KV-1", "vllm#42580", "attention.scale"),
    Fault(AddsThePromptTwice, "KV-2", "tiny-llm#46", "cache.offset"),
    Fault(StandsOneTooLate, "KV-2", "vllm#10388", "cache.offset"),
    Fault(MovesTheOffsetBetweenKAndQ, "KV-2", "mlx-lm#1699", "rope.positions"),
    Fault(RotatesCachedKeysOneFurther, "KV-2", "llama.cpp#3825", "rope.where"),
    Fault(CachesTheFirstLayersValues, "KV-3", "transformers#34232", "cache.slots"),
    Fault(CachesKeysAsValues, "KV-3", "transformers#34232", "cache.slots"),
    Fault(WritesLaterChunksOneSlotLate, "KV-3", "vllm#36580", "cache.slots"),
    Fault(NoLastNormInDecode, "KV-1", "vllm#42580", "norm.place"),
    Fault(CachesInFloat8, "KV-1", "vllm#42580", "decoder.precision"),
    Fault(TakesTheLastChunkForAll, "KV-2", "vllm#10388", "cache.offset"),
    Fault(UnturnedKeysInTheLastLayer, "KV-2", "llama.cpp#14742", "rope.where"),
)
