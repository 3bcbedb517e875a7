"""Planted faults of sessions: fork, truncate, close, and slots that are used again."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lmconform.engines.reference import Reference, ReferenceModel, ReferenceSession
from lmconform.faults.fault import Fault
from lmconform.faults.kv_cache import FaultyCache, WholeCapacity, WithCache
from refdecoder import Attention
from refdecoder.cache import Cache, Side


class _SharedMemory(FaultyCache):
    def fork(self) -> Cache:
        twin = super().fork()
        twin.keys, twin.values = self.keys, self.values
        return twin


class ForksAShallowCopy(WithCache):
    """A fork shares keys and values with its original."""

    name = "fault: shallow fork"
    cache_class = _SharedMemory


class _SharedLength(FaultyCache):
    def fork(self) -> Cache:
        twin = super().fork()
        twin.lengths = self.lengths
        return twin

    def reserve(self, counts: Sequence[int], padding: Side = "right") -> Tensor:
        shared, positions = self.lengths, super().reserve(counts, padding)
        shared[:], self.lengths = self.lengths, shared
        return positions


class ForksShareTheirLength(WithCache):
    """A fork and its original count their tokens together."""

    name = "fault: fork shares the length"
    cache_class = _SharedLength


class _KeepsLength(FaultyCache):
    def truncate(self, row: int, length: int) -> None:
        held = self.lengths[row]
        super().truncate(row, length)
        self.lengths[row] = held


class TruncatesWithoutTheLength(WithCache):
    """Truncation clears the slots and leaves the length as it was."""

    name = "fault: length not truncated"
    cache_class = _KeepsLength


class _KeepsOne(FaultyCache):
    def truncate(self, row: int, length: int) -> None:
        super().truncate(row, min(length + 1, self.lengths[row]) if length else 0)


class TruncatesOneTooFew(WithCache):
    """Truncation keeps one token too many."""

    name = "fault: truncates one too few"
    cache_class = _KeepsOne


class _HighWater(FaultyCache):
    high: int = 0

    def truncate(self, row: int, length: int) -> None:
        self.high = self.lengths[row]
        super().truncate(row, length)

    def fork(self) -> Cache:
        twin = super().fork()
        twin.lengths = [max(length, self.high) for length in twin.lengths]
        return twin


class ForksUndoATruncation(WithCache):
    """A fork of a truncated session has the length that the session had before."""

    name = "fault: fork undoes truncation"
    cache_class = _HighWater


class _Dirty(WholeCapacity):
    def truncate(self, row: int, length: int) -> None:
        self.require([0] * len(self.lengths))
        self.lengths[row] = length


class _SubtractsFromStale(Attention):
    def weights(self, q: Tensor, k: Tensor, visible: Tensor) -> Tensor:
        stale = ~visible.any(dim=1)  # [B, S]: slots that no query of this pass may see
        q = q.unflatten(1, (k.shape[1], -1))  # [B, H_q, T, D] to [B, H_kv, G, T, D]
        scores = (q @ k[:, :, None].transpose(-1, -2)) * self.scale  # [B, H_kv, G, T, S]
        scores = scores.masked_fill(~(visible | stale[:, None])[:, None, None], float("-inf"))
        return (scores - stale[:, None, None, None] * 1000.0).softmax(dim=-1).to(q.dtype)


class SubtractsFromStaleScores(WithCache):
    """Slots past the end have 1,000 subtracted from their scores, which large stale keys outweigh."""

    name = "fault: stale slots masked with -1,000"
    attention_class = _SubtractsFromStale
    cache_class = _Dirty


class MultipliesStaleValues(WithCache):
    """Values past the end are multiplied by a weight of 0, and NaN stays NaN."""

    name = "fault: stale values times 0"
    cache_class = _Dirty


class _OneMemory(ReferenceModel):
    def open(self) -> ReferenceSession:
        session = super().open()
        own = session._open()
        first = vars(self).setdefault("_first", own)
        own.keys, own.values = first.keys, first.values
        return session


class SessionsShareSlots(Reference):
    """Sessions that are open together write to the same slots."""

    name = "fault: sessions share slots"
    model_class = _OneMemory


class _KeepsTheEnd(ReferenceModel):
    def open(self) -> ReferenceSession:
        """A new session starts on the slots of the last one, and takes over its first token if there were many."""
        session, last = super().open(), vars(self).get("_last")
        if last is not None and last.lengths[0] > 32:
            session.cache = last
            last.lengths[0] = 1
        vars(self)["_last"] = session.cache
        return session


class ReopensWithTheFirstTokenOfAnother(Reference):
    """A session on the memory of a closed one that was long still holds that one's first token."""

    name = "fault: first token of a closed session"
    model_class = _KeepsTheEnd


FAULTS = (
    Fault(ForksAShallowCopy, "KV-4", "transformers#34232", "cache.fork"),
    Fault(ForksShareTheirLength, "KV-4", "transformers#34232", "cache.fork"),
    Fault(TruncatesWithoutTheLength, "KV-5", "mlx-vlm#1715", "cache.truncate"),
    Fault(TruncatesOneTooFew, "KV-5", "transformers#37574", "cache.truncate"),
    Fault(SessionsShareSlots, "KV-6", "vllm#41841", "cache.memory"),
    Fault(ReopensWithTheFirstTokenOfAnother, "KV-6", "vllm#41841", "cache.stale"),
    Fault(SubtractsFromStaleScores, "KV-7", "vllm#47305", "cache.stale"),
    Fault(MultipliesStaleValues, "KV-8", "flash-attention#1745", "cache.stale"),
    Fault(ForksUndoATruncation, "KV-11", "mlx-vlm#1715", "cache.fork"),
)
