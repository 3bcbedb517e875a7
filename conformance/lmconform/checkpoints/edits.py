"""Edits: a checkpoint, changed in one known way.

A law may relate an engine's scores on two checkpoints: those of one with shared KV heads, and those of one in which
each query head has a copy of its own. And the oracle of a faulty engine is often the oracle of an edited checkpoint: a
wrong scale is a query projection multiplied by a number.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from lmconform.checkpoints.layout import Checkpoint

Edit = Callable[[Checkpoint], Checkpoint]

EDITS: dict[str, Edit] = {}
"""The edits that tests may ask the engine to load, by name."""


def edited(checkpoint: Checkpoint, name: str) -> Checkpoint:
    """The checkpoint after the edit ``name``; its recipe says so."""
    changed = EDITS[name](checkpoint)
    return replace(changed, name=f"{checkpoint.name}~{name}", recipe={**checkpoint.recipe, "edit": name})
