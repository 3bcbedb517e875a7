"""Adapters to CTranslate2 whose conversion gets something wrong. Hosted by CTranslate2's interpreter."""

from typing import Any

import numpy as np

from lmconform.engines.ctranslate2 import Converter, CTranslate2


class Swapping(Converter):
    """W_q, W_k and W_v are rows of one matrix; those of W_k and of W_v get their heads in the opposite order."""

    def _load(self) -> Any:
        spec = super()._load()
        for layer in spec.decoder.layer:
            attention = layer.self_attention
            weight, size = attention.linear[0].weight, int(attention.head_dim)
            shared = int(getattr(attention, "num_heads_kv", spec.decoder.num_heads))
            heads = weight.reshape(-1, size, weight.shape[1]).clone()  # [H_q + 2 H_kv, D, hidden]
            for end in (len(heads) - shared, len(heads)):
                heads[end - shared : end] = heads[end - shared : end].flip(0)
            attention.linear[0].weight = heads.reshape(weight.shape)
        return spec


class SwapsKVHeads(CTranslate2):
    converter = Swapping


class Enlarging(Converter):
    """The eps of the checkpoint is written ten times as large."""

    def _load(self) -> Any:
        spec = super()._load()
        spec.config.layer_norm_epsilon = 10 * spec.config.layer_norm_epsilon
        return spec


class ChangesEps(CTranslate2):
    converter = Enlarging


class Forgetting(Converter):
    """The base of RoPE is the usual one, whatever the checkpoint says."""

    def _load(self) -> Any:
        spec = super()._load()
        for layer in spec.decoder.layer:
            layer.self_attention.rotary_base = np.float32(10_000)
        return spec


class DropsTheBase(CTranslate2):
    converter = Forgetting
