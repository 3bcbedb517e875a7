"""Rotary position embedding, broken in transformers."""

from __future__ import annotations

from types import MethodType
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRotaryEmbedding, apply_rotary_pos_emb

from lmconform.faults.over_transformers.patch import Broken, OtherAttention, Rebuilt, rebound

# The base and its scaling.


class _OtherParameters(Broken):
    def change(self, llama: Any) -> None:
        llama.config.rope_parameters = self.parameters(dict(llama.config.rope_parameters))
        llama.model.rotary_emb = LlamaRotaryEmbedding(llama.config)

    def parameters(self, right: dict[str, Any]) -> dict[str, Any]:
        """What is read from the checkpoint's ``rope_parameters``."""
        raise NotImplementedError


class TakesBase10000(_OtherParameters):
    """The base is 10,000 whatever the checkpoint says."""

    def parameters(self, right: dict[str, Any]) -> dict[str, Any]:
        return {**right, "rope_theta": 10_000.0}


class IgnoresLinearScaling(_OtherParameters):
    """Rope type ``linear`` is read and not applied."""

    ignored = "linear"

    def parameters(self, right: dict[str, Any]) -> dict[str, Any]:
        base = {"rope_type": "default", "rope_theta": right["rope_theta"]}
        return base if right["rope_type"] == self.ignored else right


class IgnoresLlama3Scaling(IgnoresLinearScaling):
    """Rope type ``llama3`` is read and not applied."""

    ignored = "llama3"


# Angles and positions.


class _NarrowAngles(LlamaRotaryEmbedding):
    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        angles = (position_ids[..., None].float() * self.inv_freq).bfloat16().float()  # [B, T, D/2]
        both = torch.cat((angles, angles), dim=-1)
        return both.cos().to(x.dtype), both.sin().to(x.dtype)


class AnglesInBfloat16(Rebuilt):
    """Angles are rounded to bfloat16 before their cosines are taken."""

    parts: ClassVar = {LlamaRotaryEmbedding: _NarrowAngles}


class _FromZero(LlamaRotaryEmbedding):
    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        turned: tuple[Tensor, Tensor] = super().forward(x, position_ids - position_ids.amin(dim=1, keepdim=True))
        return turned


class RestartsPositions(Rebuilt):
    """Each chunk is turned as if it began at position 0."""

    parts: ClassVar = {LlamaRotaryEmbedding: _FromZero}


# The turn of queries and keys.


class PairsNeighbours(OtherAttention):
    """Entries 2i and 2i + 1 form a pair."""

    def turn(self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        q, k = (torch.cat((x[..., ::2], x[..., 1::2]), dim=-1) for x in (q, k))
        return super().turn(q, k, cos, sin)


class TurnsHalfOfTheHead(OtherAttention):
    """Only the first half of a head's entries is turned, and paired within itself."""

    def turn(self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        half, pairs = q.shape[-1] // 2, q.shape[-1] // 4
        cos, sin = (x[..., :pairs].repeat(1, 1, 2) for x in (cos, sin))  # [B, T, D/2] each
        turned = super().turn(q[..., :half], k[..., :half], cos, sin)
        return torch.cat((turned[0], q[..., half:]), dim=-1), torch.cat((turned[1], k[..., half:]), dim=-1)


class TurnsBackwards(OtherAttention):
    """Queries and keys are turned by the negative angle."""

    def turn(self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        return super().turn(q, k, cos, -sin)


class TurnsKeysTwice(OtherAttention):
    """Keys are turned twice, queries once."""

    def turn(self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        return super().turn(q, super().turn(k, k, cos, sin)[1], cos, sin)


class TurnsInTheFirstLayerOnly(Broken):
    """Layers above the first do not turn."""

    def change(self, llama: Any) -> None:
        still = rebound(LlamaAttention.forward, apply_rotary_pos_emb=lambda q, k, cos, sin: (q, k))
        for layer in llama.model.layers[1:]:
            layer.self_attn.forward = MethodType(still, layer.self_attn)


class TurnsValues(Broken):
    """Values are turned like keys."""

    def change(self, llama: Any) -> None:
        seen: dict[str, tuple[Tensor, Tensor]] = {}

        def turn(projection: Any, given: Any, v: Tensor) -> Tensor:
            cos, sin = seen["angles"]  # [B, T, D] each
            heads = v.unflatten(-1, (-1, cos.shape[-1])).transpose(1, 2)  # [B, T, H_kv * D] to [B, H_kv, T, D]
            return apply_rotary_pos_emb(heads, heads, cos, sin)[1].transpose(1, 2).flatten(2)  # [B, T, H_kv * D]

        llama.model.rotary_emb.register_forward_hook(lambda module, given, angles: seen.update(angles=angles))
        for layer in llama.model.layers:
            layer.self_attn.v_proj.register_forward_hook(turn)


class TurnsCachedKeysAgain(Broken):
    """A step of one token turns all cached keys once more."""

    def change(self, llama: Any) -> None:
        def again(module: Any, given: Any, named: dict[str, Any]) -> None:
            cache, x = named["past_key_values"], named["hidden_states"]
            if cache is not None and x.shape[1] == 1 and cache.get_seq_length():
                held = cache.layers[module.layer_idx]
                cos, sin = llama.model.rotary_emb(x, torch.arange(held.keys.shape[2])[None])
                held.keys = apply_rotary_pos_emb(held.keys, held.keys, cos, sin)[1]

        for layer in llama.model.layers:
            layer.self_attn.register_forward_pre_hook(again, with_kwargs=True)


ENGINES: tuple[type[Broken], ...] = (
    TakesBase10000,
    IgnoresLinearScaling,
    IgnoresLlama3Scaling,
    AnglesInBfloat16,
    RestartsPositions,
    PairsNeighbours,
    TurnsHalfOfTheHead,
    TurnsBackwards,
    TurnsKeysTwice,
    TurnsInTheFirstLayerOnly,
    TurnsValues,
    TurnsCachedKeysAgain,
)
