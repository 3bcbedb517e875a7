"""Planted faults of rotary position embedding that live in one layer, number format, range of positions or batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import log, pi
from typing import Any

import torch
from torch import Tensor

from lmconform.engines.reference import Reference
from lmconform.faults.fault import Fault
from lmconform.faults.rope import OtherRope, OtherTurn, ReadsTheOlderSpellingAlone, TurnedAgain
from refdecoder import Attention, Decoder, DecoderConfig, Rope
from refdecoder.cache import Cache
from refdecoder.rope import cos_sin, inverse_frequencies, rotate

TABLE = 100
"""Positions of a table of cosines that was made once."""
CAPACITIES = (16, 32, 64, 128)
"""Tokens at which a cache grows."""


class _NarrowFrequencies(OtherTurn):
    def turn(self, positions: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        f = inverse_frequencies(self.config.rope, self.config.head_dim, torch.float32, positions.device)
        angle = positions[:, :, None, None] * f.bfloat16().float()  # [B, T, 1, D/2]
        return angle.cos().to(cos.dtype), angle.sin().to(sin.dtype)


class FrequenciesInBfloat16(Reference):
    """Frequencies are rounded to bfloat16, as a buffer is when the whole model is cast."""

    name = "fault: frequencies in bfloat16"
    attention_class = _NarrowFrequencies


class BaseOverflowsInFloat16(OtherRope):
    """In float16 a base beyond 65,504 is infinite, and only the first pair turns."""

    name = "fault: base overflows in float16"

    def __init__(self, dtype: str = "float16", **options: Any) -> None:
        super().__init__(dtype, **options)

    def rope(self, right: Rope) -> Rope:
        overflows = self.dtype == torch.float16 and right.theta > torch.finfo(torch.float16).max
        return replace(right, theta=float("inf")) if overflows else right


class _ShortTable(OtherTurn):
    def turn(self, positions: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        return self.right(positions.clamp(max=TABLE - 1), cos)


class CosinesEndAt100(Reference):
    """The table of cosines and sines has 100 positions, and later ones read its last row."""

    name = "fault: 100 positions of cosines"
    attention_class = _ShortTable


class _KeysBackwards(Attention):
    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, _, v = super().project(x, cos, sin)
        _, k, _ = super().project(x, cos, -sin)
        return q, k, v


class TurnsKeysBackwards(Reference):
    """Keys are turned by the negative angle, queries by the right one."""

    name = "fault: keys turned backwards"
    attention_class = _KeysBackwards


class _LastLayer(OtherTurn):
    def turn(self, positions: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        if self.layer_index < self.config.num_hidden_layers - 1:
            return cos, sin
        return cos_sin(positions, replace(self.config.rope, theta=10_000.0), self.config.head_dim, cos.dtype)


class LastLayerTakesBase10000(Reference):
    """The last layer turns by the frequencies of base 10,000, as if it were one of another kind."""

    name = "fault: base 10,000 in the last layer"
    attention_class = _LastLayer


class _FirstValueHead(Attention):
    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = super().project(x, cos, sin)
        return q, k, torch.cat((rotate(v[:, :, :1], cos, sin), v[:, :, 1:]), dim=2)


class TurnsTheFirstValueHead(Reference):
    """Of heads that lie side by side as q, k, v, one too many is turned: the first of the values."""

    name = "fault: first value head turned"
    attention_class = _FirstValueHead


class _WhenItGrows(TurnedAgain):
    def again(self, positions: Tensor) -> bool:
        return positions.shape[1] == 1 and int(positions.amax()) in CAPACITIES


class TurnsKeysAgainWhenTheCacheGrows(Reference):
    """The decode step for which the cache grows copies its keys, and turns them once more."""

    name = "fault: keys turned again when the cache grows"
    attention_class = _WhenItGrows


class _WholeNumbers(OtherTurn):
    def turn(self, positions: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        rope = self.config.rope
        if rope.kind != "linear":
            return cos, sin
        return cos_sin(positions // int(rope.factor), Rope(theta=rope.theta), self.config.head_dim, cos.dtype)


class DividesPositionsInIntegers(Reference):
    """For rope type ``linear`` positions are divided by the factor and rounded down."""

    name = "fault: scaled positions rounded down"
    attention_class = _WholeNumbers


class _ByWavelength(OtherTurn):
    def turn(self, positions: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        rope = self.config.rope
        if rope.kind != "llama3":
            return cos, sin
        f = inverse_frequencies(Rope(theta=rope.theta), self.config.head_dim, torch.float32, positions.device)
        longest, shortest = (
            rope.original_max_position_embeddings / turns for turns in (rope.low_freq_factor, rope.high_freq_factor)
        )
        keep = ((longest - 2 * pi / f) / (longest - shortest)).clamp(0, 1)  # [D/2]
        angle = positions[:, :, None, None] * (keep * f + (1 - keep) * f / rope.factor)  # [B, T, 1, D/2]
        return angle.cos().to(cos.dtype), angle.sin().to(sin.dtype)


class BlendsLlama3ByWavelength(Reference):
    """Between the bands of ``llama3``, frequencies are blended by their wavelength, not by their turns."""

    name = "fault: llama3 blended by wavelength"
    attention_class = _ByWavelength


class TakesTheWholeContextForLlama3(Reference):
    """For ``llama3`` the bands are those of max_position_embeddings, not of the original context."""

    name = "fault: llama3 bands of the whole context"

    def build(self, config: DecoderConfig, attention: str) -> Decoder:
        context = float(config.max_position_embeddings)
        rope = replace(config.rope, original_max_position_embeddings=context)
        return super().build(replace(config, rope=rope), attention)


class _Lengthened(OtherTurn):
    def turn(self, positions: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        stretched = self.config.rope.kind == "llama3"
        factor = 0.1 * log(self.config.rope.factor) + 1 if stretched else 1.0
        return cos * factor, sin * factor


class LengthensTurnsForLlama3(Reference):
    """For ``llama3`` cosines and sines are multiplied by the attention factor of another scaling."""

    name = "fault: attention factor for llama3"
    attention_class = _Lengthened


class LosesTheBaseOfTheOlderSpelling(ReadsTheOlderSpellingAlone):
    """Beside ``rope_scaling``, ``rope_theta`` is not read."""

    name = "fault: rope_theta passed over"

    def rope(self, right: Rope) -> Rope:
        older: Mapping[str, Any] | None = self.fields.get("rope_scaling")
        return replace(right, theta=10_000.0) if older and not self.fields.get("rope_parameters") else right


class _LongestRow(OtherTurn):
    def turn(self, positions: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        if positions.shape[1] > 1:
            return cos, sin
        return self.right(positions.amax(dim=0, keepdim=True).expand_as(positions), cos)


class DecodesAtThePositionOfTheLongestRow(Reference):
    """A decode step turns all rows of a batch as the one that is furthest on."""

    name = "fault: positions of the longest row"
    attention_class = _LongestRow


class _CountedPadding(Attention):
    def forward(self, x: Tensor, positions: Tensor, cos: Tensor, sin: Tensor, cache: Cache) -> Tensor:
        if positions.shape[1] > 1 and bool((positions[:, 0] < 0).any()):
            padding = (positions < 0).sum(dim=1, keepdim=True)  # [B, 1]
            places = positions.clamp(min=0) + padding
            cos, sin = cos_sin(places, self.config.rope, self.config.head_dim, x.dtype)
        return super().forward(x, positions, cos, sin, cache)


class CountsPaddingInThePrompt(Reference):
    """Padding on the left counts as positions of the prompt, and not of the decode steps after it."""

    name = "fault: padding counted in the prompt"
    attention_class = _CountedPadding


class _AtLeast1(OtherTurn):
    def turn(self, positions: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        return self.right(positions.clamp(min=1), cos)


class TurnsPosition0As1(Reference):
    """Position 0 is turned as position 1, and all others as themselves."""

    name = "fault: positions of at least 1"
    attention_class = _AtLeast1


FAULTS = (
    Fault(CosinesEndAt100, "ROPE-1", "pegainfer#220", "rope.positions"),
    Fault(TurnsPosition0As1, "ROPE-2", "mlx-lm#1699", "rope.positions"),
    Fault(FrequenciesInBfloat16, "ROPE-2", "transformers#25681", "rope.precision"),
    Fault(BaseOverflowsInFloat16, "ROPE-2", "1bit-MONSTER#634", "rope.precision"),
    Fault(TurnsKeysBackwards, "ROPE-4", "nanochat#489", "rope.direction"),
    Fault(LastLayerTakesBase10000, "ROPE-5", "vllm#29111", "rope.base"),
    Fault(TurnsTheFirstValueHead, "ROPE-6", "annotated_deep_learning_paper_implementations#251", "rope.where"),
    Fault(TurnsKeysAgainWhenTheCacheGrows, "ROPE-8", "VeloxQuant-MLX#138", "rope.where"),
    Fault(DividesPositionsInIntegers, "ROPE-9", "onnxruntime-genai#2311", "rope.scaling"),
    Fault(BlendsLlama3ByWavelength, "ROPE-10", "mlx-examples#907", "rope.scaling"),
    Fault(TakesTheWholeContextForLlama3, "ROPE-10", "candle-vllm#284", "rope.scaling"),
    Fault(LosesTheBaseOfTheOlderSpelling, "ROPE-11", "DeepSpeed#8345", "rope.scaling"),
    Fault(LengthensTurnsForLlama3, "ROPE-14", "exllamav3#259", "rope.scaling"),
    Fault(DecodesAtThePositionOfTheLongestRow, "CM-8", "reasoning-from-scratch#33", "rope.positions"),
    Fault(CountsPaddingInThePrompt, "CM-8", "unsloth#3699", "rope.positions", "left-padding"),
)
