"""The reference made slow on purpose, in ways that change no token. The comparison must catch each."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

import refdecoder
from lmconform.adapter import Completion, Request
from lmconform.engines.reference import Reference, ReferenceModel
from refdecoder.cache import Cache


class TwiceDecoder(refdecoder.Decoder):
    """Runs each step twice; the second pass writes the same keys and values again."""

    def forward(self, tokens: Tensor, positions: Tensor, cache: Cache, last: bool = False) -> Tensor:
        if positions.shape[1] == 1:
            super().forward(tokens, positions, cache, last)
        return super().forward(tokens, positions, cache, last)


class SecondForward(Reference):
    """A second forward pass in every step."""

    def build(self, config: refdecoder.DecoderConfig, attention: str) -> refdecoder.Decoder:
        return TwiceDecoder(config, attention, self.attention_class)


class ForgetfulModel(ReferenceModel):
    """Makes each token from the whole sequence so far."""

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        tokens: list[tuple[int, ...]] = [() for _ in requests]
        for step in range(max(request.max_new_tokens for request in requests)):
            live = [row for row, request in enumerate(requests) if step < request.max_new_tokens]
            prompts = [requests[row].prompt + tokens[row] for row in live]
            asked = [
                replace(requests[row], prompt=prompt, max_new_tokens=1)
                for row, prompt in zip(live, prompts, strict=True)
            ]
            for row, done in zip(live, super().generate(asked), strict=True):
                tokens[row] += done.tokens
        return [Completion(row, "length") for row in tokens]


class NoCache(Reference):
    """Generation without a KV cache."""

    model_class = ForgetfulModel


class ExpandedAttention(refdecoder.Attention):
    """Keeps the keys and values of a KV head once for each of its query heads."""

    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = super().project(x, cos, sin)
        group = self.config.num_attention_heads // self.config.num_key_value_heads
        return q, k.repeat_interleave(group, dim=2), v.repeat_interleave(group, dim=2)  # [B, T, H_kv, D] to H_q


class ExpandedDecoder(refdecoder.Decoder):
    """A cache that has room for every query head."""

    def new_cache(self, rows: int, capacity: int) -> Cache:
        weight = self.embed_tokens.weight
        expanded = replace(self.config, num_key_value_heads=self.config.num_attention_heads)
        return Cache(expanded, rows, capacity, weight.dtype, weight.device)


class ExpandedCache(Reference):
    """A KV cache expanded to all query heads."""

    attention_class = ExpandedAttention

    def build(self, config: refdecoder.DecoderConfig, attention: str) -> refdecoder.Decoder:
        return ExpandedDecoder(config, attention, self.attention_class)


class HastyModel(ReferenceModel):
    """Makes a token less than was asked for."""

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        return super().generate([replace(one, max_new_tokens=max(1, one.max_new_tokens - 1)) for one in requests])


class StopsEarly(Reference):
    """Ends every row a token too soon, which would make it look fast."""

    model_class = HastyModel


class WarningModel(ReferenceModel):
    """Says something whenever it is asked."""

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        warnings.warn("this engine is old", DeprecationWarning, stacklevel=2)
        return super().generate(requests)


class Warns(Reference):
    """Warns as libraries do, and is right."""

    model_class = WarningModel
