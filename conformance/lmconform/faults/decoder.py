"""Planted faults of the decoder as a whole."""

from __future__ import annotations

from dataclasses import replace
from math import log
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


# --- alive in part of the space ---------------------------------------------------------------------------------------


class _LongPass(Attention):
    def attend(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
        tokens = q.shape[2]
        return super().attend(q * (log(tokens) / log(64)) if tokens > 64 else q, k, v, visible)


class ScalesQueriesOfLongPasses(Reference):
    """In a pass of more than 64 tokens all queries are multiplied by the logarithm of its length to the base 64."""

    name = "fault: queries scaled in long passes"
    attention_class = _LongPass


class _FewLayers(Decoder):
    def forward(self, tokens: Tensor, positions: Tensor, cache: Cache, last: bool = False) -> Tensor:
        original = self.layers
        self.layers = original[:48]
        try:
            return super().forward(tokens, positions, cache, last)
        finally:
            self.layers = original


class AppliesNoMoreThan48Layers(Rebuilt):
    """Of a deep stack the first 48 layers are applied, and no others."""

    name = "fault: 48 layers at most"
    parts: ClassVar = {Decoder: _FewLayers}


class _BorderTwice(Decoder):
    def forward(self, tokens: Tensor, positions: Tensor, cache: Cache, last: bool = False) -> Tensor:
        original, half = self.layers, len(self.layers) // 2
        if tokens.shape[1] == 1 and positions.amax() > 0:
            self.layers = nn.ModuleList([*original[: half + 1], *original[half:]])
        try:
            return super().forward(tokens, positions, cache, last)
        finally:
            self.layers = original


class RunsABorderLayerTwiceInDecode(Rebuilt):
    """In decode steps both halves of a pipeline apply the layer at their border."""

    name = "fault: border layer twice in decode"
    parts: ClassVar = {Decoder: _BorderTwice}


class _Capped(Decoder):
    def forward(self, tokens: Tensor, positions: Tensor, cache: Cache, last: bool = False) -> Tensor:
        return 30 * (super().forward(tokens, positions, cache, last) / 30).tanh()


class CapsTheLogits(Rebuilt):
    """The logits are capped at 30 by a hyperbolic tangent, of which the checkpoint says nothing."""

    name = "fault: logits capped"
    parts: ClassVar = {Decoder: _Capped}


class _NoPaddingRow(nn.Embedding):
    def forward(self, tokens: Tensor) -> Tensor:
        return super().forward(tokens) * (tokens != 0)[..., None]


class ZeroesTheRowOfThePaddingId(Rebuilt):
    """Row 0 of the embedding is taken for that of a padding id, and is zero."""

    name = "fault: row 0 of the embedding is zero"
    parts: ClassVar = {nn.Embedding: _NoPaddingRow}


class _TwoShards(nn.Embedding):
    def forward(self, tokens: Tensor) -> Tensor:
        held = tokens < self.num_embeddings // 2 * 2
        return super().forward(tokens) * held[..., None]


class DropsTheLastRowOfAnOddVocabulary(Rebuilt):
    """The embedding is cut into two equal shards, and the last row of an odd vocabulary is in neither."""

    name = "fault: last row of an odd vocabulary"
    parts: ClassVar = {nn.Embedding: _TwoShards}


FAULTS = (
    Fault(BaseGrowsWithThePass, "DEC-1", "vllm#52675", "rope.base"),
    Fault(StreamInBfloat16, "DEC-2", "vllm#42580", "decoder.precision"),
    Fault(SkipsTheLastLayer, "DEC-3", "continual-inference#70", "decoder.layers"),
    Fault(ExchangesTheLastLayers, "DEC-3", "continual-inference#70", "decoder.layers"),
    Fault(ScaledLogits, "DEC-4", "vllm#52158", "head.scale"),
    Fault(ScaledEmbedding, "DEC-5", "tensai#248", "embedding.scale"),
    Fault(ScalesQueriesOfLongPasses, "DEC-1", "vllm#52675", "attention.scale"),
    Fault(AppliesNoMoreThan48Layers, "DEC-3", "continual-inference#70", "decoder.layers"),
    Fault(RunsABorderLayerTwiceInDecode, "DEC-3", "continual-inference#70", "decoder.layers"),
    Fault(CapsTheLogits, "DEC-4", "sglang#33915", "head.scale"),
    Fault(ZeroesTheRowOfThePaddingId, "DEC-5", "Paddle#62301", "embedding.rows"),
    Fault(DropsTheLastRowOfAnOddVocabulary, "DEC-5", "mirage#751", "embedding.rows"),
)
