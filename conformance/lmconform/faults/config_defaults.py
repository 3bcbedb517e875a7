"""Planted faults of what an engine takes where config.json leaves a field out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

import refdecoder
from lmconform.adapter import Model, Needs
from lmconform.engines.reference import Reference
from lmconform.faults.fault import Fault
from refdecoder import Attention, DecoderConfig
from refdecoder.cache import Cache
from refdecoder.config import read_json


class _OwnDefaults(Reference):
    """An engine with its own idea of what a missing field means."""

    said: Mapping[str, Any]

    def load(self, checkpoint: Path, needs: Needs) -> Model:
        self.said = read_json(checkpoint / "config.json")
        return super().load(checkpoint, needs)

    def build(self, config: DecoderConfig, attention: str) -> refdecoder.Decoder:
        return super().build(self.filled(config), attention)

    def filled(self, config: DecoderConfig) -> DecoderConfig:
        """The record of config.json, as this engine fills it in."""
        raise NotImplementedError


class TakesAHeadDimensionOf64(_OwnDefaults):
    """Where config.json does not say head_dim it is 64, and there are as many heads as fit into hidden_size."""

    name = "fault: head_dim is 64 where it is left out"

    def filled(self, config: DecoderConfig) -> DecoderConfig:
        heads, rest = divmod(config.hidden_size, 64)
        if "head_dim" in self.said or rest or config.num_key_value_heads != config.num_attention_heads:
            return config
        return replace(config, head_dim=64, num_attention_heads=heads, num_key_value_heads=heads)


class _FirstKVHead(Attention):
    def gather(self, q: Tensor, k: Tensor, v: Tensor, positions: Tensor, cache: Cache) -> Tensor:
        return super().gather(q, k[:, :, :1].expand_as(k), v[:, :, :1].expand_as(v), positions, cache)


class TakesOneKVHead(Reference):
    """Where config.json does not say num_key_value_heads there is one, the first of those that are stored."""

    name = "fault: one KV head where their number is left out"

    def load(self, checkpoint: Path, needs: Needs) -> Model:
        said = "num_key_value_heads" in read_json(checkpoint / "config.json")
        self.attention_class = Attention if said else _FirstKVHead
        return super().load(checkpoint, needs)


class TakesAnEpsOf1e5(_OwnDefaults):
    """Where config.json does not say rms_norm_eps it is 1e-5."""

    name = "fault: eps is 1e-5 where it is left out"

    def filled(self, config: DecoderConfig) -> DecoderConfig:
        return config if "rms_norm_eps" in self.said else replace(config, rms_norm_eps=1e-5)


FAULTS = (
    Fault(TakesAHeadDimensionOf64, "DEC-6", "fairseq2#1244", "heads.count"),
    Fault(TakesOneKVHead, "DEC-6", "mlx-serve#46", "heads.count"),
    Fault(TakesAnEpsOf1e5, "DEC-6", "candle#271", "norm.eps"),
)
