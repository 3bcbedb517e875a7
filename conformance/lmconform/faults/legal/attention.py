"""Right ways to compute attention: other orders of the sums, other places of the scale, other formats inside.

Shapes of ``attend``: q [B, H_q, T, D], k and v [B, H_kv, S, D], visible [B, T, S]; it returns [B, H_q, T, D].
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from lmconform.faults.fault import Rebuilt
from lmconform.faults.legal.legal import attending, legal
from refdecoder.model import CausalAttention
from refdecoder.rope import wide


def expanded(x: Tensor, heads: int) -> Tensor:
    """Return x [B, H_kv, S, D] with each head repeated for the query heads that read it, [B, H_q, S, D]."""
    return x.repeat_interleave(heads // x.shape[1], dim=1)


def hidden(scores: Tensor, visible: Tensor) -> Tensor:
    """Return scores [B, H_q, T, S] with -inf where a key is hidden."""
    return scores.masked_fill(~visible[:, None], float("-inf"))


class Partial:
    """The softmax over some keys, unfinished: the greatest score, the sum of the weights, the weighted values."""

    def __init__(self, scores: Tensor, v: Tensor, dtype: torch.dtype) -> None:
        """``scores`` [B, H_q, T, s] in the wide format, v [B, H_q, s, D]; weights are rounded to ``dtype``."""
        # Where no key is visible the greatest score is -inf; the least number instead gives weights of 0, not NaN.
        self.top = scores.amax(dim=-1, keepdim=True).clamp(min=torch.finfo(scores.dtype).min)
        weights = (scores - self.top).exp()
        self.mass = weights.sum(dim=-1, keepdim=True)
        self.values = weights.to(dtype).to(scores.dtype) @ v.to(scores.dtype)

    def merge(self, other: Partial) -> None:
        """Take in further keys."""
        top = torch.maximum(self.top, other.top)
        mine, theirs = (self.top - top).exp(), (other.top - top).exp()
        self.mass = mine * self.mass + theirs * other.mass
        self.values = mine * self.values + theirs * other.values
        self.top = top


class Tiled(CausalAttention):
    """Online softmax (Milakov and Gimelshein 2018; FlashAttention): a tile of keys after the other."""

    tile: ClassVar[int]

    def attend(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
        k, v = expanded(k, q.shape[1]), expanded(v, q.shape[1])
        found: Partial | None = None
        for start in range(0, k.shape[2], self.tile):
            keys = slice(start, start + self.tile)
            scores = (q @ k[:, :, keys].transpose(-1, -2)).to(wide(q.dtype)) * self.scale  # [B, H_q, T, tile]
            part = Partial(hidden(scores, visible[:, :, keys]), v[:, :, keys], q.dtype)
            if found is None:
                found = part
            else:
                found.merge(part)
        assert found is not None
        return (found.values / found.mass).to(q.dtype)


class TiledBy16Form(Tiled):
    tile = 16


class TiledBy64Form(Tiled):
    tile = 64


class SplitForm(CausalAttention):
    """Flash decoding: four splits of the keys, each normalised, merged by the logarithms of their masses."""

    splits = 4

    def attend(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
        k, v = expanded(k, q.shape[1]), expanded(v, q.shape[1])
        scores = hidden((q @ k.transpose(-1, -2)).to(wide(q.dtype)) * self.scale, visible)  # [B, H_q, T, S]
        size = math.ceil(k.shape[2] / self.splits)
        outputs, logs = [], []
        for start in range(0, k.shape[2], size):
            part = Partial(scores[..., start : start + size], v[:, :, start : start + size], q.dtype)
            some = part.mass > 0  # a split of hidden keys alone gathers nothing, and its logarithm is -inf
            outputs.append(torch.where(some, part.values / part.mass.where(some, 1.0), 0.0))
            logs.append(part.top + part.mass.log())
        weights = torch.stack(logs).softmax(dim=0)  # [splits, B, H_q, T, 1]
        return (weights * torch.stack(outputs)).sum(dim=0).to(q.dtype)


class ReversedForm(CausalAttention):
    """All sums over keys run from the last key to the first."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
        return super().attend(q, k.flip(2), v.flip(2), visible.flip(2))


class OneByOneForm(CausalAttention):
    """A loop over rows and heads, each with matrices of its own."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
        group = q.shape[1] // k.shape[1]
        out = torch.empty_like(q)
        for b in range(q.shape[0]):
            for h in range(q.shape[1]):
                scores = (q[b, h] @ k[b, h // group].T).to(wide(q.dtype)) * self.scale  # [T, S]
                weights = scores.masked_fill(~visible[b], float("-inf")).softmax(dim=-1)
                out[b, h] = weights.to(q.dtype) @ v[b, h // group]
        return out


class RepeatedForm(CausalAttention):
    """KV heads are copied, so that there is one for each query head."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
        return super().attend(q, expanded(k, q.shape[1]), expanded(v, q.shape[1]), visible)


class ScaledQueriesForm(CausalAttention):
    """Queries are scaled, and rounded, before the products."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
        k, v = expanded(k, q.shape[1]), expanded(v, q.shape[1])
        scores = hidden(((q * self.scale) @ k.transpose(-1, -2)).to(wide(q.dtype)), visible)
        return scores.softmax(dim=-1).to(q.dtype) @ v


class RootsForm(CausalAttention):
    """Queries and keys are each scaled by the root of the scale, as torch's own SDPA does in its plain form."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
        root = math.sqrt(self.scale)
        k, v = expanded(k, q.shape[1]), expanded(v, q.shape[1])
        scores = hidden(((q * root) @ (k * root).transpose(-1, -2)).to(wide(q.dtype)), visible)
        return scores.softmax(dim=-1).to(q.dtype) @ v


class BaseTwoForm(CausalAttention):
    """Weights are powers of 2, with the scale times log2(e); the sum divides what was gathered, once, at the end."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
        k, v = expanded(k, q.shape[1]), expanded(v, q.shape[1])
        scores = (q @ k.transpose(-1, -2)).to(wide(q.dtype)) * (self.scale * math.log2(math.e))
        scores = hidden(scores, visible)
        weights = (scores - scores.amax(dim=-1, keepdim=True)).exp2()
        gathered = weights.to(q.dtype).to(weights.dtype) @ v.to(weights.dtype)  # [B, H_q, T, D]
        return (gathered / weights.sum(dim=-1, keepdim=True)).to(q.dtype)


class WideForm(CausalAttention):
    """Scores, weights and what is gathered stay in the wide format; rounded once, at the end."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
        dtype = wide(q.dtype)
        return super().attend(q.to(dtype), k.to(dtype), v.to(dtype), visible).to(q.dtype)


class TiledBy16(Rebuilt):
    """Online softmax over tiles of 16 keys."""

    name = "legal: tiles of 16 keys"
    parts = attending(TiledBy16Form)


class TiledBy64(Rebuilt):
    """Online softmax over tiles of 64 keys."""

    name = "legal: tiles of 64 keys"
    parts = attending(TiledBy64Form)


class SplitKeys(Rebuilt):
    """Four splits of the keys, merged by log-sum-exp."""

    name = "legal: split keys"
    parts = attending(SplitForm)


class ReversedKeys(Rebuilt):
    """Sums over keys from the last to the first."""

    name = "legal: keys in reverse"
    parts = attending(ReversedForm)


class HeadByHead(Rebuilt):
    """A loop over rows and heads."""

    name = "legal: head by head"
    parts = attending(OneByOneForm)


class RepeatedHeads(Rebuilt):
    """KV heads copied for their query heads."""

    name = "legal: repeated KV heads"
    parts = attending(RepeatedForm)


class ScaledQueries(Rebuilt):
    """The scale on the queries."""

    name = "legal: scale on q"
    parts = attending(ScaledQueriesForm)


class RootsOfTheScale(Rebuilt):
    """The root of the scale on queries and on keys."""

    name = "legal: root of the scale on q and k"
    parts = attending(RootsForm)


class BaseTwo(Rebuilt):
    """Softmax by powers of two."""

    name = "legal: softmax in base 2"
    parts = attending(BaseTwoForm)


class WideAttention(Rebuilt):
    """Attention in the wide format."""

    name = "legal: wide attention"
    parts = attending(WideForm)


LEGAL = (
    legal(TiledBy16, "online softmax over tiles of 16 keys: a softmax may be summed in any order"),
    legal(TiledBy16, "the same with weights rounded to bfloat16 before the division by their sum", dtype="bfloat16"),
    legal(TiledBy64, "online softmax over tiles of 64 keys, so that most sequences end inside a tile"),
    legal(TiledBy64, "the same in float16", dtype="float16"),
    legal(SplitKeys, "keys in four splits, merged by log-sum-exp: the weight of a split is the mass of its keys"),
    legal(SplitKeys, "the same in bfloat16", dtype="bfloat16"),
    legal(ReversedKeys, "sums over keys from the last to the first: only their rounding depends on the order"),
    legal(HeadByHead, "a loop over rows and heads: no head or row reads another's matrices"),
    legal(RepeatedHeads, "KV heads copied for each query head of their group: the definition of grouped queries"),
    legal(ScaledQueries, "the scale on the queries: a factor of a product may stand on either side"),
    legal(ScaledQueries, "the same in bfloat16, where the scaled queries are rounded once more", dtype="bfloat16"),
    legal(RootsOfTheScale, "the root of the scale on queries and keys, as torch's SDPA: their product is the scale"),
    legal(RootsOfTheScale, "the same in bfloat16, where both are rounded once more", dtype="bfloat16"),
    legal(BaseTwo, "powers of 2 with the scale times log2(e), divided once at the end: exp(x) is 2^(x log2(e))"),
    legal(WideAttention, "attention in float32 inside a bfloat16 model: fewer roundings are allowed", dtype="bfloat16"),
)
