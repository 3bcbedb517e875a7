"""Adapters to mlx-lm and to MLX's kernels that get something wrong on the way in. Hosted by MLX's interpreter."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx

from lmconform.adapter import Array, Operator, RMSNormOperator, RopeOperator
from lmconform.engines.mlx import MLX
from lmconform.engines.mlx_kernels import MLXKernels


class SwapsKVHeads(MLX):
    """The rows of W_k and W_v are loaded with their heads in the opposite order."""

    def read(self, checkpoint: Path, changes: Mapping[str, Any], strict: bool = True) -> tuple[Any, dict[str, Any]]:
        network, config = super().read(checkpoint, changes, strict)
        for layer in network.layers:
            heads = layer.self_attn.n_kv_heads
            for projection in (layer.self_attn.k_proj, layer.self_attn.v_proj):
                rows = projection.weight.reshape(heads, -1, projection.weight.shape[1])  # [H_kv, D, hidden]
                projection.weight = rows[::-1].reshape(projection.weight.shape)
        return network, config


class ChangesEps(MLX):
    """Every checkpoint has the eps of another family."""

    def read(self, checkpoint: Path, changes: Mapping[str, Any], strict: bool = True) -> tuple[Any, dict[str, Any]]:
        return super().read(checkpoint, {**changes, "rms_norm_eps": 1e-5}, strict)


class DropsTheBase(MLX):
    """The base of RoPE does not arrive."""

    def read(self, checkpoint: Path, changes: Mapping[str, Any], strict: bool = True) -> tuple[Any, dict[str, Any]]:
        return super().read(checkpoint, {**changes, "rope_theta": 10_000.0}, strict)


class KernelsInAnotherShape(MLXKernels):
    """KV heads in the opposite order, no base, eps ten times as large."""

    def operators(self) -> Mapping[str, Operator]:
        return {
            **super().operators(),
            "rope": RopeOperator(lambda x, positions, base: self.rope(x, positions, 10_000.0, traditional=False)),
            "rms-norm": RMSNormOperator(lambda x, weight, eps: self.rms_norm(x, weight, 10 * eps)),
        }

    def _attended(self, q: Array, k: Array, v: Array, mask: mx.array | str | None) -> Array:
        return super()._attended(q, k[::-1], v[::-1], mask)
