"""ONNX Runtime: whole decoders, as optimum exports them from transformers and runs them.

The graph takes past keys and values in, and gives them back longer. In ``generate`` transformers decides everything
but the logits.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnxruntime
import transformers
from optimum.exporters.onnx import onnx_export_from_model
from optimum.onnxruntime import ORTModelForCausalLM

from lmconform.adapter import Engine, Precision, Refused
from lmconform.engines._exported import Exporting
from lmconform.engines.common import choose, whole_number
from lmconform.engines.transformers import Transformers

LEVELS = onnxruntime.GraphOptimizationLevel


class OnnxRuntime(Exporting, Engine):
    """ONNX Runtime on CPU, in float32, through optimum.

    Options: ``empty_past`` (library, graph): optimum makes the empty past of a first pass with hidden_size / H_q where
    the graph has head_dim, and with H_q heads for families that it does not list. Checkpoints for which that is another
    shape than the graph's are refused; with ``graph`` the adapter tells it the shape, and the rest can be judged on
    them. ``attention`` (sdpa, eager), as it is exported. ``threads``. A value that is not legal raises ValueError.
    """

    name = "onnx-runtime"
    version = (
        f"{onnxruntime.__version__} (optimum-onnx {version('optimum-onnx')}, transformers {transformers.__version__})"
    )
    precision = Precision()
    choices = Transformers.choices

    def __init__(self, empty_past: str = "library", attention: str = "sdpa", threads: str = "1") -> None:
        super().__init__(attention)
        self.empty_past = choose("empty_past", empty_past, ("library", "graph"))
        self.threads = whole_number("threads", threads)

    def regimes(self) -> Mapping[str, Mapping[str, Any]]:
        """The graph as it was exported, without the runtime's fusions; batches padded on the right."""
        return {"unfused": {"fusions": False}, "right-padding": {"padding": "right"}}

    def accepts(self, config: Mapping[str, Any]) -> str | None:
        """Return why transformers refuses this config.json, or optimum cannot start what it exports."""
        hidden, heads, size = (config.get(name) for name in ("hidden_size", "num_attention_heads", "head_dim"))
        if self.empty_past == "library" and size is not None and hidden and heads and hidden != heads * size:
            return (
                f"head_dim is {size} and hidden_size / num_attention_heads is {hidden / heads:g}, which optimum takes "
                "for it when it makes the empty past."
            )
        return super().accepts(config)

    def export(self, model: Any, folder: Path, stateful: bool) -> None:
        """Export with past keys and values; nothing is compared with transformers, which is the suite's work."""
        onnx_export_from_model(model, folder, task="text-generation-with-past", do_validation=False)

    def run(self, folder: Path, regime: Mapping[str, Any]) -> Any:
        """Load the graph."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = self.threads
        fused = regime.get("fusions", True)
        options.graph_optimization_level = LEVELS.ORT_ENABLE_ALL if fused else LEVELS.ORT_DISABLE_ALL
        model = ORTModelForCausalLM.from_pretrained(folder, session_options=options, local_files_only=True)
        _, heads, _, size = model.input_shapes["past_key_values.0.key"]
        if (heads, size) != (model.num_key_value_heads, model.embed_size_per_head) and self.empty_past == "library":
            raise Refused(
                f"The graph's past has {heads} heads of {size}, and optimum makes an empty one of "
                f"{model.num_key_value_heads} heads of {model.embed_size_per_head}."
            )
        model.num_key_value_heads, model.embed_size_per_head = heads, size
        return model
