"""Adapters to vLLM that hand it another checkpoint than they are given. Hosted by vLLM's interpreter."""

import json
import shutil
import tempfile
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file, save_file

from lmconform.adapter import Array, Engine, Model, Needs
from lmconform.engines.vllm import VLLM


class Changing(VLLM):
    """Changes a copy of each checkpoint before vLLM loads it."""

    def load(self, checkpoint: Path, needs: Needs) -> Model:
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(shutil.copytree(checkpoint, Path(folder) / "copy"))
            config = json.loads((copy / "config.json").read_text())
            weights = load_file(copy / "model.safetensors")
            self.change(config, weights)
            (copy / "config.json").write_text(json.dumps(config))
            save_file(weights, copy / "model.safetensors", {"format": "pt"})
            return super().load(copy, needs)

    @abstractmethod
    def change(self, config: dict[str, Any], weights: dict[str, Array]) -> None:
        """Insert the fault."""


class SwapsKVHeads(Changing, Engine):
    """The rows of W_k and W_v come with their heads in the opposite order."""

    def change(self, config: Mapping[str, Any], weights: dict[str, Array]) -> None:
        for name, weight in weights.items():
            if name.endswith(("k_proj.weight", "v_proj.weight")):
                rows = weight.reshape(config["num_key_value_heads"], -1, weight.shape[1])  # [H_kv, D, hidden]
                weights[name] = rows[::-1].reshape(weight.shape).copy()


class ChangesEps(Changing, Engine):
    """The eps of the norms is ten times as large."""

    def change(self, config: dict[str, Any], weights: Mapping[str, Array]) -> None:
        config["rms_norm_eps"] = 10 * config.get("rms_norm_eps", 1e-6)


class DropsTheBase(Changing, Engine):
    """The base of RoPE does not arrive."""

    def change(self, config: dict[str, Any], weights: Mapping[str, Array]) -> None:
        config.pop("rope_theta", None)
        config["rope_parameters"] = {**(config.get("rope_parameters") or {}), "rope_theta": 10_000.0}
        config["rope_parameters"].setdefault("rope_type", "default")
