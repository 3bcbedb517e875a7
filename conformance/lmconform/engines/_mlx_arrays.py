"""What the adapters to MLX share: number formats, and arrays as NumPy's."""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from lmconform.adapter import Array, DType

DTYPES: dict[DType, mx.Dtype] = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}


def numbers(array: mx.array) -> Array:
    """Return an MLX array as a NumPy array of float32, which holds every number of the narrower formats."""
    return np.array(array.astype(mx.float32))
