"""Norms, residuals, the MLP, and the decoder around its layers, broken in transformers."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaMLP, LlamaRMSNorm

from lmconform.faults.over_transformers.patch import Broken, Rebuilt

# Norms.


class EpsOfTheEngine(Broken):
    """Eps is 1e-3, whatever the checkpoint says."""

    def change(self, llama: Any) -> None:
        for module in llama.modules():
            if isinstance(module, LlamaRMSNorm):
                module.variance_epsilon = 1e-3


class _OutsideTheRoot(LlamaRMSNorm):
    def forward(self, hidden_states: Tensor) -> Tensor:
        x = hidden_states.float()
        root = x.pow(2).mean(-1, keepdim=True).sqrt() + self.variance_epsilon
        return self.weight * (x / root).to(hidden_states.dtype)


class EpsOutsideTheRoot(Rebuilt):
    """Eps is added to the root, not under it."""

    parts: ClassVar = {LlamaRMSNorm: _OutsideTheRoot}


class _LayerNorm(LlamaRMSNorm):
    def forward(self, hidden_states: Tensor) -> Tensor:
        return F.layer_norm(hidden_states, self.weight.shape, self.weight, None, self.variance_epsilon)


class LayerNormForRMSNorm(Rebuilt):
    """All norms take the mean away."""

    parts: ClassVar = {LlamaRMSNorm: _LayerNorm}


class OnePlusWeight(Broken):
    """All norms multiply by 1 + weight."""

    def change(self, llama: Any) -> None:
        for module in llama.modules():
            if isinstance(module, LlamaRMSNorm):
                module.weight = nn.Parameter(1 + module.weight, requires_grad=False)


class NoLastNorm(Broken):
    """The head reads the stream, times the weight of the last norm."""

    def change(self, llama: Any) -> None:
        weight = llama.model.norm.weight
        llama.model.norm.forward = lambda x: weight * x


# Residuals and the order of sublayers.


class _Layer(LlamaDecoderLayer):
    """A layer in two sublayers, each with its norm in front."""

    def attended(self, x: Tensor, named: dict[str, Any]) -> Tensor:
        out: Tensor = self.self_attn(hidden_states=self.input_layernorm(x), **named)[0]
        return out

    def transformed(self, x: Tensor) -> Tensor:
        out: Tensor = self.mlp(self.post_attention_layernorm(x))
        return out


class _NoMLPResidual(_Layer):
    def forward(self, hidden_states: Tensor, *args: Any, **named: Any) -> Tensor:
        return self.transformed(hidden_states + self.attended(hidden_states, named))


class DropsTheResidualOfTheMLP(Rebuilt):
    """The MLP replaces the stream."""

    parts: ClassVar = {LlamaDecoderLayer: _NoMLPResidual}


class _Parallel(_Layer):
    def forward(self, hidden_states: Tensor, *args: Any, **named: Any) -> Tensor:
        return hidden_states + self.attended(hidden_states, named) + self.transformed(hidden_states)


class ParallelSublayers(Rebuilt):
    """Attention and MLP read the same stream."""

    parts: ClassVar = {LlamaDecoderLayer: _Parallel}


class _PostNorm(LlamaDecoderLayer):
    def forward(self, hidden_states: Tensor, *args: Any, **named: Any) -> Tensor:
        x: Tensor = self.input_layernorm(hidden_states + self.self_attn(hidden_states=hidden_states, **named)[0])
        normed: Tensor = self.post_attention_layernorm(x + self.mlp(x))
        return normed


class PostNorm(Rebuilt):
    """The norm stands on the sum, behind each sublayer."""

    parts: ClassVar = {LlamaDecoderLayer: _PostNorm}


# MLP.


class _Swapped(LlamaMLP):
    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(self.gate_proj(x) * self.act_fn(self.up_proj(x)))
        return out


class GateAndUpSwapped(Rebuilt):
    """The activation acts on up, not on the gate."""

    parts: ClassVar = {LlamaMLP: _Swapped}


class GeluForSilu(Broken):
    """The activation is GELU, whatever the checkpoint says."""

    def change(self, llama: Any) -> None:
        for layer in llama.model.layers:
            layer.mlp.act_fn = nn.GELU()


# The decoder around its layers.


class _Skipped(LlamaDecoderLayer):
    def forward(self, hidden_states: Tensor, *args: Any, **named: Any) -> Tensor:
        return hidden_states


class SkipsTheLastLayer(Broken):
    """The last layer is loaded, and not applied."""

    def change(self, llama: Any) -> None:
        llama.model.layers[-1].__class__ = _Skipped


class ScaledLogits(Broken):
    """The logits are multiplied by 10."""

    def change(self, llama: Any) -> None:
        llama.lm_head.register_forward_hook(lambda head, given, logits: logits * 10)


class ScaledEmbedding(Broken):
    """The embedding is multiplied by the root of hidden_size."""

    def change(self, llama: Any) -> None:
        scale = llama.config.hidden_size**0.5
        llama.model.embed_tokens.register_forward_hook(lambda table, given, x: x * scale)


class StreamInBfloat16(Broken):
    """The stream is rounded to bfloat16 between layers, and the engine declares float32."""

    def change(self, llama: Any) -> None:
        for layer in llama.model.layers:
            layer.register_forward_hook(lambda layer, given, x: x.to(torch.bfloat16).to(x.dtype))


ENGINES: tuple[type[Broken], ...] = (
    EpsOfTheEngine,
    EpsOutsideTheRoot,
    LayerNormForRMSNorm,
    OnePlusWeight,
    NoLastNorm,
    DropsTheResidualOfTheMLP,
    ParallelSublayers,
    PostNorm,
    GateAndUpSwapped,
    GeluForSilu,
    SkipsTheLastLayer,
    ScaledLogits,
    ScaledEmbedding,
    StreamInBfloat16,
)
