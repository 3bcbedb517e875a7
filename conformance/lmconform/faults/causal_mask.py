"""Planted faults of the causal mask."""

from __future__ import annotations

import torch
from torch import Tensor

from lmconform.engines.reference import Reference
from lmconform.faults.fault import Fault
from refdecoder import Attention
from refdecoder.cache import Cache

BLOCK, TILE = 64, 32
"""Keys that a kernel reads at a time, and the least it takes."""
TABLE = 100
"""Rows of a mask that was made once."""


class _OneAhead(Attention):
    def visible(self, positions: Tensor, slots: Tensor) -> Tensor:
        return slots <= positions[:, :, None] + 1


class LeaksOneAhead(Reference):
    """Every query sees one key of its future."""

    name = "fault: one key ahead"
    attention_class = _OneAhead


class _LastHeadAhead(Attention):
    def weights(self, q: Tensor, k: Tensor, visible: Tensor) -> Tensor:
        right = super().weights(q, k, visible)  # [B, H_kv, G, T, S]
        ahead = super().weights(q, k, visible | visible.roll(1, dims=-1))
        right[:, -1, -1] = ahead[:, -1, -1]
        return right


class LeaksInTheLastHead(Reference):
    """The last query head of each layer sees one key of its future."""

    name = "fault: last head one key ahead"
    attention_class = _LastHeadAhead


class _NotItself(Attention):
    def visible(self, positions: Tensor, slots: Tensor) -> Tensor:
        first = (positions[:, :, None] == 0) & (slots == 0)
        return (slots < positions[:, :, None]) | first


class ExcludesItself(Reference):
    """A query sees the keys before it, and not its own."""

    name = "fault: own key hidden"
    attention_class = _NotItself


class _Forgetful(Attention):
    def visible(self, positions: Tensor, slots: Tensor) -> Tensor:
        return super().visible(positions, slots) & (slots > positions[:, :, None] - 16)


class ForgetsBeyondABlock(Reference):
    """A query sees its last 16 keys alone."""

    name = "fault: last 16 keys alone"
    attention_class = _Forgetful


class _FirstLayerOnly(Attention):
    def visible(self, positions: Tensor, slots: Tensor) -> Tensor:
        if self.layer_index == 0:
            return super().visible(positions, slots)
        return super().visible(positions.amax(dim=1, keepdim=True).expand_as(positions), slots)


class MasksTheFirstLayerOnly(Reference):
    """Layers above the first see all keys of the pass."""

    name = "fault: mask in the first layer only"
    attention_class = _FirstLayerOnly


class _UpperLeft(Attention):
    def visible(self, positions: Tensor, slots: Tensor) -> Tensor:
        rows = torch.arange(positions.shape[1], device=slots.device)
        return slots <= rows[None, :, None]


class AlignsChunksAtTheUpperLeft(Reference):
    """Query i of a chunk sees keys 0 to i, whatever the cache holds."""

    name = "fault: chunk aligned at the upper left"
    attention_class = _UpperLeft


class _HistoryUnmasked(Attention):
    def visible(self, positions: Tensor, slots: Tensor) -> Tensor:
        if int(positions.clamp(min=0).amin()) == 0:
            return super().visible(positions, slots)
        return super().visible(positions.amax(dim=1, keepdim=True).expand_as(positions), slots)


class UnmasksAChunkWithHistory(Reference):
    """A chunk over a cache sees all of itself."""

    name = "fault: chunk with history unmasked"
    attention_class = _HistoryUnmasked


class _Additive(Attention):
    penalty = -10.0

    def weights(self, q: Tensor, k: Tensor, visible: Tensor) -> Tensor:
        q = q.unflatten(1, (k.shape[1], -1))  # [B, H_q, T, D] to [B, H_kv, G, T, D]
        scores = (q @ k[:, :, None].transpose(-1, -2)) * self.scale  # [B, H_kv, G, T, S]
        return (scores + ~visible[:, None, None] * self.penalty).softmax(dim=-1)


class MasksWithMinus10(Reference):
    """Masked scores have 10 subtracted."""

    name = "fault: mask of -10"
    attention_class = _Additive


class _Additive10000(_Additive):
    penalty = -10_000.0


class MasksWithMinus10000(Reference):
    """Masked scores have 10,000 subtracted, which large scores outweigh."""

    name = "fault: mask of -10,000"
    attention_class = _Additive10000


class _NeighboursMask(Attention):
    def visible(self, positions: Tensor, slots: Tensor) -> Tensor:
        return super().visible(positions[:1].expand_as(positions), slots)


class UsesTheFirstRowsMask(Reference):
    """All rows of a batch use the mask of the first."""

    name = "fault: mask of the first row"
    attention_class = _NeighboursMask


class _MasksOfSixteen(Attention):
    def visible(self, positions: Tensor, slots: Tensor) -> Tensor:
        visible = super().visible(positions, slots)
        if len(positions) >= 16:
            visible[15:] = visible[:1]
        return visible


class MasksFifteenRowsAndNoMore(Reference):
    """From 16 rows on, those beyond the fifteenth use the mask of the first."""

    name = "fault: masks of fifteen rows"
    attention_class = _MasksOfSixteen


class _FiveRows(Attention):
    def attend(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
        heads = super().attend(q, k, v, visible)
        return heads[[0, 1, 2, 3, 3]] if len(heads) == 5 else heads


class RepeatsTheFourthOfFiveRows(Reference):
    """In a batch of five, the last row gathers what the one before it does: a graph captured for four is replayed."""

    name = "fault: four rows of five"
    attention_class = _FiveRows


class _PoisonedPadding(Attention):
    def forward(self, x: Tensor, positions: Tensor, cos: Tensor, sin: Tensor, cache: Cache) -> Tensor:
        out = super().forward(x, positions, cos, sin, cache)
        if bool((positions < 0).any()):  # as if a row without keys were 0/0, read again by its neighbours
            out[(positions >= 0).any(dim=1)] += 0.5 * out[positions < 0].mean()
        return out


class PaddingReachesItsNeighbours(Reference):
    """What padding rows hold is added to the rows of the batch."""

    name = "fault: padding reaches its neighbours"
    attention_class = _PoisonedPadding


class _EmptyFirst(Attention):
    def forward(self, x: Tensor, positions: Tensor, cos: Tensor, sin: Tensor, cache: Cache) -> Tensor:
        out = super().forward(x, positions, cos, sin, cache)
        return out * 0 if positions.shape[1] == 1 and int(positions.amax()) == 0 else out


class LoneTokenSeesNothing(Reference):
    """A pass of one token over an empty cache attends to nothing."""

    name = "fault: lone token sees nothing"
    attention_class = _EmptyFirst


class _EdgeOfABlock(Attention):
    def visible(self, positions: Tensor, slots: Tensor) -> Tensor:
        last = positions[:, :, None] == BLOCK - 1
        return super().visible(positions, slots) | (last & (slots == BLOCK))


class LeaksAtTheEdgeOfABlock(Reference):
    """The last query of the first block of 64 sees the first key of the next one."""

    name = "fault: one key ahead at position 63"
    attention_class = _EdgeOfABlock


class _FirstOfABlock(Attention):
    def visible(self, positions: Tensor, slots: Tensor) -> Tensor:
        past = positions[:, :, None] > BLOCK
        return super().visible(positions, slots) & ~(past & (slots == BLOCK))


class HidesTheFirstKeyOfABlock(Reference):
    """Later queries do not see key 64, the first of its block."""

    name = "fault: key 64 hidden"
    attention_class = _FirstOfABlock


class _WholeTiles(Attention):
    def visible(self, positions: Tensor, slots: Tensor) -> Tensor:
        right = super().visible(positions, slots)
        T, S = right.shape[-2:]
        return torch.ones_like(right) if T == S and T % TILE == 0 else right


class UnmasksWholeTiles(Reference):
    """A pass whose length is a multiple of 32 is not masked, as if only the last tile, partly filled, asked for it."""

    name = "fault: whole tiles unmasked"
    attention_class = _WholeTiles


class _ShortTable(Attention):
    def visible(self, positions: Tensor, slots: Tensor) -> Tensor:
        return super().visible(positions, slots) | (positions[:, :, None] >= TABLE)


class MaskTableEndsAt100(Reference):
    """Queries from position 100 on lie past the end of the stored mask, and see all keys of the pass."""

    name = "fault: mask of 100 rows"
    attention_class = _ShortTable


class _LastCached(Attention):
    def visible(self, positions: Tensor, slots: Tensor) -> Tensor:
        right = super().visible(positions, slots)
        first = positions.clamp(min=0).amin(dim=1)[:, None, None]  # [B, 1, 1]
        return right if positions.shape[1] == 1 else right & (slots != first - 1)


class ChunkMissesTheLastCachedKey(Reference):
    """A chunk of several tokens over a cache does not see the key right before it."""

    name = "fault: last cached key hidden from a chunk"
    attention_class = _LastCached


class _WholeBlocks(Attention):
    def visible(self, positions: Tensor, slots: Tensor) -> Tensor:
        right = super().visible(positions, slots)
        whole = (positions[:, :, None] + 1) // BLOCK * BLOCK  # keys in whole blocks
        lost = (whole > 0) & (slots >= whole) & (slots < positions[:, :, None])
        return right & ~lost if positions.shape[1] == 1 else right


class DecodesOverWholeBlocksAlone(Reference):
    """Past 64 keys, a decode step sees whole blocks of 64 and its own key, and not what follows the last block."""

    name = "fault: whole blocks alone in decode steps"
    attention_class = _WholeBlocks


class _LongestRow(Attention):
    def visible(self, positions: Tensor, slots: Tensor) -> Tensor:
        if positions.shape[1] > 1:
            return super().visible(positions, slots)
        return super().visible(positions.amax(dim=0, keepdim=True).expand_as(positions), slots)


class DecodesUpToTheLongestRow(Reference):
    """In a decode step every row of a batch sees as many slots as the longest."""

    name = "fault: slots of the longest row"
    attention_class = _LongestRow


class _FusedUpperLeft(_UpperLeft):
    def visible(self, positions: Tensor, slots: Tensor) -> Tensor:
        if self.form == "sdpa" and positions.shape[1] > 1:
            return super().visible(positions, slots)
        return Attention.visible(self, positions, slots)


class FusedFormAlignsAtTheUpperLeft(Reference):
    """The form ``sdpa`` calls its kernel with a causal flag, which is aligned at the upper left."""

    name = "fault: fused form aligned at the upper left"
    attention_class = _FusedUpperLeft


FAULTS = (
    Fault(LeaksOneAhead, "CM-1", "flashinfer#348", "mask.future"),
    Fault(LeaksInTheLastHead, "CM-4", "HipKittens#22", "mask.future"),
    Fault(MasksTheFirstLayerOnly, "CM-4", "TinyLLM#17", "mask.future"),
    Fault(ExcludesItself, "CM-2", "vllm#23969", "mask.past"),
    Fault(ForgetsBeyondABlock, "CM-3", "transformers#39408", "mask.past"),
    Fault(AlignsChunksAtTheUpperLeft, "CM-5", "pytorch#103082", "mask.chunk"),
    Fault(UnmasksAChunkWithHistory, "CM-5", "mlx-node#24", "mask.chunk"),
    Fault(MasksWithMinus10, "CM-6", "pytorch#103749", "mask.value"),
    Fault(MasksWithMinus10000, "CM-6", "pytorch#103749", "mask.value"),
    Fault(PaddingReachesItsNeighbours, "CM-7", "pytorch#103749", "mask.batch"),
    Fault(UsesTheFirstRowsMask, "CM-8", "transformers#29109", "mask.batch"),
    Fault(MasksFifteenRowsAndNoMore, "CM-8", "transformers#29109", "mask.batch"),
    Fault(RepeatsTheFourthOfFiveRows, "CM-8", "vllm#41841", "mask.batch"),
    Fault(LoneTokenSeesNothing, "CM-9", "transformers#30437", "mask.past"),
    Fault(LeaksAtTheEdgeOfABlock, "CM-4", "flashinfer#348", "mask.future"),
    Fault(HidesTheFirstKeyOfABlock, "CM-3", "flashinfer#348", "mask.past"),
    Fault(UnmasksWholeTiles, "CM-4", "triton-msl#7", "mask.future"),
    Fault(MaskTableEndsAt100, "CM-1", "attention-gym#31", "mask.future"),
    Fault(ChunkMissesTheLastCachedKey, "CM-5", "vllm#36580", "mask.chunk"),
    Fault(DecodesOverWholeBlocksAlone, "CM-5", "flashinfer#58", "mask.past"),
    Fault(DecodesUpToTheLongestRow, "CM-8", "vllm#41841", "mask.batch"),
    Fault(FusedFormAlignsAtTheUpperLeft, "CM-5", "pytorch#115111", "mask.chunk", "sdpa"),
)
