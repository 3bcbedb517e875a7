"""Right ways to turn queries and keys: complex numbers, tables, other ways to the same frequencies."""

from __future__ import annotations

from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from lmconform.faults.fault import Rebuilt
from lmconform.faults.legal.legal import legal
from refdecoder import Attention, Cache, Rope
from refdecoder.rope import cos_sin, inverse_frequencies, rotate, wide


class ComplexAttention(Attention):
    """A pair is a complex number, and a turn a product with one on the unit circle."""

    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        D, turn = self.config.head_dim, torch.complex(cos, sin)  # [B, T, 1, D/2]
        q, k, v = (part(x).unflatten(-1, (-1, D)) for part in (self.q_proj, self.k_proj, self.v_proj))
        return _turned(q, turn), _turned(k, turn), v


def _turned(x: Tensor, turn: Tensor) -> Tensor:
    """Return x [B, T, H, D], its pairs (i, i + D/2) times ``turn``."""
    real, imaginary = x.to(turn.real.dtype).chunk(2, dim=-1)
    pairs = torch.complex(real.contiguous(), imaginary.contiguous()) * turn
    return torch.cat((pairs.real, pairs.imag), dim=-1).to(x.dtype)


class OwnAngles(Attention):
    """Each layer makes cosines and sines by itself."""

    def forward(self, x: Tensor, positions: Tensor, cos: Tensor, sin: Tensor, cache: Cache) -> Tensor:
        return super().forward(x, positions, *self.angles(positions.clamp(min=0), x.dtype), cache)

    def angles(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return cosines and sines for positions [B, T], each [B, T, 1, D/2]."""
        raise NotImplementedError


class TabledAttention(OwnAngles):
    """Cosines and sines of all positions are computed once; a token looks its own up."""

    def angles(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        cos, sin = _table(self.config.rope, self.config.head_dim, self.config.max_position_embeddings, wide(dtype))
        return cos[positions], sin[positions]


@lru_cache(maxsize=8)
def _table(rope: Rope, head_dim: int, length: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return cosines and sines of all positions, [length, 1, D/2] each."""
    cos, sin = cos_sin(torch.arange(length)[None], rope, head_dim, dtype)
    return cos[0], sin[0]


class IterativeAttention(OwnAngles):
    """The angle of a pair is that of the pair before it, times base^(-2/D), as llama.cpp does."""

    def angles(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        rope, D = self.config.rope, self.config.head_dim
        ratio = rope.theta ** (-2 / D)
        angle, found = positions.to(wide(dtype)), []
        for _ in range(D // 2):
            found.append(angle)
            angle = angle * ratio
        # What linear and llama3 make of each frequency is a factor of its own.
        factors = inverse_frequencies(rope, D, wide(dtype), positions.device) / inverse_frequencies(
            Rope(theta=rope.theta), D, wide(dtype), positions.device
        )
        angles = torch.stack(found, dim=-1)[:, :, None] * factors  # [B, T, 1, D/2]
        return angles.cos(), angles.sin()


class RoundedTables(OwnAngles):
    """Cosines and sines, computed in float32, are rounded to the format, as transformers does; so is each product."""

    def angles(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        cos, sin = cos_sin(positions, self.config.rope, self.config.head_dim, dtype)
        return cos.to(dtype), sin.to(dtype)


class TurnedWhenRead(Attention):
    """Keys are cached as they are, and turned each time they are read."""

    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        D = self.config.head_dim
        q, k, v = (part(x).unflatten(-1, (-1, D)) for part in (self.q_proj, self.k_proj, self.v_proj))
        return rotate(q, cos, sin), k, v

    def attend(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
        slots = torch.arange(k.shape[2], device=k.device)[None]  # slot = position
        cos, sin = cos_sin(slots, self.config.rope, self.config.head_dim, k.dtype)
        turned = rotate(k.transpose(1, 2), cos, sin).transpose(1, 2)  # by way of [B, S, H_kv, D]
        return super().attend(q, turned, v, visible)


class TurnsByComplexNumbers(Rebuilt):
    """RoPE by complex numbers."""

    name = "legal: complex RoPE"
    parts: ClassVar = {Attention: ComplexAttention}


class TurnsByTables(Rebuilt):
    """RoPE by tables."""

    name = "legal: tables of RoPE"
    parts: ClassVar = {Attention: TabledAttention}


class TurnsByIteration(Rebuilt):
    """RoPE by iterated angles."""

    name = "legal: iterated angles"
    parts: ClassVar = {Attention: IterativeAttention}


class TurnsByRoundedTables(Rebuilt):
    """RoPE in the format of the model."""

    name = "legal: rounded cosines and sines"
    parts: ClassVar = {Attention: RoundedTables}


class TurnsKeysWhenRead(Rebuilt):
    """A cache of keys that are not turned."""

    name = "legal: keys turned when read"
    parts: ClassVar = {Attention: TurnedWhenRead}


LEGAL = (
    legal(TurnsByComplexNumbers, "pairs as complex numbers: (a + bi)(cos + i sin) is the turn"),
    legal(TurnsByTables, "cosines and sines of all positions computed once: they depend on the position alone"),
    legal(TurnsByIteration, "the angle of a pair is that of the one before it times base^(-2/D): the same power"),
    legal(TurnsByRoundedTables, "turns in bfloat16 from float32 angles, as transformers", dtype="bfloat16"),
    legal(TurnsKeysWhenRead, "keys turned when read, not when cached: a key turns by its own position either way"),
    legal(TurnsKeysWhenRead, "the same in bfloat16, where the cached key is rounded before the turn", dtype="bfloat16"),
)
