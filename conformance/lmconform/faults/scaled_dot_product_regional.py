"""Planted faults of scaled dot-product attention that live in one number format, form, kind of pass or length."""

from __future__ import annotations

from math import log
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lmconform.engines.reference import Reference
from lmconform.faults.fault import Fault
from lmconform.faults.scaled_dot_product import KeepsTraining, Scored, Training
from refdecoder import Attention
from refdecoder.cache import Cache

LARGEST = 50.0
"""Scores that soft caps and clips let through."""
HEAD = 64
"""Head dimensions are padded to a multiple of it."""
BLOCK, SPLIT = 16, 64
"""Keys of a block of the cache, and of a split of long sequences."""
TRAINED = 32
"""Length of the training sequences, for scales that grow beyond it."""


class _Capped(Scored):
    def softmax(self, scores: Tensor, visible: Tensor) -> Tensor:
        capped = LARGEST * (scores / LARGEST).tanh()
        return capped.masked_fill(~visible, float("-inf")).softmax(dim=-1)


class CapsScores(Reference):
    """Scores go through a soft cap of 50 that the checkpoint does not ask for."""

    name = "fault: soft cap"
    attention_class = _Capped


class _Clipped(Scored):
    def softmax(self, scores: Tensor, visible: Tensor) -> Tensor:
        clipped = scores.clamp(-LARGEST, LARGEST)
        return clipped.masked_fill(~visible, float("-inf")).softmax(dim=-1)


class ClipsScores(Reference):
    """Scores beyond 50 count as 50."""

    name = "fault: scores clipped"
    attention_class = _Clipped


class _PaddedHead(Scored):
    def scale_of(self, q: Tensor) -> float:
        padded = -(-self.config.head_dim // HEAD) * HEAD
        return float(padded**-0.5) if q.dtype == torch.bfloat16 else self.scale


class TakesTheScaleFromThePaddedHead(Reference):
    """In bfloat16, whose kernel pads heads to 64 entries, the scale is that of the padded head."""

    name = "fault: scale by the padded head in bfloat16"
    attention_class = _PaddedHead

    def __init__(self, dtype: str = "bfloat16", **options: Any) -> None:
        super().__init__(dtype, **options)


class _LogOfThePosition(Attention):
    stretch: Tensor

    def forward(self, x: Tensor, positions: Tensor, cos: Tensor, sin: Tensor, cache: Cache) -> Tensor:
        self.stretch = (positions + 1).clamp(min=TRAINED).log()[:, None, :, None] / log(TRAINED)  # [B, 1, T, 1]
        return super().forward(x, positions, cos, sin, cache)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
        return super().attend((q * self.stretch).to(q.dtype), k, v, visible)


class ScalesByTheLogOfThePosition(Reference):
    """From position 32 on, scores grow with the logarithm of the query's position."""

    name = "fault: scale by the logarithm of the position"
    attention_class = _LogOfThePosition


class _WholeBlock(Scored):
    def softmax(self, scores: Tensor, visible: Tensor) -> Tensor:
        S = scores.shape[-1]
        beyond = -S % BLOCK if scores.shape[-2] == 1 else 0
        return F.pad(scores, (0, beyond)).softmax(dim=-1)[..., :S]


class ReadsTheLastBlockToItsEnd(Reference):
    """A decode step counts the empty slots of the last block of 16 keys in its denominator."""

    name = "fault: last block read to its end"
    attention_class = _WholeBlock


class _AveragedSplits(Scored):
    def softmax(self, scores: Tensor, visible: Tensor) -> Tensor:
        splits = [part.softmax(dim=-1).nan_to_num(0) for part in scores.split(SPLIT, dim=-1)]
        filled = sum(part.sum(dim=-1, keepdim=True).round() for part in splits)  # splits with a visible key
        return torch.cat(splits, dim=-1) / filled


class AveragesSplits(Reference):
    """Splits of 64 keys are merged with equal weights, whatever their sums."""

    name = "fault: splits averaged"
    attention_class = _AveragedSplits


class _Untransposed(Attention):
    def attend(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
        heads = super().attend(q, k, v, visible)  # [B, H_q, T, D]
        B, H_q, T, D = heads.shape
        return heads.reshape(B, T, H_q, D).transpose(1, 2)  # so that merging reads H_q * D entries in a row


class ForgetsToTransposeHeads(Reference):
    """Heads are merged as they lie in memory, head after head; right for a pass of one token."""

    name = "fault: heads not transposed"
    attention_class = _Untransposed


class _RowsAsHeads(Attention):
    def attend(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
        heads = super().attend(q, k, v, visible)  # [B, H_q, T, D]
        return heads.transpose(0, 1).reshape(heads.shape)


class FoldsRowsIntoHeads(Reference):
    """What heads return is read as [H_q, B] where it is [B, H_q]; right for a batch of one."""

    name = "fault: rows read as heads"
    attention_class = _RowsAsHeads


class _FusedTraining(Training):
    def weights(self, q: Tensor, k: Tensor, visible: Tensor) -> Tensor:
        return Attention.weights(self, q, k, visible)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
        if self.form != "sdpa":
            return super().attend(q, k, v, visible)
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=visible[:, None], dropout_p=self.rate, scale=self.scale, enable_gqa=True
        )


class FusedFormKeepsTraining(KeepsTraining):
    """The form ``sdpa`` hands the dropout rate of config.json to its kernel on every pass."""

    name = "fault: attention dropout in the fused form"
    attention_class = _FusedTraining


FAULTS = (
    Fault(CapsScores, "SDP-1", "flashinfer#1193", "attention.scale"),
    Fault(TakesTheScaleFromThePaddedHead, "SDP-1", "ipex-llm#12619", "attention.scale"),
    Fault(ScalesByTheLogOfThePosition, "SDP-1", "CLEX#1", "attention.scale"),
    Fault(ReadsTheLastBlockToItsEnd, "SDP-2", "flash-attention#1745", "attention.softmax"),
    Fault(AveragesSplits, "SDP-4", "vllm-project/flash-attention#176", "attention.merge"),
    Fault(ClipsScores, "SDP-5", "sglang#33915", "attention.softmax"),
    Fault(ForgetsToTransposeHeads, "SDP-8", "Transformer-Neural-Network#4", "heads.order"),
    Fault(FoldsRowsIntoHeads, "CM-8", "Transformer-Various-Positional-Encoding#1", "heads.order"),
    Fault(FusedFormKeepsTraining, "SDP-9", "wenet#2699", "attention.softmax", "sdpa"),
)
