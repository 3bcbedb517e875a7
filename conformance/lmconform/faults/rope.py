"""Planted faults of rotary position embedding."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lmconform.adapter import Model, Needs
from lmconform.engines.reference import Reference
from lmconform.faults.fault import Fault
from refdecoder import Attention, Decoder, DecoderConfig, Rope
from refdecoder.cache import Cache
from refdecoder.rope import cos_sin, inverse_frequencies, rotate

LONG_REQUEST = 60
"""Tokens from which StaleBaseAfterALongRequest changes its base."""


class OtherTurn(Attention):
    """Attention that turns by other cosines and sines than the decoder hands down."""

    def turn(self, positions: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Return cosines and sines [B, T, 1, D/2] for ``positions`` [B, T], instead of ``cos`` and ``sin``."""
        raise NotImplementedError

    def forward(self, x: Tensor, positions: Tensor, cos: Tensor, sin: Tensor, cache: Cache) -> Tensor:
        cos, sin = self.turn(positions.clamp(min=0), cos, sin)
        return super().forward(x, positions, cos, sin, cache)

    def right(self, positions: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """The right cosines and sines at other positions, in the format of ``like``."""
        return cos_sin(positions, self.config.rope, self.config.head_dim, like.dtype)


class _KeysTwice(Attention):
    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = super().project(x, cos, sin)
        return q, rotate(k, cos, sin), v


class TurnsKeysTwice(Reference):
    """Keys are turned twice, queries once."""

    name = "fault: keys turned twice"
    attention_class = _KeysTwice


class _NarrowAngles(OtherTurn):
    def turn(self, positions: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        f = inverse_frequencies(self.config.rope, self.config.head_dim, torch.float32, positions.device)
        angle = (positions[:, :, None, None] * f).bfloat16().float()  # [B, T, 1, D/2]
        return angle.cos().to(cos.dtype), angle.sin().to(sin.dtype)


class AnglesInBfloat16(Reference):
    """Angles are rounded to bfloat16 before their cosines are taken."""

    name = "fault: angles in bfloat16"
    attention_class = _NarrowAngles


class OtherRope(Reference):
    """Builds the decoder with other RoPE parameters than the checkpoint asks for."""

    def rope(self, right: Rope) -> Rope:
        """Return what the engine makes of the ``right`` parameters."""
        raise NotImplementedError

    def build(self, config: DecoderConfig, attention: str) -> Decoder:
        return super().build(replace(config, rope=self.rope(config.rope)), attention)


class TakesBase10000(OtherRope):
    """The base is 10,000 whatever the checkpoint says."""

    name = "fault: base 10,000"

    def rope(self, right: Rope) -> Rope:
        return replace(right, theta=10_000.0)


class _ModelWide(OtherTurn):
    def turn(self, positions: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        pairs = torch.arange(cos.shape[-1], device=cos.device)
        f = self.config.rope.theta ** (-2 * pairs / (self.config.hidden_size / self.config.num_attention_heads))
        angle = positions[:, :, None, None] * f  # [B, T, 1, D/2]
        return angle.cos().to(cos.dtype), angle.sin().to(sin.dtype)


class DividesByHiddenOverHeads(Reference):
    """The exponent of the frequencies holds hidden_size / H_q instead of the head dimension."""

    name = "fault: exponent with hidden_size / H_q"
    attention_class = _ModelWide


class _Reversed(OtherTurn):
    def turn(self, positions: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        return cos.flip(-1), sin.flip(-1)


class ReversesFrequencies(Reference):
    """The first pairs turn slowly, the last ones fast."""

    name = "fault: frequencies reversed"
    attention_class = _Reversed


class _Neighbours(Attention):
    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        still = torch.ones_like(cos), torch.zeros_like(sin)
        q, k, v = super().project(x, *still)
        return _turn_neighbours(q, cos, sin), _turn_neighbours(k, cos, sin), v


def _turn_neighbours(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x[..., ::2].to(cos.dtype), x[..., 1::2].to(cos.dtype)  # [B, T, H, D/2] each
    return torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2).to(x.dtype)


class PairsNeighbours(Reference):
    """Entries 2i and 2i + 1 form a pair."""

    name = "fault: interleaved pairs"
    attention_class = _Neighbours


class _Half(Attention):
    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = super().project(x, torch.ones_like(cos), torch.zeros_like(sin))
        pairs = cos.shape[-1] // 2
        cos, sin = cos[..., :pairs], sin[..., :pairs]
        return self._turn(q, cos, sin), self._turn(k, cos, sin), v

    @staticmethod
    def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        turned = 2 * cos.shape[-1]
        return torch.cat((rotate(x[..., :turned], cos, sin), x[..., turned:]), dim=-1)


class TurnsHalfOfTheHead(Reference):
    """Only the first half of a head's entries is turned, and paired within itself."""

    name = "fault: half of the head turned"
    attention_class = _Half


class _Backwards(OtherTurn):
    def turn(self, positions: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        return cos, -sin


class TurnsBackwards(Reference):
    """Queries and keys are turned by the negative angle."""

    name = "fault: turned backwards"
    attention_class = _Backwards


class _FirstLayer(OtherTurn):
    def turn(self, positions: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        return (cos, sin) if self.layer_index == 0 else (torch.ones_like(cos), torch.zeros_like(sin))


class TurnsInTheFirstLayerOnly(Reference):
    """Layers above the first do not turn."""

    name = "fault: turned in the first layer only"
    attention_class = _FirstLayer


class _ValuesToo(Attention):
    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = super().project(x, cos, sin)
        return q, k, rotate(v, cos, sin)


class TurnsValues(Reference):
    """Values are turned like keys."""

    name = "fault: values turned"
    attention_class = _ValuesToo


class _Restart(OtherTurn):
    def turn(self, positions: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        first = positions.amin(dim=1, keepdim=True)
        return self.right(positions - first, cos)


class RestartsPositions(Reference):
    """Each chunk is turned as if it began at position 0."""

    name = "fault: positions restart"
    attention_class = _Restart


class TurnedAgain(Attention):
    """Cached keys are turned once more, by default in every step of one token."""

    def again(self, positions: Tensor) -> bool:
        """Whether a pass at ``positions`` [B, T] turns the cached keys."""
        return positions.shape[1] == 1

    def forward(self, x: Tensor, positions: Tensor, cos: Tensor, sin: Tensor, cache: Cache) -> Tensor:
        if self.again(positions):
            keys = cache.keys[self.layer_index]  # [B, S, H_kv, D]
            slots = torch.arange(keys.shape[1], device=keys.device)[None]
            cache.keys[self.layer_index] = rotate(
                keys, *cos_sin(slots, self.config.rope, self.config.head_dim, cos.dtype)
            )
        return super().forward(x, positions, cos, sin, cache)


class TurnsCachedKeysAgain(Reference):
    """A step of one token turns all cached keys once more."""

    name = "fault: cached keys turned again"
    attention_class = TurnedAgain


class IgnoresLinearScaling(OtherRope):
    """Rope type ``linear`` is read and not applied."""

    name = "fault: linear scaling ignored"

    def rope(self, right: Rope) -> Rope:
        return Rope(theta=right.theta) if right.kind == "linear" else right


class IgnoresLlama3Scaling(OtherRope):
    """Rope type ``llama3`` is read and not applied."""

    name = "fault: llama3 scaling ignored"

    def rope(self, right: Rope) -> Rope:
        return Rope(theta=right.theta) if right.kind == "llama3" else right


class SlowsAllPairsForLlama3(OtherRope):
    """Rope type ``llama3`` is taken for ``linear``."""

    name = "fault: llama3 as linear"

    def rope(self, right: Rope) -> Rope:
        return replace(right, kind="linear") if right.kind == "llama3" else right


class ReadsTheOlderSpellingAlone(OtherRope):
    """``rope_parameters`` is passed over; without ``rope_theta`` the base is 10,000."""

    name = "fault: rope_parameters passed over"
    fields: Mapping[str, Any]

    def load(self, checkpoint: Path, needs: Needs) -> Model:
        self.fields = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
        return super().load(checkpoint, needs)

    def rope(self, right: Rope) -> Rope:
        return right if self.fields.get("rope_scaling") else Rope(theta=self.fields.get("rope_theta") or 10_000.0)


class _Stale(OtherTurn):
    stretched = False

    def turn(self, positions: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        self.stretched |= int(positions.amax()) >= LONG_REQUEST
        other = replace(self.config.rope, theta=8 * self.config.rope.theta)
        return cos_sin(positions, other, self.config.head_dim, cos.dtype) if self.stretched else (cos, sin)


class StaleBaseAfterALongRequest(Reference):
    """A long request changes the base, and it stays changed."""

    name = "fault: base of an earlier request"
    attention_class = _Stale


FAULTS = (
    Fault(TurnsKeysTwice, "ROPE-1", "vllm#30384", "rope.where"),
    Fault(AnglesInBfloat16, "ROPE-1", "transformers#29285", "rope.precision"),
    Fault(TakesBase10000, "ROPE-2", "airllm#369", "rope.base"),
    Fault(DividesByHiddenOverHeads, "ROPE-2", "onnxruntime-genai#244", "rope.base"),
    Fault(ReversesFrequencies, "ROPE-2", "DeepSpeed#2782", "rope.base"),
    Fault(PairsNeighbours, "ROPE-3", "vllm#941", "rope.pairs"),
    Fault(TurnsHalfOfTheHead, "ROPE-3", "mlx-lm#1698", "rope.pairs"),
    Fault(TurnsBackwards, "ROPE-4", "nanochat#489", "rope.direction"),
    Fault(TurnsInTheFirstLayerOnly, "ROPE-5", "vllm#23918", "rope.where"),
    Fault(TurnsValues, "ROPE-6", "annotated_deep_learning_paper_implementations#251", "rope.where"),
    Fault(RestartsPositions, "ROPE-7", "mlx-vlm#1983", "rope.positions"),
    Fault(TurnsCachedKeysAgain, "ROPE-8", "VeloxQuant-MLX#138", "rope.where"),
    Fault(IgnoresLinearScaling, "ROPE-9", "onnxruntime-genai#2311", "rope.scaling"),
    Fault(IgnoresLlama3Scaling, "ROPE-10", "unsloth#6197", "rope.scaling"),
    Fault(SlowsAllPairsForLlama3, "ROPE-10", "unsloth#6925", "rope.scaling"),
    Fault(ReadsTheOlderSpellingAlone, "ROPE-11", "DeepSpeed#8345", "rope.scaling"),
    Fault(StaleBaseAfterALongRequest, "ROPE-12", "vllm#52675", "rope.base"),
)
