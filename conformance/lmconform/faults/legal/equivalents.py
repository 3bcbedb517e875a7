"""Changes that look like faults and change nothing that can be observed, each with the reason.

Nobody would write most of them on purpose. A check that compares weights, caches or single steps would raise an alarm;
one that judges what a decoder does must not.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from lmconform.engines.reference import ReferenceModel
from lmconform.faults.fault import Rebuilt
from lmconform.faults.legal import equal_draws, equal_weights
from lmconform.faults.legal.attention import expanded, hidden
from lmconform.faults.legal.equal_weights import every, reorder
from lmconform.faults.legal.legal import Legal, Prepared, attending, legal
from refdecoder import Attention, Cache
from refdecoder.model import CausalAttention
from refdecoder.rope import cos_sin, rotate, wide

# Positions and turns.


class _Shifted(Attention):
    def forward(self, x: Tensor, positions: Tensor, cos: Tensor, sin: Tensor, cache: Cache) -> Tensor:
        cos, sin = cos_sin(positions.clamp(min=0) + 7, self.config.rope, self.config.head_dim, x.dtype)
        return super().forward(x, positions, cos, sin, cache)


class BeginsAtPosition7(Rebuilt):
    """The first token is turned as position 7."""

    name = "equivalent: positions from 7"
    parts: ClassVar = {Attention: _Shifted}


class _Mirrored(Attention):
    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        D = self.config.head_dim
        q, k, v = (part(x).unflatten(-1, (-1, D)) for part in (self.q_proj, self.k_proj, self.v_proj))
        return rotate(q.roll(D // 2, dims=-1), cos, -sin), rotate(k.roll(D // 2, dims=-1), cos, -sin), v


class TurnsMirroredPairs(Rebuilt):
    """The entries of each pair change places, and turn backwards."""

    name = "equivalent: mirrored pairs"
    parts: ClassVar = {Attention: _Mirrored}


class _Interleaved(Attention):
    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        D = self.config.head_dim
        q, k, v = (part(x).unflatten(-1, (-1, D)) for part in (self.q_proj, self.k_proj, self.v_proj))
        return _neighbours_turned(q, cos, sin), _neighbours_turned(k, cos, sin), v


def _neighbours_turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return x [B, T, H, D], whose pairs are neighbours, turned."""
    pairs = x.unflatten(-1, (-1, 2)).to(cos.dtype)
    a, b = pairs[..., 0], pairs[..., 1]  # [B, T, H, D/2] each
    return torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2).to(x.dtype)


class InterleavesThePairs(Prepared):
    """Pairs are neighbours, and rows of q_proj and k_proj are moved there."""

    name = "equivalent: interleaved"
    parts: ClassVar = {Attention: _Interleaved}

    def prepare(self, model: ReferenceModel) -> None:
        for attention in every(model, Attention):
            D = attention.config.head_dim
            order = torch.arange(D).unflatten(0, (2, -1)).T.flatten()  # 0, D/2, 1, D/2 + 1, ...
            for projection in (attention.q_proj, attention.k_proj):
                heads = len(projection.weight) // D
                reorder(projection, torch.cat([h * D + order for h in range(heads)]))


# Masks, softmax, keys and values.


class _LeastNumber(CausalAttention):
    def attend(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
        k, v = expanded(k, q.shape[1]), expanded(v, q.shape[1])
        scores = (q @ k.transpose(-1, -2)).to(wide(q.dtype)) * self.scale
        scores = scores.masked_fill(~visible[:, None], torch.finfo(scores.dtype).min)
        return scores.softmax(dim=-1).to(q.dtype) @ v


class MasksWithTheLeastNumber(Rebuilt):
    """Hidden scores are float32's least number."""

    name = "equivalent: mask of the least number"
    parts = attending(_LeastNumber)


class _OneAbove(CausalAttention):
    def attend(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
        k, v = expanded(k, q.shape[1]), expanded(v, q.shape[1])
        scores = hidden((q @ k.transpose(-1, -2)).to(wide(q.dtype)) * self.scale, visible)
        weights = (scores - scores.amax(dim=-1, keepdim=True) - 1.0).exp()
        return (weights / weights.sum(dim=-1, keepdim=True)).to(q.dtype) @ v


class StabilisesOneAboveTheMaximum(Rebuilt):
    """Softmax subtracts the greatest score plus 1."""

    name = "equivalent: another stabiliser"
    parts = attending(_OneAbove)


class _MaskedAgain(CausalAttention):
    def weights(self, q: Tensor, k: Tensor, visible: Tensor) -> Tensor:
        return super().weights(q, k, visible) * visible[:, None, None]


class MasksTwice(Rebuilt):
    """Weights are multiplied by the mask after the softmax, and not normalised again."""

    name = "equivalent: masked twice"
    parts = attending(_MaskedAgain)


class _Sink(CausalAttention):
    def attend(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
        k, v, visible = F.pad(k, (0, 0, 1, 0)), F.pad(v, (0, 0, 1, 0), value=1.0), F.pad(visible, (1, 0))
        return super().attend(q, k, v, visible)


class HasASinkOfWeightZero(Rebuilt):
    """A key before the first one, always hidden, with values of 1."""

    name = "equivalent: sink of weight 0"
    parts = attending(_Sink)


class _Doubled(CausalAttention):
    def attend(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
        twice = (k.repeat(1, 1, 2, 1), v.repeat(1, 1, 2, 1), visible.repeat(1, 1, 2))
        return super().attend(q, *twice)


class ReadsEveryKeyTwice(Rebuilt):
    """Each key and its values are in the sums twice."""

    name = "equivalent: keys twice"
    parts = attending(_Doubled)


class _Smooth(CausalAttention):
    def attend(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
        return super().attend(q, k - k[:, :, :1], v, visible)


class TakesTheFirstKeyFromAll(Rebuilt):
    """The key of slot 0 is subtracted from all keys."""

    name = "equivalent: keys less the first"
    parts = attending(_Smooth)


EQUIVALENT: tuple[Legal, ...] = (
    legal(BeginsAtPosition7, "all positions moved by 7 under RoPE: products see differences alone; gpt2's stay"),
    legal(TurnsMirroredPairs, "pairs mirrored and turned backwards: a mirrored turn is the turn of the mirror image"),
    legal(InterleavesThePairs, "neighbours as pairs, with the rows of q and k moved there: names of dimensions"),
    legal(MasksWithTheLeastNumber, "hidden scores of -3.4e38 instead of -inf: no row is empty, and both weigh 0"),
    legal(StabilisesOneAboveTheMaximum, "softmax less (maximum + 1): any number cancels, and none overflows"),
    legal(MasksTwice, "weights times the mask after the softmax: hidden ones are 0 already"),
    legal(HasASinkOfWeightZero, "a key more that is always hidden: its weight is exactly 0"),
    legal(ReadsEveryKeyTwice, "each key in the sums twice: half the weight, twice"),
    legal(TakesTheFirstKeyFromAll, "one key subtracted from all: the same number added to every score of a row"),
    *equal_weights.EQUIVALENT,
    *equal_draws.EQUIVALENT,
)
"""Changes that look like faults, each with the reason that nobody can tell."""
