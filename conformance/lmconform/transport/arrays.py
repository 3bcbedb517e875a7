"""Arrays on the wire: little-endian bytes with a dtype and a shape. Standard library and NumPy alone.

Small arrays travel as base64 inside the line, large ones as raw bytes after it. bfloat16, which NumPy lacks, travels
as its 16 bits under the tag ``bfloat16`` and arrives as float32: a bfloat16 is the upper half of a float32.
"""

from __future__ import annotations

import base64
import binascii
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import fields
from .fields import Violation

STORED = {"float64": "<f8", "float32": "<f4", "float16": "<f2", "bfloat16": "<u2", "bool": "|u1"}
"""Name of a dtype on the wire: the NumPy format of its bytes."""
FLOATING = ("float64", "float32", "float16", "bfloat16")
"""Those of numbers."""
MOST_AXES = 8
MOST_NUMBERS = 1 << 40
"""Of an array, and of one that has none since an axis is empty: NumPy has limits of its own, and some versions less."""
INLINE_BYTES = 1024
"""Arrays up to this size go as base64, so that short replies are one readable line."""


@dataclass(frozen=True)
class ArrayTag:
    """What the line says of one array: where its bytes are and how to read them."""

    dtype: str
    shape: tuple[int, ...]
    offset: int | None = None
    """Of its first byte among the bytes after the line; None where ``data`` holds them."""
    data: bytes = b""

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * np.dtype(STORED[self.dtype]).itemsize

    def decode(self, payload: bytes | bytearray) -> np.ndarray:
        """Return the array. ``payload`` is all that followed the line."""
        raw = self.data if self.offset is None else memoryview(payload)[self.offset : self.offset + self.nbytes]
        values = np.frombuffer(raw, dtype=STORED[self.dtype]).reshape(self.shape)
        if self.dtype == "bfloat16":
            return (values.astype(np.uint32) << 16).view(np.float32)
        if self.dtype == "bool":
            return values.astype(np.bool_)
        return values.astype(values.dtype.newbyteorder("="))


def encode(array: np.ndarray, payload: list[memoryview]) -> dict[str, Any]:
    """Return the JSON form of an array of one of the wire's dtypes; a large one is also appended to ``payload``."""
    name = array.dtype.name
    bits = array.view(np.uint16) if name == "bfloat16" else array
    stored = np.ascontiguousarray(bits, dtype=STORED[name])
    tag: dict[str, Any] = {"dtype": name, "shape": list(array.shape)}
    if stored.nbytes <= INLINE_BYTES:
        return {**tag, "base64": base64.b64encode(stored.tobytes()).decode("ascii")}
    offset = sum(part.nbytes for part in payload)
    payload.append(stored.data.cast("B"))
    return {**tag, "offset": offset}


def arrived(array: np.ndarray) -> np.ndarray:
    """A copy of the array, in the format in which the wire would bring it."""
    return np.array(array, np.float32 if array.dtype.name == "bfloat16" else array.dtype.newbyteorder("="), order="C")


_TAG = fields.record(
    {"dtype": fields.text, "shape": fields.sequence(fields.at_least(0))},
    {"offset": fields.at_least(0), "base64": fields.text},
)


def tag(value: Any, where: str, dtypes: tuple[str, ...] = FLOATING) -> ArrayTag:
    """Parse the JSON form of an array of numbers (a ``fields.Parser``)."""
    given = _TAG(value, where)
    if given["dtype"] not in dtypes:
        raise Violation(f"{where}.dtype is {given['dtype']!r}; it may be one of: {', '.join(dtypes)}")
    if ("offset" in given) == ("base64" in given):
        raise Violation(f"{where} must have either offset or base64")
    try:
        data = base64.b64decode(given.get("base64", ""), validate=True)
    except (binascii.Error, ValueError):
        raise Violation(f"{where}.base64 is not base64") from None
    if len(given["shape"]) > MOST_AXES or math.prod(size or 1 for size in given["shape"]) > MOST_NUMBERS:
        raise Violation(f"{where}.shape has more than {MOST_AXES} axes, or more numbers than a memory holds")
    one = ArrayTag(given["dtype"], tuple(given["shape"]), given.get("offset"), data)
    if one.offset is None and len(data) != one.nbytes:
        raise Violation(f"{where} holds {len(data)} bytes; {one.dtype} of shape {list(one.shape)} takes {one.nbytes}")
    return one


def mask(value: Any, where: str) -> ArrayTag:
    """Parse the JSON form of an array of true and false, a byte each (a ``fields.Parser``)."""
    return tag(value, where, ("bool",))


def check_payload(tags: list[ArrayTag], size: int) -> None:
    """Raise Violation unless the arrays lie one after the other and fill ``size`` bytes."""
    end = 0
    for one in tags:
        if one.offset is not None:
            if one.offset != end:
                raise Violation(f"an array starts at byte {one.offset}; the array before it ends at {end}")
            end += one.nbytes
    if end != size:
        raise Violation(f"the line announces {size} bytes after it; its arrays take {end}")
