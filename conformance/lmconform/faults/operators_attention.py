"""Planted faults of single attention kernels: a fault for each requirement that a kernel decides by itself."""

from __future__ import annotations

import torch
from torch import Tensor

from lmconform.faults.fault import Fault
from lmconform.faults.operators import Tiled

SLOPE = 0.02
"""What a bias adds to a score for each position, in a kernel that should add none."""
WEAKEST = -4.0


class KernelExcludesTheOwnKey(Tiled):
    """A query sees the keys before its own, and the first sees itself."""

    name = "fault: kernel excludes the own key"

    def causal(self, n: int, m: int) -> Tensor:
        before = torch.ones(n, m, dtype=torch.bool).tril(m - n - 1)
        before[:, 0] = True
        return before


class KernelUnmasksTheOwnTile(Tiled):
    """A query sees the keys of its own tile up to the end."""

    name = "fault: own tile unmasked"

    def causal(self, n: int, m: int) -> Tensor:
        tiles = torch.arange(m) // self.tile
        return tiles <= tiles[m - n :, None]  # [n, m]


class KernelMasksWithMinus10000(Tiled):
    """What is hidden has the score -10,000."""

    name = "fault: kernel masks with -10,000"

    def part(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
        scores = (q @ k.transpose(-1, -2)) * self.scale(q.shape[-1])  # [1, H_q, n, tile]
        scores = scores.masked_fill(~visible, -10_000.0)
        level = scores.logsumexp(dim=-1, keepdim=True)
        return (scores - level).exp() @ v, level


class KernelPacksTheMask(Tiled):
    """Rows of a given mask that see nothing are left out, and all others move up to take their place."""

    name = "fault: empty rows of the mask left out"

    def tiled(self, q: Tensor, k: Tensor, v: Tensor, causal: bool, visible: Tensor | None) -> Tensor:
        if visible is not None:
            visible = visible[(~visible.any(dim=1)).int().argsort(stable=True)]
        return super().tiled(q, k, v, causal, visible)


class KernelTakesASigmoidOfALoneKey(Tiled):
    """The only key of a row weighs the sigmoid of its score."""

    name = "fault: sigmoid for a lone key"

    def tiled(self, q: Tensor, k: Tensor, v: Tensor, causal: bool, visible: Tensor | None) -> Tensor:
        whole = super().tiled(q, k, v, causal, visible)
        if k.shape[2] > 1:
            return whole
        heads = self.kv_heads(q.shape[1], k.shape[1])
        score = (q * k[:, heads]).float().sum(dim=-1, keepdim=True) * self.scale(q.shape[-1])  # [1, H_q, n, 1]
        return (whole.float() * score.sigmoid()).to(self.dtype)


class KernelReadsValuesInTurn(Tiled):
    """Query head h of a kernel reads the values of KV head h % H_kv, and the right keys."""

    name = "fault: values of KV head h % H_kv"

    def tiled(self, q: Tensor, k: Tensor, v: Tensor, causal: bool, visible: Tensor | None) -> Tensor:
        H_q, H_kv = q.shape[1], k.shape[1]
        k, v = k[:, self.kv_heads(H_q, H_kv)], v[:, torch.arange(H_q) % H_kv]  # [1, H_q, m, D] each
        return super().tiled(q, k, v, causal, visible)


class KernelPairsManyHeads(Tiled):
    """Where each of four or more query heads has a KV head of its own, two neighbours share one."""

    name = "fault: neighbours share a KV head"

    def kv_heads(self, H_q: int, H_kv: int) -> Tensor:
        return torch.arange(H_q) // 2 * 2 if H_q == H_kv >= 4 else super().kv_heads(H_q, H_kv)


class KernelValuesInFloat8(Tiled):
    """Values are rounded to float8 (e5m2)."""

    name = "fault: values in float8"

    def tiled(self, q: Tensor, k: Tensor, v: Tensor, causal: bool, visible: Tensor | None) -> Tensor:
        return super().tiled(q, k, v.to(torch.float8_e5m2).to(v.dtype), causal, visible)


class KernelDropsTheLastKeyOfADecodeStep(Tiled):
    """A single query does not see the last key, where there is more than a tile of them."""

    name = "fault: last key of a decode step dropped"

    def shown(self, visible: Tensor, start: int) -> Tensor:
        n, m = visible.shape
        if n == 1 and m > self.tile:
            visible = visible & (torch.arange(m) < m - 1)
        return super().shown(visible, start)


class KernelCutsWeakScores(Tiled):
    """Scores below -4 count as -4."""

    name = "fault: weak scores cut"

    def part(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
        scores = ((q @ k.transpose(-1, -2)) * self.scale(q.shape[-1])).clamp(min=WEAKEST)  # [1, H_q, n, tile]
        scores = scores.masked_fill(~visible, float("-inf"))
        level = scores.logsumexp(dim=-1, keepdim=True)
        return (scores - level.nan_to_num(neginf=0.0)).exp() @ v, level


class KernelBiasesByPosition(Tiled):
    """A slope by position is added to the scores (ALiBi), where the model turns its queries and keys."""

    name = "fault: kernel adds ALiBi"

    def tiled(self, q: Tensor, k: Tensor, v: Tensor, causal: bool, visible: Tensor | None) -> Tensor:
        slope = SLOPE / super().scale(q.shape[-1]) * torch.arange(k.shape[2], dtype=q.dtype)  # [m]
        q = torch.cat((q, torch.ones_like(q[..., :1])), dim=-1)  # [1, H_q, n, D + 1]
        k = torch.cat((k, slope[:, None].expand(*k.shape[:3], 1)), dim=-1)
        return super().tiled(q, k, v, causal, visible)

    def scale(self, D: int) -> float:
        return super().scale(D - 1)


class KernelTakesTheQueryOfTheHeadBefore(Tiled):
    """Query head h attends with the query of head h - 1."""

    name = "fault: query of the head before"

    def tiled(self, q: Tensor, k: Tensor, v: Tensor, causal: bool, visible: Tensor | None) -> Tensor:
        return super().tiled(q.roll(1, dims=1), k, v, causal, visible)


FAULTS = (
    Fault(KernelExcludesTheOwnKey, "CM-2", "flash-attention#282", "mask.past"),
    Fault(KernelUnmasksTheOwnTile, "CM-4", "flashinfer#348", "mask.future"),
    Fault(KernelMasksWithMinus10000, "CM-6", "pytorch#103749", "mask.value"),
    Fault(KernelPacksTheMask, "CM-7", "pytorch#103749", "mask.batch"),
    Fault(KernelTakesASigmoidOfALoneKey, "CM-9", "flash-attention#1745", "attention.softmax"),
    Fault(KernelReadsValuesInTurn, "GQA-2", "jax-js#180", "heads.values"),
    Fault(KernelPairsManyHeads, "GQA-3", "vllm#40792", "heads.count"),
    Fault(KernelValuesInFloat8, "SDP-3", "vllm#42580", "attention.values"),
    Fault(KernelDropsTheLastKeyOfADecodeStep, "SDP-4", "flashinfer#58", "mask.past"),
    Fault(KernelCutsWeakScores, "SDP-5", "tt-metal#56789", "attention.softmax"),
    Fault(KernelBiasesByPosition, "SDP-6", "vllm#945", "attention.bias"),
    Fault(KernelTakesTheQueryOfTheHeadBefore, "SDP-8", "jax-js#180", "heads.order"),
)
