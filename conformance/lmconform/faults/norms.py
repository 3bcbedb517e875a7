"""Planted faults of the norms."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import refdecoder
from lmconform.engines.reference import Reference
from lmconform.faults.fault import Fault, Rebuilt
from refdecoder.cache import Cache
from refdecoder.model import Block, Decoder, RMSNorm


class _OutsideTheRoot(RMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        return (y / (y.square().mean(dim=-1, keepdim=True).sqrt() + self.eps) * self.weight).to(x.dtype)


class EpsOutsideTheRoot(Rebuilt):
    """Eps is added to the root, not under it."""

    name = "fault: eps outside the root"
    parts: ClassVar = {RMSNorm: _OutsideTheRoot}


class _DefaultEps(RMSNorm):
    default = 1e-6

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), x.shape[-1:], self.weight.float(), self.default).to(x.dtype)


class EpsOfTheDefault(Rebuilt):
    """Eps is 1e-6, whatever the checkpoint says."""

    name = "fault: eps of 1e-6"
    parts: ClassVar = {RMSNorm: _DefaultEps}


class _NoEps(_DefaultEps):
    default = 0.0


class NoEps(Rebuilt):
    """There is no eps."""

    name = "fault: no eps"
    parts: ClassVar = {RMSNorm: _NoEps}


class _LargeEps(_DefaultEps):
    default = 1e-3


class EpsOfTheEngine(Rebuilt):
    """Eps is 1e-3, whatever the checkpoint says."""

    name = "fault: eps of 1e-3"
    parts: ClassVar = {RMSNorm: _LargeEps}


class EpsInTheLastNormAlone(Reference):
    """The last norm has an eps of 1e-6, the others that of the checkpoint."""

    name = "fault: eps of 1e-6 in the last norm"

    def build(self, config: refdecoder.DecoderConfig, attention: str) -> Decoder:
        decoder = super().build(config, attention)
        decoder.norm.eps = 1e-6
        return decoder


class _LayerNorm(RMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.float(), x.shape[-1:], self.weight.float(), None, self.eps).to(x.dtype)


class LayerNormForRMSNorm(Rebuilt):
    """All norms take the mean away."""

    name = "fault: LayerNorm"
    parts: ClassVar = {RMSNorm: _LayerNorm}


class _OnePlusWeight(RMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        y = F.rms_norm(x.float(), x.shape[-1:], None, self.eps)
        return (y * (1 + self.weight)).to(x.dtype)


class OnePlusWeight(Rebuilt):
    """All norms multiply by 1 + weight."""

    name = "fault: 1 + weight"
    parts: ClassVar = {RMSNorm: _OnePlusWeight}


class _WeightFirst(RMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm((x * self.weight).float(), x.shape[-1:], None, self.eps).to(x.dtype)


class WeightInTheMeanSquare(Rebuilt):
    """The stream is multiplied by the weight before its mean square is taken."""

    name = "fault: weight before the mean square"
    parts: ClassVar = {RMSNorm: _WeightFirst}


class _OtherNorms(Block):
    def forward(self, x: Tensor, positions: Tensor, cos: Tensor, sin: Tensor, cache: Cache) -> Tensor:
        x = x + self.self_attn(self.post_attention_layernorm(x), positions, cos, sin, cache)
        return x + self.mlp(self.input_layernorm(x))


class WeightsOfTheOtherNorm(Rebuilt):
    """The two norms of a layer are exchanged."""

    name = "fault: norms of a layer exchanged"
    parts: ClassVar = {Block: _OtherNorms}


class WeightOfTheLayerBelow(Reference):
    """The last layer's norms are those of the first layer."""

    name = "fault: norms of the first layer in the last"

    def build(self, config: refdecoder.DecoderConfig, attention: str) -> Decoder:
        decoder = super().build(config, attention)
        first, last = decoder.layers[0], decoder.layers[-1]
        last.register_forward_pre_hook(lambda block, given: last.load_state_dict(_norms(first), strict=False) and None)
        return decoder


def _norms(block: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in block.state_dict().items() if "norm" in name}


class _HalfSquares(RMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        square = x.to(torch.float16).square().mean(dim=-1, keepdim=True).float()
        return (x.float() * torch.rsqrt(square + self.eps) * self.weight).to(x.dtype)


class SquaresInFloat16(Rebuilt):
    """The mean square is taken in float16, which ends at 65,504."""

    name = "fault: squares in float16"
    parts: ClassVar = {RMSNorm: _HalfSquares}


class _Unnormed(RMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


class NoLastNorm(Reference):
    """The head reads the stream, times the weight of the last norm."""

    name = "fault: no last norm"

    def build(self, config: refdecoder.DecoderConfig, attention: str) -> Decoder:
        decoder = super().build(config, attention)
        decoder.norm.__class__ = _Unnormed
        return decoder


class PlainNormBeforeTheLastMLP(Reference):
    """The norm before the last MLP has no weight."""

    name = "fault: no weight before the last MLP"

    def build(self, config: refdecoder.DecoderConfig, attention: str) -> Decoder:
        decoder = super().build(config, attention)
        decoder.layers[-1].post_attention_layernorm.__class__ = _Plain
        return decoder


class _Plain(RMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), x.shape[-1:], None, self.eps).to(x.dtype)


class _LessOne(RMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        square = y.square().sum(dim=-1, keepdim=True) / (x.shape[-1] - 1)
        return (y * torch.rsqrt(square + self.eps) * self.weight).to(x.dtype)


class DividesByOneLess(Rebuilt):
    """The mean square divides by one less than the width, as a sample's variance does."""

    name = "fault: mean square over one less"
    parts: ClassVar = {RMSNorm: _LessOne}


class _WholeVectors(RMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        whole = y[..., : x.shape[-1] // 32 * 32]
        square = whole.square().sum(dim=-1, keepdim=True) / x.shape[-1]
        return (y * torch.rsqrt(square + self.eps) * self.weight).to(x.dtype)


class LeavesOutTheTailOfTheStream(Rebuilt):
    """The mean square is summed over vectors of 32 channels, without those that do not fill one."""

    name = "fault: tail left out of the mean square"
    parts: ClassVar = {RMSNorm: _WholeVectors}


FAULTS = (
    Fault(EpsOfTheEngine, "PNR-4", "CTranslate2#1357", "norm.eps"),
    Fault(EpsOutsideTheRoot, "PNR-5", "flash-linear-attention#508", "norm.eps"),
    Fault(EpsOfTheDefault, "PNR-5", "candle#271", "norm.eps"),
    Fault(NoEps, "PNR-5", "candle#271", "norm.eps"),
    Fault(EpsInTheLastNormAlone, "PNR-5", "CTranslate2#1357", "norm.eps"),
    Fault(LayerNormForRMSNorm, "PNR-6", "keys_values#139", "norm.statistics"),
    Fault(OnePlusWeight, "PNR-7", "vllm#42379", "norm.weight"),
    Fault(WeightInTheMeanSquare, "PNR-7", "vllm#3653", "norm.weight"),
    Fault(WeightsOfTheOtherNorm, "PNR-7", "torchtitan#1454", "norm.weight"),
    Fault(WeightOfTheLayerBelow, "PNR-7", "torchtitan#1454", "norm.weight"),
    Fault(NoLastNorm, "PNR-8", "keys_values#139", "norm.place"),
    Fault(SquaresInFloat16, "PNR-11", "nntrainer#3935", "norm.statistics"),
    Fault(PlainNormBeforeTheLastMLP, "PNR-7", "torchtitan#1454", "norm.weight"),
    Fault(DividesByOneLess, "DEC-2", "TransformerCompression#131", "norm.statistics"),
    Fault(LeavesOutTheTailOfTheStream, "DEC-2", "ROCm/aiter#5044", "norm.statistics"),
)
