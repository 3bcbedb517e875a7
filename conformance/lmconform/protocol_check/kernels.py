"""Rules of operators, whose requests carry arrays."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np

from lmconform.protocol_check.rules import Broken, NotExercised
from lmconform.protocol_check.talk import Talk

LARGE = 40
"""Rows of arrays that are sent after the line; two rows fit into it."""


def kernels(talk: Talk) -> None:
    """The output of an operator has the shape of its first input, whether arrays stand in the line or after it."""
    for kind, name, given in _operators(talk):
        for rows in (2, LARGE):
            arguments = _arguments(kind, given, rows)
            answer = talk.ask(kind, operator=name, **arguments)
            if answer.kind == "refused":
                continue
            wanted = next(value.shape for value in arguments.values() if isinstance(value, np.ndarray))
            got = answer.result()["output"].shape
            if got != wanted:
                raise Broken(f"shape {list(wanted)} from {name}", str(list(got)))


def array_tags(talk: Talk) -> None:
    """An array of another byte order or format, or whose bytes are not those of its shape, is a protocol error."""
    for kind, name, given in _operators(talk):
        arguments = _arguments(kind, given, 1)
        for change in (
            {"dtype": ">f4"},
            {"dtype": "int32"},
            {"dtype": "bool"},
            {"shape": [7]},
            {"base64": "AAAA AAA"},
            {"offset": 0},
        ):
            plain = {key: _tag(value) if isinstance(value, np.ndarray) else value for key, value in arguments.items()}
            first = next(key for key, value in arguments.items() if isinstance(value, np.ndarray))
            plain[first] = {**plain[first], **change}
            talk.ask(kind, operator=name, **plain).error("protocol")


def unknown_operator(talk: Talk) -> None:
    """An operator that the engine does not have, or of another kind, is a protocol error."""
    for kind, _, given in _operators(talk):
        talk.ask(kind, operator="no such operator", **_arguments(kind, given, 1)).error("protocol")


def _operators(talk: Talk) -> list[tuple[str, str, dict[str, Any]]]:
    if "operators" not in talk.greeting.get("offers", ()):
        raise NotExercised("the program offers no operators")
    given = talk.ask("operators").result()["operators"]
    return [(limits["kind"], name, limits) for name, limits in given.items()]


def _arguments(kind: str, limits: dict[str, Any], rows: int) -> dict[str, Any]:
    widths = limits.get("hidden_sizes" if kind == "rms_norm" else "head_dims")
    D = widths[0] if widths else 16
    if kind == "rms_norm":
        return {"x": np.ones((rows, D), np.float32), "weight": np.ones(D, np.float32), "eps": 1e-5}
    if kind == "rope":
        return {"x": np.ones((1, rows, D), np.float32), "positions": list(range(rows)), "base": 10000.0}
    most = limits.get("max_queries") or rows
    keys = np.ones((1, rows, D), np.float32)
    masks = limits.get("masks", ["none", "causal"])
    queries = np.ones((1, min(rows, most), D), np.float32)
    visible = {"visible": np.ones((queries.shape[1], rows), bool)} if masks == ["given"] else {}
    return {"q": queries, "k": keys, "v": keys, "causal": "causal" in masks and "none" not in masks, **visible}


def _tag(array: Any) -> dict[str, Any]:
    data = base64.b64encode(np.ascontiguousarray(array).tobytes()).decode("ascii")
    return {"dtype": array.dtype.name, "shape": list(array.shape), "base64": data}
