"""OpenVINO: whole decoders, as optimum exports them from transformers and runs them on the CPU plugin.

The graph takes past keys and values in, and gives them back longer; as it is usually run it keeps them inside, which is
the regime ``stateful``. In ``generate`` transformers decides everything but the logits.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import transformers
from optimum.exporters.openvino import export_from_model
from optimum.intel import OVModelForCausalLM

from lmconform.adapter import Engine, Precision
from lmconform.engines._exported import Exporting
from lmconform.engines.common import choose, whole_number
from lmconform.engines.transformers import Transformers

HINTS = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}
"""What OpenVINO calls the formats that it may compute in."""
PRECISIONS = {
    "float32": Precision(),
    "bfloat16": Precision(compute="bfloat16", kv_cache="float32"),
    "float16": Precision(compute="float16", kv_cache="float32"),
}


class OpenVINO(Exporting, Engine):
    """OpenVINO on CPU, through optimum.

    Options: ``precision`` (float32, bfloat16, float16), the format that the plugin is asked to compute in, where it
    otherwise takes the fastest that the machine has; weights, cache and scores are float32. ``attention`` (sdpa,
    eager), as it is exported. ``threads``. A value that is not legal raises ValueError.
    """

    name = "openvino"
    version = (
        f"{version('openvino')} (optimum-intel {version('optimum-intel')}, transformers {transformers.__version__})"
    )
    choices = Transformers.choices

    def __init__(self, precision: str = "float32", attention: str = "sdpa", threads: str = "1") -> None:
        super().__init__(attention)
        self.hint = HINTS[choose("precision", precision, HINTS)]
        self.precision = PRECISIONS[precision]
        self.threads = whole_number("threads", threads)

    def regimes(self) -> Mapping[str, Mapping[str, Any]]:
        """A graph that keeps the past inside, and batches padded on the right."""
        return {"stateful": {"stateful": True}, "right-padding": {"padding": "right"}}

    def export(self, model: Any, folder: Path, stateful: bool) -> None:
        """Export with past keys and values."""
        export_from_model(model, folder, task="text-generation-with-past", stateful=stateful)

    def run(self, folder: Path, regime: Mapping[str, Any]) -> Any:
        """Compile the graph."""
        config = {
            "INFERENCE_PRECISION_HINT": self.hint,
            "KV_CACHE_PRECISION": "f32",
            "INFERENCE_NUM_THREADS": str(self.threads),
            "CACHE_DIR": "",
        }
        return OVModelForCausalLM.from_pretrained(
            folder, stateful=bool(regime.get("stateful")), ov_config=config, local_files_only=True
        )
