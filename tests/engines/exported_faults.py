"""Adapters to runtimes of exported graphs that convert something wrongly. Hosted by the runtime's interpreter."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

if find_spec("optimum.onnxruntime"):
    from lmconform.engines.onnx_runtime import OnnxRuntime as Runtime
else:
    from lmconform.engines.openvino import OpenVINO as Runtime


class SwapsKVHeads(Runtime):
    """The rows of W_k and W_v are exported with their heads in the opposite order."""

    def export(self, model: Any, folder: Path, stateful: bool) -> None:
        for layer in model.model.layers:
            size = layer.self_attn.head_dim
            for projection in (layer.self_attn.k_proj, layer.self_attn.v_proj):
                rows = projection.weight.data.unflatten(0, (-1, size))  # [H_kv, D, hidden]
                projection.weight.data = rows.flip(0).flatten(0, 1)
        super().export(model, folder, stateful)


class ChangesEps(Runtime):
    """Norms are exported with ten times their eps."""

    def export(self, model: Any, folder: Path, stateful: bool) -> None:
        for module in model.modules():
            if hasattr(module, "variance_epsilon"):
                module.variance_epsilon *= 10
        super().export(model, folder, stateful)


class DropsTheBase(Runtime):
    """RoPE is exported with the usual base, whatever the checkpoint says."""

    def export(self, model: Any, folder: Path, stateful: bool) -> None:
        rope = model.model.rotary_emb
        exponent = rope.inv_freq.new_tensor(range(len(rope.inv_freq))) / len(rope.inv_freq)
        rope.inv_freq.copy_(10_000.0**-exponent)
        super().export(model, folder, stateful)
