"""Planted faults of the residual stream, the MLP and a tied head; those of the norms have a file of their own."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

import refdecoder
from lmconform.engines.reference import Reference
from lmconform.faults.fault import Fault, Rebuilt
from refdecoder.cache import Cache
from refdecoder.model import MLP, Block, Decoder

# Blocks.


class _PostNorm(Block):
    def forward(self, x: Tensor, positions: Tensor, cos: Tensor, sin: Tensor, cache: Cache) -> Tensor:
        x = self.input_layernorm(x + self.self_attn(x, positions, cos, sin, cache))
        normed: Tensor = self.post_attention_layernorm(x + self.mlp(x))
        return normed


class PostNorm(Rebuilt):
    """The norm stands on the sum, behind each sublayer."""

    name = "fault: post-norm"
    parts: ClassVar = {Block: _PostNorm}


class _InPlace(Block):
    def forward(self, x: Tensor, positions: Tensor, cos: Tensor, sin: Tensor, cache: Cache) -> Tensor:
        x = self.input_layernorm(x)
        x = self.post_attention_layernorm(x + self.self_attn(x, positions, cos, sin, cache))
        return x + self.mlp(x)


class ResidualAfterTheNorm(Rebuilt):
    """The output of a sublayer is added to the norm, not to the stream."""

    name = "fault: residual taken after the norm"
    parts: ClassVar = {Block: _InPlace}


class _Weighed(Block):
    attention_residual, mlp_residual = 1.0, 1.0

    def forward(self, x: Tensor, positions: Tensor, cos: Tensor, sin: Tensor, cache: Cache) -> Tensor:
        x = self.attention_residual * x + self.self_attn(self.input_layernorm(x), positions, cos, sin, cache)
        return self.mlp_residual * x + self.mlp(self.post_attention_layernorm(x))


class _NoAttentionResidual(_Weighed):
    attention_residual = 0.0


class DropsTheResidualOfAttention(Rebuilt):
    """Attention replaces the stream."""

    name = "fault: no residual around attention"
    parts: ClassVar = {Block: _NoAttentionResidual}


class _NoMLPResidual(_Weighed):
    mlp_residual = 0.0


class DropsTheResidualOfTheMLP(Rebuilt):
    """The MLP replaces the stream."""

    name = "fault: no residual around the MLP"
    parts: ClassVar = {Block: _NoMLPResidual}


class _TwiceTheResidual(_Weighed):
    attention_residual = 2.0


class DoublesTheResidual(Rebuilt):
    """The stream is added twice around attention."""

    name = "fault: residual added twice"
    parts: ClassVar = {Block: _TwiceTheResidual}


class _Scaled(_Weighed):
    attention_residual = mlp_residual = 0.5**0.5


class ScalesTheStream(Rebuilt):
    """The stream is multiplied by the root of a half at each sublayer, so that it does not grow."""

    name = "fault: stream scaled at each sublayer"
    parts: ClassVar = {Block: _Scaled}


class _Parallel(Block):
    def forward(self, x: Tensor, positions: Tensor, cos: Tensor, sin: Tensor, cache: Cache) -> Tensor:
        attended = self.self_attn(self.input_layernorm(x), positions, cos, sin, cache)
        return x + attended + self.mlp(self.post_attention_layernorm(x))


class ParallelSublayers(Rebuilt):
    """Attention and MLP read the same stream."""

    name = "fault: parallel sublayers"
    parts: ClassVar = {Block: _Parallel}


class _MLPFirst(Block):
    def forward(self, x: Tensor, positions: Tensor, cos: Tensor, sin: Tensor, cache: Cache) -> Tensor:
        x = x + self.mlp(self.post_attention_layernorm(x))
        return x + self.self_attn(self.input_layernorm(x), positions, cos, sin, cache)


class MLPFirst(Rebuilt):
    """The MLP comes before attention."""

    name = "fault: MLP first"
    parts: ClassVar = {Block: _MLPFirst}


# MLP and head.


class _Swapped(MLP):
    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(self.gate_proj(x) * self.activation(self.up_proj(x)))
        return out


class GateAndUpSwapped(Rebuilt):
    """The activation acts on up, not on the gate."""

    name = "fault: gate and up swapped"
    parts: ClassVar = {MLP: _Swapped}


class _Gelu(MLP):
    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(F.gelu(self.gate_proj(x)) * self.up_proj(x))
        return out


class GeluForSilu(Rebuilt):
    """The activation is GELU, whatever the checkpoint says."""

    name = "fault: GELU for SiLU"
    parts: ClassVar = {MLP: _Gelu}


class _Silu(MLP):
    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class SiluWhateverIsNamed(Rebuilt):
    """The activation is SiLU, also where the checkpoint names another."""

    name = "fault: hidden_act unread"
    parts: ClassVar = {MLP: _Silu}


class _ScaledTiedHead(Decoder):
    def forward(self, tokens: Tensor, positions: Tensor, cache: Cache, last: bool = False) -> Tensor:
        scale = self.config.hidden_size**0.5 if self.config.tie_word_embeddings else 1.0
        return super().forward(tokens, positions, cache, last) * scale


class TiedHeadScaled(Rebuilt):
    """A tied head is multiplied by the root of hidden_size."""

    name = "fault: tied head scaled"
    parts: ClassVar = {Decoder: _ScaledTiedHead}


# In one layer, and for one activation.


class PostNormInTheLastLayer(Reference):
    """The norm of the last MLP stands on the sum, behind it."""

    name = "fault: post-norm in the last layer"

    def build(self, config: refdecoder.DecoderConfig, attention: str) -> Decoder:
        decoder = super().build(config, attention)
        decoder.layers[-1].__class__ = _PostMLP
        return decoder


class _PostMLP(Block):
    def forward(self, x: Tensor, positions: Tensor, cos: Tensor, sin: Tensor, cache: Cache) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), positions, cos, sin, cache)
        normed: Tensor = self.post_attention_layernorm(x + self.mlp(x))
        return normed


class _HardSwish(MLP):
    def forward(self, x: Tensor) -> Tensor:
        activation = F.hardswish if self.activation is F.silu else self.activation
        out: Tensor = self.down_proj(activation(self.gate_proj(x)) * self.up_proj(x))
        return out


class HardSwishForSilu(Rebuilt):
    """SiLU is approximated by pieces of straight lines and a parabola."""

    name = "fault: hard swish for SiLU"
    parts: ClassVar = {MLP: _HardSwish}


class _QuickGelu(MLP):
    def forward(self, x: Tensor) -> Tensor:
        gate = self.gate_proj(x)
        gate = gate * (1.702 * gate).sigmoid() if self.activation is F.gelu else self.activation(gate)
        out: Tensor = self.down_proj(gate * self.up_proj(x))
        return out


class QuickGeluForGelu(Rebuilt):
    """GELU is approximated by x sigmoid(1.702 x); SiLU is right."""

    name = "fault: quick GELU for GELU"
    parts: ClassVar = {MLP: _QuickGelu}


FAULTS = (
    Fault(PostNorm, "PNR-1", "llama.cpp#1925", "norm.place"),
    Fault(ResidualAfterTheNorm, "PNR-1", "nano-vllm#170", "residual"),
    Fault(DropsTheResidualOfAttention, "PNR-1", "BitNet#32", "residual"),
    Fault(DropsTheResidualOfTheMLP, "PNR-1", "BitNet#32", "residual"),
    Fault(DoublesTheResidual, "PNR-1", "BitNet#32", "residual"),
    Fault(ParallelSublayers, "PNR-2", "TransformerLens#1649", "sublayers.order"),
    Fault(MLPFirst, "PNR-2", "TransformerLens#1649", "sublayers.order"),
    Fault(ScalesTheStream, "PNR-3", "BitNet#32", "residual"),
    Fault(GateAndUpSwapped, "PNR-9", "mlx-lm#767", "mlp.gate"),
    Fault(GeluForSilu, "PNR-10", "candle#991", "mlp.activation"),
    Fault(SiluWhateverIsNamed, "PNR-10", "candle#991", "mlp.activation"),
    Fault(TiedHeadScaled, "PNR-12", "tensai#248", "head.scale"),
    Fault(PostNormInTheLastLayer, "PNR-1", "llama.cpp#1925", "norm.place"),
    Fault(HardSwishForSilu, "PNR-10", "candle#991", "mlp.activation"),
    Fault(QuickGeluForGelu, "PNR-10", "CTranslate2#1658", "mlp.activation"),
)
