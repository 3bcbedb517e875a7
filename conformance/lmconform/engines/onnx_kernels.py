"""ONNX's operators, each by itself: those of ONNX Runtime, and those of onnx's own reference implementation.

Each is a model of one node. A reference implementation is judged like any other: engines are tested against it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import helper
from onnx.reference import ReferenceEvaluator
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidGraph, NotImplemented

from lmconform.adapter import (
    Array,
    AttentionOperator,
    DType,
    Engine,
    Operator,
    Precision,
    RMSNormOperator,
    RopeOperator,
)
from lmconform.engines.common import choose

DTYPES: dict[DType, type] = {"float32": np.float32, "float16": np.float16}
OPSET, IR = 24, 11
"""Of the standard's operators: the first opset whose Attention takes a cache that has room left."""
CONTRIB = "com.microsoft"
ROOM = 5
"""Keys that a static cache has room for beyond those in use."""
Runner = Callable[..., Array]
"""Runs an operator, named with its inputs, and returns its first output."""


class ONNXKernels(Engine):
    """ONNX Runtime and onnx.reference. Options: ``dtype`` (float32, float16)."""

    name = "onnx-kernels"
    version = f"onnxruntime {onnxruntime.__version__}, onnx {onnx.__version__}"

    def __init__(self, dtype: str = "float32") -> None:
        """Raise ValueError for a format that is not legal."""
        number = choose("dtype", dtype, DTYPES)
        self.dtype = DTYPES[number]
        self.precision = Precision(weights=number, compute=number, kv_cache=number, scores=number, logprobs=number)

    def operators(self) -> Mapping[str, Operator]:
        """Return the operators of both libraries that run in this format."""
        found: dict[str, Operator] = {}
        for name, run in (("ort", partial(one_node, _runtime)), ("reference", partial(one_node, _reference))):
            found |= {f"{name}-{what}": operator for what, operator in self._standard(run).items()}
        run = partial(one_node, _runtime)
        found["ort-multi-head-attention"] = AttentionOperator(
            partial(self.multi_head, run), masks=("none", "causal", "given"), grouped=False
        )
        found["ort-group-query-attention"] = AttentionOperator(partial(self.group_query, run), masks=("causal",))
        return {name: operator for name, operator in found.items() if self._runs(operator)}

    def _standard(self, run: Runner) -> dict[str, Operator]:
        """The operators of ONNX itself."""
        return {
            "attention": AttentionOperator(partial(self.attention, run), masks=("none", "causal", "given")),
            "attention-static-cache": AttentionOperator(partial(self.static_cache, run), masks=("none", "causal")),
            "rotary-embedding": RopeOperator(partial(self.rotary, run, 0)),
            "rotary-embedding-interleaved": RopeOperator(partial(self.rotary, run, 1), layout="interleaved"),
            "rms-normalization": RMSNormOperator(partial(self.rms_norm, run)),
        }

    def attention(self, run: Runner, q: Array, k: Array, v: Array, causal: bool, visible: Array | None) -> Array:
        """Return Attention. Its causal mask counts from the past, so the keys before a chunk are its past."""
        past = k.shape[1] - q.shape[1] if causal else 0
        return run(
            "Attention",
            {
                **self._batch(Q=q, K=k[:, past:], V=v[:, past:]),
                "attn_mask": visible,
                **(self._batch(past_key=k[:, :past], past_value=v[:, :past]) if past else {}),
            },
            outputs=3 if past else 1,
            is_causal=int(causal),
        )[0]

    def static_cache(self, run: Runner, q: Array, k: Array, v: Array, causal: bool, visible: Array | None) -> Array:
        """Return Attention over a cache that has room left, and is told how much of it is in use."""
        keys, values = (np.pad(one, [(0, 0), (0, ROOM), (0, 0)], constant_values=1.0) for one in (k, v))
        used = {"attn_mask": None, "past_key": None, "past_value": None, "nonpad_kv_seqlen": np.array([k.shape[1]])}
        return run("Attention", {**self._batch(Q=q, K=keys, V=values), **used}, is_causal=int(causal))[0]

    def multi_head(self, run: Runner, q: Array, k: Array, v: Array, causal: bool, visible: Array | None) -> Array:
        """Return ONNX Runtime's MultiHeadAttention; a mask is added to the scores, 0 or the format's lowest number."""
        past = k.shape[1] - q.shape[1] if causal else 0
        added: Array | None = None
        if visible is not None:
            added = np.where(visible, 0, np.finfo(self.dtype).min).astype(self.dtype)[None, None]  # [1, 1, n, m]
        cached = self._batch(past_key=k[:, :past], past_value=v[:, :past]) if past else {}
        inputs = {**self._rows(query=q, key=k[:, past:], value=v[:, past:]), "bias": None, "key_padding_mask": None}
        out = run(
            "MultiHeadAttention",
            {**inputs, "attention_bias": added, **cached},
            CONTRIB,
            outputs=3 if past else 1,
            num_heads=len(q),
            unidirectional=int(causal),
        )
        return _heads(out, len(q))

    def group_query(self, run: Runner, q: Array, k: Array, v: Array, causal: bool, visible: Array | None) -> Array:
        """Return ONNX Runtime's GroupQueryAttention, which is causal; the keys before a chunk are its past."""
        past, total = k.shape[1] - q.shape[1], k.shape[1]
        lengths = {"seqlens_k": np.array([total - 1], np.int32), "total_sequence_length": np.array(total, np.int32)}
        cached = self._batch(past_key=k[:, :past], past_value=v[:, :past])
        inputs = {**self._rows(query=q, key=k[:, past:], value=v[:, past:]), **cached, **lengths}
        out = run("GroupQueryAttention", inputs, CONTRIB, outputs=3, num_heads=len(q), kv_num_heads=len(k))
        return _heads(out, len(q))

    def rotary(self, run: Runner, interleaved: int, x: Array, positions: Array, base: float) -> Array:
        """Return RotaryEmbedding. Cosines and sines are its inputs: they are computed here, in float64."""
        D = x.shape[-1]
        angles = positions[:, None] * base ** (-np.arange(0, D, 2) / D)  # [T, D/2]
        tables = {"cos_cache": np.cos(angles).astype(self.dtype), "sin_cache": np.sin(angles).astype(self.dtype)}
        places = {"position_ids": np.arange(len(positions))[None]}  # rows of the tables
        return run("RotaryEmbedding", {**self._batch(X=x), **tables, **places}, interleaved=interleaved)[0]

    def rms_norm(self, run: Runner, x: Array, weight: Array, eps: float) -> Array:
        """Return RMSNormalization."""
        inputs: dict[str, Array] = {"X": x.astype(self.dtype), "scale": weight.astype(self.dtype)}
        return run("RMSNormalization", inputs, axis=-1, epsilon=float(eps))

    def _batch(self, **arrays: Array) -> dict[str, Array]:
        """Heads [H, T, D] as a batch of one, [1, H, T, D], in this engine's format."""
        return {name: np.ascontiguousarray(one[None], self.dtype) for name, one in arrays.items()}

    def _rows(self, **arrays: Array) -> dict[str, Array]:
        """Heads [H, T, D] side by side in rows, [1, T, H·D]."""
        rows = {name: one.swapaxes(0, 1).reshape(1, one.shape[1], -1) for name, one in arrays.items()}
        return {name: np.ascontiguousarray(one, self.dtype) for name, one in rows.items()}

    def _runs(self, operator: Operator) -> bool:
        """Whether the library has a kernel for it in this format."""
        one = np.zeros((2, 1, 64), np.float32)
        calls: dict[str, Sequence[Any]] = {
            "attention": (one, one, one, "causal" in getattr(operator, "masks", ()), None),
            "rope": (one, np.zeros(1, np.int64), 10_000.0),
            "rms_norm": (one[0], one[0, 0], 1e-5),
        }
        try:
            operator.run(*calls[operator.kind])
        except (NotImplemented, InvalidGraph):
            return False
        return True


def one_node(
    build: Callable[[bytes], Any],
    operator: str,
    inputs: Mapping[str, Array | None],
    domain: str = "",
    outputs: int = 1,
    **attributes: float,
) -> Array:
    """Run ``operator`` on ``inputs``, in the order of its definition; None leaves one out. Return the first output."""
    given = {name: array for name, array in inputs.items() if array is not None}
    names = tuple((name, None if array is None else array.dtype.str) for name, array in inputs.items())
    session = _session(build, operator, names, domain, outputs, tuple(attributes.items()))
    out: Array = session.run(["out0"], given)[0]
    return out.astype(np.float32)


@cache
def _session(
    build: Callable[[bytes], Any],
    operator: str,
    inputs: tuple[tuple[str, str | None], ...],
    domain: str,
    outputs: int,
    attributes: tuple[tuple[str, float], ...],
) -> Any:
    """A model of one node, ready to run; shapes are open, so that one serves all calls of a kind."""
    first = np.dtype(inputs[0][1])
    names = [f"out{i}" for i in range(outputs)]
    node = helper.make_node(
        operator, [name if kind else "" for name, kind in inputs], names, domain=domain, **dict(attributes)
    )
    graph = helper.make_graph(
        [node],
        operator,
        [_tensor(name, np.dtype(kind)) for name, kind in inputs if kind],
        [_tensor(name, first) for name in names],
    )
    opsets = [helper.make_opsetid("", OPSET), *([helper.make_opsetid(domain, 1)] if domain else [])]
    return build(helper.make_model(graph, opset_imports=opsets, ir_version=IR).SerializeToString())


def _tensor(name: str, kind: np.dtype) -> Any:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(kind), None)


def _runtime(model: bytes) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what it refuses, it raises
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _reference(model: bytes) -> Any:
    return ReferenceEvaluator(onnx.load_model_from_string(model))


def _heads(rows: Array, count: int) -> Array:
    """Rows [1, T, H·D] as heads, [H, T, D]."""
    return rows[0].reshape(rows.shape[1], count, -1).swapaxes(0, 1)
