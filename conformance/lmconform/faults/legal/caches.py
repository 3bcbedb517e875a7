"""Right ways to keep keys and values: other layouts, other moments of allocation, and no cache at all."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from lmconform.adapter import Array, Refused, Session
from lmconform.engines.common import check_tokens
from lmconform.engines.reference import Reference, ReferenceModel
from lmconform.faults.fault import Rebuilt
from lmconform.faults.legal.legal import attending, legal
from refdecoder import GPT2, Cache, Decoder
from refdecoder.cache import Side
from refdecoder.config import Config
from refdecoder.model import CausalAttention, CausalLM

BLOCK = 16


class OwnCache(Cache):
    """A cache with another layout: forks are copies of what it is made of."""

    def fork(self) -> Cache:
        return copy.deepcopy(self)

    def truncate(self, row: int, length: int) -> None:
        if not 0 <= length <= self.lengths[row]:
            super().truncate(row, length)  # refuses it
        self.clear(row, length)
        self.lengths[row] = length

    def clear(self, row: int, length: int) -> None:
        """Make what a row holds after its first ``length`` tokens 0: a hidden NaN would be 0 * NaN, which is NaN."""
        self.keys[:, row, length:] = 0
        self.values[:, row, length:] = 0


class WholeCache(OwnCache):
    """Static: queries look at all slots that there are, used or not, as graphs of one shape do."""

    @property
    def span(self) -> int:
        return self.capacity


class GrowingCache(OwnCache):
    """Starts with the spare slot alone; a longer sequence is concatenated to what there is."""

    def __init__(
        self, config: Config, rows: int, capacity: int, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        super().__init__(config, rows, capacity, dtype, device)
        self.keys, self.values = self.keys[:, :, :1].clone(), self.values[:, :, :1].clone()

    def reserve(self, counts: Sequence[int], padding: Side = "right") -> Tensor:
        positions = super().reserve(counts, padding)
        if (more := self.span + 1 - self.keys.shape[2]) > 0:  # the spare slot stays the first
            shape = (*self.keys.shape[:2], more, *self.keys.shape[3:])
            self.keys = torch.cat((self.keys, self.keys.new_zeros(shape)), dim=2)
            self.values = torch.cat((self.values, self.values.new_zeros(shape)), dim=2)
        return positions

    def write(self, layer: int, positions: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        rows = torch.arange(len(self.lengths))[:, None]  # [B, 1]
        self.keys[layer, rows, positions + 1] = keys  # padding, -1, goes to slot 0
        self.values[layer, rows, positions + 1] = values
        return self.keys[layer, :, 1 : self.span + 1], self.values[layer, :, 1 : self.span + 1]

    def clear(self, row: int, length: int) -> None:
        self.keys[:, row, length + 1 :] = 0
        self.values[:, row, length + 1 :] = 0


class HeadsFirstCache(OwnCache):
    """Stored as [L, B, H_kv, S + 1, D]."""

    def __init__(
        self, config: Config, rows: int, capacity: int, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        super().__init__(config, rows, capacity, dtype, device)
        self.keys = self.keys.transpose(2, 3).contiguous()
        self.values = self.values.transpose(2, 3).contiguous()

    def write(self, layer: int, positions: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        slots = torch.where(positions < 0, self.capacity, positions)  # [B, T]
        for row, places in enumerate(slots):
            self.keys[layer, row, :, places] = keys[row].transpose(0, 1)  # [T, H_kv, D] to [H_kv, T, D]
            self.values[layer, row, :, places] = values[row].transpose(0, 1)
        held = self.keys[layer, :, :, : self.span], self.values[layer, :, :, : self.span]
        return held[0].transpose(1, 2), held[1].transpose(1, 2)  # [B, S, H_kv, D]

    def clear(self, row: int, length: int) -> None:
        self.keys[:, row, :, length:] = 0
        self.values[:, row, :, length:] = 0


class PagedCache(OwnCache):
    """Blocks of 16 slots from a pool that all rows share, taken from its end when a row needs one, and given back."""

    def __init__(
        self, config: Config, rows: int, capacity: int, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        super().__init__(config, rows, capacity, dtype, device)
        blocks = rows * -(-capacity // BLOCK)
        shape = (config.num_hidden_layers, blocks + 2, BLOCK, config.num_key_value_heads, config.head_dim)
        self.keys, self.values = torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=dtype)
        self.free = list(range(blocks))  # the last two: one stays empty, one takes padding
        self.blocks: list[list[int]] = [[] for _ in range(rows)]

    def reserve(self, counts: Sequence[int], padding: Side = "right") -> Tensor:
        positions = super().reserve(counts, padding)
        for row, length in enumerate(self.lengths):
            while len(self.blocks[row]) * BLOCK < length:
                self.blocks[row].append(self.free.pop())
                self._clear_block(self.blocks[row][-1])
        return positions

    def write(self, layer: int, positions: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        most = -(-self.span // BLOCK)
        padding = self.keys.shape[1] - 1
        table = torch.tensor([row + [padding - 1] * (most - len(row)) for row in self.blocks])  # [B, most]
        block = table.gather(1, positions.clamp(min=0) // BLOCK)  # [B, T]
        block = torch.where(positions < 0, padding, block)
        self.keys[layer, block, positions % BLOCK] = keys
        self.values[layer, block, positions % BLOCK] = values
        # [B, most, BLOCK, H_kv, D] to [B, S, H_kv, D]
        return (
            self.keys[layer, table].flatten(1, 2)[:, : self.span],
            self.values[layer, table].flatten(1, 2)[:, : self.span],
        )

    def clear(self, row: int, length: int) -> None:
        kept = -(-length // BLOCK)
        self.free += self.blocks[row][kept:]
        del self.blocks[row][kept:]
        if length % BLOCK:
            self._clear_block(self.blocks[row][-1], length % BLOCK)

    def _clear_block(self, block: int, start: int = 0) -> None:
        self.keys[:, block, start:] = 0
        self.values[:, block, start:] = 0


class ArrivalCache(OwnCache):
    """Slots are taken in the order of arrival, padding included: what a slot stands for is written beside it."""

    def __init__(
        self, config: Config, rows: int, capacity: int, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        super().__init__(config, rows, capacity, dtype, device)
        self.keys, self.values = self.keys[:, :, :0], self.values[:, :, :0]
        self.places = torch.zeros(rows, 0, dtype=torch.long)  # [B, S]: positions, -1 for padding and what was cut

    def reserve(self, counts: Sequence[int], padding: Side = "right") -> Tensor:
        positions = super().reserve(counts, padding)
        shape = (*self.keys.shape[:2], positions.shape[1], *self.keys.shape[3:])
        self.keys = torch.cat((self.keys, self.keys.new_zeros(shape)), dim=2)
        self.values = torch.cat((self.values, self.values.new_zeros(shape)), dim=2)
        self.places = torch.cat((self.places, positions), dim=1)
        return positions

    def write(self, layer: int, positions: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        self.keys[layer, :, -positions.shape[1] :] = keys
        self.values[layer, :, -positions.shape[1] :] = values
        return self.keys[layer], self.values[layer]

    def clear(self, row: int, length: int) -> None:
        cut = self.places[row] >= length  # [S]
        self.places[row, cut] = -1
        self.keys[:, row, cut] = 0
        self.values[:, row, cut] = 0


class ArrivalForm(CausalAttention):
    """The mask follows from what each slot stands for."""

    def gather(self, q: Tensor, k: Tensor, v: Tensor, positions: Tensor, cache: Cache) -> Tensor:
        assert isinstance(cache, ArrivalCache)
        k, v = cache.write(self.layer_index, positions, k, v)  # [B, S, H_kv, D]
        visible = super().visible(positions, cache.places[:, None])  # [B, T, S]
        visible = visible & (cache.places[:, None] >= 0) | (positions < 0)[:, :, None]  # no row of padding is empty
        heads = self.attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), visible)  # [B, H_q, T, D]
        return heads.transpose(1, 2).flatten(2)  # [B, T, H_q * D]


class Float16Cache(OwnCache):
    """Keys and values are rounded to float16 as they enter, and widened as they are read."""

    def __init__(
        self, config: Config, rows: int, capacity: int, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        super().__init__(config, rows, capacity, torch.float16, device)

    def write(self, layer: int, positions: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        held = super().write(layer, positions, keys.to(torch.float16), values.to(torch.float16))
        return held[0].to(keys.dtype), held[1].to(values.dtype)


def caching(cls: type[OwnCache]) -> Mapping[type[nn.Module], type[nn.Module]]:
    """Return the decoder of each family with a cache of its own."""

    def new_cache(self: CausalLM, rows: int, capacity: int) -> Cache:
        weight = self.embed_tokens.weight
        return cls(self.config, rows, capacity, weight.dtype, weight.device)

    return {one: type(f"{cls.__name__}{one.__name__}", (one,), {"new_cache": new_cache}) for one in (Decoder, GPT2)}


class StaticCache(Rebuilt):
    """All slots are read always."""

    name = "legal: static cache"
    parts = caching(WholeCache)


class ConcatenatedCache(Rebuilt):
    """A cache that grows with its sequence."""

    name = "legal: growing cache"
    parts = caching(GrowingCache)


class CacheOfHeads(Rebuilt):
    """[B, H_kv, S, D]."""

    name = "legal: heads before slots"
    parts = caching(HeadsFirstCache)


class Paged(Rebuilt):
    """Blocks of 16 slots."""

    name = "legal: paged cache"
    parts = caching(PagedCache)


class CachesInFloat16(Rebuilt):
    """float32 with a float16 cache, and declared so."""

    name = "legal: float16 cache"
    parts = caching(Float16Cache)

    def __init__(self, **options: str) -> None:
        super().__init__(**options)
        self.precision = replace(self.precision, kv_cache="float16")


class SlotsInOrderOfArrival(Rebuilt):
    """Padding is cached, and masked."""

    name = "legal: slots in order of arrival"
    parts: ClassVar = {**caching(ArrivalCache), **attending(ArrivalForm)}


class Recomputing(Session):
    """A session that holds tokens alone."""

    def __init__(self, model: ReferenceModel, tokens: Sequence[int] = ()) -> None:
        self.model, self.tokens = model, list(tokens)
        self.room = min(model.needs.max_tokens, model.max_length)
        self.closed = False

    def extend(self, tokens: Sequence[int]) -> Array:
        self._open()
        ids = check_tokens(tokens, self.model.vocab_size, held=len(self.tokens), limit=self.room)
        self.tokens += ids
        return self.model.score(self.tokens)[-len(ids) :]

    def fork(self) -> Recomputing:
        self._open()
        return type(self)(self.model, self.tokens)

    def truncate(self, length: int) -> None:
        self._open()
        if not 0 <= length <= len(self.tokens):
            raise Refused(f"The session holds {len(self.tokens)} tokens; it cannot be cut to {length}.")
        del self.tokens[length:]

    def close(self) -> None:
        self.closed = True

    def _open(self) -> None:
        if self.closed:
            raise Refused("The session is closed.")


class _Cacheless(ReferenceModel):
    sessions: ClassVar[type[Recomputing]] = Recomputing

    def open(self) -> Session:  # type: ignore[override]
        return self.sessions(self)


class ComputesAgain(Reference):
    """No cache: a chunk is scored with all that came before it."""

    name = "legal: no cache"
    model_class = _Cacheless


LEGAL = (
    legal(StaticCache, "all slots of the room are read always: hidden ones weigh 0, and hold finite numbers"),
    legal(ConcatenatedCache, "keys and values concatenated as they come: where they lie changes nothing"),
    legal(CacheOfHeads, "a cache [B, H_kv, S, D]: another layout of the same numbers"),
    legal(Paged, "blocks of 16 slots from a pool, given back and taken again: a table says where a position lies"),
    legal(Paged, "the same in bfloat16", dtype="bfloat16"),
    legal(CachesInFloat16, "a cache in float16 beside products in float32: it is declared, and costs digits and range"),
    legal(SlotsInOrderOfArrival, "padding takes slots and is masked: the mask follows from positions, not from slots"),
    legal(ComputesAgain, "sessions score all their tokens again: a cache saves work, and changes no score"),
    legal(ComputesAgain, "the same in bfloat16, where products of other shapes round otherwise", dtype="bfloat16"),
)
