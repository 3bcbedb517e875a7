"""Checks and small conversions that adapters share: options, token ids, the most probable ids of a row."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from lmconform.adapter import Array, Needs, Refused

Name = TypeVar("Name", bound=str)


def choose(option: str, value: str, allowed: Iterable[Name]) -> Name:
    """Return ``value`` if it is one of ``allowed``; raise ValueError that lists the legal ones otherwise."""
    legal = {str(one): one for one in allowed}
    if value not in legal:
        raise ValueError(f"Option {option}={value!s} is not known; it may be one of: {', '.join(legal)}.")
    return legal[value]


def whole_number(option: str, value: str, least: int = 1) -> int:
    """Return ``value`` as an int that is at least ``least``; raise ValueError otherwise."""
    try:
        number = int(value)
    except ValueError:
        number = least - 1
    if number < least:
        raise ValueError(f"Option {option}={value!s} is not legal; it must be a whole number of {least} or more.")
    return number


def regime_settings(regimes: Mapping[str, Mapping[str, Any]], needs: Needs) -> Mapping[str, Any]:
    """Return what the regime that is needed changes, nothing for the default one; refuse one that is not declared."""
    if needs.regime is None:
        return {}
    if needs.regime not in regimes:
        raise Refused(f"Regime {needs.regime!r} is not known; it may be one of: {', '.join(regimes)}.")
    return regimes[needs.regime]


def read_config(checkpoint: Path) -> dict[str, Any]:
    """Return the config.json of a checkpoint directory; refuse one that cannot be read."""
    try:
        config: dict[str, Any] = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as reason:
        raise Refused(f"{checkpoint} has no readable config.json: {reason}") from reason
    return config


def check_tokens(tokens: Sequence[int], vocab_size: int, *, held: int = 0, limit: int | None = None) -> list[int]:
    """Return ``tokens`` as a list of ints, or refuse them.

    Args:
        tokens: token ids.
        vocab_size: V; ids must lie in [0, V).
        held: tokens that the sequence holds already.
        limit: most tokens that the sequence may hold; None where there is no limit.

    Raises:
        Refused: no tokens, an id out of range, or more tokens than the limit.
    """
    ids = [int(token) for token in tokens]
    if not ids:
        raise Refused("The sequence is empty; at least one token id is needed.")
    for place, token in enumerate(ids):
        if not 0 <= token < vocab_size:
            raise Refused(f"Token id {token} at place {place} is out of range; ids are 0 to {vocab_size - 1}.")
    if limit is not None and held + len(ids) > limit:
        raise Refused(f"The sequence would hold {held + len(ids)} tokens; the limit is {limit}.")
    return ids


def top_logprobs(row: Array, n: int) -> dict[int, float]:
    """Return the ``n`` greatest entries of ``row``, [V] log-probabilities, as id to value, greatest first.

    Of equal values the lower id comes first. Entries of -inf are left out: such an id cannot be drawn.
    """
    row = np.asarray(row, dtype=np.float64)
    if n < row.size:
        # Everything that reaches the n-th greatest value, so that the stable sort below decides among equals.
        candidates = np.flatnonzero(row >= np.partition(row, row.size - n)[row.size - n]) if n > 0 else np.arange(0)
    else:
        candidates = np.arange(row.size)
    best = candidates[np.argsort(-row[candidates], kind="stable")][:n]
    return {int(token): float(row[token]) for token in best if row[token] > -np.inf}
