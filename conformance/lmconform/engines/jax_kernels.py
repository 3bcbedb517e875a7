"""JAX's attention by itself: ``jax.nn.dot_product_attention``, as XLA compiles it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from lmconform.adapter import Array, AttentionOperator, DType, Engine, NotOffered, Operator, Precision
from lmconform.engines.common import choose

DTYPES: dict[DType, type] = {"float32": jnp.float32, "float16": jnp.float16, "bfloat16": jnp.bfloat16}
Kernel = Callable[..., jax.Array]


class JaxKernels(Engine):
    """JAX. Options: ``dtype`` (float32, float16, bfloat16)."""

    name = "jax-kernels"
    version = jax.__version__

    def __init__(self, dtype: str = "float32") -> None:
        """Raise ValueError for a format that is not legal."""
        number = choose("dtype", dtype, DTYPES)
        self.dtype = DTYPES[number]
        self.precision = Precision(weights=number, compute=number, kv_cache=number, scores=number, logprobs=number)

    def operators(self) -> Mapping[str, Operator]:
        """Return the attention of the implementation ``xla``, compiled as a whole, as in a model; once a shape.

        Raises NotOffered if XLA has no product of this format on this device.
        """
        one = jnp.zeros((1, 1, 1, 16), self.dtype)
        try:
            jax.nn.dot_product_attention(one, one, one, implementation="xla")
        except ValueError as reason:
            raise NotOffered(
                f"operators in {self.precision.compute}: JAX says {str(reason).splitlines()[0]}"
            ) from reason
        kernel = jax.jit(partial(jax.nn.dot_product_attention, implementation="xla"), static_argnames="is_causal")
        return {"xla": AttentionOperator(partial(self.attention, kernel), masks=("none", "causal", "given"))}

    def attention(self, kernel: Kernel, q: Array, k: Array, v: Array, causal: bool, visible: Array | None) -> Array:
        """Return ``kernel``; its ``is_causal`` is aligned at the upper left, so that a chunk needs a mask."""
        n, m = q.shape[1], k.shape[1]
        if causal and n != m:
            visible = np.tri(n, m, m - n, dtype=bool)
        mask = None if visible is None else jnp.asarray(visible)[None, None]  # [1, 1, n, m]
        queries, keys, values = (jnp.asarray(one.swapaxes(0, 1), self.dtype)[None] for one in (q, k, v))  # [1, n, H, D]
        out = kernel(queries, keys, values, mask=mask, is_causal=causal and n == m)
        return np.asarray(out[0].astype(jnp.float32)).swapaxes(0, 1)  # [n, H, D] to [H, n, D]
