"""The adapters' own ways to work: forms of attention, caches, number formats, compiled parts, single kernels."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from lmconform.faults.fault import Rebuilt
from lmconform.faults.legal.legal import Legal, legal
from refdecoder.model import MLP, RMSNorm
from refdecoder.rope import wide


@cache
def traced(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Trace a function with shapes left open, so that few graphs serve all; compiling them to C would take seconds."""
    return torch.compile(function, backend="aot_eager", dynamic=True)


def _norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    y = x.to(wide(x.dtype))
    y = y * torch.rsqrt(y.square().mean(dim=-1, keepdim=True) + eps)
    return (y * weight).to(x.dtype)


def _silu(x: Tensor, gate: Tensor, up: Tensor) -> Tensor:
    return F.silu(F.linear(x, gate)) * F.linear(x, up)


class _TracedNorm(RMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        return traced(_norm)(x.flatten(0, -2), self.weight, self.eps).view_as(x)


class _TracedMLP(MLP):
    def forward(self, x: Tensor) -> Tensor:
        if self.activation is not F.silu or self.gate_proj.bias is not None:
            return super().forward(x)
        hidden = traced(_silu)(x.flatten(0, -2), self.gate_proj.weight, self.up_proj.weight)
        return self.down_proj(hidden).view_as(x)


class Compiled(Rebuilt):
    """Norms and gates by torch.compile."""

    name = "legal: compiled"
    parts: ClassVar = {RMSNorm: _TracedNorm, MLP: _TracedMLP}


LEGAL: tuple[Legal, ...] = (
    Legal("reference", "attention written out"),
    Legal("reference", "attention by torch's fused operator", {"attention": "sdpa"}),
    Legal("reference", "float64, which the budget of a float64 engine holds", {"dtype": "float64"}),
    Legal("reference", "bfloat16, rounded between operations", {"dtype": "bfloat16"}),
    Legal("reference", "bfloat16 with the fused operator", {"dtype": "bfloat16", "attention": "sdpa"}),
    Legal("reference", "float16, rounded between operations", {"dtype": "float16"}),
    Legal("transformers", "transformers with its SDPA"),
    Legal("transformers", "transformers with its eager attention", {"attention": "eager"}),
    Legal("transformers", "transformers with its static cache", {"cache": "static"}),
    Legal("transformers", "transformers in bfloat16, which rounds cosines and sines", {"dtype": "bfloat16"}),
    Legal("transformers", "transformers in float16", {"dtype": "float16"}),
    Legal("torch-kernels", "single kernels: each backend of SDPA, flex attention, norms, RoPE"),
    Legal("torch-kernels", "the same kernels in bfloat16", {"dtype": "bfloat16"}),
    legal(Compiled, "norms and gates traced and run by torch.compile: the graph holds the same operations"),
)
