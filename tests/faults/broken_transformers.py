"""Adapters to transformers that break one mechanism: the suite's power is not a property of our own reference."""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import nn

from lmconform.engines.transformers import Transformers

ATTENTION = "lmconform_broken"


class Broken(Transformers):
    """transformers with eager attention, whose Llama model is changed after it was loaded."""

    def __init__(self) -> None:
        super().__init__(attention="eager")

    def load(self, checkpoint, needs):
        loaded = super().load(checkpoint, needs)
        self.change(loaded.model)
        return loaded

    def regimes(self):
        return {}

    def change(self, llama: Any) -> None:
        raise NotImplementedError


def attention(name: str, attend: Callable[..., torch.Tensor]) -> Callable[[Broken, Any], None]:
    """A change that puts ``attend(q, k, v, mask, scale)`` in place of the attention function."""
    from transformers import AttentionInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    def forward(module, query, key, value, attention_mask, scaling, **_):
        out = attend(query, key, value, attention_mask[..., : key.shape[-2]], scaling)  # [B, H_q, T, D]
        return out.transpose(1, 2).contiguous(), None

    def change(self: Broken, llama: Any) -> None:
        full = f"{ATTENTION}_{name}"
        AttentionInterface.register(full, forward)
        ALL_MASK_ATTENTION_FUNCTIONS.register(full, ALL_MASK_ATTENTION_FUNCTIONS["eager"])
        llama.config._attn_implementation = full

    return change


def plain(q, k, v, mask, scale):
    weights = (q @ k.transpose(-1, -2) * scale + mask).softmax(dim=-1)
    return weights @ v


def grouped(x, heads):
    """KV heads as the query heads should see them, [B, H_q, S, D]."""
    return x.repeat_interleave(heads // x.shape[1], dim=1)


def modulo(x, heads):
    """KV heads in the order h % H_kv, [B, H_q, S, D]."""
    return x.repeat(1, heads // x.shape[1], 1, 1)


class ScaleOfOneOverD(Broken):
    def change(self, llama):
        for layer in llama.model.layers:
            layer.self_attn.scaling = layer.self_attn.scaling**2


class KVHeadModulo(Broken):
    change = attention("modulo", lambda q, k, v, m, s: plain(q, modulo(k, q.shape[1]), modulo(v, q.shape[1]), m, s))


class ValueHeadModulo(Broken):
    change = attention("values", lambda q, k, v, m, s: plain(q, grouped(k, q.shape[1]), modulo(v, q.shape[1]), m, s))


class OneKeyAhead(Broken):
    change = attention(
        "ahead",
        lambda q, k, v, m, s: plain(
            q, grouped(k, q.shape[1]), grouped(v, q.shape[1]), torch.maximum(m, m.roll(1, dims=-1)), s
        ),
    )


class AnotherBase(Broken):
    def change(self, llama):
        rotary = llama.model.rotary_emb
        size = 2 * len(rotary.inv_freq)
        theta = rotary.config.rope_parameters["rope_theta"]
        wrong = 10_000.0 if theta != 10_000.0 else 500_000.0
        rotary.inv_freq = wrong ** -(torch.arange(0, size, 2).float() / size)


class InterleavedPairs(Broken):
    def change(self, llama):
        for layer in llama.model.layers:
            for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj):
                heads = projection.weight.unflatten(0, (-1, layer.self_attn.head_dim))  # [H, D, hidden]
                even, odd = heads[:, 0::2], heads[:, 1::2]
                projection.weight = nn.Parameter(torch.cat((even, odd), dim=1).flatten(0, 1), requires_grad=False)


class TurnsBackwards(Broken):
    def change(self, llama):
        right = llama.model.rotary_emb.forward

        def forward(x, position_ids):
            cos, sin = right(x, position_ids)
            return cos, -sin

        llama.model.rotary_emb.forward = forward


class EpsOutsideTheRoot(Broken):
    def change(self, llama):
        def forward(self, x):
            wide = x.float()
            return self.weight * (wide / (wide.square().mean(-1, keepdim=True).sqrt() + self.variance_epsilon)).type_as(
                x
            )

        for module in llama.modules():
            if type(module).__name__ == "LlamaRMSNorm":
                module.forward = MethodType(forward, module)


class NoFinalNorm(Broken):
    def change(self, llama):
        llama.model.norm = nn.Identity()


class GateAndUpSwapped(Broken):
    def change(self, llama):
        for layer in llama.model.layers:
            layer.mlp.gate_proj, layer.mlp.up_proj = layer.mlp.up_proj, layer.mlp.gate_proj


class MLPResidualDropped(Broken):
    def change(self, llama):
        for layer in llama.model.layers:
            mlp, seen = layer.mlp.forward, {}
            layer.post_attention_layernorm.register_forward_pre_hook(lambda _, args, seen=seen: seen.update(x=args[0]))
            layer.mlp.forward = lambda x, mlp=mlp, seen=seen: mlp(x) - seen["x"]


class PostNorm(Broken):
    """x + norm(sublayer(x)): the sublayer reads the stream, and what it adds is normed."""

    def change(self, llama):
        for layer in llama.model.layers:
            first, second = layer.input_layernorm, layer.post_attention_layernorm
            layer.input_layernorm, layer.post_attention_layernorm = nn.Identity(), nn.Identity()
            attend, mlp = layer.self_attn.forward, layer.mlp.forward

            def forward(*args, attend=attend, first=first, **named):
                out, weights = attend(*args, **named)
                return first(out), weights

            layer.self_attn.forward = forward
            layer.mlp.forward = lambda x, mlp=mlp, second=second: second(mlp(x))


BROKEN: dict[type[Broken], str] = {
    OneKeyAhead: "CM-4",
    ScaleOfOneOverD: "SDP-1",
    KVHeadModulo: "GQA-1",
    ValueHeadModulo: "GQA-2",
    AnotherBase: "ROPE-2",
    InterleavedPairs: "ROPE-3",
    TurnsBackwards: "ROPE-4",
    PostNorm: "PNR-1",
    MLPResidualDropped: "PNR-1",
    EpsOutsideTheRoot: "PNR-5",
    NoFinalNorm: "PNR-8",
    GateAndUpSwapped: "PNR-9",
}
"""Each adapter, and the requirement that it breaks."""
