"""Planted faults of scaled dot-product attention."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lmconform.adapter import Model, Needs
from lmconform.engines.reference import Reference, ReferenceModel
from lmconform.faults.fault import Fault
from refdecoder import Attention


class Scored(Attention):
    """The eager form in parts, one of which a fault replaces."""

    def weights(self, q: Tensor, k: Tensor, visible: Tensor) -> Tensor:
        q = q.unflatten(1, (k.shape[1], -1))  # [B, H_q, T, D] to [B, H_kv, G, T, D]
        scores = (q @ k[:, :, None].transpose(-1, -2)).float() * self.scale_of(q)  # [B, H_kv, G, T, S]
        seen = visible[:, None, None]
        return self.softmax(scores.masked_fill(~seen, float("-inf")), seen).to(q.dtype)

    def scale_of(self, q: Tensor) -> float | Tensor:
        """The scale of the queries ``q`` [B, H_kv, G, T, D]."""
        return self.scale

    def softmax(self, scores: Tensor, visible: Tensor) -> Tensor:
        """The weights of ``scores`` [B, H_kv, G, T, S]."""
        return scores.softmax(dim=-1)


class _ByHeadDim(Scored):
    def scale_of(self, q: Tensor) -> float:
        return 1 / self.config.head_dim


class DividesByHeadDim(Reference):
    """Scores are divided by D, as if the scale were applied to queries and to scores."""

    name = "fault: scale 1/D"
    attention_class = _ByHeadDim


class _ByWidth(Scored):
    def scale_of(self, q: Tensor) -> float:
        return (self.config.hidden_size // self.config.num_attention_heads) ** -0.5


class TakesTheScaleFromTheWidth(Reference):
    """The scale is that of hidden_size / H_q, which is D in most checkpoints and not in all."""

    name = "fault: scale by hidden_size / H_q"
    attention_class = _ByWidth


class _ByHeads(Scored):
    def scale_of(self, q: Tensor) -> float:
        return float(self.config.num_attention_heads**-0.5)


class TakesTheScaleFromTheHeads(Reference):
    """The scale is that of the number of heads."""

    name = "fault: scale by H_q"
    attention_class = _ByHeads


class _NotDecoding(Scored):
    def scale_of(self, q: Tensor) -> float:
        return 1.0 if q.shape[-2] == 1 else self.scale


class ForgetsTheScaleWhileDecoding(Reference):
    """A pass of one token does not scale its scores."""

    name = "fault: no scale in decode steps"
    attention_class = _NotDecoding


class _LastHead(Scored):
    def scale_of(self, q: Tensor) -> Tensor:
        scale = q.new_full((*q.shape[1:3], 1, 1), self.scale)  # [H_kv, G, 1, 1]
        scale[-1, -1] = 1
        return scale


class ForgetsTheScaleOfTheLastHead(Reference):
    """The last query head does not scale its scores."""

    name = "fault: no scale in the last head"
    attention_class = _LastHead


class _Sink(Scored):
    def softmax(self, scores: Tensor, visible: Tensor) -> Tensor:
        return F.pad(scores, (1, 0)).softmax(dim=-1)[..., 1:]


class AddsASink(Reference):
    """The denominator counts a key of score 0 that is not there."""

    name = "fault: attention sink"
    attention_class = _Sink


class _AllSlots(Scored):
    def softmax(self, scores: Tensor, visible: Tensor) -> Tensor:
        beyond = (~visible).sum(dim=-1, keepdim=True)  # [B, 1, 1, T, 1]: their scores of -inf are taken for 0
        highest = scores.amax(dim=-1, keepdim=True).clamp(min=0)
        powers = (scores - highest).exp()
        return powers / (powers.sum(dim=-1, keepdim=True) + beyond * (-highest).exp())


class SumsOverHiddenSlots(Reference):
    """Hidden keys weigh nothing, but the denominator counts them."""

    name = "fault: hidden keys in the denominator"
    attention_class = _AllSlots


class _Saturating(Attention):
    def attend(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
        return super().attend(q, k, v.clamp(-4, 4), visible)


class SaturatesValues(Reference):
    """Values beyond 4 are cut off, as a cache of few bits with a fixed scale does."""

    name = "fault: values saturate"
    attention_class = _Saturating


class _SplitWrong(Scored):
    def softmax(self, scores: Tensor, visible: Tensor) -> Tensor:
        half = scores.shape[-1] // 2
        if not half:
            return scores.softmax(dim=-1)
        parts = [scores[..., :half], scores[..., half:]]
        sums = [part.logsumexp(dim=-1, keepdim=True) for part in parts]
        powers = [torch.exp2(one - torch.maximum(*sums)) for one in sums]  # sums are natural logarithms
        each = [power / (powers[0] + powers[1]) for power in powers]
        inner = [part.softmax(dim=-1).nan_to_num(0) for part in parts]  # a part may have no visible key
        return torch.cat([weight * share for weight, share in zip(inner, each, strict=True)], dim=-1)


class MergesSplitKeysInBaseTwo(Reference):
    """Two halves of the keys are merged by powers of 2 of sums that are natural logarithms."""

    name = "fault: split keys merged in base 2"
    attention_class = _SplitWrong


class _Biased(Scored):
    slope = 0.02

    def softmax(self, scores: Tensor, visible: Tensor) -> Tensor:
        slots = torch.arange(scores.shape[-1], device=scores.device)
        return (scores + self.slope * slots).softmax(dim=-1)


class PrefersRecentKeys(Reference):
    """Scores get a bias that grows with the position of the key."""

    name = "fault: bias by position"
    attention_class = _Biased


class _NoMaximum(Scored):
    def softmax(self, scores: Tensor, visible: Tensor) -> Tensor:
        powers = scores.exp()
        return powers / powers.sum(dim=-1, keepdim=True)


class ExponentiatesWithoutTheMaximum(Reference):
    """The largest score is not subtracted before the exponential."""

    name = "fault: softmax without the maximum"
    attention_class = _NoMaximum


class _InFloat16(_NoMaximum):
    def softmax(self, scores: Tensor, visible: Tensor) -> Tensor:
        return super().softmax(scores.half(), visible)


class OverflowsInFloat16(Reference):
    """In float16 scores are exponentiated as they are, and 12 is too much."""

    name = "fault: exponentials overflow in float16"
    attention_class = _InFloat16

    def __init__(self, dtype: str = "float16", **options: Any) -> None:
        super().__init__(dtype, **options)


class _ScatteredHeads(Attention):
    def attend(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
        heads = super().attend(q, k, v, visible)  # [B, H_q, T, D]
        return heads.permute(0, 3, 2, 1).reshape(heads.shape)  # as if the last axis were heads


class MergesHeadsAlongTheWrongAxis(Reference):
    """What heads return is merged entry by entry, not head by head."""

    name = "fault: heads merged along the wrong axis"
    attention_class = _ScatteredHeads


class _LastTwoSwapped(Attention):
    def attend(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
        heads = super().attend(q, k, v, visible)  # [B, H_q, T, D]
        return torch.cat([heads[:, :-2], heads[:, -1:], heads[:, -2:-1]], dim=1)


class SwapsTheLastTwoHeads(Reference):
    """The last two heads reach the output projection in each other's place."""

    name = "fault: last two heads swapped"
    attention_class = _LastTwoSwapped


class Training(Attention):
    rate = 0.0

    def weights(self, q: Tensor, k: Tensor, visible: Tensor) -> Tensor:
        return F.dropout(super().weights(q, k, visible), self.rate, training=True)


class KeepsTraining(Reference):
    """The attention dropout that config.json names acts on every pass."""

    name = "fault: attention dropout"
    attention_class = Training

    def load(self, checkpoint: Path, needs: Needs) -> Model:
        model = super().load(checkpoint, needs)
        assert isinstance(model, ReferenceModel)
        config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
        for module in model.decoder.modules():
            if isinstance(module, Training):
                module.rate = config.get("attention_dropout", 0.0)
        return model


FAULTS = (
    Fault(DividesByHeadDim, "SDP-1", "mlc-llm#3426", "attention.scale"),
    Fault(TakesTheScaleFromTheWidth, "SDP-1", "attorch#14", "attention.scale"),
    Fault(TakesTheScaleFromTheHeads, "SDP-1", "tt-metal#56789", "attention.scale"),
    Fault(ForgetsTheScaleWhileDecoding, "SDP-1", "mlc-llm#3426", "attention.scale"),
    Fault(ForgetsTheScaleOfTheLastHead, "SDP-1", "HipKittens#22", "attention.scale"),
    Fault(AddsASink, "SDP-2", "rocm-libraries#12229", "attention.softmax"),
    Fault(SumsOverHiddenSlots, "SDP-2", "vllm#47305", "attention.softmax"),
    Fault(SaturatesValues, "SDP-3", "vllm#42580", "attention.values"),
    Fault(MergesSplitKeysInBaseTwo, "SDP-4", "flashinfer#58", "attention.merge"),
    Fault(ExponentiatesWithoutTheMaximum, "SDP-5", "executorch#18407", "attention.softmax"),
    Fault(PrefersRecentKeys, "SDP-6", "vllm#945", "attention.bias"),
    Fault(OverflowsInFloat16, "SDP-7", "FasterTransformer#43", "attention.softmax"),
    Fault(MergesHeadsAlongTheWrongAxis, "SDP-8", "transformer-from-scratch#6", "heads.order"),
    Fault(SwapsTheLastTwoHeads, "SDP-8", "ArcticInference#142", "heads.order"),
    Fault(KeepsTraining, "SDP-9", "pytorch#124464", "attention.softmax"),
)
