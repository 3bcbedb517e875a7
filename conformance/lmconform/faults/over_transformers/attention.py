"""The mask, scaled dot-product attention and grouped queries, broken in transformers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.llama.modeling_llama import eager_attention_forward

from lmconform.faults.over_transformers.patch import Broken, OtherAttention, rebound

# The mask [B, 1, T, S]: 0 at visible keys, and the least number of its format at hidden ones.


class _OtherMask(OtherAttention):
    def attend(
        self, layer: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scaling: float, **_: Any
    ) -> tuple[Tensor, Tensor]:
        other = self.mask(mask, layer.layer_idx, q.shape[1])
        return eager_attention_forward(layer, q, k, v, other, scaling)

    def mask(self, mask: Tensor, layer: int, H_q: int) -> Tensor:
        """The mask [B, 1 or H_q, T, S] that layer ``layer`` applies instead of ``mask``."""
        raise NotImplementedError


def _ahead(mask: Tensor) -> Tensor:
    return torch.maximum(mask, mask.roll(1, dims=-1))


def _of_the_last_query(mask: Tensor) -> Tensor:
    return mask.amax(dim=2, keepdim=True).expand_as(mask)


class LeaksOneAhead(_OtherMask):
    """Every query sees one key of its future."""

    def mask(self, mask: Tensor, layer: int, H_q: int) -> Tensor:
        return _ahead(mask)


class LeaksInTheLastHead(_OtherMask):
    """The last query head of each layer sees one key of its future."""

    def mask(self, mask: Tensor, layer: int, H_q: int) -> Tensor:
        return torch.cat([mask.expand(-1, H_q - 1, -1, -1), _ahead(mask)], dim=1)


class MasksTheFirstLayerOnly(_OtherMask):
    """Layers above the first see all keys of the pass."""

    def mask(self, mask: Tensor, layer: int, H_q: int) -> Tensor:
        return mask if layer == 0 else _of_the_last_query(mask)


class AlignsChunksAtTheUpperLeft(_OtherMask):
    """Query i of a chunk sees keys 0 to i, whatever the cache holds."""

    def mask(self, mask: Tensor, layer: int, H_q: int) -> Tensor:
        T, S = mask.shape[2:]
        return torch.full_like(mask, torch.finfo(mask.dtype).min).triu(1) if S > T else mask


class UnmasksAChunkWithHistory(_OtherMask):
    """A chunk over a cache sees all of itself."""

    def mask(self, mask: Tensor, layer: int, H_q: int) -> Tensor:
        return _of_the_last_query(mask) if mask.shape[3] > mask.shape[2] else mask


class ExcludesItself(_OtherMask):
    """A query sees the keys before it, and not its own."""

    def mask(self, mask: Tensor, layer: int, H_q: int) -> Tensor:
        T, S = mask.shape[2:]
        own = torch.ones(T, S, dtype=torch.bool).tril(S - T).triu(S - T)
        without = mask.masked_fill(own, torch.finfo(mask.dtype).min)
        return without.where((without == 0).any(dim=-1, keepdim=True), mask)  # the first key has no other


class MasksWithMinus10(_OtherMask):
    """Masked scores have 10 subtracted."""

    def mask(self, mask: Tensor, layer: int, H_q: int) -> Tensor:
        return mask.clamp(min=-10)


class UsesTheFirstRowsMask(_OtherMask):
    """All rows of a batch use the mask of the first."""

    def mask(self, mask: Tensor, layer: int, H_q: int) -> Tensor:
        return mask[:1].expand_as(mask)


# Scale, softmax and values.


class DividesByHeadDim(Broken):
    """Scores are divided by D, as if the scale were applied to queries and to scores."""

    def change(self, llama: Any) -> None:
        for layer in llama.model.layers:
            layer.self_attn.scaling **= 2


class ForgetsTheScaleOfTheLastHead(OtherAttention):
    """The last query head does not scale its scores."""

    def attend(
        self, layer: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scaling: float, **_: Any
    ) -> tuple[Tensor, Tensor]:
        scales = torch.tensor([1.0] * (q.shape[1] - 1) + [1 / scaling])
        return eager_attention_forward(layer, q * scales[:, None, None], k, v, mask, scaling)


class SaturatesValues(OtherAttention):
    """Values beyond 4 are cut off, as a cache of few bits with a fixed scale does."""

    def attend(
        self, layer: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scaling: float, **_: Any
    ) -> tuple[Tensor, Tensor]:
        return eager_attention_forward(layer, q, k, v.clamp(-4, 4), mask, scaling)


class PrefersRecentKeys(_OtherMask):
    """Scores get a bias that grows with the position of the key."""

    def mask(self, mask: Tensor, layer: int, H_q: int) -> Tensor:
        return mask + 0.02 * torch.arange(mask.shape[3])


class _OtherSoftmax(OtherAttention):
    def attend(
        self, layer: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scaling: float, **_: Any
    ) -> tuple[Tensor, Tensor]:
        functional = SimpleNamespace(softmax=lambda scores, **_: self.softmax(scores), dropout=F.dropout)
        function = rebound(eager_attention_forward, nn=SimpleNamespace(functional=functional))
        attended: tuple[Tensor, Tensor] = function(layer, q, k, v, mask, scaling)
        return attended

    def softmax(self, scores: Tensor) -> Tensor:
        """The weights [B, H_q, T, S] of ``scores``, to which the mask was added."""
        raise NotImplementedError


class AddsASink(_OtherSoftmax):
    """The denominator counts a key of score 0 that is not there."""

    def softmax(self, scores: Tensor) -> Tensor:
        return F.pad(scores, (1, 0)).softmax(dim=-1)[..., 1:]


class ExponentiatesWithoutTheMaximum(_OtherSoftmax):
    """The largest score is not subtracted before the exponential."""

    def softmax(self, scores: Tensor) -> Tensor:
        powers = scores.exp()
        total = powers.sum(dim=-1, keepdim=True)
        return powers / total.where(total != 0, 1)  # queries of padding see nothing


class MergesSplitKeysInBaseTwo(_OtherSoftmax):
    """Two halves of the keys are merged by powers of 2 of sums that are natural logarithms."""

    def softmax(self, scores: Tensor) -> Tensor:
        half = scores.shape[-1] // 2
        parts = [part for part in (scores[..., :half], scores[..., half:]) if part.shape[-1]]
        sums = torch.cat([part.logsumexp(dim=-1, keepdim=True) for part in parts], dim=-1)
        powers = torch.exp2(sums - sums.amax(dim=-1, keepdim=True))
        shares = (powers / powers.sum(dim=-1, keepdim=True)).split(1, dim=-1)
        return torch.cat([part.softmax(dim=-1) * share for part, share in zip(parts, shares, strict=True)], dim=-1)


# Grouped queries.


class _OtherHeads(OtherAttention):
    def attend(
        self, layer: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scaling: float, **_: Any
    ) -> tuple[Tensor, Tensor]:
        heads = torch.arange(q.shape[1])
        own = heads // layer.num_key_value_groups
        k, v = k[:, self.keys(heads, own)], v[:, self.values(heads, own)]  # [B, H_q, S, D] each
        function = rebound(eager_attention_forward, repeat_kv=lambda repeated, times: repeated)
        attended: tuple[Tensor, Tensor] = function(layer, q, k, v, mask, scaling)
        return attended

    def keys(self, heads: Tensor, own: Tensor) -> Tensor:
        """KV head whose keys each of ``heads`` [H_q] reads instead of its ``own``."""
        return own

    def values(self, heads: Tensor, own: Tensor) -> Tensor:
        """KV head whose values each of ``heads`` [H_q] reads instead of its ``own``."""
        return own


def _in_turn(heads: Tensor, own: Tensor) -> Tensor:
    return heads % (own[-1] + 1)


class TakesKeysInTurn(_OtherHeads):
    """Query head h reads the keys of KV head h % H_kv."""

    def keys(self, heads: Tensor, own: Tensor) -> Tensor:
        return _in_turn(heads, own)


class TakesValuesInTurn(_OtherHeads):
    """Query head h reads the values of KV head h % H_kv."""

    def values(self, heads: Tensor, own: Tensor) -> Tensor:
        return _in_turn(heads, own)


class ReadsKVHeadsInTurn(TakesKeysInTurn, TakesValuesInTurn):
    """Query head h reads KV head h % H_kv."""


class StraddlesTwoGroups(_OtherHeads):
    """A tile of three query heads takes the keys of the KV head of its first."""

    def keys(self, heads: Tensor, own: Tensor) -> Tensor:
        return own.where(own != own[-1], own[heads // 3 * 3])


class TakesTheFirstValuesInTheLastHead(_OtherHeads):
    """The last query head reads the values of the first KV head."""

    def values(self, heads: Tensor, own: Tensor) -> Tensor:
        return own.where(heads != heads[-1], 0)


ENGINES: tuple[type[Broken], ...] = (
    LeaksOneAhead,
    LeaksInTheLastHead,
    MasksTheFirstLayerOnly,
    AlignsChunksAtTheUpperLeft,
    UnmasksAChunkWithHistory,
    ExcludesItself,
    MasksWithMinus10,
    UsesTheFirstRowsMask,
    DividesByHeadDim,
    ForgetsTheScaleOfTheLastHead,
    SaturatesValues,
    PrefersRecentKeys,
    AddsASink,
    ExponentiatesWithoutTheMaximum,
    MergesSplitKeysInBaseTwo,
    TakesKeysInTurn,
    TakesValuesInTurn,
    ReadsKVHeadsInTurn,
    StraddlesTwoGroups,
    TakesTheFirstValuesInTheLastHead,
)
