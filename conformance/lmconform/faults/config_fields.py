"""Planted faults of fields of config.json that an engine passes over."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import Tensor, nn

import refdecoder
from lmconform.adapter import Model, Needs
from lmconform.engines.reference import Reference
from lmconform.faults.fault import Fault
from refdecoder import Attention, DecoderConfig
from refdecoder.cache import Cache
from refdecoder.config import ROPE_FIELDS, read_json

MLP = ("gate_proj", "up_proj", "down_proj")


class _UnbiasedOutput(Attention):
    def forward(self, x: Tensor, positions: Tensor, cos: Tensor, sin: Tensor, cache: Cache) -> Tensor:
        right = super().forward(x, positions, cos, sin, cache)
        return right if self.o_proj.bias is None else right - self.o_proj.bias


class DropsTheBiasOfTheOutput(Reference):
    """Under ``attention_bias`` queries, keys and values have their bias, and the output has none, as in Qwen2."""

    name = "fault: bias of o_proj dropped"
    attention_class = _UnbiasedOutput


class DropsTheBiasesOfTheMLP(Reference):
    """``mlp_bias`` is passed over: the biases are in the file, and no projection adds them."""

    name = "fault: mlp_bias passed over"

    def build(self, config: DecoderConfig, attention: str) -> refdecoder.Decoder:
        decoder = super().build(config, attention)
        for name, part in decoder.named_modules():
            if name.endswith(MLP):
                part.__class__ = _Unbiased
        return decoder


class _Unbiased(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight)


class PassesOverUnknownScaling(Reference):
    """A RoPE type that this engine does not know is taken for none: neither followed nor refused."""

    name = "fault: unknown rope_type passed over"

    def load(self, checkpoint: Path, needs: Needs) -> Model:
        fields = read_json(checkpoint / "config.json")
        for spelling in ("rope_parameters", "rope_scaling"):
            asked = fields.get(spelling) or {}
            if asked.get("rope_type", asked.get("type", "default")) not in ROPE_FIELDS:
                del fields[spelling]
        with TemporaryDirectory() as folder:
            for file in checkpoint.iterdir():
                (Path(folder) / file.name).symlink_to(file.resolve())
            (Path(folder) / "config.json").unlink()
            (Path(folder) / "config.json").write_text(json.dumps(fields), encoding="utf-8")
            return super().load(Path(folder), needs)


FAULTS = (
    Fault(DropsTheBiasOfTheOutput, "DEC-7", "mlc-llm#3494", "attention.bias"),
    Fault(DropsTheBiasesOfTheMLP, "DEC-7", "TensorRT-LLM#3476", "mlp.bias"),
    Fault(PassesOverUnknownScaling, "DEC-7", "Megatron-LM#6305", "rope.scaling"),
)
