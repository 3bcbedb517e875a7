"""Planted faults of grouped-query attention."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lmconform.adapter import Model, Needs
from lmconform.engines.reference import Reference
from lmconform.faults.fault import Fault
from refdecoder import Attention, Decoder, DecoderConfig
from refdecoder.cache import Cache
from refdecoder.rope import rotate


class Mapped(Attention):
    """Every query head gets keys and values of its own, from the KV heads that a fault names."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
        heads = torch.arange(q.shape[1], device=q.device)
        return super().attend(q, k[:, self.keys(heads, k.shape[1])], v[:, self.values(heads, v.shape[1])], visible)

    def keys(self, heads: Tensor, H_kv: int) -> Tensor:
        """KV head whose keys each of ``heads`` [H_q] reads."""
        return heads // (len(heads) // H_kv)

    def values(self, heads: Tensor, H_kv: int) -> Tensor:
        """KV head whose values each of ``heads`` [H_q] reads."""
        return heads // (len(heads) // H_kv)


class _KeysInTurn(Mapped):
    def keys(self, heads: Tensor, H_kv: int) -> Tensor:
        return heads % H_kv


class TakesKeysInTurn(Reference):
    """Query head h reads the keys of KV head h % H_kv."""

    name = "fault: keys of KV head h % H_kv"
    attention_class = _KeysInTurn


class _ValuesInTurn(Mapped):
    def values(self, heads: Tensor, H_kv: int) -> Tensor:
        return heads % H_kv


class TakesValuesInTurn(Reference):
    """Query head h reads the values of KV head h % H_kv."""

    name = "fault: values of KV head h % H_kv"
    attention_class = _ValuesInTurn


class _BothInTurn(_KeysInTurn, _ValuesInTurn):
    pass


class ReadsKVHeadsInTurn(Reference):
    """Query head h reads KV head h % H_kv."""

    name = "fault: KV head h % H_kv"
    attention_class = _BothInTurn


class _StraddlingKeys(Mapped):
    def keys(self, heads: Tensor, H_kv: int) -> Tensor:
        own = super().keys(heads, H_kv)
        tiles = torch.div(heads, 3, rounding_mode="floor") * 3
        return torch.where(own == H_kv - 1, own[tiles], own)  # the first head of a tile of three decides


class StraddlesTwoGroups(Reference):
    """A tile of three query heads takes the keys of the KV head of its first."""

    name = "fault: tile of heads straddles two groups"
    attention_class = _StraddlingKeys


class _LastHead(Mapped):
    def values(self, heads: Tensor, H_kv: int) -> Tensor:
        own = super().values(heads, H_kv)
        own[-1] = 0
        return own


class TakesTheFirstValuesInTheLastHead(Reference):
    """The last query head reads the values of the first KV head."""

    name = "fault: values of the last head"
    attention_class = _LastHead


class _FirstForAll(Mapped):
    def keys(self, heads: Tensor, H_kv: int) -> Tensor:
        return heads * 0 if H_kv == len(heads) else super().keys(heads, H_kv)

    def values(self, heads: Tensor, H_kv: int) -> Tensor:
        return self.keys(heads, H_kv)


class CollapsesMultiHead(Reference):
    """With H_kv = H_q all query heads read KV head 0."""

    name = "fault: multi-head reads one KV head"
    attention_class = _FirstForAll


class _UnscaledMultiQuery(Attention):
    def attend(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
        return super().attend(q / self.scale if k.shape[1] == 1 else q, k, v, visible)


class MultiQueryHasItsOwnScale(Reference):
    """With H_kv = 1 scores are not scaled."""

    name = "fault: multi-query does not scale"
    attention_class = _UnscaledMultiQuery


class RoundsHeadsDown(Reference):
    """H_kv is lowered to the next number that divides H_q, and the other KV heads are dropped."""

    name = "fault: H_kv rounded down"

    def accepts(self, config: Mapping[str, Any]) -> str | None:
        return super().accepts({**config, "num_key_value_heads": self._fewer(config)})

    def load(self, checkpoint: Path, needs: Needs) -> Model:
        config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
        fewer, weights = self._fewer(config), load_file(checkpoint / "model.safetensors")
        for name in weights:
            if "k_proj" in name or "v_proj" in name:
                weights[name] = weights[name][: fewer * config["head_dim"]].clone()
        with tempfile.TemporaryDirectory() as folder:
            for file in checkpoint.glob("*.json"):
                (Path(folder) / file.name).write_bytes(file.read_bytes())
            (Path(folder) / "config.json").write_text(json.dumps({**config, "num_key_value_heads": fewer}))
            save_file(weights, Path(folder) / "model.safetensors", metadata={"format": "pt"})
            return super().load(Path(folder), needs)

    @staticmethod
    def _fewer(config: Mapping[str, Any]) -> int:
        H_q, H_kv = config["num_attention_heads"], config["num_key_value_heads"]
        return next(count for count in range(H_kv, 0, -1) if H_q % count == 0)


class _CachesCopies(Attention):
    def forward(self, x: Tensor, positions: Tensor, cos: Tensor, sin: Tensor, cache: Cache) -> Tensor:
        D, G = self.config.head_dim, self.config.num_attention_heads // self.config.num_key_value_heads
        q = rotate(self.q_proj(x).unflatten(-1, (-1, D)), cos, sin)  # [B, T, H_q, D]
        k = rotate(self.k_proj(x).unflatten(-1, (-1, D)), cos, sin)  # [B, T, H_kv, D]
        v = self.v_proj(x).unflatten(-1, (-1, D))  # [B, T, H_kv, D]
        k, v = (one.repeat_interleave(G, dim=2) for one in (k, v))  # [B, T, H_q, D]
        k, v = cache.write(self.layer_index, positions, k, v)
        visible = self.visible(positions.clamp(min=0), torch.arange(k.shape[1], device=x.device))
        heads = self.attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), visible)  # [B, H_q, T, D]
        return self.o_proj(heads.transpose(1, 2).flatten(2))  # [B, T, H_q * D] to [B, T, hidden_size]


class _WideCache(Decoder):
    def new_cache(self, rows: int, capacity: int) -> Cache:
        weight = self.embed_tokens.weight
        wide = replace(self.config, num_key_value_heads=self.config.num_attention_heads)
        return Cache(wide, rows, capacity, weight.dtype, weight.device)


class CachesRepeatedHeads(Reference):
    """Keys and values are repeated for each query head before they are cached."""

    name = "fault: repeated heads in the cache"

    def build(self, config: DecoderConfig, attention: str) -> Decoder:
        return _WideCache(config, attention, _CachesCopies)


FAULTS = (
    Fault(TakesKeysInTurn, "GQA-1", "jax-js#180", "heads.keys"),
    Fault(StraddlesTwoGroups, "GQA-1", "HipKittens#22", "heads.keys"),
    Fault(TakesValuesInTurn, "GQA-2", "axlearn#842", "heads.values"),
    Fault(TakesTheFirstValuesInTheLastHead, "GQA-2", "FreeToken#177", "heads.values"),
    Fault(ReadsKVHeadsInTurn, "GQA-3", "jax-js#180", "heads.keys"),
    Fault(CollapsesMultiHead, "GQA-4", "ONNXim#34", "heads.count"),
    Fault(MultiQueryHasItsOwnScale, "GQA-4", "quant.cpp#61", "heads.count"),
    Fault(RoundsHeadsDown, "GQA-5", "flash-linear-attention#1029", "heads.count"),
    Fault(CachesRepeatedHeads, "GQA-6", "torchtune#38", "cache.memory"),
)
