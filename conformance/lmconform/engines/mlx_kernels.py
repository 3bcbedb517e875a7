"""MLX's fast kernels, each by itself: attention, RoPE, RMSNorm."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import mlx.core as mx
import numpy as np

from lmconform.adapter import (
    Array,
    AttentionOperator,
    Engine,
    Operator,
    Precision,
    RMSNormOperator,
    RopeOperator,
)
from lmconform.engines._mlx_arrays import DTYPES, numbers
from lmconform.engines.common import choose


class MLXKernels(Engine):
    """MLX. Options: ``dtype`` (float32, float16, bfloat16)."""

    name = "mlx-kernels"
    version = str(mx.__version__)

    def __init__(self, dtype: str = "float32") -> None:
        """Raise ValueError for a format that is not legal."""
        number = choose("dtype", dtype, DTYPES)
        self.dtype = DTYPES[number]
        self.precision = Precision(weights=number, compute=number, kv_cache=number, scores=number, logprobs=number)

    def operators(self) -> Mapping[str, Operator]:
        """Return what ``mlx.core.fast`` has, in each form in which it can be asked."""
        return {
            "sdpa": AttentionOperator(self.attention, masks=("none", "causal", "given")),
            "sdpa-additive-mask": AttentionOperator(self.additive, masks=("causal", "given")),
            "rope": RopeOperator(partial(self.rope, traditional=False)),
            "rope-traditional": RopeOperator(partial(self.rope, traditional=True), layout="interleaved"),
            "rope-freqs": RopeOperator(partial(self.rope, traditional=False, given=True)),
            "rope-offsets": RopeOperator(self.rope_offsets),
            "rms-norm": RMSNormOperator(self.rms_norm),
        }

    def attention(self, q: Array, k: Array, v: Array, causal: bool, visible: Array | None) -> Array:
        """Return MLX's attention; it takes a causal mask by name, and another one as an array of truth values."""
        mask = "causal" if causal else None if visible is None else mx.array(visible)
        return self._attended(q, k, v, mask)

    def additive(self, q: Array, k: Array, v: Array, causal: bool, visible: Array | None) -> Array:
        """Return MLX's attention with a mask that is added to the scores: 0, or minus infinity."""
        if visible is None:
            n, m = q.shape[1], k.shape[1]
            visible = np.tri(n, m, m - n, dtype=bool)
        return self._attended(q, k, v, self.array(np.where(visible, 0, -np.inf)))

    def rope(self, x: Array, positions: Array, base: float, *, traditional: bool, given: bool = False) -> Array:
        """Return MLX's RoPE of x [H, T, D], in one call for each run of positions that follow one another.

        ``given``: with periods that are handed over in place of the base, as mlx-lm does for scaled RoPE.
        """
        D, runs = x.shape[-1], []
        periods = base ** (mx.arange(0, D, 2, dtype=mx.float32) / D) if given else None
        breaks = np.flatnonzero(np.diff(positions) != 1) + 1
        for run, part in zip(np.split(positions, breaks), np.split(x, breaks, axis=1), strict=True):
            turned = mx.fast.rope(
                self.array(part)[None],  # [1, H, T of the run, D]
                D,
                traditional=traditional,
                base=None if given else base,
                scale=1.0,
                offset=int(run[0]),
                freqs=periods,
            )
            runs.append(turned[0])
        return numbers(mx.concatenate(runs, axis=1))

    def rope_offsets(self, x: Array, positions: Array, base: float) -> Array:
        """Return MLX's RoPE of x [H, T, D] as a batch of single tokens, each with an offset of its own."""
        tokens = self.array(x).swapaxes(0, 1)[:, :, None]  # [H, T, D] to [T, H, 1, D]
        offsets = mx.array(positions.astype(np.int32))
        turned = mx.fast.rope(tokens, x.shape[-1], traditional=False, base=base, scale=1.0, offset=offsets)
        return numbers(turned[:, :, 0].swapaxes(0, 1))  # [T, H, 1, D] to [H, T, D]

    def rms_norm(self, x: Array, weight: Array, eps: float) -> Array:
        """Return MLX's RMSNorm."""
        return numbers(mx.fast.rms_norm(self.array(x), self.array(weight), eps))

    def array(self, values: Array) -> mx.array:
        """Return values in this engine's format."""
        return mx.array(np.ascontiguousarray(values, np.float32)).astype(self.dtype)

    def _attended(self, q: Array, k: Array, v: Array, mask: mx.array | str | None) -> Array:
        queries, keys, values = (self.array(one)[None] for one in (q, k, v))  # a batch of one
        scale = q.shape[-1] ** -0.5
        return numbers(mx.fast.scaled_dot_product_attention(queries, keys, values, scale=scale, mask=mask)[0])
