"""Engines whose attention takes no head dimension below 32, one right and some wrong."""

from collections.abc import Mapping
from typing import Any

from lmconform.adapter import Engine
from lmconform.engines.reference import Reference
from lmconform.faults.grouped_query_attention import ReadsKVHeadsInTurn
from lmconform.faults.rope import TakesBase10000

LEAST = 32


class TakesWideHeads(Engine):
    """Refuses what is narrower."""

    def accepts(self, config: Mapping[str, Any]) -> str | None:
        size = config.get("head_dim", LEAST)
        return f"head_dim is {size}, and {LEAST} is the least." if size < LEAST else super().accepts(config)


class Wide(TakesWideHeads, Reference):
    """Right."""


class WideTakesBase10000(TakesWideHeads, TakesBase10000):
    """Takes another base."""


class WideReadsKVHeadsInTurn(TakesWideHeads, ReadsKVHeadsInTurn):
    """Reads KV heads in turn, not a group each."""
