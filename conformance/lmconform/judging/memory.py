"""What a token may cost in a KV cache."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lmconform.adapter import DType
from lmconform.spec.decoder import read_config
from lmconform.spec.kv_cache import cache_bytes

ITEM_BYTES: dict[DType, float] = {
    "float64": 8,
    "float32": 4,
    "tf32": 4,
    "bfloat16": 2,
    "float16": 2,
    "fp8_e4m3": 1,
    "fp8_e5m2": 1,
    "q8_0": 34 / 32,  # blocks of 32 numbers and a float16 scale
    "int8": 1,
}
SCALE_BYTES = 4
"""Formats of 8 bits may keep one scale a head vector."""


def bytes_a_token(config: Mapping[str, Any], number: DType) -> tuple[float, float]:
    """Least and most bytes of keys and values that one token needs in all layers, in the format ``number``."""
    sizes = read_config(config)
    scale = SCALE_BYTES / sizes.head_dim if ITEM_BYTES[number] == 1 else 0
    least, most = (
        cache_bytes(1, sizes.num_hidden_layers, sizes.num_key_value_heads, sizes.head_dim, ITEM_BYTES[number] + extra)
        for extra in (0, scale)
    )
    return least, most
