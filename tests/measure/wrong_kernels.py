"""Kernels that are wrong in one place, or that decline some calls, for the tests of their data sheets."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from lmconform.adapter import Array, AttentionOperator, Operator, Refused, RMSNormOperator, RopeOperator
from lmconform.engines.torch_kernels import TorchKernels, reference_rope
from lmconform.faults.operators import KernelEpsOutsideTheRoot, Tiled, TurnsNeighbours


class TwoScales(Tiled):
    """The scale of heads of 64, whatever their dimension."""

    def scale(self, D: int) -> float:
        return 1 / 8


class CapsScores(Tiled):
    """Scores are 30 tanh(s / 30)."""

    def part(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
        scores = 30 * torch.tanh((q @ k.transpose(-1, -2)) * self.scale(q.shape[-1]) / 30)  # [1, H_q, n, tile]
        scores = scores.masked_fill(~visible, float("-inf"))
        level = scores.logsumexp(dim=-1, keepdim=True)
        return (scores - level.nan_to_num(neginf=0.0)).exp() @ v, level


class HasASink(Tiled):
    """A further key of score 0 takes weight and has no value."""

    def merge(self, outputs: Tensor, levels: Tensor) -> Tensor:
        return super().merge(
            torch.cat([outputs, torch.zeros_like(outputs[:1])]), torch.cat([levels, torch.zeros_like(levels[:1])])
        )


class ReadsKeysInTurn(Tiled):
    """Keys come from KV head h % H_kv, values from the right one."""

    name = "k"

    def tiled(self, q: Tensor, k: Tensor, v: Tensor, causal: bool, visible: Tensor | None) -> Tensor:
        turned = torch.arange(q.shape[1]) % k.shape[1]
        own = torch.arange(q.shape[1]) // (q.shape[1] // k.shape[1])
        keys, values = (turned, own) if self.name == "k" else (own, turned)
        return super().tiled(q, k[:, keys], v[:, values], causal, visible)


class ReadsValuesInTurn(ReadsKeysInTurn):
    """Values come from KV head h % H_kv, keys from the right one."""

    name = "v"


class SeesOneAhead(Tiled):
    """Each query sees the key after its own."""

    def causal(self, n: int, m: int) -> Tensor:
        return torch.ones(n, m, dtype=torch.bool).tril(m - n + 1)


class HasAWindow(Tiled):
    """A query sees 100 keys at most."""

    def causal(self, n: int, m: int) -> Tensor:
        return super().causal(n, m).triu(m - n - 99)


class MissesItsOwnKey(Tiled):
    """A query sees the keys before its own; the first one sees its own."""

    def causal(self, n: int, m: int) -> Tensor:
        seen = torch.ones(n, m, dtype=torch.bool).tril(m - n - 1)
        seen[0, 0] = True
        return seen


class LeaksALittle(Tiled):
    """The mask lowers scores by 5 and does not hide them."""

    def part(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
        scores = (q @ k.transpose(-1, -2)) * self.scale(q.shape[-1])  # [1, H_q, n, tile]
        scores = scores - 5.0 * ~visible
        level = scores.logsumexp(dim=-1, keepdim=True)
        return (scores - level).exp() @ v, level


class IgnoresTheGivenMask(Tiled):
    """A given mask is not looked at."""

    def tiled(self, q: Tensor, k: Tensor, v: Tensor, causal: bool, visible: Tensor | None) -> Tensor:
        return super().tiled(q, k, v, causal, None)


class TurnsBackwards(TurnsNeighbours):
    """Angles have the other sign."""

    def operators(self) -> Mapping[str, Operator]:
        return {"backwards": RopeOperator(self.rope(lambda x, positions, base: self.turned(x, -positions, base)))}


class KnowsOneBase(TurnsNeighbours):
    """The base is 10,000, whatever is asked for."""

    def operators(self) -> Mapping[str, Operator]:
        return {"one base": RopeOperator(self.rope(lambda x, positions, base: self.turned(x, positions, 1e4)))}


class TurnsHalfOfTheHead(TurnsNeighbours):
    """The entries of the second half stay."""

    def operators(self) -> Mapping[str, Operator]:
        def kernel(x: Tensor, positions: Tensor, base: float) -> Tensor:
            first, rest = x.chunk(2, dim=-1)
            return torch.cat([self.turned(first, positions, base), rest], dim=-1)

        return {"half": RopeOperator(self.rope(kernel))}


class TurnsNothing(TurnsNeighbours):
    """Heads come back as they are."""

    def operators(self) -> Mapping[str, Operator]:
        return {"nothing": RopeOperator(self.rope(lambda x, positions, base: x))}


class DeclaresNeighbours(TurnsNeighbours):
    """A right kernel of the interleaved layout."""

    def operators(self) -> Mapping[str, Operator]:
        run = super().operators()["interleaved"].run
        return {"interleaved": RopeOperator(run, layout="interleaved")}


class TakesTheMeanAway(KernelEpsOutsideTheRoot):
    """LayerNorm without a bias."""

    def norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return torch.layer_norm(x, weight.shape, weight, None, eps)


class KnowsOneEps(KernelEpsOutsideTheRoot):
    """eps is 1e-6, whatever is asked for."""

    def norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return torch.rms_norm(x, weight.shape, weight, 1e-6)


class AddsOneToTheWeight(KernelEpsOutsideTheRoot):
    """The weight is a distance from 1."""

    def norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return torch.rms_norm(x, weight.shape, 1 + weight, eps)


class WeighsFirst(KernelEpsOutsideTheRoot):
    """Rows are multiplied by the weight, then normed."""

    def norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return torch.rms_norm(x * weight, weight.shape, None, eps)


class SumsSquares(KernelEpsOutsideTheRoot):
    """The sum of squares stands for their mean."""

    def norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return x * torch.rsqrt(x.square().sum(dim=-1, keepdim=True) + eps) * weight


class Choosy(TorchKernels):
    """Right kernels that decline much of what they are asked."""

    def operators(self) -> Mapping[str, Operator]:
        offered = super().operators()
        attention, norm = offered["refdecoder-eager"].run, offered["torch-rms-norm"].run

        def whole(q: Array, k: Array, v: Array, causal: bool, visible: Array | None) -> Array:
            if q.shape[1] != k.shape[1]:
                raise Refused("it takes as many queries as keys.")
            return attention(q, k, v, causal, visible)

        def wide(q: Array, k: Array, v: Array, causal: bool, visible: Array | None) -> Array:
            if q.shape[2] == 128 or k.shape[1] % 16:
                raise Refused("heads of 128 and broken blocks of keys are not built.")
            return attention(q, k, v, causal, visible)

        def short(x: Array, positions: Array, base: float) -> Array:
            if positions.max() >= 8192:
                raise Refused("its table ends at 8,192.")
            return self.rope(reference_rope)(x, positions, base)

        def none(x: Array, positions: Array, base: float) -> Array:
            raise Refused("no positions at all.")

        def breaks(x: Array, weight: Array, eps: float) -> Array:
            if np.abs(x).max() > 500:
                raise RuntimeError("the kernel crashed")
            return norm(x, weight, eps)

        return {
            "decode": AttentionOperator(attention, masks=("none",), grouped=False, max_queries=1, head_dims=(64,)),
            "prefill": AttentionOperator(whole, masks=("causal",)),
            "given": AttentionOperator(attention, masks=("given",)),
            "wide": AttentionOperator(wide, masks=("none", "causal")),
            "short": RopeOperator(short),
            "none": RopeOperator(none, head_dims=(64,)),
            "breaks": RMSNormOperator(breaks, hidden_sizes=(64,)),
        }
