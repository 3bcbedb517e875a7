"""Planted faults of the least number of new tokens."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from lmconform.engines.reference import Reference
from lmconform.faults.fault import Fault
from refdecoder.stopping import Stops


class _Earlier(Stops):
    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "min_new_tokens", max(self.min_new_tokens - 1, 0))


class StopsATokenTooEarly(Reference):
    """A stop takes effect with the last token of the minimum."""

    name = "fault: minimum less one"
    stops_class = _Earlier


class _Later(Stops):
    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "min_new_tokens", self.min_new_tokens + (self.min_new_tokens > 0))


class StopsATokenTooLate(Reference):
    """No stop takes effect with the first token after the minimum."""

    name = "fault: minimum plus one"
    stops_class = _Later


class _MasksOne(Stops):
    def mask(self, logits: Tensor, count: int) -> Tensor:
        return replace(self, ids=self.ids[:1]).mask(logits, count) if len(self.ids) > 1 else super().mask(logits, count)


class MasksTheFirstStopIdOnly(Reference):
    """Before the minimum only the first stop id is masked; the others are drawn and ignored."""

    name = "fault: one id masked"
    stops_class = _MasksOne


class _LeavesZero(Stops):
    def mask(self, logits: Tensor, count: int) -> Tensor:
        nonzero = Stops(ids=tuple(one for one in self.ids if one), min_new_tokens=self.min_new_tokens)
        return nonzero.mask(logits, count)


class LeavesIdZeroUnmasked(Reference):
    """Before the minimum a stop id of 0 can be drawn."""

    name = "fault: stop id 0 not masked"
    stops_class = _LeavesZero


class _InPlace(Stops):
    def mask(self, logits: Tensor, count: int) -> Tensor:
        return logits.copy_(super().mask(logits, count))


class MasksTheScoresThemselves(Reference):
    """The mask of a minimum is laid on the scores, of which log-probabilities declared as the model's own are taken."""

    name = "fault: scores masked in place"
    stops_class = _InPlace


FAULTS = (
    Fault(StopsATokenTooEarly, "STOP-12", "vllm#46243", "stops.minimum"),
    Fault(StopsATokenTooLate, "STOP-12", "vllm#46243", "stops.minimum"),
    Fault(MasksTheFirstStopIdOnly, "STOP-13", "vllm#5849", "stops.minimum"),
    Fault(LeavesIdZeroUnmasked, "STOP-13", "openvino.genai#3583", "stops.minimum"),
    Fault(MasksTheScoresThemselves, "CAT-2", "vllm#9453", "logprobs.stage"),
)
