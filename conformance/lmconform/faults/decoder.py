"""Planted faults of the decoder as a whole."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor, nn

import refdecoder
from lmconform.engines.reference import Reference
from lmconform.faults.fault import Fault, Rebuilt
from refdecoder import Attention
from refdecoder.cache import Cache
from refdecoder.model import Block, Decoder
from refdecoder.rope import cos_sin


class _BaseGrows(Attention):
    def forward(self, x: Tensor, positions: Tensor, cos: Tensor, sin: Tensor, cache: Cache) -> Tensor:
        rope = replace(self.config.rope, theta=self.config.rope.theta * x.shape[1])
        cos, sin = cos_sin(positions.clamp(min=0), rope, self.config.head_dim, x.dtype)
        return super().forward(x, positions, cos, sin, cache)


class BaseGrowsWithThePass(Reference):
    """The base of RoPE is multiplied by the number of tokens in the pass."""

    name = "fault: base of RoPE by the length of the pass"
    attention_class = _BaseGrows


class _Coarse(Block):
    def forward(self, x: Tensor, positions: Tensor, cos: Tensor, sin: Tensor, cache: Cache) -> Tensor:
        return super().forward(x, positions, cos, sin, cache).to(torch.bfloat16).to(x.dtype)


class StreamInBfloat16(Rebuilt):
    """The stream is rounded to bfloat16 between layers, and the engine declares float32."""

    name = "fault: stream in bfloat16, undeclared"
    parts: ClassVar = {Block: _Coarse}


class SkipsTheLastLayer(Reference):
    """The last layer is loaded, and not applied."""

    name = "fault: last layer skipped"

    def build(self, config: refdecoder.DecoderConfig, attention: str) -> Decoder:
        decoder = super().build(config, attention)
        decoder.layers[-1].__class__ = _Skipped
        return decoder


class _Skipped(Block):
    def forward(self, x: Tensor, positions: Tensor, cos: Tensor, sin: Tensor, cache: Cache) -> Tensor:
        return x


class _ExchangedPair(Decoder):
    def forward(self, tokens: Tensor, positions: Tensor, cache: Cache, last: bool = False) -> Tensor:
        original = self.layers
        self.layers = nn.ModuleList([*original[:-2], original[-1], original[-2]])
        try:
            return super().forward(tokens, positions, cache, last)
        finally:
            self.layers = original


class ExchangesTheLastLayers(Rebuilt):
    """The last two layers are applied in the other order."""

    name = "fault: last two layers exchanged"
    parts: ClassVar = {Decoder: _ExchangedPair}


class _ScaledLogits(Decoder):
    def forward(self, tokens: Tensor, positions: Tensor, cache: Cache, last: bool = False) -> Tensor:
        return super().forward(tokens, positions, cache, last) * 10


class ScaledLogits(Rebuilt):
    """The logits are multiplied by 10."""

    name = "fault: scaled logits"
    parts: ClassVar = {Decoder: _ScaledLogits}


class _ScaledEmbedding(nn.Embedding):
    def forward(self, tokens: Tensor) -> Tensor:
        return super().forward(tokens) * self.embedding_dim**0.5


class ScaledEmbedding(Rebuilt):
    """The embedding is multiplied by the root of hidden_size."""

    name = "fault: scaled embedding"
    parts: ClassVar = {nn.Embedding: _ScaledEmbedding}


FAULTS = (
    Fault(BaseGrowsWithThePass, "DEC-1", "vllm#52675"),
    Fault(StreamInBfloat16, "DEC-2", "vllm#42580"),
    Fault(SkipsTheLastLayer, "DEC-3", "continual-inference#70"),
    Fault(ExchangesTheLastLayers, "DEC-3", "continual-inference#70"),
    Fault(ScaledLogits, "DEC-4", "vllm#52158"),
    Fault(ScaledEmbedding, "DEC-5", "tensai#248"),
)
