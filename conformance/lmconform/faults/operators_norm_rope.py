"""Planted faults of single RMSNorm and RoPE kernels: a fault for each requirement that a kernel decides by itself."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lmconform.adapter import Operator, RopeOperator
from lmconform.faults.fault import Fault
from lmconform.faults.operators import KernelEpsOutsideTheRoot, TurnsNeighbours

LEAST_ROOT = 2.0**-4
USUAL_BASE = 10_000.0
RESERVED = 5


class KernelFloorsTheRoot(KernelEpsOutsideTheRoot):
    """The root of the mean square is never less than 1/16."""

    name = "fault: root floored"

    def norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = x.float()
        root = (wide.square().mean(dim=-1, keepdim=True) + eps).sqrt().clamp(min=LEAST_ROOT)
        return (wide / root * weight).to(self.dtype)


class KernelTakesTheMeanAway(KernelEpsOutsideTheRoot):
    """Rows are centred first, as in LayerNorm."""

    name = "fault: LayerNorm kernel"

    def norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = x.float() - x.float().mean(dim=-1, keepdim=True)
        return (wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps) * weight).to(self.dtype)


class KernelAddsOneToTheWeight(KernelEpsOutsideTheRoot):
    """Rows are multiplied by 1 + weight, as in Gemma."""

    name = "fault: 1 + weight"

    def norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = x.float()
        return (wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps) * (1 + weight)).to(self.dtype)


class KernelSkipsAPosition(TurnsNeighbours):
    """A position is left out: those after it turn as if they stood one further."""

    name = "fault: a position skipped"

    def operators(self) -> Mapping[str, Operator]:
        return {"skips": RopeOperator(self.rope(self.turned))}

    def angles(self, positions: Tensor, frequencies: Tensor) -> Tensor:
        return super().angles(positions + (positions > RESERVED), frequencies)


class KernelKnowsOneBase(TurnsNeighbours):
    """The base is 10,000, whatever is asked for."""

    name = "fault: one base"

    def operators(self) -> Mapping[str, Operator]:
        return {"one base": RopeOperator(self.rope(lambda x, positions, base: self.turned(x, positions, USUAL_BASE)))}


FAULTS = (
    Fault(KernelFloorsTheRoot, "PNR-4", "candle#271", "norm.eps"),
    Fault(KernelTakesTheMeanAway, "PNR-6", "vllm#3653", "norm.statistics"),
    Fault(KernelAddsOneToTheWeight, "PNR-7", "torchtitan#1454", "norm.weight"),
    Fault(KernelSkipsAPosition, "ROPE-1", "mlx-lm#1699", "rope.positions"),
    Fault(KernelKnowsOneBase, "ROPE-2", "DeepSpeed#2782", "rope.base"),
)
