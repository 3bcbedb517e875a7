"""Planted faults of grouped-query attention that live in one layer, shape, kind of pass, length or row."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lmconform.adapter import Model, Needs
from lmconform.engines.reference import Reference, ReferenceModel
from lmconform.faults.fault import Fault
from lmconform.faults.grouped_query_attention import Mapped
from refdecoder import Attention

LONG = 64
"""Keys from which LongStepsReadValuesInTurn splits them."""
TILE = 4
"""Query heads that MultiQueryStopsAtATile computes at a time."""


class _ByTheKVHeads(Mapped):
    def keys(self, heads: Tensor, H_kv: int) -> Tensor:
        return (heads // H_kv).clamp(max=H_kv - 1)

    def values(self, heads: Tensor, H_kv: int) -> Tensor:
        return self.keys(heads, H_kv)


class DividesByTheKVHeads(Reference):
    """Query head h reads KV head h / H_kv, which is right where groups have H_kv heads."""

    name = "fault: KV head h / H_kv"
    attention_class = _ByTheKVHeads


class _LastLayer(Mapped):
    def keys(self, heads: Tensor, H_kv: int) -> Tensor:
        last = self.layer_index == self.config.num_hidden_layers - 1
        return heads % H_kv if last else super().keys(heads, H_kv)


class LastLayerTakesKeysInTurn(Reference):
    """In the last layer query head h reads the keys of KV head h % H_kv."""

    name = "fault: keys of KV head h % H_kv in the last layer"
    attention_class = _LastLayer


class _OtherRows(Attention):
    def attend(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
        H_q, H_kv = q.shape[1], k.shape[1]
        rows, heads = torch.arange(len(q))[:, None], torch.arange(H_q)
        own = (heads // (H_q // H_kv)).expand(len(q), -1)  # [B, H_q]
        read = torch.where(rows == 0, own, heads % H_kv)
        return super().attend(q, k[rows, read], v[rows, own], visible)


class OtherRowsTakeKeysInTurn(Reference):
    """In the rows of a batch after the first, query head h reads the keys of KV head h % H_kv."""

    name = "fault: keys of KV head h % H_kv in further rows"
    attention_class = _OtherRows


class PermutesKeysByTheQueryHeads(Reference):
    """Rows of W_k are brought into the order of interleaved pairs and back; one of the ways counts H_q heads."""

    name = "fault: W_k permuted as if it had H_q heads"

    def load(self, checkpoint: Path, needs: Needs) -> Model:
        model = super().load(checkpoint, needs)
        assert isinstance(model, ReferenceModel)
        for module in model.decoder.modules():
            if isinstance(module, Attention) and not module.config.head_dim * module.config.num_key_value_heads % (
                2 * module.config.num_attention_heads
            ):
                interleaved = _interleaved(module.k_proj.weight, module.config.num_key_value_heads)
                module.k_proj.weight.copy_(_halves(interleaved, module.config.num_attention_heads))
        return model


def _interleaved(rows: Tensor, heads: int) -> Tensor:
    return rows.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)  # [H * D, hidden_size], pair after pair


def _halves(rows: Tensor, heads: int) -> Tensor:
    return rows.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)  # [H * D, hidden_size], half after half


class _NextValues(Mapped):
    def attend(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
        return super().attend(q, k, v.roll(-1, dims=1) if q.shape[2] == 1 else v, visible)


class DecodesWithTheNextValues(Reference):
    """A decode step gathers the values of the next KV head."""

    name = "fault: values of the next KV head in decode steps"
    attention_class = _NextValues


class _LongValues(Mapped):
    def attend(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
        H_q, H_kv = q.shape[1], k.shape[1]
        if q.shape[2] == 1 and k.shape[2] >= LONG:
            heads = torch.arange(H_q)
            return Attention.attend(self, q, k[:, self.keys(heads, H_kv)], v[:, heads % H_kv], visible)
        return super().attend(q, k, v, visible)


class LongStepsTakeValuesInTurn(Reference):
    """A decode step over 64 keys or more gathers the values of KV head h % H_kv, as its split kernel maps them."""

    name = "fault: values of KV head h % H_kv in long decode steps"
    attention_class = _LongValues


class _OneTile(Attention):
    def attend(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
        heads = super().attend(q, k, v, visible)  # [B, H_q, T, D]
        if k.shape[1] > 1 or q.shape[2] > 1:
            return heads
        return torch.cat([heads[:, :TILE], torch.zeros_like(heads[:, TILE:])], dim=1)


class MultiQueryStopsAtATile(Reference):
    """With H_kv = 1 a decode step leaves out the query heads after the first four."""

    name = "fault: multi-query decodes four heads"
    attention_class = _OneTile


class GivesTheRestToTheLastKVHead(Reference):
    """Where H_kv does not divide H_q, the group is rounded down and the last KV head serves the heads left over."""

    name = "fault: heads left over read the last KV head"

    def accepts(self, config: Mapping[str, Any]) -> str | None:
        return super().accepts({**config, "num_key_value_heads": self._served(config)[1]})

    def load(self, checkpoint: Path, needs: Needs) -> Model:
        config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
        read, heads = self._served(config)
        weights = load_file(checkpoint / "model.safetensors")
        for name in weights:
            if "k_proj" in name or "v_proj" in name:
                weights[name] = weights[name].unflatten(0, (-1, config["head_dim"]))[read].flatten(0, 1)
        with tempfile.TemporaryDirectory() as folder:
            for file in checkpoint.glob("*.json"):
                (Path(folder) / file.name).write_bytes(file.read_bytes())
            (Path(folder) / "config.json").write_text(json.dumps({**config, "num_key_value_heads": heads}))
            save_file(weights, Path(folder) / "model.safetensors", metadata={"format": "pt"})
            return super().load(Path(folder), needs)

    @staticmethod
    def _served(config: Mapping[str, Any]) -> tuple[list[int], int]:
        """KV head of each head that is loaded, and how many are."""
        H_q, H_kv = config["num_attention_heads"], config["num_key_value_heads"]
        if H_q % H_kv == 0:
            return list(range(H_kv)), H_kv
        return [min(head // (H_q // H_kv), H_kv - 1) for head in range(H_q)], H_q


FAULTS = (
    Fault(LastLayerTakesKeysInTurn, "GQA-1", "jax-js#180", "heads.keys"),
    Fault(OtherRowsTakeKeysInTurn, "GQA-1", "vllm#40792", "heads.keys"),
    Fault(PermutesKeysByTheQueryHeads, "GQA-1", "gpt-fast#190", "heads.keys"),
    Fault(DecodesWithTheNextValues, "GQA-2", "FreeToken#177", "heads.values"),
    Fault(LongStepsTakeValuesInTurn, "GQA-2", "axlearn#842", "heads.values"),
    Fault(DividesByTheKVHeads, "GQA-3", "HipKittens#22", "heads.keys"),
    Fault(MultiQueryStopsAtATile, "GQA-4", "vllm-xpu-kernels#409", "heads.count"),
    Fault(GivesTheRestToTheLastKVHead, "GQA-5", "flash-linear-attention#1029", "heads.count"),
)
