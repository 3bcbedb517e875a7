"""Planted faults of single kernels: torch's, with one operator more that is wrong.

``Tiled`` is a fused attention kernel written out, right as it stands; its faults replace a part of it.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from lmconform.adapter import Operator, RMSNormOperator, RopeOperator
from lmconform.engines.torch_kernels import TorchKernels, lower_right
from lmconform.faults.fault import Fault
from refdecoder import Rope
from refdecoder.rope import inverse_frequencies, rotate


class Tiled(TorchKernels):
    """One pass over tiles of keys: softmax and weighted values together (Dao et al. 2022)."""

    name = "tiled attention"
    tile = 16

    def operators(self) -> Mapping[str, Operator]:
        """Return this kernel alone."""
        return {"tiled": self.attention(self.tiled)}

    def tiled(self, q: Tensor, k: Tensor, v: Tensor, causal: bool, visible: Tensor | None) -> Tensor:
        """Return attention [1, H_q, n, D] for q [1, H_q, n, D], k and v [1, H_kv, m, D]."""
        n, m = q.shape[2], k.shape[2]
        if visible is None:
            visible = self.causal(n, m) if causal else torch.ones(n, m, dtype=torch.bool)
        heads = self.kv_heads(q.shape[1], k.shape[1])
        q, k, v = (one.float() for one in (q, k[:, heads], v[:, heads]))  # [1, H_q, ., D]
        parts = [
            self.part(q, self.padded(k, start), self.padded(v, start), self.shown(visible, start))
            for start in range(0, m, self.tile)
        ]
        return self.merge(*(torch.stack(one) for one in zip(*parts, strict=True))).to(self.dtype)

    def scale(self, D: int) -> float:
        """Return what scores are multiplied by."""
        return float(D**-0.5)

    def causal(self, n: int, m: int) -> Tensor:
        """Return which keys a query sees, bool [n, m]."""
        return lower_right(n, m, self.device)

    def kv_heads(self, H_q: int, H_kv: int) -> Tensor:
        """Return the KV head of each query head, [H_q]."""
        return torch.arange(H_q) // (H_q // H_kv)

    def padded(self, x: Tensor, start: int) -> Tensor:
        """Return the tile of x [1, H_q, m, D] that begins at ``start``; a last one is filled up with zeros."""
        tile = x[:, :, start : start + self.tile]
        return F.pad(tile, (0, 0, 0, self.tile - tile.shape[2]))

    def shown(self, visible: Tensor, start: int) -> Tensor:
        """Return the tile of ``visible`` [n, m]; what fills it up is hidden."""
        tile = visible[:, start : start + self.tile]
        return F.pad(tile, (0, self.tile - tile.shape[1]))

    def part(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
        """Return a tile's output, [1, H_q, n, D], and the logarithm of its sum of powers, [1, H_q, n, 1]."""
        scores = (q @ k.transpose(-1, -2)) * self.scale(q.shape[-1])  # [1, H_q, n, tile]
        scores = scores.masked_fill(~visible, float("-inf"))
        level = scores.logsumexp(dim=-1, keepdim=True)
        return (scores - level.nan_to_num(neginf=0.0)).exp() @ v, level

    def merge(self, outputs: Tensor, levels: Tensor) -> Tensor:
        """Return the outputs of all tiles [tiles, 1, H_q, n, D], weighted by their sums of powers."""
        return (outputs * (levels - levels.logsumexp(dim=0)).exp()).sum(dim=0)


class ScalesByTheDimension(Tiled):
    """Scores are divided by D, not by its root."""

    name = "fault: scale 1/D"

    def scale(self, D: int) -> float:
        return 1 / D


class KernelAlignedAtTheUpperLeft(Tiled):
    """Query i of a chunk sees the keys 0 to i, whatever the cache holds."""

    name = "fault: kernel aligned at the upper left"

    def causal(self, n: int, m: int) -> Tensor:
        return torch.ones(n, m, dtype=torch.bool).tril()


class KernelReadsHeadsInTurn(Tiled):
    """Query head h of a kernel reads KV head h % H_kv."""

    name = "fault: KV head h % H_kv"

    def kv_heads(self, H_q: int, H_kv: int) -> Tensor:
        return torch.arange(H_q) % H_kv


class MergesWithTheWrongBase(Tiled):
    """Tiles are merged by powers of 2 of sums that are natural logarithms."""

    name = "fault: tiles merged in base 2"

    def merge(self, outputs: Tensor, levels: Tensor) -> Tensor:
        weights = (levels - levels.amax(dim=0)).exp2()
        return (outputs * weights / weights.sum(dim=0)).sum(dim=0)


class ReadsPastTheEnd(Tiled):
    """What fills the last tile up is not hidden: keys of 0 take weight."""

    name = "fault: reads past the end of the keys"

    def shown(self, visible: Tensor, start: int) -> Tensor:
        tile = visible[:, start : start + self.tile]
        return F.pad(tile, (0, self.tile - tile.shape[1]), value=True)


class LosesTheLastTile(Tiled):
    """Keys beyond the last whole tile are left out, where there is a whole one."""

    name = "fault: the last tile is lost"

    def shown(self, visible: Tensor, start: int) -> Tensor:
        tile = super().shown(visible, start)
        return tile & (start + self.tile <= visible.shape[1] or start == 0)


class WithoutTheGreatestScore(Tiled):
    """Powers are taken of the scores themselves, not of their distance to the greatest."""

    name = "fault: powers of scores overflow"

    def part(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
        scores = (q @ k.transpose(-1, -2)) * self.scale(q.shape[-1])  # [1, H_q, n, tile]
        powers = scores.masked_fill(~visible, float("-inf")).exp()
        total = powers.sum(dim=-1, keepdim=True)
        return powers @ v / total, total.log()


class TurnsNeighbours(TorchKernels):
    """Pairs are neighbours, where the kernel declares halves."""

    name = "fault: interleaved RoPE kernel"

    def operators(self) -> Mapping[str, Operator]:
        def kernel(x: Tensor, positions: Tensor, base: float) -> Tensor:
            D = x.shape[-1]
            order = torch.arange(D).reshape(2, -1).T.flatten()  # [2, D/2] to [D/2, 2] to [D]
            turned = self.turned(x[..., order.argsort()], positions, base)
            return turned[..., order]

        return {"interleaved": RopeOperator(self.rope(kernel))}

    def turned(self, x: Tensor, positions: Tensor, base: float) -> Tensor:
        """Return x [1, T, H, D], turned."""
        angle = self.angles(positions, inverse_frequencies(Rope(theta=base), x.shape[-1], torch.float32, self.device))
        return rotate(x, angle.cos(), angle.sin())

    def angles(self, positions: Tensor, frequencies: Tensor) -> Tensor:
        """Return position times frequency, [1, T, 1, D/2]."""
        return positions[:, :, None, None] * frequencies


class KernelAnglesInBfloat16(TurnsNeighbours):
    """Positions, frequencies and angles are bfloat16 numbers."""

    name = "fault: angles in bfloat16"

    def operators(self) -> Mapping[str, Operator]:
        return {"bfloat16 angles": RopeOperator(self.rope(self.turned))}

    def angles(self, positions: Tensor, frequencies: Tensor) -> Tensor:
        return super().angles(positions.bfloat16(), frequencies.bfloat16()).float()


class LengthensWhatItTurns(TurnsNeighbours):
    """The attention factor of a stretched context is multiplied into a kernel that stretches nothing."""

    name = "fault: turns lengthen"

    def operators(self) -> Mapping[str, Operator]:
        return {"longer": RopeOperator(self.rope(lambda *given: self.turned(*given) * 1.1))}


class CountsFrom1(TurnsNeighbours):
    """Positions begin at 1."""

    name = "fault: positions from 1"

    def operators(self) -> Mapping[str, Operator]:
        return {"from 1": RopeOperator(self.rope(self.turned))}

    def angles(self, positions: Tensor, frequencies: Tensor) -> Tensor:
        return super().angles(positions + 1, frequencies)


class KernelEpsOutsideTheRoot(TorchKernels):
    """eps is added to the root of the mean square."""

    name = "fault: eps outside the root"

    def operators(self) -> Mapping[str, Operator]:
        return {"norm": RMSNormOperator(self.rms_norm(self.norm))}

    def norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Return the normed rows x [n, hidden_size]."""
        wide = x.float()
        return (wide / (wide.square().mean(dim=-1, keepdim=True).sqrt() + eps) * weight).to(self.dtype)


class StatisticsInFloat16(KernelEpsOutsideTheRoot):
    """The mean square is a float16 number."""

    name = "fault: norm statistics in float16"

    def norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        power = x.half().square().mean(dim=-1, keepdim=True)
        return (x.float() * torch.rsqrt(power.float() + eps) * weight).to(self.dtype)


FAULTS = (
    Fault(ScalesByTheDimension, "SDP-1", "tt-metal#56789", "attention.scale"),
    Fault(KernelAlignedAtTheUpperLeft, "CM-5", "flash-attention#282", "mask.chunk"),
    Fault(KernelReadsHeadsInTurn, "GQA-1", "jax-js#180", "heads.keys"),
    Fault(MergesWithTheWrongBase, "SDP-10", "sglang#40903", "attention.merge"),
    Fault(ReadsPastTheEnd, "SDP-2", "flash-attention#1745", "attention.softmax"),
    Fault(LosesTheLastTile, "CM-3", "flashinfer#58", "mask.past"),
    Fault(WithoutTheGreatestScore, "SDP-7", "tt-metal#56789", "attention.softmax"),
    Fault(TurnsNeighbours, "ROPE-13", "vllm#49323", "rope.pairs"),
    Fault(LengthensWhatItTurns, "ROPE-14", "exllamav3#259", "rope.scaling"),
    Fault(CountsFrom1, "ROPE-15", "mlx-lm#1699", "rope.positions"),
    Fault(KernelAnglesInBfloat16, "ROPE-16", "transformers#29285", "rope.precision"),
    Fault(KernelEpsOutsideTheRoot, "PNR-5", "candle#271", "norm.eps"),
    Fault(StatisticsInFloat16, "PNR-11", "vllm#3653", "norm.statistics"),
)
