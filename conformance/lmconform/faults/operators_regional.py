"""Planted faults of single kernels that live in part of their range: some tiles, some groups, far positions."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lmconform.adapter import Operator, RopeOperator
from lmconform.faults.fault import Fault
from lmconform.faults.operators import Tiled, TurnsNeighbours
from refdecoder import Rope
from refdecoder.rope import inverse_frequencies, rotate

TABLE = 65_536
"""Positions of a table of cosines."""


class KernelUnmasksTheTileOfTheFirstQuery(Tiled):
    """Of a chunk over a cache, tiles that begin before the first query are read without a mask, up to their end."""

    name = "fault: tile across the cache's end unmasked"

    def causal(self, n: int, m: int) -> Tensor:
        before = torch.arange(m) // self.tile * self.tile < m - n  # keys of tiles that begin in the cache
        return super().causal(n, m) | before


class KernelForgetsToRescale(Tiled):
    """What earlier tiles gave keeps its weight when a later one has a greater score."""

    name = "fault: earlier tiles not rescaled"

    def merge(self, outputs: Tensor, levels: Tensor) -> Tensor:
        running = levels.cummax(dim=0).values.nan_to_num(neginf=0.0)
        weights = (levels - running).exp()
        return (outputs * weights / weights.sum(dim=0)).sum(dim=0)


class KernelMakesHiddenTilesNaN(Tiled):
    """A tile of which a query sees nothing gives it 0/0."""

    name = "fault: hidden tiles are NaN"

    def part(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
        scores = (q @ k.transpose(-1, -2)) * self.scale(q.shape[-1])  # [1, H_q, n, tile]
        scores = scores.masked_fill(~visible, float("-inf"))
        return scores.softmax(dim=-1) @ v, scores.logsumexp(dim=-1, keepdim=True)


class KernelRoundsTheGroupUp(Tiled):
    """The query heads of a KV head are counted up to a power of two."""

    name = "fault: group rounded up to a power of two"

    def kv_heads(self, H_q: int, H_kv: int) -> Tensor:
        group = 1 << (H_q // H_kv - 1).bit_length()
        return torch.arange(H_q) // group


class KernelTurnsBackwards(TurnsNeighbours):
    """Pairs are turned by the negative angle."""

    name = "fault: RoPE kernel turns backwards"

    def operators(self) -> Mapping[str, Operator]:
        return {"backwards": RopeOperator(self.rope(self.turned))}

    def angles(self, positions: Tensor, frequencies: Tensor) -> Tensor:
        return -super().angles(positions, frequencies)


class KernelCosinesInBfloat16(TurnsNeighbours):
    """Cosines and sines are read from a table of bfloat16 numbers."""

    name = "fault: cosines in bfloat16"

    def operators(self) -> Mapping[str, Operator]:
        return {"bfloat16 cosines": RopeOperator(self.rope(self.turned))}

    def turned(self, x: Tensor, positions: Tensor, base: float) -> Tensor:
        angle = self.angles(positions, inverse_frequencies(Rope(theta=base), x.shape[-1], torch.float32, self.device))
        return rotate(x, angle.cos().bfloat16().float(), angle.sin().bfloat16().float())


class KernelCosinesEndAt65536(TurnsNeighbours):
    """The table of cosines and sines has 65,536 positions, and later ones read its last row."""

    name = "fault: 65,536 positions of cosines"

    def operators(self) -> Mapping[str, Operator]:
        return {"short table": RopeOperator(self.rope(self.turned))}

    def angles(self, positions: Tensor, frequencies: Tensor) -> Tensor:
        return super().angles(positions.clamp(max=TABLE - 1), frequencies)


FAULTS = (
    Fault(KernelUnmasksTheTileOfTheFirstQuery, "CM-5", "flashinfer#348", "mask.chunk"),
    Fault(KernelForgetsToRescale, "SDP-10", "tilelang#1148", "attention.merge"),
    Fault(KernelMakesHiddenTilesNaN, "SDP-10", "mlx#2406", "attention.merge"),
    Fault(KernelRoundsTheGroupUp, "GQA-1", "vllm#40792", "heads.keys"),
    Fault(KernelTurnsBackwards, "ROPE-4", "nanochat#489", "rope.direction"),
    Fault(KernelCosinesInBfloat16, "ROPE-14", "transformers#29285", "rope.precision"),
    Fault(KernelCosinesEndAt65536, "ROPE-16", "pegainfer#253", "rope.positions"),
)
