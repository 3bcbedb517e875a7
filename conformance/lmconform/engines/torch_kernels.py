"""torch's own kernels and the reference's functions, each by itself: attention, RoPE, RMSNorm."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, flex_attention, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right

from lmconform.adapter import (
    Array,
    AttentionOperator,
    DType,
    Engine,
    Mask,
    Operator,
    Precision,
    Refused,
    RMSNormOperator,
    RopeOperator,
)
from lmconform.engines.common import choose
from lmconform.engines.tensors import numbers, torch_device
from refdecoder import Attention, DecoderConfig, Rope
from refdecoder.checkpoint import DTYPES
from refdecoder.model import ATTENTION_FORMS, RMSNorm
from refdecoder.rope import cos_sin, rotate

BACKENDS = {
    "math": SDPBackend.MATH,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}
AttentionKernel = Callable[[Tensor, Tensor, Tensor, bool, "Tensor | None"], Tensor]
"""q [1, H_q, n, D], k and v [1, H_kv, m, D], causal, visible [n, m] or None; [1, H_q, n, D]."""


class TorchKernels(Engine):
    """Options: ``dtype`` (float64, float32, bfloat16, float16), ``device`` (cpu, cuda, ...)."""

    name = "torch-kernels"
    version = torch.__version__

    def __init__(self, dtype: str = "float32", device: str = "cpu") -> None:
        """Raise ValueError for an option that is unknown or not available here."""
        number = cast(DType, choose("dtype", dtype, DTYPES))
        self.dtype, self.device = DTYPES[number], torch_device(device)
        self.precision = Precision(weights=number, compute=number, kv_cache=number, scores=number, logprobs=number)

    def operators(self) -> Mapping[str, Operator]:
        """Return each backend of SDPA that runs here, flex attention, torch's RMSNorm, and the reference's own."""
        found: dict[str, Operator] = {}
        for name, backend in BACKENDS.items():
            kernel = partial(fused, backend)
            if self._runs(kernel):
                found[f"sdpa-{name}"] = self.attention(kernel)
                lower_right = partial(fused_lower_right, backend)
                found[f"sdpa-{name}-lower-right"] = self.attention(lower_right, masks=("causal",))
        found["flex-attention"] = self.attention(flex)
        for form in ATTENTION_FORMS:
            found[f"refdecoder-{form}"] = self.attention(partial(reference_attention, form))
        found["refdecoder-rope"] = RopeOperator(self.rope(reference_rope))
        for name, norm in (("torch-rms-norm", torch_norm), ("refdecoder-rms-norm", reference_norm)):
            found[name] = RMSNormOperator(self.rms_norm(norm))
        return found

    def attention(
        self, kernel: AttentionKernel, masks: tuple[Mask, ...] = ("none", "causal", "given")
    ) -> AttentionOperator:
        """Return ``kernel`` as an operator of NumPy arrays."""

        def run(q: Array, k: Array, v: Array, causal: bool, visible: Array | None) -> Array:
            given = None if visible is None else torch.tensor(visible, device=self.device)
            with torch.inference_mode():
                queries, keys, values = (self.tensor(one)[None] for one in (q, k, v))  # a batch of one
                return numbers(kernel(queries, keys, values, causal, given)[0])

        return AttentionOperator(run, masks=masks)

    def rope(self, kernel: Callable[[Tensor, Tensor, float], Tensor]) -> Callable[[Array, Array, float], Array]:
        """Return ``kernel``, of x [1, T, H, D] and positions [1, T], as a function of NumPy arrays."""

        def run(x: Array, positions: Array, base: float) -> Array:
            heads = self.tensor(x).transpose(0, 1)[None]  # [H, T, D] to [1, T, H, D]
            turned = kernel(heads, torch.tensor(positions, device=self.device)[None], base)
            return numbers(turned[0].transpose(0, 1))

        return run

    def rms_norm(self, kernel: Callable[[Tensor, Tensor, float], Tensor]) -> Callable[[Array, Array, float], Array]:
        """Return ``kernel``, of x [n, hidden_size] and weight [hidden_size], as a function of NumPy arrays."""
        return lambda x, weight, eps: numbers(kernel(self.tensor(x), self.tensor(weight), eps))

    def tensor(self, values: Array) -> Tensor:
        """Return an array in this engine's format and place."""
        return torch.tensor(np.ascontiguousarray(values)).to(self.device, self.dtype)

    def _runs(self, kernel: AttentionKernel) -> bool:
        """Whether the backend takes grouped heads in this format here; torch warns of each reason that it does not."""
        q = torch.zeros(1, 2, 2, 64, device=self.device, dtype=self.dtype)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                kernel(q, q[:, :1], q[:, :1], False, None)
        except RuntimeError:
            return False
        return True


def lower_right(n: int, m: int, device: torch.device) -> Tensor:
    """Return the causal mask of n queries that stand at the end of m keys, bool [n, m]."""
    return torch.ones(n, m, dtype=torch.bool, device=device).tril(m - n)


def fused(backend: SDPBackend, q: Tensor, k: Tensor, v: Tensor, causal: bool, visible: Tensor | None) -> Tensor:
    """Return torch's SDPA; a square causal call as ``is_causal``, which is aligned at the upper left, others masked."""
    n, m = q.shape[2], k.shape[2]
    if causal and n != m:
        visible = lower_right(n, m, q.device)
    with _only(backend):
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=visible, is_causal=causal and n == m, enable_gqa=q.shape[1] != k.shape[1]
        )


def fused_lower_right(
    backend: SDPBackend, q: Tensor, k: Tensor, v: Tensor, causal: bool, visible: Tensor | None
) -> Tensor:
    """Return torch's SDPA with its bias for chunks, which it may turn into a flag of the kernel."""
    bias = causal_lower_right(q.shape[2], k.shape[2])
    with _only(backend):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, enable_gqa=q.shape[1] != k.shape[1])


@contextmanager
def _only(backend: SDPBackend) -> Iterator[None]:
    """SDPA with one backend; a call that it does not take is refused."""
    try:
        with sdpa_kernel(backend):
            yield
    except RuntimeError as error:
        if "No available kernel" not in str(error):
            raise
        raise Refused(f"torch's backend {backend.name} does not take this call.") from error


def flex(q: Tensor, k: Tensor, v: Tensor, causal: bool, visible: Tensor | None) -> Tensor:
    """Return flex attention without compilation, which takes seconds a shape."""
    n, m = q.shape[2], k.shape[2]
    if causal:
        visible = lower_right(n, m, q.device)
    mask = None
    if visible is not None:
        seen = visible
        mask = flex_attention.create_block_mask(
            lambda b, h, query, key: seen[query, key], None, None, n, m, device=str(q.device)
        )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="flex_attention called without torch.compile")
        found = flex_attention.flex_attention(q, k, v, block_mask=mask, enable_gqa=q.shape[1] != k.shape[1])
    return cast(Tensor, found)


def reference_attention(form: str, q: Tensor, k: Tensor, v: Tensor, causal: bool, visible: Tensor | None) -> Tensor:
    """Return what the reference's attention makes of heads that are rotated already."""
    H_q, n, D = q.shape[1:]
    H_kv, m = k.shape[1:3]
    config = DecoderConfig(
        vocab_size=1,
        hidden_size=D,
        intermediate_size=1,
        num_hidden_layers=1,
        num_attention_heads=H_q,
        num_key_value_heads=H_kv,
        head_dim=D,
        max_position_embeddings=m,
        rms_norm_eps=0.0,
        rope=Rope(),
    )
    if visible is None:
        visible = lower_right(n, m, q.device) if causal else torch.ones(n, m, dtype=torch.bool, device=q.device)
    with torch.device("meta"):  # its projections are not needed
        attention = Attention(config, 0, form)
    return attention.attend(q, k, v, visible[None])


def reference_rope(x: Tensor, positions: Tensor, base: float) -> Tensor:
    """Return x [1, T, H, D], turned by the reference."""
    cos, sin = cos_sin(positions, Rope(theta=base), x.shape[-1], x.dtype)
    return rotate(x, cos, sin)


def torch_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return torch's RMSNorm."""
    return F.rms_norm(x, weight.shape, weight, eps)


def reference_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return the reference's RMSNorm."""
    norm = RMSNorm(len(weight), eps)
    norm.weight = nn.Parameter(weight, requires_grad=False)
    return cast(Tensor, norm(x))
