"""Right ways to compute products, norms and activations: other orders of the sums, other places of a rounding."""

from __future__ import annotations

from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmconform.engines.reference import ReferenceModel
from lmconform.faults.fault import Rebuilt
from lmconform.faults.legal.legal import Prepared, legal
from refdecoder import Attention, Cache
from refdecoder.gpt2 import Projection
from refdecoder.model import MLP, Block, RMSNorm
from refdecoder.rope import rotate, wide


def by_halves(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return x [..., in] times the transpose of weight [out, in], each half of ``in`` summed by itself in float32."""
    dtype, half = wide(x.dtype), x.shape[-1] // 2
    wide_x, wide_weight = x.to(dtype), weight.to(dtype)
    out = F.linear(wide_x[..., :half], wide_weight[:, :half]) + F.linear(wide_x[..., half:], wide_weight[:, half:])
    return (out if bias is None else out + bias).to(x.dtype)


class LinearByHalves(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return by_halves(x, self.weight, self.bias)


class ProjectionByHalves(Projection):
    def forward(self, x: Tensor) -> Tensor:
        return by_halves(x, self.weight.T, self.bias)


class ProductsByHalves(Rebuilt):
    """Products accumulated in float32 by halves of the inner dimension."""

    name = "legal: products by halves"
    parts: ClassVar = {nn.Linear: LinearByHalves, Projection: ProjectionByHalves}


class FusedAttention(Attention):
    """One product for queries, keys and values."""

    fused: tuple[Tensor, Tensor | None]

    def fuse(self) -> None:
        parts = [cast(nn.Linear, part) for part in (self.q_proj, self.k_proj, self.v_proj)]
        weights: list[Tensor] = [part.weight for part in parts]
        biases: list[Tensor] = [part.bias for part in parts if part.bias is not None]
        self.fused = torch.cat(weights), torch.cat(biases) if biases else None

    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        heads = F.linear(x, *self.fused).unflatten(-1, (-1, self.config.head_dim))  # [B, T, H_q + 2 H_kv, D]
        H_q, H_kv = self.config.num_attention_heads, self.config.num_key_value_heads
        q, k, v = heads.split([H_q, H_kv, H_kv], dim=2)
        return rotate(q, cos, sin), rotate(k, cos, sin), v


class FusedMLP(MLP):
    """One product for gate and up, and an activation that is rounded together with its product."""

    fused: tuple[Tensor, Tensor | None]

    def fuse(self) -> None:
        biases = None if self.gate_proj.bias is None else torch.cat((self.gate_proj.bias, self.up_proj.bias))
        self.fused = torch.cat((self.gate_proj.weight, self.up_proj.weight)), biases

    def forward(self, x: Tensor) -> Tensor:
        gate, up = F.linear(x, *self.fused).to(wide(x.dtype)).chunk(2, dim=-1)
        return cast(Tensor, self.down_proj((self.activation(gate) * up).to(x.dtype)))


class FusedProjections(Prepared):
    """Fused projections of queries, keys and values, and of gate and up."""

    name = "legal: fused projections"
    parts: ClassVar = {Attention: FusedAttention, MLP: FusedMLP}

    def prepare(self, model: ReferenceModel) -> None:
        for module in model.decoder.modules():
            if isinstance(module, FusedAttention | FusedMLP):
                module.fuse()


class DividingNorm(RMSNorm):
    """x / sqrt(mean + eps)."""

    def forward(self, x: Tensor) -> Tensor:
        y = x.to(wide(x.dtype))
        return (y / torch.sqrt((y * y).mean(dim=-1, keepdim=True) + self.eps) * self.weight).to(x.dtype)


class RoundingNorm(RMSNorm):
    """Rounded to the format before the weight is multiplied, as transformers does."""

    def forward(self, x: Tensor) -> Tensor:
        y = x.to(wide(x.dtype))
        y = y * torch.rsqrt(y.square().mean(dim=-1, keepdim=True) + self.eps)
        return y.to(x.dtype) * self.weight


class HalvingNorm(RMSNorm):
    """The mean square as the sum of two halves, the second summed from its end."""

    def forward(self, x: Tensor) -> Tensor:
        y = x.to(wide(x.dtype))
        squares, half = y * y, y.shape[-1] // 2
        total = squares[..., :half].sum(dim=-1) + squares[..., half:].flip(-1).sum(dim=-1)
        y = y * torch.rsqrt(total / y.shape[-1] + self.eps)[..., None]
        return (y * self.weight).to(x.dtype)


class BoundedNorm(RMSNorm):
    """Entries are divided by the greatest before they are squared, and eps by its square."""

    def forward(self, x: Tensor) -> Tensor:
        y = x.to(wide(x.dtype))
        top = y.abs().amax(dim=-1, keepdim=True).clamp(min=1e-15)  # a stream of zeros stays one
        y = y / top
        root = torch.sqrt(y.square().mean(dim=-1, keepdim=True) + self.eps / top.square())
        return (y / root * self.weight).to(x.dtype)


class WeightFirstNorm(RMSNorm):
    """The weight is multiplied before the division."""

    def forward(self, x: Tensor) -> Tensor:
        y = x.to(wide(x.dtype))
        return (y * self.weight / torch.sqrt(y.square().mean(dim=-1, keepdim=True) + self.eps)).to(x.dtype)


class DividesByTheRoot(Rebuilt):
    """RMSNorm by division."""

    name = "legal: norm by division"
    parts: ClassVar = {RMSNorm: DividingNorm}


class RoundsBeforeTheWeight(Rebuilt):
    """RMSNorm rounded before its weight."""

    name = "legal: norm rounded before its weight"
    parts: ClassVar = {RMSNorm: RoundingNorm}


class HalvesTheMean(Rebuilt):
    """The mean square by halves."""

    name = "legal: mean square by halves"
    parts: ClassVar = {RMSNorm: HalvingNorm}


class BoundsTheSquares(Rebuilt):
    """Squares of at most 1."""

    name = "legal: bounded squares"
    parts: ClassVar = {RMSNorm: BoundedNorm}


class WeightBeforeTheRoot(Rebuilt):
    """The norm's weight before the division."""

    name = "legal: norm's weight first"
    parts: ClassVar = {RMSNorm: WeightFirstNorm}


class RoundingToTheWeights(RMSNorm):
    """The norm of a wide stream, in the format of the weights."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).to(self.weight.dtype)


class WideStream(Block):
    """The residual stream stays in the wide format."""

    def forward(self, x: Tensor, positions: Tensor, cos: Tensor, sin: Tensor, cache: Cache) -> Tensor:
        x = x.to(wide(x.dtype))
        x = x + self.self_attn(self.input_layernorm(x), positions, cos, sin, cache)
        return cast(Tensor, x + self.mlp(self.post_attention_layernorm(x)))


class StreamInFloat32(Rebuilt):
    """A residual stream that is never rounded to the format of the weights."""

    name = "legal: wide stream"
    parts: ClassVar = {RMSNorm: RoundingToTheWeights, Block: WideStream}


LEGAL = (
    legal(ProductsByHalves, "products in float32 by halves of the inner dimension: another order of the same sum"),
    legal(ProductsByHalves, "the same in bfloat16, rounded once after both halves", dtype="bfloat16"),
    legal(FusedProjections, "one product for q, k and v, and one for gate and up: rows of a product do not mix"),
    legal(FusedProjections, "the same in bfloat16, activation and product rounded once", dtype="bfloat16"),
    legal(DividesByTheRoot, "x / sqrt(mean + eps) by x*x, instead of x * rsqrt(mean + eps): the same number"),
    legal(RoundsBeforeTheWeight, "the norm rounded to bfloat16 before its weight, as transformers", dtype="bfloat16"),
    legal(RoundsBeforeTheWeight, "the norm rounded to float16 before its weight", dtype="float16"),
    legal(HalvesTheMean, "the mean square as the sum of two halves: another order of the same sum"),
    legal(BoundsTheSquares, "squares of x / max|x|, with eps / max|x|^2: both sides of the root scale together"),
    legal(WeightBeforeTheRoot, "the weight before the division: factors may change places"),
    legal(StreamInFloat32, "a float32 stream in a bfloat16 model: fewer roundings are allowed", dtype="bfloat16"),
)
