"""Rotary position embedding (Su et al. 2021, arXiv:2104.09864), in the half-split layout of Hugging Face checkpoints.

Dimension i is paired with i + D/2, and the pair is turned by position * frequency(i). Angles come from elementwise
products in float32 or wider: bfloat16 cannot count beyond 256, and TF32 would corrupt positions beyond 2,048.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from .config import Rope


def wide(dtype: torch.dtype) -> torch.dtype:
    """The format for angles, norm statistics and softmax: float32, or float64 if the model computes in it."""
    return torch.float64 if dtype == torch.float64 else torch.float32


@lru_cache(maxsize=64)
def inverse_frequencies(rope: Rope, head_dim: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the angle by which each pair turns at every position, [D/2].

    ``linear`` divides all by ``factor`` (Chen et al. 2023, arXiv:2306.15595). ``llama3`` divides the slow ones, keeps
    the fast ones, and blends between them (Llama 3.1's model card and released code).
    """
    exponent = torch.arange(0, head_dim, 2, dtype=dtype, device=device) / head_dim
    frequency = 1.0 / rope.theta**exponent
    if rope.kind == "linear":
        return frequency / rope.factor
    if rope.kind == "llama3":
        turns = rope.original_max_position_embeddings * frequency / (2 * math.pi)  # over the original context
        low, high = rope.low_freq_factor, rope.high_freq_factor
        keep = ((turns - low) / (high - low)).clamp(0, 1)  # 0: slow, divided; 1: fast, kept
        return keep * frequency + (1 - keep) * frequency / rope.factor
    return frequency


def cos_sin(positions: Tensor, rope: Rope, head_dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return cosines and sines for ``positions`` [B, T], each [B, T, 1, D/2] in the wide format of ``dtype``."""
    frequency = inverse_frequencies(rope, head_dim, wide(dtype), positions.device)
    angle = positions[:, :, None, None].to(frequency.dtype) * frequency  # [B, T, 1, D/2]; 1 stands for the heads
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return ``x`` [B, T, H, D] with every pair (i, i + D/2) turned; rounded once, at the end."""
    a, b = x.to(cos.dtype).chunk(2, dim=-1)  # [B, T, H, D/2] each
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)
